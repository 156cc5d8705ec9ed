//! Accepts connections and runs them: one task each, all on one executor of one thread.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use async_io::{Async, Timer};
use futures_lite::FutureExt as _;
use log::{info, warn};
use smol::LocalExecutor;

use crate::admission::heads::Heads;
use crate::close::Close;
use crate::config::Config;
#[cfg(feature = "tls")]
use crate::config::{CertificateSource as tls, TlsSettings};
use crate::connection;
use crate::limits::{
    ACCEPT_BACKOFF_MAX, ACCEPT_BACKOFF_MIN, ACCEPT_BATCH, CERTIFICATE_STATUS, HEADS_AT_STOP,
    MAX_HEADS,
};
use crate::monitor;
use crate::net::transport::Tcp;
use crate::origin::Origin;
use crate::queue::outbox::Manner;
use crate::registry::Registry;
use crate::relay::Relay;
use crate::server::systemd::Manager;
use crate::signals::{Reload, Stop};
#[cfg(feature = "tls")]
use crate::tls::{Secure, acme, cache::Cache, files::Files};

/// Runs a relay on this thread until `stop` is raised and the connections are drained.
///
/// Errors of single connections and of single accepts never end it.
pub fn run(listeners: Vec<std::net::TcpListener>, config: Config, stop: &Stop) -> io::Result<()> {
    let sockets = Sockets { relay: listeners, ..Sockets::default() };
    run_on(&LocalExecutor::new(), sockets, config, stop, &Reload::new())
}

/// The listening sockets of a relay.
#[derive(Default, Debug)]
pub struct Sockets {
    /// For binaries and phones.
    pub relay: Vec<std::net::TcpListener>,
    /// For the same over TLS.
    #[cfg(feature = "tls")]
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
    reload: &Reload,
) -> io::Result<()> {
    let plain = sockets.relay.into_iter().map(|socket| Listener::new(socket, false));
    #[cfg(not(feature = "tls"))]
    let (listeners, relay) = (plain, Relay::new(config, stop.clone()));
    #[cfg(feature = "tls")]
    let listeners = plain.chain(sockets.tls.into_iter().map(|socket| Listener::new(socket, true)));
    #[cfg(feature = "tls")]
    let relay = {
        let secure = config.tls.as_ref().map(secure).transpose().map_err(io::Error::other)?;
        Relay::with_tls(config, stop.clone(), secure)
    };
    let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
    let working = executor.run(serve(executor, listeners, &relay, reload));
    if sockets.metrics.is_empty() {
        smol::block_on(working);
    } else {
        let monitored: Vec<_> =
            sockets.metrics.into_iter().map(Async::new).collect::<Result<_, _>>()?;
        // It goes on until everything else has ended.
        let _monitor = executor.spawn(monitor::run(Rc::clone(&relay), monitored));
        smol::block_on(monitor::timed(&relay, working));
    }
    Ok(())
}

/// What TLS needs, by what the options say. The error is a sentence for the operator.
#[cfg(feature = "tls")]
fn secure(settings: &TlsSettings) -> Result<Rc<Secure>, String> {
    let domains = settings.domains.clone();
    match &settings.source {
        tls::Files { chain, key } => {
            Secure::from_files(Files::new(chain.clone(), key.clone()), domains)
        }
        tls::Acme { directory, contacts, cache } => Secure::by_acme(acme::Settings {
            domains,
            contacts: contacts.clone(),
            directory: directory.clone(),
            cache: Cache::open(cache)?,
        }),
    }
}

/// A listening socket.
struct Listener {
    socket: Async<std::net::TcpListener>,
    is_tls: bool,
}

impl Listener {
    fn new(socket: std::net::TcpListener, is_tls: bool) -> io::Result<Self> {
        Ok(Self { socket: Async::new(socket)?, is_tls })
    }
}

/// A connection that was accepted.
struct Accepted {
    stream: std::net::TcpStream,
    remote: IpAddr,
    is_tls: bool,
}

