//! The way out of one connection: a bounded data lane, a control lane that passes it, and a seal.
//!
//! A [`Lane`] is the data queue. A phone's belongs to its [`Outbox`]; a binary's belongs to the
//! slot, survives the connection, and is attached to the outbox of whichever connection holds the
//! slot. A message leaves its lane when the socket has accepted its last byte, no sooner: one that
//! was begun on a dead connection is sent again, whole, on the next.
//!
//! Control frames go out ahead of every queued message, behind at most the frame in progress.

mod frozen;

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use futures_lite::AsyncWrite;
use serde::{Deserialize, Serialize};

pub(crate) use self::frozen::FrozenOutbox;
use crate::close::Close;
use crate::limits::{BATCH_BYTES, GATHER_BELOW, TURN_FRAMES, TURN_WRITES};
use crate::queue::budget::{Account, Charge};
use crate::queue::lane::{Completed, Lane};
use crate::websocket::frames::Frame;

/// What one connection still has to write. The connection's link writes it; anybody may add.
#[derive(Debug)]
pub struct Outbox {
    state: RefCell<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    lane: Attached,
    staged: Staged,
    due: Control,
    end: End,
    link: Option<Waker>,
}

/// The lane that is written.
#[derive(Debug, Default)]
enum Attached {
    #[default]
    None,
    /// All of it.
    Whole(Rc<Lane>),
    /// Only the frame in progress.
    LastFrame(Rc<Lane>),
}

impl Attached {
    fn lane(&self) -> Option<&Rc<Lane>> {
        match self {
            Self::None => None,
            Self::Whole(lane) | Self::LastFrame(lane) => Some(lane),
        }
    }
}

/// Bytes that are next on the wire after the lane's frame in progress: control frames, or the
/// remainder of a frame whose lane was taken away.
#[derive(Debug, Default)]
struct Staged {
    bytes: Vec<u8>,
    /// How many of them the socket has accepted.
    at: usize,
    /// The beginning of the first of its frames went out before an upgrade.
    is_begun: bool,
    /// Pays for the remainder of a frame among them, which is as large as a message.
    rest: Option<Charge>,
}

impl Staged {
    fn waiting(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// Whether the socket has accepted some of it.
    fn is_begun(&self) -> bool {
        self.is_begun || self.at > 0
    }
}

/// Control frames that are due and not staged yet.
#[derive(Debug, Default)]
struct Control {
    pong: Option<Vec<u8>>,
    probe: Option<[u8; 8]>,
    heartbeat: bool,
}

/// How far an outbox is on its way to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
enum End {
    /// Messages are taken.
    #[default]
    Open,
    /// The close frame follows.
    Sealed(Close, Manner),
    /// The close frame is among the staged bytes.
    CloseStaged(Close, Manner),
    /// The socket has accepted the close frame.
    Closed(Close, Manner),
    /// Nothing more is written, not even the close frame: see [`Outbox::cut`].
    Cut(Option<(Close, Manner)>),
}

impl End {
    fn sealed(self) -> Option<(Close, Manner)> {
        match self {
            Self::Open => None,
            Self::Cut(sealed) => sealed,
            Self::Sealed(close, manner)
            | Self::CloseStaged(close, manner)
            | Self::Closed(close, manner) => Some((close, manner)),
        }
    }

    /// Seals an open outbox. The first close stands; an abort overrules an orderly one.
    fn seal(&mut self, close: Close, manner: Manner) {
        match self {
            Self::Open => *self = Self::Sealed(close, manner),
            Self::Sealed(_, agreed) | Self::CloseStaged(_, agreed) | Self::Closed(_, agreed) => {
                if manner == Manner::Abort {
                    *agreed = Manner::Abort;
                }
            }
            Self::Cut(_) => {}
        }
    }
}

/// How the queue is treated by a close.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Manner {
    /// The close frame follows the last queued message.
    Orderly,
    /// The close frame follows the frame in progress; what else is queued is dropped (a slot's
    /// lane is only detached).
    Abort,
}

