//! Profile `storm`: 2,000 servers and 4,000 phones lose their relay. It starts again; the binaries
//! dial at once, the phones 0.8 to 1.2 s later and with back-off if they are closed. Measured is
//! the time from the last first dial until every phone has an answer from its binary.

use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::io;
use std::time::{Duration, Instant};

use super::bench::{Bench, Cost};
use super::driver::{Driver, Event};
use super::fleet::{Fleet, binary_head, envelope_head, phone_head};
use super::frames::{TEXT, push_frame};

pub fn run(bench: &mut Bench<'_>) -> io::Result<()> {
    let servers = if bench.quick { 50 } else { 2_000 };
    let options = ["--max-connections", "6100"];
    let running = bench.start(&options)?;
    let port = running.port;
    let mut driver = Driver::new()?;
    let _fleet = Fleet::connect(&mut driver, &running, servers, PHONES_EACH)?;
    drop(running);
    drop(driver);
    let running = bench.target.start_at(port, &options)?;
    let mut driver = Driver::new()?;
    let cost = Cost::begin(&running);
    let storm = Storm::new(port, servers).run(&mut driver)?;
    bench.check_driver("storm", &cost);
    let after = |at: Instant| (at - storm.last_first_dial).as_secs_f64() * 1e3;
    bench.record("exchanging after the last dial", "ms", after(storm.done.unwrap()));
    bench.record("binaries back after the first dial", "ms", storm.binaries_back * 1e3);
    bench.record("refused or closed", "", f64::from(storm.refused));
    bench.record("CPU of it all", "ms", cost.target_share() * cost.elapsed().as_secs_f64() * 1e3);
    bench.record("resident afterwards", "MiB", running.resident() / (1024.0 * 1024.0));
    Ok(())
}

struct Storm {
    port: u16,
    servers: usize,
    roles: HashMap<usize, Client>,
    /// What is to be dialed when, soonest first.
    due: BinaryHeap<std::cmp::Reverse<(Instant, Client, u32)>>,
    dials: BTreeMap<Client, u32>,
    began: Instant,
    last_first_dial: Instant,
    binaries_open: usize,
    binaries_back: f64,
    answered: usize,
    refused: u32,
    done: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
enum Client {
    Binary(usize),
    Phone(usize),
}

impl Storm {
    fn new(port: u16, servers: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(4);
        let began = Instant::now();
        let mut due = BinaryHeap::new();
        let mut last_first_dial = began;
        for server in 0..servers {
            due.push(std::cmp::Reverse((began, Client::Binary(server), 0)));
        }
        for phone in 0..servers * PHONES_EACH {
            let at = began + Duration::from_secs_f64(0.8 + 0.4 * random.f64());
            last_first_dial = last_first_dial.max(at);
            due.push(std::cmp::Reverse((at, Client::Phone(phone), 0)));
        }
        Self {
            port,
            servers,
            roles: HashMap::new(),
            due,
            dials: BTreeMap::new(),
            began,
            last_first_dial,
            binaries_open: 0,
            binaries_back: f64::NAN,
            answered: 0,
            refused: 0,
            done: None,
        }
    }

    fn run(mut self, driver: &mut Driver) -> io::Result<Self> {
        while self.done.is_none() {
            if self.began.elapsed() > PATIENCE {
                let (answered, all) = (self.answered, self.servers * PHONES_EACH);
                return Err(io::Error::other(format!("{answered} of {all} phones are back")));
            }
            let mut wait = Duration::from_millis(50);
            // A few dials, then what happened meanwhile: as if each client were by itself.
            for _ in 0..8 {
                let Some(std::cmp::Reverse((at, client, attempt))) = self.due.peek().copied()
                else {
                    break;
                };
                wait = at.saturating_duration_since(Instant::now());
                if !wait.is_zero() {
                    break;
                }
                self.due.pop();
                self.dial(driver, client, attempt)?;
            }
            let wait = wait.min(Duration::from_millis(50));
            driver.turn(wait, &mut |driver, connection, event| {
                self.handle(driver, connection, &event);
            })?;
        }
        Ok(self)
    }

    fn dial(&mut self, driver: &mut Driver, client: Client, attempt: u32) -> io::Result<()> {
        let head = match client {
            Client::Binary(server) => binary_head(&format!("server-{server}")),
            Client::Phone(phone) => phone_head(&format!("server-{}", phone / PHONES_EACH)),
        };
        let connection = driver.dial(self.port, head.as_bytes(), true)?;
        self.roles.insert(connection, client);
        self.dials.insert(client, attempt);
        Ok(())
    }

    fn handle(&mut self, driver: &mut Driver, connection: usize, event: &Event<'_>) {
        let Some(client) = self.roles.get(&connection).copied() else { return };
        match (client, event) {
            (Client::Binary(_), Event::Open) => {
                self.binaries_open += 1;
                if self.binaries_open == self.servers {
                    self.binaries_back = self.began.elapsed().as_secs_f64();
                }
            }
            (Client::Phone(_), Event::Open) => {
                let mut hello = Vec::new();
                push_frame(&mut hello, TEXT, &[b"\"", &[b'h'; 539], b"\""]);
                driver.send(connection, &hello);
            }
            (Client::Binary(_), Event::Text(frame)) => {
                let mut answer = Vec::new();
                let head = envelope_head(frame.plain());
                push_frame(&mut answer, TEXT, &[&head, b"\"", &[b'a'; 431], b"\"}"]);
                driver.send(connection, &answer);
            }
            (Client::Phone(_), Event::Text(_)) => {
                self.answered += 1;
                if self.answered == self.servers * PHONES_EACH {
                    self.done = Some(Instant::now());
                }
            }
            (_, Event::Gone(_)) => {
                self.refused += 1;
                let attempt = self.dials[&client] + 1;
                let pause = Duration::from_secs(1 << (attempt - 1).min(4));
                self.due.push(std::cmp::Reverse((Instant::now() + pause, client, attempt)));
            }
            (_, Event::Closed(_) | Event::Pong) => {}
        }
    }
}

const PHONES_EACH: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);
