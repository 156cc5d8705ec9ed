//! Upgraded connections that another program has handed over.

use std::net::TcpStream;
use std::rc::Rc;
use std::time::Instant;

use crate::admission::heads::Heads;
use crate::clock;
use crate::connection::binary::{Binary, Contender, contend};
use crate::connection::link::{
    FrozenConnection, FrozenContender, FrozenLink, FrozenPeer, FrozenRequest, Link, Rejected,
    Session, Stage, Upgraded,
};
use crate::connection::phone::Phone;
use crate::connection::visitor::Visitor;
use crate::connection::{resume, resume_announcement};
use crate::http::head::Opening;
use crate::ids::Serial;
use crate::leg::Leg;
use crate::net::transport::{Tcp, Transport};
use crate::origin::Origin;
use crate::queue::budget::Account;
use crate::queue::outbox::Outbox;
use crate::registry::Contest;
use crate::relay::Relay;
use crate::tls;
use crate::tls::stream::Tls;

/// The rest of a connection's life, and its place among the heads if its request is still on its way.
pub(crate) struct Resumed {
    pub(crate) session: Session,
    pub(crate) place: Option<Serial>,
}

/// Goes on with a connection that was frozen as `record`, on its socket; slots must be there already. The error is
/// what is wrong.
pub(crate) fn thaw(
    relay: &Rc<Relay>,
    heads: &Rc<Heads>,
    record: FrozenConnection,
    socket: TcpStream,
    now: Instant,
) -> Result<Resumed, String> {
    let tls = match &record {
        FrozenConnection::Link(link) => link.tls.as_deref(),
        FrozenConnection::Contender(contender) => contender.tls.as_deref(),
        FrozenConnection::Request(request) => request.tls.as_deref(),
    };
    let tcp = Tcp::prepare(socket).map_err(|error| error.to_string())?;
    match tls {
        None => match record {
            FrozenConnection::Request(request) if request.stage == Stage::Announcement => {
                let (visitor, place, opening, deadline) = thaw_request(relay, heads, request, now);
                let session = Box::pin(resume_announcement(visitor, tcp, opening, deadline));
                Ok(Resumed { session, place })
            }
            record => go_on(relay, heads, record, tcp, now),
        },
        Some(session) => {
            let session: tls::stream::Frozen = rmp_serde::from_slice(session)
                .map_err(|error| format!("the TLS session is broken: {error}"))?;
            let session = Tls::thaw(tcp, session, &relay.scratch);
            let tls = session.map_err(|error| format!("the TLS session is broken: {error}"))?;
            go_on(relay, heads, record, tls, now)
        }
    }
}

fn go_on<S: Transport + 'static>(
    relay: &Rc<Relay>,
    heads: &Rc<Heads>,
    record: FrozenConnection,
    io: S,
    now: Instant,
) -> Result<Resumed, String> {
    let (session, place) = match record {
        FrozenConnection::Link(link) => {
            let session = thaw_link(relay, *link, io, now);
            (session.ok_or("the frames of a connection make no sense")?, None)
        }
        FrozenConnection::Contender(contender) => (thaw_contender(relay, contender, io, now), None),
        FrozenConnection::Request(request) => {
            let (visitor, place, opening, deadline) = thaw_request(relay, heads, request, now);
            let session: Session = Box::pin(resume(visitor, io, opening, deadline));
            (session, place)
        }
    };
    Ok(Resumed { session, place })
}

fn thaw_request(
    relay: &Rc<Relay>,
    heads: &Rc<Heads>,
    request: FrozenRequest,
    now: Instant,
) -> (Visitor, Option<Serial>, Opening, Instant) {
    let FrozenRequest { visitor, bytes, spent, remaining, .. } = request;
    // Nobody makes room for anybody: as many as there may be were there before.
    let entry = heads.enter(Origin::of(visitor.address), Some(usize::MAX));
    let place = Some(entry.serial());
    let visitor = Visitor::thaw(relay, entry, visitor);
    (visitor, place, Opening::new(bytes.into_vec(), spent), clock::later(now, remaining))
}

fn thaw_link<S: Transport + 'static>(
    relay: &Rc<Relay>,
    mut link: FrozenLink,
    io: S,
    now: Instant,
) -> Option<Session> {
    let origin = Origin::of(link.remote);
    Some(match link.take_peer()? {
        FrozenPeer::Binary { seat, suffix, dropped } => {
            let (peer, outbox) = Binary::thaw(relay, seat, suffix, dropped, now);
            Link::thaw(relay, io, link, outbox, peer, now)?.run()
        }
        FrozenPeer::Phone { seat } => {
            let (peer, outbox) = Phone::thaw(relay, seat, now);
            Link::thaw(relay, io, link, outbox, peer, now)?.run()
        }
        FrozenPeer::Rejected { is_binary, outbox } => {
            let account = Account::open(&relay.ledger, origin);
            let outbox = Outbox::thaw(outbox, None, usize::MAX, &account, now);
            let leg = if is_binary { Leg::Binary } else { Leg::Phone };
            let peer = Rejected { leg, account, relay: Rc::clone(relay) };
            Link::thaw(relay, io, link, outbox, peer, now)?.run()
        }
    })
}

fn thaw_contender<S: Transport + 'static>(
    relay: &Rc<Relay>,
    contender: FrozenContender,
    io: S,
    now: Instant,
) -> Session {
    let FrozenContender { remote, leftover, version, contest, .. } = contender;
    let permit = relay.permits.renew(Origin::of(remote));
    let upgraded = Upgraded { io, leftover: leftover.into_vec(), remote, permit };
    let contest = Contest::thaw(&relay.registry, contest, now);
    let relay = Rc::clone(relay);
    Box::pin(async move {
        contend(&relay, Contender { upgraded, contest, version }).await.await;
    })
}
