//! Behind a proxy: whose word is taken for the address, and what that address is used for.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown};

use crate::rig::ws::{self, Ws, is_timeout};
use crate::rig::{
    Address, Plain, Relay, Stream, binary_head, connect, connect_from, envelope, events, fresh_id,
    fresh_source, millis, phone_head,
};

/// Connections from 127.0.0.1 are a proxy's.
const BY_FIELDS: [&str; 2] = ["--trusted-proxy", "127.0.0.1"];
const BY_HEADER: [&str; 3] = ["--trusted-proxy", "127.0.0.1", "--proxy-protocol"];

/// A request head with one more field.
fn with(head: &str, field: &str) -> String {
    head.replacen("\r\n", &format!("\r\n{field}\r\n"), 1)
}

/// The `remote` of the event that a claim or a join by this head leads to.
fn remote_of(address: Address, head: &str, event: &str, id: &str) -> String {
    let seen = events::mark();
    let ws = Ws::upgrade(address, head);
    let line = events::wait_after(seen, event, &[("server_id", id)]);
    drop(ws);
    events::field(&line, "remote")
}

fn status(mut stream: Stream, request: &[u8]) -> u16 {
    stream.write_all(request).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("the response ends without a reset");
    let status = response.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    status.unwrap_or_else(|| panic!("{response:?}"))
}

/// A relay with a proxy at an address of its own, which its faults are known by.
fn relay_behind(options: &[&str]) -> (Relay, Ipv4Addr) {
    let proxy = fresh_source();
    let named = proxy.to_string();
    let all = [&["--trusted-proxy", &named], options].concat();
    let relay = match options.contains(&"--proxy-protocol") {
        true => Relay::plain(Plain::ProxyHeader, &all),
        false => Relay::start(&all),
    };
    (relay, proxy)
}

/// Sends these bytes as a trusted proxy and expects the end without a byte.
fn expect_silent_end(relay: &Relay, proxy: Ipv4Addr, bytes: &[u8]) {
    let mut stream = connect_from(proxy, relay.address);
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if is_timeout(&error) => panic!("the connection is still there"),
        _ => assert_eq!(answer, b"", "{bytes:?}"),
    }
}

/// A PROXY header of version 2: version and command, family and protocol, and what follows.
fn binary_header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

fn binary_ipv4(source: Ipv4Addr) -> Vec<u8> {
    let rest = [&source.octets()[..], &[192, 0, 2, 99], &[0x12, 0x34], &[0x01, 0xbb]].concat();
    binary_header(0x21, 0x11, &rest)
}

const TEXT_HEADER: &str = "PROXY TCP4 203.0.113.7 192.0.2.99 4711 443\r\n";

#[test]
fn the_address_that_a_trusted_proxy_names_is_the_one_in_the_log() {
    let relay = Relay::start(&BY_FIELDS);
    for (field, remote) in [
        ("X-Forwarded-For: 203.0.113.7", "203.0.113.7"),
        ("x-forwarded-for: 198.51.100.9, 203.0.113.7 , 127.0.0.1", "203.0.113.7"),
        ("X-Forwarded-For: 198.51.100.9\r\nX-Forwarded-For: 203.0.113.7", "203.0.113.7"),
        ("X-Forwarded-For: ::ffff:203.0.113.7", "203.0.113.7"),
        ("Forwarded: for=198.51.100.9, for=\"[2001:db8::7]:4711\";proto=https", "2001:db8::7"),
        ("Forwarded: for=203.0.113.7\r\nX-Forwarded-For: 203.0.113.7", "203.0.113.7"),
        ("Forwarded: for=_hidden", "127.0.0.1"),
        ("X-Real-IP: 203.0.113.7", "127.0.0.1"),
    ] {
        let id = fresh_id("forwarded");
        let head = with(&binary_head(&id), field);
        assert_eq!(remote_of(relay.address, &head, "server_claimed", &id), remote, "{field}");
        let head = with(&phone_head(&id), field);
        assert_eq!(remote_of(relay.address, &head, "phone_registered", &id), remote, "{field}");
        let unheld = fresh_id("forwarded-unheld");
        let head = with(&phone_head(&unheld), field);
        let seen = remote_of(relay.address, &head, "phone_register_no_server", &unheld);
        assert_eq!(seen, remote, "{field}");
    }
}

