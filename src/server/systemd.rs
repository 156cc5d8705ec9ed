//! What systemd and its services tell each other: inherited sockets, readiness, status, watchdog.
//!
//! All of it is silent without the variables that systemd sets: `LISTEN_FDS`, `NOTIFY_SOCKET` and
//! `WATCHDOG_USEC` (`sd_listen_fds(3)`, `sd_notify(3)`, `sd_watchdog_enabled(3)`).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::clock::Timer;
use futures_lite::FutureExt as _;
use listenfd::ListenFd;
use log::warn;
use rustix::io::FdFlags;
use rustix::time::{ClockId, Timespec, clock_gettime};
use socket2::SockRef;

use crate::limits::{MAX_INHERITED, NOTIFY_RETRY, STATUS_DELAY};

/// Whether a service manager wants to be told how its service is.
pub fn is_present() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The service manager, where it wants to be told how its service is.
///
/// Nothing waits for it. What it must learn and had no room for is owed: it is sent later, in order.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Half of the time after which a silent service counts as hung.
    ping_interval: Option<Duration>,
    /// One of a kind at most.
    owed: RefCell<VecDeque<(Word, String)>>,
    debtor: RefCell<Option<Waker>>,
    failing: Cell<bool>,
}

/// What a service manager must learn. Of two of a kind the second one counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Word {
    Ready,
    Status,
    Reloading,
    Reloaded,
    Stopping,
}

impl Manager {
    /// `None` if nobody wants to be told, or in a way that is not known here.
    pub fn from_environment() -> Option<Self> {
        let name = std::env::var_os("NOTIFY_SOCKET")?;
        let opened = address(&name).and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            Ok((socket, address))
        });
        let (socket, address) =
            opened.inspect_err(|error| warn!(error:% = error; "systemd_not_reached")).ok()?;
        Some(Self {
            socket,
            address,
            ping_interval: ping_interval(),
            owed: RefCell::default(),
            debtor: RefCell::default(),
            failing: Cell::new(false),
        })
    }

    /// Says that the service is ready, and from then on what `status` returns whenever it differs
    /// a while after `changed`, and that the event loop turns. Never returns.
    ///
    /// `changed` must be cancel safe. Nothing but it, the watchdog's interval and a word that is
    /// owed wakes this up.
    pub async fn inform(&self, status: impl Fn() -> String, mut changed: impl AsyncFnMut()) {
        let mut told = status();
        self.tell(Word::Ready, format!("READY=1\nSTATUS={told}\n"));
        let pings = async {
            let Some(interval) = self.ping_interval else { return std::future::pending().await };
            loop {
                // The first at once: READY=1 does not count, and after an upgrade the time since the old program's
                // last one runs on. One that finds no room is followed by the next.
                if self.settle() {
                    self.send("WATCHDOG=1\n");
                }
                Timer::after(interval).await;
            }
        };
        let statuses = async {
            loop {
                changed().await;
                Timer::after(STATUS_DELAY).await;
                let present = status();
                if present != told {
                    self.tell(Word::Status, format!("STATUS={present}\n"));
                    told = present;
                }
            }
        };
        let debts = async {
            loop {
                poll_fn(|cx| self.poll_owing(cx)).await;
                Timer::after(NOTIFY_RETRY).await;
                self.settle();
            }
        };
        pings.or(statuses).or(debts).await
    }

    /// Says that the service has begun to read its files anew.
    pub fn reloading(&self) {
        // Units of the kind `notify-reload` want to know since when.
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
        let microseconds = i128::from(tv_sec) * 1_000_000 + i128::from(tv_nsec / 1_000);
        self.tell(Word::Reloading, format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\n"));
    }

    /// Says that it has read them.
    pub fn reloaded(&self) {
        self.tell(Word::Reloaded, "READY=1\n".to_owned());
    }

    /// Says that the service has begun to stop.
    pub fn stopping(&self) {
        self.tell(Word::Stopping, "STOPPING=1\n".to_owned());
    }

    /// Sends a word after those that are owed, or owes it too.
    fn tell(&self, word: Word, text: String) {
        {
            let mut owed = self.owed.borrow_mut();
            owed.retain(|(known, _)| *known != word);
            owed.push_back((word, text));
        }
        let debtor = if self.settle() { None } else { self.debtor.take() };
        if let Some(debtor) = debtor {
            debtor.wake();
        }
    }

    /// Sends what is owed; whether nothing is left of it.
    fn settle(&self) -> bool {
        let mut owed = self.owed.borrow_mut();
        while let Some((_, text)) = owed.front() {
            if !self.send(text) {
                return false;
            }
            owed.pop_front();
        }
        true
    }

    /// Waits until something is owed; for one waiter.
    fn poll_owing(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.owed.borrow().is_empty() {
            return Poll::Ready(());
        }
        *self.debtor.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether the text needs not be sent again. A failure is logged once a streak: what follows
    /// from it systemd decides.
    fn send(&self, text: &str) -> bool {
        match self.socket.send_to_addr(text.as_bytes(), &self.address) {
            Ok(_) => {
                self.failing.set(false);
                true
            }
            Err(error) => {
                if !self.failing.replace(true) {
                    warn!(error:% = error; "systemd_not_reached");
                }
                // Nobody is there, or nobody who ever takes it.
                error.kind() != io::ErrorKind::WouldBlock
            }
        }
    }
}

/// Where a service manager listens: a path, or `@` and a name in the abstract namespace
/// (`sd_notify(3)`, `unix(7)`).
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

/// How often the watchdog wants to hear of this process, if it does (`sd_watchdog_enabled(3)`).
fn ping_interval() -> Option<Duration> {
    let limit = std::env::var("WATCHDOG_USEC").ok()?.parse().ok().map(Duration::from_micros)?;
    let is_ours = std::env::var("WATCHDOG_PID").map_or(true, |process| {
        process.parse().map_or(true, |process: u32| process == std::process::id())
    });
    Some(limit / 2).filter(|interval| is_ours && !interval.is_zero())
}

/// The listening sockets that systemd opened for this process, in the order of the units.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For binaries and phones: all that have no other purpose by their name.
    pub relay: Vec<TcpListener>,
    /// For the same over TLS: those named `tls` (`FileDescriptorName=`).
    pub tls: Vec<TcpListener>,
    /// For metrics and the status page: those named `metrics`.
    pub metrics: Vec<TcpListener>,
}

