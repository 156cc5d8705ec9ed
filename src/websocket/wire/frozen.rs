//! What has arrived of a peer's input, as plain data: see [`Incoming::freeze`].

use std::rc::Rc;
use std::time::Instant;

use futures_lite::{AsyncRead, AsyncWrite};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::assembly::FrozenAssembly;
use super::pieces::Mask;
use super::{Codecs, Incoming};

/// The input of one connection between two turns.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenIncoming {
    /// The payload of the message in progress, unmasked.
    message: ByteBuf,
    /// What was not looked at.
    input: ByteBuf,
    assembly: FrozenAssembly,
    deaf: bool,
    lost: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Incoming<S> {
    /// What has arrived and is not handled; between two turns.
    pub(crate) fn freeze(&self, now: Instant) -> FrozenIncoming {
        FrozenIncoming {
            message: self.kept.message.copy().into(),
            // Before the first turn it is not kept yet.
            input: [self.kept.input.borrow().as_slice(), self.input.bytes()].concat().into(),
            assembly: self.assembly.freeze(now),
            deaf: self.deaf,
            lost: self.lost,
        }
    }

    /// The input that was frozen, on the socket that goes with it. `None` if the headers of its frames make no
    /// sense.
    pub(crate) fn thaw(
        io: S,
        frozen: FrozenIncoming,
        largest_message: usize,
        codecs: &Rc<Codecs>,
        now: Instant,
    ) -> Option<Self> {
        let incoming = Self {
            assembly: frozen.assembly.thaw(now)?,
            deaf: frozen.deaf,
            lost: frozen.lost,
            ..Self::new(io, Vec::new(), largest_message, codecs)
        };
        incoming.kept.message.append(&frozen.message, &mut Mask::new([0; 4], 0));
        incoming.kept.input.replace(frozen.input.into_vec());
        Some(incoming)
    }
}
