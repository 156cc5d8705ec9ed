//! TLS of its own: real handshakes with certificates made for the test.

mod allowance;
pub mod client;
mod display;
mod handshake;
mod reload;
mod traffic;
