//! The two kinds of upgraded connections.

/// Which leg of the relay a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leg {
    /// `/v1/server`: a daemon.
    Binary,
    /// `/v1/client`: a phone.
    Phone,
}
