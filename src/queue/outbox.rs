//! The way out of one connection: a bounded data lane, a control lane that passes it, and a seal.
//!
//! A [`Lane`] is the data queue. A phone's belongs to its [`Outbox`]; a binary's belongs to the
//! slot, survives the connection, and is attached to the outbox of whichever connection holds the
//! slot. A message leaves its lane when the socket has accepted its last byte, no sooner: one that
//! was begun on a dead connection is sent again, whole, on the next.
//!
//! Control frames go out ahead of every queued message, behind at most the frame in progress.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use futures_lite::AsyncWrite;

use crate::close::Close;
use crate::limits::{BATCH_BYTES, GATHER_BELOW, TURN_FRAMES, TURN_WRITES};
use crate::queue::budget::{Account, Charge};
use crate::queue::lane::{Completed, Lane};
use crate::queue::probe::Probe;
use crate::websocket::frames::Frame;

/// What one connection still has to write. The connection's link writes it; anybody may add.
#[derive(Debug)]
pub struct Outbox {
    state: RefCell<Inner>,
    probe: RefCell<Option<Rc<Probe>>>,
    probed: Cell<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    lane: Option<Rc<Lane>>,
    /// Of the lane only the frame in progress is still written.
    parting: bool,
    /// Bytes that are committed to be next on the wire, behind the lane's frame in progress:
    /// control frames, or the remainder of a frame whose lane was taken away.
    staged: Vec<u8>,
    staged_at: usize,
    /// Pays for the remainder of a frame among the staged bytes, which is as large as a message.
    rest: Option<Charge>,
    cut: bool,
    pong: Option<Vec<u8>>,
    heartbeat: bool,
    probe_ping: Option<[u8; 8]>,
    sealed: Option<(Close, Manner)>,
    close_staged: bool,
    closed: bool,
    link: Option<Waker>,
}

