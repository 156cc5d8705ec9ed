//! The registry against a naive model: random operations on both, and after each of them both must
//! say the same. The model is written from the contract.
//!
//! More steps than the ordinary run has: `PROPTEST_CASES=50000 PROPTEST_RNG_SEED=1`.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const SERVERS: [&str; 3] = ["one", "two", "three"];
const MOST_SLOTS: usize = 2;
const MOST_PHONES: usize = 3;
const LIMIT: usize = 64 * 1024;
const BUDGET: usize = 128 * 1024;

/// Indices count among what exists, whatever their size.
#[derive(Clone, Debug)]
enum Step {
    Claim(usize),
    Join(usize),
    /// A contest's newcomer takes the slot if it may.
    Win(usize),
    GiveUp(usize),
    /// The holder answers its probe.
    Answer(usize),
    /// A binary's connection ends; the seat goes later.
    Release(usize, Ended),
    DropBinary(usize),
    Leave(usize, Ended),
    DropPhone(usize),
    /// A phone sends so many messages of this length.
    Forward(usize, usize, usize),
    /// A binary sends a phone of any server so many messages of this length.
    Deliver(usize, usize, usize, usize),
    /// A binary has a phone closed, behind one more message or not.
    Direct(usize, usize, bool, u16),
    /// A binary writes to a phone that never was.
    DeliverUnknown(usize, u8),
    /// A socket takes everything that is queued for a binary or a phone.
    DrainBinary(usize),
    DrainPhone(usize),
    /// Time passes, in milliseconds, and the grace timer rings.
    Wait(u64),
    /// Others hold so much memory.
    Pressure(usize),
}

fn step() -> impl Strategy<Value = Step> {
    use Step::*;
    let index = || 0..12_usize;
    let count = || prop_oneof![4 => Just(1_usize), 1 => 2..20_usize];
    let length = || prop_oneof![4 => 1..20_usize, 1 => 3_000..4_000_usize];
    let code = prop_oneof![Just(1000_u16), Just(4401), Just(4421)];
    prop_oneof![
        6 => index().prop_map(Claim),
        8 => index().prop_map(Join),
        3 => index().prop_map(Win),
        1 => index().prop_map(GiveUp),
        2 => index().prop_map(Answer),
        3 => (index(), ended()).prop_map(|(binary, ended)| Release(binary, ended)),
        3 => index().prop_map(DropBinary),
        3 => (index(), ended()).prop_map(|(phone, ended)| Leave(phone, ended)),
        2 => index().prop_map(DropPhone),
        8 => (index(), count(), length()).prop_map(|(phone, count, length)| Forward(phone, count, length)),
        8 => (index(), index(), count(), length())
            .prop_map(|(binary, phone, count, length)| Deliver(binary, phone, count, length)),
        3 => (index(), index(), any::<bool>(), code)
            .prop_map(|(binary, phone, more, code)| Direct(binary, phone, more, code)),
        // A flood, which fills half of a slot's queue and is held back.
        3 => index().prop_map(|phone| Forward(phone, 10, 3_500)),
        1 => (index(), 0..4_u8).prop_map(|(binary, key)| DeliverUnknown(binary, key)),
        6 => index().prop_map(DrainBinary),
        4 => index().prop_map(DrainPhone),
        4 => prop_oneof![0..3_u64, 10_000..31_000_u64].prop_map(Wait),
        1 => prop_oneof![Just(0), 0..BUDGET].prop_map(Pressure),
    ]
}

fn ended() -> impl Strategy<Value = Ended> {
    prop_oneof![
        Just(Ended::Dropped),
        Just(Ended::ByPeer(Some(1000))),
        Just(Ended::ByRelay(Close::Protocol)),
        Just(Ended::ByRelay(Close::HeartbeatTimeout)),
        Just(Ended::WriteTimeout),
    ]
}

/// A bounded run, unless the environment asks for another.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases: if cfg!(relay_emulated) { 16 } else { 128 }, ..config },
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_registry_does_what_a_naive_model_does(
        evict in any::<bool>(),
        steps in prop::collection::vec(step(), 1..100),
    ) {
        let mut world = World::new(evict);
        for step in steps {
            world.step(&step);
            world.compare();
        }
        world.finish();
    }
}

