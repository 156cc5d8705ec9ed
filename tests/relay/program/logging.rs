//! How the log is written: its formats, what is summed up, and a reader that does not read.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::Instant;

use serde_json::Value as Json;

use super::{Line, Running, answers, program, program_in_shell, run, signal, text, unlimited};
use crate::rig::ws::Ws;
use crate::rig::{Address, Plain, binary_head, connect, deadline, fresh_id, phone_head, plain};

#[test]
fn json_is_one_object_a_line_and_no_name_forges_another() {
    let name = "\",\"event\":\"forged\"}\\\u{9b}31m\u{202e}";
    let mut command = program(&unlimited());
    command.args(["--log-format", "json"]).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut next = move || {
        let line = lines.next()?.unwrap();
        assert!(!line.chars().any(|sign| sign.is_control() || sign == '\u{202e}'), "{line:?}");
        let object: Json = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        let members = object.as_object().unwrap().clone();
        assert!(members["time"].is_string() && members["level"].is_string(), "{line}");
        assert_ne!(members["event"], "forged", "{line}");
        Some(members)
    };
    let mut wait = |event: &str| loop {
        let members = next().unwrap_or_else(|| panic!("no {event}"));
        if members["event"] == event {
            return members;
        }
    };
    let limits = wait("limits");
    assert_eq!((&limits["max_phones"], &limits["rate_limit"]), (&16.into(), &"off".into()));
    let listening = wait("listening");
    let at = listening["address"].as_str().unwrap().parse().unwrap();
    let address = Address { at, is_tls: listening.get("tls").is_some_and(|tls| tls == true) };
    let binary = Ws::upgrade(address, &binary_head("12"));
    assert_eq!(wait("server_claimed")["server_id"], "12", "text stays text");
    let head = phone_head("12").replace("test device", name);
    let phone = Ws::upgrade(address, &head);
    let registered = wait("phone_registered");
    assert_eq!((&registered["device_name"], registered.len()), (&name.into(), 7));
    drop((binary, phone));
    signal(child.id(), "TERM");
    wait("stopped");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_refusal_is_logged_at_once_and_its_repetitions_by_one_line_at_the_stop() {
    let relay = Running::start(&[]);
    let id = fresh_id("unheld");
    for _ in 0..5 {
        relay.phone(&id).expect_close(4404, "no server with that id");
    }
    let first = relay.wait("phone_register_no_server");
    assert_eq!(first.field("server_id"), id);
    let log = relay.stop();
    let lines: Vec<_> = log.iter().map(|line| Line::parse(line)).collect();
    let count = |event: &str| lines.iter().filter(|line| line.is(event)).count();
    assert_eq!((count("phone_register_no_server"), count("repeated")), (1, 1), "{log:#?}");
    let summary = lines.iter().find(|line| line.is("repeated")).unwrap();
    assert_eq!(summary.keys(), ["time", "level", "event", "of", "count", "seconds"]);
    assert_eq!(
        (summary.field("of"), summary.field("count"), summary.field("level")),
        ("phone_register_no_server", "4", "info")
    );
}

#[test]
fn refusals_before_the_upgrade_are_summed_up_by_reason() {
    let relay = Running::start(&["--log-level", "debug"]);
    for _ in 0..3 {
        for head in ["GET /nowhere HTTP/1.1\r\nHost: relay\r\n\r\n", "nonsense\r\n\r\n"] {
            let mut stream = connect(relay.address());
            stream.write_all(head.as_bytes()).unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        }
    }
    let log = relay.stop();
    let lines: Vec<_> = log.iter().map(|line| Line::parse(line)).collect();
    let mut told = Vec::new();
    for line in &lines {
        if line.is("refused") {
            told.push((line.field("reason"), "1"));
        } else if line.is("repeated") {
            assert_eq!((line.field("of"), line.field("level")), ("refused", "debug"));
            told.push((line.field("reason"), line.field("count")));
        }
    }
    told.sort_unstable();
    let [malformed, unknown] = ["malformed head", "unknown path"];
    assert_eq!(told, [(malformed, "1"), (malformed, "2"), (unknown, "1"), (unknown, "2")]);
}

#[test]
fn at_trace_nothing_is_summed_up() {
    let relay = Running::start(&["--log-level", "trace"]);
    for _ in 0..3 {
        relay.phone("unheld").expect_close(4404, "no server with that id");
    }
    let log = relay.stop();
    let count = |event: &str| log.iter().filter(|line| Line::parse(line).is(event)).count();
    assert_eq!((count("phone_register_no_server"), count("repeated")), (3, 0), "{log:#?}");
}

#[test]
fn the_start_is_told_with_the_limits_and_from_where_the_options_came() {
    let mut command = program(&[plain(Plain::ItsOwnListeners), &["--max-phones", "3"]].concat());
    command.env("PYRYCODE_RELAY_RATE_LIMIT", "7/min").env("PYRYCODE_RELAY_GRACE", "9s");
    // Not looked at where the command line has it.
    command.env("PYRYCODE_RELAY_MAX_PHONES", "4");
    let relay = Running::spawn(command);
    let starting = relay.wait("starting");
    assert_eq!(starting.field("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(starting.field("command_line"), "--listen --max-phones");
    assert_eq!(starting.field("environment"), "PYRYCODE_RELAY_GRACE PYRYCODE_RELAY_RATE_LIMIT");
    let limits = relay.wait("limits");
    assert_eq!(limits.field("max_phones"), "3");
    assert_eq!(limits.field("rate_limit"), "7/min, 64 at once");
    assert_eq!(limits.field("memory_budget"), (64 << 20).to_string());
}

#[test]
fn a_bad_value_of_a_variable_is_reported_under_the_variables_name() {
    for (variable, value, option) in [
        ("PYRYCODE_RELAY_GRACE", "soon", "--grace"),
        ("PYRYCODE_RELAY_RECLAIM", "maybe", "--reclaim"),
        ("PYRYCODE_RELAY_LISTEN", "localhost:1", "--listen"),
    ] {
        let mut command = program(&[]);
        command.env(variable, value);
        let output = run(command);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(variable) && message.contains(option), "{message}");
    }
    // The command line wins, and its own mistake is not the variable's.
    for arguments in [&["--grace", "never"][..], &["--grace=never"]] {
        let mut command = program(arguments);
        command.env("PYRYCODE_RELAY_GRACE", "soon");
        let output = run(command);
        let message = text(&output.stderr);
        assert!(message.contains("never") && !message.contains("PYRYCODE"), "{message}");
    }
}

#[test]
fn lines_for_the_journal_have_no_time_of_their_own() {
    let line = r#"JOURNAL_STREAM=$(stat -L -c %d:%i /dev/fd/2) exec "$0" "$@""#;
    let arguments = [plain(Plain::ItsOwnListeners), &["--log-format", "logfmt"]].concat();
    let mut command = program_in_shell(line, &arguments);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let relay = Running::spawn(command);
    assert_eq!(relay.wait("listening").keys(), ["level", "event", "address"]);
}

#[test]
fn a_journal_that_is_somebody_elses_is_not_believed() {
    let mut command = program(plain(Plain::ItsOwnListeners));
    command.env("JOURNAL_STREAM", "8:12345");
    let relay = Running::spawn(command);
    assert_eq!(relay.wait("listening").keys(), ["time", "level", "event", "address"]);
}

#[test]
fn a_reader_that_does_not_read_holds_nothing_up_and_learns_how_much_it_missed() {
    let mut command = program(&unlimited());
    command.args(["--log-level", "trace"]).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let listening = lines.find(|line| line.contains(" event=listening ")).unwrap();
    let address = Line::parse(&listening).address();
    // A pipe holds 64 KiB; that many phones are worth more in lines.
    for _ in 0..300 {
        assert!(answers(address));
        drop(Ws::upgrade(address, &phone_head("unheld")));
    }
    let (sender, read) = channel();
    std::thread::spawn(move || lines.try_for_each(|line| sender.send(line)));
    let until = Instant::now() + deadline();
    let lost = loop {
        // Worth a line, and what was lost is told with the next.
        drop(Ws::upgrade(address, &phone_head("unheld")));
        if let Some(line) = read.try_iter().find(|line| line.contains(" event=log_lines_lost ")) {
            break Line::parse(&line);
        }
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("nothing is told");
        }
    };
    assert!(lost.field("count").parse::<u64>().unwrap() > 100, "{lost:?}");
    assert_eq!(lost.field("level"), "warn");
    signal(child.id(), "TERM");
    assert!(child.wait().unwrap().success());
}
