//! Claims of a server-id that is held, where time decides: by the times that the program has by itself.

use pyrycode_relay::clock;
use relay_test_kit::frame::encode;

use crate::actors::wire::{PING, PONG, TEXT};
use crate::rig::{Rig, Ws, assert_talk, envelope, millis, notice, secs, simulate, sleep};

/// Long enough that no test waits for it: what happens sooner has another reason.
const NEVER: [&str; 2] = ["--probe-timeout", "1d"];

#[test]
fn the_end_of_a_loser_releases_schedules_and_counts_nothing() {
    simulate(&[], async |rig| {
        let (mut holder, mut phone, conn_id) = rig.pair("loser").await;
        for end in [Ws::reset, Ws::drop_connection, drop::<Ws>] {
            let (mut loser, payload) = contest(rig, "loser", &mut holder).await;
            holder.send_frame(true, PONG, &payload).await;
            loser.expect_close(4409, "server-id already claimed").await;
            end(loser);
            sleep(secs(31)).await;
            assert_talk(&mut holder, &mut phone, &conn_id).await;
        }
        assert_eq!(rig.count("server_released", &[]), 0);
        assert_eq!(rig.count("server_expired", &[]), 0);
        assert_eq!(rig.health(), (1, 1));
    });
}

#[test]
fn a_silent_holder_is_taken_over() {
    simulate(&[], async |rig| {
        let (mut holder, mut known, known_id) = rig.pair("ghost").await;
        let (mut unknown, unknown_id) = rig.registered_phone("ghost").await;
        known.send_text("1").await;
        assert_eq!(holder.read_text().await, envelope(&known_id, "1"));
        // Its session is whole by every other rule.
        holder.prove().await;
        holder.answers_pings = false;
        let began = clock::now();
        let mut newcomer = rig.binary("ghost").await;
        known.expect_close(4404, "binary reclaimed server-id").await;
        assert_eq!(clock::since(began), secs(10), "at the timeout, and not before");
        holder.expect_close(1011, "heartbeat timeout").await;
        let taken_over = rig.wait("server_id_takeover", &[]).await;
        assert_eq!(
            taken_over,
            "level=info event=server_id_takeover server_id=ghost remote=127.0.0.1"
        );
        assert_eq!(rig.count("server_claimed", &[("server_id", "ghost")]), 2);
        let reclaimed = rig.wait("server_reclaimed", &[]).await;
        assert_eq!(
            reclaimed,
            "level=info event=server_reclaimed server_id=ghost kept=1 closed=1 reason=silent"
        );
        let left = rig.wait("phone_unregistered", &[("conn_id", &known_id)]).await;
        assert!(left.ends_with(" reason=binary reclaimed server-id"), "{left}");
        assert_eq!(newcomer.read_text().await, notice(&known_id, 4404));
        newcomer.sync().await;
        assert_eq!(rig.count("server_released", &[]), 0);
        assert_eq!(rig.count("server_id_conflict", &[]), 0);
        assert_eq!(rig.health(), (1, 1));
        // Nothing of this one can be lost.
        assert_talk(&mut newcomer, &mut unknown, &unknown_id).await;
        let (mut phone, conn_id) = rig.registered_phone("ghost").await;
        assert_talk(&mut newcomer, &mut phone, &conn_id).await;
    });
}

#[test]
fn the_end_of_a_holder_that_was_taken_over_releases_nothing() {
    simulate(&[], async |rig| {
        let mut holder = rig.binary("revenant").await;
        let (mut newcomer, payload) = contest(rig, "revenant", &mut holder).await;
        rig.wait("server_id_takeover", &[]).await;
        let (mut phone, conn_id) = rig.registered_phone("revenant").await;
        holder.send_frame(true, PONG, &payload).await;
        holder.send_text(&envelope(&conn_id, "\"from the grave\"")).await;
        holder.send_text(&notice(&conn_id, 4401)).await;
        holder.expect_close(1011, "heartbeat timeout").await;
        holder.reset();
        sleep(secs(31)).await;
        assert_eq!(rig.count("server_released", &[]), 0);
        assert_talk(&mut newcomer, &mut phone, &conn_id).await;
        assert_eq!(rig.health(), (1, 1));
    });
}