/// The variables by which sockets are handed over.
#[derive(Default, Debug)]
struct Handed {
    count: Option<String>,
    receiver: Option<String>,
    /// An extension of the crate that takes the sockets: systemd has no such variable.
    first: Option<String>,
}

impl Handed {
    /// How many sockets are for the process `own`. Those for another process are none, and so are
    /// those that are for nobody: the variables may have been inherited with no socket behind them
    /// (`sd_listen_fds(3)`). The error is a sentence for the operator.
    fn check(&self, own: u32) -> Result<usize, String> {
        let Some(count) = &self.count else { return Ok(0) };
        match self.receiver.as_deref().map(str::trim) {
            None | Some("") => {
                warn!(reason = "LISTEN_PID is not set"; "inherited_sockets_ignored");
                return Ok(0);
            }
            Some(receiver) if receiver != own.to_string() => return Ok(0),
            Some(_) => {}
        }
        if self.first.is_some() {
            return Err("LISTEN_FDS_FIRST_FD is set, which systemd does not do: unset it".into());
        }
        match count.parse() {
            Ok(count) if count <= MAX_INHERITED => Ok(count),
            _ => Err(format!(
                "LISTEN_FDS is {count:?}, which is no number of sockets from 0 to {MAX_INHERITED}"
            )),
        }
    }
}

