//! Timeouts as far as the kernel has a part in them. `tests/simulation/timeouts.rs` has all of them, by the
//! program's own times.

use std::time::{Duration, Instant};

use pyrycode_relay::limits::HANGUP_CHECK;

use crate::rig::ws::{TEXT, encode};
use crate::rig::{Relay, Ws, envelope, events, fresh_id, large_message, notice, phone_head};

#[test]
fn a_phone_that_does_not_read_is_cut_off_and_the_others_stay() {
    let relay = Relay::start(&["--write-timeout", "400ms"]);
    let (mut other, mut other_phone, other_id) = relay.pair(&fresh_id("bystanders"));
    let id = fresh_id("stalled-phone");
    let mut binary = relay.binary(&id);
    let (mut stalled, conn_id) = relay.narrow_phone(&id);
    let (mut sibling, sibling_id) = relay.registered_phone(&id);
    stalled.send_text("\"hello\"");
    assert_eq!(binary.read_text(), envelope(&conn_id, "\"hello\""));
    let flooded = Instant::now();
    for number in 0..16 {
        binary.send_text(&envelope(&conn_id, &large_message(number)));
    }
    events::wait("phone_unregistered", &[("conn_id", &conn_id), ("reason", "write timeout")]);
    assert!(flooded.elapsed() >= Duration::from_millis(400), "after {:?}", flooded.elapsed());
    assert_eq!(binary.read_text(), notice(&conn_id, 1001));
    let error = loop {
        match stalled.try_read_frame() {
            Ok(frame) => assert_eq!(frame.opcode, TEXT),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "nothing lingers in the kernel");
    binary.send_text(&envelope(&sibling_id, "\"and you?\""));
    assert_eq!(sibling.read_text(), "\"and you?\"");
    other_phone.send_text("\"and you?\"");
    assert_eq!(other.read_text(), envelope(&other_id, "\"and you?\""));
}

#[test]
fn a_phone_that_is_held_back_is_judged_neither_by_heartbeat_nor_by_message_timeout() {
    let relay = Relay::start(&[
        "--heartbeat-interval",
        "100ms",
        "--heartbeat-timeout",
        "100ms",
        "--message-timeout",
        "100ms",
        "--grace",
        "1h",
        "--max-frame-bytes",
        "16KiB",
        "--max-slot-queue-bytes",
        "64KiB",
    ]);
    let id = fresh_id("held-back");
    relay.binary(&id).drop_connection();
    events::wait("server_released", &[("server_id", &id)]);
    // Far more than its part of the queue, and no more than the kernels take; the last message is cut in two. All
    // of it is there before anybody can be late.
    let message = format!("\"{}\"", "x".repeat(4000));
    let flood = encode(true, TEXT, message.as_bytes()).repeat(40);
    let bytes = [phone_head(&id).as_bytes(), &flood[..flood.len() - 2000]].concat();
    let seen = events::mark();
    let _phone = Ws::upgrade_with(relay.address, &bytes);
    let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    let conn_id = events::field(&line, "conn_id");
    let held = Instant::now();
    // One look at what the kernel has of it is like the next; for minutes it is held back by virtual time.
    while held.elapsed() < HANGUP_CHECK + Duration::from_millis(200) {
        // Others are judged meanwhile.
        let (mut silent, silent_id) = relay.registered_phone(&id);
        silent.answers_pings = false;
        let reason = ("reason", "heartbeat timeout");
        events::wait("phone_unregistered", &[("conn_id", &silent_id), reason]);
    }
    assert_eq!(events::count("phone_unregistered", &[("conn_id", &conn_id)]), 0);
    assert_eq!(relay.health(), (0, 1));
}
