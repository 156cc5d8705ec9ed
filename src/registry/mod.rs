//! The map from server-ids to slots: who holds one, which phones are attached, what is kept.
//!
//! Borrow, decide, release, then act: the `RefCell` is private, every method is synchronous and
//! returns owned values. Seats undo themselves when they are dropped, and only what carries the
//! right serial is ever removed, so neither a stale timer nor a loser can touch a newer claim.

mod backlog;
mod frozen;
mod revocation;
mod seat;
mod slot;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

pub use self::backlog::Backlog;
pub(crate) use self::frozen::{FrozenContest, FrozenPhoneSeat, FrozenServerSeat};
pub use self::seat::{Contest, Delivery, Passed, PhoneSeat, ServerSeat};
pub(crate) use self::slot::FrozenSlot;
use self::slot::{End, Holder, Parting, Reclaim, Retired, Slot};
use crate::close::{Close, Ended};
use crate::config::Config;
use crate::ids::{PhoneKey, Serial, Serials, ServerId};
use crate::origin::Origin;
use crate::queue::budget::{Account, Ledger};
use crate::queue::lane::{Lane, Sender};
use crate::queue::outbox::{Manner, Outbox};
use crate::queue::probe::{Inquiry, Probe};
use crate::telemetry::events;
use crate::telemetry::metrics::{Metrics, ReclaimOutcome};

/// All slots. Shared by every connection of the one thread.
#[derive(Debug)]
pub struct Registry {
    rules: Rules,
    ledger: Rc<Ledger>,
    metrics: Rc<Metrics>,
    serials: Serials,
    map: RefCell<Map>,
}

/// The options that decide about slots.
#[derive(Clone, Copy, Debug)]
struct Rules {
    grace: Duration,
    evict: bool,
    max_phones: usize,
    max_slots: usize,
    max_queue: usize,
    max_slot_queue: usize,
}

#[derive(Debug, Default)]
struct Map {
    slots: HashMap<ServerId, Slot>,
    /// Pending expiries, soonest first; exactly the slots in grace.
    expiries: Timetable,
    /// Until when a holder must confirm the phones that were kept for it, soonest first. What is confirmed by
    /// then stays here until it is due.
    confirmations: Timetable,
    /// Phones that the binary has had closed and whose queue is still being written, and those
    /// closed for the budget whose message in progress is.
    leaving: BTreeMap<Serial, Leaving>,
    reaper: Option<Waker>,
}

/// What is due when, soonest first: of which connection, and of which slot.
type Timetable = BTreeMap<(Instant, Serial), ServerId>;

/// Takes the first that is due at `now`.
fn take_due(timetable: &mut Timetable, now: Instant) -> Option<((Instant, Serial), ServerId)> {
    let first = timetable.first_entry().filter(|first| first.key().0 <= now)?;
    Some(first.remove_entry())
}

#[derive(Debug)]
struct Leaving {
    outbox: Rc<Outbox>,
    account: Rc<Account>,
}

/// What became of a claim.
#[derive(Debug)]
pub enum Claim {
    /// The slot is held by this connection now.
    Seated(ServerSeat),
    /// Somebody holds it and is being probed.
    Contested(Contest),
    /// A probe of this slot is under way already.
    Busy,
    /// No room for another slot.
    Full,
}

/// What became of a join.
#[derive(Debug)]
pub enum Join {
    /// The phone is attached.
    Seated(PhoneSeat),
    /// No slot for that server-id.
    NoServer,
    /// The phone cap is reached.
    TooMany,
}

/// How many are connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Slots that a binary's connection holds.
    pub binaries: usize,
    /// Phones attached to slots, those in grace included.
    pub phones: usize,
    /// Slots in their grace window.
    pub in_grace: usize,
}

impl Registry {
    /// An empty registry by the rules of `config`.
    pub fn new(config: &Config, ledger: &Rc<Ledger>, metrics: &Rc<Metrics>) -> Rc<Self> {
        Rc::new(Self {
            rules: Rules {
                grace: config.grace,
                evict: config.reclaim_evicts,
                max_phones: config.max_phones,
                max_slots: config.max_connections,
                max_queue: config.max_queue_bytes,
                max_slot_queue: config.max_slot_queue_bytes,
            },
            ledger: Rc::clone(ledger),
            metrics: Rc::clone(metrics),
            serials: Serials::default(),
            map: RefCell::default(),
        })
    }

