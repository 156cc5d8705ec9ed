//! One server-id: its holder, its phones, and the queue towards its binary.

mod frozen;

use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub(crate) use self::frozen::FrozenSlot;
use crate::close::{Close, Ended};
use crate::envelope::{Action, close_notice};
use crate::ids::{PhoneKey, Serial, ServerId};
use crate::limits::REMEMBERED_NOTICES;
use crate::queue::budget::{Account, Charge};
use crate::queue::lane::{Lane, Sender};
use crate::queue::outbox::{Manner, Outbox};
use crate::queue::probe::Inquiry;
use crate::telemetry::metrics::ReclaimOutcome;
use crate::websocket::frames::Frame;

/// A claimed server-id, live or in its grace window.
#[derive(Debug)]
pub(super) struct Slot {
    server: ServerId,
    pub(super) lane: Rc<Lane>,
    pub(super) holder: Holder,
    /// Where the holder's link, or that of the last one, finds the probe that is under way, if any.
    pub(super) inquiry: Rc<Inquiry>,
    pub(super) phones: HashMap<PhoneKey, Phone>,
    /// Phones that the present connection was told about, oldest first.
    noticed: VecDeque<PhoneKey>,
    /// Pays for that table where it is large.
    noticed_charge: Charge,
    /// Until when the present connection must speak to one of the phones that were kept for it.
    pub(super) confirmation: Option<Instant>,
}

/// Who holds the slot.
#[derive(Debug)]
pub(super) enum Holder {
    /// A connection.
    Live { serial: Serial, outbox: Rc<Outbox>, account: Rc<Account> },
    /// Nobody: the connection `serial` ended, and the slot expires at `deadline`. Its outbox
    /// may still be finishing a message.
    Grace { serial: Serial, deadline: Instant, end: End, outbox: Weak<Outbox> },
}

/// How a binary's connection ended, as far as it decides which phones survive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct End {
    pub(super) manner: Parting,
    pub(super) at: Instant,
}

/// Whether what was on its way is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Parting {
    /// The binary sent a close frame: everything before it has arrived.
    Orderly,
    /// The connection broke, or the relay closed it.
    Broken,
    /// A message of the binary was thrown away, or has arrived in part; it may have been for any phone.
    Severed,
    /// The binary fell silent.
    Silent,
}

impl Parting {
    pub(super) fn by(ended: Ended, amid: bool) -> Self {
        match ended {
            _ if ended.by_silence() => Self::Silent,
            // Of what breaks the rules of frames nothing is a message.
            Ended::ByRelay(Close::Protocol) => Self::Broken,
            Ended::ByRelay(Close::BadUtf8) => Self::Severed,
            _ if amid => Self::Severed,
            Ended::ByPeer(_) => Self::Orderly,
            _ => Self::Broken,
        }
    }
}

/// An attached phone.
#[derive(Debug)]
pub(super) struct Phone {
    serial: Serial,
    pub(super) outbox: Rc<Outbox>,
    pub(super) sender: Rc<Sender>,
    /// Joined in the grace window: no connection of the binary has served it yet.
    unserved: bool,
    /// Has outlived a change of its binary's connection.
    outlived: bool,
    /// Was kept with a session, and the present connection has not shown yet that it knows of it.
    unconfirmed: bool,
    /// When the binary last sent it something.
    spoken: Option<Instant>,
}

impl Phone {
    /// Whether a binary has heard of it or spoken to it.
    fn has_session(&self) -> bool {
        self.sender.is_delivered() || self.spoken.is_some()
    }
}

/// What a claim came to for the phones that were attached.
#[derive(Debug)]
pub(super) struct Reclaim {
    pub(super) kept: usize,
    pub(super) closed: Vec<Retired>,
    /// What became of those that were closed, or of all if none was.
    pub(super) outcome: ReclaimOutcome,
}

/// A phone that was taken off its slot, for the log.
#[derive(Debug)]
pub(super) struct Retired {
    pub(super) server: ServerId,
    pub(super) conn_id: String,
    pub(super) ended: Ended,
}

/// What became of a binary's envelope.
#[derive(Debug)]
pub(super) enum Routed {
    Delivered,
    /// No such phone.
    Unknown,
    /// The phone was closed, by the directive or because it cannot keep up. What the binary asked
    /// for may still be on its way to the phone: then its outbox lives on.
    Closed {
        retired: Retired,
        leaving: Option<(Serial, Rc<Outbox>, Rc<Sender>)>,
    },
    /// The binary does not know the session of a phone that was kept for it: all those are closed.
    Disproved(Reclaim),
}

