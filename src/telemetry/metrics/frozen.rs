//! The counters on their way to another program: by the names of their labels, whatever order these have there.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Counter, Counters, Label, Lag, Metrics, Side};
use crate::leg::Leg;
use crate::limits::LAG_BUCKETS;

/// What [`Metrics`] are. A counter that is missing is zero, and an unknown one is ignored.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Frozen {
    frames: ByLabel<u64>,
    bytes: ByLabel<u64>,
    attempts: ByLabel<ByLabel<u64>>,
    failures: ByLabel<u64>,
    refused: ByLabel<u64>,
    closes: ByLabel<ByLabel<ByLabel<u64>>>,
    dropped: ByLabel<u64>,
    grace_expiries: u64,
    reclaims: u64,
    reclaim_phones: ByLabel<u64>,
    takeovers: u64,
    budget_evictions: u64,
    accept_errors: u64,
    proxy_faults: u64,
    lag: FrozenLag,
}

/// What there is for each value of a label.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct ByLabel<T>(BTreeMap<String, T>);

#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
struct FrozenLag {
    buckets: Vec<Bucket>,
    nanoseconds: u64,
    worst: Duration,
}

#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
struct Bucket {
    /// The upper bound; the last bucket has none.
    up_to: Option<Duration>,
    turns: u64,
}

impl Metrics {
    /// What another program needs in order to go on counting. Nothing changes here.
    pub(crate) fn freeze(&self) -> Frozen {
        // Every field is named, here and below: a new counter cannot be forgotten.
        let Self {
            frames,
            bytes,
            attempts,
            failures,
            refused,
            closes,
            dropped,
            grace_expiries,
            reclaims,
            reclaim_phones,
            takeovers,
            budget_evictions,
            accept_errors,
            proxy_faults,
            lag,
        } = self;
        Frozen {
            frames: frames.freeze(),
            bytes: bytes.freeze(),
            attempts: ByLabel::of::<Leg, _>(attempts, Counters::freeze),
            failures: failures.freeze(),
            refused: refused.freeze(),
            closes: ByLabel::of::<Leg, _>(closes, |sides| {
                ByLabel::of::<Side, _>(sides, Counters::freeze)
            }),
            dropped: dropped.freeze(),
            grace_expiries: grace_expiries.count(),
            reclaims: reclaims.count(),
            reclaim_phones: reclaim_phones.freeze(),
            takeovers: takeovers.count(),
            budget_evictions: budget_evictions.count(),
            accept_errors: accept_errors.count(),
            proxy_faults: proxy_faults.count(),
            lag: lag.freeze(),
        }
    }

    /// Goes on counting where another program stopped. Nothing has been counted here.
    pub(crate) fn thaw(&self, frozen: &Frozen) {
        let Frozen {
            frames,
            bytes,
            attempts,
            failures,
            refused,
            closes,
            dropped,
            grace_expiries,
            reclaims,
            reclaim_phones,
            takeovers,
            budget_evictions,
            accept_errors,
            proxy_faults,
            lag,
        } = frozen;
        self.frames.thaw(frames);
        self.bytes.thaw(bytes);
        attempts.each::<Leg, _>(&self.attempts, Counters::thaw);
        self.failures.thaw(failures);
        self.refused.thaw(refused);
        closes.each::<Leg, _>(&self.closes, |sides, frozen| {
            frozen.each::<Side, _>(sides, Counters::thaw);
        });
        self.dropped.thaw(dropped);
        self.grace_expiries.thaw(*grace_expiries);
        self.reclaims.thaw(*reclaims);
        self.reclaim_phones.thaw(reclaim_phones);
        self.takeovers.thaw(*takeovers);
        self.budget_evictions.thaw(*budget_evictions);
        self.accept_errors.thaw(*accept_errors);
        self.proxy_faults.thaw(*proxy_faults);
        self.lag.thaw(lag);
    }
}

impl Counter {
    fn thaw(&self, count: u64) {
        self.0.set(count.min(MOST));
    }
}

impl<L: Label, const N: usize> Counters<L, N> {
    fn freeze(&self) -> ByLabel<u64> {
        ByLabel::of::<L, _>(&self.cells, std::cell::Cell::get)
    }

    fn thaw(&self, frozen: &ByLabel<u64>) {
        frozen.each::<L, _>(&self.cells, |cell, count| cell.set((*count).min(MOST)));
    }
}

impl Lag {
    fn freeze(&self) -> FrozenLag {
        let Self { buckets, nanoseconds, worst } = self;
        let bounds = LAG_BUCKETS.iter().map(|bound| Some(*bound)).chain([None]);
        let buckets =
            bounds.zip(buckets).map(|(up_to, turns)| Bucket { up_to, turns: turns.get() });
        FrozenLag { buckets: buckets.collect(), nanoseconds: nanoseconds.get(), worst: worst.get() }
    }

