//! What the README says is what the program does.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use pyrycode_relay::close::Close;
use pyrycode_relay::config::command;

const README: &str = include_str!("../README.md");

/// The first two cells of every row whose first cell begins with a code span.
fn rows() -> Vec<(String, String)> {
    let rows: Vec<_> = README
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            (cells.next().unwrap().to_owned(), cells.next().unwrap().to_owned())
        })
        .collect();
    assert!(rows.len() > 30, "the README has its tables");
    rows
}

#[test]
fn the_table_of_options_lists_every_option_with_its_default_and_no_other() {
    let rows = rows();
    let listed: Vec<_> = rows.iter().filter(|(first, _)| first.starts_with("`--")).collect();
    let command = command();
    let mut options = 0;
    for argument in command.get_arguments() {
        let Some(long) = argument.get_long().filter(|long| !["help", "version"].contains(long))
        else {
            continue;
        };
        options += 1;
        let (first, default) = listed
            .iter()
            .find(|(first, _)| first.starts_with(&format!("`--{long}")))
            .unwrap_or_else(|| panic!("--{long} is not in the README"));
        assert!(first.ends_with('`'));
        let defaults = argument.get_default_values();
        let expected = match (long, defaults.first()) {
            ("proxy-protocol", _) => "`false`".to_owned(),
            (_, Some(default)) => format!("`{}`", default.to_str().unwrap()),
            ("log-level", None) => "`info`".to_owned(),
            (_, None) => "none".to_owned(),
        };
        assert_eq!(*default, expected, "--{long}");
    }
    assert_eq!(listed.len(), options, "the README lists options that do not exist");
}

#[test]
fn the_table_of_close_codes_lists_what_the_relay_sends() {
    let rows = rows();
    for close in [
        Close::AlreadyClaimed,
        Close::NoServer,
        Close::Reclaimed,
        Close::TooManyPhones,
        Close::BacklogFull,
        Close::OverBudget,
        Close::HeartbeatTimeout,
        Close::MessageTimeout,
        Close::TooBig,
        Close::BadUtf8,
        Close::NotJson,
        Close::NotAllowed,
        Close::Protocol,
        Close::ShuttingDown,
    ] {
        let code = format!("`{}`", close.code().unwrap());
        let reason = format!("`{}`", close.reason());
        let listed = rows.iter().any(|(first, second)| *first == code && second.contains(&reason));
        assert!(listed, "{code} {reason} is not in the README");
    }
}

#[test]
fn the_commands_of_the_readme_are_those_that_ci_runs() {
    let ci = include_str!("../.ci/run");
    assert!(README.contains("\n    cargo test "), "the README has its test command");
    assert!(ci.contains("'tests (as in README.md)' cargo test\n"), "CI runs that very command");
}

#[test]
fn the_options_file_lists_every_option_with_its_default_and_no_other() {
    let file = include_str!("../systemd/pyrycode-relay.default");
    let listed: Vec<_> = file.lines().filter_map(|line| line.strip_prefix("#PYRY")).collect();
    let command = command();
    let options: Vec<_> =
        command.get_arguments().filter(|option| option.get_env().is_some()).collect();
    assert!(options.len() > 15, "the options have their variables");
    for option in &options {
        let variable = option.get_env().unwrap().to_str().unwrap();
        let defaults = option.get_default_values();
        match defaults.first().map(|value| value.to_str().unwrap()) {
            Some(default) => {
                let expected = format!("#{variable}={default}");
                assert!(file.lines().any(|line| line == expected), "{expected} is not in the file");
            }
            // An example stands in its place.
            None => {
                let start = format!("#{variable}=");
                let listed = |line: &str| line.len() > start.len() && line.starts_with(&start);
                assert!(file.lines().any(listed), "{start} is not in the options file");
            }
        }
    }
    assert_eq!(listed.len(), options.len(), "the options file lists what does not exist");
}

#[test]
fn the_changelog_of_the_package_begins_with_the_programs_version() {
    let changelog = include_str!("../cross/deb/changelog");
    let expected = concat!("pyrycode-relay (", env!("CARGO_PKG_VERSION"), "-1) ");
    assert!(changelog.starts_with(expected), "{expected}");
}

#[test]
fn every_promise_of_the_threat_model_is_held_by_tests_that_exist() {
    let page = include_str!("../docs/threat-model.md");
    let rows: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| promise |"))
        .map(|line| line.trim_matches('|').split('|').collect::<Vec<_>>())
        .collect();
    assert!(rows.len() > 20, "the page has its tables");
    for row in rows {
        let [promise, held_by] = row[..] else { panic!("{row:?} has two cells") };
        let tests: Vec<_> = held_by.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "nothing holds:{promise}");
        for test in tests {
            assert!(is_a_test(test), "{test} is no test");
        }
    }
}

/// Whether there is a test of this name, `module::name`, be it of the relay over sockets, of a file
/// of the sources or of a program beside them.
fn is_a_test(path: &str) -> bool {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some((module, name)) = path.rsplit_once("::") else { return false };
    let module = module.replace("::", "/");
    let files = ["tests/relay/{}.rs", "tests/{}.rs", "src/{}.rs", "src/{}/tests.rs"];
    files.iter().any(|file| {
        let source = std::fs::read_to_string(root.join(file.replace("{}", &module)));
        let lines: Vec<_> = source.iter().flat_map(|text| text.lines().map(str::trim)).collect();
        let begins = format!("fn {name}(");
        lines.windows(2).any(|pair| pair[0] == "#[test]" && pair[1].starts_with(&begins))
    })
}

#[test]
fn a_test_that_does_not_exist_is_noticed() {
    assert!(is_a_test("docs::a_test_that_does_not_exist_is_noticed"));
    assert!(is_a_test("heads::a_full_table_costs_the_oldest_of_all"));
    assert!(is_a_test("registry::tests::claims::the_loser_of_a_claim_owns_nothing"));
    for wrong in ["docs::is_a_test", "heads::enter", "heads::a_full_table", "nowhere::x", "docs"] {
        assert!(!is_a_test(wrong), "{wrong}");
    }
}