/// What [`Outbox::poll_flush`] came to.
#[derive(Debug)]
pub struct Flushed {
    /// Bytes that the socket accepted.
    pub bytes: usize,
    /// Messages whose last byte the socket accepted.
    pub completed: Completed,
    /// Where it stopped.
    pub end: FlushEnd,
}

/// Where a flush stopped.
#[derive(Debug)]
pub enum FlushEnd {
    /// Nothing is left, and it is sent; the task is woken when something is added.
    Idle,
    /// The socket takes no more now.
    Blocked,
    /// The turn is over; there is more.
    More,
    /// The close frame is out.
    Closed,
    /// Nothing more is to be written: see [`Outbox::cut`].
    Cut,
    /// The socket failed.
    Failed(io::Error),
}

impl Outbox {
    /// An outbox that drains `lane`.
    pub fn new(lane: Option<Rc<Lane>>) -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::new(Inner {
                lane: lane.map_or(Attached::None, Attached::Whole),
                ..Inner::default()
            }),
        })
    }

    /// Queues a message for the peer; the error says that the lane is full. After a close it is
    /// silently dropped.
    pub fn send(&self, frame: Frame) -> Result<(), Full> {
        let lane = match &*self.state.borrow() {
            Inner {
                end: End::Open,
                lane: Attached::Whole(lane) | Attached::LastFrame(lane),
                ..
            } => Rc::clone(lane),
            _ => return Ok(()),
        };
        lane.push(frame).map_err(|_| Full)
    }

    /// Answers a ping; of several unanswered ones the last one is answered.
    pub fn pong(&self, payload: &[u8]) {
        self.control(|due| due.pong = Some(payload.to_vec()));
    }

    /// Sends a heartbeat's ping.
    pub fn ping(&self) {
        self.control(|due| due.heartbeat = true);
    }

    /// Sends the ping of a probe.
    pub fn ask(&self, payload: [u8; 8]) {
        self.control(|due| due.probe = Some(payload));
    }

    /// Queues a ping whose answer proves that the binary has read what goes before it, if one is due at
    /// `now`. Returns when the next one is, if it is for the time alone that none is due.
    pub fn prove(&self, now: Instant) -> Option<Instant> {
        match &*self.state.borrow() {
            Inner { end: End::Open, lane: Attached::Whole(lane), .. } => lane.prove(now),
            _ => None,
        }
    }

    /// The peer sent a pong.
    pub fn heard_pong(&self, payload: &[u8]) {
        if let Some(lane) = self.state.borrow().lane.lane() {
            lane.hear_proof(payload);
        }
    }

    /// Seals the outbox with a close frame. The first close stands; an abort after an orderly
    /// close still skips the queue.
    pub fn close(&self, close: Close, manner: Manner) {
        let dropped = {
            let mut state = self.state.borrow_mut();
            state.end.seal(close, manner);
            let skips = manner == Manner::Abort && matches!(state.lane, Attached::Whole(_));
            let dropped = if skips { state.detach() } else { None };
            state.wake();
            dropped
        };
        drop(dropped);
    }

    /// Takes the lane away: the frame in progress is still finished on this connection, and the
    /// lane forgets that it was begun, so that the next connection sends it whole.
    pub fn detach(&self) {
        let lane = self.state.borrow_mut().detach();
        drop(lane);
    }

    /// Parts from the lane: only the frame in progress is still written, and leaves the lane with
    /// its last byte, as every frame does. [`Self::detach`] ends this early.
    pub fn part(&self) {
        let mut state = self.state.borrow_mut();
        if let Attached::Whole(lane) = std::mem::take(&mut state.lane) {
            state.lane = Attached::LastFrame(lane);
        }
        state.drop_finished_lane();
    }

    /// Gives up on what is still to be written, the close frame included: its memory is needed.
    pub fn cut(&self) {
        let mut state = self.state.borrow_mut();
        let dropped = (state.detach(), std::mem::take(&mut state.staged));
        state.end = End::Cut(state.end.sealed());
        state.wake();
        drop(state);
        drop(dropped);
    }

    /// The account that pays for the remainder of a frame whose lane is gone, if there is one.
    pub fn remainder(&self) -> Option<Rc<Account>> {
        self.state.borrow().staged.rest.as_ref().map(|charge| Rc::clone(charge.account()))
    }

    /// Bytes of messages that wait to be written.
    pub fn queued(&self) -> usize {
        let state = self.state.borrow();
        let rest = state.staged.rest.as_ref().map_or(0, Charge::bytes);
        state.lane.lane().map_or(0, |lane| lane.held()) + rest
    }

    /// The close that this outbox is sealed with, and how.
    pub fn sealed(&self) -> Option<(Close, Manner)> {
        self.state.borrow().end.sealed()
    }

    /// Writes until nothing is left, the socket blocks, or the turn is over. Batches of small
    /// frames are gathered in `scratch`. Cancel safe: what was accepted is accounted for at once.
    pub fn poll_flush<W: AsyncWrite + Unpin>(
        &self,
        cx: &mut Context<'_>,
        io: &mut W,
        scratch: &mut [u8],
    ) -> Flushed {
        let mut state = self.state.borrow_mut();
        state.register(cx.waker());
        let (mut bytes, mut completed) = (0, Completed::default());
        let mut writes = 0;
        let end = loop {
            match state.end {
                End::Closed(..) => break FlushEnd::Closed,
                End::Cut(_) => break FlushEnd::Cut,
                End::Open | End::Sealed(..) | End::CloseStaged(..) => {}
            }
            let much = bytes >= BATCH_BYTES || completed.messages >= TURN_FRAMES;
            if much || writes == TURN_WRITES {
                break FlushEnd::More;
            }
            writes += 1;
            match state.write_batch(cx, io, scratch) {
                // A transport may have accepted more than it has sent.
                None => {
                    break match Pin::new(&mut *io).poll_flush(cx) {
                        Poll::Ready(Ok(())) => FlushEnd::Idle,
                        Poll::Ready(Err(error)) => FlushEnd::Failed(error),
                        Poll::Pending => FlushEnd::Blocked,
                    };
                }
                Some(Poll::Pending) => break FlushEnd::Blocked,
                Some(Poll::Ready(Err(error))) => break FlushEnd::Failed(error),
                Some(Poll::Ready(Ok(accepted))) => {
                    bytes += accepted;
                    state.advance(accepted, &mut completed);
                }
            }
        };
        Flushed { bytes, completed, end }
    }

    fn control(&self, add: impl FnOnce(&mut Control)) {
        let mut state = self.state.borrow_mut();
        if matches!(state.end, End::Open | End::Sealed(..)) {
            add(&mut state.due);
            state.wake();
        }
    }
}

