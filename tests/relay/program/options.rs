//! What the program prints about itself, and what it says about bad options.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Output};

use pyrycode_relay::config::command;

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
    ("rate-limit", "30/min"),
    ("rate-burst", "64"),
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
        (["--max-frame-bytes", "64GiB"], "16.0 MiB is the most"),
        (["--memory-budget", "18446744073709551615"], "iB is the most"),
        (["--max-connections", "4294967295"], "1048576 is the most"),
        (["--grace", "100000000h"], "year"),
        (["--heartbeat-interval", "1ns"], "millisecond"),
        (["--max-phones", "many"], "whole number"),
        (["--max-phones", "1.5"], "whole number"),
        (["--max-connections-per-ip", "none"], "off"),
        (["--trusted-proxy", "localhost"], "127.0.0.1"),
        (["--trusted-proxy", "0.0.0.0/0"], "everybody"),
        (["--trusted-proxy", "0.0.0.0/1,128.0.0.0/1"], "everybody"),
        (["--rate-limit", "10"], "30/min"),
        (["--rate-limit", "10/hour"], "30/min"),
        (["--reclaim", "maybe"], "evict"),
        (["--log-level", "loud"], "--log-level"),
    ] {
        let message = refused(program(&arguments));
        assert!(message.contains(advice), "{arguments:?}: {message}");
    }
}

/// The program with variables alone, and what it prints.
fn checked(variables: &[(&str, &str)]) -> Output {
    let mut command = program(&["check"]);
    // An address of this test's own: what looks wrong about others is not its subject.
    command.env("PYRYCODE_RELAY_LISTEN", "127.0.0.1:0").envs(variables.iter().copied());
    run(command)
}

#[test]
fn a_switch_in_the_environment_is_one_of_eight_words() {
    let proxy = ("PYRYCODE_RELAY_TRUSTED_PROXY", "127.0.0.1");
    for variable in ["PYRYCODE_RELAY_PROXY_PROTOCOL", "PYRYCODE_RELAY_METRICS_PUBLIC"] {
        let with = |word: &str| {
            let output = checked(&[proxy, (variable, word)]);
            let all = format!("{}{}", text(&output.stdout), text(&output.stderr));
            (output.status.code(), all)
        };
        for bad in ["garbage", "2", "t", "y", "enabled", "true false", "-"] {
            let (code, message) = with(bad);
            assert_eq!(code, Some(2), "{variable}={bad}: {message}");
            for shown in [variable, "true, yes, on or 1", "false, no, off or 0"] {
                assert!(message.contains(shown), "{variable}={bad}: {message}");
            }
        }
        for good in ["true", "YES", "On", "1", "false", "no", "OFF", "0", " true ", "", " "] {
            let (code, message) = with(good);
            assert_eq!(code, Some(0), "{variable}={good:?}: {message}");
        }
    }
    for (word, is_on) in [("1", true), ("on", true), ("0", false), ("no", false), ("", false)] {
        let output = checked(&[proxy, ("PYRYCODE_RELAY_PROXY_PROTOCOL", word)]);
        let report = text(&output.stdout);
        assert_eq!(report.contains("sends a PROXY header"), is_on, "{word:?}: {report}");
    }
}

#[test]
fn blanks_around_a_value_of_the_environment_do_not_count_and_an_empty_one_is_none() {
    let command = command();
    let variables: Vec<_> = command
        .get_arguments()
        .filter_map(|argument| argument.get_env().and_then(OsStr::to_str))
        .collect();
    assert!(variables.len() > 20, "{} variables", variables.len());
    for empty in ["", " ", "\t "] {
        let all: Vec<_> = variables.iter().map(|variable| (*variable, empty)).collect();
        let output = checked(&all);
        let report = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{report}{}", text(&output.stderr));
        for variable in &variables {
            let is_named = report.contains(variable) && *variable != "PYRYCODE_RELAY_LISTEN";
            assert!(!is_named, "{variable} is none: {report}");
        }
    }
    let padded = [
        ("PYRYCODE_RELAY_GRACE", " 31s "),
        ("PYRYCODE_RELAY_MAX_PHONES", " 17"),
        ("PYRYCODE_RELAY_RATE_LIMIT", "7/min\t"),
        ("PYRYCODE_RELAY_METRICS_LISTEN", " off"),
        ("PYRYCODE_RELAY_LOG_FORMAT", " json "),
        ("PYRYCODE_RELAY_TRUSTED_PROXY", " 10.0.0.1 , 10.0.0.2,"),
    ];
    let output = checked(&padded);
    let report = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{report}{}", text(&output.stderr));
    for (variable, _) in padded {
        let row = report.lines().find(|line| line.contains(variable));
        assert!(row.is_some_and(|row| row.ends_with("environment")), "{variable}: {report}");
    }
    for shown in ["17  ", "7/min", "10.0.0.1/32", "10.0.0.2/32"] {
        assert!(report.contains(shown), "{shown}: {report}");
    }
    let bad = text(&checked(&[("PYRYCODE_RELAY_GRACE", " soon ")]).stderr).to_owned();
    assert!(bad.contains("PYRYCODE_RELAY_GRACE") && bad.contains("'soon'"), "{bad}");
    let mut given = program(&["check", "--grace", "1s"]);
    given.env("PYRYCODE_RELAY_GRACE", " soon ").env("PYRYCODE_RELAY_LISTEN", "127.0.0.1:0");
    assert_eq!(run(given).status.code(), Some(0), "the command line wins");
    let mut status = program(&["status", "127.0.0.1:1"]);
    status.envs(padded).env("PYRYCODE_RELAY_LISTEN", " 127.0.0.1:1 , 127.0.0.1:2 ");
    assert_eq!(run(status).status.code(), Some(1), "it has other options");
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
