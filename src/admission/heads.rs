//! The table of request heads in progress. It is bounded, in all and per source: whoever has the most
//! places in a full table makes room for a newcomer.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
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
    table: RefCell<Table>,
    emptied: RefCell<Option<Waker>>,
}

/// The places, oldest first, and how many of them each source has.
#[derive(Debug, Default)]
struct Table {
    places: BTreeMap<Serial, Place>,
    /// Never zero.
    counts: HashMap<Origin, usize>,
}

#[derive(Debug)]
struct Place {
    source: Origin,
    /// The connection is the source's own, and not that of somebody behind it.
    is_own: bool,
    task: Option<Task<()>>,
}

/// One connection's place in the table; it leaves when this is dropped.
#[derive(Debug)]
pub struct Entry {
    heads: Rc<Heads>,
    serial: Serial,
}

impl Heads {
    /// An empty table for at most `most` connections.
    pub fn new(most: usize) -> Rc<Self> {
        Rc::new(Self {
            most,
            serials: Serials::default(),
            table: RefCell::default(),
            emptied: RefCell::default(),
        })
    }

    /// Makes a place for a new connection from `source`. If the source has `room` places, its oldest
    /// one is closed for it. Otherwise, if the table is full, the source with the most places loses
    /// its oldest one; of several such sources, the one whose oldest place is the oldest.
    ///
    /// A proxy has no `room`: its connections are those of others, who are identified later. Until
    /// then they count as the proxy's in a full table.
    pub fn enter(self: &Rc<Self>, source: Origin, room: Option<usize>) -> Entry {
        let serial = self.serials.next();
        let displaced = {
            let mut table = self.table.borrow_mut();
            table.insert(serial, Place { source, is_own: room.is_some(), task: None });
            let displaced = room.and_then(|room| table.displace(source, serial, room));
            match displaced {
                None if table.places.len() > self.most => table.displace_from_largest(),
                displaced => displaced,
            }
        };
        // Dropping a task cancels it, which closes its connection.
        drop(displaced);
        Entry { heads: Rc::clone(self), serial }
    }

    /// Hands over the task that serves the connection; the table cancels it if it has to.
    pub(crate) fn adopt(&self, serial: Serial, task: Task<()>) {
        match self.table.borrow_mut().places.get_mut(&serial) {
            Some(place) => place.task = Some(task),
            None => task.detach(),
        }
    }

    /// Closes all connections in the table.
    pub(crate) fn clear(&self) {
        let table = self.table.take();
        drop(table);
        self.tell_if_empty();
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.table.borrow().places.len()
    }

    /// Waits until the table is empty; for one waiter. Cancel safe.
    pub(crate) fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.table.borrow().places.is_empty() {
            return Poll::Ready(());
        }
        *self.emptied.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn tell_if_empty(&self) {
        if self.table.borrow().places.is_empty() {
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
            let mut table = self.heads.table.borrow_mut();
            if let Some(place) = table.remove(self.serial) {
                table.insert(self.serial, Place { source, is_own: true, ..place });
            }
            table.displace(source, self.serial, room)
        };
        drop(displaced);
    }
}

impl Table {
    fn insert(&mut self, serial: Serial, place: Place) {
        *self.counts.entry(place.source).or_default() += 1;
        self.places.insert(serial, place);
    }

