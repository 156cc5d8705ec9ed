//! The table of request heads in progress. It is bounded, for all and for each source: the oldest is
//! closed for a newcomer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use smol::Task;

use crate::ids::{Serial, Serials};
use crate::origin::Origin;

/// Connections that have not been upgraded: those whose head is being read, and refusals that
/// linger.
#[derive(Debug)]
pub struct Heads {
    most: usize,
    serials: Serials,
    places: RefCell<BTreeMap<Serial, Place>>,
    emptied: RefCell<Option<Waker>>,
}

#[derive(Debug)]
struct Place {
    /// Whose it is, once that is known.
    source: Option<Origin>,
    task: Option<Task<()>>,
}

/// One connection's place in the table; it leaves when this is dropped.
#[derive(Debug)]
pub struct Entry {
    table: Rc<Heads>,
    serial: Serial,
}

impl Heads {
    /// An empty table for at most `most` connections.
    pub fn new(most: usize) -> Rc<Self> {
        Rc::new(Self {
            most,
            serials: Serials::default(),
            places: RefCell::default(),
            emptied: RefCell::default(),
        })
    }

    /// Makes a place for a new connection of `source`, if that is known already. If the source has
    /// `room` places, its oldest one is closed for it; otherwise the oldest of all if the table is
    /// full.
    pub fn enter(self: &Rc<Self>, source: Option<Origin>, room: usize) -> Entry {
        let serial = self.serials.next();
        let displaced = {
            let mut places = self.places.borrow_mut();
            places.insert(serial, Place { source, task: None });
            let displaced = source.and_then(|source| displace(&mut places, source, serial, room));
            match displaced {
                None if places.len() > self.most => places.pop_first().map(|(_, place)| place),
                displaced => displaced,
            }
        };
        // Dropping a task cancels it, which closes its connection.
        drop(displaced);
        Entry { table: Rc::clone(self), serial }
    }

    /// Hands over the task that serves the connection; the table cancels it if it has to.
    pub(crate) fn adopt(&self, serial: Serial, task: Task<()>) {
        match self.places.borrow_mut().get_mut(&serial) {
            Some(place) => place.task = Some(task),
            None => task.detach(),
        }
    }

    /// Closes all connections in the table.
    pub(crate) fn clear(&self) {
        let places = std::mem::take(&mut *self.places.borrow_mut());
        drop(places);
        self.tell_if_empty();
    }

    /// Waits until the table is empty; for one waiter. Cancel safe.
    pub(crate) fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.places.borrow().is_empty() {
            return Poll::Ready(());
        }
        *self.emptied.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn tell_if_empty(&self) {
        if self.places.borrow().is_empty() {
            if let Some(waker) = self.emptied.take() {
                waker.wake();
            }
        }
    }
}

impl Entry {
    /// The number of this place.
    pub(crate) fn serial(&self) -> Serial {
        self.serial
    }

    /// Says whose connection it turned out to be. If the source has more than `room` places now,
    /// its oldest other one is closed.
    pub(crate) fn identify(&self, source: Origin, room: usize) {
        let displaced = {
            let mut places = self.table.places.borrow_mut();
            if let Some(place) = places.get_mut(&self.serial) {
                place.source = Some(source);
            }
            displace(&mut places, source, self.serial, room)
        };
        drop(displaced);
    }
}

/// Takes the oldest place of `source` out, but not `own`, if it has more than `room` with that.
fn displace(
    places: &mut BTreeMap<Serial, Place>,
    source: Origin,
    own: Serial,
    room: usize,
) -> Option<Place> {
    let is_theirs =
        |(serial, place): &(&Serial, &Place)| place.source == Some(source) && **serial != own;
    let mut others = places.iter().filter(is_theirs).map(|(serial, _)| *serial);
    let oldest = others.next()?;
    if 1 + others.count() >= room { places.remove(&oldest) } else { None }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let place = self.table.places.borrow_mut().remove(&self.serial);
        if let Some(task) = place.and_then(|place| place.task) {
            // The connection goes on, or is ending by itself.
            task.detach();
        }
        self.table.tell_if_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_HEADS;

    const ANY: usize = usize::MAX;

    fn source(number: u8) -> Option<Origin> {
        Some(Origin::V4([192, 0, 2, number]))
    }

    /// Whether the place of an entry is still there.
    fn is_there(entry: &Entry) -> bool {
        entry.table.places.borrow().contains_key(&entry.serial)
    }

    #[test]
    fn a_full_table_costs_the_oldest_of_all() {
        let heads = Heads::new(MAX_HEADS);
        let entries: Vec<_> = (0..MAX_HEADS).map(|_| heads.enter(source(1), ANY)).collect();
        assert!(entries.iter().all(is_there));
        let newcomer = heads.enter(source(2), ANY);
        assert!(!is_there(&entries[0]) && entries[1..].iter().all(is_there));
        assert!(is_there(&newcomer));
    }

    #[test]
    fn whoever_waits_for_an_empty_table_is_told_when_the_last_one_leaves() {
        let heads = Heads::new(MAX_HEADS);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(heads.poll_empty(&mut cx).is_ready());
        let (one, two) = (heads.enter(None, ANY), heads.enter(None, ANY));
        drop(one);
        assert!(heads.poll_empty(&mut cx).is_pending());
        drop(two);
        assert!(heads.poll_empty(&mut cx).is_ready());
        let _left = heads.enter(None, ANY);
        heads.clear();
        assert!(heads.poll_empty(&mut cx).is_ready());
    }

    #[test]
    fn a_source_without_room_pays_for_its_newcomer_itself() {
        let heads = Heads::new(MAX_HEADS);
        let other = heads.enter(source(2), 3);
        let mut own: Vec<_> = (0..3).map(|_| heads.enter(source(1), 3)).collect();
        own.push(heads.enter(source(1), 3));
        assert!(!is_there(&own[0]) && own[1..].iter().all(is_there) && is_there(&other));
        // In a full table too.
        let _rest: Vec<_> = (4..MAX_HEADS).map(|_| heads.enter(None, ANY)).collect();
        own.push(heads.enter(source(1), 3));
        assert!(!is_there(&own[1]) && own[2..].iter().all(is_there) && is_there(&other));
        // Room for one is kept for the newcomer.
        let last = heads.enter(source(3), 1);
        assert!(is_there(&last));
    }

    #[test]
    fn a_source_that_is_found_later_is_counted_from_then_on() {
        let heads = Heads::new(MAX_HEADS);
        let entries: Vec<_> = (0..3).map(|_| heads.enter(None, ANY)).collect();
        let identify = |index: usize| entries[index].identify(source(1).unwrap(), 2);
        identify(2);
        identify(0);
        assert!(entries.iter().all(is_there));
        identify(1);
        assert!(!is_there(&entries[0]) && is_there(&entries[1]) && is_there(&entries[2]));
        // Never itself, be it the oldest.
        let (older, newer) = (heads.enter(None, ANY), heads.enter(source(4), 1));
        older.identify(source(4).unwrap(), 1);
        assert!(is_there(&older) && !is_there(&newer));
    }
}
