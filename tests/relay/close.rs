//! How connections end: the close handshake from either side, what the binary is told of a phone
//! that left, and peers that do not play along. Where time decides: `tests/simulation/close.rs`.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown};
use std::time::Instant;

use crate::rig::ws::{CLOSE, PING, PONG, TEXT, encode};
use crate::rig::{
    Address, Relay, Ws, binary_head, connect, connect_narrowed, deadline, envelope, events,
    fresh_id, notice, phone_head,
};

#[test]
fn a_close_frame_is_answered_with_its_own_code() {
    let relay = Relay::start(&[]);
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 4000, 4999]
    {
        let (mut binary, mut phone, _) = relay.pair(&fresh_id("echo"));
        phone.send_close(code, &"r".repeat(123));
        phone.expect_close(code, "");
        binary.send_close(code, "reason");
        binary.expect_close(code, "");
    }
}

#[test]
fn a_close_with_the_registered_code_1014_is_a_close_like_any_other() {
    let mut scene = Scene::new(&[]);
    let (mut phone, conn_id) = scene.known_phone();
    phone.send_close(1014, "");
    phone.expect_close(1014, "");
    assert_eq!(scene.binary.read_text(), notice(&conn_id, 1014));
}

#[test]
fn what_a_peer_sends_behind_its_close_frame_costs_it_nothing_that_is_on_its_way_to_it() {
    // An invalid code is a close frame too, which 1002 answers (RFC 6455 section 7.4).
    for (code, answer) in [(1000, 1000), (2999, 1002)] {
        // The relay waits for two seconds; a machine that stalls for longer is too late.
        let in_time = (0..10).any(|_| closes_and_pongs(code, answer));
        assert!(in_time, "the relay does not wait for what comes behind a close frame");
    }
}

/// A phone with messages on their way to it closes with `code`, sends a pong, and then reads what
/// it gets. Whether the pong came while the relay still waited for the phone's end.
fn closes_and_pongs(code: u16, answer: u16) -> bool {
    let relay = Relay::start(&[]);
    let id = fresh_id("behind");
    let mut binary = relay.binary(&id);
    let seen = events::mark();
    let mut phone = slow_reader(relay.address, &phone_head(&id));
    let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    let conn_id = events::field(&line, "conn_id");
    // More than the phone's kernel takes in, so that the answer waits in the relay's.
    let message = format!("\"{}\"", "x".repeat(1000 - 2));
    for _ in 0..60 {
        binary.send_text(&envelope(&conn_id, &message));
    }
    binary.sync();
    // Behind a turn that reads this, everything is written.
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
    phone.send_close(code, "");
    assert_eq!(binary.read_text(), notice(&conn_id, answer));
    binary.sync();
    // A library may answer pings until it is answered itself.
    phone.send_frame(true, PONG, b"late");
    binary.sync();
    if events::count("connection_closed", &[("conn_id", &conn_id)]) > 0 {
        return false;
    }
    for number in 0..60 {
        assert_eq!(phone.read_text(), message, "message {number}");
    }
    phone.expect_close(answer, "");
    true
}

#[test]
fn an_empty_close_frame_is_answered_by_an_empty_one() {
    let relay = Relay::start(&[]);
    let (binary, phone, _) = relay.pair(&fresh_id("empty"));
    for mut ws in [phone, binary] {
        ws.send_frame(true, CLOSE, b"");
        let answer = ws.read_frame();
        assert_eq!((answer.opcode, answer.payload), (CLOSE, Vec::new()));
        ws.expect_end();
    }
}

#[test]
fn a_close_frame_is_answered_to_a_peer_that_has_shut_down_writing() {
    let relay = Relay::start(&[]);
    let (binary, phone, _) = relay.pair(&fresh_id("half"));
    for mut ws in [phone, binary] {
        ws.send_close(4000, "");
        ws.stream.shutdown(Shutdown::Write).unwrap();
        ws.expect_close(4000, "");
    }
}

#[test]
fn a_peer_that_closes_is_not_made_to_read_its_backlog_first() {
    let relay = Relay::start(&[]);
    let (_binary, mut phone, conn_id) = stalled_phone(&relay);
    phone.send_close(1000, "");
    events::wait("phone_unregistered", &[("conn_id", &conn_id)]);
    for _ in 0..BACKLOG {
        let frame = phone.read();
        if frame.opcode == CLOSE {
            assert_eq!(frame.payload, 1000_u16.to_be_bytes());
            return phone.expect_end();
        }
        assert_eq!(frame.payload.len(), 100_000, "what was begun is finished");
    }
    panic!("the close frame waited for everything that was queued");
}

