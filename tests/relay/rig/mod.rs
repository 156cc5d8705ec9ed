//! What the tests stand on: a relay on its own thread, a raw WebSocket client over a blocking
//! socket, and the relay's log events to wait for.
//!
//! With `RELAY_TEST_TLS=1` both ends speak TLS, with `RELAY_TEST_TLS=1.2` an old one, except where [`Plain`] says why not.
//!
//! Every read has a deadline (`RELAY_TEST_SCALE` multiplies them, for emulated machines). Tests
//! wait for frames and for log events, never for time to pass: a relay's clock may stand still, and
//! go on when its test says so.

pub mod events;
mod plain;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod secure;
mod stream;
pub mod ws;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
#[cfg(feature = "tls")]
use std::time::SystemTime;

#[cfg(feature = "tls")]
use pyrycode_relay::clock::{self, simulated::Simulation};
use pyrycode_relay::config::{Config, Options, command};
use pyrycode_relay::net::listen::{self, Listen};
use pyrycode_relay::server;
use pyrycode_relay::signals::{Request, Stop};
use smol::LocalExecutor;
#[cfg(feature = "tls")]
use smol::channel::{Sender, unbounded};
use socket2::{Domain, Socket, Type};

pub use self::plain::Plain;
pub use self::stream::{Address, Duplex, Stream, both, front, plain, secured};
pub use self::ws::Ws;

/// How long a test waits for something that must happen.
pub fn deadline() -> Duration {
    scaled(Duration::from_secs(20))
}

/// A duration of a test, stretched on slow machines.
pub fn scaled(duration: Duration) -> Duration {
    let scale = std::env::var("RELAY_TEST_SCALE").ok().and_then(|text| text.parse().ok());
    duration.mul_f64(scale.unwrap_or(1.0))
}

/// A duration as an option's value, stretched on slow machines.
pub fn millis(milliseconds: u64) -> String {
    format!("{}ms", scaled(Duration::from_millis(milliseconds)).as_millis())
}

/// On a slow machine: options that stretch the program's own times, where `arguments` leave them.
pub fn stretched(arguments: &[&str]) -> Vec<String> {
    let mut options = Vec::new();
    for option in command().get_arguments() {
        let name = format!("--{}", option.get_long().unwrap_or_default());
        let default = option.get_default_values().first().and_then(|value| value.to_str());
        let Some(Ok(default)) = default.map(humantime::parse_duration) else { continue };
        if scaled(default) != default && !arguments.contains(&name.as_str()) {
            options.extend([name, format!("{}ms", scaled(default).as_millis())]);
        }
    }
    options
}

/// A FIFO that nobody has opened.
pub fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(path).status().unwrap().success());
}

