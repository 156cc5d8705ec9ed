mod batches;
mod closing;
mod detaching;
mod upgrade;
mod waking;

use proptest::prelude::*;
use relay_test_kit::frame::{CLOSE, PING, PONG, Received, TEXT};
use relay_test_kit::socket::MockSocket;
use relay_test_kit::wake::Wakes;

use super::*;
use crate::clock;
use crate::ids::PhoneKey;
use crate::limits::{BATCH_BYTES, MESSAGE_OVERHEAD};
use crate::origin::NOBODY;
use crate::queue::budget::{Account, Ledger};
use crate::queue::lane::Sender;

fn flush_with(outbox: &Outbox, socket: &mut MockSocket, waker: &Waker, scratch: usize) -> Flushed {
    outbox.poll_flush(&mut Context::from_waker(waker), socket, &mut vec![0xee; scratch])
}

fn flush(outbox: &Outbox, socket: &mut MockSocket) -> Flushed {
    flush_with(outbox, socket, Waker::noop(), BATCH_BYTES)
}

/// Flushes until nothing is left, whatever blocks; returns how many messages that completed.
fn drain(outbox: &Outbox, socket: &mut MockSocket) -> usize {
    let mut messages = 0;
    loop {
        let flushed = flush(outbox, socket);
        messages += flushed.completed.messages;
        match flushed.end {
            FlushEnd::Idle | FlushEnd::Closed => return messages,
            FlushEnd::Blocked | FlushEnd::More => {}
            end @ (FlushEnd::Failed(_) | FlushEnd::Cut) => panic!("{end:?}"),
        }
    }
}

fn lane(limit: usize) -> (Rc<Lane>, Rc<Ledger>) {
    let ledger = Ledger::new(usize::MAX);
    (Lane::new(limit, Account::open(&ledger, NOBODY)), ledger)
}

fn outbox() -> (Rc<Outbox>, Rc<Ledger>) {
    let (lane, ledger) = lane(usize::MAX);
    (Outbox::new(Some(lane)), ledger)
}

fn send(outbox: &Outbox, text: &str) {
    outbox.send(Frame::text(&[text.as_bytes()])).unwrap();
}

fn data(text: &str) -> Received {
    Received::new(TEXT, text)
}

fn close_frame(close: Close) -> Received {
    let code = close.code().unwrap().to_be_bytes();
    Received::new(CLOSE, [&code[..], close.reason().as_bytes()].concat())
}

#[test]
fn messages_go_out_in_order_and_count_with_their_last_byte() {
    let (outbox, ledger) = outbox();
    for text in ["one", "two", "three"] {
        send(&outbox, text);
    }
    assert_eq!(ledger.total(), 5 + 5 + 7 + 3 * MESSAGE_OVERHEAD);
    let mut socket = MockSocket::planned([4, 0, 1, 6]);
    let flushed = flush(&outbox, &mut socket);
    assert_eq!((flushed.bytes, flushed.completed.messages), (4, 0));
    assert!(matches!(flushed.end, FlushEnd::Blocked));
    assert_eq!(ledger.total(), 5 + 5 + 7 + 3 * MESSAGE_OVERHEAD, "begun is not gone");
    let flushed = flush(&outbox, &mut socket);
    assert_eq!((flushed.bytes, flushed.completed.messages), (5 + 5 + 7 - 4, 3));
    assert!(matches!(flushed.end, FlushEnd::Idle));
    assert_eq!(socket.frames(), [data("one"), data("two"), data("three")]);
    assert_eq!(ledger.total(), 0);
}

#[test]
fn nothing_to_write_is_not_written() {
    let mut socket = MockSocket::default();
    for outbox in [outbox().0, Outbox::new(None)] {
        let flushed = flush(&outbox, &mut socket);
        assert!(matches!(
            flushed,
            Flushed { bytes: 0, completed: Completed { messages: 0, .. }, end: FlushEnd::Idle }
        ));
    }
    assert!(socket.offered.is_empty());
}

