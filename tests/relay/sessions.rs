//! Sessions as the field has them, over connections that break.
//!
//! A daemon holds a counted session for each phone. What it sends and gets is numbered: a gap on the way to it is
//! answered with 4421, a gap on the way to a phone leaves that phone stuck. Its connection runs through a path with
//! a delay, which is cut in several ways, and it comes back, with its sessions or without. Whatever was lost, each
//! phone must be in a working session soon after: kept, or begun anew.
//!
//! `tests/simulation/sessions.rs` has the same by virtual time, and thousands of trials; here the kernel's own TCP is
//! what breaks. `RELAY_SESSION_TRIALS=200 RELAY_SESSION_SEED=7 cargo test --test relay sessions:: -- --ignored`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _};
use relay_test_kit::frame::{CLOSE, PING, PONG, Received, TEXT, encode};
use relay_test_kit::inbox::Inbox;
use serde_json::{Value, json};
use smol::channel::{Receiver, Sender, unbounded};
use smol::{Async, LocalExecutor, Timer};

use crate::rig::{Relay, binary_head, fresh_id, phone_head, scaled};

/// How the daemon's connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cut {
    /// Both ends see a reset.
    Reset,
    /// Both ends see the end of the stream, before what was on its way.
    Fin,
    /// The daemon says goodbye.
    CloseFrame,
    /// A proxy on the path dies: its kernel closes what it had, with whatever it had taken.
    ProxyDies,
    /// Nothing comes through any more, and nobody is told.
    Silence,
    /// The daemon's process dies and another one takes its place, which knows of no session.
    Replaced,
}

/// What a phone does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// Sends and is sent to.
    Talks,
    /// Is sent to.
    Listens,
    /// Has a session, and says and hears nothing until the daemon is back.
    Quiet,
}

const ROLES: [Role; 4] = [Role::Talks, Role::Talks, Role::Listens, Role::Quiet];

/// One way of the path.
const DELAY: Duration = Duration::from_millis(25);

/// The daemon sends to each phone that is no quiet one so often. Much more often than every two seconds, however
/// slow the machine: who is spoken to more seldom is quiet by the contract, and a message on its way is lost unseen.
fn interval() -> Duration {
    scaled(Duration::from_millis(250)).min(Duration::from_millis(500))
}

/// Soon enough after the daemon is back.
const SOON: Duration = Duration::from_secs(9);

#[test]
#[ignore = "it takes its time, over real sockets: by virtual time it is in tests/simulation, and a part of CI runs it"]
fn resets_break_no_session() {
    try_all(Cut::Reset);
}

#[test]
#[ignore = "it takes its time, over real sockets: by virtual time it is in tests/simulation, and a part of CI runs it"]
fn ends_of_the_stream_break_no_session() {
    try_all(Cut::Fin);
}

#[test]
#[ignore = "it takes its time, over real sockets: by virtual time it is in tests/simulation, and a part of CI runs it"]
fn orderly_closes_break_no_session_and_quiet_phones_stay() {
    try_all(Cut::CloseFrame);
}

#[test]
#[ignore = "it takes its time, over real sockets: by virtual time it is in tests/simulation, and a part of CI runs it"]
fn proxies_that_die_break_no_session() {
    try_all(Cut::ProxyDies);
}

#[test]
#[ignore = "it takes its time, over real sockets: by virtual time it is in tests/simulation, and a part of CI runs it"]
fn silence_breaks_no_session() {
    try_all(Cut::Silence);
}

