//! The record layer against rustls's own: the same bytes from a client, and the same plaintext and the same alerts
//! have to come of them. Two servers get to the same keys: what they draw is not random, the key exchange always
//! has the same result, and signatures of Ed25519 have no chance in them.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use proptest::prelude::*;
use proptest::sample::Index;
use rustls::crypto::{
    ActiveKeyExchange, GetRandomFailed, SecureRandom, SharedSecret, SupportedKxGroup,
};
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::{
    ConnectionTrafficSecrets, ContentType, InvalidMessage, KeyLog, NamedGroup, ServerConnection,
};

use super::*;

const CHANGE_CIPHER: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
pub(super) const KEY_UPDATE: u8 = 24;
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// Neither secret nor random.
#[derive(Debug)]
struct Fixed;

impl SecureRandom for Fixed {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), GetRandomFailed> {
        buffer.fill(0x5a);
        Ok(())
    }
}

impl SupportedKxGroup for Fixed {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(Self))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl ActiveKeyExchange for Fixed {
    fn complete(self: Box<Self>, _: &[u8]) -> Result<SharedSecret, Error> {
        Ok(SharedSecret::from(&[7; 32][..]))
    }

    fn pub_key(&self) -> &[u8] {
        &[9; 32]
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

/// The secrets of a client, by their labels.
#[derive(Debug, Default)]
struct Told(Mutex<HashMap<String, Vec<u8>>>);

impl KeyLog for Told {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        self.0.lock().unwrap().insert(label.to_owned(), secret.to_vec());
    }
}

static CERTIFICATE: LazyLock<(CertificateDer<'static>, Vec<u8>)> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.der().clone(), key.serialize_der())
});

fn configs(suite: SupportedCipherSuite) -> (ServerConfig, ClientConfig) {
    let (certificate, key) = &*CERTIFICATE;
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![suite],
        kx_groups: vec![&Fixed],
        secure_random: &Fixed,
        ..default_provider()
    });
    let key = PrivateKeyDer::try_from(key.clone()).unwrap();
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = Resumption::disabled();
    client.enable_secret_extraction = true;
    (server, client)
}

/// Two servers with the same keys, and what their client protects records with.
struct Both {
    theirs: Theirs,
    ours: Ours,
    client: Protection,
}

/// What came of the bytes of a client.
#[derive(Default)]
struct Outcome {
    plaintext: Vec<u8>,
    /// The client has said that nothing follows.
    is_over: bool,
    failed: Option<Error>,
    /// What the server has sent.
    sent: Vec<u8>,
}

impl Outcome {
    fn has_ended(&self) -> bool {
        self.is_over || self.failed.is_some()
    }
}

struct Theirs {
    server: ServerConnection,
    outcome: Outcome,
    peer: Protection,
}

struct Ours {
    inbound: Inbound,
    outbound: Outbound,
    records: Vec<u8>,
    /// Bytes of the client up to the last record that was opened.
    used: usize,
    outcome: Outcome,
    peer: Protection,
}

impl Both {
    fn with(suite: SupportedCipherSuite) -> Self {
        let (server, mut client) = configs(suite);
        let told = Arc::<Told>::default();
        client.key_log = Arc::clone(&told) as Arc<dyn KeyLog>;
        let name = ServerName::try_from(NAME).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut rustls = ServerConnection::new(Arc::new(server.clone())).unwrap();
        let secrets = Arc::<Secrets>::default();
        let mut shaking = Shaking::new(Arc::new(secrets.heard_of(server))).unwrap();
        let mut received = Vec::new();
        let mut is_done = false;
        while !is_done {
            let mut from_client = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut from_client).unwrap();
            }
            received.extend_from_slice(&from_client);
            let mut unread = &from_client[..];
            while !unread.is_empty() {
                rustls.read_tls(&mut unread).unwrap();
                rustls.process_new_packets().unwrap();
            }
            let mut from_rustls = Vec::new();
            while rustls.wants_write() {
                rustls.write_tls(&mut from_rustls).unwrap();
            }
            let mut from_ours = Vec::new();
            loop {
                match shaking.go_on(&mut received, &secrets) {
                    Next::Send(bytes) => from_ours.extend(bytes),
                    Next::Read => break,
                    Next::Fail(error, _) => panic!("{error}"),
                    Next::Finish => {
                        is_done = true;
                        break;
                    }
                }
            }
            assert!(from_ours == from_rustls, "the two servers do not say the same");
            let mut unread = &from_ours[..];
            while !unread.is_empty() {
                client.read_tls(&mut unread).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        assert!(!rustls.is_handshaking() && !client.is_handshaking());
        let (inbound, outbound) = shaking.finish().unwrap();
        let secrets = client.dangerous_extract_secrets().unwrap();
        let told = told.0.lock().unwrap();
        let told = |label: &str| told.get(label).cloned().unwrap_or_default();
        let protection = |(sequence, secrets): &(u64, ConnectionTrafficSecrets), secret: &[u8]| {
            let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
            else {
                panic!("a cipher that is not known here");
            };
            Protection::new(suite, *sequence, key.as_ref(), iv.as_ref(), secret)
        };
        let server = || protection(&secrets.rx, &told("SERVER_TRAFFIC_SECRET_0"));
        Self {
            theirs: Theirs { server: rustls, outcome: Outcome::default(), peer: server() },
            ours: Ours {
                inbound,
                outbound,
                records: Vec::new(),
                used: 0,
                outcome: Outcome::default(),
                peer: server(),
            },
            client: protection(&secrets.tx, &told("CLIENT_TRAFFIC_SECRET_0")),
        }
    }
}

