//! Accepts connections and starts a task for each.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::clock::Timer;
use async_io::Async;
use log::{info, warn};
use smol::{LocalExecutor, Task};

use crate::admission::heads::{Entry, Heads};
use crate::connection;
use crate::limits::{ACCEPT_BACKOFF_MAX, ACCEPT_BACKOFF_MIN, ACCEPT_BATCH};
use crate::net::listen;
use crate::net::readiness::Readiness;
use crate::net::transport::{Tcp, Transport};
use crate::origin::Origin;
use crate::relay::Relay;
use crate::telemetry::events::Throttled;

/// Where connections come from.
pub trait Listening {
    /// One that was accepted.
    type Socket;
    /// One that is served.
    type Stream: Transport + 'static;

    /// Waits until an accept is worth trying. Cancel safe.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Accepts one, from this address; does not wait.
    fn accept(&mut self) -> io::Result<(Self::Socket, IpAddr)>;

    /// Sets up a socket that was accepted.
    fn prepare(socket: Self::Socket) -> io::Result<Self::Stream>;

    /// The listening socket, for another program to go on with; `None` for what is none.
    fn socket(&self) -> Option<Arc<dyn AsFd>> {
        None
    }

    /// Whether TLS is spoken here.
    fn is_tls(&self) -> bool {
        false
    }

    /// Serves a connection to its end, over TLS if `is_tls`.
    fn serve(
        executor: &LocalExecutor<'static>,
        relay: Rc<Relay>,
        io: Self::Stream,
        remote: IpAddr,
        entry: Entry,
        _is_tls: bool,
    ) -> Task<()> {
        executor.spawn(connection::serve(relay, io, remote, entry))
    }
}

/// A listening socket.
pub(super) struct Listener {
    readiness: Readiness<std::net::TcpListener>,
    is_tls: bool,
}

impl Listener {
    pub(super) fn new(socket: std::net::TcpListener, is_tls: bool) -> io::Result<Self> {
        // Again, for one that systemd has opened.
        listen::bound_receiving(&socket)?;
        Ok(Self { readiness: Readiness::of(Arc::new(Async::new(socket)?)), is_tls })
    }
}

impl Listening for Listener {
    type Socket = std::net::TcpStream;
    type Stream = Tcp;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.readiness.poll(cx)
    }

    fn accept(&mut self) -> io::Result<(Self::Socket, IpAddr)> {
        self.readiness.socket().accept().map(|(stream, address)| (stream, address.ip()))
    }

    fn prepare(socket: Self::Socket) -> io::Result<Tcp> {
        Tcp::prepare(socket)
    }

    fn socket(&self) -> Option<Arc<dyn AsFd>> {
        let socket: Arc<Async<std::net::TcpListener>> = self.readiness.shared();
        Some(socket)
    }

    fn is_tls(&self) -> bool {
        self.is_tls
    }

    fn serve(
        executor: &LocalExecutor<'static>,
        relay: Rc<Relay>,
        io: Tcp,
        remote: IpAddr,
        entry: Entry,
        is_tls: bool,
    ) -> Task<()> {
        if is_tls && relay.secure.is_some() {
            executor.spawn(connection::serve_tls(relay, io, remote, entry))
        } else {
            executor.spawn(connection::serve(relay, io, remote, entry))
        }
    }
}

/// A connection that was accepted.
pub(super) struct Accepted<T> {
    stream: T,
    remote: IpAddr,
    is_tls: bool,
}

pub(super) fn admit<L: Listening>(
    executor: &LocalExecutor<'static>,
    relay: &Rc<Relay>,
    heads: &Rc<Heads>,
    Accepted { stream, remote, is_tls }: Accepted<L::Socket>,
) {
    // A socket that cannot be set up is one that has ended already.
    let Ok(io) = L::prepare(stream) else { return };
    let source = Origin::of(remote);
    // Whose a connection by a trusted proxy is turns out later.
    let is_own = !relay.config.proxies.trusts(remote);
    let entry = heads.enter(source, is_own.then(|| relay.permits.room(source)));
    let serial = entry.serial();
    heads.adopt(serial, L::serve(executor, Rc::clone(relay), io, remote, entry, is_tls));
}

