use std::io::Write as _;
use std::sync::Arc;

use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, RootCertStore, ServerConfig,
    ServerConnection, version,
};

use super::{Certified, NAME};
use crate::limits::CLIENT_HELLO_BYTES;
use crate::tls::certificates::Certificates;
use crate::tls::handshake::{DATA, HANDSHAKE, Next, Secrets, Shaking, fatal, missing};
use crate::tls::keys::HEADER;

/// A message of this length in records of `size`.
fn hello(length: usize, size: usize) -> Vec<u8> {
    let announced = u32::try_from(length - 4).unwrap().to_be_bytes();
    let mut message = vec![1, announced[1], announced[2], announced[3]];
    message.resize(length, 0);
    let mut records = Vec::new();
    for payload in message.chunks(size) {
        records.extend([HANDSHAKE, 3, 1]);
        records.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        records.extend(payload);
    }
    records
}

fn client(config: &Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(Arc::clone(config), NAME.try_into().unwrap()).unwrap()
}

fn hear(client: &mut ClientConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets().unwrap();
    }
}

#[test]
fn whatever_breaks_off_a_handshake_ends_it_and_makes_nothing_panic() {
    // Behind the server's flight: a message that has begun and something else, a message behind another one.
    let interleaved: &[u8] = &[HANDSHAKE, 3, 1, 0, 1, 16, 20, 3, 1, 0, 1, 1];
    let behind: &[u8] = &[HANDSHAKE, 3, 3, 0, 8, 0, 0, 0, 0, 16, 0, 0, 1];
    for bytes in [interleaved, behind] {
        let (server, config) = Certified::new().configs(default_provider(), &[&version::TLS12]);
        let mut client = client(&Arc::new(config));
        let mut shaking = Shaking::new(Arc::new(server)).unwrap();
        let (secrets, mut received) = (Secrets::default(), Vec::new());
        client.write_tls(&mut received).unwrap();
        let Next::Send(_) = shaking.go_on(&mut received, &secrets) else { panic!("no flight") };
        received.extend_from_slice(bytes);
        assert!(matches!(shaking.go_on(&mut received, &secrets), Next::Fail(..)));
    }
}

#[test]
fn a_protected_record_without_content_is_none_before_the_end_of_the_handshake() {
    let (server, config) = Certified::new().configs(default_provider(), &[&version::TLS13]);
    let mut client = client(&Arc::new(config));
    let mut shaking = Shaking::new(Arc::new(server)).unwrap();
    let (secrets, mut received) = (Secrets::default(), Vec::new());
    client.write_tls(&mut received).unwrap();
    let Next::Send(_) = shaking.go_on(&mut received, &secrets) else { panic!("no flight") };
    received.extend([DATA, 3, 3, 0, 0].repeat(3000));
    assert!(matches!(shaking.go_on(&mut received, &secrets), Next::Fail(..)));
}

#[test]
fn early_data_for_another_server_of_that_name_is_skipped() {
    let (server, mut config) = Certified::new().configs(default_provider(), &[&version::TLS13]);
    let mut other = server.clone();
    other.max_early_data_size = 16 * 1024;
    let secrets = Arc::<Secrets>::default();
    let mut server = secrets.heard_of(server);
    server.ticketer = Ticketer::new().unwrap();
    server.max_early_data_size = crate::tls::SKIPPED_EARLY_DATA;
    let server = Arc::new(server);
    config.enable_early_data = true;
    let config = Arc::new(config);
    for (length, record) in [(1, 512), (4000, 512), (9000, 16_384), (15_000, 700)] {
        let mut client = client(&config);
        let mut giver = ServerConnection::new(Arc::new(other.clone())).unwrap();
        while client.wants_write() || giver.wants_write() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            giver.read_tls(&mut &bytes[..]).unwrap();
            giver.process_new_packets().unwrap();
            let mut bytes = Vec::new();
            giver.write_tls(&mut bytes).unwrap();
            hear(&mut client, &bytes);
        }
        let mut client = self::client(&config);
        client.set_buffer_limit(None);
        for piece in vec![7; length].chunks(record) {
            client.early_data().expect("a ticket").write_all(piece).unwrap();
        }
        let (mut shaking, mut received) = (Shaking::new(Arc::clone(&server)).unwrap(), Vec::new());
        loop {
            match shaking.go_on(&mut received, &secrets) {
                Next::Send(bytes) => hear(&mut client, &bytes),
                Next::Read => assert!(client.write_tls(&mut received).unwrap() > 0),
                Next::Fail(error, _) => panic!("{length} in records of {record}: {error}"),
                Next::Finish => break,
            }
        }
        assert!(!client.is_early_data_accepted());
    }
}

#[test]
fn a_message_that_begins_behind_the_client_hello_in_its_record_is_refused() {
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = false;
    let name = "relay.test".try_into().unwrap();
    let mut received = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut received).unwrap();
    for behind in [&[1][..], &[24, 0, 0, 1, 0]] {
        let mut received = [&received, behind].concat();
        let length = u16::try_from(received.len() - HEADER).unwrap();
        received[3..HEADER].copy_from_slice(&length.to_be_bytes());
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Certificates>::default());
        let mut shaking = Shaking::new(Arc::new(config)).unwrap();
        match shaking.go_on(&mut received, &Secrets::default()) {
            Next::Fail(_, alert) => {
                assert_eq!(alert, fatal(AlertDescription::UnexpectedMessage));
            }
            _ => panic!("it goes on"),
        }
    }
}

#[test]
fn a_client_hello_is_read_to_its_end_however_it_is_cut_into_records() {
    for size in [1, 2, 3, 4, 5, 100, 300] {
        let records = hello(300, size);
        for end in 0..records.len() {
            let missing = missing(&records[..end]);
            assert!((1..=records.len() - end).contains(&missing), "{size}, {end}: {missing}");
        }
        assert_eq!(missing(&records), 0, "in records of {size}");
    }
}

#[test]
fn a_client_hello_that_is_too_long_is_known_by_its_head_or_by_its_records() {
    assert_eq!(missing(&hello(CLIENT_HELLO_BYTES, 5000)), 0);
    assert_eq!(missing(&hello(CLIENT_HELLO_BYTES + 1, 5000)[..HEADER + 4]), usize::MAX);
    assert_eq!(missing(&hello(CLIENT_HELLO_BYTES, 1)), usize::MAX);
}
