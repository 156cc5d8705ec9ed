//! What a peer sends once its TLS handshake is done, as records that the input scripts.
//!
//! Whatever happens: nothing panics, the plaintext is what the records of data before the first failure had in them,
//! what is no whole record is left alone, and the peer understands what is sealed for it, with nothing after an end.

use pyrycode_relay::tls::keys::{Keys, Secret};
use pyrycode_relay::tls::record::{Inbound, Outbound, SEALED_BATCH};
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::crypto::ring::ALL_CIPHER_SUITES;
use rustls::{CipherSuite, ConnectionTrafficSecrets, SupportedCipherSuite};

use relay_test_kit::protection::Protection;

/// Runs a script: a byte for the suite, then operations of an opcode and its arguments. Whatever the bytes are,
/// they are a script.
pub fn run(data: &[u8]) {
    let mut script = Script(data);
    let Some(suite) = script.byte() else { return };
    let mut world = World::new(SUITES[usize::from(suite) % SUITES.len()]);
    while let Some(operation) = script.byte() {
        world.step(operation & 0x7f, &mut script);
        // Otherwise it arrives together with the next one.
        if operation & 0x80 == 0 || world.unread.len() > MOST_UNREAD {
            world.arrive(world.unread.len());
        }
    }
    world.arrive(world.unread.len());
    world.finish();
}

/// Every cipher in both versions.
const SUITES: [CipherSuite; 6] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];
const MOST_UNREAD: usize = 1 << 16;
const FRAGMENT: usize = 1 << 14;
const HEADER: usize = 5;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
/// Of key updates and of records without content (as `record.rs` has them).
const MOST_IN_A_ROW: usize = 32;

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A byte, or zero.
    fn next(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    /// A length up to the largest plaintext.
    fn length(&mut self) -> usize {
        match usize::from(self.next()) {
            small @ ..128 => small,
            large => (large - 127) * (FRAGMENT / 128),
        }
    }

    /// As many bytes as the first one says.
    fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.next()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }
}

struct World {
    inbound: Inbound,
    outbound: Outbound,
    client: Protection,
    server: Protection,
    /// Sent by the client and not seen by the relay.
    unread: Vec<u8>,
    /// Seen by the relay and no whole record.
    rest: Vec<u8>,
    /// Where in the client's stream that begins.
    used: usize,
    /// Where records of data end in the client's stream, and what is in them, if it was not read.
    data: Vec<(usize, Vec<u8>)>,
    /// Where the last record begins.
    last: usize,
    /// From there on the client's stream is not what was sealed.
    spoilt: usize,
    has_failed: bool,
    counts: Counts,
    /// The relay has told its end.
    has_told: bool,
    has_closed: bool,
    number: u8,
}

/// What tells whether a connection must not have failed.
#[derive(Default)]
struct Counts {
    is_foul: bool,
    updates: usize,
    empty: usize,
    /// Key updates that wish for one, and those that came.
    wishes: usize,
    answers: usize,
}

impl World {
    fn new(suite: CipherSuite) -> Self {
        let suite = ALL_CIPHER_SUITES.iter().find(|known| known.suite() == suite);
        let suite = *suite.expect("rustls has this suite");
        let (inbound, client) = keys(suite, 1);
        let (outbound, server) = keys(suite, 2);
        Self {
            inbound: Inbound::new(inbound),
            outbound: Outbound::new(outbound),
            client,
            server,
            unread: Vec::new(),
            rest: Vec::new(),
            used: 0,
            data: Vec::new(),
            last: 0,
            spoilt: usize::MAX,
            has_failed: false,
            counts: Counts::default(),
            has_told: false,
            has_closed: false,
            number: 0,
        }
    }

    fn step(&mut self, operation: u8, script: &mut Script<'_>) {
        match operation % 13 {
            0 => {
                let length = script.length();
                self.send_data(length, 0);
            }
            1 => {
                let (length, padding) = (script.length(), script.length());
                self.send_data(length, padding.min(FRAGMENT - length));
            }
            2 => {
                let (kind, content) = (script.next(), script.bytes());
                self.send_sealed(kind, &content);
            }
            3 => self.update(script.next()),
            4 => {
                let bytes = script.bytes();
                self.send_plain(&bytes);
            }
            5 => {
                let (kind, version) = (script.next(), [script.next(), script.next()]);
                let inner = script.bytes();
                self.send_inner(kind, version, &inner);
            }
            6 => {
                // About as long as may be, and longer.
                let mut inner = vec![1; FRAGMENT - 100 + 2 * usize::from(script.next())];
                inner.push(script.next());
                self.send_inner(DATA, [3, 3], &inner);
            }
            7 => self.flip(script.next(), script.next()),
            8 => {
                let length = script.length();
                self.write(length);
            }
            9 => {
                self.outbound.close();
                self.has_closed = true;
                self.tell();
            }
            10 => {
                let (times, kind, content) = (script.next() & 63, script.next(), script.bytes());
                for _ in 0..times {
                    self.send_sealed(kind, &content);
                }
            }
            11 => self.cut(usize::from(script.next())),
            _ => {
                let part = usize::from(script.next());
                self.arrive(part.min(self.unread.len()));
            }
        }
    }

