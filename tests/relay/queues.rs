//! Queues, slow peers, memory: who is pushed back, who is closed, and what everybody else notices.

mod footprint;
mod memory;
mod to_binaries;
mod to_phones;

use std::io::{ErrorKind, Write as _};
use std::net::Ipv4Addr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::rig::ws::{TEXT, encode};
use crate::rig::{self, Address, Relay, Stream, Ws, envelope, events};

/// A connection of whose backlog the kernel takes in little, so that the relay soon notices when
/// its peer does not read.
fn narrow_from(source: Ipv4Addr, address: Address) -> Stream {
    rig::connect_narrowed(source, address, 8 * 1024)
}

/// A relay that gives a stalled peer all the time that a slow machine may need, unless `arguments`
/// say how much it gets: what is full is to decide, not how long that took.
fn patient(arguments: &[&str]) -> Relay {
    let mut all = arguments.to_vec();
    if !arguments.contains(&"--write-timeout") {
        all.extend(["--write-timeout", "1000s"]);
    }
    Relay::start(&all)
}

/// Lets the kernel take in more again: a narrow connection is slow to drain.
fn widen(ws: &Ws) {
    SockRef::from(&ws.stream).set_recv_buffer_size(1024 * 1024).unwrap();
}

/// An upgraded connection over a [`narrow`] one.
fn narrow_ws(address: Address, head: &str) -> Ws {
    narrow_ws_from(Ipv4Addr::LOCALHOST, address, head)
}

fn narrow_ws_from(source: Ipv4Addr, address: Address, head: &str) -> Ws {
    let mut stream = narrow_from(source, address);
    stream.write_all(head.as_bytes()).unwrap();
    Ws::after_request(stream)
}

/// A binary that holds `id` and does not take in much while it does not read.
fn narrow_binary(relay: &Relay, id: &str) -> Ws {
    narrow_ws(relay.address, &rig::binary_head(id))
}

/// A registered phone that does not take in much while it does not read, and its connection id.
fn narrow_phone(relay: &Relay, id: &str) -> (Ws, String) {
    narrow_phone_from(Ipv4Addr::LOCALHOST, relay, id)
}

fn narrow_phone_from(source: Ipv4Addr, relay: &Relay, id: &str) -> (Ws, String) {
    let seen = events::mark();
    let phone = narrow_ws_from(source, relay.address, &rig::phone_head(id));
    let line = events::wait_after(seen, "phone_registered", &[("server_id", id)]);
    (phone, events::field(&line, "conn_id"))
}

/// Makes the phone one that the binary has been sent a message of.
fn introduce(phone: &mut Ws, binary: &mut Ws, conn_id: &str) {
    phone.send_text("\"hello\"");
    assert_eq!(binary.read_text(), envelope(conn_id, "\"hello\""));
}

/// Message `number` of `length` bytes, a JSON string.
fn numbered(number: usize, length: usize) -> String {
    let text = format!("\"{number} ");
    format!("{text}{}\"", "x".repeat(length - text.len() - 1))
}

/// Reads ahead for `duration` at a pace of less than half of the kernel's low-water mark in each
/// 800 ms; returns how many bytes came.
fn read_slowly(ws: &mut Ws, duration: Duration) -> usize {
    let started = Instant::now();
    let mut read = 0;
    while started.elapsed() < rig::scaled(duration) {
        read += ws.read_ahead(2 * 1024);
        std::thread::sleep(rig::scaled(Duration::from_millis(60)));
    }
    read
}

/// Has the binary send `text` to a phone.
fn deliver(binary: &mut Ws, conn_id: &str, text: &str) {
    binary.send_raw(&encode(true, TEXT, envelope(conn_id, text).as_bytes()));
}

/// A round trip over a ping; what else the relay sends meanwhile is skipped.
fn settle(ws: &mut Ws) {
    ws.send_ping(b"settled");
    while ws.read().payload != b"settled" {}
}

/// A phone that floods its binary with numbered messages until it is pushed back.
struct Flooder {
    phone: Ws,
    /// Messages begun; with [`Self::finish`] that many and [`REST`] more.
    count: usize,
    unsent: Vec<u8>,
}

impl Flooder {
    /// Sends until the relay takes no more, through a whole row of round trips that `elsewhere`
    /// makes, each of which gives it the opportunity.
    fn new(phone: Ws, mut elsewhere: impl FnMut()) -> Self {
        let mut flooder = Self { phone, count: 0, unsent: Vec::new() };
        // A pong would wait for room like anything else, and get into the middle of a message.
        flooder.phone.answers_pings = false;
        flooder.phone.stream.set_nonblocking(true).unwrap();
        let mut idle = 0;
        while idle < IDLE_ROUND_TRIPS {
            if flooder.unsent.is_empty() {
                assert!(flooder.count * FLOOD_LENGTH < MOST_TAKEN, "nothing holds the phone back");
                flooder.unsent = encode(true, TEXT, flood(flooder.count).as_bytes());
                flooder.count += 1;
            }
            match flooder.phone.stream.write(&flooder.unsent) {
                Ok(taken) => {
                    flooder.unsent.drain(..taken);
                    idle = 0;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    elsewhere();
                    idle += 1;
                }
                Err(error) => panic!("{error} while the relay should only push back"),
            }
        }
        flooder.phone.stream.set_nonblocking(false).unwrap();
        flooder
    }

    /// Goes on as far as the relay takes it; returns how many messages it will have sent.
    fn finish(mut self) -> (usize, JoinHandle<Ws>) {
        let count = self.count + REST;
        let thread = std::thread::spawn(move || {
            self.phone.send_raw(&self.unsent);
            for number in self.count..count {
                self.phone.send_raw(&encode(true, TEXT, flood(number).as_bytes()));
            }
            self.phone.answers_pings = true;
            self.phone
        });
        (count, thread)
    }
}

/// Message `number` of a flood.
fn flood(number: usize) -> String {
    numbered(number, FLOOD_LENGTH)
}

const FLOOD_LENGTH: usize = 4000;
/// Messages that a flooder still has to send when it is no longer pushed back.
const REST: usize = 500;
/// What the relay's queue and the kernel's buffers on the way to it may take, generously.
const MOST_TAKEN: usize = 32 * 1024 * 1024;
const IDLE_ROUND_TRIPS: usize = 40;
