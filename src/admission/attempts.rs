//! The table of upgrade attempts and TLS handshakes by source address: a rate with a burst, in bounded
//! memory.

mod frozen;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub(crate) use self::frozen::Frozen;
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

/// A virtual-scheduling rate limiter (GCRA): two instants per source, at which its past upgrade
/// attempts and its past TLS handshakes are paid off.
///
/// A handshake must be paid for before the request is known, and a health check is never
/// rate-limited. So handshakes have an allowance of their own, as large as that of the attempts. An
/// upgrade that is admitted gives its handshake back and costs one attempt, over TLS as without it.
/// What remains is used up by handshakes without an upgrade: a monitor that polls the health page
/// every 10 s makes 6 per minute, and phones that reconnect beside it take nothing away from it. With
/// all of it, an address gets twice the burst and twice the rate of signatures, and not hundreds per
/// second.
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
    young: HashMap<Origin, Debts>,
    old: HashMap<Origin, Debts>,
    turned: Option<Instant>,
}

/// When a source's debts are paid off.
#[derive(Clone, Copy, Debug)]
struct Debts {
    upgrades: Instant,
    handshakes: Instant,
}

impl Attempts {
    /// An empty table.
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, table: RefCell::default() }
    }

    /// Counts an upgrade attempt from `address`; the error is how long to wait for the next one. A
    /// refused attempt costs nothing, so that a client that waits as told always gets through.
    pub(crate) fn admit(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        self.take(address, now, |debts| &mut debts.upgrades)
    }

    /// Counts a TLS handshake from `address`, in the same way.
    pub(crate) fn admit_handshake(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        self.take(address, now, |debts| &mut debts.handshakes)
    }

    /// Takes a handshake of `address` off its account: an upgrade attempt has paid for it.
    pub(crate) fn refund_handshake(&self, address: IpAddr) {
        // An attempt has just been made: the source is in the young half.
        if let Some(debts) = self.table.borrow_mut().young.get_mut(&Origin::of(address)) {
            let less = debts.handshakes.checked_sub(self.rate.interval());
            debts.handshakes = less.unwrap_or(debts.handshakes);
        }
    }

    fn take(
        &self,
        address: IpAddr,
        now: Instant,
        account: impl Fn(&mut Debts) -> &mut Instant,
    ) -> Result<(), Duration> {
        let source = Origin::of(address);
        let tolerance = self.rate.tolerance();
        let mut table = self.table.borrow_mut();
        table.turn(now, tolerance);
        let known = table.young.get(&source).or_else(|| table.old.get(&source));
        let mut debts = known.copied().unwrap_or(Debts { upgrades: now, handshakes: now });
        let paid_off = account(&mut debts);
        *paid_off = (*paid_off).max(now) + self.rate.interval();
        let ahead = paid_off.saturating_duration_since(now);
        if ahead > tolerance {
            return Err(ahead - tolerance);
        }
        table.young.insert(source, debts);
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
    use crate::clock;

    const RATE: Rate = Rate { per_minute: 10, burst: 20 };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let (attempts, start) = (Attempts::new(RATE), clock::now());
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
    fn handshakes_have_an_allowance_of_their_own_of_the_same_size() {
        let (attempts, now) = (Attempts::new(RATE), clock::now());
        let source = address("192.0.2.1");
        for _ in 0..20 {
            attempts.admit(source, now).unwrap();
            attempts.admit_handshake(source, now).unwrap();
        }
        let wait = Duration::from_secs(6);
        assert_eq!(attempts.admit(source, now), Err(wait));
        assert_eq!(attempts.admit_handshake(source, now), Err(wait));
        attempts.admit_handshake(source, now + wait).unwrap();
        assert!(attempts.admit_handshake(source, now + wait).is_err());
        attempts.admit_handshake(address("192.0.2.2"), now).unwrap();
    }

    #[test]
    fn an_upgrade_gives_its_handshake_back_and_no_more_than_that() {
        let (attempts, now) = (Attempts::new(RATE), clock::now());
        let source = address("192.0.2.1");
        for _ in 0..20 {
            attempts.admit_handshake(source, now).unwrap();
            attempts.admit(source, now).unwrap();
            attempts.refund_handshake(source);
        }
        assert!(attempts.admit(source, now).is_err());
        for _ in 0..20 {
            attempts.admit_handshake(source, now).unwrap();
        }
        assert!(attempts.admit_handshake(source, now).is_err());
        // Not more than a full allowance is ever left, whatever comes back.
        let later = now + RATE.tolerance();
        attempts.admit(source, later).unwrap();
        attempts.refund_handshake(source);
        for _ in 0..20 {
            attempts.admit_handshake(source, later).unwrap();
        }
        assert!(attempts.admit_handshake(source, later).is_err());
        attempts.refund_handshake(address("192.0.2.2"));
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_a_mapped_address_is_ipv4() {
        let (attempts, now) = (Attempts::new(Rate { per_minute: 1, burst: 1 }), clock::now());
        attempts.admit(address("2001:db8::1"), now).unwrap();
        assert!(attempts.admit(address("2001:db8::2"), now).is_err());
        attempts.admit(address("2001:db8:0:1::1"), now).unwrap();
        attempts.admit(address("::ffff:192.0.2.1"), now).unwrap();
        assert!(attempts.admit(address("192.0.2.1"), now).is_err());
    }

    #[test]
    fn the_table_stays_bounded_under_a_flood_of_addresses_and_is_swept_in_time() {
        let (attempts, now) = (Attempts::new(RATE), clock::now());
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
