//! The bounded data queue towards one peer.
//!
//! Towards a binary several phones share it. None of them may fill more than half, and when the
//! whole is full they are let in again in the order in which they were held back.

mod frozen;
mod proofs;
mod table;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub(crate) use self::frozen::{FrozenLane, Senders};
use self::proofs::Proofs;
use self::table::Table;
use crate::ids::PhoneKey;
use crate::limits::MESSAGE_OVERHEAD;
use crate::queue::budget::Account;
use crate::websocket::frames::Frame;

/// A queue of whole frames, bounded in bytes held.
#[derive(Debug)]
pub struct Lane {
    limit: usize,
    /// Pays for what has no sender of its own.
    account: RefCell<Rc<Account>>,
    state: RefCell<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    entries: Table<Entry>,
    held: usize,
    /// Bytes of the front entry that the attached connection's socket has accepted.
    begun: usize,
    waiting: VecDeque<Rc<Sender>>,
    writer: Option<Waker>,
    /// Once a sender has queued something.
    proofs: Option<Box<Proofs>>,
}

#[derive(Debug)]
struct Entry {
    bytes: Vec<u8>,
    sender: Option<Rc<Sender>>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Kind {
    Message,
    /// The close notice about a phone.
    Notice(PhoneKey),
    /// A ping whose answer proves that what went before it has been read.
    Proof,
}

/// One phone as a sender into its slot's lane.
#[derive(Debug)]
pub struct Sender {
    account: Rc<Account>,
    share: Cell<usize>,
    /// The number of its last message that a binary's socket has accepted whole; 0 if none.
    accepted: Cell<u64>,
    /// Bytes that the message needs that found no room; 32 bits, so that the sender takes no more for the flag.
    wanted: Cell<u32>,
    /// Nothing of it is to be delivered any more.
    is_dropped: Cell<bool>,
    blocked: RefCell<Blocked>,
}

/// What waits for room.
#[derive(Default, Debug)]
struct Blocked {
    waker: Option<Waker>,
    /// The message that found none.
    message: Option<Frame>,
}

/// What left a lane with its last byte.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Completed {
    /// Messages.
    pub messages: usize,
    /// Those among them that were forwarded, which the relay's own notices are not.
    pub forwarded: usize,
    /// Bytes of these.
    pub forwarded_bytes: usize,
}

impl std::ops::AddAssign for Completed {
    fn add_assign(&mut self, more: Self) {
        self.messages += more.messages;
        self.forwarded += more.forwarded;
        self.forwarded_bytes += more.forwarded_bytes;
    }
}

impl Sender {
    /// A sender that has sent nothing yet.
    pub fn new(account: Rc<Account>) -> Rc<Self> {
        Rc::new(Self {
            account,
            share: Cell::new(0),
            accepted: Cell::new(0),
            wanted: Cell::new(0),
            is_dropped: Cell::new(false),
            blocked: RefCell::default(),
        })
    }

    /// Whether a message of this sender was ever accepted whole by a binary's socket.
    pub fn is_delivered(&self) -> bool {
        self.accepted.get() > 0
    }

    /// Bytes of the lane that this sender fills.
    pub fn share(&self) -> usize {
        self.share.get()
    }

    /// The account that pays for them.
    pub fn account(&self) -> &Rc<Account> {
        &self.account
    }

    /// Has `waker` called when it is worth trying again to get the message in that was held back.
    pub fn wake_when_free(&self, waker: &Waker) {
        self.blocked.borrow_mut().waker = Some(waker.clone());
    }

    fn wanted(&self) -> usize {
        usize::try_from(self.wanted.get()).unwrap_or(usize::MAX)
    }

    fn wake(&self) {
        let waker = self.blocked.borrow_mut().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Keeps the message that found no room, for as long as the sender is there; whoever parks it pays.
    pub(crate) fn park(&self, frame: Frame) {
        self.blocked.borrow_mut().message = Some(frame);
    }

    /// Takes it back.
    pub(crate) fn unpark(&self) -> Option<Frame> {
        self.blocked.borrow_mut().message.take()
    }
}

impl Lane {
    /// An empty lane of at most `limit` bytes, [`MESSAGE_OVERHEAD`] a message included.
    pub fn new(limit: usize, account: Rc<Account>) -> Rc<Self> {
        Rc::new(Self { limit, account: RefCell::new(account), state: RefCell::default() })
    }