impl Theirs {
    fn hear(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.outcome.has_ended() {
            self.server.read_tls(&mut bytes).unwrap();
            match self.server.process_new_packets() {
                Ok(state) => self.outcome.is_over = state.peer_has_closed(),
                Err(error) => self.outcome.failed = Some(error),
            }
            // An end that is in order, and none at all, are seen above.
            let _ = self.server.reader().read_to_end(&mut self.outcome.plaintext);
        }
        self.send();
    }

    fn write(&mut self, bytes: &[u8]) {
        self.server.writer().write_all(bytes).unwrap();
        self.send();
    }

    fn send(&mut self) {
        while self.server.wants_write() {
            self.server.write_tls(&mut self.outcome.sent).unwrap();
        }
    }
}

impl Ours {
    fn hear(&mut self, bytes: &[u8]) {
        if self.outcome.has_ended() {
            return;
        }
        self.records.extend_from_slice(bytes);
        while self.open() {}
        self.send();
    }

    /// Opens what is enough for a turn; returns whether there is more.
    fn open(&mut self) -> bool {
        let before = self.records.clone();
        let opened = self.inbound.open(&mut self.records, &mut self.outbound);
        assert!(opened.plaintext <= opened.used, "more came out than went in");
        assert!(self.records[opened.used..] == before[opened.used..], "a record that is not whole");
        self.outcome.plaintext.extend_from_slice(&self.records[..opened.plaintext]);
        self.records.drain(..opened.used);
        self.used += opened.used;
        self.outcome.is_over = self.inbound.is_over();
        self.outcome.failed = opened.failed;
        opened.has_more
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut buffer = vec![0; SEALED_BATCH];
        let (taken, sealed) = self.outbound.seal(bytes, &mut buffer).unwrap();
        assert_eq!(taken, bytes.len());
        self.outcome.sent.extend_from_slice(&buffer[..sealed]);
    }

    /// What is said at once. rustls keeps a key update until it has something else to say.
    fn send(&mut self) {
        if self.outcome.has_ended() {
            let mut buffer = vec![0; SEALED_BATCH];
            let sealed = self.outbound.seal_due(&mut buffer);
            self.outcome.sent.extend_from_slice(&buffer[..sealed]);
        }
    }
}

/// What a client hears from its server, record by record.
pub(super) fn heard(peer: &mut Protection, mut sent: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut heard = Vec::new();
    while let Some(header) = sent.first_chunk::<HEADER>() {
        let length = HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
        let (kind, content) = peer.open(&sent[..length]).expect("the peer cannot open it");
        if kind == HANDSHAKE {
            assert_eq!(content, [KEY_UPDATE, 0, 0, 1, 0]);
            peer.update();
        }
        heard.push((kind, content));
        sent = &sent[length..];
    }
    assert!(sent.is_empty(), "half a record was sent");
    heard
}

