use super::*;
use crate::clock;

#[test]
fn a_phone_fills_half_of_the_slots_queue_and_is_then_held_back_in_the_window_too() {
    let registry = registry(&SMALL);
    let now = clock::now();
    let mut holder = seated(&registry, "box", now);
    let (flood, calm) = (joined(&registry, "box"), joined(&registry, "box"));
    holder.vacate(Ended::Dropped, false, now);
    let mut queued = 0;
    let held = loop {
        match flood.forward(message(&flood, 3_000).1) {
            Passed::Queued => queued += 1,
            Passed::Held(frame) => break frame,
            Passed::Gone => panic!("the phone is attached"),
        }
    };
    assert!((8..=10).contains(&queued), "{queued} of about 3 KB each in 32 KiB");
    forward(&calm, "1");
    let (woken, waker) = Wakes::counting();
    flood.sender().wake_when_free(&waker);
    let holder = seated(&registry, "box", now);
    assert_eq!(woken.count(), 0, "a claim alone makes no room");
    assert_eq!(said(&holder).len(), queued + 1);
    assert!(woken.count() > 0);
    assert!(matches!(flood.forward(held), Passed::Queued));
    assert_eq!(said(&holder).len(), 1);
}

#[test]
fn a_message_that_found_no_room_is_free_as_soon_as_its_phone_pays() {
    let registry = registry(&SMALL);
    let _holder = seated(&registry, "box", clock::now());
    let phone = joined(&registry, "box");
    let frame = message(&phone, 3_000).1;
    let outsider = Crowd::new(&registry);
    phone.sender().account().add(frame.len());
    phone.sender().park(frame);
    outsider.add(128 * 1024 - registry.ledger.total() + 1);
    registry.relieve();
    assert_eq!(said_to(&phone), ["close 1013 memory budget exhausted"]);
    assert!(phone.sender().unpark().is_none());
}

#[test]
fn the_memory_budget_closes_the_phones_that_hold_most_one_after_the_other() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", clock::now());
    let phones = [10, 20, 30, 20].map(|count| {
        let phone = joined(&registry, "box");
        fill_queue(&holder, &phone, count);
        phone
    });
    let [least, third, most, second] = &phones;
    assert!(phones.iter().all(|phone| phone.outbox().sealed().is_none()));
    // Half in the slot's queue and half in its own: the sum counts.
    for _ in 0..4 {
        forward_bytes(second, 2_000);
    }
    let outsider = Crowd::new(&registry);
    let over = |extra: usize| {
        outsider.add(128 * 1024 - registry.ledger.total() + extra);
        registry.relieve();
    };
    over(1);
    assert_eq!(said_to(most), ["close 1013 memory budget exhausted"]);
    assert!(registry.ledger.total() <= 128 * 1024);
    assert!([least, third, second].iter().all(|phone| phone.outbox().sealed().is_none()));
    over(40_000);
    assert_eq!(said_to(second), ["close 1013 memory budget exhausted"]);
    assert_eq!(said_to(third), ["close 1013 memory budget exhausted"]);
    assert_eq!(least.outbox().sealed(), None);
    assert_eq!(registry.counts().phones, 1);
    assert_eq!(holder.outbox().sealed(), None);
}

#[test]
fn the_memory_budget_reclaims_what_a_departed_phone_has_queued() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", clock::now());
    let (mut gone, stays) = (joined(&registry, "box"), joined(&registry, "box"));
    for _ in 0..8 {
        forward_bytes(&gone, 3_000);
    }
    forward(&stays, "1");
    gone.leave(Ended::ByPeer(Some(1000)));
    let outsider = Crowd::new(&registry);
    outsider.add(128 * 1024 - registry.ledger.total() + 1);
    registry.relieve();
    assert!(!registry.ledger.is_over());
    assert_eq!(stays.outbox().sealed(), None);
    assert_eq!(said(&holder), [wrapped(&stays, "1"), noticed(&gone.conn_id(), 1000)]);
}

#[test]
fn the_memory_budget_cuts_short_what_is_written_to_a_phone_on_its_way_out() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", clock::now());
    let (leaving, stays) = (joined(&registry, "box"), joined(&registry, "box"));
    fill_queue(&holder, &leaving, 30);
    fill_queue(&holder, &stays, 20);
    close(&holder, &leaving, 4401);
    let outsider = Crowd::new(&registry);
    outsider.add(128 * 1024 - registry.ledger.total() + 1);
    registry.relieve();
    assert!(!registry.ledger.is_over());
    assert_eq!(said_to(&leaving), ["close 4401 "], "the binary's word stands");
    assert_eq!(stays.outbox().sealed(), None);
    assert_eq!(said_to(&stays).len(), 20);
}

