//! The last words: orderly closes, aborts, and what may follow them.

use super::*;

#[test]
fn an_orderly_close_follows_the_last_message_and_is_the_last_word() {
    let (outbox, ledger) = outbox();
    for text in ["one", "two"] {
        send(&outbox, text);
    }
    outbox.close(Close::Directive(4401), Manner::Orderly);
    send(&outbox, "dropped");
    let mut socket = MockSocket::planned([1, 0, 1, 0, 1, 0, 1]);
    assert_eq!(drain(&outbox, &mut socket), 2);
    outbox.pong(b"late");
    outbox.ping();
    assert!(matches!(flush(&outbox, &mut socket).end, FlushEnd::Closed));
    let expected = [data("one"), data("two"), close_frame(Close::Directive(4401))];
    assert_eq!(socket.frames(), expected);
    assert_eq!(ledger.total(), 0);
}

#[test]
fn control_frames_are_answered_until_an_orderly_close_has_its_turn() {
    let (outbox, _ledger) = outbox();
    send(&outbox, "in progress");
    send(&outbox, "queued");
    let mut socket = MockSocket::planned([1, 0]);
    flush(&outbox, &mut socket);
    outbox.close(Close::ShuttingDown, Manner::Orderly);
    outbox.pong(b"still");
    drain(&outbox, &mut socket);
    let expected = [
        data("in progress"),
        Received::new(PONG, b"still"),
        data("queued"),
        close_frame(Close::ShuttingDown),
    ];
    assert_eq!(socket.frames(), expected);
}

#[test]
fn an_abort_finishes_the_frame_in_progress_and_drops_the_queue() {
    let (outbox, ledger) = outbox();
    for text in ["in progress", "dropped", "dropped"] {
        send(&outbox, text);
    }
    let mut socket = MockSocket::planned([5, 0, 2, 0]);
    flush(&outbox, &mut socket);
    outbox.pong(b"asked before");
    outbox.close(Close::BacklogFull, Manner::Abort);
    let rest = "in progress".len() + 2 - 5;
    assert_eq!(ledger.total(), rest, "the queue's memory is free at once");
    send(&outbox, "dropped");
    drain(&outbox, &mut socket);
    assert_eq!(ledger.total(), 0);
    let frames = socket.frames();
    assert_eq!(frames.first(), Some(&data("in progress")));
    assert_eq!(frames.last(), Some(&close_frame(Close::BacklogFull)));
    assert!(frames.iter().all(|frame| frame.payload != b"dropped"));
}

#[test]
fn an_abort_between_frames_closes_at_once() {
    let (outbox, _ledger) = outbox();
    send(&outbox, "sent");
    send(&outbox, "dropped");
    let mut socket = MockSocket::planned([6, 0]);
    flush(&outbox, &mut socket);
    outbox.close(Close::Reclaimed, Manner::Abort);
    drain(&outbox, &mut socket);
    assert_eq!(socket.frames(), [data("sent"), close_frame(Close::Reclaimed)]);
}

#[test]
fn the_first_close_stands_and_an_abort_still_hurries_it() {
    let (outbox, _ledger) = outbox();
    send(&outbox, "in progress");
    send(&outbox, "dropped");
    let mut socket = MockSocket::planned([1, 0]);
    flush(&outbox, &mut socket);
    outbox.close(Close::Directive(4401), Manner::Orderly);
    outbox.close(Close::ShuttingDown, Manner::Orderly);
    assert_eq!(outbox.sealed(), Some((Close::Directive(4401), Manner::Orderly)));
    outbox.close(Close::OverBudget, Manner::Abort);
    assert_eq!(outbox.sealed(), Some((Close::Directive(4401), Manner::Abort)));
    outbox.close(Close::ShuttingDown, Manner::Orderly);
    assert_eq!(outbox.sealed(), Some((Close::Directive(4401), Manner::Abort)));
    drain(&outbox, &mut socket);
    assert_eq!(socket.frames(), [data("in progress"), close_frame(Close::Directive(4401))]);
}

#[test]
fn an_outbox_without_a_queue_closes_at_once() {
    let outbox = Outbox::new(None);
    outbox.send(Frame::text(&[b"for nobody"])).unwrap();
    outbox.close(Close::NoServer, Manner::Orderly);
    let mut socket = MockSocket::planned([1, 0]);
    drain(&outbox, &mut socket);
    assert_eq!(socket.frames(), [close_frame(Close::NoServer)]);
}

#[test]
fn nothing_follows_a_close_frame_even_if_the_slots_queue_goes_on() {
    let (lane, _ledger) = lane(usize::MAX);
    let outbox = Outbox::new(Some(Rc::clone(&lane)));
    outbox.close(Close::ShuttingDown, Manner::Orderly);
    let mut socket = MockSocket::planned([0, 2, 0]);
    flush(&outbox, &mut socket);
    lane.push_notice(Frame::text(&[b"notice"]), PhoneKey::random());
    flush(&outbox, &mut socket);
    lane.push_notice(Frame::text(&[b"notice"]), PhoneKey::random());
    drain(&outbox, &mut socket);
    assert_eq!(socket.frames(), [close_frame(Close::ShuttingDown)]);
}
