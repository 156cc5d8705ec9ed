//! The grace window and what survives it. Where time decides: `tests/simulation/grace.rs`.

use crate::monitor::{monitored, samples};
use crate::rig::events;
use crate::rig::ws::{CLOSE, PING, TEXT, encode};
use crate::rig::{Relay, Ws, binary_head, envelope, fresh_id, notice};

const RECLAIMED: &str = "binary reclaimed server-id";

#[test]
fn messages_sent_in_the_window_arrive_once_and_in_order_under_the_old_id() {
    let relay = Relay::start(&[]);
    let id = fresh_id("window");
    let (binary, mut phone, conn_id) = relay.pair(&id);
    end_and_wait(Ws::drop_connection, binary, &id);
    for number in 0..100 {
        phone.send_text(&format!("{number}"));
    }
    phone.sync();
    let mut binary = relay.binary(&id);
    for number in 0..100 {
        assert_eq!(binary.read_text(), envelope(&conn_id, &number.to_string()));
    }
    binary.send_text(&envelope(&conn_id, "\"back\""));
    assert_eq!(phone.read_text(), "\"back\"");
}

#[test]
fn phones_stay_attached_under_their_own_ids_in_both_directions() {
    let relay = Relay::start(&[]);
    let id = fresh_id("attached");
    let (binary, mut one, one_id) = relay.pair(&id);
    let (mut two, two_id) = relay.registered_phone(&id);
    end_and_wait(Ws::reset, binary, &id);
    one.send_text("1");
    one.sync();
    two.send_text("2");
    two.sync();
    let mut binary = relay.binary(&id);
    assert_eq!(binary.read_text(), envelope(&one_id, "1"));
    assert_eq!(binary.read_text(), envelope(&two_id, "2"));
    for (phone, conn_id) in [(&mut two, &two_id), (&mut one, &one_id)] {
        binary.send_text(&envelope(conn_id, conn_id.len().to_string().as_str()));
        assert_eq!(phone.read_text(), conn_id.len().to_string());
        assert_talk(&mut binary, phone, conn_id);
    }
    assert_eq!(relay.health(), (1, 2));
    assert_eq!(events::count("phone_unregistered", &[("server_id", &id)]), 0);
}

#[test]
fn a_claim_in_the_window_succeeds_without_a_probe_and_the_next_one_is_contested() {
    let relay = Relay::start(&["--probe-timeout", "10m"]);
    let id = fresh_id("prompt");
    let (binary, mut phone, conn_id) = relay.pair(&id);
    end_and_wait(Ws::reset, binary, &id);
    let mut first = relay.binary(&id);
    events::wait_nth(0, "server_claimed", &[("server_id", &id)], 2);
    first.answers_pings = false;
    let mut second = relay.binary(&id);
    let probe = first.read_frame();
    assert_eq!(probe.opcode, PING);
    assert_talk(&mut first, &mut phone, &conn_id);
    first.send_frame(true, crate::rig::ws::PONG, &probe.payload);
    second.expect_close(4409, "server-id already claimed");
    assert_talk(&mut first, &mut phone, &conn_id);
}

#[test]
fn what_a_binary_sent_before_its_end_reaches_its_phones() {
    let relay = Relay::start(&[]);
    let id = fresh_id("testament");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let mut last_words: Vec<u8> = (0..50)
        .flat_map(|number| encode(true, TEXT, envelope(&conn_id, &number.to_string()).as_bytes()))
        .collect();
    last_words.extend(encode(true, CLOSE, &1000_u16.to_be_bytes()));
    binary.send_raw(&last_words);
    for number in 0..50 {
        assert_eq!(phone.read_text(), number.to_string());
    }
    binary.expect_close(1000, "");
}

#[test]
fn half_a_message_of_a_binary_dies_with_its_connection() {
    let relay = Relay::start(&[]);
    let id = fresh_id("broken");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let frame = encode(true, TEXT, envelope(&conn_id, "\"half\"").as_bytes());
    binary.send_raw(&frame[..frame.len() / 2]);
    end_and_wait(Ws::drop_connection, binary, &id);
    let mut binary = relay.binary(&id);
    assert_talk(&mut binary, &mut phone, &conn_id);
}

