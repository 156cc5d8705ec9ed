//! The soak: mixed load at a fraction of what the relay can carry, for as long as is asked for,
//! with churn, beside a crowd that only answers pings. It looks for what grows: memory, descriptors,
//! latency. No message may be lost, repeated or reordered.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use super::bench::percentile;
use super::driver::{Driver, Event};
use super::fleet::{binary_head, envelope_head, phone_head};
use super::frames::{CLOSE, Frame, Stamp, TEXT, push_frame};
use super::process;
use super::target::{Running, Target};

/// Runs for this time, prints the figures, and says whether they are flat.
pub fn run(time: Duration) -> io::Result<String> {
    let running = Target::relay().start(&["--max-connections", "4096", "--grace", "5s"])?;
    let mut driver = Driver::new()?;
    let mut soak = Soak::new(&running);
    for number in 0..SERVERS + CROWD {
        soak.dial(&mut driver, Client::Binary(number))?;
        soak.turn(&mut driver, Duration::from_millis(1))?;
    }
    for place in 0..SERVERS * PHONES_EACH {
        soak.dial(&mut driver, Client::Phone(place))?;
        soak.turn(&mut driver, Duration::from_millis(1))?;
    }
    soak.carry(&mut driver, time)?;
    soak.settle(&mut driver)?;
    Ok(soak.report(time))
}

struct Soak<'a> {
    running: &'a Running,
    random: fastrand::Rng,
    roles: HashMap<usize, Client>,
    binaries: Vec<Option<usize>>,
    phones: Vec<Phone>,
    /// By their number: whoever is or was a phone.
    lives: Vec<Life>,
    churn: Churn,
    in_flight: i64,
    latencies: Vec<(Duration, u64)>,
    samples: Vec<Sample>,
    began: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    Binary(usize),
    Phone(usize),
}

/// A phone's place: who has it at present.
#[derive(Default)]
struct Phone {
    connection: Option<usize>,
    life: usize,
    leaving: bool,
}

/// One phone's connection.
#[derive(Default)]
struct Life {
    place: usize,
    /// The envelope up to the frame, once its binary has heard it.
    envelope: Vec<u8>,
    over: bool,
    sent: u32,
    received: u32,
    answered: u32,
    got: u32,
}

#[derive(Default)]
struct Churn {
    phones: u64,
    binaries: u64,
    files: u64,
}

struct Sample {
    at: f64,
    resident: f64,
    descriptors: f64,
}

impl<'a> Soak<'a> {
    fn new(running: &'a Running) -> Self {
        Self {
            running,
            random: fastrand::Rng::with_seed(4),
            roles: HashMap::new(),
            binaries: vec![None; SERVERS + CROWD],
            phones: (0..SERVERS * PHONES_EACH).map(|_| Phone::default()).collect(),
            lives: Vec::new(),
            churn: Churn::default(),
            in_flight: 0,
            latencies: Vec::new(),
            samples: Vec::new(),
            began: Instant::now(),
        }
    }

    fn dial(&mut self, driver: &mut Driver, client: Client) -> io::Result<()> {
        let head = match client {
            Client::Binary(number) => binary_head(&format!("server-{number}")),
            Client::Phone(place) => {
                self.phones[place] = Phone { life: self.lives.len(), ..Phone::default() };
                self.lives.push(Life { place, ..Life::default() });
                phone_head(&format!("server-{}", place / PHONES_EACH))
            }
        };
        let connection = driver.dial(self.running.port, head.as_bytes(), true)?;
        self.roles.insert(connection, client);
        Ok(())
    }