/// What a client does.
#[derive(Clone, Debug)]
enum Act {
    Seal {
        kind: u8,
        content: Vec<u8>,
        padding: usize,
    },
    /// A record with whatever in it and in its header.
    Inner {
        kind: u8,
        version: [u8; 2],
        inner: Vec<u8>,
    },
    /// A key update in records of so many bytes, and the next keys from then on.
    Update {
        request: u8,
        pieces: usize,
    },
    /// Any handshake message, in as many bytes a record.
    Message {
        message: Vec<u8>,
        pieces: usize,
    },
    Repeated(u8, Box<Self>),
    /// Not protected.
    Plain(Vec<u8>),
    /// A record of data with one bit changed.
    Flipped {
        length: usize,
        at: Index,
        bit: u8,
    },
    /// The servers write.
    Answer(usize),
}

impl Act {
    fn bytes(&self, client: &mut Protection) -> Vec<u8> {
        match self {
            Self::Seal { kind, content, padding } => client.seal_padded(*kind, content, *padding),
            Self::Inner { kind, version, inner } => client.seal_inner(*kind, *version, inner),
            Self::Update { request, pieces } => {
                let bytes = in_pieces(client, &[KEY_UPDATE, 0, 0, 1, *request], *pieces);
                client.update();
                bytes
            }
            Self::Message { message, pieces } => in_pieces(client, message, *pieces),
            Self::Repeated(times, act) => (0..*times).flat_map(|_| act.bytes(client)).collect(),
            Self::Plain(bytes) => bytes.clone(),
            Self::Flipped { length, at, bit } => {
                let mut record = client.seal(DATA, &vec![3; *length]);
                let at = at.index(record.len());
                record[at] ^= 1 << bit;
                record
            }
            Self::Answer(_) => Vec::new(),
        }
    }
}

fn in_pieces(client: &mut Protection, message: &[u8], pieces: usize) -> Vec<u8> {
    message.chunks(pieces).flat_map(|piece| client.seal(HANDSHAKE, piece)).collect()
}

fn seal(kind: u8, content: impl Into<Vec<u8>>) -> Act {
    Act::Seal { kind, content: content.into(), padding: 0 }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], body].concat()
}

/// One that rustls can read: a session id, a suite and compression of none, and no extensions.
fn client_hello() -> Vec<u8> {
    let body = [&[3, 3][..], &[1; 32], &[0], &[0, 2, 0xc0, 0x2b], &[1, 0]].concat();
    message(CLIENT_HELLO, &body)
}

fn plain(kind: u8, version: [u8; 2], length: u16, payload: &[u8]) -> Act {
    Act::Plain([&[kind], &version[..], &length.to_be_bytes(), payload].concat())
}

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

/// Who of the two goes on where the other one ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Later {
    Theirs,
    Ours,
}

/// Where this record layer is another on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Difference {
    why: &'static str,
    later: Option<Later>,
}

