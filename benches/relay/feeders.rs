//! Attackers at both ends: binaries that feed phones of their own, which read nothing, or only now
//! and then.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::attacks::{Aim, attacker};
use super::crew::{Crew, Done, Notice, Reads};
use super::fleet::{binary_head, phone_head};
use super::frames::{TEXT, push_frame};

/// One phone after the other gets a queue of very many very small messages, and then reads them all.
pub fn queue_tables(aim: &Aim, _sources: u8, stop: &AtomicBool) -> io::Result<Done> {
    let mut crew = Crew::new(aim.port)?;
    let mut feeder = Feeder::join(&mut crew, "tables", attacker(0), 16);
    let mut current = 0;
    while !stop.load(Ordering::Relaxed) {
        let place = feeder.phones[current].place;
        if feeder.phones[current].batch.is_empty() {
            current = (current + 1) % feeder.phones.len();
        } else if feeder.phones[current].sent < TINY_MESSAGES {
            feeder.feed(&mut crew, current, TINY_A_BATCH);
        } else {
            match crew.sip(place, SIP) {
                Some(read) => feeder.phones[current].read += read,
                None => {
                    crew.lose(place, 0);
                    feeder.phones[current].forget();
                }
            }
            let phone = &mut feeder.phones[current];
            if phone.read >= phone.sent * TINY_ON_THE_WIRE {
                (phone.sent, phone.read) = (0, 0);
                current = (current + 1) % feeder.phones.len();
            }
        }
        feeder.turn(&mut crew, tiny_batch)?;
    }
    Ok(crew.done)
}

/// Phones that never read, and get as much as their binaries can send.
pub fn receivers(aim: &Aim, sources: u8, stop: &AtomicBool) -> io::Result<Done> {
    let mut crew = Crew::new(aim.port)?;
    let mut feeders: Vec<_> = (0..sources)
        .map(|number| Feeder::join(&mut crew, &format!("receivers-{number}"), attacker(number), 15))
        .collect();
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        for feeder in &mut feeders {
            for step in 0..feeder.phones.len() {
                let number = (next + step) % feeder.phones.len();
                if !feeder.phones[number].batch.is_empty() {
                    feeder.feed(&mut crew, number, 1);
                    break;
                }
            }
        }
        next += 1;
        turn_all(&mut crew, &mut feeders, large_batch)?;
    }
    Ok(crew.done)
}

/// A binary with its phones, all of one address.
struct Feeder {
    binary: usize,
    phones: Vec<Fed>,
}

struct Fed {
    place: usize,
    conn_id: String,
    /// Frames for it, once its binary knows it.
    batch: Vec<u8>,
    /// Messages for it, and bytes that it has read of them.
    sent: usize,
    read: usize,
}

impl Fed {
    fn forget(&mut self) {
        self.conn_id.clear();
        self.batch = Vec::new();
        (self.sent, self.read) = (0, 0);
    }
}

impl Feeder {
    fn join(crew: &mut Crew, name: &str, source: Ipv4Addr, phones: usize) -> Self {
        let binary = crew.add(source, binary_head(name).into_bytes(), Reads::All, Duration::ZERO);
        let phones = (0..phones).map(|_| {
            let head = phone_head(name).into_bytes();
            let place = crew.add(source, head, Reads::Nothing, PHONES_AFTER);
            Fed { place, conn_id: String::new(), batch: Vec::new(), sent: 0, read: 0 }
        });
        Self { binary, phones: phones.collect() }
    }

    fn feed(&mut self, crew: &mut Crew, number: usize, messages: usize) {
        if crew.is_free(self.binary) {
            crew.send(self.binary, &self.phones[number].batch);
            self.phones[number].sent += messages;
        }
    }

    fn turn(&mut self, crew: &mut Crew, batch: impl Fn(&str) -> Vec<u8>) -> io::Result<()> {
        turn_all(crew, std::slice::from_mut(self), batch)
    }

    /// An envelope from a phone of this binary: it has joined, or left.
    fn hear(&mut self, envelope: &Value, batch: impl Fn(&str) -> Vec<u8>) -> Option<usize> {
        let conn_id = envelope["conn_id"].as_str()?;
        if envelope["close_code"].is_u64() {
            let phone = self.phones.iter_mut().find(|phone| phone.conn_id == conn_id)?;
            phone.forget();
            return Some(phone.place);
        }
        let place = envelope["frame"].as_u64()?;
        let phone = self.phones.iter_mut().find(|phone| phone.place as u64 == place)?;
        phone.forget();
        phone.conn_id.push_str(conn_id);
        phone.batch = batch(conn_id);
        None
    }
}

/// A turn of everybody. A phone says its place as soon as it is let in.
fn turn_all(
    crew: &mut Crew,
    feeders: &mut [Feeder],
    batch: impl Fn(&str) -> Vec<u8>,
) -> io::Result<()> {
    let mut left = Vec::new();
    let mut greeting = Vec::new();
    crew.turn(IDLE, &mut |_, place, notice| match notice {
        Notice::Text(frame) => {
            let Some(feeder) = feeders.iter_mut().find(|feeder| feeder.binary == place) else {
                return;
            };
            let envelope = serde_json::from_slice(frame.plain()).unwrap_or_default();
            left.extend(feeder.hear(&envelope, &batch));
        }
        Notice::Open => greeting.push(place),
        Notice::Lost => {
            let mut phones = feeders.iter_mut().flat_map(|feeder| &mut feeder.phones);
            if let Some(phone) = phones.find(|phone| phone.place == place) {
                phone.forget();
            }
        }
    })?;
    for place in greeting {
        if feeders.iter().all(|feeder| feeder.binary != place) {
            let mut wire = Vec::new();
            push_frame(&mut wire, TEXT, &[place.to_string().as_bytes()]);
            crew.send(place, &wire);
        }
    }
    for place in left {
        crew.lose(place, 0);
    }
    Ok(())
}

fn tiny_batch(conn_id: &str) -> Vec<u8> {
    let envelope = format!(r#"{{"conn_id":"{conn_id}","frame":1}}"#);
    let mut wire = Vec::new();
    (0..TINY_A_BATCH).for_each(|_| push_frame(&mut wire, TEXT, &[envelope.as_bytes()]));
    wire
}

fn large_batch(conn_id: &str) -> Vec<u8> {
    let envelope = format!(r#"{{"conn_id":"{conn_id}","frame":"{}"}}"#, "x".repeat(LARGE));
    let mut wire = Vec::new();
    push_frame(&mut wire, TEXT, &[envelope.as_bytes()]);
    wire
}

/// With what each costs beside its byte, below what closes a phone that is too slow.
const TINY_MESSAGES: usize = 400_000;
const TINY_A_BATCH: usize = 1000;
/// A header and a digit.
const TINY_ON_THE_WIRE: usize = 3;
const LARGE: usize = 80_000;
const SIP: usize = 64 * 1024;
/// When phones dial: their binary is in by then.
const PHONES_AFTER: Duration = Duration::from_millis(200);
const IDLE: Duration = Duration::from_millis(1);
