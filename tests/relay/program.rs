//! The program as a process: its command line, its exit codes, its signals, its log.

mod allow;
mod check;
#[cfg(feature = "tls")]
mod fifo;
mod listening;
mod log;
mod logging;
mod monitoring;
mod options;
mod readers;
mod resources;
mod signals;
mod upgrade;
mod upgrade_command;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::rig::ws::Ws;
use crate::rig::{
    Address, Plain, binary_head, connect, deadline, envelope, front, phone_head, plain, stretched,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pyrycode-relay");

/// Options of tests that dial as often as they like.
const UNLIMITED: [&str; 4] = ["--rate-limit", "off", "--max-connections-per-ip", "off"];

/// The same, and those of a listener.
fn unlimited() -> Vec<&'static str> {
    [front(), &UNLIMITED].concat()
}

/// The program without the environment of the tests.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).env_clear();
    command
}

/// The same behind a line of shell, which ends in `exec "$0" "$@"`.
fn program_in_shell(line: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line, PROGRAM]).args(arguments).env_clear();
    command
}

/// Puts what this line of shell prints in the place of a program file; `$1` is the program.
///
/// This process does not write it: a child that another test starts meanwhile would hold it open for writing, and the
/// kernel refuses to run such a file.
fn install(file: &Path, line: &str) {
    let line = format!("({line}) >\"$0.new\" && chmod 755 \"$0.new\" && mv \"$0.new\" \"$0\"");
    let written = Command::new("/bin/sh").args(["-c", &line]).arg(file).arg(PROGRAM).status();
    assert!(written.unwrap().success());
}

/// Runs a program that ends by itself; one that does not is ended by an alarm of the test.
fn run(command: Command) -> Output {
    run_with_input(command, Stdio::null())
}

/// The same with this standard input.
fn run_with_input(mut command: Command, input: Stdio) -> Output {
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the program starts");
    let pid = child.id();
    let (sender, ended) = channel();
    let waiting = std::thread::spawn(move || {
        let output = child.wait_with_output().expect("its output can be read");
        // The other end waits no more if the deadline has passed.
        let _ = sender.send(());
        output
    });
    if ended.recv_timeout(deadline()).is_err() {
        let there = try_signal(pid, "KILL");
        panic!("{command:?} does not end, or its output does not (killed: {there})");
    }
    waiting.join().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program prints UTF-8")
}

fn signal(pid: u32, name: &str) {
    assert!(try_signal(pid, name), "the process is there");
}

/// Whether there was such a process.
fn try_signal(pid: u32, name: &str) -> bool {
    let sent = Command::new("/bin/sh").args(["-c", &format!("kill -{name} {pid}")]).status();
    sent.unwrap().success()
}