    /// With other bounds than here, turns count as long as they can have been.
    fn thaw(&self, frozen: &FrozenLag) {
        let FrozenLag { buckets, nanoseconds, worst } = frozen;
        for Bucket { up_to, turns } in buckets {
            let is_above = |bound: &&Duration| up_to.is_none_or(|up_to| up_to > **bound);
            let bucket = &self.buckets[LAG_BUCKETS.iter().take_while(is_above).count()];
            bucket.set(bucket.get().saturating_add(*turns).min(MOST));
        }
        self.nanoseconds.set(*nanoseconds);
        self.worst.set(*worst);
    }
}

impl<T> ByLabel<T> {
    /// What `freeze` makes of `values`, which stand in the order of the label's.
    fn of<L: Label, V>(values: &[V], freeze: impl Fn(&V) -> T) -> Self {
        let named = L::ALL.iter().zip(values);
        Self(named.map(|(label, value)| (label.as_str().to_owned(), freeze(value))).collect())
    }

    /// Has `thaw` go through those of `values` that there is something for.
    fn each<L: Label, V>(&self, values: &[V], thaw: impl Fn(&V, &T)) {
        for (label, value) in L::ALL.iter().zip(values) {
            if let Some(frozen) = self.0.get(label.as_str()) {
                thaw(value, frozen);
            }
        }
    }
}

