//! A daemon and three phones at home, for as long as anybody wants: idle but for a few messages, with
//! reconnects, restarts of the relay, and a machine that stands still once a day.
//!
//! What must hold: a ping comes when it is due, every message arrives once, in order and without delay, and
//! nobody loses a connection that he did not end himself, but for a restart, for a reclaim amid messages, or
//! because his daemon says nothing behind a reclaim. Then he must. While nothing is under way the relay holds
//! no memory.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use pyrycode_relay::clock::simulated::Simulation;
use pyrycode_relay::clock::{self, Timer};
use pyrycode_relay::config::{Config, Options};
use pyrycode_relay::relay::Relay;
use pyrycode_relay::server;
use pyrycode_relay::signals::{Request, Stop};
use relay_test_kit::frame::encode_with;
use smol::LocalExecutor;
use smol::io::{AsyncRead as _, AsyncWriteExt as _};

use crate::actors::site::Site;
use crate::actors::wire::{CLOSE, Network as _, PING, PONG, Socket, TEXT};
use crate::events;
use crate::network::{Network, Path};
use crate::run::{EventLoop, Flag, leftover};

/// What happens to a household.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    pub seed: u64,
    pub days: u64,
    /// Everybody stays connected, and says nothing.
    pub is_quiet: bool,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Figures {
    pub pings: u64,
    pub messages: u64,
    pub dials: u64,
    /// Phones that outlived a change of the daemon's connection, and those that did not.
    pub kept: u64,
    pub closed: u64,
    pub restarts: u64,
    pub trace: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pings, messages, dials, kept, closed, restarts, trace } = self;
        write!(
            f,
            "{pings} pings, {messages} messages, {dials} dials, {restarts} restarts, phones kept {kept} times \
             and closed {closed} times at reclaims; trace {trace:016x}"
        )
    }
}

/// Lets a household live.
pub fn live(habits: Habits) -> Result<Figures, String> {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let simulation = Simulation::begin(habits.seed, wall);
    events::collect();
    let path = Path {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        bandwidth: u64::MAX,
        segment: usize::MAX,
        buffers: [64 * 1024; 2],
    };
    let network = Network::new(habits.seed, path);
    let executor = Rc::new(LocalExecutor::new());
    let home = Rc::new(Home {
        site: Site::new(Rc::new(network.clone()), Rc::clone(&executor), Duration::from_secs(30)),
        network: network.clone(),
        habits,
        random: RefCell::new(fastrand::Rng::with_seed(habits.seed)),
        figures: Cell::default(),
        sessions: RefCell::default(),
        wrong: RefCell::default(),
        stall: Cell::default(),
        stalled: Cell::new(clock::now()),
        stop: RefCell::new(Stop::new()),
        restarted: Cell::new(clock::now()),
        begun: clock::now(),
        relay: RefCell::default(),
        empty: Cell::new(clock::now()),
        unconfirmed: Cell::default(),
        refuted: Cell::default(),
    });
    executor.spawn(daemon(Rc::clone(&home))).detach();
    for number in 1..=3 {
        executor.spawn(phone(Rc::clone(&home), number)).detach();
    }
    let ends = clock::now() + Duration::from_secs(habits.days * 24 * 60 * 60);
    let mut event_loop = EventLoop {
        simulation: &simulation,
        begun: home.begun,
        network: &network,
        stall: &home.stall,
        others: Box::pin(executor.run(home.pass(ends))),
        turn: Flag::new(),
        is_over: false,
    };
    while !event_loop.is_over {
        let stop = Stop::new();
        *home.stop.borrow_mut() = stop.clone();
        let all = ["pyrycode-relay", "--rate-limit", "off"];
        let config = Config::from_options(Options::parse_arguments(all).unwrap()).unwrap();
        let relay = Relay::new(config, stop.clone());
        *home.relay.borrow_mut() = Rc::downgrade(&relay);
        home.empty.set(clock::now());
        home.unconfirmed.set(None);
        let relays = LocalExecutor::new();
        network.listen();
        let reload = Request::new();
        let mut working =
            Box::pin(server::work(&relays, vec![network.listener()], &relay, &reload));
        event_loop.run(working.as_mut(), |line, _| home.hear(line), || stop.raise())?;
        drop(working);
        drop(relays);
        let left = leftover(&relay, &network);
        let ledger = Rc::clone(&relay.ledger);
        drop(relay);
        if left.is_some() || ledger.total() > 0 {
            return Err(format!("something is left after a stop: {left:?}{}", network.report()));
        }
    }
    let mut figures = home.figures.get();
    figures.trace = network.trace();
    Ok(figures)
}

