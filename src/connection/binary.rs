//! The binary's leg: claims a server-id, and carries out what the binary's envelopes ask for.

use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_lite::FutureExt as _;
use serde_bytes::ByteBuf;

use crate::clock::{self, Timer};
use crate::close::{Close, Ended};
use crate::connection::link::{
    FrozenConnection, FrozenContender, FrozenPeer, Link, Peer, Session, Upgraded, Verdict, send_off,
};
use crate::envelope::{Envelope, Malformed};
use crate::http::gate::{PeerText, Refusal};
use crate::ids::{ServerId, binary_conn_id, binary_suffix};
use crate::leg::Leg;
use crate::links::{Carried, Frozen, Member};
use crate::net::transport::Transport;
use crate::origin::Origin;
use crate::queue::budget::Account;
use crate::queue::outbox::Outbox;
use crate::queue::probe::{Inquiry, Outcome};
use crate::registry::{Claim, Contest, Delivery, FrozenServerSeat, ServerSeat};
use crate::relay::Relay;
use crate::telemetry::events;
use crate::telemetry::metrics::{AttemptOutcome, Dropped};

/// What a claim came to before the upgrade.
pub(crate) enum Pledge {
    /// The slot is held.
    Seated(ServerSeat),
    /// The holder is being probed.
    Contested(Contest),
}

/// Claims `server`, or says how the claim is refused before the upgrade.
pub(crate) fn claim(
    relay: &Relay,
    server: &ServerId,
    version: &PeerText,
    remote: IpAddr,
) -> Result<Pledge, Refusal> {
    match relay.registry.claim(server, Origin::of(remote), clock::now()) {
        Claim::Seated(seat) => {
            relay.metrics.attempted(Leg::Binary, AttemptOutcome::Accept);
            events::server_claimed(server, version.as_str(), remote);
            Ok(Pledge::Seated(seat))
        }
        Claim::Contested(contest) => Ok(Pledge::Contested(contest)),
        Claim::Busy => Err(Refusal::ProbeUnderWay),
        Claim::Full => Err(Refusal::ConnectionCap),
    }
}

/// Opens the leg of an upgraded binary, after the probe if there is one.
pub(crate) async fn open<S: Transport + 'static>(
    relay: &Rc<Relay>,
    upgraded: Upgraded<S>,
    version: PeerText,
    pledge: Pledge,
) -> Session {
    match pledge {
        Pledge::Seated(seat) => take_seat(relay, upgraded, seat),
        Pledge::Contested(contest) => {
            contend(relay, Contender { upgraded, contest, version }).await
        }
    }
}

fn take_seat<S: Transport + 'static>(
    relay: &Rc<Relay>,
    upgraded: Upgraded<S>,
    seat: ServerSeat,
) -> Session {
    let outbox = Rc::clone(seat.outbox());
    let suffix = binary_suffix();
    let peer = Binary { seat, suffix, relay: Rc::clone(relay), dropped: 0 };
    Link::new(relay, upgraded, outbox, peer).run()
}

/// A binary that waits for what becomes of the holder. What it sends meanwhile stays unread.
pub(crate) struct Contender<S> {
    pub(crate) upgraded: Upgraded<S>,
    pub(crate) contest: Contest,
    pub(crate) version: PeerText,
}

impl<S: Transport> Carried for Contender<S> {
    fn freeze(&self, now: Instant) -> Option<Frozen> {
        let Upgraded { io, leftover, remote, .. } = &self.upgraded;
        let contender = FrozenContender {
            remote: *remote,
            tls: io.freeze().map(ByteBuf::from),
            leftover: ByteBuf::from(leftover.as_slice()),
            version: self.version.clone(),
            contest: self.contest.freeze(now),
        };
        let is_plain = contender.tls.is_none();
        Some(Frozen::new(&FrozenConnection::Contender(contender), is_plain, io.socket()?))
    }
}

/// Goes on with the newcomer when it is known what becomes of the holder.
pub(crate) async fn contend<S: Transport + 'static>(
    relay: &Rc<Relay>,
    contender: Contender<S>,
) -> Session {
    let waiting = relay.links.enter(contender);
    let outcome = await_probe(relay, &waiting).await;
    let Contender { upgraded, contest, version } = waiting.leave();
    let remote = upgraded.remote;
    match outcome.and_then(|outcome| settle(relay, contest, outcome, remote)) {
        Ok(seat) => {
            relay.metrics.attempted(Leg::Binary, AttemptOutcome::Accept);
            events::server_claimed(seat.server(), version.as_str(), remote);
            take_seat(relay, upgraded, seat)
        }
        Err(close) => send_off(relay, upgraded, Leg::Binary, close),
    }
}

