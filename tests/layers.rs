//! The import rule of the design: a file imports only from files of a lower rank, so siblings
//! never import each other and there is no circle; `main.rs` imports through the library alone.
//!
//! A file in a directory that has its parent's rank is a part of the parent's module, as every
//! `tests.rs` is and every file below `tests/`; the parts of one module may use each other. With a
//! lower rank than its parent it is a file like any other.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![allow(clippy::panic, reason = "in a test a panic is the report")]

use std::collections::BTreeMap;
use std::path::Path;

const RANKS: &[(u32, &[&str])] = &[
    (0, &["limits.rs"]),
    (1, &["board.rs", "logging/journal.rs", "logging/json.rs", "logging/repeats.rs"]),
    (1, &["logging/stderr.rs"]),
    (
        1,
        &[
            "budget.rs",
            "certificate.rs",
            "close.rs",
            "forwarded.rs",
            "heartbeat.rs",
            "history.rs",
            "ids.rs",
        ],
    ),
    (1, &["logging.rs", "metrics.rs", "metrics/label.rs", "monitor/chart.rs", "process.rs"]),
    (1, &["json.rs", "proxy_header.rs", "reload.rs", "scratch.rs", "shutdown.rs", "source.rs"]),
    (1, &["listen.rs", "status.rs", "systemd.rs", "transport.rs"]),
    (2, &["allow.rs", "attempts.rs", "events.rs", "frames.rs", "gate.rs", "heads.rs"]),
    (1, &["tls/cache.rs", "tls/names.rs"]),
    (2, &["permits.rs", "probe.rs", "proxies.rs", "tls/certificates.rs", "tls/stream.rs"]),
    (
        3,
        &[
            "config.rs",
            "config/command.rs",
            "config/sources.rs",
            "config/tls.rs",
            "envelope.rs",
            "head.rs",
            "lane.rs",
            "monitor/request.rs",
            "tls.rs",
            "tls/files.rs",
            "tls/acme.rs",
            "tls/acme/order.rs",
            "tls/acme/schedule.rs",
            "tls/acme/settings.rs",
            "wire.rs",
            "wire/follower.rs",
        ],
    ),
    (4, &["outbox.rs"]),
    (5, &["check.rs", "check/address.rs", "check/tls.rs"]),
    (5, &["registry.rs", "registry/backlog.rs", "registry/revocation.rs"]),
    (5, &["registry/seat.rs", "registry/slot.rs"]),
    (6, &["health.rs", "relay.rs"]),
    (7, &["link.rs", "link/peer.rs", "link/reading.rs", "monitor/snapshot.rs"]),
    (8, &["endpoint/client.rs", "endpoint/server.rs", "endpoint/visitor.rs"]),
    (8, &["monitor/json.rs", "monitor/metrics_page.rs", "monitor/page.rs"]),
    (9, &["endpoint.rs", "monitor.rs"]),
    (10, &["accept.rs"]),
    (11, &["lib.rs"]),
    (12, &["main.rs"]),
];

#[test]
fn every_file_imports_only_from_lower_ranks() {
    let sources = sources();
    assert!(sources.len() > 30, "only {} files were found", sources.len());
    let known: Vec<_> = sources.iter().map(|(file, text)| (file.as_str(), text.as_str())).collect();
    assert_eq!(violations(&known, &table()), Vec::<String>::new());
    let imports: usize = known.iter().map(|(_, text)| imports(text).len()).sum();
    assert!(imports > 100, "only {imports} imports were found");
}

#[test]
fn the_documented_ranks_are_these() {
    assert_eq!(documented(include_str!("../docs/architecture.md")), table());
}

/// File to rank.
type Table<'a> = BTreeMap<&'a str, u32>;

fn table() -> Table<'static> {
    let mut table = Table::new();
    for (rank, files) in RANKS {
        for file in *files {
            assert_eq!(table.insert(file, *rank), None, "{file} is listed twice");
        }
    }
    table
}

