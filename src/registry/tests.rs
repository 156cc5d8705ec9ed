use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use futures_lite::AsyncWrite;

use super::*;
use crate::allow::AllowList;
use crate::config::Options;
use crate::envelope::{Envelope, Prefix};
use crate::frames::Frame;
use crate::limits::{BATCH_BYTES, REMEMBERED_NOTICES};
use crate::outbox::FlushEnd;
use crate::probe::Outcome;

const GRACE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Options under which a few dozen kilobytes are a lot.
const SMALL: [&str; 8] = [
    "--max-frame-bytes",
    "4KiB",
    "--max-queue-bytes",
    "64KiB",
    "--max-slot-queue-bytes",
    "64KiB",
    "--memory-budget",
    "128KiB",
];

#[test]
fn the_first_claim_holds_the_slot_and_the_next_one_is_contested() {
    let registry = registry(&[]);
    let now = Instant::now();
    let holder = seated(&registry, "box", now);
    let _contest = contested(&registry, "box", now);
    assert!(matches!(registry.claim(&id("box"), now), Claim::Busy));
    let _other = seated(&registry, "Box", now);
    assert_eq!(registry.counts(), Counts { binaries: 2, phones: 0, in_grace: 0 });
    assert_eq!(said(&holder), ["ping"]);
}

#[test]
fn the_loser_of_a_claim_owns_nothing() {
    let registry = registry(&[]);
    let now = Instant::now();
    let holder = seated(&registry, "box", now);
    let phone = joined(&registry, "box");
    let contest = contested(&registry, "box", now);
    assert_eq!(said(&holder), ["ping"]);
    drop(contest);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 1, in_grace: 0 });
    registry.expire(now + 10 * GRACE);
    forward(&phone, "1");
    assert_eq!(said(&holder), [wrapped(&phone, "1")]);
    assert_eq!(deliver(&holder, &wrapped(&phone, "2")), Delivery::Done);
    assert_eq!(said_to(&phone), ["2"]);
    let _anew = contested(&registry, "box", now);
    assert_eq!(said(&holder), ["ping"], "the next claim is probed anew");
}

#[test]
fn a_slot_is_not_taken_from_a_holder_that_answered_at_the_last_moment() {
    let registry = registry(&[]);
    let now = Instant::now();
    let holder = seated(&registry, "box", now);
    let contest = contested(&registry, "box", now);
    holder.outbox().heard(now + 2 * Duration::from_secs(1));
    assert_eq!(outcome(&contest), Some(Outcome::Answered));
    assert!(contest.win().is_err());
    assert_eq!(holder.outbox().sealed(), None);
    assert_eq!(registry.counts().binaries, 1);
}

#[test]
fn a_holder_that_lost_its_slot_releases_and_reaches_nothing_any_more() {
    let registry = registry(&[]);
    let now = Instant::now();
    let mut old = seated(&registry, "box", now);
    let contest = contested(&registry, "box", now);
    assert_eq!(outcome(&contest), None);
    let new = contest.win().expect("nobody answered");
    let phone = joined(&registry, "box");
    assert_eq!(said(&old), ["ping", "close 1011 heartbeat timeout"]);
    assert_eq!(deliver(&old, &wrapped(&phone, "1")), Delivery::NotHolder);
    old.release(Ended::Dropped, now);
    drop(old);
    registry.expire(now + 10 * GRACE);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 1, in_grace: 0 });
    forward(&phone, "2");
    assert_eq!(said(&new), [wrapped(&phone, "2")]);
    assert_eq!(said_to(&phone), [] as [&str; 0]);
}

#[test]
fn a_holder_that_ends_during_its_probe_leaves_slot_and_phones_to_the_newcomer() {
    let registry = registry(&[]);
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let phone = joined(&registry, "box");
    let contest = contested(&registry, "box", now);
    holder.release(Ended::Dropped, now);
    assert_eq!(outcome(&contest), Some(Outcome::HolderGone));
    assert!(matches!(registry.claim(&id("box"), now), Claim::Busy), "the newcomer is first");
    let newcomer = contest.win().expect("the slot is free");
    registry.expire(now + 10 * GRACE);
    forward(&phone, "1");
    assert_eq!(said(&newcomer), [wrapped(&phone, "1")]);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 1, in_grace: 0 });
}

#[test]
fn a_window_lasts_to_its_deadline_and_not_longer() {
    let registry = registry(&[]);
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let phone = joined(&registry, "box");
    holder.release(Ended::ByPeer(Some(1000)), now);
    drop(holder);
    registry.expire(now + GRACE - MILLISECOND);
    assert_eq!(registry.counts(), Counts { binaries: 0, phones: 1, in_grace: 1 });
    let late = joined(&registry, "box");
    registry.expire(now + GRACE);
    assert_eq!(registry.counts(), Counts::default());
    for phone in [phone, late] {
        assert_eq!(said_to(&phone), ["close 4404 no server with that id"]);
    }
    assert!(matches!(registry.join(&id("box")), Join::NoServer));
}