#[test]
fn nothing_behind_a_phones_close_frame_is_forwarded_or_answered() {
    let mut scene = Scene::new(&[]);
    let (mut phone, conn_id) = scene.relay.registered_phone(&scene.id);
    let bytes = [
        encode(true, TEXT, b"1"),
        encode(true, CLOSE, &4000_u16.to_be_bytes()),
        encode(true, TEXT, b"2"),
        encode(true, PING, b"late"),
        encode(true, CLOSE, &4001_u16.to_be_bytes()),
    ];
    phone.send_raw(&bytes.concat());
    phone.expect_close(4000, "");
    assert_eq!(scene.binary.read_text(), envelope(&conn_id, "1"));
    assert_eq!(scene.binary.read_text(), notice(&conn_id, 4000));
    scene.check_nothing_else();
}

#[test]
fn nothing_behind_a_binarys_close_frame_is_delivered_or_answered() {
    let relay = Relay::start(&[]);
    let id = fresh_id("behind");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let bytes = [
        encode(true, TEXT, envelope(&conn_id, "1").as_bytes()),
        encode(true, CLOSE, &1000_u16.to_be_bytes()),
        encode(true, TEXT, envelope(&conn_id, "2").as_bytes()),
        encode(true, TEXT, notice(&conn_id, 4401).as_bytes()),
        encode(true, PING, b"late"),
    ];
    binary.send_raw(&bytes.concat());
    binary.expect_close(1000, "");
    let mut successor = relay.binary(&id);
    successor.send_text(&envelope(&conn_id, "3"));
    assert_eq!(phone.read_text(), "1");
    assert_eq!(phone.read_text(), "3");
}

#[test]
fn the_notice_tells_the_code_that_a_phone_closed_with() {
    let mut scene = Scene::new(&[]);
    for code in [1000, 1001, 1011, 3000, 4000, 4404, 4999] {
        let (mut phone, conn_id) = scene.known_phone();
        phone.send_close(code, "reason");
        phone.expect_close(code, "");
        assert_eq!(scene.binary.read_text(), notice(&conn_id, code));
        scene.check_nothing_else();
    }
}

#[test]
fn the_notice_tells_1005_for_a_phone_that_closed_without_a_code() {
    let mut scene = Scene::new(&[]);
    let (mut phone, conn_id) = scene.known_phone();
    phone.send_frame(true, CLOSE, b"");
    assert_eq!(scene.binary.read_text(), notice(&conn_id, 1005));
    scene.check_nothing_else();
}

#[test]
fn the_notice_tells_1001_for_a_phone_that_is_gone_without_a_close_frame() {
    let mut scene = Scene::new(&[]);
    let ends: [fn(Ws); 3] = [Ws::drop_connection, Ws::reset, |phone| {
        // In the middle of a message.
        let mut phone = phone;
        phone.send_frame(false, TEXT, b"[");
        phone.drop_connection();
    }];
    for end in ends {
        let (phone, conn_id) = scene.known_phone();
        end(phone);
        assert_eq!(scene.binary.read_text(), notice(&conn_id, 1001));
        scene.check_nothing_else();
    }
}

#[test]
fn the_notice_tells_the_code_that_the_relay_closed_a_phone_with_whatever_it_answers() {
    let mut scene = Scene::new(&["--max-frame-bytes", "1000"]);
    for (case, bytes, code) in [
        ("no JSON", encode(true, TEXT, b"{"), 1007),
        ("no UTF-8", encode(true, TEXT, b"\xff"), 1007),
        ("too big", encode(true, TEXT, &[b'1'; 1001]), 1009),
        ("protocol", encode(true, 0x3, b""), 1002),
        ("bad code", encode(true, CLOSE, &999_u16.to_be_bytes()), 1002),
        ("bad reason", encode(true, CLOSE, b"\x03\xe8\xff"), 1007),
    ] {
        let (mut phone, conn_id) = scene.known_phone();
        let answer = encode(true, CLOSE, &4000_u16.to_be_bytes());
        phone.send_raw(&[bytes, answer].concat());
        phone.expect_close_code(code);
        assert_eq!(scene.binary.read_text(), notice(&conn_id, code), "{case}");
        scene.check_nothing_else();
    }
}

#[test]
fn a_phone_that_the_binary_was_sent_nothing_of_leaves_without_a_notice() {
    let mut scene = Scene::new(&[]);
    let ends: [fn(Ws); 5] = [
        |mut phone| {
            phone.send_close(1000, "");
            phone.expect_close(1000, "");
        },
        Ws::drop_connection,
        Ws::reset,
        |mut phone| {
            phone.send_text("no JSON");
            phone.expect_close_code(1007);
        },
        |mut phone| {
            phone.send_frame(false, TEXT, b"1");
            phone.send_frame(true, TEXT, b"1");
            phone.expect_close_code(1002);
        },
    ];
    for end in ends {
        let (phone, conn_id) = scene.relay.registered_phone(&scene.id);
        // What the binary says to it does not make the binary know it.
        scene.binary.send_text(&envelope(&conn_id, "1"));
        scene.binary.sync();
        let mut phone = phone;
        assert_eq!(phone.read_text(), "1");
        end(phone);
        events::wait("phone_unregistered", &[("conn_id", &conn_id)]);
        scene.check_nothing_else();
    }
}

