//! The history on its way to another program.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{History, Point, Ring, Sample, slot};
use crate::clock::ago;

/// What a [`History`] is. What is missing has not happened.
#[derive(Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Frozen {
    /// How long ago the history begins.
    started: Duration,
    /// How long ago the last sample was taken.
    since: Duration,
    last: Totals,
    minute: FrozenRing<Point>,
    hour: FrozenRing<Point>,
    day: FrozenRing<Point>,
    refusals: FrozenRing<ByKind<u32>>,
}

/// What the next sample is compared with.
#[derive(Default, Debug, Serialize, Deserialize)]
#[serde(default)]
struct Totals {
    messages: u64,
    accept_errors: u64,
    refusals: ByKind<u64>,
}

/// The values of a ring, oldest first, up to the one in progress.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct FrozenRing<T> {
    period: Duration,
    values: Vec<T>,
}

/// Numbers of refusals by the names of their kinds, but those that are zero.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct ByKind<T>(BTreeMap<String, T>);

impl<const K: usize> History<K> {
    /// What another program needs in order to go on; `kinds` are the names of the kinds of refusals. Nothing changes
    /// here.
    pub(crate) fn freeze(&self, now: Instant, kinds: impl Iterator<Item = &'static str>) -> Frozen {
        let kinds: Vec<_> = kinds.collect();
        // When the next sample is due follows from the rings.
        let Self { started, since, due: _, last, minute, hour, day, refusals } = self;
        // Who was connected then is not compared with anything.
        let Sample { messages, refusals: refused, binaries: _, phones: _, accept_errors, .. } =
            last;
        Frozen {
            started: now.saturating_duration_since(*started),
            since: now.saturating_duration_since(*since),
            last: Totals {
                messages: *messages,
                accept_errors: *accept_errors,
                refusals: ByKind::of(&kinds, refused),
            },
            minute: minute.freeze(|point| *point),
            hour: hour.freeze(|point| *point),
            day: day.freeze(|point| *point),
            refusals: refusals.freeze(|row| ByKind::of(&kinds, row)),
        }
    }

    /// Goes on where another program stopped. Kinds of refusals that have no name in `kinds` are ignored, and so is a
    /// ring with other periods than here.
    pub(crate) fn thaw(
        frozen: Frozen,
        now: Instant,
        kinds: impl Iterator<Item = &'static str>,
    ) -> Self {
        if frozen.started > LONGEST {
            return Self::new(now);
        }
        let kinds: Vec<_> = kinds.collect();
        let started = ago(now, frozen.started);
        let mut history = Self::new(started);
        history.since = ago(now, frozen.since).max(started);
        history.last.messages = frozen.last.messages;
        history.last.accept_errors = frozen.last.accept_errors;
        history.last.refusals = frozen.last.refusals.by(&kinds);
        let ran = history.since - started;
        history.minute.thaw(frozen.minute, ran, |point| point);
        history.hour.thaw(frozen.hour, ran, |point| point);
        history.day.thaw(frozen.day, ran, |point| point);
        history.refusals.thaw(frozen.refusals, ran, |row| row.by(&kinds));
        history.due = history.next_due();
        history
    }
}

impl<T: Copy, const N: usize> Ring<T, N> {
    fn freeze<F>(&self, freeze: impl FnMut(&T) -> F) -> FrozenRing<F> {
        FrozenRing { period: self.period, values: self.list().iter().map(freeze).collect() }
    }

    /// What was the period in progress stays it: it is the one of the last sample, `ran` after the start.
    fn thaw<F>(&mut self, frozen: FrozenRing<F>, ran: Duration, thaw: impl Fn(F) -> T) {
        self.newest = self.index(ran);
        if frozen.period == self.period {
            let numbers = (0..=self.newest).rev().take(N);
            for (number, value) in numbers.zip(frozen.values.into_iter().rev()) {
                self.values[slot::<N>(number)] = thaw(value);
            }
        }
    }
}

impl<T: Copy + Default + PartialEq> ByKind<T> {
    fn of(kinds: &[&str], numbers: &[T]) -> Self {
        let named = kinds.iter().zip(numbers).filter(|(_, number)| **number != T::default());
        Self(named.map(|(kind, number)| ((*kind).to_owned(), *number)).collect())
    }

    fn by<const K: usize>(&self, kinds: &[&str]) -> [T; K] {
        let number = |kind: &&str| self.0.get(*kind).copied();
        std::array::from_fn(|index| kinds.get(index).and_then(number).unwrap_or_default())
    }
}

impl<T> Default for FrozenRing<T> {
    fn default() -> Self {
        Self { period: Duration::ZERO, values: Vec::new() }
    }
}