#[test]
fn deadlines_of_earlier_windows_never_release_a_newer_claim() {
    let registry = registry(&[]);
    let now = Instant::now();
    let phone = {
        let _holder = seated(&registry, "box", now);
        joined(&registry, "box")
    };
    // Many of them at the very same instant: the serial alone tells them apart.
    for round in 0..50 {
        let mut holder = seated(&registry, "box", now + round % 2 * MILLISECOND);
        holder.release(Ended::Dropped, now + round % 2 * MILLISECOND);
    }
    let mut holder = seated(&registry, "box", now + MILLISECOND);
    registry.expire(now + 10 * GRACE);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 1, in_grace: 0 });
    holder.release(Ended::Dropped, now + GRACE);
    registry.expire(now + 2 * GRACE - MILLISECOND);
    assert_eq!(registry.counts(), Counts { binaries: 0, phones: 1, in_grace: 1 });
    registry.expire(now + 2 * GRACE);
    assert_eq!(registry.counts(), Counts::default());
    drop(phone);
}

#[test]
fn windows_hold_past_24_9_and_49_7_days_of_uptime() {
    let start = Instant::now();
    for days in [24, 25, 49, 50, 4_000] {
        let registry = registry(&[]);
        let now = start + days * DAY + DAY * 9 / 10;
        let mut holder = seated(&registry, "box", now);
        holder.release(Ended::Dropped, now);
        registry.expire(now + GRACE - MILLISECOND);
        assert_eq!(registry.counts().in_grace, 1, "{days} days");
        registry.expire(now + GRACE);
        assert_eq!(registry.counts().in_grace, 0, "{days} days");
    }
}

#[test]
fn a_window_may_itself_be_longer_than_24_9_and_49_7_days() {
    for days in [25, 50, 366] {
        let registry = registry(&["--grace", &format!("{days}days")]);
        let now = Instant::now();
        let mut holder = seated(&registry, "box", now);
        holder.release(Ended::Dropped, now);
        registry.expire(now + days * DAY - MILLISECOND);
        assert_eq!(registry.counts().in_grace, 1, "{days} days");
        registry.expire(now + days * DAY);
        assert_eq!(registry.counts().in_grace, 0, "{days} days");
    }
}

#[test]
fn the_reaper_hears_of_the_soonest_release_and_of_every_change_of_it() {
    let registry = registry(&[]);
    let now = Instant::now();
    let (woken, waker) = counting();
    let mut cx = Context::from_waker(&waker);
    assert!(registry.poll_release(&mut cx, None).is_pending());

    let (mut one, mut two) = (seated(&registry, "one", now), seated(&registry, "two", now));
    assert_eq!(woken.count(), 0, "a claim schedules nothing");
    one.release(Ended::Dropped, now + MILLISECOND);
    assert_eq!(woken.count(), 1);
    let first = Some(now + MILLISECOND + GRACE);
    assert_eq!(registry.poll_release(&mut cx, None), Poll::Ready(first));
    assert!(registry.poll_release(&mut cx, first).is_pending());

    two.release(Ended::Dropped, now);
    assert_eq!(woken.count(), 2);
    let sooner = Some(now + GRACE);
    assert_eq!(registry.poll_release(&mut cx, first), Poll::Ready(sooner));
    let _two = seated(&registry, "two", now);
    assert_eq!(registry.poll_release(&mut cx, sooner), Poll::Ready(first));
    registry.expire(now + MILLISECOND + GRACE);
    assert_eq!(registry.poll_release(&mut cx, first), Poll::Ready(None));
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 0, in_grace: 0 });
}

#[test]
fn guards_leave_nothing_behind_in_whatever_order_they_are_dropped() {
    for order in 0..6 {
        let registry = registry(&[]);
        let now = Instant::now();
        let holder = seated(&registry, "box", now);
        let phone = joined(&registry, "box");
        forward(&phone, "\"kept\"");
        deliver(&holder, &wrapped(&phone, "\"queued\""));
        let contest = contested(&registry, "box", now);
        let mut guards: [Option<Box<dyn std::any::Any>>; 3] =
            [Some(Box::new(holder)), Some(Box::new(phone)), Some(Box::new(contest))];
        let [first, second, third] =
            [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][order];
        for guard in [first, second, third] {
            drop(guards[guard].take());
        }
        assert_eq!(registry.counts(), Counts { binaries: 0, phones: 0, in_grace: 1 }, "{order}");
        drop(seated(&registry, "box", now));
        registry.expire(Instant::now() + GRACE);
        assert_eq!(registry.counts(), Counts::default(), "{order}");
        assert_eq!(registry.ledger().total(), 0, "{order}");
    }
}

#[test]
fn slots_in_their_window_count_against_the_cap() {
    let registry = registry(&["--max-connections", "2"]);
    let now = Instant::now();
    let mut one = seated(&registry, "one", now);
    let _two = seated(&registry, "two", now);
    one.release(Ended::Dropped, now);
    assert!(matches!(registry.claim(&id("three"), now), Claim::Full));
    let mut one = seated(&registry, "one", now);
    assert!(matches!(registry.claim(&id("two"), now), Claim::Contested(_)));
    one.release(Ended::Dropped, now);
    registry.expire(now + GRACE);
    let _three = seated(&registry, "three", now);
}

