//! Seats: what a connection holds of the registry, undone when it is dropped.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::slot::{Holder, Routed};
use super::{Leaving, Registry, report};
use crate::clock;
use crate::close::Ended;
use crate::envelope::Envelope;
use crate::ids::{PhoneKey, Serial, ServerId};
use crate::origin::Origin;
use crate::queue::budget::Account;
use crate::queue::lane::Sender;
use crate::queue::outbox::Outbox;
use crate::queue::probe::{Inquiry, Outcome, Probe};
use crate::websocket::frames::Frame;

/// A binary's hold on its slot. Dropping it starts the grace window.
#[derive(Debug)]
pub struct ServerSeat {
    pub(super) registry: Rc<Registry>,
    pub(super) server: ServerId,
    pub(super) serial: Serial,
    pub(super) outbox: Rc<Outbox>,
    pub(super) inquiry: Rc<Inquiry>,
    pub(super) account: Rc<Account>,
    pub(super) vacated: bool,
}

/// What became of a binary's envelope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// Done.
    Done,
    /// Dropped: no such phone.
    UnknownPhone,
    /// Dropped: this connection holds the slot no more.
    NotHolder,
}

impl ServerSeat {
    pub(super) fn new(
        registry: &Rc<Registry>,
        server: ServerId,
        serial: Serial,
        outbox: Rc<Outbox>,
        inquiry: Rc<Inquiry>,
        account: Rc<Account>,
    ) -> Self {
        let registry = Rc::clone(registry);
        Self { registry, server, serial, outbox, inquiry, account, vacated: false }
    }

    /// The server-id.
    pub fn server(&self) -> &ServerId {
        &self.server
    }

    /// What is to be written to the binary.
    pub fn outbox(&self) -> &Rc<Outbox> {
        &self.outbox
    }

    /// The probe that the connection has to answer for, while there is one.
    pub fn inquiry(&self) -> &Inquiry {
        &self.inquiry
    }

    /// Who pays for what is held for the binary.
    pub fn account(&self) -> &Rc<Account> {
        &self.account
    }

    /// Carries out an envelope, which arrived at `now`. Never waits for a phone.
    pub fn deliver(&self, envelope: &Envelope<'_>, now: Instant) -> Delivery {
        let routed = {
            let mut map = self.registry.map.borrow_mut();
            match map.slots.get_mut(&self.server) {
                Some(slot) if matches!(&slot.holder, Holder::Live { serial, .. } if *serial == self.serial) => {
                    slot.route(&envelope.conn_id, &envelope.action, now)
                }
                _ => return Delivery::NotHolder,
            }
        };
        let delivery = match routed {
            Routed::Delivered => Delivery::Done,
            Routed::Unknown => Delivery::UnknownPhone,
            Routed::Closed { retired, leaving } => {
                if let Some((serial, outbox, sender)) = leaving {
                    let leaving = Leaving { outbox, account: Rc::clone(sender.account()) };
                    self.registry.map.borrow_mut().leaving.insert(serial, leaving);
                }
                report([retired]);
                Delivery::Done
            }
            Routed::Disproved(reclaim) => {
                self.registry.report_reclaim(&self.server, reclaim);
                Delivery::Done
            }
        };
        self.registry.relieve();
        delivery
    }

    /// Starts the grace window, if this connection still holds the slot. It ended `amid` a message if some of
    /// one had arrived.
    pub fn vacate(&mut self, ended: Ended, amid: bool, now: Instant) {
        if !std::mem::replace(&mut self.vacated, true) {
            self.registry.vacate(&self.server, self.serial, ended, amid, now);
        }
    }
}

impl Drop for ServerSeat {
    fn drop(&mut self) {
        self.vacate(Ended::Dropped, false, clock::now());
        // A message that it did not finish is the next connection's.
        self.outbox.detach();
        let leaving = self.registry.map.borrow_mut().leaving.remove(&self.serial);
        drop(leaving);
    }
}

/// A phone's place at a slot. Dropping it takes the phone off.
#[derive(Debug)]
pub struct PhoneSeat {
    pub(super) registry: Rc<Registry>,
    pub(super) server: ServerId,
    pub(super) key: PhoneKey,
    pub(super) serial: Serial,
    pub(super) outbox: Rc<Outbox>,
    pub(super) sender: Rc<Sender>,
    pub(super) left: bool,
}

