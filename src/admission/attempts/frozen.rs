//! The table of attempts on its way to another program.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Attempts, Debts, Rate, Table};
use crate::clock::ago;
use crate::limits::RATE_TABLE_HALF;
use crate::origin::Origin;

/// What [`Attempts`] are, without their rate: that is an option.
#[derive(Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Frozen {
    young: Vec<Debtor>,
    old: Vec<Debtor>,
    /// How long ago the young half took the place of the old one, or the first attempt was made.
    turned: Option<Duration>,
}

/// How long it takes until an origin's debts are paid off.
#[derive(Debug, Serialize, Deserialize)]
struct Debtor {
    origin: Origin,
    #[serde(default)]
    upgrades: Duration,
    #[serde(default)]
    handshakes: Duration,
}

impl Attempts {
    /// What another program needs in order to go on limiting: whoever owes nothing is not among it. Nothing changes
    /// here.
    pub(crate) fn freeze(&self, now: Instant) -> Frozen {
        let Table { young, old, turned } = &*self.table.borrow();
        let debtor = |(origin, debts): (&Origin, &Debts)| {
            let Debts { upgrades, handshakes } = debts;
            let upgrades = upgrades.saturating_duration_since(now);
            let handshakes = handshakes.saturating_duration_since(now);
            let owes = !upgrades.is_zero() || !handshakes.is_zero();
            owes.then_some(Debtor { origin: *origin, upgrades, handshakes })
        };
        // What the young half has of an origin is what counts.
        let old = old.iter().filter(|(origin, _)| !young.contains_key(origin));
        Frozen {
            young: young.iter().filter_map(debtor).collect(),
            old: old.filter_map(debtor).collect(),
            turned: turned.map(|turned| now.saturating_duration_since(turned)),
        }
    }

