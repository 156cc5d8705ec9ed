//! Claiming a server-id: the first wins, a silent holder loses, a loser owns nothing. Where time decides:
//! `tests/simulation/claims.rs`.

use std::io::{Read as _, Write as _};

use crate::rig::events::{self, Event};
use crate::rig::ws::{PING, PONG, TEXT, encode};
use crate::rig::{Relay, Ws, binary_head, connect, envelope, fresh_id, notice, phone_head};

/// Long enough that no test waits for it: what happens sooner has another reason.
const NEVER: &str = "10m";

#[test]
fn a_valid_upgrade_claims_the_server_id() {
    let relay = Relay::start(&[]);
    let id = fresh_id("claim");
    let seen = events::mark();
    assert_eq!(relay.health(), (0, 0));
    let mut binary = relay.binary(&id);
    let claimed = events::wait("server_claimed", &[("server_id", &id)]);
    assert_fields(
        &claimed,
        &[("server_id", &id), ("binary_version", "9.9.9-test"), ("remote", "127.0.0.1")],
    );
    let prefix = format!("server-{id}-");
    let opened = events::wait_prefix(seen, "connection_opened", "conn_id", &prefix);
    assert_hex(events::field(&opened, "conn_id").strip_prefix(&prefix).unwrap(), 8);
    binary.sync();
    assert_eq!(relay.health(), (1, 0));
    relay.registered_phone(&id);
}

#[test]
fn every_connection_of_a_binary_has_a_connection_id_of_its_own() {
    let relay = Relay::start(&[]);
    let id = fresh_id("serial");
    let prefix = format!("server-{id}-");
    let mut suffixes = Vec::new();
    for round in 1..=4 {
        let seen = events::mark();
        let binary = relay.binary(&id);
        let opened = events::wait_prefix(seen, "connection_opened", "conn_id", &prefix);
        suffixes.push(events::field(&opened, "conn_id"));
        binary.drop_connection();
        events::wait_nth(0, "server_released", &[("server_id", &id)], round);
    }
    suffixes.sort();
    suffixes.dedup();
    assert_eq!(suffixes.len(), 4);
}

#[test]
fn a_phone_is_registered_under_an_id_of_its_own_that_the_binary_sees() {
    let relay = Relay::start(&[]);
    let id = fresh_id("phone");
    let mut binary = relay.binary(&id);
    let seen = events::mark();
    let mut phone = relay.phone(&id);
    let registered = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    let conn_id = events::field(&registered, "conn_id");
    assert_fields(
        &registered,
        &[
            ("server_id", &id),
            ("conn_id", &conn_id),
            ("device_name", "test device"),
            ("remote", "127.0.0.1"),
        ],
    );
    assert_hex(conn_id.strip_prefix(&format!("client-{id}-")).unwrap(), 16);
    let (mut other, other_id) = relay.registered_phone(&id);
    assert_ne!(conn_id, other_id);
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
    other.send_text("2");
    assert_eq!(binary.read_text(), envelope(&other_id, "2"));
    assert_eq!(relay.health(), (1, 2));
}

#[test]
fn a_reload_ends_the_claim_of_a_server_id_that_the_allow_list_no_longer_names() {
    let (removed, kept) = (fresh_id("removed"), fresh_id("kept"));
    let list = std::env::temp_dir().join(fresh_id(&format!("claims-{}", std::process::id())));
    std::fs::write(&list, format!("{removed}\n{kept}\n")).unwrap();
    let relay = Relay::start(&["--allow-server", list.to_str().unwrap()]);
    let mut revoked = relay.binary(&removed);
    let (mut binary, mut phone, conn_id) = relay.pair(&kept);
    std::fs::write(&list, &kept).unwrap();
    relay.reload();
    revoked.expect_close(1008, "server-id not allowed");
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
    std::fs::remove_file(list).unwrap();
}

#[test]
fn a_phone_without_a_device_name_is_registered_with_an_empty_one() {
    let relay = Relay::start(&[]);
    let id = fresh_id("nameless");
    let _binary = relay.binary(&id);
    let head = phone_head(&id).replace("X-Pyrycode-Device-Name: test device\r\n", "");
    let mut phone = Ws::upgrade(relay.address, &head);
    phone.sync();
    let registered = events::wait("phone_registered", &[("server_id", &id)]);
    assert_eq!(events::field(&registered, "device_name"), "");
}

