use std::fs::Permissions;

use tempfile::NamedTempFile;

use super::*;
use crate::config::Options;

const BOARD: Board =
    Board { memory: Some(1 << 29), memory_limit: None, descriptors: Some((1024, 16_384)) };

fn report_on(arguments: &[&str], board: Board, found: &Occupancy) -> Report {
    let all = std::iter::once("pyrycode-relay").chain(arguments.iter().copied());
    let options = Options::parse_arguments(all).unwrap();
    let sources = options.sources.clone();
    let config = Config::from_options(options).unwrap();
    Report::new(&config, &sources, board, |_| found.clone())
}

fn report(arguments: &[&str]) -> Report {
    report_on(arguments, BOARD, &Occupancy::Free)
}

#[test]
fn the_defaults_are_fine() {
    let report = report(&[]);
    assert!(report.is_fine(), "{report:?}");
    assert!(report.text(false).contains("\nfine   "));
}

#[test]
fn what_looks_wrong_is_told_and_is_not_fine() {
    for (arguments, named) in [
        (&["--listen", ":8080", "--rate-limit", "off"][..], "--rate-limit"),
        (&["--listen", "192.0.2.1:1,127.0.0.1:1", "--rate-limit", "off"], "--rate-limit"),
        (&["--max-connections", "16353"], "LimitNOFILE="),
        (&["--memory-budget", "257MiB"], "--memory-budget"),
        (&["--listen", ":8080,127.0.0.1:8080"], "overlap"),
        (&["--listen", "127.0.0.1:8080,127.0.0.1:8080"], "overlap"),
        (&["--listen", "[::]:8080,[::1]:8080"], "overlap"),
    ] {
        let report = report(arguments);
        assert_eq!(report.wrong.len(), 1, "{arguments:?}: {report:?}");
        assert!(report.wrong[0].contains(named), "{arguments:?}: {report:?}");
        let text = report.text(false);
        assert!(text.contains("\nwrong  ") && !text.contains("\nfine "), "{text}");
    }
}

#[test]
fn what_is_near_to_wrong_is_fine() {
    for arguments in [
        &["--rate-limit", "off"][..],
        &["--listen", ":8080"],
        &["--listen", ":8080", "--rate-limit", "off", "--trusted-proxy", "192.0.2.7"],
        &["--max-connections", "16352"],
        &["--memory-budget", "256MiB"],
        &["--listen", "127.0.0.1:8080,127.0.0.2:8080,[::1]:8080,127.0.0.1:8081"],
        &["--listen", "127.0.0.1:0,127.0.0.1:0"],
    ] {
        let report = report(arguments);
        assert!(report.is_fine(), "{arguments:?}: {report:?}");
    }
}

#[test]
fn hints_are_notes() {
    for (arguments, named) in [
        (&["--listen", ":8080"][..], "TLS"),
        (&["--listen", ":8080"], "--allow-server"),
        (&["--listen", ":8080", "--max-connections-per-ip", "off"], "--max-connections-per-ip"),
        (&[], "--trusted-proxy"),
        (&["--trusted-proxy", "127.0.0.1"], "--allow-server"),
        (&["--rate-burst", "63"], "--rate-burst 63 is less than --max-connections-per-ip 64"),
        (&["--max-connections-per-ip", "65"], "--rate-burst 64"),
        (&["--listen", ":80"], "pyrycode-relay.socket"),
    ] {
        let report = report(arguments);
        let is_noted = report.notes.iter().any(|note| note.contains(named));
        assert!(is_noted && report.is_fine(), "{arguments:?}: {report:?}");
    }
    let has_note = |arguments: &[&str], named: &str| {
        report(arguments).notes.iter().any(|note| note.contains(named))
    };
    assert!(!has_note(&[], "--allow-server"), "no other machine can connect");
    assert!(!has_note(&["--trusted-proxy", "127.0.0.1"], "--trusted-proxy"));
    for enough in [
        &["--max-connections-per-ip", "64"][..],
        &["--rate-burst", "1", "--rate-limit", "off"],
        &["--rate-burst", "1", "--max-connections-per-ip", "off"],
    ] {
        assert!(!has_note(enough, "--rate-burst"), "{enough:?}");
    }
}

