//! Permits for upgraded connections: as many as `--max-connections`, each undone by its `Drop`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The permits that are left.
#[derive(Debug)]
pub struct Permits {
    most: usize,
    taken: Cell<usize>,
    waiting: RefCell<Option<Waker>>,
}

/// The right to one upgraded connection.
#[derive(Debug)]
pub struct Permit(Rc<Permits>);

impl Permits {
    /// `most` permits.
    pub fn new(most: usize) -> Rc<Self> {
        Rc::new(Self { most, taken: Cell::new(0), waiting: RefCell::new(None) })
    }

    /// Takes a permit if one is left.
    pub fn acquire(self: &Rc<Self>) -> Option<Permit> {
        if self.taken.get() >= self.most {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(Permit(Rc::clone(self)))
    }

    /// Waits until every permit is back; for one waiter. Cancel safe.
    pub fn poll_all_back(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.taken.get() == 0 {
            return Poll::Ready(());
        }
        *self.waiting.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let permits = &self.0;
        permits.taken.set(permits.taken.get() - 1);
        if permits.taken.get() == 0 {
            if let Some(waker) = permits.waiting.take() {
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
}
