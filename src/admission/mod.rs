//! Who may come in: attempts, permits, places among the request heads, the allow-list.

pub(crate) mod allow;
pub(crate) mod attempts;
pub mod heads;
pub(crate) mod permits;