    /// Claims `server` for a binary: at once if it is free or in grace, after a probe of the holder
    /// otherwise.
    pub fn claim(self: &Rc<Self>, server: &ServerId, origin: Origin, now: Instant) -> Claim {
        let retired = {
            let mut map = self.map.borrow_mut();
            let full = map.slots.len() >= self.rules.max_slots;
            match map.slots.get_mut(server) {
                None if full => return Claim::Full,
                Some(slot) if slot.inquiry.is_under_way() => return Claim::Busy,
                Some(slot) => {
                    if let Holder::Live { serial, outbox, .. } = &slot.holder {
                        let probe = Rc::new(Probe::new(now));
                        outbox.ask(*probe.payload());
                        slot.inquiry.begin(&probe);
                        let asked = (Rc::clone(&slot.inquiry), probe);
                        return Claim::Contested(Contest::new(
                            self, server, origin, *serial, asked,
                        ));
                    }
                }
                None => {}
            }
            self.seat(&mut map, server, origin, now)
        };
        Claim::Seated(self.settle(server, retired))
    }

    /// Attaches a phone to the slot of `server`, live or in grace.
    pub fn join(self: &Rc<Self>, server: &ServerId, origin: Origin) -> Join {
        let mut map = self.map.borrow_mut();
        let Some((server, slot)) = map.slots.get_key_value(server) else {
            return Join::NoServer;
        };
        // The phones of a slot share its key: one allocation a server-id.
        let server = server.clone();
        if slot.phones.len() >= self.rules.max_phones {
            return Join::TooMany;
        }
        let mut key = PhoneKey::random();
        while slot.phones.contains_key(&key) {
            key = PhoneKey::random();
        }
        let account = Account::open(&self.ledger, origin);
        let sender = Sender::new(Rc::clone(&account));
        let outbox = Outbox::new(Some(Lane::new(self.rules.max_queue, account)));
        let serial = self.serials.next();
        let seat = PhoneSeat::new(self, server.clone(), key, serial, &outbox, &sender);
        if let Some(slot) = map.slots.get_mut(&server) {
            slot.attach(key, serial, outbox, sender);
        }
        Join::Seated(seat)
    }

    /// How many are connected.
    pub fn counts(&self) -> Counts {
        let map = self.map.borrow();
        let in_grace = map.expiries.len();
        Counts {
            binaries: map.slots.len() - in_grace,
            phones: map.slots.values().map(|slot| slot.phones.len()).sum(),
            in_grace,
        }
    }

    /// Does what is due at `now`: see [`Self::poll_expiry`].
    pub fn expire(&self, now: Instant) {
        self.release(now);
        self.refute(now);
    }

    /// Closes the phones that were kept for binaries that have not shown by `now` that they know them.
    fn refute(&self, now: Instant) {
        loop {
            let (server, reclaim) = {
                let mut map = self.map.borrow_mut();
                let Some(((deadline, serial), server)) = take_due(&mut map.confirmations, now)
                else {
                    return;
                };
                let Some(slot) = map.slots.get_mut(&server) else { continue };
                if !matches!(slot.holder, Holder::Live { serial: holder, .. } if holder == serial) {
                    continue;
                }
                (server, slot.refute(deadline))
            };
            if let Some(reclaim) = reclaim {
                self.report_reclaim(&server, reclaim);
            }
        }
    }

    /// Says what a claim, or what was found out about it later, meant for the phones.
    fn report_reclaim(&self, server: &ServerId, reclaim: Reclaim) {
        let Reclaim { kept, closed, outcome } = reclaim;
        if closed.is_empty() && outcome == ReclaimOutcome::Unconfirmed {
            // They have left meanwhile.
            return;
        }
        if outcome != ReclaimOutcome::Unconfirmed {
            self.metrics.reclaim_phones.add(ReclaimOutcome::Kept, kept as u64);
        }
        self.metrics.reclaim_phones.add(outcome, closed.len() as u64);
        events::server_reclaimed(server, kept, closed.len(), outcome);
        report(closed);
    }