/// What happens to the messages of a phone that is taken off, and whether the binary is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Remains {
    /// They are delivered, then the notice, by the rules of the grace window.
    Kept,
    /// They are dropped; the notice goes out if the binary knows the phone.
    Dropped,
    /// The binary asked for the close itself: no notice.
    Asked,
}

impl Slot {
    pub(super) fn new(server: ServerId, lane: Rc<Lane>, holder: Holder) -> Self {
        let noticed_charge = Charge::new(lane.account());
        Self {
            noticed_charge,
            server,
            lane,
            holder,
            inquiry: Inquiry::new(None),
            phones: HashMap::new(),
            noticed: VecDeque::new(),
            confirmation: None,
        }
    }

    pub(super) fn server(&self) -> &ServerId {
        &self.server
    }

    pub(super) fn attach(
        &mut self,
        key: PhoneKey,
        serial: Serial,
        outbox: Rc<Outbox>,
        sender: Rc<Sender>,
    ) {
        let unserved = matches!(self.holder, Holder::Grace { .. });
        self.phones.insert(
            key,
            Phone {
                serial,
                outbox,
                sender,
                unserved,
                outlived: false,
                unconfirmed: false,
                spoken: None,
            },
        );
    }

    /// Gives the slot to connection `serial`, at `now`. Of its phones those stay whose session is provably whole
    /// (contract, The grace window), and none with `evict`.
    pub(super) fn take(
        &mut self,
        serial: Serial,
        account: &Rc<Account>,
        evict: bool,
        now: Instant,
    ) -> (Rc<Outbox>, Reclaim) {
        let end = match &self.holder {
            Holder::Live { outbox, .. } => {
                outbox.detach();
                outbox.close(Close::HeartbeatTimeout, Manner::Abort);
                End { manner: Parting::Silent, at: now }
            }
            Holder::Grace { end, outbox, .. } => {
                if let Some(outbox) = outbox.upgrade() {
                    outbox.detach();
                }
                *end
            }
        };
        // What the one before still sends answers nothing any more.
        self.inquiry.end();
        self.inquiry = Inquiry::new(None);
        let outcome = match end.manner {
            _ if evict => ReclaimOutcome::Evicted,
            Parting::Silent => ReclaimOutcome::Silent,
            _ => ReclaimOutcome::Unproven,
        };
        self.noticed = VecDeque::new();
        self.noticed_charge = Charge::new(Rc::clone(account));
        for key in self.lane.queued_notices() {
            self.remember(key);
        }
        let closed = self.close_phones(|slot, phone| evict || !slot.is_whole(phone, end));
        self.lane.begin_proofs_anew();
        for phone in self.phones.values_mut() {
            phone.outlived |= !phone.unserved;
            phone.unserved = false;
            phone.unconfirmed = phone.has_session();
        }
        self.confirmation =
            self.phones.values().any(|phone| phone.unconfirmed).then(|| now + CONFIRMATION_TIME);
        let outbox = Outbox::new(Some(Rc::clone(&self.lane)));
        self.lane.bill(account);
        let account = Rc::clone(account);
        self.holder = Holder::Live { serial, outbox: Rc::clone(&outbox), account };
        let outcome = if closed.is_empty() { ReclaimOutcome::Kept } else { outcome };
        (outbox, Reclaim { kept: self.phones.len(), closed, outcome })
    }

    /// Whether nothing of a phone's session can be lost with the connection that ended so.
    fn is_whole(&self, phone: &Phone, end: End) -> bool {
        let was_quiet =
            || phone.spoken.is_none_or(|at| end.at.saturating_duration_since(at) >= QUIET_TIME);
        let is_whole = match end.manner {
            Parting::Silent | Parting::Severed => false,
            Parting::Orderly => self.lane.is_proven(&phone.sender),
            Parting::Broken => self.lane.is_proven(&phone.sender) && was_quiet(),
        };
        is_whole || !phone.has_session()
    }

    /// All of them, by their keys: what happens must not depend on the order of a table.
    pub(super) fn phones_in_order(&self) -> Vec<(&PhoneKey, &Phone)> {
        let mut phones: Vec<_> = self.phones.iter().collect();
        phones.sort_unstable_by_key(|(key, _)| **key);
        phones
    }

