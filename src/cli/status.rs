//! `pyrycode-relay status`: asks a running relay for its status and shows it in a terminal.
//!
//! Whatever a terminal would obey is escaped first: anything may listen at the address.

use std::fmt::Write as _;
use std::time::Duration;

use bytesize::ByteSize;
use serde_json::Value;

use crate::cli::ask;
use crate::cli::ask::Bounds;
use crate::limits::{
    DEFAULT_LISTEN, STATUS_MAX_ANSWER, STATUS_MAX_TEXT, STATUS_METRICS, STATUS_TIMEOUT,
};
use crate::telemetry::printable::{is_printable, printable};

/// What the relay answered.
#[derive(Debug)]
pub struct Report {
    /// The text for standard output.
    pub text: String,
    /// Whether the relay is healthy.
    pub healthy: bool,
}

/// How the report is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// As the relay sent it; characters that a terminal would obey are escaped.
    Json,
    /// A table; coloured or not.
    Table {
        /// Whether escape sequences for colours are written.
        colour: bool,
    },
}

/// Why there is no report.
#[derive(PartialEq, Eq, Debug)]
pub enum Failure {
    /// The URL cannot be used; a sentence.
    Usage(String),
    /// No relay answered; a sentence.
    Unreachable(String),
}

/// Asks the relay at `url`, or at its default addresses.
pub fn ask(url: Option<&str>, style: Style) -> Result<Report, Failure> {
    let page = match url {
        Some(url) => Target::parse(url)?.ask()?,
        None => ask_defaults()?,
    };
    let report = Report::new(&page, style);
    report.ok_or_else(|| Failure::Unreachable("the answer is not that of a relay".to_owned()))
}

/// Asks the metrics listener, and if that does not answer, the health page.
fn ask_defaults() -> Result<String, Failure> {
    let set = |name| {
        let value = std::env::var(name).ok().map(|value| value.trim().to_owned());
        value.filter(|value| !value.is_empty() && value != "off")
    };
    let reachable = |listen: &str| {
        // Where a relay listens on all interfaces it is reached through loopback.
        let port = listen.rsplit_once(':').map_or("", |(_, port)| port);
        match listen.strip_suffix(port) {
            Some(":" | "0.0.0.0:" | "[::]:") => format!("127.0.0.1:{port}"),
            _ => listen.to_owned(),
        }
    };
    let metrics = set("PYRYCODE_RELAY_METRICS_LISTEN");
    let is_set = metrics.is_some();
    let metrics = reachable(&metrics.unwrap_or_else(|| STATUS_METRICS.to_owned()));
    let first = Target { address: metrics, path: "/status.json".to_owned() }.ask();
    if first.is_ok() || is_set {
        return first;
    }
    let listen = set("PYRYCODE_RELAY_LISTEN").unwrap_or_else(|| DEFAULT_LISTEN.to_owned());
    let listen = reachable(listen.split(',').next().unwrap_or_default().trim());
    Target { address: listen, path: "/healthz".to_owned() }.ask()
}

/// Where to ask.
#[derive(PartialEq, Eq, Debug)]
struct Target {
    address: String,
    path: String,
}

impl Target {
    fn parse(url: &str) -> Result<Self, Failure> {
        let usage = |problem: &str| Failure::Usage(format!("{}: {problem}", escaped(url)));
        let rest = match url.split_once("://") {
            None => url,
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => {
                return Err(usage("only http:// is spoken; ask the relay itself, on its machine"));
            }
        };
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let is_odd = |byte: u8| !byte.is_ascii_graphic();
        if url.bytes().any(is_odd) || authority.is_empty() || authority.contains('@') {
            return Err(usage("write it as http://127.0.0.1:9464"));
        }
        let behind_brackets = authority.rsplit(']').next().unwrap_or_default();
        let address = match behind_brackets.split_once(':') {
            Some((_, port)) if port.parse::<u16>().is_err() => {
                return Err(usage("the port is none"));
            }
            Some(_) => authority.to_owned(),
            None => format!("{authority}:80"),
        };
        let path = if path == "/" { "/status.json" } else { path };
        Ok(Self { address, path: path.to_owned() })
    }