#[test]
fn a_phone_that_finds_no_binary_is_told_so_and_is_not_registered() {
    let relay = Relay::start(&[]);
    let id = fresh_id("nobody");
    relay.phone(&id).expect_close(4404, "no server with that id");
    let event = events::wait("phone_register_no_server", &[("server_id", &id)]);
    assert_fields(&event, &[("server_id", &id), ("remote", "127.0.0.1")]);
    assert_eq!(events::count("phone_registered", &[("server_id", &id)]), 0);
    assert_eq!(events::count("phone_unregistered", &[("server_id", &id)]), 0);
    assert_eq!(relay.health(), (0, 0));
}

#[test]
fn a_phone_that_leaves_is_logged_with_the_reason() {
    let relay = Relay::start(&[]);
    let id = fresh_id("leaves");
    let mut binary = relay.binary(&id);
    let mut check = |reason: &str, end: &dyn Fn(&mut Ws, Ws, &str)| {
        let (phone, conn_id) = relay.registered_phone(&id);
        end(&mut binary, phone, &conn_id);
        let event = events::wait("phone_unregistered", &[("conn_id", &conn_id)]);
        assert_fields(&event, &[("server_id", &id), ("conn_id", &conn_id), ("reason", reason)]);
    };
    check("closed by peer (4000)", &|_, mut phone, _| {
        phone.send_close(4000, "bye");
        phone.expect_close_code(4000);
    });
    check("connection lost", &|_, phone, _| phone.reset());
    check("closed by binary (4401)", &|binary, mut phone, conn_id| {
        binary.send_text(&notice(conn_id, 4401));
        phone.expect_close(4401, "");
    });
    check("invalid JSON", &|_, mut phone, _| {
        phone.send_text("{");
        phone.expect_close_code(1007);
    });
    binary.sync();
    assert_eq!(relay.health(), (1, 0));
    assert_eq!(events::count("phone_unregistered", &[("server_id", &id)]), 4, "each one once");
}

#[test]
fn a_second_claim_loses_against_a_holder_that_answers() {
    let relay = Relay::start(&["--probe-timeout", NEVER]);
    let id = fresh_id("conflict");
    let (mut holder, mut phone, conn_id) = relay.pair(&id);
    let (mut newcomer, payload) = contest(&relay, &id, &mut holder);
    holder.send_frame(true, PONG, &payload);
    newcomer.expect_close(4409, "server-id already claimed");
    let event = events::wait("server_id_conflict", &[("server_id", &id)]);
    assert_fields(&event, &[("server_id", &id), ("remote", "127.0.0.1")]);
    assert_eq!(events::count("server_claimed", &[("server_id", &id)]), 1);
    assert_eq!(events::count("server_id_takeover", &[("server_id", &id)]), 0);
    assert_talk(&mut holder, &mut phone, &conn_id);
    assert_eq!(relay.health(), (1, 1));
}

#[test]
fn messages_pass_between_holder_and_phones_while_the_holder_is_probed() {
    let relay = Relay::start(&["--probe-timeout", NEVER]);
    let id = fresh_id("busy");
    let (mut holder, mut phone, conn_id) = relay.pair(&id);
    let (_newcomer, _) = contest(&relay, &id, &mut holder);
    assert_talk(&mut holder, &mut phone, &conn_id);
    let (mut late, late_id) = relay.registered_phone(&id);
    assert_talk(&mut holder, &mut late, &late_id);
}

#[test]
fn nothing_that_a_loser_sends_reaches_a_phone() {
    let relay = Relay::start(&["--probe-timeout", NEVER]);
    let id = fresh_id("injection");
    let (mut holder, mut phone, conn_id) = relay.pair(&id);
    holder.answers_pings = false;
    let early = encode(true, TEXT, envelope(&conn_id, "\"early\"").as_bytes());
    let head = [binary_head(&id).as_bytes(), &early].concat();
    let mut newcomer = Ws::upgrade_with(relay.address, &head);
    let payload = read_probe(&mut holder);
    newcomer.send_text(&notice(&conn_id, 4401));
    holder.send_frame(true, PONG, &payload);
    newcomer.expect_close(4409, "server-id already claimed");
    assert_talk(&mut holder, &mut phone, &conn_id);
}