/// Waits for what becomes of the holder.
async fn await_probe<S: Transport>(
    relay: &Relay,
    waiting: &Member<Contender<S>>,
) -> Result<Outcome, Close> {
    let outcome = std::future::poll_fn(|cx| waiting.get().contest.poll_outcome(cx));
    let due = waiting.get().contest.asked() + relay.config.probe_timeout;
    let silence = async {
        Timer::at(due).await;
        waiting.get().contest.call_last();
        std::future::pending().await
    };
    let stop = async {
        relay.stop.raised().await;
        Err(Close::ShuttingDown)
    };
    // The stop comes first: it ends the holder too, and nobody may take the slot after that.
    stop.or(async { Ok(outcome.or(silence).await) }).await
}

/// Gives the slot to the newcomer, or says how it is closed.
fn settle(
    relay: &Relay,
    contest: Contest,
    outcome: Outcome,
    remote: IpAddr,
) -> Result<ServerSeat, Close> {
    let server = contest.server().clone();
    if !relay.allows(&server) {
        return Err(Close::NotAllowed);
    }
    let won = match outcome {
        Outcome::Answered => None,
        Outcome::HolderGone => contest.win(clock::now()).ok(),
        Outcome::Silent => {
            let won = contest.win(clock::now()).ok();
            if won.is_some() {
                events::server_id_takeover(&server, remote);
            }
            won
        }
    };
    won.ok_or_else(|| {
        relay.metrics.attempted(Leg::Binary, AttemptOutcome::Reject409);
        events::server_id_conflict(&server, remote);
        Close::AlreadyClaimed
    })
}

/// The binary as a peer of its link.
pub(crate) struct Binary {
    seat: ServerSeat,
    suffix: u32,
    relay: Rc<Relay>,
    /// Envelopes that were not carried out.
    dropped: u64,
}

impl Binary {
    /// The peer that was frozen, and what is to be written to it.
    pub(crate) fn thaw(
        relay: &Rc<Relay>,
        seat: FrozenServerSeat,
        suffix: u32,
        dropped: u64,
        now: Instant,
    ) -> (Self, Rc<Outbox>) {
        let seat = ServerSeat::thaw(&relay.registry, seat, now);
        let outbox = Rc::clone(seat.outbox());
        (Self { seat, suffix, relay: Rc::clone(relay), dropped }, outbox)
    }

    fn drop_envelope(&mut self, kind: &dyn std::fmt::Display, counted: Dropped) {
        self.dropped += 1;
        self.relay.metrics.dropped.bump(counted);
        events::envelope_dropped(self.seat.server(), kind, self.dropped);
    }
}

impl Peer for Binary {
    fn leg(&self) -> Leg {
        Leg::Binary
    }

    fn conn_id(&self) -> String {
        binary_conn_id(self.seat.server(), self.suffix)
    }

    fn largest_message(&self) -> usize {
        self.relay.config.max_envelope_bytes()
    }

    fn account(&self) -> Rc<Account> {
        Rc::clone(self.seat.account())
    }

    fn inquiry(&self) -> Option<&Inquiry> {
        Some(self.seat.inquiry())
    }

    fn message(&mut self, text: Option<&str>, now: Instant) -> Verdict {
        let parsed = text.ok_or(Malformed::NotText).and_then(Envelope::parse);
        match parsed.map(|envelope| self.seat.deliver(&envelope, now)) {
            Ok(Delivery::Done | Delivery::NotHolder) => {}
            Ok(Delivery::UnknownPhone) => {
                self.drop_envelope(&"no such phone", Dropped::UnknownPhone);
            }
            Err(malformed) => self.drop_envelope(&malformed, malformed.kind()),
        }
        Verdict::Continue
    }

    fn poll_resume(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        // A binary is never held back.
        Poll::Ready(())
    }

    fn freeze(&self, _outbox: &Outbox, now: Instant) -> FrozenPeer {
        let (suffix, dropped) = (self.suffix, self.dropped);
        FrozenPeer::Binary { seat: self.seat.freeze(now), suffix, dropped }
    }

    fn ended(&mut self, ended: Ended, amid: bool, now: Instant) {
        self.seat.vacate(ended, amid, now);
    }
}
