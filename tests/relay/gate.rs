//! The gate on the wire: refusals and their order, the health page, the upgrade itself, and what
//! arrives behind a request head.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use log::Level;

use crate::rig::ws::{CLOSE, PING, PONG, TEXT, encode, is_timeout};
use crate::rig::{
    Address, Plain, Relay, Stream, Ws, binary_head, connect, connect_from, deadline, envelope,
    events, fresh_id, fresh_source, millis, phone_head, scaled,
};

#[test]
fn every_refusal_has_its_status_its_fields_and_an_empty_body() {
    let relay = Relay::start(&[]);
    for (case, request, expected) in refused_requests(&fresh_id("refused")) {
        assert_eq!(ask(relay.address, &request), expected, "{case}");
    }
    assert_eq!(relay.health(), (0, 0));
}

#[test]
fn every_refusal_arrives_and_ends_in_order_with_unread_input_behind_the_head() {
    let relay = Relay::start(&[]);
    for (case, request, expected) in refused_requests(&fresh_id("unread")) {
        let unread = vec![b'x'; 300 * 1024];
        assert_eq!(ask(relay.address, &[request, unread].concat()), expected, "{case}");
    }
}

#[test]
fn a_refusal_reads_on_while_its_peer_still_sends() {
    let relay = Relay::start(&[]);
    let mut stream = connect(relay.address);
    stream.write_all(UNKNOWN_PATH).unwrap();
    assert_eq!(read_response(&mut stream), refusal(404, &[]));
    for _ in 0..8 {
        stream.write_all(&[b'x'; 64 * 1024]).expect("the relay discards what still comes");
    }
}

#[test]
fn a_peer_that_never_stops_sending_is_let_go_after_its_refusal() {
    let relay = Relay::start(&[]);
    let mut stream = connect(relay.address);
    stream.write_all(UNKNOWN_PATH).unwrap();
    assert_eq!(read_response(&mut stream), refusal(404, &[]));
    let written = write_until_cut_off(&mut stream);
    assert!(written >= 1024 * 1024, "cut off after {written} bytes");
}