#[test]
fn the_phone_cap_is_one_of_each_slot_and_counts_attached_phones_alone() {
    let registry = registry(&["--max-phones", "2"]);
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let _other = seated(&registry, "other", now);
    let one = joined(&registry, "box");
    let two = joined(&registry, "box");
    assert!(matches!(registry.join(&id("box")), Join::TooMany));
    joined(&registry, "other");
    drop(one);
    let _three = joined(&registry, "box");
    holder.release(Ended::Dropped, now);
    assert!(matches!(registry.join(&id("box")), Join::TooMany), "in the window too");
    let holder = seated(&registry, "box", now);
    close(&holder, &two, 4401);
    let _four = joined(&registry, "box");
    assert!(matches!(registry.join(&id("box")), Join::TooMany));
}

#[test]
fn wherever_the_old_connection_broke_off_the_next_one_continues_with_whole_messages() {
    let lengths = [1, 200, 70_000];
    let frames: usize = {
        let registry = registry(&[]);
        let _holder = seated(&registry, "box", Instant::now());
        let phone = joined(&registry, "box");
        lengths.iter().map(|length| message(&phone, *length).1.len()).sum()
    };
    let cuts = (0..400).chain((400..frames).step_by(9_973)).chain(frames - 10..=frames);
    for cut in cuts {
        let registry = registry(&[]);
        let now = Instant::now();
        let mut old = seated(&registry, "box", now);
        let phone = joined(&registry, "box");
        let (mut expected, mut stream) = (Vec::new(), Vec::new());
        for length in lengths {
            let (text, frame) = message(&phone, length);
            stream.extend_from_slice(frame.as_bytes());
            if stream.len() > cut {
                expected.push(text);
            }
            assert!(matches!(phone.forward(frame), Forwarded::Queued));
        }
        let mut sink = Sink::taking(0);
        for portion in [cut / 3, cut / 3, cut - cut / 3 * 2] {
            sink.room = portion;
            sink.flush(old.outbox());
        }
        assert!(sink.bytes == stream[..cut], "cut at {cut}");
        old.release(Ended::Dropped, now);
        drop(old);
        let new = seated(&registry, "box", now);
        assert!(said(&new) == expected, "cut at {cut}");
        assert_eq!(said(&new), [] as [&str; 0]);
    }
}

#[test]
fn a_message_that_an_ending_connection_still_finishes_is_not_sent_again() {
    let (registry, mut old, phone, mut sink) = mid_message();
    old.release(Ended::ByRelay(Close::Protocol), Instant::now());
    old.outbox().close(Close::Protocol, Manner::Abort);
    sink.room = usize::MAX;
    sink.flush(old.outbox());
    let close = "close 1002 protocol error".to_owned();
    assert_eq!(sink.frames(), [wrapped(&phone, "\"begun\""), close]);
    let new = seated(&registry, "box", Instant::now());
    assert_eq!(said(&new), [wrapped(&phone, "\"next\"")]);
    drop(old);
    forward(&phone, "1");
    assert_eq!(said(&new), [wrapped(&phone, "1")]);
}

#[test]
fn a_message_that_an_ending_connection_does_not_finish_is_sent_again_whole() {
    let (registry, mut old, phone, _) = mid_message();
    old.release(Ended::ByPeer(Some(1000)), Instant::now());
    old.outbox().close(Close::Reply(Some(1000)), Manner::Abort);
    drop(old);
    let new = seated(&registry, "box", Instant::now());
    assert_eq!(said(&new), [wrapped(&phone, "\"begun\""), wrapped(&phone, "\"next\"")]);
}

#[test]
fn a_claim_does_not_wait_for_an_old_connection_to_finish_its_message() {
    let (registry, mut old, phone, _) = mid_message();
    old.release(Ended::ByPeer(None), Instant::now());
    old.outbox().close(Close::Reply(None), Manner::Abort);
    let new = seated(&registry, "box", Instant::now());
    assert_eq!(said(&new), [wrapped(&phone, "\"begun\""), wrapped(&phone, "\"next\"")]);
    drop(old);
    forward(&phone, "1");
    assert_eq!(said(&new), [wrapped(&phone, "1")]);
}

/// A binary whose socket has accepted a part of the first of two messages.
fn mid_message() -> (Rc<Registry>, ServerSeat, PhoneSeat, Sink) {
    let registry = registry(&[]);
    let holder = seated(&registry, "box", Instant::now());
    let phone = joined(&registry, "box");
    forward(&phone, "\"begun\"");
    forward(&phone, "\"next\"");
    let mut sink = Sink::taking(10);
    sink.flush(holder.outbox());
    (registry, holder, phone, sink)
}

#[test]
fn a_phone_that_leaves_in_the_window_is_forgotten_unless_the_binary_knows_it() {
    let registry = registry(&[]);
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let (mut known, mut unknown) = (joined(&registry, "box"), joined(&registry, "box"));
    forward(&known, "1");
    assert_eq!(said(&holder), [wrapped(&known, "1")]);
    holder.release(Ended::Dropped, now);
    let mut late = joined(&registry, "box");
    for phone in [&known, &unknown, &late] {
        forward(phone, "2");
    }
    known.leave(Ended::ByPeer(Some(4000)));
    unknown.leave(Ended::ByPeer(Some(4000)));
    late.leave(Ended::Dropped);
    let holder = seated(&registry, "box", now);
    assert_eq!(said(&holder), [wrapped(&known, "2"), noticed(&known.conn_id(), 4000)]);
}

