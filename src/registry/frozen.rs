//! What the registry and its seats are, as plain data: see [`Registry::freeze`].

use std::rc::Rc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::seat::{Contest, PhoneSeat, ServerSeat};
use super::slot::{FrozenSlot, Slot};
use super::{Leaving, Registry};
use crate::close::Ended;
use crate::ids::{PhoneKey, Serial, ServerId};
use crate::origin::Origin;
use crate::queue::budget::Account;
use crate::queue::lane::{Lane, Sender};
use crate::queue::outbox::{FrozenOutbox, Outbox};
use crate::queue::probe::{FrozenProbe, Inquiry, Probe};

/// A binary's seat and what is to be written to the binary.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenServerSeat {
    server: ServerId,
    serial: Serial,
    origin: Origin,
    vacated: bool,
    /// The registry lets it finish what is on its way.
    leaving: bool,
    outbox: FrozenOutbox,
}

/// A phone's seat and what is to be written to the phone.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenPhoneSeat {
    server: ServerId,
    key: PhoneKey,
    serial: Serial,
    origin: Origin,
    left: bool,
    leaving: bool,
    outbox: FrozenOutbox,
}

impl Registry {
    /// Every slot, by name, one after the other: together they may be large.
    pub(crate) fn freeze(&self, now: Instant, mut tell: impl FnMut(FrozenSlot)) {
        let map = self.map.borrow();
        let mut slots: Vec<_> = map.slots.iter().collect();
        slots.sort_unstable_by_key(|(server, _)| *server);
        for (_, slot) in slots {
            tell(slot.freeze(now));
        }
    }

    /// Takes a slot back. Its connections follow.
    pub(crate) fn thaw(&self, frozen: FrozenSlot, now: Instant) {
        let slot = Slot::thaw(frozen, &self.ledger, self.rules.max_slot_queue, now);
        let server = slot.server().clone();
        for serial in slot.serials() {
            self.serials.skip(serial);
        }
        self.map.borrow_mut().resume(server, slot);
    }

    /// Ends what belongs to connections that did not come back.
    pub(crate) fn bury_missing(&self, now: Instant) {
        let missing: Vec<_> = {
            let map = self.map.borrow();
            map.slots.iter().map(|(server, slot)| (server.clone(), slot.missing())).collect()
        };
        for (server, (binary, phones)) in missing {
            for (key, serial) in phones {
                self.leave(&server, key, serial, Ended::Dropped);
            }
            if let Some(serial) = binary {
                self.vacate(&server, serial, Ended::Dropped, true, now);
            }
            if let Some(slot) = self.map.borrow_mut().slots.get_mut(&server) {
                slot.rewind_orphaned();
                // A newcomer that did not come back does not wait.
                slot.inquiry.end_if_orphaned();
            }
        }
    }

    fn lane_of(&self, server: &ServerId) -> Option<Rc<Lane>> {
        self.map.borrow().slots.get(server).map(|slot| Rc::clone(&slot.lane))
    }

    fn is_leaving(&self, serial: Serial) -> bool {
        self.map.borrow().leaving.contains_key(&serial)
    }

    /// Lets a connection finish what is on its way, which `account` pays for, or the account of its own that a
    /// remainder has.
    fn let_leave(&self, serial: Serial, outbox: &Rc<Outbox>, account: &Rc<Account>) {
        let account = outbox.remainder().unwrap_or_else(|| Rc::clone(account));
        let outbox = Rc::clone(outbox);
        self.map.borrow_mut().leaving.insert(serial, Leaving { outbox, account });
    }
}

impl ServerSeat {
    pub(crate) fn freeze(&self, now: Instant) -> FrozenServerSeat {
        let lane = self.registry.lane_of(&self.server);
        FrozenServerSeat {
            server: self.server.clone(),
            serial: self.serial,
            origin: self.account.origin(),
            vacated: self.vacated,
            leaving: self.registry.is_leaving(self.serial),
            outbox: self.outbox.freeze(lane.as_ref(), now),
        }
    }