#[test]
fn a_peer_that_has_shut_down_writing_gets_its_answer() {
    let relay = Relay::start(&[]);
    for (request, status) in
        [(UNKNOWN_PATH, 404), (b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n", 200)]
    {
        let mut stream = connect(relay.address);
        stream.write_all(request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_response(&mut stream).status, status);
    }
}

#[test]
fn refusals_come_in_the_order_of_the_contract() {
    let exhausted = Relay::plain(Plain::Answers, &["--rate-limit", "1/min", "--rate-burst", "1"]);
    let spent = ask(exhausted.address, b"GET /v1/client HTTP/1.1\r\n\r\n");
    assert_eq!(spent, refusal(400, &[]), "the only attempt");
    let relay = Relay::start(&["--max-connections", "1"]);
    let source = fresh_source();
    let holder = Ws::upgrade_from(source, relay.address, &binary_head(&fresh_id("holder")));

    // Every head has the first fault of the one before repaired; its other faults must not matter.
    let long = format!("X-Padding: {}\r\n", "x".repeat(9 * 1024));
    let faulty = format!("Host: relay\r\nX-Pyrycode-Server: {}\r\n", fresh_id("order"));
    let gated = format!("{faulty}X-Pyrycode-Token: secret\r\nUser-Agent: test\r\n");
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let whole = format!("GET /v1/client HTTP/1.1\r\n{gated}{upgrade}{key}\r\n");
    for (relay, head, status) in [
        (&exhausted, format!("PUT /nowhere HTTP/9.9\r\n{long}\r\n"), 400),
        (&exhausted, format!("PUT /nowhere HTTP/1.1\r\n{long}\r\n"), 431),
        (&exhausted, "PUT /nowhere HTTP/1.1\r\n\r\n".to_owned(), 404),
        (&exhausted, "PUT /v1/client HTTP/1.1\r\n\r\n".to_owned(), 405),
        (&exhausted, "GET /v1/client HTTP/1.1\r\n\r\n".to_owned(), 429),
        (&relay, format!("GET /v1/client HTTP/1.1\r\n{faulty}\r\n"), 400),
        (&relay, format!("GET /v1/client HTTP/1.1\r\n{gated}\r\n"), 426),
        (&relay, format!("GET /v1/client HTTP/1.1\r\n{gated}{upgrade}\r\n"), 400),
        (&relay, whole.clone(), 503),
    ] {
        assert_eq!(ask(relay.address, head.as_bytes()).status, status, "{head}");
    }
    drop(holder);
    events::wait("connection_closed", &[("remote", &source.to_string())]);
    Ws::upgrade(relay.address, &whole).expect_close(4404, "no server with that id");
}

#[test]
fn a_required_header_that_is_missing_empty_or_blank_leaves_no_trace() {
    let relay = Relay::start(&[]);
    let (source, id) = (fresh_source(), fresh_id("headers"));
    let mut refused = 0;
    for (head, own) in [(binary_head(&id), "Version"), (phone_head(&id), "Token")] {
        for name in ["X-Pyrycode-Server", &format!("X-Pyrycode-{own}"), "User-Agent"] {
            let line = field_line(&head, name);
            for (case, replacement) in [
                ("missing", String::new()),
                ("empty", format!("{name}:\r\n")),
                ("blank", format!("{name}: \t \r\n")),
            ] {
                let mut stream = connect_from(source, relay.address);
                stream.write_all(head.replace(&line, &replacement).as_bytes()).unwrap();
                assert_eq!(read_response(&mut stream), refusal(400, &[]), "{name} {case}");
                refused += 1;
            }
        }
    }
    assert_eq!(relay.health(), (0, 0));
    assert!(events::all_with("server_id", &id).is_empty());
    let logged = events::all_with("remote", &source.to_string());
    assert_eq!(logged.len(), refused, "one line a refusal");
    assert!(logged.iter().all(|event| event.level >= Level::Debug), "{logged:?}");
    relay.phone(&id).expect_close(4404, "no server with that id");
}

#[test]
fn header_names_are_known_in_any_case_on_both_endpoints() {
    let relay = Relay::start(&[]);
    for change in [str::to_lowercase, str::to_uppercase] {
        let id = fresh_id("case");
        let odd = |head: String| {
            let lines = head.split("\r\n").enumerate().map(|(index, line)| match index {
                0 => line.to_owned(),
                _ => line
                    .split_once(':')
                    .map_or_else(String::new, |(name, value)| format!("{}:{value}", change(name))),
            });
            lines.collect::<Vec<_>>().join("\r\n")
        };
        let mut binary = Ws::upgrade(relay.address, &odd(binary_head(&id)));
        let seen = events::mark();
        let mut phone = Ws::upgrade(relay.address, &odd(phone_head(&id)));
        let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
        phone.send_text("1");
        assert_eq!(binary.read_text(), envelope(&events::field(&line, "conn_id"), "1"));
    }
}

#[test]
fn a_head_that_is_not_complete_in_time_gets_a_408_and_nobody_else_does() {
    let started = Instant::now();
    let relay = Relay::start(&["--header-timeout", &millis(400)]);
    let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("slow-head"));
    let silent = connect(relay.address);
    let mut halting = connect(relay.address);
    halting.write_all(b"GET /v1/client HTTP/1.1\r\nHost: re").unwrap();
    let mut dribbling = connect(relay.address);
    dribbling.write_all(b"GET /healthz HTTP/1.1\r\nX: ").unwrap();
    dribbling.set_read_timeout(Some(scaled(Duration::from_millis(20)))).unwrap();
    let mut first = [0];
    while let Err(error) = dribbling.read(&mut first) {
        assert!(is_timeout(&error), "{error}");
        // The answer may cross with this; the read tells.
        let _ = dribbling.write_all(b"x");
        assert!(started.elapsed() < deadline(), "no answer");
    }
    let mut rest = String::new();
    dribbling.read_to_string(&mut rest).expect("the response ends without a reset");
    assert_eq!(parse_response(&format!("{}{rest}", char::from(first[0]))), refusal(408, &[]));
    for mut stream in [silent, halting] {
        assert_eq!(read_response(&mut stream), refusal(408, &[]));
    }
    assert!(started.elapsed() >= scaled(Duration::from_millis(400)));
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
}

#[test]
fn an_endless_head_gets_a_431_and_one_of_exactly_8_kib_passes_in_many_segments() {
    let relay = Relay::start(&[]);
    let id = fresh_id("large-head");
    let mut binary = relay.binary(&id);
    let mut endless = connect(relay.address);
    endless.write_all(b"GET /v1/client HTTP/1.1\r\nX: ").unwrap();
    endless.write_all(&[b'x'; 8 * 1024]).unwrap();
    assert_eq!(read_response(&mut endless), refusal(431, &[]));

    let head = phone_head(&id);
    let padding = 8 * 1024 - head.len() - "X: \r\n".len();
    let padded = head.replacen("\r\n", &format!("\r\nX: {}\r\n", "x".repeat(padding)), 1);
    assert_eq!(padded.len(), 8 * 1024);
    let seen = events::mark();
    let mut stream = connect(relay.address);
    for segment in padded.as_bytes().chunks(1000) {
        stream.write_all(segment).unwrap();
    }
    stream.write_all(&encode(true, TEXT, b"\"behind it\"")).unwrap();
    let _phone = Ws::after_request(stream);
    let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    let conn_id = events::field(&line, "conn_id");
    assert_eq!(binary.read_text(), envelope(&conn_id, "\"behind it\""));
}

#[test]
fn the_257th_head_in_progress_closes_the_oldest_alone() {
    // Both ends of every connection are in this process.
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit may be raised to the hard one");
    let relay = Relay::start(&["--header-timeout", "60s"]);
    let mut heads: Vec<_> = (0..257)
        .map(|_| {
            let mut stream = connect(relay.address);
            stream.write_all(b"GET /nowhere HTTP/1.1\r\n").unwrap();
            stream
        })
        .collect();
    expect_cut_off(&mut heads.remove(0));
    for (index, stream) in heads.iter_mut().enumerate() {
        stream.write_all(b"Host: relay\r\n\r\n").unwrap();
        assert_eq!(read_response(stream), refusal(404, &[]), "head {index}");
    }
}

#[test]
fn upgraded_connections_are_no_heads_in_progress() {
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit may be raised to the hard one");
    let relay = Relay::start(&["--header-timeout", "60s"]);
    let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("no-head"));
    let heads: Vec<_> = (0..300).map(|_| connect(relay.address)).collect();
    for mut displaced in heads.into_iter().take(44) {
        expect_cut_off(&mut displaced);
    }
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
}

