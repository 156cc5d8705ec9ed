//! The grace window and what survives it, where time decides: by the times that the program has by itself.

use pyrycode_relay::clock;
use relay_test_kit::frame::encode;

use crate::actors::wire::TEXT;
use crate::rig::{Rig, Ws, assert_talk, envelope, millis, notice, numbered, secs, simulate, sleep};

const RECLAIMED: &str = "binary reclaimed server-id";

/// How a binary's connection ends.
#[derive(Clone, Copy)]
enum End {
    Close,
    Drop,
    Reset,
    /// It has begun a message and does not complete it.
    MessageTimeout,
}

impl End {
    /// Ends a connection, and waits for the window that begins then.
    async fn of(self, mut binary: Ws, rig: &Rig, id: &str) {
        let seen = rig.mark();
        match self {
            Self::Close => {
                binary.send_close(1000).await;
                binary.expect_close(1000, "").await;
            }
            Self::Drop => binary.drop_connection(),
            Self::Reset => binary.reset(),
            Self::MessageTimeout => binary.expect_close(1008, "message timeout").await,
        }
        rig.wait_after(seen, "server_released", &[("server_id", id)]).await;
    }
}

#[test]
fn a_binary_that_closes_keeps_its_server_id_for_the_window_and_no_longer() {
    keeps_its_server_id_for_the_window(End::Close);
}

#[test]
fn a_binary_that_drops_keeps_its_server_id_for_the_window_and_no_longer() {
    keeps_its_server_id_for_the_window(End::Drop);
}

#[test]
fn a_binary_that_resets_keeps_its_server_id_for_the_window_and_no_longer() {
    keeps_its_server_id_for_the_window(End::Reset);
}

fn keeps_its_server_id_for_the_window(end: End) {
    simulate(&[], async |rig| {
        let binary = rig.binary("expiry").await;
        sleep(secs(7)).await;
        let began = clock::now();
        end.of(binary, rig, "expiry").await;
        assert_eq!(clock::now(), began);
        let released = rig.wait("server_released", &[]).await;
        assert_eq!(released, "level=info event=server_released server_id=expiry");
        assert_eq!(rig.health(), (0, 0));
        let (mut phone, conn_id) = rig.registered_phone("expiry").await;
        phone.send_text("\"hello?\"").await;
        phone.sync().await;
        assert_eq!(rig.health(), (0, 1));
        sleep(millis(29_999)).await;
        phone.sync().await;
        let (mut late, _) = rig.registered_phone("expiry").await;
        assert_eq!(rig.health(), (0, 2));

        let expired = rig.wait("server_expired", &[]).await;
        assert_eq!(clock::since(began), secs(30));
        assert_eq!(expired, "level=info event=server_expired server_id=expiry phones=2");
        phone.expect_close(4404, "no server with that id").await;
        late.expect_close(4404, "no server with that id").await;
        let left = rig.wait("phone_unregistered", &[("conn_id", &conn_id)]).await;
        assert!(left.ends_with(" reason=no server with that id"), "{left}");
        rig.phone("expiry").await.expect_close(4404, "no server with that id").await;
        assert_eq!(clock::since(began), secs(30));
        assert_eq!(rig.health(), (0, 0));
        assert_eq!(rig.count("server_released", &[]), 1);
    });
}

#[test]
fn an_expired_window_leaves_nothing_to_the_next_claim() {
    simulate(&[], async |rig| {
        let (mut binary, mut phone, conn_id) = rig.pair("forgotten").await;
        assert_talk(&mut binary, &mut phone, &conn_id).await;
        binary.reset();
        phone.send_text("\"into the void\"").await;
        phone.expect_close(4404, "no server with that id").await;
        let mut binary = rig.binary("forgotten").await;
        binary.sync().await;
        binary.send_text(&envelope(&conn_id, "1")).await;
        let answer = binary.read_text().await;
        assert_eq!(answer, notice(&conn_id, 1001), "an id like any unknown one");
    });
}

#[test]
fn a_stale_timer_never_releases_a_newer_claim() {
    // At once, and at the last moment.
    for after in [0, 29_999] {
        simulate(&[], async |rig| {
            let (binary, mut phone, conn_id) = rig.pair("stale").await;
            End::Drop.of(binary, rig, "stale").await;
            sleep(millis(after)).await;
            let mut binary = rig.binary("stale").await;
            binary.sync().await;
            phone.sync().await;
            sleep(secs(31)).await;
            assert_talk(&mut binary, &mut phone, &conn_id).await;
            assert_eq!(rig.health(), (1, 1));
            assert_eq!(rig.count("server_expired", &[]), 0);
        });
    }
}

