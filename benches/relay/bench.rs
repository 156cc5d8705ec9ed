//! What a profile is given to work with.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::driver::{Driver, Event};
use super::process::CpuShare;
use super::sheet::Sheet;
use super::target::{Running, Target};

/// One run of one profile against one target.
pub struct Bench<'a> {
    pub profile: &'static str,
    pub target: &'a Target,
    pub sheet: &'a mut Sheet,
    /// The first round also does what need not be repeated.
    pub round: usize,
    /// A few seconds, to see that everything works.
    pub quick: bool,
}

impl Bench<'_> {
    /// Starts the target with the options that the profile needs.
    pub fn start(&mut self, options: &[&str]) -> io::Result<Running> {
        let running = self.target.start(options)?;
        self.record("from start to listening", "ms", running.started_in.as_secs_f64() * 1e3);
        Ok(running)
    }

    pub fn record(&mut self, figure: &str, unit: &'static str, value: f64) {
        self.sheet.record(self.profile, &self.target.name, figure, unit, value);
    }

    /// Records the percentiles of latencies in nanoseconds.
    pub fn record_latencies(&mut self, what: &str, latencies: &mut [u64]) {
        latencies.sort_unstable();
        for (name, share) in PERCENTILES {
            let microseconds = percentile(latencies, share) / 1e3;
            self.record(&format!("{what} {name}"), "us", microseconds);
        }
    }

    /// Records what `frames` messages of `bytes` bytes in all cost since `relay` and `own` began.
    pub fn record_cost(&mut self, what: &str, cost: &Cost, frames: u64, bytes: u64) {
        let seconds = cost.elapsed().as_secs_f64();
        let cpu = cost.target_seconds();
        self.record(&format!("{what}: CPU a frame"), "us", cpu * 1e6 / frames as f64);
        self.record(&format!("{what}: frames"), "1/s", frames as f64 / seconds);
        self.record(&format!("{what}: bytes"), "MB/s", bytes as f64 / seconds / 1e6);
        self.check_driver(what, cost);
    }

    /// Says so if the client was about as busy as it can be.
    pub fn check_driver(&mut self, what: &str, cost: &Cost) {
        let (own, target) = (cost.driver.share(), cost.target.share());
        self.record(&format!("{what}: driver's core"), "%", own * 100.0);
        if own > SATURATED && own > target && !self.quick {
            let (profile, name) = (self.profile, &self.target.name);
            self.sheet.warn(format!(
                "{profile}, {what}: the client used {:.0} % of a core and {name} {:.0} %: rates \
                 there are the client's, processor time a frame is not touched by it",
                own * 100.0,
                target * 100.0
            ));
        }
    }

    /// A line on standard error, where a person may be waiting.
    pub fn progress(&self, what: &str) {
        eprintln!("{}, {}: {what}", self.profile, self.target.name);
    }
}

/// Processor time of both sides over the same time.
pub struct Cost {
    target: CpuShare,
    driver: CpuShare,
}

impl Cost {
    pub fn begin(running: &Running) -> Self {
        Self { target: running.cpu(), driver: CpuShare::begin(std::process::id()) }
    }

    /// Share of one core that the target used.
    pub fn target_share(&self) -> f64 {
        self.target.share()
    }

    /// Processor time of the target, in seconds.
    pub fn target_seconds(&self) -> f64 {
        self.target.spent().as_secs_f64()
    }

    pub fn elapsed(&self) -> Duration {
        self.target.elapsed()
    }
}

/// Sets a flag once it is dropped, on a panic too: a thread that runs until then would keep its scope
/// open for ever.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets connections rest for a time: pings are answered; an error if a connection ends.
pub fn rest(driver: &mut Driver, time: Duration) -> io::Result<()> {
    let until = Instant::now() + time;
    let mut ended = 0;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        driver
            .turn(left, &mut |_, _, event| ended += u32::from(matches!(event, Event::Gone(_))))?;
        if ended > 0 {
            return Err(io::Error::other(format!("{ended} connections ended while they rested")));
        }
    }
}

/// The value below which this share of the sorted values lies.
pub fn percentile(sorted: &[u64], share: f64) -> f64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let place = (sorted.len() as f64 * share) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).map_or(f64::NAN, |value| *value as f64)
}

/// What is reported of latencies.
pub const PERCENTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

const SATURATED: f64 = 0.9;
