//! The subcommands.

mod ask;
pub mod board;
pub mod check;
pub mod status;
pub mod upgrade;