#[test]
fn a_message_that_a_phone_began_before_the_window_and_ended_behind_it_arrives_whole() {
    let relay = Relay::start(&[]);
    let id = fresh_id("straddle");
    let (binary, mut phone, conn_id) = relay.pair(&id);
    let frame = encode(true, TEXT, b"[\"one\", \"two\", \"three\"]");
    phone.send_raw(&frame[..9]);
    end_and_wait(Ws::reset, binary, &id);
    phone.send_raw(&frame[9..20]);
    let mut binary = relay.binary(&id);
    phone.send_raw(&frame[20..]);
    assert_eq!(binary.read_text(), envelope(&conn_id, "[\"one\", \"two\", \"three\"]"));
}

#[test]
fn a_message_half_written_when_the_connection_died_is_sent_again_whole() {
    let relay = Relay::start(&["--max-slot-queue-bytes", "8MiB"]);
    let id = fresh_id("half");
    let seen = events::mark();
    let (old, mut phones) = stall_a_binary_of_many(&relay, &id);
    old.reset();
    let (_, bytes) = written_to_binary(seen, &id);
    let mut new = relay.binary(&id);
    let accepted = expect_the_rest(&mut new, &mut phones);
    let length = encode(true, TEXT, envelope(&phones[0].1, &large(0)).as_bytes()).len() - 4;
    // Besides, there were small messages, pings and pongs.
    let half = bytes - length * accepted;
    assert!((5_000..length).contains(&half), "the relay was in the middle of a message: {half}");
}

#[test]
fn a_message_whose_last_byte_a_closing_binary_still_accepted_is_not_sent_again() {
    for_each_orderly_end(|binary| binary.send_close(1000, ""), 1000);
}

#[test]
fn a_message_whose_last_byte_an_expelled_binary_still_accepted_is_not_sent_again() {
    // An unmasked frame.
    for_each_orderly_end(|binary| binary.send_raw(&[0x81, 0x00]), 1002);
}

fn for_each_orderly_end(end: fn(&mut Ws), code: u16) {
    let relay = Relay::start(&["--max-slot-queue-bytes", "8MiB"]);
    let id = fresh_id("accepted");
    let (mut old, mut phones) = stall_a_binary_of_many(&relay, &id);
    end(&mut old);
    events::wait("server_released", &[("server_id", &id)]);
    let mut read = 0;
    let last = loop {
        let frame = old.read();
        if frame.opcode == CLOSE {
            break frame.payload;
        }
        let expected = envelope(&phones[read].1, &large(read));
        assert!(frame.payload == expected.as_bytes(), "message {read}");
        read += 1;
    };
    assert_eq!(last[..2], code.to_be_bytes());
    assert!((1..10).contains(&read), "{read} of 10 were begun before the end");

    let mut new = relay.binary(&id);
    let accepted = expect_the_rest(&mut new, &mut phones);
    assert_eq!(accepted, read, "what was read is not sent again, and message {read} is next");
}

