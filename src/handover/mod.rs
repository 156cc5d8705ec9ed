//! An upgrade without a restart: the running program gives everything to the program file that stands in its
//! place now, in the same process (contract, Upgrade).
//!
//! Nothing is taken apart for that. What the relay is at one moment is written to a memory file, and the file and all
//! sockets are put into a channel that the new program finds as its standard input. Until the `exec` succeeds the old
//! program can simply go on.

mod channel;
mod format;
mod program;
mod taken;
#[cfg(test)]
mod tests;

pub(crate) use self::program::COUNT;
pub use self::program::Program;
pub(crate) use self::program::Tried;
pub use self::taken::{Taken, receive, try_out};

use std::fs::File;
use std::io::{self, BufWriter, Seek as _, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::{self, Timer};
use crate::handover::channel::Parcel;
use crate::handover::format::Written;
use crate::limits::HANDOVER_BUFFER;
use crate::relay::Relay;

/// A socket that is handed over.
pub(crate) type Socket = Arc<dyn AsFd>;

/// The listening sockets of a relay, as they are handed over.
pub(crate) struct Listeners {
    /// For binaries and phones.
    pub(crate) relay: Vec<Socket>,
    /// For the same over TLS.
    pub(crate) tls: Vec<Socket>,
    /// For the metrics and the status page.
    pub(crate) metrics: Vec<Socket>,
}

impl Listeners {
    fn count(&self) -> usize {
        self.relay.len() + self.tls.len() + self.metrics.len()
    }
}

/// Has the new program try whether it can go on with what the relay is now. The error is a sentence for the operator.
/// Cancel safe: the trial is ended then.
pub(crate) async fn rehearse(relay: &Rc<Relay>, program: &Program) -> Result<Tried, String> {
    let (state, _) = write_state(relay, clock::now())?;
    program.rehearse(state).await
}

/// Hands everything over. Returns only if that failed, with a sentence for the operator: nothing has changed then.
pub(crate) fn hand_over(
    relay: &Rc<Relay>,
    program: &Program,
    tried: &Tried,
    listeners: &Listeners,
) -> String {
    let handed = write_state(relay, clock::now()).and_then(|(state, written)| {
        check_descriptors(written.connections.len() + listeners.count())?;
        pack(state, &written, listeners).map_err(|error| {
            format!("cannot pass on {} connections: {error}", written.connections.len())
        })
    });
    match handed {
        Ok(channel) => program.replace(channel, tried),
        Err(reason) => reason,
    }
}

/// Writes what the relay is to a memory file.
fn write_state(relay: &Rc<Relay>, now: Instant) -> Result<(File, Written), String> {
    let write = || -> io::Result<(File, Written)> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("pyrycode-relay-state", flags)?);
        // A process is ended by a signal where it writes more, also to memory.
        let left = rlimit::Resource::FSIZE.get_soft().unwrap_or(u64::MAX);
        let mut writer = BufWriter::with_capacity(HANDOVER_BUFFER, Bounded { file, left });
        let written = format::write(relay, &mut writer, now)?;
        writer.flush()?;
        let mut file = writer.into_inner().map_err(io::IntoInnerError::into_error)?.file;
        file.rewind()?;
        Ok((file, written))
    };
    // One connection at a time is in memory three times.
    let most = 2 * relay.ledger.total() + HANDOVER_BUFFER;
    if Vec::<u8>::new().try_reserve_exact(most).is_err() {
        return Err(format!(
            "cannot write the state: there is no memory for {most} bytes (LimitAS=, ulimit -v)"
        ));
    }
    write().map_err(|error| {
        const TOO_MANY: i32 = 24;
        let limit = match (error.raw_os_error(), error.kind()) {
            (Some(TOO_MANY), _) => " (the limit is LimitNOFILE=, ulimit -n)",
            (_, io::ErrorKind::FileTooLarge) => " (the limit is LimitFSIZE=, ulimit -f)",
            _ => "",
        };
        format!("cannot write the state to a memory file: {error}{limit}")
    })
}

/// A file of which no more than `left` bytes are written.
struct Bounded {
    file: File,
    left: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.file.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Whether the new program may hold so many sockets, and what it needs besides.
fn check_descriptors(sockets: usize) -> Result<(), String> {
    let needed = sockets as u64 + OTHER_DESCRIPTORS;
    let limit = rlimit::Resource::NOFILE.get_hard().unwrap_or(u64::MAX);
    match needed <= limit {
        true => Ok(()),
        false => Err(format!(
            "the new program needs {needed} descriptors, and may have {limit} (LimitNOFILE=, ulimit -n)"
        )),
    }
}

/// What a relay holds besides its sockets while it takes over: standard streams, the event loop, the channel, the
/// state and the signals.
const OTHER_DESCRIPTORS: u64 = 16;

/// Puts everything into a channel, and returns the end that the new program reads.
fn pack(state: File, written: &Written, listeners: &Listeners) -> io::Result<OwnedFd> {
    let (sender, receiver) = channel::open()?;
    let unmarked = |sockets: &[Socket]| -> Vec<_> {
        sockets.iter().map(|socket| (Arc::clone(socket), false)).collect()
    };
    sender.send(Parcel::State, &[(Arc::new(state), false)])?;
    sender.send(Parcel::Relay, &unmarked(&listeners.relay))?;
    sender.send(Parcel::Tls, &unmarked(&listeners.tls))?;
    sender.send(Parcel::Metrics, &unmarked(&listeners.metrics))?;
    sender.send(Parcel::Connections, &written.connections)?;
    sender.finish()?;
    Ok(receiver)
}

/// Waits until `is_settled`, or for `patience`.
pub(crate) async fn settle(patience: Duration, is_settled: impl Fn() -> bool) {
    let until = clock::now() + patience;
    while !is_settled() && clock::now() < until {
        Timer::after(SETTLE_STEP).await;
    }
}

/// How often it is looked whether everybody has settled.
const SETTLE_STEP: Duration = Duration::from_millis(2);
