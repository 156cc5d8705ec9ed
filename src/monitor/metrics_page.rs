//! `/metrics`: names, types, labels and values, in two text formats.
//!
//! `docs/monitoring/metrics.md` lists what is here; a test compares the two. The crate
//! prometheus-client writes OpenMetrics. The older Prometheus format, which it does not write, is
//! made from that line by line: the two differ in how a counter and an info are named in their
//! descriptions, and in the end mark.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::snapshot::Snapshot;
use crate::leg::Leg;
use crate::limits::LAG_BUCKETS;
use crate::telemetry::certificate::Condition;
use crate::telemetry::metrics::{
    AttemptOutcome, Code, Counter, Counters, Direction, Label, Metrics, Side,
};

/// The page in OpenMetrics 1.0.0.
pub(crate) fn open_metrics(snapshot: &Snapshot, metrics: &Metrics) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families(snapshot, metrics))));
    let mut text = String::with_capacity(24 * 1024);
    encode(&mut text, &registry).expect("bug: writing to a String cannot fail");
    text
}

/// The page in the Prometheus text format 0.0.4.
pub(crate) fn prometheus(snapshot: &Snapshot, metrics: &Metrics) -> String {
    let open_metrics = open_metrics(snapshot, metrics);
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ').map(|(_, help)| help);
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|described| described.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            let help = help.take().unwrap_or_default();
            text += &format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with('#') {
            text += line;
            text.push('\n');
        }
    }
    text
}

/// One metric with all its samples.
#[derive(Debug)]
struct Family {
    /// Without the suffix that its type adds.
    name: &'static str,
    help: &'static str,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Counter(u64),
    Counters(Vec<(Vec<Pair>, u64)>),
    Gauge(f64),
    Gauges(Vec<(Pair, f64)>),
    Info(Vec<Pair>),
    Histogram { sum: f64, buckets: Vec<(f64, u64)> },
}

type Pair = (&'static str, &'static str);

fn families(snapshot: &Snapshot, metrics: &Metrics) -> Vec<Family> {
    let mut families = Vec::new();
    let mut add = |name, help, value| families.push(Family { name, help, value });

    add(
        "pyrycode_relay_connected_binaries",
        "Slots that a binary's connection holds",
        gauge(snapshot.counts.binaries),
    );
    add(
        "pyrycode_relay_connected_phones",
        "Phones attached to slots, those in their grace window included",
        gauge(snapshot.counts.phones),
    );
    add(
        "pyrycode_relay_slots_in_grace",
        "Slots in their grace window",
        gauge(snapshot.counts.in_grace),
    );
    add(
        "pyrycode_relay_frames_forwarded",
        "Messages whose last byte the receiver's socket accepted",
        by_label("direction", &metrics.frames),
    );
    add(
        "pyrycode_relay_bytes_forwarded",
        "Bytes of forwarded messages as they went out, framing and envelope included",
        by_label("direction", &metrics.bytes),
    );
    add(
        "pyrycode_relay_ws_upgrade_attempts",
        "Upgrade attempts by what became of them, one decision each",
        attempts(metrics),
    );
    add(
        "pyrycode_relay_register_failures",
        "Peers that could not register; counted among the attempts too",
        by_label("kind", &metrics.failures),
    );
    add(
        "pyrycode_relay_refused_requests",
        "Requests refused before any upgrade",
        by_label("reason", &metrics.refused),
    );
    add(
        "pyrycode_relay_closes",
        "Ends of upgraded connections: of which leg, who decided, and with which close code",
        closes(metrics),
    );
    add(
        "pyrycode_relay_dropped_envelopes",
        "Envelopes of binaries that were not carried out",
        by_label("kind", &metrics.dropped),
    );
    add(
        "pyrycode_relay_reclaim_phones",
        "Phones whose binary's connection changed",
        by_label("outcome", &metrics.reclaim_phones),
    );
    let counters: [(_, _, &Counter); 6] = [
        (
            "pyrycode_relay_grace_expiries",
            "Grace windows that passed without a claim",
            &metrics.grace_expiries,
        ),
        ("pyrycode_relay_reclaims", "Claims inside a grace window", &metrics.reclaims),
        (
            "pyrycode_relay_takeovers",
            "Slots taken from a holder that did not answer its probe",
            &metrics.takeovers,
        ),
        (
            "pyrycode_relay_budget_evictions",
            "Connections closed for the memory budget",
            &metrics.budget_evictions,
        ),
        ("pyrycode_relay_accept_errors", "Accepts that failed", &metrics.accept_errors),
        (
            "pyrycode_relay_proxy_faults",
            "PROXY headers and forwarding fields of trusted proxies that were none",
            &metrics.proxy_faults,
        ),
    ];
    for (name, help, counter) in counters {
        add(name, help, Value::Counter(counter.count()));
    }
    add(
        "pyrycode_relay_queued_bytes",
        "Bytes queued for peers, 64 a message included",
        Value::Gauges(vec![
            (pair("direction", Direction::PhoneToBinary), whole(snapshot.backlog.to_binaries)),
            (pair("direction", Direction::BinaryToPhone), whole(snapshot.backlog.to_phones)),
        ]),
    );
    add(
        "pyrycode_relay_grace_kept_messages",
        "Messages of phones that are kept in grace windows",
        gauge(snapshot.backlog.kept),
    );
    add(
        "pyrycode_relay_memory_held_bytes",
        "What is held for all peers: queues, messages in progress, request heads",
        gauge(snapshot.held),
    );
    add(
        "pyrycode_relay_memory_budget_bytes",
        "What may be held for all peers",
        gauge(snapshot.budget),
    );
    let certificate = snapshot.certificate.as_ref();
    add(
        "pyrycode_relay_certificate_not_after_seconds",
        "Until when the certificate for TLS is valid, in seconds since 1970; 0 without one",
        Value::Gauge(certificate.and_then(Condition::not_after).map_or(0.0, since_1970)),
    );
    add(
        "pyrycode_relay_certificate_renewal_fails",
        "1 if a newer certificate was wanted and could not be had",
        gauge(usize::from(certificate.is_some_and(|certificate| certificate.problem.is_some()))),
    );
    add(
        "pyrycode_relay_event_loop_lag_seconds",
        "Length of the turns of the event loop; what becomes ready during one waits for its end",
        lag(metrics),
    );
    process(snapshot, &mut add);
    families
}

