//! The phone's leg: joins a slot, and forwards what the phone sends to the binary.

use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::budget::Charge;
use crate::close::{Close, Ended};
use crate::envelope::{Prefix, is_json};
use crate::events;
use crate::frames::Frame;
use crate::gate::{AcceptKey, Label, Refusal};
use crate::head;
use crate::heads::Entry;
use crate::ids::ServerId;
use crate::limits::MESSAGE_OVERHEAD;
use crate::link::{Link, Peer, Verdict, send_off};
use crate::registry::{Forwarded, Join, PhoneSeat};
use crate::relay::Relay;
use crate::transport::Transport;

/// A phone that passed the gate.
pub struct Caller {
    /// The server-id it asks for.
    pub server: ServerId,
    /// What it calls itself.
    pub device_name: Label,
    /// The answer to its key.
    pub accept: AcceptKey,
    /// What arrived behind its request head.
    pub leftover: Vec<u8>,
    /// Where it comes from.
    pub remote: IpAddr,
}

/// Serves a phone to its end, or gives the socket back with the refusal that it gets.
pub async fn serve<S: Transport>(
    relay: &Rc<Relay>,
    mut io: S,
    caller: Caller,
    entry: Entry,
) -> Option<(Refusal, S, Entry)> {
    let Some(permit) = relay.permits.acquire() else {
        return Some((Refusal::ConnectionCap, io, entry));
    };
    drop(entry);
    let response = caller.accept.response();
    if head::reply(&mut io, response.as_bytes(), relay.config.write_timeout).await.is_err() {
        return None;
    }
    let close = match relay.registry.join(&caller.server) {
        Join::Seated(seat) => {
            attend(relay, io, seat, caller).await;
            drop(permit);
            return None;
        }
        Join::NoServer => {
            events::phone_register_no_server(&caller.server, caller.remote);
            Close::NoServer
        }
        Join::TooMany => Close::TooManyPhones,
    };
    send_off(relay, io, caller.leftover, close, caller.remote).await;
    drop(permit);
    None
}

/// Serves a phone that is attached to its slot.
async fn attend<S: Transport>(relay: &Rc<Relay>, io: S, seat: PhoneSeat, caller: Caller) {
    let Caller { server, device_name, leftover, remote, .. } = caller;
    let conn_id = seat.conn_id();
    events::phone_registered(&server, &conn_id, device_name.as_str(), remote);
    drop((server, device_name));
    let outbox = Rc::clone(seat.outbox());
    let account = seat.source().account();
    let charge = Charge::new(Rc::clone(account));
    let peer = Phone {
        prefix: Prefix::new(&conn_id),
        parked: None,
        parked_charge: Charge::new(Rc::clone(account)),
        seat,
        relay: Rc::clone(relay),
    };
    let largest = relay.config.max_frame_bytes;
    Link::new(relay, io, leftover, largest, outbox, peer, charge).run(&conn_id, remote).await;
}

/// The phone as a peer of its link.
struct Phone {
    seat: PhoneSeat,
    prefix: Prefix,
    /// The message that found no room; the phone is not read until it has.
    parked: Option<Frame>,
    parked_charge: Charge,
    relay: Rc<Relay>,
}

impl Phone {
    fn forward(&mut self, frame: Frame) -> Verdict {
        match self.seat.forward(frame) {
            Forwarded::Queued | Forwarded::Gone => {
                self.parked_charge.set(0);
                Verdict::Continue
            }
            Forwarded::Held(frame) => {
                let held = frame.len() + MESSAGE_OVERHEAD;
                self.parked = Some(frame);
                if self.parked_charge.set(held) {
                    self.relay.registry.relieve();
                }
                Verdict::Hold
            }
        }
    }
}

impl Peer for Phone {
    fn message(&mut self, text: Option<&str>) -> Verdict {
        match text {
            None => Verdict::Close(Close::BadUtf8),
            Some(text) if !is_json(text) => Verdict::Close(Close::NotJson),
            Some(text) => self.forward(self.prefix.wrap(text)),
        }
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(frame) = self.parked.take() else { return Poll::Ready(()) };
        match self.forward(frame) {
            Verdict::Hold => {
                self.seat.source().wake_when_free(cx.waker());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    fn ended(&mut self, ended: Ended, _now: Instant) {
        self.parked = None;
        self.parked_charge.set(0);
        self.seat.leave(ended);
    }
}
