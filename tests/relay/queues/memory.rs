//! The memory budget: of the source that holds most together, the connection that holds most pays.

use super::{deliver, introduce, narrow_phone, narrow_phone_from, numbered, patient, widen};
use crate::rig::ws::{CLOSE, CONTINUATION, PONG, TEXT, encode};
use crate::rig::{Relay, Ws, binary_head, envelope, events, fresh_id, fresh_source, notice};

const OVER_BUDGET: &str = "memory budget exhausted";
const LENGTH: usize = 15_000;

/// A queue of 1 MiB towards each phone, and hardly more for all of them.
const TIGHT: [&str; 8] = [
    "--max-frame-bytes",
    "16KiB",
    "--max-slot-queue-bytes",
    "64KiB",
    "--max-queue-bytes",
    "1MiB",
    "--memory-budget",
    "1088KiB",
];

fn is_closed(conn_id: &str) -> bool {
    events::count("phone_unregistered", &[("conn_id", conn_id)]) > 0
}

/// Expects whole messages in order and then the close; returns how many there were.
fn expect_cut_short(phone: &mut Ws) -> usize {
    widen(phone);
    let mut got = 0;
    loop {
        let frame = phone.read();
        if frame.opcode == CLOSE {
            let expected = [&1013_u16.to_be_bytes()[..], OVER_BUDGET.as_bytes()].concat();
            assert_eq!(frame.payload, expected);
            phone.expect_end();
            return got;
        }
        assert!(frame.payload == numbered(got, LENGTH).as_bytes(), "message {got}");
        got += 1;
    }
}

#[test]
fn the_phone_that_holds_most_is_closed_first_and_nobody_else_notices() {
    let relay = patient(&TIGHT);
    let id = fresh_id("largest");
    let mut binary = relay.binary(&id);
    let (mut large, large_id) = narrow_phone(&relay, &id);
    let (mut growing, growing_id) = narrow_phone(&relay, &id);
    let (mut healthy, healthy_id) = relay.registered_phone(&id);
    introduce(&mut large, &mut binary, &large_id);
    for number in 0..50 {
        deliver(&mut binary, &large_id, &numbered(number, LENGTH));
    }
    binary.sync();
    assert!(!is_closed(&large_id));
    let mut sent = 0;
    while !is_closed(&large_id) {
        assert!(sent < 50, "the growing one is the larger one by now");
        deliver(&mut binary, &growing_id, &numbered(sent, LENGTH));
        binary.send_text(&envelope(&healthy_id, &sent.to_string()));
        assert_eq!(healthy.read_text(), sent.to_string());
        sent += 1;
    }
    let left = events::wait("phone_unregistered", &[("conn_id", &large_id)]);
    assert_eq!(events::field(&left, "reason"), OVER_BUDGET);
    assert_eq!(binary.read_text(), notice(&large_id, 1013));
    assert!(expect_cut_short(&mut large) < 40);
    widen(&growing);
    for number in 0..sent {
        assert!(growing.read_text() == numbered(number, LENGTH), "message {number}");
    }
    introduce(&mut growing, &mut binary, &growing_id);
    introduce(&mut healthy, &mut binary, &healthy_id);
    assert_eq!(relay.health(), (1, 2));
}

#[test]
fn of_many_stalled_phones_as_many_are_closed_as_the_budget_asks_for() {
    let relay = patient(&TIGHT);
    let mut servers: Vec<_> = (0..3)
        .map(|_| {
            let id = fresh_id("stalled");
            let binary = relay.binary(&id);
            let stalled: Vec<_> = (0..4).map(|_| narrow_phone(&relay, &id)).collect();
            (binary, stalled, relay.registered_phone(&id))
        })
        .collect();
    for number in 0..40 {
        for (binary, stalled, (healthy, healthy_id)) in &mut servers {
            for (_, conn_id) in stalled.iter().filter(|(_, conn_id)| !is_closed(conn_id)) {
                deliver(binary, conn_id, &numbered(number, LENGTH));
            }
            binary.send_text(&envelope(healthy_id, &number.to_string()));
            assert_eq!(healthy.read_text(), number.to_string());
        }
    }
    let mut survivors = 0;
    for (binary, stalled, (healthy, healthy_id)) in &mut servers {
        for (phone, conn_id) in stalled.iter_mut() {
            if is_closed(conn_id) {
                assert!(expect_cut_short(phone) < 40);
                continue;
            }
            survivors += 1;
            widen(phone);
            for number in 0..40 {
                assert!(phone.read_text() == numbered(number, LENGTH), "message {number}");
            }
        }
        healthy.send_text("\"still here\"");
        while binary.read_text() != envelope(healthy_id, "\"still here\"") {}
    }
    // 40 messages are 600 kB, of which the kernel holds some 70.
    assert!((1..=2).contains(&survivors), "{survivors} of 12 fit into 1088 KiB");
    assert_eq!(relay.health(), (3, 3 + survivors));
}

