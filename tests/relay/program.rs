//! The program as a process: its command line, its exit codes, its signals, its log.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::rig::ws::{self, Ws};
use crate::rig::{
    UPGRADE, binary_head, connect, deadline, envelope, fresh_id, millis, notice, phone_head, scaled,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pyrycode-relay");

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

/// Runs a program that ends by itself; one that does not is ended by an alarm of the test.
fn run(mut command: Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
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
        signal(pid, "KILL");
        panic!("{command:?} does not end");
    }
    waiting.join().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program prints UTF-8")
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("/bin/sh").args(["-c", &format!("kill -{name} {pid}")]).status();
    assert!(sent.unwrap().success(), "the process is there");
}

/// A running program, and what it has logged so far.
struct Running {
    child: Child,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
    log_ended: Receiver<()>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut all = vec!["--listen", "127.0.0.1:0", "--rate-limit", "off"];
        all.extend(arguments);
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

    fn address(&self) -> SocketAddr {
        self.wait("listening").field("address").parse().unwrap()
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
fn answers(address: SocketAddr) -> bool {
    use std::io::Write as _;
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

// ---------------------------------------------------------------------------------------------
// What it prints about itself

/// The options of the contract and their defaults.
const OPTIONS: [(&str, &str); 19] = [
    ("listen", "127.0.0.1:8080"),
    ("grace", "30s"),
    ("reclaim", "keep"),
    ("probe-timeout", "10s"),
    ("heartbeat-interval", "30s"),
    ("heartbeat-timeout", "30s"),
    ("header-timeout", "5s"),
    ("message-timeout", "30s"),
    ("write-timeout", "10s"),
    ("drain-timeout", "2s"),
    ("max-frame-bytes", "256KiB"),
    ("max-queue-bytes", "32MiB"),
    ("max-slot-queue-bytes", "1MiB"),
    ("memory-budget", "64MiB"),
    ("max-phones", "16"),
    ("max-connections", "4096"),
    ("rate-limit", "10/min"),
    ("rate-burst", "20"),
    ("log-level", "info"),
];

/// What it prints on standard output while it exits with 0 and says nothing else.
fn printed(arguments: &[&str]) -> String {
    let output = run(program(arguments));
    assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    assert_eq!(text(&output.stderr), "", "{arguments:?}");
    text(&output.stdout).to_owned()
}

#[test]
fn the_version_tells_commit_target_and_profile() {
    let long = printed(&["--version"]);
    let lines: Vec<_> = long.lines().collect();
    assert_eq!(lines[0], concat!("pyrycode-relay ", env!("CARGO_PKG_VERSION")));
    let facts: BTreeMap<_, _> =
        lines[1..].iter().map(|line| line.split_once(':').expect("a name and a value")).collect();
    assert_eq!(facts.keys().copied().collect::<Vec<_>>(), ["commit", "profile", "target"]);
    let commit = facts["commit"].trim();
    let is_hash = commit.len() == 12 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(is_hash || commit == "unknown", "{commit}");
    assert!(facts["target"].contains(std::env::consts::ARCH), "{long}");
    assert!(["debug", "release"].contains(&facts["profile"].trim()), "{long}");
    let short = concat!("pyrycode-relay ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(printed(&["-V"]), short);
}

#[test]
fn the_long_help_groups_the_options_shows_their_defaults_and_ends_with_the_exit_codes() {
    let help = printed(&["--help"]);
    for (option, default) in OPTIONS {
        let begin = help.find(&format!("--{option} <")).unwrap_or_else(|| panic!("no --{option}"));
        let behind = &help[begin + 2..];
        let entry = &behind[..behind.find("      --").unwrap_or(behind.len())];
        assert!(entry.contains(&format!("[default: {default}]")), "--{option}: {entry}");
        let variable = format!("PYRYCODE_RELAY_{}", option.to_uppercase().replace('-', "_"));
        assert!(entry.contains(&variable), "--{option}: {entry}");
    }
    for group in ["Listening:", "Claims:", "Timeouts:", "Memory:", "Admission:", "Logging:"] {
        assert!(help.lines().any(|line| line == group), "no {group}");
    }
    assert!(help.contains("--insecure-listen"), "{help}");
    let (_, codes) = help.split_once("\nExit codes:\n").expect("a list of exit codes");
    let codes: Vec<_> = codes.lines().map(|line| line.trim().split_once(' ').unwrap().0).collect();
    assert_eq!(codes, ["0", "1", "2"], "nothing stands behind them");
}

#[test]
fn the_short_help_is_shorter_and_has_every_option() {
    let (short, long) = (printed(&["-h"]), printed(&["--help"]));
    assert!(short.lines().count() < 60 && short.len() * 3 < long.len() * 2, "{short}");
    for (option, _) in OPTIONS {
        assert!(short.contains(&format!("--{option} ")), "no --{option}");
    }
}

#[test]
fn help_for_a_reader_that_has_gone_is_no_panic() {
    let command = program_in_shell(r#"{ "$0" --help; echo "code $?" >&2; } | :"#, &[]);
    let output = run(command);
    let stderr = text(&output.stderr);
    assert!(!stderr.contains("panic"), "{stderr}");
    assert!(stderr.ends_with("code 0\n"), "{stderr}");
}

// ---------------------------------------------------------------------------------------------
// Bad options

/// Expects a short message about a bad option, and exit code 2; returns the message.
fn refused(command: Command) -> String {
    let shown = format!("{command:?}");
    let output = run(command);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{shown}: {stderr}");
    assert_eq!(text(&output.stdout), "", "{shown}");
    assert!(stderr.starts_with("error: "), "{shown}: {stderr}");
    assert!(stderr.lines().count() <= 8, "{shown}: {stderr}");
    for noise in ["panicked", "RUST_BACKTRACE", "src/", "Error {", "level="] {
        assert!(!stderr.contains(noise), "{shown}: {stderr}");
    }
    stderr.to_owned()
}

#[test]
fn zero_is_refused_for_every_option_on_the_command_line_and_in_the_environment() {
    for (option, default) in OPTIONS {
        let zero = match option {
            "listen" | "reclaim" | "log-level" => "0".to_owned(),
            _ => default.replace(|sign: char| sign.is_ascii_digit(), "0"),
        };
        let flag = format!("--{option}");
        let message = refused(program(&[&flag, &zero]));
        assert!(message.contains(&flag), "{message}");
        let variable = format!("PYRYCODE_RELAY_{}", option.to_uppercase().replace('-', "_"));
        let mut command = program(&[]);
        command.env(variable, zero);
        let message = refused(command);
        assert!(message.contains(&flag), "{message}");
    }
}

#[test]
fn a_bad_value_gets_a_message_that_says_what_to_write() {
    for (arguments, advice) in [
        (["--listen", "localhost:8080"], "127.0.0.1:8080"),
        (["--listen", "relay.example:8080"], "an IP address"),
        (["--listen", "192.0.2.1"], "port"),
        (["--listen", "8080"], ":8080"),
        (["--listen", ":65536"], "65535"),
        (["--listen", ""], "an IP address"),
        (["--grace", "30"], "30s"),
        (["--grace", "soon"], "30s"),
        (["--grace", "10years"], "year"),
        (["--max-frame-bytes", "lots"], "256KiB"),
        (["--max-frame-bytes", "99999999999999999999"], "256KiB"),
        (["--max-phones", "many"], "whole number"),
        (["--max-phones", "1.5"], "whole number"),
        (["--rate-limit", "10"], "10/min"),
        (["--rate-limit", "10/hour"], "10/min"),
        (["--reclaim", "maybe"], "evict"),
        (["--log-level", "loud"], "--log-level"),
    ] {
        let message = refused(program(&arguments));
        assert!(message.contains(advice), "{arguments:?}: {message}");
    }
}

#[test]
fn a_combination_that_cannot_work_is_refused_with_a_message_that_says_what_to_change() {
    for (arguments, named) in [
        (["--max-frame-bytes", "1MiB"], ["--max-slot-queue-bytes", "--max-frame-bytes"]),
        (["--max-slot-queue-bytes", "512KiB"], ["--max-slot-queue-bytes", "--max-frame-bytes"]),
        (["--max-queue-bytes", "64KiB"], ["--max-queue-bytes", "--max-frame-bytes"]),
        (["--memory-budget", "16MiB"], ["--memory-budget", "--max-queue-bytes"]),
    ] {
        let message = refused(program(&arguments));
        for option in named {
            assert!(message.contains(option), "{arguments:?}: {message}");
        }
        assert!(message.contains("at least"), "{arguments:?}: {message}");
    }
}

#[test]
fn an_unknown_option_suggests_the_right_one() {
    for (wrong, right) in [
        ("--max-phone", "--max-phones"),
        ("--graces", "--grace"),
        ("--heartbeat-intervall", "--heartbeat-interval"),
        ("--log-levle", "--log-level"),
    ] {
        let message = refused(program(&[wrong, "1"]));
        assert!(message.contains(&format!("'{right}'")), "{wrong}: {message}");
    }
    refused(program(&["--max-phones"]));
    refused(program(&["--max-phones", "1", "--max-phones", "2"]));
    refused(program(&["serve"]));
    let mut not_unicode = program(&["--grace"]);
    not_unicode.arg(OsStr::from_bytes(b"\xff\xfe"));
    refused(not_unicode);
}

#[test]
fn a_bad_option_does_not_need_anybody_to_read_its_message() {
    let output = run(program_in_shell(r#"exec "$0" "$@" >&- 2>&-"#, &["--grace", "0s"]));
    assert_eq!(output.status.code(), Some(2));
}

// ---------------------------------------------------------------------------------------------
// Listening

#[test]
fn an_address_in_use_ends_the_program_with_1_and_names_the_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(program(&["--listen", "127.0.0.1:0", "--listen", &address]));
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    let failed = Line::parse(stderr.lines().last().unwrap());
    assert_eq!((failed.field("level"), failed.field("event")), ("error", "failed"));
    assert!(failed.field("reason").contains(&address), "{stderr}");
    assert!(failed.field("reason").contains("in use"), "{stderr}");
}

#[test]
fn it_runs_without_any_environment_and_the_log_tells_the_port() {
    let relay = Running::start(&[]);
    let listening = relay.wait("listening");
    let address: SocketAddr = listening.field("address").parse().unwrap();
    assert_eq!(listening.keys(), ["time", "level", "event", "address"]);
    assert!(address.ip().is_loopback() && address.port() != 0, "{address}");
    assert!(answers(address));
}

#[test]
fn several_addresses_are_listened_on_by_either_name_of_the_option() {
    let relay = Running::spawn(program(&[
        "--listen",
        "127.0.0.1:0",
        "--insecure-listen",
        "127.0.0.2:0,127.0.0.3:0",
    ]));
    for (count, ip) in [(1, "127.0.0.1"), (2, "127.0.0.2"), (3, "127.0.0.3")] {
        let line = relay.wait_nth("listening", count);
        let address: SocketAddr = line.field("address").parse().unwrap();
        assert_eq!(address.ip().to_string(), ip);
        assert!(answers(address));
    }
}

#[test]
fn a_port_alone_means_every_interface_and_both_families() {
    let relay = Running::spawn(program(&["--insecure-listen", ":0"]));
    let address = relay.address();
    assert!(address.ip().is_unspecified());
    let reachable = |ip: &str| TcpStream::connect((ip, address.port())).is_ok();
    if TcpListener::bind("[::]:0").is_ok() {
        assert!(address.is_ipv6());
    } else {
        let note = relay.wait("listening on IPv4 alone: this kernel has no IPv6");
        assert_eq!(note.field("level"), "info");
        assert!(address.is_ipv4());
    }
    if TcpListener::bind("[::1]:0").is_ok() {
        assert!(
            reachable("::1") && answers(SocketAddr::new("::1".parse().unwrap(), address.port()))
        );
    }
    assert!(reachable("127.0.0.1"));
    assert!(answers(SocketAddr::new("127.0.0.1".parse().unwrap(), address.port())));
    // A mapped address is IPv4 in the log.
    drop(Ws::upgrade(
        SocketAddr::new("127.0.0.1".parse().unwrap(), address.port()),
        &binary_head("families"),
    ));
    assert_eq!(relay.wait("server_claimed").field("remote"), "127.0.0.1");
}

#[test]
fn an_address_that_is_not_there_yet_is_bound_all_the_same() {
    let relay = Running::spawn(program(&["--listen", "192.0.2.1:0"]));
    let address = relay.address();
    assert_eq!(address.ip().to_string(), "192.0.2.1");
    assert_ne!(address.port(), 0);
    relay.stop();
}

#[test]
fn the_environment_sets_options_and_the_command_line_wins() {
    let mut command = program(&["--log-level", "info"]);
    command.env("PYRYCODE_RELAY_LISTEN", "127.0.0.2:0").env("PYRYCODE_RELAY_LOG_LEVEL", "error");
    let relay = Running::spawn(command);
    assert_eq!(relay.address().ip().to_string(), "127.0.0.2");
    drop(relay);

    let mut command = program(&["--listen", "127.0.0.3:0"]);
    command.env("PYRYCODE_RELAY_LISTEN", "127.0.0.2:0").env("PYRYCODE_RELAY_MAX_PHONES", "1");
    let relay = Running::spawn(command);
    assert_eq!(relay.address().ip().to_string(), "127.0.0.3");
    let (_binary, _phone, _) = relay.pair("one-phone");
    relay.phone("one-phone").expect_close(4429, "too many phones");
    assert_eq!(relay.lines("listening").len(), 1, "one replaces the other");
}

// ---------------------------------------------------------------------------------------------
// Signals

#[test]
fn either_signal_closes_everyone_with_1001_and_exits_with_0() {
    for name in ["TERM", "INT"] {
        let relay = Running::start(&["--drain-timeout", "100s"]);
        let (mut binary, mut phone, _) = relay.pair("signalled");
        relay.signal(name);
        for peer in [&mut binary, &mut phone] {
            let frame = peer.read();
            assert_eq!(frame.opcode, ws::CLOSE);
            assert_eq!(frame.payload, [&1001_u16.to_be_bytes()[..], b"shutting down"].concat());
            peer.send_close(1001, "");
            peer.expect_end();
        }
        let (code, log) = relay.wait_for_end();
        assert_eq!(code, Some(0), "{log:#?}");
        assert!(log.iter().any(|line| Line::parse(line).is("stopped")), "{log:#?}");
    }
}

#[test]
fn a_signal_is_obeyed_in_time_even_with_peers_that_never_answer() {
    let relay = Running::start(&["--drain-timeout", &millis(500), "--write-timeout", "100s"]);
    let (mut silent, mut deaf, conn_id) = relay.pair("never-answers");
    flood(&mut silent, &conn_id);
    let signalled = Instant::now();
    relay.signal("TERM");
    let (code, log) = relay.wait_for_end();
    let elapsed = signalled.elapsed();
    assert_eq!(code, Some(0), "{log:#?}");
    assert!(elapsed < scaled(Duration::from_secs(5)), "{elapsed:?}");
    silent.expect_close(1001, "shutting down");
    deaf.expect_gone();
}

#[test]
fn a_second_signal_exits_at_once_with_1() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM"), ("TERM", "INT")] {
        let relay = Running::start(&["--drain-timeout", "100s", "--write-timeout", "100s"]);
        let (mut binary, _deaf, conn_id) = relay.pair("impatient");
        flood(&mut binary, &conn_id);
        relay.signal(first);
        relay.wait("stopping");
        relay.signal(second);
        let (code, log) = relay.wait_for_end();
        assert_eq!(code, Some(1), "{log:#?}");
    }
}

/// Sends more than a connection's buffers hold to a phone that does not read.
fn flood(binary: &mut Ws, conn_id: &str) {
    let frame = format!("\"{}\"", "x".repeat(100_000));
    for _ in 0..100 {
        binary.send_text(&envelope(conn_id, &frame));
    }
    binary.sync();
}

// ---------------------------------------------------------------------------------------------
// The log

#[test]
fn the_events_have_the_names_and_the_fields_of_the_contract() {
    let relay = Running::start(&["--grace", &millis(600), "--probe-timeout", &millis(1200)]);
    let id = fresh_id("logged");
    let (mut binary, phone, conn_id) = relay.pair(&id);
    binary.answers_pings = true;
    let mut loser = relay.binary(&id);
    // Answers the probe.
    assert_eq!(binary.read_frame().opcode, ws::PING);
    loser.expect_close(4409, "server-id already claimed");
    binary.answers_pings = false;
    let taking_over = relay.binary(&id);
    relay.wait("server_id_takeover");
    relay.wait("phone_unregistered");
    drop((binary, phone));
    let other = relay.phone(&id);
    relay.wait_nth("phone_registered", 2);
    taking_over.drop_connection();
    relay.wait("server_expired");
    relay.wait_nth("phone_unregistered", 2);
    drop(other);
    relay.phone(&id).expect_close(4404, "no server with that id");
    let log = relay.stop();

    let lines: Vec<_> = log.iter().map(|line| Line::parse(line)).collect();
    for (event, fields) in [
        ("server_claimed", &["server_id", "binary_version", "remote"][..]),
        ("server_id_conflict", &["server_id", "remote"]),
        ("server_id_takeover", &["server_id", "remote"]),
        ("server_released", &["server_id"]),
        ("server_expired", &["server_id", "phones"]),
        ("phone_registered", &["server_id", "conn_id", "device_name", "remote"]),
        ("phone_register_no_server", &["server_id", "remote"]),
        ("phone_unregistered", &["server_id", "conn_id", "reason"]),
    ] {
        let found: Vec<_> = lines.iter().filter(|line| line.is(event)).collect();
        assert!(!found.is_empty(), "no {event}");
        for line in found {
            assert_eq!(line.keys()[..3], ["time", "level", "event"], "{line:?}");
            assert_eq!(&line.keys()[3..], fields, "{line:?}");
            assert_eq!(line.field("server_id"), id);
            assert_eq!(line.field("level"), "info");
        }
    }
    let first = |event: &str| lines.iter().find(|line| line.is(event)).unwrap();
    assert_eq!(first("server_claimed").field("binary_version"), "9.9.9-test");
    assert_eq!(first("server_claimed").field("remote"), "127.0.0.1");
    assert_eq!(first("phone_registered").field("device_name"), "test device");
    assert_eq!(first("phone_unregistered").field("conn_id"), conn_id);
    assert_eq!(first("phone_unregistered").field("reason"), "binary reclaimed server-id");
    assert_eq!(first("server_expired").field("phones"), "1");
}

#[test]
fn no_token_no_content_and_no_head_is_logged_at_any_level() {
    let mut by_variable = program(&["--listen", "127.0.0.1:0", "--rate-limit", "off"]);
    by_variable.env("RUST_LOG", "trace");
    let by_option = program(&[
        "--listen",
        "127.0.0.1:0",
        "--rate-limit",
        "off",
        "--log-level",
        "trace",
        "--max-frame-bytes",
        "16KiB",
    ]);
    for command in [by_option, by_variable] {
        let relay = Running::spawn(command);
        say_marked_things(&relay);
        let log = relay.stop();
        for event in ["connection_opened", "refused", "envelope_dropped", "connection_closed"] {
            assert!(log.iter().any(|line| line.contains(&format!(" event={event} "))), "{event}");
        }
        for line in &log {
            let lower = line.to_lowercase();
            for marker in ["secret", "736563726574", "c2vjcmv0", "115, 101, 99, 114"] {
                assert!(!lower.contains(marker), "{line}");
            }
        }
    }
}

/// Uses the relay in every way that brings it a peer's text, each time with `secret` in it.
fn say_marked_things(relay: &Running) {
    use std::io::Write as _;
    let upgrade = |path: &str, fields: &str| {
        format!("GET {path} HTTP/1.1\r\n{UPGRADE}X-Pyrycode-Server: box\r\n{fields}\r\n")
    };
    let binary_fields = "X-Pyrycode-Version: 1\r\nUser-Agent: secret-agent\r\nCookie: secret\r\n";
    let phone_fields = "X-Pyrycode-Token: secret-token\r\nUser-Agent: secret-agent\r\n\
                        Authorization: Bearer secret\r\nSec-WebSocket-Protocol: secret\r\n";
    let binary = || Ws::upgrade(relay.address(), &upgrade("/v1/server?q=secret", binary_fields));
    let phone = || Ws::upgrade(relay.address(), &upgrade("/v1/client?q=secret", phone_fields));

    // Messages both ways, whole and in fragments.
    let mut holder = binary();
    let mut first = phone();
    let conn_id = relay.wait("phone_registered").field("conn_id").to_owned();
    first.send_text("\"secret message\"");
    assert_eq!(holder.read_text(), envelope(&conn_id, "\"secret message\""));
    first.send_frame(false, ws::TEXT, b"\"secret ");
    first.send_ping(b"secret ping");
    first.send_frame(true, ws::CONTINUATION, b"fragment\"");
    assert_eq!(holder.read_text(), envelope(&conn_id, "\"secret fragment\""));
    holder.send_text(&envelope(&conn_id, "\"secret answer\""));
    loop {
        let frame = first.read();
        if frame.opcode == ws::TEXT {
            break;
        }
    }

    // Envelopes that are dropped.
    for malformed in [
        "secret",
        r#"{"conn_id":"secret","frame":"secret"}"#,
        r#"{"conn_id":["secret"],"frame":"secret"}"#,
        r#"{"type":"push_wake","secret":"secret"}"#,
        r#"{"conn_id":"client-box-5ec2e75ec2e75ec2","frame":"secret"}"#,
        r#"{"conn_id":"secret","close_code":"secret"}"#,
    ] {
        holder.send_text(malformed);
    }
    holder.send_frame(true, ws::BINARY, b"secret \xff");
    holder.send_frame(true, ws::PONG, b"secret pong");
    assert_eq!(holder.read_text(), notice("client-box-5ec2e75ec2e75ec2", 1001));
    holder.sync();

    // Phones that end badly, or with words.
    let endings: [&dyn Fn(&mut Ws); 6] = [
        &|ws| ws.send_text("secret and no JSON"),
        &|ws| ws.send_frame(true, ws::TEXT, b"\"secret \xff\""),
        &|ws| ws.send_frame(true, 0x3, b"secret"),
        &|ws| ws.send_text(&format!("\"secret{}\"", " secret".repeat(100_000))),
        &|ws| ws.send_raw(b"\x81\x06secret"),
        &|ws| ws.send_close(4000, "secret reason"),
    ];
    for (count, ending) in endings.iter().enumerate() {
        let mut ws = phone();
        relay.wait_nth("phone_registered", count + 2);
        ending(&mut ws);
        ws.expect_gone();
        relay.wait_nth("phone_unregistered", count + 1);
    }

    // Requests that are refused, and one that is never finished.
    for request in [
        "secret\r\n\r\n".to_owned(),
        "GET /secret HTTP/1.1\r\nHost: relay\r\n\r\n".to_owned(),
        "SECRET /v1/server HTTP/1.1\r\nHost: secret\r\n\r\n".to_owned(),
        upgrade("/v1/client", "X-Pyrycode-Token: \r\nCookie: secret\r\nUser-Agent: secret\r\n"),
        upgrade("/v1/client", &format!("X-Pyrycode-Token: {}\r\n", "secret".repeat(2000))),
        upgrade("/v1/client", phone_fields).replace("box", "a secret box"),
        "GET /v1/client HTTP/1.1\r\nX-Pyrycode-Token: secret".to_owned(),
    ] {
        let mut stream = connect(relay.address());
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // A reset is as good an end as any.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    holder.send_close(1000, "secret farewell");
    holder.expect_gone();
    relay.wait("server_released");
}

#[test]
fn what_a_peer_calls_itself_forges_neither_a_line_nor_a_field() {
    let relay = Running::start(&[]);
    let names: [&[u8]; 8] = [
        b"\" event=\"forged",
        b"x event=forged level=error",
        b"back\\slash \\n \\\"",
        b"a\tb",
        // An escape sequence for terminals that know C1, and a turn of the writing direction.
        "\u{9b}31m\u{202e}\u{2028}".as_bytes(),
        b"Zo\xeb \x80\xff",
        "Zoë's 📱".as_bytes(),
        b"",
    ];
    let expected = [
        "\" event=\"forged",
        "x event=forged level=error",
        "back\\slash \\n \\\"",
        "a\tb",
        "\u{9b}31m\u{202e}\u{2028}",
        "Zo\u{fffd} \u{fffd}\u{fffd}",
        "Zoë's 📱",
        "",
    ];
    let _binary = relay.binary("names");
    for (count, (name, expected)) in names.iter().zip(expected).enumerate() {
        let head = phone_head("names");
        let (before, behind) = head.split_once("test device").unwrap();
        let head = [before.as_bytes(), name, behind.as_bytes()].concat();
        drop(Ws::upgrade_with(relay.address(), &head));
        let line = relay.wait_nth("phone_registered", count + 1);
        assert_eq!(line.field("device_name"), expected);
        assert_eq!(line.keys().len(), 7, "{line:?}");
    }
    // A server-id is no less a peer's text.
    let id = r#"x"level=error\"#;
    drop(relay.binary(id));
    assert_eq!(relay.wait_nth("server_claimed", 2).field("server_id"), id);
    let log = relay.stop();
    assert!(log.iter().all(|line| line.bytes().all(|byte| byte >= b' ')), "{log:#?}");
    for hidden in ["\u{9b}", "\u{202e}", "\u{2028}"] {
        assert!(!log.iter().any(|line| line.contains(hidden)), "{log:#?}");
    }
    assert!(!log.iter().any(|line| Line::parse(line).is("forged")), "{log:#?}");
}

#[test]
fn rust_log_is_heeded_and_the_option_wins() {
    let start = |filter: &str, arguments: &[&str]| {
        let mut command = program(&["--listen", "127.0.0.1:0"]);
        command.args(arguments).env("RUST_LOG", filter);
        Running::spawn(command)
    };
    let log = |relay: Running| {
        drop(relay.binary("heard"));
        // Ends only when its connection has been seen.
        relay.stop().join("\n")
    };
    let debug = log(start("debug", &[]));
    assert!(debug.contains("event=connection_opened") && debug.contains("event=server_claimed"));
    let debug_off = log(start("debug", &["--log-level", "info"]));
    assert!(!debug_off.contains("level=debug") && debug_off.contains("event=server_claimed"));
    let by_target = log(start("info,pyrycode_relay::events=off", &[]));
    assert!(!by_target.contains("server_claimed") && by_target.contains("event=stopped"));
}

#[test]
fn a_bad_rust_log_is_warned_about_and_info_stays() {
    let mut command = program(&["--listen", "127.0.0.1:0"]);
    command.env("RUST_LOG", "pyrycode_relay=loud");
    let relay = Running::spawn(command);
    let warning = relay.wait("RUST_LOG is ignored");
    assert_eq!(warning.field("level"), "warn");
    assert!(warning.field("reason").contains("loud"), "{warning:?}");
    assert!(answers(relay.address()));
}

#[test]
fn lines_for_the_journal_have_no_time_of_their_own() {
    let mut command = program(&["--listen", "127.0.0.1:0"]);
    command.env("JOURNAL_STREAM", "8:12345");
    let relay = Running::spawn(command);
    assert_eq!(relay.wait("listening").keys(), ["level", "event", "address"]);
}

// ---------------------------------------------------------------------------------------------
// Descriptors

#[test]
fn out_of_descriptors_it_does_not_spin_and_goes_on_when_there_are_some_again() {
    let relay = Running::spawn(program_in_shell(
        r#"ulimit -n 40 && exec "$0" "$@""#,
        &[
            "--listen",
            "127.0.0.1:0",
            "--rate-limit",
            "off",
            "--header-timeout",
            "100s",
            "--heartbeat-interval",
            &millis(1500),
        ],
    ));
    let (mut binary, mut phone, conn_id) = relay.pair("held");
    // The kernel takes them all; the program has no descriptor for the last of them.
    let crowd: Vec<_> = (0..60).map(|_| connect(relay.address())).collect();
    relay.wait("accept_failed");
    exchange(&mut binary, &mut phone, &conn_id);

    let before = relay.processor_time();
    // What passes is the silence after which the relay pings.
    let started = Instant::now();
    assert_eq!(phone.read_frame().opcode, ws::PING);
    assert!(started.elapsed() > scaled(Duration::from_secs(1)));
    let used = relay.processor_time() - before;
    assert!(used < Duration::from_millis(200), "{used:?} of work while there was nothing to do");
    exchange(&mut binary, &mut phone, &conn_id);
    assert_eq!(relay.lines("accept_failed").len(), 1, "one line a streak");

    drop(crowd);
    let (mut new_binary, mut new_phone, new_id) = relay.pair("new");
    exchange(&mut new_binary, &mut new_phone, &new_id);
    exchange(&mut binary, &mut phone, &conn_id);
    let again = relay.wait("accepting_again");
    assert!(again.field("failures").parse::<u32>().unwrap() >= 1);
}

#[test]
fn out_of_descriptors_it_still_stops_in_time() {
    let relay = Running::spawn(program_in_shell(
        r#"ulimit -n 40 && exec "$0" "$@""#,
        &["--listen", "127.0.0.1:0", "--rate-limit", "off", "--header-timeout", "100s"],
    ));
    let (mut binary, _phone, _) = relay.pair("held");
    let _crowd: Vec<_> = (0..60).map(|_| connect(relay.address())).collect();
    relay.wait("accept_failed");
    relay.signal("TERM");
    binary.expect_close(1001, "shutting down");
    assert_eq!(relay.wait_for_end().0, Some(0));
}

#[test]
fn one_warning_tells_that_the_descriptors_do_not_fit_the_connections() {
    let limited = |most: &str| {
        Running::spawn(program_in_shell(
            r#"ulimit -n 50 && exec "$0" "$@""#,
            &["--listen", "127.0.0.1:0", "--max-connections", most],
        ))
    };
    let event = "the descriptor limit does not fit --max-connections: raise it (LimitNOFILE=) or lower that";
    let relay = limited("100");
    let warning = relay.wait(event);
    assert_eq!(warning.field("level"), "warn");
    assert_eq!((warning.field("descriptors"), warning.field("max_connections")), ("50", "100"));
    relay.wait("listening");
    assert_eq!(relay.lines(event).len(), 1);

    let relay = limited("10");
    relay.wait("listening");
    assert_eq!(relay.lines(event).len(), 0);
}

#[test]
fn the_soft_descriptor_limit_is_raised_to_the_hard_one() {
    let relay = Running::spawn(program_in_shell(
        r#"ulimit -n 300 && ulimit -Sn 64 && exec "$0" "$@""#,
        &["--listen", "127.0.0.1:0", "--max-connections", "200"],
    ));
    relay.wait("listening");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.child.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<_> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers, ["300", "300"]);
    assert_eq!(relay.lines("listening").len(), 1);
    assert!(!relay.stop().join("\n").contains("level=warn"));
}

// ---------------------------------------------------------------------------------------------
// Standard streams

#[test]
fn closed_standard_streams_do_not_matter() {
    // Nobody can read the port from a closed log, so this one is chosen: an address of its own.
    let probe = TcpListener::bind("127.83.1.7:0").unwrap();
    let address = probe.local_addr().unwrap();
    drop(probe);
    for closed in ["<&-", ">&-", "<&- >&-", "2>&-", "<&- >&- 2>&-"] {
        let listen = address.to_string();
        let line = format!(r#"exec "$0" "$@" {closed}"#);
        let relay = Running::spawn(program_in_shell(&line, &["--listen", &listen]));
        wait_until_listening(address);
        let mut binary = Ws::upgrade(address, &binary_head("streams"));
        let mut phone = Ws::upgrade(address, &phone_head("streams"));
        phone.send_text("1");
        assert!(binary.read_text().ends_with(r#","frame":1}"#), "{closed}");
        relay.signal("TERM");
        binary.expect_close(1001, "shutting down");
        let mut relay = relay;
        assert_eq!(relay.child.wait().unwrap().code(), Some(0), "{closed}");
    }
}

#[test]
fn a_log_that_nobody_reads_any_more_does_not_matter() {
    let mut command = program(&["--listen", "127.0.0.1:0", "--log-level", "trace"]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut relay = Running { child, log: Arc::default(), log_ended: channel().1 };
    let mut log = BufReader::new(relay.child.stderr.take().unwrap()).lines();
    let mut lines = log.by_ref().map(|line| Line::parse(&line.unwrap()));
    let listening = lines.find(|line| line.is("listening")).unwrap();
    drop(log);
    let address = listening.field("address").parse().unwrap();
    let mut binary = Ws::upgrade(address, &binary_head("unread"));
    let mut phone = Ws::upgrade(address, &phone_head("unread"));
    phone.send_text("1");
    assert!(binary.read_text().ends_with(r#","frame":1}"#));
    relay.signal("TERM");
    binary.expect_close(1001, "shutting down");
    drop((binary, phone));
    assert_eq!(relay.child.wait().unwrap().code(), Some(0));
}

/// Connects until somebody listens.
fn wait_until_listening(address: SocketAddr) {
    let until = Instant::now() + deadline();
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < until, "nobody listens on {address}");
        std::thread::yield_now();
    }
}
