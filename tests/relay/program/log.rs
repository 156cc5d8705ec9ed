//! The lines of the log: their names, their fields, and what never stands in them.

use std::io::{Read as _, Write as _};

use super::{Line, Running, answers, program};
use crate::rig::ws::{self, Ws};
use crate::rig::{UPGRADE, connect, envelope, fresh_id, front, millis, notice, phone_head};

#[test]
fn the_events_have_the_names_and_the_fields_of_the_contract() {
    let relay = Running::start(&["--grace", &millis(600), "--probe-timeout", &millis(1500)]);
    let id = fresh_id("logged");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
    binary.prove();
    let mut loser = relay.binary(&id);
    // Answers the probe.
    assert_eq!(binary.read_frame().opcode, ws::PING);
    loser.expect_close(4409, "server-id already claimed");
    binary.answers_pings = false;
    let taking_over = relay.binary(&id);
    relay.wait("server_id_takeover");
    relay.wait("phone_unregistered");
    drop((binary, phone));
    let other = relay.phone(&id);
    relay.wait_nth("phone_registered", 2);
    taking_over.drop_connection();
    relay.wait("server_expired");
    relay.wait_nth("phone_unregistered", 2);
    drop(other);
    relay.phone(&id).expect_close(4404, "no server with that id");
    let log = relay.stop();

    let lines: Vec<_> = log.iter().map(|line| Line::parse(line)).collect();
    for (event, fields) in [
        ("server_claimed", &["server_id", "binary_version", "remote"][..]),
        ("server_id_conflict", &["server_id", "remote"]),
        ("server_id_takeover", &["server_id", "remote"]),
        ("server_reclaimed", &["server_id", "kept", "closed", "reason"]),
        ("server_released", &["server_id"]),
        ("server_expired", &["server_id", "phones"]),
        ("phone_registered", &["server_id", "conn_id", "device_name", "remote"]),
        ("phone_register_no_server", &["server_id", "remote"]),
        ("phone_unregistered", &["server_id", "conn_id", "reason"]),
    ] {
        let found: Vec<_> = lines.iter().filter(|line| line.is(event)).collect();
        assert!(!found.is_empty(), "no {event}");
        for line in found {
            assert_eq!(line.keys()[..3], ["time", "level", "event"], "{line:?}");
            assert_eq!(&line.keys()[3..], fields, "{line:?}");
            assert_eq!(line.field("server_id"), id);
            assert_eq!(line.field("level"), "info");
        }
    }
    let first = |event: &str| lines.iter().find(|line| line.is(event)).unwrap();
    assert_eq!(first("server_claimed").field("binary_version"), "9.9.9-test");
    assert_eq!(first("server_claimed").field("remote"), "127.0.0.1");
    assert_eq!(first("phone_registered").field("device_name"), "test device");
    assert_eq!(first("phone_unregistered").field("conn_id"), conn_id);
    assert_eq!(first("phone_unregistered").field("reason"), "binary reclaimed server-id");
    let reclaimed = first("server_reclaimed");
    let fields = ["kept", "closed", "reason"].map(|field| reclaimed.field(field));
    assert_eq!(fields, ["0", "1", "silent"]);
    assert_eq!(first("server_expired").field("phones"), "1");
}

#[test]
fn no_token_no_content_and_no_head_is_logged_at_any_level() {
    let mut by_variable = program(&[front(), &["--rate-limit", "off"]].concat());
    by_variable.env("RUST_LOG", "trace");
    let options = ["--rate-limit", "off", "--log-level", "trace", "--max-frame-bytes", "16KiB"];
    let by_option = program(&[front(), &options].concat());
    for command in [by_option, by_variable] {
        let relay = Running::spawn(command);
        say_marked_things(&relay);
        let log = relay.stop();
        for event in ["connection_opened", "refused", "envelope_dropped", "connection_closed"] {
            assert!(log.iter().any(|line| line.contains(&format!(" event={event} "))), "{event}");
        }
        for line in &log {
            let lower = line.to_lowercase();
            for marker in ["secret", "736563726574", "c2vjcmv0", "115, 101, 99, 114"] {
                assert!(!lower.contains(marker), "{line}");
            }
        }
    }
}

