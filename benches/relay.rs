//! The benchmark: starts a relay as a process of its own, drives it over loopback, and reads what
//! it used from `/proc`. `docs/performance.md` says how to read the figures.
//!
//!     cargo bench                          # all profiles
//!     cargo bench -- frame steady          # some of them
//!     cargo bench -- siege                 # attacks, and what they do to others
//!     cargo bench -- soak --minutes 30     # what grows in half an hour
//!     cargo bench -- --relay '/usr/bin/other-relay --listen 127.0.0.1:{port}'

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic ends the benchmark, which is all it could do")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a terminal program")]
#![allow(unreachable_pub, reason = "nothing outside could reach a program's items")]
#![allow(missing_docs, reason = "names say it, and nobody else calls it")]

mod relay {
    pub mod arguments;
    pub mod attacks;
    pub mod bench;
    pub mod brake;
    pub mod bystander;
    pub mod crew;
    pub mod crowded;
    pub mod driver;
    pub mod evict;
    pub mod feeders;
    pub mod file;
    pub mod fleet;
    pub mod floor;
    pub mod frame;
    pub mod frames;
    pub mod goals;
    pub mod hostile;
    pub mod idle;
    pub mod neighbours;
    pub mod newcomers;
    pub mod noise;
    pub mod opening;
    pub mod page;
    pub mod plot;
    pub mod process;
    pub mod profiles;
    pub mod sheet;
    pub mod siege;
    pub mod soak;
    pub mod steady;
    pub mod storm;
    pub mod surge;
    pub mod target;
    #[cfg(feature = "tls")]
    pub mod tls;
    pub mod upgrade;
}

use std::io;
use std::path::Path;
use std::process::ExitCode;

use self::relay::arguments::Arguments;
use self::relay::bench::Bench;
use self::relay::floor;
use self::relay::goals;
use self::relay::idle;
use self::relay::plot::Plot;
use self::relay::process;
use self::relay::profiles::Profile;
use self::relay::sheet::Sheet;
use self::relay::soak;
use self::relay::target::Target;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let done = match (words.next().as_deref(), words.next()) {
        (Some(floor::ARGUMENT), Some(port)) => floor::serve(port.parse().unwrap()),
        _ => Arguments::from_process().and_then(|arguments| run(&arguments)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    // As many clients as the load needs.
    let descriptors = rlimit::increase_nofile_limit(u64::MAX)?;
    if let Some(time) = arguments.soak {
        let report = soak::run(time)?;
        println!("machine: {}\n{report}", machine());
        return Ok(());
    }
    let mut targets = vec![Target::relay(), Target::floor()];
    for (place, command) in arguments.relays.iter().enumerate() {
        targets.push(Target::command(format!("other-{}", place + 1), command.clone()));
    }
    if arguments.pin {
        process::pin_to_first_core()?;
        targets.iter_mut().for_each(|target| target.pinned = true);
    }
    let mut sheet = Sheet::default();
    if descriptors < relay::profiles::DESCRIPTORS {
        sheet.warn(format!("{descriptors} descriptors are too few for the largest profiles"));
    }
    // What was measured before an error is reported all the same.
    let done = arguments
        .profiles
        .iter()
        .try_for_each(|profile| run_profile(arguments, profile, &targets, &mut sheet));
    if let Some(bytes) = targets[0].program_bytes() {
        sheet.record("program", &targets[0].name, "size", "KiB", bytes / 1024.0);
    }
    println!("machine: {}", machine());
    println!("{}", sheet.table());
    println!("{}", goals::table(&sheet));
    if let Some(folder) = &arguments.plots {
        draw(folder, &sheet)?;
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, format!("{:#}\n", sheet.json(&machine(), goals::json(&sheet))))?;
    }
    done
}

/// A B A B: every target in every round, so that a disturbance hits neighbours alike.
fn run_profile(
    arguments: &Arguments,
    profile: &Profile,
    targets: &[Target],
    sheet: &mut Sheet,
) -> io::Result<()> {
    let rounds = if arguments.quick { 1 } else { arguments.rounds.unwrap_or(profile.rounds) };
    for round in 0..rounds {
        for target in targets.iter().filter(|target| profile.has_floor || !target.is_floor()) {
            eprintln!("{}, {}: round {} of {rounds}", profile.name, target.name, round + 1);
            let (name, quick) = (profile.name, arguments.quick);
            (profile.run)(&mut Bench { profile: name, target, sheet, round, quick })
                .map_err(|error| io::Error::other(format!("{name}, {}: {error}", target.name)))?;
        }
    }
    Ok(())
}

/// The plots of the profiles that were run.
fn draw(folder: &Path, sheet: &Sheet) -> io::Result<()> {
    let memory = Plot {
        title: "Resident memory against connections",
        x_axis: "connections",
        y_axis: "MiB",
        logarithmic: false,
    };
    let latency = Plot {
        title: "Latency against load, 500 servers with two phones each",
        x_axis: "messages a second",
        y_axis: "microseconds, with the benchmark's own client",
        logarithmic: true,
    };
    let named = |plots: &[&str]| -> Vec<_> {
        let curves = plots.iter().flat_map(|plot| sheet.curves(plot));
        curves.map(|curve| (format!("{}: {}", curve.target, curve.plot), curve)).collect()
    };
    for (file, plot, curves) in [
        ("memory.svg", memory, named(&[idle::PLOT])),
        ("latency.svg", latency, named(&["latency p50", "latency p99"])),
    ] {
        if let Some(svg) = plot.draw(&curves) {
            std::fs::write(folder.join(file), svg)?;
        }
    }
    Ok(())
}

/// What the figures were measured on.
fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    // Not what this process may use: it may have kept itself to one.
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{model}, {cores} cores, Linux {}, load average {load} at the end", kernel.trim())
}
