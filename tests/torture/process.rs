//! The relay as a process, with its log and its figures, and the way to it.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use smol::Async;
use smol::channel::{Receiver, unbounded};
use smol::io::{AsyncRead, AsyncWrite};
use socket2::{Domain, SockRef, Socket as Raw, Type};

use crate::actors::patience;
use crate::actors::wire::{Connecting, Network, Socket};

/// The relay as a process.
pub struct Relay {
    child: Child,
    pub address: SocketAddr,
    /// What it logs.
    pub log: Receiver<String>,
    /// Upgrades that succeeded, and that failed.
    pub upgrades: Arc<[AtomicUsize; 2]>,
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
        let upgrades = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let counted = Arc::clone(&upgrades);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                for (count, event) in counted.iter().zip(["upgraded", "upgrade_failed"]) {
                    if line.contains(&format!(" event={event} ")) {
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                }
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
        let address = crate::actors::field(&listening, "address").expect("it has its address");
        Self { child, address: address.parse().unwrap(), log, upgrades }
    }

    /// Has it hand over to its own program file.
    pub fn upgrade(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::USR2).unwrap();
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

/// The way to a relay at this address of loopback.
pub struct Loopback(pub SocketAddr);

impl Network for Loopback {
    fn connect(&self, source: Ipv4Addr, window: Option<usize>) -> Connecting {
        let address = self.0;
        Box::pin(async move {
            let stream = connect(address, source, window).await?;
            Ok(Box::new(Tcp(stream)) as Box<dyn Socket>)
        })
    }
}

struct Tcp(smol::net::TcpStream);

impl Socket for Tcp {
    fn again(&self) -> Box<dyn Socket> {
        Box::new(Self(self.0.clone()))
    }

    fn shut_down(&self, how: Shutdown) {
        let _ = self.0.shutdown(how);
    }

    fn reset(&self) {
        let _ = SockRef::from(&self.0).set_linger(Some(Duration::ZERO));
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// A connection from this source address.
async fn connect(
    address: SocketAddr,
    source: Ipv4Addr,
    window: Option<usize>,
) -> io::Result<smol::net::TcpStream> {
    let socket = Raw::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    if let Some(window) = window {
        socket.set_recv_buffer_size(window)?;
    }
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let stream = Async::new(TcpStream::from(socket))?;
    stream.writable().await?;
    match stream.get_ref().take_error()? {
        Some(error) => Err(error),
        None => Ok(stream.into()),
    }
}

const EINPROGRESS: i32 = 115;