#[test]
fn half_a_message_on_a_dead_connection_makes_no_phone_known() {
    let registry = registry(&[]);
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let mut phone = joined(&registry, "box");
    forward(&phone, "\"half\"");
    Sink::taking(10).flush(holder.outbox());
    holder.release(Ended::Dropped, now);
    phone.leave(Ended::Dropped);
    let holder = seated(&registry, "box", now);
    assert_eq!(said(&holder), [] as [&str; 0]);
}

#[test]
fn a_phone_that_left_before_the_window_keeps_its_messages_and_its_notice() {
    let registry = registry(&[]);
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let mut phone = joined(&registry, "box");
    let mut mute = joined(&registry, "box");
    forward(&phone, "1");
    phone.leave(Ended::Dropped);
    mute.leave(Ended::Dropped);
    holder.release(Ended::Dropped, now);
    let holder = seated(&registry, "box", now);
    let conn_id = phone.conn_id();
    assert_eq!(said(&holder), [wrapped(&phone, "1"), noticed(&conn_id, 1001)]);
}

#[test]
fn an_end_by_silence_alone_costs_the_phones_their_sessions() {
    let silent = [Ended::ByRelay(Close::HeartbeatTimeout), Ended::WriteTimeout, Ended::Unreachable];
    let others = [
        Ended::Dropped,
        Ended::ByPeer(None),
        Ended::ByPeer(Some(1011)),
        Ended::ByRelay(Close::MessageTimeout),
        Ended::ByRelay(Close::Protocol),
    ];
    for (ended, is_silent) in
        silent.map(|ended| (ended, true)).into_iter().chain(others.map(|ended| (ended, false)))
    {
        let registry = registry(&[]);
        let now = Instant::now();
        let mut old = seated(&registry, "box", now);
        let (known, unknown) = (joined(&registry, "box"), joined(&registry, "box"));
        forward(&known, "1");
        assert_eq!(said(&old).len(), 1);
        old.release(ended, now);
        let late = joined(&registry, "box");
        for phone in [&known, &unknown, &late] {
            forward(phone, "2");
        }
        assert_eq!(said_to(&known), [] as [&str; 0], "not before the claim");
        let new = seated(&registry, "box", now);
        let closed = ["close 4404 binary reclaimed server-id"];
        if is_silent {
            assert_eq!(said_to(&known), closed, "{ended:?}");
            assert_eq!(said_to(&unknown), closed, "{ended:?}");
            let mut expected = vec![wrapped(&late, "2"), noticed(&known.conn_id(), 4404)];
            let mut got = said(&new);
            expected.sort();
            got.sort();
            assert_eq!(got, expected, "{ended:?}");
            assert!(matches!(known.forward(message(&known, 1).1), Forwarded::Gone));
        } else {
            let expected = [&known, &unknown, &late].map(|phone| wrapped(phone, "2"));
            assert_eq!(said(&new), expected, "{ended:?}");
            assert_eq!(said_to(&known), [] as [&str; 0]);
        }
        assert_eq!(said_to(&late), [] as [&str; 0], "it came after the old connection");
    }
}