/// A server-id that no other test uses.
pub fn fresh_id(name: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A relay on a thread of its own; dropping it stops it and waits for its end.
pub struct Relay {
    /// Where it serves daemons and phones.
    pub address: Address,
    /// Where it speaks TLS besides, with `--tls-listen`.
    #[cfg(feature = "tls")]
    pub tls: Option<SocketAddr>,
    /// Where it serves its metrics, with `--metrics-listen`.
    pub metrics: Option<SocketAddr>,
    stop: Stop,
    reload: Request,
    /// Where its clock is told to go on, if it stands still otherwise.
    #[cfg(feature = "tls")]
    passing: Option<Sender<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts a relay, on a free loopback port and without the limits of an address unless
    /// `arguments` say otherwise. In a run over TLS it listens for that.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_behind(front(), arguments, |_| ())
    }

    /// Starts one that listens without TLS in any run.
    pub fn plain(why: Plain, arguments: &[&str]) -> Self {
        Self::start_behind(plain(why), arguments, |_| ())
    }

    /// The same by a clock that stands still but for [`Self::let_pass`].
    #[cfg(feature = "tls")]
    pub fn plain_with_a_clock_that_stands_still(why: Plain, arguments: &[&str]) -> Self {
        let (passing, passed) = unbounded::<Duration>();
        let mut relay = Self::start_behind(plain(why), arguments, |executor| {
            let simulation = Simulation::begin(fastrand::u64(..), SystemTime::now());
            let going_on = async move {
                while let Ok(time) = passed.recv().await {
                    simulation.advance(clock::now() + time);
                }
            };
            executor.spawn(going_on).detach();
        });
        relay.passing = Some(passing);
        relay
    }

    /// `prepare` is called on the relay's thread, with its executor, before anything else.
    fn start_behind(
        front: &[&str],
        arguments: &[&str],
        prepare: impl FnOnce(&LocalExecutor<'static>) + Send + 'static,
    ) -> Self {
        events::install();
        let mut all = vec!["pyrycode-relay"];
        if !arguments.contains(&"--listen") {
            all.extend(front);
        }
        if !arguments.contains(&"--rate-limit") {
            all.extend(["--rate-limit", "off"]);
        }
        if !arguments.contains(&"--max-connections-per-ip") {
            all.extend(["--max-connections-per-ip", "off"]);
        }
        all.extend(arguments);
        let stretched = stretched(arguments);
        all.extend(stretched.iter().map(String::as_str));
        let options = Options::parse_arguments(all).expect("the test's options parse");
        let config = Config::from_options(options).expect("the test's options fit together");
        let open = |listen: &[Listen]| -> Vec<_> {
            listen.iter().map(|at| listen::open(*at).expect("a loopback port is free")).collect()
        };
        let plain = open(&config.listen);
        let secured = open(config.tls_listen());
        let monitored = open(config.metrics_listen.as_slice());
        let at = |listeners: &[TcpListener]| Some(listeners.first()?.local_addr().unwrap());
        let tls = at(&secured).map(|at| Address { at, is_tls: true });
        let address = at(&plain).map(Address::from).or(tls).expect("it listens");
        let metrics = at(&monitored);
        let (stop, reload) = (Stop::new(), Request::new());
        let (raised, asked) = (stop.clone(), reload.clone());
        let mut relay = Self {
            address,
            #[cfg(feature = "tls")]
            tls: at(&secured),
            metrics,
            stop,
            reload,
            #[cfg(feature = "tls")]
            passing: None,
            thread: None,
        };
        relay.thread = Some(std::thread::spawn(move || {
            let executor = LocalExecutor::new();
            prepare(&executor);
            let sockets = server::Sockets { relay: plain, tls: secured, metrics: monitored };
            server::run_on(&executor, sockets, config, &raised, &asked).expect("the relay runs");
        }));
        relay
    }

    /// Asks the relay to read its files again, as SIGHUP would.
    pub fn reload(&self) {
        self.reload.ask();
    }

    /// Lets time pass for a relay whose clock stands still otherwise.
    #[cfg(feature = "tls")]
    pub fn let_pass(&self, time: Duration) {
        let passing = self.passing.as_ref().expect("its clock stands still");
        passing.try_send(time).expect("the relay is there");
    }

    /// Asks the relay to stop, as a signal would.
    pub fn raise_stop(&self) {
        self.stop.raise();
    }

    /// Waits for the relay's end.
    pub fn join(mut self) {
        self.thread.take().unwrap().join().expect("the relay does not panic");
    }

    /// A binary that holds `id`.
    pub fn binary(&self, id: &str) -> Ws {
        Ws::upgrade(self.address, &binary_head(id))
    }

    /// The same with a receive buffer so small that the relay cannot write much ahead of it.
    pub fn narrow_binary(&self, id: &str) -> Ws {
        let mut stream = connect_narrow(self.address);
        stream.write_all(binary_head(id).as_bytes()).unwrap();
        Ws::after_request(stream)
    }

    /// A registered phone that has such a buffer, and its connection id.
    pub fn narrow_phone(&self, id: &str) -> (Ws, String) {
        let seen = events::mark();
        let mut stream = connect_narrow(self.address);
        stream.write_all(phone_head(id).as_bytes()).unwrap();
        let line = events::wait_after(seen, "phone_registered", &[("server_id", id)]);
        (Ws::after_request(stream), events::field(&line, "conn_id"))
    }

    /// A phone at `id`.
    pub fn phone(&self, id: &str) -> Ws {
        Ws::upgrade(self.address, &phone_head(id))
    }

    /// A phone at `id` that has been registered, and its connection id.
    pub fn registered_phone(&self, id: &str) -> (Ws, String) {
        let seen = events::mark();
        let phone = self.phone(id);
        let line = events::wait_after(seen, "phone_registered", &[("server_id", id)]);
        (phone, events::field(&line, "conn_id"))
    }

    /// A binary, a phone, and the phone's connection id.
    pub fn pair(&self, id: &str) -> (Ws, Ws, String) {
        let binary = self.binary(id);
        let (phone, conn_id) = self.registered_phone(id);
        (binary, phone, conn_id)
    }

    /// Connected binaries and phones by the health page.
    pub fn health(&self) -> (u64, u64) {
        let (head, body) = self.request("GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let count = |key: &str| body[key].as_u64().unwrap();
        (count("connected_binaries"), count("connected_phones"))
    }

    /// Sends a request as it stands; returns head and body of the response, read to its end.
    pub fn request(&self, text: impl AsRef<[u8]>) -> (String, String) {
        request(self.address, text)
    }
}

/// The same at any address.
pub fn request(address: impl Into<Address>, text: impl AsRef<[u8]>) -> (String, String) {
    let mut stream = connect(address);
    stream.write_all(text.as_ref()).unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).expect("the response ends without a reset");
    let response = String::from_utf8(response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").expect("a complete head");
    (format!("{head}\r\n"), body.to_owned())
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.raise();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("the relay does not panic");
            }
        }
    }
}

