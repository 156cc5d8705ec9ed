use super::*;
use crate::clock;

#[test]
fn a_window_lasts_to_its_deadline_and_not_longer() {
    let registry = registry(&[]);
    let now = clock::now();
    let mut holder = seated(&registry, "box", now);
    let phone = joined(&registry, "box");
    holder.vacate(Ended::ByPeer(Some(1000)), false, now);
    drop(holder);
    registry.expire(now + GRACE - MILLISECOND);
    assert_eq!(registry.counts(), Counts { binaries: 0, phones: 1, in_grace: 1 });
    let late = joined(&registry, "box");
    registry.expire(now + GRACE);
    assert_eq!(registry.counts(), Counts::default());
    for phone in [phone, late] {
        assert_eq!(said_to(&phone), ["close 4404 no server with that id"]);
    }
    assert!(matches!(registry.join(&id("box"), NOBODY), Join::NoServer));
}

#[test]
fn deadlines_of_earlier_windows_never_expire_a_newer_claim() {
    let registry = registry(&[]);
    let now = clock::now();
    let phone = {
        let _holder = seated(&registry, "box", now);
        joined(&registry, "box")
    };
    // Many of them at the very same instant: the serial alone tells them apart.
    for round in 0..50 {
        let mut holder = seated(&registry, "box", now + round % 2 * MILLISECOND);
        holder.vacate(Ended::Dropped, false, now + round % 2 * MILLISECOND);
    }
    let mut holder = seated(&registry, "box", now + MILLISECOND);
    registry.expire(now + 10 * GRACE);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 1, in_grace: 0 });
    holder.vacate(Ended::Dropped, false, now + GRACE);
    registry.expire(now + 2 * GRACE - MILLISECOND);
    assert_eq!(registry.counts(), Counts { binaries: 0, phones: 1, in_grace: 1 });
    registry.expire(now + 2 * GRACE);
    assert_eq!(registry.counts(), Counts::default());
    drop(phone);
}

#[test]
fn windows_hold_past_24_9_and_49_7_days_of_uptime() {
    let start = clock::now();
    for days in [24, 25, 49, 50, 4_000] {
        let registry = registry(&[]);
        let now = start + days * DAY + DAY * 9 / 10;
        let mut holder = seated(&registry, "box", now);
        holder.vacate(Ended::Dropped, false, now);
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
        let now = clock::now();
        let mut holder = seated(&registry, "box", now);
        holder.vacate(Ended::Dropped, false, now);
        registry.expire(now + days * DAY - MILLISECOND);
        assert_eq!(registry.counts().in_grace, 1, "{days} days");
        registry.expire(now + days * DAY);
        assert_eq!(registry.counts().in_grace, 0, "{days} days");
    }
}

#[test]
fn the_reaper_hears_of_the_soonest_expiry_and_of_every_change_of_it() {
    let registry = registry(&[]);
    let now = clock::now();
    let (woken, waker) = Wakes::counting();
    let mut cx = Context::from_waker(&waker);
    assert!(registry.poll_expiry(&mut cx, None).is_pending());

    let (mut one, mut two) = (seated(&registry, "one", now), seated(&registry, "two", now));
    assert_eq!(woken.count(), 0, "a claim schedules nothing");
    one.vacate(Ended::Dropped, false, now + MILLISECOND);
    assert_eq!(woken.count(), 1);
    let first = Some(now + MILLISECOND + GRACE);
    assert_eq!(registry.poll_expiry(&mut cx, None), Poll::Ready(first));
    assert!(registry.poll_expiry(&mut cx, first).is_pending());

    two.vacate(Ended::Dropped, false, now);
    assert_eq!(woken.count(), 2);
    let sooner = Some(now + GRACE);
    assert_eq!(registry.poll_expiry(&mut cx, first), Poll::Ready(sooner));
    let _two = seated(&registry, "two", now);
    assert_eq!(registry.poll_expiry(&mut cx, sooner), Poll::Ready(first));
    registry.expire(now + MILLISECOND + GRACE);
    assert_eq!(registry.poll_expiry(&mut cx, first), Poll::Ready(None));
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 0, in_grace: 0 });
}

