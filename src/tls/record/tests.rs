use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedCipherSuite};

use super::super::handshake::{Next, Secrets, Shaking};
use super::*;

mod differential;
#[path = "../../../fuzz/src/protection.rs"]
#[allow(unreachable_pub, reason = "it is of a crate of its own")]
mod protection;

const NAME: &str = "relay.test";

/// All that go with a certificate of ECDSA. Those of RSA protect records in the same way.
fn suites() -> Vec<SupportedCipherSuite> {
    let is_rsa = |suite: &SupportedCipherSuite| format!("{:?}", suite.suite()).contains("_RSA_");
    ring::ALL_CIPHER_SUITES.iter().copied().filter(|suite| !is_rsa(suite)).collect()
}

/// A client of rustls, and the record layer that it talks to, with one suite.
struct Pair {
    client: ClientConnection,
    inbound: Inbound,
    outbound: Outbound,
}

impl Pair {
    fn with(suite: SupportedCipherSuite) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let provider = CryptoProvider { cipher_suites: vec![suite], ..default_provider() };
        let provider = Arc::new(provider);
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(NAME).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        client.set_buffer_limit(None);
        let secrets = Arc::<Secrets>::default();
        let mut shaking = Shaking::new(Arc::new(secrets.heard_of(server))).unwrap();
        let mut received = Vec::new();
        loop {
            match shaking.go_on(&mut received, &secrets) {
                Next::Send(bytes) => {
                    let mut unread = &bytes[..];
                    while !unread.is_empty() {
                        client.read_tls(&mut unread).unwrap();
                        client.process_new_packets().unwrap();
                    }
                }
                Next::Read => assert!(client.write_tls(&mut received).unwrap() > 0),
                Next::Fail(error, _) => panic!("{error}"),
                Next::Finish => break,
            }
        }
        let (inbound, outbound) = shaking.finish().unwrap();
        assert!(!client.is_handshaking());
        Self { client, inbound, outbound }
    }
}

impl Pair {
    /// What the client has to say now, opened by the relay's end.
    fn hear_client(&mut self) -> (Vec<u8>, Option<Error>) {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        let opened = self.inbound.open(&mut bytes, &mut self.outbound);
        bytes.truncate(opened.plaintext);
        (bytes, opened.failed)
    }

    /// Shows the client what was sealed; returns what it reads.
    fn tell_client(&mut self, sealed: &[u8]) -> Vec<u8> {
        let mut unread = sealed;
        while !unread.is_empty() {
            self.client.read_tls(&mut unread).unwrap();
            self.client.process_new_packets().unwrap();
        }
        let mut plaintext = vec![0; 1 << 20];
        let mut length = 0;
        while let Ok(read @ 1..) = self.client.reader().read(&mut plaintext[length..]) {
            length += read;
        }
        plaintext.truncate(length);
        plaintext
    }
}

#[test]
fn both_ends_understand_each_other_whatever_the_suite() {
    for suite in suites() {
        let mut pair = Pair::with(suite);
        for length in [1, 700, FRAGMENT, 80_500] {
            let message: Vec<_> = (0..length).map(|at| at.to_le_bytes()[0]).collect();
            pair.client.writer().write_all(&message).unwrap();
            let (read, failed) = pair.hear_client();
            assert!(read == message && failed.is_none(), "{suite:?}, {length} bytes: {failed:?}");
            let mut buffer = vec![0; SEALED_BATCH];
            let (mut taken, mut heard) = (0, Vec::new());
            while taken < length {
                let (more, sealed) = pair.outbound.seal(&message[taken..], &mut buffer).unwrap();
                taken += more;
                heard.extend(pair.tell_client(&buffer[..sealed]));
            }
            assert!(heard == message, "{suite:?}, {length} bytes");
        }
    }
}

#[test]
fn keys_that_are_used_up_are_followed_by_others() {
    for suite in suites() {
        let mut pair = Pair::with(suite);
        pair.outbound.keys.set_limit(10);
        let mut buffer = vec![0; SEALED_BATCH];
        let mut heard = 0;
        for number in 0..100_u8 {
            match pair.outbound.seal(&[number], &mut buffer) {
                Ok((_, sealed)) => heard += pair.tell_client(&buffer[..sealed]).len(),
                Err(_) => break,
            }
        }
        // Those of TLS 1.2 are not: the connection ends in order.
        let is_tls13 = suite.tls13().is_some();
        assert!(if is_tls13 { heard == 100 } else { heard < 10 }, "{suite:?}: {heard}");
    }
}

#[test]
fn a_wish_for_other_keys_is_answered_once() {
    for suite in suites().into_iter().filter(|suite| suite.tls13().is_some()) {
        let mut pair = Pair::with(suite);
        let mut buffer = vec![0; SEALED_BATCH];
        for _ in 0..3 {
            pair.client.refresh_traffic_keys().unwrap();
        }
        pair.client.writer().write_all(b"from the new keys").unwrap();
        let (read, failed) = pair.hear_client();
        assert!(failed.is_none() && read == b"from the new keys", "{suite:?}: {failed:?}");
        assert!(pair.outbound.has_due());
        let sealed = pair.outbound.seal_due(&mut buffer);
        assert!(sealed > 0 && !pair.outbound.has_due());
        assert_eq!(pair.tell_client(&buffer[..sealed]), b"");
        let (_, sealed) = pair.outbound.seal(b"by other keys", &mut buffer).unwrap();
        assert_eq!(pair.tell_client(&buffer[..sealed]), b"by other keys");
    }
}

#[test]
fn a_record_of_a_message_has_a_part_of_it() {
    for suite in suites() {
        for kind in [ContentType::Handshake, ContentType::Alert] {
            let Pair { mut inbound, mut outbound, .. } = Pair::with(suite);
            let refused = inbound.handle(kind, b"", &mut outbound);
            let Err((alert, _)) = refused else { panic!("{suite:?}: {kind:?} is taken") };
            assert_eq!(alert, Some(AlertDescription::UnexpectedMessage), "{suite:?}: {kind:?}");
        }
    }
}
