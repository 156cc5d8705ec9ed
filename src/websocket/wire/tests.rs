mod begun;
mod codecs;
mod turns;
mod upgrade;
mod violations;

use std::task::Waker;
use std::time::Duration;

use proptest::prelude::*;
use relay_test_kit::frame::{BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, encode};
use relay_test_kit::socket::MockSocket;

use super::*;
use crate::clock;
use crate::limits::BATCH_BYTES as BATCH;

const LARGEST: usize = 256 * 1024;

/// An [`Incoming`] with all that it needs to be driven by hand.
struct Peer {
    incoming: Incoming<MockSocket>,
    scratch: Rc<Scratch>,
    start: Instant,
    /// Whether memory is tight.
    packed: bool,
}

/// A message, or why there are no more.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Got {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>),
    Violation(Close),
}

impl Peer {
    fn new() -> Self {
        Self::with_leftover(&[])
    }

    fn with_leftover(leftover: &[u8]) -> Self {
        Self::sharing(&Rc::default(), leftover)
    }

    /// A peer that decodes with these codecs.
    fn sharing(codecs: &Rc<Codecs>, leftover: &[u8]) -> Self {
        Self {
            incoming: Incoming::new(MockSocket::read_only(), leftover.to_vec(), LARGEST, codecs),
            scratch: Rc::default(),
            start: clock::now(),
            packed: false,
        }
    }

