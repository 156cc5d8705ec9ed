//! What all connections of one relay share.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use crate::attempts::Attempts;
use crate::budget::Ledger;
use crate::config::Config;
use crate::history::{History, Sample};
use crate::metrics::{Direction, Failure, Label as _, Metrics, Refused};
use crate::permits::Permits;
use crate::process::wall_clock;
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
    /// What has happened, in numbers.
    pub metrics: Rc<Metrics>,
    /// What happened lately; kept up where the metrics are served.
    pub history: RefCell<History<REFUSALS>>,
    /// When the relay began to listen.
    pub started: Instant,
    /// The same by the wall clock, in seconds since 1970.
    pub started_at: f64,
    /// Raised when the relay is to stop.
    pub stop: Stop,
}

impl Relay {
    /// A relay without connections.
    pub fn new(config: Config, stop: Stop) -> Rc<Self> {
        let ledger = Ledger::new(config.memory_budget);
        let metrics = Rc::default();
        let started = Instant::now();
        Rc::new(Self {
            registry: Registry::new(&config, &ledger, &metrics),
            permits: Permits::new(config.max_connections),
            attempts: config.rate.map(Attempts::new),
            config: Rc::new(config),
            ledger,
            scratch: Rc::default(),
            metrics,
            history: RefCell::new(History::new(started)),
            started,
            started_at: wall_clock(),
            stop,
        })
    }

    /// Brings the history up to `now`.
    pub fn record(&self, now: Instant) {
        let metrics = &self.metrics;
        let counts = self.registry.counts();
        let sample = Sample {
            messages: Direction::ALL.iter().map(|way| metrics.frames.count(*way)).sum(),
            refusals: std::array::from_fn(|kind| match Refused::ALL.get(kind) {
                Some(refused) => metrics.refused.count(*refused),
                None => metrics.failures.count(LATE_REFUSALS[kind - Refused::COUNT]),
            }),
            binaries: counts.binaries,
            phones: counts.phones,
            accept_errors: metrics.accept_errors.count(),
            worst_turn: metrics.lag.take_worst(),
        };
        self.history.borrow_mut().record(now, sample);
    }
}

/// The kinds of refusals that the history has: before the upgrade, then behind it.
pub fn refusal_kinds() -> impl Iterator<Item = &'static str> {
    let late = LATE_REFUSALS.iter().map(|failure| failure.as_str());
    Refused::ALL.iter().map(|refused| refused.as_str()).chain(late)
}

/// How many kinds that are.
pub const REFUSALS: usize = Refused::COUNT + LATE_REFUSALS.len();

/// Peers that are told behind the upgrade that they cannot register.
const LATE_REFUSALS: [Failure; 3] = [Failure::NoServer, Failure::ServerInUse, Failure::PhonesAtCap];
