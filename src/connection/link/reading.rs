//! The reading half of a link: from the socket through the codec to the peer.

use std::task::{Context, Poll};
use std::time::Instant;

use async_tungstenite::tungstenite::Message;

use super::{Event, Link, Peer, Phase, Verdict};
use crate::clock;
use crate::close::{Close, Ended};
use crate::limits::{BATCH_BYTES, TURN_FRAMES, TURN_TIME};
use crate::net::transport::Transport;
use crate::websocket::wire::Decoded;

impl<S: Transport, P: Peer> Link<S, P> {
    /// Reads and handles what is there; whether there is more.
    pub(super) fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if self.phase.is_undecided() && !self.resume(cx, now) {
            return false;
        }
        self.incoming.begin_turn(TURN_FRAMES, self.charge.account().ledger().is_tight());
        let before = self.tally.bytes_in;
        let mut has_read = false;
        let more = loop {
            self.handle_input(cx, now);
            self.charge_input();
            if !self.phase.reads() {
                break false;
            }
            let is_much = self.tally.bytes_in - before >= BATCH_BYTES as u64;
            // However slow the machine, each turn reads once: else none would ever.
            let is_late = has_read && clock::since(now) >= TURN_TIME;
            if self.incoming.has_input() || is_much || is_late {
                break true;
            }
            if !self.fill(cx, now) {
                break false;
            }
            has_read = true;
        };
        self.give_up_input();
        self.incoming.end_turn();
        self.charge_input();
        match self.phase {
            // Just stopped: ask for the waker, and go on if there is room again already.
            Phase::Held { .. } => self.resume(cx, now),
            _ => more,
        }
    }

    /// Pays for what is held of the input, and for what the transport holds.
    pub(super) fn charge_input(&mut self) {
        let held = self.incoming.held() + self.incoming.io().held();
        if self.charge.set(held) {
            self.relay.registry.relieve();
        }
    }

    /// Once it was this one that paid for the budget, what comes next would be taken for a beginning.
    fn give_up_input(&mut self) {
        if self.charge.account().is_condemned() {
            self.incoming.discard();
        }
    }

    /// Whether the peer is read, or read again after it was held back.
    fn resume(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if !matches!(self.phase, Phase::Held { .. }) {
            return true;
        }
        if self.peer.poll_resume(cx).is_pending() {
            return false;
        }
        self.happens(Event::Room, now);
        // Silence while nobody listened is not held against it.
        self.heartbeat.heard(now);
        true
    }

    /// Makes the next read ask the kernel. Where this process did not run for a while, the timers
    /// know of it before the reactor has told what arrived meanwhile.
    pub(super) fn look_again(&mut self) {
        self.drained = false;
        self.incoming.io().look_again();
    }

    /// Reads from the socket; whether input came.
    fn fill(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if self.waits(cx) {
            return false;
        }
        match self.incoming.poll_fill(cx, &self.relay.scratch) {
            Poll::Pending => {
                self.drained = true;
                false
            }
            Poll::Ready(Ok(0)) => {
                self.happens(Event::PeerDone, now);
                false
            }
            Poll::Ready(Err(error)) => {
                self.cut(Ended::by_error(&error), now);
                false
            }
            Poll::Ready(Ok(bytes)) => {
                // A read that did not fill the buffer took all there was.
                self.drained = bytes < BATCH_BYTES;
                self.tally.bytes_in += bytes as u64;
                self.late_bytes += bytes;
                self.heartbeat.heard(now);
                if let Some(inquiry) = self.peer.inquiry() {
                    inquiry.heard(now);
                }
                true
            }
        }
    }

    /// Whether the socket has nothing to read; the task is woken when it has.
    fn waits(&mut self, cx: &mut Context<'_>) -> bool {
        if self.phase.is_peer_done() {
            return true;
        }
        // An error shows itself to the read.
        self.drained = self.drained && self.incoming.io().poll_readable(cx).is_pending();
        self.drained
    }

    /// Decodes and handles the input until it is used up, the peer is held back, or the turn is over:
    /// it began at `now`.
    fn handle_input(&mut self, cx: &mut Context<'_>, now: Instant) {
        while self.phase.reads() {
            self.give_up_input();
            match self.incoming.decode(cx, now) {
                Decoded::NeedInput => return,
                Decoded::Message(message) => {
                    if self.charge.bytes() > 0 {
                        // It is not in the input any more: what becomes of it is paid for once.
                        self.charge_input();
                    }
                    self.handle(message, now);
                    if clock::since(now) >= TURN_TIME {
                        return;
                    }
                }
                Decoded::Violation(close) => {
                    self.incoming.discard();
                    if matches!(self.phase, Phase::Open) {
                        self.close(close, now);
                    }
                }
            }
        }
    }

    fn handle(&mut self, message: Message, now: Instant) {
        match message {
            Message::Ping(payload) => self.outbox.pong(&payload),
            Message::Pong(payload) => {
                self.outbox.heard_pong(&payload);
                if let Some(inquiry) = self.peer.inquiry() {
                    inquiry.heard_pong(&payload);
                }
            }
            Message::Close(frame) => {
                let code = frame.map(|frame| self.incoming.close_code(frame.code.into()));
                self.incoming.discard();
                match self.phase {
                    Phase::Lingering { .. } => self.happens(Event::PeerClosed, now),
                    _ => self.end(Ended::ByPeer(code), Close::Reply(code), now),
                }
            }
            Message::Text(_) | Message::Binary(_) if self.phase != Phase::Open => {}
            Message::Text(text) => self.handle_data(Some(text.as_str()), now),
            Message::Binary(bytes) => self.handle_data(std::str::from_utf8(&bytes).ok(), now),
            Message::Frame(_) => {}
        }
    }

    fn handle_data(&mut self, text: Option<&str>, now: Instant) {
        self.tally.messages_in += 1;
        match self.peer.message(text, now) {
            Verdict::Continue => self.notice_seal(now),
            Verdict::Hold => self.happens(Event::Full, now),
            Verdict::Close(close) => self.close(close, now),
        }
    }
}