#[test]
fn a_directive_closes_behind_what_was_queued_and_is_not_noticed() {
    let registry = registry(&[]);
    let holder = seated(&registry, "box", Instant::now());
    let (known, unknown) = (joined(&registry, "box"), joined(&registry, "box"));
    forward(&known, "1");
    assert_eq!(said(&holder).len(), 1);
    forward(&known, "2");
    for phone in [&known, &unknown] {
        deliver(&holder, &wrapped(phone, "3"));
        let conn_id = phone.conn_id();
        let last = format!(r#"{{"conn_id":"{conn_id}","frame":4,"close_code":4401}}"#);
        assert_eq!(deliver(&holder, &last), Delivery::Done);
        deliver(&holder, &noticed(&conn_id, 1000));
        assert!(matches!(phone.forward(message(phone, 1).1), Forwarded::Gone));
        assert_eq!(said_to(phone), ["3", "4", "close 4401 "]);
    }
    assert_eq!(said(&holder), [wrapped(&known, "2")]);
}

#[test]
fn what_a_phone_on_its_way_out_holds_is_free_when_its_connection_is_gone() {
    let registry = registry(&[]);
    let holder = seated(&registry, "box", Instant::now());
    let phone = joined(&registry, "box");
    fill_queue(&holder, &phone, 10);
    close(&holder, &phone, 4401);
    assert!(registry.ledger().total() > 10_000);
    drop(phone);
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn evicting_closes_every_attached_phone_at_every_reclaim() {
    let registry = registry(&["--reclaim", "evict"]);
    let now = Instant::now();
    let mut old = seated(&registry, "box", now);
    let known = joined(&registry, "box");
    forward(&known, "1");
    assert_eq!(said(&old).len(), 1);
    old.release(Ended::ByPeer(Some(1000)), now);
    let late = joined(&registry, "box");
    forward(&known, "2");
    forward(&late, "2");
    let new = seated(&registry, "box", now);
    for phone in [&known, &late] {
        assert_eq!(said_to(phone), ["close 4404 binary reclaimed server-id"]);
    }
    assert_eq!(said(&new), [noticed(&known.conn_id(), 4404)]);
    assert_eq!(registry.counts().phones, 0);
}

#[test]
fn code_4421_becomes_4404_for_phones_that_outlived_a_connection_and_for_no_other() {
    let registry = registry(&[]);
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let fresh = joined(&registry, "box");
    let (outlived, other_code) = (joined(&registry, "box"), joined(&registry, "box"));
    let veteran = joined(&registry, "box");
    close(&holder, &fresh, 4421);
    assert_eq!(said_to(&fresh), ["close 4421 "]);
    holder.release(Ended::Dropped, now);
    let in_window = joined(&registry, "box");
    let twice = joined(&registry, "box");
    let mut holder = seated(&registry, "box", now);
    let after = joined(&registry, "box");
    for (phone, code, expected) in
        [(&outlived, 4421, 4404), (&other_code, 4412, 4412), (&in_window, 4421, 4421)]
    {
        close(&holder, phone, code);
        assert!(said_to(phone)[0].starts_with(&format!("close {expected} ")));
    }
    holder.release(Ended::Dropped, now);
    let holder = seated(&registry, "box", now);
    for phone in [&veteran, &twice, &after] {
        close(&holder, phone, 4421);
        assert!(said_to(phone)[0].starts_with("close 4404 "));
    }
}

#[test]
fn a_frame_for_an_unknown_id_is_answered_once_and_only_if_it_has_this_servers_shape() {
    let registry = registry(&[]);
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let _other = seated(&registry, "other", now);
    let stranger = "client-box-00000000000000ab";
    let elsewhere = joined(&registry, "other").conn_id();
    for silent in [
        "client-box-00000000000000AB",
        "client-box-00000000000000a",
        "client-other-00000000000000ab",
        "server-box-0000ab00",
        "x",
        &elsewhere,
    ] {
        assert_eq!(deliver(&holder, &envelope(silent, "1")), Delivery::UnknownPhone);
    }
    for directive in [
        format!(r#"{{"conn_id":"{stranger}","close_code":4401}}"#),
        format!(r#"{{"conn_id":"{stranger}","frame":1,"close_code":4401}}"#),
    ] {
        assert_eq!(deliver(&holder, &directive), Delivery::UnknownPhone);
    }
    assert_eq!(said(&holder), [] as [&str; 0]);
    for _ in 0..3 {
        assert_eq!(deliver(&holder, &envelope(stranger, "1")), Delivery::UnknownPhone);
    }
    assert_eq!(said(&holder), [noticed(stranger, 1001)]);
    deliver(&holder, &envelope(stranger, "1"));
    assert_eq!(said(&holder), [] as [&str; 0]);
    holder.release(Ended::Dropped, now);
    let holder = seated(&registry, "box", now);
    deliver(&holder, &envelope(stranger, "1"));
    assert_eq!(said(&holder), [noticed(stranger, 1001)], "once a connection");
}

#[test]
fn ids_that_got_their_close_notice_are_not_answered_again() {
    let registry = registry(&[]);
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let (mut one, mut two) = (joined(&registry, "box"), joined(&registry, "box"));
    forward(&one, "1");
    forward(&two, "1");
    assert_eq!(said(&holder).len(), 2);
    one.leave(Ended::Dropped);
    deliver(&holder, &wrapped(&one, "1"));
    assert_eq!(said(&holder), [noticed(&one.conn_id(), 1001)]);
    holder.release(Ended::Dropped, now);
    two.leave(Ended::Dropped);
    let holder = seated(&registry, "box", now);
    deliver(&holder, &wrapped(&two, "1"));
    assert_eq!(said(&holder), [noticed(&two.conn_id(), 1001)], "the kept notice will do");
    deliver(&holder, &wrapped(&two, "1"));
    assert_eq!(said(&holder), [] as [&str; 0]);
}

#[test]
fn the_last_1024_ids_that_got_a_notice_are_remembered_and_no_more() {
    let registry = registry(&[]);
    let holder = seated(&registry, "box", Instant::now());
    check_memory_of_notices(&holder, 0);
}

#[test]
fn a_claim_with_more_than_1024_queued_notices_remembers_no_more_either() {
    let registry = registry(&["--max-slot-queue-bytes", "4MiB"]);
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let mut last = None;
    for _ in 0..REMEMBERED_NOTICES + 500 {
        let phone = joined(&registry, "box");
        forward(&phone, "1");
        last = Some(phone.conn_id());
    }
    holder.release(Ended::Dropped, now);
    let holder = seated(&registry, "box", now);
    deliver(&holder, &envelope(&last.unwrap(), "1"));
    assert_eq!(said(&holder).len(), 2 * (REMEMBERED_NOTICES + 500));
    check_memory_of_notices(&holder, 10_000);
}

/// Sends frames for made-up ids, numbered from `base`, and checks which of them are answered.
fn check_memory_of_notices(holder: &ServerSeat, base: usize) {
    let stranger = |number: usize| format!("client-box-{:016x}", base + number);
    let first = stranger(0);
    for number in 0..REMEMBERED_NOTICES {
        deliver(holder, &envelope(&stranger(number), "1"));
        assert_eq!(said(holder), [noticed(&stranger(number), 1001)]);
    }
    deliver(holder, &envelope(&first, "1"));
    assert_eq!(said(holder), [] as [&str; 0], "the oldest of them is still remembered");
    deliver(holder, &envelope(&stranger(REMEMBERED_NOTICES), "1"));
    assert_eq!(said(holder).len(), 1);
    deliver(holder, &envelope(&first, "1"));
    assert_eq!(said(holder), [noticed(&first, 1001)], "one more, and it is forgotten");
}

#[test]
fn unknown_ids_are_not_answered_while_the_queue_is_over_half_full() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", Instant::now());
    let phones = [joined(&registry, "box"), joined(&registry, "box")];
    let stranger = "client-box-00000000000000ab";
    for phone in &phones {
        for _ in 0..8 {
            forward_bytes(phone, 3_000);
        }
    }
    deliver(&holder, &envelope(stranger, "1"));
    assert_eq!(said(&holder).len(), 16, "messages alone");
    deliver(&holder, &envelope(stranger, "1"));
    assert_eq!(said(&holder), [noticed(stranger, 1001)]);
}

#[test]
fn a_phone_fills_half_of_the_slots_queue_and_is_then_held_back_in_the_window_too() {
    let registry = registry(&SMALL);
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let (flood, calm) = (joined(&registry, "box"), joined(&registry, "box"));
    holder.release(Ended::Dropped, now);
    let mut queued = 0;
    let held = loop {
        match flood.forward(message(&flood, 3_000).1) {
            Forwarded::Queued => queued += 1,
            Forwarded::Held(frame) => break frame,
            Forwarded::Gone => panic!("the phone is attached"),
        }
    };
    assert!((8..=10).contains(&queued), "{queued} of about 3 KB each in 32 KiB");
    forward(&calm, "1");
    let (woken, waker) = counting();
    flood.source().wake_when_free(&waker);
    let holder = seated(&registry, "box", now);
    assert_eq!(woken.count(), 0, "a claim alone makes no room");
    assert_eq!(said(&holder).len(), queued + 1);
    assert!(woken.count() > 0);
    assert!(matches!(flood.forward(held), Forwarded::Queued));
    assert_eq!(said(&holder).len(), 1);
}

#[test]
fn the_memory_budget_closes_the_phones_that_hold_most_one_after_the_other() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", Instant::now());
    let phones = [10, 20, 30, 20].map(|count| {
        let phone = joined(&registry, "box");
        fill_queue(&holder, &phone, count);
        phone
    });
    let [least, third, most, second] = &phones;
    assert!(phones.iter().all(|phone| phone.outbox().sealed().is_none()));
    // Half in the slot's queue and half in its own: the sum counts.
    for _ in 0..4 {
        forward_bytes(second, 2_000);
    }
    let outsider = Account::open(registry.ledger());
    let over = |extra: usize| {
        outsider.add(128 * 1024 - registry.ledger().total() + extra);
        registry.relieve();
    };
    over(1);
    assert_eq!(said_to(most), ["close 1013 memory budget exhausted"]);
    assert!(registry.ledger().total() <= 128 * 1024);
    assert!([least, third, second].iter().all(|phone| phone.outbox().sealed().is_none()));
    over(40_000);
    assert_eq!(said_to(second), ["close 1013 memory budget exhausted"]);
    assert_eq!(said_to(third), ["close 1013 memory budget exhausted"]);
    assert_eq!(least.outbox().sealed(), None);
    assert_eq!(registry.counts().phones, 1);
    assert_eq!(holder.outbox().sealed(), None);
}

#[test]
fn the_memory_budget_reclaims_what_a_departed_phone_has_queued() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", Instant::now());
    let (mut gone, stays) = (joined(&registry, "box"), joined(&registry, "box"));
    for _ in 0..8 {
        forward_bytes(&gone, 3_000);
    }
    forward(&stays, "1");
    gone.leave(Ended::ByPeer(Some(1000)));
    let outsider = Account::open(registry.ledger());
    outsider.add(128 * 1024 - registry.ledger().total() + 1);
    registry.relieve();
    assert!(!registry.ledger().is_over());
    assert_eq!(stays.outbox().sealed(), None);
    assert_eq!(said(&holder), [wrapped(&stays, "1"), noticed(&gone.conn_id(), 1000)]);
}

#[test]
fn the_memory_budget_cuts_short_what_is_written_to_a_phone_on_its_way_out() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", Instant::now());
    let (leaving, stays) = (joined(&registry, "box"), joined(&registry, "box"));
    fill_queue(&holder, &leaving, 30);
    fill_queue(&holder, &stays, 20);
    close(&holder, &leaving, 4401);
    let outsider = Account::open(registry.ledger());
    outsider.add(128 * 1024 - registry.ledger().total() + 1);
    registry.relieve();
    assert!(!registry.ledger().is_over());
    assert_eq!(said_to(&leaving), ["close 4401 "], "the binary's word stands");
    assert_eq!(stays.outbox().sealed(), None);
    assert_eq!(said_to(&stays).len(), 20);
}

