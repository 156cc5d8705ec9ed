//! An upgrade at any moment changes nothing of what is written.

use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::queue::lane::Senders;

/// What happens to an outbox, and to the lane of its slot if that has one.
#[derive(Clone, Debug)]
enum Event {
    /// A message of this sender and length.
    Send(usize, usize),
    Notice(u64),
    /// Nothing of this sender is to be delivered.
    Forget(usize),
    Pong(u8),
    Ping,
    Ask,
    Prove(u64),
    Proven(u64),
    Flush(Vec<usize>),
    Close(Manner),
    Part,
    Detach,
    Upgrade,
}

fn event() -> impl Strategy<Value = Event> {
    let length = || prop_oneof![6 => 0_usize..300, 1 => GATHER_BELOW - 8..GATHER_BELOW + 2000];
    prop_oneof![
        8 => (0..SENDERS, length()).prop_map(|(sender, length)| Event::Send(sender, length)),
        1 => any::<u64>().prop_map(Event::Notice),
        1 => (0..SENDERS).prop_map(Event::Forget),
        2 => any::<u8>().prop_map(Event::Pong),
        2 => Just(Event::Ping),
        1 => Just(Event::Ask),
        2 => (0..3_000_u64).prop_map(Event::Prove),
        2 => (0..4_u64).prop_map(Event::Proven),
        8 => prop::collection::vec(1_usize..200, 0..6).prop_map(Event::Flush),
        2 => prop::collection::vec(1_usize..40_000, 0..6).prop_map(Event::Flush),
        8 => Just(Event::Upgrade),
    ]
}

fn ending() -> impl Strategy<Value = Vec<Event>> {
    let one = prop_oneof![
        Just(Event::Close(Manner::Orderly)),
        Just(Event::Close(Manner::Abort)),
        Just(Event::Part),
        Just(Event::Detach),
    ];
    prop::collection::vec(one, 0..3)
}

const SENDERS: usize = 3;
const LIMIT: usize = 40_000;

/// One of two that the same happens to.
struct Side {
    ledger: Rc<Ledger>,
    account: Rc<Account>,
    /// The lane of a slot; else the outbox has its own.
    lane: Option<Rc<Lane>>,
    senders: Vec<Rc<Sender>>,
    outbox: Rc<Outbox>,
    socket: MockSocket,
    completed: Completed,
    start: Instant,
}

impl Side {
    fn new(is_slot: bool, start: Instant) -> Self {
        let ledger = Ledger::new(usize::MAX);
        let account = Account::open(&ledger, NOBODY);
        let lane = Lane::new(LIMIT, Rc::clone(&account));
        let open = |_| Sender::new(Account::open(&ledger, NOBODY));
        Self {
            senders: (0..SENDERS).map(open).collect(),
            outbox: Outbox::new(Some(Rc::clone(&lane))),
            lane: is_slot.then_some(lane),
            account,
            ledger,
            socket: MockSocket::default(),
            completed: Completed::default(),
            start,
        }
    }

    fn happens(&mut self, event: &Event, number: usize) {
        match event {
            Event::Send(sender, length) => {
                let text = format!("{number} {}", "x".repeat(*length));
                let frame = Frame::text(&[text.as_bytes()]);
                // What finds no room is lost, here and there.
                let _ = match &self.lane {
                    Some(lane) => lane.offer(frame, &self.senders[*sender]).is_ok(),
                    None => self.outbox.send(frame).is_ok(),
                };
            }
            Event::Notice(number) => {
                let notice = Frame::text(&[number.to_string().as_bytes()]);
                if let Some(lane) = &self.lane {
                    lane.push_notice(notice, PhoneKey::random());
                }
            }
            Event::Forget(sender) => {
                if let Some(lane) = &self.lane {
                    lane.drop_messages_of(&self.senders[*sender]);
                }
            }
            Event::Pong(payload) => self.outbox.pong(&[*payload]),
            Event::Ping => self.outbox.ping(),
            Event::Ask => self.outbox.ask(*b"anybody?"),
            Event::Prove(after) => {
                let _ = self.outbox.prove(self.start + std::time::Duration::from_millis(*after));
            }
            Event::Proven(number) => self.outbox.heard_pong(&number.to_be_bytes()),
            Event::Flush(plan) => {
                self.socket.plan = plan.iter().copied().chain([0; TURN_WRITES]).collect();
                self.completed += flush(&self.outbox, &mut self.socket).completed;
            }
            Event::Close(manner) => self.outbox.close(Close::ShuttingDown, *manner),
            Event::Part => self.outbox.part(),
            Event::Detach => self.outbox.detach(),
            Event::Upgrade => {}
        }
    }

