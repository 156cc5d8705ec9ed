//! What the relay did lately, in at most [`HISTORY_BYTES`](crate::limits::HISTORY_BYTES): rings of
//! points for the last minute, hour and day, and of refusals for the last hour.
//!
//! Pure: the caller passes instants and totals, at turns of the event loop that happen anyway.
//! Nothing has to wake up for it. The totals change only in a turn, so points that were skipped are
//! known without a sample.

mod frozen;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub(crate) use self::frozen::Frozen;
use crate::limits::{HISTORY_DAY, HISTORY_HOUR, HISTORY_MINUTE, HISTORY_REFUSALS};

/// The state of a relay at one moment; `K` is the number of kinds of refusals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sample<const K: usize> {
    /// Messages forwarded since the start, both ways.
    pub(crate) messages: u64,
    /// Refusals since the start, by kind.
    pub(crate) refusals: [u64; K],
    /// Connected binaries.
    pub(crate) binaries: usize,
    /// Connected phones.
    pub(crate) phones: usize,
    /// Failed accepts since the start.
    pub(crate) accept_errors: u64,
    /// The longest turn of the event loop since the last sample.
    pub(crate) worst_turn: Duration,
}

/// What happened in one period.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Point {
    /// Messages forwarded, both ways.
    pub(crate) messages: u32,
    /// The longest turn of the event loop, in microseconds.
    pub(crate) worst_turn: u32,
    /// Failed accepts.
    pub(crate) accept_errors: u32,
    /// The most binaries.
    pub(crate) binaries: u32,
    /// The most phones.
    pub(crate) phones: u32,
}

/// The rings of one relay.
#[derive(Debug)]
pub(crate) struct History<const K: usize> {
    started: Instant,
    /// The time of the last sample.
    since: Instant,
    /// The end of the shortest period in progress; checked at every turn.
    due: Instant,
    last: Sample<K>,
    minute: Ring<Point, { HISTORY_MINUTE.points }>,
    hour: Ring<Point, { HISTORY_HOUR.points }>,
    day: Ring<Point, { HISTORY_DAY.points }>,
    refusals: Ring<[u32; K], { HISTORY_REFUSALS.points }>,
}

/// The periods of a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Span {
    /// The last minute.
    Minute,
    /// The last hour.
    Hour,
    /// The last day.
    Day,
}

impl<const K: usize> History<K> {
    /// The history of a relay that starts now.
    pub(crate) fn new(started: Instant) -> Self {
        let last = Sample {
            messages: 0,
            refusals: [0; K],
            binaries: 0,
            phones: 0,
            accept_errors: 0,
            worst_turn: Duration::ZERO,
        };
        Self {
            started,
            since: started,
            due: started + HISTORY_MINUTE.period,
            last,
            minute: Ring::new(HISTORY_MINUTE.period, Point::default()),
            hour: Ring::new(HISTORY_HOUR.period, Point::default()),
            day: Ring::new(HISTORY_DAY.period, Point::default()),
            refusals: Ring::new(HISTORY_REFUSALS.period, [0; K]),
        }
    }

    /// Whether the shortest period has ended at `now`: a sample must then be recorded before anything
    /// else happens.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }

    /// Records what happened since the last sample. It counts for the period of that sample, because
    /// the first turn of every new period takes a sample.
    pub(crate) fn record(&mut self, now: Instant, sample: Sample<K>) {
        let (from, to) = (self.since - self.started, now - self.started);
        let (binaries, phones) = (count(sample.binaries), count(sample.phones));
        let happened = Point {
            messages: saturated(sample.messages.saturating_sub(self.last.messages)),
            accept_errors: saturated(sample.accept_errors.saturating_sub(self.last.accept_errors)),
            worst_turn: u32::try_from(sample.worst_turn.as_micros()).unwrap_or(u32::MAX),
            binaries,
            phones,
        };
        let quiet = Point { binaries, phones, ..Point::default() };
        for ring in [&mut self.minute as &mut dyn Points, &mut self.hour, &mut self.day] {
            ring.add(from, to, happened, quiet);
        }
        let refused: [u32; K] = std::array::from_fn(|kind| {
            saturated(sample.refusals[kind].saturating_sub(self.last.refusals[kind]))
        });
        let here = self.refusals.at(from, [0; K]);
        for (sum, more) in here.iter_mut().zip(refused) {
            *sum = sum.saturating_add(more);
        }
        self.refusals.at(to, [0; K]);
        self.since = now;
        self.due = self.next_due();
        self.last = sample;
    }

    /// The end of the shortest period in progress.
    fn next_due(&self) -> Instant {
        self.started + self.minute.period * (self.minute.newest.saturating_add(1))
    }

    /// The points of a span, oldest first, up to the one in progress, and the length of each.
    /// Fewer than the span has if the relay has not run that long.
    pub(crate) fn points(&self, span: Span) -> (Vec<Point>, Duration) {
        match span {
            Span::Minute => (self.minute.list(), self.minute.period),
            Span::Hour => (self.hour.list(), self.hour.period),
            Span::Day => (self.day.list(), self.day.period),
        }
    }

    /// Messages per second over about the last minute.
    pub(crate) fn rate(&self) -> f64 {
        let points = self.minute.list();
        let messages: f64 = points.iter().map(|point| f64::from(point.messages)).sum();
        let begun =
            self.minute.period * self.minute.newest - self.minute.period * count(points.len() - 1);
        let seconds = (self.since - self.started).saturating_sub(begun).as_secs_f64();
        messages / seconds.max(1.0)
    }