/// A connection whose reads and writes have a deadline.
pub fn connect(address: impl Into<Address>) -> Stream {
    let address = address.into();
    with_deadlines(TcpStream::connect(address.at).expect("the relay listens"), address)
}

/// An address of the loopback network that no other test connects from, so that the events of a
/// connection without a server-id can be told from everybody else's.
pub fn fresh_source() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    Ipv4Addr::new(127, 9, 0, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The same as [`connect`], from this address.
pub fn connect_from(source: Ipv4Addr, address: impl Into<Address>) -> Stream {
    let address = address.into();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.at.into()).expect("the relay listens");
    with_deadlines(socket.into(), address)
}

/// The same with a receive buffer so small that a few kilobytes fill it.
pub fn connect_narrow(address: impl Into<Address>) -> Stream {
    connect_narrowed(Ipv4Addr::UNSPECIFIED, address.into(), 4096)
}

/// The same from this address, with a receive buffer of about this size.
pub fn connect_narrowed(source: Ipv4Addr, address: Address, buffer: usize) -> Stream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(buffer).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.at.into()).expect("the relay listens");
    with_deadlines(socket.into(), address)
}

fn with_deadlines(stream: TcpStream, address: Address) -> Stream {
    stream.set_read_timeout(Some(deadline())).unwrap();
    stream.set_write_timeout(Some(deadline())).unwrap();
    stream.set_nodelay(true).unwrap();
    Stream::meet(stream, address)
}

/// The fields of every upgrade.
pub const UPGRADE: &str = "Host: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// The request head of a binary.
pub fn binary_head(id: &str) -> String {
    format!(
        "GET /v1/server HTTP/1.1\r\n{UPGRADE}X-Pyrycode-Server: {id}\r\n\
         X-Pyrycode-Version: 9.9.9-test\r\nUser-Agent: test-binary\r\n\r\n"
    )
}

/// The request head of a phone.
pub fn phone_head(id: &str) -> String {
    format!(
        "GET /v1/client HTTP/1.1\r\n{UPGRADE}X-Pyrycode-Server: {id}\r\n\
         X-Pyrycode-Token: token-of-the-phone\r\nUser-Agent: test-phone\r\n\
         X-Pyrycode-Device-Name: test device\r\n\r\n"
    )
}

/// The envelope around a frame.
pub fn envelope(conn_id: &str, frame: &str) -> String {
    format!(r#"{{"conn_id":"{conn_id}","frame":{frame}}}"#)
}

/// The `number`th of many messages that differ.
pub fn large_message(number: usize) -> String {
    format!("\"{number:06}{}\"", "x".repeat(60_000))
}

/// The close notice for a phone.
pub fn notice(conn_id: &str, code: u16) -> String {
    format!(r#"{{"conn_id":"{conn_id}","close_code":{code}}}"#)
}
