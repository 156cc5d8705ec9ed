//! Each event moves exactly the samples that name it, by one or by what they measure, and no other
//! sample of the whole page.

use std::time::Instant;

use serde_json::Value;

use super::{Samples, expect_moved, get, monitored, samples, wait_until};
use crate::rig::ws::{self, Ws};
use crate::rig::{Relay, UPGRADE, binary_head, connect, envelope, fresh_id, millis, phone_head};
use crate::stop::LateRequests;

/// What a queue adds to a message.
const OVERHEAD: f64 = 64.0;

/// One relay with its samples as they were before the event.
struct Watch<'a> {
    relay: &'a Relay,
    before: Samples,
}

impl<'a> Watch<'a> {
    fn begin(relay: &'a Relay) -> Self {
        Self { relay, before: samples(relay.metrics.unwrap()) }
    }

    /// Expects what moved since the last time, and looks anew from here.
    fn expect(&mut self, what: &str, expected: &[(&str, f64)]) {
        let address = self.relay.metrics.unwrap();
        expect_moved(what, address, &self.before, expected);
        self.before = samples(address);
    }
}

/// Bytes of a relay's text frame of fewer than 65,536 bytes.
fn on_the_wire(text: &str) -> f64 {
    (text.len() + if text.len() < 126 { 2 } else { 4 }) as f64
}

