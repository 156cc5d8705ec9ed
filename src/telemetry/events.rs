//! The log events that people search for: their names and fields are a contract.
//!
//! Fields are key-value pairs of the `log` crate; the logger escapes what peers supplied. Never
//! logged, at any level: tokens, message content, whole request heads.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use log::{debug, info, warn};

use crate::close::Ended;
use crate::ids::ServerId;
use crate::telemetry::metrics::{Label as _, ReclaimOutcome};

/// Declares [`Throttled`], so that an event cannot be in one list and not in another.
macro_rules! throttled {
    ($($event:ident = $name:literal,)*) => {
        /// Events that are summed up when they repeat: what anybody who reaches the relay can cause
        /// as often as he likes, and what a full table of descriptors does. They are logged by
        /// this name, and their summing goes by it.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Throttled {
            $(#[doc = $name] $event,)*
        }

        impl Throttled {
            /// The name in the log.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$event => $name,)*
                }
            }

            /// The event with this name in the log.
            pub(crate) fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$event),)*
                    _ => None,
                }
            }
        }
    };
}

throttled! {
    ServerIdConflict = "server_id_conflict",
    ServerNotAllowed = "server_not_allowed",
    PhoneRegisterNoServer = "phone_register_no_server",
    Refused = "refused",
    ProxyFault = "proxy_fault",
    AcceptFailed = "accept_failed",
    AcceptingAgain = "accepting_again",
}

impl std::fmt::Display for Throttled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A binary holds the server-id now.
pub(crate) fn server_claimed(server: &ServerId, version: &str, remote: IpAddr) {
    info!(server_id = server.as_str(), binary_version = version, remote:% = remote; "server_claimed");
}

/// A claim lost against a holder that answered. Without the version: it would tell a prober what
/// the holder runs.
pub(crate) fn server_id_conflict(server: &ServerId, remote: IpAddr) {
    info!(server_id = server.as_str(), remote:% = remote; "{}", Throttled::ServerIdConflict);
}

/// A claim took the slot from a holder that stayed silent.
pub(crate) fn server_id_takeover(server: &ServerId, remote: IpAddr) {
    info!(server_id = server.as_str(), remote:% = remote; "server_id_takeover");
}

/// A claim took a slot with its phones, or a binary did not know those that were kept for it: how many are attached
/// now, how many were closed, and why these.
pub(crate) fn server_reclaimed(
    server: &ServerId,
    kept: usize,
    closed: usize,
    outcome: ReclaimOutcome,
) {
    info!(
        server_id = server.as_str(), kept = kept, closed = closed, reason = outcome.as_str();
        "server_reclaimed"
    );
}

/// An upgrade was asked for: the program at `path` is tried.
pub(crate) fn upgrade_begun(path: &Path) {
    info!(program:% = path.display(); "upgrade_begun");
}

/// This program has taken over from version `from`; everybody had to wait for `pause`.
pub(crate) fn upgraded(
    from: &str,
    connections: usize,
    slots: usize,
    kept_messages: usize,
    pause: Duration,
) {
    info!(
        from = from, to = env!("CARGO_PKG_VERSION"), connections = connections, slots = slots,
        kept_messages = kept_messages, milliseconds = pause.as_millis();
        "upgraded"
    );
}

/// Nothing was handed over to another program: the relay goes on as it was.
pub fn upgrade_failed(reason: &str) {
    warn!(reason = reason; "upgrade_failed");
}

/// The holding connection ended and the release is scheduled.
pub(crate) fn server_released(server: &ServerId) {
    info!(server_id = server.as_str(); "server_released");
}

/// The grace window passed without a claim.
pub(crate) fn server_expired(server: &ServerId, phones: usize) {
    info!(server_id = server.as_str(), phones = phones; "server_expired");
}

/// A phone joined.
pub(crate) fn phone_registered(
    server: &ServerId,
    conn_id: &str,
    device_name: &str,
    remote: IpAddr,
) {
    info!(
        server_id = server.as_str(), conn_id = conn_id, device_name = device_name,
        remote:% = remote;
        "phone_registered"
    );
}

/// A phone asked for a server-id that nobody holds.
pub(crate) fn phone_register_no_server(server: &ServerId, remote: IpAddr) {
    info!(server_id = server.as_str(), remote:% = remote; "{}", Throttled::PhoneRegisterNoServer);
}

/// A phone left, or was closed.
pub(crate) fn phone_unregistered(server: &ServerId, conn_id: &str, ended: Ended) {
    info!(
        server_id = server.as_str(), conn_id = conn_id, reason:% = ended;
        "phone_unregistered"
    );
}

/// A claim of a server-id that is not on the allow-list.
pub(crate) fn server_not_allowed(server: &ServerId, remote: IpAddr) {
    info!(server_id = server.as_str(), remote:% = remote; "{}", Throttled::ServerNotAllowed);
}

/// A claimed server-id was taken off the allow-list; its binary and its phones are closed.
pub(crate) fn server_revoked(server: &ServerId, phones: usize) {
    info!(server_id = server.as_str(), phones = phones; "server_revoked");
}

/// A trusted proxy sent a PROXY header or a forwarding field that cannot be read, or two fields that
/// disagree, the `count`th in all.
pub(crate) fn proxy_fault(proxy: IpAddr, count: u64) {
    debug!(remote:% = proxy, count = count; "{}", Throttled::ProxyFault);
}

/// Loopback has reached a limit of a single address; said once.
pub(crate) fn loopback_limited(address: IpAddr) {
    warn!(
        remote:% = address,
        advice = "if that is a proxy, name it with --trusted-proxy: its clients share its limits now";
        "loopback_limited"
    );
}

/// The allow-list was read, at the start or anew; so many claimed server-ids were not on it.
pub(crate) fn allow_list_read(path: &Path, server_ids: usize, revoked: usize) {
    info!(
        path:% = path.display(), server_ids = server_ids, revoked = revoked;
        "allow_list_read"
    );
}

/// The allow-list could not be read anew; the one before it holds on.
pub(crate) fn allow_list_kept(path: &Path, reason: &dyn std::fmt::Display) {
    warn!(path:% = path.display(), reason:% = reason; "allow_list_kept");
}

/// A binary's envelope was dropped, the `count`th of its connection; `kind` tells why and holds
/// nothing that the peer sent.
pub(crate) fn envelope_dropped(server: &ServerId, kind: &dyn std::fmt::Display, count: u64) {
    debug!(server_id = server.as_str(), reason:% = kind, count = count; "envelope_dropped");
}