    /// Mixed load and churn; a sample of memory and descriptors now and then.
    fn carry(&mut self, driver: &mut Driver, time: Duration) -> io::Result<()> {
        self.began = Instant::now();
        let (mut message, mut churn, mut file, mut sample) =
            (Duration::ZERO, Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let sample_each = (time / 120).clamp(Duration::from_secs(1), Duration::from_secs(10));
        let mut binary_next = 0;
        while self.began.elapsed() < time {
            let now = self.began.elapsed();
            if now >= sample {
                sample += sample_each;
                self.sample();
            }
            if now >= churn {
                churn += CHURN_EACH;
                self.replace_a_phone(driver)?;
                binary_next += 1;
                if binary_next % PHONES_A_BINARY == 0 {
                    self.send_a_binary_off(driver);
                }
            }
            if now >= file {
                file += FILE_EACH;
                self.churn.files += 1;
                let place = self.random.usize(..self.phones.len());
                for _ in 0..FILE_CHUNKS {
                    self.send_to_phone(driver, place, FILE_CHUNK_BYTES);
                }
            }
            // Late or not, what has arrived is read now and then: a client that only catches up with
            // its sending answers no pings.
            for _ in 0..MESSAGES_A_TURN {
                if message > self.began.elapsed() {
                    break;
                }
                // Gaps of a Poisson process.
                message += Duration::from_secs_f64(-(1.0 - self.random.f64()).ln() / RATE);
                let place = self.random.usize(..self.phones.len());
                let size = self.random.usize(DELTA_BYTES);
                match self.random.u8(..5) {
                    0 => self.send_to_binary(driver, place, TOOL_BYTES),
                    _ => self.send_to_phone(driver, place, size),
                }
            }
            let due = message.min(churn).min(sample).saturating_sub(self.began.elapsed());
            self.turn(driver, due)?;
        }
        Ok(())
    }

    /// Waits until everything that was sent has arrived.
    fn settle(&mut self, driver: &mut Driver) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.in_flight > 0 || self.binaries.iter().any(Option::is_none) {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{} messages are missing", self.in_flight)));
            }
            self.turn(driver, Duration::from_millis(20))?;
        }
        self.sample();
        Ok(())
    }

    fn sample(&mut self) {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.running.pid()));
        self.samples.push(Sample {
            at: self.began.elapsed().as_secs_f64(),
            resident: self.running.resident(),
            descriptors: descriptors.map_or(f64::NAN, |all| all.count() as f64),
        });
    }

    fn send_to_binary(&mut self, driver: &mut Driver, place: usize, size: usize) {
        let Phone { connection: Some(connection), life, leaving: false } = self.phones[place]
        else {
            return;
        };
        let number = u32::try_from(life).unwrap();
        let life = &mut self.lives[life];
        let stamp = Stamp { phone: number, sequence: life.sent, sent: driver.now() };
        life.sent += 1;
        self.in_flight += 1;
        send(driver, connection, &[], stamp, size);
    }

    fn send_to_phone(&mut self, driver: &mut Driver, place: usize, size: usize) {
        let Phone { connection: Some(_), life, leaving: false } = self.phones[place] else {
            return;
        };
        let Some(binary) = self.binaries[place / PHONES_EACH] else { return };
        let number = u32::try_from(life).unwrap();
        let life = &mut self.lives[life];
        if life.envelope.is_empty() {
            return;
        }
        let stamp = Stamp { phone: number, sequence: life.answered, sent: driver.now() };
        life.answered += 1;
        self.in_flight += 1;
        send(driver, binary, &life.envelope, stamp, size);
    }

    /// A phone leaves, in an orderly way or not, and another one comes.
    fn replace_a_phone(&mut self, driver: &mut Driver) -> io::Result<()> {
        let place = self.random.usize(..self.phones.len());
        let Phone { connection: Some(connection), life, leaving: false } = self.phones[place]
        else {
            return Ok(());
        };
        self.churn.phones += 1;
        self.phones[place].leaving = true;
        // What is still on its way to or from it is nobody's any more.
        let life = &mut self.lives[life];
        life.over = true;
        let missing = (life.sent - life.received) + (life.answered - life.got);
        self.in_flight -= i64::from(missing);
        if self.random.bool() {
            let mut close = Vec::new();
            push_frame(&mut close, CLOSE, &[&1000_u16.to_be_bytes()]);
            driver.send(connection, &close);
            return Ok(());
        }
        driver.hang_up(connection);
        self.roles.remove(&connection);
        self.dial(driver, Client::Phone(place))
    }

    /// A binary closes its connection; it comes back once that has ended.
    fn send_a_binary_off(&mut self, driver: &mut Driver) {
        let number = self.random.usize(..SERVERS);
        if let Some(connection) = self.binaries[number].take() {
            self.churn.binaries += 1;
            let mut close = Vec::new();
            push_frame(&mut close, CLOSE, &[&1000_u16.to_be_bytes()]);
            driver.send(connection, &close);
        }
    }

    fn turn(&mut self, driver: &mut Driver, timeout: Duration) -> io::Result<()> {
        let mut wrong = None;
        driver.turn(
            timeout.min(Duration::from_millis(100)),
            &mut |driver, connection, event| {
                if let Err(error) = self.handle(driver, connection, &event) {
                    wrong.get_or_insert(error);
                }
            },
        )?;
        wrong.map_or(Ok(()), Err)
    }

    fn handle(
        &mut self,
        driver: &mut Driver,
        connection: usize,
        event: &Event<'_>,
    ) -> io::Result<()> {
        let Some(client) = self.roles.get(&connection).copied() else { return Ok(()) };
        match (client, event) {
            (Client::Binary(number), Event::Open) => self.binaries[number] = Some(connection),
            (Client::Phone(place), Event::Open) => {
                self.phones[place].connection = Some(connection);
                self.send_to_binary(driver, place, TOOL_BYTES);
            }
            (Client::Binary(_), Event::Text(frame)) => {
                let Some(start) = frame.inner_start() else { return Ok(()) };
                let stamp = Stamp::read(frame, start);
                self.arrived(driver, frame, stamp, true)?;
            }
            (Client::Phone(_), Event::Text(frame)) => {
                self.arrived(driver, frame, Stamp::read(frame, 0), false)?;
            }
            (_, Event::Closed(code)) => {
                if *code != 1000 {
                    return Err(io::Error::other(format!("a connection was closed with {code}")));
                }
            }
            (client, Event::Gone(status)) => {
                self.roles.remove(&connection);
                let asked = match client {
                    Client::Binary(number) => self.binaries[number] != Some(connection),
                    Client::Phone(place) => self.phones[place].leaving,
                };
                if !asked || *status != 0 {
                    return Err(io::Error::other(format!("a connection ended (status {status})")));
                }
                self.dial(driver, client)?;
            }
            (_, Event::Pong) => {}
        }
        Ok(())
    }

    fn arrived(
        &mut self,
        driver: &Driver,
        frame: &Frame<'_>,
        stamp: Option<Stamp>,
        at_binary: bool,
    ) -> io::Result<()> {
        let stamp = stamp.ok_or_else(|| io::Error::other("a message without a stamp"))?;
        let life = &mut self.lives[stamp.phone as usize];
        if life.over {
            return Ok(());
        }
        let expected = if at_binary { &mut life.received } else { &mut life.got };
        if stamp.sequence != *expected {
            let (expected, got) = (*expected, stamp.sequence);
            return Err(io::Error::other(format!("message {got} came instead of {expected}")));
        }
        *expected += 1;
        self.in_flight -= 1;
        if at_binary && life.envelope.is_empty() {
            life.envelope = envelope_head(frame.plain());
        }
        // What waited for its binary to come back waited for the binary.
        let binary_is_there = self.binaries[life.place / PHONES_EACH].is_some();
        if frame.plain().len() < FILE_CHUNK_BYTES && binary_is_there && !at_binary {
            self.latencies.push((self.began.elapsed(), driver.now() - stamp.sent));
        }
        Ok(())
    }

    fn report(&self, time: Duration) -> String {
        let mut text = String::new();
        let (seconds, count) = (time.as_secs_f64(), self.latencies.len());
        let all: u64 = self.lives.iter().map(|life| u64::from(life.received + life.got)).sum();
        let Churn { phones, binaries, files } = self.churn;
        text += &format!(
            "{seconds:.0} s, {} servers, {} phones, {CROWD} idle connections: {all} messages \
             ({:.0} a second), {phones} phones and {binaries} binaries replaced, {files} files\n\
             no message of a living session lost, repeated or reordered\n",
            SERVERS,
            SERVERS * PHONES_EACH,
            all as f64 / seconds,
        );
        // What the allocator takes at first is no growth.
        let settled = &self.samples[self.samples.len() / 5..];
        let points =
            |value: fn(&Sample) -> f64| settled.iter().map(move |one| (one.at, value(one)));
        let memory = slope(points(|one| one.resident / 1024.0)) * 3600.0;
        let (first, last) = (&settled[0], &settled[settled.len() - 1]);
        text += &format!(
            "resident memory: {:.0} KiB after a fifth of the time, {:.0} KiB at the end, slope \
             {memory:+.0} KiB an hour by least squares over {} samples\n",
            first.resident / 1024.0,
            last.resident / 1024.0,
            settled.len(),
        );
        let most = settled.iter().fold(0.0_f64, |most, one| most.max(one.descriptors));
        text += &format!(
            "descriptors: {} after a fifth of the time, {} at the end, at most {most}\n",
            first.descriptors, last.descriptors
        );
        text += &format!("latency to phones, {count} messages, by quarter of the time:\n");
        for quarter in 0..4_u32 {
            let (from, to) = (time * quarter / 4, time * (quarter + 1) / 4);
            let within = self.latencies.iter().filter(|(at, _)| (from..to).contains(at));
            let mut sorted: Vec<_> = within.map(|(_, latency)| *latency).collect();
            sorted.sort_unstable();
            let [p25, p50, p75, p99] =
                [0.25, 0.5, 0.75, 0.99].map(|share| percentile(&sorted, share) / 1e3);
            text += &format!(
                "  {}: p25 {p25:.0} us, p50 {p50:.0} us, p75 {p75:.0} us, p99 {p99:.0} us\n",
                quarter + 1
            );
        }
        text += &format!(
            "processor time: {:.1} % of a core\n",
            process::cpu_time(self.running.pid()).as_secs_f64() / seconds * 100.0
        );
        text
    }
}

