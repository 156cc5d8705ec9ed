//! How connections end where a peer does not play along: by the times that the program has by itself.

use std::io::ErrorKind;

use pyrycode_relay::clock;

use crate::actors::wire::TEXT;
use crate::rig::{
    Rig, Ws, assert_talk, envelope, large_message, millis, notice, secs, simulate, sleep,
};

#[test]
fn a_peer_that_never_answers_a_close_is_let_go_after_two_seconds() {
    simulate(&[], async |rig| {
        let (mut binary, mut phone, conn_id) = rig.pair("mute").await;
        let mut lost = rig.phone("nobody").await;
        binary.send_text(&notice(&conn_id, 4000)).await;
        phone.expect_close(4000, "").await;
        lost.expect_close(4404, "no server with that id").await;
        for (pause, sockets) in [(0, 3), (1999, 3), (1, 1)] {
            sleep(millis(pause)).await;
            assert_eq!(rig.network.sockets(), sockets);
        }
        binary.sync().await;
    });
}

#[test]
fn a_peer_that_answers_or_ends_is_let_go_before_one_that_does_nothing() {
    simulate(&[], async |rig| {
        let mut binary = rig.binary("answer").await;
        let (mut mute, mute_id) = rig.registered_phone("answer").await;
        let (mut polite, polite_id) = rig.registered_phone("answer").await;
        let (mut ending, ending_id) = rig.registered_phone("answer").await;
        let (mut first, _) = rig.registered_phone("answer").await;
        for conn_id in [&mute_id, &polite_id, &ending_id] {
            binary.send_text(&notice(conn_id, 4000)).await;
        }
        for phone in [&mut mute, &mut polite, &mut ending] {
            phone.expect_close(4000, "").await;
        }
        first.send_close(1000).await;
        first.expect_close(1000, "").await;
        polite.send_close(4000).await;
        for phone in [&first, &ending] {
            phone.shut_down_writing();
        }
        // At once; and the one that does nothing has its two seconds.
        for (pause, sockets) in [(1, 2), (1998, 2), (1, 1)] {
            sleep(millis(pause)).await;
            assert_eq!(rig.network.sockets(), sockets);
        }
    });
}

#[test]
fn a_peer_that_never_stops_sending_is_let_go_after_its_close_frame() {
    simulate(&[], async |rig| {
        let mut phone = rig.phone("nobody").await;
        let closed = clock::now();
        phone.expect_close(4404, "no server with that id").await;
        let mut written = 0;
        let error = loop {
            match phone.try_send_raw(&[b'x'; 64 * 1024]).await {
                Ok(()) => written += 64 * 1024,
                Err(error) => break error,
            }
            assert!(clock::since(closed) <= secs(2), "the relay reads for ever");
            sleep(millis(10)).await;
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(clock::since(closed) >= secs(2), "cut off after {written} bytes");
        assert!(written >= 1024 * 1024, "cut off after {written} bytes");
    });
}

#[test]
fn a_close_frame_that_does_not_get_out_in_time_ends_in_a_reset() {
    simulate(&[], async |rig| {
        let (mut binary, mut healthy, healthy_id) = rig.pair("healthy").await;
        let (_binary, mut phone) = stall_a_phone(rig).await;
        // It has been blocked for a while, and makes progress now and then: what counts is the close frame.
        sleep(secs(9)).await;
        phone.read_ahead(1000).await;
        sleep(secs(1)).await;
        let decided = clock::now();
        phone.send_frame(true, 0x3, b"").await;
        rig.wait("phone_unregistered", &[("server_id", "stalled")]).await;
        assert_eq!(clock::now(), decided);
        sleep(secs(7)).await;
        phone.read_ahead(1000).await;
        for (pause, sockets) in [(2999, 4), (1, 3)] {
            sleep(millis(pause)).await;
            assert_eq!(rig.network.sockets(), sockets);
        }
        assert_eq!(clock::since(decided), secs(10));
        expect_reset(&mut phone).await;
        assert_talk(&mut binary, &mut healthy, &healthy_id).await;
    });
}

#[test]
fn a_close_frame_that_waits_for_a_write_without_progress_ends_with_it_in_a_reset() {
    simulate(&[], async |rig| {
        let (_binary, mut phone) = stall_a_phone(rig).await;
        let blocked = clock::now();
        sleep(secs(4)).await;
        phone.send_frame(true, 0x3, b"").await;
        for (pause, sockets) in [(5999, 2), (1, 1)] {
            sleep(millis(pause)).await;
            assert_eq!(rig.network.sockets(), sockets);
        }
        assert_eq!(clock::since(blocked), secs(10));
        expect_reset(&mut phone).await;
    });
}

/// A binary, and a phone of it that does not read and for which far more is queued than it takes in.
async fn stall_a_phone(rig: &Rig) -> (Ws, Ws) {
    let mut binary = rig.binary("stalled").await;
    let (phone, conn_id) = rig.narrow_phone("stalled").await;
    for number in 0..12 {
        binary.send_text(&envelope(&conn_id, &large_message(number))).await;
    }
    binary.sync().await;
    (binary, phone)
}

async fn expect_reset(ws: &mut Ws) {
    let error = loop {
        match ws.try_read_frame().await {
            Ok(frame) => assert_eq!(frame.opcode, TEXT),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