/// The ranks in the table of a document: `| rank | file | purpose |`, files as code spans.
fn documented(page: &str) -> Table<'_> {
    let mut table = Table::new();
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        Some((cells.next()?.parse().ok()?, cells.next()?))
    });
    for (rank, cell) in rows {
        // What stands between the first and the second backtick, the third and the fourth, ...
        for file in cell.split('`').skip(1).step_by(2) {
            assert_eq!(table.insert(file, rank), None, "{file} is documented twice");
        }
    }
    table
}

/// Every source file by its path below `src`, with its text.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut directories = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let file = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
                sources.push((file, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    sources
}

/// What is wrong with these files, a sentence each.
fn violations(sources: &[(&str, &str)], table: &Table<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    let is_there = |file: &str| sources.iter().any(|(there, _)| *there == file);
    for file in table.keys().filter(|file| !is_there(file)) {
        wrong.push(format!("{file} has a rank and does not exist"));
    }
    for (file, source) in sources {
        let Some(rank) = rank_of(file, table) else {
            wrong.push(format!("{file} has no rank"));
            continue;
        };
        if parent(file).and_then(|parent| rank_of(&parent, table)).is_some_and(|above| rank > above)
        {
            wrong.push(format!("{file} ranks above its own parent"));
        }
        if *file == "main.rs" && declares_a_file(source) {
            wrong.push(format!("{file} has a module beside the library"));
        }
        for import in imports(source) {
            let written = import.segments.join("::");
            match import.resolve(file, sources) {
                None => wrong.push(format!("{file}: {written} leaves the crate")),
                Some(target) if module_of(&target, table) == module_of(file, table) => {}
                Some(target) => match rank_of(&target, table) {
                    Some(below) if below < rank => {}
                    _ => wrong.push(format!("{file}: {written} is in {target}, not of lower rank")),
                },
            }
        }
    }
    wrong
}

/// The rank of a file; its unit tests, in one file or several, have the rank of what they test.
fn rank_of(file: &str, table: &Table<'_>) -> Option<u32> {
    let tested = file.strip_suffix("/tests.rs").or_else(|| Some(file.split_once("/tests/")?.0));
    match tested {
        Some(tested) => table.get(format!("{tested}.rs").as_str()).copied(),
        None => table.get(file).copied(),
    }
}

/// The file that declares this one, unless that is the root.
fn parent(file: &str) -> Option<String> {
    file.rsplit_once('/').map(|(directory, _)| format!("{directory}.rs"))
}

/// The file that stands for the module that `file` is a part of.
fn module_of(file: &str, table: &Table<'_>) -> String {
    match parent(file) {
        Some(parent) if rank_of(&parent, table) == rank_of(file, table) => {
            module_of(&parent, table)
        }
        _ => file.to_owned(),
    }
}

/// Whether there is a `mod name;`.
fn declares_a_file(source: &str) -> bool {
    tokens(source).windows(3).any(|three| three[0] == "mod" && three[2] == ";")
}

/// A path into this crate, as it stands in a file.
#[derive(PartialEq, Eq, Debug)]
struct Import<'a> {
    /// The inline modules around it.
    inside: Vec<&'a str>,
    /// Its segments, from `crate`, `self`, `super` or the crate's name on.
    segments: Vec<&'a str>,
}

impl Import<'_> {
    /// The file that it leads to from `file`; `None` if it leaves the crate.
    fn resolve(&self, file: &str, sources: &[(&str, &str)]) -> Option<String> {
        if file == "main.rs" && self.segments[0] != LIBRARY {
            // The program is a crate of one file.
            return Some(file.to_owned());
        }
        let mut path: Vec<&str> = match self.segments[0] {
            "self" | "super" => {
                let own = file.trim_end_matches(".rs").split('/').filter(|name| *name != "lib");
                own.chain(self.inside.iter().copied()).collect()
            }
            _ => Vec::new(),
        };
        for segment in &self.segments {
            match *segment {
                "crate" | "self" | LIBRARY => {}
                "super" => {
                    path.pop()?;
                }
                name => path.push(name),
            }
        }
        while !path.is_empty() {
            let target = path.join("/") + ".rs";
            if sources.iter().any(|(there, _)| *there == target) {
                return Some(target);
            }
            path.pop();
        }
        Some("lib.rs".to_owned())
    }
}