#[test]
fn the_connection_cap_refuses_with_a_503_and_the_health_page_still_answers() {
    let relay = Relay::start(&["--max-connections", "2"]);
    let id = fresh_id("cap");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    for head in [phone_head(&id), binary_head(&fresh_id("cap")), binary_head(&id)] {
        let refused = ask(relay.address, head.as_bytes());
        let wait = refused.retry_after();
        assert_eq!(refused, refusal(503, &[&format!("Retry-After: {wait}")]), "{head}");
        assert!(wait >= 1);
    }
    assert_eq!(relay.health(), (1, 1));
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
    phone.drop_connection();
    events::wait("connection_closed", &[("conn_id", &conn_id)]);
    relay.registered_phone(&id);
}

#[test]
fn slots_in_grace_count_against_the_connection_cap() {
    let relay = Relay::start(&["--max-connections", "2"]);
    let ids = [fresh_id("cap-grace"), fresh_id("cap-grace")];
    for id in &ids {
        let source = fresh_source();
        Ws::upgrade_from(source, relay.address, &binary_head(id)).drop_connection();
        events::wait("connection_closed", &[("remote", &source.to_string())]);
    }
    let refused = ask(relay.address, binary_head(&fresh_id("cap-grace")).as_bytes());
    assert_eq!(refused.status, 503);
    assert!(refused.retry_after() >= 1);
    // It is the slots that are taken: connections are not.
    let (mut phone, conn_id) = relay.registered_phone(&ids[0]);
    let mut binary = relay.binary(&ids[0]);
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
}

