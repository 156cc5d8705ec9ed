//! Refusals that repeat are summed up, so that a scanner cannot wear out an SD card: the first of
//! a kind is written at once, the others of the next minute are counted and told by one line.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::clock::{self, Timer};
use log::kv::Key;
use log::{Level, Record, log};

use crate::limits::REPEAT_KINDS;
use crate::telemetry::events::Throttled;

/// Counts of what was held back, for all threads.
#[derive(Debug)]
pub struct Repeats(Mutex<Window>);

#[derive(Debug)]
struct Window {
    window: Duration,
    tallies: Vec<Tally>,
    waker: Option<Waker>,
}

/// A kind whose window is open: one was written, and so many were held back since.
#[derive(Debug)]
struct Tally {
    event: Throttled,
    reason: Option<String>,
    level: Level,
    target: String,
    opened: Instant,
    held: u64,
}

/// What is to be told of one kind.
#[derive(PartialEq, Eq, Debug)]
struct Summary {
    event: Throttled,
    reason: Option<String>,
    level: Level,
    target: String,
    count: u64,
    over: Duration,
}

impl Repeats {
    /// Nothing has happened; a kind is counted for `window` after one of it was written.
    pub(super) fn new(window: Duration) -> Self {
        Self(Mutex::new(Window { window, tallies: Vec::new(), waker: None }))
    }

