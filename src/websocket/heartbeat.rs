//! The idle machine of one connection: ping after silence, dead after more of it.
//!
//! Pure: it is fed with `Instant`s and says what is due. Any byte counts as a sign of life.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::limits::HEARTBEAT_STEPS;

/// Watches one peer.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    interval: Duration,
    timeout: Duration,
    heard: Instant,
    pinged: Option<Instant>,
}

/// The same as plain data; how long the interval is the options say.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct FrozenHeartbeat {
    heard: Duration,
    pinged: Option<Duration>,
}

/// What is due at a deadline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Beat {
    /// Nothing yet.
    Quiet,
    /// Send a ping; it is asked for once a silence.
    Ping,
    /// The peer has been silent for the whole timeout after the ping.
    Dead,
}

impl Heartbeat {
    /// Starts at `now`. The interval gets a jitter of up to a tenth either way, so that
    /// connections that came up together do not ping together for ever.
    pub(crate) fn new(interval: Duration, timeout: Duration, now: Instant) -> Self {
        let interval = interval.mul_f64(0.9 + 0.2 * fastrand::f64());
        Self { interval, timeout, heard: now, pinged: None }
    }

    /// Since when the peer is silent, and the ping unanswered.
    pub(crate) fn freeze(&self, now: Instant) -> FrozenHeartbeat {
        let heard = now.saturating_duration_since(self.heard);
        FrozenHeartbeat { heard, pinged: clock::age(now, self.pinged) }
    }

    /// Goes on with such a silence.
    pub(crate) fn thaw(
        frozen: FrozenHeartbeat,
        interval: Duration,
        timeout: Duration,
        now: Instant,
    ) -> Self {
        let pinged = frozen.pinged.map(|age| clock::ago(now, age));
        Self { pinged, ..Self::new(interval, timeout, clock::ago(now, frozen.heard)) }
    }

    /// A byte arrived.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = None;
    }

    /// When [`Self::check`] has to be asked next.
    pub(crate) fn deadline(&self) -> Instant {
        match self.pinged {
            None => self.heard + self.interval,
            Some(pinged) => pinged + self.timeout,
        }
    }

    /// Whether [`Self::check`] gives the peer up at `now`.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.pinged.is_some() && now >= self.deadline()
    }

    /// What is due at `now`.
    pub(crate) fn check(&mut self, now: Instant) -> Beat {
        if now < self.deadline() {
            return Beat::Quiet;
        }
        match self.pinged {
            None => {
                self.pinged = Some(now);
                Beat::Ping
            }
            Some(_) => Beat::Dead,
        }
    }
}

/// The moments at which all heartbeats of a relay ring: thousands of idle connections then wake the
/// processor a few times a second instead of hundreds of times.
#[derive(Debug)]
pub struct Ticks {
    epoch: Instant,
    step: Duration,
}

impl Ticks {
    /// Ticks from `epoch` on, [`HEARTBEAT_STEPS`] in an `interval`.
    pub fn new(interval: Duration, epoch: Instant) -> Self {
        Self { epoch, step: interval / HEARTBEAT_STEPS }
    }