    /// Goes on where another program stopped. With another rate than it had, nobody owes more than a full burst.
    pub(crate) fn thaw(rate: Rate, frozen: Frozen, now: Instant) -> Self {
        let until = |debt: Duration| now.checked_add(debt.min(rate.tolerance())).unwrap_or(now);
        let half = |debtors: Vec<Debtor>| -> HashMap<_, _> {
            let debtors = debtors.into_iter().take(RATE_TABLE_HALF);
            let owed = debtors.map(|Debtor { origin, upgrades, handshakes }| {
                (origin, Debts { upgrades: until(upgrades), handshakes: until(handshakes) })
            });
            owed.collect()
        };
        let table = Table {
            young: half(frozen.young),
            old: half(frozen.old),
            turned: frozen.turned.map(|age| ago(now, age)),
        };
        Self { rate, table: RefCell::new(table) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::clock;

    const RATE: Rate = Rate { per_minute: 10, burst: 4 };

    fn carried(attempts: &Attempts, now: Instant, later: Instant) -> Attempts {
        let bytes = rmp_serde::to_vec_named(&attempts.freeze(now)).unwrap();
        Attempts::thaw(RATE, rmp_serde::from_slice(&bytes).unwrap(), later)
    }

    fn address(number: u8) -> IpAddr {
        let [v4, v6] = ["192.0.2.1", "2001:db8:1:2::3"].map(|text| text.parse().unwrap());
        match number {
            0 => v4,
            1 => v6,
            number => IpAddr::from([192, 0, 2, number]),
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Admit(u8),
        Handshake(u8),
        /// Both, as over TLS.
        Upgrade(u8),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..4_u8).prop_map(Step::Admit),
            (0..4_u8).prop_map(Step::Handshake),
            (0..4_u8).prop_map(Step::Upgrade),
            (0..30_000_u64).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..60)
    }

    /// What came of each step, waits included: these are only as long as they are said to be.
    fn go(attempts: &Attempts, now: &mut Instant, steps: &[Step]) -> Vec<Result<(), Duration>> {
        let mut go = |step: &Step| match *step {
            Step::Admit(number) => attempts.admit(address(number), *now),
            Step::Handshake(number) => attempts.admit_handshake(address(number), *now),
            Step::Upgrade(number) => {
                attempts.admit_handshake(address(number), *now)?;
                attempts.admit(address(number), *now)?;
                attempts.refund_handshake(address(number));
                Ok(())
            }
            Step::Wait(milliseconds) => {
                *now += Duration::from_millis(milliseconds);
                Ok(())
            }
        };
        steps.iter().map(&mut go).collect()
    }

    proptest! {
        #[test]
        fn whoever_waits_has_to_wait_as_long_as_without_another_program(
            before in steps(),
            after in steps(),
        ) {
            let (attempts, mut now) = (Attempts::new(RATE), clock::now());
            go(&attempts, &mut now, &before);
            let thawed = carried(&attempts, now, now);
            prop_assert!(thawed.len() <= attempts.len());
            let mut other = now;
            prop_assert_eq!(go(&thawed, &mut other, &after), go(&attempts, &mut now, &after));
        }
    }

    #[test]
    fn debts_go_on_from_when_they_are_read() {
        let (attempts, now) = (Attempts::new(RATE), clock::now());
        for _ in 0..4 {
            attempts.admit(address(0), now).unwrap();
        }
        let later = now + Duration::from_secs(3600);
        let thawed = carried(&attempts, now, later);
        assert_eq!(thawed.admit(address(0), later), Err(Duration::from_secs(6)));
        assert!(thawed.admit(address(1), later).is_ok());
    }

    #[test]
    fn a_full_table_stays_within_its_bound_and_knows_who_came_last() {
        let (attempts, now) = (Attempts::new(RATE), clock::now());
        let flood = (0..40_000_u32).map(|number| IpAddr::from(number.to_be_bytes()));
        for _ in 0..4 {
            flood.clone().for_each(|address| _ = attempts.admit(address, now));
        }
        let thawed = carried(&attempts, now, now);
        assert_eq!(thawed.len(), attempts.len());
        for _ in 0..4 {
            thawed.admit(address(0), now).unwrap();
        }
        flood.for_each(|address| _ = thawed.admit(address, now));
        assert!(thawed.len() <= 2 * RATE_TABLE_HALF);
    }

    #[test]
    fn whoever_owes_nothing_does_not_travel() {
        let (attempts, now) = (Attempts::new(RATE), clock::now());
        attempts.admit(address(0), now).unwrap();
        attempts.admit(address(1), now + Duration::from_secs(5)).unwrap();
        let frozen = attempts.freeze(now + Duration::from_secs(7));
        assert_eq!((frozen.young.len(), frozen.old.len()), (1, 0));
        assert_eq!(frozen.young[0].upgrades, Duration::from_secs(4));
    }

    #[test]
    fn whatever_is_read_nobody_waits_for_more_than_a_burst() {
        let debtor = |number: u32| Debtor {
            origin: Origin::of(IpAddr::from(number.to_be_bytes())),
            upgrades: Duration::MAX,
            handshakes: Duration::MAX,
        };
        let many = || (0..3 * 8192).map(debtor).collect();
        let frozen = Frozen { young: many(), old: many(), turned: Some(Duration::MAX) };
        let now = clock::now();
        let thawed = Attempts::thaw(RATE, frozen, now);
        assert!(thawed.len() <= 2 * RATE_TABLE_HALF);
        let first = IpAddr::from([0; 4]);
        assert!(thawed.admit(first, now).is_err() && thawed.admit_handshake(first, now).is_err());
        assert!(thawed.admit(first, now + RATE.tolerance()).is_ok());
    }

    #[test]
    fn what_is_missing_is_paid_off_and_what_is_unknown_is_ignored() {
        #[derive(Serialize)]
        struct Later {
            young: [LaterDebtor; 1],
            patience: u8,
        }
        #[derive(Serialize)]
        struct LaterDebtor {
            origin: Origin,
            upgrades: Duration,
            smiles: u8,
        }
        let debtor =
            LaterDebtor { origin: Origin::of(address(0)), upgrades: RATE.tolerance(), smiles: 3 };
        let bytes = rmp_serde::to_vec_named(&Later { young: [debtor], patience: 1 }).unwrap();
        let now = clock::now();
        let thawed = Attempts::thaw(RATE, rmp_serde::from_slice(&bytes).unwrap(), now);
        assert!(thawed.admit(address(0), now).is_err());
        assert!(thawed.admit_handshake(address(0), now).is_ok());
    }
}
