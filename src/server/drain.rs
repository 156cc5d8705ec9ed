//! The end of a run: every connection is closed, and its peer waited for.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::clock::{self, Timer};
use futures_lite::FutureExt as _;
use log::info;

use crate::admission::heads::Heads;
use crate::close::Close;
use crate::queue::outbox::Manner;
use crate::relay::Relay;

/// Closes the request heads that are still in progress after a while.
pub(super) async fn cut_heads(heads: Rc<Heads>, moment: Duration) {
    Timer::after(moment).await;
    heads.clear();
}

/// Closes every connection and waits for the peers, and for the requests that are being answered.
/// What is queued for the peers is written first for half of the time; then their close frames go
/// out ahead of it.
pub(super) async fn drain(relay: &Relay, heads: &Heads, timeout: Duration) {
    let started = clock::now();
    let outboxes = relay.registry.close_all();
    if !drained_by(relay, heads, started + timeout / 2).await {
        // Who was just being upgraded when the stop came is told now.
        for outbox in outboxes.into_iter().chain(relay.registry.close_all()) {
            outbox.close(Close::ShuttingDown, Manner::Abort);
        }
        drained_by(relay, heads, started + timeout).await;
    }
    info!(milliseconds = clock::since(started).as_millis(); "stopped");
}

async fn drained_by(relay: &Relay, heads: &Heads, deadline: Instant) -> bool {
    let drained = async {
        // Heads first: none of them is upgraded any more, but one may just have been.
        poll_fn(|cx| heads.poll_empty(cx)).await;
        poll_fn(|cx| relay.permits.poll_all_back(cx)).await;
        true
    };
    let expired = async {
        Timer::at(deadline).await;
        false
    };
    drained.or(expired).await
}