#[test]
fn a_slot_that_expires_makes_room_under_the_connection_cap() {
    let relay = Relay::start(&["--max-connections", "1", "--grace", &millis(150)]);
    let (id, source) = (fresh_id("cap-expiry"), fresh_source());
    Ws::upgrade_from(source, relay.address, &binary_head(&id)).drop_connection();
    events::wait("server_expired", &[("server_id", &id)]);
    events::wait("connection_closed", &[("remote", &source.to_string())]);
    relay.binary(&fresh_id("cap-expiry")).sync();
}

#[test]
fn a_claim_during_a_probe_gets_a_503_before_the_upgrade() {
    let relay = Relay::start(&[]);
    let id = fresh_id("busy");
    let mut holder = relay.binary(&id);
    holder.answers_pings = false;
    let _contender = relay.binary(&id);
    assert_eq!(holder.read_frame().opcode, PING);
    let refused = ask(relay.address, binary_head(&id).as_bytes());
    let wait = refused.retry_after();
    assert_eq!(refused, refusal(503, &[&format!("Retry-After: {wait}")]));
    assert!(wait >= 1);
}

#[test]
fn attempts_beyond_the_burst_get_a_429_whatever_became_of_those_before() {
    let relay = Relay::start(&["--rate-limit", "1/min", "--rate-burst", "4"]);
    let id = fresh_id("rate");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    assert_eq!(ask(relay.address, b"GET /v1/client HTTP/1.1\r\n\r\n").status, 400);
    relay.phone(&fresh_id("rate")).expect_close(4404, "no server with that id");
    for head in [
        phone_head(&id),
        binary_head(&fresh_id("rate")),
        "GET /v1/server HTTP/1.1\r\n\r\n".to_owned(),
    ] {
        let refused = ask(relay.address, head.as_bytes());
        let wait = refused.retry_after();
        assert_eq!(refused, refusal(429, &[&format!("Retry-After: {wait}")]), "{head}");
        assert!((1..=60).contains(&wait), "{wait}");
    }
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
}

#[test]
fn a_429_never_says_to_come_back_at_once() {
    // A second or less to wait, rounded up.
    let relay = Relay::start(&["--rate-limit", "60/min", "--rate-burst", "1"]);
    let refused = (0..1000)
        .map(|_| ask(relay.address, b"GET /v1/client HTTP/1.1\r\n\r\n"))
        .find(|response| response.status == 429)
        .expect("two attempts within a second");
    assert_eq!(refused.retry_after(), 1);
}

#[test]
fn what_is_no_attempt_is_never_limited_and_uses_nothing_up() {
    let relay = Relay::plain(Plain::Answers, &["--rate-limit", "1/min", "--rate-burst", "1"]);
    let free: [(&[u8], u16); 5] = [
        (b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n", 200),
        (b"HEAD /healthz HTTP/1.1\r\nHost: relay\r\n\r\n", 200),
        (UNKNOWN_PATH, 404),
        (b"POST /v1/server HTTP/1.1\r\nHost: relay\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 400),
    ];
    let attempt = b"GET /v1/client HTTP/1.1\r\n\r\n";
    for round in ["before the only attempt", "behind it"] {
        for (request, status) in free {
            assert_eq!(ask(relay.address, request).status, status, "{round}");
        }
        let expected = if round == "behind it" { 429 } else { 400 };
        assert_eq!(ask(relay.address, attempt).status, expected, "{round}");
    }
}

#[test]
fn sources_are_limited_one_by_one_and_mapped_addresses_are_ipv4() {
    let relay = Relay::plain(
        Plain::ItsOwnListeners,
        &["--listen", ":0", "--rate-limit", "1/min", "--rate-burst", "1"],
    );
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, relay.address.at.port()));
    // As IPv6 networks of 64 bits, all mapped addresses would be one source.
    for source in [fresh_source(), fresh_source()] {
        let id = fresh_id("mapped");
        let binary = Ws::upgrade_from(source, address, &binary_head(&id));
        let claimed = events::wait("server_claimed", &[("server_id", &id)]);
        assert_eq!(events::field(&claimed, "remote"), source.to_string());
        let mut second = connect_from(source, address);
        second.write_all(phone_head(&id).as_bytes()).unwrap();
        assert_eq!(read_response(&mut second).status, 429);
        drop(binary);
    }
}

