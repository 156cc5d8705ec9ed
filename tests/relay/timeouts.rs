//! Heartbeat, message and write timeouts, each with a peer that lingers and is closed and with
//! bystanders on the same relay that stay.

use std::io::Write as _;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use relay_test_kit::frame::Received;

use crate::rig::ws::{self, Ws};
use crate::rig::{
    Relay, connect_narrow, deadline, envelope, events, fresh_id, millis, notice, phone_head, scaled,
};

/// The two legs. What holds for one must hold for the other.
#[derive(Clone, Copy, Debug)]
enum Leg {
    Binary,
    Phone,
}

const LEGS: [Leg; 2] = [Leg::Binary, Leg::Phone];

impl Leg {
    /// A peer on this leg under a fresh id, and what has to stay open for it.
    fn open(self, relay: &Relay) -> (Ws, String, Option<Bystanders>) {
        match self {
            Self::Binary => {
                let id = fresh_id("lone-binary");
                (relay.binary(&id), id, None)
            }
            Self::Phone => {
                let host = Bystanders::join(relay);
                (relay.registered_phone(&host.id).0, host.id.clone(), Some(host))
            }
        }
    }

    /// Waits for the line that tells that the peer of this leg is gone.
    fn wait_for_end(self, id: &str, reason: &str) {
        match self {
            Self::Binary => events::wait("server_released", &[("server_id", id)]),
            Self::Phone => {
                events::wait("phone_unregistered", &[("server_id", id), ("reason", reason)])
            }
        };
    }
}

/// A binary and its phone that do nothing but answer pings, each on a thread, until a third one
/// asks them to speak or the relay stops.
struct Bystanders {
    id: String,
    threads: [JoinHandle<Outcome>; 2],
}

#[derive(PartialEq, Eq, Debug)]
enum Outcome {
    Spoke,
    Closed(Received),
}