#[test]
fn over_many_broken_connections_every_message_is_accepted_exactly_once() {
    const PHONES: usize = 400;
    let relay = monitored(&["--max-slot-queue-bytes", "16MiB", "--max-phones", "400"]);
    let id = fresh_id("exactly");
    let mut binary = relay.narrow_binary(&id);
    let mut phones: Vec<_> = (0..PHONES).map(|_| relay.registered_phone(&id)).collect();
    for (number, (phone, _)) in phones.iter_mut().enumerate() {
        phone.send_text(&numbered(number, 20_000));
        phone.sync();
    }
    let read_message = |binary: &mut Ws| loop {
        let text = binary.read_text();
        // Of those that are closed it is told in between.
        if !text.contains("\"close_code\":4404}") {
            return text;
        }
    };
    let mut read = Vec::new();
    let mut read_next = |binary: &mut Ws| {
        let text = read_message(binary);
        let begin = read.last().map_or(0, |last| last + 1);
        let is_number =
            |number: &usize| text == envelope(&phones[*number].1, &numbered(*number, 20_000));
        let number = (begin..PHONES).find(is_number).expect("none comes twice or out of order");
        read.push(number);
        number
    };
    for round in 0..8 {
        for _ in 0..round {
            read_next(&mut binary);
        }
        binary.reset();
        events::wait_nth(0, "server_released", &[("server_id", &id)], round + 1);
        binary = relay.narrow_binary(&id);
    }
    let first = read_next(&mut binary);
    assert!(first < PHONES - 1, "the connections broke too late to tell");
    while read_next(&mut binary) < PHONES - 1 {}
    let forwarded = r#"pyrycode_relay_frames_forwarded_total{direction="phone_to_binary"}"#;
    let accepted = samples(relay.metrics.unwrap())[forwarded];
    assert!(accepted == PHONES as f64, "{accepted} of {PHONES} messages were accepted");
    // Nobody stays whose message a broken connection took with it.
    assert!(read.len() < PHONES, "nothing was lost that could tell");
    for (number, (phone, _)) in phones.iter_mut().enumerate() {
        if read.binary_search(&number).is_err() {
            phone.expect_close(4404, RECLAIMED);
        }
    }
    let (phone, conn_id) = phones.last_mut().unwrap();
    phone.send_text("\"still here\"");
    assert_eq!(read_message(&mut binary), envelope(conn_id, "\"still here\""));
}

#[test]
fn of_a_phone_that_left_in_the_window_the_binary_gets_messages_and_notice_if_it_knows_it() {
    let relay = Relay::start(&[]);
    let id = fresh_id("departed");
    let (mut binary, mut known, known_id) = relay.pair(&id);
    let (mut dropped, dropped_id) = relay.registered_phone(&id);
    let (mut unknown, unknown_id) = relay.registered_phone(&id);
    let (mut mute, mute_id) = relay.registered_phone(&id);
    for (phone, conn_id) in [(&mut known, &known_id), (&mut dropped, &dropped_id)] {
        phone.send_text("0");
        assert_eq!(binary.read_text(), envelope(conn_id, "0"));
    }
    // A frame to a phone does not make it known: only one of the phone's own does.
    binary.send_text(&envelope(&mute_id, "0"));
    assert_eq!(mute.read_text(), "0");
    end_and_wait(Ws::reset, binary, &id);

    let (mut late, late_id) = relay.registered_phone(&id);
    for number in ["1", "2"] {
        for phone in [&mut known, &mut dropped, &mut unknown, &mut late] {
            phone.send_text(number);
            phone.sync();
        }
    }
    for mut phone in [known, unknown, late, mute] {
        phone.send_close(4000, "bye");
        phone.expect_close_code(4000);
    }
    dropped.reset();
    for conn_id in [&known_id, &dropped_id, &unknown_id, &mute_id, &late_id] {
        events::wait("phone_unregistered", &[("conn_id", conn_id)]);
    }

    let mut binary = relay.binary(&id);
    for number in ["1", "2"] {
        assert_eq!(binary.read_text(), envelope(&known_id, number));
        assert_eq!(binary.read_text(), envelope(&dropped_id, number));
    }
    assert_eq!(binary.read_text(), notice(&known_id, 4000));
    assert_eq!(binary.read_text(), notice(&dropped_id, 1001));
    binary.sync();
}

#[test]
fn a_phone_that_sends_nonsense_in_the_window_is_closed_and_nothing_of_it_arrives() {
    let relay = Relay::start(&[]);
    let id = fresh_id("nonsense");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    assert_talk(&mut binary, &mut phone, &conn_id);
    end_and_wait(Ws::drop_connection, binary, &id);
    phone.send_text("1");
    phone.send_text("nonsense");
    phone.send_text("2");
    phone.expect_close_code(1007);
    let mut binary = relay.binary(&id);
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
    assert_eq!(binary.read_text(), notice(&conn_id, 1007));
    binary.sync();
}