#[test]
fn a_session_moves_connections_messages_and_closes() {
    let relay = monitored(&[]);
    let id = fresh_id("moves");
    let mut watch = Watch::begin(&relay);

    let mut binary = relay.binary(&id);
    watch.expect(
        "a binary claims",
        &[
            ("connected_binaries", 1.0),
            (r#"ws_upgrade_attempts_total{endpoint="server",outcome="accept"}"#, 1.0),
        ],
    );
    let (mut phone, conn_id) = relay.registered_phone(&id);
    watch.expect(
        "a phone joins",
        &[
            ("connected_phones", 1.0),
            (r#"ws_upgrade_attempts_total{endpoint="client",outcome="accept"}"#, 1.0),
        ],
    );
    phone.send_text("[1]");
    let forwarded = envelope(&conn_id, "[1]");
    assert_eq!(binary.read_text(), forwarded);
    watch.expect(
        "a phone's message",
        &[
            (r#"frames_forwarded_total{direction="phone_to_binary"}"#, 1.0),
            (r#"bytes_forwarded_total{direction="phone_to_binary"}"#, on_the_wire(&forwarded)),
        ],
    );
    for _ in 0..3 {
        binary.send_text(&envelope(&conn_id, "\"two\""));
    }
    watch.expect(
        "three messages of a binary",
        &[
            (r#"frames_forwarded_total{direction="binary_to_phone"}"#, 3.0),
            (r#"bytes_forwarded_total{direction="binary_to_phone"}"#, 3.0 * on_the_wire("\"two\"")),
        ],
    );
    phone.send_ping(b"x");
    binary.send_ping(b"y");
    watch.expect("pings", &[]);

    phone.send_close(4999, "");
    watch.expect(
        "a phone closes with a code of its own, and the binary is told",
        &[
            ("connected_phones", -1.0),
            (r#"closes_total{endpoint="client",side="phone",code="other"}"#, 1.0),
        ],
    );
    for (what, label, end) in [
        (
            "a normal close",
            "1000",
            (|phone: Ws| {
                let mut phone = phone;
                phone.send_close(1000, "");
            }) as fn(Ws),
        ),
        ("a close without a code", "1005", |mut phone| phone.send_frame(true, 0x8, b"")),
        ("no close at all", "1006", Ws::drop_connection),
    ] {
        let phone = relay.registered_phone(&id).0;
        watch.before = samples(relay.metrics.unwrap());
        end(phone);
        let closes = format!(r#"closes_total{{endpoint="client",side="phone",code="{label}"}}"#);
        watch.expect(what, &[("connected_phones", -1.0), (&closes, 1.0)]);
    }
    for (code, label) in [(4401, "4401"), (4777, "other")] {
        let (_phone, conn_id) = relay.registered_phone(&id);
        watch.before = samples(relay.metrics.unwrap());
        binary.send_text(&format!(r#"{{"conn_id":"{conn_id}","close_code":{code}}}"#));
        let closes = format!(r#"closes_total{{endpoint="client",side="binary",code="{label}"}}"#);
        watch.expect("a directive", &[("connected_phones", -1.0), (&closes, 1.0)]);
    }
    let mut phone = relay.registered_phone(&id).0;
    watch.before = samples(relay.metrics.unwrap());
    phone.send_text("no JSON");
    watch.expect(
        "a message that is not JSON",
        &[
            ("connected_phones", -1.0),
            (r#"closes_total{endpoint="client",side="relay",code="1007"}"#, 1.0),
        ],
    );
    binary.send_close(1001, "");
    watch.expect(
        "a binary goes away",
        &[
            ("connected_binaries", -1.0),
            ("slots_in_grace", 1.0),
            (r#"closes_total{endpoint="server",side="binary",code="1001"}"#, 1.0),
        ],
    );
}

#[test]
fn a_grace_window_moves_what_is_kept_and_the_reclaims() {
    let relay = monitored(&[]);
    let id = fresh_id("window");
    let (binary, mut phone, conn_id) = relay.pair(&id);
    let mut watch = Watch::begin(&relay);
    binary.drop_connection();
    watch.expect(
        "a binary's connection breaks",
        &[
            ("connected_binaries", -1.0),
            ("slots_in_grace", 1.0),
            (r#"closes_total{endpoint="server",side="binary",code="1006"}"#, 1.0),
        ],
    );
    phone.send_text("1");
    let kept = on_the_wire(&envelope(&conn_id, "1"));
    watch.expect(
        "a message is kept",
        &[
            ("grace_kept_messages", 1.0),
            (r#"queued_bytes{direction="phone_to_binary"}"#, kept + OVERHEAD),
        ],
    );
    let mut binary = relay.binary(&id);
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
    watch.expect(
        "the binary is back",
        &[
            ("connected_binaries", 1.0),
            ("slots_in_grace", -1.0),
            ("reclaims_total", 1.0),
            (r#"reclaim_phones_total{outcome="kept"}"#, 1.0),
            (r#"ws_upgrade_attempts_total{endpoint="server",outcome="accept"}"#, 1.0),
            ("grace_kept_messages", -1.0),
            (r#"queued_bytes{direction="phone_to_binary"}"#, -kept - OVERHEAD),
            (r#"frames_forwarded_total{direction="phone_to_binary"}"#, 1.0),
            (r#"bytes_forwarded_total{direction="phone_to_binary"}"#, kept),
        ],
    );
}

#[test]
fn a_window_that_passes_moves_the_expiries_and_closes_the_phones() {
    let relay = monitored(&["--grace", &millis(200)]);
    let id = fresh_id("passes");
    let (binary, _phone, _) = relay.pair(&id);
    let mut watch = Watch::begin(&relay);
    binary.drop_connection();
    watch.expect(
        "the window passes",
        &[
            ("connected_binaries", -1.0),
            (r#"closes_total{endpoint="server",side="binary",code="1006"}"#, 1.0),
            ("grace_expiries_total", 1.0),
            ("connected_phones", -1.0),
            (r#"closes_total{endpoint="client",side="relay",code="4404"}"#, 1.0),
        ],
    );
}

#[test]
fn a_contest_moves_a_conflict_or_a_takeover() {
    let relay = monitored(&["--probe-timeout", &millis(1200)]);
    let id = fresh_id("contest");
    let mut holder = relay.binary(&id);
    let mut watch = Watch::begin(&relay);
    let second = std::thread::scope(|scope| {
        let answers = scope.spawn(|| {
            let ping = holder.read_frame();
            assert_eq!(ping.opcode, ws::PING);
        });
        let second = relay.binary(&id);
        answers.join().unwrap();
        second
    });
    watch.expect(
        "the holder answers",
        &[
            (r#"ws_upgrade_attempts_total{endpoint="server",outcome="reject_409"}"#, 1.0),
            (r#"register_failures_total{kind="server_in_use"}"#, 1.0),
            (r#"closes_total{endpoint="server",side="relay",code="4409"}"#, 1.0),
        ],
    );
    drop(second);
    // Nobody reads for the holder any more.
    let _third = relay.binary(&id);
    watch.expect(
        "the holder is silent",
        &[
            ("takeovers_total", 1.0),
            (r#"ws_upgrade_attempts_total{endpoint="server",outcome="accept"}"#, 1.0),
            (r#"closes_total{endpoint="server",side="relay",code="1011"}"#, 1.0),
        ],
    );
}

#[test]
fn a_phone_that_cannot_register_moves_its_own_kind() {
    let relay = monitored(&["--max-phones", "1"]);
    let id = fresh_id("full");
    let (_binary, _phone, _) = relay.pair(&id);
    let mut watch = Watch::begin(&relay);
    let _second = relay.phone(&id);
    watch.expect(
        "too many phones",
        &[
            (r#"ws_upgrade_attempts_total{endpoint="client",outcome="reject_429"}"#, 1.0),
            (r#"register_failures_total{kind="phones_at_cap"}"#, 1.0),
            (r#"closes_total{endpoint="client",side="relay",code="4429"}"#, 1.0),
        ],
    );
    let _nowhere = relay.phone("nobody");
    watch.expect(
        "no server",
        &[
            (r#"ws_upgrade_attempts_total{endpoint="client",outcome="reject_404"}"#, 1.0),
            (r#"register_failures_total{kind="no_server"}"#, 1.0),
            (r#"closes_total{endpoint="client",side="relay",code="4404"}"#, 1.0),
        ],
    );
}

#[test]
fn every_refusal_moves_its_own_reason() {
    let relay = monitored(&["--max-connections", "1"]);
    let holder = relay.binary(&fresh_id("only"));
    let mut watch = Watch::begin(&relay);
    let get = |path: &str, fields: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
    };
    let phone = phone_head("x");
    for (what, request, refused, outcome) in [
        ("no HTTP", "\x16\x03\r\n\r\n".to_owned(), "malformed_head", None),
        ("too large", get("/", &format!("X: {}\r\n", "x".repeat(9000))), "head_too_large", None),
        ("elsewhere", get("/x", ""), "unknown_path", None),
        ("a method", phone.replace("GET", "PUT"), "method", None),
        (
            "no header",
            get("/v1/server", UPGRADE),
            "header_gate",
            Some(("server", "reject_headers")),
        ),
        (
            "no upgrade",
            phone.replace("Upgrade: websocket\r\n", ""),
            "upgrade_required",
            Some(("client", "reject_upgrade")),
        ),
        ("no key", phone.replace("dGhl", "!!!!"), "bad_key", Some(("client", "reject_upgrade"))),
        ("one too many", phone.clone(), "connection_cap", Some(("client", "reject_busy"))),
        (
            "one binary too many",
            binary_head("y"),
            "connection_cap",
            Some(("server", "reject_busy")),
        ),
    ] {
        let (head, _) = relay.request(&request);
        assert!(head.starts_with("HTTP/1.1 4") || head.starts_with("HTTP/1.1 503"), "{head}");
        let refused = format!(r#"refused_requests_total{{reason="{refused}"}}"#);
        let mut expected = vec![(refused, 1.0)];
        if let Some((endpoint, outcome)) = outcome {
            let labels = format!(r#"endpoint="{endpoint}",outcome="{outcome}""#);
            expected.push((format!("ws_upgrade_attempts_total{{{labels}}}"), 1.0));
        }
        let expected: Vec<_> = expected.iter().map(|(name, by)| (name.as_str(), *by)).collect();
        watch.expect(what, &expected);
    }
    relay.health();
    drop(connect(relay.address));
    watch.expect("the health page, and nothing asked at all", &[]);
    drop(holder);

    let hasty = monitored(&["--header-timeout", &millis(200)]);
    let mut watch = Watch::begin(&hasty);
    let (head, _) = hasty.request("GET / HTTP/1.1\r\n");
    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    watch.expect("too slow", &[(r#"refused_requests_total{reason="head_timeout"}"#, 1.0)]);
}

#[test]
fn a_probe_under_way_and_too_many_attempts_are_refusals_too() {
    let relay = monitored(&["--rate-limit", "1/min", "--rate-burst", "3"]);
    let id = fresh_id("probed");
    let _holder = relay.binary(&id);
    let _second = relay.binary(&id);
    let mut watch = Watch::begin(&relay);
    assert!(relay.request(binary_head(&id)).0.starts_with("HTTP/1.1 503 "));
    watch.expect(
        "a probe is under way",
        &[
            (r#"refused_requests_total{reason="probe_under_way"}"#, 1.0),
            (r#"ws_upgrade_attempts_total{endpoint="server",outcome="reject_busy"}"#, 1.0),
        ],
    );
    assert!(relay.request(phone_head(&id)).0.starts_with("HTTP/1.1 429 "));
    watch.expect(
        "too many attempts",
        &[
            (r#"refused_requests_total{reason="rate_limit"}"#, 1.0),
            (r#"ws_upgrade_attempts_total{endpoint="client",outcome="reject_rate_limit"}"#, 1.0),
            (r#"register_failures_total{kind="ratelimit"}"#, 1.0),
        ],
    );
}

#[test]
fn limits_by_address_and_the_allow_list_move_their_own_reasons() {
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&list, "allowed\n").unwrap();
    let listed = list.path().to_str().unwrap();
    let forged =
        binary_head("allowed").replace("\r\n\r\n", "\r\nX-Forwarded-For: nonsense\r\n\r\n");
    for (option, value, request, status, reason, outcome) in [
        (
            "--max-connections-per-ip",
            "1",
            phone_head("allowed"),
            "503",
            "source_cap",
            r#"endpoint="client",outcome="reject_busy""#,
        ),
        (
            "--allow-server",
            listed,
            binary_head("other"),
            "403",
            "not_allowed",
            r#"endpoint="server",outcome="reject_403""#,
        ),
        (
            "--trusted-proxy",
            "127.0.0.1",
            forged,
            "400",
            "bad_forwarding",
            r#"endpoint="server",outcome="reject_headers""#,
        ),
    ] {
        let relay = monitored(&[option, value]);
        let _holder = (option != "--trusted-proxy").then(|| relay.binary("allowed"));
        let mut watch = Watch::begin(&relay);
        let (head, _) = relay.request(&request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{option}: {head}");
        let reason = format!(r#"refused_requests_total{{reason="{reason}"}}"#);
        let outcome = format!("ws_upgrade_attempts_total{{{outcome}}}");
        let mut expected = vec![(&*reason, 1.0), (&*outcome, 1.0)];
        expected.extend((option == "--trusted-proxy").then_some(("proxy_faults_total", 1.0)));
        watch.expect(option, &expected);
    }
}

#[test]
fn a_request_that_comes_too_late_for_a_stop_is_a_refusal_too() {
    let reason = r#"pyrycode_relay_refused_requests_total{reason="stopping"}"#;
    let outcome =
        r#"pyrycode_relay_ws_upgrade_attempts_total{endpoint="server",outcome="reject_busy"}"#;
    loop {
        let relay = monitored(&["--drain-timeout", "100s", "--max-queue-bytes", "8MiB"]);
        let id = fresh_id("late");
        let mut binary = relay.binary(&id);
        // The relay, and with it its page, stays for a phone that does not take what it is sent.
        let (stalled, conn_id) = relay.narrow_phone(&id);
        for _ in 0..50 {
            binary.send_text(&envelope(&conn_id, &format!("\"{}\"", "x".repeat(100_000))));
        }
        let late = LateRequests::begin(&relay, &[binary_head(&fresh_id("late"))]);
        binary.sync();
        let before = samples(relay.metrics.unwrap());
        let stopped = Instant::now();
        relay.raise_stop();
        assert_eq!(binary.read().opcode, ws::CLOSE);
        binary.send_close(1001, "");
        if let Some(answers) = late.complete(stopped) {
            assert!(answers[0].starts_with("HTTP/1.1 503 "), "{answers:?}");
            let refused = |now: &Samples| now[reason] == 1.0 && now[outcome] == 1.0;
            let now = wait_until("the request is refused", relay.metrics.unwrap(), refused);
            let moved = super::moved(&before, &now).into_keys();
            // What the stop itself moves, and a queue that ends.
            let by_the_stop = ["binary_to_phone", r#"code="1001""#, "connected_", "slots_in_grace"];
            let others: Vec<_> =
                moved.filter(|name| !by_the_stop.iter().any(|part| name.contains(part))).collect();
            assert_eq!(others, [reason, outcome]);
            return;
        }
        drop(stalled);
        relay.join();
    }
}

#[test]
fn every_dropped_envelope_moves_its_own_kind() {
    let relay = monitored(&[]);
    let id = fresh_id("dropped");
    let mut binary = relay.binary(&id);
    let mut watch = Watch::begin(&relay);
    let unknown = format!("client-{id}-0123456789abcdef");
    for (envelope, kind) in [
        ("[]".to_owned(), "not_an_object"),
        (r#"{"type":"push_wake"}"#.to_owned(), "conn_id"),
        (format!(r#"{{"conn_id":"{unknown}","close_code":-1}}"#), "close_code"),
        (format!(r#"{{"conn_id":"{unknown}"}}"#), "empty"),
        // Answered with a notice, which is no forwarded message.
        (envelope(&unknown, "1"), "unknown_phone"),
    ] {
        binary.send_text(&envelope);
        let kind = format!(r#"dropped_envelopes_total{{kind="{kind}"}}"#);
        watch.expect(&envelope, &[(&kind, 1.0)]);
    }
    binary.send_frame(true, ws::BINARY, b"\xff");
    watch.expect("not text", &[(r#"dropped_envelopes_total{kind="not_text"}"#, 1.0)]);
}

#[test]
fn what_is_queued_for_a_phone_is_what_was_sent_and_not_forwarded() {
    let relay = monitored(&[]);
    let id = fresh_id("queued");
    let mut binary = relay.binary(&id);
    let (phone, conn_id) = relay.narrow_phone(&id);
    let before = samples(relay.metrics.unwrap());
    let frame = format!("\"{}\"", "x".repeat(60_000));
    let count = 100_u32;
    for _ in 0..count {
        binary.send_text(&envelope(&conn_id, &frame));
    }
    binary.sync();
    let forwarded = r#"pyrycode_relay_frames_forwarded_total{direction="binary_to_phone"}"#;
    let queued = r#"pyrycode_relay_queued_bytes{direction="binary_to_phone"}"#;
    let adds_up = |now: &Samples| {
        let left = f64::from(count) - (now[forwarded] - before[forwarded]);
        left > 10.0 && now[queued] == left * (on_the_wire(&frame) + OVERHEAD)
    };
    let now = wait_until("the queue is what is left", relay.metrics.unwrap(), adds_up);
    assert!(now["pyrycode_relay_memory_held_bytes"] >= now[queued]);
    phone.drop_connection();
    let gone =
        |now: &Samples| now[queued] == 0.0 && now["pyrycode_relay_memory_held_bytes"] < 10_000.0;
    wait_until("nothing is queued for nobody", relay.metrics.unwrap(), gone);
}

#[test]
fn a_phone_closed_for_the_budget_moves_the_evictions() {
    let relay = monitored(&["--max-queue-bytes", "2MiB", "--memory-budget", "3MiB"]);
    let id = fresh_id("budget");
    let mut binary = relay.binary(&id);
    let (first, first_id) = relay.narrow_phone(&id);
    let (second, second_id) = relay.narrow_phone(&id);
    let watch = Watch::begin(&relay);
    let frame = format!("\"{}\"", "x".repeat(100_000));
    // Far more than the kernel takes off the two queues, and the first one's is the longer.
    for conn_id in [&first_id, &second_id] {
        for _ in 0..19 {
            binary.send_text(&envelope(conn_id, &frame));
        }
    }
    let evictions = "pyrycode_relay_budget_evictions_total";
    let closes = r#"pyrycode_relay_closes_total{endpoint="client",side="relay",code="1013"}"#;
    let evicted = |now: &Samples| now[evictions] == 1.0 && now[closes] == 1.0;
    let now = wait_until("one phone is closed", relay.metrics.unwrap(), evicted);
    let moved = super::moved(&watch.before, &now);
    let others: Vec<_> = moved
        .keys()
        .filter(|name| {
            !name.contains("binary_to_phone") && ![evictions, closes].contains(&name.as_str())
        })
        .collect();
    assert_eq!(others, ["pyrycode_relay_connected_phones"], "{moved:#?}");
    drop((first, second));
}

#[test]
fn a_message_that_is_not_completed_moves_the_closes_of_the_relay() {
    let relay = monitored(&["--message-timeout", &millis(200)]);
    let (_binary, mut phone, _) = relay.pair(&fresh_id("begun"));
    let mut watch = Watch::begin(&relay);
    phone.send_raw(&[0x81]);
    watch.expect(
        "a message that is not completed",
        &[
            ("connected_phones", -1.0),
            (r#"closes_total{endpoint="client",side="relay",code="1008"}"#, 1.0),
        ],
    );
}

#[test]
fn a_peer_that_falls_silent_moves_the_closes_of_the_relay() {
    let times = ["--heartbeat-interval", &millis(200), "--heartbeat-timeout", &millis(200)];
    let relay = monitored(&times);
    let mut watch = Watch::begin(&relay);
    // It reads nothing, so it answers no ping.
    let _silent = relay.binary(&fresh_id("silent"));
    watch.expect(
        "a binary comes and says nothing",
        &[
            (r#"ws_upgrade_attempts_total{endpoint="server",outcome="accept"}"#, 1.0),
            ("slots_in_grace", 1.0),
            (r#"closes_total{endpoint="server",side="relay",code="1011"}"#, 1.0),
        ],
    );
}

#[test]
fn the_page_is_the_committed_list() {
    let relay = monitored(&[]);
    let page = get(relay.metrics.unwrap(), "/metrics");
    let committed = include_str!("../../../docs/monitoring/metrics.md");
    let listed: Vec<_> = committed.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(listed.len() > 20, "the list is there");
    let mut live = Vec::new();
    for described in page.split("# HELP ").skip(1) {
        let (help, rest) = described.split_once('\n').unwrap();
        let (name, meaning) = help.split_once(' ').unwrap();
        let (kind, samples) = rest.split_once('\n').unwrap();
        let kind = kind.rsplit(' ').next().unwrap();
        live.push(format!("| `{name}` | {kind} | {} | {meaning} |", labels(name, samples)));
    }
    live.sort();
    assert_eq!(
        live,
        listed,
        "docs/monitoring/metrics.md is the page; the live lines are\n{}",
        live.join("\n")
    );
}

/// The labels of a metric's samples, each with its values.
fn labels(name: &str, samples: &str) -> String {
    let mut labels: Vec<(String, Vec<String>)> = Vec::new();
    for sample in samples.lines() {
        let Some((_, set)) = sample.split_once('{') else { continue };
        let (set, _) = set.split_once('}').unwrap();
        for pair in set.split("\",") {
            let (label, value) = pair.trim_end_matches('"').split_once("=\"").unwrap();
            let known = labels.iter().position(|(known, _)| known == label);
            let at = known.unwrap_or_else(|| {
                labels.push((label.to_owned(), Vec::new()));
                labels.len() - 1
            });
            if !labels[at].1.contains(&value.to_owned()) {
                labels[at].1.push(value.to_owned());
            }
        }
    }
    let told = labels.into_iter().map(|(label, values)| match name {
        // Differ from build to build.
        _ if name.ends_with("_info") => format!("`{label}`"),
        _ => format!("`{label}`: {}", values.join(", ")),
    });
    let told: Vec<_> = told.collect();
    if told.is_empty() { "–".to_owned() } else { told.join("; ") }
}

#[test]
fn the_status_has_the_same_figures() {
    let relay = monitored(&[]);
    let id = fresh_id("figures");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
    let _ = relay.phone("nobody");
    relay.request("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let address = relay.metrics.unwrap();
    let now = wait_until("all is counted", address, |now| {
        now[r#"pyrycode_relay_register_failures_total{kind="no_server"}"#] == 1.0
            && now[r#"pyrycode_relay_refused_requests_total{reason="unknown_path"}"#] == 1.0
    });
    let status: Value = serde_json::from_str(&get(address, "/status.json")).unwrap();
    assert_eq!(status["status"], "ok", "{status}");
    assert_eq!(status["connected_binaries"], 1);
    assert_eq!(status["connected_phones"], 1);
    assert_eq!(status["slots_in_grace"], 0);
    assert_eq!(status["refusals_last_hour"]["no_server"], 1);
    assert_eq!(status["refusals_last_hour"]["unknown_path"], 1);
    assert_eq!(status["refusals_last_hour"]["malformed_head"], 0);
    assert_eq!(status["memory"]["budget_bytes"], 64 << 20);
    assert_eq!(status["history"]["hour"]["messages"], serde_json::json!([1]));
    assert_eq!(status["history"]["day"]["phones"], serde_json::json!([1]));
    assert!(status["messages_per_second"].as_f64().unwrap() > 0.0, "{status}");
    assert_eq!(now["pyrycode_relay_memory_budget_bytes"], f64::from(64 << 20));
    assert_eq!(
        now["pyrycode_relay_event_loop_lag_seconds_bucket{le=\"+Inf\"}"],
        now["pyrycode_relay_event_loop_lag_seconds_count"]
    );
    assert!(now["pyrycode_relay_event_loop_lag_seconds_count"] > 1.0);
}
