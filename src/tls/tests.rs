mod handshake;
mod records;

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use futures_lite::future::block_on;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{
    ClientConfig, ClientConnection, DEFAULT_VERSIONS, RootCertStore, SupportedProtocolVersion,
};

use super::*;
use crate::clock;
use crate::origin::NOBODY;
use crate::queue::budget::Ledger;

const NAME: &str = "relay.test";

/// A certificate that signs itself, for [`NAME`], and its key.
struct Certified {
    certificate: CertificateDer<'static>,
    key: rcgen::KeyPair,
}

impl Certified {
    /// One of ECDSA on P-256.
    fn new() -> Self {
        Self::by(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    fn by(algorithm: &'static rcgen::SignatureAlgorithm) -> Self {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, key }
    }

    /// A server that shows it, and a client that trusts it alone.
    fn configs(
        &self,
        provider: CryptoProvider,
        versions: &[&'static SupportedProtocolVersion],
    ) -> (ServerConfig, ClientConfig) {
        let provider = Arc::new(provider);
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (server, client)
    }
}

/// A check of an ACME directory: the relay proves with a certificate of its own that it is there.
fn check(address: std::net::SocketAddr, mut config: ClientConfig) -> io::Result<()> {
    config.alpn_protocols = vec![ACME_TLS_ALPN.to_vec()];
    let mut session = ClientConnection::new(Arc::new(config), NAME.try_into().unwrap()).unwrap();
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(Duration::from_secs(20)))?;
    session.complete_io(&mut tcp)?;
    assert_eq!(session.alpn_protocol(), Some(ACME_TLS_ALPN));
    Ok(())
}

#[test]
fn a_check_of_an_acme_directory_is_answered_whatever_its_address_has_used_up() {
    let secure = Secure::build(None, None, vec![NAME.to_owned()]).unwrap();
    let (mut config, client) = Certified::new().configs(default_provider(), DEFAULT_VERSIONS);
    config.alpn_protocols = vec![ACME_TLS_ALPN.to_vec()];
    let _shown = secure.challenges.show(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let checking = std::thread::spawn(move || check(address, client));
    let (stream, remote) = listener.accept().unwrap();
    let tcp = Tcp::prepare(stream).unwrap();
    let deadline = clock::now() + Duration::from_secs(20);
    let metrics = Metrics::default();
    let account = Account::open(&Ledger::new(usize::MAX), NOBODY);
    let opening = Vec::new();
    let shaken = secure.shake(tcp, opening, deadline, remote.ip(), &account, &metrics, || false);
    assert!(matches!(block_on(shaken), Err(None)));
    checking.join().unwrap().expect("the check succeeds");
}
