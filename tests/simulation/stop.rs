//! The stop, where time decides: by the times that the program has by itself.

use std::io::ErrorKind;

use pyrycode_relay::clock;

use crate::actors::wire::{PING, TEXT};
use crate::rig::{envelope, large_message, millis, secs, simulate, sleep};

#[test]
fn a_stop_ends_in_time_with_peers_that_never_answer_and_peers_that_never_read() {
    simulate(&[], async |rig| {
        let mut deaf_binary = rig.narrow_binary("deaf").await;
        let (mut deaf_phone, conn_id) = rig.narrow_phone("deaf").await;
        let (silent_binary, silent_phone, _) = rig.pair("mute").await;
        for number in 0..6 {
            deaf_phone.send_text(&large_message(number)).await;
        }
        for number in 0..30 {
            deaf_binary.send_text(&envelope(&conn_id, &large_message(number))).await;
        }
        rig.registered_phone("deaf").await.0.sync().await;
        let raised = clock::now();
        rig.stop.raise();
        rig.join().await;
        assert_eq!(clock::since(raised), secs(2), "the drain timeout");
        for mut peer in [silent_binary, silent_phone] {
            peer.expect_close(1001, "shutting down").await;
        }
        for mut peer in [deaf_binary, deaf_phone] {
            peer.expect_gone().await;
        }
    });
}

#[test]
fn a_peer_with_a_backlog_that_is_late_to_read_is_told_of_the_stop_ahead_of_it() {
    simulate(&[], async |rig| {
        let mut binary = rig.narrow_binary("late-reader").await;
        let (mut late, conn_id) = rig.narrow_phone("late-reader").await;
        for number in 0..40 {
            binary.send_text(&envelope(&conn_id, &large_message(number))).await;
        }
        let (mut sender, sender_id) = rig.registered_phone("late-reader").await;
        for number in 0..8 {
            sender.send_text(&large_message(number)).await;
        }
        sender.sync().await;
        // Everything that the binary sent has been handled by now, too.
        binary.send_text(&envelope(&sender_id, "\"handled\"")).await;
        assert_eq!(sender.read_text().await, "\"handled\"");
        rig.stop.raise();
        sender.expect_close(1001, "shutting down").await;
        // Neither reads for more than half of the time.
        sleep(millis(1001)).await;
        for (peer, queued) in [(&mut late, 40), (&mut binary, 8)] {
            let mut read = 0;
            let close = loop {
                let frame = peer.read_besides_proofs().await;
                if frame.opcode != TEXT {
                    break frame;
                }
                read += 1;
            };
            assert_eq!(close.close(), (1001, "shutting down".to_owned()));
            assert!(read < queued, "all {queued} of the backlog came first");
        }
    });
}

#[test]
fn request_heads_that_do_not_go_on_are_closed_a_moment_after_the_stop() {
    let patient =
        ["--drain-timeout", "100s", "--write-timeout", "100s", "--header-timeout", "100s"];
    // With the program's own times that moment is half of the drain.
    for options in [&[][..], &patient] {
        simulate(options, async |rig| {
            let head = rig.site.phone_head("half-a-head");
            let mut halves = Vec::new();
            for beginning in ["", &head[..40]] {
                let mut half = rig.connect(None).await;
                half.send_raw(beginning.as_bytes()).await;
                halves.push(half);
            }
            // It does not read, and the drain waits for it.
            let mut binary = rig.binary("half-a-head").await;
            let (deaf, conn_id) = rig.narrow_phone("half-a-head").await;
            for number in 0..20 {
                binary.send_text(&envelope(&conn_id, &large_message(number))).await;
            }
            binary.sync().await;
            let stopped = clock::now();
            rig.stop.raise();
            for half in &mut halves {
                match half.try_read_frame().await {
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                    other => panic!("{other:?} while the drain goes on"),
                }
                assert_eq!(clock::since(stopped), secs(1));
            }
            deaf.reset();
            drop(binary);
            rig.join().await;
        });
    }
}

#[test]
fn a_newcomer_whose_probe_is_under_way_hears_of_the_stop() {
    simulate(&["--probe-timeout", "100s"], async |rig| {
        let mut holder = rig.binary("undecided").await;
        holder.answers_pings = false;
        let mut newcomer = rig.binary("undecided").await;
        assert_eq!(holder.read_frame().await.opcode, PING);
        let stopped = clock::now();
        rig.stop.raise();
        holder.expect_close(1001, "shutting down").await;
        newcomer.expect_close(1001, "shutting down").await;
        assert_eq!(clock::now(), stopped);
        rig.join().await;
        assert_eq!(clock::since(stopped), secs(2), "nobody answers");
    });
}
