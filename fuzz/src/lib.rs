//! What the fuzz targets run. Each module takes the bytes of one input and panics if something is
//! wrong; the relay's own tests run the same code with the committed seeds (`tests/fuzz.rs`).

#![forbid(unsafe_code)]

pub mod connection;
pub mod envelope;
pub mod gate;
pub mod pipe;
pub mod proxy;
pub mod reference;
#[cfg(feature = "tls")]
pub mod tls_records;
