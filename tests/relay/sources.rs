//! What one source address may hold, and what it cannot take from the others.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;

use crate::rig::ws::{Ws, is_timeout};
use crate::rig::{
    Plain, Relay, Stream, binary_head, connect_from, envelope, events, fresh_id, fresh_source,
    phone_head,
};

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n";

fn binary_from(relay: &Relay, source: Ipv4Addr) -> (Ws, String) {
    let id = fresh_id("source");
    (Ws::upgrade_from(source, relay.address, &binary_head(&id)), id)
}

/// The whole response to a request that is not upgraded.
fn ask_from(relay: &Relay, source: Ipv4Addr, request: &str) -> String {
    finish(connect_from(source, relay.address), request)
}

fn finish(mut stream: Stream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("the response ends without a reset");
    response
}

fn assert_busy(response: &str) {
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 ") && body.is_empty(), "{response}");
    let wait = head.lines().find_map(|line| line.strip_prefix("Retry-After: ")).unwrap();
    assert!(wait.parse::<u32>().unwrap() >= 1, "{response}");
}

/// Expects that the connection ends without an answer, by an end or by a reset.
fn expect_cut_off(stream: &mut Stream) {
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if !is_timeout(&error) => {}
        other => panic!("{other:?} instead of the end"),
    }
}

#[test]
fn an_address_gets_its_connections_and_no_more_and_others_get_theirs() {
    let relay = Relay::start(&["--max-connections-per-ip", "3"]);
    let (one, other) = (fresh_source(), fresh_source());
    let (first, first_id) = binary_from(&relay, one);
    let _phone = Ws::upgrade_from(one, relay.address, &phone_head(&first_id));
    let (mut third, _) = binary_from(&relay, one);
    for head in [binary_head(&fresh_id("source")), phone_head(&first_id), binary_head(&first_id)] {
        assert_busy(&ask_from(&relay, one, &head));
    }
    assert!(ask_from(&relay, one, HEALTH).starts_with("HTTP/1.1 200 "));
    // What is wrong with a request is told all the same.
    assert!(ask_from(&relay, one, "GET /x HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    let (mut stranger, _) = binary_from(&relay, other);
    stranger.sync();
    third.sync();
    // Any connection that ends makes room.
    let seen = events::mark();
    first.drop_connection();
    events::wait_after(seen, "server_released", &[("server_id", &first_id)]);
    let (mut again, _) = binary_from(&relay, one);
    again.sync();
    assert_busy(&ask_from(&relay, one, &binary_head(&fresh_id("source"))));
}

#[test]
fn a_share_of_the_permits_stays_for_addresses_that_hold_none() {
    let relay = Relay::start(&["--max-connections-per-ip", "16", "--max-connections", "16"]);
    let greedy = fresh_source();
    let mut held: Vec<_> = (0..14).map(|_| binary_from(&relay, greedy)).collect();
    assert_busy(&ask_from(&relay, greedy, &binary_head(&fresh_id("source"))));
    for _ in 0..2 {
        let stranger = fresh_source();
        held.push(binary_from(&relay, stranger));
        assert_busy(&ask_from(&relay, stranger, &binary_head(&fresh_id("source"))));
    }
    assert_busy(&ask_from(&relay, fresh_source(), &binary_head(&fresh_id("source"))));
    for (binary, _) in &mut held {
        binary.sync();
    }
}

#[test]
fn a_request_in_progress_counts_and_the_oldest_of_its_address_pays_for_one_too_many() {
    let relay = Relay::start(&["--max-connections-per-ip", "4", "--header-timeout", "60s"]);
    let (one, other) = (fresh_source(), fresh_source());
    let (mut binary, _) = binary_from(&relay, one);
    let theirs = connect_from(other, relay.address);
    let mut idle: Vec<_> = (0..4).map(|_| connect_from(one, relay.address)).collect();
    // As many in progress as there may be connections: the next costs the oldest of them.
    let newcomer = connect_from(one, relay.address);
    expect_cut_off(&mut idle[0]);
    assert!(finish(newcomer, HEALTH).starts_with("HTTP/1.1 200 "));
    binary.sync();
    for stream in idle.drain(1..).chain([theirs]) {
        assert!(finish(stream, HEALTH).starts_with("HTTP/1.1 200 "));
    }
}

#[test]
fn a_flood_of_idle_connections_from_one_address_costs_nobody_else_a_request() {
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit may be raised to the hard one");
    let relay = Relay::start(&["--max-connections-per-ip", "8", "--header-timeout", "60s"]);
    let (flooder, other) = (fresh_source(), fresh_source());
    let early = connect_from(other, relay.address);
    let (mut binary, id) = binary_from(&relay, other);
    let mut flood: Vec<_> = (0..400).map(|_| connect_from(flooder, relay.address)).collect();
    for displaced in flood.iter_mut().take(392) {
        expect_cut_off(displaced);
    }
    assert!(finish(early, HEALTH).starts_with("HTTP/1.1 200 "));
    let seen = events::mark();
    let mut phone = Ws::upgrade_from(other, relay.address, &phone_head(&id));
    let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&events::field(&line, "conn_id"), "1"));
    // The last eight of the flood are requests like any other.
    for stream in flood.drain(392..) {
        assert!(finish(stream, HEALTH).starts_with("HTTP/1.1 200 "));
    }
}

