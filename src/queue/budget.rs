//! The memory ledger: what the relay holds for its peers, in all and for each of them.
//!
//! When the budget is exhausted the source whose connections hold most together pays, with the one that
//! holds most (contract, Queues, slow peers, memory). The ledger says which; the registry closes it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use crate::origin::Origin;

/// The sum of all accounts against one limit, in bytes.
#[derive(Debug)]
pub struct Ledger {
    limit: usize,
    watch: Option<Watch>,
    total: Cell<usize>,
    /// Every account that is open; each knows its place here.
    accounts: RefCell<Vec<Weak<Account>>>,
    /// Who sees to it that the budget is kept.
    keeper: RefCell<Option<Waker>>,
}

/// What the process has of memory, beside what the ledger counts. Messages of all sizes that come and go leave
/// holes in the heap that nothing fits into; no sum of what is held can tell.
#[derive(Debug)]
struct Watch {
    /// Memory in use, in bytes; `None` where the system does not tell.
    resident: fn() -> Option<u64>,
    at_start: u64,
    /// What came on the ledger since it was looked at last, in bytes.
    grown: Cell<usize>,
    /// Whether it was too much then.
    tight: Cell<bool>,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(limit: usize) -> Rc<Self> {
        Self::build(limit, None)
    }

    /// The same, for a process that tells its memory in use with `resident`.
    pub(crate) fn watching(limit: usize, resident: fn() -> Option<u64>) -> Rc<Self> {
        let watch = resident().map(|at_start| Watch {
            resident,
            at_start,
            grown: Cell::default(),
            tight: Cell::default(),
        });
        Self::build(limit, watch)
    }

    fn build(limit: usize, watch: Option<Watch>) -> Rc<Self> {
        Rc::new(Self {
            limit,
            watch,
            total: Cell::new(0),
            accounts: RefCell::default(),
            keeper: RefCell::default(),
        })
    }

    /// Whether more is held than the budget allows.
    pub(crate) fn is_over(&self) -> bool {
        self.total.get() > self.limit
    }

    /// The account that pays next: of the source whose accounts hold most together the one that holds
    /// most. `None` if nothing is held. It looks at every account, so ask only when the budget is
    /// exhausted.
    pub(crate) fn largest(&self) -> Option<Rc<Account>> {
        let accounts = self.accounts.borrow();
        let holding = || {
            let open = accounts.iter().filter_map(Weak::upgrade);
            open.filter(|account| account.counted() > 0)
        };
        let mut sources: HashMap<Origin, usize> = HashMap::new();
        for account in holding() {
            *sources.entry(account.origin).or_default() += account.counted();
        }
        let (source, _) = sources.into_iter().max_by_key(|(origin, held)| (*held, *origin))?;
        holding().filter(|account| account.origin == source).max_by_key(|account| account.held())
    }

    /// Waits until more is held than the budget allows; for one waiter. Cancel safe.
    pub(crate) fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_over() {
            return Poll::Ready(());
        }
        *self.keeper.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn raise(&self, bytes: usize) {
        self.total.set(self.total.get() + bytes);
        if let Some(watch) = &self.watch {
            watch.grown.set(watch.grown.get() + bytes);
            // To look takes 20 microseconds or so.
            if watch.grown.get() > self.limit / LOOKS && self.total.get() > self.limit / 2 {
                watch.grown.set(0);
                self.look(watch);
            }
        }
        if self.is_over() {
            if let Some(keeper) = self.keeper.take() {
                keeper.wake();
            }
        }
    }

    /// Looks whether the process has more than the ledger says.
    fn look(&self, watch: &Watch) {
        let Some(resident) = (watch.resident)() else { return };
        let connections = self.accounts.borrow().len() * CONNECTION_BYTES;
        // A thirty-second, and not the contract's 0.15: what is packed from here on needs some more.
        let allowed = self.limit + self.limit / 32 + connections;
        watch.tight.set(resident > watch.at_start + allowed as u64);
    }

    /// Whether the heap has grown so much beyond what is held that new buffers should be small, to fit
    /// into its holes.
    pub(crate) fn is_tight(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.tight.get())
    }

    fn lower(&self, bytes: usize) {
        self.total.set(self.total.get().saturating_sub(bytes));
        if let Some(watch) = &self.watch {
            if self.total.get() < self.limit / 2 {
                watch.tight.set(false);
            }
        }
    }

    /// The limit in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes held in all, without those of condemned accounts.
    pub fn total(&self) -> usize {
        self.total.get()
    }
}

