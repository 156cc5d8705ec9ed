//! People at other addresses, who do nothing wrong while a relay is attacked: a pair that exchanges
//! messages, newcomers, and somebody who receives a file. What the relay does to them is what counts.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::driver::{Driver, Event};
use super::fleet::Fleet;
use super::newcomers::{Newcomers, Welcome};
use super::target::Running;

/// All of them, on one thread.
pub struct Neighbours {
    driver: Driver,
    pair: Fleet,
    newcomers: Newcomers,
    transfer: Transfer,
    outcome: Outcome,
}

/// What they went through.
#[derive(Default)]
pub struct Outcome {
    /// Connections of the pair that were closed.
    pub pair_closed: u32,
    /// Messages of the pair that were not answered.
    pub pair_lost: u32,
    /// The longest way to and fro of such a message, in nanoseconds.
    pub pair_worst: u64,
    pub welcome: Welcome,
    /// Bytes of the file that arrived, of how many.
    pub file_bytes: usize,
    pub file_size: usize,
    /// Whether a connection of the transfer was closed.
    pub file_closed: bool,
    /// What went wrong, in words.
    pub wrongs: Vec<String>,
}

/// A binary that sends a file to a phone that reads slowly.
struct Transfer {
    ends: Fleet,
    size: usize,
    sent: u32,
    received: usize,
    began: Option<Instant>,
    done: bool,
    closed: bool,
}

impl Neighbours {
    /// Connects the pair and both ends of the transfer, each of the four from an address of its own.
    pub fn connect(running: &Running, file_size: usize) -> io::Result<Self> {
        let mut driver = Driver::new()?;
        let fleets = ["pair", "file"].map(|name| {
            let mut fleet = Fleet::new(running.upgrades);
            fleet.grow(&mut driver, running, name, 1, 1)?;
            fleet.introduce(&mut driver)?;
            Ok::<_, io::Error>(fleet)
        });
        let [pair, ends] = fleets;
        let (pair, ends) = (pair?, ends?);
        driver.stall(ends.phones[0].connection);
        let transfer = Transfer {
            ends,
            size: file_size,
            sent: 0,
            received: 0,
            began: None,
            done: false,
            closed: false,
        };
        let newcomers = Newcomers::new(running.port);
        Ok(Self { driver, pair, newcomers, transfer, outcome: Outcome::default() })
    }

    /// Goes on for this time, and for at most [`AFTERWARDS`] until what has begun is done.
    pub fn live(mut self, time: Duration) -> io::Result<Outcome> {
        let began = Instant::now();
        let (mut message_due, mut newcomer_due) = (Duration::ZERO, Duration::ZERO);
        let (mut sequence, mut answered) = (0, 0);
        loop {
            let now = began.elapsed();
            if now < time {
                if now >= message_due && self.outcome.pair_closed == 0 {
                    message_due = now + MESSAGE_EACH;
                    let mut wire = Vec::new();
                    let sent = self.driver.now();
                    self.pair.push_to_binary(&mut wire, 0, sequence, sent, MESSAGE_BYTES);
                    self.driver.send(self.pair.phones[0].connection, &wire);
                    sequence += 1;
                }
                if now >= newcomer_due {
                    newcomer_due = now + NEWCOMER_EACH;
                    self.newcomers.arrive(&mut self.driver)?;
                }
                if now >= time / 10 {
                    self.transfer.began.get_or_insert_with(Instant::now);
                }
            }
            self.newcomers.advance(&mut self.driver)?;
            self.transfer.advance(&mut self.driver);
            let all = answered == sequence || self.outcome.pair_closed > 0;
            let is_over = all && self.newcomers.are_done() && self.transfer.is_over();
            if now >= time && (is_over || now >= time + AFTERWARDS) {
                break;
            }
            let Self { driver, pair, newcomers, transfer, outcome } = &mut self;
            driver.turn(TURN, &mut |driver, connection, event| {
                let at = began.elapsed().as_secs_f64();
                match &event {
                    Event::Text(frame) if pair.has(connection) => {
                        let Some(stamp) = pair.stamp(connection, frame) else { return };
                        if pair.is_phone(connection) {
                            answered += 1;
                            outcome.pair_worst = outcome.pair_worst.max(driver.now() - stamp.sent);
                            return;
                        }
                        let (mut wire, sequence) = (Vec::new(), stamp.sequence);
                        pair.push_to_phone(&mut wire, 0, sequence, stamp.sent, MESSAGE_BYTES);
                        driver.send(connection, &wire);
                    }
                    Event::Closed(code) | Event::Gone(code) if pair.has(connection) => {
                        driver.hang_up(connection);
                        let who = if pair.is_phone(connection) { "phone" } else { "binary" };
                        outcome.pair_closed += 1;
                        outcome.wrongs.push(format!(
                            "the healthy pair's {who} was closed with {code} after {at:.1} s"
                        ));
                    }
                    _ if transfer.ends.has(connection) => {
                        transfer.handle(connection, &event, at, &mut outcome.wrongs);
                    }
                    _ => newcomers.handle(driver, connection, &event),
                }
            })?;
        }
        Ok(self.finish(sequence - answered))
    }