fn send(driver: &mut Driver, connection: usize, envelope: &[u8], stamp: Stamp, size: usize) {
    let (mut inner, mut wire) = (Vec::new(), Vec::new());
    stamp.write(&mut inner, size);
    let end: &[u8] = if envelope.is_empty() { b"" } else { b"}" };
    push_frame(&mut wire, TEXT, &[envelope, &inner, end]);
    driver.send(connection, &wire);
}

/// The slope of the line that fits the points best.
fn slope(points: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let count = points.clone().count() as f64;
    let (x, y) = points.clone().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (x, y) = (x / count, y / count);
    let (above, below) = points.fold((0.0, 0.0), |(above, below), point| {
        (above + (point.0 - x) * (point.1 - y), below + (point.0 - x) * (point.0 - x))
    });
    above / below
}

const SERVERS: usize = 200;
const PHONES_EACH: usize = 2;
const CROWD: usize = 600;
/// About a twentieth of what the relay carries of such messages on a PC.
const RATE: f64 = 1000.0;
const MESSAGES_A_TURN: u32 = 32;
const DELTA_BYTES: std::ops::RangeInclusive<usize> = 400..=1700;
const TOOL_BYTES: usize = 700;
const CHURN_EACH: Duration = Duration::from_millis(100);
const PHONES_A_BINARY: u32 = 5;
const FILE_EACH: Duration = Duration::from_secs(5);
const FILE_CHUNKS: usize = 20;
const FILE_CHUNK_BYTES: usize = 80_500;
const PATIENCE: Duration = Duration::from_secs(60);