#[test]
fn a_single_byte_later_than_a_second_after_the_ping_is_an_answer() {
    // As soon as it counts, and at the last moment.
    for answered in [millis(1001), millis(9999)] {
        simulate(&[], async |rig| {
            let (mut holder, mut phone, conn_id) = rig.pair("byte").await;
            let (mut newcomer, _) = contest(rig, "byte", &mut holder).await;
            let frame = encode(true, TEXT, envelope(&conn_id, "\"slow\"").as_bytes());
            let began = clock::now();
            assert_eq!(newcomer.read_within(answered).await, None);
            holder.send_raw(&frame[..1]).await;
            newcomer.expect_close(4409, "server-id already claimed").await;
            assert_eq!(clock::since(began), answered);
            holder.send_raw(&frame[1..]).await;
            assert_eq!(phone.read_text().await, "\"slow\"");
            assert_eq!(rig.count("server_id_takeover", &[]), 0);
        });
    }
}

#[test]
fn neither_early_bytes_nor_a_strange_pong_answer_a_probe() {
    // What is sent later than a second after the ping would be an answer.
    for early in [millis(0), millis(500), secs(1)] {
        simulate(&[], async |rig| {
            let (mut holder, mut phone, conn_id) = rig.pair("deaf").await;
            let (mut first, stale) = contest(rig, "deaf", &mut holder).await;
            holder.send_frame(true, PONG, &stale).await;
            first.expect_close(4409, "server-id already claimed").await;
            let began = clock::now();
            let (mut newcomer, payload) = contest(rig, "deaf", &mut holder).await;
            assert_ne!(stale, payload);
            sleep(early).await;
            for pong in [&stale[..], b"", &payload[1..], &[&payload[..], b"x"].concat()] {
                holder.send_frame(true, PONG, pong).await;
            }
            holder.send_text(&envelope(&conn_id, "\"on its way\"")).await;
            assert_eq!(phone.read_text().await, "\"on its way\"");
            holder.sync().await;
            phone.expect_close(4404, "binary reclaimed server-id").await;
            assert_eq!(clock::since(began), secs(10), "{early:?}");
            holder.expect_close(1011, "heartbeat timeout").await;
            newcomer.sync().await;
        });
    }
}

#[test]
fn what_a_newcomer_sends_during_the_probe_arrives_in_order_after_a_takeover() {
    simulate(&[], async |rig| {
        let mut holder = rig.binary("patient").await;
        holder.answers_pings = false;
        // Frames for phones that do not exist are answered one by one.
        let stranger = |number: usize| format!("client-patient-{number:016x}");
        let frame = |number| encode(true, TEXT, envelope(&stranger(number), "1").as_bytes());
        let head = rig.site.binary_head("patient");
        let bytes = [head.as_bytes(), &frame(0), &frame(1)[..20]].concat();
        let began = clock::now();
        let mut newcomer = rig.upgrade(bytes, None).await.expect("it is let in");
        read_probe(&mut holder).await;
        newcomer.send_raw(&frame(1)[20..]).await;
        for number in 2..20 {
            newcomer.send_raw(&frame(number)).await;
            sleep(millis(500)).await;
        }
        for number in 0..20 {
            assert_eq!(newcomer.read_text().await, notice(&stranger(number), 1001));
            assert_eq!(clock::since(began), secs(10));
        }
        assert_eq!(rig.count("server_id_takeover", &[("server_id", "patient")]), 1);
    });
}

#[test]
fn the_close_frame_of_a_holder_is_its_end_and_no_answer() {
    simulate(&NEVER, async |rig| {
        let (mut holder, mut phone, conn_id) = rig.pair("farewell").await;
        let (mut newcomer, _) = contest(rig, "farewell", &mut holder).await;
        // From here on any other byte would be an answer.
        sleep(millis(1001)).await;
        holder.send_close(1001).await;
        holder.expect_close(1001, "").await;
        assert_talk(&mut newcomer, &mut phone, &conn_id).await;
        assert_eq!(rig.count("server_id_conflict", &[]), 0);
    });
}

