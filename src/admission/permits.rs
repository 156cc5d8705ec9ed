//! Permits for upgraded connections: as many as `--max-connections`, of which one source gets its
//! share; each undone by its `Drop`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::limits::{REQUESTS_AT_CAP, STRANGERS_SHARE};
use crate::origin::Origin;

/// The permits that are left.
#[derive(Debug)]
pub struct Permits {
    most: usize,
    taken: Cell<usize>,
    sources: Option<Shares>,
    /// How often a permit was taken or came back.
    turnover: Cell<u64>,
    drained: RefCell<Option<Waker>>,
    watching: RefCell<Option<Waker>>,
}

/// What the sources hold.
#[derive(Debug)]
struct Shares {
    /// The most that one may hold.
    most: usize,
    held: RefCell<HashMap<Origin, usize>>,
}

/// The right to one upgraded connection.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Rc<Permits>,
    source: Origin,
}

/// Why there is no permit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shortage {
    /// None is left, or what is left is kept for sources that hold none.
    All,
    /// The source holds as many as one may.
    Origin,
}

impl Permits {
    /// `most` permits. With `most_of_a_source` no source holds more than that, and those that hold
    /// one already leave one in [`STRANGERS_SHARE`] of all to those that hold none.
    pub(crate) fn new(most: usize, most_of_a_source: Option<usize>) -> Rc<Self> {
        Rc::new(Self {
            most,
            taken: Cell::new(0),
            sources: most_of_a_source.map(|most| Shares { most, held: RefCell::default() }),
            turnover: Cell::new(0),
            drained: RefCell::new(None),
            watching: RefCell::new(None),
        })
    }

    /// Takes a permit for `source` if one is left for it.
    pub(crate) fn acquire(self: &Rc<Self>, source: Origin) -> Result<Permit, Shortage> {
        let left = self.most.saturating_sub(self.taken.get());
        if left == 0 {
            return Err(Shortage::All);
        }
        if let Some(sources) = &self.sources {
            let held = sources.held.borrow();
            let own = held.get(&source).copied().unwrap_or(0);
            if own >= sources.most {
                return Err(Shortage::Origin);
            }
            if own > 0 && left <= self.most / STRANGERS_SHARE {
                return Err(Shortage::All);
            }
        }
        Ok(self.renew(source))
    }

    /// Gives a permit to a connection that had one before an upgrade, whatever is left: the options may be others
    /// now.
    pub(crate) fn renew(self: &Rc<Self>, source: Origin) -> Permit {
        if let Some(sources) = &self.sources {
            *sources.held.borrow_mut().entry(source).or_default() += 1;
        }
        self.taken.set(self.taken.get() + 1);
        self.turn_over();
        Permit { permits: Rc::clone(self), source }
    }

    /// How many permits are taken.
    pub(crate) fn taken(&self) -> usize {
        self.taken.get()
    }

    /// How many requests `source` may have in progress: what it could still get permits for, and
    /// some in any case, so that they can be told that there are none, and its health checks pass.
    pub fn room(&self, source: Origin) -> usize {
        let Some(sources) = &self.sources else { return usize::MAX };
        let own = sources.held.borrow().get(&source).copied().unwrap_or(0);
        sources.most.saturating_sub(own).max(REQUESTS_AT_CAP.min(sources.most))
    }

