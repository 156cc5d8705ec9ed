//! Who gets in, who does not, and what it costs.

use std::io::{Read as _, Write as _};
use std::time::Instant;

use rustls::{HandshakeKind, ProtocolVersion};

use super::client::{Client, Files, NAME};
use crate::rig::{
    Ws, binary_head, connect, connect_from, deadline, envelope, events, fresh_id, fresh_source,
    millis, phone_head,
};

#[test]
fn http_1_1_is_agreed_on_in_tls_1_3_and_in_1_2() {
    let files = Files::new();
    let relay = files.relay(&[]);
    let offering = |config: &mut rustls::ClientConfig| {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    };
    for (client, expected) in [
        (files.client(), ProtocolVersion::TLSv1_3),
        (Client::old(&files), ProtocolVersion::TLSv1_2),
    ] {
        let met = client.with(offering).meet(relay.tls.unwrap(), NAME).unwrap();
        assert_eq!(met.version, expected);
        assert_eq!(met.protocol.as_deref(), Some(&b"http/1.1"[..]));
        // Who does not ask is not told.
        assert_eq!(client.meet(relay.tls.unwrap(), NAME).unwrap().protocol, None);
    }
}

#[test]
fn a_client_that_speaks_http_2_alone_is_refused() {
    let files = Files::new();
    let relay = files.relay(&[]);
    let client = files.client().with(|config| config.alpn_protocols = vec![b"h2".to_vec()]);
    let error = client.meet(relay.tls.unwrap(), NAME).err().unwrap();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
}

#[test]
fn a_session_is_resumed_in_tls_1_3_and_in_1_2() {
    let files = Files::new();
    let relay = files.relay(&[]);
    for client in [files.client(), Client::old(&files)] {
        let first = client.meet(relay.tls.unwrap(), NAME).unwrap();
        assert_ne!(first.kind, HandshakeKind::Resumed);
        for _ in 0..3 {
            let again = client.meet(relay.tls.unwrap(), NAME).unwrap();
            assert_eq!(again.kind, HandshakeKind::Resumed);
        }
    }
}

#[test]
fn a_session_that_was_opened_for_one_name_is_not_resumed_for_another() {
    let files = Files::new();
    let relay = files.relay(&["--domain", NAME]);
    let client = files.client();
    client.meet(relay.tls.unwrap(), NAME).unwrap();
    assert!(client.meet(relay.tls.unwrap(), "other.test").is_err());
}

#[test]
fn with_a_domain_a_handshake_for_another_name_or_for_none_is_refused() {
    let files = Files::new();
    let relay = files.relay(&["--domain", NAME, "--domain", "second.test"]);
    let client = files.client();
    assert!(client.meet(relay.tls.unwrap(), NAME).is_ok());
    // An address is no name: nothing is asked for then.
    for name in ["other.test", "sub.relay.test", "127.0.0.1"] {
        let error = client.meet(relay.tls.unwrap(), name).err().unwrap();
        assert!(error.to_string().contains("AccessDenied"), "{name}: {error}");
    }
}

#[test]
fn without_a_domain_every_name_is_served() {
    let files = Files::new();
    let relay = files.relay(&[]);
    let (response, _) = files.client().ask(relay.tls.unwrap(), NAME, "anything.test").unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
}

