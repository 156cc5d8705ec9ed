//! Permits for upgraded connections: as many as `--max-connections`, each undone by its `Drop`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The permits that are left.
#[derive(Debug)]
pub struct Permits {
    most: usize,
    taken: Cell<usize>,
    /// How often a permit was taken or came back.
    turnover: Cell<u64>,
    drained: RefCell<Option<Waker>>,
    watching: RefCell<Option<Waker>>,
}

/// The right to one upgraded connection.
#[derive(Debug)]
pub struct Permit(Rc<Permits>);

impl Permits {
    /// `most` permits.
    pub fn new(most: usize) -> Rc<Self> {
        Rc::new(Self {
            most,
            taken: Cell::new(0),
            turnover: Cell::new(0),
            drained: RefCell::new(None),
            watching: RefCell::new(None),
        })
    }

    /// Takes a permit if one is left.
    pub fn acquire(self: &Rc<Self>) -> Option<Permit> {
        if self.taken.get() >= self.most {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        self.turn_over();
        Some(Permit(Rc::clone(self)))
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
    pub fn poll_turnover(&self, cx: &mut Context<'_>, seen: &mut u64) -> Poll<()> {
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
        let permits = &self.0;
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

    #[test]
    fn no_more_permits_than_there_are_and_each_comes_back() {
        let permits = Permits::new(2);
        let (one, two) = (permits.acquire().unwrap(), permits.acquire().unwrap());
        assert!(permits.acquire().is_none());
        drop(one);
        let three = permits.acquire().unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(permits.poll_all_back(&mut cx).is_pending());
        drop((two, three));
        assert!(permits.poll_all_back(&mut cx).is_ready());
    }

    #[test]
    fn the_turnover_is_seen_once_for_whatever_happened_since() {
        let permits = Permits::new(2);
        let mut cx = Context::from_waker(Waker::noop());
        let mut seen = 0;
        assert!(permits.poll_turnover(&mut cx, &mut seen).is_pending());
        let one = permits.acquire();
        let two = permits.acquire();
        assert!(permits.poll_turnover(&mut cx, &mut seen).is_ready());
        assert!(permits.poll_turnover(&mut cx, &mut seen).is_pending());
        drop((one, two));
        assert!(permits.poll_turnover(&mut cx, &mut seen).is_ready());
        assert!(permits.poll_turnover(&mut cx, &mut seen).is_pending());
    }
}