struct Home {
    site: Rc<Site>,
    network: Network,
    habits: Habits,
    random: RefCell<fastrand::Rng>,
    figures: Cell<Figures>,
    /// The daemon's, by the phones' ids.
    sessions: RefCell<BTreeMap<String, Session>>,
    wrong: RefCell<Option<String>>,
    stall: Cell<Duration>,
    /// When the machine stood still last.
    stalled: Cell<Instant>,
    stop: RefCell<Stop>,
    /// When the relay was told to stop.
    restarted: Cell<Instant>,
    begun: Instant,
    relay: RefCell<Weak<Relay>>,
    /// When the relay was last seen to hold nothing for anybody.
    empty: Cell<Instant>,
    /// Since when the daemon has said nothing to its phones that were kept, and how many these are.
    unconfirmed: Cell<Option<(Instant, u64)>>,
    /// When phones were last closed because the daemon had said nothing.
    refuted: Cell<Option<Instant>>,
}

/// Messages counted both ways.
#[derive(Clone, Copy, Default, Debug)]
struct Session {
    received: u64,
    sent: u64,
}

impl Home {
    fn count(&self, change: impl FnOnce(&mut Figures)) {
        let mut figures = self.figures.get();
        change(&mut figures);
        self.figures.set(figures);
    }

    fn accuse(&self, wrong: String) {
        self.wrong.borrow_mut().get_or_insert(wrong);
    }

    fn draw(&self, most: u64) -> u64 {
        self.random.borrow_mut().u64(..most)
    }

    /// The next time that something happens that does every `hours` or so.
    fn in_hours(&self, hours: u64) -> Instant {
        match self.habits.is_quiet {
            true => clock::now() + Duration::from_secs(1_000_000_000),
            false => clock::now() + Duration::from_secs(60 + self.draw(hours * 7200)),
        }
    }

    fn hear(&self, line: &str) -> Result<(), String> {
        let field = |name| crate::actors::field(line, name);
        if field("event") == Some("server_reclaimed") {
            let count = |name| field(name).and_then(|text| text.parse().ok()).unwrap_or(0);
            let (kept, closed) = (count("kept"), count("closed"));
            self.count(|figures| {
                figures.kept += kept;
                figures.closed += closed;
            });
            match field("reason") {
                Some("unconfirmed") => self.hear_refutation()?,
                _ if kept > 0 => self.unconfirmed.set(Some((clock::now(), kept))),
                _ => {}
            }
        }
        if field("event") == Some("server_released") {
            self.unconfirmed.set(None);
        }
        if line.contains("level=error") {
            return Err(line.to_owned());
        }
        Ok(())
    }

    /// Phones are closed because the daemon has said nothing: it had 5 s.
    fn hear_refutation(&self) -> Result<(), String> {
        self.refuted.set(Some(clock::now()));
        let lasted = self.unconfirmed.take().map(|(since, _)| clock::since(since));
        let is_early = lasted.is_none_or(|lasted| lasted < CONFIRMATION);
        match is_early && !self.stood_still() {
            true => Err(format!("phones are closed as unconfirmed: {lasted:?}")),
            false => Ok(()),
        }
    }

    /// The time, as messages tell when they were sent: milliseconds from the beginning.
    fn moment(&self) -> u64 {
        u64::try_from(clock::since(self.begun).as_millis()).unwrap()
    }

    /// A message arrives that was sent at that moment. Its way was open from `since` on.
    fn judge_delay(&self, sent: u64, since: Instant) {
        let sent = self.begun + Duration::from_millis(sent);
        let took = clock::since(sent.max(since));
        if took > Duration::from_secs(1) && !self.stood_still() {
            self.accuse(format!("a message was under way for {took:?}"));
        }
    }

