//! The table of upgrade attempts by source address: a rate with a burst, in bounded memory.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits::RATE_TABLE_HALF;
use crate::origin::Origin;

/// How many attempts a source address may make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Attempts a minute in the long run.
    pub(crate) per_minute: u32,
    /// Attempts at once after a quiet time.
    pub(crate) burst: u32,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/min, {} at once", self.per_minute, self.burst)
    }
}

impl Rate {
    fn interval(self) -> Duration {
        Duration::from_secs(60) / self.per_minute
    }

    /// How far ahead of the clock a source's account may run: a full burst.
    fn tolerance(self) -> Duration {
        self.interval().saturating_mul(self.burst)
    }
}

/// A virtual-scheduling rate limiter (GCRA): one instant a source, at which its past attempts are
/// paid off.
///
/// The table has two halves. A source that makes an attempt moves to the young half; when that is
/// full, or old enough that everything in the other half has been paid off, the old half is
/// forgotten and the young one takes its place. So memory is bounded, no sweep ever takes longer
/// than another step, and a flood of addresses can at worst give forgotten sources their burst back.
#[derive(Debug)]
pub(crate) struct Attempts {
    rate: Rate,
    table: RefCell<Table>,
}

#[derive(Debug, Default)]
struct Table {
    young: HashMap<Origin, Instant>,
    old: HashMap<Origin, Instant>,
    turned: Option<Instant>,
}

impl Attempts {
    /// An empty table.
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, table: RefCell::default() }
    }

    /// Counts an attempt from `address`; the error is how long to wait for the next one. A refused
    /// attempt costs nothing, so that a client that waits as told always gets through.
    pub(crate) fn admit(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let source = Origin::of(address);
        let tolerance = self.rate.tolerance();
        let mut table = self.table.borrow_mut();
        table.turn(now, tolerance);
        let known = table.young.get(&source).or_else(|| table.old.get(&source));
        let paid_off = known.map_or(now, |at| (*at).max(now)) + self.rate.interval();
        let ahead = paid_off.saturating_duration_since(now);
        if ahead > tolerance {
            return Err(ahead - tolerance);
        }
        table.young.insert(source, paid_off);
        Ok(())
    }

    /// Sources in the table.
    #[cfg(test)]
    fn len(&self) -> usize {
        let table = self.table.borrow();
        table.young.len() + table.old.len()
    }
}

impl Table {
    fn turn(&mut self, now: Instant, tolerance: Duration) {
        let turned = *self.turned.get_or_insert(now);
        let aged = now.saturating_duration_since(turned) > tolerance;
        if aged || self.young.len() >= RATE_TABLE_HALF {
            self.old = std::mem::take(&mut self.young);
            self.turned = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_minute: 10, burst: 20 };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let (attempts, start) = (Attempts::new(RATE), Instant::now());
        let source = address("192.0.2.1");
        for _ in 0..20 {
            attempts.admit(source, start).unwrap();
        }
        assert_eq!(attempts.admit(source, start), Err(Duration::from_secs(6)));
        assert!(attempts.admit(source, start + Duration::from_millis(5_999)).is_err());
        attempts.admit(source, start + Duration::from_secs(6)).unwrap();
        assert!(attempts.admit(source, start + Duration::from_secs(6)).is_err());
        attempts.admit(address("192.0.2.2"), start).unwrap();
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_a_mapped_address_is_ipv4() {
        let (attempts, now) = (Attempts::new(Rate { per_minute: 1, burst: 1 }), Instant::now());
        attempts.admit(address("2001:db8::1"), now).unwrap();
        assert!(attempts.admit(address("2001:db8::2"), now).is_err());
        attempts.admit(address("2001:db8:0:1::1"), now).unwrap();
        attempts.admit(address("::ffff:192.0.2.1"), now).unwrap();
        assert!(attempts.admit(address("192.0.2.1"), now).is_err());
    }

    #[test]
    fn the_table_stays_bounded_under_a_flood_of_addresses_and_is_swept_in_time() {
        let (attempts, now) = (Attempts::new(RATE), Instant::now());
        for number in 0..100_000_u32 {
            let _ = attempts.admit(IpAddr::from(number.to_be_bytes()), now);
        }
        assert!(attempts.len() <= 2 * RATE_TABLE_HALF);
        let mut later = now;
        for _ in 0..3 {
            later += RATE.tolerance() + Duration::from_secs(1);
            attempts.admit(address("192.0.2.1"), later).unwrap();
        }
        assert!(attempts.len() <= 2, "{} sources are left", attempts.len());
    }
}
