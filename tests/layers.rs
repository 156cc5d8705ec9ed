//! The import rule of the floor plan: a room imports only from the rooms before it in [`ORDER`];
//! inside a folder files may use each other, without a circle. `main.rs` stands on the library.
//!
//! The scan looks for paths that begin with `crate::` or `super::`. The face of a folder, its
//! `mod.rs`, belongs to all of its files, as the files in `wire/` are parts of `wire.rs`.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![allow(
    clippy::print_stdout,
    reason = "the figures of the plan are for whoever asks with --nocapture"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rooms, lowest first; those on one line are of one height. As in `docs/architecture.md`.
const ORDER: &[&str] = &[
    "limits clock ids close origin signals leg file links",
    "telemetry",
    "net",
    "websocket",
    "envelope",
    "queue",
    "admission",
    "http",
    "tls no_tls",
    "config",
    "registry",
    "relay",
    "monitor",
    "connection",
    "handover",
    "server",
    "cli",
];

#[test]
fn every_room_imports_only_from_the_rooms_before_it() {
    let sources = sources();
    assert_eq!(violations(&sources), Vec::<String>::new());
    let rooms: BTreeSet<_> =
        sources.iter().map(|(file, _)| room(&part_of(file)).to_owned()).collect();
    let arrows = sources.iter().flat_map(|(file, text)| {
        let targets = targets(file, text, &sources).into_iter();
        targets.map(|to| (room(&part_of(file)).to_owned(), room(&to).to_owned()))
    });
    let arrows: BTreeSet<_> = arrows.filter(|(from, to)| from != to).collect();
    println!("{} rooms, {} arrows between them", rooms.len(), arrows.len());
    assert!(rooms.len() > 15 && arrows.len() > 50, "the scan finds too little: {arrows:?}");
}

#[test]
fn the_documented_floor_plan_is_this() {
    let page = include_str!("../docs/architecture.md");
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: Vec<_> =
        cells.map(|room| room.trim_end_matches('/').trim_end_matches(".rs")).collect();
    let order: Vec<_> = ORDER.iter().flat_map(|row| row.split(' ')).collect();
    assert_eq!(documented, order);
}

#[test]
fn the_feature_tls_is_asked_for_where_its_stub_is_chosen_and_where_check_looks_at_it() {
    let sources = sources();
    let asking = sources.iter().filter(|(_, text)| text.contains("feature = \"tls\""));
    let asking: BTreeSet<_> = asking.map(|(file, _)| file.as_str()).collect();
    assert_eq!(asking, BTreeSet::from(["lib.rs", "cli/check.rs"]));
}

#[test]
fn nobody_goes_around_the_clock() {
    let found = |text: &str| {
        let code = text.lines().map(|line| line.split("//").next().unwrap());
        code.filter(|line| goes_around_the_clock(line)).map(str::to_owned).collect::<Vec<_>>()
    };
    for (file, text) in sources() {
        if !file.starts_with("clock") {
            assert_eq!(found(&text), [""; 0], "{file}: ask `crate::clock`");
        }
    }
    for wrong in [
        "let now = std::time::Instant::now();",
        "now: SystemTime::now,",
        "begun.elapsed() > limit",
        "use async_io::{Async, Timer};",
        "smol::Timer::after(pause).await",
    ] {
        assert_eq!(found(wrong), [wrong]);
    }
    assert_eq!(found("use crate::clock::Timer; // Instant::now"), [""; 0]);
}

/// Whether it asks for the time, or waits for it, by another way.
fn goes_around_the_clock(line: &str) -> bool {
    let has = |part| line.contains(part);
    let asks = ["Instant::now", "SystemTime::now", ".elapsed()"].into_iter().any(has);
    asks || has("Timer") && (has("smol::") || has("async_io::"))
}

