//! Daemons and phones that do all that may happen to a relay, and the judge of what arrives. They run against
//! a process over real sockets (`tests/torture`) and in a simulation (`tests/simulation`).

pub mod daemon;
pub mod phone;
pub mod site;
pub mod text;
pub mod vandal;
pub mod wire;
pub mod world;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use self::world::World;

/// What the relay logs, for the judges. It happened at `since` or later.
pub fn read_log(line: &str, since: Instant, worlds: &HashMap<String, Rc<RefCell<World>>>) {
    let told = || worlds.get(field(line, "server_id")?);
    match field(line, "event") {
        Some("server_claimed") => {
            if let Some(world) = told() {
                world.borrow_mut().claimed += 1;
            }
        }
        Some("server_released") => {
            if let Some(world) = told() {
                world.borrow_mut().release_logged();
            }
        }
        Some("server_reclaimed") => {
            let count = |name| field(line, name).and_then(|text| text.parse().ok());
            if let (Some(world), Some(kept), Some(closed)) =
                (told(), count("kept"), count("closed"))
            {
                world.borrow_mut().reclaim_logged(kept, closed);
            }
        }
        Some("server_expired") => {
            if let Some(world) = told() {
                world.borrow_mut().expiry_logged();
            }
        }
        Some("phone_unregistered") => {
            let reason = line.split_once(" reason=").map(|(_, reason)| reason.trim_matches('"'));
            if let (Some(world), Some(conn_id), Some(reason)) =
                (told(), field(line, "conn_id"), reason)
            {
                world.borrow_mut().departure_logged(conn_id, reason, since);
            }
        }
        _ => {}
    }
    if line.contains("panicked") || line.contains("level=error") {
        if let Some(world) = worlds.values().next() {
            world.borrow_mut().accuse(format!("the relay says {line}"));
        }
    }
}

/// A field of a log line; the values that are asked for here are never quoted.
pub fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

pub fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is not {text:?}")),
        Err(_) => default,
    }
}

/// A duration, stretched on slow machines.
pub fn scaled(duration: Duration) -> Duration {
    static SCALE: OnceLock<f64> = OnceLock::new();
    duration.mul_f64(*SCALE.get_or_init(|| setting("RELAY_TORTURE_SCALE", 1.0)))
}

/// How long anybody waits for what must happen.
pub fn patience() -> Duration {
    scaled(Duration::from_secs(30))
}

pub const GRACE: Duration = Duration::from_millis(2500);
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(1000);
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(4000);
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(3000);
pub const WRITE_TIMEOUT: Duration = Duration::from_millis(4000);
/// The bound of a phone's queue.
pub const QUEUE_BYTES: usize = 1 << 20;
/// More than a phone's queue and its sockets hold.
pub const FLOOD_BYTES: usize = 3 << 20;
