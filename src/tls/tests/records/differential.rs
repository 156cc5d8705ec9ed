//! The record layer against rustls's own: the same bytes from a client, and the same plaintext and the same alerts
//! have to come of them. Two servers get to the same keys: what they draw is not random, the key exchange always
//! has the same result, and signatures of Ed25519 have no chance in them.

use proptest::prelude::*;
use proptest::sample::Index;

use self::differences::*;
use self::script::*;
pub(super) use self::servers::heard;
use self::servers::*;
use super::*;

mod differences;
mod script;
mod servers;

const CHANGE_CIPHER: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
pub(super) const KEY_UPDATE: u8 = 24;
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// Has both servers hear `acts`, in pieces that begin at `cuts`, without the last `missing` bytes.
fn play(suite: SupportedCipherSuite, acts: &[Act], cuts: &[Index], missing: usize) -> Both {
    let mut both = Both::with(suite);
    let mut stream = Vec::new();
    let mut answers = Vec::new();
    for act in acts {
        if let Act::Answer(length) = act {
            answers.push((stream.len(), *length));
        }
        stream.extend(act.bytes(&mut both.client));
    }
    stream.truncate(stream.len() - missing.min(stream.len()));
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    ends.extend(answers.iter().map(|(at, _)| *at.min(&stream.len())));
    ends.push(stream.len());
    ends.sort_unstable();
    ends.dedup();
    let mut begin = 0;
    for end in ends {
        both.ours.hear(&stream[begin..end]);
        if both.ours.outcome.has_ended() {
            // rustls gets no further than the record behind: it may have waited for that.
            let used = both.ours.used.max(begin);
            both.theirs.hear(&stream[begin..used]);
            both.theirs.hear(&stream[used..next_end(&stream[..end], both.ours.used).max(used)]);
        } else {
            both.theirs.hear(&stream[begin..end]);
        }
        begin = end;
        if both.theirs.outcome.has_ended() || both.ours.outcome.has_ended() {
            break;
        }
        for (_, length) in answers.iter().filter(|(at, _)| *at.min(&stream.len()) == end) {
            both.theirs.write(&vec![8; *length]);
            both.ours.write(&vec![8; *length]);
        }
    }
    if both.theirs.outcome.failed.is_none() && both.ours.outcome.failed.is_none() {
        // What is due is said by now, and it is understood.
        both.theirs.write(b"the end");
        both.ours.write(b"the end");
    }
    both
}

/// Where the record ends that begins at `at`, as far as it is there.
fn next_end(stream: &[u8], at: usize) -> usize {
    let length = match stream[at..] {
        [_, _, _, high, low, ..] => HEADER + usize::from(u16::from_be_bytes([high, low])),
        _ => usize::MAX,
    };
    stream.len().min(at.saturating_add(length))
}

/// The alert that was sent at the end, if any.
fn last_alert(heard: &[(u8, Vec<u8>)]) -> Option<AlertDescription> {
    match heard.last() {
        Some((ALERT, content)) if content[0] == FATAL => Some(AlertDescription::from(content[1])),
        _ => None,
    }
}

