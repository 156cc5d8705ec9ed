//! What systemd and its services tell each other: inherited sockets, readiness, status, watchdog.
//!
//! All of it is silent without the variables that systemd sets: `LISTEN_FDS`, `NOTIFY_SOCKET` and
//! `WATCHDOG_USEC` (`sd_listen_fds(3)`, `sd_notify(3)`, `sd_watchdog_enabled(3)`).

use std::cell::Cell;
use std::io;
use std::net::TcpListener;
use std::time::Duration;

use async_io::Timer;
use futures_lite::FutureExt as _;
use listenfd::ListenFd;
use log::warn;
use rustix::time::{ClockId, Timespec, clock_gettime};
use sd_notify::NotifyState;
use socket2::SockRef;

use crate::limits::STATUS_DELAY;

/// Whether a service manager wants to be told how its service is.
pub fn is_present() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The service manager, where it wants to be told how its service is.
#[derive(Debug)]
pub struct Manager {
    /// Half of the time after which a silent service counts as hung.
    ping_interval: Option<Duration>,
    failing: Cell<bool>,
}

impl Manager {
    /// `None` if nobody wants to be told.
    pub fn from_environment() -> Option<Self> {
        if !is_present() {
            return None;
        }
        let ping_interval = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        let ping_interval = ping_interval.filter(|interval| !interval.is_zero());
        Some(Self { ping_interval, failing: Cell::new(false) })
    }

    /// Says that the service is ready, and from then on what `status` returns whenever it differs
    /// a while after `changed`, and that the event loop turns. Never returns.
    ///
    /// `changed` must be cancel safe. Nothing but it and the watchdog's interval wakes this up.
    pub async fn inform(&self, status: impl Fn() -> String, mut changed: impl AsyncFnMut()) {
        let mut told = status();
        self.tell(&[NotifyState::Ready, NotifyState::Status(&told)]);
        let pings = async {
            let Some(interval) = self.ping_interval else { return std::future::pending().await };
            loop {
                Timer::after(interval).await;
                self.tell(&[NotifyState::Watchdog]);
            }
        };
        let statuses = async {
            loop {
                changed().await;
                Timer::after(STATUS_DELAY).await;
                let present = status();
                if present != told {
                    self.tell(&[NotifyState::Status(&present)]);
                    told = present;
                }
            }
        };
        pings.or(statuses).await
    }

    /// Says that the service has begun to read its files anew.
    pub fn reloading(&self) {
        // Units of the kind `notify-reload` want to know since when. The crate's own reading of the
        // clock multiplies in 32 bits where `time_t` has no more.
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
        let microseconds = i128::from(tv_sec) * 1_000_000 + i128::from(tv_nsec / 1_000);
        self.tell(&[NotifyState::Reloading, NotifyState::MonotonicUsec(microseconds)]);
    }

    /// Says that it has read them.
    pub fn reloaded(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// Says that the service has begun to stop.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// A failure is logged once a streak: what follows from it systemd decides.
    fn tell(&self, states: &[NotifyState<'_>]) {
        match sd_notify::notify(states) {
            Ok(()) => self.failing.set(false),
            Err(error) => {
                if !self.failing.replace(true) {
                    warn!(error:% = error; "systemd_not_reached");
                }
            }
        }
    }
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

/// What systemd opened for this process; empty if it opened nothing. The error is a sentence for
/// the operator.
///
/// To be called once and before the first thread starts: the variables are taken out of the
/// environment.
pub fn inherited_listeners() -> Result<Inherited, String> {
    // Read first: what follows may take it out of the environment. It counts only where the
    // sockets are this process's, which is checked there.
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
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