    fn stood_still(&self) -> bool {
        clock::since(self.stalled.get()) < Duration::from_secs(60)
    }

    /// The daemon speaks to a phone on its present connection, and knew it before, or not.
    fn speaks_to(&self, was_known: bool) {
        let Some((since, kept)) = self.unconfirmed.get() else { return };
        let silence = clock::since(since);
        if was_known {
            self.unconfirmed.set(None);
            if silence > CONFIRMATION + Duration::from_secs(1) && !self.stood_still() {
                self.accuse(format!("phones were kept for {silence:?} with no word to them"));
            }
        } else if silence < Duration::from_secs(1) {
            // It may have come in the window: no session of it was kept, and so none is to be confirmed.
            self.unconfirmed.set(Some((since, kept - 1)).filter(|(_, kept)| *kept > 0));
        }
    }

    /// Nothing is under way for more than a moment: within two hours the ledger is seen empty.
    fn judge_ledger(&self) {
        let Some(relay) = self.relay.borrow().upgrade() else { return };
        let bytes = relay.ledger.total();
        if bytes == 0 {
            self.empty.set(clock::now());
        } else if clock::since(self.empty.get()) > Duration::from_secs(2 * 3600 + 60) {
            self.accuse(format!("{bytes} bytes are on the ledger of an idle relay"));
        }
    }

    /// Lets the time pass until `ends`, with a stall a day and a restart a week.
    async fn pass(&self, ends: Instant) -> Result<(), String> {
        let (mut stall, mut restart) = (self.in_hours(12), self.in_hours(84));
        while clock::now() < ends {
            Timer::at(stall.min(restart).min(ends).min(clock::now() + Duration::from_secs(3600)))
                .await;
            self.judge_ledger();
            if let Some(wrong) = self.wrong.borrow_mut().take() {
                return Err(wrong + &self.network.report());
            }
            if clock::now() >= stall {
                stall = self.in_hours(24);
                self.stall.set(Duration::from_millis(self.draw(40_000)));
                self.stalled.set(clock::now() + self.stall.get());
            }
            if clock::now() >= restart {
                restart = self.in_hours(168);
                self.restarted.set(clock::now());
                self.count(|figures| figures.restarts += 1);
                self.stop.borrow().raise();
            }
        }
        self.wrong.borrow_mut().take().map_or(Ok(()), Err)
    }
}

/// What comes on a connection.
enum Next {
    Text(String),
    Close(u16, String),
    End,
    /// The time came.
    Time,
}

/// One upgraded connection.
struct Link {
    home: Rc<Home>,
    socket: Box<dyn Socket>,
    input: Vec<u8>,
    /// When we sent something last, and before that.
    spoke: [Instant; 2],
    timer: Option<(Instant, Timer)>,
}

