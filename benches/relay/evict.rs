//! Profile `evict`: 4,000 connections of many addresses hold something each, so that the budget is
//! nearly used up, and another address makes the relay close one of the largest 1,000 times. How
//! long the longest turn of the event loop is.

use std::cell::Cell;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::bench::Bench;
use super::crew::{Crew, Notice, Reads};
use super::fleet::{binary_head, phone_head};
use super::frames::{Header, TEXT};
use super::page::StatusPage;

pub fn run(bench: &mut Bench<'_>) -> io::Result<()> {
    let (holders, evictions, budget) =
        if bench.quick { (400, 100, "8MiB") } else { (4000, 1000, "64MiB") };
    let page = StatusPage::at_a_free_port()?;
    let mut running = bench.target.start_guarded(&[
        "--rate-limit",
        "off",
        "--max-connections",
        "4700",
        "--message-timeout",
        "10min",
        "--memory-budget",
        budget,
        // The budget must hold one; nobody here has any.
        "--max-queue-bytes",
        "4MiB",
        "--metrics-listen",
        &page.address(),
    ])?;
    let mut crew = Crew::new(running.port)?;
    hold(&mut crew, holders)?;
    let Some(before) = page.longest_turn(PATIENCE) else { return Ok(()) };
    let held = held(page);
    let cpu = running.cpu();
    let closed = force(&mut crew, evictions)?;
    let spent = cpu.spent();
    let after = page.longest_turn(PATIENCE).unwrap_or(PATIENCE);
    running.check_alive()?;
    bench.record("held before", "MiB", held / (1024.0 * 1024.0));
    bench.record("evictions", "", f64::from(closed));
    bench.record("CPU an eviction", "us", spent.as_secs_f64() * 1e6 / f64::from(closed.max(1)));
    bench.record("longest turn before the evictions", "ms", before.as_secs_f64() * 1e3);
    bench.record(LONGEST_TURN, "ms", after.as_secs_f64() * 1e3);
    if closed < evictions {
        let (profile, seconds) = (bench.profile, PATIENCE.as_secs());
        bench.sheet.warn(format!("{profile}: {closed} of {evictions} evictions in {seconds} s"));
    }
    Ok(())
}

/// Binaries and phones of many addresses that have sent a part of a message each.
fn hold(crew: &mut Crew, holders: usize) -> io::Result<()> {
    let mut begun = Header { first: FINAL | TEXT, length: ANNOUNCED, mask: Some(MASK) }.encode();
    begun.resize(begun.len() + HELD_EACH, b'x');
    let deadline = Instant::now() + PATIENCE;
    let opened = Cell::new(0);
    let mut sent = vec![false; holders];
    for place in 0..holders {
        let source = Ipv4Addr::new(127, 0, 4, u8::try_from(1 + place / HOLDERS_EACH).unwrap());
        crew.add(source, head("holder", place), Reads::All, Duration::ZERO);
        // A relay keeps few request heads.
        while place + 1 > opened.get() + IN_PROGRESS || place + 1 == holders {
            for (place, sent) in sent.iter_mut().enumerate().take(crew.size()) {
                if !*sent && crew.is_free(place) {
                    crew.send(place, &begun);
                    *sent = true;
                }
            }
            if sent.iter().all(|sent| *sent) && (0..holders).all(|place| crew.is_free(place)) {
                break;
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("the holders are not let in"));
            }
            crew.turn(IDLE, &mut |_, place, notice| match notice {
                Notice::Open => opened.set(opened.get() + 1),
                // A phone that was faster than its binary dials again.
                Notice::Lost => sent[place] = false,
                Notice::Text(_) => {}
            })?;
        }
    }
    Ok(())
}

/// Phones of another address send large parts of messages until this many connections, its own or others',
/// have been closed for the budget.
fn force(crew: &mut Crew, evictions: u32) -> io::Result<u32> {
    let mut begun = Header { first: FINAL | TEXT, length: ANNOUNCED, mask: Some(MASK) }.encode();
    begun.resize(begun.len() + FORCED_EACH, b'x');
    let first = crew.size();
    for number in 0..FORCING {
        let delay = if number % GROUP == 0 { Duration::ZERO } else { PHONES_AFTER };
        crew.add(FORCING_SOURCE, head("forcing", number), Reads::All, delay);
    }
    let mut sent = [false; FORCING];
    let closed_before = crew.done.closed;
    let deadline = Instant::now() + PATIENCE;
    while crew.done.closed - closed_before < evictions && Instant::now() < deadline {
        for (number, sent) in sent.iter_mut().enumerate() {
            if !*sent && number % GROUP != 0 && crew.is_free(first + number) {
                crew.send(first + number, &begun);
                *sent = true;
            }
        }
        crew.turn(IDLE, &mut |_, place, notice| {
            let lost = matches!(notice, Notice::Lost);
            if let Some(sent) = place.checked_sub(first).map(|number| &mut sent[number]) {
                *sent = *sent && !lost;
            }
        })?;
    }
    Ok(crew.done.closed - closed_before)
}

/// One binary, then its phones, and so on.
fn head(name: &str, place: usize) -> Vec<u8> {
    let server = format!("{name}-{}", place / GROUP);
    let head = if place % GROUP == 0 { binary_head(&server) } else { phone_head(&server) };
    head.into_bytes()
}

fn held(page: StatusPage) -> f64 {
    let page = page.ask(PATIENCE).unwrap_or_default();
    page["memory"]["held_bytes"].as_f64().unwrap_or(f64::NAN)
}

/// The figure that a goal is about.
pub const LONGEST_TURN: &str = "longest turn";

const FINAL: u8 = 0x80;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const ANNOUNCED: u64 = 255 * 1024;
/// What an address may have by default.
const HOLDERS_EACH: usize = 64;
/// Times 4,000 this is nearly the budget.
const HELD_EACH: usize = 15 * 1024;
/// A binary with as many phones as it may have, less one.
const GROUP: usize = 16;
const FORCING: usize = 64;
const FORCING_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 5, 1);
const FORCED_EACH: usize = 200_000;
const IN_PROGRESS: usize = 50;
const PHONES_AFTER: Duration = Duration::from_millis(200);
const IDLE: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(30);
