//! Readers of the log that do not read: the relay serves and stops all the same, and tells how much
//! they missed.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::{Line, UNLIMITED, program, program_in_shell, signal, unlimited};
use crate::rig::ws::Ws;
use crate::rig::{Address, Plain, binary_head, deadline, fresh_id, phone_head, plain, scaled};

/// Where the log comes out, for a test that reads when it likes.
trait Log {
    /// The next line, if one comes within this time.
    fn next(&mut self, patience: Duration) -> Option<String>;
}

/// Of a terminal, a pipe or a socket.
struct Bytes {
    source: File,
    unread: String,
}

impl Bytes {
    fn new(source: impl Into<OwnedFd>) -> Self {
        Self { source: File::from(source.into()), unread: String::new() }
    }
}

impl Log for Bytes {
    fn next(&mut self, patience: Duration) -> Option<String> {
        let patience = Timespec::try_from(patience).unwrap();
        loop {
            if let Some((line, rest)) = self.unread.split_once('\n') {
                let (line, rest) = (line.trim_end_matches('\r').to_owned(), rest.to_owned());
                self.unread = rest;
                return Some(line);
            }
            if poll(&mut [PollFd::new(&self.source, PollFlags::IN)], Some(&patience)).unwrap() == 0
            {
                return None;
            }
            let mut bytes = [0; 4096];
            // A terminal whose other end is closed has an error in the place of an end.
            let read = self.source.read(&mut bytes).unwrap_or(0);
            assert!(read > 0, "the log has ended");
            self.unread.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
    }
}

/// Of a journal that is not there otherwise.
struct Journal {
    socket: UnixDatagram,
    directory: PathBuf,
}

impl Journal {
    fn new() -> Self {
        let name = format!("pyrycode-relay-{}-{}", std::process::id(), fresh_id("journal"));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        Self { socket: UnixDatagram::bind(directory.join("socket")).unwrap(), directory }
    }
}

impl Log for Journal {
    fn next(&mut self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut bytes = [0; 64 * 1024];
        loop {
            let datagram = match self.socket.recv(&mut bytes) {
                // Whether anybody listens.
                Ok(0) => continue,
                Ok(length) => &bytes[..length],
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::WouldBlock), "{error}");
                    return None;
                }
            };
            // The value has its length before it, in eight bytes of which two suffice here.
            let at = datagram.windows(9).position(|name| name == b"\nMESSAGE\n").unwrap() + 9;
            let length = usize::from(u16::from_le_bytes([datagram[at], datagram[at + 1]]));
            let message = datagram[at + 8..at + 8 + length].to_vec();
            return Some(String::from_utf8(message).unwrap());
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The program, killed when the test is over.
struct Program(Child);

impl Program {
    fn stops_within(mut self, limit: Duration) -> Option<i32> {
        signal(self.0.id(), "TERM");
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not stop");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two lines of the log, and more.
fn claim(address: Address) {
    drop(Ws::upgrade(address, &binary_head(&fresh_id("claim"))));
}

/// Starts the program, and has it write far more than anybody takes, twice: the first time somebody
/// reads on in the end.
fn assert_that_nobody_has_to_read(mut command: Command, mut log: impl Log) {
    let program = Program(command.stdin(Stdio::null()).spawn().unwrap());
    // With it the test's own copy of the end that is written to.
    drop(command);
    let address = loop {
        let line = log.next(deadline()).expect("the program starts");
        if line.contains(" event=listening ") {
            break Line::parse(&line).address();
        }
    };
    let id = fresh_id("unread");
    let mut binary = Ws::upgrade(address, &binary_head(&id));
    let mut phone = Ws::upgrade(address, &phone_head(&id));
    let mut fill = || {
        for round in 0..5 {
            (0..100).for_each(|_| claim(address));
            phone.send_text(&format!("{round}"));
            assert!(binary.read_text().ends_with(&format!(r#""frame":{round}}}"#)));
        }
    };
    fill();
    let until = Instant::now() + deadline();
    // A pipe may have room for a short line where it has none for a long one: several are told.
    let mut lost = 0;
    while lost < 50 {
        if let Some(line) = log.next(scaled(Duration::from_millis(50))) {
            // Half a line would be none.
            let line = Line::parse(&line);
            if line.is("log_lines_lost") {
                assert_eq!(line.field("level"), "warn");
                lost += line.field("count").parse::<u64>().unwrap();
            }
        } else {
            // Worth a line, and what was lost is told before it.
            claim(address);
        }
        assert!(Instant::now() < until, "{lost} are told");
    }
    fill();
    drop((binary, phone));
    // A busy machine takes its time.
    assert_eq!(program.stops_within(scaled(Duration::from_secs(8))), Some(0));
}

#[test]
fn a_terminal_that_nobody_reads_holds_nothing_up() {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let shown = rustix::fs::open(name, flags, Mode::empty()).unwrap();
    let mut command = program(&unlimited());
    command.stderr(Stdio::from(shown));
    assert_that_nobody_has_to_read(command, Bytes::new(terminal));
}

#[test]
fn a_pipe_that_nobody_reads_holds_nothing_up() {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let mut command = program(&unlimited());
    command.stderr(Stdio::from(writer));
    assert_that_nobody_has_to_read(command, Bytes::new(reader));
}

#[test]
fn a_socket_that_nobody_reads_holds_nothing_up() {
    let (reader, writer) = UnixStream::pair().unwrap();
    let mut command = program(&unlimited());
    command.stderr(Stdio::from(OwnedFd::from(writer)));
    assert_that_nobody_has_to_read(command, Bytes::new(OwnedFd::from(reader)));
}

#[test]
fn a_journal_that_does_not_read_holds_nothing_up() {
    // A place of this test's own in which the journal is another one.
    let apart = ["--user", "--map-root-user", "--mount", "--propagation", "private"];
    let trial = ["mount", "-t", "tmpfs", "x", "/run"];
    let trial = Command::new("unshare").args(apart).args(trial).status();
    if !trial.is_ok_and(|status| status.success()) {
        // The journal's own unit test needs nothing of the kind.
        return;
    }
    let journal = Journal::new();
    let line = r#"mount -t tmpfs x /run && mkdir -p /run/systemd/journal &&
        mount --bind "$JOURNAL" /run/systemd/journal || exit 9
        exec 2>/dev/null
        JOURNAL_STREAM=$(stat -L -c %d:%i /dev/fd/2) exec "$0" "$@""#;
    let shell = program_in_shell(line, &[plain(Plain::OtherNamespace), &UNLIMITED].concat());
    let mut command = Command::new("unshare");
    command.args(apart).arg(shell.get_program()).args(shell.get_args());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("JOURNAL", &journal.directory);
    assert_that_nobody_has_to_read(command, journal);
}