    /// Releases the slots whose grace window has passed at `now` and closes their phones.
    fn release(&self, now: Instant) {
        loop {
            let expired = self.map.borrow_mut().take_expired(now, self.rules.grace);
            let Some((server, slot)) = expired else { return };
            self.metrics.grace_expiries.bump();
            events::server_expired(&server, slot.phones.len());
            for (key, phone) in slot.phones_in_order() {
                phone.outbox.close(Close::NoServer, Manner::Abort);
                let ended = Ended::ByRelay(Close::NoServer);
                events::phone_unregistered(&server, &key.conn_id(&server), ended);
            }
        }
    }

    /// Waits for the end of a grace window, or of the time for a confirmation, that is due before `known`, the
    /// soonest that the caller knows of; for one waiter. Cancel safe.
    pub fn poll_expiry(
        &self,
        cx: &mut Context<'_>,
        known: Option<Instant>,
    ) -> Poll<Option<Instant>> {
        let mut map = self.map.borrow_mut();
        let soonest = [&map.expiries, &map.confirmations]
            .into_iter()
            .filter_map(|due| due.first_key_value())
            .map(|((deadline, _), _)| *deadline)
            .min();
        if soonest != known {
            return Poll::Ready(soonest);
        }
        map.reaper = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Tells every connection that the relay stops, behind what is queued for it. Returns the
    /// outboxes, for the stop to give up on what takes too long.
    pub fn close_all(&self) -> Vec<Rc<Outbox>> {
        let outboxes: Vec<_> = {
            let map = self.map.borrow();
            // By name: what happens must not depend on the order of a table.
            let mut slots: Vec<_> = map.slots.iter().collect();
            slots.sort_unstable_by_key(|(server, _)| *server);
            let holders = slots.iter().filter_map(|(_, slot)| match &slot.holder {
                Holder::Live { outbox, .. } => Some(outbox),
                Holder::Grace { .. } => None,
            });
            let phones = slots.iter().flat_map(|(_, slot)| slot.phones_in_order());
            let leaving = map.leaving.values().map(|leaving| &leaving.outbox);
            holders
                .chain(phones.map(|(_, phone)| &phone.outbox))
                .chain(leaving)
                .map(Rc::clone)
                .collect()
        };
        for outbox in &outboxes {
            outbox.close(Close::ShuttingDown, Manner::Orderly);
        }
        outboxes
    }

    /// Keeps the memory budget: while it is exceeded, the source whose connections hold most together
    /// loses the one that holds most, phone or binary or whatever else.
    pub fn relieve(&self) {
        while self.ledger.is_over() {
            let Some(account) = self.ledger.largest() else { return };
            let retired = self.map.borrow_mut().sacrifice(&account);
            // Whatever it was: it pays once.
            account.condemn();
            self.metrics.budget_evictions.bump();
            report(retired);
        }
    }

    /// Keeps the memory budget for good. Never returns.
    pub(crate) async fn keep_budget(&self) {
        loop {
            poll_fn(|cx| self.ledger.poll_over(cx)).await;
            self.relieve();
        }
    }

    /// Puts a new holder on a slot that is free or in grace, or takes it from a silent holder.
    fn seat(&self, map: &mut Map, server: &ServerId, origin: Origin, now: Instant) -> Seated {
        let serial = self.serials.next();
        let account = Account::open(&self.ledger, origin);
        let was_in_grace = map.reclaim(server);
        let Some(slot) = map.slots.get_mut(server) else {
            let lane = Lane::new(self.rules.max_slot_queue, Rc::clone(&account));
            let outbox = Outbox::new(Some(Rc::clone(&lane)));
            let holder =
                Holder::Live { serial, outbox: Rc::clone(&outbox), account: Rc::clone(&account) };
            let slot = Slot::new(server.clone(), lane, holder);
            let inquiry = Rc::clone(&slot.inquiry);
            map.slots.insert(server.clone(), slot);
            return Seated { serial, outbox, inquiry, account, reclaim: None };
        };
        match was_in_grace {
            true => self.metrics.reclaims.bump(),
            false => self.metrics.takeovers.bump(),
        }
        let (outbox, reclaim) = slot.take(serial, &account, self.rules.evict, now);
        let inquiry = Rc::clone(&slot.inquiry);
        if let Some(deadline) = slot.confirmation {
            map.confirmations.insert((deadline, serial), server.clone());
            map.wake_reaper();
        }
        Seated { serial, outbox, inquiry, account, reclaim: Some(reclaim) }
    }

    fn settle(self: &Rc<Self>, server: &ServerId, seated: Seated) -> ServerSeat {
        let Seated { serial, outbox, inquiry, account, reclaim } = seated;
        if let Some(reclaim) = reclaim {
            self.report_reclaim(server, reclaim);
        }
        ServerSeat::new(self, server.clone(), serial, outbox, inquiry, account)
    }

    /// The holding connection `serial` ended; if it still is the holder, the grace window begins.
    fn vacate(&self, server: &ServerId, serial: Serial, ended: Ended, amid: bool, now: Instant) {
        let probe = {
            let mut map = self.map.borrow_mut();
            let Some(slot) = map.slots.get(server) else { return };
            let Holder::Live { serial: holder, outbox, .. } = &slot.holder else { return };
            if *holder != serial {
                return;
            }
            let manner = Parting::by(ended, amid);
            match ended {
                // The stop lets the queue out first; no claim follows it that would share the queue.
                _ if matches!(outbox.sealed(), Some((_, Manner::Orderly))) => {}
                // The close frame goes out behind the message in progress, which has then been
                // sent like any other.
                Ended::ByPeer(_) | Ended::ByRelay(_) if manner != Parting::Silent => outbox.part(),
                _ => outbox.detach(),
            }
            let probe = slot.inquiry.probe();
            map.vacate(server, serial, now + self.rules.grace, End { manner, at: now });
            probe
        };
        if let Some(probe) = probe {
            probe.holder_gone();
        }
        events::server_released(server);
    }

    /// The phone's connection ended; if it is still attached, it leaves, and the binary is told.
    fn leave(&self, server: &ServerId, key: PhoneKey, serial: Serial, ended: Ended) {
        let retired = {
            let mut map = self.map.borrow_mut();
            let Some(slot) = map.slots.get_mut(server) else { return };
            slot.leave(key, serial, ended)
        };
        report(retired);
    }
}

/// Grace windows begin and end here alone: what a slot says and what is due are changed together.
impl Map {
    /// Begins the window of a slot that connection `serial` held, until `deadline`.
    fn vacate(&mut self, server: &ServerId, serial: Serial, deadline: Instant, end: End) {
        let Some(slot) = self.slots.get_mut(server) else { return };
        slot.vacate(serial, deadline, end);
        self.expiries.insert((deadline, serial), server.clone());
        self.wake_reaper();
    }

