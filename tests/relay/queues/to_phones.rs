//! Queues towards phones.

use std::time::Duration;

use super::{deliver, introduce, narrow_phone, numbered, patient, read_slowly, settle, widen};
use crate::rig::ws::{CLOSE, PONG, TEXT};
use crate::rig::{envelope, events, fresh_id, millis, notice};

/// What the kernel may hold of a stalled narrow connection, generously, and one batch.
const OUT_OF_REACH: usize = 512 * 1024;

#[test]
fn a_stalled_phone_is_closed_with_1013_and_its_siblings_notice_nothing() {
    let relay = patient(&["--max-queue-bytes", "1MiB"]);
    let id = fresh_id("backlog");
    let mut binary = relay.binary(&id);
    let (mut stalled, stalled_id) = narrow_phone(&relay, &id);
    let (mut sibling, sibling_id) = relay.registered_phone(&id);
    introduce(&mut stalled, &mut binary, &stalled_id);
    let closed = || events::count("phone_unregistered", &[("conn_id", &stalled_id)]) > 0;
    let mut sent = 0;
    while !closed() {
        assert!(sent * 32 * 1024 < 4 * 1024 * 1024, "the bound is not kept");
        deliver(&mut binary, &stalled_id, &numbered(sent, 32 * 1024));
        binary.send_text(&envelope(&sibling_id, &sent.to_string()));
        assert_eq!(sibling.read_text(), sent.to_string());
        sent += 1;
    }
    assert!(sent > 31, "closed with less than the bound queued: {sent} messages");
    let left = events::wait("phone_unregistered", &[("conn_id", &stalled_id)]);
    assert_eq!(events::field(&left, "reason"), "backlog full");
    assert_eq!(binary.read_text(), notice(&stalled_id, 1013));
    introduce(&mut sibling, &mut binary, &sibling_id);
    // What the phone still gets is whole and in order; the rest of the queue was dropped.
    widen(&stalled);
    let mut got = 0;
    let close = loop {
        let frame = stalled.read();
        if frame.opcode == CLOSE {
            break frame;
        }
        assert!(frame.payload == numbered(got, 32 * 1024).as_bytes(), "message {got}");
        got += 1;
    };
    assert_eq!(close.payload, [&1013_u16.to_be_bytes()[..], b"backlog full"].concat());
    stalled.expect_end();
    assert!(got * 32 * 1024 < OUT_OF_REACH, "{got} of {sent} messages in spite of the drop");
}

#[test]
fn a_stalled_phone_that_the_binary_does_not_know_is_closed_without_a_notice() {
    let relay = patient(&["--max-queue-bytes", "512KiB"]);
    let id = fresh_id("unknown-backlog");
    let mut binary = relay.binary(&id);
    let (_stalled, stalled_id) = narrow_phone(&relay, &id);
    let (mut sibling, sibling_id) = relay.registered_phone(&id);
    for number in 0..100 {
        deliver(&mut binary, &stalled_id, &numbered(number, 16 * 1024));
    }
    let left = events::wait("phone_unregistered", &[("conn_id", &stalled_id)]);
    assert_eq!(events::field(&left, "reason"), "backlog full");
    // The frames behind the one that was too much are for an unknown phone now.
    assert_eq!(binary.read_text(), notice(&stalled_id, 1001));
    introduce(&mut sibling, &mut binary, &sibling_id);
}

#[test]
fn a_phone_that_reads_late_gets_a_whole_file_within_the_bound_in_order() {
    let relay = patient(&[]);
    let id = fresh_id("file");
    let mut binary = relay.binary(&id);
    let (mut phone, conn_id) = narrow_phone(&relay, &id);
    for number in 0..373 {
        deliver(&mut binary, &conn_id, &numbered(number, 80_500));
    }
    binary.sync();
    widen(&phone);
    for number in 0..373 {
        assert!(phone.read_text() == numbered(number, 80_500), "chunk {number}");
    }
    phone.sync();
}

