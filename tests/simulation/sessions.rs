//! Sessions as the field has them, over connections that break.
//!
//! A daemon holds a counted session for each phone. What it sends and gets is numbered: a gap on the way to it is
//! answered with 4421, a gap on the way to a phone leaves that phone stuck. Its connection runs through a path with
//! a delay, which is cut in several ways, and it comes back, with its sessions or without. Whatever was lost, each
//! phone must be in a working session soon after: kept, or begun anew.
//!
//! `tests/relay/sessions.rs` tries the same over real sockets. More trials than the ordinary run has:
//! `RELAY_SESSION_TRIALS=2000 RELAY_SESSION_SEED=7`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::FutureExt as _;
use futures_lite::future::zip;
use pyrycode_relay::clock;
use serde_json::{Value, json};

use crate::actors::setting;
use crate::actors::wire::{CLOSE, TEXT};
use crate::network::{Fault, Path};
use crate::rig::{Rig, Ws, millis, simulate_over, sleep};

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

/// The daemon sends to each phone that is no quiet one so often. Who is spoken to less often than every two
/// seconds is quiet by the contract, and a message on its way to it is lost unseen.
const INTERVAL: Duration = millis(250);

/// Soon enough after the daemon is back.
const SOON: Duration = Duration::from_secs(9);

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

/// Many trials, one after the other.
fn try_all(cut: Cut) {
    let trials: u64 = setting("RELAY_SESSION_TRIALS", 20);
    let seed = setting("RELAY_SESSION_SEED", 1);
    let path = Path {
        delay: DELAY,
        jitter: Duration::ZERO,
        bandwidth: u64::MAX,
        segment: usize::MAX,
        buffers: [64 * 1024; 2],
    };
    let options =
        ["--heartbeat-interval", "1s", "--heartbeat-timeout", "1s", "--probe-timeout", "1s"];
    for trial in seed..seed + trials {
        simulate_over(path, trial, &options, async |rig| {
            let faults = try_one(rig, cut, trial).await;
            assert_eq!(faults, [""; 0], "{cut:?} with RELAY_SESSION_SEED={trial}");
        });
    }
}

/// One trial; returns what went wrong.
async fn try_one(rig: &Rig, cut: Cut, seed: u64) -> Vec<String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut random = |most: u64| millis(rng.u64(..most));
    let executor = &rig.site.executor;
    let daemon = Rc::new(Daemon::default());
    let (ws, path) = claim(rig).await;
    let mut serving = executor.spawn(serve(Rc::clone(&daemon), ws));
    let phones: Vec<_> =
        ROLES.iter().map(|role| Rc::new(Phone::new(*role, Rc::clone(&daemon.is_back)))).collect();
    let [one, two, three, four] = [0, 1, 2, 3].map(|place| dial(rig, &phones[place]));
    let trial = async {
        for phone in &phones {
            phone.until(|phone| phone.is_open.get()).await;
        }
        // Whoever is quiet is so for longer than what is under way can take.
        sleep(millis(2_500) + random(1_000)).await;
        if cut == Cut::CloseFrame {
            daemon.says_goodbye.set(true);
            serving.await;
        } else {
            match cut {
                Cut::Reset => rig.network.cut(path, true),
                Cut::Fin | Cut::Replaced => rig.network.cut(path, false),
                Cut::ProxyDies => rig.network.cut(path, random(2) > Duration::ZERO),
                Cut::Silence | Cut::CloseFrame => {
                    rig.network.set_fault(path, Some(Fault::Silent));
                    // The daemon has its own timeout.
                    sleep(random(1_500)).await;
                }
            }
            serving.cancel().await;
        }
        sleep(random(800)).await;
        if cut == Cut::Replaced {
            daemon.sessions.borrow_mut().clear();
        }
        daemon.says_goodbye.set(false);
        let (ws, _) = claim(rig).await;
        daemon.is_back.set(Some(clock::now()));
        serving = executor.spawn(serve(Rc::clone(&daemon), ws));
        let mut faults = Vec::new();
        let soon = clock::now() + SOON;
        for phone in &phones {
            while !phone.works() && clock::now() < soon {
                sleep(millis(20)).await;
            }
            if !phone.works() {
                faults.push(format!(
                    "a phone that {:?} has no working session: {phone:?}",
                    phone.role
                ));
            }
            if let Some(code) = phone.final_code.get() {
                faults.push(format!("a phone that {:?} was told {code}", phone.role));
            }
            if cut == Cut::CloseFrame && phone.role != Role::Talks && phone.dials.get() > 1 {
                faults.push(format!("a phone that {:?} was closed: {phone:?}", phone.role));
            }
        }
        serving.cancel().await;
        faults
    };
    let dialing = zip(zip(one, two), zip(three, four));
    let for_ever = async {
        dialing.await;
        std::future::pending().await
    };
    trial.or(for_ever).await
}