#[test]
fn wherever_the_old_connection_broke_off_the_next_one_continues_with_whole_messages() {
    let lengths = [1, 200, 70_000];
    let frames: usize = {
        let registry = registry(&[]);
        let _holder = seated(&registry, "box", clock::now());
        let phone = joined(&registry, "box");
        lengths.iter().map(|length| message(&phone, *length).1.len()).sum()
    };
    let cuts = (0..400).chain((400..frames).step_by(9_973)).chain(frames - 10..=frames);
    for cut in cuts {
        let registry = registry(&[]);
        let now = clock::now();
        let mut old = seated(&registry, "box", now);
        // One each: what was accepted is not proven, and costs its phone the session.
        let phones = lengths.map(|_| joined(&registry, "box"));
        let (mut expected, mut stream) = (Vec::new(), Vec::new());
        for (length, phone) in lengths.into_iter().zip(&phones) {
            let (text, frame) = message(phone, length);
            stream.extend_from_slice(frame.as_bytes());
            if stream.len() > cut {
                expected.push(text);
            }
            assert!(matches!(phone.forward(frame), Passed::Queued));
        }
        let lost = lengths.len() - expected.len();
        let mut socket = MockSocket::taking(0);
        for portion in [cut / 3, cut / 3, cut - cut / 3 * 2] {
            socket.room = Some(portion);
            flush(old.outbox(), &mut socket);
        }
        assert!(socket.taken == stream[..cut], "cut at {cut}");
        old.vacate(Ended::Dropped, false, now);
        drop(old);
        let new = seated(&registry, "box", now);
        let mut got = said(&new);
        let notices = got.split_off(expected.len());
        assert!(got == expected, "cut at {cut}");
        assert_eq!(notices.len(), lost, "cut at {cut}");
        assert!(notices.iter().all(|notice| notice.contains("4404")), "cut at {cut}");
        assert_eq!(said(&new), [] as [&str; 0]);
    }
}

#[test]
fn a_message_that_an_ending_connection_still_finishes_is_not_sent_again() {
    let (registry, mut old, phone, mut socket) = mid_message();
    old.vacate(Ended::ByRelay(Close::Protocol), false, clock::now());
    old.outbox().close(Close::Protocol, Manner::Abort);
    socket.room = None;
    flush(old.outbox(), &mut socket);
    let close = "close 1002 protocol error".to_owned();
    assert_eq!(words(&socket), [wrapped(&phone, "\"begun\""), close]);
    let new = seated(&registry, "box", clock::now());
    assert_eq!(said_to(&phone), ["close 4404 binary reclaimed server-id"], "nobody has proved it");
    assert_eq!(said(&new), [noticed(&phone.conn_id(), 4404)]);
    drop(old);
}

#[test]
fn a_message_that_an_ending_connection_does_not_finish_is_sent_again_whole() {
    let (registry, mut old, phone, _) = mid_message();
    old.vacate(Ended::ByPeer(Some(1000)), false, clock::now());
    old.outbox().close(Close::Reply(Some(1000)), Manner::Abort);
    drop(old);
    let new = seated(&registry, "box", clock::now());
    assert_eq!(said(&new), [wrapped(&phone, "\"begun\""), wrapped(&phone, "\"next\"")]);
}

#[test]
fn a_claim_does_not_wait_for_an_old_connection_to_finish_its_message() {
    let (registry, mut old, phone, _) = mid_message();
    old.vacate(Ended::ByPeer(None), false, clock::now());
    old.outbox().close(Close::Reply(None), Manner::Abort);
    let new = seated(&registry, "box", clock::now());
    assert_eq!(said(&new), [wrapped(&phone, "\"begun\""), wrapped(&phone, "\"next\"")]);
    drop(old);
    forward(&phone, "1");
    assert_eq!(said(&new), [wrapped(&phone, "1")]);
}

