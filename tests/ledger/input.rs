//! What has arrived and is not finished, and what has no room yet.

use std::io::Write as _;
use std::net::TcpStream;

use relay_test_kit::frame::{CONTINUATION, Header, PING, TEXT, encode};

use crate::client::{Ws, connect, envelope, introduce, json};
use crate::measure::Expected::{AtLeast, AtMost};
use crate::measure::Watched;

#[test]
fn a_message_that_is_half_received_is_charged_as_it_is_allocated() {
    let message = |length: usize| encode(true, TEXT, json(length).as_bytes());
    let announced = |first, length| Header { first, length, mask: Some([1; 4]) }.encode();
    let begun = |fragment: Vec<u8>| [encode(false, TEXT, b""), fragment].concat();
    let with_pings = [fragments(1000, 1), encode(true, PING, b"still here")].concat();
    let scenes = [
        ("all but a little of one frame", 4, message(250_000)[..240_000].to_vec()),
        ("half of one frame", 4, message(250_000)[..125_000].to_vec()),
        ("a frame that is announced", 32, announced(0x81, 250_000)),
        ("the beginning of a frame", 32, message(250_000)[..100].to_vec()),
        ("the beginning of a fragment", 4, begun([fragments(5000, 9), announced(0, 9)].concat())),
        ("fragments of 1 B", 4, begun(fragments(1, 100_000))),
        ("fragments of 100 B", 4, begun(fragments(100, 2000))),
        ("fragments of 4 KiB", 4, begun(fragments(4096, 60))),
        ("fragments of 64 KiB", 4, begun(fragments(65_536, 3))),
        ("fragments with pings between", 4, begun(with_pings.repeat(50))),
    ];
    let mut watched = Watched::start(&[]);
    let holder = watched.binary("half");
    for (what, count, bytes) in scenes {
        // Pings among them and the headers of fragments are not kept.
        let kept = if what == "fragments of 1 B" { bytes.len() / 7 } else { bytes.len() * 9 / 10 };
        let arrived = count * kept;
        let begin = |mut ws: Ws| {
            ws.send_raw(&bytes);
            ws
        };
        let phones: Vec<_> = (0..count).map(|_| begin(watched.phone("half"))).collect();
        watched.check(&format!("{what}, phones"), 1 + count, AtLeast(arrived));
        drop(phones);
        let binaries: Vec<_> =
            (0..count).map(|number| begin(watched.binary(&format!("half-{number}")))).collect();
        watched.check(&format!("{what}, binaries"), 1 + count, AtLeast(arrived));
        drop(binaries);
        watched.wait_for("they have left", |status| {
            status["connected_phones"] == 0 && status["slots_in_grace"] == 0
        });
    }
    drop(holder);
    watched.finish();
}

#[test]
fn a_request_head_in_progress_is_charged_as_it_is_allocated() {
    const LENGTHS: [usize; 7] = [1, 100, 2048, 2049, 4097, 6000, 8190];
    let mut watched = Watched::start(&[]);
    let head = |length: usize| {
        let head = "GET /v1/client HTTP/1.1\r\nHost: relay\r\nX-Padding: ";
        format!("{head}{}", "x".repeat(8190)).as_bytes()[..length].to_vec()
    };
    let begin = |length: usize| {
        let mut stream = connect(watched.relay.address);
        stream.write_all(&head(length)).unwrap();
        stream
    };
    let heads: Vec<TcpStream> =
        LENGTHS.iter().flat_map(|length| (0..8).map(|_| begin(*length))).collect();
    let arrived = 8 * LENGTHS.iter().sum::<usize>();
    watched.check("heads in progress", heads.len(), AtLeast(arrived));
    drop(heads);
    watched.wait_for("they have ended", |status| status["memory"]["held_bytes"] == 0);

    let mut heads: Vec<_> = (0..4).map(|_| connect(watched.relay.address)).collect();
    for byte in head(8190) {
        for stream in &mut heads {
            stream.write_all(&[byte]).unwrap();
        }
    }
    watched.check("heads one byte at a time", heads.len(), AtLeast(4 * 8190));
    drop(heads);
    watched.finish();
}

#[test]
fn a_message_that_finds_no_room_is_charged_as_it_is_allocated() {
    const LARGEST: usize = 256 * 1024;
    let mut watched = Watched::start(&["--max-slot-queue-bytes", "1MiB"]);
    let mut binary = watched.narrow_binary("full");
    let mut phones: Vec<_> = (0..4).map(|_| watched.phone("full")).collect();
    for phone in &mut phones {
        for _ in 0..3 {
            phone.send_text(&json(LARGEST));
        }
    }
    // One each is queued, but for the last, and one each is parked.
    watched.check("messages without room", 5, AtLeast(7 * LARGEST));
    binary.widen(1024 * 1024);
    binary.read_messages(12);
    for phone in &mut phones {
        phone.sync();
    }
    watched.check("messages that found room", 5, AtMost(0));
    drop((binary, phones));
    watched.wait_until_deserted();

    let mut binary = watched.narrow_binary("full");
    let mut phone = watched.phone("full");
    phone.send_text(&json(LARGEST));
    // More than half of the queue's bound, with what each of them counts.
    let count = 8000;
    phone.send_raw(&encode(true, TEXT, b"1").repeat(count));
    watched.check("small messages without room", 2, AtLeast(400 * 1024));
    binary.widen(1024 * 1024);
    binary.read_messages(1 + count);
    phone.sync();
    watched.check("small messages that found room", 2, AtMost(0));
    drop((binary, phone));
    watched.finish();
}

#[test]
fn pings_of_a_phone_that_does_not_read_cost_next_to_nothing() {
    const PHONES: usize = 8;
    const HALF: usize = 100_000;
    let mut watched = Watched::start(&[]);
    let mut binary = watched.binary("pings");
    let mut phones = Vec::new();
    for _ in 0..PHONES {
        let mut phone = watched.narrow_phone("pings");
        let conn_id = introduce(&mut phone, &mut binary);
        // No pong gets past it.
        binary.send_text(&envelope(&conn_id, &json(256 * 1024)));
        binary.sync();
        phone.send_raw(&encode(true, PING, &[b'p'; 125]).repeat(500));
        // It shows that the pings before it have been read.
        phone.send_raw(&encode(false, TEXT, &[b'x'; HALF]));
        phones.push(phone);
    }
    let arrived = PHONES * (256 * 1024 + HALF);
    watched.check("pings behind a message that is not read", 1 + PHONES, AtLeast(arrived));
    drop((binary, phones));
    watched.finish();
}

/// `count` fragments that continue a message, of `length` bytes each.
fn fragments(length: usize, count: usize) -> Vec<u8> {
    encode(false, CONTINUATION, &vec![b'x'; length]).repeat(count)
}