impl Difference {
    /// What explains these ends, with their alerts. This record layer has `left` bytes that are no whole record,
    /// and something that is `due`.
    fn of(
        is_tls13: bool,
        theirs: (Option<&Error>, Option<AlertDescription>),
        ours: (Option<&Error>, Option<AlertDescription>),
        left: usize,
        due: Option<AlertDescription>,
    ) -> Option<Self> {
        use AlertDescription::*;
        use Error::{
            AlertReceived, DecryptError, InappropriateMessage, InvalidMessage as Invalid,
            PeerMisbehaved as Misbehaved, PeerSentOversizedRecord,
        };
        let (theirs, their_alert) = theirs;
        let (ours, our_alert) = ours;
        let Some(ours) = ours else {
            let is_header = matches!(
                theirs,
                Some(Invalid(
                    InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion
                ))
            );
            let why = match theirs {
                Some(Invalid(_)) if due == Some(NoRenegotiation) => CLIENT_HELLO_IS_NOT_READ,
                Some(_) if is_header && left < HEADER => HALF_A_HEADER,
                _ => return None,
            };
            return Some(Self { why, later: Some(Later::Ours) });
        };
        let later = if theirs.is_none() { Some(Later::Theirs) } else { None };
        let (why, later) = match (theirs, their_alert, ours, our_alert) {
            (Some(Misbehaved(theirs)), None, Misbehaved(ours), Some(UnexpectedMessage))
                if theirs == ours =>
            {
                (SILENCE, None)
            }
            (
                _,
                _,
                Misbehaved(PeerMisbehaved::TooManyKeyUpdateRequests),
                Some(UnexpectedMessage),
            ) => (NO_DATA, Some(Later::Theirs)),
            (
                Some(Invalid(_)),
                Some(DecodeError),
                Misbehaved(PeerMisbehaved::TooManyRenegotiationRequests),
                Some(UnexpectedMessage),
            ) => (CLIENT_HELLO_IS_NOT_READ, None),
            // Which of the two is wrong is seen first.
            (
                Some(Misbehaved(PeerMisbehaved::TooManyKeyUpdateRequests)),
                None,
                Invalid(InvalidMessage::InvalidKeyUpdate),
                Some(IllegalParameter),
            ) => (SILENCE, None),
            (
                Some(Invalid(InvalidMessage::MessageTooLarge) | DecryptError) | None,
                _,
                PeerSentOversizedRecord,
                Some(RecordOverflow),
            ) => (TOO_LONG, later),
            (
                Some(Invalid(InvalidMessage::InvalidEmptyPayload)),
                _,
                DecryptError,
                Some(BadRecordMac),
            ) if !is_tls13 => (NO_PAYLOAD, None),
            // A version that rustls knows, and whatever is in that record.
            (_, _, Invalid(InvalidMessage::UnknownProtocolVersion), Some(DecodeError)) => {
                (OTHER_PROTOCOL, Some(Later::Theirs))
            }
            // Of several messages in one record, the length of each is looked at before the first.
            (Some(Invalid(InvalidMessage::HandshakePayloadTooLarge)), None, _, Some(_)) => {
                (LENGTH_IS_SEEN, None)
            }
            // A head without a body, and whatever is in the next record.
            (
                _,
                _,
                Invalid(
                    InvalidMessage::InvalidKeyUpdate | InvalidMessage::HandshakePayloadTooLarge,
                ),
                Some(DecodeError),
            ) => (LENGTH_IS_SEEN, Some(Later::Theirs)),
            // rustls does not look at the type outside, or does so once the record is there.
            (theirs, _, InappropriateMessage { got_type, .. }, Some(UnexpectedMessage))
                if !matches!(theirs, Some(AlertReceived(_))) || is_tls13 =>
            {
                let why = match got_type {
                    ContentType::Unknown(_) | ContentType::Heartbeat => UNKNOWN_TYPE,
                    ContentType::ChangeCipherSpec => CHANGE_CIPHER_SPEC,
                    ContentType::Alert | ContentType::Handshake => OUTER_TYPE_OR_MESSAGE,
                    _ => return None,
                };
                (why, Some(Later::Theirs))
            }
            _ => return None,
        };
        Some(Self { why, later })
    }
}

const SILENCE: &str = "RFC 8446, 5.1, 5.4 and 6.2: rustls ends without an alert";
const TOO_LONG: &str =
    "RFC 8446, 5.1 and 5.2; RFC 5246, 6.2.3: too long a record is record_overflow";
const NO_PAYLOAD: &str = "RFC 5246, 7.2.2: a record without room for a MAC is bad_record_mac";
const OTHER_PROTOCOL: &str =
    "RFC 8446, 5.1: rustls lets the versions of SSL 2 and DTLS pass, none else";
const CLIENT_HELLO_IS_NOT_READ: &str = "RFC 5246, 7.2.2: one that is declined may be any";
const NO_DATA: &str =
    "none: a record without content, which is cheap too, does not allow more key updates";
const HALF_A_HEADER: &str = "RFC 8446, 5.1: a header is looked at once all of it is there";
const LENGTH_IS_SEEN: &str = "RFC 8446, 4.6.3 and 6.2: a length that is wrong is not waited for";
const UNKNOWN_TYPE: &str = "RFC 8446, 5: an unexpected content type is unexpected_message";
const CHANGE_CIPHER_SPEC: &str =
    "RFC 8446, 5; RFC 5246, 7.1: change_cipher_spec is unexpected_message, whatever is in it";
const OUTER_TYPE_OR_MESSAGE: &str = "RFC 8446, 4, 5.1, 5.2 and 5.4: what is not application_data outside, a \
     handshake message that is not expected, and one or an alert of no bytes, are unexpected_message";

fn pieces() -> impl Strategy<Value = usize> {
    prop_oneof![1_usize..6, 6_usize..80]
}

fn bytes(length: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), length)
}

