//! The logger: one line of `key=value` pairs a record, on standard error.
//!
//! Whatever comes from a peer is quoted and escaped, so that it can forge neither a line nor a
//! field. Records of the WebSocket codec below `warn` are dropped whatever is asked for: they hold
//! whole messages.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use env_filter::{Builder, Filter};
use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};

/// Writes records that pass its filter.
struct Logger {
    filter: Filter,
    /// Left out where the journal adds its own.
    timestamps: bool,
}

/// Installs the logger. `level` wins over `directives` (those of `RUST_LOG`); without either it is
/// `info`. The error in `directives`, if any, is returned for a warning.
pub fn install(
    level: Option<LevelFilter>,
    directives: Option<&str>,
    timestamps: bool,
) -> Result<Option<String>, SetLoggerError> {
    let mut builder = Builder::new();
    builder.filter_level(LevelFilter::Info);
    let mut complaint = None;
    match (level, directives) {
        (Some(level), _) => {
            builder.filter_level(level);
        }
        (None, Some(directives)) => {
            complaint = builder.try_parse(directives).err().map(|error| error.to_string());
        }
        (None, None) => {}
    }
    let filter = builder.build();
    log::set_max_level(filter.filter());
    log::set_boxed_logger(Box::new(Logger { filter, timestamps }))?;
    Ok(complaint)
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        may_log(metadata) && self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if may_log(record.metadata()) && self.filter.matches(record) {
            let line = line(record, self.timestamps.then(SystemTime::now));
            // There is nowhere to report that standard error is gone.
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

fn may_log(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let codec = ["tungstenite", "async_tungstenite"].iter().any(|name| {
        target == *name || target.strip_prefix(name).is_some_and(|rest| rest.starts_with("::"))
    });
    !codec || metadata.level() <= Level::Warn
}

fn line(record: &Record<'_>, time: Option<SystemTime>) -> String {
    let mut line = String::with_capacity(160);
    if let Some(time) = time.and_then(timestamp) {
        line.push_str("time=");
        line.push_str(&time);
        line.push(' ');
    }
    line.push_str("level=");
    line.push_str(match record.level() {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    });
    push_pair(&mut line, "event", &record.args().to_string());
    // The visitor never fails.
    let _ = record.key_values().visit(&mut Pairs(&mut line));
    line.push('\n');
    line
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
    fn the_codec_is_silent_below_warn() {
        for (target, level, expected) in [
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
