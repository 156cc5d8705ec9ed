//! What the relay's allocator has given out for its connections, against what its ledger says.
//!
//! Each test starts a relay in a process of its own, so that all that is allocated there is the
//! relay's. The test is the client. At rest it compares the allocator's figure with `held_bytes` of
//! the status page, and at the end, when all connections are closed, both must be back where they
//! began. With `--nocapture` it prints the figures.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![allow(clippy::print_stdout, reason = "the figures, for `--nocapture`")]
#![allow(unreachable_pub, reason = "nothing outside could reach a test program's items")]
#![allow(missing_docs, reason = "test names are sentences")]

mod client;
mod closing;
mod idle;
mod input;
mod measure;
mod queues;
mod relay;
#[cfg(feature = "tls")]
mod tls;

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;