const LIBRARY: &str = "pyrycode_relay";

/// Every path of a source that begins at the crate, at its own module or at the one above.
fn imports(source: &str) -> Vec<Import<'_>> {
    let tokens = tokens(source);
    let token = |index: usize| tokens.get(index).copied().unwrap_or_default();
    let mut imports = Vec::new();
    // One entry an open brace: the name of the inline module that it opens, if it opens one.
    let mut open: Vec<Option<&str>> = Vec::new();
    for (index, word) in tokens.iter().enumerate() {
        match *word {
            "{" => {
                let is_module = index > 1 && token(index - 2) == "mod";
                open.push(is_module.then(|| token(index - 1)));
            }
            "}" => {
                open.pop();
            }
            // A module by another name would be invisible from here on.
            "path" if index > 1 && token(index - 1) == "[" && token(index - 2) == "#" => {
                panic!("a module's file is found by its name, not by an attribute");
            }
            "crate" | "self" | "super" | LIBRARY
                if ["::", "as"].contains(&token(index + 1))
                    && (index == 0 || token(index - 1) != "::") =>
            {
                let mut paths = Vec::new();
                collect(&tokens, index, &[], &mut paths);
                let inside: Vec<_> = open.iter().flatten().copied().collect();
                imports.extend(
                    paths.into_iter().map(|segments| Import { inside: inside.clone(), segments }),
                );
            }
            _ => {}
        }
    }
    imports
}

/// Collects the paths of the tree that begins at `at`; returns where it ends.
fn collect<'a>(
    tokens: &[&'a str],
    at: usize,
    before: &[&'a str],
    paths: &mut Vec<Vec<&'a str>>,
) -> usize {
    let token = |index: usize| tokens.get(index).copied().unwrap_or_default();
    if token(at) == "{" {
        let mut next = at + 1;
        while !["}", ""].contains(&token(next)) {
            next = collect(tokens, next, before, paths);
            if token(next) == "," {
                next += 1;
            }
        }
        return next + 1;
    }
    let path = [before, &[token(at)]].concat();
    let goes_on = token(at + 1) == "::" && (is_word(token(at + 2)) || "{*".contains(token(at + 2)));
    if goes_on {
        return collect(tokens, at + 2, &path, paths);
    }
    paths.push(path);
    if token(at + 1) == "as" { at + 3 } else { at + 1 }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|first: char| first == '_' || first.is_alphabetic())
}

/// The words and signs of a source, without comments, literals and lifetimes. `::` is one sign.
fn tokens(source: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|sign: char| sign != '_' && !sign.is_alphanumeric());
        let length = match word.unwrap_or(rest.len()) {
            0 if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            0 if rest.starts_with("/*") => block_comment(rest),
            0 if first == '"' => 1 + quoted(&rest[1..], '"'),
            0 if first == '\'' => 1 + character_or_lifetime(&rest[1..]),
            0 if first.is_whitespace() => first.len_utf8(),
            0 => {
                let length = if rest.starts_with("::") { 2 } else { first.len_utf8() };
                tokens.push(&rest[..length]);
                length
            }
            length => match raw_string(&rest[..length], &rest[length..]) {
                Some(literal) => length + literal,
                None => {
                    tokens.push(&rest[..length]);
                    length
                }
            },
        };
        rest = &rest[length..];
    }
    tokens
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let step = match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => {
                depth += 1;
                2
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        at += step;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// Length of a literal behind its opening quote, the closing one included.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, sign) in rest.char_indices() {
        if sign == quote && !escaped {
            return at + 1;
        }
        escaped = sign == '\\' && !escaped;
    }
    rest.len()
}