/// How the queue is treated by a close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
            state: RefCell::new(Inner { lane, ..Inner::default() }),
            probe: RefCell::new(None),
            probed: Cell::new(false),
        })
    }

    /// Queues a message for the peer; the error says that the lane is full. After a close it is
    /// silently dropped.
    pub fn send(&self, frame: Frame) -> Result<(), Full> {
        let lane = match &*self.state.borrow() {
            Inner { sealed: None, lane: Some(lane), .. } => Rc::clone(lane),
            _ => return Ok(()),
        };
        lane.push(frame).map_err(|_| Full)
    }

    /// Answers a ping; of several unanswered ones the last one is answered.
    pub fn pong(&self, payload: &[u8]) {
        self.control(|state| state.pong = Some(payload.to_vec()));
    }

    /// Sends a heartbeat's ping.
    pub fn ping(&self) {
        self.control(|state| state.heartbeat = true);
    }

    /// Asks the peer whether it is there; what the link hears goes to the probe.
    pub fn ask(&self, probe: &Rc<Probe>) {
        *self.probe.borrow_mut() = Some(Rc::clone(probe));
        self.probed.set(true);
        self.control(|state| state.probe_ping = Some(*probe.payload()));
    }

    /// Forgets the probe.
    pub fn stop_asking(&self) {
        self.probed.set(false);
        *self.probe.borrow_mut() = None;
    }

    /// The peer sent something.
    pub fn heard(&self, now: Instant) {
        if self.probed.get() {
            if let Some(probe) = &*self.probe.borrow() {
                probe.heard(now);
            }
        }
    }

    /// Queues a ping whose answer proves that the binary has read what goes before it, if one is due at
    /// `now`. Returns when the next one is, if it is for the time alone that none is due.
    pub fn prove(&self, now: Instant) -> Option<Instant> {
        match &*self.state.borrow() {
            Inner { sealed: None, parting: false, lane: Some(lane), .. } => lane.prove(now),
            _ => None,
        }
    }

    /// The peer sent a pong.
    pub fn heard_pong(&self, payload: &[u8]) {
        if let Some(lane) = &self.state.borrow().lane {
            lane.hear_proof(payload);
        }
        if let Some(probe) = &*self.probe.borrow() {
            probe.pong(payload);
        }
    }

    /// Has the link read what the peer has sent by now: the probe's time is over.
    pub fn call_last(&self) {
        if let Some(probe) = &*self.probe.borrow() {
            probe.call_last();
        }
        self.state.borrow_mut().wake();
    }

    /// The probe that waits for the link to have read everything, if one does.
    pub fn last_call(&self) -> Option<Rc<Probe>> {
        if !self.probed.get() {
            return None;
        }
        self.probe.borrow().as_ref().filter(|probe| probe.is_last_call()).cloned()
    }

    /// Seals the outbox with a close frame. The first close stands; an abort after an orderly
    /// close still skips the queue.
    pub fn close(&self, close: Close, manner: Manner) {
        let dropped = {
            let mut state = self.state.borrow_mut();
            let (_, agreed) = state.sealed.get_or_insert((close, manner));
            if manner == Manner::Abort {
                *agreed = Manner::Abort;
            }
            let skips = manner == Manner::Abort && !state.parting;
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
        state.parting = true;
        state.drop_finished_lane();
    }

    /// Gives up on what is still to be written, the close frame included: its memory is needed.
    pub fn cut(&self) {
        let mut state = self.state.borrow_mut();
        let dropped = (state.detach(), std::mem::take(&mut state.staged), state.rest.take());
        (state.staged_at, state.cut) = (0, true);
        state.wake();
        drop(state);
        drop(dropped);
    }

    /// The account that pays for the remainder of a frame whose lane is gone, if there is one.
    pub fn remainder(&self) -> Option<Rc<Account>> {
        self.state.borrow().rest.as_ref().map(|charge| Rc::clone(charge.account()))
    }

    /// Bytes of messages that wait to be written.
    pub fn queued(&self) -> usize {
        let state = self.state.borrow();
        let rest = state.rest.as_ref().map_or(0, Charge::bytes);
        state.lane.as_ref().map_or(0, |lane| lane.held()) + rest
    }

    /// The close that this outbox is sealed with, and how.
    pub fn sealed(&self) -> Option<(Close, Manner)> {
        self.state.borrow().sealed
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
            if state.closed {
                break FlushEnd::Closed;
            }
            if state.cut {
                break FlushEnd::Cut;
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

    fn control(&self, add: impl FnOnce(&mut Inner)) {
        let mut state = self.state.borrow_mut();
        if !state.close_staged {
            add(&mut state);
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
        if let Some(lane) = &self.lane {
            lane.register_writer(waker);
        }
    }

    fn drop_finished_lane(&mut self) {
        if self.parting && self.lane.as_ref().is_some_and(|lane| lane.unfinished() == 0) {
            self.lane = None;
        }
    }

    fn detach(&mut self) -> Option<Rc<Lane>> {
        let lane = self.lane.take()?;
        let rest = lane.rewind();
        if !rest.is_empty() {
            let payer = lane.account();
            let mut charge = Charge::new(Account::open(payer.ledger(), payer.origin()));
            charge.set(rest.len());
            self.rest = Some(charge);
            // A frame in progress means that nothing staged has been begun.
            self.staged.splice(0..0, rest);
        }
        Some(lane)
    }

    /// Commits the control frames that are due.
    fn stage(&mut self) {
        if !self.staged.is_empty() || self.close_staged {
            return;
        }
        if let Some(payload) = self.pong.take() {
            self.staged.extend_from_slice(Frame::pong(&payload).as_bytes());
        }
        if let Some(payload) = self.probe_ping.take() {
            self.staged.extend_from_slice(Frame::ping(&payload).as_bytes());
        }
        if std::mem::take(&mut self.heartbeat) {
            self.staged.extend_from_slice(Frame::ping(b"").as_bytes());
        }
        if let Some((close, _)) = self.sealed {
            if self.lane.as_ref().is_none_or(|lane| lane.is_empty()) {
                self.staged.extend_from_slice(Frame::close(close).as_bytes());
                self.close_staged = true;
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
        let staged = &self.staged[self.staged_at..];
        let result = match &self.lane {
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
                let goes_on = !self.parting && !self.close_staged;
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
        if let Some(lane) = &self.lane {
            let first = lane.unfinished().min(accepted);
            if first > 0 {
                *completed += lane.advance(first);
                accepted -= first;
            }
        }
        self.drop_finished_lane();
        let control = accepted.min(self.staged.len() - self.staged_at);
        self.staged_at += control;
        accepted -= control;
        if control > 0 && self.staged_at == self.staged.len() {
            (self.staged, self.rest) = (Vec::new(), None);
            self.staged_at = 0;
            self.closed = self.close_staged;
        }
        if let (Some(lane), true) = (&self.lane, accepted > 0) {
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
