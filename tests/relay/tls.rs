//! TLS of its own: real handshakes with certificates made for the test.

mod allowance;
pub mod client;
mod display;
mod handshake;
mod post_quantum;
mod reload;
mod traffic;