/// What a client may do.
fn a_fair_act() -> impl Strategy<Value = Act> {
    let length = prop_oneof![4 => 1_usize..300, 1 => 1..=FRAGMENT, 1 => Just(FRAGMENT)];
    let padding = prop_oneof![2 => Just(0_usize), 1 => 0_usize..300];
    let data = (any::<u8>(), length, padding).prop_map(|(byte, length, padding)| Act::Seal {
        kind: DATA,
        content: vec![byte; length],
        // The longest record that there may be.
        padding: padding.min(FRAGMENT - length),
    });
    let empty = (1_u8..=34, 0_usize..20).prop_map(|(times, padding)| {
        let empty = Act::Seal { kind: DATA, content: Vec::new(), padding };
        Act::Repeated(times, Box::new(empty))
    });
    let update = (0_u8..2, pieces()).prop_map(|(request, pieces)| Act::Update { request, pieces });
    let hello = pieces().prop_map(|pieces| Act::Message { message: client_hello(), pieces });
    let warning = prop_oneof![Just(90_u8), Just(0), Just(100), any::<u8>()]
        .prop_map(|description| seal(ALERT, [WARNING, description]));
    prop_oneof![
        12 => data,
        2 => empty,
        5 => update,
        2 => (29_u8..35, 0_u8..2).prop_map(|(times, request)| {
            Act::Repeated(times, Box::new(Act::Update { request, pieces: 5 }))
        }),
        2 => hello,
        1 => warning,
        1 => (1_u8..6).prop_map(|times| {
            Act::Repeated(times, Box::new(seal(ALERT, [WARNING, 90])))
        }),
        3 => (1_usize..200).prop_map(Act::Answer),
    ]
}

/// What ends most connections.
fn a_foul_act() -> impl Strategy<Value = Act> {
    let version = || prop_oneof![4 => Just([3, 3]), 2 => Just([3, 1]), 1 => any::<[u8; 2]>()];
    let kind = || prop_oneof![3 => 19_u8..26, 1 => any::<u8>()];
    let long = (FRAGMENT - 2)..(FRAGMENT + 300);
    prop_oneof![
        any::<u8>().prop_map(|request| Act::Update { request, pieces: 5 }),
        // Key updates of another length, and with something behind them.
        (bytes(0..4), bytes(0..3), pieces()).prop_map(|(body, rest, pieces)| Act::Message {
            message: [message(KEY_UPDATE, &body), rest].concat(),
            pieces,
        }),
        // It begins, and no more.
        (any::<[u8; 4]>(), 1_usize..5, bytes(0..9)).prop_map(|(head, length, rest)| {
            seal(HANDSHAKE, [&head[..length], &rest].concat())
        }),
        (prop_oneof![1_u8..25, any::<u8>()], bytes(0..60), pieces()).prop_map(
            |(kind, body, pieces)| Act::Message { message: message(kind, &body), pieces }
        ),
        pieces().prop_map(|pieces| Act::Message { message: client_hello().repeat(2), pieces }),
        Just(seal(HANDSHAKE, [])),
        (1_usize..4).prop_map(|length| seal(HANDSHAKE, &client_hello()[..length])),
        (any::<u8>(), any::<u8>())
            .prop_map(|(level, description)| { seal(ALERT, [level % 4, description]) }),
        bytes(0..5).prop_map(|content| seal(ALERT, content)),
        (kind(), bytes(0..5)).prop_map(|(kind, content)| seal(kind, content)),
        (0_usize..50).prop_map(|length| Act::Inner {
            kind: DATA,
            version: [3, 3],
            inner: vec![0; length],
        }),
        (long, any::<bool>()).prop_map(|(length, is_data)| Act::Inner {
            kind: DATA,
            version: [3, 3],
            inner: [vec![1; length], vec![if is_data { DATA } else { 0 }]].concat(),
        }),
        (kind(), version(), bytes(0..20)).prop_map(|(kind, version, mut inner)| {
            inner.push(DATA);
            Act::Inner { kind, version, inner }
        }),
        (kind(), version(), 0_u16..40, bytes(0..60)).prop_map(
            |(kind, version, length, payload)| { plain(kind, version, length, &payload) }
        ),
        (kind(), version(), any::<u16>(), bytes(0..60))
            .prop_map(|(kind, version, length, payload)| plain(kind, version, length, &payload)),
        (kind(), version()).prop_map(|(kind, version)| plain(kind, version, 0, &[])),
        Just(plain(CHANGE_CIPHER, [3, 3], 1, &[1])),
        bytes(0..30).prop_map(Act::Plain),
        (0_usize..100, any::<Index>(), 0_u8..8).prop_map(|(length, at, bit)| Act::Flipped {
            length,
            at,
            bit,
        }),
    ]
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
