//! What one write and one turn hold.

use super::*;

#[test]
fn every_split_of_a_batch_gives_the_same_bytes_and_the_same_count() {
    let expected = {
        let mut socket = MockSocket::default();
        assert_eq!(drain(&batch().0, &mut socket), 3);
        socket.taken
    };
    for first in 0..=expected.len() {
        for second in 0..=expected.len() - first {
            let (outbox, ledger) = batch();
            let mut socket = MockSocket::planned([first, 0, second, 0]);
            let mut messages = 0;
            for _ in 0..2 {
                messages += flush(&outbox, &mut socket).completed.messages;
                let (whole, _) = Received::decode_all(&socket.taken);
                let texts = whole.iter().filter(|frame| frame.opcode == TEXT).count();
                assert_eq!(messages, texts, "split {first} {second}");
            }
            messages += drain(&outbox, &mut socket);
            assert!(socket.taken == expected, "split {first} {second}");
            assert_eq!((messages, ledger.total()), (3, 0), "split {first} {second}");
        }
    }
}

/// A batch of a pong, a ping and three messages.
fn batch() -> (Rc<Outbox>, Rc<Ledger>) {
    let (outbox, ledger) = outbox();
    for text in ["a", "", "message"] {
        send(&outbox, text);
    }
    outbox.pong(b"pong");
    outbox.ping();
    (outbox, ledger)
}

#[test]
fn large_frames_are_written_from_the_queue_itself() {
    let (outbox, _ledger) = outbox();
    let large = "x".repeat(3 * BATCH_BYTES);
    send(&outbox, &large);
    send(&outbox, "small");
    let mut socket = MockSocket::planned([BATCH_BYTES]);
    drain(&outbox, &mut socket);
    let whole = 10 + large.len();
    assert_eq!(socket.offered[..2], [whole, whole - BATCH_BYTES]);
    assert!(socket.frames() == [data(&large), data("small")]);
}

#[test]
fn a_batch_is_bounded_by_its_buffer() {
    let (outbox, _ledger) = outbox();
    for _ in 0..50 {
        send(&outbox, &"x".repeat(10_000));
    }
    outbox.ping();
    let mut socket = MockSocket::default();
    drain(&outbox, &mut socket);
    assert!(socket.offered.iter().all(|offered| *offered <= BATCH_BYTES), "{:?}", socket.offered);
    assert_eq!(socket.frames().len(), 51);
}

#[test]
fn a_turn_ends_after_some_batches() {
    let (outbox, _ledger) = outbox();
    for _ in 0..50 {
        send(&outbox, "x");
    }
    let mut socket = MockSocket::planned([1; 1000]);
    let flushed = flush(&outbox, &mut socket);
    assert!(matches!(flushed.end, FlushEnd::More));
    assert_eq!(flushed.bytes, TURN_WRITES);
    drain(&outbox, &mut socket);
    assert_eq!(socket.frames().len(), 50);
}