    /// Queues a frame that no sender pays for; gives it back if it does not fit.
    pub fn push(&self, frame: Frame) -> Result<(), Frame> {
        let mut state = self.state.borrow_mut();
        let cost = cost(frame.len());
        if state.held + cost > self.limit {
            return Err(frame);
        }
        self.account.borrow().add(cost);
        state.push(Entry { bytes: frame.into_bytes(), sender: None, kind: Kind::Message });
        Ok(())
    }

    /// Queues a close notice, which is admitted past the bound.
    pub fn push_notice(&self, frame: Frame, about: PhoneKey) {
        self.account.borrow().add(cost(frame.len()));
        let entry = Entry { bytes: frame.into_bytes(), sender: None, kind: Kind::Notice(about) };
        self.state.borrow_mut().push(entry);
    }

    /// Queues a message of `sender`, or gives it back: then the sender waits, and is woken by
    /// [`Sender::wake_when_free`] when there is room for it.
    pub fn offer(&self, frame: Frame, sender: &Rc<Sender>) -> Result<(), Frame> {
        let mut state = self.state.borrow_mut();
        let cost = cost(frame.len());
        sender.wanted.set(u32::try_from(cost).unwrap_or(u32::MAX));
        if sender.share.get() + cost > self.limit / 2 {
            state.stop_waiting(sender);
            return Err(frame);
        }
        let first_in_line = state.waiting.front().is_none_or(|first| Rc::ptr_eq(first, sender));
        if !first_in_line || state.held + cost > self.limit {
            if !state.waiting.iter().any(|waiting| Rc::ptr_eq(waiting, sender)) {
                state.waiting.push_back(Rc::clone(sender));
            }
            return Err(frame);
        }
        state.stop_waiting(sender);
        sender.share.set(sender.share.get() + cost);
        sender.account.add(cost);
        let sender = Some(Rc::clone(sender));
        state.proofs.get_or_insert_default();
        state.push(Entry { bytes: frame.into_bytes(), sender, kind: Kind::Message });
        state.wake_first(self.limit);
        Ok(())
    }

    /// The sender leaves: it waits no more, and the message that it has parked is dropped. What it has
    /// queued stays.
    pub fn leave(&self, sender: &Rc<Sender>) {
        drop(sender.unpark());
        let mut state = self.state.borrow_mut();
        state.stop_waiting(sender);
        state.wake_first(self.limit);
    }

    /// Drops the messages of `sender`, queued or parked. One in progress goes on; if it breaks off, it is not sent
    /// again on the next connection.
    pub fn drop_messages_of(&self, sender: &Rc<Sender>) {
        sender.is_dropped.set(true);
        drop(sender.unpark());
        self.state.borrow_mut().stop_waiting(sender);
        self.drop_entries(|entry| {
            entry.sender.as_ref().is_some_and(|owner| Rc::ptr_eq(owner, sender))
        });
    }

    fn drop_entries(&self, is_dropped: impl Fn(&Entry) -> bool) {
        let mut state = self.state.borrow_mut();
        let in_progress = usize::from(state.begun > 0);
        let Contents { entries, held, .. } = &mut *state;
        let mut index = 0;
        entries.retain(|entry| {
            let dropped = is_dropped(entry) && index >= in_progress;
            index += 1;
            if dropped {
                self.refund(held, entry);
            }
            !dropped
        });
        state.wake_first(self.limit);
    }

    /// Who pays for what has no sender of its own.
    pub fn account(&self) -> Rc<Account> {
        Rc::clone(&self.account.borrow())
    }

    /// From now on `account` pays for what has no sender of its own, queued or to come.
    pub fn bill(&self, account: &Rc<Account>) {
        let state = self.state.borrow();
        let unowned = state.entries.iter().filter(|entry| entry.sender.is_none());
        let bytes = unowned.map(|entry| cost(entry.bytes.len())).sum();
        account.add(bytes);
        self.account.replace(Rc::clone(account)).sub(bytes);
    }

