//! Upgraded connections that another program has handed over.

use std::net::{IpAddr, TcpStream};
use std::rc::Rc;
use std::time::Instant;

use crate::connection::binary::{Binary, Contender, contend};
use crate::connection::link::{
    FrozenConnection, FrozenContender, FrozenLink, FrozenPeer, Link, Rejected, Session, Upgraded,
};
use crate::connection::phone::Phone;
use crate::leg::Leg;
use crate::net::transport::{Tcp, Transport};
use crate::origin::Origin;
use crate::queue::budget::Account;
use crate::queue::outbox::Outbox;
use crate::registry::Contest;
use crate::relay::Relay;
use crate::tls;
use crate::tls::stream::Tls;

/// Goes on with a connection that was frozen as `record`, on its socket; slots must be there already. The error is
/// what is wrong.
pub(crate) fn thaw(
    relay: &Rc<Relay>,
    record: FrozenConnection,
    socket: TcpStream,
    now: Instant,
) -> Result<Session, String> {
    let tls = match &record {
        FrozenConnection::Link(link) => link.tls.as_deref(),
        FrozenConnection::Contender(contender) => contender.tls.as_deref(),
    };
    let tcp = Tcp::prepare(socket).map_err(|error| error.to_string())?;
    match tls {
        None => go_on(relay, record, tcp, now),
        Some(session) => {
            let session: tls::stream::Frozen = rmp_serde::from_slice(session)
                .map_err(|error| format!("the TLS session is broken: {error}"))?;
            let session = Tls::thaw(tcp, session, &relay.scratch);
            let tls = session.map_err(|error| format!("the TLS session is broken: {error}"))?;
            go_on(relay, record, tls, now)
        }
    }
}

fn go_on<S: Transport + 'static>(
    relay: &Rc<Relay>,
    record: FrozenConnection,
    io: S,
    now: Instant,
) -> Result<Session, String> {
    match record {
        FrozenConnection::Link(link) => thaw_link(relay, *link, io, now)
            .ok_or_else(|| "the frames of a connection make no sense".to_owned()),
        FrozenConnection::Contender(contender) => Ok(thaw_contender(relay, contender, io, now)),
    }
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
    let remote: IpAddr = remote;
    let permit = relay.permits.give_back(Origin::of(remote));
    let upgraded = Upgraded { io, leftover: leftover.into_vec(), remote, permit };
    let contest = Contest::thaw(&relay.registry, contest, now);
    let relay = Rc::clone(relay);
    Box::pin(async move {
        contend(&relay, Contender { upgraded, contest, version }).await.await;
    })
}