/// Where both end alike, `None`, else what is different.
fn difference(both: &mut Both) -> Result<Option<Difference>, String> {
    let (theirs, ours) = (&both.theirs.outcome, &both.ours.outcome);
    let mut theirs_heard = heard(&mut both.theirs.peer, &theirs.sent);
    let mut ours_heard = heard(&mut both.ours.peer, &ours.sent);
    let (their_alert, our_alert) = (last_alert(&theirs_heard), last_alert(&ours_heard));
    let what = || {
        format!(
            "rustls: {:?}, {:?}, over: {}; here: {:?}, {:?}, over: {}",
            theirs.failed, their_alert, theirs.is_over, ours.failed, our_alert, ours.is_over
        )
    };
    if theirs.failed.is_some() || ours.failed.is_some() {
        // A warning or a key update that is still due at an end need not be said any more.
        for heard in [&mut theirs_heard, &mut ours_heard] {
            heard.retain(|(kind, _)| *kind == DATA);
        }
    }
    if theirs_heard != ours_heard {
        return Err(format!("heard {theirs_heard:?} and {ours_heard:?}"));
    }
    let is_same = theirs.failed.is_some() == ours.failed.is_some()
        && their_alert == our_alert
        && theirs.is_over == ours.is_over
        && theirs.plaintext == ours.plaintext;
    if is_same {
        return Ok(None);
    }
    let is_tls13 = both.client.is_tls13();
    let difference = Difference::of(
        is_tls13,
        (theirs.failed.as_ref(), their_alert),
        (ours.failed.as_ref(), our_alert),
        both.ours.records.len(),
        both.ours.outbound.alert(),
    );
    let difference = difference.ok_or_else(what)?;
    let common = theirs.plaintext.len().min(ours.plaintext.len());
    let is_alike = match difference.later {
        Some(Later::Theirs) => {
            ours.plaintext.len() == common && theirs.plaintext.len() - common <= FRAGMENT
        }
        Some(Later::Ours) => theirs.plaintext.len() == common,
        None => theirs.plaintext.len() == ours.plaintext.len(),
    };
    if !is_alike || theirs.plaintext[..common] != ours.plaintext[..common] {
        return Err(format!("other plaintext, and {}", what()));
    }
    Ok(Some(difference))
}

proptest! {
    #![proptest_config(config())]

    /// The two end alike, or as the list of differences says it.
    #[test]
    fn the_same_comes_of_the_same_bytes(
        suite in proptest::sample::select(suites()),
        acts in proptest::collection::vec(
            prop_oneof![6 => a_fair_act(), 1 => a_foul_act()],
            1..14,
        ),
        cuts in proptest::collection::vec(any::<Index>(), 0..6),
        missing in prop_oneof![3 => Just(0_usize), 1 => 1_usize..60],
    ) {
        let mut both = play(suite, &acts, &cuts, missing);
        let difference = difference(&mut both);
        prop_assert!(difference.is_ok(), "{}", difference.unwrap_err());
    }
}

/// Each takes a handshake.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases: if cfg!(relay_emulated) { 16 } else { 256 }, ..config },
    }
}

/// What `acts` come to: the alert of rustls, and the one from here.
fn alerts(suite: SupportedCipherSuite, acts: &[Act]) -> [Option<AlertDescription>; 2] {
    let mut both = play(suite, acts, &[], 0);
    let theirs = heard(&mut both.theirs.peer, &both.theirs.outcome.sent);
    let ours = heard(&mut both.ours.peer, &both.ours.outcome.sent);
    [last_alert(&theirs), last_alert(&ours)]
}