    /// The sender who pays by `account` for something that is queued. It looks at all that is.
    pub fn sender_of(&self, account: &Rc<Account>) -> Option<Rc<Sender>> {
        let state = self.state.borrow();
        let mut senders = state.entries.iter().filter_map(|entry| entry.sender.as_ref());
        senders.find(|sender| Rc::ptr_eq(&sender.account, account)).cloned()
    }

    /// Drops the close notices that are queued, except one in progress.
    pub fn drop_notices(&self) {
        self.drop_entries(|entry| matches!(entry.kind, Kind::Notice(_)));
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.state.borrow().entries.is_empty()
    }

    /// Bytes held, [`MESSAGE_OVERHEAD`] a message included.
    pub fn held(&self) -> usize {
        self.state.borrow().held
    }

    /// Messages of phones that are queued; notices are none.
    pub fn messages(&self) -> usize {
        self.state.borrow().entries.iter().filter(|entry| entry.sender.is_some()).count()
    }

    /// Whether more than half of the bound is held.
    pub fn is_over_half(&self) -> bool {
        self.state.borrow().held > self.limit / 2
    }

    /// The phones whose close notices are still queued, oldest first.
    pub fn queued_notices(&self) -> Vec<PhoneKey> {
        let state = self.state.borrow();
        let notices = state.entries.iter().filter_map(|entry| match entry.kind {
            Kind::Notice(about) => Some(about),
            _ => None,
        });
        notices.collect()
    }

    /// Has `waker` called when something is queued.
    pub fn register_writer(&self, waker: &Waker) {
        let mut state = self.state.borrow_mut();
        if !state.writer.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.writer = Some(waker.clone());
        }
    }

    /// Forgets that the front frame was begun and returns its unsent remainder (empty if none was). The frame is
    /// the first for the next connection, unless its sender was dropped meanwhile.
    pub fn rewind(&self) -> Vec<u8> {
        let mut state = self.state.borrow_mut();
        state.writer = None;
        let begun = std::mem::take(&mut state.begun);
        let Contents { entries, held, .. } = &mut *state;
        let Some(front) = entries.front().filter(|_| begun > 0) else { return Vec::new() };
        let rest = front.bytes[begun..].to_vec();
        if front.sender.as_ref().is_some_and(|sender| sender.is_dropped.get()) {
            self.refund(held, front);
            entries.pop_front();
            state.wake_first(self.limit);
        }
        rest
    }

    /// Unsent bytes of a frame in progress.
    pub fn unfinished(&self) -> usize {
        let state = self.state.borrow();
        match state.entries.front() {
            Some(entry) if state.begun > 0 => entry.bytes.len() - state.begun,
            _ => 0,
        }
    }

    /// Queues a ping whose answer proves what goes before it, if one is due at `now`. Returns when the next
    /// one is, if it is for the time alone that none is due.
    pub fn prove(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state.borrow_mut();
        let Contents { entries, proofs: Some(proofs), held, .. } = &mut *state else { return None };
        let is_queued = || entries.iter().any(|entry| entry.sender.is_some());
        let due = proofs.due(now, is_queued)?;
        if now < due {
            return Some(due);
        }
        // Whoever asks writes next, and need not be woken.
        let bytes = proofs.ask(now);
        let cost = cost(bytes.len());
        self.account.borrow().add(cost);
        *held += cost;
        entries.push_back(Entry { bytes, sender: None, kind: Kind::Proof });
        None
    }

    /// The binary answered a ping with this payload.
    pub fn hear_proof(&self, payload: &[u8]) {
        if let Some(proofs) = &mut self.state.borrow_mut().proofs {
            proofs.answered(payload);
        }
    }

    /// Whether the binary has proved that it has read every message of this sender that its socket had
    /// accepted.
    pub fn is_proven(&self, sender: &Sender) -> bool {
        let state = self.state.borrow();
        state.proofs.as_ref().is_none_or(|proofs| proofs.is_proven(sender.accepted.get()))
    }

