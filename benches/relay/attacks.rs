//! What a relay is attacked with in `siege`. No attacker has more than it may have of a relay with
//! default options: connections, attempts, bytes of a message.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::crew::{Crew, Done, Reads};
use super::feeders;
use super::fleet::binary_head;
use super::frames::{CONTINUATION, Header, TEXT, encode, push_frame};

/// One attack.
pub struct Attack {
    pub name: &'static str,
    /// Addresses that the attackers have.
    pub sources: u8,
    /// Whether it needs a relay that listens for TLS.
    #[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "no attack is over TLS"))]
    pub over_tls: bool,
    pub run: fn(&Aim, u8, &AtomicBool) -> io::Result<Done>,
}

/// Where the relay is.
pub struct Aim {
    pub port: u16,
    /// Its port for TLS, and a `ClientHello` that it answers.
    #[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "no attack is over TLS"))]
    pub tls: Option<(u16, Vec<u8>)>,
}

pub const ATTACKS: &[Attack] = &[
    Attack { name: "queue tables", sources: 1, over_tls: false, run: feeders::queue_tables },
    Attack { name: "announced", sources: 14, over_tls: false, run: announced },
    Attack { name: "holders", sources: 7, over_tls: false, run: holders },
    Attack { name: "receivers", sources: 4, over_tls: false, run: feeders::receivers },
    #[cfg(feature = "tls")]
    Attack { name: "stalled hellos", sources: 4, over_tls: true, run: stalled_hellos },
    #[cfg(feature = "tls")]
    Attack { name: "handshakes", sources: 1, over_tls: true, run: handshakes },
    Attack { name: "heads", sources: 8, over_tls: false, run: heads },
    Attack { name: "fragments", sources: 14, over_tls: false, run: fragments },
];

/// An attacker's address.
pub fn attacker(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, 1 + number)
}

/// Binaries announce nearly the largest message and send 14 bytes of it.
fn announced(aim: &Aim, sources: u8, stop: &AtomicBool) -> io::Result<Done> {
    let mut begun = Header { first: FINAL | TEXT, length: ANNOUNCED, mask: Some(MASK) }.encode();
    begun.extend([b'x'; 14]);
    let crew = binaries(aim, sources, ANNOUNCERS_EACH, Reads::All)?;
    scripted(crew, stop, &|_, step| (step == 0).then(|| begun.clone()))
}

/// Binaries hold as much as they can: answers that they do not read, and most of a message.
fn holders(aim: &Aim, sources: u8, stop: &AtomicBool) -> io::Result<Done> {
    let crew = binaries(aim, sources, CONNECTIONS_EACH, Reads::Nothing)?;
    let half = vec![b'x'; HALF_PIECE];
    scripted(crew, stop, &|place, step| {
        let mut wire = Vec::new();
        match step.checked_sub(UNKNOWN_STEPS) {
            None => {
                for number in step * UNKNOWN_A_STEP..(step + 1) * UNKNOWN_A_STEP {
                    let name = binary_name(place);
                    let envelope =
                        format!(r#"{{"conn_id":"client-{name}-{number:016x}","frame":0}}"#);
                    push_frame(&mut wire, TEXT, &[envelope.as_bytes()]);
                }
            }
            Some(0) => {
                Header { first: FINAL | TEXT, length: ANNOUNCED, mask: Some(MASK) }.push(&mut wire);
            }
            Some(1..=HALF_PIECES) => wire.extend_from_slice(&half),
            Some(_) => return None,
        }
        Some(wire)
    })
}

/// Binaries send most of a message in fragments of odd sizes, and stop somewhere in one.
fn fragments(aim: &Aim, sources: u8, stop: &AtomicBool) -> io::Result<Done> {
    let crew = binaries(aim, sources, CONNECTIONS_EACH, Reads::All)?;
    let (mut script, mut payload) = (Vec::new(), 0);
    for (number, size) in ODD_SIZES.iter().copied().cycle().enumerate() {
        if payload + size > FRAGMENTED_BYTES {
            break;
        }
        let opcode = if number == 0 { TEXT } else { CONTINUATION };
        script.extend(encode(false, opcode, &vec![b'x'; size]));
        payload += size;
    }
    scripted(crew, stop, &|place, step| {
        let end = script.len() - place * 7919 % (64 * 1024);
        let piece = script[..end].chunks(PIECE).nth(step)?;
        Some(piece.to_vec())
    })
}

/// Request heads that are never completed, from each address as many as it may have in progress.
fn heads(aim: &Aim, sources: u8, stop: &AtomicBool) -> io::Result<Done> {
    let head =
        format!("GET /v1/server HTTP/1.1\r\nHost: relay\r\nX-Fill: {}", "x".repeat(HEAD_BYTES));
    let mut crew = Crew::new(aim.port)?;
    add_to_all(&mut crew, sources, CONNECTIONS_EACH, |_| head.clone().into_bytes(), Reads::All);
    scripted(crew, stop, &|_, _| None)
}

/// Half of the largest `ClientHello` that fits into a record, as often as an address may.
#[cfg(feature = "tls")]
fn stalled_hellos(aim: &Aim, sources: u8, stop: &AtomicBool) -> io::Result<Done> {
    let Some((port, _)) = &aim.tls else { return Ok(Done::default()) };
    let record = u16::try_from(HELLO_BYTES).unwrap().to_be_bytes();
    let [_, handshake @ ..] = u32::try_from(HELLO_BYTES - 4).unwrap().to_be_bytes();
    // A handshake record, a ClientHello, version 1.2, and a long session.
    let mut half = [&[0x16, 3, 1][..], &record, &[1], &handshake, &[3, 3]].concat();
    half.resize(HELLO_BYTES / 2, b'x');
    let mut crew = Crew::new(*port)?;
    add_to_all(&mut crew, sources, CONNECTIONS_EACH, |_| half.clone(), Reads::All);
    scripted(crew, stop, &|_, _| None)
}

/// The same `ClientHello` again and again: the relay signs, the attacker leaves at the first byte.
#[cfg(feature = "tls")]
fn handshakes(aim: &Aim, sources: u8, stop: &AtomicBool) -> io::Result<Done> {
    let Some((port, hello)) = &aim.tls else { return Ok(Done::default()) };
    let mut driver = super::driver::Driver::new()?;
    let mut done = Done::default();
    let mut waiting = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        while waiting.len() < HANDSHAKES {
            let source = attacker(u8::try_from(done.dialed % u32::from(sources)).unwrap());
            let connection = driver.dial_from(source, *port, hello, true)?;
            driver.stall(connection);
            waiting.push(connection);
            done.dialed += 1;
            done.written += hello.len() as u64;
        }
        driver.turn(IDLE, &mut |_, _, _| {})?;
        waiting.retain(|connection| {
            let answered = driver.sip(*connection, 1);
            if answered == Some(0) {
                return true;
            }
            done.refused += u32::from(answered.is_none());
            driver.hang_up(*connection);
            false
        });
    }
    Ok(done)
}