#[test]
fn a_holder_that_closes_during_its_probe_leaves_the_slot_to_the_newcomer_at_once() {
    newcomer_inherits(async |mut holder: Ws| {
        holder.send_close(1000).await;
        holder.expect_close(1000, "").await;
    });
}

#[test]
fn a_holder_that_drops_during_its_probe_leaves_the_slot_to_the_newcomer_at_once() {
    newcomer_inherits(async |holder: Ws| holder.drop_connection());
}

#[test]
fn a_holder_that_resets_during_its_probe_leaves_the_slot_to_the_newcomer_at_once() {
    newcomer_inherits(async |holder: Ws| holder.reset());
}

fn newcomer_inherits(end: impl AsyncFnOnce(Ws)) {
    simulate(&NEVER, async |rig| {
        let (mut holder, mut phone, conn_id) = rig.pair("heir").await;
        let (mut silent, silent_id) = rig.registered_phone("heir").await;
        phone.send_text("1").await;
        assert_eq!(holder.read_text().await, envelope(&conn_id, "1"));
        holder.prove().await;
        let (mut newcomer, _) = contest(rig, "heir", &mut holder).await;
        newcomer.send_text(&envelope(&conn_id, "\"early\"")).await;
        sleep(secs(20)).await;
        let ended = clock::now();
        end(holder).await;
        assert_eq!(phone.read_text().await, "\"early\"");
        assert_eq!(rig.count("server_claimed", &[("server_id", "heir")]), 2);
        assert_eq!(clock::now(), ended);
        newcomer.sync().await;
        silent.sync().await;
        sleep(secs(31)).await;
        for (phone, conn_id) in [(&mut phone, &conn_id), (&mut silent, &silent_id)] {
            assert_talk(&mut newcomer, phone, conn_id).await;
        }
        assert_eq!(rig.health(), (1, 2));
        for (name, times) in [
            ("server_released", 1),
            ("server_expired", 0),
            ("server_id_takeover", 0),
            ("server_id_conflict", 0),
            ("phone_unregistered", 0),
        ] {
            assert_eq!(rig.count(name, &[]), times, "{name}");
        }
    });
}

#[test]
fn a_newcomer_that_leaves_during_the_probe_takes_nothing_with_it() {
    simulate(&NEVER, async |rig| {
        let (mut holder, mut phone, conn_id) = rig.pair("fickle").await;
        for leave in [Ws::reset, Ws::drop_connection] {
            let (newcomer, payload) = contest(rig, "fickle", &mut holder).await;
            leave(newcomer);
            sleep(secs(31)).await;
            assert_talk(&mut holder, &mut phone, &conn_id).await;
            holder.send_frame(true, PONG, &payload).await;
            holder.sync().await;
            assert_talk(&mut holder, &mut phone, &conn_id).await;
        }
        sleep(secs(31)).await;
        assert_eq!(rig.count("server_released", &[]), 0);
        assert_eq!(rig.count("server_claimed", &[]), 1);
        assert_talk(&mut holder, &mut phone, &conn_id).await;
        assert_eq!(rig.health(), (1, 1));
    });
}

/// A second claim whose probe the holder has received and not answered; the payload is the answer.
async fn contest(rig: &Rig, id: &str, holder: &mut Ws) -> (Ws, Vec<u8>) {
    holder.answers_pings = false;
    let newcomer = rig.binary(id).await;
    (newcomer, read_probe(holder).await)
}

async fn read_probe(holder: &mut Ws) -> Vec<u8> {
    // The heartbeat's pings are empty.
    loop {
        let probe = holder.read_besides_proofs().await;
        assert_eq!(probe.opcode, PING, "{probe:?}");
        if !probe.payload.is_empty() {
            return probe.payload;
        }
    }
}