#[test]
fn small_messages_leave_in_one_write() {
    let (outbox, _ledger) = outbox();
    for _ in 0..100 {
        send(&outbox, "small");
    }
    outbox.ping();
    let mut socket = MockSocket::default();
    assert_eq!(flush(&outbox, &mut socket).completed.messages, 100);
    assert_eq!(socket.offered, [2 + 100 * 7]);
}

#[test]
fn control_frames_pass_the_queue_behind_the_frame_in_progress() {
    let (outbox, _ledger) = outbox();
    for text in ["in progress", "queued", "behind"] {
        send(&outbox, text);
    }
    let mut socket = MockSocket::planned([3, 0]);
    flush(&outbox, &mut socket);
    outbox.ping();
    outbox.pong(b"asked");
    drain(&outbox, &mut socket);
    let expected = [
        data("in progress"),
        Received::new(PONG, b"asked"),
        Received::new(PING, b""),
        data("queued"),
        data("behind"),
    ];
    assert_eq!(socket.frames(), expected);
}

#[test]
fn a_pong_is_behind_one_frame_at_most_even_if_frames_are_large() {
    let (outbox, _ledger) = outbox();
    let large = "x".repeat(200_000);
    for _ in 0..5 {
        send(&outbox, &large);
    }
    let mut socket = MockSocket::planned([100_000, 0, 50_000, 0]);
    flush(&outbox, &mut socket);
    outbox.pong(b"now");
    flush(&outbox, &mut socket);
    drain(&outbox, &mut socket);
    let opcodes: Vec<_> = socket.frames().iter().map(|frame| frame.opcode).collect();
    assert_eq!(opcodes, [TEXT, PONG, TEXT, TEXT, TEXT, TEXT]);
}

#[test]
fn of_several_pings_the_last_is_answered() {
    let (outbox, _ledger) = outbox();
    send(&outbox, "in progress");
    let mut socket = MockSocket::planned([1, 0]);
    flush(&outbox, &mut socket);
    for number in 0..1000 {
        outbox.pong(format!("{number}").as_bytes());
    }
    drain(&outbox, &mut socket);
    assert_eq!(socket.frames(), [data("in progress"), Received::new(PONG, b"999")]);
}

#[test]
fn pongs_for_a_peer_that_does_not_read_do_not_pile_up() {
    let (outbox, _ledger) = outbox();
    send(&outbox, "in progress");
    let mut socket = MockSocket::planned([1]);
    socket.plan.extend([0; 1001]);
    for number in 0..1000 {
        flush(&outbox, &mut socket);
        outbox.pong(format!("{number}").as_bytes());
    }
    drain(&outbox, &mut socket);
    let frames = socket.frames();
    assert!(frames.len() <= 3, "{} frames", frames.len());
    assert_eq!(frames.last(), Some(&Received::new(PONG, b"999")));
}

#[test]
fn a_pong_that_is_on_its_way_is_finished_before_the_next() {
    let (outbox, _ledger) = outbox();
    outbox.pong(b"first");
    let mut socket = MockSocket::planned([3, 0]);
    flush(&outbox, &mut socket);
    outbox.pong(b"second");
    outbox.pong(b"third");
    send(&outbox, "data");
    drain(&outbox, &mut socket);
    let frames = socket.frames();
    assert_eq!(frames[0], Received::new(PONG, b"first"));
    assert!(frames.contains(&Received::new(PONG, b"third")) && frames.contains(&data("data")));
    assert_eq!(frames.len(), 3);
}

#[test]
fn a_failed_socket_is_reported_and_one_that_takes_nothing_has_failed() {
    let (outbox, ledger) = outbox();
    send(&outbox, "message");
    let kind = io::ErrorKind::ConnectionReset;
    let mut socket = MockSocket { failure: Some(kind), ..MockSocket::default() };
    match flush(&outbox, &mut socket).end {
        FlushEnd::Failed(error) => assert_eq!(error.kind(), kind),
        other => panic!("{other:?}"),
    }
    let mut socket = MockSocket { is_closed: true, ..MockSocket::default() };
    match flush(&outbox, &mut socket).end {
        FlushEnd::Failed(error) => assert_eq!(error.kind(), io::ErrorKind::WriteZero),
        other => panic!("{other:?}"),
    }
    assert_eq!(ledger.total(), 2 + 7 + MESSAGE_OVERHEAD, "nothing was accepted");
}

