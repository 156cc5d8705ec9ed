//! The memory ledger: what the relay holds for its peers, in all and for each of them.
//!
//! It only counts. Who is closed when the budget is exhausted is decided by the registry.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The sum of all accounts against one limit, in bytes.
#[derive(Debug)]
pub struct Ledger {
    limit: usize,
    total: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self { limit, total: Cell::new(0), waiting: RefCell::default() })
    }

    /// Whether more is held than the budget allows.
    pub fn is_over(&self) -> bool {
        self.total.get() > self.limit
    }

    /// Waits until the ledger is within its limit. Cancel safe.
    pub fn poll_within(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_over() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        // Who waits is polled for other reasons too, any number of times.
        if !waiting.iter().any(|known| known.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn lower(&self, bytes: usize) {
        self.total.set(self.total.get().saturating_sub(bytes));
        if !self.is_over() {
            for waker in self.waiting.take() {
                waker.wake();
            }
        }
    }

    /// The limit in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes held in all, those of condemned accounts left out.
    pub fn total(&self) -> usize {
        self.total.get()
    }
}

/// What is held for one peer. Whatever is left on it when it is dropped is taken off the ledger.
#[derive(Debug)]
pub struct Account {
    ledger: Rc<Ledger>,
    held: Cell<usize>,
    condemned: Cell<bool>,
}

impl Account {
    /// Opens an account with nothing on it.
    pub fn open(ledger: &Rc<Ledger>) -> Rc<Self> {
        Rc::new(Self { ledger: Rc::clone(ledger), held: Cell::new(0), condemned: Cell::new(false) })
    }

    /// Bytes held for this peer.
    pub fn held(&self) -> usize {
        self.held.get()
    }

    /// Adds `bytes`.
    pub fn add(&self, bytes: usize) {
        self.held.set(self.held.get() + bytes);
        if !self.condemned.get() {
            self.ledger.total.set(self.ledger.total.get() + bytes);
        }
    }

    /// Takes `bytes` off that were added before.
    pub fn sub(&self, bytes: usize) {
        debug_assert!(self.held.get() >= bytes, "an account gives back no more than it took");
        self.held.set(self.held.get().saturating_sub(bytes));
        if !self.condemned.get() {
            self.ledger.lower(bytes);
        }
    }

    /// Takes the account out of the sum: its peer is being closed, and its memory will be free as
    /// soon as the peer's task runs, so that nobody else is closed for the same bytes.
    pub fn condemn(&self) {
        if !self.condemned.replace(true) {
            self.ledger.lower(self.held.get());
        }
    }

    /// The ledger that this account belongs to.
    pub fn ledger(&self) -> &Rc<Ledger> {
        &self.ledger
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.condemn();
    }
}

/// A share of an account that follows one growing and shrinking buffer.
#[derive(Debug)]
pub struct Charge {
    account: Rc<Account>,
    bytes: usize,
}

impl Charge {
    /// A charge of nothing.
    pub fn new(account: Rc<Account>) -> Self {
        Self { account, bytes: 0 }
    }

    /// The account that pays.
    pub fn account(&self) -> &Rc<Account> {
        &self.account
    }

    /// What is charged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sets the charge to `bytes`; true if the ledger is over its limit through a growth.
    pub fn set(&mut self, bytes: usize) -> bool {
        let grew = bytes > self.bytes;
        if grew {
            self.account.add(bytes - self.bytes);
        } else {
            self.account.sub(self.bytes - bytes);
        }
        self.bytes = bytes;
        grew && self.account.ledger.is_over()
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use relay_test_kit::wake::Wakes;

    use super::*;

    #[test]
    fn the_ledger_is_the_sum_of_its_accounts_and_empty_when_they_are_gone() {
        let ledger = Ledger::new(100);
        let (one, two) = (Account::open(&ledger), Account::open(&ledger));
        one.add(60);
        two.add(50);
        assert!(ledger.is_over());
        one.sub(20);
        assert_eq!((ledger.total(), one.held(), ledger.is_over()), (90, 40, false));
        drop(one);
        assert_eq!(ledger.total(), 50);
        drop(two);
        assert_eq!(ledger.total(), 0);
    }

    #[test]
    fn who_waits_for_room_is_woken_when_there_is_some() {
        let ledger = Ledger::new(10);
        let account = Account::open(&ledger);
        let (_, waker) = Wakes::counting();
        let mut cx = Context::from_waker(&waker);
        assert!(ledger.poll_within(&mut cx).is_ready());
        account.add(11);
        for _ in 0..1000 {
            assert!(ledger.poll_within(&mut cx).is_pending());
        }
        assert_eq!(ledger.waiting.borrow().len(), 1);
        account.sub(1);
        assert!(ledger.poll_within(&mut cx).is_ready());
        assert!(ledger.waiting.borrow().is_empty(), "nobody is forgotten in the list");
    }

    #[test]
    fn a_condemned_account_counts_no_more_whatever_is_still_done_to_it() {
        let ledger = Ledger::new(10);
        let account = Account::open(&ledger);
        account.add(30);
        account.condemn();
        assert_eq!(ledger.total(), 0);
        account.add(5);
        account.sub(35);
        account.condemn();
        assert_eq!((ledger.total(), account.held()), (0, 0));
    }

    #[test]
    fn a_charge_follows_its_buffer_and_gives_back_what_is_left() {
        let ledger = Ledger::new(10);
        let account = Account::open(&ledger);
        let mut charge = Charge::new(Rc::clone(&account));
        assert!(!charge.set(10));
        assert!(charge.set(11));
        assert!(!charge.set(4));
        assert_eq!(account.held(), 4);
        drop(charge);
        assert_eq!(account.held(), 0);
    }
}
