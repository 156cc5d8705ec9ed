//! The relay over real sockets, as its clients and its operator see it.
//!
//! One program for all of it: it links once, and an emulated machine starts it once.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![allow(clippy::panic, reason = "in a test a panic is the report")]
#![allow(unreachable_pub, reason = "nothing outside could reach a test program's items")]
#![allow(missing_docs, reason = "test names are sentences")]

mod rig;

mod claims;
mod close;
mod examples;
mod forwarding;
mod gate;
mod grace;
mod monitor;
mod program;
mod proxies;
mod queues;
mod rfc6455;
mod sessions;
mod sources;
mod squatting;
mod stop;
mod systemd;
mod timeouts;
#[cfg(feature = "tls")]
mod tls;
