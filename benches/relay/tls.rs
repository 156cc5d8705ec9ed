//! Profile `tls`: what TLS 1.3 with a P-256 certificate adds, beside the same without it: resident
//! memory of 1,000 connections that are idle, and once each has carried 64 KiB both ways; processor
//! time of a handshake, full and resumed; messages of 80.5 KB in a stream, and of 700 B one at a time.
//!
//! The clients wait for one thing at a time, and of large messages one sends while the other reads.
//! What they cost themselves is in no figure but the rate of messages, which is theirs as much as the
//! relay's.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned, version};

use super::bench::{Bench, Cost};
use super::fleet::{binary_head, envelope_head, phone_head};
use super::frames::{CLOSE, Frame, PING, PONG, Stamp, TEXT, push_frame};
use super::opening::{NO_SERVER, REFUSED_PATIENCE};
use super::target::{Running, free_port};

pub fn run(bench: &mut Bench<'_>) -> io::Result<()> {
    let certificate = Certificate::new()?;
    let ways = [None, Some(certificate.trusted(Resumption::disabled())?)];
    for way in &ways {
        idle(bench, &certificate, way.as_ref())?;
    }
    handshakes(bench, &certificate)?;
    for way in &ways {
        messages(bench, &certificate, way.as_ref())?;
    }
    for way in &ways {
        words(bench, &certificate, way.as_ref())?;
    }
    Ok(())
}

/// Connections that say nothing, as they come and after a large message.
fn idle(bench: &mut Bench<'_>, certificate: &Certificate, way: Option<&Way>) -> io::Result<()> {
    let (servers, phones_each) = if bench.quick { (2, 24) } else { (10, 99) };
    let site = Site::start(bench, certificate)?;
    let kind = kind(way);
    // What the first connection brings for good is not a connection's.
    drop(site.dial(way, &binary_head("first"))?);
    let at_start = site.running.resident();
    let mut pairs = Vec::new();
    for server in 0..servers {
        let name = format!("idle-{server}");
        let binary = site.dial_binary(way, &name)?;
        let phones = (0..phones_each)
            .map(|_| site.dial(way, &phone_head(&name)))
            .collect::<io::Result<Vec<_>>>()?;
        pairs.push((binary, phones));
    }
    let connections = f64::from(servers * (phones_each + 1));
    let record = |bench: &mut Bench<'_>, when: &str| {
        let each = (site.running.resident() - at_start) / connections;
        bench.record(&format!("{kind}: a connection {when}"), "B", each);
    };
    let rest = Duration::from_secs(if bench.quick { 0 } else { 2 });
    std::thread::sleep(rest);
    record(bench, "at 2 s");
    for (binary, phones) in &mut pairs {
        for phone in phones {
            let envelope = introduce(binary, phone, LARGE_BYTES)?;
            let mut inner = Vec::new();
            STAMP.write(&mut inner, LARGE_BYTES);
            binary.send(&[&envelope, &inner, b"}"])?;
            phone.message(|_| ())?;
        }
    }
    std::thread::sleep(rest * 5);
    record(bench, "10 s after 64 KiB both ways");
    Ok(())
}

/// A request for the health page on a connection of its own, by what carries it.
fn handshakes(bench: &mut Bench<'_>, certificate: &Certificate) -> io::Result<()> {
    let site = Site::start(bench, certificate)?;
    let full = certificate.trusted(Resumption::disabled())?;
    let resumed = certificate.trusted(Resumption::in_memory_sessions(1))?;
    let count = if bench.quick { 20 } else { 1000 };
    let mut plain = 0.0;
    for (what, way, expected) in [
        ("plain", None, None),
        ("full handshake", Some(&full), Some(HandshakeKind::Full)),
        ("resumed handshake", Some(&resumed), Some(HandshakeKind::Resumed)),
    ] {
        // The first one gets the ticket.
        site.ask(way)?;
        let cost = Cost::begin(&site.running);
        for _ in 0..count {
            assert_eq!(site.ask(way)?, expected, "{what}");
        }
        let each = cost.target_seconds() * 1e6 / f64::from(count);
        match expected {
            None => plain = each,
            Some(_) => bench.record(&format!("CPU a {what}"), "us", each - plain),
        }
        bench.record(&format!("CPU a connection with one request, {what}"), "us", each);
    }
    Ok(())
}

