//! What a lane is, as plain data: see [`Lane::freeze`].

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::proofs;
use super::{Contents, Entry, Kind, Lane, Sender, cost};
use crate::origin::Origin;
use crate::queue::budget::Account;
use crate::websocket::frames::Frame;

/// A lane and the senders that it knows. A sender is its place in `senders`.
#[derive(Default, Debug, Serialize, Deserialize)]
pub(crate) struct FrozenLane {
    pub(crate) senders: Vec<FrozenSender>,
    entries: Vec<FrozenEntry>,
    /// Bytes of the first entry that the attached connection's socket has accepted.
    begun: usize,
    waiting: Vec<usize>,
    proofs: Option<proofs::Frozen>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FrozenEntry {
    bytes: ByteBuf,
    sender: Option<usize>,
    kind: Kind,
}

/// A sender without its account.
#[derive(Default, Debug, Serialize, Deserialize)]
pub(crate) struct FrozenSender {
    accepted: u64,
    wanted: u32,
    is_dropped: bool,
    parked: Option<ByteBuf>,
    /// Whose account pays for it.
    pub(crate) origin: Option<Origin>,
}

/// Senders by number, in the order in which they were met.
#[derive(Default, Debug)]
pub(crate) struct Senders {
    numbers: HashMap<*const Sender, usize>,
    list: Vec<Rc<Sender>>,
}

impl Senders {
    /// The number of a sender.
    pub(crate) fn number(&mut self, sender: &Rc<Sender>) -> usize {
        *self.numbers.entry(Rc::as_ptr(sender)).or_insert_with(|| {
            self.list.push(Rc::clone(sender));
            self.list.len() - 1
        })
    }
}

impl Sender {
    fn freeze(&self) -> FrozenSender {
        let blocked = self.blocked.borrow();
        FrozenSender {
            accepted: self.accepted.get(),
            wanted: self.wanted.get(),
            is_dropped: self.is_dropped.get(),
            parked: blocked.message.as_ref().map(|frame| ByteBuf::from(frame.as_bytes())),
            origin: Some(self.account.origin()),
        }
    }

    /// The sender that was frozen; `account` pays for it.
    pub(crate) fn thaw(frozen: FrozenSender, account: Rc<Account>) -> Rc<Self> {
        let sender = Self::new(account);
        sender.accepted.set(frozen.accepted);
        sender.wanted.set(frozen.wanted);
        sender.is_dropped.set(frozen.is_dropped);
        if let Some(frame) = frozen.parked.and_then(|bytes| Frame::from_bytes(bytes.into_vec())) {
            sender.park(frame);
        }
        sender
    }

    /// Bytes of the message that is parked.
    pub(crate) fn parked(&self) -> Option<usize> {
        self.blocked.borrow().message.as_ref().map(Frame::len)
    }
}

impl Lane {
    /// The senders of what is queued, proofs aside; none of a notice.
    #[cfg(test)]
    pub(crate) fn owners(&self) -> Vec<Option<Rc<Sender>>> {
        let state = self.state.borrow();
        let entries = state.entries.iter().filter(|entry| entry.kind != Kind::Proof);
        entries.map(|entry| entry.sender.clone()).collect()
    }

    /// What is queued, and by which of the `senders`.
    pub(crate) fn freeze(&self, mut senders: Senders, now: Instant) -> FrozenLane {
        let state = self.state.borrow();
        let entries = state.entries.iter().map(|entry| FrozenEntry {
            bytes: ByteBuf::from(entry.bytes.as_slice()),
            sender: entry.sender.as_ref().map(|sender| senders.number(sender)),
            kind: entry.kind,
        });
        let entries = entries.collect();
        let waiting = state.waiting.iter().map(|sender| senders.number(sender)).collect();
        FrozenLane {
            entries,
            begun: state.begun,
            waiting,
            proofs: state.proofs.as_ref().map(|proofs| proofs.freeze(now)),
            senders: senders.list.iter().map(|sender| sender.freeze()).collect(),
        }
    }

    /// The lane that was frozen, of at most `limit` bytes from now on. `senders` are those that were frozen with
    /// it, and `account` pays for what has no sender. What is queued stays, whatever the limit.
    pub(crate) fn thaw(
        frozen: FrozenLane,
        limit: usize,
        account: Rc<Account>,
        senders: &[Rc<Sender>],
        now: Instant,
    ) -> Rc<Self> {
        let mut state = Contents::default();
        let sender = |number: usize| senders.get(number).map(Rc::clone);
        let mut is_first = true;
        for FrozenEntry { bytes, sender: owner, kind } in frozen.entries {
            let mut bytes = bytes.into_vec();
            bytes.shrink_to_fit();
            if bytes.is_empty() {
                continue;
            }
            if std::mem::take(&mut is_first) && frozen.begun < bytes.len() {
                state.begun = frozen.begun;
            }
            let owner = owner.and_then(sender);
            let cost = cost(bytes.len());
            match &owner {
                Some(owner) => {
                    owner.share.set(owner.share.get() + cost);
                    owner.account.add(cost);
                }
                None => account.add(cost),
            }
            state.push(Entry { bytes, sender: owner, kind });
        }
        state.waiting = frozen.waiting.into_iter().filter_map(sender).collect();
        state.proofs = frozen.proofs.map(|proofs| Box::new(proofs.thaw(now)));
        Rc::new(Self { limit, account: account.into(), state: state.into() })
    }
}