/// What the model knows of a slot.
#[derive(Default)]
struct Slot {
    /// The binary that holds it, or the end of its grace window and whether that began in silence.
    holder: Option<usize>,
    deadline: u64,
    silent: bool,
    /// The contest whose probe is under way.
    contest: Option<usize>,
    phones: BTreeSet<usize>,
    /// What is queued for the binary: from or about whom, the text, and what it costs.
    queue: Vec<(String, Option<usize>, String, usize)>,
    /// Phones in the order in which they were held back.
    waiting: Vec<usize>,
    /// Ids that this connection was told about.
    told: BTreeSet<String>,
}

struct Binary {
    server: usize,
    seat: Option<ServerSeat>,
    /// The close frame that it still has to be sent.
    close: Option<String>,
}

struct Phone {
    server: usize,
    id: String,
    seat: Option<PhoneSeat>,
    source: Rc<Source>,
    /// Joined while no binary was there.
    unserved: bool,
    outlived: bool,
    /// The binary has had a message of it.
    known: bool,
    /// What is queued for it, and the close frame behind that.
    queue: Vec<String>,
    close: Option<String>,
    gone: bool,
}

struct Rivalry {
    server: usize,
    contest: Option<Contest>,
    holder: usize,
    answered: bool,
}

struct World {
    registry: Rc<Registry>,
    start: Instant,
    now: u64,
    evict: bool,
    outsider: Rc<Account>,
    slots: BTreeMap<usize, Slot>,
    binaries: Vec<Binary>,
    phones: Vec<Phone>,
    rivalries: Vec<Rivalry>,
    messages: usize,
}

impl World {
    fn new(evict: bool) -> Self {
        let (slots, phones) = (MOST_SLOTS.to_string(), MOST_PHONES.to_string());
        let mut arguments = SMALL.to_vec();
        arguments.extend(["--max-connections", &slots, "--max-phones", &phones]);
        if evict {
            arguments.extend(["--reclaim", "evict"]);
        }
        let registry = registry(&arguments);
        Self {
            start: Instant::now(),
            now: 0,
            evict,
            outsider: Account::open(registry.ledger()),
            registry,
            slots: BTreeMap::new(),
            binaries: Vec::new(),
            phones: Vec::new(),
            rivalries: Vec::new(),
            messages: 0,
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Claim(server) => self.claim(server % SERVERS.len()),
            Step::Join(server) => self.join(server % SERVERS.len()),
            Step::Win(index) => self.win(index),
            Step::GiveUp(index) => {
                if let Some(index) = self.rivalry(index) {
                    self.rivalries[index].contest = None;
                    self.end_contest(index);
                }
            }
            Step::Answer(index) => self.answer(index),
            Step::Release(index, ended) => self.release(index, ended),
            Step::DropBinary(index) => self.drop_binary(index),
            Step::Leave(index, ended) => self.leave(index, ended),
            Step::DropPhone(index) => {
                if let Some(index) = self.phone(index) {
                    self.phones[index].seat = None;
                    self.phone_left(index, Ended::Dropped);
                }
            }
            Step::Forward(index, count, length) => {
                for _ in 0..count {
                    self.forward(index, length);
                }
            }
            Step::Deliver(binary, phone, count, length) => {
                for _ in 0..count {
                    self.deliver(binary, phone, Some(length), None);
                }
            }
            Step::Direct(binary, phone, more, code) => {
                self.deliver(binary, phone, more.then_some(3), Some(code));
            }
            Step::DeliverUnknown(binary, key) => self.deliver_unknown(binary, key),
            Step::DrainBinary(index) => self.drain_binary(index),
            Step::DrainPhone(index) => self.drain_phone(index),
            Step::Wait(milliseconds) => self.wait(milliseconds),
            Step::Pressure(bytes) => {
                self.outsider.sub(self.outsider.held());
                self.outsider.add(bytes);
                self.relieve();
            }
        }
    }

    /// One of those whose seat is still there.
    fn binary(&self, index: usize) -> Option<usize> {
        pick(&self.binaries, index, |binary| binary.seat.is_some())
    }

    fn phone(&self, index: usize) -> Option<usize> {
        pick(&self.phones, index, |phone| phone.seat.is_some())
    }

    fn rivalry(&self, index: usize) -> Option<usize> {
        pick(&self.rivalries, index, |rivalry| rivalry.contest.is_some())
    }

