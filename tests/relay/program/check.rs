//! `pyrycode-relay check`, on this machine.

#[cfg(feature = "tls")]
mod tls;

use std::net::TcpListener;
use std::process::{Command, Output};

use super::{Running, exchange, program, run, text};
use crate::rig::{Plain, fresh_id};

/// Its exit code and what it prints.
fn checked(command: Command) -> (i32, String) {
    let Output { status, stdout, stderr } = run(command);
    assert_eq!(text(&stderr), "");
    (status.code().unwrap(), text(&stdout).to_owned())
}

#[test]
fn a_free_address_is_fine_and_nothing_is_coloured_away_from_a_terminal() {
    let (code, report) = checked(program(&["check", "--listen", "127.0.0.1:0"]));
    assert_eq!(code, 0, "{report}");
    assert!(report.lines().any(|line| line.starts_with("listen ") && line.ends_with(" free")));
    assert!(report.contains("\nfine ") && !report.contains('\u{1b}'), "{report}");
}

#[test]
fn options_and_environment_are_read_as_the_relay_reads_them() {
    let mut command = program(&["check", "--listen", "127.0.0.1:0", "--max-phones", "3"]);
    command.env("PYRYCODE_RELAY_RATE_LIMIT", "7/min").env("PYRYCODE_RELAY_MAX_PHONES", "0");
    let (code, report) = checked(command);
    assert_eq!(code, 0, "{report}");
    let has = |words: &[&str]| {
        report.lines().any(|line| line.split_whitespace().collect::<Vec<_>>().ends_with(words))
    };
    assert!(has(&["--max-phones", "command", "line"]), "{report}");
    assert!(has(&["PYRYCODE_RELAY_RATE_LIMIT", "environment"]), "{report}");
    assert!(has(&["3", "of", "one", "server-id"]) && report.contains("7/min"), "{report}");

    let mut command = program(&["check"]);
    command.env("PYRYCODE_RELAY_GRACE", "0s");
    let output = run(command);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("PYRYCODE_RELAY_GRACE"));
    assert_eq!(run(program(&["check", "--memory-budget", "16MiB"])).status.code(), Some(2));
}

#[test]
fn a_running_relay_is_named_as_what_is_there_and_notices_nothing() {
    let relay = Running::plain(Plain::ItsOwnListeners, &[]);
    let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("checked"));
    let address = relay.address().at.to_string();
    let (code, report) = checked(program(&["check", "--listen", &address]));
    assert_eq!(code, 0, "{report}");
    let expected = concat!("in use by a running relay, version ", env!("CARGO_PKG_VERSION"));
    assert!(report.contains(expected), "{report}");
    exchange(&mut binary, &mut phone, &conn_id);
}

#[test]
#[cfg_attr(relay_emulated, ignore = "the process has the emulator's name")]
fn a_running_relay_that_answers_nobody_but_proxies_is_known_by_its_name() {
    let other = Running::plain(
        Plain::ItsOwnListeners,
        &["--trusted-proxy", "127.0.0.1", "--proxy-protocol"],
    );
    let address = other.address().at.to_string();
    let (code, report) = checked(program(&["check", "--listen", &address]));
    assert_eq!(code, 0, "{report}");
    assert!(report.contains("in use by a running relay"), "{report}");
}

#[test]
fn an_address_that_somebody_else_holds_is_wrong() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, report) = checked(program(&["check", "--listen", &address]));
    assert_eq!(code, 1, "{report}");
    assert!(report.contains(&format!("wrong  {address} cannot be listened on")), "{report}");
    assert!(!report.contains("running relay") && !report.contains("\nfine "), "{report}");
}

#[test]
fn what_looks_wrong_here_ends_it_with_1() {
    let descriptors = ["check", "--listen", "127.0.0.1:0", "--max-connections", "1048576"];
    let (code, report) = checked(program(&descriptors));
    assert_eq!(code, 1, "{report}");
    assert!(report.contains("LimitNOFILE="), "{report}");
}

#[test]
fn it_stands_before_its_options_and_takes_none_of_its_own() {
    for arguments in [&["--max-phones", "3", "check"][..], &["check", "check"], &["check", "--all"]]
    {
        assert_eq!(run(program(arguments)).status.code(), Some(2), "{arguments:?}");
    }
    let help = run(program(&["check", "--help"]));
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("--max-phones"));
}
