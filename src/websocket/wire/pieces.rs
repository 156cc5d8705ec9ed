//! The payload of a message on its way, in pieces that do not grow.
//!
//! One buffer that grows would leave a hole of every size that it had, and the holes of many connections
//! cost half as much memory again as what they hold. Small pieces alone would do with the least, but as they
//! come and go at the end of the heap, the large buffers of queues come to lie there and do not go back to the
//! system: so much that arrives at once is one piece.

use std::cell::RefCell;

use crate::limits::{LARGE_PIECE, LARGEST_SMALL_PIECE, SMALLEST_PIECE};

/// Bytes in pieces.
#[derive(Default, Debug)]
pub(super) struct Pieces(RefCell<Table>);

/// Large pieces, and behind them small ones, which are joined once they make a large one. All but the last are
/// full.
#[derive(Default, Debug)]
struct Table {
    pieces: Vec<Vec<u8>>,
    /// How many of them are large, and what these hold in bytes.
    large: usize,
    settled: usize,
    length: usize,
    /// What the pieces have room for, in bytes.
    room: usize,
}

impl Pieces {
    /// In bytes.
    pub(super) fn len(&self) -> usize {
        self.0.borrow().length
    }

    /// Memory held, in bytes.
    pub(super) fn held(&self) -> usize {
        let table = self.0.borrow();
        table.room + table.pieces.capacity() * size_of::<Vec<u8>>()
    }

    /// Appends bytes of a payload, unmasked with `mask`.
    pub(super) fn append(&self, mut bytes: &[u8], mask: &mut Mask) {
        let mut table = self.0.borrow_mut();
        while !bytes.is_empty() {
            let arrived = bytes.len();
            let last = table.open_piece(arrived);
            let room = last.capacity() - last.len();
            let (next, rest) = bytes.split_at(room.min(arrived));
            mask.append(last, next);
            table.length += next.len();
            bytes = rest;
        }
    }

    /// Takes the bytes out, piece by piece; each is freed once it has been looked at.
    pub(super) fn drain(&self) -> impl Iterator<Item = Vec<u8>> {
        self.0.take().pieces.into_iter()
    }

    /// Frees everything.
    pub(super) fn clear(&self) {
        drop(self.0.take());
    }
}

impl Table {
    /// A piece with room for the first of `arrived` bytes. All that is held is at most a quarter more than what
    /// has arrived, or [`SMALLEST_PIECE`] and the table.
    fn open_piece(&mut self, arrived: usize) -> &mut Vec<u8> {
        if self.length == self.room {
            if self.length - self.settled >= LARGE_PIECE {
                self.join_small_ones();
            }
            if arrived >= LARGE_PIECE {
                self.add_piece(arrived);
                (self.large, self.settled) = (self.pieces.len(), self.room);
            } else {
                let share = (self.length + arrived) / 8;
                // A few sizes, so that the hole of one fits another.
                self.add_piece(1 << share.clamp(SMALLEST_PIECE, LARGEST_SMALL_PIECE).ilog2());
            }
        }
        self.pieces.last_mut().expect("bug: there is a piece")
    }

    fn add_piece(&mut self, size: usize) {
        if self.pieces.len() == self.pieces.capacity() {
            self.pieces.reserve_exact((self.pieces.len() / 4).max(2));
        }
        self.room += size;
        self.pieces.push(Vec::with_capacity(size));
    }

    /// Many small pieces would leave so much free in the heap that the large buffers of others come to lie in
    /// it, and keep it as large as that.
    fn join_small_ones(&mut self) {
        let mut joined = Vec::with_capacity(self.length - self.settled);
        self.pieces.drain(self.large..).for_each(|piece| joined.extend_from_slice(&piece));
        self.pieces.push(joined);
        (self.large, self.settled) = (self.pieces.len(), self.length);
        self.pieces.shrink_to(self.large + self.large / 4 + 2);
    }
}

/// The mask of a frame (RFC 6455 section 5.3), from a byte of its payload on.
#[derive(Debug)]
pub(super) struct Mask([u8; 4]);

impl Mask {
    /// The mask from the byte `offset` of the payload on.
    pub(super) fn new(mut key: [u8; 4], offset: u64) -> Self {
        key.rotate_left((offset % 4) as usize);
        Self(key)
    }

    /// Appends the next bytes of the payload to a buffer, unmasked.
    pub(super) fn append(&mut self, buffer: &mut Vec<u8>, bytes: &[u8]) {
        let start = buffer.len();
        buffer.extend_from_slice(bytes);
        let [a, b, c, d] = self.0;
        let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
        let mut words = buffer[start..].chunks_exact_mut(8);
        for chunk in &mut words {
            let masked = u64::from_ne_bytes((&*chunk).try_into().expect("bug: chunks of eight"));
            chunk.copy_from_slice(&(masked ^ word).to_ne_bytes());
        }
        for (byte, mask) in words.into_remainder().iter_mut().zip(self.0.iter().cycle()) {
            *byte ^= mask;
        }
        self.0.rotate_left(bytes.len() % 4);
    }
}
