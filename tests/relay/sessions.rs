//! Sessions over connections that break, over real sockets: see `tests/actors/session.rs`.
//!
//! `tests/simulation/sessions.rs` has the same by virtual time, and thousands of trials; here the kernel's own TCP is
//! what breaks. More trials than the ordinary run has:
//! `RELAY_SESSION_TRIALS=200 RELAY_SESSION_SEED=7 cargo test --test relay sessions::`.

#[path = "../actors/session.rs"]
mod session;

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_lite::future::zip;
use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _};
use relay_test_kit::frame::{PING, PONG, Received, encode};
use relay_test_kit::inbox::Inbox;
use smol::channel::{Receiver, Sender, unbounded};
use smol::{Async, LocalExecutor, Timer};

use self::session::{Connection, Cut, DELAY, Place, try_one};
use crate::rig::{Address, Duplex, Relay, binary_head, fresh_id, phone_head, scaled, secured};

#[test]
fn resets_break_no_session() {
    try_all(Cut::Reset);
}

#[test]
fn ends_of_the_stream_break_no_session() {
    try_all(Cut::Fin);
}

#[test]
fn orderly_closes_break_no_session_and_quiet_phones_stay() {
    try_all(Cut::CloseFrame);
}

#[test]
fn proxies_that_die_break_no_session() {
    try_all(Cut::ProxyDies);
}

#[test]
fn silence_breaks_no_session() {
    try_all(Cut::Silence);
}