    /// Asks for the page. If the status page does not exist there, asks for the health page.
    fn ask(&self) -> Result<String, Failure> {
        let told = |error: &dyn std::fmt::Display| {
            Failure::Unreachable(format!("{} does not answer: {error}", escaped(&self.address)))
        };
        let get = |path| ask::get(&self.address, path, BOUNDS).map_err(|error| told(&error));
        let mut answer = get(&self.path)?;
        if answer.status == 404 && self.path == "/status.json" {
            answer = get("/healthz")?;
        }
        match answer.status {
            200 => Ok(answer.body),
            status => Err(told(&format!("HTTP status {status}"))),
        }
    }
}

impl Report {
    /// `None` if the page is not a relay's.
    fn new(page: &str, style: Style) -> Option<Self> {
        let value: Value = serde_json::from_str(page).ok()?;
        let status = value.get("status")?.as_str()?;
        let healthy = status == "ok";
        let text = match style {
            Style::Json => format!("{}\n", escaped_json(page.trim_end())),
            Style::Table { colour } => table(&value, status, healthy, colour),
        };
        Some(Self { text, healthy })
    }
}

fn table(page: &Value, status: &str, healthy: bool, colour: bool) -> String {
    let paint = |code: &str, text: &str| match colour {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    };
    let mut rows = Vec::new();
    let state = paint(if healthy { "32" } else { "31" }, &escaped(status));
    rows.push(("status", state));
    for problem in page["problems"].as_array().into_iter().flatten() {
        rows.push(("problem", paint("31", &escaped(problem.as_str().unwrap_or_default()))));
    }
    if let Some(version) = page["version"].as_str() {
        rows.push(("version", escaped(version)));
    }
    let number = |value: &Value| value.as_u64();
    if let Some(seconds) = number(&page["uptime_seconds"]) {
        rows.push(("up", humantime::format_duration(Duration::from_secs(seconds)).to_string()));
    }
    let awaited = match number(&page["slots_in_grace"]) {
        None | Some(0) => String::new(),
        Some(awaited) => format!(" ({awaited} more awaited back)"),
    };
    if let Some(binaries) = number(&page["connected_binaries"]) {
        rows.push(("binaries", format!("{binaries}{awaited}")));
    }
    if let Some(phones) = number(&page["connected_phones"]) {
        rows.push(("phones", phones.to_string()));
    }
    if let Some(rate) = page["messages_per_second"].as_f64() {
        rows.push(("messages", format!("{rate:.1} a second")));
    }
    if let Some(seconds) = page["longest_turn_seconds"].as_f64() {
        rows.push(("longest turn", format!("{:.1} ms", seconds * 1000.0)));
    }
    let size = |value: &Value| value.as_u64().map(|bytes| ByteSize::b(bytes).to_string());
    let memory = &page["memory"];
    if let (Some(held), Some(budget)) = (size(&memory["held_bytes"]), size(&memory["budget_bytes"]))
    {
        rows.push(("held for peers", format!("{held} of {budget}")));
    }
    if let Some(resident) = size(&memory["resident_bytes"]) {
        rows.push(("memory", resident));
    }
    let certificate = &page["certificate"];
    if let (Some(days), Some(until)) =
        (certificate["days_left"].as_i64(), certificate["not_after"].as_str())
    {
        rows.push(("certificate", format!("{days} days left, until {}", escaped(until))));
    }
    let descriptors = &page["descriptors"];
    if let (Some(used), Some(limit)) = (number(&descriptors["used"]), number(&descriptors["limit"]))
    {
        rows.push(("descriptors", format!("{used} of {limit}")));
    }
    if let Some(refusals) = page["refusals_last_hour"].as_object() {
        let mut kinds = refusals
            .iter()
            .filter(|(_, count)| count.as_u64().is_some_and(|count| count > 0))
            .map(|(kind, count)| format!("{} {count}", escaped(&kind.replace('_', " "))));
        let first = kinds.next().unwrap_or_else(|| "none in the last hour".to_owned());
        rows.push(("refusals", first));
        rows.extend(kinds.map(|kind| ("", kind)));
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in rows {
        let name = format!("{name:width$}");
        let _ = writeln!(text, "{}  {value}", paint("2", &name));
    }
    text
}

/// Text from the relay for the table: escaped, and cut at [`STATUS_MAX_TEXT`].
fn escaped(text: &str) -> String {
    printable(&text.chars().take(STATUS_MAX_TEXT).collect::<String>())
}

/// JSON for a terminal. Outside of its strings there are only white space and characters that can
/// be printed; inside of them every other character may be escaped.
fn escaped_json(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    for character in page.chars() {
        if is_printable(character) || matches!(character, '\n' | '\r' | '\t') {
            text.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing into a string never fails.
            let _ = write!(text, "\\u{unit:04x}");
        }
    }
    text
}

const BOUNDS: Bounds = Bounds { time: STATUS_TIMEOUT, bytes: STATUS_MAX_ANSWER };

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> (String, String) {
        let target = Target::parse(url).unwrap();
        (target.address, target.path)
    }

    #[test]
    fn a_url_is_an_address_and_a_path() {
        for (url, address, path) in [
            ("http://127.0.0.1:9464", "127.0.0.1:9464", "/status.json"),
            ("HTTP://[::1]:9464/", "[::1]:9464", "/status.json"),
            ("localhost:8080/healthz", "localhost:8080", "/healthz"),
            ("http://relay.lan", "relay.lan:80", "/status.json"),
            ("http://[::1]", "[::1]:80", "/status.json"),
        ] {
            assert_eq!(target(url), (address.to_owned(), path.to_owned()), "{url}");
        }
        for url in [
            "",
            "http://",
            "https://x",
            "ws://x:1",
            "http://x:y",
            "http://x:99999",
            "http://a b",
            "http://u@x/",
            "http://x/\r\nEvil: 1",
            ":",
            "http://\u{1b}",
        ] {
            assert!(matches!(Target::parse(url), Err(Failure::Usage(_))), "{url:?}");
        }
    }

    #[test]
    fn the_table_is_aligned_and_coloured_only_where_asked() {
        let page = r#"{"status":"ok","version":"1.2.3","connected_binaries":3,"connected_phones":10,
            "uptime_seconds":93784,"slots_in_grace":1}"#;
        let report = Report::new(page, Style::Table { colour: false }).unwrap();
        assert!(report.healthy);
        assert_eq!(
            report.text,
            "status    ok\nversion   1.2.3\nup        1day 2h 3m 4s\n\
             binaries  3 (1 more awaited back)\nphones    10\n"
        );
        let report = Report::new(page, Style::Table { colour: true }).unwrap();
        assert!(report.text.contains("\x1b[32mok\x1b[0m"));
    }

    #[test]
    fn problems_are_told_and_make_it_unhealthy() {
        let page = r#"{"status":"problem","problems":["hot","\u001b[2Jcold"]}"#;
        let report = Report::new(page, Style::Table { colour: false }).unwrap();
        assert!(!report.healthy);
        assert_eq!(report.text, "status   problem\nproblem  hot\nproblem  \\u{1b}[2Jcold\n");
        assert!(!Report::new(page, Style::Json).unwrap().healthy);
    }

    #[test]
    fn text_that_would_turn_a_line_around_is_escaped_in_a_table_and_in_json() {
        let page =
            "{\"status\":\"problem\",\"problems\":[\"\u{202e}evil\u{2066}\u{200f}\u{e0041}\"]}";
        let table = Report::new(page, Style::Table { colour: false }).unwrap().text;
        let expected = r"\u{202e}evil\u{2066}\u{200f}\u{e0041}";
        assert_eq!(table, format!("status   problem\nproblem  {expected}\n"));
        let json = Report::new(page, Style::Json).unwrap().text;
        assert!(json.contains(r"\u202eevil\u2066\u200f\udb40\udc41"), "{json}");
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(read(&json), read(page));
    }

    #[test]
    fn a_text_without_end_is_cut() {
        let page = format!("{{\"status\":\"{}\"}}", "é".repeat(STATUS_MAX_TEXT + 1));
        let table = Report::new(&page, Style::Table { colour: false }).unwrap().text;
        assert_eq!(table, format!("status  {}\n", "é".repeat(STATUS_MAX_TEXT)));
    }

    #[test]
    fn json_holds_no_control_character_and_says_the_same() {
        let page =
            "{\n\t\"status\":\"ok\",\"version\":\"\u{9b}31m\u{7f}\u{80}\u{9f}\u{a0}\u{e9}\"}\r\n";
        let told = Report::new(page, Style::Json).unwrap().text;
        assert!(told.chars().all(|one| !one.is_control() || "\n\t".contains(one)), "{told:?}");
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(read(&told), read(page));
        assert!(Report::new("{\"status\":\"ok\u{1b}\"}", Style::Json).is_none());
    }

    #[test]
    fn what_is_not_a_relays_page_is_none() {
        for page in ["", "<html>", "[]", "{}", r#"{"status":1}"#] {
            assert!(Report::new(page, Style::Json).is_none(), "{page}");
        }
    }
}
