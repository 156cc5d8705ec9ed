//! What all connections of one relay share.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::admission::allow::AllowFile;
use crate::admission::attempts::{self, Attempts};
use crate::admission::permits::Permits;
use crate::clock;
use crate::config::Config;
use crate::ids::ServerId;
use crate::limits::HISTORY_BYTES;
use crate::links::Links;
use crate::net::scratch::Scratch;
use crate::queue::budget::Ledger;
use crate::registry::Registry;
use crate::signals::Stop;
use crate::telemetry::certificate::Condition;
use crate::telemetry::events;
use crate::telemetry::history::{self, History, Sample};
use crate::telemetry::metrics::{self, Direction, Failure, Label as _, Metrics, Refused};
use crate::telemetry::process::{resident, wall_clock};
use crate::tls::Secure;
use crate::websocket::heartbeat::Ticks;
use crate::websocket::wire::Codecs;

/// What connections share, as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenRelay {
    /// How long the relay has been listening.
    up: Duration,
    /// Since when, by the wall clock, in seconds since 1970.
    started_at: f64,
    /// When this was told, since 1970.
    pub(crate) frozen_at: Duration,
    hinted: bool,
    metrics: metrics::Frozen,
    history: history::Frozen,
    /// If attempts are limited.
    attempts: Option<attempts::Frozen>,
}

/// The shared parts; each guards its own state.
#[derive(Debug)]
pub struct Relay {
    /// The options.
    pub config: Rc<Config>,
    /// Who is connected to whom.
    pub registry: Rc<Registry>,
    /// The bytes held for all peers.
    pub ledger: Rc<Ledger>,
    /// The buffer that all reads and writes go through.
    pub(crate) scratch: Rc<Scratch>,
    /// The codecs that connections decode with.
    pub(crate) codecs: Rc<Codecs>,
    /// The upgraded connections themselves.
    pub(crate) links: Rc<Links>,
    /// Permits for upgraded connections.
    pub permits: Rc<Permits>,
    /// Upgrade attempts by source; `None` if they are not limited.
    pub(crate) attempts: Option<Attempts>,
    /// The steps at which heartbeats fire.
    pub ticks: Ticks,
    /// The server-ids that may be claimed; `None` if all may.
    allowed: Option<RefCell<AllowFile>>,
    /// Whether the log has already said that loopback reached a limit.
    hinted: Cell<bool>,
    /// What has happened, in numbers.
    pub(crate) metrics: Rc<Metrics>,
    /// What happened lately; recorded only where the metrics are served.
    pub(crate) history: RefCell<History<REFUSALS>>,
    /// When the relay began to listen.
    pub(crate) started: Instant,
    /// `started` by the wall clock, in seconds since 1970.
    pub(crate) started_at: f64,
    /// TLS, if it is spoken.
    pub(crate) secure: Option<Secure>,
    /// Raised when the relay must stop.
    pub(crate) stop: Stop,
}

impl Relay {
    /// A relay without connections.
    pub fn new(config: Config, stop: Stop) -> Rc<Self> {
        Rc::new(Self::build(config, stop))
    }

    /// The same, with TLS.
    pub(crate) fn with_tls(config: Config, stop: Stop, secure: Option<Secure>) -> Rc<Self> {
        Rc::new(Self { secure, ..Self::build(config, stop) })
    }

    fn build(mut config: Config, stop: Stop) -> Self {
        let ledger = Ledger::watching(config.memory_budget, resident);
        let metrics = Rc::default();
        let started = clock::now();
        Self {
            registry: Registry::new(&config, &ledger, &metrics),
            permits: Permits::new(config.max_connections, config.max_connections_per_ip),
            attempts: config.rate.map(Attempts::new),
            ticks: Ticks::new(config.heartbeat_interval, started),
            allowed: config.allow_server.take().map(RefCell::new),
            hinted: Cell::new(false),
            config: Rc::new(config),
            ledger,
            scratch: Rc::default(),
            metrics,
            history: RefCell::new(History::new(started)),
            started_at: wall_clock(),
            codecs: Rc::default(),
            links: Rc::default(),
            started,
            secure: None,
            stop,
        }
    }

    /// What connections share, as plain data.
    pub(crate) fn freeze(&self, now: Instant) -> FrozenRelay {
        FrozenRelay {
            up: now.saturating_duration_since(self.started),
            started_at: self.started_at,
            frozen_at: clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default(),
            hinted: self.hinted.get(),
            metrics: self.metrics.freeze(),
            history: self.history.borrow().freeze(now, refusal_kinds()),
            attempts: self.attempts.as_ref().map(|attempts| attempts.freeze(now)),
        }
    }