impl Bystanders {
    fn join(relay: &Relay) -> Self {
        let id = fresh_id("bystanders");
        let (mut binary, mut phone, conn_id) = relay.pair(&id);
        let binary = std::thread::spawn(move || {
            let asked = binary.read();
            if asked.opcode != ws::TEXT {
                return Outcome::Closed(asked);
            }
            assert!(asked.payload.ends_with(br#","frame":"speak"}"#), "{asked:?}");
            binary.send_text(&envelope(&conn_id, "\"to the phone\""));
            assert_eq!(binary.read_text(), envelope(&conn_id, "\"to the binary\""));
            Outcome::Spoke
        });
        let phone = std::thread::spawn(move || {
            let said = phone.read();
            if said.opcode != ws::TEXT {
                return Outcome::Closed(said);
            }
            assert_eq!(said.payload, b"\"to the phone\"");
            phone.send_text("\"to the binary\"");
            phone.sync();
            Outcome::Spoke
        });
        Self { id, threads: [binary, phone] }
    }

    /// Both are still there and pass messages in both directions.
    fn still_pass_messages(self, relay: &Relay) {
        let mut asking = relay.phone(&self.id);
        asking.send_text("\"speak\"");
        for thread in self.threads {
            assert_eq!(thread.join().expect("a bystander hears what it expects"), Outcome::Spoke);
        }
    }
}

/// Runs a test on both legs side by side.
fn on_both_legs(test: impl Fn(Leg) + Sync) {
    std::thread::scope(|scope| {
        for leg in LEGS {
            let test = &test;
            scope.spawn(move || test(leg));
        }
    });
}

pub fn milliseconds(count: u64) -> Duration {
    scaled(Duration::from_millis(count))
}

/// The next frame if one comes within `time`. What a binary is asked behind a message is none.
fn read_within(ws: &mut Ws, time: Duration) -> Option<Received> {
    ws.stream.set_read_timeout(Some(time)).unwrap();
    let read = loop {
        match ws.try_read_frame() {
            Ok(frame) if frame.is_proof_ping() => {}
            read => break read,
        }
    };
    ws.stream.set_read_timeout(Some(deadline())).unwrap();
    match read {
        Ok(frame) => Some(frame),
        Err(error) if ws::is_timeout(&error) => None,
        Err(error) => panic!("{error} while the connection should be there"),
    }
}

/// Sends a piece every `pause` until a close frame comes, which must have this code.
fn trickle_until_closed(ws: &mut Ws, pause: Duration, code: u16, mut piece: impl FnMut(&mut Ws)) {
    let until = Instant::now() + deadline();
    loop {
        piece(ws);
        match read_within(ws, pause) {
            None => {}
            Some(frame) if [ws::PING, ws::PONG].contains(&frame.opcode) => {}
            Some(frame) => {
                assert_eq!(frame.opcode, ws::CLOSE, "{frame:?}");
                assert_eq!(frame.payload[..2], code.to_be_bytes());
                return;
            }
        }
        assert!(Instant::now() < until, "still open");
    }
}

/// A phone that has a small receive buffer, registered, and its connection id.
pub fn narrow_phone(relay: &Relay, id: &str) -> (Ws, String) {
    let seen = events::mark();
    let mut stream = connect_narrow(relay.address);
    stream.write_all(phone_head(id).as_bytes()).unwrap();
    let registered = events::wait_after(seen, "phone_registered", &[("server_id", id)]);
    (Ws::after_request(stream), events::field(&registered, "conn_id"))
}

/// The `number`th of many messages that differ.
pub fn large_message(number: usize) -> String {
    format!("\"{number:06}{}\"", "x".repeat(60_000))
}

// ---------------------------------------------------------------------------------------------
// Heartbeat

#[test]
fn a_silent_peer_is_pinged_once_and_closed_and_the_others_stay() {
    let (interval, timeout) = (milliseconds(200), milliseconds(800));
    on_both_legs(|leg| {
        let relay = Relay::start(&[
            "--heartbeat-interval",
            &millis(200),
            "--heartbeat-timeout",
            &millis(800),
        ]);
        let bystanders = Bystanders::join(&relay);
        let quiet_since = Instant::now();
        let (mut silent, id, host) = leg.open(&relay);
        silent.answers_pings = false;
        assert_eq!(silent.read_frame().opcode, ws::PING, "{leg:?}");
        let least = interval.mul_f64(0.9);
        assert!(quiet_since.elapsed() >= least, "{leg:?} after {:?}", quiet_since.elapsed());
        let close = silent.read_frame();
        assert_eq!(close.opcode, ws::CLOSE, "{leg:?}: one ping a silence");
        assert_eq!(close.payload, [&1011_u16.to_be_bytes()[..], b"heartbeat timeout"].concat());
        assert!(quiet_since.elapsed() >= least + timeout, "after {:?}", quiet_since.elapsed());
        silent.expect_end();
        leg.wait_for_end(&id, "heartbeat timeout");
        bystanders.still_pass_messages(&relay);
        if let Some(host) = host {
            host.still_pass_messages(&relay);
        }
    });
}

#[test]
fn a_peer_that_sends_nothing_but_pongs_stays() {
    let relay =
        Relay::start(&["--heartbeat-interval", &millis(150), "--heartbeat-timeout", &millis(600)]);
    let id = fresh_id("pongs");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let started = Instant::now();
    while started.elapsed() < milliseconds(1500) {
        // Each reads one ping, whose pong is all that it sends.
        assert_eq!(phone.read_frame().opcode, ws::PING);
        assert_eq!(binary.read_frame().opcode, ws::PING);
    }
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
    binary.send_text(&envelope(&conn_id, "2"));
    assert_eq!(phone.read_text(), "2");
}

#[test]
fn a_peer_that_sends_one_byte_at_a_time_stays() {
    on_both_legs(|leg| {
        let relay = Relay::start(&[
            "--heartbeat-interval",
            &millis(300),
            "--heartbeat-timeout",
            &millis(600),
        ]);
        let (mut slow, _, _host) = leg.open(&relay);
        slow.answers_pings = false;
        let frame = ws::encode(true, ws::PONG, b"a pong of many bytes");
        let started = Instant::now();
        for byte in frame.iter().cycle() {
            slow.send_raw(&[*byte]);
            if let Some(frame) = read_within(&mut slow, milliseconds(60)) {
                assert_eq!(frame.opcode, ws::PING, "{leg:?}: a byte is a sign of life");
            }
            if started.elapsed() > milliseconds(1500) {
                break;
            }
        }
    });
}

#[test]
fn a_single_byte_after_the_ping_starts_the_silence_anew() {
    let (interval, timeout) = (milliseconds(200), milliseconds(800));
    on_both_legs(|leg| {
        let relay = Relay::start(&[
            "--heartbeat-interval",
            &millis(200),
            "--heartbeat-timeout",
            &millis(800),
        ]);
        let (mut silent, _, _host) = leg.open(&relay);
        silent.answers_pings = false;
        assert_eq!(silent.read_frame().opcode, ws::PING);
        let last_byte = Instant::now();
        silent.send_raw(&[0x81]);
        assert_eq!(silent.read_frame().opcode, ws::PING, "{leg:?}: a new silence, a new ping");
        assert!(last_byte.elapsed() >= interval.mul_f64(0.9));
        silent.expect_close(1011, "heartbeat timeout");
        assert!(last_byte.elapsed() >= interval.mul_f64(0.9) + timeout);
    });
}

#[test]
fn a_peer_that_was_never_silent_is_never_pinged() {
    let relay = Relay::start(&["--heartbeat-interval", &millis(1000)]);
    let id = fresh_id("busy");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let started = Instant::now();
    let mut number = 0;
    while started.elapsed() < milliseconds(1500) {
        for peer in [&mut phone, &mut binary] {
            // A pause well below the interval, in which nothing comes.
            assert_eq!(read_within(peer, milliseconds(20)), None);
        }
        number += 1;
        phone.send_text(&number.to_string());
        let received = binary.read_besides_proofs();
        assert_eq!(received.payload, envelope(&conn_id, &number.to_string()).as_bytes());
        binary.send_text(&envelope(&conn_id, "0"));
        assert_eq!(phone.read_frame().payload, b"0");
    }
}

#[test]
fn a_binary_that_fell_silent_leaves_phones_that_the_next_claim_closes() {
    let relay =
        Relay::start(&["--heartbeat-interval", &millis(150), "--heartbeat-timeout", &millis(600)]);
    let id = fresh_id("fell-silent");
    let mut silent = relay.binary(&id);
    silent.answers_pings = false;
    let (mut before, conn_id) = relay.registered_phone(&id);
    before.send_text("\"into the void\"");
    let pumped = std::thread::spawn(move || {
        // It answers pings all the while, and hears of nothing before the claim.
        before.expect_close(4404, "binary reclaimed server-id");
    });
    assert_eq!(silent.read_text(), envelope(&conn_id, "\"into the void\""));
    silent.expect_close(1011, "heartbeat timeout");
    events::wait("server_released", &[("server_id", &id)]);
    let (mut within, within_id) = relay.registered_phone(&id);
    within.send_text("\"in the window\"");
    within.sync();
    assert_eq!(events::count("phone_unregistered", &[("server_id", &id)]), 0);

    let mut next = relay.binary(&id);
    pumped.join().unwrap();
    // A phone that came after the silence has lost nothing.
    let mut received = [next.read_text(), next.read_text()];
    received.sort();
    let mut expected = [notice(&conn_id, 4404), envelope(&within_id, "\"in the window\"")];
    expected.sort();
    assert_eq!(received, expected);
    next.send_text(&envelope(&within_id, "\"welcome\""));
    assert_eq!(within.read_text(), "\"welcome\"");
}

#[test]
fn deadlines_that_pass_in_the_middle_of_a_turn_are_noticed() {
    // With an interval this short one of the many pings falls due while the relay is busy with
    // the very connection that it is for.
    let relay = Relay::start(&["--heartbeat-interval", "1ms"]);
    let mut phones: Vec<_> = (0..4).map(|_| relay.pair(&fresh_id("hectic"))).collect();
    for _ in 0..400 {
        for (binary, phone, _) in &mut phones {
            assert_eq!(phone.read_frame().opcode, ws::PING);
            assert_eq!(binary.read_frame().opcode, ws::PING);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Message timeout

#[test]
fn a_message_begun_and_not_completed_is_closed_with_1008_and_the_others_stay() {
    let whole = ws::encode(true, ws::TEXT, br#"{"half":"of a message"}"#);
    let fragment = ws::encode(false, ws::TEXT, b"{\"half\":");
    let beginnings: [&[u8]; 4] = [
        // One byte of a header, a whole header, some payload, a whole first fragment.
        &whole[..1],
        &whole[..6],
        &whole[..whole.len() - 1],
        &fragment,
    ];
    let relay = Relay::start(&["--message-timeout", &millis(300)]);
    on_both_legs(|leg| {
        let bystanders = Bystanders::join(&relay);
        let mut lingering: Vec<_> = beginnings
            .iter()
            .map(|beginning| {
                let (mut ws, id, host) = leg.open(&relay);
                let begun = Instant::now();
                ws.send_raw(beginning);
                (ws, id, host, begun)
            })
            .collect();
        for ((ws, id, _, begun), beginning) in lingering.iter_mut().zip(beginnings) {
            ws.expect_close_code(1008);
            let elapsed = begun.elapsed();
            assert!(elapsed >= milliseconds(300), "{leg:?} {beginning:?} after {elapsed:?}");
            leg.wait_for_end(id, "message timeout");
        }
        bystanders.still_pass_messages(&relay);
        for (_, _, host, _) in lingering {
            if let Some(host) = host {
                // The binary behind a phone has got nothing of the half message.
                host.still_pass_messages(&relay);
            }
        }
    });
}

#[test]
fn fragments_that_trickle_do_not_extend_the_message_timeout() {
    let relay = Relay::start(&["--message-timeout", &millis(500)]);
    on_both_legs(|leg| {
        let (mut ws, _, _host) = leg.open(&relay);
        let begun = Instant::now();
        ws.send_frame(false, ws::TEXT, b"[1");
        trickle_until_closed(&mut ws, milliseconds(50), 1008, |ws| {
            ws.send_frame(false, ws::CONTINUATION, b",1");
        });
        assert!(begun.elapsed() >= milliseconds(500), "{leg:?}: after {:?}", begun.elapsed());
    });
}

#[test]
fn bytes_that_trickle_do_not_extend_the_message_timeout() {
    let relay = Relay::start(&["--message-timeout", &millis(500)]);
    on_both_legs(|leg| {
        let (mut ws, _, _host) = leg.open(&relay);
        let frame = ws::encode(true, ws::TEXT, &[b' '; 60_000]);
        let mut bytes = frame.iter();
        trickle_until_closed(&mut ws, milliseconds(20), 1008, |ws| {
            ws.send_raw(&[*bytes.next().unwrap()]);
        });
    });
}

#[test]
fn interleaved_pings_do_not_extend_the_message_timeout() {
    let relay = Relay::start(&["--message-timeout", &millis(500)]);
    on_both_legs(|leg| {
        let (mut ws, _, _host) = leg.open(&relay);
        let begun = Instant::now();
        ws.send_frame(false, ws::TEXT, b"[1");
        trickle_until_closed(&mut ws, milliseconds(50), 1008, |ws| ws.send_ping(b"still here"));
        assert!(begun.elapsed() >= milliseconds(500), "{leg:?}: after {:?}", begun.elapsed());
    });
}

#[test]
fn silence_between_messages_is_free() {
    let relay = Relay::start(&["--message-timeout", &millis(200)]);
    let id = fresh_id("pauses");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    for _ in 0..2 {
        // What was last said is a whole message, a message in fragments, a ping.
        phone.send_text("1");
        phone.send_frame(false, ws::TEXT, b"\"2");
        phone.send_frame(true, ws::CONTINUATION, b"\"");
        phone.sync();
        assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
        assert_eq!(binary.read_text(), envelope(&conn_id, "\"2\""));
        binary.send_text(&envelope(&conn_id, "3"));
        assert_eq!(phone.read_text(), "3");
        assert_eq!(read_within(&mut phone, milliseconds(500)), None);
        assert_eq!(read_within(&mut binary, milliseconds(10)), None);
    }
}

#[test]
fn every_message_has_its_whole_time() {
    let relay = Relay::start(&["--message-timeout", &millis(1000)]);
    let id = fresh_id("whole-time");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let frame = ws::encode(true, ws::TEXT, b"12345");
    for _ in 0..2 {
        let (beginning, end) = frame.split_at(8);
        phone.send_raw(beginning);
        assert_eq!(read_within(&mut phone, milliseconds(600)), None);
        phone.send_raw(end);
        assert_eq!(binary.read_text(), envelope(&conn_id, "12345"));
    }
}

#[test]
fn a_binary_closed_for_its_message_timeout_finds_its_phones_again() {
    let relay = Relay::start(&["--message-timeout", &millis(200)]);
    let id = fresh_id("not-silent");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    binary.send_raw(&[0x81]);
    binary.expect_close_code(1008);
    events::wait("server_released", &[("server_id", &id)]);
    let mut binary = relay.binary(&id);
    binary.send_text(&envelope(&conn_id, "\"back\""));
    assert_eq!(phone.read_text(), "\"back\"");
}

// ---------------------------------------------------------------------------------------------
// Write timeout

#[test]
fn a_phone_that_does_not_read_is_cut_off_and_the_others_stay() {
    let relay = Relay::start(&["--write-timeout", &millis(400)]);
    let bystanders = Bystanders::join(&relay);
    let id = fresh_id("stalled-phone");
    let mut binary = relay.binary(&id);
    let (mut stalled, conn_id) = narrow_phone(&relay, &id);
    let (mut sibling, sibling_id) = relay.registered_phone(&id);
    stalled.send_text("\"hello\"");
    assert_eq!(binary.read_text(), envelope(&conn_id, "\"hello\""));
    let flooded = Instant::now();
    for number in 0..16 {
        binary.send_text(&envelope(&conn_id, &large_message(number)));
    }
    events::wait("phone_unregistered", &[("conn_id", &conn_id), ("reason", "write timeout")]);
    assert!(flooded.elapsed() >= milliseconds(400), "after {:?}", flooded.elapsed());
    assert_eq!(binary.read_text(), notice(&conn_id, 1001));
    stalled.expect_gone();
    binary.send_text(&envelope(&sibling_id, "\"and you?\""));
    assert_eq!(sibling.read_text(), "\"and you?\"");
    bystanders.still_pass_messages(&relay);
}

#[test]
fn a_binary_that_does_not_read_is_cut_off_as_silent_and_the_others_stay() {
    let relay = Relay::start(&["--write-timeout", &millis(400)]);
    let bystanders = Bystanders::join(&relay);
    let id = fresh_id("stalled-binary");
    let mut stalled = relay.narrow_binary(&id);
    events::wait("server_claimed", &[("server_id", &id)]);
    let (mut phone, conn_id) = relay.registered_phone(&id);
    let flooded = Instant::now();
    for number in 0..6 {
        phone.send_text(&large_message(number));
    }
    events::wait("server_released", &[("server_id", &id)]);
    assert!(flooded.elapsed() >= milliseconds(400), "after {:?}", flooded.elapsed());
    stalled.expect_gone();
    phone.sync();
    let mut next = relay.binary(&id);
    phone.expect_close(4404, "binary reclaimed server-id");
    // What was kept of the old session is gone; the next one begins clean.
    let (mut again, again_id) = relay.registered_phone(&id);
    again.send_text("\"fresh\"");
    let mut received = next.read_text();
    if received == notice(&conn_id, 4404) {
        received = next.read_text();
    }
    assert_eq!(received, envelope(&again_id, "\"fresh\""));
    bystanders.still_pass_messages(&relay);
}

#[test]
fn a_reader_that_is_slow_but_goes_on_stays() {
    let relay = Relay::start(&["--write-timeout", &millis(1000)]);
    let id = fresh_id("slow-reader");
    let mut binary = relay.binary(&id);
    let (mut slow, conn_id) = narrow_phone(&relay, &id);
    let (mut idle, _) = relay.registered_phone(&id);
    let flood = std::thread::spawn(move || {
        for number in 0..40 {
            binary.send_text(&envelope(&conn_id, &large_message(number)));
        }
        binary
    });
    let started = Instant::now();
    for number in 0..40 {
        assert_eq!(slow.read_text(), large_message(number));
        if number % 4 == 3 && started.elapsed() < milliseconds(2000) {
            // A pause of the reader: its idle sibling is the clock.
            assert_eq!(read_within(&mut idle, milliseconds(250)), None);
        }
    }
    assert!(started.elapsed() > milliseconds(1800), "all of it was buffered somewhere");
    slow.sync();
    flood.join().unwrap().sync();
}

#[test]
fn a_phone_that_is_held_back_is_judged_neither_by_heartbeat_nor_by_message_timeout() {
    let relay = Relay::start(&[
        "--heartbeat-interval",
        &millis(150),
        "--heartbeat-timeout",
        &millis(800),
        "--message-timeout",
        &millis(400),
    ]);
    let id = fresh_id("held-back");
    let mut binary = relay.narrow_binary(&id);
    events::wait("server_claimed", &[("server_id", &id)]);
    let (mut phone, conn_id) = relay.registered_phone(&id);
    // More than its half of the slot's queue: the rest waits unread, the last message cut in two.
    for number in 0..20 {
        phone.send_text(&large_message(number));
    }
    let last = ws::encode(true, ws::TEXT, large_message(20).as_bytes());
    // A pong would get into the middle of the message.
    phone.answers_pings = false;
    phone.send_raw(&last[..30_000]);
    let held = Instant::now();
    while held.elapsed() < milliseconds(1600) {
        // The binary does not read, but it is no silent one.
        binary.send_ping(b"busy");
        if let Some(frame) = read_within(&mut phone, milliseconds(50)) {
            assert_eq!(frame.opcode, ws::PING);
        }
    }
    // From here on its message is judged: the rest comes while the binary reads, however slowly.
    let rest = std::thread::spawn(move || {
        phone.send_raw(&last[30_000..]);
        phone
    });
    for number in 0..=20 {
        let text = loop {
            binary.send_ping(b"reading");
            let frame = binary.read();
            if frame.opcode != ws::PONG {
                break String::from_utf8(frame.payload).unwrap();
            }
        };
        assert_eq!(text, envelope(&conn_id, &large_message(number)));
    }
    rest.join().unwrap();
}
