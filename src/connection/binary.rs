//! The binary's leg: claims a server-id, and carries out what the binary's envelopes ask for.

use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::clock::{self, Timer};
use futures_lite::FutureExt as _;

use crate::close::{Close, Ended};
use crate::connection::link::{Link, Peer, Session, Upgraded, Verdict, send_off};
use crate::envelope::{Envelope, Malformed};
use crate::http::gate::{PeerText, Refusal};
use crate::ids::{ServerId, binary_conn_id, binary_suffix};
use crate::leg::Leg;
use crate::net::transport::Transport;
use crate::origin::Origin;
use crate::queue::budget::Account;
use crate::queue::probe::Outcome;
use crate::registry::{Claim, Contest, Delivery, ServerSeat};
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
    version: &PeerText,
    pledge: Pledge,
) -> Session {
    let remote = upgraded.remote;
    let seat = match pledge {
        Pledge::Seated(seat) => seat,
        Pledge::Contested(contest) => match await_probe(relay, contest, remote).await {
            Ok(seat) => {
                relay.metrics.attempted(Leg::Binary, AttemptOutcome::Accept);
                events::server_claimed(seat.server(), version.as_str(), remote);
                seat
            }
            Err(close) => return send_off(relay, upgraded, Leg::Binary, close),
        },
    };
    let outbox = Rc::clone(seat.outbox());
    let suffix = binary_suffix();
    let peer = Binary { seat, suffix, relay: Rc::clone(relay), dropped: 0 };
    Box::pin(Link::new(relay, upgraded, outbox, peer))
}

/// Waits for what becomes of the holder. What the newcomer sends meanwhile stays unread.
async fn await_probe(relay: &Relay, contest: Contest, remote: IpAddr) -> Result<ServerSeat, Close> {
    let server = contest.server().clone();
    let outcome = std::future::poll_fn(|cx| contest.poll_outcome(cx));
    let silence = async {
        Timer::after(relay.config.probe_timeout).await;
        contest.call_last();
        std::future::pending().await
    };
    let stop = async {
        relay.stop.raised().await;
        Err(Close::ShuttingDown)
    };
    // The stop comes first: it ends the holder too, and nobody may take the slot after that.
    let outcome = stop.or(async { Ok(outcome.or(silence).await) }).await?;
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
struct Binary {
    seat: ServerSeat,
    suffix: u32,
    relay: Rc<Relay>,
    /// Envelopes that were not carried out.
    dropped: u64,
}

impl Binary {
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

    fn ended(&mut self, ended: Ended, amid: bool, now: Instant) {
        self.seat.vacate(ended, amid, now);
    }
}
