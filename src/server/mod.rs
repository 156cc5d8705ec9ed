//! The relay as one running thing: one task per connection, all on one executor of one thread.

pub(crate) mod accept;
pub(crate) mod drain;
pub mod systemd;
pub(crate) mod upgrade;

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::clock::{self, Timer};
use async_io::Async;
use futures_lite::FutureExt as _;
use log::info;
use smol::LocalExecutor;

use crate::admission::heads::Heads;
use crate::config::Config;
use crate::handover::{Listeners, Program, Socket, Taken};
use crate::limits::{CERTIFICATE_STATUS, HEADS_AT_STOP, MAX_HEADS};
use crate::monitor;
use crate::net::turns;
use crate::registry::Registry;
use crate::relay::Relay;
pub use crate::server::accept::Listening;
use crate::server::accept::{Backoff, Listener, admit, poll_accept};
use crate::server::drain::{cut_heads, drain};
use crate::server::systemd::Manager;
use crate::server::upgrade::Upgrader;
use crate::signals::{Request, Stop};
use crate::tls::Secure;

/// Runs a relay on this thread until `stop` is raised and the connections are drained.
///
/// Errors of single connections and of single accepts never end it.
pub fn run(listeners: Vec<std::net::TcpListener>, config: Config, stop: &Stop) -> io::Result<()> {
    let sockets = Sockets { relay: listeners, ..Sockets::default() };
    run_on(&LocalExecutor::new(), sockets, config, stop, &Request::new())
}

/// The listening sockets of a relay.
#[derive(Default, Debug)]
pub struct Sockets {
    /// For binaries and phones.
    pub relay: Vec<std::net::TcpListener>,
    /// For the same over TLS.
    pub tls: Vec<std::net::TcpListener>,
    /// For the metrics and the status page; none if they are off.
    pub metrics: Vec<std::net::TcpListener>,
}

/// The same as [`run`] on an executor of the caller's, with metrics if there is a socket for
/// them; files are read anew when `reload` is asked for.
pub fn run_on(
    executor: &LocalExecutor<'static>,
    sockets: Sockets,
    config: Config,
    stop: &Stop,
    reload: &Request,
) -> io::Result<()> {
    run_with(executor, sockets, config, stop, reload, None, None)
}

/// How a relay hands over to another program.
#[derive(Debug)]
pub struct Upgrades {
    /// When it is asked for.
    pub asked: Request,
    /// To which program.
    pub program: Program,
}

/// The same as [`run_on`] for a relay that can hand over, and may go on with what was handed over to it.
pub fn run_with(
    executor: &LocalExecutor<'static>,
    sockets: Sockets,
    config: Config,
    stop: &Stop,
    reload: &Request,
    upgrades: Option<Upgrades>,
    mut taken: Option<Taken>,
) -> io::Result<()> {
    let plain = sockets.relay.into_iter().map(|socket| Listener::new(socket, false));
    let tls = sockets.tls.into_iter().map(|socket| Listener::new(socket, true));
    let secure = config.tls.as_ref().map(Secure::new).transpose().map_err(io::Error::other)?;
    let relay = match taken.as_mut().and_then(Taken::take_relay) {
        Some(frozen) => Relay::thaw(config, stop.clone(), secure, frozen, clock::now()),
        None => Relay::with_tls(config, stop.clone(), secure),
    };
    let listeners = plain.chain(tls).collect::<io::Result<Vec<_>>>()?;
    let metrics = sockets.metrics.into_iter().map(Async::new).map(|made| made.map(Arc::new));
    let metrics = metrics.collect::<io::Result<Vec<_>>>()?;
    let heads = Heads::new(MAX_HEADS);
    if let Some(taken) = taken {
        taken.thaw(&relay, &heads, executor);
    }
    let upgrade = upgrades.map(|upgrades| {
        let passed = metrics.iter().map(|socket| {
            let socket: Socket = Arc::<Async<std::net::TcpListener>>::clone(socket);
            socket
        });
        (upgrades, passed.collect())
    });
    let working = turns::run(executor, serve(executor, listeners, &relay, heads, reload, upgrade));
    if metrics.is_empty() {
        smol::block_on(working);
    } else {
        // It goes on until everything else has ended.
        let _monitor = executor.spawn(monitor::run(Rc::clone(&relay), metrics));
        smol::block_on(monitor::timed(&relay, working));
    }
    Ok(())
}

/// Serves what comes from `listeners` until the stop is raised and the connections are drained. Whoever
/// polls this is the event loop.
pub async fn work<L: Listening>(
    executor: &LocalExecutor<'static>,
    listeners: Vec<L>,
    relay: &Rc<Relay>,
    reload: &Request,
) {
    let heads = Heads::new(MAX_HEADS);
    turns::run(executor, serve(executor, listeners, relay, heads, reload, None)).await;
}