#[test]
fn a_notice_waits_behind_its_phones_messages_for_the_next_connection() {
    let relay = Relay::start(&["--max-slot-queue-bytes", "8MiB"]);
    let id = fresh_id("queued");
    let seen = events::mark();
    let binary = relay.narrow_binary(&id);
    let (mut stays, stays_id) = relay.registered_phone(&id);
    let (mut leaves, leaves_id) = relay.registered_phone(&id);
    for number in 0..6 {
        stays.send_text(&large(number));
    }
    stays.sync();
    leaves.send_text("\"last words\"");
    leaves.send_close(1000, "");
    leaves.expect_close(1000, "");
    binary.reset();
    let (written, _) = written_to_binary(seen, &id);
    assert_eq!(written, 0, "of what was accepted whole, the session would be over");

    let mut binary = relay.binary(&id);
    for number in 0..6 {
        assert!(binary.read_text() == envelope(&stays_id, &large(number)));
    }
    assert_eq!(binary.read_text(), envelope(&leaves_id, "\"last words\""));
    assert_eq!(binary.read_text(), notice(&leaves_id, 1000));
    binary.send_text(&envelope(&leaves_id, "\"answer\""));
    assert_talk(&mut binary, &mut stays, &stays_id);
}

#[test]
fn phones_are_pushed_back_in_the_window_and_everything_arrives_after_it() {
    let relay = Relay::start(&["--max-frame-bytes", "16KiB", "--max-slot-queue-bytes", "64KiB"]);
    let id = fresh_id("pushback");
    let (binary, mut flood, flood_id) = relay.pair(&id);
    let (mut calm, calm_id) = relay.registered_phone(&id);
    end_and_wait(Ws::reset, binary, &id);
    let most = 2048;
    let text = |number| numbered(number, 10_000);
    let (begun, rest) = flood.send_until_blocked(most, text);
    assert!(begun < most, "{begun} messages went into a queue of 64 KiB");
    calm.send_text("\"calm\"");
    calm.sync();

    let mut binary = relay.binary(&id);
    let sender = std::thread::spawn(move || {
        flood.send_raw(&rest);
        flood
    });
    let mut next = 0;
    let mut heard_calm = false;
    while next < begun {
        let message = binary.read_text();
        if message == envelope(&calm_id, "\"calm\"") {
            assert!(!heard_calm && next < 8, "ahead of all that was held back");
            heard_calm = true;
        } else {
            assert!(message == envelope(&flood_id, &text(next)), "message {next}");
            next += 1;
        }
    }
    assert!(heard_calm);
    let mut flood = sender.join().unwrap();
    assert_talk(&mut binary, &mut flood, &flood_id);
    assert_talk(&mut binary, &mut calm, &calm_id);
}

#[test]
fn a_phone_that_joins_in_the_window_is_served_by_the_next_connection() {
    let relay = Relay::start(&[]);
    let id = fresh_id("joins");
    let binary = relay.binary(&id);
    end_and_wait(close, binary, &id);
    let (mut phone, conn_id) = relay.registered_phone(&id);
    phone.send_text("\"early\"");
    phone.sync();
    let mut binary = relay.binary(&id);
    assert_eq!(binary.read_text(), envelope(&conn_id, "\"early\""));
    assert_talk(&mut binary, &mut phone, &conn_id);
}

