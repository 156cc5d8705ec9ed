//! The allow-list: what it refuses, what it hides, and what a new one changes.

use std::io::{Read as _, Write as _};
use tempfile::NamedTempFile;

use super::{Running, exchange, program, run, text};
use crate::rig::{
    Ws, binary_head, connect, envelope, fresh_id, front, make_fifo, millis, phone_head,
};

struct ListFile(NamedTempFile);

impl ListFile {
    fn new(content: impl AsRef<[u8]>) -> Self {
        let file = Self(NamedTempFile::new().unwrap());
        file.write(content);
        file
    }

    fn write(&self, content: impl AsRef<[u8]>) {
        std::fs::write(&self.0, content).unwrap();
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

fn start(file: &ListFile, options: &[&str]) -> Running {
    Running::start(&[&["--allow-server", file.path()], options].concat())
}

/// Everything that the relay answers to a request, to the end of the connection.
fn answer(relay: &Running, head: &str) -> String {
    let mut stream = connect(relay.address());
    stream.write_all(head.as_bytes()).unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).expect("it ends without a reset");
    String::from_utf8_lossy(&response).into_owned()
}

const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

#[test]
fn an_id_that_is_not_listed_gets_a_403_and_a_listed_one_is_claimed() {
    let (listed, other) = (fresh_id("listed"), fresh_id("other"));
    let file = ListFile::new(format!("# mine\n{listed} # the attic\n"));
    let relay = start(&file, &[]);
    assert_eq!(relay.wait("allow_list_read").field("server_ids"), "1");
    assert_eq!(answer(&relay, &binary_head(&other)), FORBIDDEN);
    assert_eq!(relay.wait("server_not_allowed").field("server_id"), other);
    // Byte for byte: no prefix and no other case will do.
    for near in [listed.to_uppercase(), listed[..listed.len() - 1].to_owned()] {
        assert_eq!(answer(&relay, &binary_head(&near)), FORBIDDEN, "{near}");
    }
    let (mut binary, mut phone, conn_id) = relay.pair(&listed);
    exchange(&mut binary, &mut phone, &conn_id);
}

#[test]
fn the_list_cannot_be_read_through_the_phones_endpoint() {
    let listed = fresh_id("hidden");
    let file = ListFile::new(&listed);
    let relay = start(&file, &["--log-level", "trace"]);
    let unlisted = listed.replace("hidden", "absent");
    let unheld = answer(&relay, &phone_head(&listed));
    assert!(unheld.starts_with("HTTP/1.1 101 "), "{unheld}");
    assert!(unheld.ends_with("no server with that id"), "{unheld}");
    assert_eq!(answer(&relay, &phone_head(&unlisted)), unheld);
    let last = relay.wait_nth("phone_register_no_server", 2);
    assert_eq!(last.field("server_id"), unlisted);
}

#[test]
fn every_guess_at_the_list_costs_an_attempt() {
    let file = ListFile::new(fresh_id("guess"));
    let mut all = [front(), &["--allow-server", file.path()]].concat();
    all.extend(["--rate-limit", "1/min", "--rate-burst", "3"]);
    let relay = Running::spawn(program(&all));
    for number in 0..3 {
        assert_eq!(answer(&relay, &binary_head(&format!("guess-of-{number}"))), FORBIDDEN);
    }
    let limited = answer(&relay, &binary_head("guess-of-3"));
    assert!(limited.starts_with("HTTP/1.1 429 "), "{limited}");
}

#[test]
fn a_403_comes_behind_a_bad_key_and_ahead_of_the_connection_cap() {
    let listed = fresh_id("only");
    let file = ListFile::new(&listed);
    let relay = start(&file, &["--max-connections", "1"]);
    let _binary = relay.binary(&listed);
    assert_eq!(answer(&relay, &binary_head("other")), FORBIDDEN);
    let capped = answer(&relay, &phone_head(&listed));
    assert!(capped.starts_with("HTTP/1.1 503 "), "{capped}");
    let bad_key = binary_head("other").replace("dGhlIHNhbXBsZSBub25jZQ==", "no");
    let refused = answer(&relay, &bad_key);
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
}

#[test]
fn a_binary_whose_id_was_removed_is_closed_with_its_phones_and_nobody_else_is() {
    let (removed, kept) = (fresh_id("removed"), fresh_id("kept"));
    let file = ListFile::new(format!("{removed}\n{kept}\n"));
    let relay = start(&file, &[]);
    let (mut binary, mut phone, _) = relay.pair(&removed);
    let (mut staying, mut stays, conn_id) = relay.pair(&kept);
    file.write(&kept);
    relay.signal("HUP");
    binary.expect_close(1008, "server-id not allowed");
    phone.expect_close(4404, "no server with that id");
    let line = relay.wait("server_revoked");
    assert_eq!((line.field("server_id"), line.field("phones")), (&*removed, "1"));
    let read = relay.wait_nth("allow_list_read", 2);
    assert_eq!((read.field("server_ids"), read.field("revoked")), ("1", "1"));
    exchange(&mut staying, &mut stays, &conn_id);
    // Nothing is left of it: no grace window in which a phone could still join.
    relay.phone(&removed).expect_close(4404, "no server with that id");
    assert_eq!(answer(&relay, &binary_head(&removed)), FORBIDDEN);
    // And back again.
    file.write(format!("{kept}\n{removed}\n"));
    relay.signal("HUP");
    relay.wait_nth("allow_list_read", 3);
    let (mut binary, mut phone, conn_id) = relay.pair(&removed);
    exchange(&mut binary, &mut phone, &conn_id);
    exchange(&mut staying, &mut stays, &conn_id_of(&relay, &kept));
}

fn conn_id_of(relay: &Running, id: &str) -> String {
    let lines = relay.lines("phone_registered");
    let line = lines.iter().find(|line| line.field("server_id") == id).unwrap();
    line.field("conn_id").to_owned()
}

#[test]
fn a_grace_window_ends_at_once_when_its_id_is_removed() {
    let (removed, kept) = (fresh_id("in-grace"), fresh_id("kept"));
    let file = ListFile::new(format!("{removed}\n{kept}\n"));
    let relay = start(&file, &["--grace", "100s"]);
    let (binary, mut phone, _) = relay.pair(&removed);
    binary.drop_connection();
    relay.wait("server_released");
    file.write(&kept);
    relay.signal("HUP");
    phone.expect_close(4404, "no server with that id");
    assert_eq!(relay.wait("server_revoked").field("server_id"), removed);
    relay.wait_nth("allow_list_read", 2);
    assert!(relay.lines("server_expired").is_empty());
}

#[test]
fn a_newcomer_that_waits_for_a_probe_wins_nothing_once_its_id_is_removed() {
    let (removed, kept) = (fresh_id("probed"), fresh_id("kept"));
    let file = ListFile::new(format!("{removed}\n{kept}\n"));
    let relay = start(&file, &["--probe-timeout", &millis(100_000)]);
    let mut holder = relay.binary(&removed);
    holder.answers_pings = false;
    let mut newcomer = relay.binary(&removed);
    file.write(&kept);
    relay.signal("HUP");
    newcomer.expect_close(1008, "server-id not allowed");
    loop {
        let frame = holder.read_frame();
        if frame.opcode == crate::rig::ws::CLOSE {
            assert_eq!(frame.payload[..2], 1008_u16.to_be_bytes());
            break;
        }
    }
    // Lines come in order: behind this one nothing of the newcomer is missing.
    relay.wait_nth("allow_list_read", 2);
    assert_eq!(relay.lines("server_claimed").len(), 1);
    assert!(relay.lines("server_released").is_empty());
}

#[test]
fn a_broken_new_file_keeps_the_old_list_and_says_why() {
    let id = fresh_id("steadfast");
    let file = ListFile::new(&id);
    let relay = start(&file, &[]);
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let mut broken = 0;
    let mut expect = |reason: &str| {
        broken += 1;
        relay.signal("HUP");
        let line = relay.wait_nth("allow_list_kept", broken);
        assert!(line.field("reason").contains(reason), "{line:?}");
        assert_eq!(line.field("path"), file.path());
    };
    file.write("fine\n\nnot fine\n");
    expect("line 3 ");
    file.write("");
    expect("no server-id");
    file.write(vec![b'#'; 5 * 1024 * 1024]);
    expect("bytes");
    std::fs::remove_file(&file.0).unwrap();
    expect("No such file");
    make_fifo(file.0.path());
    expect("no regular file");
    std::fs::remove_file(&file.0).unwrap();
    exchange(&mut binary, &mut phone, &conn_id);
    assert_eq!(answer(&relay, &binary_head("fine")), FORBIDDEN);
    file.write("fine\n");
    relay.signal("HUP");
    binary.expect_close(1008, "server-id not allowed");
    Ws::upgrade(relay.address(), &binary_head("fine")).sync();
}

#[test]
fn a_list_that_cannot_be_used_is_a_bad_option_at_the_start() {
    let file = ListFile::new("one\ntwo words\n");
    let refused = |path: &str, reason: &str| {
        let output = run(program(&["--listen", "127.0.0.1:0", "--allow-server", path]));
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.starts_with("error: --allow-server "), "{message}");
        assert!(message.contains(path) && message.contains(reason), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    };
    refused(file.path(), "line 2 ");
    file.write("# all of them are gone\n");
    refused(file.path(), "no server-id");
    refused("/nowhere/allowed", "No such file");
    refused("/", "no regular file");
    let pipe = ListFile::new("");
    std::fs::remove_file(&pipe.0).unwrap();
    make_fifo(pipe.path().as_ref());
    refused(pipe.path(), "no regular file");
}

#[test]
fn a_message_on_its_way_to_a_binary_that_is_removed_ends_whole_or_not_at_all() {
    let (removed, kept) = (fresh_id("cut"), fresh_id("kept"));
    let file = ListFile::new(format!("{removed}\n{kept}\n"));
    let relay = start(&file, &[]);
    let (mut binary, mut phone, conn_id) = relay.pair(&removed);
    let frame = format!("\"{}\"", "x".repeat(200_000));
    phone.send_text(&frame);
    phone.sync();
    file.write(&kept);
    relay.signal("HUP");
    let mut frames = Vec::new();
    loop {
        let frame = binary.read();
        if frame.opcode == crate::rig::ws::CLOSE {
            break;
        }
        frames.push(String::from_utf8(frame.payload).unwrap());
    }
    assert!(frames.len() <= 1);
    assert!(frames.iter().all(|text| *text == envelope(&conn_id, &frame)));
}