fn process(snapshot: &Snapshot, add: &mut impl FnMut(&'static str, &'static str, Value)) {
    add(
        "process_start_time_seconds",
        "Start of the process by the wall clock, in seconds since 1970",
        Value::Gauge(snapshot.started_at),
    );
    let figures = [
        ("process_open_fds", "Open descriptors", snapshot.process.descriptors),
        ("process_max_fds", "How many descriptors there may be", snapshot.process.descriptor_limit),
        ("process_resident_memory_bytes", "Memory in use", snapshot.process.resident),
    ];
    for (name, help, figure) in figures {
        if let Some(figure) = figure {
            add(name, help, Value::Gauge(figure as f64));
        }
    }
    add(
        "pyrycode_relay_build",
        "What this program was built from",
        Value::Info(vec![
            ("version", env!("CARGO_PKG_VERSION")),
            ("commit", env!("RELAY_COMMIT")),
            ("target", env!("RELAY_TARGET")),
        ]),
    );
}

fn attempts(metrics: &Metrics) -> Value {
    let mut samples = Vec::new();
    for endpoint in Leg::ALL {
        for outcome in AttemptOutcome::ALL {
            let labels = vec![pair("endpoint", *endpoint), pair("outcome", *outcome)];
            samples.push((labels, metrics.attempts(*endpoint, *outcome)));
        }
    }
    Value::Counters(samples)
}

fn closes(metrics: &Metrics) -> Value {
    let mut samples = Vec::new();
    for endpoint in Leg::ALL {
        for side in Side::ALL {
            // No phone has a say in the end of a binary's connection.
            if (*endpoint, *side) == (Leg::Binary, Side::Phone) {
                continue;
            }
            for code in Code::ALL {
                let labels =
                    vec![pair("endpoint", *endpoint), pair("side", *side), pair("code", *code)];
                samples.push((labels, metrics.closes(*endpoint, *side, *code)));
            }
        }
    }
    Value::Counters(samples)
}

fn lag(metrics: &Metrics) -> Value {
    let bounds = LAG_BUCKETS.iter().map(|bound| bound.as_secs_f64()).chain([f64::INFINITY]);
    Value::Histogram {
        sum: metrics.lag.sum().as_secs_f64(),
        buckets: bounds.zip(metrics.lag.buckets()).collect(),
    }
}

fn by_label<L: Label, const N: usize>(name: &'static str, counters: &Counters<L, N>) -> Value {
    let sample = |label: &L| (vec![pair(name, *label)], counters.count(*label));
    Value::Counters(L::ALL.iter().map(sample).collect())
}

fn pair(name: &'static str, label: impl Label) -> Pair {
    (name, label.as_str())
}

fn since_1970(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn gauge(value: usize) -> Value {
    Value::Gauge(whole(value))
}

fn whole(value: usize) -> f64 {
    value as f64
}

/// The families as prometheus-client takes them.
#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { name, help, value } in &self.0 {
            let mut metric = encoder.encode_descriptor(name, help, None, value.kind())?;
            match value {
                Value::Counter(count) => {
                    metric.encode_counter::<NoLabelSet, _, f64>(count, None)?
                }
                Value::Counters(samples) => {
                    for (labels, count) in samples {
                        metric
                            .encode_family(labels)?
                            .encode_counter::<NoLabelSet, _, f64>(count, None)?;
                    }
                }
                Value::Gauge(value) => metric.encode_gauge(value)?,
                Value::Gauges(samples) => {
                    for (label, value) in samples {
                        metric.encode_family(&[*label])?.encode_gauge(value)?;
                    }
                }
                Value::Info(labels) => metric.encode_info(labels)?,
                Value::Histogram { sum, buckets } => {
                    let count = buckets.iter().map(|(_, count)| count).sum();
                    metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)?;
                }
            }
        }
        Ok(())
    }
}

impl Value {
    fn kind(&self) -> MetricType {
        match self {
            Self::Counter(_) | Self::Counters(_) => MetricType::Counter,
            Self::Gauge(_) | Self::Gauges(_) => MetricType::Gauge,
            Self::Info(_) => MetricType::Info,
            Self::Histogram { .. } => MetricType::Histogram,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::snapshot::tests::fresh;

    #[test]
    fn the_older_format_names_counters_and_infos_whole_and_has_no_end_mark() {
        let metrics = Metrics::default();
        let text = prometheus(&fresh(), &metrics);
        for expected in [
            "# TYPE pyrycode_relay_reclaims_total counter\npyrycode_relay_reclaims_total 0\n",
            "# TYPE pyrycode_relay_build_info gauge\npyrycode_relay_build_info{version=",
            "# TYPE pyrycode_relay_event_loop_lag_seconds histogram\n",
            "\npyrycode_relay_event_loop_lag_seconds_bucket{le=\"+Inf\"} 0\n",
            "# TYPE pyrycode_relay_slots_in_grace gauge\npyrycode_relay_slots_in_grace 0",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
        assert!(open_metrics(&fresh(), &metrics).ends_with("\n# EOF\n"));
        assert_eq!(text.matches("# HELP").count(), text.matches("# TYPE").count());
    }
}