async fn serve<L: Listening>(
    executor: &LocalExecutor<'static>,
    mut listeners: Vec<L>,
    relay: &Rc<Relay>,
    heads: Rc<Heads>,
    reload: &Request,
    upgrades: Option<(Upgrades, Vec<Socket>)>,
) {
    let drain_timeout = relay.config.drain_timeout;
    let reaper = executor.spawn(reap(Rc::clone(&relay.registry)));
    let registry = Rc::clone(&relay.registry);
    let keeper = executor.spawn(async move { registry.keep_budget().await });
    let manager = Manager::from_environment().map(Rc::new);
    relay.announce();
    let reloader = executor.spawn(reread(reload.clone(), Rc::clone(relay), manager.clone()));
    let watcher = relay.secure.is_some().then(|| executor.spawn(maintain(Rc::clone(relay))));
    let informant =
        manager.clone().map(|manager| executor.spawn(inform(manager, Rc::clone(relay))));
    let upgrader = upgrades.map(|(upgrades, metrics)| {
        let sockets = |is_tls| {
            let of_kind = listeners.iter().filter(move |listener| listener.is_tls() == is_tls);
            of_kind.filter_map(Listening::socket).collect()
        };
        let listeners = Listeners { relay: sockets(false), tls: sockets(true), metrics };
        Upgrader { relay: Rc::clone(relay), heads: Rc::clone(&heads), upgrades, listeners }
    });

    {
        let accepting = async {
            let mut backoff = Backoff::default();
            let mut turn = 0;
            loop {
                match poll_fn(|cx| poll_accept(cx, &mut listeners, &mut turn)).await {
                    Ok(accepted) => {
                        backoff.recover();
                        for accepted in accepted {
                            admit::<L>(executor, relay, &heads, accepted);
                        }
                        futures_lite::future::yield_now().await;
                    }
                    Err(error) => {
                        relay.metrics.accept_errors.bump();
                        backoff.pause(&error).await;
                    }
                }
            }
        };
        let upgrading = async {
            match &upgrader {
                Some(upgrader) => upgrader.run(accepting).await,
                None => accepting.await,
            }
        };
        upgrading.or(relay.stop.raised()).await;
    }

    info!("stopping");
    if let Some(manager) = manager {
        manager.stopping();
    }
    drop(upgrader);
    drop(listeners);
    let cutter = executor.spawn(cut_heads(Rc::clone(&heads), HEADS_AT_STOP.min(drain_timeout / 2)));
    drain(relay, &heads, drain_timeout).await;
    heads.clear();
    drop(cutter);
    drop((reaper, keeper, reloader, watcher, informant));
}

/// Reads files anew as often as somebody asks for it.
async fn reread(reload: Request, relay: Rc<Relay>, manager: Option<Rc<Manager>>) {
    loop {
        reload.asked().await;
        if let Some(manager) = &manager {
            manager.reloading();
        }
        relay.reload();
        if let Some(manager) = &manager {
            manager.reloaded();
        }
    }
}

/// Keeps the certificate up to date, if TLS is spoken.
async fn maintain(relay: Rc<Relay>) {
    if let Some(secure) = &relay.secure {
        secure.maintain().await;
    }
}

/// Keeps systemd informed from the event loop itself: a loop that hangs falls silent.
async fn inform(manager: Rc<Manager>, relay: Rc<Relay>) {
    let (mut seen, mut known) = (0, 0);
    let changed = async || {
        let turnover = poll_fn(|cx| relay.permits.poll_turnover(cx, &mut seen));
        let certificate = poll_fn(|cx| relay.poll_certificate(cx, &mut known));
        let days = async {
            match relay.certificate() {
                Some(_) => drop(Timer::after(CERTIFICATE_STATUS).await),
                None => std::future::pending().await,
            }
        };
        turnover.or(certificate).or(days).await;
    };
    let status = || {
        let counts = relay.registry.counts();
        let peers = format!("binaries: {}, phones: {}", counts.binaries, counts.phones);
        match relay.certificate() {
            Some(certificate) => format!("{peers}, {}", certificate.summary(clock::wall())),
            None => peers,
        }
    };
    manager.inform(status, changed).await;
}

/// Expires slots when their grace window has passed: one timer for all of them.
async fn reap(registry: Rc<Registry>) {
    let mut soonest: Option<Instant> = None;
    loop {
        let changed = poll_fn(|cx| registry.poll_expiry(cx, soonest));
        soonest = match soonest {
            None => changed.await,
            Some(deadline) => {
                let expiry = async {
                    Timer::at(deadline).await;
                    registry.expire(clock::now());
                    None
                };
                changed.or(expiry).await
            }
        };
    }
}