impl<T> Default for ByKind<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// No history is older: a hundred years. The numbers of its periods have room for no more than some of these.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock;
    use crate::limits::{HISTORY_DAY, HISTORY_HOUR, HISTORY_MINUTE};
    use crate::telemetry::history::Span;

    const KINDS: [&str; 2] = ["method", "rate_limit"];

    fn carried(history: &History<2>, now: Instant) -> History<2> {
        let bytes = rmp_serde::to_vec_named(&history.freeze(now, KINDS.into_iter())).unwrap();
        History::thaw(rmp_serde::from_slice(&bytes).unwrap(), now, KINDS.into_iter())
    }

    fn sample(number: u32) -> Sample<2> {
        let total = u64::from(number);
        Sample {
            messages: 10 * total,
            refusals: [total, total / 2],
            binaries: usize::try_from(number % 7).unwrap(),
            phones: usize::try_from(number % 5).unwrap(),
            accept_errors: total / 3,
            worst_turn: Duration::from_micros(total % 100),
        }
    }

    /// What is seen of it.
    fn seen(history: &History<2>) -> impl PartialEq + std::fmt::Debug + use<> {
        let spans = [Span::Minute, Span::Hour, Span::Day].map(|span| history.points(span));
        (spans, history.rate().to_bits(), history.refusals())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(relay_emulated) { 8 } else { 64 }))]

        #[test]
        fn it_goes_on_as_without_another_program(
            before in proptest::collection::vec((0..4000_u64, 0..9_u32), 0..120),
            pause in 0..100_u64,
            after in proptest::collection::vec((0..4000_u64, 0..9_u32), 0..40),
        ) {
            let mut now = clock::now();
            let mut history = History::<2>::new(now);
            let mut total = 0;
            for (seconds, more) in before {
                now += Duration::from_millis(seconds * 700);
                total += more;
                history.record(now, sample(total));
            }
            now += Duration::from_secs(pause);
            let before = seen(&history);
            let mut thawed = carried(&history, now);
            prop_assert_eq!(&before, &seen(&history));
            prop_assert_eq!(before, seen(&thawed));
            for (seconds, more) in after {
                now += Duration::from_millis(seconds * 700);
                prop_assert_eq!(history.is_due(now), thawed.is_due(now));
                total += more;
                history.record(now, sample(total));
                thawed.record(now, sample(total));
                prop_assert_eq!(seen(&history), seen(&thawed));
            }
        }
    }

    #[test]
    fn the_kinds_of_refusals_may_be_others_in_another_order() {
        let start = clock::now();
        let mut history = History::<2>::new(start);
        history.record(start, Sample { refusals: [3, 4], ..sample(0) });
        let frozen = history.freeze(start, KINDS.into_iter());
        let kinds = ["new", "rate_limit", "newer"].into_iter();
        let mut thawed = History::<3>::thaw(frozen, start, kinds);
        assert_eq!(thawed.refusals(), [0, 4, 0]);
        let Sample { messages, binaries, phones, accept_errors, worst_turn, .. } = sample(0);
        let refusals = [1, 6, 0];
        let sample = Sample { messages, refusals, binaries, phones, accept_errors, worst_turn };
        thawed.record(start, sample);
        assert_eq!(thawed.refusals(), [1, 6, 0]);
    }

    #[test]
    fn totals_that_are_less_than_before_are_no_messages() {
        let start = clock::now();
        let mut history = History::<2>::new(start);
        history.record(start, sample(100));
        let mut thawed = carried(&history, start);
        thawed.record(start, sample(50));
        assert_eq!(thawed.points(Span::Day).0[0].messages, 1000);
        thawed.record(start, sample(51));
        assert_eq!(thawed.points(Span::Day).0[0].messages, 1010);
    }

    #[test]
    fn what_is_missing_has_not_happened_and_what_is_unknown_is_ignored() {
        #[derive(Serialize)]
        struct Later {
            started: Duration,
            minute: LaterRing,
            weather: &'static str,
        }
        #[derive(Serialize)]
        struct LaterRing {
            period: Duration,
            values: [BTreeMap<&'static str, u32>; 1],
        }
        let started = 3 * HISTORY_MINUTE.period;
        let values = [BTreeMap::from([("messages", 5), ("sunshine", 6)])];
        let minute = LaterRing { period: HISTORY_MINUTE.period, values };
        let later = Later { started, minute, weather: "fine" };
        let frozen = rmp_serde::from_slice(&rmp_serde::to_vec_named(&later).unwrap()).unwrap();
        let thawed = History::<2>::thaw(frozen, clock::now(), KINDS.into_iter());
        let messages: Vec<_> =
            thawed.points(Span::Minute).0.iter().map(|point| point.messages).collect();
        assert_eq!(messages, [0, 0, 0, 5]);
        assert_eq!(thawed.refusals(), [0, 0]);
    }

    #[test]
    fn whatever_is_read_a_history_goes_on_from_it() {
        let odd = [0, 1, 4, 5, 3600, 100_000, u64::from(u32::MAX), 1 << 40, u64::MAX];
        let ages = || odd.iter().map(|seconds| Duration::from_secs(*seconds)).chain([LONGEST]);
        let point = Point {
            messages: u32::MAX,
            worst_turn: 1,
            accept_errors: u32::MAX,
            ..Point::default()
        };
        for (started, since) in ages().flat_map(|started| ages().map(move |since| (started, since)))
        {
            for (values, period) in [0, 1, 500].into_iter().flat_map(|values| {
                [HISTORY_MINUTE, HISTORY_HOUR, HISTORY_DAY].map(|ring| (values, ring.period))
            }) {
                let ring = || FrozenRing { period, values: vec![point; values] };
                let row = || ByKind(BTreeMap::from([("method".to_owned(), u32::MAX)]));
                let frozen = Frozen {
                    started,
                    since,
                    last: Totals { messages: u64::MAX, ..Totals::default() },
                    minute: ring(),
                    hour: ring(),
                    day: ring(),
                    refusals: FrozenRing { period, values: (0..values).map(|_| row()).collect() },
                };
                let now = clock::now();
                let mut thawed = History::<2>::thaw(frozen, now, KINDS.into_iter());
                seen(&thawed);
                thawed.is_due(now);
                for later in [0, 4, 3600, 1 << 31] {
                    thawed.record(now + Duration::from_secs(later), sample(7));
                    seen(&thawed);
                }
                assert!(thawed.rate().is_finite());
            }
        }
    }
}
