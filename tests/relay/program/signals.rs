//! How the program is stopped, for good and for a while.

use std::time::{Duration, Instant};

use pyrycode_relay::limits::STOP_AGAIN;

use super::{Line, Running};
use crate::rig::ws::{self, Ws};
use crate::rig::{envelope, millis, scaled};

#[test]
fn either_signal_closes_everyone_with_1001_and_exits_with_0() {
    for name in ["TERM", "INT"] {
        let relay = Running::start(&["--drain-timeout", &millis(100_000)]);
        let (mut binary, mut phone, _) = relay.pair("signalled");
        relay.signal(name);
        for peer in [&mut binary, &mut phone] {
            let frame = peer.read();
            assert_eq!(frame.opcode, ws::CLOSE);
            assert_eq!(frame.payload, [&1001_u16.to_be_bytes()[..], b"shutting down"].concat());
            peer.send_close(1001, "");
            peer.expect_end();
        }
        let (code, log) = relay.wait_for_end();
        assert_eq!(code, Some(0), "{log:#?}");
        assert!(log.iter().any(|line| Line::parse(line).is("stopped")), "{log:#?}");
    }
}

#[test]
fn a_signal_is_obeyed_in_time_even_with_peers_that_never_answer() {
    let relay =
        Running::start(&["--drain-timeout", &millis(500), "--write-timeout", &millis(100_000)]);
    let (mut silent, mut deaf, conn_id) = relay.pair("never-answers");
    flood(&mut silent, &conn_id);
    let signalled = Instant::now();
    relay.signal("TERM");
    let (code, log) = relay.wait_for_end();
    let elapsed = signalled.elapsed();
    assert_eq!(code, Some(0), "{log:#?}");
    assert!(elapsed < scaled(Duration::from_secs(5)), "{elapsed:?}");
    silent.expect_close(1001, "shutting down");
    deaf.expect_gone();
}

#[test]
fn a_second_signal_exits_at_once_with_1() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM"), ("TERM", "INT")] {
        let relay = Running::start(&[
            "--drain-timeout",
            &millis(100_000),
            "--write-timeout",
            &millis(100_000),
        ]);
        let (mut binary, _deaf, conn_id) = relay.pair("impatient");
        flood(&mut binary, &conn_id);
        relay.signal(first);
        relay.wait("stopping");
        // Not for an event: an earlier signal would be the same stop.
        std::thread::sleep(STOP_AGAIN);
        relay.signal(second);
        let (code, log) = relay.wait_for_end();
        assert_eq!(code, Some(1), "{log:#?}");
    }
}

#[test]
fn two_signals_at_once_are_one_stop() {
    for _ in 0..5 {
        let relay = Running::start(&["--drain-timeout", &millis(100_000)]);
        let (mut binary, mut phone, _) = relay.pair("twice");
        relay.signals(&["TERM", "TERM", "INT"]);
        for peer in [&mut binary, &mut phone] {
            peer.expect_close(1001, "shutting down");
            peer.send_close(1001, "");
            peer.expect_end();
        }
        let (code, log) = relay.wait_for_end();
        assert_eq!(code, Some(0), "{log:#?}");
    }
}

#[test]
fn a_storm_of_other_signals_costs_no_stop() {
    let relay = Running::start(&[]);
    let (mut binary, mut phone, _) = relay.pair("storm");
    relay.signal("STOP");
    // More than the queue for signals holds.
    for name in ["USR1", "USR2"] {
        relay.signals(&[name; 400]);
    }
    relay.signal("TERM");
    relay.signal("CONT");
    for peer in [&mut binary, &mut phone] {
        peer.expect_close(1001, "shutting down");
        peer.send_close(1001, "");
    }
    let (code, log) = relay.wait_for_end();
    assert_eq!(code, Some(0), "{log:#?}");
}

#[test]
fn the_signals_for_users_end_nothing() {
    let relay = Running::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.pair("user-signals");
    relay.signals(&["USR1", "USR2"]);
    relay.wait("upgraded");
    phone.send_text("1");
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
    relay.signal("TERM");
    binary.expect_close(1001, "shutting down");
}

#[test]
fn an_answer_to_a_probe_that_came_while_the_program_stood_still_counts() {
    let timeout = 1000;
    let relay = Running::start(&["--probe-timeout", &millis(timeout)]);
    let mut holder = relay.binary("stood-still");
    let mut newcomer = relay.binary("stood-still");
    let ping = holder.read_frame();
    assert_eq!(ping.opcode, ws::PING);
    relay.signal("STOP");
    holder.send_frame(true, ws::PONG, &ping.payload);
    // Not for an event: the time has to pass that the newcomer is to wait.
    std::thread::sleep(scaled(Duration::from_millis(timeout)));
    relay.signal("CONT");
    newcomer.expect_close(4409, "server-id already claimed");
    holder.sync();
}

/// Sends more than a connection's buffers hold to a phone that does not read.
fn flood(binary: &mut Ws, conn_id: &str) {
    let frame = format!("\"{}\"", "x".repeat(100_000));
    for _ in 0..100 {
        binary.send_text(&envelope(conn_id, &frame));
    }
    binary.sync();
}