    /// The first tick that is not before `moment`.
    pub fn at_or_after(&self, moment: Instant) -> Instant {
        let since = moment.saturating_duration_since(self.epoch).as_nanos();
        // 64 bits of nanoseconds are 584 years.
        let (Ok(since), Ok(step)) = (u64::try_from(since), u64::try_from(self.step.as_nanos()))
        else {
            return moment;
        };
        let wait = match since.checked_rem(step) {
            None | Some(0) => 0,
            Some(past) => step - past,
        };
        moment.checked_add(Duration::from_nanos(wait)).unwrap_or(moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);
    const TIMEOUT: Duration = Duration::from_secs(30);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn heartbeat(now: Instant) -> Heartbeat {
        Heartbeat::new(INTERVAL, TIMEOUT, now)
    }

    #[test]
    fn silence_is_pinged_once_and_then_ends_the_connection() {
        let start = clock::now();
        let mut heart = heartbeat(start);
        assert_eq!(heart.check(start + INTERVAL.mul_f64(0.89)), Beat::Quiet);
        let pinged = start + INTERVAL.mul_f64(1.1);
        assert_eq!(heart.check(pinged), Beat::Ping);
        assert_eq!(heart.check(pinged), Beat::Quiet);
        assert_eq!(heart.check(pinged + TIMEOUT - Duration::from_millis(1)), Beat::Quiet);
        assert_eq!(heart.check(pinged + TIMEOUT), Beat::Dead);
    }

    #[test]
    fn any_byte_starts_the_silence_anew() {
        let start = clock::now();
        let mut heart = heartbeat(start);
        assert_eq!(heart.check(start + 2 * INTERVAL), Beat::Ping);
        heart.heard(start + 2 * INTERVAL + TIMEOUT / 2);
        assert_eq!(heart.check(start + 2 * INTERVAL + TIMEOUT), Beat::Quiet);
    }

    #[test]
    fn it_holds_past_24_9_and_49_7_days_of_uptime() {
        for days in [24, 25, 49, 50, 4_000] {
            let now = clock::now() + days * DAY + DAY * 9 / 10;
            let mut heart = heartbeat(now);
            assert_eq!(heart.check(now + INTERVAL / 2), Beat::Quiet, "{days} days");
            assert_eq!(heart.check(now + 2 * INTERVAL), Beat::Ping, "{days} days");
            assert_eq!(heart.check(now + 2 * INTERVAL + TIMEOUT), Beat::Dead, "{days} days");
        }
    }

    #[test]
    fn an_upgrade_at_any_moment_keeps_how_long_a_peer_was_silent_and_its_ping_unanswered() {
        let start = clock::now();
        let seconds = Duration::from_secs;
        let upgraded = |heart: &Heartbeat, now| {
            let frozen = rmp_serde::to_vec_named(&heart.freeze(now)).unwrap();
            let frozen = rmp_serde::from_slice(&frozen).unwrap();
            Heartbeat::thaw(frozen, INTERVAL, TIMEOUT, now + seconds(1))
        };
        let mut heart = upgraded(&heartbeat(start), start + seconds(20));
        // It is as if the second had not been.
        let start = start + seconds(1);
        assert_eq!(heart.check(start + INTERVAL.mul_f64(0.89)), Beat::Quiet);
        assert_eq!(heart.check(start + INTERVAL.mul_f64(1.11)), Beat::Ping);
        let mut heart = upgraded(&heart, start + INTERVAL.mul_f64(1.11) + seconds(20));
        let dead = start + INTERVAL.mul_f64(1.11) + TIMEOUT + seconds(1);
        assert_eq!(heart.check(dead - seconds(1)), Beat::Quiet, "it is pinged already");
        assert!(!heart.is_over(dead - Duration::from_millis(1)) && heart.is_over(dead));
        assert_eq!(heart.check(dead), Beat::Dead);
    }

    #[test]
    fn the_intervals_of_many_connections_are_spread() {
        let now = clock::now();
        let deadlines: Vec<_> = (0..100).map(|_| heartbeat(now).deadline() - now).collect();
        let (least, most) = (deadlines.iter().min().unwrap(), deadlines.iter().max().unwrap());
        assert!(*least >= INTERVAL.mul_f64(0.9) && *most <= INTERVAL.mul_f64(1.1));
        assert!(*most - *least > INTERVAL / 20, "{least:?} to {most:?}");
    }

    #[test]
    fn ticks_are_shared_by_all_deadlines_and_never_early() {
        let epoch = clock::now();
        let ticks = Ticks::new(INTERVAL, epoch);
        let step = INTERVAL / HEARTBEAT_STEPS;
        for (after, tick) in [
            (Duration::ZERO, 0),
            (Duration::from_nanos(1), 1),
            (step - Duration::from_nanos(1), 1),
            (step, 1),
            (step + Duration::from_nanos(1), 2),
            (DAY * 4_000, u32::try_from((DAY * 4_000).as_nanos() / step.as_nanos()).unwrap()),
        ] {
            assert_eq!(ticks.at_or_after(epoch + after), epoch + step * tick, "{after:?}");
        }
    }

    #[test]
    fn an_interval_too_short_to_be_divided_has_no_ticks() {
        let epoch = clock::now();
        let moment = epoch + Duration::from_nanos(77);
        assert_eq!(Ticks::new(Duration::from_nanos(1), epoch).at_or_after(moment), moment);
    }
}
