//! The pages and how they are served: nothing of a peer on them, strict headers, bounds.

use std::io::{Read as _, Write as _};

use super::{get, monitored};
use crate::rig::ws::Ws;
use crate::rig::{connect, envelope, events, fresh_id, millis, phone_head, request};

fn head_of(relay: &crate::rig::Relay, request_text: &str) -> String {
    request(relay.metrics.unwrap(), request_text).0
}

#[test]
fn no_page_holds_what_a_peer_sent() {
    let relay = monitored(&[]);
    let id = fresh_id("private-server-id");
    let (mut binary, _phone, conn_id) = relay.pair(&id);
    binary.send_text(&envelope(&conn_id, "\"secret-content\""));
    binary.send_text(r#"{"conn_id":"secret-conn-id","frame":1}"#);
    binary.sync();
    let head = phone_head("secret-unknown-id").replace("test device", "secret-device");
    drop(Ws::upgrade(relay.address, &head));
    relay.request("GET /secret-path HTTP/1.1\r\nHost: secret-host\r\n\r\n");
    for path in ["/", "/metrics", "/status.json"] {
        let page = get(relay.metrics.unwrap(), path);
        for secret in ["secret", "private-server-id", "127.0.0.1", "9.9.9-test", "token"] {
            assert!(!page.contains(secret), "{secret} is on {path}");
        }
    }
}

#[test]
fn a_web_page_whose_name_leads_here_reads_nothing_unless_the_metrics_are_public() {
    let (local, public) = (monitored(&[]), monitored(&["--metrics-public"]));
    for path in ["/", "/metrics", "/status.json"] {
        let text = format!("GET {path} HTTP/1.1\r\nHost: evil.example:9464\r\n\r\n");
        let (head, body) = request(local.metrics.unwrap(), text.as_str());
        assert!(head.starts_with("HTTP/1.1 421 ") && body.is_empty(), "{head}");
        assert!(head_of(&public, &text).starts_with("HTTP/1.1 200 "), "{path}");
        get(local.metrics.unwrap(), path);
    }
}

#[test]
fn the_page_for_people_allows_its_own_style_and_nothing_else() {
    let relay = monitored(&[]);
    let (head, body) = request(relay.metrics.unwrap(), "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let policy =
        head.lines().find_map(|line| line.strip_prefix("Content-Security-Policy: ")).unwrap();
    let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    for forbidden in ["script-src", "unsafe", "*", "http"] {
        assert!(!policy.contains(forbidden), "{policy}");
    }
    assert!(body.contains(&format!("<style nonce=\"{nonce}\">")));
    assert!(
        !head_of(&relay, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").contains(nonce),
        "a nonce is used once"
    );
    for line in ["X-Content-Type-Options: nosniff", "Cache-Control: no-store", "Connection: close"]
    {
        assert!(head.lines().any(|other| other == line), "{line} is not in {head}");
    }
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
}

#[test]
fn each_format_of_the_metrics_goes_to_who_asks_for_it() {
    let relay = monitored(&[]);
    let ask = |accept: &str| {
        request(
            relay.metrics.unwrap(),
            format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{accept}\r\n"),
        )
    };
    let (head, body) =
        ask("Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n");
    assert!(
        head.contains(
            "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"
        )
    );
    assert!(body.ends_with("# EOF\n"));
    let (head, body) = ask("");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(!body.contains("# EOF"));
}

#[test]
fn head_has_no_body_and_other_requests_are_refused_in_words_of_http() {
    let relay = monitored(&[]);
    for path in ["/", "/metrics", "/status.json"] {
        let (head, body) = request(
            relay.metrics.unwrap(),
            format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        );
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(body, "");
    }
    for (request, status) in [
        ("GET /healthz HTTP/1.1\r\n\r\n", "404"),
        ("GET /v1/server HTTP/1.1\r\n\r\n", "404"),
        ("DELETE / HTTP/1.1\r\n\r\n", "405"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("\x16\x03\x01\r\n\r\n", "400"),
        (&format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(8192)), "431"),
    ] {
        let head = head_of(&relay, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {head}");
    }
    let hasty = monitored(&["--header-timeout", &millis(200)]);
    assert!(head_of(&hasty, "GET / HTT").starts_with("HTTP/1.1 408 "));
    let before = super::samples(relay.metrics.unwrap());
    head_of(&relay, "GET /x HTTP/1.1\r\n\r\n");
    let after = super::samples(relay.metrics.unwrap());
    assert!(super::moved(&before, &after).is_empty(), "who asks here is no peer");
}

#[test]
fn nobody_on_the_metrics_listener_keeps_others_from_it_or_from_the_relay() {
    let relay = monitored(&[]);
    let mut idle: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = connect(relay.metrics.unwrap());
            stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            stream
        })
        .collect();
    assert!(get(relay.metrics.unwrap(), "/metrics").contains("pyrycode_relay"));
    let id = fresh_id("unmoved");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
    // The oldest made room for the newcomers.
    let first = &mut idle[0];
    assert!(matches!(first.read(&mut [0; 16]), Ok(0) | Err(_)));
}

#[test]
fn it_is_there_while_the_relay_drains() {
    let relay = monitored(&["--drain-timeout", &millis(3000)]);
    let id = fresh_id("drains");
    let binary = relay.binary(&id);
    let seen = events::mark();
    relay.raise_stop();
    events::wait_after(seen, "server_released", &[("server_id", &id)]);
    assert!(
        get(relay.metrics.unwrap(), "/metrics").contains("pyrycode_relay_connected_binaries 0")
    );
    drop(binary);
    relay.join();
}
