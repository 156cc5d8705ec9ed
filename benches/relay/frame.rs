//! Profile `frame`: one binary, one phone, messages of 700 bytes; one at a time, and in a stream
//! that arrives faster than one a wake-up. System calls a frame by `strace -c` in a pass of its own.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use super::bench::{Bench, Cost};
use super::driver::{Driver, Event};
use super::fleet::Fleet;
use super::process::Trace;

/// Which way messages go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    ToBinary,
    ToPhone,
}

/// How many messages are on their way at once, and how many leave in one write.
#[derive(Clone, Copy, Debug)]
struct Pace {
    name: &'static str,
    window: u32,
    batch: u32,
}

pub fn run(bench: &mut Bench<'_>) -> io::Result<()> {
    let running = bench.start(&[])?;
    let mut driver = Driver::new()?;
    let mut fleet = Fleet::connect(&mut driver, &running, 1, 1)?;
    // A binary that answers no ping is asked for no further proof of what it has read.
    let ways = [
        (Way::ToBinary, "to binary", true),
        (Way::ToPhone, "to phone", true),
        (Way::ToBinary, "to binary without proofs", false),
    ];
    for (way, heading, answers) in ways {
        driver.answers_pings = answers;
        for (pace, frames) in [(SINGLE, 20_000), (STREAM, 200_000)] {
            let frames = if bench.quick { frames / 20 } else { frames };
            let what = format!("{heading}, {}", pace.name);
            let mut latencies = Vec::with_capacity(frames as usize);
            // Buffers and caches as in the middle of a long run.
            pass(&mut driver, &mut fleet, way, pace, frames / 20, &mut latencies)?;
            latencies.clear();
            let cost = Cost::begin(&running);
            pass(&mut driver, &mut fleet, way, pace, frames, &mut latencies)?;
            let bytes = u64::from(frames) * SIZE as u64;
            bench.record_cost(&what, &cost, u64::from(frames), bytes);
            if pace.window == 1 {
                bench.record_latencies(&format!("{what}: latency"), &mut latencies);
            }
            if bench.round > 0 {
                continue;
            }
            let Some(trace) = Trace::attach(running.pid()) else {
                bench.sheet.warn("no strace here, or no permission for it".to_owned());
                continue;
            };
            let frames = if bench.quick { 200 } else { 4000 };
            pass(&mut driver, &mut fleet, way, pace, frames, &mut latencies)?;
            let calls = trace.finish()?;
            let all: f64 = calls.values().sum();
            bench.record(&format!("{what}: system calls a frame"), "", all / f64::from(frames));
            for (name, count) in calls {
                let each = count / f64::from(frames);
                if each >= 0.01 {
                    bench.record(&format!("{what}: {name} a frame"), "", each);
                }
            }
        }
    }
    Ok(())
}

/// Sends `frames` messages one way and waits for the last; none may be lost or out of order.
fn pass(
    driver: &mut Driver,
    fleet: &mut Fleet,
    way: Way,
    pace: Pace,
    frames: u32,
    latencies: &mut Vec<u64>,
) -> io::Result<()> {
    let received = Cell::new(0);
    let mut sent = 0;
    let mut wire = Vec::new();
    let mut send = |driver: &mut Driver, fleet: &mut Fleet| {
        while sent < frames && sent - received.get() + pace.batch <= pace.window {
            wire.clear();
            let now = driver.now();
            for sequence in sent..(sent + pace.batch).min(frames) {
                push(fleet, &mut wire, way, sequence, now);
            }
            sent = (sent + pace.batch).min(frames);
            driver.send(from(fleet, way), &wire);
        }
    };
    send(driver, fleet);
    driver.until(
        "all messages of a pass",
        Duration::from_secs(120),
        &mut |driver, connection, event| {
            let Event::Text(frame) = event else { return };
            let Some(stamp) = fleet.stamp(connection, &frame) else { return };
            assert_eq!(stamp.sequence, received.get(), "messages arrive in order");
            received.set(received.get() + 1);
            latencies.push(driver.now() - stamp.sent);
            send(driver, fleet);
        },
        &mut |_| received.get() == frames,
    )
}

fn push(fleet: &mut Fleet, wire: &mut Vec<u8>, way: Way, sequence: u32, now: u64) {
    match way {
        Way::ToBinary => fleet.push_to_binary(wire, 0, sequence, now, SIZE),
        Way::ToPhone => fleet.push_to_phone(wire, 0, sequence, now, SIZE),
    }
}

fn from(fleet: &Fleet, way: Way) -> usize {
    match way {
        Way::ToBinary => fleet.phones[0].connection,
        Way::ToPhone => fleet.phones[0].binary,
    }
}

const SIZE: usize = 700;
const SINGLE: Pace = Pace { name: "one at a time", window: 1, batch: 1 };
const STREAM: Pace = Pace { name: "stream", window: 256, batch: 32 };
