//! What is measured: this relay, other relays, the floor. Each runs as a process of its own.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::process;

/// One contestant.
#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    /// Runs on the last core, apart from the client.
    pub pinned: bool,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Relay,
    /// A shell command with `{port}`, and `{options}` if it understands this relay's options.
    Command(String),
    Floor,
}

impl Target {
    pub fn relay() -> Self {
        Self { name: "relay".to_owned(), pinned: false, kind: Kind::Relay }
    }

    pub fn floor() -> Self {
        Self { name: FLOOR.to_owned(), pinned: false, kind: Kind::Floor }
    }

    pub fn command(name: String, command: String) -> Self {
        Self { name, pinned: false, kind: Kind::Command(command) }
    }

    pub fn is_floor(&self) -> bool {
        matches!(self.kind, Kind::Floor)
    }

    /// Size of the program in bytes, where it is a program of ours.
    pub fn program_bytes(&self) -> Option<f64> {
        let size = std::fs::metadata(Path::new(RELAY)).ok()?.len();
        matches!(self.kind, Kind::Relay).then_some(size as f64)
    }

    /// Starts it with these options on a free port and waits until it listens.
    pub fn start(&self, options: &[&str]) -> io::Result<Running> {
        self.start_at(free_port()?, options)
    }

    /// The same on a given port.
    pub fn start_at(&self, port: u16, options: &[&str]) -> io::Result<Running> {
        let options = [&["--rate-limit", "off"], options].concat();
        // By its variable, which an earlier version does not mind.
        self.launch(port, &options, &[(PER_IP, "off")])
    }

    /// The same on a free port, with the limits per address that a relay has by default.
    pub fn start_guarded(&self, options: &[&str]) -> io::Result<Running> {
        self.launch(free_port()?, options, &[])
    }

    fn launch(
        &self,
        port: u16,
        options: &[&str],
        environment: &[(&str, &str)],
    ) -> io::Result<Running> {
        let mut command = match &self.kind {
            Kind::Relay => {
                let mut command = Command::new(RELAY);
                command.args(["--listen", &format!("127.0.0.1:{port}"), "--log-level", "error"]);
                command.args(options).envs(environment.iter().copied());
                command
            }
            Kind::Command(text) => {
                let text = text.replace("{port}", &port.to_string());
                let text = text.replace("{options}", &options.join(" "));
                let mut command = Command::new("sh");
                command.args(["-c", &format!("exec {text}")]).envs(environment.iter().copied());
                command
            }
            Kind::Floor => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args([super::floor::ARGUMENT, &port.to_string()]);
                command
            }
        };
        let began = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let mut running =
            Running { child, port, upgrades: !self.is_floor(), started_in: Duration::ZERO };
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = running.child.try_wait()? {
                return Err(io::Error::other(format!("{} ended at once: {status}", self.name)));
            }
            if began.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{} does not listen", self.name)));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        running.started_in = began.elapsed();
        if self.pinned {
            process::pin_to_last_core(running.pid())?;
        }
        Ok(running)
    }
}

/// A contestant that listens. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pub port: u16,
    /// Speaks WebSocket and envelopes; the floor does not.
    pub upgrades: bool,
    /// From its start to its first accept.
    pub started_in: Duration,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn cpu(&self) -> process::CpuShare {
        process::CpuShare::begin(self.pid())
    }

    pub fn resident(&self) -> f64 {
        process::resident(self.pid())
    }

    /// An error if it has ended.
    pub fn check_alive(&mut self) -> io::Result<()> {
        match self.child.try_wait()? {
            Some(status) => Err(io::Error::other(format!("it has ended: {status}"))),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing that it could do in an orderly end is measured.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens at.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The name of the floor in reports.
pub const FLOOR: &str = "floor";

const RELAY: &str = env!("CARGO_BIN_EXE_pyrycode-relay");
/// Every client comes from one address.
const PER_IP: &str = "PYRYCODE_RELAY_MAX_CONNECTIONS_PER_IP";
const PATIENCE: Duration = Duration::from_secs(20);
