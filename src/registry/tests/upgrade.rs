//! A registry that takes over from another one, where not everything comes along.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;

/// What another program reads of it.
pub(super) fn carried<T: Serialize + DeserializeOwned>(frozen: &T) -> T {
    rmp_serde::from_slice(&rmp_serde::to_vec_named(frozen).unwrap()).unwrap()
}

/// Another registry with the slots of this one.
fn take_over(old: &Registry, now: Instant) -> Rc<Registry> {
    let new = registry(&SMALL);
    old.freeze(now, |slot| new.thaw(carried(&slot), now));
    new
}

#[test]
fn a_message_begun_on_a_connection_that_did_not_come_along_is_sent_whole_on_the_next() {
    for ended in [None, Some(Ended::ByPeer(Some(1000))), Some(Ended::Dropped)] {
        let old = registry(&SMALL);
        let now = clock::now();
        let mut holder = seated(&old, "box", now);
        let phone = joined(&old, "box");
        forward(&phone, "\"begun\"");
        forward(&phone, "\"behind it\"");
        flush(holder.outbox(), &mut MockSocket::taking(10));
        if let Some(ended) = ended {
            holder.vacate(ended, false, now);
        }
        let new = take_over(&old, now);
        let phone = PhoneSeat::thaw(&new, carried(&phone.freeze(now)), now);
        new.bury_missing(now);
        assert_eq!(new.counts(), Counts { binaries: 0, phones: 1, in_grace: 1 }, "{ended:?}");
        let holder = seated(&new, "box", now);
        let expected = [wrapped(&phone, "\"begun\""), wrapped(&phone, "\"behind it\"")];
        assert_eq!(said(&holder), expected, "{ended:?}");
    }
}

#[test]
fn phones_that_did_not_come_along_leave_and_the_binary_is_told() {
    let old = registry(&SMALL);
    let now = clock::now();
    let holder = seated(&old, "box", now);
    let (known, unknown) = (joined(&old, "box"), joined(&old, "box"));
    forward(&known, "1");
    said(&holder);
    let new = take_over(&old, now);
    let holder = ServerSeat::thaw(&new, carried(&holder.freeze(now)), now);
    new.bury_missing(now);
    assert_eq!(new.counts(), Counts { binaries: 1, phones: 0, in_grace: 0 });
    assert_eq!(said(&holder), [noticed(&known.conn_id(), 1001)]);
    drop(unknown);
}

#[test]
fn a_contest_whose_newcomer_did_not_come_along_is_over() {
    let old = registry(&SMALL);
    let now = clock::now();
    let holder = seated(&old, "box", now);
    let _contest = contested(&old, "box", now);
    let new = take_over(&old, now);
    let holder = ServerSeat::thaw(&new, carried(&holder.freeze(now)), now);
    assert!(matches!(new.claim(&id("box"), NOBODY, now), Claim::Busy));
    new.bury_missing(now);
    drop(contested(&new, "box", now));
    assert_eq!(holder.outbox().sealed(), None);
}

#[test]
fn a_contest_whose_holder_did_not_come_along_is_won() {
    let old = registry(&SMALL);
    let now = clock::now();
    let _holder = seated(&old, "box", now);
    let contest = contested(&old, "box", now);
    let new = take_over(&old, now);
    let contest = Contest::thaw(&new, carried(&contest.freeze(now)), now);
    new.bury_missing(now);
    assert_eq!(outcome(&contest), Some(Outcome::HolderGone));
    let holder = contest.win(now).unwrap();
    assert_eq!(holder.outbox().sealed(), None);
}

#[test]
fn the_rest_of_a_message_behind_a_close_is_given_up_for_the_budget_after_an_upgrade_too() {
    let old = registry(&SMALL);
    let now = clock::now();
    let holder = seated(&old, "box", now);
    let phone = joined(&old, "box");
    deliver(&holder, &wrapped(&phone, &"7".repeat(4_000)));
    flush(phone.outbox(), &mut MockSocket::taking(100));
    let outsider = Crowd::new(&old);
    outsider.add(128 * 1024 - old.ledger.total() + 1);
    old.relieve();
    let rest = phone.outbox().remainder().expect("a message in progress").held();

    let new = take_over(&old, now);
    let thawed = PhoneSeat::thaw(&new, carried(&phone.freeze(now)), now);
    // As its link does.
    thawed.sender().account().condemn();
    let remainder = thawed.outbox().remainder().expect("still in progress").held();
    assert!((rest..=rest + 64).contains(&remainder), "{remainder} instead of {rest}");
    let outsider = Crowd::new(&new);
    outsider.add(128 * 1024 - new.ledger.total() + 1);
    new.relieve();
    assert!(thawed.outbox().remainder().is_none());
    let mut cx = Context::from_waker(Waker::noop());
    let flushed = thawed.outbox().poll_flush(&mut cx, &mut MockSocket::default(), &mut [0; 64]);
    assert!(matches!(flushed.end, FlushEnd::Cut), "{flushed:?}");
}

#[test]
fn a_window_and_the_time_for_a_confirmation_go_on_where_they_were() {
    let old = registry(&SMALL);
    let start = clock::now();
    let mut holder = seated(&old, "box", start);
    let phone = joined(&old, "box");
    deliver_at(&holder, &wrapped(&phone, "1"), start);
    holder.vacate(Ended::ByPeer(None), false, start);
    let mut gone = seated(&old, "gone", start);
    gone.vacate(Ended::Dropped, false, start);
    let holder = seated(&old, "box", start);
    let second = Duration::from_secs(1);
    // It takes a second until the other one goes on.
    let frozen = carried(&phone.freeze(start + 3 * second));
    let new = registry(&SMALL);
    let resumed = start + 4 * second;
    old.freeze(start + 3 * second, |slot| new.thaw(carried(&slot), resumed));
    let phone = PhoneSeat::thaw(&new, frozen, resumed);
    let holder = ServerSeat::thaw(&new, carried(&holder.freeze(start + 3 * second)), resumed);
    new.bury_missing(resumed);
    new.expire(resumed + 2 * second - MILLISECOND);
    assert_eq!(phone.outbox().sealed(), None);
    new.expire(resumed + 2 * second);
    assert_eq!(phone.outbox().sealed(), Some((Close::Reclaimed, Manner::Abort)));
    new.expire(resumed + GRACE - 3 * second - MILLISECOND);
    assert_eq!(new.counts(), Counts { binaries: 1, phones: 0, in_grace: 1 });
    new.expire(resumed + GRACE - 3 * second);
    assert_eq!(new.counts(), Counts { binaries: 1, phones: 0, in_grace: 0 });
    drop(holder);
}
