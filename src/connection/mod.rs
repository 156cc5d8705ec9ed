//! One connection from its first byte: reads the head, answers it, and hands an upgraded socket to
//! its leg.

pub(crate) mod binary;
pub(crate) mod link;
pub(crate) mod phone;
pub(crate) mod request;
pub(crate) mod thaw;
pub(crate) mod visitor;

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use futures_lite::FutureExt as _;
use log::debug;

use self::binary::Pledge;
use self::visitor::Visitor;
use crate::admission::heads::Entry;
use crate::admission::permits::{Permit, Shortage};
use crate::clock;
use crate::connection::link::{Session, Upgraded};
use crate::http::gate::{AcceptKey, Admission, PeerText, Refusal, Role, Upgrade};
use crate::http::head::{self, Announcement, Head, Opening};
use crate::ids::ServerId;
use crate::leg::Leg;
use crate::limits::TLS_HELD;
use crate::monitor::health;
use crate::net::transport::{Tcp, Transport};
use crate::origin::Origin;
use crate::queue::budget::{Account, Charge};
use crate::relay::Relay;
use crate::telemetry::events::{self, Throttled};
use crate::tls::stream::Tls;

/// Serves one connection to its end.
pub async fn serve<S: Transport + 'static>(relay: Rc<Relay>, io: S, remote: IpAddr, entry: Entry) {
    let begun = Box::pin(begin(Rc::clone(&relay), io, remote, entry)).await;
    if let Some(session) = Box::pin(receive(relay, begun)).await {
        session.await;
    }
}

/// The same over TLS, for a relay that speaks it.
pub(crate) async fn serve_tls(relay: Rc<Relay>, io: Tcp, remote: IpAddr, entry: Entry) {
    let begun = Box::pin(begin_tls(Rc::clone(&relay), io, remote, entry)).await;
    if let Some(session) = Box::pin(receive(relay, begun)).await {
        session.await;
    }
}

/// A connection on which a request is to come.
struct Begun<S> {
    io: S,
    visitor: Visitor,
    opening: Opening,
    deadline: Instant,
}

/// What comes before the request: a PROXY header, where one is due.
///
/// It is boxed and so is what it comes to, as every stage is: they need not fit together.
async fn begin<S: Transport + 'static>(
    relay: Rc<Relay>,
    io: S,
    remote: IpAddr,
    entry: Entry,
) -> Option<Box<Begun<S>>> {
    let deadline = clock::now() + relay.config.header_timeout;
    let visitor = Visitor::new(&relay, entry, remote);
    announce(visitor, io, Opening::default(), deadline).await.map(Box::new)
}

/// The same, and TLS behind it: a proxy that passes TLS on sends its header before it.
async fn begin_tls(
    relay: Rc<Relay>,
    io: Tcp,
    remote: IpAddr,
    entry: Entry,
) -> Option<Box<Begun<Tls>>> {
    let deadline = clock::now() + relay.config.header_timeout;
    let visitor = Visitor::over_tls(&relay, entry, remote);
    secure(announce(visitor, io, Opening::default(), deadline).await?).await
}

/// Shakes hands.
async fn secure(begun: Begun<Tcp>) -> Option<Box<Begun<Tls>>> {
    let Begun { io, mut visitor, opening, deadline } = begun;
    let relay = Rc::clone(visitor.relay());
    let secure = relay.secure.as_ref()?;
    let remote = visitor.address();
    let account = Account::open(&relay.ledger, Origin::of(remote));
    let mut charge = Charge::new(Rc::clone(&account));
    charge.set(TLS_HELD);
    let may_sign =
        || visitor.shake().inspect_err(|refusal| note(&relay, None, *refusal, remote)).is_ok();
    let (opening, metrics) = (opening.into_bytes(), &relay.metrics);
    let shaking = secure.shake(io, opening, deadline, remote, &account, metrics, may_sign);
    match shaking.or(head::evicted(&account, Err(None))).await {
        Ok(io) => Some(Box::new(Begun { io, visitor, opening: Opening::default(), deadline })),
        Err(Some(io)) => refuse(&relay, io, None, Refusal::NotTls, remote).await,
        Err(None) => None,
    }
}

/// Reads the PROXY header, if there is to be one. It may have begun in `opening`.
async fn announce<S: Transport + 'static>(
    mut visitor: Visitor,
    io: S,
    opening: Opening,
    deadline: Instant,
) -> Option<Begun<S>> {
    let (relay, proxy) = (Rc::clone(visitor.relay()), visitor.address());
    if !relay.config.proxies.send_header_from(proxy) {
        return Some(Begun { io, visitor, opening, deadline });
    }
    let (io, read) = request::read_announcement(&visitor, io, opening, deadline).await;
    match read {
        Announcement::From(from, opening) => {
            visitor.speaks_for(from);
            Some(Begun { io, visitor, opening, deadline })
        }
        Announcement::Malformed => {
            relay.note_proxy_fault(proxy);
            None
        }
        Announcement::TimedOut => refuse(&relay, io, None, Refusal::HeadTimeout, proxy).await,
        Announcement::Gone => None,
    }
}

/// Goes on with a request that another program has begun to read.
pub(crate) async fn resume<S: Transport + 'static>(
    visitor: Visitor,
    io: S,
    opening: Opening,
    deadline: Instant,
) {
    let relay = Rc::clone(visitor.relay());
    let begun = Box::new(Begun { io, visitor, opening, deadline });
    if let Some(session) = Box::pin(receive(relay, Some(begun))).await {
        session.await;
    }
}

