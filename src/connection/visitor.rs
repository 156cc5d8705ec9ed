//! Whoever sends a request: from where it comes, with trusted proxies in between, and whether it
//! may make another attempt.

use std::net::IpAddr;
use std::rc::Rc;

use httparse::Header;
use serde::{Deserialize, Serialize};

use crate::admission::heads::Entry;
use crate::clock;
use crate::http::gate::{Caller, Refusal};
use crate::leg::Leg;
use crate::origin::Origin;
use crate::relay::Relay;

/// What is known of a visitor before its request, as plain data.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct FrozenVisitor {
    pub(crate) address: IpAddr,
    is_proxy: bool,
    is_tls: bool,
    has_paid: bool,
}

/// The peer of a connection that has not been upgraded.
pub(crate) struct Visitor {
    relay: Rc<Relay>,
    entry: Entry,
    address: IpAddr,
    /// `address` is that of a trusted proxy, which may say more.
    is_proxy: bool,
    is_malformed: bool,
    is_tls: bool,
    /// A TLS handshake was charged to `address`.
    has_paid: bool,
    attempted: Option<Leg>,
}

impl Visitor {
    /// Somebody who has connected from `address`, and the place among the heads in progress.
    pub(crate) fn new(relay: &Rc<Relay>, entry: Entry, address: IpAddr) -> Self {
        let is_proxy = relay.config.proxies.trusts(address);
        Self {
            relay: Rc::clone(relay),
            entry,
            address,
            is_proxy,
            is_malformed: false,
            is_tls: false,
            has_paid: false,
            attempted: None,
        }
    }

    /// The same over TLS, which may serve some names alone.
    pub(crate) fn over_tls(relay: &Rc<Relay>, entry: Entry, address: IpAddr) -> Self {
        Self { is_tls: true, ..Self::new(relay, entry, address) }
    }

    /// What is known so far; it has not sent its request yet.
    pub(crate) fn freeze(&self) -> FrozenVisitor {
        FrozenVisitor {
            address: self.address,
            is_proxy: self.is_proxy,
            is_tls: self.is_tls,
            has_paid: self.has_paid,
        }
    }

    /// The visitor that was frozen, in another place among the heads.
    pub(crate) fn thaw(relay: &Rc<Relay>, entry: Entry, frozen: FrozenVisitor) -> Self {
        let FrozenVisitor { address, is_proxy, is_tls, has_paid } = frozen;
        let visitor = Self::new(relay, entry, address);
        Self { is_proxy, is_tls, has_paid, ..visitor }
    }

    /// Whether it visits over TLS.
    pub(crate) fn is_over_tls(&self) -> bool {
        self.is_tls
    }

    /// The relay that it visits.
    pub(crate) fn relay(&self) -> &Rc<Relay> {
        &self.relay
    }

    /// From where it comes, as far as that is known by now: what limits and logs go by.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// The leg at which it has made an upgrade attempt, if it has.
    pub(crate) fn attempted(&self) -> Option<Leg> {
        self.attempted
    }

    /// A PROXY header was read; `from` is the address in it. A proxy that does not tell stands for
    /// itself: whoever is behind it could write header fields at will.
    pub(crate) fn speaks_for(&mut self, from: Option<IpAddr>) {
        self.is_proxy = from.is_some_and(|address| self.relay.config.proxies.trusts(address));
        self.address = from.unwrap_or(self.address);
        if !self.is_proxy {
            self.identify();
        }
    }

    /// Makes a TLS handshake, if the address may.
    ///
    /// A trusted proxy that speaks TLS to the relay and names its client in the request makes the
    /// handshakes of all its clients: they are not limited. The attempts that follow are.
    pub(crate) fn shake(&mut self) -> Result<(), Refusal> {
        let Some(attempts) = self.relay.attempts.as_ref().filter(|_| !self.is_proxy) else {
            return Ok(());
        };
        attempts.admit_handshake(self.address, clock::now()).map_err(Refusal::RateLimited)?;
        self.has_paid = true;
        Ok(())
    }

    /// Tells the table of heads whose this one is, which may cost the oldest of the same source.
    fn identify(&self) {
        let source = Origin::of(self.address);
        self.entry.identify(source, self.relay.permits.room(source));
    }
}

impl Caller for Visitor {
    fn introduce(&mut self, fields: &[Header<'_>]) {
        if !std::mem::take(&mut self.is_proxy) {
            return;
        }
        match self.relay.config.proxies.behind(self.address, fields) {
            Ok(address) => self.address = address,
            Err(_) => self.is_malformed = true,
        }
        self.identify();
    }

    fn attempt(&mut self, leg: Leg) -> Result<(), Refusal> {
        self.attempted = Some(leg);
        if self.is_malformed {
            return Err(Refusal::BadForwarding);
        }
        let Some(attempts) = &self.relay.attempts else { return Ok(()) };
        attempts.admit(self.address, clock::now()).map_err(Refusal::RateLimited)?;
        if std::mem::take(&mut self.has_paid) {
            attempts.refund_handshake(self.address);
        }
        Ok(())
    }

    fn serves(&self, host: Option<&[u8]>) -> bool {
        let secure = self.relay.secure.as_ref().filter(|_| self.is_tls);
        secure.is_none_or(|secure| secure.serves_host(host))
    }
}
