//! How far a link has come, from its first message to its end.
//!
//! Pure: it is fed with what happens and with `Instant`s, and does nothing by itself.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::close::Ended;
use crate::limits::{HANGUP_CHECK, LINGER_TIME};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Messages flow.
    Open,
    /// The peer is held back: messages flow out only. At `look` the link checks whether it has hung up.
    Held { look: Instant },
    /// The end is decided; the close frame is on its way and must be out by the deadline, if any.
    Closing {
        ended: Ended,
        deadline: Option<Instant>,
        /// The peer has shut down writing. It may still be reading.
        peer_done: bool,
    },
    /// The close frame is out; input is discarded until the peer answers or ends, or until `until`. A peer
    /// that closed first may still have a pong under way: closing the socket before it arrives would send a
    /// reset, which destroys what is on its way to the peer.
    Lingering { ended: Ended, until: Instant },
    /// Everything is done.
    Over(Ended),
}

/// What happens to a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// A message of the peer found no room.
    Full,
    /// There is room again.
    Room,
    /// The end is decided, and a close frame is to go out.
    Decided(Ended),
    /// The close frame must be out by this moment.
    Hurry(Instant),
    /// The peer's close frame came after the end was decided.
    PeerClosed,
    /// The peer has shut down writing.
    PeerDone,
    /// The close frame is out, and the end of the stream after it.
    Written,
    /// The connection ends without another word.
    Cut(Ended),
    /// Time has passed.
    Time,
}

impl Phase {
    /// The phase after `event`, which happens at `now`. Where an event means nothing, nothing changes.
    pub(super) fn next(self, event: Event, now: Instant) -> Self {
        match (self, event) {
            (Self::Open, Event::Full) => Self::Held { look: now + HANGUP_CHECK },
            (Self::Held { .. }, Event::Room) => Self::Open,
            (Self::Held { look }, Event::Time) if now >= look => {
                Self::Held { look: now + HANGUP_CHECK }
            }
            (Self::Open | Self::Held { .. }, Event::Decided(ended)) => {
                Self::Closing { ended, deadline: None, peer_done: false }
            }
            (Self::Open | Self::Held { .. }, Event::PeerDone) => Self::Over(Ended::Dropped),
            (Self::Open | Self::Held { .. }, Event::Cut(ended)) => Self::Over(ended),
            (Self::Closing { ended, deadline: None, peer_done }, Event::Hurry(by)) => {
                Self::Closing { ended, deadline: Some(by), peer_done }
            }
            (Self::Closing { ended, deadline, .. }, Event::PeerDone) => {
                Self::Closing { ended, deadline, peer_done: true }
            }
            (Self::Closing { ended, peer_done: false, .. }, Event::Written) => {
                Self::Lingering { ended, until: now + LINGER_TIME }
            }
            (Self::Closing { ended, .. }, Event::Written | Event::Cut(_))
            | (Self::Lingering { ended, .. }, Event::PeerDone | Event::Cut(_)) => Self::Over(ended),
            // It answers the relay's close frame or crosses it. What is there already is still read.
            (Self::Lingering { ended, .. }, Event::PeerClosed) => {
                Self::Lingering { ended, until: now }
            }
            (Self::Lingering { ended, until }, Event::Time) if now >= until => Self::Over(ended),
            _ => self,
        }
    }

    /// Whether the end of the connection has not been decided yet.
    pub(super) fn is_undecided(self) -> bool {
        self.ended().is_none()
    }

    /// What the connection ends, or has ended, by; `None` while that is undecided.
    pub(super) fn ended(self) -> Option<Ended> {
        match self {
            Self::Open | Self::Held { .. } => None,
            Self::Closing { ended, .. } | Self::Lingering { ended, .. } | Self::Over(ended) => {
                Some(ended)
            }
        }
    }

    /// Whether the peer is read.
    pub(super) fn reads(self) -> bool {
        matches!(self, Self::Open | Self::Closing { .. } | Self::Lingering { .. })
    }

    /// Whether nothing more can come from the peer.
    pub(super) fn is_peer_done(self) -> bool {
        matches!(self, Self::Closing { peer_done: true, .. } | Self::Over(_))
    }

    /// When the phase itself is over, unless something else happens.
    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Open | Self::Over(_) => None,
            Self::Held { look } => Some(look),
            Self::Closing { deadline, .. } => deadline,
            Self::Lingering { until, .. } => Some(until),
        }
    }

    /// Whether that moment has come.
    pub(super) fn is_due(self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }

    /// The phase as plain data; `None` if everything is done.
    pub(super) fn freeze(self, now: Instant) -> Option<FrozenPhase> {
        let until = |deadline: Instant| deadline.saturating_duration_since(now);
        Some(match self {
            Self::Open => FrozenPhase::Open,
            Self::Held { look } => FrozenPhase::Held { look: until(look) },
            Self::Closing { ended, deadline, peer_done } => {
                FrozenPhase::Closing { ended, remaining: deadline.map(until), peer_done }
            }
            Self::Lingering { ended, until: end } => {
                FrozenPhase::Lingering { ended, remaining: until(end) }
            }
            Self::Over(_) => return None,
        })
    }

    /// The phase that was frozen.
    pub(super) fn thaw(frozen: FrozenPhase, now: Instant) -> Self {
        let until = |left: Duration| clock::later(now, left);
        match frozen {
            FrozenPhase::Open => Self::Open,
            FrozenPhase::Held { look } => Self::Held { look: until(look) },
            FrozenPhase::Closing { ended, remaining, peer_done } => {
                Self::Closing { ended, deadline: remaining.map(until), peer_done }
            }
            FrozenPhase::Lingering { ended, remaining } => {
                Self::Lingering { ended, until: until(remaining) }
            }
        }
    }
}

