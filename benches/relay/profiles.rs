//! The list of profiles.

use std::io;

use super::bench::Bench;
use super::{crowded, evict, file, frame, hostile, idle, siege, steady, storm, surge, upgrade};

/// A kind of load.
pub struct Profile {
    pub name: &'static str,
    pub about: &'static str,
    /// Whether the floor can carry it.
    pub has_floor: bool,
    /// Whether it is too long for a quick run of everything. It runs quickly if it is named.
    pub is_long: bool,
    pub rounds: usize,
    pub run: fn(&mut Bench<'_>) -> io::Result<()>,
}

pub const PROFILES: &[Profile] = &[
    Profile {
        name: "frame",
        about: "messages of 700 bytes to and fro, one at a time and in a stream",
        has_floor: true,
        is_long: false,
        rounds: 5,
        run: frame::run,
    },
    Profile {
        name: "steady",
        about: "500 servers with two phones each: deltas and tool frames",
        has_floor: true,
        is_long: false,
        rounds: 5,
        run: steady::run,
    },
    Profile {
        name: "file",
        about: "373 messages of 80.5 KB both ways, with a sibling that reads slowly",
        has_floor: true,
        is_long: false,
        rounds: 5,
        run: file::run,
    },
    Profile {
        name: "idle",
        about: "9,000 connections that only ping",
        has_floor: false,
        is_long: false,
        rounds: 1,
        run: idle::run,
    },
    Profile {
        name: "burst",
        about: "20 messages of 4 KB to each of 200 phones within 100 ms",
        has_floor: true,
        is_long: false,
        rounds: 3,
        run: surge::burst,
    },
    Profile {
        name: "replay",
        about: "1024 messages of 600 bytes to each of 200 phones at once",
        has_floor: true,
        is_long: false,
        rounds: 3,
        run: surge::replay,
    },
    Profile {
        name: "storm",
        about: "2,000 servers and 4,000 phones come back after a restart",
        has_floor: false,
        is_long: false,
        rounds: 3,
        run: storm::run,
    },
    Profile {
        name: "hostile",
        about: "a healthy pair beside stalled readers, unknown ids, oversize messages, pings",
        has_floor: false,
        is_long: false,
        rounds: 3,
        run: hostile::run,
    },
    Profile {
        name: "crowded",
        about: "what bystanders wait beside streams, pings, empty fragments; also slowed down",
        has_floor: false,
        is_long: false,
        rounds: 3,
        run: crowded::run,
    },
    Profile {
        name: "siege",
        about: "attacks from few addresses, beside people at others; memory and its bound",
        has_floor: false,
        is_long: true,
        rounds: 1,
        run: siege::run,
    },
    Profile {
        name: "evict",
        about: "4,000 connections at the memory budget, of which 1,000 are closed for it",
        has_floor: false,
        is_long: false,
        rounds: 3,
        run: evict::run,
    },
    Profile {
        name: "upgrade",
        about: "what messages wait while 1,000 and 9,000 connections are handed over",
        has_floor: false,
        is_long: false,
        rounds: 3,
        run: upgrade::run,
    },
    #[cfg(feature = "tls")]
    Profile {
        name: "tls",
        about: "1,000 idle connections, handshakes, large messages, over TLS and without",
        has_floor: false,
        is_long: false,
        rounds: 3,
        run: super::tls::run,
    },
];

/// What the largest profile needs in the client, with some spare.
pub const DESCRIPTORS: u64 = 9_500;
