//! RFC 6455 without a relay in it: frames as bytes, the codec and what stands around it, the
//! heartbeat.

pub mod frames;
pub(crate) mod heartbeat;
pub(crate) mod wire;
