//! Pure: when the next certificate is ordered.

use std::time::{Duration, Instant, SystemTime};

use crate::limits::{
    CLOCK_JUMP, CLOCK_STEP, ORDER_BACKOFF_FACTOR, ORDER_BACKOFF_MAX, ORDER_BACKOFF_MIN,
    ORDER_JITTER,
};

/// When a certificate is to be replaced: after two thirds of its life.
pub(super) fn renewal(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    // One whose life ends before it begins is due, whatever the time.
    let life = not_after.duration_since(not_before).unwrap_or_default();
    not_after.checked_sub(life / 3).unwrap_or(not_before)
}

/// How long to wait now, before the clock is looked at again; `None` once it is `due`.
pub(super) fn wait(now: SystemTime, due: SystemTime) -> Option<Duration> {
    due.duration_since(now).ok().filter(|left| !left.is_zero()).map(|left| left.min(CLOCK_STEP))
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// The clock that never jumps.
    pub(super) steady: Instant,
    /// The clock that dates go by.
    pub(super) wall: SystemTime,
}

/// Whether the wall clock was set, forwards or back, between two moments.
pub(super) fn was_set(before: Moment, now: Moment) -> bool {
    let passed = now.steady.saturating_duration_since(before.steady);
    let Some(expected) = before.wall.checked_add(passed) else { return true };
    let drift = match now.wall.duration_since(expected) {
        Ok(ahead) => ahead,
        Err(behind) => behind.duration(),
    };
    drift >= CLOCK_JUMP
}

/// Whether a certificate that was just issued is to be replaced sooner than an order may follow
/// another: a clock that is wrong, or a directory that is.
pub(super) fn is_premature(now: SystemTime, due: SystemTime) -> bool {
    now.checked_add(ORDER_BACKOFF_MIN).is_none_or(|soonest| due < soonest)
}

/// How long to wait after so many orders in a row that brought nothing to last, the first being 1.
/// `chance` is between 0 and 1.
pub(super) fn backoff(fruitless: u32, chance: f64) -> Duration {
    let growth = ORDER_BACKOFF_FACTOR.saturating_pow(fruitless.saturating_sub(1));
    let pause = ORDER_BACKOFF_MIN.saturating_mul(growth).min(ORDER_BACKOFF_MAX);
    pause + (pause / ORDER_JITTER).mul_f64(chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::clock;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_third_of_the_life_is_left_when_a_certificate_is_replaced() {
        assert_eq!(renewal(at(0), at(90)), at(60));
        assert_eq!(renewal(at(1000), at(1060)), at(1040));
        let issued = at(1_800_000_000);
        assert_eq!(renewal(issued, issued + 90 * DAY), issued + 60 * DAY);
        assert_eq!(renewal(issued, issued + 6 * DAY), issued + 4 * DAY);
    }

    #[test]
    fn one_that_ends_before_it_begins_is_due() {
        assert_eq!(renewal(at(90), at(60)), at(60));
        assert_eq!(renewal(UNIX_EPOCH, UNIX_EPOCH), UNIX_EPOCH);
    }

    #[test]
    fn a_clock_that_was_set_is_told_from_one_that_runs_a_little_fast_or_slow() {
        let before = Moment { steady: clock::now(), wall: at(1_800_000_000) };
        let second = Duration::from_secs(1);
        for hours in [0, 1, 6] {
            let passed = hours * 3600 * second;
            let slewed = passed / 2000;
            for wall in [before.wall + passed + slewed, before.wall + passed - slewed] {
                let now = Moment { steady: before.steady + passed, wall };
                assert!(!was_set(before, now), "{hours} h");
            }
            for jump in [CLOCK_JUMP, 120 * DAY] {
                for wall in [before.wall + passed + jump, before.wall + passed - jump] {
                    let now = Moment { steady: before.steady + passed, wall };
                    assert!(was_set(before, now), "{jump:?} after {hours} h");
                }
            }
        }
        // From 1970 to the present, as without a battery.
        let dead = Moment { steady: before.steady, wall: UNIX_EPOCH };
        assert!(was_set(dead, before) && was_set(before, dead));
    }

    #[test]
    fn the_clock_is_looked_at_twice_a_minute_and_at_the_time_itself() {
        let due = at(1_800_000_000);
        assert_eq!(wait(due - 60 * DAY, due), Some(CLOCK_STEP));
        assert_eq!(wait(due - Duration::from_secs(10), due), Some(Duration::from_secs(10)));
        assert_eq!(wait(due, due), None);
        assert_eq!(wait(due + DAY, due), None);
        // A board that believes in 1970 waits, and looks again.
        assert_eq!(wait(UNIX_EPOCH, due), Some(CLOCK_STEP));
    }

    #[test]
    fn a_certificate_that_is_due_before_another_order_may_follow_is_premature() {
        let now = at(1_800_000_000);
        for (due, expected) in [
            (now - DAY, true),
            (now, true),
            (now + ORDER_BACKOFF_MIN - Duration::from_secs(1), true),
            (now + ORDER_BACKOFF_MIN, false),
            (now + 60 * DAY, false),
        ] {
            assert_eq!(is_premature(now, due), expected, "{due:?}");
        }
    }

    #[test]
    fn pauses_grow_to_six_hours_and_no_further() {
        let pauses: Vec<_> = (1..=8).map(|count| backoff(count, 0.0).as_secs()).collect();
        assert_eq!(pauses, [15, 60, 240, 960, 3840, 15360, 21600, 21600]);
        assert_eq!(backoff(u32::MAX, 0.0), ORDER_BACKOFF_MAX);
        assert_eq!(backoff(0, 0.0), ORDER_BACKOFF_MIN, "never a loop");
    }

    #[test]
    fn chance_makes_a_pause_longer_by_a_quarter_at_most() {
        for count in [1, 3, 100] {
            let shortest = backoff(count, 0.0);
            assert_eq!(backoff(count, 1.0), shortest + shortest / 4);
            assert_eq!(backoff(count, 0.5), shortest + shortest / 8);
            assert_eq!(backoff(count, f64::NAN.max(7.0)), shortest + shortest / 4);
        }
    }

    #[test]
    fn any_hour_has_at_most_five_attempts() {
        for chance in [0.0, 0.5, 1.0] {
            let attempts: Vec<_> = (0..20)
                .scan(Duration::ZERO, |time, count| {
                    *time += if count == 0 { Duration::ZERO } else { backoff(count, chance) };
                    Some(*time)
                })
                .collect();
            for first in &attempts {
                let hour = first..&(*first + Duration::from_secs(60 * 60));
                assert!(attempts.iter().filter(|time| hour.contains(time)).count() <= 5);
            }
        }
    }
}
