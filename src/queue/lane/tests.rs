use relay_test_kit::wake::Wakes;

use super::*;
use crate::origin::NOBODY;
use crate::queue::budget::Ledger;

fn message(length: usize) -> Frame {
    Frame::text(&[&vec![b'x'; length]])
}

/// A lane for ten messages of 100 bytes of cost each, and its ledger.
fn lane() -> (Rc<Lane>, Rc<Ledger>) {
    let ledger = Ledger::new(usize::MAX);
    (Lane::new(1000, Account::open(&ledger, NOBODY)), ledger)
}

const COST_100: usize = 100 - MESSAGE_OVERHEAD - 2;

#[test]
fn a_bound_counts_the_overhead_of_every_message() {
    let (lane, ledger) = lane();
    for _ in 0..10 {
        lane.push(message(COST_100)).unwrap();
    }
    assert!(lane.push(message(0)).is_err());
    assert_eq!(ledger.total(), 1000);
    assert_eq!(lane.advance(36).messages, 1);
    assert_eq!(ledger.total(), 900);
    drop(lane);
    assert_eq!(ledger.total(), 0);
}

#[test]
fn no_source_fills_more_than_half_and_it_is_woken_when_its_own_share_shrinks() {
    let (lane, ledger) = lane();
    let (flood, calm) =
        (Sender::new(Account::open(&ledger, NOBODY)), Sender::new(Account::open(&ledger, NOBODY)));
    for _ in 0..5 {
        lane.offer(message(COST_100), &flood).unwrap();
    }
    assert!(lane.offer(message(COST_100), &flood).is_err());
    let (woken, waker) = Wakes::counting();
    flood.wake_when_free(&waker);
    lane.offer(message(COST_100), &calm).unwrap();
    assert_eq!(woken.count(), 0);
    assert_eq!(lane.advance(36).messages, 1);
    assert_eq!(woken.count(), 1);
    lane.offer(message(COST_100), &flood).unwrap();
    assert_eq!((flood.share(), calm.share()), (500, 100));
}

#[test]
fn sources_held_back_by_a_full_lane_are_let_in_in_order() {
    let (lane, ledger) = lane();
    let senders: Vec<_> = (0..4).map(|_| Sender::new(Account::open(&ledger, NOBODY))).collect();
    for sender in [0, 0, 0, 0, 1, 1, 1, 1, 2, 2] {
        lane.offer(message(COST_100), &senders[sender]).unwrap();
    }
    let mut counts = Vec::new();
    for sender in &senders[2..] {
        assert!(lane.offer(message(COST_100), sender).is_err());
        let (count, waker) = Wakes::counting();
        sender.wake_when_free(&waker);
        counts.push(count);
    }
    assert_eq!(lane.advance(36).messages, 1);
    assert_eq!(counts[0].count(), 1, "the first in line is woken");
    assert_eq!(counts[1].count(), 0, "the second is not");
    assert!(lane.offer(message(COST_100), &senders[3]).is_err(), "nobody jumps the queue");
    lane.offer(message(COST_100), &senders[2]).unwrap();
    assert_eq!(lane.advance(36).messages, 1);
    lane.offer(message(COST_100), &senders[3]).unwrap();
}

#[test]
fn a_waiting_source_that_leaves_makes_way() {
    let (lane, ledger) = lane();
    let senders: Vec<_> = (0..4).map(|_| Sender::new(Account::open(&ledger, NOBODY))).collect();
    for sender in [0, 0, 0, 0, 0, 1, 1, 1, 1, 1] {
        lane.offer(message(COST_100), &senders[sender]).unwrap();
    }
    assert!(lane.offer(message(300), &senders[2]).is_err());
    assert!(lane.offer(message(COST_100), &senders[3]).is_err());
    let (woken, waker) = Wakes::counting();
    senders[3].wake_when_free(&waker);
    assert_eq!(lane.advance(36).messages, 1);
    assert_eq!(woken.count(), 0);
    lane.leave(&senders[2]);
    assert_eq!(woken.count(), 1);
}

#[test]
fn dropping_a_sources_messages_spares_the_one_in_progress_and_everybody_elses() {
    let (lane, ledger) = lane();
    let (gone, stays) =
        (Sender::new(Account::open(&ledger, NOBODY)), Sender::new(Account::open(&ledger, NOBODY)));
    for sender in [&gone, &gone, &stays, &gone] {
        lane.offer(message(COST_100), sender).unwrap();
    }
    lane.advance(10);
    lane.drop_messages_of(&gone);
    assert_eq!((gone.share(), stays.share()), (100, 100));
    assert_eq!(lane.advance(26 + 36).messages, 2);
    assert!(lane.is_empty() && gone.is_delivered() && stays.is_delivered());
}

#[test]
fn what_breaks_off_of_a_sender_that_was_dropped_is_not_sent_again() {
    let (lane, ledger) = lane();
    let (gone, stays) =
        (Sender::new(Account::open(&ledger, NOBODY)), Sender::new(Account::open(&ledger, NOBODY)));
    for sender in [&gone, &stays] {
        lane.offer(message(COST_100), sender).unwrap();
    }
    lane.advance(10);
    lane.drop_messages_of(&gone);
    assert_eq!(lane.unfinished(), 26, "on this connection it goes on");
    assert_eq!(lane.rewind().len(), 26);
    assert_eq!((gone.share(), stays.share(), lane.messages()), (0, 100, 1));
    lane.advance(36);
    assert!(lane.is_empty() && stays.is_delivered() && !gone.is_delivered());
}

#[test]
fn a_message_counts_as_delivered_with_its_last_byte() {
    let (lane, ledger) = lane();
    let sender = Sender::new(Account::open(&ledger, NOBODY));
    lane.offer(message(COST_100), &sender).unwrap();
    assert_eq!(lane.advance(35).messages, 0);
    assert!(!sender.is_delivered());
    assert_eq!(lane.rewind().len(), 1);
    assert_eq!(lane.unfinished(), 0, "the next connection sends it whole");
    assert_eq!(lane.advance(36).messages, 1);
    assert!(sender.is_delivered());
}

#[test]
fn notices_pass_the_bound() {
    let (lane, _ledger) = lane();
    lane.push(message(900)).unwrap();
    let key = PhoneKey::random();
    lane.push_notice(message(200), key);
    assert_eq!(lane.queued_notices(), [key]);
    assert!(lane.is_over_half());
    let all = Completed { messages: 2, forwarded: 1, forwarded_bytes: message(900).len() };
    assert_eq!(lane.advance(message(900).len() + message(200).len()), all);
}
