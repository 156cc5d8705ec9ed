//! Records for the journal, by its native protocol: the line as the message, and every field of
//! the record as a field of the journal (`server_id` as `SERVER_ID`), so that it can be searched for.

use std::io;

use log::kv::{Error, Key, Value, VisitSource};
use log::{Record, RecordBuilder};
use systemd_journal_logger::{JournalLog, connected_to_journal};

use super::line;

/// A connection to the journal of this machine.
///
/// A message waits until the journal has room for it, as a line on a standard error that is the
/// journal does with any program: a journal that hangs holds up the event loop until the watchdog
/// or the journal's own ends that.
pub(super) struct Journal(JournalLog);

impl Journal {
    /// Fails where no journal listens.
    pub(super) fn connect() -> io::Result<Self> {
        Ok(Self(JournalLog::empty()?.with_syslog_identifier("pyrycode-relay".to_owned())))
    }

    /// Hands a record over.
    pub(super) fn send(&self, record: &Record<'_>) -> io::Result<()> {
        let message = line(record, None);
        let fields = fields(record);
        let send = |message| {
            let builder = &mut RecordBuilder::new();
            builder.level(record.level()).target(record.target()).key_values(&fields);
            self.0.journal_send(&builder.args(message).build())
        };
        send(format_args!("{}", message.trim_end()))
    }
}

/// Whether standard error is the journal: `JOURNAL_STREAM` names it (`systemd.exec(5)`). A variable
/// that was handed down and names another file does not count.
pub(super) fn is_stderr() -> bool {
    connected_to_journal()
}

/// The event, and the fields of the record.
fn fields(record: &Record<'_>) -> Vec<(String, String)> {
    let mut fields = Fields(vec![("event".to_owned(), printable(&record.args().to_string()))]);
    // The visitor never fails.
    let _ = record.key_values().visit(&mut fields);
    fields.0
}

struct Fields(Vec<(String, String)>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        self.0.push((key.as_str().to_owned(), printable(&value.to_string())));
        Ok(())
    }
}

/// The text with control characters escaped: `journalctl` can be asked to print a field as it is.
/// A server-id has none, so that it is found as it stands.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\'' | '\\' => printable.push(character),
            _ => printable.extend(character.escape_debug()),
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    #[test]
    fn the_fields_are_the_event_and_those_of_the_record_with_nothing_to_print_but_text() {
        let id = r#"x"level=error\'"#;
        let pairs = [("server_id", id), ("device_name", "a\nPRIORITY=0\u{1b}[2J \u{202e}Zoë 📱")];
        let made = |args| {
            fields(&RecordBuilder::new().level(Level::Info).key_values(&pairs).args(args).build())
        };
        let expected = [
            ("event", "phone_registered"),
            ("server_id", id),
            ("device_name", r"a\nPRIORITY=0\u{1b}[2J \u{202e}Zoë 📱"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(made(format_args!("phone_registered")), expected);
    }
}