/// A binary whose socket has accepted a part of the first of two messages.
fn mid_message() -> (Rc<Registry>, ServerSeat, PhoneSeat, MockSocket) {
    let registry = registry(&[]);
    let holder = seated(&registry, "box", clock::now());
    let phone = joined(&registry, "box");
    forward(&phone, "\"begun\"");
    forward(&phone, "\"next\"");
    let mut socket = MockSocket::taking(10);
    flush(holder.outbox(), &mut socket);
    (registry, holder, phone, socket)
}

#[test]
fn a_phone_that_leaves_in_the_window_is_forgotten_unless_the_binary_knows_it() {
    let registry = registry(&[]);
    let now = clock::now();
    let mut holder = seated(&registry, "box", now);
    let (mut known, mut unknown) = (joined(&registry, "box"), joined(&registry, "box"));
    forward(&known, "1");
    assert_eq!(said(&holder), [wrapped(&known, "1")]);
    holder.vacate(Ended::Dropped, false, now);
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
    let now = clock::now();
    let mut holder = seated(&registry, "box", now);
    let mut phone = joined(&registry, "box");
    forward(&phone, "\"half\"");
    flush(holder.outbox(), &mut MockSocket::taking(10));
    holder.vacate(Ended::Dropped, false, now);
    phone.leave(Ended::Dropped);
    let holder = seated(&registry, "box", now);
    assert_eq!(said(&holder), [] as [&str; 0]);
}

#[test]
fn a_phone_that_left_before_the_window_keeps_its_messages_and_its_notice() {
    let registry = registry(&[]);
    let now = clock::now();
    let mut holder = seated(&registry, "box", now);
    let mut phone = joined(&registry, "box");
    let mut mute = joined(&registry, "box");
    forward(&phone, "1");
    phone.leave(Ended::Dropped);
    mute.leave(Ended::Dropped);
    holder.vacate(Ended::Dropped, false, now);
    let holder = seated(&registry, "box", now);
    let conn_id = phone.conn_id();
    assert_eq!(said(&holder), [wrapped(&phone, "1"), noticed(&conn_id, 1001)]);
}

#[test]
fn those_phones_survive_whose_session_is_provably_whole() {
    let silent = [Ended::ByRelay(Close::HeartbeatTimeout), Ended::WriteTimeout, Ended::Unreachable];
    let broken =
        [Ended::Dropped, Ended::ByRelay(Close::MessageTimeout), Ended::ByRelay(Close::Protocol)];
    let orderly = [Ended::ByPeer(None), Ended::ByPeer(Some(1011))];
    let ends = silent.map(|ended| (ended, false, 0)).into_iter();
    let ends = ends.chain(broken.map(|ended| (ended, false, 1)));
    let ends = ends.chain(orderly.map(|ended| (ended, false, 2)));
    // Part of a message, for nobody knows whom, has arrived or was thrown away.
    let severed = [Ended::Dropped, Ended::ByRelay(Close::MessageTimeout), orderly[0]];
    let ends = ends.chain(severed.map(|ended| (ended, true, 0)));
    let ends = ends.chain([(Ended::ByRelay(Close::BadUtf8), false, 0)]);
    for (ended, amid, trust) in ends {
        let registry = registry(&[]);
        let now = clock::now();
        let mut old = seated(&registry, "box", now);
        let [fresh, queued, read, unread, told, told_late, asked] =
            [(); 7].map(|()| joined(&registry, "box"));
        forward(&read, "1");
        assert_eq!(said_and_read(&old).len(), 1);
        deliver_at(&old, &wrapped(&told, "1"), now);
        deliver_at(&old, &wrapped(&told_late, "1"), now + MILLISECOND);
        for phone in [&told, &told_late] {
            assert_eq!(said_to(phone), ["1"]);
        }
        // Its answer is under way.
        forward(&asked, "1");
        forward(&unread, "1");
        assert_eq!(said(&old).len(), 2);
        forward(&queued, "1");
        old.vacate(ended, amid, now + QUIET);
        let late = joined(&registry, "box");
        forward(&late, "1");
        for phone in [&fresh, &queued, &read, &unread, &told, &told_late, &asked, &late] {
            assert_eq!(said_to(phone), [] as [&str; 0], "not before the claim");
        }
        let new = seated(&registry, "box", now + QUIET);
        let needs = [
            (&fresh, 0, "it has no session"),
            (&queued, 0, "nothing of it is sent"),
            (&late, 0, "it came after the old connection"),
            (&read, 1, "what it sent is read"),
            (&told, 1, "what it was told is old"),
            (&told_late, 2, "more may have been under way"),
            (&unread, 3, "nothing proves that it was read"),
            (&asked, 3, "nothing proves that it was read"),
        ];
        for (phone, needed, why) in needs {
            let closed: &[&str] = match trust >= needed {
                true => &[],
                false => &["close 4404 binary reclaimed server-id"],
            };
            assert_eq!(said_to(phone), closed, "{ended:?}: {why}");
        }
        let mut got = said(&new);
        got.retain(|text| !text.contains("4404"));
        assert_eq!(got, [&queued, &late].map(|phone| wrapped(phone, "1")), "{ended:?}");
        assert_eq!(registry.counts().phones, 3 + [0, 2, 3][trust]);
    }
}

