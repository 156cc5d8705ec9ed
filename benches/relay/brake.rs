//! Slows processes down: they are stopped and continued in turns.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How slow: of each `one_in` parts of the time the processes run one.
#[derive(Clone, Copy, Debug)]
pub struct Brake {
    pub one_in: u32,
    /// How long they run at a time. They wait `one_in - 1` times as long between two turns, and that
    /// is what the brake itself adds to a latency.
    pub run: Duration,
}

impl Brake {
    /// Slows all of them down in step until `release` is set. Returns the share of the time in which
    /// they were allowed to run: this thread may be late itself.
    pub fn hold(self, pids: &[u32], release: &AtomicBool) -> io::Result<f64> {
        let held = Held::new(pids);
        let began = Instant::now();
        let pause = self.run * (self.one_in - 1);
        let (mut ran, mut paused) = (Duration::ZERO, Duration::ZERO);
        while !release.load(Ordering::Relaxed) {
            let turn = Instant::now();
            held.signal(Signal::CONT)?;
            std::thread::sleep(self.run);
            held.signal(Signal::STOP)?;
            ran += turn.elapsed();
            // What a late turn let them run too long is taken from the next ones in portions: one
            // long pause is nothing that a slow processor does.
            let owed = (ran * (self.one_in - 1)).saturating_sub(paused);
            let turn = Instant::now();
            std::thread::sleep(owed.clamp(pause, pause * 2));
            paused += turn.elapsed();
        }
        Ok(ran.as_secs_f64() / began.elapsed().as_secs_f64())
    }
}

/// Processes that go on once this is dropped.
struct Held(Vec<Pid>);

impl Held {
    fn new(pids: &[u32]) -> Self {
        let pids = pids.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?));
        Self(pids.collect())
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        self.0.iter().try_for_each(|pid| Ok(kill_process(*pid, signal)?))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.signal(Signal::CONT);
    }
}
