//! The relay as one running thing: accept, drain, and what systemd wants to hear.

pub mod accept;
pub mod systemd;
