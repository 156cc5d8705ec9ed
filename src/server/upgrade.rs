//! Hands over to another program when somebody asks for it.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::FutureExt as _;

use crate::admission::heads::Heads;
use crate::clock::Timer;
use crate::handover::{self, Listeners, Tried};
use crate::limits::UPGRADE_SETTLES;
use crate::relay::Relay;
use crate::server::Upgrades;
use crate::signals;
use crate::telemetry::events;

/// All that it takes.
pub(super) struct Upgrader {
    pub(super) relay: Rc<Relay>,
    pub(super) heads: Rc<Heads>,
    pub(super) upgrades: Upgrades,
    pub(super) listeners: Listeners,
}

impl Upgrader {
    /// Has connections accepted by `accepting`, which never ends, and hands over as often as somebody asks: it does not
    /// come back from that if it succeeds. Never returns. Cancel safe.
    pub(super) async fn run(&self, accepting: impl Future<Output = ()>) {
        let mut accepting = pin!(accepting);
        loop {
            // Whoever asks comes first: newcomers never end.
            self.upgrades.asked.asked().or(accepting.as_mut()).await;
            events::upgrade_begun(self.upgrades.program.path());
            let rehearsal = handover::rehearse(&self.relay, &self.upgrades.program);
            let accepting = async {
                accepting.as_mut().await;
                std::future::pending().await
            };
            let failure = match rehearsal.or(accepting).await {
                Ok(tried) => self.hand_over(&tried).await,
                Err(reason) => Some(reason),
            };
            // Whoever asked meanwhile asked for this one.
            self.upgrades.asked.forget();
            if let Some(reason) = failure {
                events::upgrade_failed(&reason);
            }
        }
    }

    /// Hands over to the file that was tried. Returns why that failed; `None` if a stop came first.
    async fn hand_over(&self, tried: &Tried) -> Option<String> {
        // Nobody is accepted any more; newcomers wait in the sockets.
        // What is in a table of its own and not in that of those who can be handed over is being answered, or shakes
        // hands.
        handover::settle(UPGRADE_SETTLES, || {
            self.heads.count() + self.relay.permits.taken() == self.relay.links.count()
        })
        .await;
        if let Err(error) = signals::hold() {
            return Some(format!("cannot hold signals back: {error}"));
        }
        // A signal that came just before is handled by its task first.
        Timer::after(SIGNALS_SETTLE).await;
        let failure = if self.relay.stop.is_raised() {
            None
        } else {
            let Upgrades { program, .. } = &self.upgrades;
            Some(handover::hand_over(&self.relay, program, tried, &self.listeners))
        };
        let released = signals::release();
        failure.or_else(|| released.err().map(|error| format!("cannot release signals: {error}")))
    }
}

/// How long signals that were caught may take to be handled.
const SIGNALS_SETTLE: Duration = Duration::from_millis(2);
