//! Lines on standard error, which nobody has to read.

use std::io::{self, StderrLock, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use log::{Level, Record, RecordBuilder};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Makes a line of a record.
type Make = fn(&Record<'_>, Option<SystemTime>) -> String;

/// Writes lines, or counts those that would have to wait.
///
/// Standard error is shared with whoever started the program, and so is a mode that made its writes
/// return at once: it would surprise the others. So it is asked before each line whether it takes
/// one. A pipe that does has a free page, 4 KiB or more, and a line that is longer, or another
/// process that takes the page first, can still make a write wait.
pub(super) struct Stderr {
    make: Make,
    timestamps: bool,
    lost: AtomicU64,
}

impl Stderr {
    pub(super) fn new(make: Make, timestamps: bool) -> Self {
        Self { make, timestamps, lost: AtomicU64::new(0) }
    }

    /// Writes a line, behind one that tells how many were lost before it, if any were.
    pub(super) fn write(&self, record: &Record<'_>) {
        // Held from the question to the write: no other thread of this process takes the room.
        let mut stderr = io::stderr().lock();
        if !takes_a_line(&stderr) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let count = [("count", lost)];
            let mut note = RecordBuilder::new();
            note.level(Level::Warn).key_values(&count);
            self.put(&mut stderr, &note.args(format_args!("log_lines_lost")).build());
            if !takes_a_line(&stderr) {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        self.put(&mut stderr, record);
    }

    fn put(&self, stderr: &mut StderrLock<'_>, record: &Record<'_>) {
        let line = (self.make)(record, self.timestamps.then(SystemTime::now));
        // There is nowhere to report that standard error is gone.
        let _ = stderr.write_all(line.as_bytes());
    }
}

/// Whether standard error takes a line at once, or has ended and refuses it at once.
fn takes_a_line(stderr: &StderrLock<'_>) -> bool {
    let mut asked = [PollFd::new(stderr, PollFlags::OUT)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // What cannot be asked is written to.
    poll(&mut asked, Some(&at_once)).map_or(true, |ready| ready > 0)
}
