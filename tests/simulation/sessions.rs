//! Sessions over connections that break, by virtual time: see `tests/actors/session.rs`.
//!
//! More trials than the ordinary run has: `RELAY_SESSION_TRIALS=2000 RELAY_SESSION_SEED=7`.

#[path = "../actors/session.rs"]
mod session;

use std::io;
use std::time::{Duration, Instant};

use fastrand::Rng;
use relay_test_kit::frame::{Received, encode};

use self::session::{Connection, Cut, DELAY, Place, try_one};
use crate::actors::setting;
use crate::network::{Fault, Path};
use crate::rig::{Rig, Ws, millis, simulate_over, sleep};

#[test]
fn resets_break_no_session() {
    try_all(Cut::Reset);
}

#[test]
fn ends_of_the_stream_break_no_session() {
    try_all(Cut::Fin);
}

#[test]
fn orderly_closes_break_no_session_and_quiet_phones_stay() {
    try_all(Cut::CloseFrame);
}

#[test]
fn proxies_that_die_break_no_session() {
    try_all(Cut::ProxyDies);
}

#[test]
fn silence_breaks_no_session() {
    try_all(Cut::Silence);
}

#[test]
fn a_daemon_that_is_replaced_leaves_no_phone_deaf() {
    try_all(Cut::Replaced);
}

/// Many trials, one after the other.
fn try_all(cut: Cut) {
    let trials: u64 = setting("RELAY_SESSION_TRIALS", 20);
    let seed = setting("RELAY_SESSION_SEED", 1);
    let path = Path {
        delay: DELAY,
        jitter: Duration::ZERO,
        bandwidth: u64::MAX,
        segment: usize::MAX,
        buffers: [64 * 1024; 2],
    };
    let options =
        ["--heartbeat-interval", "1s", "--heartbeat-timeout", "1s", "--probe-timeout", "1s"];
    for trial in seed..seed + trials {
        simulate_over(path, trial, &options, async |rig| {
            let faults = try_one(rig, cut, trial).await;
            assert_eq!(faults, [""; 0], "{cut:?} with RELAY_SESSION_SEED={trial}");
        });
    }
}

impl Place for Rig {
    type Connection = Ws;
    /// Which connection of the network it is.
    type Path = u64;

    async fn claim(&self) -> (Ws, u64) {
        loop {
            match self.upgrade(self.site.binary_head("session"), None).await {
                Ok(ws) => return (ws, self.network.latest()),
                Err(_) => sleep(millis(200)).await,
            }
        }
    }

    async fn dial(&self) -> Option<Ws> {
        self.upgrade(self.site.phone_head("session"), None).await.ok()
    }

    fn cut(&self, path: &mut u64, cut: Cut, rng: &mut Rng) {
        let by_reset = match cut {
            Cut::Reset => true,
            Cut::Fin | Cut::Replaced => false,
            Cut::ProxyDies => rng.bool(),
            Cut::Silence => return self.network.set_fault(*path, Some(Fault::Silent)),
            Cut::CloseFrame => unreachable!("the daemon says it"),
        };
        self.network.cut(*path, by_reset);
    }
}

impl Connection for Ws {
    async fn next_by(&mut self, due: Instant) -> io::Result<Option<Received>> {
        self.try_read_by(due).await
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        self.try_send_raw(&encode(true, opcode, payload)).await
    }
}