    /// Ends the window of a slot that is claimed, or goes; whether it was in one.
    fn reclaim(&mut self, server: &ServerId) -> bool {
        let holder = self.slots.get(server).map(|slot| &slot.holder);
        let Some(Holder::Grace { deadline, serial, .. }) = holder else { return false };
        self.expiries.remove(&(*deadline, *serial));
        true
    }

    /// Takes a slot whose window has passed at `now`. One that a newcomer is about to take is left to it, for another
    /// window of `grace`.
    fn take_expired(&mut self, now: Instant, grace: Duration) -> Option<(ServerId, Slot)> {
        loop {
            let ((_, serial), server) = take_due(&mut self.expiries, now)?;
            let slot = self.slots.get_mut(&server);
            match slot.map(|slot| (slot.inquiry.is_under_way(), &mut slot.holder)) {
                Some((true, Holder::Grace { deadline, .. })) => {
                    *deadline = now + grace;
                    self.expiries.insert((*deadline, serial), server);
                }
                _ => {
                    if let Some(slot) = self.slots.remove(&server) {
                        return Some((server, slot));
                    }
                }
            }
        }
    }

    /// Takes a slot back that another program has handed over, with what is due of it.
    fn resume(&mut self, server: ServerId, slot: Slot) {
        match (&slot.holder, slot.confirmation) {
            (Holder::Grace { deadline, serial, .. }, _) => {
                self.expiries.insert((*deadline, *serial), server.clone());
            }
            (Holder::Live { serial, .. }, Some(deadline)) => {
                self.confirmations.insert((deadline, *serial), server.clone());
            }
            (Holder::Live { .. }, None) => {}
        }
        self.slots.insert(server, slot);
        self.wake_reaper();
    }

