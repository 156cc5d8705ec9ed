//! The log events that people search for: their names and fields are a contract.
//!
//! Fields are key-value pairs of the `log` crate; the logger escapes what peers supplied. Never
//! logged, at any level: tokens, message content, whole request heads.

use std::net::IpAddr;
use std::path::Path;
#[cfg(feature = "tls")]
use std::time::{Duration, SystemTime};

use log::{debug, info, warn};

use crate::close::Ended;
use crate::ids::ServerId;

/// A binary holds the server-id now.
pub fn server_claimed(server: &ServerId, version: &str, remote: IpAddr) {
    info!(server_id = server.as_str(), binary_version = version, remote:% = remote; "server_claimed");
}

/// A claim lost against a holder that answered. Without the version: it would tell a prober what
/// the holder runs.
pub fn server_id_conflict(server: &ServerId, remote: IpAddr) {
    info!(server_id = server.as_str(), remote:% = remote; "server_id_conflict");
}

/// A claim took the slot from a holder that stayed silent.
pub fn server_id_takeover(server: &ServerId, remote: IpAddr) {
    info!(server_id = server.as_str(), remote:% = remote; "server_id_takeover");
}

/// The holding connection ended and the release is scheduled.
pub fn server_released(server: &ServerId) {
    info!(server_id = server.as_str(); "server_released");
}

/// The grace window passed without a claim.
pub fn server_expired(server: &ServerId, phones: usize) {
    info!(server_id = server.as_str(), phones = phones; "server_expired");
}

/// A phone joined.
pub fn phone_registered(server: &ServerId, conn_id: &str, device_name: &str, remote: IpAddr) {
    info!(
        server_id = server.as_str(), conn_id = conn_id, device_name = device_name,
        remote:% = remote;
        "phone_registered"
    );
}

/// A phone asked for a server-id that nobody holds.
pub fn phone_register_no_server(server: &ServerId, remote: IpAddr) {
    info!(server_id = server.as_str(), remote:% = remote; "phone_register_no_server");
}

/// A phone left, or was closed.
pub fn phone_unregistered(server: &ServerId, conn_id: &str, ended: Ended) {
    info!(
        server_id = server.as_str(), conn_id = conn_id, reason:% = ended;
        "phone_unregistered"
    );
}

/// A TLS handshake came to nothing.
#[cfg(feature = "tls")]
pub fn handshake_failed(remote: IpAddr, error: &dyn std::fmt::Display) {
    debug!(remote:% = remote, reason:% = error; "handshake_failed");
}

/// A certificate was read from its files, and is shown from now on.
#[cfg(feature = "tls")]
pub fn certificate_read(file: &Path, not_after: SystemTime) {
    let not_after = humantime::format_rfc3339_seconds(not_after);
    info!(file:% = file.display(), not_after:% = not_after; "certificate_read");
}

/// The files hold no certificate that can be used; the one before stays.
#[cfg(feature = "tls")]
pub fn certificate_kept(file: &Path, problem: &dyn std::fmt::Display) {
    warn!(file:% = file.display(), reason:% = problem; "certificate_kept");
}

/// A claim of a server-id that is not on the allow-list.
pub fn server_not_allowed(server: &ServerId, remote: IpAddr) {
    info!(server_id = server.as_str(), remote:% = remote; "server_not_allowed");
}

/// A claimed server-id was taken off the allow-list; its binary and its phones are closed.
pub fn server_revoked(server: &ServerId, phones: usize) {
    info!(server_id = server.as_str(), phones = phones; "server_revoked");
}

/// A trusted proxy sent a PROXY header or a forwarding field that cannot be read, or two fields that
/// disagree, the `count`th in all.
pub fn proxy_fault(proxy: IpAddr, count: u64) {
    debug!(remote:% = proxy, count = count; "proxy_fault");
}

/// Loopback has reached a limit of a single address; said once.
pub fn loopback_limited(address: IpAddr) {
    warn!(
        remote:% = address,
        advice = "if that is a proxy, name it with --trusted-proxy: its clients share its limits now";
        "loopback_limited"
    );
}

/// The allow-list was read, at the start or anew; so many claimed server-ids were not on it.
pub fn allow_list_read(path: &Path, server_ids: usize, revoked: usize) {
    info!(
        path:% = path.display(), server_ids = server_ids, revoked = revoked;
        "allow_list_read"
    );
}

/// The allow-list could not be read anew; the one before it holds on.
pub fn allow_list_kept(path: &Path, reason: &dyn std::fmt::Display) {
    warn!(path:% = path.display(), reason:% = reason; "allow_list_kept");
}

/// A binary's envelope was dropped, the `count`th of its connection; `kind` tells why and holds
/// nothing that the peer sent.
pub fn envelope_dropped(server: &ServerId, kind: &dyn std::fmt::Display, count: u64) {
    debug!(server_id = server.as_str(), reason:% = kind, count = count; "envelope_dropped");
}

/// The certificate that was kept for these names is shown.
#[cfg(feature = "tls")]
pub fn certificate_cached(not_after: SystemTime, domains: &[String]) {
    let not_after = humantime::format_rfc3339_seconds(not_after);
    info!(not_after:% = not_after, domains = domains.join(","); "certificate_cached");
}

/// A new certificate for these names is shown.
#[cfg(feature = "tls")]
pub fn certificate_issued(not_after: SystemTime, domains: &[String]) {
    let not_after = humantime::format_rfc3339_seconds(not_after);
    info!(not_after:% = not_after, domains = domains.join(","); "certificate_issued");
}

/// A check of an ACME directory got its answer.
#[cfg(feature = "tls")]
pub fn challenge_answered(remote: IpAddr) {
    debug!(remote:% = remote; "challenge_answered");
}

/// No new certificate came of an order; the one before, if any, is good for so many days.
#[cfg(feature = "tls")]
pub fn certificate_order_failed(reason: &str, days_left: Option<i64>, next_attempt: Duration) {
    warn!(
        reason = reason,
        days_left = days_left.map_or("none".to_owned(), |days| days.to_string()),
        next_attempt_s = next_attempt.as_secs();
        "certificate_order_failed"
    );
}

/// A new certificate is to be replaced at once: the next order waits all the same.
#[cfg(feature = "tls")]
pub fn certificate_renewal_held(next_attempt: Duration) {
    warn!(
        reason = "two thirds of the new certificate's life are over; is the clock right?",
        next_attempt_s = next_attempt.as_secs();
        "certificate_renewal_held"
    );
}

/// A file of the certificate cache is of no use; what it should hold is made anew.
#[cfg(feature = "tls")]
pub fn certificate_cache_unusable(path: &Path, reason: &dyn std::fmt::Display) {
    warn!(path:% = path.display(), reason:% = reason; "certificate_cache_unusable");
}

/// A file of the certificate cache could not be written; what it should hold is used all the same.
#[cfg(feature = "tls")]
pub fn certificate_cache_failed(path: &Path, reason: &dyn std::fmt::Display) {
    warn!(path:% = path.display(), reason:% = reason; "certificate_cache_failed");
}