    /// Waits until every permit is back; for one waiter. Cancel safe.
    pub fn poll_all_back(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.taken.get() == 0 {
            return Poll::Ready(());
        }
        *self.drained.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits until a permit was taken or came back since `seen`, which begins at zero, and brings
    /// `seen` up to date; for one waiter. Cancel safe.
    pub(crate) fn poll_turnover(&self, cx: &mut Context<'_>, seen: &mut u64) -> Poll<()> {
        if *seen != self.turnover.get() {
            *seen = self.turnover.get();
            return Poll::Ready(());
        }
        *self.watching.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn turn_over(&self) {
        self.turnover.set(self.turnover.get() + 1);
        if let Some(waker) = self.watching.take() {
            waker.wake();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let permits = &self.permits;
        if let Some(sources) = &permits.sources {
            if let Entry::Occupied(mut held) = sources.held.borrow_mut().entry(self.source) {
                match held.get() {
                    1 => drop(held.remove()),
                    own => {
                        let left = own - 1;
                        held.insert(left);
                    }
                }
            }
        }
        permits.taken.set(permits.taken.get() - 1);
        permits.turn_over();
        if permits.taken.get() == 0 {
            if let Some(waker) = permits.drained.take() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u8) -> Origin {
        Origin::V4([192, 0, 2, number])
    }

    #[test]
    fn no_more_permits_than_there_are_and_each_comes_back() {
        let permits = Permits::new(2, None);
        let (one, two) = (permits.acquire(source(1)).unwrap(), permits.acquire(source(1)).unwrap());
        assert!(permits.acquire(source(2)).is_err());
        drop(one);
        let three = permits.acquire(source(1)).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(permits.poll_all_back(&mut cx).is_pending());
        drop((two, three));
        assert!(permits.poll_all_back(&mut cx).is_ready());
    }

    #[test]
    fn the_turnover_is_seen_once_for_whatever_happened_since() {
        let permits = Permits::new(2, None);
        let mut cx = Context::from_waker(Waker::noop());
        let mut seen = 0;
        assert!(permits.poll_turnover(&mut cx, &mut seen).is_pending());
        let one = permits.acquire(source(1));
        let two = permits.acquire(source(1));
        assert!(permits.poll_turnover(&mut cx, &mut seen).is_ready());
        assert!(permits.poll_turnover(&mut cx, &mut seen).is_pending());
        drop((one, two));
        assert!(permits.poll_turnover(&mut cx, &mut seen).is_ready());
        assert!(permits.poll_turnover(&mut cx, &mut seen).is_pending());
    }

    #[test]
    fn a_source_holds_no_more_than_its_most_and_gets_back_what_it_returns() {
        let permits = Permits::new(100, Some(2));
        let (one, _two) =
            (permits.acquire(source(1)).unwrap(), permits.acquire(source(1)).unwrap());
        assert_eq!(permits.acquire(source(1)).unwrap_err(), Shortage::Origin);
        let _other = permits.acquire(source(2)).unwrap();
        drop(one);
        let _again = permits.acquire(source(1)).unwrap();
        assert_eq!(permits.acquire(source(1)).unwrap_err(), Shortage::Origin);
    }

    #[test]
    fn a_share_stays_for_sources_that_hold_none() {
        let permits = Permits::new(16, Some(16));
        let mut held: Vec<_> = (0..14).map(|_| permits.acquire(source(1)).unwrap()).collect();
        assert_eq!(permits.acquire(source(1)).unwrap_err(), Shortage::All);
        held.push(permits.acquire(source(2)).unwrap());
        assert_eq!(permits.acquire(source(2)).unwrap_err(), Shortage::All);
        held.push(permits.acquire(source(3)).unwrap());
        assert_eq!(permits.acquire(source(4)).unwrap_err(), Shortage::All);
        held.truncate(13);
        held.push(permits.acquire(source(1)).unwrap());
    }

    #[test]
    fn without_a_most_of_a_source_one_may_take_all() {
        let permits = Permits::new(16, None);
        let _all: Vec<_> = (0..16).map(|_| permits.acquire(source(1)).unwrap()).collect();
        assert_eq!(permits.acquire(source(1)).unwrap_err(), Shortage::All);
        assert_eq!(permits.room(source(1)), usize::MAX);
    }

    #[test]
    fn there_is_room_for_some_requests_even_of_a_source_that_holds_its_most() {
        let permits = Permits::new(100, Some(REQUESTS_AT_CAP + 2));
        let mut held = Vec::new();
        for more in [2, 1, 0, 0] {
            assert_eq!(permits.room(source(1)), REQUESTS_AT_CAP + more);
            held.extend(permits.acquire(source(1)));
        }
        assert_eq!(permits.room(source(2)), REQUESTS_AT_CAP + 2);
        assert_eq!(Permits::new(100, Some(3)).room(source(1)), 3);
    }

    #[test]
    fn a_source_that_holds_nothing_is_forgotten() {
        let permits = Permits::new(100, Some(3));
        let held: Vec<_> = (0..50).map(|number| permits.acquire(source(number))).collect();
        drop(held);
        assert!(permits.sources.as_ref().unwrap().held.borrow().is_empty());
    }
}