#[test]
fn the_notice_follows_the_last_message_and_comes_once() {
    let mut scene = Scene::new(&[]);
    let (mut phone, conn_id) = scene.relay.registered_phone(&scene.id);
    let mut bytes: Vec<u8> =
        (0..500).flat_map(|number| encode(true, TEXT, number.to_string().as_bytes())).collect();
    bytes.extend(encode(true, CLOSE, &1000_u16.to_be_bytes()));
    phone.send_raw(&bytes);
    phone.reset();
    for number in 0..500 {
        let message = number.to_string();
        assert_eq!(scene.binary.read_text(), envelope(&conn_id, &message));
    }
    assert_eq!(scene.binary.read_text(), notice(&conn_id, 1000));
    events::wait("connection_closed", &[("conn_id", &conn_id)]);
    scene.check_nothing_else();
}

#[test]
fn a_phone_that_the_binary_has_closed_is_not_heard_of_again() {
    let mut scene = Scene::new(&[]);
    let ends: [fn(Ws); 3] = [
        |mut phone| {
            phone.send_text("\"too late\"");
            phone.send_close(4000, "");
            phone.expect_end();
        },
        |mut phone| {
            phone.send_text("\"too late\"");
            phone.drop_connection();
        },
        |mut phone| {
            phone.send_text("\"too late\"");
            phone.reset();
        },
    ];
    for end in ends {
        let (mut phone, conn_id) = scene.known_phone();
        scene.binary.send_text(&notice(&conn_id, 4401));
        let close = phone.read();
        assert_eq!((close.opcode, close.payload), (CLOSE, 4401_u16.to_be_bytes().to_vec()));
        end(phone);
        events::wait("connection_closed", &[("conn_id", &conn_id)]);
        scene.check_nothing_else();
    }
}

#[test]
fn a_phone_that_is_held_back_is_closed_in_order_and_nothing_more_of_it_is_forwarded() {
    const MESSAGES: usize = 110;
    let relay = Relay::start(&["--max-frame-bytes", "16KiB", "--max-slot-queue-bytes", "64KiB"]);
    let id = fresh_id("held");
    let mut binary = slow_reader(relay.address, &binary_head(&id));
    let (mut sibling, sibling_id) = relay.registered_phone(&id);
    let (mut phone, conn_id) = relay.registered_phone(&id);
    let message = |number: usize| format!("[{number},\"{}\"]", "x".repeat(8000));
    // Less than the relay discards of a phone that it has closed, or the end would be a reset.
    assert!(MESSAGES * message(0).len() < 1000 * 1024);
    let (begun, rest) = phone.send_until_blocked(MESSAGES, message);
    let started = Instant::now();
    assert_eq!(binary.read_text(), envelope(&conn_id, &message(0)));
    binary.send_text(&notice(&conn_id, 4000));
    // The relay discards what it does not forward.
    phone.send_raw(&rest);
    for number in begun..MESSAGES {
        phone.send_text(&message(number));
    }
    phone.expect_close(4000, "");
    sibling.send_text("1");
    for number in 1..MESSAGES {
        let text = binary.read_text();
        if text == envelope(&sibling_id, "1") {
            return;
        }
        assert_eq!(text, envelope(&conn_id, &message(number)));
        assert!(started.elapsed() < deadline());
    }
    panic!("everything was forwarded");
}

#[test]
fn a_phone_that_is_turned_away_gets_its_close_frame_in_spite_of_unread_input() {
    let relay = Relay::start(&["--max-phones", "1"]);
    let id = fresh_id("full");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let unread = encode(true, TEXT, format!("\"{}\"", "x".repeat(100_000)).as_bytes()).repeat(3);
    for (head, code, reason) in [
        (phone_head(&fresh_id("nobody")), 4404, "no server with that id"),
        (phone_head(&id), 4429, "too many phones"),
    ] {
        let bytes = [head.as_bytes(), &unread].concat();
        Ws::upgrade_with(relay.address, &bytes).expect_close(code, reason);
    }
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
}

