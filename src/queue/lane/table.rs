//! The table of a queue, in chunks.
//!
//! One table that grows is copied again and again, and each time leaves a hole that no later table fits
//! into: those of many queues cost half as much memory again as what they hold.

use std::collections::VecDeque;
use std::collections::vec_deque;
use std::iter::Flatten;

/// A queue whose memory comes and goes in small portions.
#[derive(Debug)]
pub(super) struct Table<T> {
    /// All but the first and the last are full, or were before something was dropped from the middle: three
    /// quarters of each are left.
    chunks: VecDeque<VecDeque<T>>,
    count: usize,
}

/// The entries of a table, from the front to the back.
pub(super) type Iter<'a, T> = Flatten<vec_deque::Iter<'a, VecDeque<T>>>;

/// Entries of a chunk: with those of a lane it is just below 2 KiB.
const CHUNK: usize = 42;

/// Entries that the first chunk has room for at least.
const LEAST: usize = 8;

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { chunks: VecDeque::new(), count: 0 }
    }
}

impl<T> Table<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn front(&self) -> Option<&T> {
        self.chunks.front()?.front()
    }

    pub(super) fn iter(&self) -> Iter<'_, T> {
        self.chunks.iter().flatten()
    }

    pub(super) fn push_back(&mut self, entry: T) {
        self.open_chunk().push_back(entry);
        self.count += 1;
    }

    /// The last chunk, with room for one more.
    fn open_chunk(&mut self) -> &mut VecDeque<T> {
        if self.chunks.back().is_none_or(|last| last.len() >= CHUNK) {
            let room = if self.chunks.is_empty() { LEAST } else { CHUNK };
            let chunks = self.chunks.len();
            if chunks == self.chunks.capacity() {
                self.chunks.reserve_exact((chunks / 4).max(1));
            }
            self.chunks.push_back(VecDeque::with_capacity(room));
        }
        let last = self.chunks.back_mut().expect("bug: there is a chunk");
        if last.len() == last.capacity() {
            last.reserve_exact(last.len().min(CHUNK - last.len()));
        }
        last
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        let is_only = self.chunks.len() == 1;
        let first = self.chunks.front_mut()?;
        let entry = first.pop_front()?;
        self.count -= 1;
        let (count, room) = (first.len(), first.capacity());
        if !is_only && count == 0 {
            self.chunks.pop_front();
            self.shrink();
        } else if is_only && room > 2 * LEAST && count < room / 4 {
            first.shrink_to(room / 2);
        }
        Some(entry)
    }

    /// Keeps the entries of which `is_kept` says so; it is asked from the front to the back.
    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(&T) -> bool) {
        for chunk in &mut self.chunks {
            chunk.retain(&mut is_kept);
        }
        self.count = self.chunks.iter().map(VecDeque::len).sum();
        // Each of them, and not all together: the full ones in front are the first to go.
        let is_sparse = |chunk: &VecDeque<T>| {
            chunk.capacity() > 2 * LEAST && chunk.len() < (chunk.capacity() * 3).div_ceil(4)
        };
        // The first and the last are so anyway; of many they do not matter.
        let inner = match self.chunks.len() {
            count @ 4.. => 1..count - 1,
            count => 0..count,
        };
        if self.chunks.range(inner).any(is_sparse) {
            for entry in std::mem::take(self) {
                self.push_back(entry);
            }
        } else {
            self.chunks.retain(|chunk| !chunk.is_empty());
        }
        self.shrink();
    }

    /// Gives back what the list of chunks does not need any more.
    fn shrink(&mut self) {
        let chunks = self.chunks.len();
        if self.chunks.capacity() > LEAST && chunks < self.chunks.capacity() / 2 {
            self.chunks.shrink_to(chunks + chunks / 4);
        }
    }
}

impl<T> IntoIterator for Table<T> {
    type Item = T;
    type IntoIter = Flatten<<VecDeque<VecDeque<T>> as IntoIterator>::IntoIter>;

    fn into_iter(self) -> Self::IntoIter {
        self.chunks.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One thing that is done to a table.
    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Pop(usize),
        /// Drops what does not leave this remainder.
        Drop(u32, u32),
    }

    fn a_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..400_usize).prop_map(Step::Push),
            (1..400_usize).prop_map(Step::Pop),
            (1..9_u32, 0..9_u32).prop_map(|(divisor, rest)| Step::Drop(divisor, rest)),
        ]
    }

    proptest! {
        #[test]
        fn it_does_what_a_plain_queue_does_in_little_more_memory(
            steps in proptest::collection::vec(a_step(), 1..40),
        ) {
            let (mut table, mut plain, mut next) = (Table::default(), VecDeque::new(), 0_u32);
            for step in steps {
                match step {
                    Step::Push(count) => for _ in 0..count {
                        table.push_back(next);
                        plain.push_back(next);
                        next += 1;
                    },
                    Step::Pop(count) => for _ in 0..count {
                        prop_assert_eq!(table.pop_front(), plain.pop_front());
                    },
                    Step::Drop(divisor, rest) => {
                        table.retain(|entry| entry % divisor != rest);
                        plain.retain(|entry| entry % divisor != rest);
                    }
                }
                prop_assert_eq!(table.front(), plain.front());
                prop_assert_eq!(table.is_empty(), plain.is_empty());
                prop_assert!(table.iter().eq(&plain));
                let room: usize = table.chunks.iter().map(VecDeque::capacity).sum();
                prop_assert!(room <= plain.len() + plain.len() / 3 + 2 * CHUNK, "{} places", room);
                let chunks = table.chunks.capacity();
                prop_assert!(chunks <= 2 * table.chunks.len() + LEAST, "{} chunks", chunks);
            }
            prop_assert!(table.into_iter().eq(plain));
        }
    }
}
