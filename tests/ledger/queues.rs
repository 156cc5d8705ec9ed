//! Queues towards peers that do not read, and what is left of them when they have been read.

use relay_test_kit::frame::{TEXT, encode};

use crate::client::{Ws, envelope, introduce, json};
use crate::measure::Expected::{AtLeast, AtMost};
use crate::measure::Watched;

/// Sizes of messages, and how many of each are queued. One more message is queued with them, so that a
/// table that doubles when it is full has just doubled.
const SIZES: [(usize, usize); 6] = [
    (1, 32 * 1024),
    (100, 8 * 1024),
    (700, 4 * 1024),
    (16 * 1024, 128),
    (80 * 1024, 32),
    (LARGEST, 16),
];
const LARGEST: usize = 256 * 1024;

#[test]
fn a_queue_towards_a_phone_that_does_not_read_is_charged_as_it_is_allocated() {
    let mut watched = Watched::start(&[]);
    for (size, count) in SIZES {
        let server = format!("phone-{size}");
        let mut binary = watched.binary(&server);
        let mut phone = watched.narrow_phone(&server);
        let conn_id = introduce(&mut phone, &mut binary);
        // The kernel has no room for more than a part of the largest message.
        send_to(&mut binary, &conn_id, LARGEST, 1);
        send_to(&mut binary, &conn_id, size, count);
        binary.sync();
        let what = format!("{count} x {size} B for a phone");
        watched.check(&what, 2, AtLeast(LARGEST + size * count));
        send_to(&mut binary, &conn_id, LARGEST, 4);
        binary.sync();
        phone.widen(KERNEL);
        phone.read_messages(1 + count + 2);
        watched.check(&format!("{what}, read but for the last"), 2, AtMost(2 * LARGEST + KERNEL));
        phone.read_messages(2);
        phone.sync();
        watched.check(&format!("{what}, read"), 2, AtMost(0));
        drop((binary, phone));
        watched.wait_until_deserted();
    }
    watched.finish();
}

#[test]
fn a_queue_towards_a_binary_that_does_not_read_is_charged_as_it_is_allocated() {
    let mut watched = Watched::start(&[]);
    for (size, count) in SIZES {
        let server = format!("binary-{size}");
        let mut binary = watched.narrow_binary(&server);
        let mut phone = watched.phone(&server);
        send(&mut phone, LARGEST, 1);
        send(&mut phone, size, count);
        phone.sync();
        let what = format!("{count} x {size} B for a binary");
        watched.check(&what, 2, AtLeast(LARGEST + size * count));
        send(&mut phone, LARGEST, 4);
        phone.sync();
        binary.widen(KERNEL);
        binary.read_messages(1 + count + 2);
        watched.check(&format!("{what}, read but for the last"), 2, AtMost(2 * LARGEST + KERNEL));
        binary.read_messages(2);
        binary.sync();
        watched.check(&format!("{what}, read"), 2, AtMost(0));
        drop((binary, phone));
        watched.wait_until_deserted();
    }
    watched.finish();
}

#[test]
fn what_is_kept_for_an_absent_binary_is_charged_as_it_is_allocated() {
    let mut watched = Watched::start(&["--grace", "1000s"]);
    for (before, (size, count)) in SIZES.into_iter().enumerate() {
        let server = format!("absent-{size}");
        drop(watched.binary(&server));
        watched.wait_for("the window has begun", |status| status["connected_binaries"] == 0);
        // It has no session that could be lost.
        let mut phone = watched.phone(&server);
        send(&mut phone, size, count + 1);
        phone.sync();
        let what = format!("{count} x {size} B for an absent binary");
        watched.check(&what, before + 2, AtLeast(size * count));
        let mut binary = watched.binary(&server);
        binary.read_messages(count + 1);
        binary.sync();
        watched.check(&format!("{what}, read"), before + 2, AtMost(0));
        drop(phone);
        // The close notice.
        binary.read_messages(1);
    }
    watched.finish();
}

/// Has the binary send `count` messages of `size` bytes to a phone.
fn send_to(binary: &mut Ws, conn_id: &str, size: usize, count: usize) {
    binary.send_raw(&encode(true, TEXT, envelope(conn_id, &json(size)).as_bytes()).repeat(count));
}

/// Has the phone send `count` messages of `size` bytes.
fn send(phone: &mut Ws, size: usize, count: usize) {
    phone.send_raw(&encode(true, TEXT, json(size).as_bytes()).repeat(count));
}

/// Receive buffer of a peer that reads again, in bytes.
const KERNEL: usize = 128 * 1024;
