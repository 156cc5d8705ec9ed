//! The logger: fields to the journal, or one line a record on standard error. Neither is waited
//! for: a record that finds no room is counted, and the count is told when there is room again.
//!
//! Whatever comes from a peer is quoted and escaped, so that it can forge neither a line nor a
//! field. Records of the WebSocket codec below `warn` are dropped whatever is asked for: they hold
//! whole messages; and so are those of the ACME client, which hold whole answers of the directory.
//! Refusals that repeat are summed up.

mod journal;
mod json_line;
mod lost;
mod repeats;
mod stderr;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Write as _;
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use env_filter::{Builder, Filter};
use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record, error};

use self::journal::Journal;
pub use self::repeats::Repeats;
use self::stderr::Stderr;
use crate::clock;
use crate::limits::REPEAT_WINDOW;

/// How records are written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// As fields to the journal where standard error is the journal, else as logfmt.
    Auto,
    /// Lines of `key=value` pairs on standard error.
    Logfmt,
    /// Lines of one JSON object on standard error.
    Json,
    /// As fields to the journal.
    Journal,
}

/// Writes records that pass its filter.
struct Logger {
    filter: Filter,
    /// `None` where nothing is summed up.
    repeats: Option<Arc<Repeats>>,
    /// The journal, where that is where records go.
    journal: Option<Journal>,
    stderr: Stderr,
}

/// What is left to do about a logger that was installed.
#[derive(Debug)]
pub struct Installed {
    /// What was held back; to be told when it is due and when the program ends.
    pub repeats: Arc<Repeats>,
    /// Mistakes worth a warning: the event and its reason.
    pub complaints: Vec<(&'static str, String)>,
}

/// Installs the logger, once a process. `level` wins over `directives` (those of `RUST_LOG`);
/// without either it is `info`. At `trace` nothing is summed up.
pub fn install(level: Option<LevelFilter>, directives: Option<&str>, format: Format) -> Installed {
    let mut complaints = Vec::new();
    let mut builder = Builder::new();
    builder.filter_level(LevelFilter::Info);
    match (level, directives) {
        (Some(level), _) => {
            builder.filter_level(level);
        }
        (None, Some(directives)) => {
            if let Err(error) = builder.try_parse(directives) {
                complaints.push(("RUST_LOG is ignored", error.to_string()));
            }
        }
        (None, None) => {}
    }
    let filter = builder.build();
    let to_journal = journal::is_stderr();
    let journal = match format {
        Format::Journal => Some(Journal::connect()),
        Format::Auto if to_journal => Some(Journal::connect()),
        _ => None,
    };
    let journal = journal.and_then(|connected| {
        connected.map_err(|error| complaints.push(("journal_not_reached", error.to_string()))).ok()
    });
    let stderr = match format {
        Format::Json => Stderr::new(json_line::line, true),
        // The journal has time stamps of its own.
        _ => Stderr::new(line, !to_journal),
    };
    let repeats = Arc::new(Repeats::new(REPEAT_WINDOW));
    let summing = filter.filter() < LevelFilter::Trace;
    let repeats_of_logger = summing.then(|| Arc::clone(&repeats));
    let max_level = filter.filter();
    let logger = Logger { filter, repeats: repeats_of_logger, journal, stderr };
    // It fails where a logger is installed already: then that is the one.
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(max_level);
        std::panic::set_hook(Box::new(log_panic));
    }
    Installed { repeats, complaints }
}

/// A panic as a record: by itself Rust writes to standard error, and waits for whoever reads it.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let reason = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let location = panic.location().map(ToString::to_string);
    // Empty unless RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => backtrace.to_string(),
        _ => String::new(),
    };
    error!(
        location = location.unwrap_or_default(), reason = reason.unwrap_or_default(),
        backtrace = backtrace;
        "panicked"
    );
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        may_log(metadata) && self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !may_log(record.metadata()) || !self.filter.matches(record) {
            return;
        }
        let holds = |repeats: &Arc<Repeats>| !repeats.admit(record, clock::now());
        if self.repeats.as_ref().is_some_and(holds) {
            return;
        }
        let sent = self.journal.as_ref().is_some_and(|journal| journal.send(record).is_ok());
        if !sent {
            self.stderr.write(record);
        }
    }

    fn flush(&self) {}
}

