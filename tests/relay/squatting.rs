//! What somebody who knows an id, or guesses at them, can make the relay and the others do.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyrycode_relay::limits::RECEIVE_BUFFER;

use crate::rig::ws::{self, Ws, is_timeout};
use crate::rig::{
    Address, Plain, Relay, Stream, binary_head, connect, connect_from, envelope, events, fresh_id,
    fresh_source, millis, phone_head,
};

/// A message each way.
fn assert_talk(binary: &mut Ws, phone: &mut Ws, conn_id: &str) {
    phone.send_text("\"up\"");
    assert_eq!(binary.read_text(), envelope(conn_id, "\"up\""));
    binary.send_text(&envelope(conn_id, "\"down\""));
    assert_eq!(phone.read_text(), "\"down\"");
}

/// Sends a request and returns the status of the answer, whatever comes of the connection.
fn status(stream: &mut Stream, head: &str) -> u16 {
    stream.write_all(head.as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).expect("an answer");
    std::str::from_utf8(&start[9..]).unwrap().parse().unwrap()
}

#[test]
fn a_flood_of_claims_costs_the_holder_one_ping_a_probe_and_other_ids_nothing() {
    let relay = Relay::start(&["--probe-timeout", "100s"]);
    let (id, other) = (fresh_id("squatted"), fresh_id("bystander"));
    let mut holder = relay.binary(&id);
    holder.answers_pings = false;
    let (mut phone, conn_id) = relay.registered_phone(&id);
    let (mut binary, mut their_phone, their_conn_id) = relay.pair(&other);
    // The first claim is upgraded and waits; all others are turned away before the upgrade.
    let _contender = Ws::upgrade(relay.address, &binary_head(&id));
    let probe = holder.read_frame();
    assert_eq!(probe.opcode, ws::PING);
    for number in 0..100 {
        let refused = status(&mut connect(relay.address), &binary_head(&id));
        assert_eq!(refused, 503, "claim {number}");
        if number % 10 == 0 {
            assert_talk(&mut binary, &mut their_phone, &their_conn_id);
        }
    }
    // Not one more ping in between: the next thing that the holder hears is its phone.
    phone.send_text("1");
    let next = holder.read_frame();
    assert_eq!((next.opcode, next.payload), (ws::TEXT, envelope(&conn_id, "1").into_bytes()));
    let (mut fresh, mut phone, conn_id) = relay.pair(&fresh_id("bystander"));
    assert_talk(&mut fresh, &mut phone, &conn_id);
}

#[test]
fn claims_one_after_the_other_all_lose_and_leave_no_trace_in_the_session() {
    let relay = Relay::start(&[]);
    let id = fresh_id("held");
    let (mut holder, mut phone, conn_id) = relay.pair(&id);
    for number in 1..=20 {
        let mut claim = relay.binary(&id);
        // Reading is what makes the holder answer its probe.
        let frame = holder.read_frame();
        assert_eq!(frame.opcode, ws::PING);
        claim.expect_close(4409, "server-id already claimed");
        let seen = events::count("server_id_conflict", &[("server_id", &id)]);
        assert_eq!(seen, number);
    }
    assert_talk(&mut holder, &mut phone, &conn_id);
    assert_eq!(relay.health(), (1, 1));
    assert_eq!(events::count("server_claimed", &[("server_id", &id)]), 1);
    assert_eq!(events::count("server_released", &[("server_id", &id)]), 0);
}

#[test]
fn a_probe_loop_for_ids_is_stopped_by_its_rate_and_registers_nothing() {
    let relay = Relay::plain(Plain::Answers, &["--rate-limit", "1/min", "--rate-burst", "10"]);
    let (guesser, owner) = (fresh_source(), fresh_source());
    let id = fresh_id("guessed");
    let mut binary = Ws::upgrade_from(owner, relay.address, &binary_head(&id));
    for number in 0..10 {
        let guess = phone_head(&fresh_id("guess"));
        let mut phone = Ws::upgrade_from(guesser, relay.address, &guess);
        phone.expect_close(4404, "no server with that id");
        assert_eq!(relay.health(), (1, 0), "guess {number}");
    }
    for _ in 0..30 {
        let mut stream = connect_from(guesser, relay.address);
        // Not even an id that is there.
        assert_eq!(status(&mut stream, &phone_head(&id)), 429);
    }
    let seen = events::mark();
    let mut phone = Ws::upgrade_from(owner, relay.address, &phone_head(&id));
    let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    assert_talk(&mut binary, &mut phone, &events::field(&line, "conn_id"));
}

#[test]
fn slots_of_one_source_are_bounded_by_its_attempts() {
    let options = ["--rate-limit", "1/min", "--rate-burst", "6", "--grace", "100s"];
    let relay = Relay::plain(Plain::Answers, &[&options[..], &["--max-connections", "8"]].concat());
    let squatter = fresh_source();
    // Each claim leaves a slot in grace, which counts against the connections.
    for _ in 0..6 {
        let id = fresh_id("left");
        let claim = Ws::upgrade_from(squatter, relay.address, &binary_head(&id));
        claim.drop_connection();
        events::wait("server_released", &[("server_id", &id)]);
    }
    for _ in 0..20 {
        let mut stream = connect_from(squatter, relay.address);
        assert_eq!(status(&mut stream, &binary_head(&fresh_id("left"))), 429);
    }
    let mut binary =
        Ws::upgrade_from(fresh_source(), relay.address, &binary_head(&fresh_id("owner")));
    binary.sync();
}