/// Uses the relay in every way that brings it a peer's text, each time with `secret` in it.
fn say_marked_things(relay: &Running) {
    let upgrade = |path: &str, fields: &str| {
        format!("GET {path} HTTP/1.1\r\n{UPGRADE}X-Pyrycode-Server: box\r\n{fields}\r\n")
    };
    let binary_fields = "X-Pyrycode-Version: 1\r\nUser-Agent: secret-agent\r\nCookie: secret\r\n";
    let phone_fields = "X-Pyrycode-Token: secret-token\r\nUser-Agent: secret-agent\r\n\
                        Authorization: Bearer secret\r\nSec-WebSocket-Protocol: secret\r\n";
    let binary = || Ws::upgrade(relay.address(), &upgrade("/v1/server?q=secret", binary_fields));
    let phone = || Ws::upgrade(relay.address(), &upgrade("/v1/client?q=secret", phone_fields));

    // Messages both ways, whole and in fragments.
    let mut holder = binary();
    let mut first = phone();
    let conn_id = relay.wait("phone_registered").field("conn_id").to_owned();
    first.send_text("\"secret message\"");
    assert_eq!(holder.read_text(), envelope(&conn_id, "\"secret message\""));
    first.send_frame(false, ws::TEXT, b"\"secret ");
    first.send_ping(b"secret ping");
    first.send_frame(true, ws::CONTINUATION, b"fragment\"");
    assert_eq!(holder.read_text(), envelope(&conn_id, "\"secret fragment\""));
    holder.send_text(&envelope(&conn_id, "\"secret answer\""));
    loop {
        let frame = first.read();
        if frame.opcode == ws::TEXT {
            break;
        }
    }

    // Envelopes that are dropped.
    for malformed in [
        "secret",
        r#"{"conn_id":"secret","frame":"secret"}"#,
        r#"{"conn_id":["secret"],"frame":"secret"}"#,
        r#"{"type":"push_wake","secret":"secret"}"#,
        r#"{"conn_id":"client-box-5ec2e75ec2e75ec2","frame":"secret"}"#,
        r#"{"conn_id":"secret","close_code":"secret"}"#,
    ] {
        holder.send_text(malformed);
    }
    holder.send_frame(true, ws::BINARY, b"secret \xff");
    holder.send_frame(true, ws::PONG, b"secret pong");
    assert_eq!(holder.read_text(), notice("client-box-5ec2e75ec2e75ec2", 1001));
    holder.sync();

    // Phones that end badly, or with words.
    let endings: [&dyn Fn(&mut Ws); 6] = [
        &|ws| ws.send_text("secret and no JSON"),
        &|ws| ws.send_frame(true, ws::TEXT, b"\"secret \xff\""),
        &|ws| ws.send_frame(true, 0x3, b"secret"),
        &|ws| ws.send_text(&format!("\"secret{}\"", " secret".repeat(100_000))),
        &|ws| ws.send_raw(b"\x81\x06secret"),
        &|ws| ws.send_close(4000, "secret reason"),
    ];
    for (count, ending) in endings.iter().enumerate() {
        let mut ws = phone();
        relay.wait_nth("phone_registered", count + 2);
        ending(&mut ws);
        ws.expect_gone();
        relay.wait_nth("phone_unregistered", count + 1);
    }

    // Requests that are refused, and one that is never finished.
    for request in [
        "secret\r\n\r\n".to_owned(),
        "GET /secret HTTP/1.1\r\nHost: relay\r\n\r\n".to_owned(),
        "SECRET /v1/server HTTP/1.1\r\nHost: secret\r\n\r\n".to_owned(),
        upgrade("/v1/client", "X-Pyrycode-Token: \r\nCookie: secret\r\nUser-Agent: secret\r\n"),
        upgrade("/v1/client", &format!("X-Pyrycode-Token: {}\r\n", "secret".repeat(2000))),
        upgrade("/v1/client", phone_fields).replace("box", "a secret box"),
        "GET /v1/client HTTP/1.1\r\nX-Pyrycode-Token: secret".to_owned(),
    ] {
        let mut stream = connect(relay.address());
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // A reset is as good an end as any.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    holder.send_close(1000, "secret farewell");
    holder.expect_gone();
    relay.wait("server_released");
}

#[test]
fn what_a_peer_calls_itself_forges_neither_a_line_nor_a_field() {
    let relay = Running::start(&[]);
    let names: [&[u8]; 8] = [
        b"\" event=\"forged",
        b"x event=forged level=error",
        b"back\\slash \\n \\\"",
        b"a\tb",
        // An escape sequence for terminals that know C1, and a turn of the writing direction.
        "\u{9b}31m\u{202e}\u{2028}".as_bytes(),
        b"Zo\xeb \x80\xff",
        "Zoë's 📱".as_bytes(),
        b"",
    ];
    let expected = [
        "\" event=\"forged",
        "x event=forged level=error",
        "back\\slash \\n \\\"",
        "a\tb",
        "\u{9b}31m\u{202e}\u{2028}",
        "Zo\u{fffd} \u{fffd}\u{fffd}",
        "Zoë's 📱",
        "",
    ];
    let binary = relay.binary("names");
    for (count, (name, expected)) in names.iter().zip(expected).enumerate() {
        let head = phone_head("names");
        let (before, behind) = head.split_once("test device").unwrap();
        let head = [before.as_bytes(), name, behind.as_bytes()].concat();
        drop(Ws::upgrade_with(relay.address(), &head));
        let line = relay.wait_nth("phone_registered", count + 1);
        assert_eq!(line.field("device_name"), expected);
        assert_eq!(line.keys().len(), 7, "{line:?}");
    }
    // A server-id is no less a peer's text.
    let id = r#"x"level=error\"#;
    drop(relay.binary(id));
    assert_eq!(relay.wait_nth("server_claimed", 2).field("server_id"), id);
    drop(binary);
    let log = relay.stop();
    assert!(log.iter().all(|line| line.bytes().all(|byte| byte >= b' ')), "{log:#?}");
    for hidden in ["\u{9b}", "\u{202e}", "\u{2028}"] {
        assert!(!log.iter().any(|line| line.contains(hidden)), "{log:#?}");
    }
    assert!(!log.iter().any(|line| Line::parse(line).is("forged")), "{log:#?}");
}

#[test]
fn rust_log_is_heeded_and_the_option_wins() {
    let start = |filter: &str, arguments: &[&str]| {
        let mut command = program(front());
        command.args(arguments).env("RUST_LOG", filter);
        Running::spawn(command)
    };
    let log = |relay: Running| {
        drop(relay.binary("heard"));
        // Ends only when its connection has been seen.
        relay.stop().join("\n")
    };
    let debug = log(start("debug", &[]));
    assert!(debug.contains("event=connection_opened") && debug.contains("event=server_claimed"));
    let debug_off = log(start("debug", &["--log-level", "info"]));
    assert!(!debug_off.contains("level=debug") && debug_off.contains("event=server_claimed"));
    let by_target = log(start("info,pyrycode_relay::telemetry::events=off", &[]));
    assert!(!by_target.contains("server_claimed") && by_target.contains("event=stopped"));
}

#[test]
fn a_bad_rust_log_is_warned_about_and_info_stays() {
    let mut command = program(front());
    command.env("RUST_LOG", "pyrycode_relay=loud");
    let relay = Running::spawn(command);
    let warning = relay.wait("RUST_LOG is ignored");
    assert_eq!(warning.field("level"), "warn");
    assert!(warning.field("reason").contains("loud"), "{warning:?}");
    assert!(answers(relay.address()));
}
