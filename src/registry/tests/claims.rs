use super::*;
use crate::clock;

#[test]
fn the_first_claim_holds_the_slot_and_the_next_one_is_contested() {
    let registry = registry(&[]);
    let now = clock::now();
    let holder = seated(&registry, "box", now);
    let _contest = contested(&registry, "box", now);
    assert!(matches!(registry.claim(&id("box"), NOBODY, now), Claim::Busy));
    let _other = seated(&registry, "Box", now);
    assert_eq!(registry.counts(), Counts { binaries: 2, phones: 0, in_grace: 0 });
    assert_eq!(said(&holder), ["ping"]);
}

#[test]
fn the_loser_of_a_claim_owns_nothing() {
    let registry = registry(&[]);
    let now = clock::now();
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
    let now = clock::now();
    let holder = seated(&registry, "box", now);
    let contest = contested(&registry, "box", now);
    holder.inquiry().heard(now + 2 * Duration::from_secs(1));
    assert_eq!(outcome(&contest), Some(Outcome::Answered));
    assert!(contest.win(clock::now()).is_err());
    assert_eq!(holder.outbox().sealed(), None);
    assert_eq!(registry.counts().binaries, 1);
}

#[test]
fn a_holder_that_lost_its_slot_vacates_and_reaches_nothing_any_more() {
    let registry = registry(&[]);
    let now = clock::now();
    let mut old = seated(&registry, "box", now);
    let contest = contested(&registry, "box", now);
    assert_eq!(outcome(&contest), None);
    let new = contest.win(clock::now()).expect("nobody answered");
    let phone = joined(&registry, "box");
    assert_eq!(said(&old), ["ping", "close 1011 heartbeat timeout"]);
    assert_eq!(deliver(&old, &wrapped(&phone, "1")), Delivery::NotHolder);
    old.vacate(Ended::Dropped, false, now);
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
    let now = clock::now();
    let mut holder = seated(&registry, "box", now);
    let phone = joined(&registry, "box");
    let contest = contested(&registry, "box", now);
    holder.vacate(Ended::Dropped, false, now);
    assert_eq!(outcome(&contest), Some(Outcome::HolderGone));
    assert!(
        matches!(registry.claim(&id("box"), NOBODY, now), Claim::Busy),
        "the newcomer is first"
    );
    let newcomer = contest.win(clock::now()).expect("the slot is free");
    registry.expire(now + 10 * GRACE);
    forward(&phone, "1");
    assert_eq!(said(&newcomer), [wrapped(&phone, "1")]);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 1, in_grace: 0 });
}

#[test]
fn slots_in_their_window_count_against_the_cap() {
    let registry = registry(&["--max-connections", "2"]);
    let now = clock::now();
    let mut one = seated(&registry, "one", now);
    let _two = seated(&registry, "two", now);
    one.vacate(Ended::Dropped, false, now);
    assert!(matches!(registry.claim(&id("three"), NOBODY, now), Claim::Full));
    let mut one = seated(&registry, "one", now);
    assert!(matches!(registry.claim(&id("two"), NOBODY, now), Claim::Contested(_)));
    one.vacate(Ended::Dropped, false, now);
    registry.expire(now + GRACE);
    let _three = seated(&registry, "three", now);
}

#[test]
fn the_phone_cap_is_one_of_each_slot_and_counts_attached_phones_alone() {
    let registry = registry(&["--max-phones", "2"]);
    let now = clock::now();
    let mut holder = seated(&registry, "box", now);
    let _other = seated(&registry, "other", now);
    let one = joined(&registry, "box");
    let two = joined(&registry, "box");
    assert!(matches!(registry.join(&id("box"), NOBODY), Join::TooMany));
    joined(&registry, "other");
    drop(one);
    let _three = joined(&registry, "box");
    holder.vacate(Ended::Dropped, false, now);
    assert!(matches!(registry.join(&id("box"), NOBODY), Join::TooMany), "in the window too");
    let holder = seated(&registry, "box", now);
    close(&holder, &two, 4401);
    let _four = joined(&registry, "box");
    assert!(matches!(registry.join(&id("box"), NOBODY), Join::TooMany));
}

#[test]
fn a_window_that_passes_during_a_contest_leaves_the_slot_to_the_newcomer() {
    let registry = registry(&["--max-connections", "1"]);
    let now = clock::now();
    let mut holder = seated(&registry, "box", now);
    let phone = joined(&registry, "box");
    let contest = contested(&registry, "box", now);
    holder.vacate(Ended::Dropped, false, now);
    registry.expire(now + GRACE);
    assert!(matches!(registry.claim(&id("other"), NOBODY, now), Claim::Full), "it still counts");
    let newcomer = contest.win(clock::now()).expect("the holder is gone");
    forward(&phone, "1");
    assert_eq!(said(&newcomer), [wrapped(&phone, "1")]);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 1, in_grace: 0 });
}

#[test]
fn a_window_that_passed_during_a_contest_passes_again_when_the_newcomer_gives_up() {
    let registry = registry(&[]);
    let now = clock::now();
    let mut holder = seated(&registry, "box", now);
    let contest = contested(&registry, "box", now);
    holder.vacate(Ended::Dropped, false, now);
    registry.expire(now + GRACE);
    let mut cx = Context::from_waker(Waker::noop());
    let soonest = Poll::Ready(Some(now + 2 * GRACE));
    assert_eq!(registry.poll_expiry(&mut cx, None), soonest, "the reaper does not spin");
    drop(contest);
    registry.expire(now + 2 * GRACE - MILLISECOND);
    assert_eq!(registry.counts().in_grace, 1);
    registry.expire(now + 2 * GRACE);
    assert_eq!(registry.counts(), Counts::default());
}
