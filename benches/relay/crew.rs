//! Attackers on a driver of their own: they dial from the addresses that they have, and dial again
//! once they are closed, as fast as a relay's limits per address let them.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::driver::{Driver, Event};
use super::frames::Frame;
use super::opening::NO_SERVER;

/// Attackers against one port.
pub struct Crew {
    pub driver: Driver,
    port: u16,
    members: Vec<Member>,
    /// Whose connection it is.
    places: HashMap<usize, usize>,
    checked: Instant,
    pub done: Done,
}

/// What attackers got to do.
#[derive(Clone, Copy, Default, Debug)]
pub struct Done {
    pub dialed: u32,
    /// Dials that were refused for a limit.
    pub refused: u32,
    /// Connections that the relay ended.
    pub closed: u32,
    /// Bytes handed to the operating system, or about to be.
    pub written: u64,
}

/// How a member behaves on its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reads {
    All,
    /// Nothing once it is let in, and the kernel keeps little for it.
    Nothing,
}

/// What a member hears.
pub enum Notice<'a> {
    Open,
    Text(Frame<'a>),
    Lost,
}

struct Member {
    source: Ipv4Addr,
    hello: Vec<u8>,
    reads: Reads,
    connection: Option<usize>,
    is_open: bool,
    /// When it dials, if it is not connected.
    due: Instant,
}

impl Crew {
    pub fn new(port: u16) -> io::Result<Self> {
        Ok(Self {
            driver: Driver::new()?,
            port,
            members: Vec::new(),
            places: HashMap::new(),
            checked: Instant::now(),
            done: Done::default(),
        })
    }

    /// Somebody who dials after `delay`, and sends `hello` at once; its place.
    pub fn add(
        &mut self,
        source: Ipv4Addr,
        hello: Vec<u8>,
        reads: Reads,
        delay: Duration,
    ) -> usize {
        let due = Instant::now() + delay;
        let member = Member { source, hello, reads, connection: None, is_open: false, due };
        self.members.push(member);
        self.members.len() - 1
    }

    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// Whether a member is let in and has sent everything so far.
    pub fn is_free(&self, place: usize) -> bool {
        let member = &self.members[place];
        let Some(connection) = member.connection.filter(|_| member.is_open) else { return false };
        self.driver.unsent(connection) == 0
    }

    pub fn send(&mut self, place: usize, bytes: &[u8]) {
        if let Some(connection) = self.members[place].connection {
            self.driver.send(connection, bytes);
            self.done.written += bytes.len() as u64;
        }
    }

    /// Reads and throws away up to `limit` bytes of a member that does not read by itself; `None` if
    /// its connection has ended.
    pub fn sip(&mut self, place: usize, limit: usize) -> Option<usize> {
        self.driver.sip(self.members[place].connection?, limit)
    }

    /// The connection of a member has ended, or is to end: it dials again after a while.
    pub fn lose(&mut self, place: usize, code: u16) {
        let member = &mut self.members[place];
        let Some(connection) = member.connection.take() else { return };
        self.driver.hang_up(connection);
        self.places.remove(&connection);
        let is_refused = matches!(code, TOO_MANY_REQUESTS | UNAVAILABLE);
        if is_refused {
            self.done.refused += 1;
        } else {
            self.done.closed += 1;
        }
        member.is_open = false;
        member.due = Instant::now()
            + match code {
                _ if is_refused => REFUSED_PAUSE,
                NO_SERVER => NO_SERVER_PAUSE,
                _ => PAUSE,
            };
    }

    /// Dials for members that are due, and waits at most `wait` for what happens.
    pub fn turn(
        &mut self,
        wait: Duration,
        notice: &mut dyn FnMut(&mut Driver, usize, Notice<'_>),
    ) -> io::Result<()> {
        let now = Instant::now();
        let is_due = |member: &Member| member.connection.is_none() && member.due <= now;
        for (place, member) in self.members.iter_mut().enumerate() {
            if is_due(member) {
                let buffer = (member.reads == Reads::Nothing).then_some(INPUT_BUFFER);
                let (source, hello) = (member.source, member.hello.as_slice());
                let connection = self.driver.dial_with(source, self.port, hello, true, buffer)?;
                member.connection = Some(connection);
                self.places.insert(connection, place);
                self.done.dialed += 1;
            }
        }
        let mut lost = Vec::new();
        let Self { driver, members, places, .. } = self;
        driver.turn(wait, &mut |driver, connection, event| {
            let Some(place) = places.get(&connection).copied() else { return };
            match event {
                Event::Open => {
                    members[place].is_open = true;
                    if members[place].reads == Reads::Nothing {
                        driver.stall(connection);
                    }
                    notice(driver, place, Notice::Open);
                }
                Event::Text(frame) => notice(driver, place, Notice::Text(frame)),
                Event::Closed(code) | Event::Gone(code) => lost.push((place, connection, code)),
                Event::Pong => {}
            }
        })?;
        if now - self.checked > CHECK_EACH {
            self.checked = now;
            for (place, member) in self.members.iter().enumerate() {
                let Some(connection) = member.connection.filter(|_| member.is_open) else {
                    continue;
                };
                if member.reads == Reads::Nothing && self.driver.is_ended(connection) {
                    lost.push((place, connection, 0));
                }
            }
        }
        for (place, connection, code) in lost {
            if self.members[place].connection == Some(connection) {
                self.lose(place, code);
                notice(&mut self.driver, place, Notice::Lost);
            }
        }
        Ok(())
    }
}

const TOO_MANY_REQUESTS: u16 = 429;
const UNAVAILABLE: u16 = 503;
/// An attempt of the default rate comes back in this time.
const REFUSED_PAUSE: Duration = Duration::from_secs(6);
const NO_SERVER_PAUSE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(50);
const CHECK_EACH: Duration = Duration::from_millis(250);
/// About what the kernel keeps for somebody who does not read, in bytes.
const INPUT_BUFFER: usize = 4096;