#[test]
fn a_slow_phone_that_makes_progress_is_never_cut_and_gets_every_byte() {
    const MESSAGES: usize = 40;
    const LENGTH: usize = 16 * 1024;
    let relay = patient(&["--write-timeout", &millis(800)]);
    let id = fresh_id("slow");
    let mut binary = relay.binary(&id);
    let (mut phone, conn_id) = narrow_phone(&relay, &id);
    let to = conn_id.clone();
    let sending = std::thread::spawn(move || {
        for number in 0..MESSAGES {
            deliver(&mut binary, &to, &numbered(number, LENGTH));
        }
        binary
    });
    let slowly = read_slowly(&mut phone, Duration::from_millis(1800));
    assert!(slowly < MESSAGES * LENGTH / 2, "the slow part read {slowly} bytes");
    widen(&phone);
    for number in 0..MESSAGES {
        assert!(phone.read_text() == numbered(number, LENGTH), "message {number}");
    }
    phone.sync();
    sending.join().unwrap().sync();
    assert_eq!(events::count("phone_unregistered", &[("conn_id", &conn_id)]), 0);
}

#[test]
fn a_directive_waits_for_the_whole_queue_of_a_slow_phone() {
    let relay = patient(&[]);
    let id = fresh_id("slow-farewell");
    let mut binary = relay.binary(&id);
    let (mut phone, conn_id) = narrow_phone(&relay, &id);
    for number in 0..128 {
        deliver(&mut binary, &conn_id, &numbered(number, 16 * 1024));
    }
    binary.send_text(&format!(r#"{{"conn_id":"{conn_id}","frame":"bye","close_code":4426}}"#));
    binary.sync();
    widen(&phone);
    for number in 0..128 {
        assert!(phone.read_text() == numbered(number, 16 * 1024), "message {number}");
    }
    assert_eq!(phone.read_text(), "\"bye\"");
    phone.expect_close_code(4426);
}

#[test]
fn a_pong_passes_a_full_data_lane() {
    // Below and above the size from which frames are written from the queue itself.
    for length in [700, 87_400] {
        let relay = patient(&[]);
        let id = fresh_id("pong");
        let mut binary = relay.binary(&id);
        let (mut phone, conn_id) = narrow_phone(&relay, &id);
        let messages = 4 * 1024 * 1024 / length;
        for number in 0..messages {
            deliver(&mut binary, &conn_id, &numbered(number, length));
        }
        binary.sync();
        phone.send_ping(b"1");
        phone.send_ping(b"now");
        for _ in 0..3 {
            binary.sync();
        }
        widen(&phone);
        let (mut got, mut ahead) = (0, None);
        while got < messages {
            let frame = phone.read();
            if frame.opcode == PONG {
                // Of several pings the last may do.
                if frame.payload == b"now" {
                    ahead = Some(got * length);
                }
                continue;
            }
            assert_eq!(frame.opcode, TEXT);
            assert!(frame.payload == numbered(got, length).as_bytes(), "message {got}");
            got += 1;
        }
        let ahead = ahead.expect("the pong comes before the queue's end");
        assert!(ahead < OUT_OF_REACH, "{ahead} bytes ahead of the pong");
    }
}

#[test]
fn one_byte_messages_count_with_what_they_cost() {
    const BOUND: usize = 512 * 1024;
    let relay = patient(&["--max-queue-bytes", "512KiB"]);
    let id = fresh_id("tiny");
    let mut binary = relay.binary(&id);
    let (_phone, conn_id) = narrow_phone(&relay, &id);
    // The kernel and the wire take three bytes a message, a queue of this bound 64 more.
    let most = BOUND / 67 + OUT_OF_REACH / 3;
    let one = crate::rig::ws::encode(true, TEXT, envelope(&conn_id, "1").as_bytes());
    let thousand = one.repeat(1000);
    let mut sent = 0;
    while events::count("phone_unregistered", &[("conn_id", &conn_id)]) == 0 {
        assert!(sent < most, "{sent} messages are queued");
        binary.send_raw(&thousand);
        settle(&mut binary);
        sent += 1000;
    }
    let left = events::wait("phone_unregistered", &[("conn_id", &conn_id)]);
    assert_eq!(events::field(&left, "reason"), "backlog full");
}
