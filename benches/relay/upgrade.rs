//! Profile `upgrade`: what messages wait while the program hands 1,000 and 9,000 connections over to its own file,
//! beside the same messages without an upgrade.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::bench::{Bench, percentile};
use super::driver::Driver;
use super::fleet::Fleet;
use super::steady::carry;
use super::target::Running;

pub fn run(bench: &mut Bench<'_>) -> io::Result<()> {
    let sizes: &[usize] = if bench.quick { &[60] } else { &[1_000, 9_000] };
    sizes.iter().try_for_each(|connections| hand_over(bench, *connections))
}

fn hand_over(bench: &mut Bench<'_>, connections: usize) -> io::Result<()> {
    let options = ["--max-connections", "10000", "--max-phones", "100"];
    let running = bench.start(&options)?;
    if !catches_the_signal(&running)? {
        bench.progress("this program cannot hand over");
        return Ok(());
    }
    let mut driver = Driver::new()?;
    let (phones_each, rate) = (9, if bench.quick { 200.0 } else { 2_000.0 });
    let servers = connections / (phones_each + 1);
    let mut fleet = Fleet::connect(&mut driver, &running, servers, phones_each)?;
    let time = Duration::from_secs(if bench.quick { 1 } else { 4 });
    let mut without = carry(&mut driver, &mut fleet, rate, time)?.latencies;
    bench.progress(&format!("an upgrade under {connections} connections"));
    let pid = i32::try_from(running.pid()).ok().and_then(Pid::from_raw);
    let pid = pid.expect("a process has a number");
    let signaller = std::thread::spawn(move || {
        std::thread::sleep(time / 4);
        kill_process(pid, Signal::USR2)
    });
    let mut with = carry(&mut driver, &mut fleet, rate, time)?.latencies;
    signaller.join().expect("the thread only sends a signal")?;
    let until = Instant::now() + Duration::from_secs(10);
    while !has_upgraded(&running)? {
        if Instant::now() > until {
            return Err(io::Error::other("the program did not hand over"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    without.sort_unstable();
    with.sort_unstable();
    for (figure, share) in [("p99", 0.99), ("p99.9", 0.999), ("longest", 1.0)] {
        for (what, latencies) in [("", &with), (" without an upgrade", &without)] {
            let figure = format!("{figure} wait, {connections} connections{what}");
            bench.record(&figure, "ms", percentile(latencies, share) / 1e6);
        }
    }
    Ok(())
}

/// Whether the signal would not end the program.
fn catches_the_signal(running: &Running) -> io::Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid()))?;
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    Ok(caught.is_some_and(|mask| mask & (1 << (Signal::USR2.as_raw() - 1)) != 0))
}

/// Whether the process has become another program once.
fn has_upgraded(running: &Running) -> io::Result<bool> {
    let environment = std::fs::read(format!("/proc/{}/environ", running.pid()))?;
    let counts = environment.split(|byte| *byte == 0);
    Ok(counts.into_iter().any(|variable| variable.starts_with(b"PYRYCODE_RELAY_UPGRADES=")))
}