#[test]
fn the_rest_of_a_message_counts_after_the_close_and_is_given_up_before_a_smaller_phone() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", Instant::now());
    let (large, small) = (joined(&registry, "box"), joined(&registry, "box"));
    deliver(&holder, &wrapped(&large, &"7".repeat(4_000)));
    fill_queue(&holder, &small, 2);
    let mut sink = Sink::taking(100);
    sink.flush(large.outbox());
    let outsider = Account::open(registry.ledger());
    let over = |extra: usize| {
        outsider.add(128 * 1024 - registry.ledger().total() + extra);
        registry.relieve();
        assert!(!registry.ledger().is_over());
    };
    let before = registry.ledger().total();
    over(1);
    assert_eq!(large.outbox().sealed(), Some((Close::OverBudget, Manner::Abort)));
    let rest = large.outbox().rest().expect("a message in progress").held();
    assert_eq!(rest, 4_004 - 100);
    assert_eq!(registry.ledger().total() - outsider.held(), before - 4_068 + rest);
    over(1);
    assert!(large.outbox().rest().is_none());
    let mut cx = Context::from_waker(Waker::noop());
    let flushed = large.outbox().poll_flush(&mut cx, &mut sink, &mut [0; 64]);
    assert!(matches!(flushed.end, FlushEnd::Cut), "{flushed:?}");
    assert_eq!(small.outbox().sealed(), None);
    drop((large, small, holder));
    assert_eq!(registry.ledger().total(), outsider.held());
}

