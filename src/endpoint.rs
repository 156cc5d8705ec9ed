//! One connection from its first byte: reads the head, answers it, and hands an upgraded socket to
//! its leg.

pub mod client;
pub mod server;

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use log::debug;

use self::client::Caller;
use self::server::Claimant;
use crate::gate::{Admission, Refusal};
use crate::head::{self, Head};
use crate::heads::Entry;
use crate::health;
use crate::relay::Relay;
use crate::transport::Transport;

/// Serves one connection to its end.
pub async fn serve<S: Transport>(relay: Rc<Relay>, mut io: S, remote: IpAddr, entry: Entry) {
    let deadline = Instant::now() + relay.config.header_timeout;
    let attempt = || match &relay.attempts {
        Some(attempts) => attempts.admit(remote, Instant::now()),
        None => Ok(()),
    };
    let read = head::read(&mut io, deadline, &relay.scratch, &relay.ledger, attempt).await;
    let admission = match read {
        Head::Admitted(admission, leftover) => Ok((admission, leftover)),
        Head::Refused(refusal) => Err(refusal),
        Head::Gone => return,
    };
    // The legs are boxed: a head in progress should not weigh as much as a whole connection.
    let refused = match admission {
        Ok((Admission::Health { head_only }, _)) => {
            let page =
                health::response(relay.registry.counts(), relay.started.elapsed(), head_only);
            head::answer(&mut io, &page, relay.config.write_timeout, &relay.scratch).await;
            return;
        }
        Ok((Admission::Binary { server, version, accept }, leftover)) => {
            let claimant = Claimant { server, version, accept, leftover, remote };
            Box::pin(server::serve(&relay, io, claimant, entry)).await
        }
        Ok((Admission::Phone { server, device_name, accept }, leftover)) => {
            let caller = Caller { server, device_name, accept, leftover, remote };
            Box::pin(client::serve(&relay, io, caller, entry)).await
        }
        Err(refusal) => Some((refusal, io, entry)),
    };
    if let Some((refusal, io, entry)) = refused {
        refuse(&relay, io, refusal, remote).await;
        drop(entry);
    }
}

async fn refuse<S: Transport>(relay: &Relay, mut io: S, refusal: Refusal, remote: IpAddr) {
    debug!(remote:% = remote, reason:% = refusal; "refused");
    let response = refusal.response();
    head::answer(&mut io, &response, relay.config.write_timeout, &relay.scratch).await;
}