#[test]
fn half_received_messages_count_and_the_largest_of_them_goes_first() {
    let relay = patient(&[
        "--max-slot-queue-bytes",
        "516KiB",
        "--max-queue-bytes",
        "300KiB",
        // 530 kB of messages, and up to a quarter more for the pieces that they arrive in; over TLS 1 KiB of each
        // of twelve sessions, and 8 KiB of a handshake. 100 kB more are too much in any case.
        "--memory-budget",
        "606KiB",
    ]);
    let id = fresh_id("half-received");
    let mut binary = relay.binary(&id);
    // Fragments, so that a ping in between shows that they have been taken in.
    let begin = |length: usize| {
        let (mut phone, conn_id) = relay.registered_phone(&id);
        let text = numbered(0, length);
        phone.send_frame(false, TEXT, &text.as_bytes()[..length - 1]);
        phone.sync();
        (phone, conn_id, text)
    };
    let mut staying = vec![begin(100_000)];
    let (mut largest, largest_id, _) = begin(230_000);
    staying.push(begin(200_000));
    assert!(!is_closed(&largest_id));
    // What is announced costs nothing, what has arrived counts.
    let announce = |length: usize, arrived: usize| {
        let (mut phone, conn_id) = relay.registered_phone(&id);
        let text = numbered(0, length);
        let message = encode(true, TEXT, text.as_bytes());
        phone.send_raw(&message[..arrived]);
        (phone, conn_id, text, message[arrived..].to_vec())
    };
    let _promises: Vec<_> = (0..8).map(|_| announce(250_000, 100)).collect();
    for (phone, ..) in &mut staying {
        phone.sync();
    }
    assert!(!is_closed(&largest_id));
    let (mut announcing, announcing_id, text, rest) = announce(150_000, 100_000);
    largest.expect_close(1013, OVER_BUDGET);
    for (mut phone, conn_id, text) in staying {
        phone.send_frame(true, CONTINUATION, b"\"");
        assert!(binary.read_text() == envelope(&conn_id, &text));
        phone.sync();
        phone.reset();
        events::wait("phone_unregistered", &[("conn_id", &conn_id)]);
        assert_eq!(binary.read_text(), notice(&conn_id, 1001));
    }
    announcing.send_raw(&rest);
    assert!(binary.read_text() == envelope(&announcing_id, &text));
}

/// A slot's queue that the budget has hardly room for beside another.
const WINDOW: [&str; 6] =
    ["--max-queue-bytes", "1MiB", "--max-slot-queue-bytes", "1MiB", "--memory-budget", "1088KiB"];

/// A server in its grace window, with a phone that the binary knows.
fn in_grace(relay: &Relay) -> (String, Ws, String) {
    let id = fresh_id("window");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    introduce(&mut phone, &mut binary, &conn_id);
    binary.prove();
    binary.drop_connection();
    events::wait("server_released", &[("server_id", &id)]);
    (id, phone, conn_id)
}

fn send_numbered(phone: &mut Ws, count: usize) {
    for number in 0..count {
        phone.send_text(&numbered(number, LENGTH));
    }
    phone.sync();
}

fn expect_kept(binary: &mut Ws, conn_id: &str, count: usize) {
    for number in 0..count {
        let expected = envelope(conn_id, &numbered(number, LENGTH));
        assert!(binary.read_text() == expected, "message {number}");
    }
}

#[test]
fn a_slots_queue_counts_for_the_phones_whose_messages_it_holds() {
    let relay = patient(&WINDOW);
    let (first, mut small, small_id) = in_grace(&relay);
    let (second, mut large, large_id) = in_grace(&relay);
    let (third, mut medium, medium_id) = in_grace(&relay);
    send_numbered(&mut small, 20);
    send_numbered(&mut large, 30);
    assert!(!is_closed(&large_id));
    send_numbered(&mut medium, 27);
    large.expect_close(1013, OVER_BUDGET);
    let left = events::wait("phone_unregistered", &[("conn_id", &large_id)]);
    assert_eq!(events::field(&left, "reason"), OVER_BUDGET);
    let mut binary = relay.binary(&second);
    assert_eq!(binary.read_text(), notice(&large_id, 1013), "its share is dropped");
    binary.sync();
    let mut binary = relay.binary(&first);
    expect_kept(&mut binary, &small_id, 20);
    let mut binary = relay.binary(&third);
    expect_kept(&mut binary, &medium_id, 27);
    medium.sync();
    small.sync();
}