/// Each difference that is meant, by itself.
#[test]
fn the_differences_are_these() {
    use AlertDescription::*;
    let update = || Box::new(Act::Update { request: 0, pieces: 5 });
    let empty = || Box::new(seal(DATA, []));
    let inner = |kind, version, inner: &[u8]| Act::Inner { kind, version, inner: inner.to_vec() };
    let (tls12, tls13) = (&[false][..], &[true][..]);
    let both = &[false, true][..];
    let overlong = u16::try_from(FRAGMENT + 2049).unwrap();
    let too_long_for_tls13 = u16::try_from(FRAGMENT + 257).unwrap();
    let unexpected = Some(UnexpectedMessage);
    let cases = [
        (
            SILENCE,
            tls13,
            vec![seal(HANDSHAKE, [KEY_UPDATE, 0]), seal(DATA, [1])],
            [None, unexpected],
        ),
        (SILENCE, tls12, vec![seal(HANDSHAKE, [1, 0]), seal(DATA, [1])], [None, unexpected]),
        (SILENCE, both, vec![Act::Repeated(33, empty())], [None, unexpected]),
        (SILENCE, tls13, vec![Act::Repeated(33, update())], [None, unexpected]),
        (
            SILENCE,
            both,
            vec![Act::Repeated(5, Box::new(seal(ALERT, [WARNING, 90])))],
            [None, unexpected],
        ),
        (SILENCE, tls12, vec![seal(HANDSHAKE, client_hello().repeat(2))], [None, unexpected]),
        (SILENCE, tls13, vec![inner(DATA, [3, 3], &[0; 9])], [None, unexpected]),
        (
            NO_DATA,
            tls13,
            vec![Act::Repeated(32, update()), *empty(), *update()],
            [None, unexpected],
        ),
        (
            TOO_LONG,
            both,
            vec![plain(DATA, [3, 3], overlong, &[])],
            [Some(DecodeError), Some(RecordOverflow)],
        ),
        (
            TOO_LONG,
            tls13,
            vec![plain(DATA, [3, 3], too_long_for_tls13, &[1; FRAGMENT + 257])],
            [Some(BadRecordMac), Some(RecordOverflow)],
        ),
        (
            NO_PAYLOAD,
            tls12,
            vec![plain(ALERT, [3, 3], 0, &[])],
            [Some(DecodeError), Some(BadRecordMac)],
        ),
        (
            OTHER_PROTOCOL,
            both,
            vec![inner(DATA, [0xfe, 0xfd], &[1, DATA])],
            [None, Some(DecodeError)],
        ),
        (
            LENGTH_IS_SEEN,
            tls13,
            vec![seal(HANDSHAKE, [KEY_UPDATE, 0, 0, 2])],
            [None, Some(DecodeError)],
        ),
        (LENGTH_IS_SEEN, tls12, vec![seal(HANDSHAKE, [1, 1, 0, 0])], [None, Some(DecodeError)]),
        (UNKNOWN_TYPE, tls13, vec![seal(99, [1])], [Some(DecodeError), unexpected]),
        (UNKNOWN_TYPE, both, vec![plain(99, [3, 3], 1, &[1])], [Some(DecodeError), unexpected]),
        (
            CHANGE_CIPHER_SPEC,
            both,
            vec![plain(CHANGE_CIPHER, [3, 3], 1, &[2])],
            [Some(DecodeError), unexpected],
        ),
        (
            CHANGE_CIPHER_SPEC,
            tls13,
            vec![seal(HANDSHAKE, [KEY_UPDATE]), plain(CHANGE_CIPHER, [3, 3], 1, &[1])],
            [Some(BadRecordMac), unexpected],
        ),
        (OUTER_TYPE_OR_MESSAGE, tls13, vec![inner(ALERT, [3, 3], &[1, DATA])], [None, unexpected]),
        (
            OUTER_TYPE_OR_MESSAGE,
            both,
            // A ServerHello in which everything is missing.
            vec![seal(HANDSHAKE, message(2, &[]))],
            [Some(DecodeError), unexpected],
        ),
        (OUTER_TYPE_OR_MESSAGE, tls13, vec![seal(HANDSHAKE, [])], [None, unexpected]),
        (OUTER_TYPE_OR_MESSAGE, tls13, vec![seal(ALERT, [])], [Some(DecodeError), unexpected]),
        (HALF_A_HEADER, both, vec![Act::Plain(vec![99])], [Some(DecodeError), None]),
        (
            CLIENT_HELLO_IS_NOT_READ,
            tls12,
            vec![seal(HANDSHAKE, message(CLIENT_HELLO, &[3, 3]))],
            [Some(DecodeError), None],
        ),
    ];
    for (why, versions, acts, expected) in cases {
        for suite in suites() {
            if versions.contains(&suite.tls13().is_some()) {
                assert_eq!(alerts(suite, &acts), expected, "{why}: {suite:?}, {acts:?}");
                let difference = difference(&mut play(suite, &acts, &[], 0));
                let difference = difference.map(|difference| difference.map(|found| found.why));
                assert_eq!(difference, Ok(Some(why)), "{suite:?}, {acts:?}");
            }
        }
    }
}
