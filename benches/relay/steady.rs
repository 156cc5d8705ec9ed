//! Profile `steady`: 500 servers with two phones each; every phone is sent four deltas a second of
//! 400 to 1700 bytes and sends a tool frame of 700 bytes each second. Messages come at random
//! times, as they do from people. A sweep over the load gives the plot of latency.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::{Duration, Instant};

use super::bench::{Bench, Cost, PERCENTILES, percentile};
use super::driver::{Driver, Event};
use super::fleet::Fleet;

pub fn run(bench: &mut Bench<'_>) -> io::Result<()> {
    let running = bench.start(&["--max-connections", "4096"])?;
    let mut driver = Driver::new()?;
    let servers = if bench.quick { 20 } else { 500 };
    let mut fleet = Fleet::connect(&mut driver, &running, servers, 2)?;
    let rate = fleet.phones.len() as f64 * MESSAGES_A_SECOND;
    let time = Duration::from_secs(if bench.quick { 1 } else { 10 });

    let mut direct = direct(fleet.phones.len(), rate, time)?;
    let cost = Cost::begin(&running);
    let mut load = carry(&mut driver, &mut fleet, rate, time)?;
    bench.record_cost("load", &cost, load.messages, load.bytes);
    bench.record_latencies("latency without a relay", &mut direct.latencies);
    bench.record_latencies("latency", &mut load.latencies);
    for (name, share) in PERCENTILES {
        let added = percentile(&load.latencies, share) - percentile(&direct.latencies, share);
        bench.record(&format!("added latency {name}"), "us", added / 1e3);
    }
    bench.record("CPU of a core", "%", cost.target_share() * 100.0);

    // As rarely as 9,000 idle connections are pinged: nearly every message finds the processor
    // asleep, which costs more than the message.
    let cost = Cost::begin(&running);
    let trickle = carry(&mut driver, &mut fleet, TRICKLE, time / 2)?;
    bench.record_cost("trickle", &cost, trickle.messages, trickle.bytes);

    if bench.round > 0 || bench.quick {
        return Ok(());
    }
    for rate in SWEEP {
        bench.progress(&format!("{rate} messages a second"));
        let cost = Cost::begin(&running);
        let mut load = carry(&mut driver, &mut fleet, rate, Duration::from_secs(4))?;
        bench.check_driver(&format!("{rate} a second"), &cost);
        load.latencies.sort_unstable();
        let name = &bench.target.name;
        for (plot, share) in [("latency p50", 0.5), ("latency p99", 0.99)] {
            let microseconds = percentile(&load.latencies, share) / 1e3;
            bench.sheet.plot(plot, name, (rate, microseconds));
        }
    }
    Ok(())
}

/// The same load between the two ends of one connection: what the client itself takes.
fn direct(phones: usize, rate: f64, time: Duration) -> io::Result<Load> {
    let mut driver = Driver::new()?;
    let mut fleet = Fleet::direct(&mut driver, phones)?;
    carry(&mut driver, &mut fleet, rate, time / 2)
}

/// What was carried.
pub struct Load {
    messages: u64,
    bytes: u64,
    /// In nanoseconds.
    pub latencies: Vec<u64>,
}

/// Carries `rate` messages a second, in random order and at random times, and waits for the last.
pub fn carry(
    driver: &mut Driver,
    fleet: &mut Fleet,
    rate: f64,
    time: Duration,
) -> io::Result<Load> {
    let mut random = fastrand::Rng::with_seed(4);
    let mut load = Load { messages: 0, bytes: 0, latencies: Vec::new() };
    let mut wire = Vec::new();
    let fleet = RefCell::new(fleet);
    let latencies = RefCell::new(&mut load.latencies);
    let arrived = Cell::new(0);
    let mut receive = |driver: &mut Driver, connection: usize, event: Event<'_>| {
        let Event::Text(frame) = event else { return };
        let Some(stamp) = fleet.borrow().stamp(connection, &frame) else { return };
        latencies.borrow_mut().push(driver.now() - stamp.sent);
        arrived.set(arrived.get() + 1);
    };
    let began = Instant::now();
    let mut due = Duration::ZERO;
    while due < time {
        let elapsed = began.elapsed();
        if elapsed < due || load.messages % 32 == 31 {
            // Late or not, what has arrived is read now and then.
            driver.turn(due.saturating_sub(elapsed), &mut receive)?;
        }
        if began.elapsed() < due {
            continue;
        }
        // Gaps of a Poisson process.
        due += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / rate);
        let mut fleet = fleet.borrow_mut();
        let phone = random.usize(..fleet.phones.len());
        wire.clear();
        let (from, size) = if random.u8(..5) == 0 {
            fleet.push_to_binary(&mut wire, phone, 0, driver.now(), TOOL_BYTES);
            (fleet.phones[phone].connection, TOOL_BYTES)
        } else {
            let size = random.usize(DELTA_BYTES);
            fleet.push_to_phone(&mut wire, phone, 0, driver.now(), size);
            (fleet.phones[phone].binary, size)
        };
        drop(fleet);
        driver.send(from, &wire);
        load.messages += 1;
        load.bytes += size as u64;
    }
    let patience = Duration::from_secs(30);
    driver.until("the last message", patience, &mut receive, &mut |_| {
        arrived.get() == load.messages
    })?;
    Ok(load)
}

const MESSAGES_A_SECOND: f64 = 5.0;
const TRICKLE: f64 = 360.0;
const DELTA_BYTES: std::ops::RangeInclusive<usize> = 400..=1700;
const TOOL_BYTES: usize = 700;
const SWEEP: [f64; 6] = [1_000.0, 2_500.0, 5_000.0, 10_000.0, 20_000.0, 40_000.0];
