//! Heartbeat, message and write timeouts with the times that the program has by itself, each with a peer that
//! lingers and is closed and with bystanders on the same relay that stay.

use std::time::Duration;

use pyrycode_relay::clock;
use relay_test_kit::frame::{Received, encode};
use smol::Task;
use smol::future::zip;

use crate::actors::wire::{CLOSE, CONTINUATION, PING, PONG, TEXT};
use crate::rig::{
    Rig, Ws, assert_talk, envelope, large_message, millis, notice, secs, simulate, sleep,
};

/// The two legs. What holds for one must hold for the other.
#[derive(Clone, Copy, Debug)]
enum Leg {
    Binary,
    Phone,
}

const LEGS: [Leg; 2] = [Leg::Binary, Leg::Phone];

impl Leg {
    /// A peer on this leg at `id`, and what has to stay open for it.
    async fn open(self, rig: &Rig, id: &str) -> (Ws, Option<Bystanders>) {
        match self {
            Self::Binary => (rig.binary(id).await, None),
            Self::Phone => {
                let host = Bystanders::join(rig, id).await;
                (rig.registered_phone(id).await.0, Some(host))
            }
        }
    }

    /// Waits for the line that tells that the peer of this leg is gone.
    async fn wait_for_end(self, rig: &Rig, id: &str, reason: &str) {
        match self {
            Self::Binary => rig.wait("server_released", &[("server_id", id)]).await,
            Self::Phone => {
                rig.wait("phone_unregistered", &[("server_id", id), ("reason", reason)]).await
            }
        };
    }
}

/// A binary and its phone that do nothing but answer pings, each in a task, until a third one
/// asks them to speak.
struct Bystanders {
    id: String,
    tasks: [Task<Outcome>; 2],
}

#[derive(PartialEq, Eq, Debug)]
enum Outcome {
    Spoke,
    Closed(Received),
}

