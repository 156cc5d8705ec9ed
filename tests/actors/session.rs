//! Sessions as the field has them, over connections that break.
//!
//! A daemon holds a counted session for each phone. Messages are numbered both ways: the daemon answers a gap with
//! 4421, and a gap on the way to a phone leaves that phone stuck. The daemon's connection runs through a path with a
//! delay. The path is cut in one of several ways, and the daemon comes back, with its sessions or without. Whatever
//! was lost, each phone must soon be in a working session: the old one, or a new one.
//!
//! `tests/relay/sessions.rs` runs the trials over real sockets, `tests/simulation/sessions.rs` by virtual time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use fastrand::Rng;
use pyrycode_relay::clock::{self, Timer};
use relay_test_kit::frame::{CLOSE, Received, TEXT};
use serde_json::{Value, json};
use smol::LocalExecutor;

/// How the daemon's connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
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

/// Where a trial takes place: a relay, and the ways to it.
pub trait Place {
    type Connection: Connection;
    /// The daemon's way to the relay, which takes [`DELAY`] in each direction.
    type Path;

    /// Claims the trial's server-id over a new path; tries again while a probe is under way.
    async fn claim(&self) -> (Self::Connection, Self::Path);

    /// A phone's connection, unless the relay refuses it.
    async fn dial(&self) -> Option<Self::Connection>;

    /// Ends a path, with whatever is in it. Never asked for [`Cut::CloseFrame`].
    fn cut(&self, path: &mut Self::Path, cut: Cut, rng: &mut Rng);

    /// A duration, stretched on slow machines.
    fn scaled(&self, duration: Duration) -> Duration {
        duration
    }
}

/// One end of a WebSocket.
pub trait Connection {
    /// The next frame of any kind if one comes before `due`. Answers pings.
    async fn next_by(&mut self, due: Instant) -> io::Result<Option<Received>>;

    async fn send(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()>;
}

/// One trial; returns what went wrong.
pub async fn try_one(place: &impl Place, cut: Cut, seed: u64) -> Vec<String> {
    let mut rng = Rng::with_seed(seed);
    let daemon = Daemon::default();
    let phones = ROLES.map(|role| Phone { role, ..Phone::default() });
    let executor = LocalExecutor::new();
    let trial = async {
        let (connection, mut path) = place.claim().await;
        let serving = executor.spawn(serve(place, &daemon, connection));
        for phone in &phones {
            executor.spawn(keep_talking(place, phone)).detach();
        }
        let soon = clock::now() + place.scaled(SOON);
        for phone in &phones {
            while !phone.is_open.get() && !serving.is_finished() && clock::now() < soon {
                Timer::after(TICK).await;
            }
        }
        // A slow machine stretches the margin, not the contract's two seconds.
        Timer::after(QUIET).await;
        pause(place, &mut rng, 500..1_500).await;

        if serving.is_finished() {
            return vec![format!(
                "the daemon's connection ended before the cut: {}",
                serving.await
            )];
        }
        // With very many trials at once, some had to dial twice.
        for phone in &phones {
            phone.dials.set(1);
        }
        if cut == Cut::CloseFrame {
            daemon.says_goodbye.set(true);
            serving.await;
        } else {
            place.cut(&mut path, cut, &mut rng);
            if cut == Cut::Silence {
                // The daemon has its own timeout.
                pause(place, &mut rng, 0..1_500).await;
            }
            serving.cancel().await;
        }
        pause(place, &mut rng, 0..800).await;
        if cut == Cut::Replaced {
            daemon.sessions.borrow_mut().clear();
        }
        daemon.says_goodbye.set(false);
        // The old path stays until all is over: where it is silent, nobody is told.
        let (connection, _new_path) = place.claim().await;
        let back = clock::now();
        daemon.is_back.set(true);
        let serving = executor.spawn(serve(place, &daemon, connection));

        let mut faults = Vec::new();
        for phone in &phones {
            while !phone.works(back) && clock::now() < back + place.scaled(SOON) {
                Timer::after(TICK).await;
            }
            faults.extend(phone.faults(cut, back));
        }
        if serving.is_finished() {
            faults.push(format!("the daemon's new connection ended: {}", serving.await));
        }
        faults
    };
    executor.run(trial).await
}

async fn pause(place: &impl Place, rng: &mut Rng, millis: Range<u64>) {
    Timer::after(place.scaled(Duration::from_millis(rng.u64(millis)))).await;
}

/// The daemon: its sessions by connection id. They outlive its connections.
#[derive(Default, Debug)]
struct Daemon {
    sessions: RefCell<BTreeMap<String, Session>>,
    says_goodbye: Cell<bool>,
    /// Its second connection is there.
    is_back: Cell<bool>,
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