    /// How much the client has sent.
    fn sent(&self) -> usize {
        self.used + self.rest.len() + self.unread.len()
    }

    fn send(&mut self, record: &[u8], data: Option<Vec<u8>>) {
        self.last = self.sent();
        self.unread.extend_from_slice(record);
        let end = self.sent();
        self.data.extend(data.map(|data| (end, data)));
    }

    fn send_data(&mut self, length: usize, padding: usize) {
        self.number = self.number.wrapping_add(1);
        let data = vec![self.number; length];
        let record = self.client.seal_padded(DATA, &data, padding);
        self.counts.empty = if data.is_empty() { self.counts.empty + 1 } else { 0 };
        self.counts.updates = if data.is_empty() { self.counts.updates } else { 0 };
        self.count();
        self.send(&record, Some(data));
    }

    fn send_sealed(&mut self, kind: u8, content: &[u8]) {
        if self.client.is_tls13() {
            // A kind of zero is padding.
            self.send_inner(DATA, [3, 3], &[content, &[kind]].concat());
        } else {
            self.send_inner(kind, [3, 3], content);
        }
    }

    fn send_inner(&mut self, kind: u8, version: [u8; 2], inner: &[u8]) {
        let record = self.client.seal_inner(kind, version, inner);
        self.counts.is_foul = true;
        let (kind, content) = if self.client.is_tls13() {
            let end = inner.iter().rposition(|byte| *byte != 0);
            end.map_or((0, &inner[..0]), |end| (inner[end], &inner[..end]))
        } else {
            (kind, inner)
        };
        self.count_wish(kind, content);
        self.send(&record, (kind == DATA).then(|| content.to_vec()));
    }

    fn update(&mut self, request: u8) {
        let message = [24, 0, 0, 1, request];
        let record = self.client.seal(HANDSHAKE, &message);
        self.counts.is_foul |= request > 1 || !self.client.is_tls13();
        self.counts.updates += 1;
        self.counts.empty = 0;
        self.count_wish(HANDSHAKE, &message);
        self.count();
        self.send(&record, None);
        self.client.update();
    }

    /// The last byte of a key update may be a record's only one.
    fn count_wish(&mut self, kind: u8, content: &[u8]) {
        self.counts.wishes += usize::from(kind == HANDSHAKE && content.last() == Some(&1));
    }

    fn count(&mut self) {
        let counts = &mut self.counts;
        counts.is_foul |= counts.empty > MOST_IN_A_ROW || counts.updates > MOST_IN_A_ROW;
    }