/// Serves until the stop is raised and the connections are drained.
async fn serve(
    executor: &LocalExecutor<'static>,
    listeners: Vec<Listener>,
    relay: &Rc<Relay>,
    reload: &Reload,
) {
    let drain_timeout = relay.config.drain_timeout;
    let heads = Heads::new(MAX_HEADS);
    let reaper = executor.spawn(reap(Rc::clone(&relay.registry)));
    let manager = Manager::from_environment().map(Rc::new);
    relay.announce();
    let reloader = executor.spawn(reread(reload.clone(), Rc::clone(relay), manager.clone()));
    #[cfg(feature = "tls")]
    let watcher =
        relay.secure.clone().map(|secure| executor.spawn(async move { secure.maintain().await }));
    let informant =
        manager.clone().map(|manager| executor.spawn(inform(manager, Rc::clone(relay))));

    let accepting = async {
        let mut backoff = Backoff::default();
        let mut turn = 0;
        loop {
            match poll_fn(|cx| poll_accept(cx, &listeners, &mut turn)).await {
                Ok(accepted) => {
                    backoff.recover();
                    for accepted in accepted {
                        admit(executor, relay, &heads, accepted);
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
    accepting.or(relay.stop.raised()).await;

    info!("stopping");
    if let Some(manager) = manager {
        manager.stopping();
    }
    drop(listeners);
    let cutter = executor.spawn(cut_heads(Rc::clone(&heads), HEADS_AT_STOP.min(drain_timeout / 2)));
    drain(relay, &heads, drain_timeout).await;
    heads.clear();
    drop(cutter);
    drop((reaper, reloader, informant));
    #[cfg(feature = "tls")]
    drop(watcher);
}

/// Reads files anew as often as somebody asks for it.
async fn reread(reload: Reload, relay: Rc<Relay>, manager: Option<Rc<Manager>>) {
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
            Some(certificate) => format!("{peers}, {}", certificate.summary(SystemTime::now())),
            None => peers,
        }
    };
    manager.inform(status, changed).await;
}

fn admit(
    executor: &LocalExecutor<'static>,
    relay: &Rc<Relay>,
    heads: &Rc<Heads>,
    Accepted { stream, remote, is_tls }: Accepted,
) {
    // A socket that cannot be set up is one that has ended already.
    let Ok(io) = Tcp::prepare(stream) else { return };
    // Whose a connection by a trusted proxy is turns out later.
    let source = (!relay.config.proxies.trusts(remote)).then(|| Origin::of(remote));
    let room = source.map_or(usize::MAX, |source| relay.permits.room(source));
    let entry = heads.enter(source, room);
    let serial = entry.serial();
    let relay = Rc::clone(relay);
    #[cfg(feature = "tls")]
    if let (true, Some(secure)) = (is_tls, relay.secure.clone()) {
        let task = executor.spawn(connection::serve_tls(relay, secure, io, remote, entry));
        return heads.adopt(serial, task);
    }
    #[cfg(not(feature = "tls"))]
    let _ = is_tls;
    let task = executor.spawn(connection::serve(relay, io, remote, entry));
    heads.adopt(serial, task);
}

/// Accepts what is there, up to a batch, from one listener after the other. Each batch begins with
/// another one, counted by `turn`, so that none is kept waiting by a flood on one before it.
///
/// Readiness is asked for first: this is polled at every turn of the event loop, and an accept in
/// vain would cost a system call each time.
fn poll_accept(
    cx: &mut Context<'_>,
    listeners: &[Listener],
    turn: &mut usize,
) -> Poll<io::Result<Vec<Accepted>>> {
    let (ahead, first) = listeners.split_at(*turn % listeners.len().max(1));
    let accepted = poll_each(cx, first.iter().chain(ahead));
    if accepted.is_ready() {
        *turn = turn.wrapping_add(1);
    }
    accepted
}

fn poll_each<'a>(
    cx: &mut Context<'_>,
    listeners: impl Iterator<Item = &'a Listener>,
) -> Poll<io::Result<Vec<Accepted>>> {
    let mut accepted = Vec::new();
    for listener in listeners {
        while let Poll::Ready(ready) = listener.socket.poll_readable(cx) {
            if let Err(error) = ready.and_then(|()| accept_all(listener, &mut accepted)) {
                if accepted.is_empty() {
                    return Poll::Ready(Err(error));
                }
                break;
            }
            if accepted.len() >= ACCEPT_BATCH {
                return Poll::Ready(Ok(accepted));
            }
        }
    }
    if accepted.is_empty() { Poll::Pending } else { Poll::Ready(Ok(accepted)) }
}

/// Accepts until nothing is left or the batch is full.
fn accept_all(listener: &Listener, accepted: &mut Vec<Accepted>) -> io::Result<()> {
    while accepted.len() < ACCEPT_BATCH {
        match listener.socket.get_ref().accept() {
            Ok((stream, address)) => {
                let remote = address.ip().to_canonical();
                accepted.push(Accepted { stream, remote, is_tls: listener.is_tls });
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(()),
                // Ended between the handshake and the accept: nobody to serve, nothing wrong.
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

/// Pauses after failed accepts: 10 ms, doubled up to 1 s, with one line in the log a streak.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn recover(&mut self) {
        if self.failures > 0 {
            info!(failures = self.failures; "accepting_again");
            self.failures = 0;
        }
    }

    async fn pause(&mut self, error: &io::Error) {
        if self.failures == 0 {
            warn!(error:% = error; "accept_failed");
        }
        let pause = ACCEPT_BACKOFF_MIN.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        Timer::after(pause.min(ACCEPT_BACKOFF_MAX)).await;
    }
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
                    registry.expire(Instant::now());
                    None
                };
                changed.or(expiry).await
            }
        };
    }
}