#[test]
fn code_4421_becomes_4404_for_a_phone_that_outlived_its_binarys_connection() {
    let relay = Relay::start(&[]);
    let id = fresh_id("outlived");
    let (binary, mut phone, conn_id) = relay.pair(&id);
    let (mut veteran, veteran_id) = relay.registered_phone(&id);
    end_and_wait(Ws::reset, binary, &id);
    let mut binary = relay.binary(&id);
    let last = r#""last words""#;
    binary.send_text(&format!(r#"{{"conn_id":"{conn_id}","frame":{last},"close_code":4421}}"#));
    assert_eq!(phone.read_text(), last);
    phone.expect_close_code(4404);
    binary.send_close(1000, "");
    binary.expect_close(1000, "");
    events::wait_nth(0, "server_released", &[("server_id", &id)], 2);
    let mut binary = relay.binary(&id);
    binary.send_text(&notice(&veteran_id, 4421));
    veteran.expect_close_code(4404);
    binary.sync();
}

#[test]
fn code_4421_reaches_a_phone_that_joined_after_the_change_or_in_the_window() {
    let relay = Relay::start(&[]);
    let id = fresh_id("newer");
    let (mut binary, mut first, first_id) = relay.pair(&id);
    binary.send_text(&notice(&first_id, 4421));
    first.expect_close_code(4421);
    end_and_wait(Ws::reset, binary, &id);
    let (mut in_window, in_window_id) = relay.registered_phone(&id);
    let mut binary = relay.binary(&id);
    let (mut after, after_id) = relay.registered_phone(&id);
    for (phone, conn_id) in [(&mut in_window, &in_window_id), (&mut after, &after_id)] {
        assert_talk(&mut binary, phone, conn_id);
        binary.send_text(&notice(conn_id, 4421));
        phone.expect_close_code(4421);
    }
    binary.sync();
}

#[test]
fn every_other_code_reaches_a_phone_that_outlived_its_binarys_connection() {
    let relay = Relay::start(&[]);
    let id = fresh_id("verdicts");
    let binary = relay.binary(&id);
    let codes = [1000, 4401, 4404, 4412, 4420, 4422, 4426];
    let mut phones: Vec<_> = codes.map(|code| (code, relay.registered_phone(&id))).into();
    end_and_wait(Ws::reset, binary, &id);
    let mut binary = relay.binary(&id);
    for (code, (phone, conn_id)) in &mut phones {
        binary.send_text(&notice(conn_id, *code));
        phone.expect_close_code(*code);
    }
    binary.sync();
}

#[test]
fn evicting_closes_the_attached_phones_at_a_claim_in_the_window() {
    let relay = Relay::start(&["--reclaim", "evict"]);
    let id = fresh_id("evict");
    let (mut binary, mut known, known_id) = relay.pair(&id);
    let (mut unknown, _) = relay.registered_phone(&id);
    assert_talk(&mut binary, &mut known, &known_id);
    end_and_wait(close, binary, &id);
    let (mut late, _) = relay.registered_phone(&id);
    for phone in [&mut known, &mut unknown, &mut late] {
        phone.send_text("\"kept\"");
        phone.sync();
    }
    let mut binary = relay.binary(&id);
    for phone in [&mut known, &mut unknown, &mut late] {
        phone.expect_close(4404, RECLAIMED);
    }
    assert_eq!(binary.read_text(), notice(&known_id, 4404));
    binary.sync();
    assert_eq!(relay.health(), (1, 0));
    let (mut phone, conn_id) = relay.registered_phone(&id);
    assert_talk(&mut binary, &mut phone, &conn_id);
}

#[test]
fn evicting_closes_the_attached_phones_when_the_holder_ends_during_its_probe() {
    let relay = Relay::start(&["--reclaim", "evict", "--probe-timeout", "10m"]);
    let id = fresh_id("evict-probe");
    let (mut binary, mut phone, _) = relay.pair(&id);
    binary.answers_pings = false;
    let mut newcomer = relay.binary(&id);
    assert_eq!(binary.read_frame().opcode, PING);
    binary.reset();
    phone.expect_close(4404, RECLAIMED);
    newcomer.sync();
}

#[test]
fn the_phone_cap_holds_in_the_window() {
    let relay = Relay::start(&["--max-phones", "2"]);
    let id = fresh_id("crowd");
    let (binary, _phone, _) = relay.pair(&id);
    end_and_wait(Ws::reset, binary, &id);
    let (second, second_id) = relay.registered_phone(&id);
    relay.phone(&id).expect_close(4429, "too many phones");
    second.drop_connection();
    events::wait("phone_unregistered", &[("conn_id", &second_id)]);
    relay.registered_phone(&id);
}

#[test]
fn a_stop_in_the_window_closes_the_phones() {
    let relay = Relay::start(&[]);
    let id = fresh_id("stop");
    let (binary, mut phone, _) = relay.pair(&id);
    end_and_wait(Ws::reset, binary, &id);
    relay.raise_stop();
    phone.expect_close(1001, "shutting down");
    drop(phone);
    relay.join();
}

#[test]
fn a_frame_for_a_session_of_an_earlier_relay_is_answered_with_a_notice_once() {
    let id = fresh_id("restart");
    let dead = {
        let relay = Relay::start(&[]);
        let (mut binary, mut phone, conn_id) = relay.pair(&id);
        assert_talk(&mut binary, &mut phone, &conn_id);
        conn_id
    };
    let relay = Relay::start(&[]);
    let mut binary = relay.binary(&id);
    let other = format!("client-{id}-00000000000000ff");
    for conn_id in [&dead, &other] {
        binary.send_text(&envelope(conn_id, "\"anybody?\""));
        assert_eq!(binary.read_text(), notice(conn_id, 1001));
    }
    for conn_id in [&dead, &other] {
        binary.send_text(&envelope(conn_id, "\"anybody?\""));
    }
    binary.sync();
    end_and_wait(Ws::reset, binary, &id);
    let mut binary = relay.binary(&id);
    binary.send_text(&envelope(&dead, "\"anybody?\""));
    assert_eq!(binary.read_text(), notice(&dead, 1001), "once on every connection");
}

#[test]
fn a_binary_that_answers_every_notice_with_a_frame_ends_in_silence() {
    let relay = Relay::start(&[]);
    let id = fresh_id("loop");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    assert_talk(&mut binary, &mut phone, &conn_id);
    close(phone);
    let stranger = format!("client-{id}-00000000000000ff");
    binary.send_text(&envelope(&stranger, "0"));
    for (conn_id, code) in [(&conn_id, 1000), (&stranger, 1001)] {
        assert_eq!(binary.read_text(), notice(conn_id, code));
        binary.send_text(&envelope(conn_id, "\"goodbye\""));
    }
    binary.sync();
}

#[test]
fn an_id_whose_notice_was_kept_in_the_window_is_not_answered_again() {
    let relay = Relay::start(&[]);
    let id = fresh_id("kept-notice");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    assert_talk(&mut binary, &mut phone, &conn_id);
    end_and_wait(Ws::reset, binary, &id);
    close(phone);
    // The frame is behind the head: it is handled before the notice is written.
    let frame = encode(true, TEXT, envelope(&conn_id, "0").as_bytes());
    let mut binary =
        Ws::upgrade_with(relay.address, &[binary_head(&id).as_bytes(), &frame].concat());
    assert_eq!(binary.read_text(), notice(&conn_id, 1000));
    binary.send_text(&envelope(&conn_id, "0"));
    binary.sync();
}

#[test]
fn no_other_envelope_for_an_unknown_id_is_answered() {
    let relay = Relay::start(&[]);
    let id = fresh_id("strange");
    let mut binary = relay.binary(&id);
    let (_other_binary, mut other_phone, other_id) = relay.pair(&fresh_id("strange"));
    let unknown = format!("client-{id}-00000000000000ff");
    for text in [
        notice(&unknown, 4401),
        notice(&unknown, 1001),
        format!(r#"{{"conn_id":"{unknown}","frame":1,"close_code":4401}}"#),
        format!(r#"{{"conn_id":"{unknown}"}}"#),
        format!(r#"{{"conn_id":"{unknown}","frame":1,"close_code":-1}}"#),
        envelope(&format!("client-{id}-00000000000000FF"), "1"),
        envelope(&format!("client-{id}-ff"), "1"),
        envelope(&format!("client-{id}-00000000000000fff"), "1"),
        envelope(&format!("server-{id}-000000ff"), "1"),
        envelope(&format!("client-{id}"), "1"),
        envelope("x", "1"),
        envelope(&other_id, "1"),
    ] {
        binary.send_text(&text);
    }
    binary.sync();
    other_phone.sync();
    binary.send_text(&envelope(&unknown, "1"));
    assert_eq!(binary.read_text(), notice(&unknown, 1001), "none of them used it up");
}

fn close(mut ws: Ws) {
    ws.send_close(1000, "");
    ws.expect_close(1000, "");
}

/// Ends a binary's connection and waits for its first grace window.
fn end_and_wait(end: fn(Ws), binary: Ws, id: &str) {
    end(binary);
    events::wait("server_released", &[("server_id", id)]);
}

/// A binary that stops reading in the middle of what ten phones send, one large message each. It knows
/// all of them, and has proved that.
fn stall_a_binary_of_many(relay: &Relay, id: &str) -> (Ws, Vec<(Ws, String)>) {
    let mut binary = relay.narrow_binary(id);
    let mut phones: Vec<_> = (0..10).map(|_| relay.registered_phone(id)).collect();
    for (phone, conn_id) in &mut phones {
        phone.send_text("\"hello\"");
        assert_eq!(binary.read_text(), envelope(conn_id, "\"hello\""));
        binary.prove();
    }
    for (number, (phone, _)) in phones.iter_mut().enumerate() {
        phone.send_text(&large(number));
        phone.sync();
    }
    (binary, phones)
}

/// Expects that the next connection gets the messages that the one before did not accept, in order; that the
/// phones of all others are closed, and those phones alone. Returns how many the one before had accepted.
fn expect_the_rest(binary: &mut Ws, phones: &mut [(Ws, String)]) -> usize {
    let message =
        |phones: &[(Ws, String)], number: usize| envelope(&phones[number].1, &large(number));
    // The relay is shown in time that their sessions are known.
    let (last, last_id) = phones.last_mut().unwrap();
    binary.send_text(&envelope(last_id, "\"back\""));
    assert_eq!(last.read_text(), "\"back\"");
    let first = binary.read_text();
    let accepted = (0..phones.len()).find(|number| first == message(phones, *number));
    let accepted = accepted.expect("one of the messages, whole");
    for number in accepted + 1..phones.len() {
        assert!(binary.read_text() == message(phones, number), "message {number}");
    }
    let (closed, kept) = phones.split_at_mut(accepted);
    let mut notices: Vec<_> = closed.iter().map(|_| binary.read_text()).collect();
    let mut expected: Vec<_> = closed.iter().map(|(_, conn_id)| notice(conn_id, 4404)).collect();
    notices.sort();
    expected.sort();
    assert_eq!(notices, expected);
    for (phone, _) in closed {
        phone.expect_close(4404, RECLAIMED);
    }
    for (phone, conn_id) in kept {
        assert_talk(binary, phone, conn_id);
    }
    accepted
}

/// A message that no socket takes at once.
fn large(number: usize) -> String {
    numbered(number, 200_000)
}

fn numbered(number: usize, length: usize) -> String {
    format!("\"{number}:{}\"", "x".repeat(length))
}

/// Messages and bytes that the socket of a binary's connection had accepted at its end.
fn written_to_binary(mark: usize, id: &str) -> (usize, usize) {
    let prefix = format!("server-{id}-");
    let closed = events::wait_prefix(mark, "connection_closed", "conn_id", &prefix);
    let number = |key| events::field(&closed, key).parse().unwrap();
    (number("messages_out"), number("bytes_out"))
}

/// A message each way, and nothing else before it.
fn assert_talk(binary: &mut Ws, phone: &mut Ws, conn_id: &str) {
    let text = format!("\"{}\"", fresh_id("talk"));
    phone.send_text(&text);
    assert_eq!(binary.read_text(), envelope(conn_id, &text));
    binary.send_text(&envelope(conn_id, &text));
    assert_eq!(phone.read_text(), text);
}