#[test]
fn a_running_relay_is_no_fault_and_anybody_else_at_the_address_is() {
    for (found, remark, is_fine) in [
        (Occupancy::Free, "free", true),
        (Occupancy::Absent, "no interface", true),
        (Occupancy::Relay(None), "in use by a running relay", true),
        (Occupancy::Relay(Some("1.2\u{1b}".to_owned())), "relay, version 1.2\\u{1b}", true),
        (Occupancy::Taken(Some("nginx, process 7".to_owned())), "nginx, process 7", false),
        (Occupancy::Taken(None), "another program", false),
        (Occupancy::Refused("no permission".to_owned()), "no permission", false),
    ] {
        let report = report_on(&[], BOARD, &found);
        assert_eq!(report.is_fine(), is_fine, "{report:?}");
        let text = report.text(false);
        assert!(text.lines().any(|line| line.contains(remark)), "{text}");
    }
}

#[test]
fn the_smaller_of_memory_and_its_limit_counts_and_what_is_unknown_is_not_judged() {
    let fine = |memory, memory_limit| {
        let board = Board { memory, memory_limit, ..BOARD };
        report_on(&["--memory-budget", "200MiB"], board, &Occupancy::Free).is_fine()
    };
    assert!(fine(Some(1 << 30), None) && fine(Some(1 << 30), Some(1 << 30)));
    assert!(!fine(Some(1 << 30), Some(256 << 20)));
    assert!(!fine(Some(256 << 20), Some(1 << 30)));
    assert!(fine(None, None) && !fine(None, Some(256 << 20)));
    let unknown = Board { memory: None, memory_limit: None, descriptors: None };
    assert!(report_on(&["--max-connections", "99999"], unknown, &Occupancy::Free).is_fine());
}

#[test]
fn the_table_is_aligned_and_colours_are_asked_for() {
    let report = report(&["--max-phones", "3", "--trusted-proxy", "10.0.0.0/8,::1"]);
    let text = report.text(false);
    assert!(!text.contains('\u{1b}'), "{text}");
    let (table, _) = text.split_once("\n\n").unwrap();
    let column = table.lines().next().unwrap().find("--max-phones").unwrap();
    let mut seen = 0;
    for line in table.lines() {
        assert_eq!(line.trim_end(), line);
        assert!(line.is_char_boundary(column) && line[..column].ends_with("  "), "{text}");
        assert_ne!(&line[column..=column], " ", "{text}");
        seen += usize::from(line.contains("10.0.0.0/8") || line.contains("::1/128"));
    }
    assert_eq!(seen, 2, "{text}");
    assert!(table.contains("--trusted-proxy") && table.contains("all others"), "{text}");
    assert!(report.text(true).contains("\u{1b}[32mfine \u{1b}[0m  "));
}

#[test]
fn an_allow_list_is_counted_and_one_that_the_service_cannot_read_is_noted() {
    let list = NamedTempFile::new().unwrap();
    std::fs::write(&list, "one\ntwo\n").unwrap();
    let with_mode = |mode| {
        std::fs::set_permissions(&list, Permissions::from_mode(mode)).unwrap();
        report(&["--allow-server", list.path().to_str().unwrap(), "--trusted-proxy", "::1"])
    };
    let (open, closed) = (with_mode(0o644), with_mode(0o600));
    assert!(open.text(false).contains("2 server-ids"), "{open:?}");
    assert_eq!(open.notes, Vec::<String>::new());
    assert!(closed.is_fine() && closed.notes[0].contains("chmod"), "{closed:?}");
}