    /// What it sends to its phones now.
    fn events(&self) -> Vec<Value> {
        let mut events = Vec::new();
        for (conn_id, session) in &mut *self.sessions.borrow_mut() {
            if self.is_back.get() || !session.quiet {
                session.sent += 1;
                let frame = json!({ "n": session.sent, "got": session.got });
                events.push(json!({ "conn_id": conn_id, "frame": frame }));
            }
        }
        events
    }
}

/// Serves the daemon's phones over one connection; returns how that ended.
async fn serve(place: &impl Place, daemon: &Daemon, mut connection: impl Connection) -> String {
    let mut due = clock::now();
    loop {
        if daemon.says_goodbye.get() {
            let _ = connection.send(CLOSE, &1000_u16.to_be_bytes()).await;
            let end = clock::now() + place.scaled(SOON);
            while matches!(connection.next_by(end).await, Ok(Some(frame)) if frame.opcode != CLOSE)
            {
            }
            return "goodbye".to_owned();
        }
        let answers = match connection.next_by(due).await {
            Ok(None) => {
                due += interval(place);
                daemon.events()
            }
            Ok(Some(frame)) if frame.opcode == TEXT => {
                let envelope = serde_json::from_slice(&frame.payload).expect("an envelope");
                Vec::from_iter(daemon.answer(&envelope))
            }
            Ok(Some(frame)) if frame.opcode != CLOSE => continue,
            end => return format!("{end:?}"),
        };
        for answer in answers {
            let _ = connection.send(TEXT, answer.to_string().as_bytes()).await;
        }
    }
}

/// What a phone does.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Role {
    /// Sends and is sent to.
    #[default]
    Talks,
    /// Is sent to.
    Listens,
    /// Has a session, and says and hears nothing until the daemon is back.
    Quiet,
}

/// A phone: one session at a time.
#[derive(Default, Debug)]
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
}

impl Phone {
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

    /// Whether it has heard from the daemon since that is back, and the daemon from it.
    fn works(&self, back: Instant) -> bool {
        let heard = self.heard_at.get().is_some_and(|at| at > back);
        let is_known = self.role != Role::Talks || (self.sent.get() > 0 && self.known.get() > 0);
        let is_behind = self.sent.get() > self.known.get() + 20;
        self.is_open.get() && !self.is_stuck.get() && heard && is_known && !is_behind
    }

    /// The verdict, soon after the daemon is back.
    fn faults(&self, cut: Cut, back: Instant) -> Vec<String> {
        let mut faults = Vec::new();
        if !self.works(back) {
            faults.push(format!("no working session: {self:?}"));
        }
        if self.final_code.get().is_some() {
            faults.push(format!("told a final code: {self:?}"));
        }
        if cut == Cut::CloseFrame && self.role != Role::Talks && self.dials.get() > 1 {
            faults.push(format!("closed: {self:?}"));
        }
        faults
    }
}

/// Dials again and again, until a code is final.
async fn keep_talking(place: &impl Place, phone: &Phone) {
    while phone.final_code.get().is_none() {
        phone.begin();
        if let Some(connection) = place.dial().await {
            let code = talk(place, phone, connection).await;
            phone.last_close.set(code);
            phone.final_code.set(code.filter(|code| FINAL_CODES.contains(code)));
        }
        phone.is_open.set(false);
        Timer::after(place.scaled(Duration::from_millis(300))).await;
    }
}

/// One connection of a phone; returns the code that it was closed with.
async fn talk(place: &impl Place, phone: &Phone, mut connection: impl Connection) -> Option<u16> {
    let open = json!({ "open": phone.role == Role::Quiet }).to_string();
    connection.send(TEXT, open.as_bytes()).await.ok()?;
    let mut due = clock::now();
    loop {
        match connection.next_by(due).await.ok()? {
            None => {
                due += interval(place) * 4 / 5;
                if phone.role == Role::Talks && phone.is_open.get() {
                    phone.sent.set(phone.sent.get() + 1);
                    let message = json!({ "n": phone.sent.get() }).to_string();
                    connection.send(TEXT, message.as_bytes()).await.ok()?;
                }
            }
            Some(frame) => match frame.opcode {
                TEXT => phone.hear(&serde_json::from_slice(&frame.payload).expect("JSON")),
                CLOSE => return Some(frame.close().0),
                _ => {}
            },
        }
    }
}

/// How often the daemon sends to each phone that is not quiet. Much more often than every two seconds, however slow
/// the machine: by the contract a phone that is spoken to less often is quiet, and loses a message on its way unseen.
fn interval(place: &impl Place) -> Duration {
    place.scaled(Duration::from_millis(250)).min(Duration::from_millis(500))
}

/// One way of a path.
pub const DELAY: Duration = Duration::from_millis(25);
/// Whoever says and hears nothing for so long is quiet, by the contract.
const QUIET: Duration = Duration::from_secs(2);
/// By when each phone must work, after the daemon is back.
const SOON: Duration = Duration::from_secs(9);
/// How often a trial looks for what it waits for.
const TICK: Duration = Duration::from_millis(20);
const ROLES: [Role; 4] = [Role::Talks, Role::Talks, Role::Listens, Role::Quiet];
/// A phone that is closed with one of these does not dial again.
const FINAL_CODES: [u16; 4] = [4401, 4412, 4421, 4426];