#[test]
fn the_memory_budget_never_closes_a_binary_nor_a_phone_that_holds_nothing() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", Instant::now());
    let phone = joined(&registry, "box");
    let binary = Account::open(registry.ledger());
    binary.add(1 << 20);
    registry.relieve();
    assert_eq!(holder.outbox().sealed(), None);
    assert_eq!(phone.outbox().sealed(), None);
    fill_queue(&holder, &phone, 1);
    assert_eq!(said_to(&phone), ["close 1013 memory budget exhausted"]);
    assert_eq!(holder.outbox().sealed(), None);
    assert_eq!(said(&holder), [] as [&str; 0]);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 0, in_grace: 0 });
}

#[test]
fn a_phone_whose_queue_is_full_is_closed_alone_and_the_binary_is_told() {
    let registry = registry(&SMALL);
    let holder = seated(&registry, "box", Instant::now());
    let (slow, sibling) = (joined(&registry, "box"), joined(&registry, "box"));
    forward(&slow, "1");
    assert_eq!(said(&holder).len(), 1);
    fill_queue(&holder, &slow, 64);
    fill_queue(&holder, &sibling, 1);
    assert_eq!(said_to(&slow), ["close 1013 backlog full"]);
    assert_eq!(said_to(&sibling).len(), 1);
    assert_eq!(said(&holder), [noticed(&slow.conn_id(), 1013)]);
    assert!(matches!(slow.forward(message(&slow, 1).1), Forwarded::Gone));
}

#[test]
fn a_stop_reaches_holders_attached_phones_and_those_on_their_way_out() {
    let registry = registry(&[]);
    let now = Instant::now();
    let holder = seated(&registry, "box", now);
    let mut absent = seated(&registry, "absent", now);
    let (phone, leaving) = (joined(&registry, "box"), joined(&registry, "box"));
    let waiting = joined(&registry, "absent");
    absent.release(Ended::Dropped, now);
    fill_queue(&holder, &phone, 1);
    fill_queue(&holder, &leaving, 1);
    close(&holder, &leaving, 4401);
    let outboxes = registry.close_all();
    assert_eq!(said(&holder), ["close 1001 shutting down"]);
    assert_eq!(said_to(&waiting), ["close 1001 shutting down"]);
    assert_eq!(said_to(&phone)[1..], ["close 1001 shutting down"]);
    assert_eq!(outboxes.len(), 4);
    for outbox in outboxes {
        outbox.close(Close::ShuttingDown, Manner::Abort);
    }
    assert_eq!(said_to(&leaving), ["close 4401 "], "the first close stands, without the queue");
}

fn registry(arguments: &[&str]) -> Rc<Registry> {
    let all = ["pyrycode-relay"].into_iter().chain(arguments.iter().copied());
    let config = Config::from_options(Options::parse_arguments(all).unwrap()).unwrap();
    Registry::new(&config, &Ledger::new(config.memory_budget), &Rc::default())
}

fn id(server: &str) -> ServerId {
    ServerId::parse(server.as_bytes()).unwrap()
}

fn seated(registry: &Rc<Registry>, server: &str, now: Instant) -> ServerSeat {
    match registry.claim(&id(server), now) {
        Claim::Seated(seat) => seat,
        other => panic!("{other:?} instead of a seat"),
    }
}

fn contested(registry: &Rc<Registry>, server: &str, now: Instant) -> Contest {
    match registry.claim(&id(server), now) {
        Claim::Contested(contest) => contest,
        other => panic!("{other:?} instead of a contest"),
    }
}

fn joined(registry: &Rc<Registry>, server: &str) -> PhoneSeat {
    match registry.join(&id(server)) {
        Join::Seated(seat) => seat,
        other => panic!("{other:?} instead of a seat"),
    }
}

