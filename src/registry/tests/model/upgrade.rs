//! Everything is handed over to another registry, as an upgrade does it.

use super::*;
use crate::registry::tests::upgrade::carried;

impl World {
    /// Freezes the registry and all seats and contests, and goes on with what is thawed from that.
    pub(super) fn upgrade(&mut self, contests_first: bool) {
        let now = self.now();
        let mut slots = Vec::new();
        self.registry.freeze(now, |slot| slots.push(carried(&slot)));
        let binaries = self.binaries.iter().map(|binary| {
            let seat = binary.seat.as_ref()?;
            Some((carried(&seat.freeze(now)), seat.account().is_condemned()))
        });
        let binaries: Vec<_> = binaries.collect();
        let phones = self.phones.iter().map(|phone| {
            let seat = phone.seat.as_ref()?;
            Some((carried(&seat.freeze(now)), seat.sender().account().is_condemned()))
        });
        let phones: Vec<_> = phones.collect();
        let contests = self.rivalries.iter();
        let contests =
            contests.map(|rivalry| Some(carried(&rivalry.contest.as_ref()?.freeze(now))));
        let contests: Vec<_> = contests.collect();

        let held_elsewhere = self.outsider.held();
        let (before, is_exact) = (self.registry.ledger.total(), !self.has_condemned());
        let old = std::mem::replace(&mut self.registry, new_registry(self.evict));
        let old_seats: Vec<_> = self.binaries.iter_mut().map(|binary| binary.seat.take()).collect();
        let old_phones: Vec<_> = self.phones.iter_mut().map(|phone| phone.seat.take()).collect();
        let old_contests: Vec<_> =
            self.rivalries.iter_mut().map(|rivalry| rivalry.contest.take()).collect();
        self.outsider = Crowd::new(&self.registry);
        self.outsider.add(held_elsewhere);

        slots.into_iter().for_each(|slot| self.registry.thaw(slot, now));
        let mut contests = Some(contests);
        if contests_first {
            self.thaw_contests(contests.take(), now);
        }
        for (binary, frozen) in self.binaries.iter_mut().zip(binaries) {
            let Some((frozen, is_condemned)) = frozen else { continue };
            let seat = ServerSeat::thaw(&self.registry, frozen, now);
            if is_condemned {
                seat.account().condemn();
            }
            binary.seat = Some(seat);
        }
        for (phone, frozen) in self.phones.iter_mut().zip(phones) {
            let Some((frozen, is_condemned)) = frozen else { continue };
            let seat = PhoneSeat::thaw(&self.registry, frozen, now);
            if is_condemned {
                seat.sender().account().condemn();
            }
            phone.sender = Rc::clone(seat.sender());
            phone.seat = Some(seat);
        }
        self.thaw_contests(contests.take(), now);
        self.registry.bury_missing(now);
        self.meet_senders();
        // The old ones belong to the old registry, and disturb nobody here.
        drop((old_contests, old_phones, old_seats, old));
        if is_exact {
            assert_eq!(self.registry.ledger.total(), before, "bytes on the ledger");
        }
        self.relieve();
    }

    fn thaw_contests(&mut self, contests: Option<Vec<Option<FrozenContest>>>, now: Instant) {
        for (rivalry, frozen) in self.rivalries.iter_mut().zip(contests.into_iter().flatten()) {
            rivalry.contest = frozen.map(|frozen| Contest::thaw(&self.registry, frozen, now));
        }
    }

    /// Whoever has something queued is the sender of that.
    fn meet_senders(&mut self) {
        let map = self.registry.map.borrow();
        for (server, slot) in &self.slots {
            let real = map.slots[&id(SERVERS[*server])].lane.owners();
            let expected: Vec<_> = slot.queue.iter().map(|(_, from, ..)| *from).collect();
            assert_eq!(real.len(), expected.len(), "messages that are queued");
            for (owner, from) in real.into_iter().zip(expected) {
                match (owner, from) {
                    (Some(owner), Some(from)) => self.phones[from].sender = owner,
                    (None, None) => {}
                    (owner, from) => panic!("{owner:?} instead of {from:?}"),
                }
            }
        }
    }

    /// Whether somebody who has to go holds memory that counts no more.
    fn has_condemned(&self) -> bool {
        let map = self.registry.map.borrow();
        let lanes = map.slots.values().map(|slot| slot.lane.account());
        let phones = self.phones.iter().map(|phone| Rc::clone(phone.sender.account()));
        let seats = self.binaries.iter().filter_map(|binary| binary.seat.as_ref());
        let binaries = seats.map(|seat| Rc::clone(seat.account()));
        lanes.chain(phones).chain(binaries).any(|account| account.is_condemned())
    }
}