    /// Another connection is asked for proofs from here on. What is unproven stays so, and matters no more.
    pub fn begin_proofs_anew(&self) {
        if let Some(proofs) = &mut self.state.borrow_mut().proofs {
            proofs.begin_anew();
        }
    }

    /// Shows what is to be written to `look`, which must not touch the lane.
    pub fn with_pending<T>(&self, look: impl FnOnce(Pending<'_>) -> T) -> T {
        let state = self.state.borrow();
        look(Pending::new(&state.entries, state.begun))
    }

    /// The socket accepted `bytes` more of what is queued; returns what was completed.
    pub fn advance(&self, mut bytes: usize) -> Completed {
        let mut state = self.state.borrow_mut();
        let mut completed = Completed::default();
        while bytes > 0 {
            let begun = state.begun;
            let front = state.entries.front().expect("bug: more was accepted than was queued");
            let left = front.bytes.len() - begun;
            if bytes < left {
                state.begun += bytes;
                break;
            }
            bytes -= left;
            completed.messages += 1;
            state.begun = 0;
            if let Some(entry) = state.entries.pop_front() {
                if entry.kind == Kind::Message {
                    completed.forwarded += 1;
                    completed.forwarded_bytes += entry.bytes.len();
                }
                self.refund(&mut state.held, &entry);
                if let Some(sender) = &entry.sender {
                    if let Some(proofs) = &mut state.proofs {
                        sender.accepted.set(proofs.accepted());
                    }
                    // Only a sender that waits for room in its own half is woken here; `blocked`
                    // of one that waits in line stays until its turn.
                    let room = sender.share.get() + sender.wanted() <= self.limit / 2;
                    if room && !state.waiting.iter().any(|other| Rc::ptr_eq(other, sender)) {
                        sender.wake();
                    }
                }
                if let (Kind::Proof, Some(proofs)) = (entry.kind, &mut state.proofs) {
                    proofs.sent(entry.bytes);
                }
            }
        }
        state.wake_first(self.limit);
        completed
    }

    fn refund(&self, held: &mut usize, entry: &Entry) {
        let cost = cost(entry.bytes.len());
        *held -= cost;
        match &entry.sender {
            Some(sender) => {
                sender.share.set(sender.share.get() - cost);
                sender.account.sub(cost);
            }
            None => self.account.borrow().sub(cost),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let Contents { entries, held, .. } = &mut *self.state.borrow_mut();
        for entry in std::mem::take(entries) {
            self.refund(held, &entry);
        }
    }
}

impl Contents {
    fn push(&mut self, entry: Entry) {
        self.held += cost(entry.bytes.len());
        self.entries.push_back(entry);
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    fn stop_waiting(&mut self, sender: &Rc<Sender>) {
        self.waiting.retain(|waiting| !Rc::ptr_eq(waiting, sender));
    }

    /// Wakes the first in line if its message fits by now.
    fn wake_first(&mut self, limit: usize) {
        if let Some(first) = self.waiting.front() {
            if self.held + first.wanted() <= limit {
                first.wake();
            }
        }
    }
}

/// What is to be written, frame by frame.
#[derive(Debug)]
pub struct Pending<'a> {
    next: Option<&'a Entry>,
    behind: table::Iter<'a, Entry>,
    begun: usize,
    /// Bytes of the next frame that have been written already.
    written: usize,
}

impl<'a> Pending<'a> {
    fn new(entries: &'a Table<Entry>, begun: usize) -> Self {
        let mut behind = entries.iter();
        Self { next: behind.next(), behind, begun, written: begun }
    }

    /// Bytes of the first frame that have been written already.
    pub fn begun(&self) -> usize {
        self.begun
    }

    /// The unsent bytes of the frame that is next; empty if there is none.
    pub fn front(&self) -> &'a [u8] {
        self.next.map_or(&[], |entry| &entry.bytes[self.written..])
    }

    /// Goes on to the frame behind it.
    pub fn skip(&mut self) {
        self.next = self.behind.next();
        self.written = 0;
    }
}

/// What a frame of this length costs against a bound: it is the memory held, not the payload.
fn cost(length: usize) -> usize {
    length + MESSAGE_OVERHEAD
}

#[cfg(test)]
mod tests;
