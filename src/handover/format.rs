//! The state of a relay in a file: MessagePack values, one after the other, with the names of their fields.
//!
//! Each part of the relay says beside its own state what of it travels (`Frozen…`). A later version may add fields
//! that have a default, and must go on reading what earlier versions wrote: `tests` has their files. What cannot be
//! read that way gets a new number.

use std::io::{self, Read, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::Socket;
use crate::connection::link::FrozenConnection;
use crate::registry::FrozenSlot;
use crate::relay::{FrozenRelay, Relay};

/// The number of the format that this program writes. It reads this one and those before it.
pub(super) const FORMAT: u32 = 1;

/// How a state begins, for ever.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    /// The number of the format.
    pub(super) pyrycode_relay_state: u32,
    /// The version of the program that wrote it.
    pub(super) from: String,
}

#[derive(Debug, Serialize, Deserialize)]
enum Record {
    Relay(Box<FrozenRelay>),
    Slot(Box<FrozenSlot>),
    /// A connection, in MessagePack. Its socket has the same place among the sockets.
    Connection(ByteBuf),
    End {
        connections: usize,
    },
}

/// What was written.
pub(super) struct Written {
    /// The sockets, in the order of their records, and whether each may be told that the relay ends.
    pub(super) connections: Vec<(Socket, bool)>,
}

/// A state that was read.
#[derive(Debug)]
pub(super) struct State {
    pub(super) from: String,
    /// Until somebody takes it.
    pub(super) relay: Option<FrozenRelay>,
    /// When this was told, since 1970.
    pub(super) frozen_at: Duration,
    pub(super) slots: Vec<FrozenSlot>,
    pub(super) connections: Vec<FrozenConnection>,
}

/// Writes what `relay` is at `now`.
pub(super) fn write(relay: &Rc<Relay>, to: &mut impl Write, now: Instant) -> io::Result<Written> {
    let from = env!("CARGO_PKG_VERSION").to_owned();
    put(to, &Header { pyrycode_relay_state: FORMAT, from })?;
    put(to, &Record::Relay(Box::new(relay.freeze(now))))?;
    let mut outcome = Ok(());
    relay.registry.freeze(now, |slot| {
        if outcome.is_ok() {
            outcome = put(to, &Record::Slot(Box::new(slot)));
        }
    });
    outcome?;
    let mut connections = Vec::new();
    for frozen in relay.links.freeze(now) {
        put(to, &Record::Connection(frozen.record?.into()))?;
        connections.push((frozen.socket, frozen.is_between_frames));
    }
    put(to, &Record::End { connections: connections.len() })?;
    Ok(Written { connections })
}

fn put(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    rmp_serde::encode::write_named(to, value).map_err(|error| match error {
        rmp_serde::encode::Error::InvalidValueWrite(error) => io::Error::from(error),
        other => io::Error::other(other),
    })
}

/// A part of a state.
pub(super) enum Part {
    Relay(Box<FrozenRelay>),
    Slot(Box<FrozenSlot>),
    Connection(Box<FrozenConnection>),
}

/// Reads a state. The error is a sentence for the operator.
pub(super) fn read(from: impl Read) -> Result<State, String> {
    let (mut relay, mut slots, mut connections) = (None, Vec::new(), Vec::new());
    let from = read_each(from, |part| match part {
        Part::Relay(part) => relay = Some(*part),
        Part::Slot(slot) => slots.push(*slot),
        Part::Connection(connection) => connections.push(*connection),
    })?;
    let frozen_at = relay.as_ref().map_or(Duration::ZERO, |relay| relay.frozen_at);
    Ok(State { from, relay, frozen_at, slots, connections })
}

/// Reads a state part by part, the relay first, and returns the version of the program that wrote it. The error is a
/// sentence for the operator.
pub(super) fn read_each(mut from: impl Read, mut take: impl FnMut(Part)) -> Result<String, String> {
    let broken = |error: rmp_serde::decode::Error| format!("the state is broken: {error}");
    let header: Header = rmp_serde::from_read(&mut from)
        .map_err(|_| "what was handed over is no state of pyrycode-relay".to_owned())?;
    let format = header.pyrycode_relay_state;
    if format > FORMAT || format == 0 {
        return Err(format!(
            "version {} reads formats up to {FORMAT}, and the state of version {} has format {format}",
            env!("CARGO_PKG_VERSION"),
            header.from
        ));
    }
    let Record::Relay(relay) = rmp_serde::from_read(&mut from).map_err(broken)? else {
        return Err("the state is broken: it does not begin with the relay".to_owned());
    };
    take(Part::Relay(relay));
    let mut connections = 0;
    loop {
        match rmp_serde::from_read(&mut from).map_err(broken)? {
            Record::Slot(slot) => take(Part::Slot(slot)),
            Record::Connection(record) => {
                let connection = rmp_serde::from_slice(&record).map_err(broken)?;
                drop(record);
                take(Part::Connection(Box::new(connection)));
                connections += 1;
            }
            Record::End { connections: count } if count == connections => break,
            Record::End { .. } => return Err("the state is broken: connections are missing".into()),
            Record::Relay(_) => return Err("the state is broken: it has two relays".into()),
        }
    }
    Ok(header.from)
}
