//! A relay that carries WebSocket messages between phones and a daemon behind NAT.
//!
//! A *binary* (the daemon) claims a server-id at `/v1/server`; phones name it at `/v1/client`; the
//! relay routes between them by that id and never looks inside a message.
//!
//! # Threads
//!
//! All code of the relay runs on one thread, the one that calls [`server::run`]. `async-io` starts
//! one helper thread of its own, which polls the operating system only while that thread does not;
//! none of the relay's state is ever touched by it. While a certificate is ordered by ACME, names are
//! resolved and files read and written on threads that end soon after.
//!
//! # Where things are
//!
//! `docs/architecture.md` has the picture, the life of a message and of a disconnect; each module
//! says what it is for. They stand below in the order of the floor plan: a module imports only from
//! those before it, which `tests/layers.rs` checks.

pub mod clock;
pub mod close;
pub(crate) mod file;
pub mod ids;
pub mod leg;
pub mod limits;
pub(crate) mod links;
pub mod origin;
pub mod signals;

pub mod telemetry;

pub mod net;

pub mod websocket;

pub mod envelope;

pub mod queue;

pub mod admission;

pub mod http;

#[cfg(not(feature = "tls"))]
pub(crate) mod no_tls;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(not(feature = "tls"))]
pub(crate) use self::no_tls as tls;

pub mod config;

pub mod registry;

pub mod relay;

pub(crate) mod monitor;

pub mod connection;

pub mod handover;

pub mod server;

pub mod cli;