#[test]
fn a_wrong_import_and_a_circle_are_found() {
    let wrong = |files: &[(&str, &str)]| {
        let owned = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned()));
        violations(&owned.collect::<Vec<_>>()).len()
    };
    assert_eq!(wrong(&[("net/a.rs", "use crate::limits::X; // crate::cli"), ("limits.rs", "")]), 0);
    assert_eq!(wrong(&[("net/a.rs", "use crate::queue::X;")]), 1, "a room of a later line");
    assert_eq!(wrong(&[("limits.rs", "fn f() { crate::net::a() }")]), 1, "without an import");
    assert_eq!(wrong(&[("net/mod.rs", "use super::queue::X;")]), 1, "by way of the root");
    assert_eq!(wrong(&[("net/a.rs", "use super::super::queue::X;")]), 1, "further up");
    assert_eq!(wrong(&[("net/a.rs", "use crate::{limits};")]), 2, "a list");
    assert_eq!(wrong(&[("stray.rs", "")]), 1, "a file without a place");
    let (a, b) = (("net/a.rs", "use crate::net::b::X;"), ("net/b.rs", "use super::c::X;"));
    assert_eq!(wrong(&[a, b, ("net/c.rs", "use super::Face;"), ("net/mod.rs", "")]), 0);
    assert_eq!(wrong(&[a, b, ("net/c/d.rs", "use crate::net::a::X;")]), 3, "a circle of three");
    assert_eq!(wrong(&[("ids.rs", "use crate::leg::X;"), ("leg.rs", "use crate::ids::X;")]), 2);
}

/// What is wrong with these files, a sentence each.
fn violations(sources: &[(String, String)]) -> Vec<String> {
    let height =
        |part: &str| ORDER.iter().position(|row| row.split(' ').any(|name| name == room(part)));
    let mut wrong = Vec::new();
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in sources.iter().filter(|(file, _)| file != "lib.rs" && file != "main.rs") {
        let from = part_of(file);
        if ["crate::{", "super::super", "#[path"].iter().any(|way| text.contains(way)) {
            wrong.push(format!("{file}: write each path out, from the crate on"));
        }
        for to in targets(file, text, sources) {
            match height(&to) {
                Some(below) if Some(below) < height(&from) => {}
                // Of the same room, or a word beside it: the face belongs to all parts.
                Some(same) if Some(same) == height(&from) => {
                    if to.contains("::") == from.contains("::") && to != from {
                        arrows.entry(from.clone()).or_default().insert(to);
                    }
                }
                _ => wrong.push(format!("{file}: {to} is not before {from}")),
            }
        }
        if height(&from).is_none() {
            wrong.push(format!("{file} has no place in the order"));
        }
    }
    for from in arrows.keys() {
        let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(part) = next.pop() {
            next.extend(arrows.get(part).into_iter().flatten().filter(|to| reached.insert(*to)));
        }
        if reached.contains(from) {
            wrong.push(format!("{from} is part of a circle: {reached:?}"));
        }
    }
    wrong
}

/// `net::wire` for `net/wire.rs` and all below `net/wire/`, `net` for its face, `limits` for `limits.rs`.
fn part_of(file: &str) -> String {
    let names = file.trim_end_matches(".rs").split('/').take(2).filter(|name| *name != "mod");
    names.collect::<Vec<_>>().join("::")
}

fn room(part: &str) -> &str {
    part.split("::").next().unwrap()
}

/// The parts that a file names outside of its comments.
fn targets(file: &str, text: &str, sources: &[(String, String)]) -> Vec<String> {
    let folder =
        file.rsplit_once('/').filter(|_| !file.ends_with("/mod.rs")).map(|(folder, _)| folder);
    let is_there = |part: &str| sources.iter().any(|(file, _)| part_of(file) == part);
    let mut targets = Vec::new();
    for line in text.lines().map(|line| line.split("//").next().unwrap()) {
        for (way, above) in [("crate::", None), ("super::", folder)] {
            for (at, _) in line.match_indices(way) {
                let is_name = |sign: char| sign == '_' || sign == ':' || sign.is_alphanumeric();
                let path = &line[at + way.len()..];
                let path = path.split(|sign| !is_name(sign)).next().unwrap().split("::");
                let names = above.into_iter().flat_map(|above| above.split('/')).chain(path);
                let names: Vec<_> = names.take(2).collect();
                let part = names.join("::");
                // At the root, `super` is what an inline module says of its own file.
                let is_room = ORDER.iter().any(|row| row.split(' ').any(|name| name == names[0]));
                if way == "crate::" || is_room {
                    targets.push(if is_there(&part) { part } else { names[0].to_owned() });
                }
            }
        }
    }
    targets
}

/// Every source file by its path below `src`, with its text.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut directories, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let file = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                sources.push((file, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    sources
}