#[test]
fn the_health_page_is_byte_for_byte_that_of_the_contract_and_head_leaves_the_body_out() {
    let relay = Relay::plain(Plain::NoCertificate, &[]);
    let (_binary, _phone, _) = relay.pair(&fresh_id("health"));
    let _second = relay.binary(&fresh_id("health"));
    let page = exchange(relay.address, b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n");
    let uptime: u64 = page
        .split_once("\"uptime_seconds\":")
        .and_then(|(_, rest)| rest.strip_suffix('}')?.parse().ok())
        .unwrap_or_else(|| panic!("{page}"));
    let body = format!(
        "{{\"status\":\"ok\",\"version\":\"{}\",\"connected_binaries\":2,\"connected_phones\":1,\
         \"uptime_seconds\":{uptime}}}",
        env!("CARGO_PKG_VERSION")
    );
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n\
         Cache-Control: no-store\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    assert_eq!(page, format!("{head}{body}"));
    let headers_alone = exchange(relay.address, b"HEAD /healthz HTTP/1.1\r\nHost: relay\r\n\r\n");
    assert_eq!(headers_alone, head);
}

#[test]
fn the_health_page_needs_no_header_but_host_and_its_query_is_ignored() {
    let relay = Relay::start(&[]);
    for (request, status) in [
        ("GET /healthz?probe=1 HTTP/1.1\r\nHost: relay\r\n\r\n", 200),
        ("GET http://relay/healthz HTTP/1.1\r\nHost: relay\r\n\r\n", 200),
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
        ("GET /healthz HTTP/1.1\r\n\r\n", 400),
        ("GET /healthz/ HTTP/1.1\r\nHost: relay\r\n\r\n", 404),
    ] {
        assert_eq!(ask(relay.address, request.as_bytes()).status, status, "{request}");
    }
    let pipelined = [&b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n"[..], &[b'x'; 300_000]];
    assert_eq!(ask(relay.address, &pipelined.concat()).status, 200);
}

#[test]
fn the_health_page_counts_connected_binaries_and_all_phones_but_no_slot_in_grace() {
    let relay = Relay::start(&[]);
    let id = fresh_id("counts");
    assert_eq!(relay.health(), (0, 0));
    let (binary, phone, conn_id) = relay.pair(&id);
    let (_second, _) = relay.registered_phone(&id);
    let _other = relay.binary(&fresh_id("counts"));
    assert_eq!(relay.health(), (2, 2));
    binary.drop_connection();
    events::wait("server_released", &[("server_id", &id)]);
    assert_eq!(relay.health(), (1, 2));
    phone.drop_connection();
    events::wait("phone_unregistered", &[("conn_id", &conn_id)]);
    assert_eq!(relay.health(), (1, 1));
    let _back = relay.binary(&id);
    assert_eq!(relay.health(), (2, 1));
}

#[test]
fn the_101_is_exact_whatever_was_offered() {
    let relay = Relay::start(&[]);
    let offers = "\r\nOrigin: https://elsewhere.example\r\nSec-WebSocket-Protocol: chat, json\r\n\
                  Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
                  Connection: keep-alive\r\n";
    // Keys and answers from RFC 6455 section 1.3 and a published capture.
    for (key, accept) in [
        ("dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("x3JJHMbDL1EzLkh9GBhXDw==", "HSmrc0sMlYUkAGmm5OPpG2HaGWk="),
    ] {
        let id = fresh_id("exact");
        for head in [binary_head(&id), phone_head(&id)] {
            let head = head.replace("dGhlIHNhbXBsZSBub25jZQ==", key).replacen("\r\n", offers, 1);
            let mut stream = connect(relay.address);
            stream.write_all(head.as_bytes()).unwrap();
            let response = read_head(&mut stream);
            assert_eq!(
                response,
                format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
                )
            );
        }
    }
}

#[test]
fn the_request_target_may_be_absolute_and_have_a_query() {
    let relay = Relay::start(&[]);
    let id = fresh_id("target");
    let target = |head: String, to: &str| head.replacen("/v1/", to, 1);
    let binary_head = target(binary_head(&id), "wss://relay.example:443/v1/");
    let mut binary = Ws::upgrade(relay.address, &binary_head);
    let mut phones = Vec::new();
    for phone_head in [
        target(phone_head(&id), "http://relay.example/v1/"),
        phone_head(&id).replacen("/v1/client", "/v1/client?next=/v1/server", 1),
    ] {
        let seen = events::mark();
        let mut phone = Ws::upgrade(relay.address, &phone_head);
        let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
        phone.send_text("1");
        assert_eq!(binary.read_text(), envelope(&events::field(&line, "conn_id"), "1"));
        phones.push(phone);
    }
}

#[test]
fn a_device_name_may_hold_any_byte_above_ascii_and_is_cut_at_128() {
    let relay = Relay::start(&[]);
    let id = fresh_id("device");
    let _binary = relay.binary(&id);
    let long = "x".repeat(300);
    for (name, logged) in [
        (&b"Anna\x92s phone \xff\x80"[..], "Anna\u{fffd}s phone \u{fffd}\u{fffd}"),
        ("Jörgs Telefon".as_bytes(), "Jörgs Telefon"),
        (long.as_bytes(), &long[..128]),
    ] {
        let head = phone_head(&id);
        let (before, after) = head.split_once("test device").unwrap();
        let seen = events::mark();
        let bytes = [before.as_bytes(), name, after.as_bytes()].concat();
        let mut phone = Ws::upgrade_with(relay.address, &bytes);
        let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
        assert_eq!(events::field(&line, "device_name"), logged);
        phone.sync();
    }
}

#[test]
fn a_head_in_segments_of_one_byte_is_a_head() {
    let relay = Relay::start(&[]);
    let id = fresh_id("bytewise");
    let mut binary = Ws::after_request(send_bytewise(relay.address, &binary_head(&id)));
    let seen = events::mark();
    let mut phone = Ws::after_request(send_bytewise(relay.address, &phone_head(&id)));
    let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&events::field(&line, "conn_id"), "1"));
    let refused = "GET /nowhere HTTP/1.1\r\nHost: relay\r\n\r\n";
    assert_eq!(read_response(&mut send_bytewise(relay.address, refused)), refusal(404, &[]));
}

