//! Stands in for `tls` in a program that is built without it, with the names that the rest asks for.
//!
//! There is no value of [`Secure`] and none of [`TlsSettings`]: the compiler drops whatever needs
//! one.

use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use self::options::TlsSettings;
use self::stream::Tls;
use crate::net::transport::Tcp;
use crate::queue::budget::Account;
use crate::telemetry::certificate::Condition;
use crate::telemetry::metrics::Metrics;

pub(crate) mod options {
    use clap::Args;

    use crate::net::listen::Listen;

    /// There are none.
    #[derive(Args, Clone, Debug)]
    #[group(skip)]
    pub(crate) struct TlsOptions {}

    #[derive(Clone, Debug)]
    pub(crate) enum TlsSettings {}

    impl TlsSettings {
        pub(crate) fn from_options(_: TlsOptions) -> Result<Option<Self>, String> {
            Ok(None)
        }

        pub(crate) fn listen(&self) -> &[Listen] {
            match *self {}
        }

        pub(crate) fn reads_files(&self) -> bool {
            match *self {}
        }
    }

    pub(crate) const NOT_SET_UP: &str = "this relay was built without TLS";
}

pub(crate) mod stream {
    use std::fmt;
    use std::io;
    use std::pin::Pin;
    use std::rc::Rc;
    use std::task::{Context, Poll};

    use futures_lite::{AsyncRead, AsyncWrite};
    use serde::Deserialize;

    use crate::net::scratch::Scratch;
    use crate::net::transport::{Tcp, Transport};

    /// There is none.
    #[derive(Debug)]
    pub(crate) enum Tls {}

    /// What a program with TLS has frozen: whatever it is, it is not looked at.
    #[derive(Debug, Deserialize)]
    pub(crate) struct Frozen {}

    /// Why it cannot be used.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct Unusable;

    impl fmt::Display for Unusable {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(super::options::NOT_SET_UP)
        }
    }

    impl std::error::Error for Unusable {}

    impl Tls {
        pub(crate) fn thaw(_: Tcp, _: Frozen, _: &Rc<Scratch>) -> Result<Self, Unusable> {
            Err(Unusable)
        }
    }

    impl Transport for Tls {
        fn poll_readable(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            match *self {}
        }

        fn has_hung_up(&self) -> bool {
            match *self {}
        }

        fn reset(&mut self) {
            match *self {}
        }
    }

    impl AsyncRead for Tls {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            match *self {}
        }
    }

    impl AsyncWrite for Tls {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            match *self {}
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            match *self {}
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            match *self {}
        }
    }
}

#[derive(Debug)]
pub(crate) enum Secure {}

impl Secure {
    pub(crate) fn new(settings: &TlsSettings) -> Result<Self, String> {
        match *settings {}
    }

    pub(crate) fn condition(&self) -> Condition {
        match *self {}
    }

    pub(crate) fn poll_changed(&self, _: &mut Context<'_>, _: &mut u64) -> Poll<()> {
        match *self {}
    }

    pub(crate) fn serves_host(&self, _: Option<&[u8]>) -> bool {
        match *self {}
    }

    pub(crate) fn reload(&self) {
        match *self {}
    }

    pub(crate) async fn maintain(&self) {
        match *self {}
    }

    #[allow(clippy::too_many_arguments, reason = "each is asked for once and by nobody else")]
    pub(crate) async fn shake(
        &self,
        _: Tcp,
        _: Vec<u8>,
        _: Instant,
        _: IpAddr,
        _: &Rc<Account>,
        _: &Metrics,
        _: impl FnOnce() -> bool,
    ) -> Result<Tls, Option<Tcp>> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_bytes::ByteBuf;

    use super::stream::Frozen;

    #[test]
    fn what_a_program_with_tls_has_frozen_is_passed_over() {
        let theirs = BTreeMap::from([("records", ByteBuf::from([1; 300]))]);
        let bytes = rmp_serde::to_vec_named(&(theirs, "next")).unwrap();
        let (_, next): (Frozen, String) = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!(next, "next");
    }
}