#[test]
fn stale_timers_of_50_quick_reconnects_release_nothing() {
    simulate(&[], async |rig| {
        let (mut binary, mut phone, conn_id) = rig.pair("flapping").await;
        let ends = [End::Close, End::Drop, End::Reset];
        for round in 0..50 {
            ends[round % 3].of(binary, rig, "flapping").await;
            // Their windows end all over the time that follows.
            sleep(millis(700)).await;
            binary = rig.binary("flapping").await;
            phone.sync().await;
        }
        sleep(secs(31)).await;
        assert_talk(&mut binary, &mut phone, &conn_id).await;
        assert_eq!(rig.health(), (1, 1));
        assert_eq!(rig.count("server_expired", &[]), 0);
        assert_eq!(rig.count("server_released", &[]), 50);
    });
}

#[test]
fn every_disconnect_gets_a_whole_window_of_its_own() {
    simulate(&[], async |rig| {
        let (binary, mut phone, _) = rig.pair("anew").await;
        End::Reset.of(binary, rig, "anew").await;
        sleep(secs(20)).await;
        let binary = rig.binary("anew").await;
        sleep(secs(4)).await;
        let began = clock::now();
        binary.reset();
        phone.expect_close(4404, "no server with that id").await;
        assert_eq!(clock::since(began), secs(30));
    });
}

#[test]
fn half_a_message_of_a_binary_costs_every_session_since_nobody_knows_whose_it_is() {
    for end in [End::Reset, End::Drop, End::MessageTimeout] {
        simulate(&[], async |rig| {
            let (mut binary, mut phone, conn_id) = rig.pair("half").await;
            let mut fresh = rig.phone("half").await;
            phone.send_text("1").await;
            assert_eq!(binary.read_text().await, envelope(&conn_id, "1"));
            binary.prove().await;
            // A pong would get into the middle of the message.
            binary.answers_pings = false;
            let frame = encode(true, TEXT, envelope(&conn_id, "\"half\"").as_bytes());
            binary.send_raw(&frame[..frame.len() - 1]).await;
            end.of(binary, rig, "half").await;
            let mut binary = rig.binary("half").await;
            phone.expect_close(4404, RECLAIMED).await;
            assert_eq!(binary.read_text().await, notice(&conn_id, 4404));
            fresh.send_text("\"no session yet\"").await;
            assert!(binary.read_text().await.contains("no session yet"));
        });
    }
}

#[test]
fn a_phone_held_back_when_the_window_passes_is_closed_like_the_others() {
    let small = ["--max-frame-bytes", "16KiB", "--max-slot-queue-bytes", "64KiB"];
    simulate(&small, async |rig| {
        let (binary, mut phone, _) = rig.pair("stuck").await;
        let began = clock::now();
        End::Reset.of(binary, rig, "stuck").await;
        let (begun, _) = phone.send_until_blocked(100, |number| numbered(number, 10_000)).await;
        assert!(begun < 100, "nothing holds it back");
        phone.expect_close(4404, "no server with that id").await;
        assert_eq!(clock::since(began), secs(30));
        assert_eq!(rig.health(), (0, 0));
    });
}

#[test]
fn after_a_heartbeat_timeout_the_phones_are_closed_at_the_claim_and_not_before() {
    simulate(&[], async |rig| {
        let (mut binary, mut known, known_id) = rig.pair("silence").await;
        let (mut unknown, unknown_id) = rig.registered_phone("silence").await;
        assert_talk(&mut binary, &mut known, &known_id).await;
        // Its session is whole by every other rule.
        binary.prove().await;
        let silent_since = clock::now();
        binary.answers_pings = false;
        while rig.count("server_released", &[]) == 0 {
            sleep(millis(100)).await;
            for phone in [&mut known, &mut unknown] {
                phone.sync().await;
            }
        }
        let silence = clock::since(silent_since);
        assert!((secs(57)..millis(63_400)).contains(&silence), "{silence:?}");
        binary.expect_close(1011, "heartbeat timeout").await;
        for phone in [&mut known, &mut unknown] {
            phone.send_text("\"kept, it seems\"").await;
            phone.sync().await;
        }
        // Almost to the end of the window.
        sleep(millis(29_800)).await;
        for phone in [&mut known, &mut unknown] {
            phone.sync().await;
        }
        assert_eq!(rig.health(), (0, 2));
        let mut binary = rig.binary("silence").await;
        known.expect_close(4404, RECLAIMED).await;
        let left = rig.wait("phone_unregistered", &[("conn_id", &known_id)]).await;
        assert!(left.ends_with(" reason=binary reclaimed server-id"), "{left}");
        // Of a phone that the silent binary never heard of, nothing can be lost.
        let text = binary.read_text().await;
        assert_eq!(text, envelope(&unknown_id, "\"kept, it seems\""));
        let text = binary.read_text().await;
        assert_eq!(text, notice(&known_id, 4404), "and nothing that was kept for it");
        binary.sync().await;
        assert_talk(&mut binary, &mut unknown, &unknown_id).await;
        assert_eq!(rig.count("server_id_takeover", &[]), 0);
    });
}