    /// Closes phones that must begin anew, and drops what is queued of them.
    fn close_phones(&mut self, is_closed: impl Fn(&Self, &Phone) -> bool) -> Vec<Retired> {
        let phones = self.phones_in_order().into_iter();
        let doomed: Vec<_> =
            phones.filter(|(_, phone)| is_closed(self, phone)).map(|(key, _)| *key).collect();
        let close = |key| {
            self.phones.get(&key)?.outbox.close(Close::Reclaimed, Manner::Abort);
            self.retire(key, Ended::ByRelay(Close::Reclaimed), Remains::Dropped)
        };
        doomed.into_iter().filter_map(close).collect()
    }

    /// The binary's connection ended so.
    pub(super) fn vacate(&mut self, serial: Serial, deadline: Instant, end: End) {
        let outbox = match &self.holder {
            Holder::Live { outbox, .. } => Rc::downgrade(outbox),
            Holder::Grace { outbox, .. } => Weak::clone(outbox),
        };
        self.holder = Holder::Grace { serial, deadline, end, outbox };
        self.confirmation = None;
    }

    /// The present connection knows the sessions that were kept for it.
    fn confirm(&mut self) {
        self.confirmation = None;
        for phone in self.phones.values_mut() {
            phone.unconfirmed = false;
        }
    }

    /// Closes the phones that were kept for the present connection: it does not know them. `None` if that was
    /// not to be shown by `deadline`.
    pub(super) fn refute(&mut self, deadline: Instant) -> Option<Reclaim> {
        self.confirmation.take_if(|due| *due == deadline)?;
        let closed = self.close_phones(|_, phone| phone.unconfirmed);
        let outcome = ReclaimOutcome::Unconfirmed;
        Some(Reclaim { kept: self.phones.len(), closed, outcome })
    }

    /// Queues a phone's message for the binary; gives it back if there is no room. `None` if the
    /// phone is attached no more.
    pub(super) fn forward(
        &mut self,
        key: PhoneKey,
        serial: Serial,
        frame: Frame,
    ) -> Option<Result<(), Frame>> {
        let phone = self.phones.get(&key).filter(|phone| phone.serial == serial)?;
        Some(self.lane.offer(frame, &phone.sender))
    }

    /// Carries out what the binary asks for.
    pub(super) fn route(&mut self, conn_id: &str, action: &Action<'_>, now: Instant) -> Routed {
        let Some(key) = PhoneKey::parse(&self.server, conn_id) else { return Routed::Unknown };
        let Some(phone) = self.phones.get_mut(&key) else {
            if matches!(action, Action::Deliver(_)) {
                self.answer_unknown(key);
            }
            return Routed::Unknown;
        };
        match (phone.unconfirmed, action) {
            (false, _) => {}
            (true, Action::Deliver(_)) => self.confirm(),
            (true, Action::Close(_, 4421 | 4410)) => {
                let reclaim = self.confirmation.and_then(|deadline| self.refute(deadline));
                return reclaim.map_or(Routed::Unknown, Routed::Disproved);
            }
            (true, Action::Close(..)) => {}
        }
        let Some(phone) = self.phones.get_mut(&key) else { return Routed::Unknown };
        let frame = match action {
            Action::Deliver(frame) | Action::Close(Some(frame), _) => Some(*frame),
            Action::Close(None, _) => None,
        };
        if frame.is_some() {
            phone.spoken = Some(now);
        }
        let sent =
            frame.map_or(Ok(()), |frame| phone.outbox.send(Frame::text(&[frame.as_bytes()])));
        match (sent, action) {
            (Err(_), _) => {
                phone.outbox.close(Close::BacklogFull, Manner::Abort);
                let ended = Ended::ByRelay(Close::BacklogFull);
                match self.retire(key, ended, Remains::Kept) {
                    Some(retired) => Routed::Closed { retired, leaving: None },
                    None => Routed::Unknown,
                }
            }
            (Ok(()), Action::Deliver(_)) => Routed::Delivered,
            (Ok(()), Action::Close(_, code)) => {
                // The phone must not take "unknown session" as final when it is the binary's
                // connection that changed.
                let close = match code {
                    4421 if phone.outlived => Close::Reclaimed,
                    code => Close::Directive(*code),
                };
                phone.outbox.close(close, Manner::Orderly);
                let leaving =
                    Some((phone.serial, Rc::clone(&phone.outbox), Rc::clone(&phone.sender)));
                match self.retire(key, Ended::ByRelay(close), Remains::Asked) {
                    Some(retired) => Routed::Closed { retired, leaving },
                    None => Routed::Unknown,
                }
            }
        }
    }

