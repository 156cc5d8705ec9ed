//! Who claims, joins and leaves, on both sides.

use super::*;

impl World {
    pub(super) fn claim(&mut self, server: usize) {
        let claim = self.registry.claim(&id(SERVERS[server]), NOBODY, self.now());
        let full = self.slots.len() == MOST_SLOTS;
        match (claim, self.slots.get_mut(&server)) {
            (Claim::Full, None) => assert!(full),
            (Claim::Seated(seat), None) => {
                assert!(!full);
                self.slots.insert(server, Slot::default());
                self.seat(server, seat);
            }
            (Claim::Busy, Some(slot)) => assert!(slot.contest.is_some()),
            (Claim::Contested(contest), Some(slot)) => {
                assert!(slot.contest.is_none());
                let holder = slot.holder.expect("a holder to be probed");
                slot.contest = Some(self.rivalries.len());
                let contest = Some(contest);
                self.rivalries.push(Rivalry { server, contest, holder, answered: false });
            }
            (Claim::Seated(seat), Some(slot)) => {
                assert!(slot.contest.is_none() && slot.holder.is_none());
                self.seat(server, seat);
            }
            (claim, slot) => panic!("{claim:?}, and a slot is there: {}", slot.is_some()),
        }
    }

    /// A binary takes a slot: of a holder that fell silent, or of nobody.
    pub(super) fn seat(&mut self, server: usize, seat: ServerSeat) {
        let slot = self.slots.get_mut(&server).expect("a slot");
        slot.contest = None;
        let (ended, ended_at) = match slot.holder.replace(self.binaries.len()) {
            Some(old) => {
                self.binaries[old].close = Some("close 1011 heartbeat timeout".to_owned());
                (Ended::ByRelay(Close::HeartbeatTimeout), self.now)
            }
            // A new one has no phones.
            None => slot.ended.unwrap_or((Ended::Dropped, self.now)),
        };
        (slot.ping, slot.confirmation) = (None, None);
        let severed = std::mem::take(&mut slot.severed);
        // A notice is of nobody, and about somebody.
        slot.told = slot
            .queue
            .iter()
            .filter(|(_, from, ..)| from.is_none())
            .map(|(about, ..)| about.clone())
            .collect();
        for index in slot.phones.clone() {
            let phone = &mut self.phones[index];
            let has_session = phone.known || phone.spoken.is_some();
            let is_proven = phone.taken == phone.proven;
            let was_quiet = phone.spoken.is_none_or(|at| at + 2_000 <= ended_at);
            let is_whole = !ended.by_silence()
                && !severed
                && is_proven
                && (was_quiet || matches!(ended, Ended::ByPeer(_)));
            if self.evict || (has_session && !is_whole) {
                phone.queue.clear();
                phone.close = Some("close 4404 binary reclaimed server-id".to_owned());
                self.retire(index, Some(4404), Kept::Nothing);
            } else {
                phone.outlived |= !phone.unserved;
                phone.unserved = false;
                phone.unconfirmed = has_session;
                if has_session {
                    self.slots.get_mut(&server).expect("a slot").confirmation =
                        Some(self.now + 5_000);
                }
            }
        }
        // What can still be proved is what comes from here on.
        for phone in self.phones.iter_mut().filter(|phone| phone.server == server) {
            phone.proven = phone.taken;
        }
        self.binaries.push(Binary { server, seat: Some(seat), close: None });
    }

    pub(super) fn win(&mut self, index: usize) {
        let Some(index) = self.rivalry(index) else { return };
        let Rivalry { server, holder, answered, .. } = self.rivalries[index];
        let contest = self.rivalries[index].contest.take().expect("picked for it");
        let live = self.slots[&server].holder;
        match contest.win(self.now()) {
            Ok(seat) => {
                assert!(live.is_none() || (live == Some(holder) && !answered));
                self.seat(server, seat);
            }
            Err(_) => {
                assert!(live.is_some() && (live != Some(holder) || answered));
                self.end_contest(index);
            }
        }
    }

    pub(super) fn end_contest(&mut self, index: usize) {
        let slot = self.slots.get_mut(&self.rivalries[index].server);
        if let Some(slot) = slot.filter(|slot| slot.contest == Some(index)) {
            slot.contest = None;
        }
    }

    pub(super) fn answer(&mut self, index: usize) {
        let Some(index) = self.rivalry(index) else { return };
        let Rivalry { server, holder, .. } = self.rivalries[index];
        if let Some(seat) = &self.binaries[holder].seat {
            seat.inquiry().heard(self.now() + DAY);
            self.rivalries[index].answered = self.slots[&server].holder == Some(holder);
        }
        let contest = self.rivalries[index].contest.as_ref().expect("picked for it");
        let expected = match self.slots[&server].holder {
            None => Some(Outcome::HolderGone),
            Some(_) => self.rivalries[index].answered.then_some(Outcome::Answered),
        };
        assert_eq!(outcome(contest), expected);
    }

