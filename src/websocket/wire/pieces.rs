//! The payload of a message on its way, in pieces that do not grow.
//!
//! One buffer that grows would leave a hole of every size that it had, and the holes of many connections
//! cost half as much memory again as what they hold. Small pieces alone would do with the least, but as they
//! come and go at the end of the heap, the large buffers of queues come to lie there and do not go back to the
//! system: so much that arrives at once is one piece, unless memory is tight.

use std::cell::{Cell, RefCell};

use crate::limits::{LARGE_PIECE, LARGEST_SMALL_PIECE, SMALLEST_PIECE};

/// Bytes in pieces.
#[derive(Default, Debug)]
pub(super) struct Pieces {
    table: RefCell<Table>,
    /// Whether memory is so tight that all of them are small.
    packed: Cell<bool>,
}

/// Large pieces, and behind them small ones, which are joined once they make a large one unless memory is tight.
/// All but the last are full.
#[derive(Default, Debug)]
struct Table {
    pieces: Vec<Vec<u8>>,
    /// How many of them stay as they are, up to the last large one, and what these hold in bytes.
    settled_pieces: usize,
    settled: usize,
    length: usize,
    /// What the pieces have room for, in bytes.
    room: usize,
    /// What the allocator adds to large ones, in bytes: it gives them whole pages of their own.
    margins: usize,
}

impl Pieces {
    /// In bytes.
    pub(super) fn len(&self) -> usize {
        self.table.borrow().length
    }

    /// Memory held, in bytes.
    pub(super) fn held(&self) -> usize {
        let table = self.table.borrow();
        table.room + table.margins + table.pieces.capacity() * size_of::<Vec<u8>>()
    }

    /// Whether all pieces are small from now on.
    pub(super) fn pack(&self, packed: bool) {
        self.packed.set(packed);
    }

    /// Appends bytes of a payload, unmasked with `mask`.
    pub(super) fn append(&self, mut bytes: &[u8], mask: &mut Mask) {
        let mut table = self.table.borrow_mut();
        while !bytes.is_empty() {
            let arrived = bytes.len();
            let last = table.open_piece(arrived, self.packed.get());
            let room = last.capacity() - last.len();
            let (next, rest) = bytes.split_at(room.min(arrived));
            mask.append(last, next);
            table.length += next.len();
            bytes = rest;
        }
    }

    /// Takes the bytes out, piece by piece; each is freed once it has been looked at.
    pub(super) fn drain(&self) -> impl Iterator<Item = Vec<u8>> {
        self.table.take().pieces.into_iter()
    }

    /// All of the bytes.
    pub(super) fn copy(&self) -> Vec<u8> {
        self.table.borrow().pieces.concat()
    }

    /// Frees everything.
    pub(super) fn clear(&self) {
        drop(self.table.take());
    }
}

/// The usual page of memory, in bytes.
const PAGE: usize = 4096;

impl Table {
    /// A piece with room for the first of `arrived` bytes. All that is held is at most a quarter more than what
    /// has arrived, or [`SMALLEST_PIECE`] and the table.
    fn open_piece(&mut self, arrived: usize, packed: bool) -> &mut Vec<u8> {
        if self.length == self.room {
            if !packed && self.length - self.settled >= LARGE_PIECE {
                self.join_small_ones();
            }
            if !packed && arrived >= LARGE_PIECE {
                self.add_piece(arrived);
                self.margins += PAGE;
                (self.settled_pieces, self.settled) = (self.pieces.len(), self.room);
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
        self.pieces.drain(self.settled_pieces..).for_each(|piece| joined.extend_from_slice(&piece));
        self.pieces.push(joined);
        self.margins += PAGE;
        (self.settled_pieces, self.settled) = (self.pieces.len(), self.length);
        self.pieces.shrink_to(self.settled_pieces + self.settled_pieces / 4 + 2);
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
