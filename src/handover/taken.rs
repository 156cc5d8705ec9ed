//! What a program finds that another one has handed over to.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::time::UNIX_EPOCH;

use log::warn;
use smol::LocalExecutor;

use super::channel::{self, Parcel};
use super::format::{self, Part, State};
use super::program::{READY, TRIAL, VARIABLE, is_handed_over};
use crate::admission::heads::Heads;
use crate::clock;
use crate::close::Close;
use crate::config::Config;
use crate::connection::link::{Upgraded, send_off};
use crate::connection::thaw::{Resumed, thaw};
use crate::leg::Leg;
use crate::net::transport::Tcp;
use crate::origin::Origin;
use crate::registry::Registry;
use crate::relay::{FrozenRelay, Relay};
use crate::signals::Stop;
use crate::telemetry::events;
use crate::tls::Secure;

/// Everything that was handed over.
#[derive(Debug)]
pub struct Taken {
    /// Listening sockets for binaries and phones.
    pub relay: Vec<TcpListener>,
    /// Listening sockets for the same over TLS.
    pub tls: Vec<TcpListener>,
    /// Listening sockets for the metrics and the status page.
    pub metrics: Vec<TcpListener>,
    /// The state, or why it cannot be read.
    pub(super) state: Result<State, String>,
    /// The connections in the order of the state, and whether each may be told that the relay ends.
    pub(super) connections: Vec<(TcpStream, bool)>,
}

/// Whether this process is to say only whether it can go on with a state.
fn is_trial() -> bool {
    std::env::var(VARIABLE).is_ok_and(|value| value == TRIAL)
        // Else somebody has set it, and it means nothing.
        && rustix::net::sockopt::socket_type(std::io::stdin()).is_ok()
}

/// Answers a trial, if this process is one: whether the state can be read. Returns whether it is one.
pub fn try_out(config: &Config) -> bool {
    if !is_trial() {
        return false;
    }
    let verdict = rehearse(config);
    let answer = match verdict {
        Ok(()) => READY.to_owned(),
        Err(reason) => reason,
    };
    let descriptor = rustix::io::dup(std::io::stdin());
    if let Ok(channel) = descriptor.map(UnixDatagram::from) {
        // Whoever asked has gone if this fails.
        let _ = channel.send(answer.as_bytes());
    }
    true
}

fn rehearse(config: &Config) -> Result<(), String> {
    let stdin = std::io::stdin();
    let received = channel::receive(stdin.as_fd()).map_err(|error| error.to_string())?;
    let (Parcel::State, descriptors) = received else {
        return Err("the channel holds no state".to_owned());
    };
    let (state, _) = descriptors.into_iter().next().ok_or("the channel holds no state")?;
    // Whatever would keep it from starting is to show itself now.
    let secure = config.tls.as_ref().map(Secure::new).transpose()?;
    let relay = Relay::with_tls(config.clone(), Stop::new(), secure);
    let now = clock::now();
    // One after the other: the relay holds all of it as well, and so does the memory file.
    format::read_each(std::io::BufReader::new(File::from(state)), |part| {
        if let Part::Slot(slot) = part {
            // What is read is put in its place too.
            Registry::new(&relay.config, &relay.ledger, &relay.metrics).thaw(*slot, now);
        }
    })?;
    Ok(())
}

/// What another program has handed over to this one, in the same process; `None` if none did. The error is a sentence
/// for the operator.
///
/// To be called once, before anything else reads standard input.
pub fn receive() -> Result<Option<Taken>, String> {
    match is_handed_over() {
        true => take(std::io::stdin().as_fd()).map(Some),
        false => Ok(None),
    }
}

fn take(channel: BorrowedFd<'_>) -> Result<Taken, String> {
    let mut taken = Taken {
        relay: Vec::new(),
        tls: Vec::new(),
        metrics: Vec::new(),
        state: Err("the channel holds no state".to_owned()),
        connections: Vec::new(),
    };
    loop {
        let received = channel::receive(channel);
        let (parcel, descriptors) =
            received.map_err(|error| format!("cannot take over: {error}"))?;
        let listeners = |descriptors: Vec<(OwnedFd, bool)>| {
            descriptors.into_iter().map(|(listener, _)| TcpListener::from(listener))
        };
        match parcel {
            Parcel::State => {
                let (file, _) =
                    descriptors.into_iter().next().ok_or("the channel holds no state")?;
                taken.state = format::read(std::io::BufReader::new(File::from(file)));
            }
            Parcel::Relay => taken.relay.extend(listeners(descriptors)),
            Parcel::Tls => taken.tls.extend(listeners(descriptors)),
            Parcel::Metrics => taken.metrics.extend(listeners(descriptors)),
            Parcel::Connections => {
                let streams = descriptors.into_iter();
                taken.connections.extend(streams.map(|(one, mark)| (TcpStream::from(one), mark)));
            }
            Parcel::End => break,
        }
    }
    channel::discard_stdin();
    Ok(taken)
}

impl Taken {
    /// What all connections share, if it can be read.
    pub(crate) fn take_relay(&mut self) -> Option<FrozenRelay> {
        self.state.as_mut().ok()?.relay.take()
    }

    /// Goes on with all slots and connections. If the state cannot be read, everybody who can be told is told that the
    /// relay ends.
    pub(crate) fn thaw(
        self,
        relay: &Rc<Relay>,
        heads: &Rc<Heads>,
        executor: &LocalExecutor<'static>,
    ) {
        let state = match self.state {
            Ok(state) => state,
            Err(reason) => {
                send_all_off(relay, executor, self.connections);
                events::upgrade_failed(&format!("{reason}: all connections were closed"));
                return;
            }
        };
        let now = clock::now();
        let slots = state.slots.len();
        for slot in state.slots {
            relay.registry.thaw(slot, now);
        }
        for (record, (socket, _)) in state.connections.into_iter().zip(self.connections) {
            match thaw(relay, heads, record, socket, now) {
                Ok(Resumed { session, place: None }) => executor.spawn(session).detach(),
                Ok(Resumed { session, place: Some(place) }) => {
                    heads.adopt(place, executor.spawn(session));
                }
                Err(reason) => warn!(reason = reason.as_str(); "connection_lost_in_upgrade"),
            }
        }
        relay.registry.bury_missing(now);
        relay.enforce_allowed();
        let connections = relay.permits.taken();
        let kept = relay.registry.backlog().kept;
        let since_1970 = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        let pause = since_1970.saturating_sub(state.frozen_at);
        events::upgraded(&state.from, connections, slots, kept, pause);
    }
}

/// Closes connections of which nothing is known but their sockets.
fn send_all_off(
    relay: &Rc<Relay>,
    executor: &LocalExecutor<'static>,
    connections: Vec<(TcpStream, bool)>,
) {
    for (socket, may_be_told) in connections {
        if !may_be_told {
            continue;
        }
        let Ok(remote) = socket.peer_addr().map(|address| address.ip().to_canonical()) else {
            continue;
        };
        if let Ok(io) = Tcp::prepare(socket) {
            let permit = relay.permits.renew(Origin::of(remote));
            let upgraded = Upgraded { io, leftover: Vec::new(), remote, permit };
            executor.spawn(send_off(relay, upgraded, Leg::Phone, Close::ShuttingDown)).detach();
        }
    }
}
