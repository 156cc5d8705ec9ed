//! What waits for a peer: the ledger that pays for it, the data queue, the way out of one
//! connection, and the question to the holder of a server-id.

pub mod budget;
pub(crate) mod lane;
pub(crate) mod outbox;
pub(crate) mod probe;
