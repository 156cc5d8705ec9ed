//! Two servers that get to the same keys, one of rustls and one of this record layer, and their client.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use rustls::crypto::{
    ActiveKeyExchange, GetRandomFailed, SecureRandom, SharedSecret, SupportedKxGroup,
};
use rustls::server::NoServerSessionStorage;
use rustls::{ConnectionTrafficSecrets, KeyLog, NamedGroup, ServerConnection};

use super::*;

/// Neither secret nor random.
#[derive(Debug)]
pub(super) struct Fixed;

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
pub(super) struct Told(Mutex<HashMap<String, Vec<u8>>>);

impl KeyLog for Told {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        self.0.lock().unwrap().insert(label.to_owned(), secret.to_vec());
    }
}

/// Signatures by its key have no chance in them.
static CERTIFIED: LazyLock<Certified> = LazyLock::new(|| Certified::by(&rcgen::PKCS_ED25519));

fn configs(suite: SupportedCipherSuite) -> (ServerConfig, ClientConfig) {
    let provider = CryptoProvider {
        cipher_suites: vec![suite],
        kx_groups: vec![&Fixed],
        secure_random: &Fixed,
        ..default_provider()
    };
    let (mut server, mut client) = CERTIFIED.configs(provider, DEFAULT_VERSIONS);
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    client.resumption = Resumption::disabled();
    client.enable_secret_extraction = true;
    (server, client)
}

/// Two servers with the same keys, and what their client protects records with.
pub(super) struct Both {
    pub(super) theirs: Theirs,
    pub(super) ours: Ours,
    pub(super) client: Protection,
}

/// What came of the bytes of a client.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) plaintext: Vec<u8>,
    /// The client has said that nothing follows.
    pub(super) is_over: bool,
    pub(super) failed: Option<Error>,
    /// What the server has sent.
    pub(super) sent: Vec<u8>,
}

impl Outcome {
    pub(super) fn has_ended(&self) -> bool {
        self.is_over || self.failed.is_some()
    }
}

pub(super) struct Theirs {
    pub(super) server: ServerConnection,
    pub(super) outcome: Outcome,
    pub(super) peer: Protection,
}

pub(super) struct Ours {
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    pub(super) records: Vec<u8>,
    /// Bytes of the client up to the last record that was opened.
    pub(super) used: usize,
    pub(super) outcome: Outcome,
    pub(super) peer: Protection,
}

impl Both {
    pub(super) fn with(suite: SupportedCipherSuite) -> Self {
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
    pub(super) fn hear(&mut self, mut bytes: &[u8]) {
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

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.server.writer().write_all(bytes).unwrap();
        self.send();
    }

    pub(super) fn send(&mut self) {
        while self.server.wants_write() {
            self.server.write_tls(&mut self.outcome.sent).unwrap();
        }
    }
}

impl Ours {
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        if self.outcome.has_ended() {
            return;
        }
        self.records.extend_from_slice(bytes);
        while self.open() {}
        self.send();
    }

    /// Opens what is enough for a turn; returns whether there is more.
    pub(super) fn open(&mut self) -> bool {
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

    pub(super) fn write(&mut self, bytes: &[u8]) {
        let mut buffer = vec![0; SEALED_BATCH];
        let (taken, sealed) = self.outbound.seal(bytes, &mut buffer).unwrap();
        assert_eq!(taken, bytes.len());
        self.outcome.sent.extend_from_slice(&buffer[..sealed]);
    }

    /// What is said at once. rustls keeps a key update until it has something else to say.
    pub(super) fn send(&mut self) {
        if self.outcome.has_ended() {
            let mut buffer = vec![0; SEALED_BATCH];
            let sealed = self.outbound.seal_due(&mut buffer);
            self.outcome.sent.extend_from_slice(&buffer[..sealed]);
        }
    }
}

/// What a client hears from its server, record by record.
pub(in crate::tls::tests::records) fn heard(
    peer: &mut Protection,
    mut sent: &[u8],
) -> Vec<(u8, Vec<u8>)> {
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
