//! What is sent, written and given up, on both sides.

use super::*;

impl World {
    pub(super) fn forward(&mut self, index: usize, length: usize) {
        let Some(index) = self.phone(index) else { return };
        self.messages += 1;
        let message = format!("{}{}", self.messages, "7".repeat(length));
        let phone = &self.phones[index];
        let text = envelope(&phone.id, &message);
        let frame = Prefix::new(&phone.id).wrap(&message);
        let cost = frame.len() + 64;
        let forwarded = phone.seat.as_ref().expect("picked for it").forward(frame);
        if !self.is_attached(index) {
            assert!(matches!(forwarded, Passed::Gone));
            return;
        }
        let slot = self.slots.get_mut(&self.phones[index].server).expect("attached to it");
        let share = slot.queue.iter().filter(|(_, from, ..)| *from == Some(index));
        let share: usize = share.map(|(.., cost)| cost).sum();
        let over_its_half = share + cost > LIMIT / 2;
        let turn = slot.waiting.first().is_none_or(|first| *first == index);
        let room = slot.held() + cost <= LIMIT;
        // A phone that was held back and would now have room waits no more.
        slot.waiting.retain(|other| *other != index || !(over_its_half || (turn && room)));
        if !over_its_half && turn && room {
            assert!(matches!(forwarded, Passed::Queued), "{forwarded:?}");
            slot.queue.push((self.phones[index].id.clone(), Some(index), text, cost));
            self.relieve();
        } else {
            assert!(matches!(forwarded, Passed::Held(_)), "{forwarded:?}");
            if !over_its_half && !slot.waiting.contains(&index) {
                slot.waiting.push(index);
            }
        }
    }