impl Bystanders {
    async fn join(rig: &Rig, id: &str) -> Self {
        let (mut binary, mut phone, conn_id) = rig.pair(id).await;
        let binary = rig.site.executor.spawn(async move {
            let asked = binary.read().await;
            if asked.opcode != TEXT {
                return Outcome::Closed(asked);
            }
            assert!(asked.payload.ends_with(br#","frame":"speak"}"#), "{asked:?}");
            binary.send_text(&envelope(&conn_id, "\"to the phone\"")).await;
            assert_eq!(binary.read_text().await, envelope(&conn_id, "\"to the binary\""));
            Outcome::Spoke
        });
        let phone = rig.site.executor.spawn(async move {
            let said = phone.read().await;
            if said.opcode != TEXT {
                return Outcome::Closed(said);
            }
            assert_eq!(said.payload, b"\"to the phone\"");
            phone.send_text("\"to the binary\"").await;
            phone.sync().await;
            Outcome::Spoke
        });
        Self { id: id.to_owned(), tasks: [binary, phone] }
    }

    /// Both are still there and pass messages in both directions.
    async fn still_pass_messages(self, rig: &Rig) {
        let mut asking = rig.phone(&self.id).await;
        asking.send_text("\"speak\"").await;
        for task in self.tasks {
            assert_eq!(task.await, Outcome::Spoke);
        }
    }
}

/// Sends a piece every `pause` until a close frame comes, which must have this code.
async fn trickle_until_closed(
    ws: &mut Ws,
    pause: Duration,
    code: u16,
    mut piece: impl AsyncFnMut(&mut Ws),
) {
    loop {
        piece(ws).await;
        let until = clock::now() + pause;
        while let Some(frame) = ws.try_read_by(until).await.expect("a close frame comes first") {
            if ![PING, PONG].contains(&frame.opcode) {
                assert_eq!((frame.opcode, frame.close().0), (CLOSE, code), "{frame:?}");
                return;
            }
        }
    }
}

/// The heartbeat's interval of 30 s, a tenth more or less, at the next common tick: 128 in 30 s.
fn is_interval(silence: Duration) -> bool {
    (secs(27)..secs(33) + Duration::from_micros(234_375)).contains(&silence)
}

/// Where the heartbeat would be in the way.
const NO_HEARTBEAT: [&str; 2] = ["--heartbeat-interval", "1d"];

// ---------------------------------------------------------------------------------------------
// Heartbeat

#[test]
fn a_silent_peer_is_pinged_once_and_closed_and_the_others_stay() {
    for leg in LEGS {
        simulate(&[], async |rig| {
            let bystanders = Bystanders::join(rig, "bystanders").await;
            let quiet_since = clock::now();
            let (mut silent, host) = leg.open(rig, "peer").await;
            silent.answers_pings = false;
            assert_eq!(silent.read_frame().await.opcode, PING, "{leg:?}");
            let pinged = clock::since(quiet_since);
            assert!(is_interval(pinged), "{leg:?} after {pinged:?}");
            let close = silent.read_frame().await;
            assert_eq!(close.opcode, CLOSE, "{leg:?}: one ping a silence");
            assert_eq!(close.close(), (1011, "heartbeat timeout".to_owned()));
            // The ping was at a tick; 30 s later is one again.
            assert_eq!(clock::since(quiet_since), pinged + secs(30), "{leg:?}");
            silent.expect_end().await;
            leg.wait_for_end(rig, "peer", "heartbeat timeout").await;
            bystanders.still_pass_messages(rig).await;
            if let Some(host) = host {
                host.still_pass_messages(rig).await;
            }
        });
    }
}

#[test]
fn a_peer_that_sends_nothing_but_pongs_stays() {
    simulate(&[], async |rig| {
        let (mut binary, mut phone, conn_id) = rig.pair("pongs").await;
        // Each reads one ping at a time, whose pong is all that it sends.
        let lives = async |ws: &mut Ws| {
            for _ in 0..20 {
                let quiet_since = clock::now();
                assert_eq!(ws.read_frame().await.opcode, PING);
                assert!(is_interval(clock::since(quiet_since)));
            }
        };
        zip(lives(&mut phone), lives(&mut binary)).await;
        assert_talk(&mut binary, &mut phone, &conn_id).await;
    });
}

#[test]
fn a_peer_that_sends_one_byte_at_a_time_stays() {
    for leg in LEGS {
        // Sooner than a ping is due, and just before it is too late.
        for (pause, pings) in [(millis(26_900), 0), (millis(56_900), 1)] {
            simulate(&["--message-timeout", "1d"], async |rig| {
                let (mut slow, _host) = leg.open(rig, "peer").await;
                slow.answers_pings = false;
                for byte in encode(true, PONG, b"a pong of many bytes") {
                    slow.send_raw(&[byte]).await;
                    let until = clock::now() + pause;
                    let mut pinged = 0;
                    while let Some(frame) = slow.try_read_by(until).await.expect("it is open") {
                        assert_eq!(frame.opcode, PING, "{leg:?}: a byte is a sign of life");
                        pinged += 1;
                    }
                    assert_eq!(pinged, pings, "{leg:?}");
                }
            });
        }
    }
}

#[test]
fn a_single_byte_after_the_ping_starts_the_silence_anew() {
    for leg in LEGS {
        simulate(&["--message-timeout", "1d"], async |rig| {
            let (mut silent, _host) = leg.open(rig, "peer").await;
            silent.answers_pings = false;
            assert_eq!(silent.read_frame().await.opcode, PING);
            assert_eq!(silent.read_within(millis(29_999)).await, None);
            let last_byte = clock::now();
            silent.send_raw(&[0x81]).await;
            assert_eq!(
                silent.read_frame().await.opcode,
                PING,
                "{leg:?}: a new silence, a new ping"
            );
            let pinged = clock::since(last_byte);
            assert!(is_interval(pinged), "{leg:?} after {pinged:?}");
            silent.expect_close(1011, "heartbeat timeout").await;
            assert_eq!(clock::since(last_byte), pinged + secs(30));
        });
    }
}

#[test]
fn a_peer_that_was_never_silent_is_never_pinged() {
    simulate(&[], async |rig| {
        let (mut binary, mut phone, conn_id) = rig.pair("busy").await;
        for number in 0..20 {
            // A pause a little below the shortest interval, in which nothing comes.
            let pause = millis(26_999);
            let nothing = zip(phone.read_within(pause), binary.read_within(pause)).await;
            assert_eq!(nothing, (None, None));
            phone.send_text(&number.to_string()).await;
            let received = binary.read_besides_proofs().await;
            assert_eq!(received.payload, envelope(&conn_id, &number.to_string()).as_bytes());
            binary.send_text(&envelope(&conn_id, "0")).await;
            assert_eq!(phone.read_frame().await.payload, b"0");
        }
    });
}

#[test]
fn a_binary_that_fell_silent_leaves_phones_that_the_next_claim_closes() {
    simulate(&[], async |rig| {
        let mut silent = rig.binary("fell-silent").await;
        silent.answers_pings = false;
        let (mut before, conn_id) = rig.registered_phone("fell-silent").await;
        before.send_text("\"into the void\"").await;
        let closed = rig.site.executor.spawn(async move {
            // It answers pings all the while, and hears of nothing before the claim.
            before.expect_close(4404, "binary reclaimed server-id").await;
            clock::now()
        });
        assert_eq!(silent.read_text().await, envelope(&conn_id, "\"into the void\""));
        silent.expect_close(1011, "heartbeat timeout").await;
        rig.wait("server_released", &[("server_id", "fell-silent")]).await;
        let (mut within, within_id) = rig.registered_phone("fell-silent").await;
        within.send_text("\"in the window\"").await;
        within.sync().await;
        sleep(millis(29_999)).await;
        assert_eq!(rig.count("phone_unregistered", &[]), 0);

        let claimed = clock::now();
        let mut next = rig.binary("fell-silent").await;
        assert_eq!(closed.await, claimed);
        // A phone that came after the silence has lost nothing.
        let mut received = [next.read_text().await, next.read_text().await];
        received.sort();
        let mut expected = [notice(&conn_id, 4404), envelope(&within_id, "\"in the window\"")];
        expected.sort();
        assert_eq!(received, expected);
        next.send_text(&envelope(&within_id, "\"welcome\"")).await;
        assert_eq!(within.read_text().await, "\"welcome\"");
    });
}

#[test]
fn deadlines_that_pass_in_the_middle_of_a_turn_are_noticed() {
    // With an interval this short, on a machine this slow, one of the many pings falls due while the relay is
    // busy with the very connection that it is for. A turn looks at the clock two or three times: the last of these
    // machines takes just an interval for it, and no more than a turn may take.
    for cost in [700, 40_000, 330_000, 495_000] {
        simulate(&["--heartbeat-interval", "1ms"], async |rig| {
            rig.simulation.set_cost(Duration::from_nanos(cost));
            let mut phones = Vec::new();
            for id in ["a", "b", "c", "d"] {
                phones.push(rig.pair(id).await);
            }
            for _ in 0..200 {
                for (binary, phone, _) in &mut phones {
                    for ws in [phone, binary] {
                        let ping = ws.read_within(secs(1)).await.expect("it is noticed");
                        assert_eq!(ping.opcode, PING, "{cost} ns a look");
                    }
                }
            }
        });
    }
}

// ---------------------------------------------------------------------------------------------
// Message timeout

#[test]
fn a_message_begun_and_not_completed_is_closed_with_1008_and_the_others_stay() {
    let whole = encode(true, TEXT, br#"{"half":"of a message"}"#);
    let fragment = encode(false, TEXT, b"{\"half\":");
    let beginnings: [&[u8]; 4] = [
        // One byte of a header, a whole header, some payload, a whole first fragment.
        &whole[..1],
        &whole[..6],
        &whole[..whole.len() - 1],
        &fragment,
    ];
    for leg in LEGS {
        simulate(&[], async |rig| {
            let bystanders = Bystanders::join(rig, "bystanders").await;
            let mut lingering = Vec::new();
            for (number, beginning) in beginnings.iter().enumerate() {
                let id = format!("peer-{number}");
                let (mut ws, host) = leg.open(rig, &id).await;
                // A pong would get into the middle of the message.
                ws.answers_pings = false;
                // Each at a time of its own.
                sleep(millis(100)).await;
                ws.send_raw(beginning).await;
                lingering.push((ws, id, host, clock::now()));
            }
            for ((ws, id, _, begun), beginning) in lingering.iter_mut().zip(beginnings) {
                ws.expect_close_code(1008).await;
                assert_eq!(clock::since(*begun), secs(30), "{leg:?} {beginning:?}");
                leg.wait_for_end(rig, id, "message timeout").await;
            }
            bystanders.still_pass_messages(rig).await;
            for (_, _, host, _) in lingering {
                if let Some(host) = host {
                    // The binary of a phone has received nothing of the half message.
                    host.still_pass_messages(rig).await;
                }
            }
        });
    }
}

#[test]
fn fragments_that_trickle_do_not_extend_the_message_timeout() {
    for leg in LEGS {
        simulate(&[], async |rig| {
            let (mut ws, _host) = leg.open(rig, "peer").await;
            let begun = clock::now();
            ws.send_frame(false, TEXT, b"[1").await;
            trickle_until_closed(&mut ws, millis(2900), 1008, async |ws: &mut Ws| {
                ws.send_frame(false, CONTINUATION, b",1").await;
            })
            .await;
            assert_eq!(clock::since(begun), secs(30), "{leg:?}");
        });
    }
}

#[test]
fn bytes_that_trickle_do_not_extend_the_message_timeout() {
    for leg in LEGS {
        simulate(&[], async |rig| {
            let (mut ws, _host) = leg.open(rig, "peer").await;
            let frame = encode(true, TEXT, &[b' '; 60_000]);
            let mut bytes = frame.iter();
            let begun = clock::now();
            trickle_until_closed(&mut ws, millis(23), 1008, async |ws: &mut Ws| {
                ws.send_raw(&[*bytes.next().unwrap()]).await;
            })
            .await;
            assert_eq!(clock::since(begun), secs(30), "{leg:?}");
        });
    }
}

#[test]
fn interleaved_pings_do_not_extend_the_message_timeout() {
    for leg in LEGS {
        simulate(&[], async |rig| {
            let (mut ws, _host) = leg.open(rig, "peer").await;
            let begun = clock::now();
            ws.send_frame(false, TEXT, b"[1").await;
            trickle_until_closed(&mut ws, millis(2900), 1008, async |ws: &mut Ws| {
                ws.send_ping(b"still here").await;
            })
            .await;
            assert_eq!(clock::since(begun), secs(30), "{leg:?}");
        });
    }
}

#[test]
fn silence_between_messages_is_free() {
    simulate(&NO_HEARTBEAT, async |rig| {
        let (mut binary, mut phone, conn_id) = rig.pair("pauses").await;
        for _ in 0..2 {
            // What was last said is a whole message, a message in fragments, a ping.
            phone.send_text("1").await;
            phone.send_frame(false, TEXT, b"\"2").await;
            phone.send_frame(true, CONTINUATION, b"\"").await;
            phone.sync().await;
            assert_eq!(binary.read_text().await, envelope(&conn_id, "1"));
            assert_eq!(binary.read_text().await, envelope(&conn_id, "\"2\""));
            binary.send_text(&envelope(&conn_id, "3")).await;
            assert_eq!(phone.read_text().await, "3");
            let pause = secs(300);
            let nothing = zip(phone.read_within(pause), binary.read_within(pause)).await;
            assert_eq!(nothing, (None, None));
        }
    });
}

#[test]
fn every_message_has_its_whole_time() {
    simulate(&NO_HEARTBEAT, async |rig| {
        let (mut binary, mut phone, conn_id) = rig.pair("whole-time").await;
        let frame = encode(true, TEXT, b"12345");
        let (beginning, end) = frame.split_at(8);
        for _ in 0..3 {
            phone.send_raw(beginning).await;
            assert_eq!(phone.read_within(millis(29_999)).await, None);
            phone.send_raw(end).await;
            assert_eq!(binary.read_text().await, envelope(&conn_id, "12345"));
        }
    });
}

#[test]
fn a_binary_closed_for_its_message_timeout_finds_its_phones_again() {
    simulate(&[], async |rig| {
        let (mut binary, mut phone, conn_id) = rig.pair("not-silent").await;
        let begun = clock::now();
        binary.send_raw(&[0x81]).await;
        binary.expect_close_code(1008).await;
        assert_eq!(clock::since(begun), secs(30));
        rig.wait("server_released", &[("server_id", "not-silent")]).await;
        let mut binary = rig.binary("not-silent").await;
        binary.send_text(&envelope(&conn_id, "\"back\"")).await;
        assert_eq!(phone.read_text().await, "\"back\"");
    });
}

// ---------------------------------------------------------------------------------------------
// Write timeout

#[test]
fn a_phone_that_does_not_read_is_cut_off_and_the_others_stay() {
    simulate(&[], async |rig| {
        let bystanders = Bystanders::join(rig, "bystanders").await;
        let mut binary = rig.binary("stalled").await;
        let (mut stalled, conn_id) = rig.narrow_phone("stalled").await;
        let (mut sibling, sibling_id) = rig.registered_phone("stalled").await;
        stalled.send_text("\"hello\"").await;
        assert_eq!(binary.read_text().await, envelope(&conn_id, "\"hello\""));
        let flooded = clock::now();
        for number in 0..16 {
            binary.send_text(&envelope(&conn_id, &large_message(number))).await;
        }
        let reason = ("reason", "write timeout");
        rig.wait("phone_unregistered", &[("conn_id", &conn_id), reason]).await;
        assert_eq!(clock::since(flooded), secs(10));
        assert_eq!(binary.read_text().await, notice(&conn_id, 1001));
        stalled.expect_gone().await;
        binary.send_text(&envelope(&sibling_id, "\"and you?\"")).await;
        assert_eq!(sibling.read_text().await, "\"and you?\"");
        bystanders.still_pass_messages(rig).await;
    });
}

#[test]
fn a_binary_that_does_not_read_is_cut_off_as_silent_and_the_others_stay() {
    simulate(&[], async |rig| {
        let bystanders = Bystanders::join(rig, "bystanders").await;
        let mut stalled = rig.narrow_binary("stalled").await;
        let (mut phone, conn_id) = rig.registered_phone("stalled").await;
        let flooded = clock::now();
        for number in 0..6 {
            phone.send_text(&large_message(number)).await;
        }
        rig.wait("server_released", &[("server_id", "stalled")]).await;
        assert_eq!(clock::since(flooded), secs(10));
        stalled.expect_gone().await;
        phone.sync().await;
        let mut next = rig.binary("stalled").await;
        phone.expect_close(4404, "binary reclaimed server-id").await;
        // What was kept of the old session is gone; the next one begins clean.
        let (mut again, again_id) = rig.registered_phone("stalled").await;
        again.send_text("\"fresh\"").await;
        assert_eq!(next.read_text().await, notice(&conn_id, 4404));
        assert_eq!(next.read_text().await, envelope(&again_id, "\"fresh\""));
        bystanders.still_pass_messages(rig).await;
    });
}

#[test]
fn a_reader_that_is_slow_but_goes_on_stays() {
    const MESSAGES: usize = 10;
    // As little as it likes, each time just before it would be too late.
    for step in [1, 1000, 60_000] {
        simulate(&[], async |rig| {
            let mut binary = rig.binary("slow-reader").await;
            let (mut slow, conn_id) = rig.narrow_phone("slow-reader").await;
            for number in 0..MESSAGES {
                binary.send_text(&envelope(&conn_id, &large_message(number))).await;
            }
            // It answers pings.
            let idle = rig
                .site
                .executor
                .spawn(async move { while binary.try_read_frame().await.is_ok() {} });
            let begun = clock::now();
            while clock::since(begun) < secs(90) {
                sleep(millis(9_999)).await;
                slow.read_ahead(step).await;
                // Whoever reads nothing but his backlog still says something now and then.
                slow.send_frame(true, PONG, b"unasked").await;
                assert_eq!(rig.count("phone_unregistered", &[]), 0, "{step} bytes at a time");
            }
            for number in 0..MESSAGES {
                assert_eq!(slow.read_text().await, large_message(number));
            }
            slow.sync().await;
            assert!(!idle.is_finished());
        });
    }
}

#[test]
fn a_phone_that_is_held_back_is_judged_neither_by_heartbeat_nor_by_message_timeout() {
    const MESSAGES: usize = 11;
    simulate(&["--write-timeout", "1d"], async |rig| {
        let mut binary = rig.narrow_binary("held-back").await;
        let (mut phone, conn_id) = rig.registered_phone("held-back").await;
        // More than its half of the slot's queue: the rest waits unread, the last message cut in two.
        for number in 0..MESSAGES {
            phone.send_text(&large_message(number)).await;
        }
        let last = encode(true, TEXT, large_message(MESSAGES).as_bytes());
        phone.send_raw(&last[..30_000]).await;
        // A pong would get into the middle of the message.
        phone.answers_pings = false;
        // Who joins now and says nothing, or never ends what it began, shows that others are judged.
        let (mut silent, silent_id) = rig.registered_phone("held-back").await;
        silent.answers_pings = false;
        let (mut dawdling, dawdling_id) = rig.registered_phone("held-back").await;
        dawdling.send_raw(&[0x81]).await;
        for _ in 0..30 {
            // The binary does not read, but it is no silent one.
            binary.send_ping(b"busy").await;
            let until = clock::now() + secs(10);
            while let Some(frame) = phone.try_read_by(until).await.expect("it is let alone") {
                assert_eq!(frame.opcode, PING);
            }
        }
        for (conn_id, reason) in
            [(&silent_id, "heartbeat timeout"), (&dawdling_id, "message timeout")]
        {
            let fields = [("conn_id", conn_id.as_str()), ("reason", reason)];
            assert_eq!(rig.count("phone_unregistered", &fields), 1);
        }
        assert_eq!(rig.count("phone_unregistered", &[("conn_id", &conn_id)]), 0);
        // From here on its message is judged: the rest comes while the binary reads, however slowly.
        let rest = rig.site.executor.spawn(async move {
            phone.send_raw(&last[30_000..]).await;
            phone
        });
        for number in 0..=MESSAGES {
            let text = loop {
                let frame = binary.read().await;
                if frame.opcode != PONG {
                    break String::from_utf8(frame.payload).unwrap();
                }
            };
            assert_eq!(text, envelope(&conn_id, &large_message(number)));
            sleep(secs(5)).await;
        }
        rest.await.sync().await;
    });
}
