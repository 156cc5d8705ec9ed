//! TLS of its own: real handshakes with certificates made for the test.

pub mod client;
mod display;
mod handshake;
mod reload;
mod traffic;