#[test]
fn what_a_newcomer_sends_during_the_probe_waits_in_its_socket_and_is_not_lost() {
    let relay = Relay::start(&["--probe-timeout", NEVER]);
    let id = fresh_id("pressing");
    let (mut holder, mut phone, conn_id) = relay.pair(&id);
    let (mut newcomer, _) = contest(&relay, &id, &mut holder);
    let frame = |number| format!("\"{number}:{}\"", "x".repeat(32 * 1024));
    let most = 1024;
    let (begun, rest) =
        newcomer.send_until_blocked(most, |number| envelope(&conn_id, &frame(number)));
    assert!(begun < most, "the relay took {begun} messages from a binary that only claims");
    holder.reset();
    let sender = std::thread::spawn(move || {
        newcomer.send_raw(&rest);
        newcomer
    });
    for number in 0..begun {
        assert!(phone.read_text() == frame(number), "message {number}");
    }
    assert_talk(&mut sender.join().unwrap(), &mut phone, &conn_id);
}

#[test]
fn a_third_claim_during_a_probe_is_refused_before_the_upgrade() {
    let relay = Relay::start(&["--probe-timeout", NEVER]);
    let id = fresh_id("third");
    let (mut holder, mut phone, conn_id) = relay.pair(&id);
    let (mut newcomer, payload) = contest(&relay, &id, &mut holder);
    for _ in 0..3 {
        let (head, body) = relay.request(binary_head(&id));
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(head.contains("\r\nContent-Length: 0\r\n"), "{head}");
        assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
        let retry = head.split("\r\nRetry-After: ").nth(1).expect("a Retry-After");
        assert!(retry.split("\r\n").next().unwrap().parse::<u32>().unwrap() >= 1, "{head}");
        assert_eq!(body, "");
    }
    relay.binary(&fresh_id("elsewhere")).sync();
    holder.send_frame(true, PONG, &payload);
    newcomer.expect_close(4409, "server-id already claimed");
    assert_eq!(events::count("server_id_conflict", &[("server_id", &id)]), 1);
    assert_talk(&mut holder, &mut phone, &conn_id);

    let (mut later, fresh) = contest(&relay, &id, &mut holder);
    assert_ne!(payload, fresh, "a claim after the probe is probed anew");
    holder.send_frame(true, PONG, &fresh);
    later.expect_close(4409, "server-id already claimed");
    assert_talk(&mut holder, &mut phone, &conn_id);
}

#[test]
fn a_claim_that_is_refused_during_a_probe_takes_no_connection_while_it_lingers() {
    let relay = Relay::start(&["--probe-timeout", NEVER, "--max-connections", "3"]);
    let id = fresh_id("lingering");
    let mut holder = relay.binary(&id);
    let (_newcomer, _) = contest(&relay, &id, &mut holder);
    let mut refused = connect(relay.address);
    refused.write_all(binary_head(&id).as_bytes()).unwrap();
    let mut response = String::new();
    // To the end of what the relay says; the other way stays open.
    refused.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    relay.phone(&id).sync();
}

#[test]
fn a_stop_during_a_probe_closes_the_newcomer_too() {
    let relay = Relay::start(&["--probe-timeout", NEVER]);
    let id = fresh_id("stopped");
    let mut holder = relay.binary(&id);
    let (mut newcomer, _) = contest(&relay, &id, &mut holder);
    relay.raise_stop();
    newcomer.expect_close(1001, "shutting down");
    holder.expect_close(1001, "shutting down");
    drop((newcomer, holder));
    relay.join();
    assert_eq!(events::count("server_claimed", &[("server_id", &id)]), 1);
}

#[test]
fn a_slot_that_survived_a_conflict_is_claimed_at_once_when_its_holder_is_gone() {
    let relay = Relay::start(&["--probe-timeout", NEVER]);
    let id = fresh_id("afterwards");
    let (mut holder, mut phone, conn_id) = relay.pair(&id);
    let (mut loser, payload) = contest(&relay, &id, &mut holder);
    holder.send_frame(true, PONG, &payload);
    loser.expect_close(4409, "server-id already claimed");
    holder.reset();
    events::wait("server_released", &[("server_id", &id)]);
    let mut next = relay.binary(&id);
    assert_talk(&mut next, &mut phone, &conn_id);
}

