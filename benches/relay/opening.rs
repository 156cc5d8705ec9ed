//! Dials many clients and waits until the relay has let them in.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use super::driver::{Driver, Event};

/// Dials with a bounded number of upgrades in progress: a relay keeps few request heads.
///
/// A phone that dials at the moment of its binary's `101` may find no slot yet: the relay upgrades
/// it and closes it with `4404`. It dials again, as phones do; an error if that does not help in
/// time.
pub struct Opening {
    port: u16,
    clients: Vec<Client>,
    /// Clients by their connections.
    places: HashMap<usize, usize>,
    in_progress: usize,
    /// Who dials again, and when.
    again: Vec<(Instant, usize)>,
    /// Until then the relay may still close a phone that it upgraded.
    settled_at: Instant,
    /// Other connections of the driver that ended meanwhile.
    ended: Vec<usize>,
    failure: Option<io::Error>,
}

/// Whose connection it is, hence how it opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Binary,
    Phone,
    /// Without an upgrade, as on the floor.
    Plain,
}

/// What came of it.
pub struct Opened {
    /// In the order of dialing.
    pub connections: Vec<usize>,
    /// Connections of the same driver that ended meanwhile.
    pub ended: Vec<usize>,
}

struct Client {
    kind: Kind,
    hello: Vec<u8>,
    connection: usize,
    refused_since: Option<Instant>,
    pause: Duration,
}

impl Opening {
    pub fn new(port: u16) -> Self {
        Self {
            port,
            clients: Vec::new(),
            places: HashMap::new(),
            in_progress: 0,
            again: Vec::new(),
            settled_at: Instant::now(),
            ended: Vec::new(),
            failure: None,
        }
    }

    pub fn dial(&mut self, driver: &mut Driver, hello: &[u8], kind: Kind) -> io::Result<()> {
        let place = self.add(hello, kind);
        self.connect(driver, place)?;
        if kind == Kind::Plain { Ok(()) } else { self.wait(driver, IN_PROGRESS) }
    }

    /// Dials for a phone that has just been closed with [`NO_SERVER`], after its pause.
    pub fn dial_again(&mut self, hello: &[u8]) {
        let place = self.add(hello, Kind::Phone);
        self.refused(place);
    }

    /// Waits until everybody is in.
    pub fn finish(mut self, driver: &mut Driver) -> io::Result<Opened> {
        self.wait(driver, 0)?;
        let connections = self.clients.iter().map(|client| client.connection).collect();
        Ok(Opened { connections, ended: self.ended })
    }

    fn add(&mut self, hello: &[u8], kind: Kind) -> usize {
        self.clients.push(Client {
            kind,
            hello: hello.to_vec(),
            connection: usize::MAX,
            refused_since: None,
            pause: FIRST_PAUSE,
        });
        self.clients.len() - 1
    }

    fn connect(&mut self, driver: &mut Driver, place: usize) -> io::Result<()> {
        let client = &mut self.clients[place];
        let upgrades = client.kind != Kind::Plain;
        client.connection = driver.dial(self.port, &client.hello, upgrades)?;
        self.places.insert(client.connection, place);
        self.in_progress += usize::from(upgrades);
        Ok(())
    }

    /// Waits until at most `in_progress` upgrades are; with 0 also for those who dial again.
    fn wait(&mut self, driver: &mut Driver, in_progress: usize) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            let now = Instant::now();
            while let Some(at) = self.again.iter().position(|(due, _)| *due <= now) {
                let (_, place) = self.again.swap_remove(at);
                self.connect(driver, place)?;
            }
            let all = in_progress > 0 || (self.again.is_empty() && self.settled_at <= now);
            if self.in_progress <= in_progress && all {
                return Ok(());
            }
            if now > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "not in time: an upgrade"));
            }
            let due = self.again.iter().map(|(due, _)| *due).chain([self.settled_at]);
            let next = due.filter(|due| *due > now).min().map_or(TURN, |due| due - now);
            driver.turn(next.min(TURN), &mut |_, connection, event| {
                self.handle(connection, &event);
            })?;
        }
    }

    fn handle(&mut self, connection: usize, event: &Event<'_>) {
        let Some(place) = self.places.get(&connection).copied() else {
            if matches!(event, Event::Gone(_)) {
                self.ended.push(connection);
            }
            return;
        };
        match event {
            Event::Open if self.clients[place].kind != Kind::Plain => {
                self.in_progress -= 1;
                if self.clients[place].kind == Kind::Phone {
                    self.settled_at = Instant::now() + SETTLE;
                }
            }
            Event::Closed(NO_SERVER) if self.clients[place].kind == Kind::Phone => {
                self.places.remove(&connection);
                self.refused(place);
            }
            Event::Closed(code) => self.fail(format!("a client was closed with {code} at once")),
            Event::Gone(status) => self.fail(format!("an upgrade was refused with {status}")),
            Event::Open | Event::Text(_) | Event::Pong => {}
        }
    }

    fn refused(&mut self, place: usize) {
        let now = Instant::now();
        let client = &mut self.clients[place];
        let since = *client.refused_since.get_or_insert(now);
        if now - since > REFUSED_PATIENCE {
            let seconds = REFUSED_PATIENCE.as_secs();
            self.fail(format!(
                "a phone whose binary is connected was closed with {NO_SERVER} for {seconds} s"
            ));
            return;
        }
        self.again.push((now + client.pause, place));
        client.pause = (client.pause * 2).min(LONGEST_PAUSE);
    }

    fn fail(&mut self, message: String) {
        self.failure.get_or_insert_with(|| io::Error::other(message));
    }
}

/// The close code of a phone whose server-id nobody holds.
pub const NO_SERVER: u16 = 4404;

/// How long a phone may be refused although its binary is connected.
pub const REFUSED_PATIENCE: Duration = Duration::from_secs(10);

const IN_PROGRESS: usize = 100;
const TURN: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(60);
/// How long after its `101` a phone may be closed and still be noticed here.
const SETTLE: Duration = Duration::from_millis(20);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// What phones begin with.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