#[test]
fn what_a_departed_phone_left_in_the_queue_counts_too() {
    let relay = patient(&WINDOW);
    let (first, mut small, small_id) = in_grace(&relay);
    let (second, mut large, large_id) = in_grace(&relay);
    let (third, mut medium, medium_id) = in_grace(&relay);
    send_numbered(&mut small, 20);
    send_numbered(&mut large, 30);
    for (phone, conn_id) in [(small, &small_id), (large, &large_id)] {
        phone.drop_connection();
        events::wait("phone_unregistered", &[("conn_id", conn_id)]);
    }
    send_numbered(&mut medium, 27);
    assert!(!is_closed(&medium_id));
    let mut binary = relay.binary(&second);
    assert_eq!(binary.read_text(), notice(&large_id, 1001), "its share is dropped");
    binary.sync();
    let mut binary = relay.binary(&first);
    expect_kept(&mut binary, &small_id, 20);
    assert_eq!(binary.read_text(), notice(&small_id, 1001));
    let mut binary = relay.binary(&third);
    expect_kept(&mut binary, &medium_id, 27);
}

#[test]
fn a_binary_that_holds_most_of_the_largest_source_is_closed_and_claims_again() {
    let relay = patient(&[
        "--max-slot-queue-bytes",
        "516KiB",
        "--max-queue-bytes",
        "300KiB",
        "--memory-budget",
        "580KiB",
    ]);
    let (healthy_id, strangers) = (fresh_id("healthy"), fresh_source());
    let (mut binary, mut phone, conn_id) = relay.pair(&healthy_id);
    // Three half messages fit, the fourth is one too many.
    let mut hogs: Vec<_> = (0..4)
        .map(|_| {
            let head = binary_head(&fresh_id("hog"));
            let mut hog = Ws::upgrade_from(strangers, relay.address, &head);
            hog.send_frame(false, TEXT, numbered(0, 170_000).as_bytes());
            hog
        })
        .collect();
    let closed = |hog: &mut Ws| {
        hog.send_ping(b"there?");
        let frame = hog.read();
        match frame.opcode {
            CLOSE => {
                let expected = [&1013_u16.to_be_bytes()[..], OVER_BUDGET.as_bytes()].concat();
                assert_eq!(frame.payload, expected);
                true
            }
            _ => false,
        }
    };
    // The last one first: once it is answered, the budget has been kept. A pong may be ahead of the close.
    let asked_twice = hogs.iter_mut().rev().map(|hog| closed(hog) || closed(hog));
    let count = asked_twice.filter(|closed| *closed).count();
    assert_eq!(count, 1, "one of four");
    introduce(&mut phone, &mut binary, &conn_id);
    deliver(&mut binary, &conn_id, &numbered(0, 190_000));
    assert!(phone.read_text() == numbered(0, 190_000));
}

#[test]
fn whoever_receives_a_file_stays_while_a_source_with_many_connections_pays() {
    let relay = patient(&TIGHT);
    let (id, crowd) = (fresh_id("file"), fresh_id("crowd"));
    let mut binary = relay.binary(&id);
    let (mut receiver, receiver_id) = narrow_phone(&relay, &id);
    for number in 0..40 {
        deliver(&mut binary, &receiver_id, &numbered(number, LENGTH));
    }
    binary.sync();
    let strangers = fresh_source();
    let mut hog = Ws::upgrade_from(strangers, relay.address, &binary_head(&crowd));
    let stalled: Vec<_> = (0..8).map(|_| narrow_phone_from(strangers, &relay, &crowd)).collect();
    let ids: Vec<_> = stalled.iter().map(|(_, conn_id)| conn_id).collect();
    for number in 0..30 {
        for conn_id in &ids {
            deliver(&mut hog, conn_id, &numbered(number, LENGTH));
        }
    }
    hog.send_ping(b"all of it");
    while hog.read_frame().opcode != PONG {}
    assert!(ids.iter().any(|conn_id| is_closed(conn_id)), "somebody has paid");
    assert!(!is_closed(&receiver_id));
    widen(&receiver);
    for number in 0..40 {
        assert!(receiver.read_text() == numbered(number, LENGTH), "message {number}");
    }
}