#[test]
fn server_ids_are_compared_byte_for_byte() {
    let relay = Relay::start(&[]);
    let id = fresh_id("case");
    let mut ends: Vec<_> = [id.clone(), id.to_uppercase(), format!("{id}-"), format!("{id}-{id}")]
        .iter()
        .map(|id| relay.pair(id))
        .collect();
    assert_eq!(relay.health(), (4, 4));
    for (binary, phone, conn_id) in &mut ends {
        assert_talk(binary, phone, conn_id);
    }
    // An id of a neighbour's phone, however alike, is nobody's here.
    let neighbours = ends[3].2.clone();
    ends[0].0.send_text(&envelope(&neighbours, "\"stray\""));
    ends[0].0.sync();
    let (binary, phone, conn_id) = &mut ends[3];
    assert_talk(binary, phone, conn_id);
}

#[test]
fn a_server_id_of_odd_characters_claims_routes_and_is_escaped() {
    let relay = Relay::start(&[]);
    let unique = fresh_id("odd");
    let odd = [
        format!("\"{unique}\""),
        format!("&{unique}&amp;<>"),
        format!("\\{unique}\\u0041\\"),
        format!("{{{unique}:[]}}'`~!@#$%^*()=+|;,.?/"),
        format!("{unique}{}", "\"".repeat(128 - unique.len())),
    ];
    for id in &odd {
        let (mut binary, mut phone, conn_id) = relay.pair(id);
        assert!(conn_id.starts_with(&format!("client-{id}-")), "{conn_id}");
        let claimed = events::wait("server_claimed", &[("server_id", id)]);
        assert_eq!(events::field(&claimed, "binary_version"), "9.9.9-test");
        let written = serde_json::to_string(&conn_id).unwrap();
        phone.send_text("1");
        let text = binary.read_text();
        assert_eq!(text, format!("{{\"conn_id\":{written},\"frame\":1}}"));
        // As Go writes it, and as nobody does.
        let escaped =
            written.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e");
        let all: String = conn_id.bytes().map(|byte| format!("\\u{byte:04X}")).collect();
        for conn_id in [written.clone(), escaped, format!("\"{all}\"")] {
            binary.send_text(&format!("{{\"conn_id\":{conn_id},\"frame\":[\"back\"]}}"));
            assert_eq!(phone.read_text(), "[\"back\"]");
        }
        phone.send_close(1000, "");
        phone.expect_close(1000, "");
        let text = binary.read_text();
        assert_eq!(text, format!("{{\"conn_id\":{written},\"close_code\":1000}}"));
    }
}

/// A second claim whose probe the holder has got and not answered; the payload is the answer.
fn contest(relay: &Relay, id: &str, holder: &mut Ws) -> (Ws, Vec<u8>) {
    holder.answers_pings = false;
    let newcomer = relay.binary(id);
    (newcomer, read_probe(holder))
}

fn read_probe(holder: &mut Ws) -> Vec<u8> {
    let probe = holder.read_besides_proofs();
    assert_eq!(probe.opcode, PING, "{probe:?}");
    assert!(!probe.payload.is_empty());
    probe.payload
}

/// A message each way, and nothing else before it.
fn assert_talk(binary: &mut Ws, phone: &mut Ws, conn_id: &str) {
    let text = format!("\"{}\"", fresh_id("talk"));
    phone.send_text(&text);
    assert_eq!(binary.read_text(), envelope(conn_id, &text));
    binary.send_text(&envelope(conn_id, &text));
    assert_eq!(phone.read_text(), text);
}

/// Exactly these fields, in this order.
fn assert_fields(event: &Event, expected: &[(&str, &str)]) {
    let fields: Vec<_> =
        event.fields.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(fields, expected, "{}", event.name);
}

fn assert_hex(digits: &str, count: usize) {
    assert_eq!(digits.len(), count, "{digits}");
    assert!(digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{digits}");
}