    fn claim(&mut self, server: usize) {
        let claim = self.registry.claim(&id(SERVERS[server]), self.now());
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
    fn seat(&mut self, server: usize, seat: ServerSeat) {
        let slot = self.slots.get_mut(&server).expect("a slot");
        slot.contest = None;
        let silent = match slot.holder.replace(self.binaries.len()) {
            Some(old) => {
                self.binaries[old].close = Some("close 1011 heartbeat timeout".to_owned());
                true
            }
            None => slot.silent,
        };
        // A notice is of nobody, and about somebody.
        slot.told = slot
            .queue
            .iter()
            .filter(|(_, from, ..)| from.is_none())
            .map(|(about, ..)| about.clone())
            .collect();
        for index in slot.phones.clone() {
            let phone = &mut self.phones[index];
            if self.evict || (silent && !phone.unserved) {
                phone.queue.clear();
                phone.close = Some("close 4404 binary reclaimed server-id".to_owned());
                self.retire(index, Some(4404), Kept::Nothing);
            } else {
                phone.outlived |= !phone.unserved;
                phone.unserved = false;
            }
        }
        self.binaries.push(Binary { server, seat: Some(seat), close: None });
    }

    fn win(&mut self, index: usize) {
        let Some(index) = self.rivalry(index) else { return };
        let Rivalry { server, holder, answered, .. } = self.rivalries[index];
        let contest = self.rivalries[index].contest.take().expect("picked for it");
        let live = self.slots[&server].holder;
        match contest.win() {
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

    fn end_contest(&mut self, index: usize) {
        let slot = self.slots.get_mut(&self.rivalries[index].server);
        if let Some(slot) = slot.filter(|slot| slot.contest == Some(index)) {
            slot.contest = None;
        }
    }

    fn answer(&mut self, index: usize) {
        let Some(index) = self.rivalry(index) else { return };
        let Rivalry { server, holder, .. } = self.rivalries[index];
        if let Some(seat) = &self.binaries[holder].seat {
            seat.outbox().heard(self.now() + DAY);
            self.rivalries[index].answered = self.slots[&server].holder == Some(holder);
        }
        let contest = self.rivalries[index].contest.as_ref().expect("picked for it");
        let expected = match self.slots[&server].holder {
            None => Some(Outcome::HolderGone),
            Some(_) => self.rivalries[index].answered.then_some(Outcome::Answered),
        };
        assert_eq!(outcome(contest), expected);
    }

    fn release(&mut self, index: usize, ended: Ended) {
        let Some(index) = self.binary(index) else { return };
        let now = self.now();
        let seat = self.binaries[index].seat.as_mut().expect("picked for it");
        seat.release(ended, now);
        self.released(index, ended.by_silence(), 0);
    }

    /// Starts the window of the slot that `index` holds, if it holds one.
    fn released(&mut self, index: usize, silent: bool, late: u64) {
        let slot = self.slots.get_mut(&self.binaries[index].server);
        if let Some(slot) = slot.filter(|slot| slot.holder == Some(index)) {
            slot.holder = None;
            slot.silent = silent;
            slot.deadline = self.now + late + 30_000;
        }
    }

    fn drop_binary(&mut self, index: usize) {
        let Some(index) = self.binary(index) else { return };
        // By its own clock, which the model has no hand on: told before, that it is the same.
        let now = self.now();
        if let Some(mut seat) = self.binaries[index].seat.take() {
            seat.release(Ended::Dropped, now);
        }
        self.released(index, false, 0);
    }

    fn join(&mut self, server: usize) {
        let slot = self.slots.get_mut(&server);
        match (self.registry.join(&id(SERVERS[server])), slot) {
            (Join::NoServer, None) => {}
            (Join::TooMany, Some(slot)) => assert_eq!(slot.phones.len(), MOST_PHONES),
            (Join::Seated(seat), Some(slot)) => {
                assert!(slot.phones.len() < MOST_PHONES);
                slot.phones.insert(self.phones.len());
                let unserved = slot.holder.is_none();
                let (id, source) = (seat.conn_id(), Rc::clone(seat.source()));
                self.phones.push(Phone {
                    server,
                    id,
                    source,
                    unserved,
                    seat: Some(seat),
                    outlived: false,
                    known: false,
                    queue: Vec::new(),
                    close: None,
                    gone: false,
                });
            }
            (join, slot) => panic!("{join:?}, and a slot is there: {}", slot.is_some()),
        }
    }

    fn leave(&mut self, index: usize, ended: Ended) {
        let Some(index) = self.phone(index) else { return };
        self.phones[index].seat.as_mut().expect("picked for it").leave(ended);
        self.phone_left(index, ended);
    }

    fn phone_left(&mut self, index: usize, ended: Ended) {
        if self.is_attached(index) {
            let code = match ended {
                Ended::ByPeer(Some(code)) => code,
                Ended::ByRelay(close) => close.code().expect("one with a code"),
                _ => 1001,
            };
            self.retire(index, Some(code), Kept::ByTheWindow);
        }
    }

    fn is_attached(&self, index: usize) -> bool {
        let phone = &self.phones[index];
        self.slots.get(&phone.server).is_some_and(|slot| slot.phones.contains(&index))
    }

    /// Takes a phone off its slot; `notice` is the code that the binary is told, if it is.
    fn retire(&mut self, index: usize, notice: Option<u16>, kept: Kept) {
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

    fn forward(&mut self, index: usize, length: usize) {
        let Some(index) = self.phone(index) else { return };
        self.messages += 1;
        let message = format!("{}{}", self.messages, "7".repeat(length));
        let phone = &self.phones[index];
        let text = envelope(&phone.id, &message);
        let frame = Prefix::new(&phone.id).wrap(&message);
        let cost = frame.len() + 64;
        let forwarded = phone.seat.as_ref().expect("picked for it").forward(frame);
        if !self.is_attached(index) {
            assert!(matches!(forwarded, Forwarded::Gone));
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
            assert!(matches!(forwarded, Forwarded::Queued), "{forwarded:?}");
            slot.queue.push((self.phones[index].id.clone(), Some(index), text, cost));
            self.relieve();
        } else {
            assert!(matches!(forwarded, Forwarded::Held(_)), "{forwarded:?}");
            if !over_its_half && !slot.waiting.contains(&index) {
                slot.waiting.push(index);
            }
        }
    }

    fn deliver(&mut self, binary: usize, phone: usize, frame: Option<usize>, code: Option<u16>) {
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
        let delivery = deliver(seat, &(text + "}"));
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
            return;
        }
        assert_eq!(delivery, Delivery::Done);
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

    fn deliver_unknown(&mut self, binary: usize, key: u8) {
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

    fn drain_binary(&mut self, index: usize) {
        let Some(index) = self.binary(index) else { return };
        let binary = &mut self.binaries[index];
        let mut got = said(binary.seat.as_ref().expect("picked for it"));
        got.retain(|text| text != "ping");
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

    fn drain_phone(&mut self, index: usize) {
        let Some(index) = self.phone(index) else { return };
        let phone = &mut self.phones[index];
        let mut expected = std::mem::take(&mut phone.queue);
        expected.extend(phone.close.take());
        assert_eq!(said_to(phone.seat.as_ref().expect("picked for it")), expected);
    }

    fn wait(&mut self, milliseconds: u64) {
        self.now += milliseconds;
        self.registry.expire(self.now());
        let now = self.now;
        let due = |slot: &Slot| slot.holder.is_none() && slot.deadline <= now;
        for server in 0..SERVERS.len() {
            let Some(slot) = self.slots.get_mut(&server).filter(|slot| due(slot)) else { continue };
            if slot.contest.is_some() {
                // The newcomer is about to take it.
                slot.deadline = now + 30_000;
                continue;
            }
            let slot = self.slots.remove(&server).expect("it is due");
            for index in slot.phones {
                let phone = &mut self.phones[index];
                phone.queue.clear();
                phone.close = Some("close 4404 no server with that id".to_owned());
                phone.gone = true;
            }
        }
    }

    /// The budget: who is closed is seen, and judged.
    fn relieve(&mut self) {
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
        for (index, phone) in self.phones.iter_mut().enumerate().filter(|(_, phone)| phone.gone) {
            // One that had left may have lost what it left behind.
            if phone.source.share() == 0 {
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
        if self.registry.ledger().is_over() {
            let held = |phone: &Phone| phone.source.account().held();
            assert!(self.phones.iter().filter(|phone| !phone.gone).all(|phone| held(phone) == 0));
        }
    }

    /// The map is what the model says.
    fn compare(&self) {
        let map = self.registry.map.borrow();
        let names: BTreeSet<_> = map.slots.keys().map(|server| server.as_str()).collect();
        assert_eq!(names, self.slots.keys().map(|server| SERVERS[*server]).collect());
        assert!(map.slots.len() <= MOST_SLOTS);
        let mut releases = BTreeSet::new();
        for (server, slot) in &self.slots {
            let real = &map.slots[&id(SERVERS[*server])];
            match (&real.holder, slot.holder) {
                (Holder::Live { outbox, .. }, Some(holder)) => {
                    let seat = self.binaries[holder].seat.as_ref().expect("a holder has a seat");
                    assert!(Rc::ptr_eq(outbox, seat.outbox()), "the holder is another");
                }
                (Holder::Grace { deadline, serial, silent, .. }, None) => {
                    assert_eq!(*deadline, self.start + Duration::from_millis(slot.deadline));
                    assert_eq!(*silent, slot.silent);
                    releases.insert((*deadline, *serial));
                }
                (holder, model) => panic!("{holder:?} instead of {model:?}"),
            }
            assert_eq!(real.probe.is_some(), slot.contest.is_some(), "a probe");
            let attached: BTreeSet<_> =
                real.phones.keys().map(|key| key.conn_id(&id(SERVERS[*server]))).collect();
            assert_eq!(attached, slot.phones.iter().map(|i| self.phones[*i].id.clone()).collect());
        }
        assert_eq!(releases, map.releases.keys().copied().collect(), "pending releases");
        // Phones on their way out: all that are still written to, and none without a connection.
        let outboxes = self
            .phones
            .iter()
            .filter(|phone| phone.gone)
            .filter_map(|phone| phone.seat.as_ref().map(|seat| seat.outbox().sealed()));
        let written = |sealed: &Option<_>| matches!(sealed, Some((_, Manner::Orderly)));
        let fewest = outboxes.clone().filter(written).count();
        let leaving = map.leaving.len();
        assert!((fewest..=outboxes.count()).contains(&leaving), "{leaving} phones are leaving");
        drop(map);
        let in_grace = self.slots.values().filter(|slot| slot.holder.is_none()).count();
        let expected = Counts {
            binaries: self.slots.len() - in_grace,
            phones: self.slots.values().map(|slot| slot.phones.len()).sum(),
            in_grace,
        };
        assert_eq!(self.registry.counts(), expected);
    }

    /// All seats go, one by one, and the windows pass: nothing is left.
    fn finish(mut self) {
        let most = self.binaries.len().max(self.phones.len()).max(self.rivalries.len());
        for _ in 0..most {
            // The first one of those that are left, having been told everything.
            for last in [
                Step::DrainPhone(0),
                Step::DropPhone(0),
                Step::GiveUp(0),
                Step::DrainBinary(0),
                Step::DropBinary(0),
            ] {
                self.step(&last);
                self.compare();
            }
        }
        self.phones.iter_mut().for_each(|phone| phone.seat = None);
        self.rivalries.clear();
        self.binaries.clear();
        self.registry.expire(self.now() + DAY);
        let map = self.registry.map.borrow();
        assert!(map.slots.is_empty() && map.releases.is_empty() && map.leaving.is_empty());
        drop(map);
        self.outsider.sub(self.outsider.held());
        assert_eq!(self.registry.counts(), Counts::default());
        assert_eq!(self.registry.ledger().total(), 0, "bytes on the ledger");
        assert!(self.phones.iter().all(|phone| phone.source.account().held() == 0));
    }
}

/// Which of the messages of a phone that is taken off stay queued.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    All,
    ByTheWindow,
    Nothing,
}

impl Slot {
    fn held(&self) -> usize {
        self.queue.iter().map(|(.., cost)| cost).sum()
    }

    fn notice(&mut self, about: &str, code: u16) {
        let text = noticed(about, code);
        let cost = text.len() + if text.len() > 125 { 4 } else { 2 } + 64;
        self.queue.push((about.to_owned(), None, text, cost));
        self.told.insert(about.to_owned());
    }

    /// A frame came for an id that is not attached.
    fn answer(&mut self, about: &str) {
        if self.held() <= LIMIT / 2 && !self.told.contains(about) {
            self.notice(about, 1001);
        }
    }
}

/// The position of one of `items` that is `eligible`.
fn pick<T>(items: &[T], index: usize, eligible: impl Fn(&T) -> bool) -> Option<usize> {
    let eligible: Vec<_> = (0..items.len()).filter(|at| eligible(&items[*at])).collect();
    eligible.get(index % eligible.len().max(1)).copied()
}
