//! Sockets: the addresses that are listened on, what a link needs of a socket, and the one large
//! buffer that all connections share.

pub mod listen;
pub(crate) mod readiness;
pub mod scratch;
pub mod transport;
pub(crate) mod turns;