    fn finish(self, unanswered: u32) -> Outcome {
        let Self { newcomers, transfer, mut outcome, .. } = self;
        outcome.pair_lost = if outcome.pair_closed > 0 { 0 } else { unanswered };
        outcome.welcome = newcomers.finish(&mut outcome.wrongs);
        (outcome.file_bytes, outcome.file_size) = (transfer.received, transfer.wire_bytes());
        outcome.file_closed = transfer.closed;
        outcome
    }
}

impl Transfer {
    fn advance(&mut self, driver: &mut Driver) {
        let Some(began) = self.began else { return };
        let (binary, phone) = (self.ends.binaries[0], self.ends.phones[0].connection);
        while !self.closed && self.sent < self.chunks() && driver.unsent(binary) == 0 {
            if self.sent as usize * CHUNK_BYTES > self.received + FILE_WINDOW {
                break;
            }
            let mut wire = Vec::new();
            self.ends.push_to_phone(&mut wire, 0, self.sent, 0, CHUNK_BYTES);
            driver.send(binary, &wire);
            self.sent += 1;
        }
        // What it could not read in time it does not make up for at once.
        let due = began.elapsed().as_secs_f64() * FILE_READ_RATE - self.received as f64;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size")]
        let limit = due.clamp(0.0, 128.0 * 1024.0) as usize;
        match driver.sip(phone, limit) {
            Some(bytes) => self.received += bytes,
            None => self.closed |= !self.done,
        }
        self.done |= self.received >= self.wire_bytes();
    }

    /// The phone is not read here: its end shows in [`Driver::sip`], and in a close notice.
    fn handle(&mut self, connection: usize, event: &Event<'_>, at: f64, wrongs: &mut Vec<String>) {
        let wrong = match event {
            Event::Text(frame) => {
                let envelope: serde_json::Value =
                    serde_json::from_slice(frame.plain()).unwrap_or_default();
                let Some(code) = envelope["close_code"].as_u64() else { return };
                format!("the phone of the file transfer was closed with {code}")
            }
            Event::Closed(code) | Event::Gone(code) => {
                let is_phone = self.ends.is_phone(connection);
                let who = if is_phone { "phone" } else { "binary" };
                format!("the {who} of the file transfer was closed with {code}")
            }
            Event::Open | Event::Pong => return,
        };
        if !self.done && !self.closed {
            self.closed = true;
            let megabytes = self.received as f64 / 1e6;
            wrongs.push(format!("{wrong} after {at:.1} s, {megabytes:.1} MB were through"));
        }
    }

    fn is_over(&self) -> bool {
        self.done || self.closed
    }

    fn chunks(&self) -> u32 {
        u32::try_from(self.size / CHUNK_BYTES).unwrap()
    }

    /// What the phone receives in all, with the headers of the frames.
    fn wire_bytes(&self) -> usize {
        self.chunks() as usize * (CHUNK_BYTES + LARGE_HEADER)
    }
}

/// The addresses of the newcomers, one after the other.
pub fn newcomers_address(number: u32) -> Ipv4Addr {
    let [_, _, third, fourth] = number.to_be_bytes();
    Ipv4Addr::new(127, 0, 32 + third, fourth)
}

/// At most so much of a file is on its way to its phone: a queue that is long, and not so long that
/// the receiver would be the largest source while a few attackers share the budget.
pub const FILE_WINDOW: usize = 12 * 1024 * 1024;

/// More than a newcomer waits.
const AFTERWARDS: Duration = Duration::from_secs(6);
const MESSAGE_BYTES: usize = 700;
const MESSAGE_EACH: Duration = Duration::from_millis(100);
const NEWCOMER_EACH: Duration = Duration::from_millis(500);
const CHUNK_BYTES: usize = 80_500;
/// Of a server's frame of more than 64 KiB.
const LARGE_HEADER: usize = 10;
/// Bytes a second.
const FILE_READ_RATE: f64 = 4e6;
const TURN: Duration = Duration::from_millis(5);