    /// Freezes all of it, and goes on with what is thawed from that.
    fn upgrade(&mut self) {
        let now = self.start + std::time::Duration::from_secs(5);
        let mut numbers = Senders::default();
        self.senders.iter().for_each(|sender| {
            numbers.number(sender);
        });
        let outbox = carried(&self.outbox.freeze(self.lane.as_ref(), now));
        let lane = self.lane.as_ref().map(|lane| carried(&lane.freeze(numbers, now)));
        let ledger = Ledger::new(usize::MAX);
        let account = Account::open(&ledger, NOBODY);
        let lane = lane.map(|mut lane| {
            let senders = std::mem::take(&mut lane.senders).into_iter();
            let thaw = |sender| Sender::thaw(sender, Account::open(&ledger, NOBODY));
            self.senders = senders.map(thaw).collect();
            Lane::thaw(lane, LIMIT, Rc::clone(&account), &self.senders, now)
        });
        self.outbox = Outbox::thaw(outbox, lane.as_ref(), LIMIT, &account, now);
        (self.lane, self.account, self.ledger) = (lane, account, ledger);
    }

    /// Everything goes out, and then the rest of the lane on another connection.
    fn finish(mut self) -> (Vec<u8>, Completed, Vec<u8>, usize) {
        self.socket.plan.clear();
        loop {
            let flushed = flush(&self.outbox, &mut self.socket);
            self.completed += flushed.completed;
            if matches!(flushed.end, FlushEnd::Idle | FlushEnd::Closed) {
                break;
            }
        }
        self.outbox.detach();
        let mut socket = MockSocket::default();
        if let Some(lane) = &self.lane {
            drain(&Outbox::new(Some(Rc::clone(lane))), &mut socket);
        }
        (self.socket.taken, self.completed, socket.taken, self.ledger.total())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(relay_emulated) { 16 } else { 128 }))]

    #[test]
    fn an_upgrade_at_any_byte_changes_neither_what_is_written_nor_what_is_counted(
        is_slot in any::<bool>(),
        events in prop::collection::vec(event(), 0..60),
        ending in ending(),
        rest in prop::collection::vec(event(), 0..20),
    ) {
        let start = clock::now();
        let [mut same, mut upgraded] = [(); 2].map(|()| Side::new(is_slot, start));
        let ending = ending.into_iter().flat_map(|event| [event, Event::Upgrade]);
        let events = events.into_iter().chain(ending).chain(rest);
        for (number, event) in events.enumerate() {
            same.happens(&event, number);
            match event {
                Event::Upgrade => upgraded.upgrade(),
                event => upgraded.happens(&event, number),
            }
            prop_assert!(same.socket.taken == upgraded.socket.taken);
            prop_assert_eq!(same.completed, upgraded.completed);
            prop_assert_eq!(same.outbox.sealed(), upgraded.outbox.sealed());
            let is_between = [&same, &upgraded].map(|side| side.outbox.is_between_frames());
            prop_assert_eq!(is_between[0], is_between[1], "between frames");
            let (rest, carried) = (same.outbox.remainder(), upgraded.outbox.remainder());
            prop_assert_eq!(rest.is_some(), carried.is_some());
            if rest.is_none() {
                prop_assert_eq!(same.ledger.total(), upgraded.ledger.total());
                prop_assert_eq!(same.outbox.queued(), upgraded.outbox.queued());
            }
            if let (Some(one), Some(other)) = (&same.lane, &upgraded.lane) {
                prop_assert_eq!((one.held(), one.messages()), (other.held(), other.messages()));
                prop_assert_eq!(one.unfinished(), other.unfinished());
                prop_assert_eq!(one.queued_notices().len(), other.queued_notices().len());
                for (mine, its) in same.senders.iter().zip(&upgraded.senders) {
                    prop_assert_eq!(mine.share(), its.share());
                    prop_assert_eq!(mine.account().held(), its.account().held());
                    prop_assert_eq!(mine.is_delivered(), its.is_delivered());
                    prop_assert_eq!(one.is_proven(mine), other.is_proven(its));
                }
            }
        }
        let (expected, found) = (same.finish(), upgraded.finish());
        prop_assert!(expected.0 == found.0, "what is written");
        prop_assert_eq!(expected.1, found.1);
        prop_assert!(expected.2 == found.2, "what is written on the next connection");
        prop_assert_eq!((expected.3, found.3), (0, 0));
    }
}

#[test]
fn a_control_frame_half_sent_is_half_sent_after_two_upgrades() {
    let start = clock::now();
    let mut side = Side::new(false, start);
    side.happens(&Event::Pong(7), 0);
    assert!(side.outbox.is_between_frames());
    side.happens(&Event::Flush(vec![1]), 1);
    for upgrade in 0..3 {
        assert!(!side.outbox.is_between_frames(), "after {upgrade} upgrades");
        side.upgrade();
    }
    let (written, ..) = side.finish();
    assert_eq!(written, Frame::pong(&[7]).as_bytes());
}

fn carried<T: Serialize + DeserializeOwned>(frozen: &T) -> T {
    rmp_serde::from_slice(&rmp_serde::to_vec_named(frozen).unwrap()).unwrap()
}
