//! The other end of the relay's connections: WebSocket frames as a client writes and reads them, TLS
//! records, sockets in memory, and wakers that count.
//!
//! Nothing here uses the relay's code, so that a mistake in one shows in the other. The fuzz targets
//! have an encoder and a decoder of their own, for the same reason.

pub mod frame;
pub mod inbox;
pub mod protection;
pub mod socket;
pub mod wake;
