//! What the program prints about itself, and what it says about bad options.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use super::{program, program_in_shell, run, text};

/// The options of the contract and their defaults.
const OPTIONS: [(&str, &str); 22] = [
    ("listen", "127.0.0.1:8080"),
    ("grace", "30s"),
    ("reclaim", "keep"),
    ("probe-timeout", "10s"),
    ("heartbeat-interval", "30s"),
    ("heartbeat-timeout", "30s"),
    ("header-timeout", "5s"),
    ("message-timeout", "30s"),
    ("write-timeout", "10s"),
    ("drain-timeout", "2s"),
    ("max-frame-bytes", "256KiB"),
    ("max-queue-bytes", "32MiB"),
    ("max-slot-queue-bytes", "1MiB"),
    ("memory-budget", "64MiB"),
    ("max-phones", "16"),
    ("max-connections", "4096"),
    ("max-connections-per-ip", "64"),
    ("rate-limit", "10/min"),
    ("rate-burst", "20"),
    ("metrics-listen", "off"),
    ("log-level", "info"),
    ("log-format", "auto"),
];

/// What it prints on standard output while it exits with 0 and says nothing else.
fn printed(arguments: &[&str]) -> String {
    let output = run(program(arguments));
    assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    assert_eq!(text(&output.stderr), "", "{arguments:?}");
    text(&output.stdout).to_owned()
}

