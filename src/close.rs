//! Why a connection ends: WebSocket code and reason, and whether it ended by silence.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// A close that the relay decides on. It never originates `4401`, `4412`, `4421` or `4426`, which
/// phones take as final; only a binary's directive carries those.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Close {
    /// The server-id is held by a binary that answered its probe.
    AlreadyClaimed,
    /// No slot for that server-id, or its grace window passed.
    NoServer,
    /// The binary came back by a reclaim that phones do not survive.
    Reclaimed,
    /// The phone cap of the server-id is reached.
    TooManyPhones,
    /// The server-id was taken off the allow-list.
    NotAllowed,
    /// The phone does not read fast enough.
    BacklogFull,
    /// The connection held most, of the source that held most together, when the memory budget was
    /// exhausted.
    OverBudget,
    /// Not a byte for a whole heartbeat, or a holder that did not answer its probe.
    HeartbeatTimeout,
    /// A message was begun and not completed in time.
    MessageTimeout,
    /// A message above the limit.
    TooBig,
    /// A message of empty fragments without an end.
    EmptyFragments,
    /// Text that is not UTF-8.
    BadUtf8,
    /// A phone's message that is not JSON.
    NotJson,
    /// A violation of RFC 6455.
    Protocol,
    /// The relay stops.
    ShuttingDown,
    /// The binary asked for it, with this code.
    Directive(u16),
    /// The answer to the peer's own close frame; `None` answers an empty one.
    Reply(Option<u16>),
}

impl Close {
    /// The status code of the close frame (RFC 6455 section 7.4); `None` for an empty frame.
    pub fn code(self) -> Option<u16> {
        Some(match self {
            Self::AlreadyClaimed => 4409,
            Self::NoServer | Self::Reclaimed => 4404,
            Self::TooManyPhones => 4429,
            Self::BacklogFull | Self::OverBudget => 1013,
            Self::HeartbeatTimeout => 1011,
            Self::MessageTimeout | Self::NotAllowed | Self::EmptyFragments => 1008,
            Self::TooBig => 1009,
            Self::BadUtf8 | Self::NotJson => 1007,
            Self::Protocol => 1002,
            Self::ShuttingDown => 1001,
            Self::Directive(code) => code,
            Self::Reply(code) => return code,
        })
    }

    /// The reason text of the close frame; clients show some of them to people.
    pub fn reason(self) -> &'static str {
        match self {
            Self::AlreadyClaimed => "server-id already claimed",
            Self::NoServer => "no server with that id",
            Self::Reclaimed => "binary reclaimed server-id",
            Self::TooManyPhones => "too many phones",
            Self::NotAllowed => "server-id not allowed",
            Self::BacklogFull => "backlog full",
            Self::OverBudget => "memory budget exhausted",
            Self::HeartbeatTimeout => "heartbeat timeout",
            Self::MessageTimeout => "message timeout",
            Self::TooBig => "message too big",
            Self::EmptyFragments => "too many empty fragments",
            Self::BadUtf8 => "invalid UTF-8",
            Self::NotJson => "invalid JSON",
            Self::Protocol => "protocol error",
            Self::ShuttingDown => "shutting down",
            Self::Directive(_) | Self::Reply(_) => "",
        }
    }
}

/// How a connection came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ended {
    /// The relay decided.
    ByRelay(Close),
    /// The peer sent a close frame first, with this code if any.
    ByPeer(Option<u16>),
    /// The connection ended without a close frame: end of stream, reset, or a cancelled task.
    Dropped,
    /// A write made no progress for too long.
    WriteTimeout,
    /// The kernel gave up on the network path.
    Unreachable,
}

impl Ended {
    /// What an error of the socket means.
    pub(crate) fn by_error(error: &io::Error) -> Self {
        use io::ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut};
        match error.kind() {
            TimedOut | HostUnreachable | NetworkUnreachable | NetworkDown => Self::Unreachable,
            _ => Self::Dropped,
        }
    }

    /// Whether the peer fell silent rather than went away: what its socket had accepted is likely
    /// lost, so the sessions through it cannot be trusted to be whole (contract, grace window).
    pub(crate) fn by_silence(self) -> bool {
        matches!(
            self,
            Self::ByRelay(Close::HeartbeatTimeout) | Self::WriteTimeout | Self::Unreachable
        )
    }

    /// The code that a close notice tells the binary: the phone's own if it closed first, else
    /// the one that the relay closed it with, `1001` for a drop. An empty close frame counts as
    /// `1005` (RFC 6455 section 7.1.5).
    pub(crate) fn notice_code(self) -> u16 {
        match self {
            Self::ByRelay(close) => close.code().unwrap_or(1005),
            Self::ByPeer(code) => code.unwrap_or(1005),
            Self::Dropped | Self::WriteTimeout | Self::Unreachable => 1001,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByRelay(Close::Directive(code)) => write!(f, "closed by binary ({code})"),
            Self::ByRelay(close) => f.write_str(close.reason()),
            Self::ByPeer(Some(code)) => write!(f, "closed by peer ({code})"),
            Self::ByPeer(None) => f.write_str("closed by peer"),
            Self::Dropped => f.write_str("connection lost"),
            Self::WriteTimeout => f.write_str("write timeout"),
            Self::Unreachable => f.write_str("network unreachable"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_a_timeout_and_never_a_close_or_a_reset() {
        assert!(Ended::ByRelay(Close::HeartbeatTimeout).by_silence());
        assert!(Ended::WriteTimeout.by_silence());
        assert!(Ended::by_error(&io::ErrorKind::TimedOut.into()).by_silence());
        assert!(!Ended::by_error(&io::ErrorKind::ConnectionReset.into()).by_silence());
        assert!(!Ended::ByRelay(Close::MessageTimeout).by_silence());
        assert!(!Ended::ByPeer(Some(1000)).by_silence());
        assert!(!Ended::Dropped.by_silence());
    }

    #[test]
    fn a_notice_tells_the_phones_own_code_first() {
        assert_eq!(Ended::ByPeer(Some(4000)).notice_code(), 4000);
        assert_eq!(Ended::ByPeer(None).notice_code(), 1005);
        assert_eq!(Ended::ByRelay(Close::BacklogFull).notice_code(), 1013);
        assert_eq!(Ended::Dropped.notice_code(), 1001);
    }
}
