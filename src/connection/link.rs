//! Drives one WebSocket: reads, the outbox, the heartbeat, the deadlines, the close.
//!
//! Written once and used by both legs; what a message means is the [`Peer`]'s part. Reading and
//! writing are polled side by side in one task, so neither ever waits for the other.

mod frozen;
mod peer;
mod phase;
mod reading;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use log::debug;
use serde::{Deserialize, Serialize};

use crate::clock::{self, Timer};

pub(crate) use self::frozen::{
    FrozenConnection, FrozenContender, FrozenLink, FrozenRequest, Stage,
};
use self::peer::count_end;
pub(crate) use self::peer::{FrozenPeer, Peer, Rejected, Verdict};
use self::phase::{Event, Phase};
use crate::admission::permits::Permit;
use crate::close::{Close, Ended};
use crate::leg::Leg;
use crate::limits::READS_BEHIND;
use crate::links::Member;
use crate::net::transport::Transport;
use crate::origin::Origin;
use crate::queue::budget::{Account, Charge, Pledge};
use crate::queue::outbox::{FlushEnd, Manner, Outbox};
use crate::relay::Relay;
use crate::telemetry::metrics::Direction;
use crate::websocket::heartbeat::{Beat, Heartbeat};
use crate::websocket::wire::{Incoming, Kept};

/// The rest of a connection's life once it is upgraded. Boxed, so that a task weighs no more than
/// the stage that it is in.
pub(crate) type Session = Pin<Box<dyn Future<Output = ()>>>;

/// A link that closes an upgraded connection at once with `close`.
pub(crate) fn send_off<S: Transport + 'static>(
    relay: &Rc<Relay>,
    upgraded: Upgraded<S>,
    leg: Leg,
    close: Close,
) -> Session {
    let outbox = Outbox::new(None);
    outbox.close(close, Manner::Abort);
    let account = Account::open(&relay.ledger, Origin::of(upgraded.remote));
    let peer = Rejected { leg, account, relay: Rc::clone(relay) };
    Link::new(relay, upgraded, outbox, peer).run()
}

/// What a connection carried.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Messages from the peer.
    pub messages_in: u64,
    /// Bytes from the peer, framing included.
    pub bytes_in: u64,
    /// Messages to the peer.
    pub messages_out: u64,
    /// Bytes to the peer, framing included.
    pub bytes_out: u64,
}

/// One connection.
pub(crate) struct Link<S, P> {
    incoming: Incoming<S>,
    outbox: Rc<Outbox>,
    peer: P,
    relay: Rc<Relay>,
    charge: Charge,
    phase: Phase,
    heartbeat: Heartbeat,
    timer: Option<(Timer, Instant)>,
    blocked: Option<Instant>,
    /// When the next ping is due that proves what the peer has read.
    proof: Option<Instant>,
    /// The last read took all there was: the next one waits for the socket to be readable.
    drained: bool,
    opened: Instant,
    tally: Tally,
    /// Bytes read since the message in progress should have been complete.
    late_bytes: usize,
    remote: IpAddr,
    _permit: Permit,
}

/// A socket whose upgrade is done, with what belongs to it.
pub(crate) struct Upgraded<S> {
    /// The socket.
    pub io: S,
    /// What arrived behind the request head.
    pub leftover: Vec<u8>,
    /// Where the peer is.
    pub remote: IpAddr,
    /// The right to the connection.
    pub permit: Permit,
}

impl Pledge for Kept {
    fn forfeit(&self) {
        self.clear();
    }
}

/// A link, and its place among those of the relay.
struct Running<S, P>(Member<Link<S, P>>);

impl<S: Transport, P: Peer> Future for Running<S, P> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.get().drive(cx)
    }
}

impl<S: Transport, P: Peer> Link<S, P> {
    /// A link over an upgraded socket.
    pub(crate) fn new(
        relay: &Rc<Relay>,
        upgraded: Upgraded<S>,
        outbox: Rc<Outbox>,
        peer: P,
    ) -> Self {
        let Upgraded { io, leftover, remote, permit } = upgraded;
        debug!(conn_id = peer.conn_id(), remote:% = remote; "connection_opened");
        let incoming = Incoming::new(io, leftover, peer.largest_message(), &relay.codecs);
        Self::begin(relay, incoming, outbox, peer, (remote, permit))
    }