/// Large messages one way, then the other; the clients of both sides run at the same time.
fn messages(bench: &mut Bench<'_>, certificate: &Certificate, way: Option<&Way>) -> io::Result<()> {
    let site = Site::start(bench, certificate)?;
    let files = if bench.quick { 1 } else { 10 };
    let frames = CHUNKS * files;
    let mut binary = site.dial_binary(way, "file")?;
    let mut phone = site.dial(way, &phone_head("file"))?;
    let envelope = introduce(&mut binary, &mut phone, 64)?;
    let mut inner = Vec::new();
    STAMP.write(&mut inner, CHUNK_BYTES);
    let bytes = f64::from(frames) * CHUNK_BYTES as f64;
    for heading in ["to phone", "to binary"] {
        let cost = Cost::begin(&site.running);
        match heading {
            "to phone" => (0..files)
                .try_for_each(|_| stream(&mut binary, &mut phone, &[&envelope, &inner, b"}"]))?,
            _ => (0..files).try_for_each(|_| stream(&mut phone, &mut binary, &[&inner]))?,
        }
        let what = format!("{}, {heading}", kind(way));
        let (cpu, seconds) = (cost.target_seconds(), cost.elapsed().as_secs_f64());
        bench.record(&format!("{what}: CPU a frame"), "us", cpu * 1e6 / f64::from(frames));
        bench.record(&format!("{what}: bytes"), "MB/s", bytes / seconds / 1e6);
    }
    Ok(())
}

/// Short messages, each of which waits for the one before.
fn words(bench: &mut Bench<'_>, certificate: &Certificate, way: Option<&Way>) -> io::Result<()> {
    let site = Site::start(bench, certificate)?;
    let rounds = if bench.quick { 500 } else { 10_000 };
    let mut binary = site.dial_binary(way, "words")?;
    let mut phone = site.dial(way, &phone_head("words"))?;
    let envelope = introduce(&mut binary, &mut phone, 64)?;
    let mut inner = Vec::new();
    STAMP.write(&mut inner, WORD_BYTES);
    let cost = Cost::begin(&site.running);
    for _ in 0..rounds {
        phone.send(&[&inner])?;
        binary.message(|_| ())?;
        binary.send(&[&envelope, &inner, b"}"])?;
        phone.message(|_| ())?;
    }
    let each = cost.target_seconds() * 1e6 / f64::from(2 * rounds);
    bench.record(&format!("{}, 700 B alone: CPU a message", kind(way)), "us", each);
    Ok(())
}

/// A file: one end sends and the other reads, each on a thread of its own. All of it fits into the
/// queue of a phone that is slow meanwhile.
fn stream(from: &mut Client, to: &mut Client, parts: &[&[u8]]) -> io::Result<()> {
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| (0..CHUNKS).try_for_each(|_| from.send(parts)));
        (0..CHUNKS).try_for_each(|_| to.message(|_| ()))?;
        sending.join().expect("a panic has ended the benchmark")
    })
}

/// The phone says a word of this size; what its binary writes before a frame for it.
fn introduce(binary: &mut Client, phone: &mut Client, size: usize) -> io::Result<Vec<u8>> {
    let mut inner = Vec::new();
    STAMP.write(&mut inner, size);
    phone.send(&[&inner])?;
    binary.message(envelope_head)
}

fn kind(way: Option<&Way>) -> &'static str {
    if way.is_some() { "TLS" } else { "plain" }
}

fn session(way: &Way) -> io::Result<ClientConnection> {
    let name = ServerName::try_from(NAME).expect("a name");
    ClientConnection::new(Arc::clone(way), name).map_err(io::Error::other)
}

/// How a client speaks TLS.
type Way = Arc<ClientConfig>;

/// A relay that listens with TLS and without.
struct Site {
    running: Running,
    tls_port: u16,
}

impl Site {
    fn start(bench: &mut Bench<'_>, certificate: &Certificate) -> io::Result<Self> {
        let tls_port = free_port()?;
        let options = certificate.options(tls_port);
        let mut all = vec!["--max-connections", "1100", "--max-phones", "100"];
        all.extend(options.iter().map(String::as_str));
        let running = bench.start(&all)?;
        Ok(Self { running, tls_port })
    }

    /// A socket, over TLS if a way is given.
    fn connect(&self, way: Option<&Way>) -> io::Result<Wire> {
        let port = if way.is_some() { self.tls_port } else { self.running.port };
        let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let Some(way) = way else { return Ok(Wire::Plain(tcp)) };
        Ok(Wire::Tls(Box::new(StreamOwned::new(session(way)?, tcp))))
    }

    /// A connection that is upgraded.
    fn dial(&self, way: Option<&Way>, head: &str) -> io::Result<Client> {
        let mut client = Client { wire: self.connect(way)?, received: Vec::new(), out: Vec::new() };
        client.wire.write_all(head.as_bytes())?;
        loop {
            if let Some(end) = client.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                if !client.received.starts_with(b"HTTP/1.1 101 ") {
                    return Err(io::Error::other("an upgrade was refused"));
                }
                client.received.drain(..end + 4);
                return Ok(client);
            }
            client.receive()?;
        }
    }

    /// A binary, once the relay lets its phones in: one that dials at the moment of the binary's
    /// `101` may be too early, and is closed.
    fn dial_binary(&self, way: Option<&Way>, name: &str) -> io::Result<Client> {
        let binary = self.dial(way, &binary_head(name))?;
        let deadline = Instant::now() + REFUSED_PATIENCE;
        while !self.dial(way, &phone_head(name))?.is_let_in()? {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "a phone whose binary is connected was closed with {NO_SERVER} for {} s",
                    REFUSED_PATIENCE.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(binary)
    }

    /// Asks for the health page and reads to the end; the kind of the handshake.
    fn ask(&self, way: Option<&Way>) -> io::Result<Option<HandshakeKind>> {
        let mut wire = self.connect(way)?;
        wire.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut answer = Vec::new();
        wire.read_to_end(&mut answer)?;
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "the health page answers");
        Ok(match wire {
            Wire::Plain(_) => None,
            Wire::Tls(stream) => stream.conn.handshake_kind(),
        })
    }
}