#[test]
fn the_rest_of_a_message_counts_after_the_close_and_is_given_up_before_a_smaller_phone() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", clock::now());
    let (large, small) = (joined(&registry, "box"), joined(&registry, "box"));
    deliver(&holder, &wrapped(&large, &"7".repeat(4_000)));
    fill_queue(&holder, &small, 2);
    let mut socket = MockSocket::taking(100);
    flush(large.outbox(), &mut socket);
    let outsider = Crowd::new(&registry);
    let over = |extra: usize| {
        outsider.add(128 * 1024 - registry.ledger.total() + extra);
        registry.relieve();
        assert!(!registry.ledger.is_over());
    };
    let before = registry.ledger.total();
    over(1);
    assert_eq!(large.outbox().sealed(), Some((Close::OverBudget, Manner::Abort)));
    let rest = large.outbox().remainder().expect("a message in progress").held();
    assert_eq!(rest, 4_004 - 100);
    assert_eq!(registry.ledger.total() - outsider.held(), before - 4_068 + rest);
    over(1);
    assert!(large.outbox().remainder().is_none());
    let mut cx = Context::from_waker(Waker::noop());
    let flushed = large.outbox().poll_flush(&mut cx, &mut socket, &mut [0; 64]);
    assert!(matches!(flushed.end, FlushEnd::Cut), "{flushed:?}");
    assert_eq!(small.outbox().sealed(), None);
    drop((large, small, holder));
    assert_eq!(registry.ledger.total(), outsider.held());
}

#[test]
fn a_binary_pays_for_what_is_held_for_it_and_its_phones_stay_in_the_window() {
    let registry = registry(&SMALL);
    let mut holder = seated(&registry, "box", clock::now());
    let phone = joined(&registry, "box");
    fill_queue(&holder, &phone, 2);
    forward(&phone, "1");
    for key in 0..200 {
        deliver(&holder, &format!("{{\"conn_id\":\"client-box-{key:016x}\",\"frame\":1}}"));
    }
    assert!(holder.account().held() > phone.sender().account().held());
    let outsiders = Crowd::new(&registry);
    outsiders.add(128 * 1024 - registry.ledger.total() + 1);
    registry.relieve();
    assert_eq!(holder.outbox().sealed(), Some((Close::OverBudget, Manner::Abort)));
    assert_eq!(phone.outbox().sealed(), None);
    assert!(!registry.ledger.is_over());
    holder.vacate(Ended::ByRelay(Close::OverBudget), false, clock::now() + QUIET);
    assert_eq!(registry.counts(), Counts { binaries: 0, phones: 1, in_grace: 1 });
    let next = seated(&registry, "box", clock::now());
    assert_eq!(said(&next), [wrapped(&phone, "1")], "the answers are gone, the message is not");
}

#[test]
fn whoever_holds_nothing_is_never_closed_for_the_budget() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", clock::now());
    let phone = joined(&registry, "box");
    let stranger = Account::open(&registry.ledger, Origin::V4([1; 4]));
    stranger.add(1 << 20);
    registry.relieve();
    assert!(!registry.ledger.is_over(), "the stranger has paid");
    assert_eq!(holder.outbox().sealed(), None);
    assert_eq!(phone.outbox().sealed(), None);
}

#[test]
fn a_source_with_many_connections_pays_before_one_with_a_larger_one() {
    let registry = registry(&SMALL);
    let now = clock::now();
    let holder = seated(&registry, "box", now);
    let receiver = joined(&registry, "box");
    fill_queue(&holder, &receiver, 15);
    let Claim::Seated(other) = registry.claim(&id("many"), Origin::V4([2; 4]), now) else {
        panic!("it is free")
    };
    let many: Vec<_> = (0..8)
        .map(|_| match registry.join(&id("many"), Origin::V4([2; 4])) {
            Join::Seated(seat) => seat,
            refused => panic!("{refused:?}"),
        })
        .collect();
    many.iter().for_each(|phone| fill_queue(&other, phone, 6));
    let outsiders = Crowd::new(&registry);
    outsiders.add(128 * 1024 - registry.ledger.total() + 1);
    registry.relieve();
    assert_eq!(receiver.outbox().sealed(), None, "a file on its way is not the fault");
    let closed = many.iter().filter(|phone| phone.outbox().sealed().is_some()).count();
    assert_eq!(closed, 1);
}

#[test]
fn a_phone_whose_queue_is_full_is_closed_alone_and_the_binary_is_told() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", clock::now());
    let (slow, sibling) = (joined(&registry, "box"), joined(&registry, "box"));
    forward(&slow, "1");
    assert_eq!(said(&holder).len(), 1);
    fill_queue(&holder, &slow, 64);
    fill_queue(&holder, &sibling, 1);
    assert_eq!(said_to(&slow), ["close 1013 backlog full"]);
    assert_eq!(said_to(&sibling).len(), 1);
    assert_eq!(said(&holder), [noticed(&slow.conn_id(), 1013)]);
    assert!(matches!(slow.forward(message(&slow, 1).1), Passed::Gone));
}