#[test]
fn sockets_that_stay_idle_are_answered_and_gone_after_the_header_timeout() {
    let relay = Relay::start(&["--header-timeout", &millis(300)]);
    let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("beside-idlers"));
    let mut idle: Vec<_> = (0..50).map(|_| connect(relay.address)).collect();
    assert_talk(&mut binary, &mut phone, &conn_id);
    for stream in &mut idle {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    assert_talk(&mut binary, &mut phone, &conn_id);
}

#[test]
fn upgraded_connections_that_stay_idle_fill_the_share_of_their_address_alone() {
    let options = ["--max-connections", "32", "--max-connections-per-ip", "16"];
    let relay = Relay::start(&options);
    let idler = fresh_source();
    let id = fresh_id("idled-at");
    let mut binary = Ws::upgrade_from(fresh_source(), relay.address, &binary_head(&id));
    let claims: Vec<_> = (0..16)
        .map(|_| Ws::upgrade_from(idler, relay.address, &binary_head(&fresh_id("idle"))))
        .collect();
    assert_eq!(status(&mut connect_from(idler, relay.address), &phone_head(&id)), 503);
    let seen = events::mark();
    let mut phone = Ws::upgrade_from(fresh_source(), relay.address, &phone_head(&id));
    let line = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    assert_talk(&mut binary, &mut phone, &events::field(&line, "conn_id"));
    drop(claims);
}

#[test]
fn an_idler_that_is_cut_off_does_not_take_a_lingering_answer_of_somebody_else_with_it() {
    let relay = Relay::start(&["--max-connections-per-ip", "2", "--header-timeout", "60s"]);
    let (idler, other) = (fresh_source(), fresh_source());
    let mut refused = connect_from(other, relay.address);
    assert_eq!(status(&mut refused, "GET /nowhere HTTP/1.1\r\nHost: relay\r\n\r\n"), 404);
    let mut idle: Vec<_> = (0..40).map(|_| connect_from(idler, relay.address)).collect();
    cut_off(&mut idle[..38]);
    let mut rest = String::new();
    refused.read_to_string(&mut rest).expect("the answer is whole and ends in order");
    assert!(rest.ends_with("\r\n\r\n"), "{rest}");
    let mut own = connect_from(Ipv4Addr::LOCALHOST, relay.address);
    assert_eq!(status(&mut own, "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n"), 200);
}

/// Bytes that the kernel has received for each connection at `address` and that nobody has read.
fn received_ahead(address: Address) -> Vec<usize> {
    const ESTABLISHED: &str = "01";
    let port = format!(":{:04X}", address.at.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[1].ends_with(&port) && row[3] == ESTABLISHED)
        .map(|row| usize::from_str_radix(row[4].split_once(':').unwrap().1, 16).unwrap())
        .collect()
}

#[test]
fn the_kernel_receives_little_ahead_for_phones_that_are_held_back() {
    const PHONES: usize = 16;
    let relay = Relay::start(&["--write-timeout", "1000s", "--max-phones", "16"]);
    let id = fresh_id("held-back");
    let mut binary = relay.binary(&id);
    let phones: Vec<_> = (0..PHONES).map(|_| relay.registered_phone(&id).0).collect();
    // While the binary reads, the kernel learns how fast they are.
    let known = Arc::new(AtomicUsize::new(0));
    let so_far = Arc::clone(&known);
    let reader = std::thread::spawn(move || {
        while so_far.load(Ordering::Relaxed) < PHONES {
            binary.read_text();
        }
        binary
    });
    let message = format!("\"{}\"", "x".repeat(80_000));
    let senders: Vec<_> = phones
        .into_iter()
        .map(|mut phone| {
            let (message, known) = (message.clone(), Arc::clone(&known));
            std::thread::spawn(move || {
                for _ in 0..25 {
                    phone.send_text(&message);
                }
                known.fetch_add(1, Ordering::Relaxed);
                phone.send_until_blocked(1_000, |_| message.clone());
                phone
            })
        })
        .collect();
    let _binary = reader.join().unwrap();
    let _phones: Vec<_> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
    let received = received_ahead(relay.address);
    let held_back = received.iter().filter(|bytes| **bytes > 0).count();
    assert!(held_back >= PHONES / 2, "{received:?}");
    assert!(received.iter().all(|bytes| *bytes <= 2 * RECEIVE_BUFFER), "{received:?}");
}

/// Expects that these connections end without an answer.
fn cut_off(streams: &mut [Stream]) {
    for stream in streams {
        match stream.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if !is_timeout(&error) => {}
            other => panic!("{other:?} instead of the end"),
        }
    }
}
