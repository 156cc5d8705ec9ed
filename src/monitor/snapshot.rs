//! How the relay is at one moment, as all pages tell it.

use std::time::{Duration, Instant};

use crate::clock;
use crate::limits::{LAG_PROBLEM, USE_PROBLEM};
use crate::registry::{Backlog, Counts};
use crate::relay::{Relay, refusal_kinds};
use crate::telemetry::certificate::Condition;
use crate::telemetry::history::{Point, Span};
use crate::telemetry::process::Process;

/// The figures of one moment. It holds nothing that a peer sent, but it may hold what an ACME
/// directory said.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// Time since the start.
    pub uptime: Duration,
    /// The start by the wall clock, in seconds since 1970.
    pub started_at: f64,
    /// Who is connected.
    pub counts: Counts,
    /// What is queued.
    pub backlog: Backlog,
    /// What is held for all peers, in bytes.
    pub held: usize,
    /// How much that may be.
    pub budget: usize,
    /// What the operating system says.
    pub process: Process,
    /// How the certificate is, if TLS is spoken.
    pub certificate: Option<Condition>,
    /// Messages a second over about the last minute.
    pub rate: f64,
    /// The longest turn of the event loop in about the last minute.
    pub worst_turn: Duration,
    /// Refusals of about the last hour, by kind.
    pub refusals: Vec<(&'static str, u64)>,
    /// The last hour.
    pub hour: Series,
    /// The last day.
    pub day: Series,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
}

/// Points of the history, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// The points, up to the one in progress.
    pub points: Vec<Point>,
    /// What each of them stands for.
    pub period: Duration,
    /// How long the last of them has been in progress.
    pub begun: Duration,
}

impl Snapshot {
    /// Looks at everything.
    pub(crate) fn take(relay: &Relay, now: Instant) -> Self {
        relay.record(now);
        let history = relay.history.borrow();
        let series = |span| {
            let (points, period) = history.points(span);
            let uptime = (now - relay.started).as_secs_f64();
            let begun = Duration::from_secs_f64(uptime % period.as_secs_f64());
            Series { points, period, begun }
        };
        let minute = series(Span::Minute).points;
        let longest = minute.iter().map(|point| point.worst_turn).max().unwrap_or_default();
        let mut snapshot = Self {
            uptime: now - relay.started,
            started_at: relay.started_at,
            counts: relay.registry.counts(),
            backlog: relay.registry.backlog(),
            held: relay.ledger.total(),
            budget: relay.ledger.limit(),
            process: Process::look(),
            certificate: relay.certificate(),
            rate: history.rate(),
            worst_turn: Duration::from_micros(longest.into()),
            refusals: refusal_kinds().zip(history.refusals()).collect(),
            hour: series(Span::Hour),
            day: series(Span::Day),
            problems: Vec::new(),
        };
        let accept_errors = minute.iter().map(|point| u64::from(point.accept_errors)).sum();
        snapshot.problems = snapshot.find_problems(accept_errors);
        snapshot
    }

    fn find_problems(&self, accept_errors: u64) -> Vec<String> {
        let mut problems = Vec::new();
        if self.worst_turn >= LAG_PROBLEM {
            let seconds = self.worst_turn.as_secs_f64();
            problems.push(format!("the event loop stood still for {seconds:.1} s"));
        }
        if accept_errors > 0 {
            problems.push(format!("{accept_errors} connections could not be accepted"));
        }
        let mut nearly = |what: &str, used: u64, limit: u64| {
            if used.saturating_mul(100) >= limit.saturating_mul(USE_PROBLEM) {
                problems.push(format!("{used} of {limit} {what} are in use"));
            }
        };
        nearly("bytes of the memory budget", self.held as u64, self.budget as u64);
        if let (Some(used), Some(limit)) = (self.process.descriptors, self.process.descriptor_limit)
        {
            nearly("descriptors", used, limit);
        }
        if let Some(certificate) = &self.certificate {
            problems.extend(certificate.problems(clock::wall()));
        }
        problems
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{Config, Options};
    use crate::signals::Stop;

    /// The snapshot of a relay that has just started.
    pub(crate) fn fresh() -> Snapshot {
        let options = Options::parse_arguments(["pyrycode-relay"]).unwrap();
        let relay = Relay::new(Config::from_options(options).unwrap(), Stop::new());
        Snapshot::take(&relay, relay.started)
    }

    #[test]
    fn a_relay_that_has_just_started_has_no_problem() {
        assert_eq!(fresh().problems, Vec::<String>::new());
    }

    #[test]
    fn each_problem_is_told_from_its_bound_on_and_not_below() {
        let told = |change: &dyn Fn(&mut Snapshot), accept_errors| {
            let mut snapshot = fresh();
            change(&mut snapshot);
            snapshot.find_problems(accept_errors)
        };
        let limited = |used| {
            move |snapshot: &mut Snapshot| {
                snapshot.process.descriptors = Some(used);
                snapshot.process.descriptor_limit = Some(100);
            }
        };
        assert!(told(&|snapshot| snapshot.worst_turn = LAG_PROBLEM / 2, 0).is_empty());
        assert_eq!(
            told(&|snapshot| snapshot.worst_turn = LAG_PROBLEM, 0),
            ["the event loop stood still for 5.0 s"]
        );
        assert_eq!(told(&|_| {}, 3), ["3 connections could not be accepted"]);
        assert!(told(&limited(89), 0).is_empty());
        assert_eq!(told(&limited(90), 0), ["90 of 100 descriptors are in use"]);
        assert_eq!(
            told(&|snapshot| (snapshot.held, snapshot.budget) = (10, 10), 0),
            ["10 of 10 bytes of the memory budget are in use"]
        );
        let none = Condition { validity: None, problem: None };
        assert_eq!(
            told(&|snapshot| snapshot.certificate = Some(none.clone()), 0),
            ["there is no certificate for TLS"]
        );
    }
}
