//! The one place that asks for the time, or waits for it: `tests/layers.rs` holds that nobody goes around it.
//!
//! In the program this is [`Instant::now`], [`SystemTime::now`] and async-io's [`Timer`]. With the Cargo
//! feature `simulation`, which no release has, a thread may run by a simulated clock instead.

use std::time::{Duration, Instant, SystemTime};

#[cfg(not(feature = "simulation"))]
pub use async_io::Timer;

#[cfg(feature = "simulation")]
pub use self::simulated::Timer;

#[cfg(feature = "simulation")]
pub mod simulated;

/// The monotonic clock.
pub fn now() -> Instant {
    #[cfg(feature = "simulation")]
    if let Some(now) = simulated::now() {
        return now;
    }
    Instant::now()
}

/// The wall clock, which may jump.
pub fn wall() -> SystemTime {
    #[cfg(feature = "simulation")]
    if let Some(wall) = simulated::wall() {
        return wall;
    }
    SystemTime::now()
}

/// How long before `now` that was, if it was.
pub(crate) fn age(now: Instant, then: Option<Instant>) -> Option<Duration> {
    then.map(|then| now.saturating_duration_since(then))
}

/// The moment that was `age` before `now`; `now` itself if the clock does not reach back that far.
pub fn ago(now: Instant, age: Duration) -> Instant {
    now.checked_sub(age).unwrap_or(now)
}

/// The moment that comes `wait` after `now`, or in a hundred years if that is sooner.
pub(crate) fn later(now: Instant, wait: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    now + wait.min(CENTURY)
}

/// How long ago `earlier` was, by the monotonic clock; zero for a time to come.
pub fn since(earlier: Instant) -> Duration {
    now().saturating_duration_since(earlier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_that_the_clock_does_not_know_is_none() {
        let now = now();
        let age = Duration::from_secs(7);
        assert_eq!(now - ago(now, age), age);
        assert_eq!(ago(now, Duration::MAX), now);
        assert_eq!(later(now, age) - now, age);
        assert!(later(now, Duration::MAX) > now, "and no panic");
    }
}
