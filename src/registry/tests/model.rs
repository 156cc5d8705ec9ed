//! The registry against a naive model: random operations on both, and after each of them both must
//! say the same. The model is written from the contract.
//!
//! More steps than the ordinary run has: `PROPTEST_CASES=50000 PROPTEST_RNG_SEED=1`.

mod membership;
mod traffic;
mod upgrade;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::clock;

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
    Vacate(usize, Ended, bool),
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
    /// A binary's socket takes everything, and behind it a ping if one is due.
    Ask(usize),
    /// A binary answers that ping.
    Pong(usize),
    /// Time passes, in milliseconds, and the grace timer rings.
    Wait(u64),
    /// Others hold so much memory.
    Pressure(usize),
    /// Another registry takes over, with contests before the seats or after them.
    Upgrade(bool),
}

fn step() -> impl Strategy<Value = Step> {
    use Step::*;
    let index = || 0..12_usize;
    let count = || prop_oneof![4 => Just(1_usize), 1 => 2..20_usize];
    let length = || prop_oneof![4 => 1..20_usize, 1 => 3_000..4_000_usize];
    let code = prop_oneof![Just(1000_u16), Just(4401), Just(4410), Just(4421)];
    prop_oneof![
        6 => index().prop_map(Claim),
        8 => index().prop_map(Join),
        3 => index().prop_map(Win),
        1 => index().prop_map(GiveUp),
        2 => index().prop_map(Answer),
        3 => (index(), ended(), any::<bool>())
            .prop_map(|(binary, ended, amid)| Vacate(binary, ended, amid)),
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
        6 => index().prop_map(Ask),
        6 => index().prop_map(Pong),
        4 => prop_oneof![0..3_u64, 900..6_000_u64, 10_000..31_000_u64].prop_map(Wait),
        1 => prop_oneof![Just(0), 0..BUDGET].prop_map(Pressure),
        5 => any::<bool>().prop_map(Upgrade),
    ]
}

fn ended() -> impl Strategy<Value = Ended> {
    prop_oneof![
        Just(Ended::Dropped),
        Just(Ended::ByPeer(Some(1000))),
        Just(Ended::ByRelay(Close::Protocol)),
        Just(Ended::ByRelay(Close::BadUtf8)),
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
    /// The binary that holds it, or the end of its grace window.
    holder: Option<usize>,
    deadline: u64,
    /// How the last holder's connection ended, and when.
    ended: Option<(Ended, u64)>,
    /// Whether some of a message was lost with it.
    severed: bool,
    /// The pings that were sent, when the last was, and what each phone had got through before one that is not
    /// answered yet.
    pings: u64,
    pinged_at: Option<u64>,
    ping: Option<BTreeMap<usize, usize>>,
    /// Until when the holder must show that it knows the phones that were kept for it.
    confirmation: Option<u64>,
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
    sender: Rc<Sender>,
    /// Joined while no binary was there.
    unserved: bool,
    outlived: bool,
    /// The binary has had a message of it.
    known: bool,
    /// Messages of it that a binary's socket took, and those that were proven to be read.
    taken: usize,
    proven: usize,
    /// When the binary last sent it something.
    spoken: Option<u64>,
    unconfirmed: bool,
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

fn new_registry(evict: bool) -> Rc<Registry> {
    let (slots, phones) = (MOST_SLOTS.to_string(), MOST_PHONES.to_string());
    let mut arguments = SMALL.to_vec();
    arguments.extend(["--max-connections", &slots, "--max-phones", &phones]);
    if evict {
        arguments.extend(["--reclaim", "evict"]);
    }
    registry(&arguments)
}

struct World {
    registry: Rc<Registry>,
    start: Instant,
    now: u64,
    evict: bool,
    outsider: Crowd,
    slots: BTreeMap<usize, Slot>,
    binaries: Vec<Binary>,
    phones: Vec<Phone>,
    rivalries: Vec<Rivalry>,
    messages: usize,
}

impl World {
    fn new(evict: bool) -> Self {
        let registry = new_registry(evict);
        Self {
            start: clock::now(),
            now: 0,
            evict,
            outsider: Crowd::new(&registry),
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
            Step::Vacate(index, ended, amid) => self.vacate(index, ended, amid),
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
            Step::Ask(index) => self.ask(index),
            Step::Pong(index) => self.pong(index),
            Step::Wait(milliseconds) => self.wait(milliseconds),
            Step::Pressure(bytes) => {
                self.outsider.clear();
                self.outsider.add(bytes);
                self.relieve();
            }
            Step::Upgrade(contests_first) => self.upgrade(contests_first),
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

    fn wait(&mut self, milliseconds: u64) {
        self.now += milliseconds;
        self.registry.expire(self.now());
        let now = self.now;
        let due = |slot: &Slot| slot.holder.is_none() && slot.deadline <= now;
        for server in 0..SERVERS.len() {
            let confirmation = self.slots.get(&server).and_then(|slot| slot.confirmation);
            if confirmation.is_some_and(|due| due <= now) {
                self.refute(server);
            }
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

    /// The map is what the model says.
    fn compare(&self) {
        let map = self.registry.map.borrow();
        let names: BTreeSet<_> = map.slots.keys().map(|server| server.as_str()).collect();
        assert_eq!(names, self.slots.keys().map(|server| SERVERS[*server]).collect());
        assert!(map.slots.len() <= MOST_SLOTS);
        let mut expiries = BTreeSet::new();
        for (server, slot) in &self.slots {
            let real = &map.slots[&id(SERVERS[*server])];
            match (&real.holder, slot.holder) {
                (Holder::Live { outbox, .. }, Some(holder)) => {
                    let seat = self.binaries[holder].seat.as_ref().expect("a holder has a seat");
                    assert!(Rc::ptr_eq(outbox, seat.outbox()), "the holder is another");
                }
                (Holder::Grace { deadline, serial, .. }, None) => {
                    assert_eq!(*deadline, self.start + Duration::from_millis(slot.deadline));
                    expiries.insert((*deadline, *serial));
                }
                (holder, model) => panic!("{holder:?} instead of {model:?}"),
            }
            assert_eq!(real.inquiry.is_under_way(), slot.contest.is_some(), "a probe");
            let attached: BTreeSet<_> =
                real.phones.keys().map(|key| key.conn_id(&id(SERVERS[*server]))).collect();
            assert_eq!(attached, slot.phones.iter().map(|i| self.phones[*i].id.clone()).collect());
        }
        assert_eq!(expiries, map.expiries.keys().copied().collect(), "pending expiries");
        for slot in self.slots.values().filter(|slot| slot.holder.is_some()) {
            if let Some(due) = slot.confirmation {
                let due = self.start + Duration::from_millis(due);
                assert!(map.confirmations.keys().any(|(at, _)| *at == due), "a confirmation");
            }
        }
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
        assert!(map.slots.is_empty() && map.expiries.is_empty() && map.leaving.is_empty());
        assert!(map.confirmations.is_empty());
        drop(map);
        self.outsider.clear();
        assert_eq!(self.registry.counts(), Counts::default());
        assert_eq!(self.registry.ledger.total(), 0, "bytes on the ledger");
        assert!(self.phones.iter().all(|phone| phone.sender.account().held() == 0));
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
