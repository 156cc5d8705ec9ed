//! What the program says to systemd, and the sockets that it takes from it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::rig::{
    Address, Plain, Stream, Ws, binary_head, connect, deadline, fresh_id, phone_head, plain, scaled,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pyrycode-relay");
const READY: &str = "READY=1\nSTATUS=binaries: 0, phones: 0\n";

/// The end of the notification socket that systemd would hold.
struct Notifications {
    socket: UnixDatagram,
    /// What `NOTIFY_SOCKET` says.
    path: PathBuf,
    _place: Option<TempDir>,
}

impl Notifications {
    fn open() -> Self {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(deadline())).unwrap();
        Self { socket, path, _place: Some(place) }
    }

    /// In the abstract namespace, which has no files: with `@` in the place of the path.
    fn open_abstract() -> Self {
        let name = format!("pyrycode-relay-test-{}-{}", std::process::id(), fresh_id("abstract"));
        let address = UnixAddress::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(deadline())).unwrap();
        Self { socket, path: format!("@{name}").into(), _place: None }
    }

    /// Leaves no room in the socket.
    fn fill(&self) {
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        while sender.send_to_addr(b"filler", &self.socket.local_addr().unwrap()).is_ok() {}
    }

    /// The next one that is none of those fillers.
    fn next_after_fillers(&self) -> String {
        loop {
            let next = self.next();
            if next != "filler" {
                return next;
            }
        }
    }

    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("a notification within the deadline");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// What has arrived and was not read yet.
    fn rest(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        let mut rest = Vec::new();
        while let Ok(length) = self.socket.recv(&mut buffer) {
            rest.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        rest
    }
}

/// The program; it is killed when the test is over.
struct Program {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    fn log_line(&mut self) -> String {
        let mut line = String::new();
        self.log.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The log line that says where the program listens.
    fn listening(&mut self) -> String {
        loop {
            let line = self.log_line();
            assert!(!line.is_empty(), "it has ended");
            if line.contains(" event=listening ") {
                return line;
            }
        }
    }

    /// The address in it.
    fn address(&mut self) -> Address {
        Address::in_line(&self.listening())
    }

    fn terminate(&self) {
        self.signal("TERM");
    }