#[test]
#[ignore = "it takes its time, over real sockets: by virtual time it is in tests/simulation, and a part of CI runs it"]
fn a_daemon_that_is_replaced_leaves_no_phone_deaf() {
    try_all(Cut::Replaced);
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Many trials side by side.
fn try_all(cut: Cut) {
    let trials =
        number("RELAY_SESSION_TRIALS").unwrap_or(if cfg!(relay_emulated) { 4 } else { 16 });
    let seed = number("RELAY_SESSION_SEED").unwrap_or_else(|| fastrand::u64(..));
    let (second, probe) = (crate::rig::millis(1_000), crate::rig::millis(1_000));
    let relay = Relay::start(&[
        "--heartbeat-interval",
        &second,
        "--heartbeat-timeout",
        &second,
        "--probe-timeout",
        &probe,
    ]);
    let executor = Rc::new(LocalExecutor::new());
    let ended: Vec<_> = (0..trials)
        .map(|trial| {
            let rng = Rng::with_seed(seed.wrapping_add(trial));
            executor.spawn(try_one(Rc::clone(&executor), relay.address, cut, rng))
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

/// One trial; returns what went wrong.
async fn try_one(
    executor: Rc<LocalExecutor<'static>>,
    relay: SocketAddr,
    cut: Cut,
    mut rng: Rng,
) -> Vec<String> {
    let id = fresh_id("session");
    let mut random = |most: u64| Duration::from_millis(rng.u64(0..most));
    let daemon = Rc::new(Daemon::default());
    let mut path = Path::open(&executor, relay, &id).await;
    let mut serving = executor.spawn(serve(Rc::clone(&daemon), path.daemon_end()));
    let phones: Vec<_> =
        ROLES.iter().map(|role| Rc::new(Phone::new(*role, Rc::clone(&daemon.is_back)))).collect();
    let tasks: Vec<_> = phones
        .iter()
        .map(|phone| executor.spawn(dial(Rc::clone(phone), relay, id.clone())))
        .collect();
    for phone in &phones {
        phone.until(|phone| phone.is_open.get()).await;
    }
    // Whoever is quiet is so for longer than what is under way can take.
    Timer::after(scaled(Duration::from_millis(2_500) + random(1_000))).await;

    // With very many at once, some had to dial twice.
    for phone in &phones {
        phone.dials.set(1);
    }
    if cut == Cut::CloseFrame {
        daemon.says_goodbye.set(true);
        serving.await;
    } else {
        path.cut(cut);
        if cut == Cut::Silence {
            // The daemon has its own timeout.
            Timer::after(scaled(random(1_500))).await;
        }
        serving.cancel().await;
    }
    Timer::after(scaled(random(800))).await;
    if cut == Cut::Replaced {
        daemon.sessions.borrow_mut().clear();
    }
    daemon.says_goodbye.set(false);
    // The old one goes when all is over: where it is silent, nobody is told.
    let mut new = Path::open(&executor, relay, &id).await;
    daemon.is_back.set(Some(Instant::now()));
    serving = executor.spawn(serve(Rc::clone(&daemon), new.daemon_end()));

    let mut faults = Vec::new();
    for phone in &phones {
        let works = async {
            phone.until(Phone::works).await;
            true
        };
        let late = async {
            Timer::after(scaled(SOON)).await;
            false
        };
        if !works.or(late).await {
            faults.push(format!("a phone that {:?} has no working session: {phone:?}", phone.role));
        }
        if let Some(code) = phone.final_code.get() {
            faults.push(format!("a phone that {:?} was told {code}", phone.role));
        }
        if cut == Cut::CloseFrame && phone.role != Role::Talks && phone.dials.get() > 1 {
            faults.push(format!("a phone that {:?} was closed: {phone:?}", phone.role));
        }
    }
    serving.cancel().await;
    for task in tasks {
        task.cancel().await;
    }
    faults
}

/// The daemon: its sessions by connection id. They outlive its connections.
#[derive(Default, Debug)]
struct Daemon {
    sessions: RefCell<HashMap<String, Session>>,
    says_goodbye: Cell<bool>,
    /// When its second connection was there.
    is_back: Rc<Cell<Option<Instant>>>,
}

#[derive(Default, Debug)]
struct Session {
    quiet: bool,
    got: u64,
    sent: u64,
}

impl Daemon {
    /// What it answers to a message.
    fn answer(&self, envelope: &Value) -> Option<Value> {
        let conn_id = envelope["conn_id"].as_str().expect("a connection id").to_owned();
        let mut sessions = self.sessions.borrow_mut();
        if envelope.get("close_code").is_some() {
            sessions.remove(&conn_id);
            return None;
        }
        let frame = &envelope["frame"];
        if let Some(quiet) = frame.get("open") {
            let quiet = quiet.as_bool().expect("whether it is quiet");
            sessions.insert(conn_id.clone(), Session { quiet, ..Session::default() });
            return Some(json!({ "conn_id": conn_id, "frame": { "opened": true } }));
        }
        let next = frame["n"].as_u64().expect("a number");
        match sessions.get_mut(&conn_id) {
            Some(session) if next == session.got + 1 => {
                session.got = next;
                None
            }
            _ => {
                sessions.remove(&conn_id);
                Some(json!({ "conn_id": conn_id, "close_code": 4421 }))
            }
        }
    }

    /// What it has to tell its phones now.
    fn events(&self) -> Vec<Value> {
        let is_back = self.is_back.get().is_some();
        let mut events = Vec::new();
        for (conn_id, session) in &mut *self.sessions.borrow_mut() {
            if is_back || !session.quiet {
                session.sent += 1;
                let frame = json!({ "n": session.sent, "got": session.got });
                events.push(json!({ "conn_id": conn_id, "frame": frame }));
            }
        }
        events
    }
}

/// Serves the daemon's phones over one connection, until that ends.
async fn serve(daemon: Rc<Daemon>, socket: Socket) {
    let mut socket = socket;
    let mut due = Instant::now();
    loop {
        if daemon.says_goodbye.get() {
            let _ = socket.write(&encode(true, CLOSE, &1000_u16.to_be_bytes())).await;
            while socket.next().await.is_ok_and(|frame| frame.opcode != CLOSE) {}
            return;
        }
        let next = async { Some(socket.inbound.next().await) };
        let pace = async {
            Timer::at(due).await;
            None
        };
        let answers = match next.or(pace).await {
            None => {
                due += interval();
                daemon.events()
            }
            Some(Err(_)) => std::future::pending().await,
            Some(Ok(frame)) if frame.opcode == PING => {
                let _ = socket.write(&encode(true, PONG, &frame.payload)).await;
                continue;
            }
            Some(Ok(frame)) if frame.opcode == TEXT => {
                let envelope = serde_json::from_slice(&frame.payload).expect("an envelope");
                Vec::from_iter(daemon.answer(&envelope))
            }
            // It is told that the end has come, and waits for whoever takes its place.
            Some(Ok(_)) => std::future::pending().await,
        };
        for answer in answers {
            let _ = socket.write(&encode(true, TEXT, answer.to_string().as_bytes())).await;
        }
    }
}

/// A phone: one session at a time.
#[derive(Debug)]
struct Phone {
    role: Role,
    dials: Cell<u32>,
    is_open: Cell<bool>,
    /// A message from the daemon was missing: nothing makes sense to it any more, and it does not know.
    is_stuck: Cell<bool>,
    sent: Cell<u64>,
    /// The last number from the daemon, and the last of its own that the daemon says it got.
    heard: Cell<u64>,
    known: Cell<u64>,
    heard_at: Cell<Option<Instant>>,
    final_code: Cell<Option<u16>>,
    last_close: Cell<Option<u16>>,
    is_back: Rc<Cell<Option<Instant>>>,
}

impl Phone {
    fn new(role: Role, is_back: Rc<Cell<Option<Instant>>>) -> Self {
        Self {
            role,
            dials: Cell::new(0),
            is_open: Cell::new(false),
            is_stuck: Cell::new(false),
            sent: Cell::new(0),
            heard: Cell::new(0),
            known: Cell::new(0),
            heard_at: Cell::new(None),
            final_code: Cell::new(None),
            last_close: Cell::new(None),
            is_back,
        }
    }

    /// Whether it has heard from the daemon that is back, and the daemon from it.
    fn works(&self) -> bool {
        let heard = self.heard_at.get().zip(self.is_back.get()).is_some_and(|(at, back)| at > back);
        let is_known = self.role != Role::Talks || (self.sent.get() > 0 && self.known.get() > 0);
        let is_behind = self.sent.get() > self.known.get() + 20;
        self.is_open.get() && !self.is_stuck.get() && heard && is_known && !is_behind
    }

    async fn until(&self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            Timer::after(Duration::from_millis(20)).await;
        }
    }

    fn begin(&self) {
        self.dials.set(self.dials.get() + 1);
        self.is_open.set(false);
        self.is_stuck.set(false);
        for count in [&self.sent, &self.heard, &self.known] {
            count.set(0);
        }
    }

    fn hear(&self, frame: &Value) {
        if frame.get("opened").is_some() {
            self.is_open.set(true);
            return;
        }
        if frame["n"].as_u64() != Some(self.heard.get() + 1) {
            self.is_stuck.set(true);
        }
        if !self.is_stuck.get() {
            self.heard.set(self.heard.get() + 1);
            self.known.set(frame["got"].as_u64().expect("a number"));
            self.heard_at.set(Some(Instant::now()));
        }
    }
}

/// Dials until it is told not to.
async fn dial(phone: Rc<Phone>, relay: SocketAddr, id: String) {
    while phone.final_code.get().is_none() {
        phone.begin();
        if let Ok(socket) = Socket::dial(relay, &phone_head(&id)).await {
            let code = talk(&phone, socket).await;
            phone.last_close.set(code);
            if let Some(code @ (4401 | 4412 | 4421 | 4426)) = code {
                phone.final_code.set(Some(code));
            }
        }
        phone.is_open.set(false);
        Timer::after(scaled(Duration::from_millis(300))).await;
    }
}

/// One connection of a phone; returns the code that it was closed with.
async fn talk(phone: &Phone, mut socket: Socket) -> Option<u16> {
    let open = json!({ "open": phone.role == Role::Quiet }).to_string();
    socket.write(&encode(true, TEXT, open.as_bytes())).await.ok()?;
    let mut due = Instant::now();
    loop {
        let next = async { Some(socket.inbound.next().await) };
        let pace = async {
            Timer::at(due).await;
            None
        };
        match next.or(pace).await {
            None => {
                due += interval() * 4 / 5;
                if phone.role != Role::Talks || !phone.is_open.get() {
                    continue;
                }
                phone.sent.set(phone.sent.get() + 1);
                let message = json!({ "n": phone.sent.get() }).to_string();
                socket.write(&encode(true, TEXT, message.as_bytes())).await.ok()?;
            }
            Some(frame) => {
                let frame = frame.ok()?;
                match frame.opcode {
                    TEXT => phone.hear(&serde_json::from_slice(&frame.payload).expect("JSON")),
                    PING => socket.write(&encode(true, PONG, &frame.payload)).await.ok()?,
                    CLOSE => return Some(frame.close().0),
                    _ => {}
                }
            }
        }
    }
}

/// A WebSocket.
struct Socket {
    stream: Rc<Async<TcpStream>>,
    inbound: Inbound,
}

struct Inbound {
    stream: Rc<Async<TcpStream>>,
    inbox: Inbox,
}

impl Socket {
    async fn dial(address: SocketAddr, head: &str) -> io::Result<Self> {
        let stream = Rc::new(Async::<TcpStream>::connect(address).await?);
        stream.get_ref().set_nodelay(true)?;
        let inbound = Inbound { stream: Rc::clone(&stream), inbox: Inbox::default() };
        let mut socket = Self { stream, inbound };
        socket.write(head.as_bytes()).await?;
        let head = loop {
            if let Some(head) = socket.inbound.inbox.take_head() {
                break head;
            }
            socket.inbound.fill().await?;
        };
        match head.starts_with("HTTP/1.1 101 ") {
            true => Ok(socket),
            false => Err(io::Error::other(head)),
        }
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        (&*self.stream).write_all(bytes).await
    }

    async fn next(&mut self) -> io::Result<Received> {
        self.inbound.next().await
    }
}

impl Inbound {
    /// Cancel safe.
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
        let read = (&*self.stream).read(&mut buffer).await?;
        self.inbox.push(&buffer[..read]);
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// The daemon's way to the relay: what goes in on one side comes out on the other a moment later.
struct Path {
    near: Option<Socket>,
    ends: Vec<Rc<Async<TcpStream>>>,
    ways: Vec<smol::Task<()>>,
}

impl Path {
    /// Opens the path and claims `id` over it; tries again while the claim is refused.
    async fn open(executor: &LocalExecutor<'static>, relay: SocketAddr, id: &str) -> Self {
        loop {
            let listener = Async::<std::net::TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
            let address = listener.get_ref().local_addr().unwrap();
            let far = async {
                let far = Rc::new(Async::<TcpStream>::connect(relay).await.unwrap());
                let (near, _) = listener.accept().await.unwrap();
                let near = Rc::new(near);
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
                (vec![near, far], Vec::from_iter(ways.into_iter().flatten()))
            };
            let head = binary_head(id);
            let (near, (ends, ways)) =
                futures_lite::future::zip(Socket::dial(address, &head), far).await;
            match near {
                Ok(near) => return Self { near: Some(near), ends, ways },
                // A probe is under way.
                Err(_) => {
                    Timer::after(Duration::from_millis(200)).await;
                }
            }
        }
    }

    fn daemon_end(&mut self) -> Socket {
        self.near.take().expect("it is taken once")
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