impl<T> Default for ByLabel<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// More than anybody counts: whatever is read, there is room to count on, and to add up all values of a label.
const MOST: u64 = 1 << 56;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{
        AttemptOutcome, Code, Direction, Dropped, Failure, ReclaimOutcome, Refused,
    };

    fn carried(frozen: &Frozen) -> Frozen {
        rmp_serde::from_slice(&rmp_serde::to_vec_named(frozen).unwrap()).unwrap()
    }

    /// Every counter has a count of its own.
    fn counted() -> Metrics {
        let metrics = Metrics::default();
        let mut next = (1..).map(|count| count * 3);
        let mut count = || next.next().unwrap();
        fn each<L: Label, const N: usize>(
            counters: &Counters<L, N>,
            count: &mut impl FnMut() -> u64,
        ) {
            L::ALL.iter().for_each(|label| counters.add(*label, count()));
        }
        each(&metrics.frames, &mut count);
        each(&metrics.bytes, &mut count);
        metrics.attempts.iter().for_each(|counters| each(counters, &mut count));
        each(&metrics.failures, &mut count);
        each(&metrics.refused, &mut count);
        metrics.closes.iter().flatten().for_each(|counters| each(counters, &mut count));
        each(&metrics.dropped, &mut count);
        each(&metrics.reclaim_phones, &mut count);
        let Metrics { grace_expiries, reclaims, takeovers, budget_evictions, .. } = &metrics;
        let Metrics { accept_errors, proxy_faults, .. } = &metrics;
        for counter in
            [grace_expiries, reclaims, takeovers, budget_evictions, accept_errors, proxy_faults]
        {
            counter.0.set(count());
        }
        for (number, bound) in LAG_BUCKETS.iter().enumerate() {
            (0..=number).for_each(|_| metrics.lag.observe(*bound));
        }
        metrics.lag.observe(Duration::from_secs(3600));
        metrics
    }

    fn all<L: Label, const N: usize>(counters: &Counters<L, N>) -> Vec<u64> {
        L::ALL.iter().map(|label| counters.count(*label)).collect()
    }

    #[test]
    fn every_counter_goes_on_from_where_it_was() {
        let (metrics, thawed) = (counted(), Metrics::default());
        let frozen = metrics.freeze();
        thawed.thaw(&carried(&frozen));
        assert_eq!(frozen, metrics.freeze(), "freezing changes nothing");
        assert_eq!(frozen, thawed.freeze());
        // As it is seen from outside.
        assert_eq!(all(&thawed.frames), all(&metrics.frames));
        assert_eq!(all(&thawed.bytes), all(&metrics.bytes));
        assert_eq!(all(&thawed.failures), all(&metrics.failures));
        assert_eq!(all(&thawed.refused), all(&metrics.refused));
        assert_eq!(all(&thawed.dropped), all(&metrics.dropped));
        assert_eq!(all(&thawed.reclaim_phones), all(&metrics.reclaim_phones));
        for leg in Leg::ALL {
            for outcome in AttemptOutcome::ALL {
                assert_eq!(thawed.attempts(*leg, *outcome), metrics.attempts(*leg, *outcome));
            }
            for side in Side::ALL {
                for code in Code::ALL {
                    let of = |metrics: &Metrics| metrics.closes(*leg, *side, *code);
                    assert_eq!(of(&thawed), of(&metrics));
                }
            }
        }
        for (thawed, counter) in [
            (&thawed.grace_expiries, &metrics.grace_expiries),
            (&thawed.reclaims, &metrics.reclaims),
            (&thawed.takeovers, &metrics.takeovers),
            (&thawed.budget_evictions, &metrics.budget_evictions),
            (&thawed.accept_errors, &metrics.accept_errors),
            (&thawed.proxy_faults, &metrics.proxy_faults),
        ] {
            assert!(counter.count() > 0 && thawed.count() == counter.count());
        }
        assert_eq!(thawed.lag.buckets(), metrics.lag.buckets());
        assert_eq!(thawed.lag.sum(), metrics.lag.sum());
        assert_eq!(thawed.lag.take_worst(), Duration::from_secs(3600));
        thawed.refused.bump(Refused::Method);
        assert_eq!(
            thawed.refused.count(Refused::Method),
            metrics.refused.count(Refused::Method) + 1
        );
    }

    #[test]
    fn names_that_are_not_known_are_ignored_and_missing_ones_are_zero() {
        #[derive(Serialize)]
        struct Later {
            frames: BTreeMap<&'static str, u64>,
            closes: BTreeMap<&'static str, BTreeMap<&'static str, BTreeMap<&'static str, u64>>>,
            takeovers: u64,
            teas: u64,
        }
        let codes = || BTreeMap::from([("1000", 5), ("4999", 6)]);
        let sides = || BTreeMap::from([("phone", codes()), ("fridge", codes())]);
        let later = Later {
            frames: BTreeMap::from([("sideways", 8), ("binary_to_phone", 9)]),
            closes: BTreeMap::from([("client", sides()), ("guest", sides())]),
            takeovers: 3,
            teas: 4,
        };
        let bytes = rmp_serde::to_vec_named(&later).unwrap();
        let metrics = Metrics::default();
        metrics.thaw(&rmp_serde::from_slice(&bytes).unwrap());
        let expected = Metrics::default();
        expected.frames.add(Direction::BinaryToPhone, 9);
        (0..5).for_each(|_| expected.closed(Leg::Phone, Side::Phone, 1000));
        (0..3).for_each(|_| expected.takeovers.bump());
        assert_eq!(metrics.freeze(), expected.freeze());
    }

    #[test]
    fn turns_of_other_buckets_count_as_long_as_they_can_have_been() {
        let bucket = |up_to, turns| Bucket { up_to, turns };
        let between = LAG_BUCKETS[2] - Duration::from_nanos(1);
        let lag = FrozenLag {
            buckets: vec![
                bucket(Some(Duration::ZERO), 1),
                bucket(Some(between), 2),
                bucket(Some(LAG_BUCKETS[2]), 4),
                bucket(Some(Duration::MAX), 8),
                bucket(None, 16),
            ],
            ..FrozenLag::default()
        };
        let metrics = Metrics::default();
        metrics.thaw(&carried(&Frozen { lag, ..Frozen::default() }));
        let buckets = metrics.lag.buckets();
        assert_eq!((buckets[0], buckets[2], buckets[LAG_BUCKETS.len()]), (1, 6, 24));
        assert_eq!(buckets.iter().sum::<u64>(), 31);
    }

    #[test]
    fn there_is_room_to_count_on_whatever_was_read() {
        let most = |label: &str| ByLabel(BTreeMap::from([(label.to_owned(), u64::MAX)]));
        let bucket = || Bucket { up_to: None, turns: u64::MAX };
        let frozen = Frozen {
            frames: most("phone_to_binary"),
            bytes: most("phone_to_binary"),
            failures: most("no_server"),
            dropped: most("conn_id"),
            reclaim_phones: most("kept"),
            takeovers: u64::MAX,
            lag: FrozenLag {
                buckets: vec![bucket(), bucket()],
                nanoseconds: u64::MAX,
                worst: Duration::MAX,
            },
            ..Frozen::default()
        };
        let metrics = Metrics::default();
        metrics.thaw(&carried(&frozen));
        metrics.forwarded(Direction::PhoneToBinary, 1, usize::MAX >> 1);
        metrics.failures.bump(Failure::NoServer);
        metrics.dropped.bump(Dropped::ConnId);
        metrics.reclaim_phones.bump(ReclaimOutcome::Kept);
        metrics.takeovers.bump();
        metrics.lag.observe(Duration::from_secs(3600));
        assert!(metrics.takeovers.count() > MOST);
        assert_eq!(metrics.lag.take_worst(), Duration::MAX);
    }
}
