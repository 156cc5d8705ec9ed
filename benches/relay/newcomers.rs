//! Pairs that arrive while a relay is busy with others: a binary claims a server-id, its phone joins,
//! and a message goes to and fro.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use super::driver::{Driver, Event};
use super::fleet::{binary_head, envelope_head, phone_head};
use super::frames::{TEXT, push_frame};
use super::neighbours::newcomers_address;
use super::opening::NO_SERVER;

/// Newcomers of one relay, each from an address that nobody used before.
pub struct Newcomers {
    port: u16,
    pairs: Vec<Newcomer>,
    /// Whose connection it is.
    places: HashMap<usize, usize>,
    slowest: Duration,
}

/// What became of them.
#[derive(Default)]
pub struct Welcome {
    pub tried: u32,
    pub through: u32,
    /// The longest time from the first dial to the end of the round trip.
    pub slowest: Duration,
}

struct Newcomer {
    began: Instant,
    binary: usize,
    phone: Option<usize>,
    /// When the phone dials, or dials again.
    phone_due: Option<Instant>,
    step: &'static str,
    end: Option<Result<(), String>>,
}

impl Newcomers {
    pub fn new(port: u16) -> Self {
        let places = HashMap::new();
        Self { port, pairs: Vec::new(), places, slowest: Duration::ZERO }
    }

    /// The binary of another pair dials.
    pub fn arrive(&mut self, driver: &mut Driver) -> io::Result<()> {
        let place = self.pairs.len();
        let head = binary_head(&name(place));
        let source = newcomers_address(u32::try_from(place).unwrap() + 1);
        let binary = driver.dial_from(source, self.port, head.as_bytes(), true)?;
        self.places.insert(binary, place);
        self.pairs.push(Newcomer {
            began: Instant::now(),
            binary,
            phone: None,
            phone_due: None,
            step: "claiming",
            end: None,
        });
        Ok(())
    }

    /// Dials for phones that are due, and gives up on those who have waited too long.
    pub fn advance(&mut self, driver: &mut Driver) -> io::Result<()> {
        let now = Instant::now();
        for (place, pair) in self.pairs.iter_mut().enumerate() {
            if pair.end.is_some() {
                continue;
            }
            if now - pair.began > PATIENCE {
                let (step, seconds) = (pair.step, PATIENCE.as_secs());
                pair.give_up(driver, format!("was still {step} after {seconds} s"));
            } else if pair.phone_due.is_some_and(|due| due <= now) {
                pair.phone_due = None;
                let source = newcomers_address(u32::try_from(place).unwrap() + 1);
                let head = phone_head(&name(place));
                let phone = driver.dial_from(source, self.port, head.as_bytes(), true)?;
                (pair.phone, pair.step) = (Some(phone), "joining");
                self.places.insert(phone, place);
            }
        }
        Ok(())
    }

    pub fn handle(&mut self, driver: &mut Driver, connection: usize, event: &Event<'_>) {
        let Some(pair) = self.places.get(&connection).map(|place| &mut self.pairs[*place]) else {
            return;
        };
        if pair.end.is_some() {
            return;
        }
        let is_phone = pair.phone == Some(connection);
        let mut wire = Vec::new();
        match event {
            Event::Open if is_phone => {
                pair.step = "waiting for an answer";
                push_frame(&mut wire, TEXT, &[b"\"hello\""]);
                driver.send(connection, &wire);
            }
            Event::Open => pair.phone_due = Some(Instant::now()),
            Event::Text(_) if is_phone => {
                self.slowest = self.slowest.max(pair.began.elapsed());
                pair.end = Some(Ok(()));
                pair.leave(driver);
            }
            Event::Text(frame) => {
                // A phone that was too early may have left a close notice behind.
                if frame.inner_start().is_some() {
                    let envelope = envelope_head(frame.plain());
                    push_frame(&mut wire, TEXT, &[&envelope, b"\"welcome\"}"]);
                    driver.send(connection, &wire);
                }
            }
            // The phone was faster than the claim.
            Event::Closed(NO_SERVER) if is_phone => {
                driver.hang_up(connection);
                (pair.phone, pair.phone_due) = (None, Some(Instant::now() + REDIAL));
            }
            Event::Closed(code) | Event::Gone(code) => {
                let (who, step) = (if is_phone { "phone" } else { "binary" }, pair.step);
                pair.give_up(driver, format!("lost its {who} with {code} while {step}"));
            }
            Event::Pong => {}
        }
    }

    pub fn are_done(&self) -> bool {
        self.pairs.iter().all(|pair| pair.end.is_some())
    }

    /// What became of them. What went wrong is added to `wrongs` in words, the same once.
    pub fn finish(self, wrongs: &mut Vec<String>) -> Welcome {
        let mut welcome = Welcome { slowest: self.slowest, ..Welcome::default() };
        for pair in self.pairs {
            welcome.tried += 1;
            let wrong = match pair.end {
                Some(Ok(())) => {
                    welcome.through += 1;
                    continue;
                }
                Some(Err(wrong)) => wrong,
                None => format!("was still {} at the end", pair.step),
            };
            let wrong = format!("a newcomer {wrong}");
            if !wrongs.contains(&wrong) {
                wrongs.push(wrong);
            }
        }
        welcome
    }
}

impl Newcomer {
    fn give_up(&mut self, driver: &mut Driver, why: String) {
        self.end = Some(Err(why));
        self.leave(driver);
    }

    fn leave(&self, driver: &mut Driver) {
        driver.hang_up(self.binary);
        if let Some(phone) = self.phone {
            driver.hang_up(phone);
        }
    }
}

fn name(place: usize) -> String {
    format!("newcomer-{place}")
}

const PATIENCE: Duration = Duration::from_secs(5);
const REDIAL: Duration = Duration::from_millis(100);