#[test]
fn the_ping_of_a_probe_passes_the_queue_with_its_payload() {
    let (outbox, _ledger) = outbox();
    send(&outbox, "queued");
    outbox.ask(*b"anybody?");
    let mut socket = MockSocket::default();
    drain(&outbox, &mut socket);
    assert_eq!(socket.frames(), [Received::new(PING, b"anybody?"), data("queued")]);
}

/// What happens to an outbox.
#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Pong(u8),
    Ping,
    /// A flush with a socket that takes so many bytes in each call, and then blocks.
    Flush(Vec<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_usize..300).prop_map(Step::Send),
        1 => (GATHER_BELOW - 8..GATHER_BELOW + 2000).prop_map(Step::Send),
        1 => any::<u8>().prop_map(Step::Pong),
        1 => Just(Step::Ping),
        3 => prop::collection::vec(1_usize..400, 0..6).prop_map(Step::Flush),
        1 => prop::collection::vec(1_usize..40_000, 0..6).prop_map(Step::Flush),
    ]
}

proptest! {
    #[test]
    fn any_pattern_of_acceptance_gives_whole_frames_in_order(
        steps in prop::collection::vec(step(), 0..60),
        // Smaller than any batch as well.
        scratch in prop_oneof![1_usize..200, Just(BATCH_BYTES)],
        manner in prop_oneof![Just(None), Just(Some(Manner::Orderly)), Just(Some(Manner::Abort))],
    ) {
        let (outbox, ledger) = outbox();
        let mut socket = MockSocket::default();
        let (mut sent, mut pongs, mut messages) = (Vec::new(), Vec::new(), 0);
        for step in steps {
            match step {
                Step::Send(length) => {
                    let text = format!("{} {}", sent.len(), "x".repeat(length));
                    send(&outbox, &text);
                    sent.push(text.into_bytes());
                }
                Step::Pong(payload) => {
                    outbox.pong(&[payload]);
                    pongs.push(vec![payload]);
                }
                Step::Ping => outbox.ping(),
                Step::Flush(plan) => {
                    socket.plan = plan.into_iter().chain([0; TURN_WRITES]).collect();
                    messages += flush_with(&outbox, &mut socket, Waker::noop(), scratch).completed.messages;
                }
            }
            let (whole, _) = Received::decode_all(&socket.taken);
            let texts = whole.iter().filter(|frame| frame.opcode == TEXT).count();
            prop_assert_eq!(messages, texts, "a message counts with its last byte");
        }
        if let Some(manner) = manner {
            outbox.close(Close::ShuttingDown, manner);
        }
        socket.plan.clear();
        loop {
            let flushed = flush_with(&outbox, &mut socket, Waker::noop(), scratch);
            messages += flushed.completed.messages;
            if matches!(flushed.end, FlushEnd::Idle | FlushEnd::Closed) {
                break;
            }
        }
        let mut frames = socket.frames();
        if manner.is_some() {
            prop_assert_eq!(frames.pop(), Some(close_frame(Close::ShuttingDown)));
        }
        let of = |kind: u8| frames.iter().filter(move |frame| frame.opcode == kind);
        let texts: Vec<_> = of(TEXT).map(|frame| frame.payload.clone()).collect();
        if manner == Some(Manner::Abort) {
            prop_assert!(sent.starts_with(&texts));
            prop_assert!(messages == texts.len() || messages + 1 == texts.len());
        } else {
            prop_assert!(sent == texts);
            prop_assert_eq!(messages, texts.len());
        }
        let answered: Vec<_> = of(PONG).map(|frame| frame.payload.clone()).collect();
        prop_assert_eq!(answered.last(), pongs.last());
        let mut asked = pongs.iter();
        prop_assert!(answered.iter().all(|pong| asked.any(|asked| asked == pong)));
        prop_assert_eq!(ledger.total(), 0);
    }
}
