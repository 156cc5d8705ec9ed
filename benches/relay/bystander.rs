//! Innocent bystanders: a pair that says little, and somebody who asks for the health page. What
//! they wait is measured, at several relays at the same time.

use std::io;
use std::time::Duration;

use super::driver::{Driver, Event};
use super::fleet::Fleet;
use super::target::Running;

/// The bystanders of some relays, on one thread.
pub struct Bystanders {
    driver: Driver,
    random: fastrand::Rng,
    watches: Vec<Watch>,
}

/// What they waited at one relay, in nanoseconds.
#[derive(Default)]
pub struct Waits {
    pub messages: Vec<u64>,
    pub health: Vec<u64>,
    /// How many of these had no answer. They count with the time until they were given up.
    pub unanswered: u32,
}

/// The bystanders of one relay.
struct Watch {
    port: u16,
    pair: Fleet,
    message: Errand,
    health: Errand,
    /// The connection that asks for the health page.
    asking: Option<usize>,
    waits: Waits,
    wrong: Option<String>,
}

/// Something that is done again and again, one at a time. Times are the driver's.
#[derive(Default)]
struct Errand {
    sequence: u32,
    begun: Option<u64>,
    due: u64,
}

impl Bystanders {
    pub fn connect(relays: &[&Running]) -> io::Result<Self> {
        let mut driver = Driver::new()?;
        let mut watches = Vec::new();
        for running in relays {
            let mut pair = Fleet::new(running.upgrades);
            pair.grow(&mut driver, running, "quiet", 1, 1)?;
            pair.introduce(&mut driver)?;
            watches.push(Watch {
                port: running.port,
                pair,
                message: Errand::default(),
                health: Errand::default(),
                asking: None,
                waits: Waits::default(),
                wrong: None,
            });
        }
        Ok(Self { driver, random: fastrand::Rng::with_seed(4), watches })
    }

    /// Watches for this time, and as long again for what is still on its way.
    pub fn watch(mut self, time: Duration) -> io::Result<Vec<Waits>> {
        let end = self.driver.now() + nanoseconds(time);
        loop {
            let now = self.driver.now();
            let mut next = now + nanoseconds(TURN);
            for watch in &mut self.watches {
                if now < end {
                    next = next.min(watch.begin(&mut self.driver, &mut self.random)?);
                }
            }
            let is_over = self.watches.iter().all(Watch::is_done);
            if now >= end && (is_over || now >= end + nanoseconds(time)) {
                break;
            }
            let wait = Duration::from_nanos(next.saturating_sub(self.driver.now()));
            self.driver.turn(wait, &mut |driver, connection, event| {
                for watch in &mut self.watches {
                    watch.handle(driver.now(), connection, &event);
                }
            })?;
            if let Some(wrong) = self.watches.iter_mut().find_map(|watch| watch.wrong.take()) {
                return Err(io::Error::other(wrong));
            }
        }
        let now = self.driver.now();
        Ok(self.watches.into_iter().map(|watch| watch.finish(now)).collect())
    }
}

impl Watch {
    /// Begins what is due; when the next is.
    fn begin(&mut self, driver: &mut Driver, random: &mut fastrand::Rng) -> io::Result<u64> {
        let now = driver.now();
        // Neither falls into step with anything that is periodic.
        if self.message.is_due(now) {
            let mut wire = Vec::new();
            self.pair.push_to_binary(&mut wire, 0, self.message.sequence, now, MESSAGE_BYTES);
            driver.send(self.pair.phones[0].connection, &wire);
            self.message.begin(now, MESSAGE_EACH.mul_f64(0.8 + 0.4 * random.f64()));
        }
        if self.health.is_due(now) {
            self.asking = Some(driver.dial(self.port, HEALTH, true)?);
            self.health.begin(now, HEALTH_EACH.mul_f64(0.8 + 0.4 * random.f64()));
        }
        let due = [&self.message, &self.health].map(|errand| match errand.begun {
            Some(_) => u64::MAX,
            None => errand.due,
        });
        Ok(due[0].min(due[1]))
    }

    fn handle(&mut self, now: u64, connection: usize, event: &Event<'_>) {
        match event {
            Event::Text(frame) => {
                if let Some(stamp) = self.pair.stamp(connection, frame) {
                    if stamp.sequence + 1 != self.message.sequence {
                        self.wrong = Some("a quiet pair's message came twice or late".to_owned());
                    }
                    self.waits.messages.extend(self.message.end(now));
                }
            }
            // The driver takes any status but 101 for the end.
            Event::Gone(status) if self.asking == Some(connection) => {
                self.asking = None;
                self.waits.unanswered += u32::from(*status == 0);
                self.waits.health.extend(self.health.end(now));
            }
            Event::Gone(code) | Event::Closed(code) if self.pair.has(connection) => {
                self.wrong.get_or_insert_with(|| format!("a quiet pair was closed with {code}"));
            }
            _ => {}
        }
    }

    fn is_done(&self) -> bool {
        self.message.begun.is_none() && self.health.begun.is_none()
    }

    fn finish(mut self, now: u64) -> Waits {
        let (message, health) = (self.message.end(now), self.health.end(now));
        self.waits.unanswered += u32::from(message.is_some()) + u32::from(health.is_some());
        self.waits.messages.extend(message);
        self.waits.health.extend(health);
        self.waits
    }
}

impl Errand {
    fn is_due(&self, now: u64) -> bool {
        self.begun.is_none() && self.due <= now
    }

    fn begin(&mut self, now: u64, pause: Duration) {
        self.begun = Some(now);
        self.due = now + nanoseconds(pause);
        self.sequence += 1;
    }

    /// How long it took, if one was begun.
    fn end(&mut self, now: u64) -> Option<u64> {
        self.begun.take().map(|begun| now - begun)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap()
}

const MESSAGE_BYTES: usize = 700;
const MESSAGE_EACH: Duration = Duration::from_millis(50);
const HEALTH_EACH: Duration = Duration::from_millis(100);
const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n";
const TURN: Duration = Duration::from_millis(100);
