//! What becomes of records for which there is no room: nobody waits, they are counted, and the
//! count is told as soon as there is room again.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use log::{Level, Record, RecordBuilder};

/// How many records were lost and not told of yet.
#[derive(Default)]
pub(super) struct Lost(AtomicU64);

impl Lost {
    /// Has `write` write a record, after one that tells how many were lost before it, if any were.
    ///
    /// A record for which `write` has no room ([`io::ErrorKind::WouldBlock`]) is counted, and dealt
    /// with by that: the error is any other.
    pub(super) fn write(
        &self,
        record: &Record<'_>,
        write: impl Fn(&Record<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let lost = self.0.swap(0, Ordering::Relaxed);
        let told = if lost > 0 { write_note(lost, &write) } else { Ok(()) };
        if told.is_err() {
            self.0.fetch_add(lost, Ordering::Relaxed);
        }
        match told.and_then(|()| write(record)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.0.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            written => written,
        }
    }
}

fn write_note(lost: u64, write: impl Fn(&Record<'_>) -> io::Result<()>) -> io::Result<()> {
    let count = [("count", lost)];
    let mut note = RecordBuilder::new();
    note.level(Level::Warn).target(module_path!()).key_values(&count);
    write(&note.args(format_args!("log_lines_lost")).build())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use log::kv::Key;

    use super::*;

    /// What is written while there is room for so many records.
    fn written(lost: &Lost, room: usize, records: usize) -> Vec<String> {
        let written = RefCell::new(Vec::new());
        let write = |record: &Record<'_>| {
            if written.borrow().len() == room {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = record.key_values().get(Key::from("count"));
            let count = count.map(|count| format!(" {count}")).unwrap_or_default();
            written.borrow_mut().push(format!("{}{count}", record.args()));
            Ok(())
        };
        for _ in 0..records {
            lost.write(&Record::builder().args(format_args!("x")).build(), write).unwrap();
        }
        written.into_inner()
    }

    #[test]
    fn every_record_is_written_or_counted_in_a_note() {
        let lost = Lost::default();
        assert_eq!(written(&lost, 2, 5), ["x", "x"]);
        assert_eq!(written(&lost, 0, 4), [""; 0]);
        assert_eq!(written(&lost, 1, 1), ["log_lines_lost 7"], "room for the note alone");
        assert_eq!(written(&lost, 9, 2), ["log_lines_lost 1", "x", "x"]);
        assert_eq!(written(&lost, 9, 1), ["x"]);
    }

    #[test]
    fn an_error_of_another_kind_is_the_callers() {
        let lost = Lost::default();
        let record = Record::builder().args(format_args!("x")).build();
        assert!(lost.write(&record, |_| Err(io::ErrorKind::BrokenPipe.into())).is_err());
        assert_eq!(written(&lost, 9, 1), ["x"], "nothing was counted");
        assert_eq!(written(&lost, 0, 1), [""; 0]);
        assert!(lost.write(&record, |_| Err(io::ErrorKind::BrokenPipe.into())).is_err());
        assert_eq!(written(&lost, 9, 1), ["log_lines_lost 1", "x"]);
    }
}