    /// A phone's connection ended.
    pub(super) fn leave(&mut self, key: PhoneKey, serial: Serial, ended: Ended) -> Option<Retired> {
        self.phones.get(&key).filter(|phone| phone.serial == serial)?;
        self.retire(key, ended, Remains::Kept)
    }

    /// Closes a phone for the memory budget. Its outbox may still hold the message in progress.
    pub(super) fn sacrifice(&mut self, key: PhoneKey) -> Option<(Serial, Rc<Outbox>, Retired)> {
        let phone = self.phones.get(&key)?;
        let (serial, outbox) = (phone.serial, Rc::clone(&phone.outbox));
        outbox.close(Close::OverBudget, Manner::Abort);
        let retired = self.retire(key, Ended::ByRelay(Close::OverBudget), Remains::Dropped)?;
        Some((serial, outbox, retired))
    }

    /// Closes the binary for the memory budget, and drops the notices for it. Its outbox may still hold
    /// the message in progress.
    pub(super) fn sacrifice_binary(&mut self) -> Option<(Serial, Rc<Outbox>)> {
        let Holder::Live { serial, outbox, .. } = &self.holder else { return None };
        outbox.close(Close::OverBudget, Manner::Abort);
        self.lane.drop_notices();
        Some((*serial, Rc::clone(outbox)))
    }

    /// Whether `account` is that of the binary, present or not.
    pub(super) fn pays_notices(&self, account: &Rc<Account>) -> bool {
        Rc::ptr_eq(&self.lane.account(), account)
    }

    /// Drops the close notices that are queued.
    pub(super) fn forget_notices(&mut self) {
        self.lane.drop_notices();
    }

    /// Bytes that are queued for the binary.
    pub(super) fn queued(&self) -> usize {
        self.lane.held()
    }

    /// Messages that are kept in the grace window; none while there is a binary.
    pub(super) fn kept(&self) -> usize {
        match self.holder {
            Holder::Grace { .. } => self.lane.messages(),
            Holder::Live { .. } => 0,
        }
    }

    /// Drops what a phone that has left still has queued.
    pub(super) fn forget_departed(&mut self, sender: &Rc<Sender>) {
        self.lane.drop_messages_of(sender);
    }

    fn retire(&mut self, key: PhoneKey, ended: Ended, remains: Remains) -> Option<Retired> {
        let Phone { sender, .. } = self.phones.remove(&key)?;
        let conn_id = key.conn_id(&self.server);
        let in_grace = matches!(self.holder, Holder::Grace { .. });
        // In the window an unknown phone is forgotten whole; with a live binary its queued
        // messages are about to make it known.
        let forgotten = in_grace && !sender.is_delivered();
        if remains == Remains::Dropped || (remains == Remains::Kept && forgotten) {
            self.lane.drop_messages_of(&sender);
        } else {
            self.lane.leave(&sender);
        }
        if remains != Remains::Asked && (sender.is_delivered() || sender.share() > 0) {
            self.lane.push_notice(close_notice(&conn_id, ended.notice_code()), key);
            self.remember(key);
        }
        Some(Retired { server: self.server.clone(), conn_id, ended })
    }

    /// Tells the binary, once, that it speaks to a phone that the relay does not know.
    fn answer_unknown(&mut self, key: PhoneKey) {
        if !self.lane.is_over_half() && !self.noticed.contains(&key) {
            self.lane.push_notice(close_notice(&key.conn_id(&self.server), 1001), key);
            self.remember(key);
        }
    }

    fn remember(&mut self, key: PhoneKey) {
        if self.noticed.len() == REMEMBERED_NOTICES {
            self.noticed.pop_front();
        }
        self.noticed.push_back(key);
        let table = self.noticed.capacity() * size_of::<PhoneKey>();
        let held = table.saturating_sub(SMALL_TABLE);
        if held != self.noticed_charge.bytes() {
            self.noticed_charge.set(held);
        }
    }
}

/// Bytes of a table that are within what a connection may cost on no account.
const SMALL_TABLE: usize = 2 * 1024;

/// How long a phone's binary must have said nothing to it, before a connection broke, for nothing of that to be
/// lost (contract, The grace window).
const QUIET_TIME: Duration = Duration::from_secs(2);

/// How long after its claim a binary may take to speak to one of the phones that were kept for it.
const CONFIRMATION_TIME: Duration = Duration::from_secs(5);