/// A running program, and what it has logged so far.
struct Running {
    child: Child,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
    log_ended: Receiver<()>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        Self::start_behind(front(), arguments)
    }

    /// One that listens without TLS in any run.
    fn plain(why: Plain, arguments: &[&str]) -> Self {
        Self::start_behind(plain(why), arguments)
    }

    fn start_behind(front: &[&str], arguments: &[&str]) -> Self {
        let mut all = [front, &UNLIMITED, arguments].concat();
        let stretched = stretched(arguments);
        all.extend(stretched.iter().map(String::as_str));
        Self::spawn(program(&all))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let (sender, log_ended) = channel();
        let (stderr, written) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                written.0.lock().unwrap().push(line.expect("the log is UTF-8"));
                written.1.notify_all();
            }
            // Nobody waits for it if the test is over already.
            let _ = sender.send(());
        });
        Self { child, log, log_ended }
    }

    /// Waits for the `count`th line of this event and returns its fields.
    fn wait_nth(&self, event: &str, count: usize) -> Line {
        let until = Instant::now() + deadline();
        let mut lines = self.log.0.lock().unwrap();
        loop {
            let mut found =
                lines.iter().map(|line| Line::parse(line)).filter(|line| line.is(event));
            if let Some(line) = found.nth(count - 1) {
                return line;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {event} in {lines:#?}");
            lines = self.log.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    fn wait(&self, event: &str) -> Line {
        self.wait_nth(event, 1)
    }

    fn address(&self) -> Address {
        self.wait("listening").address()
    }

    fn binary(&self, id: &str) -> Ws {
        Ws::upgrade(self.address(), &binary_head(id))
    }

    fn phone(&self, id: &str) -> Ws {
        Ws::upgrade(self.address(), &phone_head(id))
    }

    /// A binary, its phone, and the phone's connection id.
    fn pair(&self, id: &str) -> (Ws, Ws, String) {
        let known = self.lines("phone_registered").len();
        let (binary, phone) = (self.binary(id), self.phone(id));
        (binary, phone, self.wait_nth("phone_registered", known + 1).field("conn_id").to_owned())
    }

    /// The lines of this event so far.
    fn lines(&self, event: &str) -> Vec<Line> {
        let lines = self.log.0.lock().unwrap();
        lines.iter().map(|line| Line::parse(line)).filter(|line| line.is(event)).collect()
    }

    fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Sends all of these with nothing between them.
    fn signals(&self, names: &[&str]) {
        let pid = self.child.id();
        let kills: Vec<_> = names.iter().map(|name| format!("kill -{name} {pid}")).collect();
        let sent = Command::new("/bin/sh").args(["-c", &kills.join("; ")]).status();
        assert!(sent.unwrap().success(), "the process is there");
    }

    /// Waits for the end of the program; returns its exit code and everything that it logged.
    fn wait_for_end(mut self) -> (Option<i32>, Vec<String>) {
        if self.log_ended.recv_timeout(deadline()).is_err() {
            panic!("the program does not end: {:#?}", self.log.0.lock().unwrap());
        }
        let status = self.child.wait().unwrap();
        (status.code(), std::mem::take(&mut *self.log.0.lock().unwrap()))
    }

    /// Ends the program and returns everything that it logged.
    fn stop(self) -> Vec<String> {
        self.signal("TERM");
        let (code, log) = self.wait_for_end();
        assert_eq!(code, Some(0), "{log:#?}");
        log
    }

    /// Processor time that the program has used.
    fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Behind the name, which may hold blanks: the 14th and the 15th field of the whole line,
        // in ticks of which Linux shows 100 a second on every architecture.
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One line of the log, taken apart: `key=value`, with quotes and escapes where they are needed.
#[derive(Clone, Debug)]
struct Line(Vec<(String, String)>);

impl Line {
    fn parse(line: &str) -> Self {
        let mut fields = Vec::new();
        let mut rest = line;
        while !rest.is_empty() {
            let (key, behind) = rest.split_once('=').unwrap_or_else(|| panic!("no pair: {line}"));
            assert!(key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
            let (value, behind) = match behind.strip_prefix('"') {
                Some(quoted) => unquote(quoted),
                None => {
                    let end = behind.find(' ').unwrap_or(behind.len());
                    assert!(!behind[..end].contains(['"', '=', '\\']), "a bare value: {line}");
                    (behind[..end].to_owned(), &behind[end..])
                }
            };
            assert!(behind.is_empty() || behind.starts_with(' '), "{line}");
            fields.push((key.to_owned(), value));
            rest = behind.trim_start_matches(' ');
        }
        Self(fields)
    }

    fn is(&self, event: &str) -> bool {
        self.0.iter().any(|(key, value)| key == "event" && value == event)
    }

    fn field(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(key, _)| key == name);
        &found.unwrap_or_else(|| panic!("{self:?} has no {name}")).1
    }

    /// The address that a program listens at.
    fn address(&self) -> Address {
        let is_tls = self.0.iter().any(|(key, value)| key == "tls" && value == "true");
        Address { at: self.field("address").parse().unwrap(), is_tls }
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(key, _)| key.as_str()).collect()
    }
}

/// The text of a quoted value and what stands behind its closing quote.
fn unquote(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut signs = quoted.char_indices();
    loop {
        let (at, sign) = signs.next().unwrap_or_else(|| panic!("an open quote: {quoted}"));
        match sign {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => match signs.next().unwrap().1 {
                't' => value.push('\t'),
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                'u' => {
                    let hex: String = signs
                        .by_ref()
                        .map(|(_, sign)| sign)
                        .skip_while(|sign| *sign == '{')
                        .take_while(|sign| *sign != '}')
                        .collect();
                    let code = u32::from_str_radix(&hex, 16).unwrap();
                    value.push(char::from_u32(code).unwrap());
                }
                escaped => value.push(escaped),
            },
            sign => {
                assert!(!sign.is_control(), "{sign:?} reached the log as it is");
                value.push(sign);
            }
        }
    }
}

/// Whether the health page answers at this address.
fn answers(address: impl Into<Address>) -> bool {
    let mut stream = connect(address);
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response.starts_with("HTTP/1.1 200 ")
}

/// Both ends still pass a message in each direction.
fn exchange(binary: &mut Ws, phone: &mut Ws, conn_id: &str) {
    phone.send_text("\"up\"");
    assert_eq!(binary.read_text(), envelope(conn_id, "\"up\""));
    binary.send_text(&envelope(conn_id, "\"down\""));
    assert_eq!(phone.read_text(), "\"down\"");
}
