//! Profile `hostile`: a healthy pair that exchanges a message every 5 ms, first alone, then beside
//! peers that mean no good: phones that never read while their binary sends them chunks, a binary
//! that names phones that do not exist, phones that send messages above the limit and dial again,
//! and a phone that pings and never reads. They run on a thread and a driver of their own.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::bench::{Bench, Cost, StopOnDrop};
use super::driver::{Driver, Event};
use super::fleet::{Fleet, phone_head};
use super::frames::{PING, TEXT, push_frame};
use super::target::Running;

pub fn run(bench: &mut Bench<'_>) -> io::Result<()> {
    let mut running = bench.start(&[])?;
    let mut driver = Driver::new()?;
    let mut fleet = Fleet::connect(&mut driver, &running, 1, 1)?;
    let time = Duration::from_secs(if bench.quick { 1 } else { 10 });

    let mut alone = exchange(&mut driver, &mut fleet, time)?;
    bench.record_latencies("healthy pair alone", &mut alone);

    // The same load on the machine, but on another relay: what is lost here, the relay did not
    // take.
    let other = bench.target.start(&[])?;
    let (mut elsewhere, ..) = disturbed(&running, &other, &mut driver, &mut fleet, time)?;
    bench.record_latencies("healthy pair, hostile peers elsewhere", &mut elsewhere);
    drop(other);

    let (mut beside, done, cost) = disturbed(&running, &running, &mut driver, &mut fleet, time)?;
    bench.record_latencies("healthy pair beside hostile peers", &mut beside);
    bench.record("CPU of a core", "%", cost.target_share() * 100.0);
    let seconds = cost.elapsed().as_secs_f64();
    for (what, count) in [
        ("chunks to phones that do not read", done.chunks),
        ("messages to unknown phones", done.unknown),
        ("messages above the limit", done.oversize),
        ("pings of a phone that does not read", done.pings),
    ] {
        bench.record(what, "1/s", f64::from(count) / seconds);
    }
    bench.record("stalled phones that were closed", "", f64::from(done.closed));
    let peak = super::process::resident_peak(running.pid());
    bench.record("highest resident", "MiB", peak / (1024.0 * 1024.0));
    running.check_alive()
}

/// [`exchange`] while hostile peers are at `attacked`.
fn disturbed(
    running: &Running,
    attacked: &Running,
    driver: &mut Driver,
    fleet: &mut Fleet,
    time: Duration,
) -> io::Result<(Vec<u64>, Done, Cost)> {
    let stop = AtomicBool::new(false);
    let (tell, ready) = std::sync::mpsc::channel();
    let cost = Cost::begin(running);
    let (latencies, done) = std::thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let hostile = scope.spawn(|| {
            let mut hostile = Hostile::prepare(attacked)?;
            let _ = tell.send(());
            hostile.run(attacked, &stop)
        });
        // If that failed, its result says why.
        let _ = ready.recv_timeout(Duration::from_secs(30));
        let latencies = exchange(driver, fleet, time);
        drop(stopping);
        (latencies, hostile.join().expect("the hostile peers do not panic"))
    });
    Ok((latencies?, done?, cost))
}

/// A message to and fro every few milliseconds; fails if one is lost.
fn exchange(driver: &mut Driver, fleet: &mut Fleet, time: Duration) -> io::Result<Vec<u64>> {
    let began = Instant::now();
    let mut latencies = Vec::new();
    let mut wire = Vec::new();
    let mut sequence = 0;
    while began.elapsed() < time {
        for to_phone in [false, true] {
            wire.clear();
            let from = if to_phone {
                fleet.push_to_phone(&mut wire, 0, sequence, driver.now(), SIZE);
                fleet.phones[0].binary
            } else {
                fleet.push_to_binary(&mut wire, 0, sequence, driver.now(), SIZE);
                fleet.phones[0].connection
            };
            driver.send(from, &wire);
            let arrived = Cell::new(false);
            driver.until(
                "a message of the healthy pair",
                Duration::from_secs(10),
                &mut |driver, connection, event| {
                    let Event::Text(frame) = event else { return };
                    let Some(stamp) = fleet.stamp(connection, &frame) else { return };
                    assert_eq!(stamp.sequence, sequence, "messages arrive once and in order");
                    latencies.push(driver.now() - stamp.sent);
                    arrived.set(true);
                },
                &mut |_| arrived.get(),
            )?;
            sequence += 1;
        }
        super::bench::rest(driver, EXCHANGE_PAUSE)?;
    }
    Ok(latencies)
}

struct Hostile {
    driver: Driver,
    /// A binary and the phones that do not read; others take their place once they are closed.
    fleet: Fleet,
    port: u16,
    unknown_binary: usize,
    pinging_phone: usize,
}