/// A WebSocket client.
struct Client {
    wire: Wire,
    received: Vec<u8>,
    out: Vec<u8>,
}

impl Client {
    fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.out.clear();
        push_frame(&mut self.out, TEXT, parts);
        self.wire.write_all(&self.out)
    }

    /// Waits for a message and looks at it.
    fn message<T>(&mut self, look: impl Fn(&[u8]) -> T) -> io::Result<T> {
        loop {
            if let Some((frame, length)) = Frame::decode(&self.received) {
                let seen = match frame.opcode {
                    TEXT => Some(look(frame.plain())),
                    PING => {
                        self.out.clear();
                        push_frame(&mut self.out, PONG, &[frame.plain()]);
                        self.wire.write_all(&self.out)?;
                        None
                    }
                    opcode => return Err(io::Error::other(format!("a frame of opcode {opcode}"))),
                };
                self.received.drain(..length);
                if let Some(seen) = seen {
                    return Ok(seen);
                }
            } else {
                self.receive()?;
            }
        }
    }

    /// Whether a phone's ping is answered, and not with a close frame for want of a server.
    fn is_let_in(&mut self) -> io::Result<bool> {
        self.out.clear();
        push_frame(&mut self.out, PING, &[b"in?"]);
        self.wire.write_all(&self.out)?;
        loop {
            match Frame::decode(&self.received) {
                Some((frame, _)) if frame.opcode == PONG => return Ok(true),
                Some((frame, _)) if frame.opcode == CLOSE => {
                    return match frame.bytes::<2>(0).map(u16::from_be_bytes) {
                        Some(NO_SERVER) => Ok(false),
                        code => Err(io::Error::other(format!("a phone was closed: {code:?}"))),
                    };
                }
                Some((_, length)) => drop(self.received.drain(..length)),
                None => self.receive()?,
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut piece = [0; 32 * 1024];
        match self.wire.read(&mut piece) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.received.extend_from_slice(&piece[..length]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let seconds = PATIENCE.as_secs();
                Err(io::Error::other(format!("nothing arrived for {seconds} s")))
            }
            Err(error) => Err(error),
        }
    }
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// A certificate that signs itself, in files that are removed with it.
pub struct Certificate {
    place: PathBuf,
    certified: rcgen::CertifiedKey,
}

impl Certificate {
    /// ECDSA on P-256.
    pub fn new() -> io::Result<Self> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        let certified =
            rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(io::Error::other)?;
        let place = std::env::temp_dir().join(format!("relay-bench-tls-{}", std::process::id()));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&place)?;
        let certificate = Self { place, certified };
        for (name, text) in [
            ("cert.pem", certificate.certified.cert.pem()),
            ("key.pem", certificate.certified.key_pair.serialize_pem()),
        ] {
            std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(certificate.path(name))?
                .write_all(text.as_bytes())?;
        }
        Ok(certificate)
    }

    fn path(&self, name: &str) -> String {
        self.place.join(name).display().to_string()
    }

    /// The options of a relay that listens for TLS with it.
    pub fn options(&self, port: u16) -> Vec<String> {
        let address = format!("127.0.0.1:{port}");
        let (chain, key) = (self.path("cert.pem"), self.path("key.pem"));
        let named = [("--tls-listen", address), ("--tls-cert", chain), ("--tls-key", key)];
        named.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// A `ClientHello` that a relay with it answers.
    pub fn hello(&self) -> io::Result<Vec<u8>> {
        let mut hello = Vec::new();
        session(&self.trusted(Resumption::disabled())?)?.write_tls(&mut hello)?;
        Ok(hello)
    }

    /// TLS 1.3 that trusts this one alone.
    fn trusted(&self, resumption: Resumption) -> io::Result<Way> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certified.cert.der().clone()).map_err(io::Error::other)?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = resumption;
        Ok(Arc::new(config))
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.place);
    }
}

const NAME: &str = "localhost";
const STAMP: Stamp = Stamp { phone: 0, sequence: 0, sent: 0 };
const LARGE_BYTES: usize = 64 * 1024;
const WORD_BYTES: usize = 700;
const CHUNKS: u32 = 373;
const CHUNK_BYTES: usize = 80_500;
const PATIENCE: Duration = Duration::from_secs(30);