/// Goes on with the header of a proxy that another program has begun to read.
pub(crate) async fn resume_announcement(
    visitor: Visitor,
    io: Tcp,
    opening: Opening,
    deadline: Instant,
) {
    let (relay, is_tls) = (Rc::clone(visitor.relay()), visitor.is_over_tls());
    let Some(begun) = Box::pin(announce(visitor, io, opening, deadline)).await else { return };
    let session = match is_tls {
        false => Box::pin(receive(relay, Some(Box::new(begun)))).await,
        true => Box::pin(receive(relay, Box::pin(secure(begun)).await)).await,
    };
    if let Some(session) = session {
        session.await;
    }
}

/// Reads and answers the request; what follows an upgrade is returned, to be run on its own.
async fn receive<S: Transport + 'static>(
    relay: Rc<Relay>,
    begun: Option<Box<Begun<S>>>,
) -> Option<Session> {
    let Begun { io, mut visitor, opening, deadline } = *begun?;
    let (mut io, read) = request::read_request(&mut visitor, io, opening, deadline).await;
    let remote = visitor.address();
    let admitted = match read {
        Head::Gone => return None,
        Head::Refused(refusal) => Err(refusal),
        Head::Admitted(Admission::Health { head_only }, _) => {
            let counts = relay.registry.counts();
            let certificate = relay.certificate();
            let up = clock::since(relay.started);
            let page = health::response(counts, up, certificate.as_ref(), head_only);
            head::answer(&mut io, &page, relay.config.write_timeout, &relay.scratch).await;
            return None;
        }
        Head::Admitted(Admission::Upgrade(upgrade), leftover) => {
            admit(&relay, upgrade, remote).map(|admitted| (admitted, leftover))
        }
    };
    let (Admitted { permit, server, accept, leg }, leftover) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(&relay, io, visitor.attempted(), refusal, remote).await,
    };
    // The head is done; from here the permit counts the connection.
    drop(visitor);
    let response = accept.response();
    if head::reply(&mut io, response.as_bytes(), relay.config.write_timeout).await.is_err() {
        return None;
    }
    let upgraded = Upgraded { io, leftover, remote, permit };
    Some(match leg {
        Opened::Phone(device_name) => phone::open(&relay, upgraded, &server, &device_name),
        Opened::Binary(version, pledge) => binary::open(&relay, upgraded, version, pledge).await,
    })
}

/// An upgrade that only its response is missing from.
struct Admitted {
    permit: Permit,
    server: ServerId,
    accept: AcceptKey,
    leg: Opened,
}

/// Which leg an upgrade leads to, and what was decided about it before the upgrade.
enum Opened {
    Phone(PeerText),
    Binary(PeerText, Pledge),
}

/// Decides on an upgrade. What a refused one took is free again when this returns: a refusal lingers, and is
/// no upgraded connection.
fn admit(relay: &Relay, upgrade: Upgrade, remote: IpAddr) -> Result<Admitted, Refusal> {
    let Upgrade { server, accept, role } = upgrade;
    if matches!(role, Role::Binary { .. }) && !relay.allows(&server) {
        events::server_not_allowed(&server, remote);
        return Err(Refusal::NotAllowed);
    }
    if relay.stop.is_raised() {
        return Err(Refusal::Stopping);
    }
    let permit = relay.permits.acquire(Origin::of(remote)).map_err(|shortage| match shortage {
        Shortage::All => Refusal::ConnectionCap,
        Shortage::Origin => Refusal::SourceCap,
    })?;
    let leg = match role {
        Role::Phone { device_name } => Opened::Phone(device_name),
        Role::Binary { version } => {
            let pledge = binary::claim(relay, &server, &version, remote)?;
            Opened::Binary(version, pledge)
        }
    };
    Ok(Admitted { permit, server, accept, leg })
}

/// Answers with a refusal, which is the end of the connection.
async fn refuse<S: Transport, T>(
    relay: &Relay,
    mut io: S,
    attempted: Option<Leg>,
    refusal: Refusal,
    remote: IpAddr,
) -> Option<T> {
    note(relay, attempted, refusal, remote);
    let response = refusal.response();
    head::answer(&mut io, &response, relay.config.write_timeout, &relay.scratch).await;
    None
}

/// Logs and counts a refusal.
fn note(relay: &Relay, attempted: Option<Leg>, refusal: Refusal, remote: IpAddr) {
    debug!(remote:% = remote, reason:% = refusal; "{}", Throttled::Refused);
    let (refused, outcome) = refusal.kind();
    relay.metrics.refused.bump(refused);
    if let (Some(leg), Some(outcome)) = (attempted, outcome) {
        relay.metrics.attempted(leg, outcome);
    }
    match refusal {
        Refusal::RateLimited(_) | Refusal::SourceCap => relay.note_limited(remote),
        Refusal::BadForwarding => relay.note_proxy_fault(remote),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_task<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_stage<A, B, F>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_task_weighs_little_and_its_stages_what_they_need() {
        let task = size_of_task(serve::<Tcp>);
        let head = size_of_stage(receive::<Tcp>);
        assert!(task <= 256, "the task of one connection: {task} bytes");
        assert!(head <= 2048, "reading and answering a request: {head} bytes");
    }
}