#[test]
fn frames_of_a_phone_in_the_segment_of_its_head_are_not_lost() {
    let relay = Relay::start(&[]);
    let id = fresh_id("behind");
    let mut binary = relay.binary(&id);
    let large = format!("\"{}\"", "x".repeat(100_000));
    let bytes = [
        phone_head(&id).into_bytes(),
        encode(true, TEXT, b"1"),
        encode(true, PING, b"early"),
        encode(true, TEXT, large.as_bytes()),
        encode(true, TEXT, b"3"),
    ];
    let seen = events::mark();
    let mut phone = Ws::upgrade_with(relay.address, &bytes.concat());
    let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    let conn_id = events::field(&line, "conn_id");
    for message in ["1", &large, "3"] {
        assert_eq!(binary.read_text(), envelope(&conn_id, message));
    }
    let pong = phone.read_frame();
    assert_eq!((pong.opcode, pong.payload), (PONG, b"early".to_vec()));
}

#[test]
fn frames_of_a_binary_in_the_segment_of_its_head_are_not_lost() {
    let relay = Relay::start(&[]);
    let id = fresh_id("behind");
    let (binary, mut phone, conn_id) = relay.pair(&id);
    binary.drop_connection();
    events::wait("server_released", &[("server_id", &id)]);
    let large = format!("\"{}\"", "x".repeat(100_000));
    let bytes = [
        binary_head(&id).into_bytes(),
        encode(true, TEXT, envelope(&conn_id, "1").as_bytes()),
        encode(true, PING, b"early"),
        encode(true, TEXT, envelope(&conn_id, &large).as_bytes()),
        encode(true, TEXT, envelope(&conn_id, "3").as_bytes()),
    ];
    let mut binary = Ws::upgrade_with(relay.address, &bytes.concat());
    for message in ["1", &large, "3"] {
        assert_eq!(phone.read_text(), message);
    }
    let pong = binary.read_frame();
    assert_eq!((pong.opcode, pong.payload), (PONG, b"early".to_vec()));
}