#[test]
fn a_claim_that_loses_gets_its_close_frame_in_spite_of_unread_input() {
    let relay = Relay::start(&[]);
    let id = fresh_id("loser");
    let (mut holder, mut phone, conn_id) = relay.pair(&id);
    let unread = encode(true, TEXT, envelope(&conn_id, "\"must not arrive\"").as_bytes());
    let bytes = [binary_head(&id).as_bytes(), &unread.repeat(5000)].concat();
    let mut loser = Ws::upgrade_with(relay.address, &bytes);
    assert_eq!(holder.read_frame().opcode, PING);
    loser.expect_close(4409, "server-id already claimed");
    holder.send_text(&envelope(&conn_id, "1"));
    assert_eq!(phone.read_text(), "1");
}

/// A binary with a phone that stays while others leave.
struct Scene {
    id: String,
    binary: Ws,
    sibling: Ws,
    sibling_id: String,
    // Dropped last, or its end would wait for the others' close frames.
    relay: Relay,
}

impl Scene {
    fn new(arguments: &[&str]) -> Self {
        let relay = Relay::start(arguments);
        let id = fresh_id("leaving");
        let (binary, sibling, sibling_id) = relay.pair(&id);
        Self { id, binary, sibling, sibling_id, relay }
    }

    /// A phone that the binary has been sent a message of, and its connection id.
    fn known_phone(&mut self) -> (Ws, String) {
        let (mut phone, conn_id) = self.relay.registered_phone(&self.id);
        phone.send_text("\"hello\"");
        assert_eq!(self.binary.read_text(), envelope(&conn_id, "\"hello\""));
        (phone, conn_id)
    }

    /// The next that the binary gets is a message of the phone that stays.
    fn check_nothing_else(&mut self) {
        self.sibling.send_text("1");
        assert_eq!(self.binary.read_text(), envelope(&self.sibling_id, "1"));
    }
}

/// A phone that does not read, with [`BACKLOG`] messages of 100,000 bytes queued for it, and its
/// binary.
fn stalled_phone(relay: &Relay) -> (Ws, Ws, String) {
    let id = fresh_id("stalled");
    let mut binary = relay.binary(&id);
    let seen = events::mark();
    let phone = slow_reader(relay.address, &phone_head(&id));
    let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    let conn_id = events::field(&line, "conn_id");
    let message = format!("\"{}\"", "x".repeat(100_000 - 2));
    for _ in 0..BACKLOG {
        binary.send_text(&envelope(&conn_id, &message));
    }
    binary.sync();
    (binary, phone, conn_id)
}

/// Far more messages of a stalled phone than fit into the kernel's buffers.
const BACKLOG: usize = 12;

/// A connection for which the kernel keeps little of what is not read.
fn slow_reader(address: Address, head: &str) -> Ws {
    let mut stream = connect_narrowed(Ipv4Addr::LOCALHOST, address, 16 * 1024);
    stream.write_all(head.as_bytes()).unwrap();
    Ws::after_request(stream)
}

/// How many times 60 kB a long upload is: what the relay reads in the two seconds that it lingers, and
/// what leaves bytes unread in the kernel if it does not. An emulated relay reads a tenth.
const fn uploads() -> usize {
    if cfg!(relay_emulated) { 20 } else { 100 }
}

#[test]
fn a_close_arrives_amid_a_long_upload() {
    let relay = Relay::start(&[]);
    for _ in 0..5 {
        let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("upload"));
        binary.send_text(&format!(r#"{{"conn_id":"{conn_id}","close_code":4401}}"#));
        binary.sync();
        // It has not looked yet, and goes on.
        let message = encode(true, TEXT, format!("\"{}\"", "x".repeat(60_000)).as_bytes());
        for _ in 0..uploads() {
            phone.send_raw(&message);
        }
        let frame = phone.read();
        assert_eq!((frame.opcode, frame.close().0), (CLOSE, 4401));
    }
}

#[test]
fn a_refusal_arrives_amid_a_long_upload() {
    let relay = Relay::start(&[]);
    let mut stream = connect(relay.address);
    stream.write_all(b"GET /nowhere HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
    for _ in 0..uploads() {
        stream.write_all(&[b'x'; 60_000]).expect("the relay reads on");
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 404");
}

#[test]
fn a_phone_that_hangs_up_while_it_is_held_back_makes_room_for_another_one() {
    let hang_ups: [fn(Ws); 2] = [Ws::drop_connection, Ws::reset];
    for hang_up in hang_ups {
        let relay = Relay::start(&["--max-phones", "1"]);
        let id = fresh_id("held");
        let seen = events::mark();
        relay.binary(&id).drop_connection();
        events::wait_after(seen, "server_released", &[("server_id", &id)]);
        let (mut phone, conn_id) = relay.registered_phone(&id);
        let (begun, _) =
            phone.send_until_blocked(10_000, |_| format!("\"{}\"", "x".repeat(60_000)));
        assert!(begun < 10_000, "it was never held back");
        hang_up(phone);
        events::wait("phone_unregistered", &[("conn_id", &conn_id)]);
        relay.registered_phone(&id);
    }
}