/// `each` binaries of every address.
fn binaries(aim: &Aim, sources: u8, each: usize, reads: Reads) -> io::Result<Crew> {
    let mut crew = Crew::new(aim.port)?;
    let head = |place| binary_head(&binary_name(place)).into_bytes();
    add_to_all(&mut crew, sources, each, head, reads);
    Ok(crew)
}

fn add_to_all(
    crew: &mut Crew,
    sources: u8,
    each: usize,
    hello: impl Fn(usize) -> Vec<u8>,
    reads: Reads,
) {
    for place in 0..usize::from(sources) * each {
        let source = attacker(u8::try_from(place % usize::from(sources)).unwrap());
        crew.add(source, hello(place), reads, Duration::ZERO);
    }
}

fn binary_name(place: usize) -> String {
    format!("attack-{place}")
}

/// Everybody who is let in sends what `piece` says, by place and step, and begins anew on the next
/// connection.
fn scripted(
    mut crew: Crew,
    stop: &AtomicBool,
    piece: &dyn Fn(usize, usize) -> Option<Vec<u8>>,
) -> io::Result<Done> {
    let mut steps = vec![0; crew.size()];
    while !stop.load(Ordering::Relaxed) {
        for (place, step) in steps.iter_mut().enumerate() {
            if !crew.is_free(place) {
                continue;
            }
            if let Some(bytes) = piece(place, *step) {
                crew.send(place, &bytes);
                *step += 1;
            }
        }
        crew.turn(IDLE, &mut |_, place, notice| {
            if !matches!(notice, super::crew::Notice::Text(_)) {
                steps[place] = 0;
            }
        })?;
    }
    Ok(crew.done)
}

/// The first bit of a frame: it ends its message.
const FINAL: u8 = 0x80;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// What one address may have by default. What the rate does not let in at first comes later.
const CONNECTIONS_EACH: usize = 64;
/// 266 of 14 addresses.
const ANNOUNCERS_EACH: usize = 19;
const ANNOUNCED: u64 = 255 * 1024;
/// 8,000 unknown phones: their answers fill half of a binary's queue.
const UNKNOWN_STEPS: usize = 16;
const UNKNOWN_A_STEP: usize = 500;
/// 200 KB.
const HALF_PIECE: usize = 50_000;
const HALF_PIECES: usize = 4;
const ODD_SIZES: [usize; 9] = [1, 7, 31, 127, 509, 1021, 4093, 9973, 70_001];
const FRAGMENTED_BYTES: usize = 255 * 1024;
const PIECE: usize = 32 * 1024;
/// Nearly all that a head may have.
const HEAD_BYTES: usize = 7_900;
#[cfg(feature = "tls")]
const HELLO_BYTES: usize = 16 * 1024;
/// Handshakes of the flood that are under way at one time.
#[cfg(feature = "tls")]
const HANDSHAKES: usize = 32;
const IDLE: Duration = Duration::from_millis(1);