#[test]
fn a_daemon_that_is_replaced_leaves_no_phone_deaf() {
    try_all(Cut::Replaced);
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Many trials side by side.
fn try_all(cut: Cut) {
    let trials = number("RELAY_SESSION_TRIALS").unwrap_or(4);
    let seed = number("RELAY_SESSION_SEED").unwrap_or_else(|| fastrand::u64(..));
    // No short heartbeat: a busy machine misses it.
    let relay = Relay::start(&["--probe-timeout", &crate::rig::millis(1_000)]);
    let executor = Rc::new(LocalExecutor::new());
    let ended: Vec<_> = (0..trials)
        .map(|trial| {
            let place = Sockets {
                executor: Rc::clone(&executor),
                relay: relay.address,
                id: fresh_id("session"),
            };
            let seed = seed.wrapping_add(trial);
            executor.spawn(async move { try_one(&place, cut, seed).await })
        })
        .collect();
    let mut faults = Vec::new();
    smol::block_on(executor.run(async {
        for (trial, ended) in ended.into_iter().enumerate() {
            faults.extend(ended.await.into_iter().map(|fault| format!("trial {trial}: {fault}")));
        }
    }));
    let count = faults.len();
    faults.truncate(5);
    assert_eq!(count, 0, "{cut:?} with RELAY_SESSION_SEED={seed}, {trials} trials: {faults:#?}");
}

/// A relay, and one trial's way to it.
struct Sockets {
    executor: Rc<LocalExecutor<'static>>,
    relay: Address,
    id: String,
}

impl Place for Sockets {
    type Connection = Socket;
    type Path = Path;

    async fn claim(&self) -> (Socket, Path) {
        loop {
            let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
            let address = listener.get_ref().local_addr().unwrap();
            let head = binary_head(&self.id);
            let opening = Path::open(&self.executor, &listener, self.relay.at);
            match zip(Socket::dial(Address { at: address, ..self.relay }, &head), opening).await {
                (Ok(socket), path) => return (socket, path),
                // A probe is under way.
                (Err(_), _) => drop(Timer::after(Duration::from_millis(200)).await),
            }
        }
    }

    async fn dial(&self) -> Option<Socket> {
        Socket::dial(self.relay, &phone_head(&self.id)).await.ok()
    }

    fn cut(&self, path: &mut Path, cut: Cut, _rng: &mut Rng) {
        path.cut(cut);
    }

    fn scaled(&self, duration: Duration) -> Duration {
        scaled(duration)
    }
}

/// A WebSocket.
struct Socket {
    stream: Pin<Box<dyn Duplex>>,
    inbox: Inbox,
}

impl Socket {
    async fn dial(address: Address, head: &str) -> io::Result<Self> {
        let tcp = Async::<TcpStream>::connect(address.at).await?;
        tcp.get_ref().set_nodelay(true)?;
        let stream = secured(tcp, address).await?;
        let mut socket = Self { stream, inbox: Inbox::default() };
        socket.stream.write_all(head.as_bytes()).await?;
        let head = loop {
            if let Some(head) = socket.inbox.take_head() {
                break head;
            }
            socket.fill().await?;
        };
        match head.starts_with("HTTP/1.1 101 ") {
            true => Ok(socket),
            false => Err(io::Error::other(head)),
        }
    }

    /// The next frame. Cancel safe.
    async fn next(&mut self) -> io::Result<Received> {
        loop {
            if let Some(frame) = self.inbox.take_frame().expect("frames of a relay") {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let read = self.stream.read(&mut buffer).await?;
        self.inbox.push(&buffer[..read]);
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

impl Connection for Socket {
    async fn next_by(&mut self, due: Instant) -> io::Result<Option<Received>> {
        let next = async { self.next().await.map(Some) };
        let late = async {
            Timer::at(due).await;
            Ok(None)
        };
        let next = next.or(late).await?;
        if let Some(ping) = next.as_ref().filter(|frame| frame.opcode == PING) {
            self.send(PONG, &ping.payload).await?;
        }
        Ok(next)
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        self.stream.write_all(&encode(true, opcode, payload)).await
    }
}

/// The daemon's way to the relay: what goes in on one side comes out on the other a moment later.
struct Path {
    ends: Vec<Rc<Async<TcpStream>>>,
    ways: Vec<smol::Task<()>>,
}

impl Path {
    /// Opens the path for whoever connects to `listener`.
    async fn open(
        executor: &LocalExecutor<'static>,
        listener: &Async<TcpListener>,
        relay: SocketAddr,
    ) -> Self {
        let far = Rc::new(Async::<TcpStream>::connect(relay).await.unwrap());
        let near = Rc::new(listener.accept().await.unwrap().0);
        for end in [&near, &far] {
            end.get_ref().set_nodelay(true).unwrap();
        }
        let ways = [(&near, &far), (&far, &near)].map(|(from, to)| {
            let (sender, receiver) = unbounded();
            [
                executor.spawn(take_in(Rc::clone(from), sender)),
                executor.spawn(let_out(receiver, Rc::clone(to))),
            ]
        });
        Self { ways: ways.into_iter().flatten().collect(), ends: vec![near, far] }
    }

    /// Ends it, with whatever is in it.
    fn cut(&mut self, cut: Cut) {
        // Nothing comes out any more.
        self.ways.clear();
        for end in &self.ends {
            let socket = socket2::SockRef::from(end.get_ref());
            match cut {
                Cut::Reset => {
                    socket.set_linger(Some(Duration::ZERO)).unwrap();
                    let _ = socket.shutdown(Shutdown::Read);
                }
                Cut::Fin | Cut::CloseFrame => drop(socket.shutdown(Shutdown::Write)),
                Cut::ProxyDies | Cut::Replaced | Cut::Silence => {}
            }
        }
        if !matches!(cut, Cut::Silence | Cut::Fin) {
            // Closed by being dropped, with unread input as a reset.
            self.ends.clear();
        }
    }
}

/// Takes in what comes, for a moment later.
async fn take_in(from: Rc<Async<TcpStream>>, way: Sender<(Instant, Vec<u8>)>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = (&*from).read(&mut buffer).await {
        let _ = way.send((Instant::now() + DELAY, buffer[..read].to_vec())).await;
    }
}

async fn let_out(way: Receiver<(Instant, Vec<u8>)>, to: Rc<Async<TcpStream>>) {
    while let Ok((due, bytes)) = way.recv().await {
        Timer::at(due).await;
        if (&*to).write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to.get_ref().shutdown(Shutdown::Write);
}