    /// Whether a record is to be written now; one that is not has been counted.
    pub(super) fn admit(&self, record: &Record<'_>, now: Instant) -> bool {
        let Some(event) = Throttled::named(&record.args().to_string()) else { return true };
        // Each reason of a refusal is a kind of its own. The reasons are the program's, not a peer's.
        let reason =
            (event == Throttled::Refused).then(|| record.key_values().get(Key::from("reason")));
        let reason = reason.flatten().map(|reason| reason.to_string());
        let (is_admitted, waker) = {
            let mut state = self.state();
            let is_admitted = state.admit(event, reason, record, now);
            let waits = state.deadline().is_some();
            (is_admitted, if waits { state.waker.take() } else { None })
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        is_admitted
    }

    /// Tells what was held back when its minute is over. Never returns; nothing wakes it while
    /// there is nothing to tell.
    pub async fn tell_when_due(&self) {
        loop {
            self.due().await.iter().for_each(Summary::tell);
        }
    }

    /// Tells all that was held back so far.
    pub fn tell(&self) {
        let summaries = self.state().take(clock::now(), |_| true);
        summaries.iter().for_each(Summary::tell);
    }

    /// Waits until something is to be told.
    async fn due(&self) -> Vec<Summary> {
        loop {
            let deadline = poll_fn(|cx| {
                let mut state = self.state();
                match state.deadline() {
                    Some(deadline) => Poll::Ready(deadline),
                    None => {
                        state.waker = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            });
            Timer::at(deadline.await).await;
            let now = clock::now();
            let summaries = {
                let mut state = self.state();
                let window = state.window;
                state.take(now, |tally| now.duration_since(tally.opened) >= window)
            };
            if !summaries.is_empty() {
                return summaries;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn admit(
        &mut self,
        event: Throttled,
        mut reason: Option<String>,
        record: &Record<'_>,
        now: Instant,
    ) -> bool {
        let window = self.window;
        self.tallies.retain(|tally| tally.held > 0 || now.duration_since(tally.opened) < window);
        let is_known = |tally: &&mut Tally| tally.event == event && tally.reason == reason;
        if let Some(tally) = self.tallies.iter_mut().find(is_known) {
            // One whose summary is due and has not been told yet takes it too.
            tally.held += 1;
            return false;
        }
        if self.tallies.len() >= REPEAT_KINDS && reason.take().is_some() {
            return self.admit(event, None, record, now);
        }
        let (level, target) = (record.level(), record.target().to_owned());
        self.tallies.push(Tally { event, reason, level, target, opened: now, held: 0 });
        true
    }

    /// When the soonest summary is due.
    fn deadline(&self) -> Option<Instant> {
        let held = self.tallies.iter().filter(|tally| tally.held > 0);
        held.map(|tally| tally.opened + self.window).min()
    }

    /// Takes what was held back of the kinds that `is_due`; the next of them is written at once.
    fn take(&mut self, now: Instant, is_due: impl Fn(&Tally) -> bool) -> Vec<Summary> {
        let mut taken = Vec::new();
        self.tallies.retain_mut(|tally| {
            if tally.held == 0 || !is_due(tally) {
                return true;
            }
            taken.push(Summary {
                event: tally.event,
                reason: tally.reason.take(),
                level: tally.level,
                target: std::mem::take(&mut tally.target),
                count: tally.held,
                over: now.duration_since(tally.opened),
            });
            false
        });
        taken
    }
}

impl Summary {
    /// One line: so many more than the one that was written, in so many seconds. It has the level
    /// and the target of what it stands for, hence passes the same filter.
    fn tell(&self) {
        let (of, count, seconds) = (self.event.name(), self.count, self.over.as_secs());
        match &self.reason {
            Some(reason) => log!(
                target: &self.target, self.level,
                of = of, reason = reason.as_str(), count = count, seconds = seconds; "repeated"
            ),
            None => log!(
                target: &self.target, self.level,
                of = of, count = count, seconds = seconds; "repeated"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Display;

    use futures_lite::future::{block_on, poll_once};
    use log::RecordBuilder;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn admit(repeats: &Repeats, event: impl Display, reason: &str, now: Instant) -> bool {
        let pairs = [("reason", reason)];
        let mut builder = RecordBuilder::new();
        builder.level(Level::Info).target("t").key_values(&pairs);
        let mut admit = |args| repeats.admit(&builder.args(args).build(), now);
        admit(format_args!("{event}"))
    }

    fn taken(repeats: &Repeats, now: Instant) -> Vec<(Throttled, Option<String>, u64)> {
        let due = |tally: &Tally| now.duration_since(tally.opened) >= MINUTE;
        let taken = repeats.state().take(now, due);
        taken.into_iter().map(|summary| (summary.event, summary.reason, summary.count)).collect()
    }

    #[test]
    fn the_first_of_a_minute_is_written_and_the_others_are_one_summary() {
        let (repeats, start) = (Repeats::new(MINUTE), clock::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(admit(&repeats, Throttled::ProxyFault, "x", at(0)));
        assert_eq!(repeats.state().deadline(), None, "nothing to tell, nothing to wait for");
        for second in 1..=59 {
            assert!(!admit(&repeats, Throttled::ProxyFault, "y", at(second)));
        }
        assert_eq!(repeats.state().deadline(), Some(at(60)));
        assert_eq!(taken(&repeats, at(59)), []);
        assert_eq!(taken(&repeats, at(60)), [(Throttled::ProxyFault, None, 59)]);
        assert_eq!(repeats.state().deadline(), None);
        assert!(admit(&repeats, Throttled::ProxyFault, "x", at(61)), "a new minute, a new first");
        assert!(admit(&repeats, Throttled::ProxyFault, "x", at(121)), "nothing was held back");
    }

    #[test]
    fn each_reason_of_a_refusal_is_a_kind_and_other_events_are_none() {
        let (repeats, now) = (Repeats::new(MINUTE), clock::now());
        for _ in 0..3 {
            assert!(admit(&repeats, "server_claimed", "a", now));
        }
        for reason in ["a", "b"] {
            assert!(admit(&repeats, Throttled::Refused, reason, now));
            assert!(!admit(&repeats, Throttled::Refused, reason, now));
        }
        assert!(!admit(&repeats, Throttled::Refused, "b", now));
        let kind = |reason: &str, count| (Throttled::Refused, Some(reason.to_owned()), count);
        assert_eq!(taken(&repeats, now + MINUTE), [kind("a", 1), kind("b", 2)]);
    }

    #[test]
    fn the_table_is_bounded_and_what_finds_no_place_shares_one() {
        let (repeats, now) = (Repeats::new(MINUTE), clock::now());
        let mut written = 0;
        for number in 0..10_000 {
            written += usize::from(admit(&repeats, Throttled::Refused, &number.to_string(), now));
        }
        assert_eq!((written, repeats.state().tallies.len()), (REPEAT_KINDS + 1, REPEAT_KINDS + 1));
        let told: u64 = taken(&repeats, now + MINUTE).iter().map(|(_, _, count)| count).sum();
        assert_eq!(told, 10_000 - written as u64);
    }

    #[test]
    fn what_is_due_wakes_the_teller_and_nothing_else_does() {
        let repeats = Repeats::new(Duration::from_millis(20));
        block_on(async {
            let mut due = Box::pin(repeats.due());
            assert_eq!(poll_once(&mut due).await, None);
            assert!(repeats.state().waker.is_some(), "no timer while there is nothing to tell");
            let now = clock::now();
            assert!(admit(&repeats, Throttled::ProxyFault, "", now));
            assert!(repeats.state().waker.is_some());
            assert!(!admit(&repeats, Throttled::ProxyFault, "", now));
            assert!(repeats.state().waker.is_none(), "it was woken");
            let told = due.await;
            assert_eq!((told.len(), told[0].count), (1, 1));
            assert!(told[0].over >= Duration::from_millis(20));
        });
    }
}