fn outcome(contest: &Contest) -> Option<Outcome> {
    match contest.poll_outcome(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

fn forward(phone: &PhoneSeat, text: &str) {
    let frame = Prefix::new(&phone.conn_id()).wrap(text);
    assert!(matches!(phone.forward(frame), Forwarded::Queued));
}

fn forward_bytes(phone: &PhoneSeat, length: usize) {
    assert!(matches!(phone.forward(message(phone, length).1), Forwarded::Queued));
}

/// A message of `length` bytes from `phone`: as text and as it is queued.
fn message(phone: &PhoneSeat, length: usize) -> (String, Frame) {
    let inner = "7".repeat(length);
    (wrapped(phone, &inner), Prefix::new(&phone.conn_id()).wrap(&inner))
}

fn deliver(holder: &ServerSeat, text: &str) -> Delivery {
    holder.deliver(&Envelope::parse(text).unwrap())
}

fn close(holder: &ServerSeat, phone: &PhoneSeat, code: u16) {
    assert_eq!(deliver(holder, &noticed(&phone.conn_id(), code)), Delivery::Done);
}

/// Queues `count` messages of about 1 KB for a phone that does not read.
fn fill_queue(holder: &ServerSeat, phone: &PhoneSeat, count: usize) {
    for _ in 0..count {
        deliver(holder, &wrapped(phone, &"7".repeat(1_000)));
    }
}

fn envelope(conn_id: &str, frame: &str) -> String {
    format!(r#"{{"conn_id":"{conn_id}","frame":{frame}}}"#)
}

fn wrapped(phone: &PhoneSeat, frame: &str) -> String {
    envelope(&phone.conn_id(), frame)
}

fn noticed(conn_id: &str, code: u16) -> String {
    format!(r#"{{"conn_id":"{conn_id}","close_code":{code}}}"#)
}

/// What is written to the binary by a socket that takes everything.
fn said(holder: &ServerSeat) -> Vec<String> {
    let mut sink = Sink::taking(usize::MAX);
    sink.flush(holder.outbox());
    sink.frames()
}

/// The same for a phone.
fn said_to(phone: &PhoneSeat) -> Vec<String> {
    let mut sink = Sink::taking(usize::MAX);
    sink.flush(phone.outbox());
    sink.frames()
}

/// A socket that accepts so many bytes and then no more.
struct Sink {
    room: usize,
    bytes: Vec<u8>,
}

impl Sink {
    fn taking(room: usize) -> Self {
        Self { room, bytes: Vec::new() }
    }

    fn flush(&mut self, outbox: &Outbox) {
        let mut scratch = vec![0; BATCH_BYTES];
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match outbox.poll_flush(&mut cx, self, &mut scratch).end {
                FlushEnd::More => {}
                FlushEnd::Idle | FlushEnd::Blocked | FlushEnd::Closed => return,
                end @ (FlushEnd::Failed(_) | FlushEnd::Cut) => panic!("{end:?}"),
            }
        }
    }

    /// Text as it is, control frames by what they say.
    fn frames(&self) -> Vec<String> {
        let mut rest = self.bytes.as_slice();
        let mut frames = Vec::new();
        while let [first, second, ..] = *rest {
            let (length, header) = match second {
                126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
                127 => (
                    usize::try_from(u64::from_be_bytes(rest[2..10].try_into().unwrap())).unwrap(),
                    10,
                ),
                short => (usize::from(short), 2),
            };
            let payload = &rest[header..header + length];
            frames.push(match first {
                0x81 => String::from_utf8(payload.to_vec()).unwrap(),
                0x88 => {
                    let code = u16::from_be_bytes([payload[0], payload[1]]);
                    format!("close {code} {}", String::from_utf8_lossy(&payload[2..]))
                }
                0x89 => "ping".to_owned(),
                other => panic!("opcode {other:#x}"),
            });
            rest = &rest[header + length..];
        }
        assert!(rest.is_empty(), "whole frames");
        frames
    }
}

impl AsyncWrite for Sink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let accepted = bytes.len().min(self.room);
        if accepted == 0 {
            return Poll::Pending;
        }
        self.room -= accepted;
        self.bytes.extend_from_slice(&bytes[..accepted]);
        Poll::Ready(Ok(accepted))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Wakes(AtomicUsize);

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn counting() -> (Arc<Wakes>, Waker) {
    let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
    (Arc::clone(&wakes), Waker::from(wakes))
}

#[test]
fn a_revoked_slot_leaves_nothing_whether_it_is_held_probed_or_in_grace() {
    let registry = registry(&[]);
    let now = Instant::now();
    let kept = seated(&registry, "kept", now);
    let held = seated(&registry, "held", now);
    let contest = contested(&registry, "held", now);
    let phone = joined(&registry, "held");
    let mut parted = seated(&registry, "parted", now);
    parted.release(Ended::Dropped, now);
    let waiting = joined(&registry, "parted");
    let list = AllowList::parse(b"kept\nnever-claimed\n").unwrap();
    assert_eq!(registry.revoke(&list), 2);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 0, in_grace: 0 });
    assert_eq!(held.outbox().sealed(), Some((Close::NotAllowed, Manner::Abort)));
    for phone in [&phone, &waiting] {
        assert_eq!(phone.outbox().sealed(), Some((Close::NoServer, Manner::Abort)));
    }
    assert_eq!(kept.outbox().sealed(), None);
    assert_eq!(outcome(&contest), Some(Outcome::HolderGone));
    drop((held, contest, phone, waiting));
    registry.expire(now + 10 * GRACE);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 0, in_grace: 0 });
    assert_eq!(registry.revoke(&list), 0);
}
