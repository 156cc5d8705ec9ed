//! TLS between accept and head: a stream adapter, and where its certificates come from.

pub mod certificates;
