//! Profile `crowded`: what innocent bystanders wait beside loads that keep a relay busy: a quiet
//! pair, and somebody who asks for the health page. At the same time other bystanders watch a second
//! relay without that load: what these wait, the machine takes. At the full speed of the machine, and
//! with both relays slowed down to that of small boards.

use std::io;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::bench::{Bench, Cost, StopOnDrop, percentile};
use super::brake::Brake;
use super::bystander::{Bystanders, Waits};
use super::noise::{Done, Load, Noise};
use super::page::StatusPage;
use super::sheet::apart;
use super::target::Running;

pub fn run(bench: &mut Bench<'_>) -> io::Result<()> {
    for speed in SPEEDS {
        for (name, load) in LOADS {
            one(bench, &format!("{name}{}", speed.name), *load, speed)?;
        }
    }
    Ok(())
}

/// One load at one speed.
fn one(bench: &mut Bench<'_>, what: &str, load: Load, speed: &Speed) -> io::Result<()> {
    bench.progress(what);
    let time = match (bench.quick, speed.brake) {
        (false, _) => Duration::from_secs(5),
        (true, None) => Duration::from_secs(1),
        (true, Some(_)) => Duration::from_millis(300),
    };
    let (busy, calm) = (Site::start(bench)?, Site::start(bench)?);
    let bystanders = Bystanders::connect(&[&busy.running, &calm.running])?;
    let pids = [busy.running.pid(), calm.running.pid()];
    let stop = AtomicBool::new(false);
    let (tell, ready) = std::sync::mpsc::sync_channel(1);
    let (waits, done, cost) = std::thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let (relay, flag) = (&busy.running, &stop);
        // `tell` ends with the thread, whatever ends that.
        let noise = scope.spawn(move || {
            let noise = Noise::prepare(load, relay);
            let _ = tell.send(());
            noise?.run(flag)
        });
        // If that failed, its result says why.
        let _ = ready.recv();
        let cost = Cost::begin(&busy.running);
        let brake = speed.brake.map(|brake| scope.spawn(move || brake.hold(&pids, flag)));
        let waits = bystanders.watch(time);
        let cost = (cost.target_share(), cost.elapsed().as_secs_f64());
        drop(stopping);
        let held = brake.map(|brake| brake.join().expect("the brake does not panic"));
        let done = noise.join().expect("the noise does not panic");
        (waits.and_then(|waits| held.transpose().map(|held| (waits, held))), done, cost)
    });
    let done = done?;
    let (waits, held) = waits?;
    let (cpu, seconds) = cost;
    let name = bench.target.name.clone();
    for (site, waits, name) in [(&busy, &waits[0], name.clone()), (&calm, &waits[1], apart(&name))]
    {
        record_waits(bench, what, waits, &name);
        if let Some(turn) = site.page.longest_turn(time) {
            let (figure, milliseconds) =
                (format!("{what}: longest turn"), turn.as_secs_f64() * 1e3);
            bench.sheet.record(bench.profile, &name, &figure, "ms", milliseconds);
        }
    }
    record_load(bench, what, &done, seconds);
    bench.record(&format!("{what}: CPU of a core"), "%", cpu * 100.0);
    if let Some(share) = held {
        bench.record(&format!("{what}: allowed to run"), "%", share * 100.0);
    }
    Ok(())
}

fn record_waits(bench: &mut Bench<'_>, what: &str, waits: &Waits, target: &str) {
    for (who, waits) in [("quiet pair", &waits.messages), ("/healthz", &waits.health)] {
        let mut sorted = waits.clone();
        sorted.sort_unstable();
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("worst", 1.0)] {
            let milliseconds = percentile(&sorted, share) / 1e6;
            let figure = format!("{what}: {who} {name}");
            bench.sheet.record(bench.profile, target, &figure, "ms", milliseconds);
        }
    }
    if waits.unanswered > 0 {
        bench.sheet.warn(format!(
            "{}, {what}, {target}: {} of the bystanders' messages and requests in round {} were not \
             answered and count as long as they were waited for",
            bench.profile,
            waits.unanswered,
            bench.round + 1
        ));
    }
}

fn record_load(bench: &mut Bench<'_>, what: &str, done: &Done, seconds: f64) {
    bench.record(&format!("{what}: sent"), "MB/s", done.written as f64 / seconds / 1e6);
    if done.redials > 0 {
        let redials = f64::from(done.redials) / seconds;
        bench.record(&format!("{what}: closed and dialed again"), "1/s", redials);
    }
}

/// A relay with its status page.
struct Site {
    running: Running,
    page: StatusPage,
}

impl Site {
    fn start(bench: &Bench<'_>) -> io::Result<Self> {
        let page = StatusPage::at_a_free_port()?;
        let address = page.address();
        let options = ["--max-connections-per-ip", "64", "--metrics-listen", &address];
        Ok(Self { running: bench.target.start(&options)?, page })
    }
}

/// How fast both relays are.
struct Speed {
    name: &'static str,
    brake: Option<Brake>,
}

/// Short turns: what the brake itself adds to a latency is at most 7 ms at an eighth, 12 ms at a
/// twenty-fifth.
const SPEEDS: &[Speed] = &[
    Speed { name: FULL_SPEED, brake: None },
    Speed { name: EIGHTH, brake: Some(Brake { one_in: 8, run: Duration::from_millis(1) }) },
    Speed {
        name: TWENTY_FIFTH,
        brake: Some(Brake { one_in: 25, run: Duration::from_micros(500) }),
    },
];

const LOADS: &[(&str, Load)] = &[
    (ORDINARY[0], Load::Stream),
    (ORDINARY[1], Load::Pings { are_read: true }),
    (ORDINARY[2], Load::Pings { are_read: false }),
    (EMPTY_FRAGMENTS[0], Load::Fragments { bytes_a_second: Some(11 * 1024 * 1024) }),
    (EMPTY_FRAGMENTS[1], Load::Fragments { bytes_a_second: None }),
];

/// Loads whose frames say something.
pub const ORDINARY: &[&str] = &["stream", "pings", "pings unread"];
pub const EMPTY_FRAGMENTS: &[&str] = &["fragments 11 MiB/s", "fragments"];

pub const FULL_SPEED: &str = "";
pub const EIGHTH: &str = ", 1/8";
const TWENTY_FIFTH: &str = ", 1/25";