    /// Takes the seat back; the slot is there already, if it has not gone before.
    pub(crate) fn thaw(registry: &Rc<Registry>, frozen: FrozenServerSeat, now: Instant) -> Self {
        let FrozenServerSeat { server, serial, origin, vacated, leaving, outbox } = frozen;
        registry.serials.skip(serial);
        let (account, inquiry, lane) = {
            let map = registry.map.borrow();
            let slot = map.slots.get(&server);
            let account = slot.and_then(|slot| slot.account_of(serial));
            let inquiry = slot.and_then(|slot| slot.inquiry_of(serial));
            (account, inquiry, slot.map(|slot| Rc::clone(&slot.lane)))
        };
        let inquiry = inquiry.unwrap_or_else(|| Inquiry::new(None));
        let account = account.unwrap_or_else(|| Account::open(&registry.ledger, origin));
        let limit = registry.rules.max_slot_queue;
        let outbox = Outbox::thaw(outbox, lane.as_ref(), limit, &account, now);
        if let Some(slot) = registry.map.borrow_mut().slots.get_mut(&server) {
            slot.resume_binary(serial, &outbox);
        }
        if leaving {
            registry.let_leave(serial, &outbox, &account);
        }
        let mut seat = Self::new(registry, server, serial, outbox, inquiry, account);
        seat.vacated = vacated;
        seat
    }
}

impl PhoneSeat {
    pub(crate) fn freeze(&self, now: Instant) -> FrozenPhoneSeat {
        FrozenPhoneSeat {
            server: self.server.clone(),
            key: self.key,
            serial: self.serial,
            origin: self.sender.account().origin(),
            left: self.left,
            leaving: self.registry.is_leaving(self.serial),
            outbox: self.outbox.freeze(None, now),
        }
    }

    /// Takes the seat back; the slot is there already, if the phone is still attached to it.
    pub(crate) fn thaw(registry: &Rc<Registry>, frozen: FrozenPhoneSeat, now: Instant) -> Self {
        let FrozenPhoneSeat { server, key, serial, origin, left, leaving, outbox } = frozen;
        registry.serials.skip(serial);
        let sender = {
            let map = registry.map.borrow();
            map.slots.get(&server).and_then(|slot| slot.sender_of(key, serial))
        };
        let sender = sender.unwrap_or_else(|| Sender::new(Account::open(&registry.ledger, origin)));
        let limit = registry.rules.max_queue;
        let outbox = Outbox::thaw(outbox, None, limit, sender.account(), now);
        if let Some(slot) = registry.map.borrow_mut().slots.get_mut(&server) {
            slot.resume_phone(key, serial, &outbox);
        }
        if leaving {
            registry.let_leave(serial, &outbox, sender.account());
        }
        let mut seat = Self::new(registry, server, key, serial, &outbox, &sender);
        seat.left = left;
        seat
    }
}

/// A claim of a slot whose holder is being probed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenContest {
    server: ServerId,
    origin: Origin,
    holder: Serial,
    probe: FrozenProbe,
}

impl Contest {
    pub(crate) fn freeze(&self, now: Instant) -> FrozenContest {
        FrozenContest {
            server: self.server.clone(),
            origin: self.origin,
            holder: self.holder,
            probe: self.probe.freeze(now),
        }
    }

    /// Goes on with the contest; its slot is there already.
    pub(crate) fn thaw(registry: &Rc<Registry>, frozen: FrozenContest, now: Instant) -> Self {
        let FrozenContest { server, origin, holder, probe } = frozen;
        let probe = Rc::new(Probe::thaw(probe, now));
        let inquiry = registry.map.borrow().slots.get(&server).map(|slot| Rc::clone(&slot.inquiry));
        let inquiry = inquiry.unwrap_or_else(|| Inquiry::new(None));
        // The same probe as the slot's, as long as that has one.
        let known = inquiry.probe().filter(|known| known.payload() == probe.payload());
        Self::new(registry, &server, origin, holder, (inquiry, known.unwrap_or(probe)))
    }
}