/// Closes the request heads that are still in progress after a while.
async fn cut_heads(heads: Rc<Heads>, moment: Duration) {
    Timer::after(moment).await;
    heads.clear();
}

/// Closes every connection and waits for the peers, and for the requests that are being answered.
/// What is queued for the peers is written first for half of the time; then their close frames go
/// out ahead of it.
async fn drain(relay: &Relay, heads: &Heads, timeout: Duration) {
    let started = Instant::now();
    let outboxes = relay.registry.close_all();
    if !drained_by(relay, heads, started + timeout / 2).await {
        // Who was just being upgraded when the stop came is told now.
        for outbox in outboxes.into_iter().chain(relay.registry.close_all()) {
            outbox.close(Close::ShuttingDown, Manner::Abort);
        }
        drained_by(relay, heads, started + timeout).await;
    }
    info!(milliseconds = started.elapsed().as_millis(); "stopped");
}

async fn drained_by(relay: &Relay, heads: &Heads, deadline: Instant) -> bool {
    let drained = async {
        // Heads first: none of them is upgraded any more, but one may just have been.
        poll_fn(|cx| heads.poll_empty(cx)).await;
        poll_fn(|cx| relay.permits.poll_all_back(cx)).await;
        true
    };
    let expired = async {
        Timer::at(deadline).await;
        false
    };
    drained.or(expired).await
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::TcpStream;

    use super::*;
    use crate::net::listen;
    use crate::net::listen::Listen;

    #[test]
    fn no_listener_is_the_first_of_every_batch() {
        let open = || {
            let listener = listen::open(Listen::At("127.0.0.1:0".parse().unwrap())).unwrap();
            (listener.local_addr().unwrap(), Listener::new(listener, false).unwrap())
        };
        let ((one, first), (other, second)) = (open(), open());
        let listeners = [first, second];
        let mut turn = 0;
        let mut orders = HashSet::new();
        // Which of them are ready at one time is for the event loop to say: often enough both are.
        for _ in 0..1000 {
            let _visitors = [one, other].map(|address| TcpStream::connect(address).unwrap());
            let mut accepted = 0;
            while accepted < 2 {
                let batch = poll_fn(|cx| poll_accept(cx, &listeners, &mut turn));
                let batch = smol::block_on(batch).unwrap();
                let order = batch.iter().map(|accepted| accepted.stream.local_addr().unwrap());
                orders.insert(order.collect::<Vec<_>>());
                accepted += batch.len();
            }
            if orders.contains(&vec![one, other]) && orders.contains(&vec![other, one]) {
                return;
            }
        }
        panic!("they always came in the same order");
    }
}
