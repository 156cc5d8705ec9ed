//! RFC 6455 without a relay in it: frames as bytes, the codec and what stands around it, the
//! heartbeat.

pub mod frames;
pub mod heartbeat;
pub mod wire;
