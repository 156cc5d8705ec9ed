//! What all connections of one relay share.

use std::rc::Rc;
use std::time::Instant;

use crate::attempts::Attempts;
use crate::budget::Ledger;
use crate::config::Config;
use crate::heartbeat::Ticks;
use crate::permits::Permits;
use crate::registry::Registry;
use crate::scratch::Scratch;
use crate::shutdown::Stop;

/// The shared parts; each guards its own state.
#[derive(Debug)]
pub struct Relay {
    /// What the relay was told.
    pub config: Rc<Config>,
    /// Who is connected to whom.
    pub registry: Rc<Registry>,
    /// What is held for all peers.
    pub ledger: Rc<Ledger>,
    /// The buffer that all reads and writes go through.
    pub scratch: Rc<Scratch>,
    /// Permits for upgraded connections.
    pub permits: Rc<Permits>,
    /// Upgrade attempts by source, unless they are not limited.
    pub attempts: Option<Attempts>,
    /// When heartbeats ring.
    pub ticks: Ticks,
    /// When the relay began to listen.
    pub started: Instant,
    /// Raised when the relay is to stop.
    pub stop: Stop,
}

impl Relay {
    /// A relay without connections.
    pub fn new(config: Config, stop: Stop) -> Rc<Self> {
        let ledger = Ledger::new(config.memory_budget);
        let started = Instant::now();
        Rc::new(Self {
            registry: Registry::new(&config, &ledger),
            permits: Permits::new(config.max_connections),
            attempts: config.rate.map(Attempts::new),
            ticks: Ticks::new(config.heartbeat_interval, started),
            config: Rc::new(config),
            ledger,
            scratch: Rc::default(),
            started,
            stop,
        })
    }
}