#[test]
fn a_pong_proves_what_went_before_its_ping_and_nothing_else() {
    let registry = registry(&[]);
    let now = clock::now();
    let mut old = seated(&registry, "box", now);
    let (before, after) = (joined(&registry, "box"), joined(&registry, "box"));
    forward(&before, "1");
    assert_eq!(old.outbox().prove(now), None);
    let mut socket = MockSocket::default();
    flush(old.outbox(), &mut socket);
    let ping = socket.frames().pop().expect("a ping");
    forward(&after, "1");
    assert_eq!(old.outbox().prove(now), None, "one at a time");
    flush(old.outbox(), &mut socket);
    for wrong in [&b""[..], b"12345678", &ping.payload[1..]] {
        old.outbox().heard_pong(wrong);
    }
    assert_eq!(old.outbox().prove(now + GRACE), None, "it is not answered yet");
    old.outbox().heard_pong(&ping.payload);
    let second = now + Duration::from_secs(1);
    assert_eq!(old.outbox().prove(second - MILLISECOND), Some(second), "one a second");
    old.vacate(Ended::ByPeer(Some(1000)), false, now);
    let _new = seated(&registry, "box", now);
    assert_eq!(said_to(&before), [] as [&str; 0]);
    assert_eq!(said_to(&after), ["close 4404 binary reclaimed server-id"]);
}

/// A binary that has come back to two phones that it knows and one that it does not.
fn reclaimed(registry: &Rc<Registry>, now: Instant) -> (ServerSeat, [PhoneSeat; 3]) {
    let mut old = seated(registry, "box", now);
    let phones = [(); 3].map(|()| joined(registry, "box"));
    for phone in &phones[..2] {
        deliver_at(&old, &wrapped(phone, "1"), now);
        assert_eq!(said_to(phone), ["1"]);
    }
    old.vacate(Ended::ByPeer(Some(1000)), false, now);
    drop(old);
    (seated(registry, "box", now), phones)
}

const CONFIRMATION: Duration = Duration::from_secs(5);