    fn hang_up(&self) {
        self.signal("HUP");
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for the end; returns the rest of the log.
    fn end(mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap(), log)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program on a free loopback port, without any of systemd's variables. Its status is the short one.
fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    without_systemd(&mut command);
    command.args(plain(Plain::NoCertificate)).args(["--rate-limit", "off"]);
    command
}

/// The program with `socket` as the one that systemd would have opened for it. The shell gives the
/// descriptor its number, and the program the process id that it has to find in the environment.
fn activated(socket: impl Into<OwnedFd>) -> Command {
    let hand_over = r#"LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@" 3<&0 </dev/null"#;
    let mut command = Command::new("sh");
    without_systemd(&mut command);
    command.args(["-c", hand_over, PROGRAM, "--rate-limit", "off"]);
    command.stdin(Stdio::from(socket.into()));
    command
}

fn without_systemd(command: &mut Command) {
    for variable in [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
    ] {
        command.env_remove(variable);
    }
}

fn is_healthy(mut stream: Stream) -> bool {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response.starts_with("HTTP/1.1 200 ")
}

#[test]
fn it_says_when_it_is_ready_and_when_it_stops_and_nothing_more_while_nothing_happens() {
    let notifications = Notifications::open();
    let mut program = Program::start(program().env("NOTIFY_SOCKET", &notifications.path));
    assert_eq!(notifications.next(), READY);
    assert!(is_healthy(connect(program.address())));
    program.terminate();
    let (status, _) = program.end();
    assert!(status.success());
    assert_eq!(notifications.rest(), ["STOPPING=1\n"]);
}

#[test]
fn a_service_manager_that_does_not_read_holds_nothing_up_and_learns_what_it_must_when_it_does() {
    for notifications in [Notifications::open(), Notifications::open_abstract()] {
        notifications.fill();
        let mut command = program();
        command.env("NOTIFY_SOCKET", &notifications.path);
        // Pings find no room either.
        command.env("WATCHDOG_USEC", scaled(Duration::from_millis(20)).as_micros().to_string());
        let mut program = Program::start(&mut command);
        let address = program.address();
        let id = fresh_id("unread");
        let mut binary = Ws::upgrade(address, &binary_head(&id));
        let mut phone = Ws::upgrade(address, &phone_head(&id));
        let mut exchange = || {
            phone.send_text("1");
            assert!(binary.read_text().ends_with(r#""frame":1}"#));
        };
        exchange();
        assert!(program.log_line().contains(" event=systemd_not_reached "));
        program.hang_up();
        let mut told = Vec::new();
        exchange();
        while told.len() < 3 {
            let next = notifications.next_after_fillers();
            // The hangup may come to the program later than the room for the first word.
            if !next.starts_with("WATCHDOG=1") && !next.starts_with("STATUS=") {
                told.push(next);
            }
        }
        assert_eq!((&*told[0], &*told[2]), (READY, "READY=1\n"), "{told:?}");
        assert!(told[1].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{told:?}");
        notifications.fill();
        exchange();
        drop((binary, phone));
        program.terminate();
        let (status, log) = program.end();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains(" event=stopped "), "{log}");
    }
}

#[test]
fn a_socket_in_the_abstract_namespace_is_told_like_any_other() {
    let notifications = Notifications::open_abstract();
    let program = Program::start(program().env("NOTIFY_SOCKET", &notifications.path));
    assert_eq!(notifications.next(), READY);
    program.terminate();
    assert!(program.end().0.success());
    assert_eq!(notifications.rest(), ["STOPPING=1\n"]);
}

#[test]
fn it_is_not_ready_before_it_listens() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let notifications = Notifications::open();
    let mut command = program();
    command.args(["--listen", &taken.local_addr().unwrap().to_string()]);
    let (status, log) = Program::start(command.env("NOTIFY_SOCKET", &notifications.path)).end();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(notifications.rest(), [""; 0]);
}

#[test]
fn the_watchdog_is_pinged_at_once_for_after_an_upgrade_half_of_its_time_may_have_passed() {
    let notifications = Notifications::open();
    let mut command = program();
    command.env("NOTIFY_SOCKET", &notifications.path);
    command.env("WATCHDOG_USEC", Duration::from_secs(1_000_000).as_micros().to_string());
    let program = Program::start(&mut command);
    assert_eq!([notifications.next(), notifications.next()], [READY, "WATCHDOG=1\n"]);
    program.signal("USR2");
    assert_eq!([notifications.next(), notifications.next()], [READY, "WATCHDOG=1\n"]);
}

#[test]
fn the_watchdog_is_pinged_at_half_of_its_time() {
    let half = scaled(Duration::from_millis(100));
    let notifications = Notifications::open();
    let mut command = program();
    command.env("NOTIFY_SOCKET", &notifications.path);
    command.env("WATCHDOG_USEC", (half * 2).as_micros().to_string());
    let began = Instant::now();
    let _program = Program::start(&mut command);
    assert_eq!(notifications.next(), READY);
    for _ in 0..6 {
        assert_eq!(notifications.next(), "WATCHDOG=1\n");
    }
    assert!(began.elapsed() >= half * 5, "six pings in {:?}", began.elapsed());
}

#[test]
fn the_status_follows_the_connections() {
    let notifications = Notifications::open();
    let mut program = Program::start(program().env("NOTIFY_SOCKET", &notifications.path));
    assert_eq!(notifications.next(), READY);
    let address = program.address();
    let id = fresh_id("status");
    let _binary = Ws::upgrade(address, &binary_head(&id));
    let _phone = Ws::upgrade(address, &phone_head(&id));
    // On a slow machine a status may fall between the two connections. How one follows another is held by
    // virtual time, beside the code.
    while notifications.next() != "STATUS=binaries: 1, phones: 1\n" {}
}

#[test]
fn an_inherited_socket_is_used_instead_of_the_option() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, inherited) = (listener.local_addr().unwrap(), listener.try_clone().unwrap());
    let mut command = activated(inherited);
    // To bind it as well would fail: it is taken.
    command.args(["--listen", &address.to_string()]);
    let mut program = Program::start(&mut command);
    let line = program.listening();
    assert!(line.contains(&format!(" address={address} inherited=true")), "{line}");
    assert!(is_healthy(connect(address)));
}

#[test]
fn who_connects_to_an_inherited_socket_between_two_programs_is_served_by_the_second() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let program = Program::start(&mut activated(listener.try_clone().unwrap()));
    assert!(is_healthy(connect(address)));
    program.terminate();
    assert!(program.end().0.success());
    let early = connect(address);
    let _program = Program::start(&mut activated(listener));
    assert!(is_healthy(early));
}

#[test]
fn an_inherited_socket_that_does_not_listen_is_refused_in_words() {
    let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    bound.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let (status, log) = Program::start(&mut activated(bound)).end();
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("cannot use inherited socket 0: it is not listening"), "{log}");
}

#[test]
fn an_inherited_socket_that_is_not_tcp_is_refused_in_words() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (status, log) = Program::start(&mut activated(socket)).end();
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("cannot use inherited socket 0: fd 3 is not a valid tcp socket"), "{log}");
}

/// The program with a second socket behind the first, and names for the two.
fn activated_twice(first: TcpListener, second: TcpListener, names: &str) -> Command {
    let hand_over = r#"LISTEN_FDS=2 LISTEN_PID=$$ exec "$0" "$@" 3<&0 4<&1 </dev/null >/dev/null"#;
    let mut command = Command::new("sh");
    without_systemd(&mut command);
    command.args(["-c", hand_over, PROGRAM, "--rate-limit", "off"]).env("LISTEN_FDNAMES", names);
    command.stdin(Stdio::from(OwnedFd::from(first))).stdout(Stdio::from(OwnedFd::from(second)));
    command
}

