//! The question to the holder of a claimed server-id: is anybody there?

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::clock;
use crate::ids::random_payload;
use crate::limits::PROBE_BLIND;

/// One probe of one holder. The holder's link reports what it hears, the newcomer waits.
#[derive(Debug)]
pub struct Probe {
    payload: [u8; 8],
    asked: Instant,
    last_call: Cell<bool>,
    outcome: Cell<Option<Outcome>>,
    waiting: RefCell<Option<Waker>>,
    /// The holder's link.
    link: RefCell<Option<Waker>>,
}

/// Where a holder's link finds the probe that it has to answer for, while there is one.
#[derive(Debug, Default)]
pub struct Inquiry {
    probe: RefCell<Option<Rc<Probe>>>,
}

/// A probe as plain data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FrozenProbe {
    payload: ByteArray<8>,
    asked: Duration,
    last_call: bool,
    outcome: Option<Outcome>,
}

/// What became of a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// The holder answered: the newcomer loses.
    Answered,
    /// The holder's connection ended meanwhile: the slot is free to take.
    HolderGone,
    /// The time is over, and nothing was there when the holder's socket was read for the last time.
    Silent,
}

impl Probe {
    /// A probe whose ping is sent at `asked`.
    pub fn new(asked: Instant) -> Self {
        Self {
            payload: random_payload(),
            asked,
            last_call: Cell::new(false),
            outcome: Cell::new(None),
            waiting: RefCell::new(None),
            link: RefCell::new(None),
        }
    }

    /// How far it has come.
    pub(crate) fn freeze(&self, now: Instant) -> FrozenProbe {
        FrozenProbe {
            payload: ByteArray::new(self.payload),
            asked: now.saturating_duration_since(self.asked),
            last_call: self.last_call.get(),
            outcome: self.outcome.get(),
        }
    }

    /// Goes on from there.
    pub(crate) fn thaw(frozen: FrozenProbe, now: Instant) -> Self {
        Self {
            payload: frozen.payload.into_array(),
            asked: clock::ago(now, frozen.asked),
            last_call: Cell::new(frozen.last_call),
            outcome: Cell::new(frozen.outcome),
            waiting: RefCell::new(None),
            link: RefCell::new(None),
        }
    }

    /// When its ping was sent.
    pub(crate) fn asked(&self) -> Instant {
        self.asked
    }

    /// The payload of its ping.
    pub fn payload(&self) -> &[u8; 8] {
        &self.payload
    }

    /// The holder sent bytes. They are an answer if they come later than 1 s after the ping; what
    /// arrives earlier may have been on its way when the peer vanished.
    pub fn heard(&self, now: Instant) {
        if now.saturating_duration_since(self.asked) > PROBE_BLIND {
            self.settle(Outcome::Answered);
        }
    }

    /// The holder sent a pong; its own payload is an answer at any time.
    pub fn pong(&self, payload: &[u8]) {
        if payload == self.payload {
            self.settle(Outcome::Answered);
        }
    }

    /// The holder's connection ended. Its close frame was heard like any byte, and is no answer.
    pub fn holder_gone(&self) {
        self.outcome.take();
        self.settle(Outcome::HolderGone);
    }

    /// The time is over: what has arrived by now still counts, once the holder's link has read it.
    pub fn call_last(&self) {
        self.last_call.set(true);
        if let Some(link) = self.link.take() {
            link.wake();
        }
    }

    /// Whether the time is over; the holder's link is woken when it is. Cancel safe.
    fn poll_last_call(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.last_call.get() {
            return Poll::Ready(());
        }
        let mut link = self.link.borrow_mut();
        if !link.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *link = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The holder's link has read all there is.
    pub fn nothing_more(&self) {
        if self.last_call.get() {
            self.settle(Outcome::Silent);
        }
    }

    /// The outcome so far.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.get()
    }

    /// Waits for the outcome; cancel safe, for one waiter.
    pub fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        match self.outcome.get() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                *self.waiting.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn settle(&self, outcome: Outcome) {
        if self.outcome.get().is_none() {
            self.outcome.set(Some(outcome));
            if let Some(waker) = self.waiting.take() {
                waker.wake();
            }
        }
    }
}

impl Inquiry {
    /// One with a probe under way, or none.
    pub(crate) fn new(probe: Option<Rc<Probe>>) -> Rc<Self> {
        Rc::new(Self { probe: RefCell::new(probe) })
    }

    /// The probe under way.
    pub(crate) fn probe(&self) -> Option<Rc<Probe>> {
        self.probe.borrow().clone()
    }

    /// Whether there is one.
    pub(crate) fn is_under_way(&self) -> bool {
        self.probe.borrow().is_some()
    }

    /// Has the link answer for this probe.
    pub fn begin(&self, probe: &Rc<Probe>) {
        *self.probe.borrow_mut() = Some(Rc::clone(probe));
    }

    /// Forgets the probe.
    pub fn end(&self) {
        drop(self.probe.take());
    }

    /// Forgets `probe`, if it is the one under way.
    pub(crate) fn end_if(&self, probe: &Rc<Probe>) {
        drop(self.probe.borrow_mut().take_if(|own| Rc::ptr_eq(own, probe)));
    }

    /// Forgets the probe if nobody waits for its outcome.
    pub(crate) fn end_if_orphaned(&self) {
        drop(self.probe.borrow_mut().take_if(|own| Rc::strong_count(own) == 1));
    }