#[test]
fn after_a_write_timeout_the_phones_are_closed_at_the_claim_but_not_those_that_came_later() {
    simulate(&LARGE_QUEUE, async |rig| {
        let (_stalled, mut known, known_id) = stall_a_binary(rig, "deafness").await;
        let stalled_at = clock::now();
        rig.wait("server_released", &[]).await;
        assert_eq!(clock::since(stalled_at), secs(10));
        let (mut late, late_id) = rig.registered_phone("deafness").await;
        late.send_text("\"fresh\"").await;
        late.sync().await;
        known.send_text("\"stale\"").await;
        known.sync().await;
        sleep(millis(29_999)).await;
        assert_eq!(rig.health(), (0, 2));

        let mut binary = rig.binary("deafness").await;
        known.expect_close(4404, RECLAIMED).await;
        let mut received = [binary.read_text().await, binary.read_text().await];
        received.sort();
        let mut expected = [envelope(&late_id, "\"fresh\""), notice(&known_id, 4404)];
        expected.sort();
        assert_eq!(received, expected);
        assert_talk(&mut binary, &mut late, &late_id).await;
        binary.send_text(&notice(&late_id, 4421)).await;
        late.expect_close_code(4421).await;
    });
}

#[test]
fn a_holder_that_falls_silent_during_its_probe_costs_its_phones_their_sessions_too() {
    let options = [&LARGE_QUEUE[..], &["--probe-timeout", "10m"]].concat();
    simulate(&options, async |rig| {
        let (_stalled, mut known, known_id) = stall_a_binary(rig, "fading").await;
        let stalled_at = clock::now();
        let mut newcomer = rig.binary("fading").await;
        known.expect_close(4404, RECLAIMED).await;
        assert_eq!(clock::since(stalled_at), secs(10), "by the write timeout");
        assert_eq!(newcomer.read_text().await, notice(&known_id, 4404));
        newcomer.sync().await;
        assert_eq!(rig.health(), (1, 0));
    });
}

#[test]
fn what_was_kept_for_a_silent_holder_is_dropped_at_the_takeover() {
    let options = [&LARGE_QUEUE[..], &["--write-timeout", "10m"]].concat();
    simulate(&options, async |rig| {
        let (_stalled, mut known, known_id) = stall_a_binary(rig, "dropped").await;
        let began = clock::now();
        let mut newcomer = rig.binary("dropped").await;
        known.expect_close(4404, RECLAIMED).await;
        assert_eq!(clock::since(began), secs(10), "by the probe timeout");
        rig.wait("server_id_takeover", &[("server_id", "dropped")]).await;
        assert_eq!(newcomer.read_text().await, notice(&known_id, 4404));
        newcomer.sync().await;
    });
}

#[test]
fn slots_in_their_window_count_against_the_connection_cap() {
    simulate(&["--max-connections", "2"], async |rig| {
        for id in ["one", "two"] {
            End::Reset.of(rig.binary(id).await, rig, id).await;
        }
        let began = clock::now();
        for moment in [millis(0), millis(29_999)] {
            sleep(moment).await;
            let head = rig.site.binary_head("three");
            let refusal = rig.upgrade(head, None).await.err().expect("no slot is free");
            assert!(refusal.starts_with("HTTP/1.1 503 "), "{refusal}");
            assert!(refusal.contains("\r\nRetry-After: "), "{refusal}");
        }
        let mut binary = rig.binary("one").await;
        rig.wait("server_expired", &[("server_id", "two")]).await;
        assert_eq!(clock::since(began), secs(30));
        rig.binary("three").await.sync().await;
        binary.sync().await;
    });
}

/// A binary that stops reading in the middle of what its one phone sends, and that knows the
/// phone.
async fn stall_a_binary(rig: &Rig, id: &str) -> (Ws, Ws, String) {
    let mut binary = rig.narrow_binary(id).await;
    let (mut phone, conn_id) = rig.registered_phone(id).await;
    assert_talk(&mut binary, &mut phone, &conn_id).await;
    for number in 0..10 {
        phone.send_text(&numbered(number, 200_000)).await;
    }
    phone.sync().await;
    (binary, phone, conn_id)
}

/// Room for whatever a binary does not read.
const LARGE_QUEUE: [&str; 2] = ["--max-slot-queue-bytes", "8MiB"];