fn may_log(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let tells_all = ["tungstenite", "async_tungstenite", "rustls_acme"].iter().any(|name| {
        target == *name || target.strip_prefix(name).is_some_and(|rest| rest.starts_with("::"))
    });
    !tells_all || metadata.level() <= Level::Warn
}

fn line(record: &Record<'_>, time: Option<SystemTime>) -> String {
    let mut line = String::with_capacity(160);
    if let Some(time) = time.and_then(timestamp) {
        line.push_str("time=");
        line.push_str(&time);
        line.push(' ');
    }
    line.push_str("level=");
    line.push_str(level_name(record.level()));
    push_pair(&mut line, "event", &record.args().to_string());
    // The visitor never fails.
    let _ = record.key_values().visit(&mut Pairs(&mut line));
    line.push('\n');
    line
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// A clock before 1970 or after 9999 cannot be written; the line is worth more.
fn timestamp(time: SystemTime) -> Option<String> {
    time.duration_since(UNIX_EPOCH).ok()?;
    let mut text = String::new();
    write!(text, "{}", humantime::format_rfc3339_millis(time)).ok().map(|()| text)
}

struct Pairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        push_pair(self.0, key.as_str(), &value.to_string());
        Ok(())
    }
}

fn push_pair(line: &mut String, key: &str, value: &str) {
    line.push(' ');
    line.push_str(key);
    line.push('=');
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\');
    if !value.is_empty() && value.bytes().all(plain) {
        line.push_str(value);
        return;
    }
    line.push('"');
    for character in value.chars() {
        match character {
            '\'' => line.push(character),
            _ => line.extend(character.escape_debug()),
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use log::RecordBuilder;

    use super::*;

    fn logged(value: &str) -> String {
        let pairs = [("remote", "::1"), ("device_name", value)];
        let record = |args| {
            line(
                &RecordBuilder::new().level(Level::Info).key_values(&pairs).args(args).build(),
                None,
            )
        };
        record(format_args!("phone_registered"))
    }

    #[test]
    fn a_line_is_pairs_and_plain_values_are_bare() {
        assert_eq!(
            logged("pixel-9"),
            "level=info event=phone_registered remote=::1 device_name=pixel-9\n"
        );
    }

    #[test]
    fn peer_text_forges_neither_a_line_nor_a_field() {
        for (text, expected) in [
            ("", r#""""#),
            ("a b", r#""a b""#),
            ("x level=error", r#""x level=error""#),
            ("\" event=\"x", r#""\" event=\"x""#),
            ("a\nevent=fake", r#""a\nevent=fake""#),
            ("\u{1b}[2J\u{202e}", r#""\u{1b}[2J\u{202e}""#),
            ("back\\slash", r#""back\\slash""#),
            ("Zoë's 📱", r#""Zoë's 📱""#),
        ] {
            let line = logged(text);
            assert!(line.ends_with(&format!(" device_name={expected}\n")), "{line}");
            assert_eq!(line.lines().count(), 1);
        }
    }

    #[test]
    fn a_clock_that_cannot_be_right_costs_the_time_alone() {
        let at = |time: SystemTime| {
            line(&RecordBuilder::new().args(format_args!("x")).build(), Some(time))
        };
        let day = Duration::from_secs(24 * 60 * 60);
        assert!(at(UNIX_EPOCH).starts_with("time=1970-01-01T00:00:00.000Z level=info "));
        assert_eq!(at(UNIX_EPOCH - day), "level=info event=x\n");
        assert_eq!(at(UNIX_EPOCH + 366 * 10_000 * day), "level=info event=x\n");
    }

    #[test]
    fn the_codec_and_the_acme_client_are_silent_below_warn() {
        for (target, level, expected) in [
            ("rustls_acme::acme", Level::Debug, false),
            ("rustls_acme::state", Level::Info, false),
            ("rustls_acme", Level::Error, true),
            ("tungstenite::protocol", Level::Trace, false),
            ("async_tungstenite", Level::Info, false),
            ("tungstenite", Level::Warn, true),
            ("tungsten", Level::Trace, true),
        ] {
            let metadata = Metadata::builder().target(target).level(level).build();
            assert_eq!(may_log(&metadata), expected, "{target}");
        }
    }
}