#[test]
fn fields_that_disagree_or_cannot_be_read_cost_the_proxy_nothing() {
    let (relay, proxy) = relay_behind(&["--rate-limit", "1/min", "--rate-burst", "1"]);
    let head = phone_head("nobody");
    let ask = |head: &str| status(connect_from(proxy, relay.address), head.as_bytes());
    let faults = [
        "Forwarded: for=198.51.100.9\r\nX-Forwarded-For: 203.0.113.7",
        "Forwarded: for=unknown\r\nX-Forwarded-For: 203.0.113.7",
        "Forwarded: for=\r\nX-Forwarded-For: 203.0.113.7",
        "X-Forwarded-For: junk",
        "Forwarded: for",
    ];
    for (count, fields) in (1..).zip(faults) {
        assert_eq!(ask(&with(&head, fields)), 400, "{fields}");
        let count = format!("{count}");
        events::wait("proxy_fault", &[("count", &count), ("remote", &proxy.to_string())]);
    }
    // The one attempt that each of them has is still there: for the client, and for the proxy.
    let bad_key = head.replace("dGhlIHNhbXBsZSBub25jZQ==", "no");
    assert_eq!(ask(&with(&bad_key, "X-Forwarded-For: 203.0.113.7")), 400);
    assert_eq!(ask(&with(&bad_key, "X-Forwarded-For: 203.0.113.7")), 429);
    assert_eq!(ask(&bad_key), 400);
    assert_eq!(ask(&bad_key), 429);
    // A health check is answered whatever a client has made up.
    let health = "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n";
    assert_eq!(ask(&with(health, faults[0])), 200);
}

#[test]
fn nobody_else_is_believed() {
    let relay = Relay::start(&BY_FIELDS);
    for field in ["X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7", "Forwarded: \"\""] {
        let (id, source) = (fresh_id("stranger"), fresh_source());
        let seen = events::mark();
        let head = with(&binary_head(&id), field);
        let _binary = Ws::upgrade_from(source, relay.address, &head);
        let line = events::wait_after(seen, "server_claimed", &[("server_id", &id)]);
        assert_eq!(events::field(&line, "remote"), source.to_string(), "{field}");
    }
}

#[test]
fn without_the_option_loopback_is_believed_no_more_than_others() {
    let relay = Relay::start(&[]);
    let id = fresh_id("untrusting");
    let head = with(&binary_head(&id), "X-Forwarded-For: 203.0.113.7");
    assert_eq!(remote_of(relay.address, &head, "server_claimed", &id), "127.0.0.1");
}

#[test]
fn attempts_are_those_of_the_address_behind_the_proxy() {
    let options = [&BY_FIELDS[..], &["--rate-limit", "1/min", "--rate-burst", "2"]].concat();
    let relay = Relay::start(&options);
    let ask = |field: &str| {
        let head = with(&phone_head("nobody"), field);
        // Refused for its key: nothing is upgraded, and the attempt is made all the same.
        let head = head.replace("dGhlIHNhbXBsZSBub25jZQ==", "no");
        status(connect(relay.address), head.as_bytes())
    };
    for field in [
        "X-Forwarded-For: 203.0.113.7",
        "Forwarded: for=203.0.113.8",
        // No address behind it is known: the proxy itself is limited, loopback or not.
        "X-Forwarded-For: unknown",
        // A network of 64 bits is one source.
        "X-Forwarded-For: 2001:db8::1",
    ] {
        assert_eq!([ask(field), ask(field), ask(field)], [400, 400, 429], "{field}");
    }
    assert_eq!(ask("X-Forwarded-For: 2001:db8::2"), 429);
    assert_eq!(ask("X-Forwarded-For: 2001:db8:0:1::1"), 400);
    assert_eq!(ask("X-Anything: else"), 429, "the proxy's own attempts are used up");
}

#[test]
fn every_refusal_is_logged_with_the_address_behind_the_proxy() {
    let relay = Relay::start(&BY_FIELDS);
    let seen = events::mark();
    let field = "X-Forwarded-For: 203.0.113.77";
    for head in [
        "GET /nowhere HTTP/1.1\r\nHost: relay\r\n\r\n".to_owned(),
        "POST /v1/client HTTP/1.1\r\nHost: relay\r\n\r\n".to_owned(),
        phone_head("nobody").replace("User-Agent", "X-Agent"),
    ] {
        assert!(status(connect(relay.address), with(&head, field).as_bytes()) >= 400);
    }
    events::wait_nth(seen, "refused", &[("remote", "203.0.113.77")], 3);
}

