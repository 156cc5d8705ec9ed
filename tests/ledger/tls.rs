//! Connections over TLS, from the first byte of the handshake on.

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use relay_test_kit::frame::{TEXT, encode};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use crate::client::{Stream, Ws, connect, connect_narrow, envelope, introduce, json};
use crate::measure::Expected::AtLeast;
use crate::measure::Watched;

type Secured = StreamOwned<ClientConnection, TcpStream>;

impl Stream for Secured {
    fn tcp(&self) -> &TcpStream {
        &self.sock
    }
}

/// A relay that speaks TLS, and a client that trusts it.
struct Site {
    watched: Watched,
    client: Arc<ClientConfig>,
    _files: TempDir,
}

impl Site {
    fn start() -> Self {
        let pair = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
        let (chain, key) = (path("certificate.pem"), path("key.pem"));
        std::fs::write(&chain, pair.cert.pem()).unwrap();
        std::fs::write(&key, pair.key_pair.serialize_pem()).unwrap();
        std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(pair.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let options = ["--tls-listen", "127.0.0.1:0", "--tls-cert", &chain, "--tls-key", &key];
        let mut site =
            Self { watched: Watched::start(&options), client: client.into(), _files: files };
        // What the first handshake allocates stays.
        drop(site.pair("warm-up"));
        site.watched.wait_until_deserted();
        site.watched.rebase();
        site
    }

    fn connect(&self) -> TcpStream {
        connect(self.watched.relay.tls.expect("an address for TLS"))
    }

    /// Begins TLS on a connection.
    fn secure(&self, tcp: TcpStream) -> Secured {
        let name = ServerName::try_from(NAME).unwrap();
        StreamOwned::new(ClientConnection::new(Arc::clone(&self.client), name).unwrap(), tcp)
    }

    /// A binary and a phone that it knows, and the phone's connection id.
    fn pair(&self, server: &str) -> (Ws, Ws, String) {
        let mut binary = Ws::binary(self.secure(self.connect()), server);
        let mut phone = Ws::phone(self.secure(self.connect()), server);
        let conn_id = introduce(&mut phone, &mut binary);
        (binary, phone, conn_id)
    }
}

#[test]
fn a_handshake_that_stalls_is_charged_as_it_is_allocated() {
    const CONNECTIONS: usize = 16;
    let mut site = Site::start();
    // A ClientHello (RFC 8446, sections 4 and 5.1) in one record, and in records of 4 KiB.
    let record =
        |length: u16| [&[0x16, 3, 1][..], &length.to_be_bytes(), &vec![0; length.into()]].concat();
    let mut one = record(16 * 1024);
    let mut many = record(4 * 1024).repeat(4);
    for hello in [&mut one, &mut many] {
        hello[5..9].copy_from_slice(&[1, 0, 0x3f, 0xfc]);
    }
    for (what, bytes) in [
        ("nothing", &[][..]),
        ("a byte", &one[..1]),
        ("half of 16 KiB", &one[..8 * 1024]),
        ("all but a byte of 16 KiB", &one[..16 * 1024 + 4]),
        ("all but a byte of four records", &many[..many.len() - 1]),
    ] {
        let stalled: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let mut stream = site.connect();
                stream.write_all(bytes).unwrap();
                stream
            })
            .collect();
        let expected = AtLeast(CONNECTIONS * (1000 + bytes.len()));
        site.watched.check(&format!("ClientHello, {what}"), CONNECTIONS, expected);
        drop(stalled);
    }
    // They get an answer, and say no more.
    let silent: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut secured = site.secure(site.connect());
            secured.conn.write_tls(&mut secured.sock).unwrap();
            secured.sock.read_exact(&mut [0]).unwrap();
            secured
        })
        .collect();
    site.watched.check("ServerHello", CONNECTIONS, AtLeast(CONNECTIONS * 1000));
    drop(silent);
    site.watched.finish();
}