/// What became of a phone's message.
#[derive(Debug)]
pub enum Passed {
    /// It is queued.
    Queued,
    /// There is no room: the phone is held back, and the message is offered again later.
    Held(Frame),
    /// The phone is attached no more.
    Gone,
}

impl PhoneSeat {
    pub(super) fn new(
        registry: &Rc<Registry>,
        server: ServerId,
        key: PhoneKey,
        serial: Serial,
        outbox: &Rc<Outbox>,
        sender: &Rc<Sender>,
    ) -> Self {
        Self {
            registry: Rc::clone(registry),
            server,
            key,
            serial,
            outbox: Rc::clone(outbox),
            sender: Rc::clone(sender),
            left: false,
        }
    }

    /// The connection id that the binary knows the phone by.
    pub fn conn_id(&self) -> String {
        self.key.conn_id(&self.server)
    }

    /// What is to be written to the phone.
    pub fn outbox(&self) -> &Rc<Outbox> {
        &self.outbox
    }

    /// The phone as a sender: its account, and its waker while it is held back.
    pub fn sender(&self) -> &Rc<Sender> {
        &self.sender
    }

    /// Queues a message, already in its envelope, for the binary.
    pub fn forward(&self, frame: Frame) -> Passed {
        let offered = match self.registry.map.borrow_mut().slots.get_mut(&self.server) {
            Some(slot) => slot.forward(self.key, self.serial, frame),
            None => None,
        };
        match offered {
            Some(Ok(())) => {
                self.registry.relieve();
                Passed::Queued
            }
            Some(Err(frame)) => Passed::Held(frame),
            None => Passed::Gone,
        }
    }

    /// Takes the phone off its slot; the binary is told if it knows the phone.
    pub fn leave(&mut self, ended: Ended) {
        if !std::mem::replace(&mut self.left, true) {
            self.registry.leave(&self.server, self.key, self.serial, ended);
        }
    }
}

impl Drop for PhoneSeat {
    fn drop(&mut self) {
        self.leave(Ended::Dropped);
        let leaving = self.registry.map.borrow_mut().leaving.remove(&self.serial);
        drop(leaving);
    }
}

/// A claim of a slot whose holder is being probed. Dropping it ends the probe; the loser of a
/// claim owns nothing else.
#[derive(Debug)]
pub struct Contest {
    pub(super) registry: Rc<Registry>,
    pub(super) server: ServerId,
    pub(super) origin: Origin,
    pub(super) holder: Serial,
    inquiry: Rc<Inquiry>,
    pub(super) probe: Rc<Probe>,
}

impl Contest {
    pub(super) fn new(
        registry: &Rc<Registry>,
        server: &ServerId,
        origin: Origin,
        holder: Serial,
        (inquiry, probe): (Rc<Inquiry>, Rc<Probe>),
    ) -> Self {
        let (registry, server) = (Rc::clone(registry), server.clone());
        Self { registry, server, origin, holder, inquiry, probe }
    }

    /// The contested server-id.
    pub fn server(&self) -> &ServerId {
        &self.server
    }

    /// When the holder was asked.
    pub(crate) fn asked(&self) -> Instant {
        self.probe.asked()
    }

    /// Waits for what becomes of the holder. Cancel safe.
    pub fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.probe.poll_outcome(cx)
    }

    /// The time is over: the holder's link reads once more what is there, and then tells the outcome.
    pub fn call_last(&self) {
        self.probe.call_last();
    }

    /// Takes the slot: the holder is gone, or has not answered in time. The error says that it has
    /// answered after all.
    pub fn win(self, now: Instant) -> Result<ServerSeat, Lost> {
        let seated = {
            let mut map = self.registry.map.borrow_mut();
            let free = match map.slots.get(&self.server).map(|slot| &slot.holder) {
                Some(Holder::Grace { .. }) => true,
                Some(Holder::Live { serial, .. }) => {
                    *serial == self.holder && self.probe.outcome() != Some(Outcome::Answered)
                }
                // A slot does not expire while it is contested.
                None => false,
            };
            if !free {
                return Err(Lost);
            }
            self.registry.seat(&mut map, &self.server, self.origin, now)
        };
        Ok(self.registry.settle(&self.server, seated))
    }
}

/// The claim is lost: the holder is alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost;

impl Drop for Contest {
    fn drop(&mut self) {
        self.inquiry.end_if(&self.probe);
    }
}
