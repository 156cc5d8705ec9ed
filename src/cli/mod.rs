//! The subcommands.

pub mod board;
pub mod check;
pub mod status;
