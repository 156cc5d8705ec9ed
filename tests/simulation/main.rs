//! The whole relay, simulated: its real code on its real executor, with clock, randomness and network under
//! the control of a seed. `docs/simulation.md` says how to run it, to replay a failure, to add to it.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![allow(clippy::panic, reason = "in a test a panic is the report")]
#![allow(clippy::print_stdout, reason = "the seed and the figures")]
#![allow(unreachable_pub, reason = "nothing outside could reach a test program's items")]
#![allow(missing_docs, reason = "names say it, and nobody else calls it")]

#[path = "../actors/mod.rs"]
mod actors;
mod claims;
mod close;
mod events;
mod grace;
mod household;
mod network;
mod plan;
mod queues;
mod rig;
mod run;
mod sessions;
mod stop;
mod timeouts;
mod verdicts;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use self::actors::setting;
use self::household::Habits;
use self::plan::Plan;
use self::run::{Outcome, run};

/// Worlds of many seeds, on all cores.
#[test]
fn mixed_worlds_keep_the_contract() {
    if let Ok(text) = std::env::var("RELAY_SIMULATION_PLAN") {
        let plan = text.parse().unwrap_or_else(|error| panic!("RELAY_SIMULATION_PLAN: {error}"));
        let outcome = run(&plan).unwrap_or_else(|wrong| panic!("{plan}: {wrong}"));
        return println!("simulation: {plan}: {outcome}");
    }
    let first: u64 = setting("RELAY_SIMULATION_SEED", 1);
    let seeds: u64 = setting("RELAY_SIMULATION_SEEDS", 15);
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let all = Mutex::new(Outcome::default());
    let failed = std::thread::scope(|scope| {
        let work = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + seeds {
                    return None;
                }
                let plan = Plan::draw(seed);
                match run(&plan) {
                    Ok(outcome) => all.lock().unwrap().add(&outcome),
                    Err(_) => {
                        next.store(first + seeds, Ordering::Relaxed);
                        return Some(plan);
                    }
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let found = workers.into_iter().filter_map(|worker| worker.join().unwrap());
        found.min_by_key(|plan| plan.seed)
    });
    if let Some(plan) = failed {
        let seed = plan.seed;
        let (small, wrong) = plan::shrink(plan);
        panic!(
            "seed {seed}: {wrong}\n\nShow it again, with less in it:\n\n    \
             RELAY_SIMULATION_PLAN='{small}' cargo test --test simulation mixed -- --nocapture\n"
        );
    }
    println!("simulation: {seeds} seeds from {first}: {}", all.lock().unwrap());
}

#[test]
fn a_seed_decides_everything() {
    for seed in 1..=setting("RELAY_SIMULATION_TWICE", 2) {
        let plan = Plan::draw(seed);
        let [one, other] = [run(&plan), run(&plan)].map(|outcome| outcome.unwrap());
        assert_eq!(one, other, "{plan}");
    }
}

/// Timers wrap after 24.9 or 49.7 days where milliseconds are counted in 32 bits: CI runs a year.
#[test]
fn a_household_lives_for_months() {
    let days = setting("RELAY_SIMULATION_DAYS", 1);
    let seed = setting("RELAY_SIMULATION_SEED", 1);
    for is_quiet in [true, false] {
        let begun = Instant::now();
        let figures = household::live(Habits { seed, days, is_quiet });
        let figures = figures.unwrap_or_else(|wrong| panic!("seed {seed}, {days} days: {wrong}"));
        #[expect(clippy::cast_precision_loss, reason = "for the eye")]
        let speed = (days * 24) as f64 / begun.elapsed().as_secs_f64();
        println!("simulation: {days} days, {speed:.0} hours a second: {figures}");
    }
}