    /// A moment, seconds after the start.
    fn second(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    /// Reads one chunk of these bytes.
    fn fill(&mut self, bytes: &[u8]) {
        self.incoming.io().arriving.push_back(bytes.to_vec());
        let mut cx = Context::from_waker(Waker::noop());
        match self.incoming.poll_fill(&mut cx, &self.scratch) {
            Poll::Ready(Ok(read)) => assert_eq!(read, bytes.len()),
            other => panic!("{other:?}"),
        }
    }

    /// Decodes one thing, which begins at `now` if it begins here.
    fn decode_at(&mut self, now: Instant) -> Option<Got> {
        let mut cx = Context::from_waker(Waker::noop());
        self.incoming.begin_turn(usize::MAX, self.packed);
        Some(match self.incoming.decode(&mut cx, now) {
            Decoded::NeedInput => return None,
            Decoded::Violation(close) => Got::Violation(close),
            Decoded::Message(Message::Text(text)) => Got::Text(text.as_str().to_owned()),
            Decoded::Message(Message::Binary(bytes)) => Got::Binary(bytes.to_vec()),
            Decoded::Message(Message::Ping(payload)) => Got::Ping(payload.to_vec()),
            Decoded::Message(Message::Pong(payload)) => Got::Pong(payload.to_vec()),
            Decoded::Message(Message::Close(close)) => {
                Got::Close(close.map(|close| u16::from(close.code)))
            }
            Decoded::Message(Message::Frame(frame)) => panic!("a raw {frame:?}"),
        })
    }

    fn decode(&mut self) -> Option<Got> {
        self.decode_at(self.start)
    }

    /// Reads these bytes and decodes what they make whole.
    fn take_at(&mut self, bytes: &[u8], now: Instant) -> Vec<Got> {
        self.fill(bytes);
        let mut got = Vec::new();
        while let Some(next) = self.decode_at(now) {
            let ended = matches!(next, Got::Violation(_) | Got::Close(_));
            got.push(next);
            if ended {
                self.incoming.discard();
            }
        }
        got
    }

    fn take(&mut self, bytes: &[u8]) -> Vec<Got> {
        self.take_at(bytes, self.start)
    }

    /// The same as a whole turn.
    fn turn(&mut self, bytes: &[u8]) -> Vec<Got> {
        let got = self.take(bytes);
        self.incoming.end_turn();
        got
    }

    fn has_codec(&self) -> bool {
        self.incoming.codec.is_some()
    }
}

fn text(text: &str) -> Vec<u8> {
    encode(true, TEXT, text.as_bytes())
}

/// Of all kinds of frames one, with each form of the length but the longest.
fn mixture() -> (Vec<u8>, Vec<Got>) {
    let long = "é".repeat(100);
    let bytes = [
        text("first"),
        encode(true, PING, b"ping"),
        encode(true, BINARY, b"\x00\xff"),
        encode(false, TEXT, "frag\u{e9}".as_bytes().split_at(5).0),
        encode(true, PING, b""),
        encode(false, CONTINUATION, b""),
        encode(false, CONTINUATION, "frag\u{e9}".as_bytes().split_at(5).1),
        encode(true, PONG, &[7; 125]),
        encode(true, CONTINUATION, b"ments"),
        text(""),
        text(&long),
        encode(true, CLOSE, b"\x0f\xa0bye"),
    ]
    .concat();
    let got = vec![
        Got::Text("first".to_owned()),
        Got::Ping(b"ping".to_vec()),
        Got::Binary(vec![0, 255]),
        Got::Ping(Vec::new()),
        Got::Pong(vec![7; 125]),
        Got::Text("fragéments".to_owned()),
        Got::Text(String::new()),
        Got::Text(long),
        Got::Close(Some(4000)),
    ];
    (bytes, got)
}

#[test]
fn a_stream_split_anywhere_decodes_the_same() {
    split_anywhere(|_| {});
}

/// A stream comes in two parts, split anywhere, and `behind_each` of them something happens.
fn split_anywhere(behind_each: impl Fn(&mut Peer)) {
    let (bytes, expected) = mixture();
    for split in 0..=bytes.len() {
        let mut peer = Peer::new();
        let mut got = Vec::new();
        for part in [&bytes[..split], &bytes[split..]] {
            if !part.is_empty() {
                got.extend(peer.turn(part));
            }
            behind_each(&mut peer);
        }
        assert_eq!(got, expected, "split at {split}");
        assert_eq!(peer.incoming.held(), 0, "split at {split}");
    }
}

#[test]
fn a_stream_in_single_bytes_decodes_the_same() {
    let (bytes, expected) = mixture();
    let mut peer = Peer::new();
    let got: Vec<_> = bytes.chunks(1).flat_map(|byte| peer.turn(byte)).collect();
    assert_eq!(got, expected);
}

#[test]
fn a_stream_that_came_with_the_request_decodes_the_same() {
    let (bytes, expected) = mixture();
    for split in 0..=bytes.len() {
        let (leftover, rest) = bytes.split_at(split);
        let mut peer = Peer::with_leftover(leftover);
        assert_eq!(peer.incoming.has_input(), split > 0);
        let mut got = Vec::new();
        while let Some(next) = peer.decode() {
            got.push(next);
        }
        peer.incoming.end_turn();
        if !rest.is_empty() {
            got.extend(peer.turn(rest));
        }
        assert_eq!(got, expected, "split at {split}");
    }
}

#[test]
fn large_messages_decode_wherever_their_headers_are_split() {
    let long = "x".repeat(70_000);
    let bytes = [text(&long), text("next")].concat();
    for split in (1..=20).chain([bytes.len() - 11, bytes.len() - 10, bytes.len() - 9]) {
        let mut peer = Peer::new();
        let mut got = peer.turn(&bytes[..split.min(BATCH)]);
        for part in bytes[split.min(BATCH)..].chunks(BATCH) {
            got.extend(peer.turn(part));
        }
        assert!(got == [Got::Text(long.clone()), Got::Text("next".to_owned())], "at {split}");
    }
}

#[test]
fn a_large_message_decodes_whatever_arrives_at_once_and_holds_little_more_than_that() {
    let long: String = (0..100_000_u32).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
    let bytes = [text(&long), text("next")].concat();
    let sizes = [&[1][..], &[1000], &[20_000], &[40_000, 1000, 1, 33_000]];
    // Memory is tight from some part on, or never.
    for (sizes, tight) in
        sizes.into_iter().flat_map(|sizes| [0, 3, usize::MAX].map(|tight| (sizes, tight)))
    {
        let (mut peer, mut got, mut arrived) = (Peer::new(), Vec::new(), 0);
        for (number, size) in sizes.iter().cycle().enumerate() {
            peer.packed = number >= tight;
            let end = (arrived + size).min(bytes.len());
            got.extend(peer.turn(&bytes[arrived..end]));
            arrived = end;
            assert!(peer.incoming.held() <= arrived + (arrived / 4).max(512), "{arrived}");
            if arrived == bytes.len() {
                break;
            }
        }
        assert!(
            got == [Got::Text(long.clone()), Got::Text("next".to_owned())],
            "{sizes:?}, {tight}"
        );
        assert_eq!(peer.incoming.held(), 0);
    }
}

#[test]
fn undecoded_input_is_kept_and_counted_over_a_rest() {
    let mut peer = Peer::new();
    let messages: Vec<_> = (0..50).map(|number| text(&format!("message {number}"))).collect();
    let bytes = messages.concat();
    peer.fill(&bytes);
    let mut left = bytes.len();
    for (number, message) in messages.iter().enumerate() {
        assert_eq!(peer.decode(), Some(Got::Text(format!("message {number}"))));
        for _ in 0..2 {
            peer.incoming.end_turn();
        }
        left -= message.len();
        assert_eq!(peer.incoming.held(), left, "behind message {number}");
        assert_eq!(peer.incoming.has_input(), left > 0);
    }
    assert_eq!(peer.decode(), None);
    assert_eq!(peer.turn(&text("more")), [Got::Text("more".to_owned())]);
}

#[test]
fn the_shared_buffer_goes_back_with_every_rest() {
    let mut peer = Peer::new();
    peer.turn(&text("whole"));
    let address = |peer: &Peer| peer.scratch.lend().as_ptr();
    let first = address(&peer);
    peer.fill(&[text("whole"), text("half")[..5].to_vec()].concat());
    assert_ne!(address(&peer), first, "it is lent while input is in it");
    while peer.decode().is_some() {}
    peer.incoming.end_turn();
    let again = address(&peer);
    peer.fill(&text("half")[5..]);
    assert_eq!(peer.decode(), Some(Got::Text("half".to_owned())));
    peer.incoming.end_turn();
    assert_eq!(address(&peer), again);
}

#[test]
fn discarded_input_is_neither_decoded_nor_kept() {
    let large = text(&"x".repeat(100_000));
    let mut peer = Peer::new();
    peer.take_at(&large[..BATCH], peer.second(1));
    assert!(peer.incoming.held() >= BATCH);
    peer.incoming.discard();
    assert_eq!((peer.incoming.begun(), peer.has_codec()), (None, false));
    peer.incoming.end_turn();
    assert_eq!(peer.incoming.held(), 0);
    for bytes in [&large[BATCH..], &text("message"), b"\xff\xff\xff"] {
        assert_eq!(peer.turn(bytes), []);
        assert_eq!((peer.incoming.held(), peer.incoming.begun()), (0, None));
    }
    let mut peer = Peer::new();
    peer.fill(&[text("first"), text("second")].concat());
    assert_eq!(peer.decode(), Some(Got::Text("first".to_owned())));
    peer.incoming.discard();
    assert_eq!(peer.decode(), None, "what was there already is thrown away as well");
}

#[test]
fn what_is_kept_between_turns_is_free_as_soon_as_somebody_needs_it() {
    let large = text(&"x".repeat(100_000));
    let mut peer = Peer::new();
    let turn = [text("whole"), large[..BATCH - 100].to_vec()].concat();
    peer.turn(&turn);
    assert!(peer.incoming.held() >= BATCH - 200);
    peer.incoming.kept().clear();
    assert_eq!(peer.incoming.held(), 0);
    let mut peer = Peer::new();
    peer.fill(&[text("first"), text("second")].concat());
    assert_eq!(peer.decode(), Some(Got::Text("first".to_owned())));
    peer.incoming.end_turn();
    assert!(peer.incoming.held() > 0 && peer.incoming.has_input());
    peer.incoming.kept().clear();
    assert!(peer.incoming.held() == 0 && !peer.incoming.has_input());
}

#[test]
fn the_end_and_the_errors_of_the_socket_are_handed_on() {
    let mut cx = Context::from_waker(Waker::noop());
    let mut peer = Peer::new();
    assert!(peer.incoming.poll_fill(&mut cx, &peer.scratch).is_pending());
    peer.incoming.io().is_at_end = true;
    assert!(matches!(peer.incoming.poll_fill(&mut cx, &peer.scratch), Poll::Ready(Ok(0))));
    peer.incoming.io().failure = Some(io::ErrorKind::ConnectionReset);
    match peer.incoming.poll_fill(&mut cx, &peer.scratch) {
        Poll::Ready(Err(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        other => panic!("{other:?}"),
    }
}

/// A message with the sizes of its fragments, and whether a ping goes in front of each.
fn message() -> impl Strategy<Value = (String, Vec<usize>, bool)> {
    let length = prop_oneof![4 => 0_usize..300, 1 => 4_000_usize..5_000, 1 => 60_000_usize..70_000];
    (length, prop::collection::vec(0_usize..5_000, 0..4), any::<bool>())
        .prop_map(|(length, cuts, pings)| ("é".repeat(length / 2), cuts, pings))
}

proptest! {
    // Some of them are long.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_messages_in_any_chunks_decode_the_same(
        messages in prop::collection::vec(message(), 1..6),
        sizes in prop::collection::vec(prop_oneof![1_usize..40, 1_usize..BATCH], 1..10),
        upgrades in prop::collection::vec(any::<bool>(), 1..5),
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for (text, cuts, pings) in &messages {
            let mut rest = text.as_bytes();
            for (number, cut) in cuts.iter().enumerate() {
                if *pings {
                    bytes.extend(encode(true, PING, &[7]));
                    expected.push(Got::Ping(vec![7]));
                }
                let (part, behind) = rest.split_at((*cut).min(rest.len()));
                bytes.extend(encode(false, if number == 0 { TEXT } else { CONTINUATION }, part));
                rest = behind;
            }
            bytes.extend(encode(true, if cuts.is_empty() { TEXT } else { CONTINUATION }, rest));
            expected.push(Got::Text(text.clone()));
        }
        // Two connections by turns with the same codecs, one of them a chunk behind.
        let codecs = Rc::default();
        let mut peers = [(); 2].map(|()| (Peer::sharing(&codecs, &[]), Vec::new()));
        let mut chunks = Vec::new();
        let mut rest = &bytes[..];
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, behind) = rest.split_at((*size).min(rest.len()));
            chunks.push(chunk);
            rest = behind;
        }
        // Each takes as long as all that has arrived of a message.
        let rarely = 1 + chunks.len() / 50;
        for turn in 0..=chunks.len() {
            for (lag, (peer, got)) in peers.iter_mut().enumerate() {
                if let Some(chunk) = turn.checked_sub(lag).and_then(|turn| chunks.get(turn)) {
                    peer.packed = turn % 3 == 2;
                    got.extend(peer.turn(chunk));
                    if turn % rarely == 0 && upgrades[turn / rarely % upgrades.len()] {
                        peer.upgrade(1);
                    }
                }
            }
        }
        for (peer, got) in peers {
            prop_assert!(got == expected);
            prop_assert_eq!(peer.incoming.begun(), None);
            prop_assert_eq!(peer.incoming.held(), 0);
        }
    }
}