    /// The holder sent bytes.
    pub fn heard(&self, now: Instant) {
        if let Some(probe) = &*self.probe.borrow() {
            probe.heard(now);
        }
    }

    /// The holder sent a pong.
    pub fn heard_pong(&self, payload: &[u8]) {
        if let Some(probe) = &*self.probe.borrow() {
            probe.pong(payload);
        }
    }

    /// The probe that waits for the link to have read everything, if one does; the link is woken when one
    /// comes to that. Cancel safe.
    pub fn last_call(&self, cx: &mut Context<'_>) -> Option<Rc<Probe>> {
        let probe = self.probe.borrow();
        probe.as_ref().filter(|probe| probe.poll_last_call(cx).is_ready()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use relay_test_kit::wake::Wakes;

    use super::*;
    use crate::clock;

    #[test]
    fn its_pong_answers_at_once_and_no_other_does() {
        let now = clock::now();
        let probe = Probe::new(now);
        probe.pong(b"");
        probe.pong(b"whatever");
        assert_eq!(probe.outcome(), None);
        probe.pong(probe.payload().as_ref());
        assert_eq!(probe.outcome(), Some(Outcome::Answered));
    }

    #[test]
    fn bytes_count_only_later_than_a_second_after_the_ping() {
        let now = clock::now();
        let probe = Probe::new(now);
        probe.heard(now);
        probe.heard(now + PROBE_BLIND);
        assert_eq!(probe.outcome(), None);
        probe.heard(now + PROBE_BLIND + Duration::from_millis(1));
        assert_eq!(probe.outcome(), Some(Outcome::Answered));
    }

    #[test]
    fn silence_is_an_outcome_once_the_time_is_over_and_all_is_read() {
        let probe = Probe::new(clock::now());
        probe.nothing_more();
        assert_eq!(probe.outcome(), None);
        probe.call_last();
        assert_eq!(probe.outcome(), None);
        probe.nothing_more();
        assert_eq!(probe.outcome(), Some(Outcome::Silent));
    }

    #[test]
    fn an_upgrade_keeps_its_age_its_payload_and_its_outcome() {
        let start = clock::now();
        let second = Duration::from_secs(1);
        let upgraded = |probe: &Probe, at, now| {
            let frozen = rmp_serde::to_vec_named(&probe.freeze(at)).unwrap();
            Probe::thaw(rmp_serde::from_slice(&frozen).unwrap(), now)
        };
        let probe = Probe::new(start);
        let payload = *probe.payload();
        let (frozen_at, now) = (start + second / 2, start + 9 * second);
        let probe = upgraded(&probe, frozen_at, now);
        assert_eq!(now - probe.asked(), second / 2);
        probe.heard(now + second / 2);
        probe.call_last();
        let probe = upgraded(&probe, now, now);
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(probe.outcome(), None);
        assert!(probe.poll_last_call(&mut cx).is_ready());
        probe.pong(&payload);
        let probe = upgraded(&probe, now, now);
        assert_eq!(probe.outcome(), Some(Outcome::Answered));
    }

    #[test]
    fn an_inquiry_passes_on_what_the_link_hears_until_it_ends() {
        let now = clock::now();
        let inquiry = Inquiry::default();
        inquiry.heard(now);
        let probe = Rc::new(Probe::new(now));
        inquiry.begin(&probe);
        inquiry.heard(now);
        inquiry.heard_pong(b"other");
        assert_eq!(probe.outcome(), None);
        inquiry.heard_pong(probe.payload());
        assert_eq!(probe.outcome(), Some(Outcome::Answered));

        let forgotten = Rc::new(Probe::new(now));
        inquiry.begin(&forgotten);
        inquiry.end_if(&probe);
        assert!(inquiry.is_under_way(), "another probe");
        inquiry.end_if_orphaned();
        assert!(inquiry.is_under_way(), "somebody waits for it");
        inquiry.end_if(&forgotten);
        inquiry.heard(now + Duration::from_secs(5));
        inquiry.heard_pong(forgotten.payload());
        assert_eq!((forgotten.outcome(), inquiry.is_under_way()), (None, false));
        inquiry.begin(&forgotten);
        drop(forgotten);
        inquiry.end_if_orphaned();
        assert!(!inquiry.is_under_way());
    }

    #[test]
    fn the_end_of_the_time_wakes_the_link_once() {
        let probe = Rc::new(Probe::new(clock::now()));
        let inquiry = Inquiry::new(Some(Rc::clone(&probe)));
        let (count, waker) = Wakes::counting();
        let mut cx = Context::from_waker(&waker);
        assert!(inquiry.last_call(&mut cx).is_none());
        assert!(inquiry.last_call(&mut cx).is_none());
        assert_eq!(count.take(), 0);
        probe.call_last();
        assert_eq!(count.take(), 1);
        assert!(Rc::ptr_eq(&inquiry.last_call(&mut cx).unwrap(), &probe));
        probe.call_last();
        assert_eq!(count.take(), 0);
    }

    #[test]
    fn the_end_of_the_holder_outweighs_an_answer() {
        let probe = Probe::new(clock::now());
        probe.pong(probe.payload().as_ref());
        probe.holder_gone();
        assert_eq!(probe.outcome(), Some(Outcome::HolderGone));
        probe.pong(probe.payload().as_ref());
        assert_eq!(probe.outcome(), Some(Outcome::HolderGone));
    }
}
