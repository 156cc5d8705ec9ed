use super::*;
use crate::clock;

#[test]
fn a_directive_closes_behind_what_was_queued_and_is_not_noticed() {
    let registry = registry(&[]);
    let holder = seated(&registry, "box", clock::now());
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
        assert!(matches!(phone.forward(message(phone, 1).1), Passed::Gone));
        assert_eq!(said_to(phone), ["3", "4", "close 4401 "]);
    }
    assert_eq!(said(&holder), [wrapped(&known, "2")]);
}

#[test]
fn what_a_phone_on_its_way_out_holds_is_free_when_its_connection_is_gone() {
    let registry = registry(&[]);
    let holder = seated(&registry, "box", clock::now());
    let phone = joined(&registry, "box");
    fill_queue(&holder, &phone, 10);
    close(&holder, &phone, 4401);
    assert!(registry.ledger.total() > 10_000);
    drop(phone);
    assert_eq!(registry.ledger.total(), 0);
}

#[test]
fn a_frame_for_an_unknown_id_is_answered_once_and_only_if_it_has_this_servers_shape() {
    let registry = registry(&[]);
    let now = clock::now();
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
    holder.vacate(Ended::Dropped, false, now);
    let holder = seated(&registry, "box", now);
    deliver(&holder, &envelope(stranger, "1"));
    assert_eq!(said(&holder), [noticed(stranger, 1001)], "once a connection");
}

#[test]
fn ids_that_got_their_close_notice_are_not_answered_again() {
    let registry = registry(&[]);
    let now = clock::now();
    let mut holder = seated(&registry, "box", now);
    let (mut one, mut two) = (joined(&registry, "box"), joined(&registry, "box"));
    forward(&one, "1");
    forward(&two, "1");
    assert_eq!(said(&holder).len(), 2);
    one.leave(Ended::Dropped);
    deliver(&holder, &wrapped(&one, "1"));
    assert_eq!(said(&holder), [noticed(&one.conn_id(), 1001)]);
    holder.vacate(Ended::Dropped, false, now);
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
    let holder = seated(&registry, "box", clock::now());
    check_memory_of_notices(&holder, 0);
}

#[test]
fn a_claim_with_more_than_1024_queued_notices_remembers_no_more_either() {
    let registry = registry(&["--max-slot-queue-bytes", "4MiB"]);
    let now = clock::now();
    let mut holder = seated(&registry, "box", now);
    let mut last = None;
    for _ in 0..REMEMBERED_NOTICES + 500 {
        let phone = joined(&registry, "box");
        forward(&phone, "1");
        last = Some(phone.conn_id());
    }
    holder.vacate(Ended::Dropped, false, now);
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
    let holder = seated(&registry, "box", clock::now());
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