#[test]
fn a_field_that_names_no_address_is_refused_and_counted_and_health_answers_all_the_same() {
    let (relay, proxy) = relay_behind(&[]);
    for (field, count) in
        [("X-Forwarded-For: junk", "1"), ("Forwarded: for=1.2.3", "2"), ("Forwarded: for", "3")]
    {
        let head = with(&phone_head("nobody"), field);
        let ask = |head: &str| status(connect_from(proxy, relay.address), head.as_bytes());
        assert_eq!(ask(&head), 400, "{field}");
        events::wait("proxy_fault", &[("count", count), ("remote", &proxy.to_string())]);
        let health = with("GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n", field);
        assert_eq!(ask(&health), 200, "{field}");
    }
}

#[test]
fn a_proxy_header_of_either_version_tells_the_address() {
    let relay = Relay::plain(Plain::ProxyHeader, &BY_HEADER);
    let ipv6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[7], &[0; 16], &[0x12, 0x34, 0, 80]].concat();
    let own = "127.0.0.1";
    for (header, remote) in [
        (TEXT_HEADER.as_bytes().to_vec(), "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 4711 443\r\n".to_vec(), "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), own),
        (binary_ipv4(Ipv4Addr::new(203, 0, 113, 7)), "203.0.113.7"),
        (binary_header(0x21, 0x21, &ipv6), "2001:db8::7"),
        (binary_header(0x21, 0x00, b""), own),
        (binary_header(0x20, 0x00, b""), own),
        // The family of a proxy's own connection is to be ignored, whatever it says.
        (binary_header(0x20, 0x11, &[203, 0, 113, 7, 0, 0, 0, 0, 0, 0, 0, 0]), own),
    ] {
        let id = fresh_id("announced");
        let seen = events::mark();
        let bytes = [&header[..], binary_head(&id).as_bytes()].concat();
        let _binary = Ws::upgrade_with(relay.address, &bytes);
        let line = events::wait_after(seen, "server_claimed", &[("server_id", &id)]);
        assert_eq!(events::field(&line, "remote"), remote, "{header:?}");
    }
}

#[test]
fn header_request_and_first_frame_arrive_in_any_pieces() {
    let relay = Relay::plain(Plain::ProxyHeader, &BY_HEADER);
    for header in [TEXT_HEADER.as_bytes().to_vec(), binary_ipv4(Ipv4Addr::new(203, 0, 113, 7))] {
        let id = fresh_id("pieces");
        let mut binary =
            Ws::upgrade_with(relay.address, &[&header[..], binary_head(&id).as_bytes()].concat());
        let frame = ws::encode(true, ws::TEXT, b"\"first\"");
        let all = [&header[..], phone_head(&id).as_bytes(), &frame].concat();
        let cuts = [1, 5, header.len() - 1, header.len(), header.len() + 1, all.len() - 3];
        for cut in cuts {
            let seen = events::mark();
            let mut stream = connect(relay.address);
            stream.write_all(&all[..cut]).unwrap();
            // The relay has nothing to say about the first piece, so that is all there is to it.
            stream.write_all(&all[cut..]).unwrap();
            let _phone = Ws::after_request(stream);
            let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
            assert_eq!(events::field(&line, "remote"), "203.0.113.7");
            let conn_id = events::field(&line, "conn_id");
            assert_eq!(binary.read_text(), envelope(&conn_id, "\"first\""), "cut at {cut}");
            // The close notice of the one before would come in between.
            drop(_phone);
            assert!(binary.read_text().contains("close_code"));
        }
        let mut stream = connect(relay.address);
        for byte in &all {
            stream.write_all(&[*byte]).unwrap();
        }
        let _phone = Ws::after_request(stream);
        assert!(binary.read_text().ends_with("\"frame\":\"first\"}"));
    }
}

#[test]
fn a_proxy_header_is_required_from_trusted_proxies_and_refused_from_anybody_else() {
    let (relay, proxy) = relay_behind(&["--proxy-protocol"]);
    let health = "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n";
    expect_silent_end(&relay, proxy, health.as_bytes());
    events::wait("proxy_fault", &[("count", "1"), ("remote", &proxy.to_string())]);
    let announced = |header: &[u8]| [header, health.as_bytes()].concat();
    let headers = [TEXT_HEADER.as_bytes().to_vec(), binary_ipv4(Ipv4Addr::new(203, 0, 113, 7))];
    for header in headers {
        let trusted = connect_from(proxy, relay.address);
        assert_eq!(status(trusted, &announced(&header)), 200, "{header:?}");
        let stranger = connect_from(fresh_source(), relay.address);
        assert_eq!(status(stranger, &announced(&header)), 400, "{header:?}");
    }
    let stranger = connect_from(fresh_source(), relay.address);
    assert_eq!(status(stranger, health.as_bytes()), 200);
    // Where no header is expected it is no request from a trusted proxy either.
    let by_fields = Relay::start(&BY_FIELDS);
    let bytes = announced(TEXT_HEADER.as_bytes());
    assert_eq!(status(connect(by_fields.address), &bytes), 400);
}