    fn send_plain(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.spoil(self.sent());
            self.unread.extend_from_slice(bytes);
            // None of it is taken back.
            self.last = self.sent();
        }
    }

    fn spoil(&mut self, from: usize) {
        self.spoilt = self.spoilt.min(from);
    }

    /// Changes a bit of the last record, if that has not arrived. Its version is not looked at in TLS 1.3.
    fn flip(&mut self, at: u8, bit: u8) {
        let seen = self.sent() - self.unread.len();
        if self.last >= seen && self.sent() > self.last + HEADER && self.spoilt > self.last {
            let at = self.last + HEADER + usize::from(at) % (self.sent() - self.last - HEADER);
            self.unread[at - seen] ^= 1 << (bit % 8);
            self.spoil(self.last);
        }
    }

    /// Takes back the end of the last record, if that has not arrived.
    fn cut(&mut self, length: usize) {
        let seen = self.sent() - self.unread.len();
        if self.last >= seen && self.sent() > self.last && length > 0 {
            let left = (self.sent() - self.last).saturating_sub(length);
            self.unread.truncate(self.last - seen + left);
            self.spoil(self.last);
        }
    }

    /// The next bytes of the client arrive.
    fn arrive(&mut self, length: usize) {
        let more: Vec<_> = self.unread.drain(..length).collect();
        self.rest.extend(more);
        if self.has_failed || self.inbound.is_over() {
            return;
        }
        while self.open() {}
        if !self.has_failed && self.spoilt == usize::MAX && !self.inbound.is_over() && length > 0 {
            // Records of the client are whole, or the rest of them has not arrived.
            assert!(!self.unread.is_empty() || self.rest.is_empty(), "a whole record is left");
        }
        self.tell();
    }

    /// Opens what is enough for a turn; returns whether there is more.
    fn open(&mut self) -> bool {
        let before = self.rest.clone();
        let opened = self.inbound.open(&mut self.rest, &mut self.outbound);
        assert!(opened.plaintext <= opened.used && opened.used <= before.len());
        assert!(self.rest[opened.used..] == before[opened.used..], "half a record was changed");
        let plaintext = self.rest[..opened.plaintext].to_vec();
        self.rest.drain(..opened.used);
        self.used += opened.used;
        self.has_failed = opened.failed.is_some();
        self.check_plaintext(&plaintext);
        if self.has_failed {
            assert!(self.counts.is_foul || self.spoilt != usize::MAX, "{:?}", opened.failed);
        }
        opened.has_more
    }

    fn check_plaintext(&mut self, plaintext: &[u8]) {
        let end = self.used.min(self.spoilt);
        let count = self.data.iter().take_while(|(at, _)| *at <= end).count();
        let mut expected: Vec<_> = self.data.drain(..count).collect();
        let all = expected.iter().map(|(_, data)| data.len()).sum::<usize>();
        if self.has_failed && all != plaintext.len() {
            // It was the last one that failed.
            let last = expected.pop();
            assert!(last.is_some_and(|(at, _)| at == self.used), "plaintext is missing");
        }
        let expected = expected.into_iter().flat_map(|(_, data)| data);
        assert!(expected.eq(plaintext.iter().copied()), "other plaintext");
    }

    /// The relay says what is due.
    fn tell(&mut self) {
        let has_due = self.outbound.has_due();
        let mut buffer = vec![0xee; SEALED_BATCH];
        let sealed = self.outbound.seal_due(&mut buffer);
        assert_eq!(has_due, sealed > 0);
        assert!(buffer[sealed..].iter().all(|byte| *byte == 0xee), "written behind its end");
        assert_eq!(self.hear(&buffer[..sealed]), b"");
        assert!(!self.outbound.has_due());
    }

    fn write(&mut self, length: usize) {
        let data = vec![self.number; length];
        let mut buffer = vec![0xee; SEALED_BATCH];
        match self.outbound.seal(&data, &mut buffer) {
            Ok((taken, sealed)) => {
                assert!(
                    buffer[sealed..].iter().all(|byte| *byte == 0xee),
                    "written behind its end"
                );
                assert!(taken == length, "{taken} of {length} bytes were taken");
                assert_eq!(self.hear(&buffer[..sealed]), data);
            }
            Err(_) => assert!(self.has_told || self.has_failed || self.has_closed),
        }
    }

    /// What the client reads in what was sealed.
    fn hear(&mut self, mut sealed: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        while !sealed.is_empty() {
            assert!(!self.has_told, "the end was not the end");
            let length = HEADER + usize::from(u16::from_be_bytes([sealed[3], sealed[4]]));
            let (kind, content) = self.server.open(&sealed[..length]).expect("it cannot be opened");
            match (kind, &content[..]) {
                (DATA, _) => data.extend(content),
                (HANDSHAKE, [24, 0, 0, 1, 0]) => {
                    self.server.update();
                    self.counts.answers += 1;
                    assert!(self.counts.answers <= self.counts.wishes, "nobody wished for it");
                }
                (ALERT, [level, alert]) => {
                    self.has_told = *level == FATAL || *alert == CLOSE_NOTIFY;
                    assert!(*level != FATAL || self.has_failed, "fatal without a failure");
                }
                _ => panic!("{kind} is not sent: {content:?}"),
            }
            sealed = &sealed[length..];
        }
        data
    }

    fn finish(mut self) {
        self.outbound.close();
        self.tell();
        assert!(self.has_told || self.has_failed, "the end was not told");
        let mut buffer = vec![0; SEALED_BATCH];
        assert!(self.outbound.seal(b"data", &mut buffer).is_err(), "there is something after it");
    }
}

/// Keys of the relay, and of its peer. Of a key that is longer than the cipher's, the beginning counts.
fn keys(suite: SupportedCipherSuite, byte: u8) -> (Keys, Protection) {
    let (key, iv) = (AeadKey::from([byte; 32]), Iv::from([byte; 12]));
    let secrets = match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        }
        CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => {
            ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        }
        _ => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
    };
    let secret = suite.tls13().map_or(0, |suite| suite.common.hash_provider.output_len());
    let secret = vec![byte; secret];
    let keys = Keys::new(suite, (0, secrets), Secret::new(&secret)).expect("they fit");
    (keys, Protection::new(suite, 0, &[byte; 32], &[byte; 12], &secret))
}