fn character_or_lifetime(rest: &str) -> usize {
    let mut signs = rest.chars();
    let is_character = signs.next() == Some('\\') || signs.next() == Some('\'');
    if is_character {
        return quoted(rest, '\'');
    }
    rest.find(|sign: char| sign != '_' && !sign.is_alphanumeric()).unwrap_or(rest.len())
}

/// Length of the raw string behind `prefix`, if there is one.
fn raw_string(prefix: &str, rest: &str) -> Option<usize> {
    if !["r", "br", "cr"].contains(&prefix) {
        return None;
    }
    let hashes = rest.find(|sign| sign != '#').filter(|at| rest[*at..].starts_with('"'))?;
    let end = format!("\"{}", "#".repeat(hashes));
    let text = hashes + 1;
    Some(rest[text..].find(&end).map_or(rest.len(), |at| text + at + end.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three ranks, a module in two files, and one whose parts rank below it.
    fn check(file: &str, source: &str) -> Vec<String> {
        let table = Table::from([
            ("low.rs", 0),
            ("left.rs", 1),
            ("right.rs", 1),
            ("pair.rs", 2),
            ("pair/half.rs", 2),
            ("top/one.rs", 3),
            ("top/two.rs", 3),
            ("top.rs", 4),
            ("lib.rs", 5),
            ("main.rs", 6),
        ]);
        let mut sources: Vec<_> = table.keys().map(|file| (*file, "")).collect();
        sources.retain(|(known, _)| *known != file);
        sources.push((file, source));
        violations(&sources, &table)
    }

    fn imported(source: &str) -> Vec<String> {
        imports(source).iter().map(|import| import.segments.join("::")).collect()
    }

    #[test]
    fn a_lower_rank_may_be_imported_in_any_spelling() {
        for source in [
            "use crate::low::Name;",
            "use super::low::Name;",
            "pub use crate::{low::{self, Name as Other}};",
            "fn f() { crate::low::call::<u8>() }",
            "mod tests { use super::super::low::*; use super::*; }",
            "use std::collections::HashMap; use self::Local::*;",
        ] {
            assert_eq!(check("left.rs", source), Vec::<String>::new(), "{source}");
        }
    }

    #[test]
    fn a_sibling_or_a_higher_rank_may_not_be_imported_in_any_spelling() {
        for source in [
            "use crate::right::Name;",
            "use crate::right;",
            "use crate::{low::Name, right::{Other, Third}};",
            "use crate::{\n    low,\n    pair as friend,\n};",
            "use super::right::Name;",
            "use super::{low, top};",
            "fn f() { let _ = crate::pair::call(); }",
            "fn f(_: impl crate::right::Trait) {}",
            "macro_rules! m { () => { $crate::right::call() } }",
            "mod tests { use super::super::right::Name; }",
            "mod tests { use crate::top::one::Name; }",
            "fn f() { let c = '\"'; let d = '\\''; crate::right::call(c, d, \"'\"); }",
            "fn f<'a>(a: &'a str) -> &'a crate::right::Name<'a> { a }",
            "const A: &str = r#\"\"#; use crate::right::B;",
            "/* a /* nested */ comment */ use crate::right::B;",
        ] {
            assert!(!check("left.rs", source).is_empty(), "{source}");
        }
    }

    #[test]
    fn what_the_root_exports_belongs_to_the_root() {
        for source in [
            "use crate::Name;",
            "use crate::*;",
            "use super::Name;",
            "use crate as root;",
            "use crate::{self as root};",
        ] {
            let found = check("left.rs", source);
            assert!(found[0].ends_with(" is in lib.rs, not of lower rank"), "{source}: {found:?}");
        }
    }

    #[test]
    fn comments_and_literals_import_nothing() {
        for source in [
            "// use crate::right::Name;",
            "/// See [`crate::right`].",
            "/* use crate::right; /* and */ use crate::top; */",
            "const A: &str = \"crate::right::B \\\" crate::top\";",
            "const A: &str = r##\"crate::right::B \"# crate::top\"##;",
            "const A: &[u8] = br\"crate::right::B\\\"; const B: &[u8] = b\"crate::top\";",
            "pub(crate) fn f() {} pub(super) fn g() {} pub(in crate::left) fn h() {}",
        ] {
            assert_eq!(check("left.rs", source), Vec::<String>::new(), "{source}");
        }
    }

    #[test]
    fn the_parts_of_one_module_may_use_each_other_and_nothing_above() {
        assert!(
            check("pair.rs", "mod half; use self::half::A; use crate::pair::half::B;").is_empty()
        );
        assert!(
            check("pair/half.rs", "use super::A; use crate::pair::B; use crate::left;").is_empty()
        );
        assert_eq!(check("pair/half.rs", "use crate::top::A;").len(), 1);
        assert_eq!(check("pair/half.rs", "use super::super::top::A;").len(), 1);
    }

    #[test]
    fn parts_below_their_parent_are_siblings() {
        assert!(
            check("top.rs", "pub mod one; use self::one::A; use crate::top::two::B;").is_empty()
        );
        assert_eq!(check("top/one.rs", "use super::A;").len(), 1);
        assert_eq!(check("top/one.rs", "use super::two::A;").len(), 1);
        assert_eq!(check("top/one.rs", "use crate::top::two::A;").len(), 1);
        assert!(check("top/one.rs", "use crate::pair::A;").is_empty());
    }

    #[test]
    fn unit_tests_in_a_file_of_their_own_are_bound_like_what_they_test() {
        assert!(check("left/tests.rs", "use super::*; use crate::low::A;").is_empty());
        assert_eq!(check("left/tests.rs", "use crate::right::A;").len(), 1);
        assert_eq!(check("left/tests.rs", "use super::super::pair::A;").len(), 1);
        assert_eq!(check("nowhere/tests.rs", "").len(), 1);
        assert!(check("left/tests/one.rs", "use super::*; use super::super::A;").is_empty());
        assert_eq!(check("left/tests/one.rs", "use crate::right::A;").len(), 1);
        assert_eq!(check("nowhere/tests/one.rs", "").len(), 1);
    }

    #[test]
    fn the_program_imports_through_the_library() {
        assert!(
            check("main.rs", "use pyrycode_relay::top::one; mod inner { use super::*; }")
                .is_empty()
        );
        assert_eq!(check("main.rs", "mod low; use low::A;").len(), 1);
    }

    #[test]
    fn the_table_and_the_files_are_the_same() {
        assert_eq!(check("stray.rs", ""), ["stray.rs has no rank"]);
        let table = Table::from([("a.rs", 1), ("a/b.rs", 2), ("gone.rs", 0)]);
        assert_eq!(
            violations(&[("a.rs", ""), ("a/b.rs", "")], &table),
            ["gone.rs has a rank and does not exist", "a/b.rs ranks above its own parent"]
        );
    }

    #[test]
    fn ranks_are_read_from_a_documents_table() {
        let page = "text\n| rank | file | purpose |\n|---|---|---|\n\
                    | 0 | `low.rs` | the `code` of it |\n| 12 | `a.rs`, `a/b.rs` | |\n";
        assert_eq!(documented(page), Table::from([("low.rs", 0), ("a.rs", 12), ("a/b.rs", 12)]));
    }

    #[test]
    fn nested_braces_are_followed_to_every_leaf() {
        assert_eq!(
            imported("use crate::{a::{B, c::{self, D as E, *}}, f, g::H,}; use std::{i, j};"),
            [
                "crate::a::B",
                "crate::a::c::self",
                "crate::a::c::D",
                "crate::a::c::*",
                "crate::f",
                "crate::g::H"
            ]
        );
    }
}
