//! Messages over TLS: the same relay, whatever carries it.

use std::io::{Read as _, Write as _};

use super::client::{Client, Files, NAME};
use crate::rig::ws::TEXT;
use crate::rig::{
    Ws, binary_head, connect, connect_narrow, envelope, events, fresh_id, millis, notice,
    phone_head,
};

fn upgraded(client: &Client, address: std::net::SocketAddr, head: String) -> Ws {
    let mut stream = client.dial(address);
    stream.write_all(head.as_bytes()).unwrap();
    Ws::after_request(stream)
}

#[test]
fn messages_of_all_sizes_pass_both_ways_over_tls_and_between_tls_and_none() {
    let files = Files::new();
    let relay = files.relay(&[]);
    let tls = relay.tls.unwrap();
    for (client, secure_phone) in
        [(files.client(), true), (Client::old(&files), true), (files.client(), false)]
    {
        let id = fresh_id("sizes");
        let seen = events::mark();
        let mut binary = upgraded(&client, tls, binary_head(&id));
        let mut phone = match secure_phone {
            true => upgraded(&client, tls, phone_head(&id)),
            false => relay.phone(&id),
        };
        let registered = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
        let conn_id = events::field(&registered, "conn_id");
        // Around the largest record (16,384 bytes), the buffers and the largest message.
        for size in [0, 1, 16_300, 16_384, 16_385, 40_000, 70_000, 250_000] {
            let text = format!("\"{}\"", "x".repeat(size));
            phone.send_text(&text);
            assert!(binary.read_text() == envelope(&conn_id, &text), "{size} bytes to the binary");
            binary.send_text(&envelope(&conn_id, &text));
            assert!(phone.read_text() == text, "{size} bytes to the phone");
        }
        let burst: Vec<_> = (0..500).map(|number| format!("[{number}]")).collect();
        for text in &burst {
            phone.send_text(text);
        }
        for text in &burst {
            assert_eq!(binary.read_text(), envelope(&conn_id, text));
        }
    }
}

#[test]
fn all_of_a_message_arrives_at_a_slow_reader_though_nothing_follows_it() {
    let files = Files::new();
    let relay = files.relay(&["--write-timeout", "100s"]);
    let id = fresh_id("slow");
    let mut binary = relay.binary(&id);
    let seen = events::mark();
    let mut stream = files.client().dial_narrow(relay.tls.unwrap());
    stream.write_all(phone_head(&id).as_bytes()).unwrap();
    let registered = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    let conn_id = events::field(&registered, "conn_id");
    let mut phone = Ws::after_request(stream);
    let text = format!("\"{}\"", "x".repeat(200_000));
    binary.send_text(&envelope(&conn_id, &text));
    // By now it has gone as far as it can without being read.
    binary.sync();
    assert!(phone.read_text() == text);
}

#[test]
fn a_reader_that_stalls_is_given_up_and_delays_nobody() {
    let files = Files::new();
    let relay = files.relay(&["--write-timeout", &millis(500)]);
    let id = fresh_id("stalled");
    let mut binary = upgraded(&files.client(), relay.tls.unwrap(), binary_head(&id));
    let seen = events::mark();
    // No tunnel, which would read ahead: the session by hand, and then not a byte is read.
    let mut tcp = connect_narrow(relay.tls.unwrap());
    let mut session = files.client().session(NAME);
    session.writer().write_all(phone_head(&id).as_bytes()).unwrap();
    while session.is_handshaking() || session.wants_write() {
        session.complete_io(&mut tcp).unwrap();
    }
    let registered = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    let stalled = events::field(&registered, "conn_id");
    let mut sibling = upgraded(&files.client(), relay.tls.unwrap(), phone_head(&id));
    sibling.send_text("\"hello\"");
    let text = binary.read_text();
    let hello: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sibling_id = hello["conn_id"].as_str().unwrap().to_owned();
    for _ in 0..8 {
        binary.send_text(&envelope(&stalled, &format!("\"{}\"", "x".repeat(60_000))));
    }
    binary.send_text(&envelope(&sibling_id, "\"and you?\""));
    assert_eq!(sibling.read_text(), "\"and you?\"");
    events::wait("phone_unregistered", &[("conn_id", &stalled), ("reason", "write timeout")]);
    drop(tcp);
}

#[test]
fn a_directive_closes_a_phone_with_its_code_and_tls_ends_in_order() {
    let files = Files::new();
    let relay = files.relay(&[]);
    let id = fresh_id("directive");
    let mut binary = upgraded(&files.client(), relay.tls.unwrap(), binary_head(&id));
    let seen = events::mark();
    let mut tcp = connect(relay.tls.unwrap());
    let mut session = files.client().session(NAME);
    let mut stream = rustls::Stream::new(&mut session, &mut tcp);
    stream.write_all(phone_head(&id).as_bytes()).unwrap();
    let registered = events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    let conn_id = events::field(&registered, "conn_id");
    binary.send_text(&notice(&conn_id, 4321));
    // Without a close_notify the end would be an error here.
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert!(all.ends_with(&[0x88, 2, 0x10, 0xe1]), "{all:?}");
}

#[test]
fn a_stop_closes_connections_over_tls_too() {
    let files = Files::new();
    let relay = files.relay(&[]);
    let id = fresh_id("stopped");
    let mut binary = upgraded(&files.client(), relay.tls.unwrap(), binary_head(&id));
    let mut phone = upgraded(&files.client(), relay.tls.unwrap(), phone_head(&id));
    phone.send_text("\"last\"");
    phone.sync();
    relay.raise_stop();
    let last = binary.read_text();
    assert!(last.ends_with(r#""frame":"last"}"#));
    // The phone may be closed first.
    let conn_id = last.split('"').nth(3).unwrap();
    let mut frame = binary.read();
    if frame.opcode == TEXT {
        assert_eq!(frame.payload, notice(conn_id, 1001).into_bytes());
        frame = binary.read();
    }
    assert_eq!(frame.close(), (1001, "shutting down".to_owned()));
    binary.expect_end();
    phone.expect_close(1001, "shutting down");
    relay.join();
}

#[test]
fn a_peer_that_goes_without_a_close_notify_is_gone_as_without_tls() {
    let files = Files::new();
    let relay = files.relay(&[]);
    let id = fresh_id("gone");
    let _binary = relay.binary(&id);
    let seen = events::mark();
    let mut tcp = connect(relay.tls.unwrap());
    let mut session = files.client().session(NAME);
    session.writer().write_all(phone_head(&id).as_bytes()).unwrap();
    while session.is_handshaking() || session.wants_write() {
        session.complete_io(&mut tcp).unwrap();
    }
    events::wait_after(seen, "phone_registered", &[("server_id", &id)]);
    tcp.shutdown(std::net::Shutdown::Write).unwrap();
    let left = events::wait_after(seen, "phone_unregistered", &[("server_id", &id)]);
    assert_eq!(events::field(&left, "reason"), "connection lost");
}