/// A phase as plain data; times are what is left.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum FrozenPhase {
    Open,
    Held { look: Duration },
    Closing { ended: Ended, remaining: Option<Duration>, peer_done: bool },
    Lingering { ended: Ended, remaining: Duration },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::Close;

    const DECIDED: Ended = Ended::ByRelay(Close::OverBudget);
    const OTHER: Ended = Ended::WriteTimeout;

    /// Every phase, with its times in the past of `now` and in its future.
    fn phases(now: Instant) -> Vec<Phase> {
        let second = Duration::from_secs(1);
        let times = [now - second, now, now + second];
        let mut phases = vec![Phase::Open, Phase::Over(DECIDED)];
        phases.extend(times.map(|look| Phase::Held { look }));
        phases.extend(times.map(|until| Phase::Lingering { ended: DECIDED, until }));
        for peer_done in [false, true] {
            for deadline in times.map(Some).into_iter().chain([None]) {
                phases.push(Phase::Closing { ended: DECIDED, deadline, peer_done });
            }
        }
        phases
    }

    /// Every event.
    fn events(decided: Ended, by: Instant, cut: Ended) -> [Event; 9] {
        [
            Event::Full,
            Event::Room,
            Event::Decided(decided),
            Event::Hurry(by),
            Event::PeerClosed,
            Event::PeerDone,
            Event::Written,
            Event::Cut(cut),
            Event::Time,
        ]
    }

    /// What each event leads to, written by phase as a person reads a state diagram.
    fn expected(phase: Phase, event: Event, now: Instant) -> Phase {
        let held = Phase::Held { look: now + HANGUP_CHECK };
        let closing = |deadline, peer_done| Phase::Closing { ended: DECIDED, deadline, peer_done };
        let lingering = |until| Phase::Lingering { ended: DECIDED, until };
        let over = Phase::Over(DECIDED);
        match phase {
            Phase::Open => match event {
                Event::Full => held,
                Event::Decided(DECIDED) => closing(None, false),
                Event::PeerDone => Phase::Over(Ended::Dropped),
                Event::Cut(OTHER) => Phase::Over(OTHER),
                _ => phase,
            },
            Phase::Held { look } => match event {
                Event::Room => Phase::Open,
                Event::Decided(DECIDED) => closing(None, false),
                Event::PeerDone => Phase::Over(Ended::Dropped),
                Event::Cut(OTHER) => Phase::Over(OTHER),
                Event::Time if look <= now => held,
                _ => phase,
            },
            Phase::Closing { deadline, peer_done, .. } => match event {
                Event::Hurry(by) => closing(deadline.or(Some(by)), peer_done),
                Event::PeerDone => closing(deadline, true),
                Event::Written if peer_done => over,
                Event::Written => lingering(now + LINGER_TIME),
                Event::Cut(_) => over,
                _ => phase,
            },
            Phase::Lingering { until, .. } => match event {
                Event::PeerClosed => lingering(now),
                Event::PeerDone | Event::Cut(_) => over,
                Event::Time if until <= now => over,
                _ => phase,
            },
            Phase::Over(_) => phase,
        }
    }

    #[test]
    fn every_event_in_every_phase_leads_where_it_should() {
        let now = clock::now() + Duration::from_secs(60);
        let by = now + Duration::from_secs(7);
        for phase in phases(now) {
            for event in events(DECIDED, by, OTHER) {
                let next = phase.next(event, now);
                assert_eq!(next, expected(phase, event, now), "{phase:?} and {event:?}");
            }
        }
    }

    /// Whatever happens, in whatever order.
    #[test]
    fn an_end_is_decided_once_and_no_phase_is_gone_back_to() {
        let now = clock::now() + Duration::from_secs(60);
        let rank = |phase: Phase| match phase {
            Phase::Open | Phase::Held { .. } => 0,
            Phase::Closing { .. } => 1,
            Phase::Lingering { .. } => 2,
            Phase::Over(_) => 3,
        };
        for phase in phases(now) {
            for event in events(OTHER, now, Ended::Unreachable) {
                let next = phase.next(event, now);
                assert!(rank(next) >= rank(phase), "{phase:?} and {event:?} lead to {next:?}");
                let is_kept = phase.is_undecided() || next.ended() == phase.ended();
                assert!(is_kept, "{phase:?} and {event:?} lead to {next:?}");
            }
        }
    }

    #[test]
    fn an_upgrade_keeps_the_phase_and_what_is_left_of_its_time() {
        let (now, later) = (clock::now() + Duration::from_secs(60), Duration::from_secs(3600));
        for phase in phases(now) {
            let Some(frozen) = phase.freeze(now) else {
                assert!(matches!(phase, Phase::Over(_)));
                continue;
            };
            let bytes = rmp_serde::to_vec_named(&frozen).unwrap();
            let thawed = Phase::thaw(rmp_serde::from_slice(&bytes).unwrap(), now + later);
            let left = |phase: Phase, now| {
                phase.deadline().map(|deadline| deadline.saturating_duration_since(now))
            };
            assert_eq!(left(thawed, now + later), left(phase, now));
            assert_eq!(thawed.is_peer_done(), phase.is_peer_done());
            assert_eq!(std::mem::discriminant(&thawed), std::mem::discriminant(&phase));
        }
    }
}
