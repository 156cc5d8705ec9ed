//! The upgraded connections of a relay, for whoever hands them over to another program.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

/// A connection that can be handed over.
pub(crate) trait Carried {
    /// What it is at `now`, between two turns of its task. Nothing changes by that. `None` for one that is over, or
    /// that has no descriptor.
    fn freeze(&self, now: Instant) -> Option<Frozen>;
}

/// A connection as another program can go on with it.
pub(crate) struct Frozen {
    /// What it is, in MessagePack; the error is that there is no memory for it.
    pub(crate) record: io::Result<Vec<u8>>,
    /// Whether it may be told that the relay ends: it speaks plain TCP, and no frame is half written.
    pub(crate) is_between_frames: bool,
    /// Its socket.
    pub(crate) socket: Arc<dyn AsFd>,
}

impl Frozen {
    /// The connection that `record` tells of.
    pub(crate) fn new(
        record: &impl Serialize,
        is_between_frames: bool,
        socket: Arc<dyn AsFd>,
    ) -> Self {
        let record = rmp_serde::to_vec_named(record).map_err(io::Error::other);
        Self { record, is_between_frames, socket }
    }
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the record: it has keys and what peers sent.
        f.debug_struct("Frozen").finish_non_exhaustive()
    }
}

impl<T: Carried> Carried for RefCell<T> {
    fn freeze(&self, now: Instant) -> Option<Frozen> {
        self.borrow().freeze(now)
    }
}

/// The table of them, in the order in which they were entered.
#[derive(Default)]
pub(crate) struct Links {
    next: Cell<u64>,
    table: RefCell<BTreeMap<u64, Weak<dyn Carried>>>,
}

/// One of them, for as long as it is in the table.
pub(crate) struct Member<T> {
    links: Rc<Links>,
    number: u64,
    own: Option<Rc<RefCell<T>>>,
}

impl Links {
    /// Enters a connection.
    pub(crate) fn enter<T: Carried + 'static>(self: &Rc<Self>, connection: T) -> Member<T> {
        let number = self.next.get();
        self.next.set(number + 1);
        let own = Rc::new(RefCell::new(connection));
        let known: Weak<RefCell<T>> = Rc::downgrade(&own);
        self.table.borrow_mut().insert(number, known);
        Member { links: Rc::clone(self), number, own: Some(own) }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.table.borrow().len()
    }

    /// All of them, as they are at `now`; not to be called in the turn of one of them.
    pub(crate) fn freeze(&self, now: Instant) -> impl Iterator<Item = Frozen> {
        let connections: Vec<_> = self.table.borrow().values().cloned().collect();
        connections.into_iter().filter_map(move |connection| connection.upgrade()?.freeze(now))
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl<T> Member<T> {
    /// The connection.
    pub(crate) fn get(&self) -> RefMut<'_, T> {
        self.own.as_ref().expect("bug: only `leave` takes it").borrow_mut()
    }

    /// Takes the connection out of the table.
    pub(crate) fn leave(mut self) -> T {
        let own = self.own.take().expect("bug: only `leave` takes it");
        drop(self);
        let own = Rc::try_unwrap(own);
        own.unwrap_or_else(|_| unreachable!("bug: the table never keeps one")).into_inner()
    }
}

impl<T> Drop for Member<T> {
    fn drop(&mut self) {
        self.links.table.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Carried for &'static str {
        fn freeze(&self, _now: Instant) -> Option<Frozen> {
            let socket = Arc::new(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
            (!self.is_empty()).then(|| Frozen {
                record: Ok(self.as_bytes().to_vec()),
                is_between_frames: true,
                socket,
            })
        }
    }

    #[test]
    fn they_are_told_in_order_until_they_leave_or_end() {
        let links = Rc::new(Links::default());
        let told = || {
            let frozen = links.freeze(crate::clock::now());
            let records = frozen.map(|frozen| String::from_utf8(frozen.record.unwrap()).unwrap());
            records.collect::<Vec<_>>().join(" ")
        };
        let (one, two, three) = (links.enter("one"), links.enter("two"), links.enter("three"));
        assert_eq!((told(), links.count()), ("one two three".to_owned(), 3));
        assert_eq!(two.leave(), "two");
        drop(one);
        let _four = links.enter("four");
        *three.get() = "";
        assert_eq!((told(), links.count()), ("four".to_owned(), 2));
    }
}