    pub(super) fn vacate(&mut self, index: usize, ended: Ended, amid: bool) {
        let Some(index) = self.binary(index) else { return };
        let now = self.now();
        let seat = self.binaries[index].seat.as_mut().expect("picked for it");
        seat.vacate(ended, amid, now);
        let is_half_lost = amid && ended != Ended::ByRelay(Close::Protocol);
        self.vacated(index, ended, is_half_lost || ended == Ended::ByRelay(Close::BadUtf8));
    }

    /// Starts the window of the slot that `index` holds, if it holds one.
    pub(super) fn vacated(&mut self, index: usize, ended: Ended, severed: bool) {
        let slot = self.slots.get_mut(&self.binaries[index].server);
        if let Some(slot) = slot.filter(|slot| slot.holder == Some(index)) {
            slot.holder = None;
            (slot.ended, slot.severed) = (Some((ended, self.now)), severed);
            slot.deadline = self.now + 30_000;
            slot.confirmation = None;
        }
    }

    pub(super) fn drop_binary(&mut self, index: usize) {
        let Some(index) = self.binary(index) else { return };
        // By its own clock, which the model has no hand on: told before, that it is the same.
        let now = self.now();
        if let Some(mut seat) = self.binaries[index].seat.take() {
            seat.vacate(Ended::Dropped, false, now);
        }
        self.vacated(index, Ended::Dropped, false);
    }

    pub(super) fn join(&mut self, server: usize) {
        let slot = self.slots.get_mut(&server);
        match (self.registry.join(&id(SERVERS[server]), NOBODY), slot) {
            (Join::NoServer, None) => {}
            (Join::TooMany, Some(slot)) => assert_eq!(slot.phones.len(), MOST_PHONES),
            (Join::Seated(seat), Some(slot)) => {
                assert!(slot.phones.len() < MOST_PHONES);
                slot.phones.insert(self.phones.len());
                let unserved = slot.holder.is_none();
                let (id, sender) = (seat.conn_id(), Rc::clone(seat.sender()));
                self.phones.push(Phone {
                    server,
                    id,
                    sender,
                    unserved,
                    seat: Some(seat),
                    outlived: false,
                    known: false,
                    taken: 0,
                    proven: 0,
                    spoken: None,
                    unconfirmed: false,
                    queue: Vec::new(),
                    close: None,
                    gone: false,
                });
            }
            (join, slot) => panic!("{join:?}, and a slot is there: {}", slot.is_some()),
        }
    }

    pub(super) fn leave(&mut self, index: usize, ended: Ended) {
        let Some(index) = self.phone(index) else { return };
        self.phones[index].seat.as_mut().expect("picked for it").leave(ended);
        self.phone_left(index, ended);
    }

    pub(super) fn phone_left(&mut self, index: usize, ended: Ended) {
        if self.is_attached(index) {
            let code = match ended {
                Ended::ByPeer(Some(code)) => code,
                Ended::ByRelay(close) => close.code().expect("one with a code"),
                _ => 1001,
            };
            self.retire(index, Some(code), Kept::ByTheWindow);
        }
    }

    /// The holder has not shown that it knows the phones that were kept for it.
    pub(super) fn refute(&mut self, server: usize) {
        let slot = self.slots.get_mut(&server).expect("a slot");
        slot.confirmation = None;
        for index in slot.phones.clone() {
            let phone = &mut self.phones[index];
            if phone.unconfirmed {
                phone.queue.clear();
                phone.close = Some("close 4404 binary reclaimed server-id".to_owned());
                self.retire(index, Some(4404), Kept::Nothing);
            }
        }
    }

    pub(super) fn is_attached(&self, index: usize) -> bool {
        let phone = &self.phones[index];
        self.slots.get(&phone.server).is_some_and(|slot| slot.phones.contains(&index))
    }

    /// Takes a phone off its slot; `notice` is the code that the binary is told, if it is.
    pub(super) fn retire(&mut self, index: usize, notice: Option<u16>, kept: Kept) {
        let phone = &mut self.phones[index];
        let slot = self.slots.get_mut(&phone.server).expect("the slot of an attached phone");
        slot.phones.remove(&index);
        slot.waiting.retain(|other| *other != index);
        let forgotten = slot.holder.is_none() && !phone.known;
        if kept == Kept::Nothing || (kept == Kept::ByTheWindow && forgotten) {
            slot.queue.retain(|(_, from, ..)| *from != Some(index));
        }
        let queued = slot.queue.iter().any(|(_, from, ..)| *from == Some(index));
        if let Some(code) = notice.filter(|_| phone.known || queued) {
            slot.notice(&phone.id, code);
        }
        phone.gone = true;
    }
}
