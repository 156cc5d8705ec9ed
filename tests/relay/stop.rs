//! The stop: everybody is told, and what is queued goes first. That nobody can delay it:
//! `tests/simulation/stop.rs`.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use pyrycode_relay::limits::HEADS_AT_STOP;

use crate::rig::ws;
use crate::rig::{
    Relay, Stream, binary_head, connect, deadline, envelope, events, fresh_id, large_message,
    notice, phone_head, scaled,
};

#[test]
fn a_stop_closes_everyone_with_1001_and_returns_when_all_have_answered() {
    let relay = Relay::start(&["--drain-timeout", "100s"]);
    let (id, orphaned) = (fresh_id("stop"), fresh_id("stop-in-grace"));
    let (binary, phone, _) = relay.pair(&id);
    let (gone, waiting, _) = relay.pair(&orphaned);
    gone.drop_connection();
    events::wait("server_released", &[("server_id", &orphaned)]);
    let (late, _) = relay.registered_phone(&orphaned);
    let raised = Instant::now();
    relay.raise_stop();
    for mut peer in [binary, phone, waiting, late] {
        let frame = peer.read();
        assert_eq!(frame.opcode, ws::CLOSE);
        assert_eq!(frame.payload, [&1001_u16.to_be_bytes()[..], b"shutting down"].concat());
        peer.send_close(1001, "");
        peer.expect_end();
    }
    relay.join();
    assert!(
        raised.elapsed() < scaled(Duration::from_millis(50_000)),
        "it waits for nobody who has answered"
    );
}

#[test]
fn what_was_queued_for_a_phone_before_the_stop_is_delivered_first() {
    let relay = Relay::start(&["--drain-timeout", "100s"]);
    let id = fresh_id("last-words");
    let mut binary = relay.binary(&id);
    let (mut phone, conn_id) = relay.narrow_phone(&id);
    for number in 0..40 {
        binary.send_text(&envelope(&conn_id, &large_message(number)));
    }
    binary.sync();
    relay.raise_stop();
    binary.expect_close(1001, "shutting down");
    for number in 0..40 {
        assert_eq!(phone.read_text(), large_message(number));
    }
    phone.expect_close(1001, "shutting down");
}

#[test]
fn what_was_queued_for_a_binary_before_the_stop_is_delivered_first() {
    let relay = Relay::start(&["--drain-timeout", "100s"]);
    let id = fresh_id("last-words-up");
    let mut binary = relay.narrow_binary(&id);
    events::wait("server_claimed", &[("server_id", &id)]);
    let (mut phone, conn_id) = relay.registered_phone(&id);
    for number in 0..8 {
        phone.send_text(&large_message(number));
    }
    phone.sync();
    relay.raise_stop();
    phone.expect_close(1001, "shutting down");
    for number in 0..8 {
        assert_eq!(binary.read_text(), envelope(&conn_id, &large_message(number)));
    }
    assert_eq!(binary.read_text(), notice(&conn_id, 1001));
    binary.expect_close(1001, "shutting down");
}

#[test]
fn connections_are_refused_after_the_stop() {
    let relay = Relay::start(&["--drain-timeout", "100s"]);
    let address = relay.address;
    let (mut binary, mut phone, _) = relay.pair(&fresh_id("closed-door"));
    relay.raise_stop();
    assert_eq!(phone.read().opcode, ws::CLOSE);
    // A program that another test is just starting has a copy of the listening socket for a moment.
    let until = Instant::now() + deadline();
    let refused = loop {
        match TcpStream::connect(address.at) {
            Err(error) => break error,
            Ok(_) => assert!(Instant::now() < until, "the relay listens still"),
        }
    };
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    phone.send_close(1001, "");
    assert_eq!(binary.read().opcode, ws::CLOSE);
    binary.send_close(1001, "");
    relay.join();
}

/// Requests whose heads are complete only after the relay has begun to stop.
pub struct LateRequests(Vec<(Stream, String)>);

impl LateRequests {
    pub fn begin(relay: &Relay, heads: &[String]) -> Self {
        let begun = heads.iter().map(|head| {
            let mut stream = connect(relay.address);
            let (first, rest) = head.split_at(12);
            stream.write_all(first.as_bytes()).unwrap();
            (stream, rest.to_owned())
        });
        let begun = begun.collect();
        // Answered: what connected before it has been accepted.
        relay.health();
        Self(begun)
    }

    /// The answers; none where this machine took longer than a relay that stops waits for them.
    pub fn complete(mut self, stopped: Instant) -> Option<Vec<String>> {
        let answers = self.write_and_read();
        if let Err(error) = &answers {
            assert!(stopped.elapsed() >= HEADS_AT_STOP, "{error}");
        }
        answers.ok()
    }

    fn write_and_read(&mut self) -> io::Result<Vec<String>> {
        for (stream, rest) in &mut self.0 {
            stream.write_all(rest.as_bytes())?;
        }
        let answers = self.0.iter_mut().map(|(stream, _)| {
            let mut answer = String::new();
            match stream.read_to_string(&mut answer)? {
                0 => Err(ErrorKind::UnexpectedEof.into()),
                _ => Ok(answer),
            }
        });
        answers.collect()
    }
}

#[test]
fn a_request_on_its_way_at_a_stop_is_answered_and_not_upgraded_any_more() {
    let answers = loop {
        let relay = Relay::start(&["--drain-timeout", "100s"]);
        let id = fresh_id("late");
        let mut binary = relay.binary(&id);
        let health = "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n".to_owned();
        let heads = [phone_head(&id), binary_head(&fresh_id("late")), binary_head(&id), health];
        let late = LateRequests::begin(&relay, &heads);
        binary.sync();
        let stopped = Instant::now();
        relay.raise_stop();
        assert_eq!(binary.read().opcode, ws::CLOSE);
        let answers = late.complete(stopped);
        drop(binary);
        // Nothing is left to wait for.
        let raised = Instant::now();
        relay.join();
        assert!(raised.elapsed() < scaled(Duration::from_millis(50_000)));
        if let Some(answers) = answers {
            break answers;
        }
    };
    for (answer, status) in answers.iter().zip(["503", "503", "503", "200"]) {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(answer.contains("\r\nRetry-After: "), status == "503", "{answer}");
    }
}
