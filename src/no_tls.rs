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
    pub(crate) use crate::net::transport::Tcp as Tls;
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