/// Claims the server-id, again and again while a probe is under way; also returns which connection it is.
async fn claim(rig: &Rig) -> (Ws, u64) {
    loop {
        match rig.upgrade(&rig.site.binary_head("session"), None).await {
            Ok(ws) => return (ws, rig.network.latest()),
            Err(_) => sleep(millis(200)).await,
        }
    }
}

/// The daemon: its sessions by connection id. They outlive its connections.
#[derive(Default, Debug)]
struct Daemon {
    sessions: RefCell<BTreeMap<String, Session>>,
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
async fn serve(daemon: Rc<Daemon>, mut ws: Ws) {
    let mut due = clock::now();
    loop {
        if daemon.says_goodbye.get() {
            ws.send_close(1000).await;
            while ws.try_read_frame().await.is_ok_and(|frame| frame.opcode != CLOSE) {}
            return;
        }
        let answers = match ws.try_read_by(due).await {
            Ok(None) => {
                due += INTERVAL;
                daemon.events()
            }
            Ok(Some(frame)) if frame.opcode == TEXT => {
                let envelope = serde_json::from_slice(&frame.payload).expect("an envelope");
                Vec::from_iter(daemon.answer(&envelope))
            }
            Ok(Some(frame)) if frame.opcode != CLOSE => continue,
            // It is told that the end has come, and waits for whoever takes its place.
            _ => std::future::pending().await,
        };
        for answer in answers {
            let _ = ws.try_send_text(&answer.to_string()).await;
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
            sleep(millis(20)).await;
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
            self.heard_at.set(Some(clock::now()));
        }
    }
}

/// Dials until it is told not to.
async fn dial(rig: &Rig, phone: &Phone) {
    while phone.final_code.get().is_none() {
        phone.begin();
        if let Ok(ws) = rig.upgrade(&rig.site.phone_head("session"), None).await {
            let code = talk(phone, ws).await;
            phone.last_close.set(code);
            if let Some(code @ (4401 | 4412 | 4421 | 4426)) = code {
                phone.final_code.set(Some(code));
            }
        }
        phone.is_open.set(false);
        sleep(millis(300)).await;
    }
}

/// One connection of a phone; returns the code that it was closed with.
async fn talk(phone: &Phone, mut ws: Ws) -> Option<u16> {
    ws.try_send_text(&json!({ "open": phone.role == Role::Quiet }).to_string()).await.ok()?;
    let mut due = clock::now();
    loop {
        match ws.try_read_by(due).await.ok()? {
            None => {
                due += INTERVAL * 4 / 5;
                if phone.role != Role::Talks || !phone.is_open.get() {
                    continue;
                }
                phone.sent.set(phone.sent.get() + 1);
                let message = json!({ "n": phone.sent.get() }).to_string();
                ws.try_send_text(&message).await.ok()?;
            }
            Some(frame) => match frame.opcode {
                TEXT => phone.hear(&serde_json::from_slice(&frame.payload).expect("JSON")),
                CLOSE => return Some(frame.close().0),
                _ => {}
            },
        }
    }
}