#[test]
fn a_first_frame_cut_anywhere_by_the_end_of_the_heads_segment_is_whole() {
    let relay = Relay::start(&[]);
    let id = fresh_id("cut");
    let mut binary = relay.binary(&id);
    let message = format!("\"{}\"", "x".repeat(200));
    let frame = encode(true, TEXT, message.as_bytes());
    let header = 8;
    for cut in [1, 2, 3, header - 1, header, header + 1, frame.len() - 1] {
        let seen = events::mark();
        let bytes = [phone_head(&id).as_bytes(), &frame[..cut]].concat();
        let mut phone = Ws::upgrade_with(relay.address, &bytes);
        let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
        phone.send_raw(&frame[cut..]);
        let conn_id = events::field(&line, "conn_id");
        assert_eq!(binary.read_text(), envelope(&conn_id, &message), "cut at {cut}");

        binary.prove();
        binary.drop_connection();
        events::wait_after(seen, "server_released", &[("server_id", &id)]);
        let reply = encode(true, TEXT, envelope(&conn_id, &message).as_bytes());
        let bytes = [binary_head(&id).as_bytes(), &reply[..cut]].concat();
        binary = Ws::upgrade_with(relay.address, &bytes);
        binary.send_raw(&reply[cut..]);
        assert_eq!(phone.read_text(), message, "cut at {cut}");
        phone.drop_connection();
        assert!(binary.read_text().contains("close_code"), "cut at {cut}");
    }
}

#[test]
fn a_close_frame_in_the_segment_of_the_head_is_answered() {
    let relay = Relay::start(&[]);
    let id = fresh_id("early-close");
    for head in [binary_head(&id), phone_head(&id)] {
        let close = encode(true, CLOSE, &1000_u16.to_be_bytes());
        let bytes = [head.as_bytes(), &close].concat();
        Ws::upgrade_with(relay.address, &bytes).expect_close(1000, "");
    }
}

/// A response, its fields in an order of their own: on the wire theirs means nothing.
#[derive(PartialEq, Eq, Debug)]
struct Response {
    status: u16,
    fields: Vec<String>,
    body: String,
}

impl Response {
    fn retry_after(&self) -> u64 {
        let value = self.fields.iter().find_map(|field| field.strip_prefix("Retry-After: "));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{self:?}"))
    }
}

const UNKNOWN_PATH: &[u8] = b"GET /nowhere HTTP/1.1\r\nHost: relay\r\n\r\n";

/// What every refusal with this status looks like; `own` are the fields that it has of its own.
fn refusal(status: u16, own: &[&str]) -> Response {
    let mut fields: Vec<_> = ["Connection: close", "Content-Length: 0"]
        .iter()
        .chain(own)
        .map(|f| (*f).to_owned())
        .collect();
    fields.sort();
    Response { status, fields, body: String::new() }
}