    /// A link on which nothing has happened yet; `peer` pays for what `incoming` holds.
    fn begin(
        relay: &Rc<Relay>,
        mut incoming: Incoming<S>,
        outbox: Rc<Outbox>,
        peer: P,
        (remote, permit): (IpAddr, Permit),
    ) -> Self {
        incoming.io().is_paid_for();
        let kept: Weak<Kept> = Rc::downgrade(incoming.kept());
        peer.account().pledge(kept);
        let (interval, timeout) = (relay.config.heartbeat_interval, relay.config.heartbeat_timeout);
        Self {
            incoming,
            outbox,
            charge: Charge::new(peer.account()),
            peer,
            relay: Rc::clone(relay),
            phase: Phase::Open,
            heartbeat: Heartbeat::new(interval, timeout, clock::now()),
            timer: None,
            blocked: None,
            proof: None,
            drained: false,
            opened: clock::now(),
            tally: Tally::default(),
            late_bytes: 0,
            remote,
            _permit: permit,
        }
    }

    /// The rest of the connection's life.
    pub(crate) fn run(self) -> Session
    where
        S: 'static,
        P: 'static,
    {
        let links = Rc::clone(&self.relay.links);
        Box::pin(Running(links.enter(self)))
    }

    fn log_end(&self, ended: Ended) {
        let tally = self.tally;
        debug!(
            conn_id = self.peer.conn_id(), remote:% = self.remote, reason:% = ended,
            seconds = clock::since(self.opened).as_secs(),
            messages_in = tally.messages_in, bytes_in = tally.bytes_in,
            messages_out = tally.messages_out, bytes_out = tally.bytes_out;
            "connection_closed"
        );
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut again = self.turn(cx, clock::now());
        // The clock is read anew: a timer that has rung since must find its deadline passed.
        while !again && self.set_timer(cx) {
            again = self.turn(cx, clock::now());
        }
        match self.phase {
            Phase::Over(ended) => {
                self.charge.account().disown();
                self.log_end(ended);
                Poll::Ready(())
            }
            _ => {
                if again {
                    // The others get their turn first.
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }

    /// One turn of everything; whether there is more to do at once.
    fn turn(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        self.notice_condemnation(cx, now);
        self.notice_seal(now);
        let last_call = self.peer.inquiry().and_then(|inquiry| inquiry.last_call(cx));
        if last_call.is_some() || self.is_overdue(now) {
            self.look_again();
        }
        let more_input = self.read(cx, now);
        if let (Some(probe), false) = (last_call, more_input) {
            probe.nothing_more();
        }
        self.check_deadlines(now, more_input);
        // A message may have sealed the outbox.
        self.notice_seal(now);
        let more_output = self.write(cx, now);
        // Only now: the kernel reports a slow peer's progress late, the write itself finds it.
        if self.write_deadline().is_some_and(|deadline| now >= deadline) {
            self.cut(Ended::WriteTimeout, now);
        }
        (more_input || more_output) && !matches!(self.phase, Phase::Over(_))
    }

    /// The memory that this connection holds is needed: what has arrived of a message goes at once.
    fn notice_condemnation(&mut self, cx: &mut Context<'_>, now: Instant) {
        if self.charge.account().poll_condemned(cx).is_pending() {
            return;
        }
        self.incoming.discard();
        if self.phase.is_undecided() {
            self.close(Close::OverBudget, now);
        }
    }

    /// Somebody else decided on the end: a directive, a reclaim, a full backlog, the stop.
    fn notice_seal(&mut self, now: Instant) {
        let Some((close, manner)) = self.outbox.sealed() else { return };
        self.happens(Event::Decided(Ended::ByRelay(close)), now);
        if manner == Manner::Abort {
            self.happens(Event::Hurry(now + self.relay.config.write_timeout), now);
        }
    }

    /// Ends the connection by the relay's own decision.
    fn close(&mut self, close: Close, now: Instant) {
        self.end(Ended::ByRelay(close), close, now);
    }

    fn end(&mut self, ended: Ended, close: Close, now: Instant) {
        self.happens(Event::Decided(ended), now);
        self.outbox.close(close, Manner::Abort);
        self.notice_seal(now);
    }

    /// Ends the connection without a word.
    fn cut(&mut self, ended: Ended, now: Instant) {
        if matches!(self.phase, Phase::Over(_)) {
            return;
        }
        self.happens(Event::Cut(ended), now);
        if ended != Ended::Dropped {
            self.incoming.io().reset();
        }
    }

    /// Goes on to the next phase. What the end of a connection means to others happens once, when it is
    /// decided.
    fn happens(&mut self, event: Event, now: Instant) {
        let before = self.phase;
        self.phase = before.next(event, now);
        if let (true, Some(ended)) = (before.is_undecided(), self.phase.ended()) {
            count_end(&self.relay.metrics, self.peer.leg(), ended);
            self.peer.ended(ended, self.incoming.is_amid_message(), now);
        }
    }

    /// Writes what is due; whether there is more.
    fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        self.proof = None;
        if matches!(self.phase, Phase::Lingering { .. } | Phase::Over(_)) {
            return false;
        }
        self.proof = self.outbox.prove(now);
        let mut scratch = self.relay.scratch.lend();
        let flushed = self.outbox.poll_flush(cx, self.incoming.io(), &mut scratch);
        drop(scratch);
        self.tally.bytes_out += flushed.bytes as u64;
        let completed = flushed.completed;
        self.tally.messages_out += completed.messages as u64;
        if completed.forwarded > 0 {
            let direction = match self.peer.leg() {
                Leg::Binary => Direction::PhoneToBinary,
                Leg::Phone => Direction::BinaryToPhone,
            };
            let (messages, bytes) = (completed.forwarded, completed.forwarded_bytes);
            self.relay.metrics.forwarded(direction, messages, bytes);
        }
        if self.incoming.io().take_progress() || flushed.bytes > 0 {
            self.blocked = None;
        }
        match flushed.end {
            FlushEnd::Idle => {
                self.blocked = None;
                if self.charge.bytes() > 0 {
                    self.charge_input();
                }
            }
            FlushEnd::Blocked => {
                self.blocked.get_or_insert(now);
                // Over TLS some of it has left the queue and is not out yet.
                self.charge_input();
            }
            FlushEnd::More => return true,
            FlushEnd::Failed(error) => {
                // What had arrived before that is in the socket still, and no more than the kernel receives ahead.
                self.look_again();
                let mut reads = READS_BEHIND;
                while reads > 0 && self.phase == Phase::Open && self.read(cx, now) {
                    reads -= 1;
                }
                self.cut(Ended::by_error(&error), now);
            }
            FlushEnd::Cut => self.cut(Ended::WriteTimeout, now),
            FlushEnd::Closed => return self.finish(cx, now),
        }
        false
    }

    /// The close frame is out: shut down writing and linger.
    fn finish(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        match Pin::new(self.incoming.io()).poll_close(cx) {
            Poll::Pending => {
                self.blocked.get_or_insert(now);
            }
            Poll::Ready(Err(_)) => self.cut(Ended::Dropped, now),
            Poll::Ready(Ok(())) => {
                self.blocked = None;
                self.happens(Event::Written, now);
            }
        }
        false
    }

    /// Whether the peer is about to be closed for its silence.
    fn is_overdue(&self, now: Instant) -> bool {
        let unfinished = self.message_deadline().is_some_and(|deadline| now >= deadline);
        self.phase == Phase::Open && (unfinished || self.heartbeat.is_over(now))
    }

    fn check_deadlines(&mut self, now: Instant, more_input: bool) {
        match self.phase {
            Phase::Open => {
                match self.message_deadline().is_some_and(|deadline| now >= deadline) {
                    // The rest of the message may be what has not been read yet.
                    true if more_input && self.late_bytes <= self.peer.largest_message() => {}
                    true => return self.close(Close::MessageTimeout, now),
                    false => self.late_bytes = 0,
                }
                match self.heartbeat.check(now) {
                    Beat::Quiet => {}
                    Beat::Ping => self.outbox.ping(),
                    Beat::Dead => self.close(Close::HeartbeatTimeout, now),
                }
            }
            phase if !phase.is_due(now) => {}
            Phase::Closing { .. } => self.cut(Ended::WriteTimeout, now),
            Phase::Held { .. } if self.incoming.io().has_hung_up() => self.cut(Ended::Dropped, now),
            Phase::Held { .. } => {
                // One that is gone has only said so after what nobody reads; its kernel resets the
                // connection once it receives anything.
                self.outbox.ping();
                self.happens(Event::Time, now);
            }
            Phase::Lingering { .. } | Phase::Over(_) => self.happens(Event::Time, now),
        }
    }

    fn write_deadline(&self) -> Option<Instant> {
        self.blocked.map(|since| since + self.relay.config.write_timeout)
    }

    fn message_deadline(&self) -> Option<Instant> {
        self.incoming.begun().map(|since| since + self.relay.config.message_timeout)
    }

    /// When something is due next, if nothing happens before.
    fn deadline(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Open => {
                let beat = self.relay.ticks.at_or_after(self.heartbeat.deadline());
                [Some(beat), self.message_deadline()]
            }
            // Not even the write that never finished.
            Phase::Over(_) => return None,
            phase => [phase.deadline(), None],
        };
        phase.into_iter().chain([self.write_deadline(), self.proof]).flatten().min()
    }

    /// Arms the timer for the next deadline; whether one is due already.
    ///
    /// An armed timer is left alone while it rings early enough: every byte moves the heartbeat's
    /// deadline, and each rearming would be two changes in the reactor's tree.
    fn set_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.deadline() else {
            self.timer = None;
            return false;
        };
        let timer = match &mut self.timer {
            Some((timer, armed)) if *armed <= deadline => timer,
            slot => &mut slot.insert((Timer::at(deadline), deadline)).0,
        };
        if Pin::new(timer).poll(cx).is_pending() {
            return false;
        }
        self.timer = None;
        true
    }
}
