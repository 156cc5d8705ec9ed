//! What the README says is what the program does.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use pyrycode_relay::close::Close;
use pyrycode_relay::config::{Config, Options, command};

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
fn the_options_that_the_documentation_advises_are_accepted_together() {
    let pages = [
        README,
        include_str!("../docs/performance.md"),
        include_str!("../docs/raspberry-pi.md"),
        include_str!("../docs/monitoring/README.md"),
    ];
    let spans = pages.iter().flat_map(|page| page.split('`').skip(1).step_by(2));
    let mut seen = 0;
    for span in spans.filter(|span| span.starts_with("--m") && span.contains(' ')) {
        let words: Vec<_> = span.split_whitespace().collect();
        let is_upper = |part: &str| part.bytes().all(|byte| byte.is_ascii_uppercase());
        if words
            .iter()
            .flat_map(|word| word.split(':'))
            .any(|part| !part.is_empty() && is_upper(part))
        {
            // A placeholder.
            continue;
        }
        let options = Options::parse_arguments(["pyrycode-relay"].into_iter().chain(words))
            .unwrap_or_else(|error| panic!("{span}: {error}"));
        if let Err(reason) = Config::from_options(options) {
            panic!("{span}: {reason}");
        }
        seen += 1;
    }
    assert!(seen >= 6, "{seen} combinations");
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
        Close::EmptyFragments,
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

/// Whether there is a test of this name, `module::name`, be it of the relay over sockets or by virtual time, of a
/// file of the sources or of a program beside them.
fn is_a_test(path: &str) -> bool {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some((module, name)) = path.rsplit_once("::") else { return false };
    let module = module.replace("::", "/");
    let files = [
        "tests/relay/{}.rs",
        "tests/simulation/{}.rs",
        "tests/{}.rs",
        "src/{}.rs",
        "src/{}/tests.rs",
    ];
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
    assert!(is_a_test("admission::heads::a_full_table_costs_the_oldest_of_all"));
    assert!(is_a_test("registry::tests::claims::the_loser_of_a_claim_owns_nothing"));
    for wrong in [
        "docs::is_a_test",
        "admission::heads::enter",
        "admission::heads::a_full_table",
        "nowhere::x",
        "docs",
    ] {
        assert!(!is_a_test(wrong), "{wrong}");
    }
}

const METRICS: &str = include_str!("../docs/monitoring/metrics.md");

/// Every metric of the list with its type and its labels, as they stand there.
fn listed_metrics() -> Vec<(&'static str, &'static str, &'static str)> {
    let rows = METRICS.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed: Vec<_> = rows
        .map(|row| {
            let mut cells = row.split(" | ");
            let name = cells.next().unwrap().trim_end_matches('`');
            (name, cells.next().unwrap(), cells.next().unwrap())
        })
        .collect();
    assert!(listed.len() > 20, "the list is there");
    listed
}

/// What is wrong with a query: metrics that do not exist, and values that a label cannot have.
fn unknown_in(query: &str) -> Vec<String> {
    let listed = listed_metrics();
    let is_word = |sign: char| sign.is_ascii_alphanumeric() || sign == '_';
    let known = |word: &str| {
        let series = ["_bucket", "_count", "_sum"].iter().filter_map(|end| word.strip_suffix(end));
        listed.iter().any(|(name, _, _)| *name == word)
            || series.into_iter().any(|base| {
                listed.iter().any(|(name, kind, _)| *name == base && *kind == "histogram")
            })
    };
    let words = query.split(|sign| !is_word(sign));
    let named = words.filter(|word| word.starts_with("pyrycode_") || word.starts_with("process_"));
    let mut unknown: Vec<_> =
        named.filter(|word| !known(word)).map(|word| word.to_owned()).collect();
    // Matchers such as code="1013"; those of the scrape itself are not the relay's.
    for (at, _) in query.match_indices("=\"") {
        let label = query[..at].rsplit(|sign| !is_word(sign)).next().unwrap();
        let value = query[at + 2..].split('"').next().unwrap();
        let may_have = |(_, _, labels): &(&str, &str, &str)| {
            labels.split("; ").any(|entry| {
                let values = entry.strip_prefix(&format!("`{label}`: "));
                values.is_some_and(|values| values.split(", ").any(|known| known == value))
            })
        };
        if !["job", "instance"].contains(&label) && !listed.iter().any(may_have) {
            unknown.push(format!("{label}={value}"));
        }
    }
    unknown
}

#[test]
fn the_dashboard_asks_only_for_metrics_that_exist() {
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../docs/monitoring/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut queries: Vec<_> =
        targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        queries.extend(variable["definition"].as_str().map(str::to_owned));
    }
    assert!(queries.len() > 20, "the dashboard has its queries");
    for query in &queries {
        assert_eq!(unknown_in(query), Vec::<String>::new(), "{query}");
    }
    let all = queries.join(" ");
    for (name, _, _) in listed_metrics() {
        assert!(all.contains(name), "{name} is on no panel");
    }
    assert_eq!(unknown_in("rate(pyrycode_relay_x[5m])"), ["pyrycode_relay_x"]);
    assert_eq!(unknown_in("pyrycode_relay_closes_total{code=\"7\"}"), ["code=7"]);
}

#[test]
fn every_alert_asks_for_metrics_that_exist_has_a_test_and_is_explained() {
    let rules = include_str!("../docs/monitoring/alerts.yml");
    let tests = include_str!("../docs/monitoring/alerts-test.yml");
    let page = include_str!("../docs/monitoring/README.md");
    assert_eq!(unknown_in(rules), Vec::<String>::new());
    let alerts: Vec<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "the rules are there");
    for alert in &alerts {
        assert!(tests.contains(&format!("- alertname: {alert}\n")), "{alert} has no test");
        assert!(page.contains(&format!("\n### {alert}\n")), "{alert} is not explained");
    }
    let explained = page.lines().filter(|line| line.starts_with("### "));
    assert_eq!(explained.count(), alerts.len(), "the page explains what does not exist");
}

/// Paths as code spans: with a folder in front, or a source file. A path below `src/` may be written
/// without it.
#[test]
fn every_path_that_the_documentation_names_exists() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages =
        vec![root.join("README.md"), root.join("SECURITY.md"), root.join("cross/README.md")];
    let listed = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    pages.extend(listed.filter(|path| path.extension().is_some_and(|kind| kind == "md")));
    pages.push(root.join("docs/monitoring/README.md"));
    let mut found = 0;
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        let spans = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
        for path in spans.filter(|span| is_a_path_of_ours(span)) {
            found += 1;
            let exists =
                [root.join(path), root.join("src").join(path)].iter().any(|at| at.exists());
            assert!(exists, "{}: {path} does not exist", page.display());
        }
    }
    assert!(found > 30, "only {found} paths were found");
}

fn is_a_path_of_ours(span: &str) -> bool {
    let plain = span.chars().all(|sign| sign.is_ascii_alphanumeric() || "/._-".contains(sign));
    let folders =
        ["src/", "tests/", "docs/", "systemd/", "cross/", "benches/", "fuzz/", "examples/", ".ci/"];
    plain && (span.ends_with(".rs") || folders.iter().any(|folder| span.starts_with(folder)))
}

#[test]
fn a_path_is_told_from_other_words() {
    for path in ["src/limits.rs", "limits.rs", "docs/performance.md", "systemd/boot-test"] {
        assert!(is_a_path_of_ours(path), "{path}");
    }
    for other in ["/healthz", "cargo test", "--listen", "x-pyrycode-server", "target/release"] {
        assert!(!is_a_path_of_ours(other), "{other}");
    }
}
