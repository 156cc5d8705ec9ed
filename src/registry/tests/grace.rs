use super::*;

#[test]
fn a_window_lasts_to_its_deadline_and_not_longer() {
    let registry = registry(&[]);
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let phone = joined(&registry, "box");
    holder.vacate(Ended::ByPeer(Some(1000)), now);
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
    let now = Instant::now();
    let phone = {
        let _holder = seated(&registry, "box", now);
        joined(&registry, "box")
    };
    // Many of them at the very same instant: the serial alone tells them apart.
    for round in 0..50 {
        let mut holder = seated(&registry, "box", now + round % 2 * MILLISECOND);
        holder.vacate(Ended::Dropped, now + round % 2 * MILLISECOND);
    }
    let mut holder = seated(&registry, "box", now + MILLISECOND);
    registry.expire(now + 10 * GRACE);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 1, in_grace: 0 });
    holder.vacate(Ended::Dropped, now + GRACE);
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
        holder.vacate(Ended::Dropped, now);
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
        holder.vacate(Ended::Dropped, now);
        registry.expire(now + days * DAY - MILLISECOND);
        assert_eq!(registry.counts().in_grace, 1, "{days} days");
        registry.expire(now + days * DAY);
        assert_eq!(registry.counts().in_grace, 0, "{days} days");
    }
}

#[test]
fn the_reaper_hears_of_the_soonest_expiry_and_of_every_change_of_it() {
    let registry = registry(&[]);
    let now = Instant::now();
    let (woken, waker) = Wakes::counting();
    let mut cx = Context::from_waker(&waker);
    assert!(registry.poll_expiry(&mut cx, None).is_pending());

    let (mut one, mut two) = (seated(&registry, "one", now), seated(&registry, "two", now));
    assert_eq!(woken.count(), 0, "a claim schedules nothing");
    one.vacate(Ended::Dropped, now + MILLISECOND);
    assert_eq!(woken.count(), 1);
    let first = Some(now + MILLISECOND + GRACE);
    assert_eq!(registry.poll_expiry(&mut cx, None), Poll::Ready(first));
    assert!(registry.poll_expiry(&mut cx, first).is_pending());

    two.vacate(Ended::Dropped, now);
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
            assert!(matches!(phone.forward(frame), Passed::Queued));
        }
        let mut socket = MockSocket::taking(0);
        for portion in [cut / 3, cut / 3, cut - cut / 3 * 2] {
            socket.room = Some(portion);
            flush(old.outbox(), &mut socket);
        }
        assert!(socket.taken == stream[..cut], "cut at {cut}");
        old.vacate(Ended::Dropped, now);
        drop(old);
        let new = seated(&registry, "box", now);
        assert!(said(&new) == expected, "cut at {cut}");
        assert_eq!(said(&new), [] as [&str; 0]);
    }
}

#[test]
fn a_message_that_an_ending_connection_still_finishes_is_not_sent_again() {
    let (registry, mut old, phone, mut socket) = mid_message();
    old.vacate(Ended::ByRelay(Close::Protocol), Instant::now());
    old.outbox().close(Close::Protocol, Manner::Abort);
    socket.room = None;
    flush(old.outbox(), &mut socket);
    let close = "close 1002 protocol error".to_owned();
    assert_eq!(words(&socket), [wrapped(&phone, "\"begun\""), close]);
    let new = seated(&registry, "box", Instant::now());
    assert_eq!(said(&new), [wrapped(&phone, "\"next\"")]);
    drop(old);
    forward(&phone, "1");
    assert_eq!(said(&new), [wrapped(&phone, "1")]);
}

#[test]
fn a_message_that_an_ending_connection_does_not_finish_is_sent_again_whole() {
    let (registry, mut old, phone, _) = mid_message();
    old.vacate(Ended::ByPeer(Some(1000)), Instant::now());
    old.outbox().close(Close::Reply(Some(1000)), Manner::Abort);
    drop(old);
    let new = seated(&registry, "box", Instant::now());
    assert_eq!(said(&new), [wrapped(&phone, "\"begun\""), wrapped(&phone, "\"next\"")]);
}

#[test]
fn a_claim_does_not_wait_for_an_old_connection_to_finish_its_message() {
    let (registry, mut old, phone, _) = mid_message();
    old.vacate(Ended::ByPeer(None), Instant::now());
    old.outbox().close(Close::Reply(None), Manner::Abort);
    let new = seated(&registry, "box", Instant::now());
    assert_eq!(said(&new), [wrapped(&phone, "\"begun\""), wrapped(&phone, "\"next\"")]);
    drop(old);
    forward(&phone, "1");
    assert_eq!(said(&new), [wrapped(&phone, "1")]);
}

/// A binary whose socket has accepted a part of the first of two messages.
fn mid_message() -> (Rc<Registry>, ServerSeat, PhoneSeat, MockSocket) {
    let registry = registry(&[]);
    let holder = seated(&registry, "box", Instant::now());
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
    let now = Instant::now();
    let mut holder = seated(&registry, "box", now);
    let (mut known, mut unknown) = (joined(&registry, "box"), joined(&registry, "box"));
    forward(&known, "1");
    assert_eq!(said(&holder), [wrapped(&known, "1")]);
    holder.vacate(Ended::Dropped, now);
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
    flush(holder.outbox(), &mut MockSocket::taking(10));
    holder.vacate(Ended::Dropped, now);
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
    holder.vacate(Ended::Dropped, now);
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
        old.vacate(ended, now);
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
            assert!(matches!(known.forward(message(&known, 1).1), Passed::Gone));
        } else {
            let expected = [&known, &unknown, &late].map(|phone| wrapped(phone, "2"));
            assert_eq!(said(&new), expected, "{ended:?}");
            assert_eq!(said_to(&known), [] as [&str; 0]);
        }
        assert_eq!(said_to(&late), [] as [&str; 0], "it came after the old connection");
    }
}

#[test]
fn evicting_closes_every_attached_phone_at_every_reclaim() {
    let registry = registry(&["--reclaim", "evict"]);
    let now = Instant::now();
    let mut old = seated(&registry, "box", now);
    let known = joined(&registry, "box");
    forward(&known, "1");
    assert_eq!(said(&old).len(), 1);
    old.vacate(Ended::ByPeer(Some(1000)), now);
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
    holder.vacate(Ended::Dropped, now);
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
    holder.vacate(Ended::Dropped, now);
    let holder = seated(&registry, "box", now);
    for phone in [&veteran, &twice, &after] {
        close(&holder, phone, 4421);
        assert!(said_to(phone)[0].starts_with("close 4404 "));
    }
}
