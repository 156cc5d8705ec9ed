//! What all clients of a run share.

use std::cell::{Cell, RefCell};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pyrycode_relay::clock;
use smol::LocalExecutor;

use super::scaled;
use super::wire::{Cut, Dial, Network};
use super::world::World;

/// What all clients of a run share.
pub struct Site {
    pub network: Rc<dyn Network>,
    pub executor: Rc<LocalExecutor<'static>>,
    pub grace: Duration,
    /// Somebody has found something wrong: nobody goes on.
    pub over: Cell<bool>,
    /// By when whatever somebody begins must be over, in a run that does not wait for those who are silent.
    pub ends: Cell<Option<Instant>>,
    /// The relay stands still now and then. What a daemon had sent before it fell silent may then come so late that
    /// it is an answer to a probe: a kernel that found no room tries again after 0.2, 0.4, 0.8 s.
    pub stands_still: Cell<bool>,
    /// Some `conn_id`s of all servers.
    known: RefCell<Vec<(String, String)>>,
}

impl Site {
    pub fn new(
        network: Rc<dyn Network>,
        executor: Rc<LocalExecutor<'static>>,
        grace: Duration,
    ) -> Rc<Self> {
        let (over, ends, known) = (Cell::new(false), Cell::new(None), RefCell::default());
        let stands_still = Cell::new(false);
        Rc::new(Self { network, executor, grace, over, ends, stands_still, known })
    }

    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Whether the run waits for something that takes as long as this.
    pub fn has_time_for(&self, duration: Duration) -> bool {
        self.ends.get().is_none_or(|ends| clock::now() + duration <= ends)
    }

    /// Whether somebody who falls silent is found to be silent by a probe.
    pub fn probes_in_time(&self) -> bool {
        !self.stands_still.get() && self.has_time_for(scaled(super::PROBE_TIMEOUT))
    }

    /// The time from one step of a client to its next.
    pub fn pause(&self, random: &mut fastrand::Rng) -> Duration {
        scaled(Duration::from_millis(match random.u8(..4) {
            0 => random.u64(..20),
            1..3 => random.u64(20..200),
            _ => random.u64(200..500),
        }))
    }

    /// By then the relay has given up on anybody who fell silent.
    pub fn silence(&self) -> Duration {
        scaled(super::HEARTBEAT_INTERVAL + super::HEARTBEAT_TIMEOUT + Duration::from_millis(1500))
    }

    /// The clients of a server-id have an address of their own, as they would on the internet.
    pub fn source(&self, world: u32) -> Ipv4Addr {
        let [_, _, high, low] = (world + 1).to_be_bytes();
        Ipv4Addr::new(127, 7, high, low)
    }

    pub fn dial(
        &self,
        source: Ipv4Addr,
        head: String,
        behind: Vec<u8>,
        cut: Cut,
        window: Option<usize>,
        random: &mut fastrand::Rng,
    ) -> Dial<'_> {
        let (network, executor, seed) = (&*self.network, &*self.executor, random.u64(..));
        Dial { network, source, head, behind, cut, window, executor, seed }
    }

    /// The request head of a binary.
    pub fn binary_head(&self, id: &str) -> String {
        format!(
            "GET /v1/server HTTP/1.1\r\n{UPGRADE}X-Pyrycode-Server: {id}\r\n\
             X-Pyrycode-Version: 9.9.9-test\r\nUser-Agent: torture\r\n\r\n"
        )
    }

    /// The request head of a phone.
    pub fn phone_head(&self, id: &str) -> String {
        format!(
            "GET /v1/client HTTP/1.1\r\n{UPGRADE}X-Pyrycode-Server: {id}\r\n\
             X-Pyrycode-Token: token\r\nUser-Agent: torture\r\n\r\n"
        )
    }

    /// Remembers a phone's id for the daemons of other servers.
    pub fn learn(&self, world: &World, phone: u32, random: &mut fastrand::Rng) {
        let Some(conn_id) = &world.phones[&phone].conn_id else { return };
        let mut known = self.known.borrow_mut();
        let entry = (world.id.clone(), conn_id.clone());
        if known.len() < KNOWN {
            known.push(entry);
        } else {
            known[random.usize(..KNOWN)] = entry;
        }
    }

    /// The id of a phone of another server.
    pub fn foreign_id(&self, own: &str, random: &mut fastrand::Rng) -> Option<String> {
        let known = self.known.borrow();
        let (server, conn_id) = known.get(random.usize(..known.len().max(1)))?;
        (server != own).then(|| conn_id.clone())
    }
}

const UPGRADE: &str = "Host: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const KNOWN: usize = 256;