/// What systemd opened for this process; empty if it opened nothing. The error is a sentence for
/// the operator.
///
/// To be called once and before the first thread starts: the variables are taken out of the
/// environment.
pub fn inherited_listeners() -> Result<Inherited, String> {
    // Read first: what follows takes some of them out of the environment.
    let variable = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let given = Handed {
        count: variable("LISTEN_FDS"),
        receiver: variable("LISTEN_PID"),
        first: variable("LISTEN_FDS_FIRST_FD"),
    };
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    if given.check(std::process::id())? == 0 {
        return Ok(Inherited::default());
    }
    let mut names = names.split(':');
    let mut inherited = ListenFd::from_env();
    let mut sockets = Inherited::default();
    for index in 0..inherited.len() {
        let listener = inherited.take_tcp_listener(index).and_then(|listener| {
            let listener = listener.ok_or(io::ErrorKind::NotFound)?;
            if SockRef::from(&listener).is_listener()? {
                Ok(listener)
            } else {
                Err(io::Error::other("it is not listening; the socket unit needs Accept=no"))
            }
        });
        // The program that this process may become by an upgrade gets it another way.
        let listener = listener.and_then(|listener| {
            rustix::io::fcntl_setfd(&listener, FdFlags::CLOEXEC)?;
            Ok(listener)
        });
        let listener =
            listener.map_err(|error| format!("cannot use inherited socket {index}: {error}"))?;
        match names.next() {
            Some("metrics") => sockets.metrics.push(listener),
            Some("tls") => sockets.tls.push(listener),
            _ => sockets.relay.push(listener),
        }
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::SystemTime;

    use super::*;
    use crate::clock;
    use crate::clock::simulated::Simulation;

    /// A manager, and the end of its socket that systemd would hold, which has all that was said so far.
    fn manager() -> (Manager, UnixDatagram) {
        let name = format!("pyrycode-relay-unit-{}-{}", std::process::id(), fastrand::u64(..));
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let heard = UnixDatagram::bind_addr(&address).unwrap();
        heard.set_nonblocking(true).unwrap();
        let manager = Manager {
            socket: UnixDatagram::unbound().unwrap(),
            address,
            ping_interval: None,
            owed: RefCell::default(),
            debtor: RefCell::default(),
            failing: Cell::new(false),
        };
        (manager, heard)
    }

    #[test]
    fn a_status_is_told_a_while_after_it_changed_once_a_burst_and_only_if_it_differs() {
        let (manager, heard) = manager();
        let simulation = Simulation::begin(1, SystemTime::UNIX_EPOCH);
        let (status, changes) = (Cell::new(0), Cell::new(0_u32));
        let changed = async || {
            poll_fn(|_| if changes.get() > 0 { Poll::Ready(()) } else { Poll::Pending }).await;
            changes.set(0);
        };
        let mut informing = pin!(manager.inform(|| status.get().to_string(), changed));
        let mut after = |pause: Duration| {
            simulation.advance(clock::now() + pause);
            let mut cx = Context::from_waker(Waker::noop());
            assert!(informing.as_mut().poll(&mut cx).is_pending());
            let mut buffer = [0; 100];
            let said = heard.recv(&mut buffer).map(|length| buffer[..length].to_vec());
            assert!(heard.recv(&mut [0; 100]).is_err(), "one word at a time");
            said.map_or_else(|_| String::new(), |said| String::from_utf8(said).unwrap())
        };
        let change = |to: i32| {
            status.set(to);
            changes.set(changes.get() + 1);
        };
        assert_eq!(after(Duration::ZERO), "READY=1\nSTATUS=0\n");
        change(1);
        assert_eq!(after(Duration::ZERO), "");
        change(2);
        assert_eq!(after(STATUS_DELAY - Duration::from_millis(1)), "");
        change(3);
        assert_eq!(after(Duration::from_millis(1)), "STATUS=3\n");
        // The later changes are waited for too, and are told already.
        assert_eq!(after(STATUS_DELAY), "");
        change(0);
        assert_eq!(after(Duration::ZERO), "");
        assert_eq!(after(STATUS_DELAY), "STATUS=0\n");
        assert_eq!(after(100 * STATUS_DELAY), "");
    }

    #[test]
    fn sockets_are_taken_by_the_process_that_they_are_for_and_their_number_is_bounded() {
        let check = |count: &str, receiver: Option<&str>, first: Option<&str>| {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            Handed { count: Some(count.into()), receiver: owned(receiver), first: owned(first) }
                .check(7)
        };
        for (count, expected) in [("0", 0), ("1", 1), ("64", 64)] {
            assert_eq!(check(count, Some("7"), None), Ok(expected));
            for not_this in [None, Some(""), Some("8"), Some("07"), Some("x")] {
                assert_eq!(check(count, not_this, None), Ok(0), "{not_this:?}");
            }
        }
        for bad in ["65", "100000000", "-1", "1.5", "", "one", "99999999999999999999"] {
            let error = check(bad, Some("7"), None).unwrap_err();
            assert!(error.contains("LISTEN_FDS") && error.contains("64"), "{error}");
            assert_eq!(check(bad, Some("8"), None), Ok(0));
        }
        let error = check("1", Some("7"), Some("0")).unwrap_err();
        assert!(error.contains("LISTEN_FDS_FIRST_FD"), "{error}");
        assert_eq!(Handed::default().check(7), Ok(0));
    }
}
