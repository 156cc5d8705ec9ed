//! What the relay tells about itself: counters, log events, history, the process, the certificate.

pub mod certificate;
pub mod events;
pub mod history;
pub mod logging;
pub mod metrics;
pub mod process;