/// The lane has no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

impl Inner {
    fn wake(&mut self) {
        if let Some(waker) = self.link.take() {
            waker.wake();
        }
    }

    fn register(&mut self, waker: &Waker) {
        if !self.link.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.link = Some(waker.clone());
        }
        if let Some(lane) = self.lane.lane() {
            lane.register_writer(waker);
        }
    }

    fn drop_finished_lane(&mut self) {
        if matches!(&self.lane, Attached::LastFrame(lane) if lane.unfinished() == 0) {
            self.lane = Attached::None;
        }
    }

    fn detach(&mut self) -> Option<Rc<Lane>> {
        let (Attached::Whole(lane) | Attached::LastFrame(lane)) = std::mem::take(&mut self.lane)
        else {
            return None;
        };
        let rest = lane.rewind();
        if !rest.is_empty() {
            let payer = lane.account();
            let mut charge = Charge::new(Account::open(payer.ledger(), payer.origin()));
            charge.set(rest.len());
            self.staged.rest = Some(charge);
            // A frame in progress means that nothing staged has been begun.
            self.staged.bytes.splice(0..0, rest);
        }
        Some(lane)
    }

    /// Stages the control frames that are due.
    fn stage(&mut self) {
        if !self.staged.bytes.is_empty() || matches!(self.end, End::CloseStaged(..)) {
            return;
        }
        let (staged, due) = (&mut self.staged.bytes, &mut self.due);
        if let Some(payload) = due.pong.take() {
            staged.extend_from_slice(Frame::pong(&payload).as_bytes());
        }
        if let Some(payload) = due.probe.take() {
            staged.extend_from_slice(Frame::ping(&payload).as_bytes());
        }
        if std::mem::take(&mut due.heartbeat) {
            staged.extend_from_slice(Frame::ping(b"").as_bytes());
        }
        if let End::Sealed(close, manner) = self.end {
            if self.lane.lane().is_none_or(|lane| lane.is_empty()) {
                staged.extend_from_slice(Frame::close(close).as_bytes());
                self.end = End::CloseStaged(close, manner);
            }
        }
    }

    /// Writes once; `None` if there is nothing to write.
    fn write_batch<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut W,
        scratch: &mut [u8],
    ) -> Option<Poll<io::Result<usize>>> {
        self.stage();
        let staged = self.staged.waiting();
        let result = match self.lane.lane() {
            None if staged.is_empty() => return None,
            None => Pin::new(io).poll_write(cx, staged),
            Some(lane) => lane.with_pending(|mut pending| {
                let mid_frame = pending.begun() > 0;
                if (mid_frame || staged.is_empty()) && pending.front().len() >= GATHER_BELOW {
                    return Some(Pin::new(io).poll_write(cx, pending.front()));
                }
                let mut batch = Gather { scratch, length: 0 };
                if mid_frame {
                    batch.add(pending.front());
                    pending.skip();
                }
                batch.add(staged);
                // The slot's queue may go on behind this connection, but nothing follows a close frame.
                let goes_on = matches!(
                    (&self.lane, self.end),
                    (Attached::Whole(_), End::Open | End::Sealed(..))
                );
                let mut frames = if goes_on { TURN_FRAMES } else { 0 };
                while frames > 0 && !pending.front().is_empty() && batch.add(pending.front()) {
                    pending.skip();
                    frames -= 1;
                }
                if batch.length == 0 {
                    return None;
                }
                Some(Pin::new(io).poll_write(cx, batch.gathered()))
            })?,
        };
        Some(match result {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            other => other,
        })
    }

    /// Accounts for `accepted` bytes in the order in which a batch is made up, and adds to
    /// `completed` what they completed.
    fn advance(&mut self, mut accepted: usize, completed: &mut Completed) {
        if let Some(lane) = self.lane.lane() {
            let first = lane.unfinished().min(accepted);
            if first > 0 {
                *completed += lane.advance(first);
                accepted -= first;
            }
        }
        self.drop_finished_lane();
        let control = accepted.min(self.staged.waiting().len());
        self.staged.at += control;
        accepted -= control;
        if control > 0 && self.staged.waiting().is_empty() {
            self.staged = Staged::default();
            if let End::CloseStaged(close, manner) = self.end {
                self.end = End::Closed(close, manner);
            }
        }
        if let (Some(lane), true) = (self.lane.lane(), accepted > 0) {
            *completed += lane.advance(accepted);
        }
    }
}

/// Collects pieces of a batch.
struct Gather<'a> {
    scratch: &'a mut [u8],
    length: usize,
}

impl Gather<'_> {
    /// Copies what fits; whether all of it did.
    fn add(&mut self, piece: &[u8]) -> bool {
        let room = &mut self.scratch[self.length..];
        let fits = piece.len().min(room.len());
        room[..fits].copy_from_slice(&piece[..fits]);
        self.length += fits;
        fits == piece.len()
    }

    fn gathered(&self) -> &[u8] {
        &self.scratch[..self.length]
    }
}

#[cfg(test)]
mod tests;
