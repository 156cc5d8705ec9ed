//! What `docs/dependencies.md` says is what `Cargo.toml` has, and what the code uses.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const MANIFEST: &str = include_str!("../Cargo.toml");
const PAGE: &str = include_str!("../docs/dependencies.md");

#[test]
fn the_page_lists_the_dependencies_of_the_manifest_with_their_features() {
    for (section, heading) in
        [("[dependencies]", "## In the program"), ("[dev-dependencies]", "## For tests")]
    {
        let listed: BTreeMap<_, _> =
            rows(heading).into_iter().map(|row| (row.name, row.features)).collect();
        assert!(listed.len() >= 5, "{heading} has a table");
        let features: BTreeMap<_, _> =
            dependencies(section).iter().map(|(name, line)| (*name, features(line))).collect();
        assert_eq!(listed, features, "{section}");
    }
}

#[test]
fn every_dependency_has_its_reason_on_the_page() {
    for heading in ["## In the program", "## For tests"] {
        for row in rows(heading) {
            assert!(row.reason.len() > 10, "{}: {}", row.name, row.reason);
        }
    }
}

#[test]
fn no_dependency_has_its_default_features() {
    for section in ["[dependencies]", "[dev-dependencies]"] {
        for (name, line) in dependencies(section) {
            assert!(line.contains("default-features = false"), "{name}");
        }
    }
}

#[test]
fn every_dependency_is_used() {
    let program = sources(&["src"]);
    let others = sources(&["src", "tests", "benches", "examples"]);
    for (section, text) in [("[dependencies]", program), ("[dev-dependencies]", others)] {
        for (name, _) in dependencies(section) {
            let path = format!("{}::", name.replace('-', "_"));
            let used = text.match_indices(&path).any(|(at, _)| {
                !text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
            });
            assert!(used, "{name} is used nowhere");
        }
    }
}

#[test]
#[cfg(not(relay_emulated))]
fn the_numbers_of_the_page_are_those_of_cargo_tree() {
    let tree = cargo_tree(&PROGRAM);
    let mut all = BTreeSet::new();
    let mut brought: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut direct = "";
    for line in tree.lines() {
        let (depth, package) = line.split_once(' ').unwrap();
        match depth {
            "0" => continue,
            "1" => {
                direct = package.split(' ').next().unwrap();
                brought.entry(direct).or_default();
            }
            _ => {
                brought.entry(direct).or_default().insert(package);
            }
        }
        all.insert(package);
    }
    let counted: BTreeMap<_, _> =
        brought.into_iter().map(|(name, packages)| (name, packages.len())).collect();
    let rows = rows("## In the program");
    let listed = rows.iter().map(|row| (row.name, row.brings.parse().unwrap())).collect();
    assert_eq!(counted, listed);
    let without: BTreeSet<_> = cargo_tree(&[&PROGRAM[..], &["--no-default-features"]].concat())
        .lines()
        .filter_map(|line| line.split_once(' ').filter(|(depth, _)| *depth != "0"))
        .map(|(_, package)| package.to_owned())
        .collect();
    for (count, when) in [(all.len(), "with TLS"), (without.len(), "without TLS")] {
        let sum = format!("**{count} crates**");
        assert!(PAGE.contains(&sum), "the page does not say {sum} {when}");
    }
}

#[test]
#[cfg(not(relay_emulated))]
fn a_simulated_clock_is_in_the_tests_alone() {
    let features = |edges| {
        let tree = cargo_tree(&["--edges", edges, "--depth", "0", "--format", " {f}"]);
        tree.trim().split([' ', ',']).any(|feature| feature == "simulation")
    };
    assert!(features("normal,dev"), "the tests have it");
    assert!(!features("normal"), "the program has not");
}

/// Options of `cargo tree`: what the program is built from.
#[cfg(not(relay_emulated))]
const PROGRAM: [&str; 4] = ["--edges", "normal", "--format", " {p}"];

/// A line for each crate, the depth first.
#[cfg(not(relay_emulated))]
fn cargo_tree(options: &[&str]) -> String {
    let tree = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--prefix", "depth", "--no-dedupe"])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .args(options)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    String::from_utf8(tree.stdout).unwrap()
}

/// A row of a table of the page.
struct Row {
    name: &'static str,
    features: BTreeSet<&'static str>,
    reason: &'static str,
    #[cfg_attr(
        relay_emulated,
        expect(dead_code, reason = "the crates of the PC are counted there")
    )]
    brings: &'static str,
}

/// The rows of the table below a heading.
fn rows(heading: &str) -> Vec<Row> {
    let (_, section) = PAGE.split_once(heading).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let row = |line: &'static str| {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let name = cells.next().unwrap().trim_matches('`');
        // What stands between the first and the second backtick, the third and the fourth, ...
        let features = cells.next().unwrap().split('`').skip(1).step_by(2).collect();
        let reason = cells.next().unwrap();
        Row { name, features, reason, brings: cells.next().unwrap_or_default() }
    };
    section.lines().filter(|line| line.starts_with("| `")).map(row).collect()
}

/// The dependencies of a section of the manifest: name, and the line that declares it.
fn dependencies(section: &str) -> BTreeMap<&'static str, &'static str> {
    let (_, lines) = MANIFEST.split_once(&format!("\n{section}\n")).unwrap();
    let lines = lines.lines().take_while(|line| !line.starts_with('['));
    let dependencies: BTreeMap<_, _> = lines
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_once(" = ").unwrap())
        .collect();
    assert!(dependencies.len() >= 5, "{section} has entries");
    dependencies
}

fn features(line: &'static str) -> BTreeSet<&'static str> {
    let list = line.split_once(" features = [").map_or("", |(_, rest)| rest);
    let list = list.split(']').next().unwrap();
    list.split('"').skip(1).step_by(2).collect()
}

/// The text of every source file below some folders.
fn sources(folders: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    text
}
