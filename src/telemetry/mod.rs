//! What the relay tells about itself: counters, log events, history, the process, the certificate.

pub(crate) mod certificate;
pub mod events;
pub(crate) mod history;
pub mod logging;
pub(crate) mod metrics;
pub(crate) mod printable;
pub(crate) mod process;