#[test]
fn phones_that_are_kept_are_closed_after_5_s_unless_the_binary_speaks_to_one_of_them() {
    for is_confirmed in [false, true] {
        let registry = registry(&[]);
        let now = clock::now();
        let (holder, [first, second, fresh]) = reclaimed(&registry, now);
        assert_eq!(
            registry.poll_expiry(&mut Context::from_waker(Waker::noop()), None),
            Poll::Ready(Some(now + CONFIRMATION))
        );
        deliver(&holder, &wrapped(&fresh, "2"));
        if is_confirmed {
            deliver(&holder, &wrapped(&second, "2"));
            assert_eq!(said_to(&second), ["2"]);
        }
        forward(&first, "3");
        registry.expire(now + CONFIRMATION - MILLISECOND);
        assert_eq!(registry.counts().phones, 3);
        registry.expire(now + CONFIRMATION);
        assert_eq!(said_to(&fresh), ["2"], "it was not kept with a session");
        for phone in [&first, &second] {
            let closed: &[&str] = match is_confirmed {
                true => &[],
                false => &["close 4404 binary reclaimed server-id"],
            };
            assert_eq!(said_to(phone), closed);
        }
        assert_eq!(said(&holder).contains(&wrapped(&first, "3")), is_confirmed);
    }
}

#[test]
fn a_binary_that_does_not_know_one_of_the_kept_phones_knows_none_of_them() {
    for code in [4421, 4410] {
        let registry = registry(&[]);
        let now = clock::now();
        let (holder, [first, second, fresh]) = reclaimed(&registry, now);
        close(&holder, &first, code);
        for phone in [&first, &second] {
            assert_eq!(said_to(phone), ["close 4404 binary reclaimed server-id"], "{code}");
        }
        assert_eq!(said_to(&fresh), [] as [&str; 0]);
        registry.expire(now + CONFIRMATION);
        assert_eq!(registry.counts().phones, 1, "{code}");
        // Once it has shown that it knows them, it speaks for itself alone.
        let (holder, [first, second, _]) = reclaimed(&self::registry(&[]), now);
        deliver(&holder, &wrapped(&second, "2"));
        close(&holder, &first, code);
        assert_eq!(said_to(&second), ["2"]);
        let expected = if code == 4421 { "close 4404 " } else { "close 4410 " };
        assert!(said_to(&first)[0].starts_with(expected));
    }
}

#[test]
fn a_confirmation_is_asked_of_the_present_connection() {
    let registry = registry(&[]);
    let now = clock::now();
    let (mut holder, phones) = reclaimed(&registry, now);
    holder.vacate(Ended::ByPeer(Some(1000)), false, now + CONFIRMATION - MILLISECOND);
    registry.expire(now + CONFIRMATION);
    assert_eq!(registry.counts().phones, 3, "it was on its way");
    let _holder = seated(&registry, "box", now + CONFIRMATION);
    registry.expire(now + 2 * CONFIRMATION - MILLISECOND);
    assert_eq!(registry.counts().phones, 3);
    registry.expire(now + 2 * CONFIRMATION);
    assert_eq!(registry.counts().phones, 1);
    drop(phones);
}

#[test]
fn evicting_closes_every_attached_phone_at_every_reclaim() {
    let registry = registry(&["--reclaim", "evict"]);
    let now = clock::now();
    let mut old = seated(&registry, "box", now);
    let known = joined(&registry, "box");
    forward(&known, "1");
    assert_eq!(said(&old).len(), 1);
    old.vacate(Ended::ByPeer(Some(1000)), false, now);
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
    let now = clock::now();
    let mut holder = seated(&registry, "box", now);
    let fresh = joined(&registry, "box");
    let (outlived, other_code) = (joined(&registry, "box"), joined(&registry, "box"));
    let veteran = joined(&registry, "box");
    close(&holder, &fresh, 4421);
    assert_eq!(said_to(&fresh), ["close 4421 "]);
    holder.vacate(Ended::Dropped, false, now);
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
    holder.vacate(Ended::Dropped, false, now);
    let holder = seated(&registry, "box", now);
    for phone in [&veteran, &twice, &after] {
        close(&holder, phone, 4421);
        assert!(said_to(phone)[0].starts_with("close 4404 "));
    }
}