#[test]
fn a_malformed_proxy_header_ends_the_connection_without_a_word_and_is_counted() {
    let (relay, proxy) = relay_behind(&["--proxy-protocol"]);
    let mut count = 0;
    for bad in [
        b"PROXY TCP4 203.0.113.7 192.0.2.99 4711\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.777 192.0.2.99 4711 443\r\n".to_vec(),
        [b"PROXY UNKNOWN ", &[b'x'; 100][..]].concat(),
        b"\r\n\r\n\0\r\nQUIT\r".to_vec(),
        binary_header(0x31, 0x11, &[0; 12]),
        binary_header(0x21, 0x11, &[0; 11]),
        binary_header(0x21, 0x11, &[0; 9000])[..16].to_vec(),
        [TEXT_HEADER.replace("TCP4", "TCP6").as_bytes(), phone_head("nobody").as_bytes()].concat(),
    ] {
        expect_silent_end(&relay, proxy, &bad);
        count += 1;
        let fields = [("count", &*count.to_string()), ("remote", &proxy.to_string())];
        events::wait("proxy_fault", &fields);
    }
}

#[test]
fn fields_are_believed_behind_a_header_only_if_that_names_another_trusted_proxy() {
    let options = [&BY_HEADER[..], &["--trusted-proxy", "10.0.0.0/8"]].concat();
    let relay = Relay::plain(Plain::ProxyHeader, &options);
    for (header, remote) in [
        ("PROXY TCP4 10.1.1.1 192.0.2.99 4711 443\r\n", "198.51.100.9"),
        ("PROXY TCP4 203.0.113.7 192.0.2.99 4711 443\r\n", "203.0.113.7"),
        // Somebody that the proxy does not name is not trusted for being unnamed.
        ("PROXY UNKNOWN\r\n", "127.0.0.1"),
    ] {
        let id = fresh_id("chained");
        let head = with(&binary_head(&id), "X-Forwarded-For: 198.51.100.9");
        let seen = remote_of(relay.address, &format!("{header}{head}"), "server_claimed", &id);
        assert_eq!(seen, remote, "{header}");
    }
}

#[test]
fn a_proxy_header_counts_into_the_header_timeout() {
    let relay = Relay::plain(
        Plain::ProxyHeader,
        &[&BY_HEADER[..], &["--header-timeout", &millis(200)]].concat(),
    );
    for begun in ["", "PROXY TC", TEXT_HEADER, &format!("{TEXT_HEADER}GET /v1")] {
        let stream = connect(relay.address);
        assert_eq!(status(stream, begun.as_bytes()), 408, "{begun:?}");
    }
}

#[test]
fn a_proxy_header_counts_into_the_bytes_of_the_head() {
    let relay = Relay::plain(Plain::ProxyHeader, &BY_HEADER);
    let request = b"GET /nowhere HTTP/1.1\r\nHost: relay\r\n\r\n";
    // Extras that nobody knows, to make a header of `length` bytes.
    let header = |length: usize| {
        let mut rest = vec![203, 0, 113, 7, 192, 0, 2, 99, 0x12, 0x34, 0, 80, 0xee];
        let extra = u16::try_from(length - 16 - 12 - 3).unwrap();
        rest.extend(extra.to_be_bytes());
        rest.resize(length - 16, 0);
        binary_header(0x21, 0x11, &rest)
    };
    for (length, expected) in [(8192 - request.len(), 404), (8193 - request.len(), 431)] {
        let bytes = [&header(length)[..], request].concat();
        assert_eq!(status(connect(relay.address), &bytes), expected, "{length}");
    }
    // A head that is not complete yet as well.
    let endless = [&header(8000)[..], b"GET /nowhere HTTP/1.1\r\nX: ", &[b'x'; 300]].concat();
    assert_eq!(status(connect(relay.address), &endless), 431);
}

#[test]
fn a_proxy_that_connects_and_leaves_is_no_fault() {
    let (relay, proxy) = relay_behind(&["--proxy-protocol"]);
    for begun in [&b""[..], b"PROXY", b"\r\n\r\n\0"] {
        let mut stream = connect_from(proxy, relay.address);
        stream.write_all(begun).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    expect_silent_end(&relay, proxy, b"junk");
    let remote = proxy.to_string();
    let first = events::wait("proxy_fault", &[("remote", &remote)]);
    assert_eq!(events::field(&first, "count"), "1");
    assert_eq!(events::count("proxy_fault", &[("remote", &remote)]), 1);
}
