//! A TLS client and its certificates.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_rustls::TlsConnector;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::ServerName;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore,
    SupportedProtocolVersion, version,
};
use smol::Async;
use smol::future::or;
use smol::io::AsyncWriteExt as _;
use tempfile::TempDir;

use crate::rig::{Plain, Relay, Stream, connect, connect_narrow, deadline, events};

/// The name that the certificates are for.
pub const NAME: &str = "relay.test";

/// A directory with a certificate and its key.
pub struct Files {
    directory: TempDir,
    /// What is shown at present, DER.
    pub certificate: Vec<u8>,
}

impl Files {
    /// With a fresh pair.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Self { directory, certificate: Vec::new() };
        files.renew();
        files
    }

    /// Writes another pair.
    pub fn renew(&mut self) {
        let (certificate, key) = pair(|_| {});
        self.certificate = certificate.0;
        self.write(&certificate.1, &key);
    }

    /// Writes these texts.
    pub fn write(&self, certificate: &str, key: &str) {
        std::fs::write(self.certificate_path(), certificate).unwrap();
        std::fs::write(self.key_path(), key).unwrap();
        set_mode(&self.key_path(), 0o600);
    }

    pub fn certificate_path(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }

    pub fn key_path(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    /// Puts a FIFO that nobody writes to in the place of one of them.
    pub fn replace_with_fifo(&self, is_key: bool) {
        let path = if is_key { self.key_path() } else { self.certificate_path() };
        std::fs::remove_file(&path).unwrap();
        crate::rig::make_fifo(&path);
    }

    /// The options that name them.
    pub fn options(&self) -> Vec<String> {
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        let (certificate, key) = (path(self.certificate_path()), path(self.key_path()));
        ["--tls-listen", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key]
            .map(str::to_owned)
            .to_vec()
    }

    /// A relay that shows them.
    pub fn relay(&self, arguments: &[&str]) -> Relay {
        self.relay_by(Relay::plain, arguments)
    }

    /// A relay that `start` makes, and that shows them.
    pub fn relay_by(&self, start: fn(Plain, &[&str]) -> Relay, arguments: &[&str]) -> Relay {
        let options = self.options();
        let all = options.iter().map(String::as_str).chain(arguments.iter().copied());
        let seen = events::mark();
        let relay = start(Plain::ItsOwnTls, &all.collect::<Vec<_>>());
        self.wait_for(seen, "certificate_read");
        relay
    }

    /// Waits for an event about these files.
    pub fn wait_for(&self, mark: usize, event: &str) -> events::Event {
        events::wait_after(mark, event, &[("file", self.certificate_path().to_str().unwrap())])
    }

    /// A client that trusts what is shown at present.
    pub fn client(&self) -> Client {
        Client::trusting(&self.certificate)
    }
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A self-signed certificate, DER and PEM, and its key.
pub fn pair(change: impl FnOnce(&mut CertificateParams)) -> ((Vec<u8>, String), String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    ((certificate.der().to_vec(), certificate.pem()), key.serialize_pem())
}

/// What a client asks for, and the sessions that it may resume.
#[derive(Clone)]
pub struct Client(Arc<ClientConfig>);

/// What a handshake came to.
pub struct Met {
    pub kind: HandshakeKind,
    pub version: ProtocolVersion,
    pub protocol: Option<Vec<u8>>,
    pub certificate: Vec<u8>,
}

impl Client {
    /// Trusts this one.
    pub fn trusting(certificate: &[u8]) -> Self {
        Self::speaking(rustls::DEFAULT_VERSIONS, certificate)
    }

    /// The same with these versions of TLS alone.
    pub fn speaking(versions: &[&'static SupportedProtocolVersion], certificate: &[u8]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.to_vec().into()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self(Arc::new(config))
    }

    /// One that asks for this.
    pub fn of(config: ClientConfig) -> Self {
        Self(Arc::new(config))
    }

    /// The same client, changed.
    pub fn with(&self, change: impl FnOnce(&mut ClientConfig)) -> Self {
        let mut config = (*self.0).clone();
        change(&mut config);
        Self(Arc::new(config))
    }

    /// The same client with TLS 1.2 alone.
    pub fn old(files: &Files) -> Self {
        Self::speaking(&[&version::TLS12], &files.certificate)
    }

    /// What makes sessions for an executor.
    pub fn connector(&self) -> TlsConnector {
        TlsConnector::from(Arc::clone(&self.0))
    }

    /// A session that has sent nothing yet.
    pub fn session(&self, name: &str) -> ClientConnection {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        ClientConnection::new(Arc::clone(&self.0), name).unwrap()
    }

    /// Only the handshake, and a request so that tickets arrive.
    pub fn meet(&self, address: SocketAddr, name: &str) -> io::Result<Met> {
        let (response, met) = self.ask(address, name, name)?;
        assert!(response.starts_with("HTTP/1.1 "), "{response}");
        Ok(met)
    }

    /// Asks for the health page of `host`, and reads the answer to an orderly end.
    pub fn ask(&self, address: SocketAddr, name: &str, host: &str) -> io::Result<(String, Met)> {
        self.ask_over(connect(address), name, host)
    }

    /// The same over a connection that is there already.
    pub fn ask_over(&self, tcp: Stream, name: &str, host: &str) -> io::Result<(String, Met)> {
        ask_in(self.session(name), tcp, host)
    }

    /// A connection that is TLS on its way and plain at this end.
    pub fn dial(&self, address: SocketAddr) -> TcpStream {
        self.tunnel(connect(address))
    }

    /// The same with a receive buffer so small that a few kilobytes fill it, at both ends.
    pub fn dial_narrow(&self, address: SocketAddr) -> TcpStream {
        self.tunnel(connect_narrow(address))
    }

    /// The same over a connection that is there already.
    pub fn tunnel(&self, far: Stream) -> TcpStream {
        let far = far.into_tcp();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let narrow = socket2::SockRef::from(&far).recv_buffer_size().unwrap() < 16 * 1024;
        let at = listener.local_addr().unwrap();
        let near = if narrow { connect_narrow(at) } else { connect(at) }.into_tcp();
        let (inner, _) = listener.accept().unwrap();
        inner.set_nodelay(true).unwrap();
        if narrow {
            socket2::SockRef::from(&inner).set_send_buffer_size(4096).unwrap();
        }
        let connector = self.connector();
        std::thread::spawn(move || smol::block_on(carry(connector, far, inner)));
        near
    }
}

/// The same in a session that may have said something already.
pub fn ask_in(
    mut session: ClientConnection,
    mut tcp: Stream,
    host: &str,
) -> io::Result<(String, Met)> {
    session.complete_io(&mut tcp)?;
    let mut stream = rustls::Stream::new(&mut session, &mut tcp);
    stream.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let mut response = String::new();
    // It fails unless the relay says by a close_notify that this is the end.
    stream.read_to_string(&mut response)?;
    let met = Met {
        kind: session.handshake_kind().unwrap(),
        version: session.protocol_version().unwrap(),
        protocol: session.alpn_protocol().map(<[u8]>::to_vec),
        certificate: session.peer_certificates().unwrap()[0].to_vec(),
    };
    Ok((response, met))
}

/// Carries bytes both ways until the far side or both have ended, or one has failed.
async fn carry(connector: TlsConnector, far: TcpStream, near: TcpStream) {
    let far = Async::new(far).unwrap();
    let near = Async::new(near).unwrap();
    let late = async {
        smol::Timer::after(4 * deadline()).await;
    };
    let carried = async {
        both_ways(connector, far, &near).await;
        // What is still said here is taken: closing the socket before would send a reset after the last word.
        let _ = smol::io::copy(&near, &mut smol::io::sink()).await;
    };
    or(carried, late).await;
}

async fn both_ways(connector: TlsConnector, far: Async<TcpStream>, near: &Async<TcpStream>) {
    let far = connector.connect(ServerName::try_from(NAME).unwrap(), far).await;
    let (from_far, mut to_far) = smol::io::split(far.expect("the handshake succeeds"));
    let out = async {
        let copied = smol::io::copy(near, &mut to_far).await;
        let _ = to_far.close().await;
        if copied.is_ok() {
            smol::future::pending().await
        }
    };
    let back = async {
        let _ = smol::io::copy(from_far, near).await;
        let _ = near.get_ref().shutdown(Shutdown::Write);
    };
    or(out, back).await;
}
