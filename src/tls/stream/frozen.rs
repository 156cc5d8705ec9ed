//! A TLS connection on its way to another program.

use std::fmt;
use std::rc::Rc;

use rustls::Error;
use serde::{Deserialize, Serialize};

use super::{Session, Tls, Unusable};
use crate::net::scratch::Scratch;
use crate::net::transport::Tcp;
use crate::tls::record::{FrozenInbound, FrozenOutbound, Inbound, Outbound};

/// What a [`Tls`] is between two turns, without its socket.
#[derive(Serialize, Deserialize)]
pub(crate) struct Frozen {
    inbound: FrozenInbound,
    outbound: FrozenOutbound,
    #[serde(default, with = "serde_bytes")]
    records: Vec<u8>,
    #[serde(default, with = "serde_bytes")]
    plaintext: Vec<u8>,
    /// What the socket has not accepted, and nothing that it has.
    #[serde(default, with = "serde_bytes")]
    unsent: Vec<u8>,
    #[serde(default)]
    has_ended: bool,
    /// Why it cannot go on, in words.
    #[serde(default)]
    failed: Option<String>,
    #[serde(default)]
    fruitless: usize,
    #[serde(default)]
    wrote: bool,
}

impl Tls {
    /// What another program needs in order to go on with the same socket. Nothing changes here.
    pub(crate) fn freeze(&self) -> Frozen {
        let Session {
            tcp: _,
            inbound,
            outbound,
            records,
            plaintext,
            unsent,
            sent,
            is_drained: _,
            has_ended,
            failed,
            fruitless,
            wrote,
            charge: _,
            scratch: _,
        } = &*self.0;
        Frozen {
            inbound: inbound.freeze(),
            outbound: outbound.freeze(),
            records: records.clone(),
            plaintext: plaintext.clone(),
            unsent: unsent[*sent..].to_vec(),
            has_ended: *has_ended,
            failed: failed.as_ref().map(|error| match error {
                // It has been in words before.
                Error::General(words) => words.clone(),
                error => error.to_string(),
            }),
            fruitless: *fruitless,
            wrote: *wrote,
        }
    }

    /// Goes on with `tcp` where another program stopped. Somebody else pays for what this holds. The socket is asked
    /// whether there is anything to read: nobody has been listening to it.
    pub(crate) fn thaw(tcp: Tcp, frozen: Frozen, scratch: &Rc<Scratch>) -> Result<Self, Unusable> {
        let inbound = Inbound::thaw(&frozen.inbound)?;
        let outbound = Outbound::thaw(&frozen.outbound)?;
        if !inbound.goes_with(&outbound) {
            return Err(Unusable::Suite);
        }
        Ok(Self(Box::new(Session {
            tcp,
            inbound,
            outbound,
            records: frozen.records,
            plaintext: frozen.plaintext,
            unsent: frozen.unsent,
            sent: 0,
            is_drained: false,
            has_ended: frozen.has_ended,
            failed: frozen.failed.map(Error::General),
            fruitless: frozen.fruitless,
            wrote: frozen.wrote,
            charge: None,
            scratch: Rc::clone(scratch),
        })))
    }
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the content: it is a peer's.
        f.debug_struct("Frozen").finish_non_exhaustive()
    }
}
