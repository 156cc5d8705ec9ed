//! A queue that changes its connection.

use super::*;

#[test]
fn a_detached_queue_is_sent_whole_by_the_next_connection() {
    let (lane, ledger) = lane(usize::MAX);
    let old = Outbox::new(Some(Rc::clone(&lane)));
    let source = Sender::new(Account::open(&ledger, NOBODY));
    for text in ["accepted", "half written", "queued"] {
        lane.offer(Frame::text(&[text.as_bytes()]), &source).unwrap();
    }
    let mut dead = MockSocket::planned([10 + 5, 0]);
    assert_eq!(flush(&old, &mut dead).completed.messages, 1);
    old.detach();
    let new = Outbox::new(Some(Rc::clone(&lane)));
    let mut socket = MockSocket::planned([1, 0, 3]);
    assert_eq!(drain(&new, &mut socket), 2);
    assert_eq!(socket.frames(), [data("half written"), data("queued")]);
    assert!(lane.is_empty());
    drop(old);
    assert_eq!(ledger.total(), 0);
}

#[test]
fn a_detached_connection_finishes_the_frame_in_progress_and_no_other() {
    let (lane, _ledger) = lane(usize::MAX);
    let outbox = Outbox::new(Some(Rc::clone(&lane)));
    for text in ["half written", "kept"] {
        lane.push(Frame::text(&[text.as_bytes()])).unwrap();
    }
    let mut socket = MockSocket::planned([5, 0]);
    flush(&outbox, &mut socket);
    outbox.pong(b"asked");
    outbox.detach();
    outbox.detach();
    lane.push(Frame::text(&[b"not for this one"])).unwrap();
    outbox.close(Close::HeartbeatTimeout, Manner::Abort);
    assert_eq!(drain(&outbox, &mut socket), 0, "the queue's messages are the next connection's");
    let frames = socket.frames();
    assert_eq!(frames[0], data("half written"));
    assert_eq!(frames.last(), Some(&close_frame(Close::HeartbeatTimeout)));
    assert!(!frames.contains(&data("kept")) && !frames.contains(&data("not for this one")));
    assert_eq!(lane.unfinished(), 0);
}

#[test]
fn a_detach_between_frames_or_within_a_control_frame_takes_nothing_along() {
    // Up to the whole ping, a byte at a time; it is staged ahead of the message.
    for accepted in 0..=2 {
        let (lane, _ledger) = lane(usize::MAX);
        let outbox = Outbox::new(Some(Rc::clone(&lane)));
        lane.push(Frame::text(&[b"kept"])).unwrap();
        outbox.ping();
        let mut socket =
            MockSocket::planned(if accepted == 0 { vec![0] } else { vec![accepted, 0] });
        flush(&outbox, &mut socket);
        outbox.detach();
        drain(&outbox, &mut socket);
        assert_eq!(socket.frames(), [Received::new(PING, b"")], "{accepted}");
        let mut socket = MockSocket::default();
        drain(&Outbox::new(Some(lane)), &mut socket);
        assert_eq!(socket.frames(), [data("kept")], "{accepted}");
    }
}