    fn wake_reaper(&mut self) {
        if let Some(reaper) = self.reaper.take() {
            reaper.wake();
        }
    }
}

impl Map {
    /// Closes whoever `account` belongs to, as far as that is known here, and drops what is queued for
    /// it or by it.
    fn sacrifice(&mut self, account: &Rc<Account>) -> Option<Retired> {
        match self.victim(account)? {
            Victim::Binary(server) => {
                let (serial, outbox) = self.slots.get_mut(&server)?.sacrifice_binary()?;
                self.let_finish(serial, outbox);
                None
            }
            Victim::Phone(server, key) => {
                let (serial, outbox, retired) = self.slots.get_mut(&server)?.sacrifice(key)?;
                self.let_finish(serial, outbox);
                Some(retired)
            }
            Victim::Departed(server, sender) => {
                self.slots.get_mut(&server)?.forget_departed(&sender);
                None
            }
            Victim::Notices(server) => {
                self.slots.get_mut(&server)?.forget_notices();
                None
            }
            Victim::Leaving(serial) => {
                let Leaving { outbox, .. } = self.leaving.remove(&serial)?;
                if outbox.remainder().is_some() {
                    outbox.cut();
                } else {
                    outbox.close(Close::OverBudget, Manner::Abort);
                    self.let_finish(serial, outbox);
                }
                None
            }
        }
    }

    /// Who pays by `account`; `None` for who has no place in the map: a request in progress, say.
    fn victim(&self, account: &Rc<Account>) -> Option<Victim> {
        let is = |other: &Rc<Account>| Rc::ptr_eq(other, account);
        for (server, slot) in &self.slots {
            if matches!(&slot.holder, Holder::Live { account, .. } if is(account)) {
                return Some(Victim::Binary(server.clone()));
            }
            if let Some((key, _)) = slot.phones.iter().find(|(_, phone)| is(phone.sender.account()))
            {
                return Some(Victim::Phone(server.clone(), *key));
            }
            if slot.pays_notices(account) {
                return Some(Victim::Notices(server.clone()));
            }
        }
        if let Some((serial, _)) = self.leaving.iter().find(|(_, leaving)| is(&leaving.account)) {
            return Some(Victim::Leaving(*serial));
        }
        self.slots.iter().find_map(|(server, slot)| {
            slot.lane.sender_of(account).map(|sender| Victim::Departed(server.clone(), sender))
        })
    }

    /// Who was closed amid a message may finish it, as long as there is room for that.
    fn let_finish(&mut self, serial: Serial, outbox: Rc<Outbox>) {
        if let Some(account) = outbox.remainder() {
            self.leaving.insert(serial, Leaving { outbox, account });
        }
    }
}

/// What a connection gets with a slot.
struct Seated {
    serial: Serial,
    outbox: Rc<Outbox>,
    inquiry: Rc<Inquiry>,
    account: Rc<Account>,
    /// If others held the slot before.
    reclaim: Option<Reclaim>,
}

#[derive(Debug)]
enum Victim {
    /// The holder of a slot.
    Binary(ServerId),
    /// A phone that is attached to its slot.
    Phone(ServerId, PhoneKey),
    /// A phone that has left while messages of it are still queued.
    Departed(ServerId, Rc<Sender>),
    /// A binary that has left while close notices for it are still queued.
    Notices(ServerId),
    /// Somebody who has been closed and is still being written to.
    Leaving(Serial),
}

fn report(retired: impl IntoIterator<Item = Retired>) {
    for Retired { server, conn_id, ended } in retired {
        events::phone_unregistered(&server, &conn_id, ended);
    }
}

#[cfg(test)]
mod tests;
