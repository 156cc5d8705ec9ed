//! What all clients of a run share, and the relay itself: a process with its log and its figures.

use std::cell::{Cell, RefCell};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use smol::LocalExecutor;
use smol::channel::{Receiver, unbounded};

use super::wire::{Cut, Dial};
use super::world::World;
use super::{patience, scaled};

/// What all clients of a run share.
pub struct Site {
    pub address: SocketAddr,
    pub executor: Rc<LocalExecutor<'static>>,
    pub grace: Duration,
    /// Somebody has found something wrong: nobody goes on.
    pub over: Cell<bool>,
    /// Some `conn_id`s of all servers.
    known: RefCell<Vec<(String, String)>>,
}

impl Site {
    pub fn new(
        address: SocketAddr,
        executor: Rc<LocalExecutor<'static>>,
        grace: Duration,
    ) -> Rc<Self> {
        let known = RefCell::default();
        Rc::new(Self { address, executor, grace, over: Cell::new(false), known })
    }

    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// The time from one step of a client to its next.
    pub fn pause(&self, random: &mut fastrand::Rng) -> Duration {
        scaled(Duration::from_millis(match random.u8(..4) {
            0 => random.u64(..20),
            1..3 => random.u64(20..200),
            _ => random.u64(200..500),
        }))
    }

    /// By then the relay has given up on anybody who fell silent.
    pub fn silence(&self) -> Duration {
        scaled(super::HEARTBEAT_INTERVAL + super::HEARTBEAT_TIMEOUT + Duration::from_millis(1500))
    }

    /// The clients of a server-id have an address of their own, as they would on the internet.
    pub fn source(&self, world: u32) -> Ipv4Addr {
        let [_, _, high, low] = (world + 1).to_be_bytes();
        Ipv4Addr::new(127, 7, high, low)
    }

    pub fn dial(
        &self,
        source: Ipv4Addr,
        head: String,
        behind: Vec<u8>,
        cut: Cut,
        window: Option<usize>,
        random: &mut fastrand::Rng,
    ) -> Dial<'_> {
        let (address, executor, seed) = (self.address, &*self.executor, random.u64(..));
        Dial { address, source, head, behind, cut, window, executor, seed }
    }

    /// The request head of a binary.
    pub fn binary_head(&self, id: &str) -> String {
        format!(
            "GET /v1/server HTTP/1.1\r\n{UPGRADE}X-Pyrycode-Server: {id}\r\n\
             X-Pyrycode-Version: 9.9.9-test\r\nUser-Agent: torture\r\n\r\n"
        )
    }

    /// The request head of a phone.
    pub fn phone_head(&self, id: &str) -> String {
        format!(
            "GET /v1/client HTTP/1.1\r\n{UPGRADE}X-Pyrycode-Server: {id}\r\n\
             X-Pyrycode-Token: token\r\nUser-Agent: torture\r\n\r\n"
        )
    }

    /// Remembers a phone's id for the daemons of other servers.
    pub fn learn(&self, world: &World, phone: u32, random: &mut fastrand::Rng) {
        let Some(conn_id) = &world.phones[&phone].conn_id else { return };
        let mut known = self.known.borrow_mut();
        let entry = (world.id.clone(), conn_id.clone());
        if known.len() < KNOWN {
            known.push(entry);
        } else {
            known[random.usize(..KNOWN)] = entry;
        }
    }

    /// The id of a phone of another server.
    pub fn foreign_id(&self, own: &str, random: &mut fastrand::Rng) -> Option<String> {
        let known = self.known.borrow();
        let (server, conn_id) = known.get(random.usize(..known.len().max(1)))?;
        (server != own).then(|| conn_id.clone())
    }
}

/// The relay as a process.
pub struct Relay {
    child: Child,
    pub address: SocketAddr,
    /// What it logs.
    pub log: Receiver<String>,
}

impl Relay {
    pub fn start(options: &[String]) -> Self {
        let program = std::env::var("RELAY_TORTURE_PROGRAM");
        let built = || env!("CARGO_BIN_EXE_pyrycode-relay").to_owned();
        let mut command = Command::new(program.unwrap_or_else(|_| built()));
        command.args(["--listen", "127.0.0.1:0", "--rate-limit", "off", "--log-level", "info"]);
        command.args(options).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let stderr = child.stderr.take().unwrap();
        let (sender, log) = unbounded();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.try_send(line).is_err() {
                    return;
                }
            }
        });
        let listening = smol::block_on(async {
            loop {
                let line = log.recv().await.expect("the relay says where it listens");
                if line.contains(" event=listening ") {
                    break line;
                }
            }
        });
        let address = field(&listening, "address").expect("it has its address");
        Self { child, address: address.parse().unwrap(), log }
    }

    /// Connected binaries and phones.
    pub fn counts(&self) -> (u64, u64) {
        let mut stream = TcpStream::connect(self.address).expect("the relay listens");
        stream.set_read_timeout(Some(patience())).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a whole response");
        let body = response.split_once("\r\n\r\n").expect("a head").1;
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let count = |key: &str| body[key].as_u64().unwrap();
        (count("connected_binaries"), count("connected_phones"))
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Resident memory in KiB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Asks it to stop, and waits for its end.
    pub fn stop(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let until = Instant::now() + patience();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the relay does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A field of a log line; the values that are asked for here are never quoted.
pub fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

const UPGRADE: &str = "Host: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const KNOWN: usize = 256;
