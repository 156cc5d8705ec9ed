//! Who is woken, and by what.

use super::*;

#[test]
fn a_full_queue_refuses_and_takes_again_when_there_is_room() {
    let cost = 2 + 3 + MESSAGE_OVERHEAD;
    let (lane, ledger) = lane(2 * cost);
    let outbox = Outbox::new(Some(lane));
    send(&outbox, "one");
    send(&outbox, "two");
    assert_eq!(outbox.send(Frame::text(&[b""])), Err(Full));
    assert_eq!(ledger.total(), 2 * cost);
    let mut socket = MockSocket::planned([4, 0]);
    flush(&outbox, &mut socket);
    assert_eq!(outbox.send(Frame::text(&[b"one"])), Err(Full), "begun is not gone");
    drain(&outbox, &mut socket);
    send(&outbox, "six");
    drain(&outbox, &mut socket);
    assert_eq!(socket.frames(), [data("one"), data("two"), data("six")]);
    // A sealed one takes no more, and nobody is to be told that it is full.
    outbox.close(Close::ShuttingDown, Manner::Orderly);
    outbox.send(Frame::text(&[&[b'x'; 1000]])).unwrap();
}

#[test]
fn whatever_is_added_wakes_the_link_once() {
    let (lane, _ledger) = lane(usize::MAX);
    let outbox = Outbox::new(Some(Rc::clone(&lane)));
    let additions: [&dyn Fn(); 8] = [
        &|| send(&outbox, "message"),
        &|| lane.push(Frame::text(&[b"from the slot"])).unwrap(),
        &|| lane.push_notice(Frame::text(&[b"notice"]), PhoneKey::random()),
        &|| outbox.pong(b""),
        &|| outbox.ping(),
        &|| outbox.ask(*b"anybody?"),
        &|| outbox.close(Close::ShuttingDown, Manner::Orderly),
        &|| outbox.close(Close::ShuttingDown, Manner::Abort),
    ];
    let mut socket = MockSocket::default();
    for (number, add) in additions.iter().enumerate() {
        let (count, waker) = Wakes::counting();
        flush_with(&outbox, &mut socket, &waker, BATCH_BYTES);
        assert_eq!(count.take(), 0, "addition {number}");
        add();
        assert_eq!(count.take(), 1, "addition {number}");
        if number < 3 {
            add();
            assert_eq!(count.take(), 0, "addition {number}: it has not looked since");
        }
    }
}

#[test]
fn a_blocked_link_is_woken_by_what_passes_the_queue() {
    let (outbox, _ledger) = outbox();
    send(&outbox, "blocked");
    let (count, waker) = Wakes::counting();
    let mut socket = MockSocket::planned([0, 0]);
    for _ in 0..2 {
        let flushed = flush_with(&outbox, &mut socket, &waker, BATCH_BYTES);
        assert!(matches!(flushed.end, FlushEnd::Blocked));
        outbox.pong(b"");
        assert_eq!(count.take(), 1);
    }
}

#[test]
fn the_latest_waker_is_the_one_that_counts() {
    let (outbox, _ledger) = outbox();
    let ((old_count, old), (new_count, new)) = (Wakes::counting(), Wakes::counting());
    let mut socket = MockSocket::default();
    flush_with(&outbox, &mut socket, &old, BATCH_BYTES);
    flush_with(&outbox, &mut socket, &new, BATCH_BYTES);
    send(&outbox, "message");
    outbox.ping();
    assert_eq!((old_count.take(), new_count.take()), (0, 2));
}

#[test]
fn a_detached_link_is_not_woken_by_the_queue_and_the_next_one_is() {
    let (lane, _ledger) = lane(usize::MAX);
    let (old, (old_count, old_waker)) = (Outbox::new(Some(Rc::clone(&lane))), Wakes::counting());
    let mut socket = MockSocket::default();
    flush_with(&old, &mut socket, &old_waker, BATCH_BYTES);
    old.detach();
    old_count.take();
    lane.push(Frame::text(&[b"in between"])).unwrap();
    let (new, (new_count, new_waker)) = (Outbox::new(Some(Rc::clone(&lane))), Wakes::counting());
    flush_with(&new, &mut socket, &new_waker, BATCH_BYTES);
    flush_with(&old, &mut socket, &old_waker, BATCH_BYTES);
    lane.push(Frame::text(&[b"for the new one"])).unwrap();
    assert_eq!((old_count.take(), new_count.take()), (0, 1));
    old.close(Close::HeartbeatTimeout, Manner::Abort);
    assert_eq!((old_count.take(), new_count.take()), (1, 0));
}
