//! What a link is, as plain data: see [`Carried::freeze`].

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::phase::{FrozenPhase, Phase};
use super::{FrozenPeer, Link, Peer, Tally};
use crate::clock;
use crate::connection::visitor::FrozenVisitor;
use crate::http::gate::PeerText;
use crate::links::{Carried, Frozen};
use crate::net::transport::Transport;
use crate::origin::Origin;
use crate::queue::outbox::Outbox;
use crate::registry::FrozenContest;
use crate::relay::Relay;
use crate::websocket::heartbeat::{FrozenHeartbeat, Heartbeat};
use crate::websocket::wire::{FrozenIncoming, Incoming};

/// One upgraded connection without its socket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FrozenConnection {
    /// A link.
    Link(Box<FrozenLink>),
    /// A binary that waits for what becomes of the holder of its server-id.
    Contender(FrozenContender),
    /// A request on its way.
    Request(FrozenRequest),
}

/// Such a binary.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenContender {
    pub(crate) remote: IpAddr,
    pub(crate) tls: Option<ByteBuf>,
    /// What arrived behind the request head.
    pub(crate) leftover: ByteBuf,
    pub(crate) version: PeerText,
    pub(crate) contest: FrozenContest,
}

/// A connection that has not been upgraded.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenRequest {
    pub(crate) visitor: FrozenVisitor,
    pub(crate) tls: Option<ByteBuf>,
    /// What has come.
    pub(crate) bytes: ByteBuf,
    /// How much came before that.
    pub(crate) spent: usize,
    /// What is left of the time for it.
    pub(crate) remaining: Duration,
    pub(crate) stage: Stage,
}

/// What is being read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// The header of a proxy.
    Announcement,
    /// The request.
    Request,
}

/// A link without its socket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenLink {
    pub(crate) remote: IpAddr,
    /// Until somebody has taken it.
    peer: Option<FrozenPeer>,
    /// The session of TLS, if the connection is one.
    pub(crate) tls: Option<ByteBuf>,
    incoming: FrozenIncoming,
    phase: FrozenPhase,
    heartbeat: FrozenHeartbeat,
    /// How long a write has made no progress.
    blocked: Option<Duration>,
    opened: Duration,
    tally: Tally,
    late_bytes: usize,
    /// Its memory is needed: it must go.
    condemned: bool,
}

impl FrozenLink {
    /// The leg's part; `None` if it was taken already.
    pub(crate) fn take_peer(&mut self) -> Option<FrozenPeer> {
        self.peer.take()
    }
}

impl<S: Transport, P: Peer> Carried for Link<S, P> {
    fn freeze(&self, now: Instant) -> Option<Frozen> {
        let io = self.incoming.socket();
        let link = FrozenLink {
            remote: self.remote,
            peer: Some(self.peer.freeze(&self.outbox, now)),
            tls: io.freeze().map(ByteBuf::from),
            incoming: self.incoming.freeze(now),
            phase: self.phase.freeze(now)?,
            heartbeat: self.heartbeat.freeze(now),
            blocked: clock::age(now, self.blocked),
            opened: now.saturating_duration_since(self.opened),
            tally: self.tally,
            late_bytes: self.late_bytes,
            condemned: self.charge.account().is_condemned(),
        };
        let is_plain = link.tls.is_none() && self.phase.is_undecided();
        let is_between_frames = is_plain && self.outbox.is_between_frames();
        let link = FrozenConnection::Link(Box::new(link));
        Some(Frozen::new(&link, is_between_frames, io.socket()?))
    }
}

impl<S: Transport, P: Peer> Link<S, P> {
    /// The link that was frozen, over the transport that goes with it. `None` if it makes no sense.
    pub(crate) fn thaw(
        relay: &Rc<Relay>,
        io: S,
        frozen: FrozenLink,
        outbox: Rc<Outbox>,
        peer: P,
        now: Instant,
    ) -> Option<Self> {
        let config = &relay.config;
        let largest = peer.largest_message();
        let mut incoming = Incoming::thaw(io, frozen.incoming, largest, &relay.codecs, now)?;
        if frozen.condemned {
            incoming.discard();
        }
        let permit = relay.permits.renew(Origin::of(frozen.remote));
        let mut link = Self {
            phase: Phase::thaw(frozen.phase, now),
            heartbeat: Heartbeat::thaw(
                frozen.heartbeat,
                config.heartbeat_interval,
                config.heartbeat_timeout,
                now,
            ),
            blocked: frozen.blocked.map(|age| clock::ago(now, age)),
            opened: clock::ago(now, frozen.opened),
            tally: frozen.tally,
            late_bytes: frozen.late_bytes,
            ..Self::begin(relay, incoming, outbox, peer, (frozen.remote, permit))
        };
        link.charge_input();
        if frozen.condemned {
            link.charge.account().condemn();
        }
        Some(link)
    }
}