/// What they got to do.
#[derive(Clone, Copy, Default)]
struct Done {
    chunks: u32,
    unknown: u32,
    oversize: u32,
    pings: u32,
    closed: u32,
}

impl Hostile {
    fn prepare(running: &Running) -> io::Result<Self> {
        let mut driver = Driver::new()?;
        let fleet = Self::stalled(&mut driver, running, 0)?;
        let mut others = Fleet::new(running.upgrades);
        others.grow(&mut driver, running, "unknown", 1, 1)?;
        let (unknown_binary, pinging_phone) = (others.binaries[0], others.phones[0].connection);
        driver.stall(pinging_phone);
        Ok(Self { driver, fleet, port: running.port, unknown_binary, pinging_phone })
    }

    fn stalled(driver: &mut Driver, running: &Running, batch: u32) -> io::Result<Fleet> {
        let mut fleet = Fleet::new(running.upgrades);
        fleet.grow(driver, running, &format!("stalled{batch}"), 1, STALLED)?;
        fleet.introduce(driver)?;
        for phone in &fleet.phones {
            driver.stall(phone.connection);
        }
        Ok(fleet)
    }

    /// Every 10 ms some of everything, at rates that one thread of clients can keep up.
    fn run(&mut self, running: &Running, stop: &AtomicBool) -> io::Result<Done> {
        let mut done = Done::default();
        let mut wire = Vec::new();
        let mut oversize = Vec::new();
        push_frame(&mut oversize, TEXT, &[b"\"", &vec![b'x'; OVERSIZE_BYTES], b"\""]);
        let (mut round, mut batches) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            self.chunks(&mut wire, &mut done);
            self.unknown(&mut wire, &mut done);
            if self.driver.unsent(self.pinging_phone) < UNSENT_BYTES {
                wire.clear();
                (0..PINGS).for_each(|_| push_frame(&mut wire, PING, &[&[b'p'; 100]]));
                self.driver.send(self.pinging_phone, &wire);
                done.pings += PINGS;
            }
            round += 1;
            if round % OVERSIZE_EVERY == 0 {
                let mut head = phone_head("stalled0-0").into_bytes();
                head.extend_from_slice(&oversize);
                self.driver.dial(self.port, &head, true)?;
                done.oversize += 1;
            }
            while began.elapsed() < TICK {
                let left = TICK.saturating_sub(began.elapsed());
                let binary = self.fleet.binaries[0];
                self.driver.turn(left, &mut |_, connection, event| {
                    // All that the relay says to this binary are close notices.
                    done.closed +=
                        u32::from(connection == binary && matches!(event, Event::Text(_)));
                })?;
            }
            let batch = done.closed / STALLED_U32;
            if batch > batches {
                batches = batch;
                self.fleet = Self::stalled(&mut self.driver, running, batch)?;
            }
        }
        Ok(done)
    }

    fn chunks(&mut self, wire: &mut Vec<u8>, done: &mut Done) {
        let binary = self.fleet.binaries[0];
        for _ in 0..CHUNKS {
            if self.driver.unsent(binary) > UNSENT_BYTES {
                return;
            }
            let phone = done.chunks as usize % STALLED;
            wire.clear();
            self.fleet.push_to_phone(wire, phone, done.chunks, 0, CHUNK_BYTES);
            self.driver.send(binary, wire);
            done.chunks += 1;
        }
    }

    fn unknown(&mut self, wire: &mut Vec<u8>, done: &mut Done) {
        if self.driver.unsent(self.unknown_binary) > UNSENT_BYTES {
            return;
        }
        wire.clear();
        for _ in 0..UNKNOWN {
            let envelope =
                format!(r#"{{"conn_id":"client-unknown-0-{:016x}","frame":"x"}}"#, done.unknown);
            push_frame(wire, TEXT, &[envelope.as_bytes()]);
            done.unknown += 1;
        }
        self.driver.send(self.unknown_binary, wire);
    }
}

const SIZE: usize = 700;
const EXCHANGE_PAUSE: Duration = Duration::from_millis(5);
const TICK: Duration = Duration::from_millis(10);
const STALLED: usize = 4;
const STALLED_U32: u32 = 4;
/// Every tick: 16 MB a second to phones that do not read.
const CHUNKS: usize = 2;
const CHUNK_BYTES: usize = 80_500;
const UNKNOWN: usize = 20;
const PINGS: u32 = 20;
/// Ten a second.
const OVERSIZE_EVERY: u32 = 10;
const OVERSIZE_BYTES: usize = 300 * 1024;
const UNSENT_BYTES: usize = 256 * 1024;
