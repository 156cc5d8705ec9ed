//! The binary's leg: claims a server-id, and carries out what the binary's envelopes ask for.

use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use async_io::Timer;
use futures_lite::FutureExt as _;

use crate::budget::{Account, Charge};
use crate::close::{Close, Ended};
use crate::envelope::{Envelope, Malformed};
use crate::events;
use crate::gate::{AcceptKey, Label, Refusal};
use crate::head;
use crate::heads::Entry;
use crate::ids::{ServerId, binary_conn_id};
use crate::link::{Link, Peer, Verdict, send_off};
use crate::probe::Outcome;
use crate::registry::{Claim, Contest, Delivery, ServerSeat};
use crate::relay::Relay;
use crate::transport::Transport;

/// A binary that passed the gate.
pub struct Claimant {
    /// The server-id it claims.
    pub server: ServerId,
    /// Its version.
    pub version: Label,
    /// The answer to its key.
    pub accept: AcceptKey,
    /// What arrived behind its request head.
    pub leftover: Vec<u8>,
    /// Where it comes from.
    pub remote: IpAddr,
}

/// Serves a binary to its end, or gives the socket back with the refusal that it gets.
pub async fn serve<S: Transport>(
    relay: &Rc<Relay>,
    mut io: S,
    claimant: Claimant,
    entry: Entry,
) -> Option<(Refusal, S, Entry)> {
    let Some(permit) = relay.permits.acquire() else {
        return Some((Refusal::ConnectionCap, io, entry));
    };
    let claim = relay.registry.claim(&claimant.server, Instant::now());
    let refusal = match claim {
        Claim::Busy => Some(Refusal::ProbeUnderWay),
        Claim::Full => Some(Refusal::ConnectionCap),
        Claim::Seated(_) | Claim::Contested(_) => None,
    };
    if let Some(refusal) = refusal {
        return Some((refusal, io, entry));
    }
    drop(entry);

    let response = claimant.accept.response();
    if head::reply(&mut io, response.as_bytes(), relay.config.write_timeout).await.is_err() {
        return None;
    }
    let seat = match claim {
        Claim::Seated(seat) => Ok(seat),
        Claim::Contested(contest) => await_probe(relay, contest, &claimant).await,
        Claim::Busy | Claim::Full => return None,
    };
    match seat {
        Ok(seat) => hold(relay, io, seat, claimant).await,
        Err(close) => send_off(relay, io, claimant.leftover, close, claimant.remote).await,
    }
    drop(permit);
    None
}

/// Waits for what becomes of the holder. What the newcomer sends meanwhile stays unread.
async fn await_probe(
    relay: &Relay,
    contest: Contest,
    claimant: &Claimant,
) -> Result<ServerSeat, Close> {
    let Claimant { server, remote, .. } = claimant;
    let outcome = std::future::poll_fn(|cx| contest.poll_outcome(cx).map(Some));
    let silence = async {
        Timer::after(relay.config.probe_timeout).await;
        None
    };
    let stop = async {
        relay.stop.raised().await;
        Err(Close::ShuttingDown)
    };
    // The stop comes first: it ends the holder too, and nobody may take the slot after that.
    let outcome = stop.or(async { Ok(outcome.or(silence).await) }).await?;
    let won = match outcome {
        Some(Outcome::Answered) => None,
        Some(Outcome::HolderGone) => contest.win().ok(),
        None => {
            let won = contest.win().ok();
            if won.is_some() {
                events::server_id_takeover(server, *remote);
            }
            won
        }
    };
    won.ok_or_else(|| {
        events::server_id_conflict(server, *remote);
        Close::AlreadyClaimed
    })
}

/// Serves the binary that holds the slot.
async fn hold<S: Transport>(relay: &Rc<Relay>, io: S, seat: ServerSeat, claimant: Claimant) {
    let Claimant { server, version, leftover, remote, .. } = claimant;
    events::server_claimed(&server, version.as_str(), remote);
    let conn_id = binary_conn_id(&server);
    drop((server, version));
    let outbox = Rc::clone(seat.outbox());
    let charge = Charge::new(Account::open(&relay.ledger));
    let largest = relay.config.max_envelope_bytes();
    let peer = Binary { seat, dropped: 0 };
    Link::new(relay, io, leftover, largest, outbox, peer, charge).run(&conn_id, remote).await;
}

/// The binary as a peer of its link.
struct Binary {
    seat: ServerSeat,
    /// Envelopes that were not carried out.
    dropped: u64,
}

impl Binary {
    fn drop_envelope(&mut self, kind: &dyn std::fmt::Display) {
        self.dropped += 1;
        events::envelope_dropped(self.seat.server(), kind, self.dropped);
    }
}

impl Peer for Binary {
    fn message(&mut self, text: Option<&str>) -> Verdict {
        let parsed = text.ok_or(Malformed::NotText).and_then(Envelope::parse);
        match parsed.map(|envelope| self.seat.deliver(&envelope)) {
            Ok(Delivery::Done | Delivery::NotHolder) => {}
            Ok(Delivery::UnknownPhone) => self.drop_envelope(&"no such phone"),
            Err(malformed) => self.drop_envelope(&malformed),
        }
        Verdict::Continue
    }

    fn poll_resume(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        // A binary is never held back.
        Poll::Ready(())
    }

    fn ended(&mut self, ended: Ended, now: Instant) {
        self.seat.release(ended, now);
    }
}
