//! One large buffer that all connections share: there is one thread, and nobody needs it for
//! longer than a turn.

use std::cell::Cell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use crate::limits::BATCH_BYTES;

/// Lends the buffer out.
#[derive(Default)]
pub struct Scratch(Cell<Option<Box<[u8]>>>);

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

/// The buffer while it is lent; it goes back when this is dropped.
pub(crate) struct Lent {
    bytes: Box<[u8]>,
    owner: Rc<Scratch>,
}

impl Scratch {
    /// Lends [`BATCH_BYTES`] with unspecified content; a second borrower gets a buffer of its own.
    pub(crate) fn lend(self: &Rc<Self>) -> Lent {
        let bytes = self.0.take().unwrap_or_else(|| vec![0; BATCH_BYTES].into());
        Lent { bytes, owner: Rc::clone(self) }
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the content: it is a peer's.
        f.debug_struct("Lent").finish_non_exhaustive()
    }
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.owner.0.set(Some(std::mem::take(&mut self.bytes)));
    }
}