/// How often it is looked while as much as the limit comes on the ledger.
const LOOKS: usize = 64;

/// What a connection may have of memory that is on no account, in bytes (contract, Queues, slow peers, memory).
const CONNECTION_BYTES: usize = 4 * 1024;

/// What is held for one peer. Whatever is left on it when it is dropped is taken off the ledger.
#[derive(Debug)]
pub struct Account {
    ledger: Rc<Ledger>,
    origin: Origin,
    place: Cell<usize>,
    held: Cell<usize>,
    condemned: Cell<bool>,
    /// Who is told when the account is condemned.
    owner: RefCell<Option<Waker>>,
    /// What is freed when the account is condemned.
    pledge: RefCell<Option<Weak<dyn Pledge>>>,
}

/// Memory that is freed where it is needed: its owner may not have a turn for long, with hundreds of
/// others who all take more before that.
pub(crate) trait Pledge {
    /// Frees it.
    fn forfeit(&self);
}

impl Account {
    /// Opens an account of `origin` with nothing on it.
    pub fn open(ledger: &Rc<Ledger>, origin: Origin) -> Rc<Self> {
        let mut accounts = ledger.accounts.borrow_mut();
        let account = Rc::new(Self {
            ledger: Rc::clone(ledger),
            origin,
            place: Cell::new(accounts.len()),
            held: Cell::new(0),
            condemned: Cell::new(false),
            owner: RefCell::default(),
            pledge: RefCell::default(),
        });
        accounts.push(Rc::downgrade(&account));
        account
    }

    /// The source that it counts for.
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// Bytes held for this peer.
    pub fn held(&self) -> usize {
        self.held.get()
    }

    /// Those of them that the ledger counts.
    fn counted(&self) -> usize {
        if self.condemned.get() { 0 } else { self.held.get() }
    }