    fn remove(&mut self, serial: Serial) -> Option<Place> {
        let place = self.places.remove(&serial)?;
        if let Some(count) = self.counts.get_mut(&place.source) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&place.source);
            }
        }
        Some(place)
    }

    /// Takes the oldest place of `source` out, but not `own`, if it has more than `room` with that.
    fn displace(&mut self, source: Origin, own: Serial, room: usize) -> Option<Place> {
        if self.counts.get(&source).is_none_or(|count| *count <= room) {
            return None;
        }
        let is_theirs = |(serial, place): &(&Serial, &Place)| {
            place.is_own && place.source == source && **serial != own
        };
        let mut others = self.places.iter().filter(is_theirs).map(|(serial, _)| *serial);
        let oldest = others.next()?;
        if 1 + others.count() >= room { self.remove(oldest) } else { None }
    }

    /// Takes the oldest place of the source that has the most.
    fn displace_from_largest(&mut self) -> Option<Place> {
        let most = self.counts.values().copied().max()?;
        let is_largest = |place: &Place| self.counts.get(&place.source) == Some(&most);
        let (oldest, _) = self.places.iter().find(|(_, place)| is_largest(place))?;
        self.remove(*oldest)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let place = self.heads.table.borrow_mut().remove(self.serial);
        if let Some(task) = place.and_then(|place| place.task) {
            // The connection goes on, or is ending by itself.
            task.detach();
        }
        self.heads.tell_if_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_HEADS;

    const ANY: Option<usize> = Some(usize::MAX);
    /// The connections are those of somebody behind the source.
    const PROXY: Option<usize> = None;

    fn source(number: u8) -> Origin {
        Origin::V4([192, 0, 2, number])
    }

    /// Whether the place of an entry is still there.
    fn is_there(entry: &Entry) -> bool {
        entry.heads.table.borrow().places.contains_key(&entry.serial)
    }

    /// So many places of one source.
    fn enter(heads: &Rc<Heads>, number: u8, places: usize) -> Vec<Entry> {
        (0..places).map(|_| heads.enter(source(number), ANY)).collect()
    }

    #[test]
    fn a_full_table_costs_the_oldest_of_all() {
        let heads = Heads::new(MAX_HEADS);
        let entries = enter(&heads, 1, MAX_HEADS);
        assert!(entries.iter().all(is_there));
        let newcomer = heads.enter(source(2), ANY);
        assert!(!is_there(&entries[0]) && entries[1..].iter().all(is_there));
        assert!(is_there(&newcomer));
    }

    #[test]
    fn in_a_full_table_the_source_with_the_most_places_pays_with_its_oldest() {
        let heads = Heads::new(10);
        let oldest = heads.enter(source(1), ANY);
        let few = enter(&heads, 2, 3);
        let many = enter(&heads, 3, 6);
        let newcomers: Vec<_> = (4..7).map(|number| heads.enter(source(number), ANY)).collect();
        assert!(is_there(&oldest) && few.iter().all(is_there) && newcomers.iter().all(is_there));
        assert!(!many[..3].iter().any(is_there) && many[3..].iter().all(is_there));
        // Now both have three. The one whose oldest is older pays.
        let _newcomer = heads.enter(source(7), ANY);
        assert!(!is_there(&few[0]) && many[3..].iter().all(is_there));
        // A newcomer that makes its own source the largest pays for itself.
        let own = heads.enter(source(3), ANY);
        assert!(!is_there(&many[3]) && is_there(&own) && few[1..].iter().all(is_there));
    }

    #[test]
    fn sources_that_have_one_place_each_lose_the_oldest_and_never_the_newcomer() {
        let heads = Heads::new(4);
        let entries: Vec<_> = (0..9).map(|number| heads.enter(source(number), ANY)).collect();
        assert!(!entries[..5].iter().any(is_there) && entries[5..].iter().all(is_there));
    }

    #[test]
    fn some_that_come_again_and_again_keep_no_newcomer_out() {
        let heads = Heads::new(MAX_HEADS);
        let mut newcomers = Vec::new();
        let mut stalled = Vec::new();
        for number in 0..10 {
            newcomers.push(heads.enter(source(100 + number), Some(64)));
            for greedy in 0..8 {
                stalled.extend((0..64).map(|_| heads.enter(source(greedy), Some(64))));
            }
        }
        assert!(newcomers.iter().all(is_there));
        assert_eq!(heads.table.borrow().places.len(), MAX_HEADS);
    }

    #[test]
    fn a_connection_whose_source_is_not_known_yet_counts_as_its_proxys() {
        let heads = Heads::new(6);
        let older = enter(&heads, 1, 2);
        let by_proxy: Vec<_> = (0..4).map(|_| heads.enter(source(9), PROXY)).collect();
        let _newcomer = heads.enter(source(2), ANY);
        assert!(older.iter().all(is_there) && !is_there(&by_proxy[0]));
        // Once their clients are known, the proxy has one place left and the oldest source two.
        for (number, entry) in (3..).zip(&by_proxy[1..3]) {
            entry.identify(source(number), usize::MAX);
        }
        let _newcomer = heads.enter(source(5), ANY);
        assert!(!is_there(&older[0]) && by_proxy[1..].iter().all(is_there));
        // Connections of the proxy itself do not use up the room of others', nor the other way round.
        let heads = Heads::new(6);
        let (by_proxy, own) = (heads.enter(source(9), PROXY), heads.enter(source(9), Some(1)));
        assert!(is_there(&own) && is_there(&by_proxy));
    }

    #[test]
    fn a_source_without_places_is_forgotten() {
        let heads = Heads::new(4);
        let mut entries: Vec<_> = (0..9).map(|number| heads.enter(source(number), ANY)).collect();
        entries[8].identify(source(20), 1);
        assert_eq!(heads.table.borrow().counts.len(), 4);
        entries.clear();
        assert!(heads.table.borrow().counts.is_empty());
    }

    #[test]
    fn whoever_waits_for_an_empty_table_is_told_when_the_last_one_leaves() {
        let heads = Heads::new(MAX_HEADS);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(heads.poll_empty(&mut cx).is_ready());
        let (one, two) = (heads.enter(source(1), ANY), heads.enter(source(1), ANY));
        drop(one);
        assert!(heads.poll_empty(&mut cx).is_pending());
        drop(two);
        assert!(heads.poll_empty(&mut cx).is_ready());
        let _left = heads.enter(source(1), ANY);
        heads.clear();
        assert!(heads.poll_empty(&mut cx).is_ready());
    }

    #[test]
    fn a_source_without_room_pays_for_its_newcomer_itself() {
        let heads = Heads::new(MAX_HEADS);
        let other = heads.enter(source(2), Some(3));
        let mut own: Vec<_> = (0..3).map(|_| heads.enter(source(1), Some(3))).collect();
        own.push(heads.enter(source(1), Some(3)));
        assert!(!is_there(&own[0]) && own[1..].iter().all(is_there) && is_there(&other));
        // In a full table too.
        let _rest: Vec<_> = (4..MAX_HEADS).map(|_| heads.enter(source(9), PROXY)).collect();
        own.push(heads.enter(source(1), Some(3)));
        assert!(!is_there(&own[1]) && own[2..].iter().all(is_there) && is_there(&other));
        // Room for one is kept for the newcomer.
        let last = heads.enter(source(3), Some(1));
        assert!(is_there(&last));
    }

    #[test]
    fn a_source_that_is_found_later_is_counted_from_then_on() {
        let heads = Heads::new(MAX_HEADS);
        let entries: Vec<_> = (0..3).map(|_| heads.enter(source(9), PROXY)).collect();
        let identify = |index: usize| entries[index].identify(source(1), 2);
        identify(2);
        identify(0);
        assert!(entries.iter().all(is_there));
        identify(1);
        assert!(!is_there(&entries[0]) && is_there(&entries[1]) && is_there(&entries[2]));
        // Never itself, be it the oldest.
        let (older, newer) = (heads.enter(source(9), PROXY), heads.enter(source(4), Some(1)));
        older.identify(source(4), 1);
        assert!(is_there(&older) && !is_there(&newer));
    }
}