/// Accepts what is there, up to a batch, from one listener after the other. Each batch begins with
/// another one, counted by `turn`, so that none is kept waiting by a flood on one before it.
///
/// Readiness is asked for first: this is polled at every turn of the event loop, and an accept in
/// vain would cost a system call each time.
pub(super) fn poll_accept<L: Listening>(
    cx: &mut Context<'_>,
    listeners: &mut [L],
    turn: &mut usize,
) -> Poll<io::Result<Vec<Accepted<L::Socket>>>> {
    let (ahead, first) = listeners.split_at_mut(*turn % listeners.len().max(1));
    let accepted = poll_each(cx, first.iter_mut().chain(ahead));
    if accepted.is_ready() {
        *turn = turn.wrapping_add(1);
    }
    accepted
}

fn poll_each<'a, L: Listening + 'a>(
    cx: &mut Context<'_>,
    listeners: impl Iterator<Item = &'a mut L>,
) -> Poll<io::Result<Vec<Accepted<L::Socket>>>> {
    let mut accepted = Vec::new();
    for listener in listeners {
        while let Poll::Ready(ready) = listener.poll_ready(cx) {
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
fn accept_all<L: Listening>(
    listener: &mut L,
    accepted: &mut Vec<Accepted<L::Socket>>,
) -> io::Result<()> {
    while accepted.len() < ACCEPT_BATCH {
        match listener.accept() {
            Ok((stream, address)) => {
                let remote = address.to_canonical();
                accepted.push(Accepted { stream, remote, is_tls: listener.is_tls() });
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
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn recover(&mut self) {
        if self.failures > 0 {
            info!(failures = self.failures; "{}", Throttled::AcceptingAgain);
            self.failures = 0;
        }
    }

    pub(super) async fn pause(&mut self, error: &io::Error) {
        if self.failures == 0 {
            warn!(error:% = error; "{}", Throttled::AcceptFailed);
        }
        let pause = ACCEPT_BACKOFF_MIN.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        Timer::after(pause.min(ACCEPT_BACKOFF_MAX)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::future::poll_fn;
    use std::net::TcpStream;

    use socket2::SockRef;

    use super::*;
    use crate::limits::RECEIVE_BUFFER;
    use crate::net::listen::Listen;

    #[test]
    fn no_listener_is_the_first_of_every_batch() {
        let open = || {
            let listener = listen::open(Listen::At("127.0.0.1:0".parse().unwrap())).unwrap();
            (listener.local_addr().unwrap(), Listener::new(listener, false).unwrap())
        };
        let ((one, first), (other, second)) = (open(), open());
        let mut listeners = [first, second];
        let mut turn = 0;
        let mut orders = HashSet::new();
        // Which of them are ready at one time is for the event loop to say: often enough both are.
        for _ in 0..1000 {
            let _visitors = [one, other].map(|address| TcpStream::connect(address).unwrap());
            let mut accepted = 0;
            while accepted < 2 {
                let batch = poll_fn(|cx| poll_accept(cx, &mut listeners, &mut turn));
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

    #[test]
    fn what_is_received_is_bounded_on_a_socket_that_somebody_else_opened() {
        let bound = |socket: &TcpStream| {
            SockRef::from(socket).recv_buffer_size().unwrap() <= 2 * RECEIVE_BUFFER
        };
        let inherited = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        SockRef::from(&inherited).set_recv_buffer_size(4 * RECEIVE_BUFFER).unwrap();
        let address = inherited.local_addr().unwrap();
        let _early = TcpStream::connect(address).unwrap();
        let mut listeners = [Listener::new(inherited, false).unwrap()];
        let _later = TcpStream::connect(address).unwrap();
        let mut accepted = Vec::new();
        let mut turn = 0;
        while accepted.len() < 2 {
            let batch = poll_fn(|cx| poll_accept(cx, &mut listeners, &mut turn));
            accepted.extend(smol::block_on(batch).unwrap());
        }
        let streams: Vec<_> = accepted.into_iter().map(|accepted| accepted.stream).collect();
        assert!(bound(&streams[1]), "whoever connects from now on");
        for stream in streams {
            let same = stream.try_clone().unwrap();
            let _tcp = Tcp::prepare(stream).unwrap();
            assert!(bound(&same), "whoever waited is bound too");
        }
    }
}