    /// Refusals by kind over about the last hour.
    pub(crate) fn refusals(&self) -> [u64; K] {
        let rows = self.refusals.list();
        std::array::from_fn(|kind| rows.iter().map(|row| u64::from(row[kind])).sum())
    }
}

/// A ring with one value per period.
#[derive(Debug)]
struct Ring<T, const N: usize> {
    period: Duration,
    /// The number of the period in progress, since the start.
    newest: u32,
    values: [T; N],
}

impl<T: Copy, const N: usize> Ring<T, N> {
    fn new(period: Duration, value: T) -> Self {
        Self { period, newest: 0, values: [value; N] }
    }

    fn index(&self, since_start: Duration) -> u32 {
        u32::try_from(since_start.as_nanos() / self.period.as_nanos()).unwrap_or(u32::MAX)
    }

    /// The value of the period at `since_start`. If it is new, it and the periods skipped before it
    /// begin as `quiet`.
    fn at(&mut self, since_start: Duration, quiet: T) -> &mut T {
        let index = self.index(since_start).max(self.newest);
        // A whole round at most, however long nothing happened.
        let first = (self.newest + 1).max(index.saturating_sub(count(N)));
        for number in first..=index {
            self.values[slot::<N>(number)] = quiet;
        }
        self.newest = index;
        &mut self.values[slot::<N>(index)]
    }

    fn list(&self) -> Vec<T> {
        let first = (self.newest + 1).saturating_sub(count(N));
        (first..=self.newest).map(|number| self.values[slot::<N>(number)]).collect()
    }
}

/// A ring of points of any length.
trait Points {
    fn add(&mut self, from: Duration, to: Duration, happened: Point, quiet: Point);
}

impl<const N: usize> Points for Ring<Point, N> {
    fn add(&mut self, from: Duration, to: Duration, happened: Point, quiet: Point) {
        let point = self.at(from, quiet);
        point.messages = point.messages.saturating_add(happened.messages);
        point.worst_turn = point.worst_turn.max(happened.worst_turn);
        point.accept_errors = point.accept_errors.saturating_add(happened.accept_errors);
        point.binaries = point.binaries.max(happened.binaries);
        point.phones = point.phones.max(happened.phones);
        self.at(to, quiet);
    }
}

fn slot<const N: usize>(number: u32) -> usize {
    usize::try_from(number).map_or(0, |number| number % N)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn saturated(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    fn sample(messages: u64, phones: usize) -> Sample<2> {
        Sample {
            messages,
            refusals: [messages, 0],
            binaries: 1,
            phones,
            accept_errors: 2 * messages,
            worst_turn: Duration::from_micros(messages),
        }
    }

    fn messages(points: &[Point]) -> Vec<u32> {
        points.iter().map(|point| point.messages).collect()
    }

    #[test]
    fn what_happened_belongs_to_the_period_of_the_sample_before() {
        let start = clock::now();
        let mut history = History::<2>::new(start);
        assert!(!history.is_due(start + SECOND));
        assert!(history.is_due(start + HISTORY_MINUTE.period));
        // Seven messages in the first seconds, then nothing until long after.
        history.record(start + 20 * SECOND, sample(7, 3));
        let (points, period) = history.points(Span::Minute);
        assert_eq!((messages(&points), period), (vec![7, 0, 0, 0, 0], HISTORY_MINUTE.period));
        assert_eq!(points[2].phones, 3, "who was connected was so all the time");
        assert_eq!((points[0].worst_turn, points[2].worst_turn), (7, 0));
        assert_eq!((points[0].accept_errors, points[2].accept_errors), (14, 0));
        assert_eq!(history.refusals(), [7, 0]);
    }

    #[test]
    fn a_ring_forgets_what_is_older_than_its_span() {
        let start = clock::now();
        let mut history = History::<2>::new(start);
        history.record(start + SECOND, sample(5, 0));
        history.record(start + 2 * HOUR, sample(5, 0));
        history.record(start + 2 * HOUR + SECOND, sample(6, 0));
        for (span, points, sum) in [
            (Span::Minute, HISTORY_MINUTE.points, 1),
            (Span::Hour, HISTORY_HOUR.points, 1),
            (Span::Day, 9, 6),
        ] {
            let (list, _) = history.points(span);
            assert_eq!(list.len(), points, "{span:?}");
            assert_eq!(messages(&list).iter().sum::<u32>(), sum, "{span:?}");
        }
        assert_eq!(history.refusals(), [1, 0]);
    }

    #[test]
    fn the_rate_is_that_of_the_time_that_there_was() {
        let start = clock::now();
        let mut history = History::<2>::new(start);
        history.record(start + 10 * SECOND, sample(100, 0));
        assert!((history.rate() - 10.0).abs() < 0.01, "{}", history.rate());
        history.record(start + 5 * 60 * SECOND, sample(100, 0));
        assert!(history.rate() < 0.01, "{}", history.rate());
    }

    #[test]
    fn years_of_silence_cost_one_round_and_no_more() {
        let start = clock::now();
        let mut history = History::<2>::new(start);
        history.record(start + 24 * 365 * 3 * HOUR, sample(1, 1));
        let (points, _) = history.points(Span::Day);
        assert_eq!(points.len(), HISTORY_DAY.points);
        assert!(points.iter().all(|point| point.messages == 0 && point.phones == 1));
    }
}