impl Link {
    async fn dial(home: &Rc<Home>, source: u8, head: String) -> std::io::Result<Self> {
        let socket = home.network.connect(Ipv4Addr::new(192, 168, 1, source), None).await?;
        let (home, spoke) = (Rc::clone(home), [clock::now(); 2]);
        let mut link = Self { home, socket, input: Vec::new(), spoke, timer: None };
        link.socket.write_all(head.as_bytes()).await?;
        link.home.count(|figures| figures.dials += 1);
        loop {
            if let Some(end) = link.input.windows(4).position(|window| window == b"\r\n\r\n") {
                let is_upgraded = link.input.starts_with(b"HTTP/1.1 101");
                link.input.drain(..end + 4);
                let refused = || std::io::Error::other("it was refused");
                return if is_upgraded { Ok(link) } else { Err(refused()) };
            }
            if !link.fill(None).await {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) {
        let now = clock::now();
        if now > self.spoke[0] {
            self.spoke = [now, self.spoke[0]];
        }
        // Whoever reads finds out that it is broken.
        let _ =
            self.socket.write_all(&encode_with(true, opcode, payload, Some([1, 2, 3, 4]))).await;
    }

    /// Reads once, or until `time`; whether it goes on.
    async fn fill(&mut self, time: Option<Instant>) -> bool {
        let Self { socket, input, timer, .. } = self;
        if let Some(time) = time {
            if timer.as_ref().is_none_or(|(known, _)| *known != time) {
                *timer = Some((time, Timer::at(time)));
            }
        }
        poll_fn(|cx| {
            let mut buffer = [0; 512];
            if let Poll::Ready(read) = Pin::new(&mut *socket).poll_read(cx, &mut buffer) {
                let read = read.unwrap_or(0);
                input.extend_from_slice(&buffer[..read]);
                return Poll::Ready(read > 0);
            }
            match (time, &mut *timer) {
                (Some(_), Some((_, timer))) => Pin::new(timer).poll(cx).map(|_| true),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// What comes next, or `until`.
    async fn next(&mut self, until: Instant) -> Next {
        loop {
            while let Some((opcode, payload)) = self.take_frame() {
                match opcode {
                    PING => {
                        self.judge_ping(&payload);
                        self.send(PONG, &payload).await;
                    }
                    TEXT => return Next::Text(String::from_utf8(payload).unwrap()),
                    CLOSE => {
                        let code = u16::from_be_bytes([payload[0], payload[1]]);
                        self.send(CLOSE, &payload).await;
                        let reason = String::from_utf8_lossy(&payload[2..]).into_owned();
                        return Next::Close(code, reason);
                    }
                    _ => {}
                }
            }
            if clock::now() >= until {
                return Next::Time;
            }
            if !self.fill(Some(until)).await {
                return Next::End;
            }
        }
    }

    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (head, length) = match self.input[..] {
            [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
            [_, length @ ..=125, ..] => (2, usize::from(length)),
            _ => return None,
        };
        if self.input.len() < head + length {
            return None;
        }
        let opcode = self.input[0] & 0xf;
        let payload = self.input[head..head + length].to_vec();
        self.input.drain(..head + length);
        Some((opcode, payload))
    }

    /// A ping is due 30 s after the last byte of ours, a tenth more or less, at the next common tick.
    fn judge_ping(&self, payload: &[u8]) {
        if !payload.is_empty() {
            // A proof, or a probe.
            return;
        }
        self.home.count(|figures| figures.pings += 1);
        // What was sent at this very time may have crossed it.
        let [last, before] = self.spoke;
        let silence = clock::since(if last == clock::now() { before } else { last });
        let is_early = silence < Duration::from_secs(27);
        let is_late = silence > Duration::from_millis(34_500) && !self.home.stood_still();
        if is_early || is_late {
            self.home.accuse(format!("a ping came after a silence of {silence:?}"));
        }
    }

    /// Ends in one of the ways in which connections end.
    async fn leave(mut self) {
        match self.home.draw(3) {
            0 => self.socket.reset(),
            1 => drop(self.socket.cut(true)),
            _ => {
                self.send(CLOSE, &1000_u16.to_be_bytes()).await;
                let until = clock::now() + Duration::from_secs(10);
                while let Next::Text(_) = self.next(until).await {}
            }
        }
    }
}

/// Whether a connection may end by itself now.
fn is_excused(home: &Home) -> bool {
    clock::since(home.restarted.get()) < Duration::from_secs(60)
}

async fn daemon(home: Rc<Home>) {
    loop {
        let dialed = Link::dial(&home, 10, home.site.binary_head("home")).await;
        let Ok(mut link) = dialed else {
            Timer::after(Duration::from_millis(500)).await;
            continue;
        };
        let connected = clock::now();
        let known: Vec<_> = home.sessions.borrow().keys().cloned().collect();
        // One time in three it says nothing before it is spoken to.
        if home.draw(3) > 0 {
            for conn_id in &known {
                home.speaks_to(true);
                speak(&home, &mut link, conn_id).await;
            }
        }
        let leaves = home.in_hours(48);
        loop {
            match link.next(leaves).await {
                Next::Text(text) => {
                    let envelope: serde_json::Value = serde_json::from_str(&text).unwrap();
                    let conn_id = envelope["conn_id"].as_str().unwrap().to_owned();
                    if envelope.get("close_code").is_some() {
                        home.sessions.borrow_mut().remove(&conn_id);
                        continue;
                    }
                    let [number, sent] =
                        [0, 1].map(|place| envelope["frame"][place].as_u64().unwrap());
                    home.judge_delay(sent, connected);
                    let due = {
                        let mut sessions = home.sessions.borrow_mut();
                        let session = sessions.entry(conn_id.clone()).or_default();
                        session.received += 1;
                        session.received - 1
                    };
                    if number != due {
                        home.accuse(format!("the daemon got {number} of {conn_id}, {due} was due"));
                    }
                    home.count(|figures| figures.messages += 1);
                    home.speaks_to(known.contains(&conn_id));
                    speak(&home, &mut link, &conn_id).await;
                }
                Next::Time => {
                    link.leave().await;
                    Timer::after(Duration::from_millis(home.draw(20_000))).await;
                    break;
                }
                Next::Close(code, reason) if !is_excused(&home) => {
                    home.accuse(format!("the daemon was closed: {code} {reason}"));
                    break;
                }
                Next::End if !is_excused(&home) => {
                    home.accuse("the daemon's connection ended".to_owned());
                    break;
                }
                Next::Close(..) | Next::End => {
                    // A new relay knows no phone of the old one.
                    home.sessions.borrow_mut().clear();
                    break;
                }
            }
        }
    }
}

/// The daemon says the next thing to a phone.
async fn speak(home: &Home, link: &mut Link, conn_id: &str) {
    let number = {
        let mut sessions = home.sessions.borrow_mut();
        let Some(session) = sessions.get_mut(conn_id) else { return };
        session.sent += 1;
        session.sent - 1
    };
    let frame = format!("[{number},{}]", home.moment());
    link.send(TEXT, format!("{{\"conn_id\":\"{conn_id}\",\"frame\":{frame}}}").as_bytes()).await;
}

async fn phone(home: Rc<Home>, number: u8) {
    loop {
        let dialed = Link::dial(&home, 20 + number, home.site.phone_head("home")).await;
        let Ok(mut link) = dialed else {
            Timer::after(Duration::from_millis(500)).await;
            continue;
        };
        let connected = clock::now();
        let mut session = Session::default();
        let leaves = home.in_hours(24);
        let mut speaks = clock::now();
        // The last message either way.
        let mut active = clock::now();
        loop {
            match link.next(leaves.min(speaks)).await {
                Next::Text(text) => {
                    let [got, sent]: [u64; 2] = serde_json::from_str(&text).unwrap();
                    let due = session.received;
                    session.received += 1;
                    active = clock::now();
                    if got != due {
                        home.accuse(format!("phone {number} got {got}, {due} was due"));
                    }
                    home.judge_delay(sent, connected);
                }
                Next::Time if clock::now() >= leaves => {
                    link.leave().await;
                    Timer::after(Duration::from_millis(home.draw(5_000))).await;
                    break;
                }
                Next::Time => {
                    let text = format!("[{},{}]", session.sent, home.moment());
                    link.send(TEXT, text.as_bytes()).await;
                    session.sent += 1;
                    active = clock::now();
                    speaks = home.in_hours(2);
                }
                // The daemon is away, or has just been.
                Next::Close(4404, reason) if reason == "no server with that id" => {
                    Timer::after(Duration::from_secs(1)).await;
                    break;
                }
                Next::Close(4404, _) if clock::since(active) < Duration::from_secs(40) => break,
                Next::Close(4404, _) if home.refuted.get() == Some(clock::now()) => break,
                Next::Close(code, reason) if !is_excused(&home) => {
                    home.accuse(format!(
                        "phone {number} was closed: {code} {reason}, {:?} after a message",
                        clock::since(active)
                    ));
                    break;
                }
                Next::End if !is_excused(&home) => {
                    home.accuse(format!("the connection of phone {number} ended"));
                    break;
                }
                Next::Close(..) | Next::End => break,
            }
        }
    }
}

/// How long the relay waits until a daemon speaks to one of the phones that were kept for it.
const CONFIRMATION: Duration = Duration::from_secs(5);