#[test]
fn a_few_addresses_that_fill_the_table_of_requests_cost_nobody_else_a_request() {
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit may be raised to the hard one");
    let relay = Relay::start(&["--max-connections-per-ip", "64", "--header-timeout", "60s"]);
    let dial =
        |network: u8, host: u8| connect_from(Ipv4Addr::new(127, 10, network, host), relay.address);
    // Half of the newcomers are older than the flood.
    let mut newcomers: Vec<_> = (0..20).map(|host| dial(1, host)).collect();
    let mut flood: Vec<Vec<_>> =
        (0..8).map(|host| (0..64).map(|_| dial(0, host)).collect()).collect();
    newcomers.extend((20..40).map(|host| dial(1, host)));
    // The flood goes on before any of them has said a word.
    for (host, stalled) in (0..8).zip(&mut flood) {
        stalled.extend((0..64).map(|_| dial(0, host)));
    }
    for (number, stream) in newcomers.into_iter().enumerate() {
        let response = finish(stream, HEALTH);
        assert!(response.starts_with("HTTP/1.1 200 "), "newcomer {number}: {response}");
    }
}

#[test]
fn addresses_behind_a_trusted_proxy_have_a_share_each() {
    let options = ["--trusted-proxy", "127.0.0.1", "--max-connections-per-ip", "2"];
    let relay = Relay::start(&options);
    let proxy = Ipv4Addr::LOCALHOST;
    let by = |address: &str, head: &str| {
        head.replacen("\r\n", &format!("\r\nX-Forwarded-For: {address}\r\n"), 1)
    };
    let mut held = Vec::new();
    for client in ["203.0.113.7", "203.0.113.8", "2001:db8::1"] {
        for _ in 0..2 {
            let head = by(client, &binary_head(&fresh_id("behind")));
            held.push(Ws::upgrade(relay.address, &head));
        }
        assert_busy(&ask_from(&relay, proxy, &by(client, &binary_head(&fresh_id("behind")))));
    }
    // The same network of 64 bits.
    let neighbour = by("2001:db8::2", &binary_head(&fresh_id("behind")));
    assert_busy(&ask_from(&relay, proxy, &neighbour));
    // Nobody knows who that is: the proxy's own share.
    for _ in 0..2 {
        held.push(Ws::upgrade(relay.address, &binary_head(&fresh_id("behind"))));
    }
    assert_busy(&ask_from(&relay, proxy, &binary_head(&fresh_id("behind"))));
    for ws in &mut held {
        ws.sync();
    }
}

#[test]
fn requests_in_progress_behind_a_proxy_header_count_for_the_address_in_it() {
    let options = ["--trusted-proxy", "127.0.0.1", "--proxy-protocol", "--header-timeout", "60s"];
    let arguments = [&options[..], &["--max-connections-per-ip", "2"]].concat();
    let relay = Relay::plain(Plain::ProxyHeader, &arguments);
    let announced = |address: &str| {
        let mut stream = connect_from(Ipv4Addr::LOCALHOST, relay.address);
        write!(stream, "PROXY TCP4 {address} 192.0.2.99 4711 443\r\n").unwrap();
        // A request that came later has been answered: the header has been read.
        let later = ask_from(&relay, fresh_source(), HEALTH);
        assert!(later.starts_with("HTTP/1.1 200 "));
        stream
    };
    let other = announced("203.0.113.8");
    let mut first = announced("203.0.113.7");
    let second = announced("203.0.113.7");
    let third = announced("203.0.113.7");
    expect_cut_off(&mut first);
    for stream in [second, third, other] {
        assert!(finish(stream, HEALTH).starts_with("HTTP/1.1 200 "));
    }
}

#[test]
fn loopback_that_reaches_a_limit_is_said_to_be_a_proxy_perhaps() {
    let relay = Relay::start(&["--max-connections-per-ip", "1"]);
    let one = fresh_source();
    let _held = binary_from(&relay, one);
    let seen = events::mark();
    for _ in 0..3 {
        assert_busy(&ask_from(&relay, one, &binary_head(&fresh_id("source"))));
    }
    let remote = one.to_string();
    let line = events::wait_after(seen, "loopback_limited", &[("remote", &remote)]);
    assert!(events::field(&line, "advice").contains("--trusted-proxy"));
    assert_eq!(events::count("loopback_limited", &[("remote", &remote)]), 1);
}

#[test]
fn off_lets_one_address_have_everything() {
    let relay = Relay::start(&["--max-connections-per-ip", "off", "--max-connections", "70"]);
    let source = fresh_source();
    let mut held: Vec<_> = (0..70).map(|_| binary_from(&relay, source)).collect();
    assert_busy(&ask_from(&relay, source, &binary_head(&fresh_id("source"))));
    held[69].0.sync();
}