#[test]
fn with_a_domain_a_request_for_another_host_is_misdirected() {
    let files = Files::new();
    let relay = files.relay(&["--domain", NAME]);
    for (host, status) in [
        (NAME, "200"),
        ("RELAY.test:443", "200"),
        ("relay.test.", "200"),
        ("other.test", "421"),
        ("other.relay.test:443", "421"),
        ("127.0.0.1", "421"),
        ("[::1]:443", "421"),
        ("", "421"),
    ] {
        let (response, _) = files.client().ask(relay.tls.unwrap(), NAME, host).unwrap();
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {response}");
    }
    // The head of the rig names another host too.
    let mut stream = files.client().dial(relay.tls.unwrap());
    stream.write_all(binary_head(&fresh_id("misdirected")).as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 421 Misdirected Request\r\n"), "{response}");
    // Without TLS nobody was promised anything about names.
    assert_eq!(relay.health(), (0, 0));
}

#[test]
fn what_is_sent_with_the_end_of_the_handshake_is_not_lost() {
    let files = Files::new();
    let relay = files.relay(&[]);
    let id = fresh_id("early");
    let mut binary = relay.binary(&id);
    let mut session = files.client().session(NAME);
    // It waits inside until the handshake is done, and goes out with its last message.
    let first = crate::rig::ws::encode(true, crate::rig::ws::TEXT, b"\"first\"");
    session.writer().write_all(&[phone_head(&id).as_bytes(), &first].concat()).unwrap();
    let mut tcp = connect(relay.tls.unwrap());
    while session.is_handshaking() || session.wants_write() {
        session.complete_io(&mut tcp).unwrap();
    }
    let registered = events::wait("phone_registered", &[("server_id", &id)]);
    let conn_id = events::field(&registered, "conn_id");
    assert_eq!(binary.read_text(), envelope(&conn_id, "\"first\""));
}

#[test]
fn plain_http_at_the_listener_for_tls_is_told_so() {
    let files = Files::new();
    let relay = files.relay(&[]);
    let (head, body) =
        crate::rig::request(relay.tls.unwrap(), "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert_eq!(body, "");
}

#[test]
fn garbage_ends_its_own_connection_alone() {
    let files = Files::new();
    let relay = files.relay(&["--metrics-listen", "127.0.0.1:0"]);
    let id = fresh_id("garbage");
    let mut binary = Ws::after_request({
        let mut stream = files.client().dial(relay.tls.unwrap());
        stream.write_all(binary_head(&id).as_bytes()).unwrap();
        stream
    });
    let mut random = fastrand::Rng::with_seed(6);
    for round in 0..40 {
        let mut stream = connect(relay.tls.unwrap());
        // A record of a handshake, or one that only begins like it.
        let mut bytes = vec![0x16, 0x03, 0x01, 0x00, random.u8(..)];
        bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(1 + 40 * round));
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // An alert at most; a reset where more was sent than was read.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    binary.sync();
    let page = crate::rig::request(
        relay.metrics.unwrap(),
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    let counted = page.1.lines().find_map(|line| {
        line.strip_prefix("pyrycode_relay_refused_requests_total{reason=\"tls_handshake\"} ")
    });
    assert_eq!(counted, Some("40"), "{}", page.1);
}

#[test]
fn a_handshake_that_stalls_has_the_time_of_a_request_head() {
    let files = Files::new();
    let relay = files.relay(&["--header-timeout", &millis(300)]);
    let hello = {
        let mut bytes = Vec::new();
        files.client().session(NAME).write_tls(&mut bytes).unwrap();
        bytes
    };
    // Nothing, a part of the first message, all of it.
    let stalled = [0, 1, hello.len() / 2, hello.len()].map(|sent| {
        let mut stream = connect_from(fresh_source(), relay.tls.unwrap());
        stream.write_all(&hello[..sent]).unwrap();
        (sent, stream)
    });
    for (sent, mut stream) in stalled {
        // Ends or is reset, within the deadline of a read.
        let ended = stream.read_to_end(&mut Vec::new());
        assert!(
            !ended.is_err_and(|error| crate::rig::ws::is_timeout(&error)),
            "{sent} bytes keep the connection"
        );
    }
    // A handshake in time is served; one that this machine is too slow for is one of those above.
    let until = Instant::now() + deadline();
    while files.client().meet(relay.tls.unwrap(), NAME).is_err() {
        assert!(Instant::now() < until, "no handshake is in time");
    }
}

#[test]
fn handshakes_in_progress_count_among_the_connections_of_an_address() {
    let files = Files::new();
    let relay = files.relay(&["--max-connections-per-ip", "4"]);
    // Below the cap of an address some more requests may be in progress than connections.
    let mut stalled: Vec<_> = (0..40).map(|_| connect(relay.tls.unwrap())).collect();
    // The oldest had to go for the newest: its end is seen.
    let first = &mut stalled[0];
    let ended = first.read(&mut [0; 16]);
    assert!(!ended.is_err_and(|error| crate::rig::ws::is_timeout(&error)), "nobody had to go");
}

#[test]
fn a_proxy_header_comes_before_tls() {
    let files = Files::new();
    let relay =
        files.relay(&["--trusted-proxy", "127.0.0.1", "--proxy-protocol", "--log-level", "debug"]);
    let id = fresh_id("announced");
    let mut tcp = connect(relay.tls.unwrap());
    tcp.write_all(b"PROXY TCP4 192.0.2.77 192.0.2.1 4711 443\r\n").unwrap();
    let mut session = files.client().session(NAME);
    session.writer().write_all(binary_head(&id).as_bytes()).unwrap();
    while session.is_handshaking() || session.wants_write() {
        session.complete_io(&mut tcp).unwrap();
    }
    let claimed = events::wait("server_claimed", &[("server_id", &id)]);
    assert_eq!(events::field(&claimed, "remote"), "192.0.2.77");
}
