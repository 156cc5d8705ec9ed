//! `/status.json`.

use humantime::format_rfc3339_seconds;
use serde_json::{Value, json};

use super::snapshot::{Series, Snapshot};
use crate::clock;

/// The page.
pub(crate) fn status(snapshot: &Snapshot) -> String {
    let Snapshot { counts, backlog, process, .. } = snapshot;
    let refusals: serde_json::Map<_, _> =
        snapshot.refusals.iter().map(|(kind, count)| ((*kind).to_owned(), json!(count))).collect();
    let page = json!({
        "status": if snapshot.problems.is_empty() { "ok" } else { "problem" },
        "problems": snapshot.problems,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": snapshot.uptime.as_secs(),
        "started_at": snapshot.started_at,
        "connected_binaries": counts.binaries,
        "connected_phones": counts.phones,
        "slots_in_grace": counts.in_grace,
        "messages_per_second": snapshot.rate,
        "longest_turn_seconds": snapshot.worst_turn.as_secs_f64(),
        "queued_bytes": {
            "phone_to_binary": backlog.to_binaries,
            "binary_to_phone": backlog.to_phones,
        },
        "grace_kept_messages": backlog.kept,
        "memory": {
            "held_bytes": snapshot.held,
            "budget_bytes": snapshot.budget,
            "resident_bytes": process.resident,
        },
        "certificate": snapshot.certificate.as_ref().map(|certificate| json!({
            "not_after": certificate.not_after().map(|at| format_rfc3339_seconds(at).to_string()),
            "days_left": certificate.days_left(clock::wall()),
            "problem": certificate.problem,
        })),
        "descriptors": { "used": process.descriptors, "limit": process.descriptor_limit },
        "refusals_last_hour": refusals,
        "history": { "hour": series(&snapshot.hour), "day": series(&snapshot.day) },
    });
    format!("{page}\n")
}

/// Oldest first, the last one in progress.
fn series(series: &Series) -> Value {
    let points = &series.points;
    json!({
        "period_seconds": series.period.as_secs(),
        "messages": points.iter().map(|point| point.messages).collect::<Vec<_>>(),
        "longest_turn_microseconds": points.iter().map(|point| point.worst_turn).collect::<Vec<_>>(),
        "binaries": points.iter().map(|point| point.binaries).collect::<Vec<_>>(),
        "phones": points.iter().map(|point| point.phones).collect::<Vec<_>>(),
    })
}
