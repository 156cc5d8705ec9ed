//! How the certificate of the listeners for TLS is, for people and programs.

use std::time::{Duration, SystemTime};

use crate::limits::CERTIFICATE_PROBLEM;

/// How it is at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    /// From when until when the present certificate is valid; none while there is none.
    pub validity: Option<(SystemTime, SystemTime)>,
    /// Why there is no newer one, if one was wanted.
    pub problem: Option<String>,
}

impl Condition {
    /// Until when the present certificate is valid.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.validity.map(|(_, not_after)| not_after)
    }

    /// Whole days until the certificate expires, or that it has been expired for, as a negative
    /// number.
    pub fn days_left(&self, now: SystemTime) -> Option<i64> {
        let days = |time: Duration| i64::try_from(time.as_secs() / DAY).unwrap_or(i64::MAX);
        self.not_after().map(|not_after| match not_after.duration_since(now) {
            Ok(left) => days(left),
            Err(passed) => -days(passed.duration()) - 1,
        })
    }

    /// What is wrong with it, a sentence each.
    pub fn problems(&self, now: SystemTime) -> Vec<String> {
        let mut problems = Vec::new();
        match self.validity {
            None => problems.push("there is no certificate for TLS".to_owned()),
            Some((not_before, not_after)) => {
                let life = not_after.duration_since(not_before).unwrap_or_default();
                let bound = CERTIFICATE_PROBLEM.min(life / 6);
                match not_after.duration_since(now) {
                    Ok(left) if left >= bound => {}
                    Ok(left) => problems.push(format!(
                        "the certificate expires in {}",
                        humantime::format_duration(Duration::from_secs(left.as_secs()))
                    )),
                    Err(_) => problems.push("the certificate has expired".to_owned()),
                }
            }
        }
        if let Some(problem) = &self.problem {
            problems.push(format!("there is no new certificate: {problem}"));
        }
        problems
    }

    /// The same in a few words, for systemd.
    pub fn summary(&self, now: SystemTime) -> String {
        let left = match self.days_left(now) {
            None => "none".to_owned(),
            Some(days) if days < 0 => "expired".to_owned(),
            Some(days) => format!("{days} days left"),
        };
        let problem = self.problem.as_ref();
        let problem = problem.map(|problem| format!(", no new one: {problem}"));
        format!("certificate: {left}{}", problem.unwrap_or_default())
    }
}

const DAY: u64 = 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn days(days: u64) -> Duration {
        Duration::from_secs(days * DAY)
    }

    fn lasting(life: Duration) -> Condition {
        Condition { validity: Some((START, START + life)), problem: None }
    }

    #[test]
    fn days_are_whole_ones_that_are_left_and_negative_afterwards() {
        let second = Duration::from_secs(1);
        for (left, told) in [
            (days(90), 90),
            (days(2) - second, 1),
            (days(1), 1),
            (days(1) - second, 0),
            (Duration::ZERO, 0),
        ] {
            assert_eq!(lasting(days(90)).days_left(START + days(90) - left), Some(told));
        }
        assert_eq!(lasting(days(90)).days_left(START + days(90) + second), Some(-1));
        assert_eq!(lasting(days(90)).days_left(START + days(91)), Some(-2));
        assert_eq!(Condition { validity: None, problem: None }.days_left(START), None);
    }

    #[test]
    fn it_is_a_problem_in_the_last_fortnight_or_in_the_last_sixth_of_a_short_life() {
        let second = Duration::from_secs(1);
        for (life, fine) in [(days(365), days(14)), (days(90), days(14)), (days(6), days(1))] {
            let condition = lasting(life);
            assert!(condition.problems(START + life - fine).is_empty(), "{life:?}");
            let told = condition.problems(START + life - fine + second);
            assert!(told.len() == 1 && told[0].contains("expires in"), "{told:?}");
        }
        let told = lasting(days(90)).problems(START + days(90) + second);
        assert_eq!(told, ["the certificate has expired"]);
    }

    #[test]
    fn what_failed_is_told_with_what_is_left() {
        let failing = Condition { problem: Some("no route".to_owned()), ..lasting(days(90)) };
        assert_eq!(failing.problems(START), ["there is no new certificate: no route"]);
        let summary = failing.summary(START + days(40));
        assert_eq!(summary, "certificate: 50 days left, no new one: no route");
        let none = Condition { validity: None, problem: None };
        assert_eq!(none.problems(START), ["there is no certificate for TLS"]);
        assert_eq!(none.summary(START), "certificate: none");
        assert_eq!(lasting(days(1)).summary(START + days(2)), "certificate: expired");
    }
}
