//! What handshakes cost the address that makes them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};

use super::client::{Client, Files, NAME};
use crate::rig::ws::Ws;
use crate::rig::{Relay, binary_head, connect_from, events, fresh_id, fresh_source, phone_head};

const RATE: [&str; 4] = ["--rate-limit", "1/min", "--rate-burst", "5"];

/// The status of the health page over TLS, or why there is none.
fn health(client: &Client, relay: &Relay, source: Ipv4Addr) -> Result<(), String> {
    let tcp = connect_from(source, relay.tls.unwrap());
    let (response, _) = client.ask_over(tcp, NAME, NAME).map_err(|error| error.to_string())?;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    Ok(())
}

/// What a peer gets for the first message of a handshake, to the end of the connection.
fn answer_to_hello(client: &Client, source: Ipv4Addr, address: SocketAddr) -> Vec<u8> {
    let mut tcp = connect_from(source, address);
    client.session(NAME).write_tls(&mut tcp).unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).expect("the answer ends without a reset");
    answer
}

/// The status of the answer to a request over TLS.
fn status(client: &Client, relay: &Relay, source: Ipv4Addr, head: &str) -> u16 {
    let mut stream = client.tunnel(connect_from(source, relay.tls.unwrap()));
    stream.write_all(head.as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).expect("an answer");
    std::str::from_utf8(&start[9..]).unwrap().parse().unwrap()
}

/// A fatal alert, `access_denied` (RFC 8446, section 6), in a record of its own.
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

#[test]
fn handshakes_beyond_the_burst_are_ended_before_anything_is_signed_and_are_counted() {
    let files = Files::new();
    let relay = files.relay(&[&RATE[..], &["--metrics-listen", "127.0.0.1:0"]].concat());
    let (greedy, other) = (fresh_source(), fresh_source());
    // Each of a client without tickets: nothing is resumed.
    for _ in 0..5 {
        health(&files.client(), &relay, greedy).unwrap();
    }
    let seen = events::mark();
    for _ in 0..3 {
        // Neither a key nor a certificate came before it.
        let answer = answer_to_hello(&files.client(), greedy, relay.tls.unwrap());
        assert_eq!(answer, ACCESS_DENIED);
    }
    let (remote, reason) = (greedy.to_string(), "too many attempts");
    let fields = [("remote", remote.as_str()), ("reason", reason)];
    events::wait_nth(seen, "refused", &fields, 3);
    let page = crate::rig::request(
        relay.metrics.unwrap(),
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    .1;
    for line in ["{reason=\"rate_limit\"} 3", "{reason=\"tls_handshake\"} 0"] {
        let line = format!("\npyrycode_relay_refused_requests_total{line}\n");
        assert!(page.contains(&line), "{line}: {page}");
    }
    health(&files.client(), &relay, other).unwrap();
}

#[test]
fn a_resumed_session_costs_a_handshake_too() {
    let files = Files::new();
    let relay = files.relay(&RATE);
    let (client, source) = (files.client(), fresh_source());
    for _ in 0..5 {
        health(&client, &relay, source).unwrap();
    }
    let error = health(&client, &relay, source).unwrap_err();
    assert!(error.contains("AccessDenied"), "{error}");
}

#[test]
fn an_upgrade_over_tls_costs_one_attempt_and_leaves_the_health_checks_their_handshakes() {
    let files = Files::new();
    let relay = files.relay(&RATE);
    let (client, source) = (files.client(), fresh_source());
    let held: Vec<_> = (0..5)
        .map(|_| {
            let mut stream = client.tunnel(connect_from(source, relay.tls.unwrap()));
            stream.write_all(binary_head(&fresh_id("paid")).as_bytes()).unwrap();
            Ws::after_request(stream)
        })
        .collect();
    // The attempts are used up. The handshakes are not: the upgrades have paid for theirs.
    for _ in 0..4 {
        health(&client, &relay, source).unwrap();
    }
    assert_eq!(status(&client, &relay, source, &phone_head(&fresh_id("refused"))), 429);
    let error = health(&client, &relay, source).unwrap_err();
    assert!(error.contains("AccessDenied"), "{error}");
    for mut binary in held {
        binary.sync();
    }
}

#[test]
fn a_handshake_that_an_upgrade_follows_is_paid_for_by_the_attempt_even_after_health_checks() {
    let files = Files::new();
    let relay = files.relay(&RATE);
    let (client, source) = (files.client(), fresh_source());
    for _ in 0..4 {
        health(&client, &relay, source).unwrap();
    }
    // One handshake is left: it comes back with each upgrade.
    for _ in 0..5 {
        assert_eq!(status(&client, &relay, source, &phone_head(&fresh_id("again"))), 101);
    }
    health(&client, &relay, source).unwrap();
    assert!(health(&client, &relay, source).is_err());
}

#[test]
fn behind_a_proxy_header_the_address_in_it_pays_for_the_handshake() {
    let files = Files::new();
    let options = ["--trusted-proxy", "127.0.0.0/8", "--proxy-protocol"];
    let relay = files.relay(&[&RATE[..], &options].concat());
    let (client, proxy) = (files.client(), fresh_source());
    let by = |address: &str| {
        let mut tcp = connect_from(proxy, relay.tls.unwrap());
        write!(tcp, "PROXY TCP4 {address} 192.0.2.99 4711 443\r\n").unwrap();
        client.ask_over(tcp, NAME, NAME).map(drop)
    };
    for _ in 0..5 {
        by("203.0.113.7").unwrap();
    }
    assert!(by("203.0.113.7").is_err());
    for _ in 0..5 {
        by("203.0.113.8").unwrap();
    }
}

#[test]
fn a_trusted_proxy_that_names_its_clients_in_the_request_makes_as_many_handshakes_as_they_need() {
    let files = Files::new();
    let relay = files.relay(&[&RATE[..], &["--trusted-proxy", "127.0.0.0/8"]].concat());
    let (client, proxy) = (files.client(), fresh_source());
    let by = |address: &str| {
        let field = format!("\r\nX-Forwarded-For: {address}\r\n");
        let head = phone_head(&fresh_id("forwarded")).replacen("\r\n", &field, 1);
        status(&client, &relay, proxy, &head)
    };
    for host in 0..4 {
        for _ in 0..5 {
            assert_eq!(by(&format!("203.0.113.{host}")), 101);
        }
        // Their attempts are limited as ever.
        assert_eq!(by(&format!("203.0.113.{host}")), 429);
    }
}

#[test]
fn without_a_rate_limit_handshakes_are_not_limited() {
    let files = Files::new();
    let relay = files.relay(&["--rate-limit", "off"]);
    let source = fresh_source();
    for _ in 0..40 {
        health(&files.client(), &relay, source).unwrap();
    }
}