#[test]
fn a_connection_over_tls_is_charged_as_it_is_allocated() {
    const PAIRS: usize = 8;
    const LARGE: usize = 64 * 1024;
    const HALF: usize = 240_000;
    let mut site = Site::start();
    let mut pairs: Vec<_> = (0..PAIRS).map(|pair| site.pair(&format!("tls-{pair}"))).collect();
    let connections = 2 * PAIRS;
    site.watched.check("TLS, idle", connections, AtLeast(connections * 1000));
    for (binary, phone, conn_id) in &mut pairs {
        phone.send_text(&json(LARGE));
        binary.read_messages(1);
        binary.send_text(&envelope(conn_id, &json(LARGE)));
        phone.read_messages(1);
        binary.sync();
        phone.sync();
    }
    site.watched.check("TLS, after 64 KiB both ways", connections, AtLeast(connections * 1000));
    for (_, phone, _) in &mut pairs {
        phone.send_raw(&encode(true, TEXT, json(250_000).as_bytes())[..HALF]);
    }
    site.watched.check("TLS, a message half received", connections, AtLeast(PAIRS * HALF));
    drop(pairs);
    site.watched.finish();
}

#[test]
fn a_record_that_is_half_received_is_charged_as_it_is_allocated() {
    const CONNECTIONS: usize = 8;
    const RECORD: usize = 16 * 1024;
    let mut site = Site::start();
    let phones: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut secured = site.secure(site.connect());
            // One record, without its last byte.
            secured.conn.complete_io(&mut secured.sock).unwrap();
            secured.conn.writer().write_all(&[b'x'; RECORD]).unwrap();
            let mut bytes = Vec::new();
            while secured.conn.wants_write() {
                secured.conn.write_tls(&mut bytes).unwrap();
            }
            secured.sock.write_all(&bytes[..bytes.len() - 1]).unwrap();
            secured
        })
        .collect();
    site.watched.check("TLS, a record half received", CONNECTIONS, AtLeast(CONNECTIONS * RECORD));
    drop(phones);
    site.watched.finish();
}

#[test]
fn a_queue_towards_a_phone_that_does_not_read_is_charged_as_it_is_allocated_over_tls() {
    const SIZE: usize = 16 * 1024;
    const COUNT: usize = 64;
    let mut site = Site::start();
    let mut binary = Ws::binary(site.secure(site.connect()), "stalled");
    let narrow = connect_narrow(site.watched.relay.tls.unwrap());
    let mut phone = Ws::phone(site.secure(narrow), "stalled");
    let conn_id = introduce(&mut phone, &mut binary);
    let message = encode(true, TEXT, envelope(&conn_id, &json(SIZE)).as_bytes());
    binary.send_raw(&message.repeat(COUNT));
    binary.sync();
    let taken = 256 * 1024;
    site.watched.check("TLS, a queue for a phone", 2, AtLeast(SIZE * COUNT - taken));
    phone.widen(1024 * 1024);
    phone.read_messages(COUNT);
    phone.sync();
    site.watched.check("TLS, a queue that was read", 2, AtLeast(2000));
    drop((binary, phone));
    site.watched.finish();
}

#[test]
#[cfg_attr(relay_emulated, ignore = "the emulator takes several wake-ups for one message")]
fn a_message_over_tls_costs_at_most_one_allocation_more_than_without() {
    const MESSAGES: usize = 100;
    let mut site = Site::start();
    let (mut binary, mut phone) = (site.watched.binary("plain"), site.watched.phone("plain"));
    let conn_id = introduce(&mut phone, &mut binary);
    let plain = allocations(&mut site, MESSAGES, &mut binary, &mut phone, &conn_id);
    let (mut binary, mut phone, conn_id) = site.pair("tls");
    let tls = allocations(&mut site, MESSAGES, &mut binary, &mut phone, &conn_id);
    println!("TLS, allocations a message: {plain:.2} without, {tls:.2} with");
    assert!(tls <= plain + 1.0, "{plain} without, {tls} with");
}

/// Allocations of the relay for a message of 700 bytes, one at a time in both directions: the fewest of several
/// rounds, for whatever else the relay has to do.
fn allocations(
    site: &mut Site,
    messages: usize,
    binary: &mut Ws,
    phone: &mut Ws,
    conn_id: &str,
) -> f64 {
    let message = json(700);
    let enveloped = envelope(conn_id, &message);
    let rounds = (0..5).map(|_| {
        let before = site.watched.relay.allocations();
        for _ in 0..messages {
            phone.send_text(&message);
            binary.read_messages(1);
            binary.send_text(&enveloped);
            phone.read_messages(1);
        }
        site.watched.relay.allocations() - before
    });
    rounds.min().unwrap_or_default() as f64 / (2 * messages) as f64
}

const NAME: &str = "relay.test";
