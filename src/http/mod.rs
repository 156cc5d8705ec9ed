//! A request before its upgrade: the head, the gate, and what proxies say about the client.

pub mod forwarded;
pub mod gate;
pub mod head;
pub mod proxies;
pub mod proxy_header;