    /// A relay that goes on where another program has stopped.
    pub(crate) fn thaw(
        config: Config,
        stop: Stop,
        secure: Option<Secure>,
        frozen: FrozenRelay,
        now: Instant,
    ) -> Rc<Self> {
        let rate = config.rate;
        let built = Self::build(config, stop);
        let attempts = match (rate, frozen.attempts) {
            (Some(rate), Some(attempts)) => Some(Attempts::thaw(rate, attempts, now)),
            _ => built.attempts,
        };
        let relay = Self {
            attempts,
            secure,
            started: clock::ago(now, frozen.up),
            started_at: frozen.started_at,
            ..built
        };
        relay.hinted.set(frozen.hinted);
        relay.metrics.thaw(&frozen.metrics);
        relay.history.replace(History::thaw(frozen.history, now, refusal_kinds()));
        Rc::new(relay)
    }

    /// Records what happened up to `now` in the history.
    pub(crate) fn record(&self, now: Instant) {
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

    /// Counts an invalid PROXY header or forwarding field from a trusted proxy.
    pub(crate) fn note_proxy_fault(&self, proxy: IpAddr) {
        self.metrics.proxy_faults.bump();
        events::proxy_fault(proxy, self.metrics.proxy_faults.count());
    }

    /// Called when `address` reaches a limit per address. If it is loopback, the log says once which
    /// option is probably missing.
    pub(crate) fn note_limited(&self, address: IpAddr) {
        if address.is_loopback() && !self.hinted.replace(true) {
            events::loopback_limited(address);
        }
    }

    /// How the certificate is, if TLS is spoken.
    pub fn certificate(&self) -> Option<Condition> {
        self.secure.as_ref().map(Secure::condition)
    }

    /// Waits until it is another than it was when this was last ready with `seen`; for one waiter.
    pub(crate) fn poll_certificate(&self, cx: &mut Context<'_>, seen: &mut u64) -> Poll<()> {
        self.secure.as_ref().map_or(Poll::Pending, |secure| secure.poll_changed(cx, seen))
    }

    /// Whether `server` may be claimed.
    pub(crate) fn allows(&self, server: &ServerId) -> bool {
        self.allowed.as_ref().is_none_or(|file| file.borrow().list().has(server))
    }

    /// Logs which allow-list is in force, if there is one.
    pub(crate) fn announce(&self) {
        if let Some(file) = &self.allowed {
            let file = file.borrow();
            events::allow_list_read(file.path(), file.list().ids(), 0);
        }
    }

    /// Reads files again: the certificate, and the allow-list. What has a mistake in it changes
    /// nothing.
    pub(crate) fn reload(&self) {
        if let Some(secure) = &self.secure {
            secure.reload();
        }
        self.reload_allowed();
    }

    /// Closes the binaries that the allow-list does not name; it may be another one than they came by.
    pub(crate) fn enforce_allowed(&self) -> usize {
        self.allowed.as_ref().map_or(0, |file| self.registry.revoke(file.borrow().list()))
    }

    /// Reads the allow-list again, and closes the binaries that it no longer names.
    fn reload_allowed(&self) {
        let Some(file) = &self.allowed else { return };
        let read = file.borrow_mut().reread();
        let revoked = if read.is_ok() { self.enforce_allowed() } else { 0 };
        let file = file.borrow();
        match read {
            Ok(()) => {
                events::allow_list_read(file.path(), file.list().ids(), revoked);
            }
            Err(broken) => events::allow_list_kept(file.path(), &broken),
        }
    }
}

/// The kinds of refusals in the history: first those before the upgrade, then those after it.
pub(crate) fn refusal_kinds() -> impl Iterator<Item = &'static str> {
    let late = LATE_REFUSALS.iter().map(|failure| failure.as_str());
    Refused::ALL.iter().map(|refused| refused.as_str()).chain(late)
}

/// The number of [`refusal_kinds`].
pub(crate) const REFUSALS: usize = Refused::COUNT + LATE_REFUSALS.len();

/// Refusals after the upgrade, by a close frame.
const LATE_REFUSALS: [Failure; 3] = [Failure::NoServer, Failure::ServerInUse, Failure::PhonesAtCap];

const _: () = assert!(size_of::<History<REFUSALS>>() <= HISTORY_BYTES);
