//! What a slot is, as plain data: see [`Slot::freeze`].

use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{End, Holder, Parting, Phone, Slot};
use crate::clock;
use crate::ids::{PhoneKey, Serial, ServerId};
use crate::origin::Origin;
use crate::queue::budget::{Account, Ledger};
use crate::queue::lane::{FrozenLane, Lane, Sender, Senders};
use crate::queue::outbox::Outbox;
use crate::queue::probe::{FrozenProbe, Inquiry, Probe};

/// A slot. Its connections are told by themselves, and are their serials here.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenSlot {
    pub(crate) server: ServerId,
    lane: FrozenLane,
    /// Who pays for what has no sender in the lane.
    payer: Origin,
    holder: FrozenHolder,
    probe: Option<FrozenProbe>,
    phones: Vec<FrozenPhone>,
    noticed: Vec<PhoneKey>,
    /// What is left of the time for the confirmation.
    confirmation: Option<Duration>,
}

#[derive(Debug, Serialize, Deserialize)]
enum FrozenHolder {
    Live {
        serial: Serial,
        origin: Origin,
    },
    Grace {
        serial: Serial,
        /// What is left of the window.
        remaining: Duration,
        manner: Parting,
        /// How long ago the connection ended.
        ended: Duration,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct FrozenPhone {
    key: PhoneKey,
    serial: Serial,
    /// Its place among the senders of the lane.
    sender: usize,
    unserved: bool,
    outlived: bool,
    unconfirmed: bool,
    /// How long ago the binary sent it something.
    spoken: Option<Duration>,
}

impl Slot {
    pub(in crate::registry) fn freeze(&self, now: Instant) -> FrozenSlot {
        let mut senders = Senders::default();
        let phones = self.phones_in_order().into_iter().map(|(key, phone)| FrozenPhone {
            key: *key,
            serial: phone.serial,
            sender: senders.number(&phone.sender),
            unserved: phone.unserved,
            outlived: phone.outlived,
            unconfirmed: phone.unconfirmed,
            spoken: clock::age(now, phone.spoken),
        });
        let phones = phones.collect();
        let holder = match &self.holder {
            Holder::Live { serial, account, .. } => {
                FrozenHolder::Live { serial: *serial, origin: account.origin() }
            }
            Holder::Grace { serial, deadline, end, .. } => FrozenHolder::Grace {
                serial: *serial,
                remaining: deadline.saturating_duration_since(now),
                manner: end.manner,
                ended: now.saturating_duration_since(end.at),
            },
        };
        FrozenSlot {
            server: self.server.clone(),
            lane: self.lane.freeze(senders, now),
            payer: self.lane.account().origin(),
            holder,
            probe: self.inquiry.probe().map(|probe| probe.freeze(now)),
            phones,
            noticed: self.noticed.iter().copied().collect(),
            confirmation: self.confirmation.map(|due| due.saturating_duration_since(now)),
        }
    }

    /// The slot that was frozen, with queues of at most `limit` bytes. Its connections come back one by one.
    pub(in crate::registry) fn thaw(
        mut frozen: FrozenSlot,
        ledger: &Rc<Ledger>,
        limit: usize,
        now: Instant,
    ) -> Self {
        let payer = Account::open(ledger, frozen.payer);
        let senders: Vec<_> = std::mem::take(&mut frozen.lane.senders)
            .into_iter()
            .map(|sender| {
                let account = Account::open(ledger, sender.origin.unwrap_or(frozen.payer));
                Sender::thaw(sender, account)
            })
            .collect();
        let lane = Lane::thaw(frozen.lane, limit, Rc::clone(&payer), &senders, now);
        let holder = match frozen.holder {
            FrozenHolder::Live { serial, .. } => {
                Holder::Live { serial, outbox: Outbox::new(None), account: payer }
            }
            FrozenHolder::Grace { serial, remaining, manner, ended } => {
                let end = End { manner, at: clock::ago(now, ended) };
                let deadline = clock::later(now, remaining);
                Holder::Grace { serial, deadline, end, outbox: Weak::new() }
            }
        };
        let mut slot = Self::new(frozen.server, lane, holder);
        slot.inquiry = Inquiry::new(frozen.probe.map(|probe| Rc::new(Probe::thaw(probe, now))));
        slot.confirmation = frozen.confirmation.map(|remaining| clock::later(now, remaining));
        let phone = |phone: FrozenPhone| {
            let sender = Rc::clone(senders.get(phone.sender)?);
            let FrozenPhone { key, serial, unserved, outlived, unconfirmed, spoken, .. } = phone;
            let spoken = spoken.map(|age| clock::ago(now, age));
            let outbox = Outbox::new(None);
            let phone = Phone { serial, outbox, sender, unserved, outlived, unconfirmed, spoken };
            Some((key, phone))
        };
        slot.phones = frozen.phones.into_iter().filter_map(phone).collect::<HashMap<_, _>>();
        for key in frozen.noticed {
            slot.remember(key);
        }
        slot
    }

    /// The serials of all whose connections are to come back.
    pub(in crate::registry) fn serials(&self) -> impl Iterator<Item = Serial> {
        let (Holder::Live { serial, .. } | Holder::Grace { serial, .. }) = &self.holder;
        self.phones.values().map(|phone| phone.serial).chain([*serial])
    }

    /// The connection `serial` of the binary writes by `written`.
    pub(in crate::registry) fn resume_binary(&mut self, serial: Serial, written: &Rc<Outbox>) {
        match &mut self.holder {
            Holder::Live { serial: holder, outbox, .. } if *holder == serial => {
                *outbox = Rc::clone(written);
            }
            Holder::Grace { serial: holder, outbox, .. } if *holder == serial => {
                *outbox = Rc::downgrade(written);
            }
            _ => {}
        }
    }

    /// The account of the holder `serial`.
    pub(in crate::registry) fn account_of(&self, serial: Serial) -> Option<Rc<Account>> {
        match &self.holder {
            Holder::Live { serial: holder, account, .. } if *holder == serial => {
                Some(Rc::clone(account))
            }
            _ => None,
        }
    }

    /// The phone's sender, if `serial` is its connection.
    pub(in crate::registry) fn sender_of(
        &self,
        key: PhoneKey,
        serial: Serial,
    ) -> Option<Rc<Sender>> {
        let phone = self.phones.get(&key).filter(|phone| phone.serial == serial)?;
        Some(Rc::clone(&phone.sender))
    }

    /// The connection `serial` of the phone writes by `outbox`.
    pub(in crate::registry) fn resume_phone(
        &mut self,
        key: PhoneKey,
        serial: Serial,
        outbox: &Rc<Outbox>,
    ) {
        if let Some(phone) = self.phones.get_mut(&key).filter(|phone| phone.serial == serial) {
            phone.outbox = Rc::clone(outbox);
        }
    }

    /// Those whose connections did not come back.
    pub(in crate::registry) fn missing(&self) -> (Option<Serial>, Vec<(PhoneKey, Serial)>) {
        let binary = match &self.holder {
            Holder::Live { serial, outbox, .. } if Rc::strong_count(outbox) == 1 => Some(*serial),
            _ => None,
        };
        let phones = self.phones_in_order().into_iter();
        let missing = phones.filter(|(_, phone)| Rc::strong_count(&phone.outbox) == 1);
        (binary, missing.map(|(key, phone)| (*key, phone.serial)).collect())
    }

    /// Has a message that was begun on a connection that did not come back sent whole on the next one.
    pub(in crate::registry) fn rewind_orphaned(&self) {
        let is_written = match &self.holder {
            Holder::Live { outbox, .. } => Rc::strong_count(outbox) > 1,
            Holder::Grace { outbox, .. } => outbox.strong_count() > 0,
        };
        if !is_written {
            drop(self.lane.rewind());
        }
    }

    /// What the link of the binary's connection `serial` has to answer for.
    pub(in crate::registry) fn inquiry_of(&self, serial: Serial) -> Option<Rc<Inquiry>> {
        let (Holder::Live { serial: holder, .. } | Holder::Grace { serial: holder, .. }) =
            &self.holder;
        (*holder == serial).then(|| Rc::clone(&self.inquiry))
    }
}
