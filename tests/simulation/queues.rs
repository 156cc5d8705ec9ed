//! Queues whose peer stalls, where time decides: by the times that the program has by itself.

use pyrycode_relay::clock;

use crate::actors::wire::PONG;
use crate::rig::{assert_talk, envelope, notice, numbered, secs, simulate, sleep};

/// Small queues, so that a stalled binary is soon felt.
const SMALL: [&str; 4] = ["--max-frame-bytes", "16KiB", "--max-slot-queue-bytes", "128KiB"];
const FLOOD_LENGTH: usize = 4000;

#[test]
fn a_binary_that_stalls_for_longer_than_the_write_timeout_is_cut_and_a_healthy_one_stays() {
    simulate(&SMALL, async |rig| {
        let (mut other, mut other_phone, other_id) = rig.pair("healthy").await;
        let mut stalled = rig.narrow_binary("cut").await;
        let (mut phone, conn_id) = rig.registered_phone("cut").await;
        assert_talk(&mut stalled, &mut phone, &conn_id).await;
        let began = clock::now();
        let text = |number| numbered(number, FLOOD_LENGTH);
        let (begun, rest) = phone.send_until_blocked(10_000, text).await;
        assert!(begun < 10_000, "nothing holds the phone back");
        rig.wait("server_released", &[("server_id", "cut")]).await;
        assert_eq!(clock::since(began), secs(10));
        assert_eq!(rig.count("phone_unregistered", &[]), 0);
        stalled.expect_gone().await;
        assert_talk(&mut other, &mut other_phone, &other_id).await;
        // It fell silent: what its socket had accepted may be lost, so the session is over.
        let mut binary = rig.binary("cut").await;
        drop(rest);
        phone.expect_close(4404, "binary reclaimed server-id").await;
        let left = rig.wait("phone_unregistered", &[("conn_id", &conn_id)]).await;
        assert!(left.ends_with(" reason=binary reclaimed server-id"), "{left}");
        let text = binary.read_text().await;
        assert_eq!(text, notice(&conn_id, 4404), "what was kept is dropped");
        let (mut phone, conn_id) = rig.registered_phone("cut").await;
        assert_talk(&mut binary, &mut phone, &conn_id).await;
    });
}

#[test]
fn a_phone_that_stalls_below_the_bound_is_cut_after_the_write_timeout() {
    simulate(&[], async |rig| {
        let mut binary = rig.binary("write-timeout").await;
        let (mut stalled, stalled_id) = rig.narrow_phone("write-timeout").await;
        let (mut sibling, sibling_id) = rig.registered_phone("write-timeout").await;
        assert_talk(&mut binary, &mut stalled, &stalled_id).await;
        let began = clock::now();
        for number in 0..64 {
            binary.send_text(&envelope(&stalled_id, &numbered(number, 16 * 1024))).await;
        }
        let left = rig.wait("phone_unregistered", &[("conn_id", &stalled_id)]).await;
        assert_eq!(clock::since(began), secs(10));
        assert!(left.ends_with(" reason=write timeout"), "{left}");
        assert_eq!(binary.read_text().await, notice(&stalled_id, 1001));
        stalled.expect_gone().await;
        assert_talk(&mut binary, &mut sibling, &sibling_id).await;
    });
}

#[test]
fn a_phone_that_is_held_back_is_judged_by_neither_heartbeat_nor_message_timeout() {
    let options = [&SMALL[..], &["--write-timeout", "1d"]].concat();
    simulate(&options, async |rig| {
        let mut binary = rig.narrow_binary("unjudged").await;
        let (mut flooding, flooding_id) = rig.registered_phone("unjudged").await;
        let text = |number| numbered(number, FLOOD_LENGTH);
        let (begun, rest) = flooding.send_until_blocked(10_000, text).await;
        assert!(begun < 10_000, "nothing holds the phone back");
        // The lingering ones: one says nothing, one never ends what it began.
        let (mut silent, silent_id) = rig.registered_phone("unjudged").await;
        let (mut dawdling, dawdling_id) = rig.registered_phone("unjudged").await;
        for phone in [&mut silent, &mut dawdling] {
            phone.answers_pings = false;
        }
        dawdling.send_raw(b"\x81\x8f\x01\x02\x03\x04\x23nev").await;
        for _ in 0..20 {
            sleep(secs(10)).await;
            // It does not read, but it lives.
            binary.send_frame(true, PONG, b"unsolicited").await;
        }
        let reasons = [(&silent_id, "heartbeat timeout"), (&dawdling_id, "message timeout")];
        for (conn_id, reason) in reasons {
            let fields = [("conn_id", conn_id.as_str()), ("reason", reason)];
            assert_eq!(rig.count("phone_unregistered", &fields), 1, "{reason}");
        }
        assert_eq!(rig.count("phone_unregistered", &[]), 2);
        silent.expect_close(1011, "heartbeat timeout").await;
        dawdling.expect_close_code(1008).await;
        let ending = rig.site.executor.spawn(async move {
            flooding.send_raw(&rest).await;
            for number in begun..begun + 500 {
                flooding.send_text(&numbered(number, FLOOD_LENGTH)).await;
            }
            flooding
        });
        for number in 0..begun + 500 {
            let message = binary.read_text().await;
            assert!(message == envelope(&flooding_id, &text(number)), "message {number}");
        }
        ending.await.sync().await;
    });
}
