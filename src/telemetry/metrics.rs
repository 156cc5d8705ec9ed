//! What has happened, in numbers: plain cells of the one thread, bumped where it happens.
//!
//! Counting neither allocates nor locks. What is exposed, and under which names, is the business of
//! `monitor/metrics_page.rs`.

mod frozen;
mod label;

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::Duration;

pub(crate) use self::frozen::Frozen;
pub(crate) use self::label::{
    AttemptOutcome, Code, Direction, Dropped, Failure, Label, ReclaimOutcome, Refused, Side,
};
use crate::leg::Leg;
use crate::limits::LAG_BUCKETS;

/// The counters of one relay.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Messages whose last byte the receiver's socket accepted.
    pub frames: Counters<Direction, { Direction::COUNT }>,
    /// Bytes of these messages as they went out: framing and envelope included.
    pub bytes: Counters<Direction, { Direction::COUNT }>,
    /// Upgrade attempts by outcome, a leg each.
    attempts: [Counters<AttemptOutcome, { AttemptOutcome::COUNT }>; Leg::COUNT],
    /// Peers that could not register.
    pub failures: Counters<Failure, { Failure::COUNT }>,
    /// Requests that were refused before any upgrade.
    pub refused: Counters<Refused, { Refused::COUNT }>,
    closes: [[Counters<Code, { Code::COUNT }>; Side::COUNT]; Leg::COUNT],
    /// Envelopes of binaries that were dropped.
    pub dropped: Counters<Dropped, { Dropped::COUNT }>,
    /// Grace windows that passed without a claim.
    pub grace_expiries: Counter,
    /// Claims inside a grace window.
    pub reclaims: Counter,
    /// Phones whose binary's connection changed.
    pub reclaim_phones: Counters<ReclaimOutcome, { ReclaimOutcome::COUNT }>,
    /// Slots taken from a holder that did not answer its probe.
    pub takeovers: Counter,
    /// Phones closed for the memory budget.
    pub budget_evictions: Counter,
    /// Accepts that failed.
    pub accept_errors: Counter,
    /// PROXY headers and forwarding fields of trusted proxies that were none.
    pub proxy_faults: Counter,
    /// How long the turns of the event loop took.
    pub lag: Lag,
}

impl Metrics {
    /// Counts an upgrade attempt, and the failure to register that it may be.
    pub fn attempted(&self, leg: Leg, outcome: AttemptOutcome) {
        self.attempts[leg.index()].bump(outcome);
        let failure = match outcome {
            AttemptOutcome::Reject404 => Failure::NoServer,
            AttemptOutcome::Reject409 => Failure::ServerInUse,
            AttemptOutcome::Reject429 => Failure::PhonesAtCap,
            AttemptOutcome::RejectRateLimit => Failure::RateLimit,
            _ => return,
        };
        self.failures.bump(failure);
    }

    /// Upgrade attempts so far.
    pub fn attempts(&self, leg: Leg, outcome: AttemptOutcome) -> u64 {
        self.attempts[leg.index()].count(outcome)
    }

    /// Counts the end of an upgraded connection.
    pub fn closed(&self, leg: Leg, side: Side, code: u16) {
        self.closes[leg.index()][side.index()].bump(Code::of(code));
    }

    /// Ends of upgraded connections so far.
    pub fn closes(&self, leg: Leg, side: Side, code: Code) -> u64 {
        self.closes[leg.index()][side.index()].count(code)
    }

    /// Counts messages that were forwarded, and their bytes.
    pub fn forwarded(&self, direction: Direction, messages: usize, bytes: usize) {
        self.frames.add(direction, messages as u64);
        self.bytes.add(direction, bytes as u64);
    }
}

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// One more.
    pub fn bump(&self) {
        self.0.set(self.0.get() + 1);
    }

    /// How many so far.
    pub fn count(&self) -> u64 {
        self.0.get()
    }
}

/// A counter for each value of a label; `N` is how many there are.
#[derive(Debug)]
pub struct Counters<L, const N: usize> {
    cells: [Cell<u64>; N],
    label: PhantomData<L>,
}

impl<L: Label, const N: usize> Counters<L, N> {
    /// One more.
    pub fn bump(&self, label: L) {
        self.add(label, 1);
    }

    /// So many more.
    pub fn add(&self, label: L, count: u64) {
        let cell = &self.cells[label.index()];
        cell.set(cell.get() + count);
    }

    /// How many so far.
    pub fn count(&self, label: L) -> u64 {
        self.cells[label.index()].get()
    }
}

impl<L, const N: usize> Default for Counters<L, N> {
    fn default() -> Self {
        Self { cells: [const { Cell::new(0) }; N], label: PhantomData }
    }
}

/// A histogram of how long turns of the event loop took.
///
/// In one turn the executor runs the tasks that are ready, for about 1 ms; meanwhile nobody looks
/// at the sockets and the timers. So a turn's length is how long whatever became ready during it
/// had to wait: the lag that one connection can cause another. It is measured around the turns that
/// happen anyway, so an idle relay is not woken for it.
#[derive(Debug, Default)]
pub struct Lag {
    buckets: [Cell<u64>; LAG_BUCKETS.len() + 1],
    nanoseconds: Cell<u64>,
    worst: Cell<Duration>,
}

impl Lag {
    /// Counts a turn that took `time`.
    pub fn observe(&self, time: Duration) {
        let above = LAG_BUCKETS.iter().take_while(|bound| time > **bound).count();
        let bucket = &self.buckets[above];
        bucket.set(bucket.get() + 1);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.set(self.nanoseconds.get().saturating_add(nanoseconds));
        if time > self.worst.get() {
            self.worst.set(time);
        }
    }

    /// Turns by bucket, those above the last bound at the end.
    pub fn buckets(&self) -> [u64; LAG_BUCKETS.len() + 1] {
        std::array::from_fn(|index| self.buckets[index].get())
    }

    /// Time spent in all turns.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.get())
    }

    /// The longest turn since this was asked last.
    pub fn take_worst(&self) -> Duration {
        self.worst.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_counts_in_the_bucket_of_its_length_alone() {
        let lag = Lag::default();
        lag.observe(LAG_BUCKETS[0]);
        lag.observe(LAG_BUCKETS[0] + Duration::from_nanos(1));
        lag.observe(Duration::from_secs(3600));
        let buckets = lag.buckets();
        assert_eq!(buckets[..2], [1, 1]);
        assert_eq!(buckets[LAG_BUCKETS.len()], 1);
        assert_eq!(buckets.iter().sum::<u64>(), 3);
        assert!(lag.sum() > Duration::from_secs(3600));
        assert_eq!(lag.take_worst(), Duration::from_secs(3600));
        assert_eq!(lag.take_worst(), Duration::ZERO);
    }

    #[test]
    fn an_attempt_that_fails_to_register_counts_as_both() {
        let metrics = Metrics::default();
        metrics.attempted(Leg::Phone, AttemptOutcome::Reject404);
        metrics.attempted(Leg::Phone, AttemptOutcome::Accept);
        assert_eq!(metrics.attempts(Leg::Phone, AttemptOutcome::Reject404), 1);
        assert_eq!(metrics.attempts(Leg::Binary, AttemptOutcome::Reject404), 0);
        assert_eq!(metrics.failures.count(Failure::NoServer), 1);
        let failures: u64 = Failure::ALL.iter().map(|kind| metrics.failures.count(*kind)).sum();
        assert_eq!(failures, 1);
    }
}
