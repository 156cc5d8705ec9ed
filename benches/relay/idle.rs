//! Profile `idle`: 100 binaries and 8,900 phones that only ping; resident memory as they come, at
//! 2 s, and after two rounds of pings from either side. Then what a thousand phones leave behind
//! that carried 64 KiB both ways, and wake-ups when nothing is due.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::time::{Duration, Instant};

use super::bench::{Bench, Cost, rest};
use super::driver::{Driver, Event};
use super::fleet::Fleet;
use super::frames::{PING, push_frame};
use super::process;

pub fn run(bench: &mut Bench<'_>) -> io::Result<()> {
    many(bench)?;
    after_large_messages(bench, false)?;
    after_large_messages(bench, true)?;
    when_nothing_is_due(bench)
}

/// 9,000 connections.
fn many(bench: &mut Bench<'_>) -> io::Result<()> {
    let (step_servers, phones_each, heartbeat) =
        if bench.quick { (1, 29, "1s") } else { (10, 89, "30s") };
    let options = ["--max-connections", "10000", "--max-phones", "100"];
    let running = bench.start(&[&options[..], &["--heartbeat-interval", heartbeat]].concat())?;
    let at_start = running.resident();
    bench.record("resident at start", "MiB", at_start / MIB);
    let mut driver = Driver::new()?;
    let mut fleet = Fleet::new(running.upgrades);
    let plot = |bench: &mut Bench<'_>, connections: usize| {
        // A curve of the first round, or it would turn back on itself.
        if bench.round == 0 {
            let point = (connections as f64, running.resident() / MIB);
            bench.sheet.plot(PLOT, &bench.target.name, point);
        }
    };
    plot(bench, 0);
    for step in 0..10 {
        fleet.grow(&mut driver, &running, &format!("step{step}"), step_servers, phones_each)?;
        let connections = fleet.phones.len() + fleet.binaries.len();
        plot(bench, connections);
        bench.progress(&format!("{connections} connections"));
    }
    let connections = (fleet.phones.len() + fleet.binaries.len()) as f64;
    let record = |bench: &mut Bench<'_>, when: &str, resident: f64| {
        let each = (resident - at_start) / connections;
        bench.record(&format!("a connection {when}"), "B", each);
        bench.record(&format!("resident {when}"), "MiB", resident / MIB);
    };
    rest(&mut driver, Duration::from_secs(2))?;
    record(bench, "at 2 s", running.resident());

    let round = Duration::from_secs(if bench.quick { 1 } else { 30 });
    bench.progress("two rounds of the clients' pings");
    let cost = Cost::begin(&running);
    pings(&mut driver, &fleet, round)?;
    bench.record("CPU of a core, clients ping", "%", cost.target_share() * 100.0);
    record(bench, "after two rounds of clients' pings", running.resident());

    bench.progress("two rounds of the relay's pings");
    let cost = Cost::begin(&running);
    // The last pings of the clients put off the relay's first ones.
    rest(&mut driver, round * 3)?;
    bench.record("CPU of a core, relay pings", "%", cost.target_share() * 100.0);
    record(bench, "after two rounds of relay's pings", running.resident());
    Ok(())
}

/// Phones ping every 20 to 30 s of a round of 30 s, binaries every 30 s, for two rounds.
fn pings(driver: &mut Driver, fleet: &Fleet, round: Duration) -> io::Result<()> {
    let mut random = fastrand::Rng::with_seed(4);
    let mut ping = Vec::new();
    push_frame(&mut ping, PING, &[b"idle"]);
    let began = Instant::now();
    let phones = fleet.phones.iter().map(|phone| phone.connection);
    let mut due: BinaryHeap<_> = phones
        .chain(fleet.binaries.iter().copied())
        .map(|connection| Reverse((round.mul_f64(random.f64()), connection)))
        .collect();
    while let Some(Reverse((at, connection))) = due.pop() {
        if at > round * 2 {
            break;
        }
        rest(driver, at.saturating_sub(began.elapsed()))?;
        driver.send(connection, &ping);
        let share = if fleet.is_phone(connection) { random.f64() / 3.0 } else { 0.0 };
        due.push(Reverse((at + round.mul_f64(1.0 - share), connection)));
    }
    Ok(())
}

/// What stays of large messages, one connection after the other; with `together` all of them have
/// carried a small one before, so that their buffers stood side by side in memory.
fn after_large_messages(bench: &mut Bench<'_>, together: bool) -> io::Result<()> {
    let (servers, phones_each) = if bench.quick { (2, 20) } else { (10, 100) };
    let options = ["--max-connections", "2000", "--max-phones", "100"];
    let running = bench.start(&options)?;
    let at_start = running.resident();
    let mut driver = Driver::new()?;
    let mut fleet = Fleet::new(running.upgrades);
    fleet.grow(&mut driver, &running, "large", servers, phones_each)?;
    let connections = (fleet.phones.len() + fleet.binaries.len()) as f64;
    let record = |bench: &mut Bench<'_>, when: &str| {
        let each = (running.resident() - at_start) / connections;
        bench.record(&format!("a connection {when}"), "B", each);
    };
    let what = if together { "64 B, then 64 KiB both ways" } else { "64 KiB both ways" };
    if together {
        fleet.introduce(&mut driver)?;
        record(bench, "just after 64 B to the binary");
    }
    let mut wire = Vec::new();
    for phone in 0..fleet.phones.len() {
        fleet.speak(&mut driver, phone..phone + 1, LARGE_BYTES)?;
        wire.clear();
        fleet.push_to_phone(&mut wire, phone, 0, driver.now(), LARGE_BYTES);
        driver.send(fleet.phones[phone].binary, &wire);
        let arrived = Cell::new(false);
        driver.until(
            "a large message to a phone",
            Duration::from_secs(30),
            &mut |_, _, event| arrived.set(arrived.get() || matches!(event, Event::Text(_))),
            &mut |_| arrived.get(),
        )?;
    }
    record(bench, &format!("just after {what}"));
    bench.progress("10 s of rest after 64 KiB both ways");
    rest(&mut driver, Duration::from_secs(if bench.quick { 1 } else { 10 }))?;
    record(bench, &format!("10 s after {what}"));
    Ok(())
}

/// A few connections, long before any heartbeat.
fn when_nothing_is_due(bench: &mut Bench<'_>) -> io::Result<()> {
    let running = bench.start(&[])?;
    let mut driver = Driver::new()?;
    let _fleet = Fleet::connect(&mut driver, &running, 2, 2)?;
    rest(&mut driver, Duration::from_secs(1))?;
    let before = process::wakeups(running.pid());
    let time = Duration::from_secs(if bench.quick { 1 } else { 10 });
    rest(&mut driver, time)?;
    bench.record("wake-ups in 10 s with nothing due", "", process::wakeups(running.pid()) - before);
    Ok(())
}

/// The plot of memory against connections.
pub const PLOT: &str = "resident";

const MIB: f64 = 1024.0 * 1024.0;
const LARGE_BYTES: usize = 64 * 1024;