#[test]
fn the_version_tells_commit_target_and_profile() {
    let long = printed(&["--version"]);
    let lines: Vec<_> = long.lines().collect();
    assert_eq!(lines[0], concat!("pyrycode-relay ", env!("CARGO_PKG_VERSION")));
    let facts: BTreeMap<_, _> =
        lines[1..].iter().map(|line| line.split_once(':').expect("a name and a value")).collect();
    assert_eq!(facts.keys().copied().collect::<Vec<_>>(), ["commit", "profile", "target"]);
    let commit = facts["commit"].trim();
    let is_hash = commit.len() == 12 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(is_hash || commit == "unknown", "{commit}");
    assert!(facts["target"].contains(std::env::consts::ARCH), "{long}");
    assert!(["debug", "release"].contains(&facts["profile"].trim()), "{long}");
    let short = concat!("pyrycode-relay ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(printed(&["-V"]), short);
}

#[test]
fn the_long_help_groups_the_options_shows_their_defaults_and_ends_with_the_exit_codes() {
    let help = printed(&["--help"]);
    for (option, default) in OPTIONS {
        let begin = help.find(&format!("--{option} <")).unwrap_or_else(|| panic!("no --{option}"));
        let behind = &help[begin + 2..];
        let entry = &behind[..behind.find("      --").unwrap_or(behind.len())];
        assert!(entry.contains(&format!("[default: {default}]")), "--{option}: {entry}");
        let variable = format!("PYRYCODE_RELAY_{}", option.to_uppercase().replace('-', "_"));
        assert!(entry.contains(&variable), "--{option}: {entry}");
    }
    for group in [
        "Listening:",
        "Claims:",
        "Timeouts:",
        "Memory:",
        "Admission:",
        "Monitoring:",
        "Logging:",
        "Commands:",
    ] {
        assert!(help.lines().any(|line| line == group), "no {group}");
    }
    assert!(help.contains("--insecure-listen"), "{help}");
    let (_, codes) = help.split_once("\nExit codes:\n").expect("a list of exit codes");
    let codes: Vec<_> = codes.lines().map(|line| line.trim().split_once(' ').unwrap().0).collect();
    assert_eq!(codes, ["0", "1", "2"], "nothing stands behind them");
}

#[test]
fn the_short_help_is_shorter_and_has_every_option() {
    let (short, long) = (printed(&["-h"]), printed(&["--help"]));
    assert!(short.lines().count() * 3 < long.lines().count(), "{short}");
    assert!(short.len() * 3 < long.len() * 2, "{short}");
    for (option, _) in OPTIONS {
        assert!(short.contains(&format!("--{option} ")), "no --{option}");
    }
}

#[test]
fn help_for_a_reader_that_has_gone_is_no_panic() {
    let command = program_in_shell(r#"{ "$0" --help; echo "code $?" >&2; } | :"#, &[]);
    let output = run(command);
    let stderr = text(&output.stderr);
    assert!(!stderr.contains("panic"), "{stderr}");
    assert!(stderr.ends_with("code 0\n"), "{stderr}");
}

/// Expects a short message about a bad option, and exit code 2; returns the message.
fn refused(command: Command) -> String {
    let shown = format!("{command:?}");
    let output = run(command);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{shown}: {stderr}");
    assert_eq!(text(&output.stdout), "", "{shown}");
    assert!(stderr.starts_with("error: "), "{shown}: {stderr}");
    assert!(stderr.lines().count() <= 8, "{shown}: {stderr}");
    for noise in ["panicked", "RUST_BACKTRACE", "src/", "Error {", "level="] {
        assert!(!stderr.contains(noise), "{shown}: {stderr}");
    }
    stderr.to_owned()
}

#[test]
fn zero_is_refused_for_every_option_on_the_command_line_and_in_the_environment() {
    for (option, default) in OPTIONS {
        let zero = match option {
            "listen" | "metrics-listen" | "reclaim" | "log-level" | "log-format" => "0".to_owned(),
            _ => default.replace(|sign: char| sign.is_ascii_digit(), "0"),
        };
        let flag = format!("--{option}");
        let message = refused(program(&[&flag, &zero]));
        assert!(message.contains(&flag), "{message}");
        let variable = format!("PYRYCODE_RELAY_{}", option.to_uppercase().replace('-', "_"));
        let mut command = program(&[]);
        command.env(variable, zero);
        let message = refused(command);
        assert!(message.contains(&flag), "{message}");
    }
}

#[test]
fn a_bad_value_gets_a_message_that_says_what_to_write() {
    for (arguments, advice) in [
        (["--listen", "localhost:8080"], "127.0.0.1:8080"),
        (["--listen", "relay.example:8080"], "an IP address"),
        (["--listen", "192.0.2.1"], "port"),
        (["--listen", "8080"], ":8080"),
        (["--listen", ":65536"], "65535"),
        (["--listen", ""], "an IP address"),
        (["--grace", "30"], "30s"),
        (["--grace", "soon"], "30s"),
        (["--grace", "10years"], "year"),
        (["--max-frame-bytes", "lots"], "256KiB"),
        (["--max-frame-bytes", "99999999999999999999"], "256KiB"),
        (["--max-phones", "many"], "whole number"),
        (["--max-phones", "1.5"], "whole number"),
        (["--max-connections-per-ip", "none"], "off"),
        (["--trusted-proxy", "localhost"], "127.0.0.1"),
        (["--trusted-proxy", "0.0.0.0/0"], "everybody"),
        (["--rate-limit", "10"], "10/min"),
        (["--rate-limit", "10/hour"], "10/min"),
        (["--reclaim", "maybe"], "evict"),
        (["--log-level", "loud"], "--log-level"),
    ] {
        let message = refused(program(&arguments));
        assert!(message.contains(advice), "{arguments:?}: {message}");
    }
}

#[test]
fn a_combination_that_cannot_work_is_refused_with_a_message_that_says_what_to_change() {
    for (arguments, named) in [
        (["--max-frame-bytes", "1MiB"], ["--max-slot-queue-bytes", "--max-frame-bytes"]),
        (["--max-slot-queue-bytes", "512KiB"], ["--max-slot-queue-bytes", "--max-frame-bytes"]),
        (["--max-queue-bytes", "64KiB"], ["--max-queue-bytes", "--max-frame-bytes"]),
        (["--memory-budget", "16MiB"], ["--memory-budget", "--max-queue-bytes"]),
    ] {
        let message = refused(program(&arguments));
        for option in named {
            assert!(message.contains(option), "{arguments:?}: {message}");
        }
        assert!(message.contains("at least"), "{arguments:?}: {message}");
    }
}

#[test]
fn an_unknown_option_suggests_the_right_one() {
    for (wrong, right) in [
        ("--max-phone", "--max-phones"),
        ("--graces", "--grace"),
        ("--heartbeat-intervall", "--heartbeat-interval"),
        ("--log-levle", "--log-level"),
    ] {
        let message = refused(program(&[wrong, "1"]));
        assert!(message.contains(&format!("'{right}'")), "{wrong}: {message}");
    }
    refused(program(&["--max-phones"]));
    refused(program(&["--max-phones", "1", "--max-phones", "2"]));
    refused(program(&["serve"]));
    let mut not_unicode = program(&["--grace"]);
    not_unicode.arg(OsStr::from_bytes(b"\xff\xfe"));
    refused(not_unicode);
}

#[test]
fn a_bad_option_does_not_need_anybody_to_read_its_message() {
    let output = run(program_in_shell(r#"exec "$0" "$@" >&- 2>&-"#, &["--grace", "0s"]));
    assert_eq!(output.status.code(), Some(2));
}
