//! The log events of TLS, of which all that is said in `telemetry::events` is true.

use std::fmt::Display;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use log::{debug, info, warn};

/// A TLS handshake came to nothing.
pub(super) fn handshake_failed(remote: IpAddr, error: &dyn Display) {
    debug!(remote:% = remote, reason:% = error; "handshake_failed");
}

/// A certificate was read from its files, and is shown from now on.
pub(super) fn certificate_read(file: &Path, not_after: SystemTime) {
    let not_after = humantime::format_rfc3339_seconds(not_after);
    info!(file:% = file.display(), not_after:% = not_after; "certificate_read");
}

/// The files hold no certificate that can be used; the one before stays.
pub(super) fn certificate_kept(file: &Path, problem: &dyn Display) {
    warn!(file:% = file.display(), reason:% = problem; "certificate_kept");
}

/// The certificate that was kept for these names is shown.
pub(super) fn certificate_cached(not_after: SystemTime, domains: &[String]) {
    let not_after = humantime::format_rfc3339_seconds(not_after);
    info!(not_after:% = not_after, domains = domains.join(","); "certificate_cached");
}

/// A new certificate for these names is shown.
pub(super) fn certificate_issued(not_after: SystemTime, domains: &[String]) {
    let not_after = humantime::format_rfc3339_seconds(not_after);
    info!(not_after:% = not_after, domains = domains.join(","); "certificate_issued");
}

/// A check of an ACME directory got its answer.
pub(super) fn challenge_answered(remote: IpAddr) {
    debug!(remote:% = remote; "challenge_answered");
}

/// No new certificate came of an order; the one before, if any, is good for so many days.
pub(super) fn certificate_order_failed(
    reason: &str,
    days_left: Option<i64>,
    next_attempt: Duration,
) {
    warn!(
        reason = reason,
        days_left = days_left.map_or("none".to_owned(), |days| days.to_string()),
        next_attempt_s = next_attempt.as_secs();
        "certificate_order_failed"
    );
}

/// A new certificate is to be replaced at once: the next order waits all the same.
pub(super) fn certificate_renewal_held(next_attempt: Duration) {
    warn!(
        reason = "two thirds of the new certificate's life are over; is the clock right?",
        next_attempt_s = next_attempt.as_secs();
        "certificate_renewal_held"
    );
}

/// A file of the certificate cache is of no use; what it should hold is made anew.
pub(super) fn certificate_cache_unusable(path: &Path, reason: &dyn Display) {
    warn!(path:% = path.display(), reason:% = reason; "certificate_cache_unusable");
}

/// A file of the certificate cache could not be written; what it should hold is used all the same.
pub(super) fn certificate_cache_failed(path: &Path, reason: &dyn Display) {
    warn!(path:% = path.display(), reason:% = reason; "certificate_cache_failed");
}
