//! Loads that a relay must carry without making others wait: a stream, floods of pings, floods of
//! empty fragments. Each runs on a thread and a driver of its own.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::driver::{Driver, Event};
use super::fleet::{Fleet, phone_head};
use super::frames::{PING, TEXT, push_frame};
use super::target::Running;

/// A kind of load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// One pair streams both ways: deltas of 700 bytes, chunks of 80 KB.
    Stream,
    /// Two phones of a pair send pings and read the pongs, or not.
    Pings { are_read: bool },
    /// Sixty phones of one address each send a message that never ends, made of empty fragments: at
    /// this rate in all, or as fast as the relay takes them.
    Fragments { bytes_a_second: Option<u32> },
}

/// What a load got to do.
#[derive(Clone, Copy, Default, Debug)]
pub struct Done {
    /// Bytes handed to the operating system, or about to be.
    pub written: u64,
    /// How often a flooder that was closed dialed again.
    pub redials: u32,
}

/// A load that is ready to start.
pub enum Noise {
    Stream(Stream),
    Flood(Flood),
}

impl Noise {
    /// Connects everybody.
    pub fn prepare(load: Load, relay: &Running) -> io::Result<Self> {
        match load {
            Load::Stream => Stream::prepare(relay).map(Self::Stream),
            Load::Pings { .. } | Load::Fragments { .. } => {
                Flood::prepare(load, relay).map(Self::Flood)
            }
        }
    }

    /// Makes noise until `stop`.
    pub fn run(self, stop: &AtomicBool) -> io::Result<Done> {
        match self {
            Self::Stream(stream) => stream.run(stop),
            Self::Flood(flood) => flood.run(stop),
        }
    }
}

/// A pair that streams.
pub struct Stream {
    driver: Driver,
    fleet: Fleet,
}

impl Stream {
    fn prepare(relay: &Running) -> io::Result<Self> {
        let mut driver = Driver::new()?;
        let fleet = Fleet::connect(&mut driver, relay, 1, 1)?;
        Ok(Self { driver, fleet })
    }

    fn run(mut self, stop: &AtomicBool) -> io::Result<Done> {
        let (mut to_binary, mut to_phone) = (Vec::new(), Vec::new());
        for size in STREAM_BATCH {
            self.fleet.push_to_binary(&mut to_binary, 0, 0, 0, size);
            self.fleet.push_to_phone(&mut to_phone, 0, 0, 0, size);
        }
        let (phone, binary) = (self.fleet.phones[0].connection, self.fleet.phones[0].binary);
        let mut done = Done::default();
        let (mut on_their_way, mut ended) = (0, None);
        while !stop.load(Ordering::Relaxed) {
            let mut wait = IDLE;
            // Only once everything is sent: the driver's buffer grows until it is empty again.
            if self.driver.unsent(phone) == 0 {
                self.driver.send(phone, &to_binary);
                done.written += to_binary.len() as u64;
                wait = Duration::ZERO;
            }
            if self.driver.unsent(binary) == 0 && on_their_way < STREAM_WINDOW {
                self.driver.send(binary, &to_phone);
                done.written += to_phone.len() as u64;
                on_their_way += STREAM_BATCH.len();
                wait = Duration::ZERO;
            }
            self.driver.turn(wait, &mut |_, connection, event| match event {
                Event::Text(_) if connection == phone => on_their_way -= 1,
                Event::Closed(code) | Event::Gone(code) => ended = ended.or(Some(code)),
                _ => {}
            })?;
            if let Some(code) = ended {
                return Err(io::Error::other(format!("the streaming pair was closed with {code}")));
            }
        }
        Ok(done)
    }
}

/// Phones that send the same bytes again and again. One that is closed dials again at once.
pub struct Flood {
    driver: Driver,
    /// The binaries that they are phones of.
    _binaries: Fleet,
    port: u16,
    source: Option<Ipv4Addr>,
    reads: bool,
    /// What each sends first on a connection, and then without end.
    first: Vec<u8>,
    batch: Vec<u8>,
    bytes_a_second: Option<u32>,
    flooders: Vec<Flooder>,
    done: Done,
}

struct Flooder {
    head: String,
    connection: Option<usize>,
    is_open: bool,
    /// When it dials, if it is not connected.
    due: Instant,
}

