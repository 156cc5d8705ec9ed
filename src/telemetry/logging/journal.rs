//! Records for the journal, by its native protocol: the line as the message, and every field of
//! the record as a field of the journal (`server_id` as `SERVER_ID`), so that it can be searched for.
//!
//! The protocol is described at <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, Record};

use super::line;
use super::lost::Lost;

/// A socket for the journal of this machine. The journal's queue is ten records; one that finds no
/// room in it is counted.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: &'static Path,
    lost: Lost,
}

impl Journal {
    /// Fails where no journal listens.
    pub(super) fn connect() -> io::Result<Self> {
        Self::at(Path::new(SOCKET))
    }

    fn at(path: &'static Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let journal = Self { socket, path, lost: Lost::default() };
        // It drops what is empty. One without room is there.
        match journal.post(&[]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(journal),
        }
    }

    /// Hands a record over, or counts it. The error is that there is no journal, or that it takes
    /// none of that size.
    pub(super) fn send(&self, record: &Record<'_>) -> io::Result<()> {
        self.lost.write(record, |record| self.post(&datagram(record)))
    }

    fn post(&self, datagram: &[u8]) -> io::Result<()> {
        // By the path each time: another journal may have taken the place of the first.
        self.socket.send_to(datagram, self.path).map(drop)
    }
}

/// Whether standard error is the journal: `JOURNAL_STREAM` names it (`systemd.exec(5)`). A variable
/// that was handed down and names another file does not count.
pub(super) fn is_stderr() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// A record as the journal takes it.
fn datagram(record: &Record<'_>) -> Vec<u8> {
    let mut fields = Fields(Vec::with_capacity(1024));
    let priority = match record.level() {
        Level::Error => "3",
        Level::Warn => "4",
        Level::Info => "5",
        Level::Debug => "6",
        Level::Trace => "7",
    };
    fields.put("PRIORITY", priority);
    fields.put("MESSAGE", line(record, None).trim_end());
    fields.put("SYSLOG_PID", &std::process::id().to_string());
    fields.put("SYSLOG_IDENTIFIER", "pyrycode-relay");
    fields.put("TARGET", record.target());
    fields.put("EVENT", &printable(&record.args().to_string()));
    // The visitor never fails.
    let _ = record.key_values().visit(&mut fields);
    fields.0
}

struct Fields(Vec<u8>);

impl Fields {
    /// In the form that takes any value: the name, a line feed, the value's length in eight bytes,
    /// lowest first, the value, a line feed.
    fn put(&mut self, name: &str, value: &str) {
        let length = u64::try_from(value.len()).unwrap_or(u64::MAX);
        self.0.extend(name.as_bytes());
        self.0.push(b'\n');
        self.0.extend(length.to_le_bytes());
        self.0.extend(value.as_bytes());
        self.0.push(b'\n');
    }
}

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        self.put(&field_name(key.as_str()), &printable(&value.to_string()));
        Ok(())
    }
}

/// The name as the journal takes it: capitals, digits and `_`, no `_` or digit first, 64 at most.
fn field_name(key: &str) -> String {
    let allowed = |sign: char| match sign.to_ascii_uppercase() {
        sign @ ('A'..='Z' | '0'..='9') => sign,
        _ => '_',
    };
    key.trim_start_matches(|sign: char| !sign.is_ascii_alphabetic())
        .chars()
        .map(allowed)
        .take(64)
        .collect()
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

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use log::RecordBuilder;

    use super::*;

    /// The fields of a datagram, by the description of the protocol.
    fn parsed(mut datagram: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !datagram.is_empty() {
            let end = datagram.iter().position(|byte| *byte == b'\n').unwrap();
            let (name, rest) = datagram.split_at(end);
            let (length, rest) = rest[1..].split_at(8);
            let length = u64::from_le_bytes(length.try_into().unwrap());
            let (value, rest) = rest.split_at(usize::try_from(length).unwrap());
            assert_eq!(rest[0], b'\n');
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            fields.push((text(name), text(value)));
            datagram = &rest[1..];
        }
        fields
    }

    #[test]
    fn the_fields_are_the_event_and_those_of_the_record_with_nothing_to_print_but_text() {
        let id = r#"x"level=error\'"#;
        let pairs = [("server_id", id), ("device_name", "a\nPRIORITY=0\u{1b}[2J \u{202e}Zoë 📱")];
        let made = |args| {
            let mut builder = RecordBuilder::new();
            builder.level(Level::Info).target("t").key_values(&pairs);
            parsed(&datagram(&builder.args(args).build()))
        };
        let made = made(format_args!("phone_registered"));
        let names: Vec<_> = made.iter().map(|(name, _)| name.as_str()).collect();
        let first = ["PRIORITY", "MESSAGE", "SYSLOG_PID", "SYSLOG_IDENTIFIER", "TARGET", "EVENT"];
        assert_eq!(names, [&first[..], &["SERVER_ID", "DEVICE_NAME"]].concat());
        let field = |name| &made.iter().find(|(known, _)| known == name).unwrap().1;
        assert_eq!(field("PRIORITY"), "5");
        assert!(field("MESSAGE").starts_with("level=info event=phone_registered server_id="));
        assert!(!field("MESSAGE").contains('\n'));
        assert_eq!(field("TARGET"), "t");
        assert_eq!(field("EVENT"), "phone_registered");
        assert_eq!(field("SERVER_ID"), id);
        assert_eq!(field("DEVICE_NAME"), r"a\nPRIORITY=0\u{1b}[2J \u{202e}Zoë 📱");
    }

    #[test]
    fn a_name_is_what_the_journal_takes() {
        for (key, name) in [("server_id", "SERVER_ID"), ("_1a-b", "A_B"), ("é1", "")] {
            assert_eq!(field_name(key), name);
        }
        assert_eq!(field_name(&"a".repeat(65)).len(), 64);
    }

    #[test]
    fn a_journal_that_does_not_read_holds_nothing_up_and_learns_how_much_it_missed() {
        let path = std::env::temp_dir().join(format!("journal-{:032x}", fastrand::u128(..)));
        let path: &'static Path = Box::leak(path.into_boxed_path());
        assert!(Journal::at(path).is_err(), "nobody listens");
        let listening = UnixDatagram::bind(path).unwrap();
        let journal = Journal::at(path).unwrap();
        let (sender, sent) = channel();
        std::thread::spawn(move || {
            let record = Record::builder().args(format_args!("x")).build();
            (0..2_000).for_each(|_| journal.send(&record).unwrap());
            // One without room is there: it is no reason to write elsewhere.
            let _ = sender.send((journal, Journal::at(path).is_ok()));
        });
        let (journal, is_there) = sent.recv_timeout(Duration::from_secs(20)).expect("no wait");
        assert!(is_there);
        listening.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        let mut read = || {
            let length = listening.recv(&mut buffer).ok()?;
            Some(parsed(&buffer[..length]))
        };
        let mut taken = 0;
        while let Some(fields) = read() {
            taken += usize::from(!fields.is_empty());
        }
        journal.send(&Record::builder().args(format_args!("y")).build()).unwrap();
        let note = read().unwrap();
        let has = |name: &str, value: &str| note.contains(&(name.to_owned(), value.to_owned()));
        assert!(has("EVENT", "log_lines_lost") && has("PRIORITY", "4"), "{note:?}");
        assert!(has("COUNT", &(2_000 - taken).to_string()), "{taken} taken, {note:?}");
        assert!(read().unwrap().contains(&("EVENT".to_owned(), "y".to_owned())));
        std::fs::remove_file(path).unwrap();
    }
}
