//! Profile `file`: 373 messages of 80.5 KB back to back to a phone, then as many to the binary,
//! while a sibling of that phone is sent some as well and reads them slowly.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use super::bench::{Bench, Cost};
use super::driver::{Driver, Event};
use super::fleet::Fleet;
use super::frame::Way;

pub fn run(bench: &mut Bench<'_>) -> io::Result<()> {
    let running = bench.start(&[])?;
    let mut driver = Driver::new()?;
    let mut fleet = Fleet::connect(&mut driver, &running, 1, 2)?;
    driver.stall(fleet.phones[SLOW].connection);
    let files = if bench.quick { 1 } else { 10 };
    let bytes = (CHUNKS * CHUNK_BYTES * files) as u64;
    let mut seconds = 0.0;
    for (way, what) in [(Way::ToPhone, "to phone"), (Way::ToBinary, "to binary")] {
        let cost = Cost::begin(&running);
        for _ in 0..files {
            carry(&mut driver, &mut fleet, way)?;
        }
        seconds += cost.elapsed().as_secs_f64();
        bench.record_cost(what, &cost, (CHUNKS * files) as u64, bytes);
    }
    bench.record("both ways: bytes", "MB/s", 2.0 * bytes as f64 / seconds / 1e6);
    Ok(())
}

/// One file one way.
fn carry(driver: &mut Driver, fleet: &mut Fleet, way: Way) -> io::Result<()> {
    let arrived = Cell::new(0);
    let mut sent = 0;
    let mut wire = Vec::new();
    let mut sipped = Instant::now();
    let deadline = Instant::now() + Duration::from_secs(60);
    let from = match way {
        Way::ToPhone => fleet.phones[FAST].binary,
        Way::ToBinary => fleet.phones[FAST].connection,
    };
    while arrived.get() < CHUNKS {
        while sent < CHUNKS && driver.unsent(from) < UNSENT_BYTES {
            wire.clear();
            let sequence = u32::try_from(sent).unwrap();
            let now = driver.now();
            match way {
                Way::ToPhone => {
                    fleet.push_to_phone(&mut wire, FAST, sequence, now, CHUNK_BYTES);
                }
                Way::ToBinary => {
                    fleet.push_to_binary(&mut wire, FAST, sequence, now, CHUNK_BYTES);
                }
            }
            driver.send(from, &wire);
            sent += 1;
            if sent % SIBLING_SHARE == 0 {
                wire.clear();
                fleet.push_to_phone(&mut wire, SLOW, 0, now, CHUNK_BYTES);
                driver.send(fleet.phones[SLOW].binary, &wire);
            }
        }
        driver.turn(Duration::from_millis(5), &mut |_, connection, event| {
            let Event::Text(frame) = event else { return };
            let Some(stamp) = fleet.stamp(connection, &frame) else { return };
            if stamp.phone as usize == FAST {
                assert_eq!(stamp.sequence as usize, arrived.get(), "chunks arrive in order");
                arrived.set(arrived.get() + 1);
            }
        })?;
        if sipped.elapsed() >= SIP_PAUSE {
            sipped = Instant::now();
            driver.sip(fleet.phones[SLOW].connection, SIP_BYTES);
        }
        if Instant::now() > deadline {
            return Err(io::Error::other("the file is not through"));
        }
    }
    Ok(())
}

const FAST: usize = 0;
const SLOW: usize = 1;
const CHUNKS: usize = 373;
const CHUNK_BYTES: usize = 80_500;
/// Every so many chunks one goes to the sibling as well: 1.5 MB a file, less than it is allowed to
/// have queued.
const SIBLING_SHARE: usize = 20;
const SIP_PAUSE: Duration = Duration::from_millis(10);
const SIP_BYTES: usize = 16 * 1024;
const UNSENT_BYTES: usize = 256 * 1024;