fn serves_metrics(address: SocketAddr) -> bool {
    let head = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    crate::rig::request(address, head).0.starts_with("HTTP/1.1 200 ")
}

#[test]
fn the_inherited_socket_named_metrics_serves_the_metrics_and_is_no_listener_of_the_relay() {
    for names in ["metrics:relay", "relay:metrics"] {
        let sockets = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = [0, 1].map(|index: usize| sockets[index].local_addr().unwrap());
        let [first, second] = sockets;
        let _program = Program::start(&mut activated_twice(first, second, names));
        let (metrics, relay) = match names.starts_with("metrics") {
            true => (addresses[0], addresses[1]),
            false => (addresses[1], addresses[0]),
        };
        assert!(serves_metrics(metrics) && is_healthy(connect(relay)), "{names}");
        assert!(!is_healthy(connect(metrics)) && !serves_metrics(relay), "{names}");
    }
}

#[test]
fn with_an_inherited_socket_for_metrics_alone_the_relay_listens_as_the_options_say() {
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = metrics.local_addr().unwrap();
    let mut command = activated(metrics);
    command.env("LISTEN_FDNAMES", "metrics").args(["--listen", "127.0.0.1:0"]);
    let mut program = Program::start(&mut command);
    assert!(is_healthy(connect(program.address())));
    let line = program.log_line();
    assert!(
        line.contains(&format!(" event=serving_metrics address={address} inherited=true")),
        "{line}"
    );
    assert!(serves_metrics(address));
}

#[test]
fn an_inherited_socket_for_metrics_that_others_can_reach_needs_leave() {
    let metrics = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = metrics.local_addr().unwrap().port();
    let mut command = activated(metrics.try_clone().unwrap());
    command.env("LISTEN_FDNAMES", "metrics").args(["--listen", "127.0.0.1:0"]);
    let (status, log) = Program::start(&mut command).end();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("--metrics-public"), "{log}");
    let mut command = activated(metrics);
    command.env("LISTEN_FDNAMES", "metrics").args(["--listen", "127.0.0.1:0", "--metrics-public"]);
    let mut program = Program::start(&mut command);
    program.address();
    assert!(serves_metrics(SocketAddr::from(([127, 0, 0, 1], port))));
}

#[test]
fn sockets_that_were_meant_for_another_process_are_left_alone() {
    let mut command = program();
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    let mut program = Program::start(&mut command);
    assert!(is_healthy(connect(program.address())));
}

#[test]
fn without_systemd_there_is_no_word_of_it() {
    let mut program = Program::start(&mut program());
    assert!(is_healthy(connect(program.address())));
    program.terminate();
    let (status, log) = program.end();
    assert!(status.success());
    let events: Vec<_> = log.lines().map(|line| line.split(" event=").nth(1).unwrap()).collect();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(events[0], "stopping");
    assert!(events[1].starts_with("stopped "), "{events:?}");
}

#[test]
fn a_service_manager_that_cannot_be_reached_is_a_warning_once_and_no_more() {
    let mut command = program();
    command.env("NOTIFY_SOCKET", "/nonexistent/notify");
    command.env("WATCHDOG_USEC", scaled(Duration::from_millis(20)).as_micros().to_string());
    let mut program = Program::start(&mut command);
    let address = program.address();
    assert!(program.log_line().contains(" event=systemd_not_reached "));
    // Silent through several pings, which the next log line proves, since it is that of the stop.
    let until = Instant::now() + scaled(Duration::from_millis(100));
    while Instant::now() < until {
        assert!(is_healthy(connect(address)));
    }
    program.terminate();
    assert!(program.log_line().ends_with(" event=stopping"));
}

#[test]
fn a_hangup_is_a_reload_that_systemd_is_told_of_with_or_without_anything_to_read() {
    let notifications = Notifications::open();
    let mut program = Program::start(program().env("NOTIFY_SOCKET", &notifications.path));
    assert_eq!(notifications.next(), READY);
    let address = program.address();
    let now = || clock_gettime(ClockId::Monotonic).tv_sec;
    for _ in 0..2 {
        let before = now();
        program.hang_up();
        let begun = notifications.next();
        let since = begun.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&begun);
        let since = since.trim_end().parse::<i64>().unwrap() / 1_000_000;
        assert!((before..=now()).contains(&since), "{begun}");
        assert_eq!(notifications.next(), "READY=1\n");
    }
    assert!(is_healthy(connect(address)));
}

#[test]
fn without_anything_to_read_anew_the_end_of_a_terminal_ends_the_relay() {
    // Whoever runs the tests may have set this signal aside.
    let mut command = Command::new("env");
    without_systemd(&mut command);
    command.args(["--default-signal=HUP", PROGRAM]).args(plain(Plain::ItsOwnListeners));
    let mut program = Program::start(&mut command);
    assert!(is_healthy(connect(program.address())));
    program.hang_up();
    let (status, _) = program.end();
    assert!(!status.success());
}
