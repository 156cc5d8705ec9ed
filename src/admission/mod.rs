//! Who may come in: attempts, permits, places among the request heads, the allow-list.

pub mod allow;
pub mod attempts;
pub mod heads;
pub mod permits;