    /// Adds `bytes`.
    pub fn add(&self, bytes: usize) {
        self.held.set(self.held.get() + bytes);
        if !self.condemned.get() {
            self.ledger.raise(bytes);
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

    /// Names what is freed at once when the account is condemned.
    pub(crate) fn pledge(&self, memory: Weak<dyn Pledge>) {
        self.pledge.replace(Some(memory));
    }

    /// Takes the account out of the sum, so that nobody else is closed for the same bytes: its peer is being
    /// closed. What was pledged is free with that, the rest as soon as the peer's task runs.
    pub(crate) fn condemn(&self) {
        if !self.condemned.replace(true) {
            self.ledger.lower(self.held.get());
            if let Some(memory) = self.pledge.take().and_then(|memory| memory.upgrade()) {
                memory.forfeit();
            }
            if let Some(owner) = self.owner.take() {
                owner.wake();
            }
        }
    }

    /// Whether its peer has to go.
    pub(crate) fn is_condemned(&self) -> bool {
        self.condemned.get()
    }

    /// Waits until the account is condemned; for one waiter. Cancel safe.
    pub(crate) fn poll_condemned(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.condemned.get() {
            return Poll::Ready(());
        }
        let mut owner = self.owner.borrow_mut();
        if !owner.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *owner = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Nobody waits any more, and nothing is pledged.
    pub(crate) fn disown(&self) {
        self.owner.take();
        self.pledge.take();
    }

    /// The ledger that this account belongs to.
    pub(crate) fn ledger(&self) -> &Rc<Ledger> {
        &self.ledger
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.condemn();
        let mut accounts = self.ledger.accounts.borrow_mut();
        let place = self.place.get();
        accounts.swap_remove(place);
        if let Some(moved) = accounts.get(place).and_then(Weak::upgrade) {
            moved.place.set(place);
        }
        let (count, places) = (accounts.len(), accounts.capacity());
        if places > LEAST_PLACES && count < places / 4 {
            accounts.shrink_to((2 * count).max(LEAST_PLACES));
        }
    }
}

/// Accounts that the table keeps room for; 8 bytes each.
const LEAST_PLACES: usize = 32;

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
    use crate::origin::NOBODY;

    #[test]
    fn the_ledger_is_the_sum_of_its_accounts_and_empty_when_they_are_gone() {
        let ledger = Ledger::new(100);
        let (one, two) = (Account::open(&ledger, NOBODY), Account::open(&ledger, NOBODY));
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
    fn who_keeps_the_budget_is_woken_when_it_is_exceeded() {
        let ledger = Ledger::new(10);
        let account = Account::open(&ledger, NOBODY);
        let (wakes, waker) = Wakes::counting();
        let mut cx = Context::from_waker(&waker);
        assert!(ledger.poll_over(&mut cx).is_pending());
        account.add(10);
        assert_eq!(wakes.count(), 0);
        account.add(1);
        assert_eq!(wakes.count(), 1);
        assert!(ledger.poll_over(&mut cx).is_ready());
    }

    #[test]
    fn memory_is_tight_while_the_process_has_a_thirty_second_more_than_the_limit() {
        thread_local!(static RESIDENT: Cell<u64> = const { Cell::new(50_000) });
        let ledger = Ledger::watching(64_000, || Some(RESIDENT.get()));
        let account = Account::open(&ledger, NOBODY);
        let allowed = 50_000 + 66_000 + CONNECTION_BYTES as u64;
        let tight_with = |resident, bytes| {
            RESIDENT.set(resident);
            account.add(bytes);
            ledger.is_tight()
        };
        assert!(!tight_with(allowed + 1, 32_000), "it is not looked at before half of the limit");
        assert!(!tight_with(allowed, 1_001));
        assert!(!tight_with(allowed + 1, 1_000), "nor at every message");
        assert!(tight_with(allowed + 1, 1));
        assert!(!tight_with(allowed, 1_001));
        assert!(tight_with(allowed + 1, 1_001));
        account.sub(account.held() - 31_999);
        assert!(!ledger.is_tight(), "there is room again");
    }

    #[test]
    fn where_the_system_does_not_tell_its_memory_nothing_is_tight() {
        let ledger = Ledger::watching(64_000, || None);
        Account::open(&ledger, NOBODY).add(64_000);
        assert!(!ledger.is_tight());
    }

    #[test]
    fn of_the_source_that_holds_most_together_the_largest_pays() {
        let ledger = Ledger::new(10);
        let source = |number| Origin::V4([number; 4]);
        let open = |number, bytes| {
            let account = Account::open(&ledger, source(number));
            account.add(bytes);
            account
        };
        assert!(ledger.largest().is_none());
        let (single, smaller, larger) = (open(1, 50), open(2, 30), open(2, 31));
        let is_largest = |account: &Rc<Account>| Rc::ptr_eq(&ledger.largest().unwrap(), account);
        assert!(is_largest(&larger), "61 together are more than 50 at once");
        larger.condemn();
        assert!(is_largest(&single), "and pay once");
        let (wakes, waker) = Wakes::counting();
        assert!(single.poll_condemned(&mut Context::from_waker(&waker)).is_pending());
        single.condemn();
        assert_eq!(wakes.count(), 1, "its owner hears of it");
        assert!(is_largest(&smaller));
        drop((single, larger));
        assert!(is_largest(&smaller), "accounts that close leave the others in their places");
        drop(smaller);
        assert!(ledger.largest().is_none());
        assert!(ledger.accounts.borrow().is_empty());
    }

    #[test]
    fn a_condemned_account_counts_no_more_whatever_is_still_done_to_it() {
        let ledger = Ledger::new(10);
        let account = Account::open(&ledger, NOBODY);
        account.add(30);
        account.condemn();
        assert_eq!(ledger.total(), 0);
        account.add(5);
        account.sub(35);
        account.condemn();
        assert_eq!((ledger.total(), account.held()), (0, 0));
    }

    #[test]
    fn what_an_account_pledged_is_forfeit_once_and_at_once() {
        #[derive(Default)]
        struct Memory(Cell<u32>);
        impl Pledge for Memory {
            fn forfeit(&self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let ledger = Ledger::new(10);
        let account = Account::open(&ledger, NOBODY);
        let memory = Rc::new(Memory::default());
        let pledged: Weak<Memory> = Rc::downgrade(&memory);
        account.pledge(pledged);
        account.add(20);
        assert_eq!((memory.0.get(), account.is_condemned()), (0, false));
        account.condemn();
        account.condemn();
        assert_eq!((memory.0.get(), account.is_condemned()), (1, true));
        drop(account);
        assert_eq!(memory.0.get(), 1);
    }

    #[test]
    fn a_charge_follows_its_buffer_and_gives_back_what_is_left() {
        let ledger = Ledger::new(10);
        let account = Account::open(&ledger, NOBODY);
        let mut charge = Charge::new(Rc::clone(&account));
        assert!(!charge.set(10));
        assert!(charge.set(11));
        assert!(!charge.set(4));
        assert_eq!(account.held(), 4);
        drop(charge);
        assert_eq!(account.held(), 0);
    }
}
