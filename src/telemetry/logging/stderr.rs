//! Lines on standard error, which nobody has to read.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use log::Record;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SendFlags;

use super::lost::Lost;
use crate::clock;

/// Makes a line of a record.
type Make = fn(&Record<'_>, Option<SystemTime>) -> String;

/// Writes lines, or counts those that would have to wait.
pub(super) struct Stderr {
    make: Make,
    timestamps: bool,
    lost: Lost,
    output: Mutex<Output<io::Stderr>>,
}

impl Stderr {
    pub(super) fn new(make: Make, timestamps: bool) -> Self {
        let output = Mutex::new(Output::new(io::stderr()));
        Self { make, timestamps, lost: Lost::default(), output }
    }

    /// Writes a line, after one that tells how many were lost before it, if any were.
    pub(super) fn write(&self, record: &Record<'_>) {
        let written = self.lost.write(record, |record| {
            let line = (self.make)(record, self.timestamps.then(clock::wall));
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            output.put(line.as_bytes())
        });
        // There is nowhere to report that standard error is gone.
        let _ = written;
    }
}

/// Takes whole lines without waiting.
struct Output<F> {
    stderr: F,
    way: Way,
    /// The rest of a line that has begun.
    rest: Vec<u8>,
}

/// How standard error is written to without waiting. It is shared with whoever started the program,
/// and so is a mode that made its writes return at once: it would surprise the others.
enum Way {
    /// It was opened once more, and this opening has the mode.
    Reopened(File),
    /// A socket takes the wish with each write.
    Socket,
    /// A regular file waits for nobody.
    Direct,
    /// It cannot be opened once more: another user's. It is asked before each write, and gets so
    /// many bytes at most. A pipe that has room has a page of it, 4 KiB or more. A terminal does not
    /// say how much it has. Either waits if another process takes the room first.
    Asked(usize),
}

impl<F: AsFd> Output<F> {
    fn new(stderr: F) -> Self {
        let way = Way::to(&stderr);
        Self { stderr, way, rest: Vec::new() }
    }

    /// Writes a line as a whole or, with an error, not at all. What finds no room once the line has
    /// begun comes before the next.
    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        while !self.rest.is_empty() {
            let written = self.write(&self.rest)?;
            self.rest.drain(..written);
        }
        let mut begun = 0;
        while begun < line.len() {
            match self.write(&line[begun..]) {
                Ok(written) => begun += written,
                Err(error) if begun == 0 => return Err(error),
                Err(_) => {
                    self.rest = line[begun..].to_vec();
                    break;
                }
            }
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let write = || match &self.way {
            Way::Reopened(file) => rustix::io::write(file, bytes),
            Way::Socket => {
                rustix::net::send(&self.stderr, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            }
            Way::Direct => rustix::io::write(&self.stderr, bytes),
            Way::Asked(most) => {
                let mut asked = [PollFd::new(&self.stderr, PollFlags::OUT)];
                let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
                match poll(&mut asked, Some(&at_once))? {
                    0 => Err(rustix::io::Errno::AGAIN),
                    _ => rustix::io::write(&self.stderr, &bytes[..bytes.len().min(*most)]),
                }
            }
        };
        match rustix::io::retry_on_intr(write)? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(written),
        }
    }
}

impl Way {
    fn to(stderr: &impl AsFd) -> Self {
        let kind = rustix::fs::fstat(stderr).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let reopened = |path: String| {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let opened = rustix::fs::open(path, flags, Mode::empty());
            opened.map(|opened| Self::Reopened(File::from(opened)))
        };
        let same = || {
            let number = stderr.as_fd().as_raw_fd();
            reopened(format!("/proc/self/fd/{number}"))
        };
        match kind {
            Ok(FileType::Fifo) => same().unwrap_or(Self::Asked(PIPE_ROOM)),
            Ok(FileType::CharacterDevice) => same()
                // The terminal from which this process can be interrupted is open to it, whosever
                // it is: `su` leaves it another user's.
                .or_else(|error| match rustix::termios::tcgetsid(stderr) {
                    Ok(_) => reopened("/dev/tty".to_owned()),
                    Err(_) => Err(error),
                })
                .unwrap_or(Self::Asked(1)),
            Ok(FileType::Socket) => Self::Socket,
            _ => Self::Direct,
        }
    }
}

/// What a pipe with room takes at least (`PIPE_BUF`, `pipe(7)`).
const PIPE_ROOM: usize = 4096;

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// Puts lines until one finds no room, reads the first ones, and puts another: all without
    /// waiting. Returns what came out, and how many lines were taken.
    fn filled(
        output: impl FnOnce() -> Output<OwnedFd> + Send + 'static,
        mut reader: File,
    ) -> (String, usize) {
        let (sender, outcome) = channel();
        std::thread::spawn(move || {
            let mut output = output();
            let line = |number: usize| format!("{number} {}\n", "x".repeat(5_000));
            let mut taken = 0;
            while output.put(line(taken).as_bytes()).is_ok() {
                taken += 1;
            }
            assert!(output.put(b"lost\n").is_err());
            let mut first = vec![0; 20_000];
            reader.read_exact(&mut first).unwrap();
            output.put(b"last\n").unwrap();
            drop(output);
            reader.read_to_end(&mut first).unwrap();
            sender.send((String::from_utf8(first).unwrap(), taken)).unwrap();
        });
        outcome.recv_timeout(Duration::from_secs(20)).expect("nothing waits")
    }

    fn pipe() -> (File, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        (File::from(reader), writer)
    }

    fn assert_whole((text, taken): (String, usize)) {
        assert!(taken > 4 && text.ends_with("x\nlast\n"), "{taken}");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), taken + 1);
        for (number, line) in lines[..taken].iter().enumerate() {
            assert!(line.len() > 5_000 && line.starts_with(&format!("{number} x")), "{number}");
        }
    }

    #[test]
    fn a_pipe_takes_whole_lines_and_nobody_waits_for_room() {
        let (reader, writer) = pipe();
        let output = || {
            let output = Output::new(writer);
            assert!(matches!(output.way, Way::Reopened(_)));
            output
        };
        assert_whole(filled(output, reader));
    }

    #[test]
    fn a_pipe_that_cannot_be_opened_once_more_is_asked() {
        let (reader, writer) = pipe();
        let asked = Output { stderr: writer, way: Way::Asked(PIPE_ROOM), rest: Vec::new() };
        assert_whole(filled(|| asked, reader));
    }

    #[test]
    fn a_socket_takes_whole_lines_and_nobody_waits_for_room() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let output = || {
            let output = Output::new(OwnedFd::from(writer));
            assert!(matches!(output.way, Way::Socket));
            output
        };
        assert_whole(filled(output, File::from(OwnedFd::from(reader))));
    }
}
