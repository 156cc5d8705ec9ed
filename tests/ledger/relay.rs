//! The relay that is measured: this test program, started once more.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use pyrycode_relay::config::{Config, Options};
use pyrycode_relay::net::listen;
use pyrycode_relay::server::{Sockets, run_on};
use pyrycode_relay::signals::{Request, Stop};
use smol::LocalExecutor;

use crate::ALLOCATOR;
use crate::client::deadline;

/// A relay in a process that allocates for nothing else. It ends when this is dropped.
pub struct Process {
    child: Child,
    control: BufReader<UnixStream>,
    /// Where it speaks without TLS.
    pub address: SocketAddr,
    /// Where its status page is.
    pub metrics: SocketAddr,
    /// Where it speaks TLS, with `--tls-listen`.
    #[cfg(feature = "tls")]
    pub tls: Option<SocketAddr>,
}

impl Process {
    pub fn start(options: &[&str]) -> Self {
        let (control, theirs) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(deadline())).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["relay::a_relay_in_a_process_of_its_own_answers_and_ends_with_its_owner"])
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .env(OPTIONS, options.join("\n"))
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .expect("the test program starts");
        let mut control = BufReader::new(control);
        let mut line = String::new();
        control.read_line(&mut line).expect("the relay starts within the deadline");
        let mut addresses = line.split_whitespace().map(|address| address.parse().unwrap());
        let mut next = || addresses.next();
        let (address, metrics) = (next().expect("an address"), next().expect("a status page"));
        Self {
            child,
            control,
            address,
            metrics,
            #[cfg(feature = "tls")]
            tls: next(),
        }
    }

    /// Bytes that were asked of the allocator and not given back.
    pub fn allocated(&mut self) -> usize {
        self.ask(HELD)
    }

    /// How often the allocator has been asked for memory.
    #[cfg(feature = "tls")]
    pub fn allocations(&mut self) -> usize {
        self.ask(COUNT)
    }

    fn ask(&mut self, what: u8) -> usize {
        self.control.get_mut().write_all(&[what]).unwrap();
        let mut figure = [0; 8];
        self.control.read_exact(&mut figure).expect("an answer within the deadline");
        usize::try_from(u64::from_ne_bytes(figure)).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The test programs that [`Process`] starts are the relay in this test; elsewhere it starts one itself.
#[test]
fn a_relay_in_a_process_of_its_own_answers_and_ends_with_its_owner() {
    if let Ok(options) = std::env::var(OPTIONS) {
        return serve(&options);
    }
    let options = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    let mut process = Process::start(&options);
    let addresses = [process.address, process.metrics];
    assert!(process.allocated() > 0);
    for address in addresses {
        TcpStream::connect(address).expect("it listens");
    }
    drop(process);
    for address in addresses {
        TcpStream::connect(address).expect_err("it has ended");
    }
}

/// Runs a relay, and answers each byte on standard input with a figure of the allocator's.
fn serve(options: &str) {
    let arguments = std::iter::once("pyrycode-relay").chain(options.split('\n'));
    let config = Config::from_options(Options::parse_arguments(arguments).unwrap()).unwrap();
    let open = |at: &_| listen::open(*at).unwrap();
    let sockets = Sockets {
        relay: config.listen.iter().map(open).collect(),
        metrics: config.metrics_listen.iter().map(open).collect(),
        tls: config.tls_listen().iter().map(open).collect(),
    };
    let listeners = sockets.relay.iter().chain(&sockets.metrics).chain(&sockets.tls);
    let addresses: Vec<_> =
        listeners.map(|listener| listener.local_addr().unwrap().to_string()).collect();
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let mut control = UnixStream::from(stdin);
    writeln!(control, "{}", addresses.join(" ")).unwrap();
    std::thread::spawn(move || {
        run_on(&LocalExecutor::new(), sockets, config, &Stop::new(), &Request::new()).unwrap();
    });
    // Nothing below allocates.
    let mut asked = [0];
    while control.read_exact(&mut asked).is_ok() {
        let figures = ALLOCATOR.stats();
        let figure = match asked {
            [COUNT] => figures.allocations + figures.reallocations,
            _ => figures.bytes_allocated - figures.bytes_deallocated,
        };
        control.write_all(&(figure as u64).to_ne_bytes()).unwrap();
    }
}

/// What it is asked: the bytes that it holds, and how often it has asked for memory.
const HELD: u8 = b'?';
const COUNT: u8 = b'#';
/// The relay's options, one per line.
const OPTIONS: &str = "LEDGER_RELAY_OPTIONS";