    pub(super) fn deliver(
        &mut self,
        binary: usize,
        phone: usize,
        frame: Option<usize>,
        code: Option<u16>,
    ) {
        let Some(binary) = self.binary(binary) else { return };
        let server = self.binaries[binary].server;
        // Half of the time to one that it may reach.
        let attached = self.slots.get(&server).map(|slot| Vec::from_iter(slot.phones.iter()));
        let attached = attached.unwrap_or_default();
        let phone = match attached.get(phone / 2 % attached.len().max(1)) {
            Some(attached) if phone % 2 == 0 => Some(**attached),
            _ => pick(&self.phones, phone / 2, |_| true),
        };
        let Some(phone) = phone else { return };
        let id = self.phones[phone].id.clone();
        self.messages += 1;
        let frame = frame.map(|length| format!("{}{}", self.messages, "7".repeat(length)));
        let mut text = format!(r#"{{"conn_id":"{id}""#);
        text += &frame.as_ref().map(|frame| format!(r#","frame":{frame}"#)).unwrap_or_default();
        text += &code.map(|code| format!(r#","close_code":{code}"#)).unwrap_or_default();
        let seat = self.binaries[binary].seat.as_ref().expect("picked for it");
        let delivery = deliver_at(seat, &(text + "}"), self.now());
        if self.slots.get(&server).is_none_or(|slot| slot.holder != Some(binary)) {
            assert_eq!(delivery, Delivery::NotHolder);
            return;
        }
        if self.phones[phone].server != server {
            assert_eq!(delivery, Delivery::UnknownPhone, "it is another server's");
            return;
        }
        if !self.is_attached(phone) {
            assert_eq!(delivery, Delivery::UnknownPhone);
            if code.is_none() {
                self.slots.get_mut(&server).expect("held").answer(&id);
            }
            self.relieve();
            return;
        }
        assert_eq!(delivery, Delivery::Done);
        if self.phones[phone].unconfirmed {
            match code {
                None => {
                    self.slots.get_mut(&server).expect("held").confirmation = None;
                    for phone in &mut self.phones {
                        phone.unconfirmed &= phone.server != server;
                    }
                }
                Some(4410 | 4421) => {
                    self.refute(server);
                    self.relieve();
                    return;
                }
                Some(_) => {}
            }
        }
        if frame.is_some() {
            self.phones[phone].spoken = Some(self.now);
        }
        let receiver = &mut self.phones[phone];
        if let Some(frame) = frame {
            let cost = |text: &String| text.len() + if text.len() > 125 { 4 } else { 2 } + 64;
            let held: usize = receiver.queue.iter().map(cost).sum();
            if held + cost(&frame) > LIMIT {
                receiver.queue.clear();
                receiver.close = Some("close 1013 backlog full".to_owned());
                self.retire(phone, Some(1013), Kept::ByTheWindow);
                return;
            }
            receiver.queue.push(frame);
        }
        if let Some(code) = code {
            receiver.close = Some(match code {
                4421 if receiver.outlived => "close 4404 binary reclaimed server-id".to_owned(),
                code => format!("close {code} "),
            });
            self.retire(phone, None, Kept::All);
        }
        self.relieve();
    }

    pub(super) fn deliver_unknown(&mut self, binary: usize, key: u8) {
        let Some(binary) = self.binary(binary) else { return };
        let server = self.binaries[binary].server;
        let stranger = format!("client-{}-{key:016x}", SERVERS[server]);
        let seat = self.binaries[binary].seat.as_ref().expect("picked for it");
        let delivery = deliver(seat, &envelope(&stranger, "1"));
        match self.slots.get_mut(&server).filter(|slot| slot.holder == Some(binary)) {
            None => assert_eq!(delivery, Delivery::NotHolder),
            Some(slot) => {
                assert_eq!(delivery, Delivery::UnknownPhone);
                slot.answer(&stranger);
            }
        }
        self.relieve();
    }

    pub(super) fn drain_binary(&mut self, index: usize) {
        if let Some(index) = self.binary(index) {
            self.drain(index, 0);
        }
    }

    /// A binary's socket takes everything, so many pings of ours among it at least.
    fn drain(&mut self, index: usize, pings: usize) {
        let binary = &mut self.binaries[index];
        let mut got = said(binary.seat.as_ref().expect("picked for it"));
        let all = got.len();
        got.retain(|text| text != "ping");
        // A probe may have asked as well.
        assert!(all - got.len() >= pings);
        let slot = self.slots.get_mut(&binary.server).filter(|slot| slot.holder == Some(index));
        let Some(slot) = slot else {
            assert_eq!(got, Vec::from_iter(binary.close.take()));
            return;
        };
        // Of several phones that are closed at once, no order is promised.
        let mut expected = BTreeMap::<_, Vec<_>>::new();
        for (id, from, text, _) in std::mem::take(&mut slot.queue) {
            if let Some(phone) = from {
                self.phones[phone].known = true;
                self.phones[phone].taken += 1;
            }
            expected.entry(id).or_default().push(text);
        }
        let mut by_phone = BTreeMap::<_, Vec<_>>::new();
        for text in got {
            let id = Envelope::parse(&text).unwrap().conn_id.into_owned();
            by_phone.entry(id).or_default().push(text);
        }
        assert_eq!(by_phone, expected);
    }

    /// A ping goes behind everything that is queued: at once if all is proven, else a second after the last one,
    /// and one at a time.
    pub(super) fn ask(&mut self, index: usize) {
        let Some(index) = self.binary(index) else { return };
        let (server, now) = (self.binaries[index].server, self.now);
        let holds = self.slots.get(&server).is_some_and(|slot| slot.holder == Some(index));
        let outbox = Rc::clone(self.binaries[index].seat.as_ref().expect("picked for it").outbox());
        let due = outbox.prove(self.now());
        if !holds {
            assert_eq!(due, None);
            return;
        }
        let here = |phone: &&Phone| phone.server == server;
        let is_unproven = self.phones.iter().filter(here).any(|phone| phone.taken > phone.proven);
        let slot = self.slots.get_mut(&server).expect("held");
        let is_queued = slot.queue.iter().any(|(_, from, ..)| from.is_some());
        let wait = match slot.ping {
            Some(_) => None,
            None if is_unproven => Some(slot.pinged_at.map_or(now, |at| at + 1_000)),
            None => is_queued.then_some(now),
        };
        let later = wait.filter(|at| *at > now).map(|at| self.start + Duration::from_millis(at));
        assert_eq!(due, later);
        let is_pinged = wait.is_some_and(|at| at <= now);
        if is_pinged {
            (slot.pings, slot.pinged_at) = (slot.pings + 1, Some(now));
        }
        self.drain(index, usize::from(is_pinged));
        if is_pinged {
            let taken = self.phones.iter().enumerate().filter(|(_, phone)| phone.server == server);
            let taken = taken.map(|(index, phone)| (index, phone.taken)).collect();
            self.slots.get_mut(&server).expect("held").ping = Some(taken);
        }
    }

    pub(super) fn pong(&mut self, index: usize) {
        let Some(index) = self.binary(index) else { return };
        let Some(slot) = self.slots.get_mut(&self.binaries[index].server) else { return };
        let outbox = self.binaries[index].seat.as_ref().expect("picked for it").outbox();
        for wrong in [slot.pings + 1, slot.pings.saturating_sub(1)] {
            outbox.heard_pong(&wrong.to_be_bytes());
        }
        outbox.heard_pong(&slot.pings.to_be_bytes());
        if slot.holder == Some(index) {
            for (phone, taken) in slot.ping.take().unwrap_or_default() {
                self.phones[phone].proven = taken;
            }
        }
    }

    pub(super) fn drain_phone(&mut self, index: usize) {
        let Some(index) = self.phone(index) else { return };
        let phone = &mut self.phones[index];
        let mut expected = std::mem::take(&mut phone.queue);
        expected.extend(phone.close.take());
        assert_eq!(said_to(phone.seat.as_ref().expect("picked for it")), expected);
    }

    /// The budget: who is closed is seen, and judged.
    pub(super) fn relieve(&mut self) {
        self.registry.relieve();
        let over = |phone: &Phone| {
            let sealed = phone.seat.as_ref().and_then(|seat| seat.outbox().sealed());
            matches!(sealed, Some((Close::OverBudget, _)))
        };
        let attached: Vec<_> = (0..self.phones.len()).filter(|i| self.is_attached(*i)).collect();
        for index in attached {
            if over(&self.phones[index]) {
                self.phones[index].queue.clear();
                self.phones[index].close = Some("close 1013 memory budget exhausted".to_owned());
                self.retire(index, Some(1013), Kept::Nothing);
            }
        }
        for index in 0..self.binaries.len() {
            // What its link does at once.
            let Binary { server, seat: Some(seat), close: close @ None } =
                &mut self.binaries[index]
            else {
                continue;
            };
            let holds = self.slots.get(server).is_some_and(|slot| slot.holder == Some(index));
            if holds && matches!(seat.outbox().sealed(), Some((Close::OverBudget, _))) {
                *close = Some("close 1013 memory budget exhausted".to_owned());
                let now = self.start + Duration::from_millis(self.now);
                seat.vacate(Ended::ByRelay(Close::OverBudget), false, now);
                self.vacated(index, Ended::ByRelay(Close::OverBudget), false);
            }
        }
        for (server, slot) in &mut self.slots {
            // A binary that pays loses the notices for it.
            let map = self.registry.map.borrow();
            if map.slots[&id(SERVERS[*server])].lane.queued_notices().is_empty() {
                slot.queue.retain(|(_, from, ..)| from.is_some());
            }
        }
        for (index, phone) in self.phones.iter_mut().enumerate().filter(|(_, phone)| phone.gone) {
            // One that had left may have lost what it left behind.
            if phone.sender.share() == 0 {
                if let Some(slot) = self.slots.get_mut(&phone.server) {
                    slot.queue.retain(|(_, from, ..)| *from != Some(index));
                }
            }
            // One that was on its way out is closed without the rest.
            let sealed = phone.seat.as_ref().and_then(|seat| seat.outbox().sealed());
            if matches!(sealed, Some((Close::Directive(_) | Close::Reclaimed, Manner::Abort))) {
                phone.queue.clear();
            }
        }
        assert!(!self.registry.ledger.is_over());
    }
}
