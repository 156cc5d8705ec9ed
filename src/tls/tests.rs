mod records;

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use futures_lite::future::block_on;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;
use crate::clock;
use crate::origin::NOBODY;
use crate::queue::budget::Ledger;

const NAME: &str = "relay.test";

/// A check of an ACME directory: the relay proves with a certificate of its own that it is there.
fn check(address: std::net::SocketAddr, certificate: Vec<u8>) -> io::Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.into()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
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
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![ACME_TLS_ALPN.to_vec()];
    let _shown = secure.challenges.show(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let certificate = certificate.der().to_vec();
    let checking = std::thread::spawn(move || check(address, certificate));
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
