//! The phone's leg: joins a slot, and forwards what the phone sends to the binary.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::close::{Close, Ended};
use crate::connection::link::{FrozenPeer, Link, Peer, Session, Upgraded, Verdict, send_off};
use crate::envelope::Prefix;
use crate::envelope::json;
use crate::http::gate::PeerText;
use crate::ids::ServerId;
use crate::leg::Leg;
use crate::limits::MESSAGE_OVERHEAD;
use crate::net::transport::Transport;
use crate::origin::Origin;
use crate::queue::budget::{Account, Charge};
use crate::queue::outbox::Outbox;
use crate::registry::{FrozenPhoneSeat, Join, Passed, PhoneSeat};
use crate::relay::Relay;
use crate::telemetry::events;
use crate::telemetry::metrics::AttemptOutcome;
use crate::websocket::frames::Frame;

/// Opens the leg of an upgraded phone.
pub(crate) fn open<S: Transport + 'static>(
    relay: &Rc<Relay>,
    upgraded: Upgraded<S>,
    server: &ServerId,
    device_name: &PeerText,
) -> Session {
    let count = |outcome| relay.metrics.attempted(Leg::Phone, outcome);
    let seat = match relay.registry.join(server, Origin::of(upgraded.remote)) {
        Join::Seated(seat) => seat,
        Join::NoServer => {
            count(AttemptOutcome::Reject404);
            events::phone_register_no_server(server, upgraded.remote);
            return send_off(relay, upgraded, Leg::Phone, Close::NoServer);
        }
        Join::TooMany => {
            count(AttemptOutcome::Reject429);
            return send_off(relay, upgraded, Leg::Phone, Close::TooManyPhones);
        }
    };
    count(AttemptOutcome::Accept);
    let conn_id = seat.conn_id();
    events::phone_registered(server, &conn_id, device_name.as_str(), upgraded.remote);
    let outbox = Rc::clone(seat.outbox());
    let peer = Phone {
        prefix: Prefix::new(&conn_id),
        parked_charge: Charge::new(Rc::clone(seat.sender().account())),
        seat,
        relay: Rc::clone(relay),
    };
    Link::new(relay, upgraded, outbox, peer).run()
}

/// The phone as a peer of its link.
pub(crate) struct Phone {
    seat: PhoneSeat,
    prefix: Prefix,
    /// Pays for the message that found no room; the phone is not read until it has.
    parked_charge: Charge,
    relay: Rc<Relay>,
}

impl Phone {
    /// The peer that was frozen, and what is to be written to it.
    pub(crate) fn thaw(
        relay: &Rc<Relay>,
        seat: FrozenPhoneSeat,
        now: Instant,
    ) -> (Self, Rc<Outbox>) {
        let seat = PhoneSeat::thaw(&relay.registry, seat, now);
        let outbox = Rc::clone(seat.outbox());
        let mut parked_charge = Charge::new(Rc::clone(seat.sender().account()));
        parked_charge.set(seat.sender().parked().map_or(0, |bytes| bytes + MESSAGE_OVERHEAD));
        let prefix = Prefix::new(&seat.conn_id());
        (Self { prefix, parked_charge, seat, relay: Rc::clone(relay) }, outbox)
    }

    fn forward(&mut self, frame: Frame) -> Verdict {
        // Before the queue's own charge: a message that was parked must not count twice.
        self.parked_charge.set(0);
        match self.seat.forward(frame) {
            Passed::Queued | Passed::Gone => Verdict::Continue,
            Passed::Held(frame) => {
                let held = frame.len() + MESSAGE_OVERHEAD;
                self.seat.sender().park(frame);
                if self.parked_charge.set(held) {
                    self.relay.registry.relieve();
                }
                Verdict::Hold
            }
        }
    }
}

impl Peer for Phone {
    fn leg(&self) -> Leg {
        Leg::Phone
    }

    fn conn_id(&self) -> String {
        self.seat.conn_id()
    }

    fn largest_message(&self) -> usize {
        self.relay.config.max_frame_bytes
    }

    fn account(&self) -> Rc<Account> {
        Rc::clone(self.seat.sender().account())
    }

    fn message(&mut self, text: Option<&str>, _now: Instant) -> Verdict {
        match text {
            None => Verdict::Close(Close::BadUtf8),
            Some(text) if !json::is_value(text) => Verdict::Close(Close::NotJson),
            Some(text) => self.forward(self.prefix.wrap(text)),
        }
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(frame) = self.seat.sender().unpark() else { return Poll::Ready(()) };
        match self.forward(frame) {
            Verdict::Hold => {
                self.seat.sender().wake_when_free(cx.waker());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    fn freeze(&self, _outbox: &Outbox, now: Instant) -> FrozenPeer {
        FrozenPeer::Phone { seat: self.seat.freeze(now) }
    }

    fn ended(&mut self, ended: Ended, _amid: bool, _now: Instant) {
        drop(self.seat.sender().unpark());
        self.parked_charge.set(0);
        self.seat.leave(ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::transport::Tcp;

    #[test]
    fn an_upgraded_phone_weighs_less_than_a_kibibyte() {
        let link = size_of::<Link<Tcp, Phone>>();
        assert!(link <= 1024, "{link} bytes");
    }
}
