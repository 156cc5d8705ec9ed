//! Heartbeat, message and write timeouts with the times that the program has by itself.

use crate::actors::wire::{CLOSE, PING};
use crate::rig::{Rig, Ws, millis, secs, simulate};
use pyrycode_relay::clock;

/// The two legs. What holds for one must hold for the other.
#[derive(Clone, Copy, Debug)]
enum Leg {
    Binary,
    Phone,
}

const LEGS: [Leg; 2] = [Leg::Binary, Leg::Phone];

impl Leg {
    /// A peer on this leg, and what has to stay open for it.
    async fn open(self, rig: &Rig) -> (Ws, Option<Ws>) {
        match self {
            Self::Binary => (rig.binary("peer").await, None),
            Self::Phone => {
                let binary = rig.binary("peer").await;
                (rig.registered_phone("peer").await.0, Some(binary))
            }
        }
    }
}

#[test]
fn a_silent_peer_is_pinged_once_and_closed() {
    for leg in LEGS {
        simulate(&[], async |rig| {
            let quiet_since = clock::now();
            let (mut silent, _host) = leg.open(rig).await;
            silent.answers_pings = false;
            assert_eq!(silent.read_frame().await.opcode, PING, "{leg:?}");
            // 30 s, a tenth more or less, at the next common tick.
            let pinged = clock::since(quiet_since);
            assert!((secs(27)..millis(34_500)).contains(&pinged), "{leg:?} after {pinged:?}");
            let close = silent.read_frame().await;
            assert_eq!(
                (close.opcode, close.close().0),
                (CLOSE, 1011),
                "{leg:?}: one ping a silence"
            );
            let closed = clock::since(quiet_since) - pinged;
            assert!((secs(30)..millis(31_500)).contains(&closed), "{leg:?} after {closed:?}");
            silent.expect_end().await;
        });
    }
}