impl Flood {
    fn prepare(load: Load, relay: &Running) -> io::Result<Self> {
        let (servers, phones_each, source) = match load {
            Load::Fragments { .. } => (4, 15, Some(ONE_SOURCE)),
            Load::Stream | Load::Pings { .. } => (1, 2, None),
        };
        let mut driver = Driver::new()?;
        let mut binaries = Fleet::new(relay.upgrades);
        binaries.grow(&mut driver, relay, "flooded", servers, 0)?;
        let (mut first, mut one) = (Vec::new(), Vec::new());
        let mut bytes_a_second = None;
        match load {
            Load::Fragments { bytes_a_second: rate } => {
                push_frame(&mut first, TEXT, &[]);
                push_frame(&mut one, CONTINUATION, &[]);
                (first[0], one[0]) = (first[0] & !FINAL, one[0] & !FINAL);
                bytes_a_second = rate;
            }
            Load::Stream | Load::Pings { .. } => push_frame(&mut one, PING, &[b"flood"]),
        }
        let batch_bytes = if bytes_a_second.is_some() { SMALL_BATCH } else { LARGE_BATCH };
        let heads = (0..servers * phones_each).map(|phone| format!("flooded-{}", phone % servers));
        let flooders = heads.map(|server| Flooder {
            head: phone_head(&server),
            connection: None,
            is_open: false,
            due: Instant::now(),
        });
        let mut flood = Self {
            driver,
            _binaries: binaries,
            port: relay.port,
            source,
            reads: load != Load::Pings { are_read: false },
            first,
            batch: one.repeat(batch_bytes / one.len()),
            bytes_a_second,
            flooders: flooders.collect(),
            done: Done::default(),
        };
        let deadline = Instant::now() + PATIENCE;
        while !flood.flooders.iter().all(|flooder| flooder.is_open) {
            if Instant::now() > deadline {
                return Err(io::Error::other("the flooding phones are not let in"));
            }
            flood.dial()?;
            flood.turn(IDLE)?;
        }
        flood.done = Done::default();
        Ok(flood)
    }

    fn run(mut self, stop: &AtomicBool) -> io::Result<Done> {
        let began = Instant::now();
        let (mut spent, mut next) = (0.0, 0);
        while !stop.load(Ordering::Relaxed) {
            self.dial()?;
            // Bytes that may be sent by now. What was not taken in time is not made up for.
            let mut allowance = f64::INFINITY;
            if let Some(rate) = self.bytes_a_second {
                let due = began.elapsed().as_secs_f64() * f64::from(rate);
                spent = f64::max(spent, due - f64::from(rate) * ARREARS.as_secs_f64());
                allowance = due - spent;
            }
            let mut wait = IDLE;
            for _ in 0..self.flooders.len() {
                if allowance < self.batch.len() as f64 {
                    break;
                }
                next = (next + 1) % self.flooders.len();
                let Flooder { connection: Some(connection), is_open: true, .. } =
                    self.flooders[next]
                else {
                    continue;
                };
                if self.driver.unsent(connection) == 0 {
                    self.driver.send(connection, &self.batch);
                    self.done.written += self.batch.len() as u64;
                    spent += self.batch.len() as f64;
                    allowance -= self.batch.len() as f64;
                    if self.bytes_a_second.is_none() {
                        wait = Duration::ZERO;
                    }
                }
            }
            self.turn(wait)?;
        }
        Ok(self.done)
    }

    fn dial(&mut self) -> io::Result<()> {
        let now = Instant::now();
        for flooder in &mut self.flooders {
            if flooder.connection.is_none() && flooder.due <= now {
                let head = flooder.head.as_bytes();
                flooder.connection = Some(match self.source {
                    Some(source) => self.driver.dial_from(source, self.port, head, true)?,
                    None => self.driver.dial(self.port, head, true)?,
                });
                self.done.redials += 1;
            }
        }
        Ok(())
    }

    fn turn(&mut self, wait: Duration) -> io::Result<()> {
        let Self { driver, flooders, first, reads, .. } = self;
        driver.turn(wait, &mut |driver, connection, event| {
            let mut flooders = flooders.iter_mut();
            let Some(flooder) = flooders.find(|flooder| flooder.connection == Some(connection))
            else {
                return;
            };
            match event {
                Event::Open => {
                    flooder.is_open = true;
                    if !first.is_empty() {
                        driver.send(connection, first);
                    }
                    // The end of one that does not read goes unnoticed.
                    if !*reads {
                        driver.stall(connection);
                    }
                }
                Event::Closed(_) | Event::Gone(_) => {
                    driver.hang_up(connection);
                    let pause = if flooder.is_open { Duration::ZERO } else { REFUSED_PAUSE };
                    flooder.due = Instant::now() + pause;
                    (flooder.connection, flooder.is_open) = (None, false);
                }
                Event::Text(_) | Event::Pong => {}
            }
        })
    }
}

const CONTINUATION: u8 = 0x0;
/// The first bit of a frame: it ends its message.
const FINAL: u8 = 0x80;
/// Deltas and a chunk.
const STREAM_BATCH: [usize; 33] = {
    let mut sizes = [700; 33];
    sizes[32] = 80_000;
    sizes
};
/// Messages on their way to the streaming phone: 6.6 MB, far below what closes one that reads too
/// slowly.
const STREAM_WINDOW: usize = 64 * STREAM_BATCH.len();
const ONE_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 99);
const SMALL_BATCH: usize = 960;
const LARGE_BATCH: usize = 64 * 1024;
/// How far a load with a rate may lag behind it.
const ARREARS: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_millis(2);
/// Before another dial of a phone that was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(20);
