//! A request on its way: what has come of it stays where an upgrade finds it.

use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use serde_bytes::ByteBuf;

use crate::connection::link::{FrozenConnection, FrozenRequest, Stage};
use crate::connection::visitor::{FrozenVisitor, Visitor};
use crate::http::head::{self, Announcement, Head, Inlet, Opening};
use crate::links::{Carried, Frozen, Member};
use crate::net::scratch::Scratch;
use crate::net::transport::Transport;
use crate::origin::Origin;
use crate::queue::budget::Account;
use crate::relay::Relay;

/// A connection whose request, or the PROXY header before it, is being read.
struct Reading<S> {
    io: S,
    bytes: Vec<u8>,
    spent: usize,
    deadline: Instant,
    stage: Stage,
    visitor: FrozenVisitor,
}

impl<S: Transport> Carried for Reading<S> {
    fn freeze(&self, now: Instant) -> Option<Frozen> {
        let request = FrozenRequest {
            visitor: self.visitor,
            tls: self.io.freeze().map(ByteBuf::from),
            bytes: ByteBuf::from(self.bytes.as_slice()),
            spent: self.spent,
            remaining: self.deadline.saturating_duration_since(now),
            stage: self.stage,
        };
        Some(Frozen::new(&FrozenConnection::Request(request), false, self.io.socket()?))
    }
}

impl<S: Transport> Inlet for Member<Reading<S>> {
    fn poll_fill(&self, cx: &mut Context<'_>, scratch: &Rc<Scratch>) -> Poll<io::Result<usize>> {
        let reading = &mut *self.get();
        head::poll_fill(cx, &mut reading.io, scratch, &mut reading.bytes)
    }

    fn with_bytes<T>(&self, look: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        look(&mut self.get().bytes)
    }
}

fn enter<S: Transport + 'static>(
    visitor: &Visitor,
    io: S,
    opening: Opening,
    deadline: Instant,
    stage: Stage,
) -> Member<Reading<S>> {
    let (spent, bytes) = (opening.spent(), opening.into_bytes());
    let visitor_now = visitor.freeze();
    let links = &visitor.relay().links;
    links.enter(Reading { io, bytes, spent, deadline, stage, visitor: visitor_now })
}

/// Reads the PROXY header of a proxy, which may have begun in `opening`, until `deadline`.
pub(super) async fn read_announcement<S: Transport + 'static>(
    visitor: &Visitor,
    io: S,
    opening: Opening,
    deadline: Instant,
) -> (S, Announcement) {
    let (relay, proxy): (&Rc<Relay>, IpAddr) = (visitor.relay(), visitor.address());
    let account = Account::open(&relay.ledger, Origin::of(proxy));
    let reading = enter(visitor, io, opening, deadline, Stage::Announcement);
    let read = head::read_proxy_header(&reading, deadline, &relay.scratch, &account).await;
    (reading.leave().io, read)
}

/// Reads a request, which may have begun in `opening`, until `deadline`.
pub(super) async fn read_request<S: Transport + 'static>(
    visitor: &mut Visitor,
    io: S,
    opening: Opening,
    deadline: Instant,
) -> (S, Head) {
    let relay = Rc::clone(visitor.relay());
    let account = Account::open(&relay.ledger, Origin::of(visitor.address()));
    let spent = opening.spent();
    let reading = enter(visitor, io, opening, deadline, Stage::Request);
    let read =
        head::read_request(&reading, spent, deadline, &relay.scratch, &account, visitor).await;
    (reading.leave().io, read)
}
