//! A browser of today: its ClientHello offers a key share of 1,216 bytes besides the one that the relay takes, and
//! with all else that it says arrives in two segments.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::crypto::ring::kx_group::X25519;
use rustls::crypto::{ActiveKeyExchange, CryptoProvider, SharedSecret, SupportedKxGroup};
use rustls::{ClientConfig, Error, NamedGroup, ProtocolVersion, RootCertStore};

use super::client::{Client, Files, NAME, ask_in};
use crate::rig::{connect, scaled};

/// X25519MLKEM768 as a client offers it, which the relay does not speak, with X25519 in it, which it does.
#[derive(Debug)]
struct Hybrid;

struct Offered {
    share: Vec<u8>,
    classical: Box<dyn ActiveKeyExchange>,
}

impl SupportedKxGroup for Hybrid {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let classical = X25519.start()?;
        // A key of ML-KEM-768 is 1,184 bytes; nobody looks at it.
        let share = [&[7; 1184], classical.pub_key()].concat();
        Ok(Box::new(Offered { share, classical }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

impl ActiveKeyExchange for Offered {
    fn complete(self: Box<Self>, _: &[u8]) -> Result<SharedSecret, Error> {
        unreachable!("the relay has no ML-KEM")
    }

    fn pub_key(&self) -> &[u8] {
        &self.share
    }

    fn group(&self) -> NamedGroup {
        Hybrid.name()
    }

    fn hybrid_component(&self) -> Option<(NamedGroup, &[u8])> {
        Some((self.classical.group(), self.classical.pub_key()))
    }

    fn complete_hybrid_component(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        self.classical.complete(peer)
    }
}

#[test]
fn a_post_quantum_key_share_in_two_segments_is_passed_over() {
    let files = Files::new();
    let relay = files.relay(&[]);
    let provider = CryptoProvider { kx_groups: vec![&Hybrid, X25519], ..default_provider() };
    let mut roots = RootCertStore::empty();
    roots.add(files.certificate.clone().into()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    // It would remember what the relay takes.
    config.resumption = Resumption::disabled();
    let client = Client::of(config);
    for first in [1, 5, 100, 700, 1300] {
        let mut session = client.session(NAME);
        let mut hello = Vec::new();
        session.write_tls(&mut hello).unwrap();
        let mut tcp = connect(relay.tls.unwrap());
        tcp.write_all(&hello[..first]).unwrap();
        std::thread::sleep(scaled(Duration::from_millis(20)));
        tcp.write_all(&hello[first..]).unwrap();
        let (response, met) = ask_in(session, tcp, NAME).unwrap();
        assert!(response.starts_with("HTTP/1.1 200 "), "{first}: {response}");
        assert_eq!(met.version, ProtocolVersion::TLSv1_3, "{first}");
    }
}
