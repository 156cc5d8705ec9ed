//! What the relay allocates for a forwarded message, counted over real sockets.
//!
//! A program of its own with one test: the counter sees every thread of the process. The client
//! here allocates nothing while it counts.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![allow(clippy::print_stdout, reason = "the figures, for `--nocapture`")]

use std::alloc::System;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use async_io::{Async, Timer};
use pyrycode_relay::config::{Config, Options};
use pyrycode_relay::net::listen;
use pyrycode_relay::server;
use pyrycode_relay::signals::Stop;
use relay_test_kit::frame::{Frame, PING, PONG, TEXT, encode, push_frame};
use smol::LocalExecutor;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The executor allocates at each wake-up, whatever it is for: async-io collects wakers in a new
/// list and splits its map of timers. A bare echo on it shows how often, and is taken off; in a
/// stream, where a wake-up serves many messages, the whole counts.
#[test]
#[cfg_attr(relay_emulated, ignore = "the emulator takes several wake-ups for one message")]
fn a_forwarded_message_costs_at_most_two_allocations_either_way_alone_and_in_a_stream() {
    let [a_wake_up, with_a_pong] = [false, true].map(allocations_of_a_bare_echo);
    println!("{a_wake_up:.2} allocations a wake-up of the executor");
    println!("{with_a_pong:.2} where a pong follows on another connection");
    let options = ["pyrycode-relay", "--listen", "127.0.0.1:0", "--rate-limit", "off"];
    let config = Config::from_options(Options::parse_arguments(options).unwrap()).unwrap();
    let listener = listen::open(config.listen[0]).unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Stop::new();
    let raised = stop.clone();
    let relay = std::thread::spawn(move || server::run(vec![listener], config, &raised));

    let binary = upgrade(address, "/v1/server", "X-Pyrycode-Version: 1");
    let mut phone = upgrade(address, "/v1/client", "X-Pyrycode-Token: t");
    let to_binary = encode(true, TEXT, format!("\"{}\"", "x".repeat(698)).as_bytes());
    phone.write_all(&to_binary).unwrap();
    let mut buffer = vec![0; 1024 * 1024];
    let mut pong = Vec::with_capacity(64);
    let length = read_messages(&binary, &mut buffer, &mut pong, 1);
    let conn_id = conn_id(&buffer[..length]);
    let envelope = format!(r#"{{"conn_id":"{conn_id}","frame":"{}"}}"#, "x".repeat(698));
    let to_phone = encode(true, TEXT, envelope.as_bytes());

    let mut costly = Vec::new();
    for batch in [1, 32] {
        let (up, down) = (to_binary.repeat(batch), to_phone.repeat(batch));
        for (what, bytes, from, to, of_the_executor) in [
            ("to the binary", &up, &phone, &binary, with_a_pong),
            ("to the phone", &down, &binary, &phone, a_wake_up),
        ] {
            let mut from = from;
            let mut forward = |rounds: usize| {
                for _ in 0..rounds {
                    from.write_all(bytes).unwrap();
                    read_messages(to, &mut buffer, &mut pong, batch);
                }
            };
            // Buffers that are kept grow to what they need.
            forward(20);
            let each = fewest_allocations(|| forward(ROUNDS)) / batch as f64;
            let of_the_relay = if batch == 1 { each - of_the_executor } else { each };
            let line = format!("{each:.2} allocations a message {what}, {batch} at once");
            println!("{line}");
            if of_the_relay > AT_MOST {
                costly.push(line);
            }
        }
    }
    stop.raise();
    drop((binary, phone));
    relay.join().unwrap().unwrap();
    assert!(costly.is_empty(), "{costly:#?}");
}

/// What an echo of one message costs that waits, reads and writes on the same executor, with a
/// timer pending as the relay has them. With `is_answered` each echo is answered on another connection, as a
/// binary answers the ping behind a lone message.
fn allocations_of_a_bare_echo(is_answered: bool) -> f64 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let connect = || {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nodelay(true).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        (client, stream)
    };
    let ((mut client, stream), (mut answering, answered)) = (connect(), connect());
    let echo = std::thread::spawn(move || {
        let stream = Async::new(stream).unwrap();
        let executor = LocalExecutor::new();
        executor.spawn(Timer::after(Duration::from_secs(3600))).detach();
        let answered = Async::new(answered).unwrap();
        let reading = executor.spawn(async move {
            let mut buffer = [0; 1024];
            while answered.readable().await.is_ok() {
                if answered.get_ref().read(&mut buffer).unwrap() == 0 {
                    return;
                }
            }
        });
        reading.detach();
        let echo = executor.spawn(async move {
            let mut buffer = [0; 1024];
            loop {
                stream.readable().await.unwrap();
                match stream.get_ref().read(&mut buffer).unwrap() {
                    0 => return,
                    read => stream.get_ref().write_all(&buffer[..read]).unwrap(),
                }
            }
        });
        smol::block_on(executor.run(echo));
    });
    let mut message = [b'x'; 700];
    let mut exchange = |rounds: usize| {
        for _ in 0..rounds {
            client.write_all(&message).unwrap();
            client.read_exact(&mut message).unwrap();
            if is_answered {
                answering.write_all(&[b'x'; 14]).unwrap();
            }
        }
    };
    exchange(20);
    let each = fewest_allocations(|| exchange(ROUNDS));
    drop(client);
    echo.join().unwrap();
    assert!(each > 0.5, "the counter counts");
    assert!(each < 4.0, "{each} allocations a wake-up are not the executor's");
    each
}

/// Allocations a round in the best of several runs of [`ROUNDS`]: a busy machine wakes the relay
/// more often than there are messages, never less.
fn fewest_allocations(mut run: impl FnMut()) -> f64 {
    (0..5)
        .map(|_| {
            let region = Region::new(ALLOCATOR);
            run();
            let change = region.change();
            (change.allocations + change.reallocations) as f64 / ROUNDS as f64
        })
        .fold(f64::INFINITY, f64::min)
}

/// Reads until `count` whole messages are there and nothing else is, but a ping, which it answers; returns
/// the length of it all. Allocates nothing.
fn read_messages(
    mut stream: &TcpStream,
    buffer: &mut [u8],
    pong: &mut Vec<u8>,
    count: usize,
) -> usize {
    let (mut filled, mut at, mut whole) = (0, 0, 0);
    while whole < count {
        let read = stream.read(&mut buffer[filled..]).expect("frames within the deadline");
        assert!(read > 0, "the relay ended the connection");
        filled += read;
        while let Some((frame, length)) = Frame::decode(&buffer[at..filled]) {
            if frame.opcode == PING {
                pong.clear();
                push_frame(pong, PONG, &[frame.plain()]);
                stream.write_all(pong).unwrap();
            } else {
                assert_eq!(frame.opcode, TEXT);
                whole += 1;
            }
            at += length;
        }
    }
    assert_eq!((at, whole), (filled, count), "no message but those that were asked for");
    filled
}

fn conn_id(frame: &[u8]) -> String {
    let (frame, _) = Frame::decode(frame).unwrap();
    let envelope: serde_json::Value = serde_json::from_slice(frame.plain()).unwrap();
    envelope["conn_id"].as_str().unwrap().to_owned()
}

fn upgrade(address: SocketAddr, path: &str, header: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         X-Pyrycode-Server: home\r\nUser-Agent: test\r\n{header}\r\n\r\n"
    )
    .unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a response within the deadline");
        head.extend(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

const ROUNDS: usize = 200;
/// One for the frame that is queued, one for what the codec hands out.
const AT_MOST: f64 = 2.0;