/// Requests that are refused for what they are, each with its response.
fn refused_requests(id: &str) -> Vec<(&'static str, Vec<u8>, Response)> {
    let phone = phone_head(id);
    let change = |from: &str, to: &str| {
        assert!(phone.contains(from), "{from}");
        phone.replace(from, to).into_bytes()
    };
    let upgrade_fields = ["Upgrade: websocket", "Sec-WebSocket-Version: 13"];
    let too_many = "X: y\r\n".repeat(101);
    vec![
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00".to_vec(), refusal(400, &[])),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), refusal(400, &[])),
        ("bad field", change("User-Agent:", "User Agent:"), refusal(400, &[])),
        ("8 KiB", change("test device", &"x".repeat(8 * 1024)), refusal(431, &[])),
        (
            "101 fields",
            format!("GET /healthz HTTP/1.1\r\n{too_many}\r\n").into_bytes(),
            refusal(431, &[]),
        ),
        ("unknown path", change("/v1/client", "/v1/clients"), refusal(404, &[])),
        ("method", change("GET", "DELETE"), refusal(405, &["Allow: GET"])),
        ("method", change("GET", "HEAD"), refusal(405, &["Allow: GET"])),
        (
            "POST",
            b"POST /v1/server HTTP/1.1\r\nHost: relay\r\nContent-Length: 2\r\n\r\n{}".to_vec(),
            refusal(405, &["Allow: GET"]),
        ),
        (
            "POST health",
            b"POST /healthz HTTP/1.1\r\nHost: relay\r\nContent-Length: 2\r\n\r\n{}".to_vec(),
            refusal(405, &["Allow: GET, HEAD"]),
        ),
        (
            "plain GET",
            b"GET /v1/client HTTP/1.1\r\nHost: relay\r\n\r\n".to_vec(),
            refusal(400, &[]),
        ),
        ("no Host", change("Host: relay\r\n", ""), refusal(400, &[])),
        (
            "two Hosts",
            change("Host: relay\r\n", "Host: relay\r\nHost: relay\r\n"),
            refusal(400, &[]),
        ),
        (
            "body",
            change("Host: relay\r\n", "Host: relay\r\nContent-Length: 1\r\n"),
            refusal(400, &[]),
        ),
        ("long id", change(id, &"x".repeat(129)), refusal(400, &[])),
        ("no upgrade", change("Upgrade: websocket\r\n", ""), refusal(426, &upgrade_fields)),
        ("keep-alive", change("n: Upgrade", "n: keep-alive"), refusal(426, &upgrade_fields)),
        ("version", change("Version: 13", "Version: 8"), refusal(426, &upgrade_fields)),
        ("key", change("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ=="), refusal(400, &[])),
    ]
}

/// The line of a field in a request head.
fn field_line(head: &str, name: &str) -> String {
    let line = head.lines().find(|line| line.starts_with(&format!("{name}: ")));
    format!("{}\r\n", line.unwrap_or_else(|| panic!("{name} is in {head}")))
}

/// Sends a request as it stands and reads the response to its orderly end.
fn ask(address: Address, request: &[u8]) -> Response {
    parse_response(&exchange(address, request))
}

/// The same; the response as it is on the wire.
fn exchange(address: Address, request: &[u8]) -> String {
    let mut stream = connect(address);
    stream.write_all(request).unwrap();
    read_to_end(&mut stream)
}

fn read_response(stream: &mut Stream) -> Response {
    parse_response(&read_to_end(stream))
}

fn read_to_end(stream: &mut Stream) -> String {
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("the response ends without a reset");
    response
}

fn parse_response(response: &str) -> Response {
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{response:?}"));
    let mut lines = head.split("\r\n").map(str::to_owned);
    let status = lines.next().unwrap();
    let status = status.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let mut fields: Vec<_> = lines.collect();
    fields.sort();
    Response { status: status.expect("a status line"), fields, body: body.to_owned() }
}

/// Reads a response head and not a byte more.
fn read_head(stream: &mut Stream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn send_bytewise(address: Address, head: &str) -> Stream {
    let mut stream = connect(address);
    for byte in head.bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    stream
}

/// Expects that the connection ends without an answer, by an end or by a reset.
fn expect_cut_off(stream: &mut Stream) {
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if !is_timeout(&error) => {}
        other => panic!("{other:?} instead of the end"),
    }
}

/// Writes until the connection is cut off, behind the first megabyte no faster than it takes to go on; how many
/// bytes it took.
fn write_until_cut_off(stream: &mut Stream) -> usize {
    let started = Instant::now();
    let mut written = 0;
    loop {
        match stream.write(&[b'x'; 64 * 1024]) {
            Ok(bytes) => written += bytes,
            Err(error) if is_timeout(&error) => panic!("the connection is still there"),
            Err(_) => return written,
        }
        if written >= 1024 * 1024 {
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(started.elapsed() < deadline(), "the relay reads for ever");
    }
}
