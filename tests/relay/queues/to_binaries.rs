//! Queues towards binaries: nothing is lost, and phones are pushed back instead.

use std::time::Duration;

use super::{
    FLOOD_LENGTH, Flooder, flood, introduce, narrow_binary, numbered, patient, read_slowly, settle,
    widen,
};
use crate::rig::{Relay, Ws, envelope, events, fresh_id, millis, notice};

/// Small queues, so that a stalled binary is soon felt.
const SMALL: [&str; 4] = ["--max-frame-bytes", "16KiB", "--max-slot-queue-bytes", "128KiB"];

/// A relay with these options and small queues, and a binary of another server-id to see it go on.
fn start(options: &[&str]) -> (Relay, Ws) {
    let relay = patient(&[&SMALL, options].concat());
    let bystander = relay.binary(&fresh_id("bystander"));
    (relay, bystander)
}

/// The floods of some phones as their binary sees them: each in order, without a gap.
struct Floods<'a> {
    ids: &'a [String],
    next: Vec<usize>,
}

impl<'a> Floods<'a> {
    fn of(ids: &'a [String]) -> Self {
        Self { ids, next: vec![0; ids.len()] }
    }

    /// Reads a message, which must be the next of one of the floods, or else is returned.
    fn read(&mut self, binary: &mut Ws) -> Option<String> {
        let text = binary.read_text();
        let from =
            self.ids.iter().position(|id| text.starts_with(&envelope(id, "")[..20 + id.len()]));
        let Some(from) = from else { return Some(text) };
        let expected = envelope(&self.ids[from], &flood(self.next[from]));
        if text != expected {
            assert!(!text.contains("frame"), "not message {} of {from}", self.next[from]);
            return Some(text);
        }
        self.next[from] += 1;
        None
    }

    /// Reads until each flood has had so many messages, and nothing else.
    fn read_until(&mut self, binary: &mut Ws, counts: &[usize]) {
        while self.next != counts {
            assert_eq!(self.read(binary), None);
        }
    }
}

#[test]
fn a_stalled_binary_holds_its_phones_back_and_loses_nothing_when_it_reads_again() {
    let (relay, mut bystander) = start(&[]);
    let id = fresh_id("stalled");
    let mut binary = narrow_binary(&relay, &id);
    let (mut first, first_id) = relay.registered_phone(&id);
    let (second, second_id) = relay.registered_phone(&id);
    introduce(&mut first, &mut binary, &first_id);
    let floods = [first, second].map(|phone| Flooder::new(phone, || bystander.sync()));
    let [(first_count, first), (second_count, second)] = floods.map(Flooder::finish);
    widen(&binary);
    let ids = [first_id, second_id];
    Floods::of(&ids).read_until(&mut binary, &[first_count, second_count]);
    let mut phones = [first, second].map(|phone| phone.join().unwrap());
    phones.iter_mut().for_each(Ws::sync);
    binary.sync();
}

#[test]
fn a_stalled_binarys_own_frames_flow_meanwhile() {
    // It does not read for as long as this takes, on however slow a machine.
    let (relay, mut bystander) = start(&["--write-timeout", "1h"]);
    let id = fresh_id("independent");
    let mut binary = narrow_binary(&relay, &id);
    let (flooding, flooding_id) = relay.registered_phone(&id);
    let (mut sibling, sibling_id) = relay.registered_phone(&id);
    let mut flooder = Flooder::new(flooding, || bystander.sync());
    for number in 0..100 {
        let text = numbered(number, 10_000);
        binary.send_text(&envelope(&flooding_id, &text));
        assert_eq!(flooder.phone.read_text(), text);
        binary.send_text(&envelope(&sibling_id, &text));
        assert_eq!(sibling.read_text(), text);
    }
    // A directive reaches a phone that is held back, too.
    binary.send_text(&notice(&flooding_id, 4401));
    flooder.phone.expect_close_code(4401);
}

#[test]
fn a_phone_that_floods_a_stalled_binary_leaves_half_of_the_queue_to_its_siblings() {
    let (relay, mut bystander) = start(&[]);
    let id = fresh_id("half");
    let mut binary = narrow_binary(&relay, &id);
    let (flooding, flooding_id) = relay.registered_phone(&id);
    let (mut calm, calm_id) = relay.registered_phone(&id);
    let flooder = Flooder::new(flooding, || bystander.sync());
    let taken_first = flooder.count;
    for number in 0..10 {
        calm.send_text(&numbered(number, FLOOD_LENGTH));
        // A phone that is held back is not read, so its ping would not be answered.
        calm.sync();
    }
    let (count, flooding) = flooder.finish();
    widen(&binary);
    let ids = [flooding_id];
    let mut floods = Floods::of(&ids);
    for number in 0..10 {
        let text = loop {
            if let Some(text) = floods.read(&mut binary) {
                break text;
            }
        };
        assert_eq!(text, envelope(&calm_id, &numbered(number, FLOOD_LENGTH)));
    }
    assert!(floods.next[0] < taken_first, "the flood's backlog in the kernel went first");
    floods.read_until(&mut binary, &[count]);
    flooding.join().unwrap().sync();
}

/// Messages of a flood that are counted to see that none is preferred: many times what one read of the
/// relay's brings. Who has to wait for the kernel is overtaken by right, once per read.
const FAIR: usize = 300;

#[test]
fn phones_that_flood_together_are_let_in_by_turns() {
    let (relay, mut bystander) = start(&[]);
    let id = fresh_id("turns");
    let mut binary = narrow_binary(&relay, &id);
    let phones: Vec<_> = (0..5).map(|_| relay.registered_phone(&id)).collect();
    let (phones, ids): (Vec<_>, Vec<_>) = phones.into_iter().unzip();
    let floods: Vec<_> =
        phones.into_iter().map(|phone| Flooder::new(phone, || bystander.sync())).collect();
    let (counts, flooding): (Vec<_>, Vec<_>) = floods.into_iter().map(Flooder::finish).unzip();
    widen(&binary);
    let mut floods = Floods::of(&ids);
    // What was on its way before they all waited comes first, and is mostly of those that began.
    while floods.next.contains(&0) {
        assert_eq!(floods.read(&mut binary), None);
    }
    let before = floods.next.clone();
    while floods.next.iter().zip(&before).all(|(next, before)| next - before < FAIR) {
        assert_eq!(floods.read(&mut binary), None);
    }
    let shares = || floods.next.iter().zip(&before).map(|(next, before)| next - before);
    let (least, most) = (shares().min().unwrap(), shares().max().unwrap());
    assert!(least > most / 2, "from {before:?} on, while all were flooding: {:?}", floods.next);
    floods.read_until(&mut binary, &counts);
    let mut phones: Vec<_> = flooding.into_iter().map(|phone| phone.join().unwrap()).collect();
    phones.iter_mut().for_each(Ws::sync);
}

#[test]
fn a_slow_binary_that_makes_progress_is_never_cut_and_loses_nothing() {
    const MESSAGES: usize = 150;
    let timeout = millis(800);
    let (relay, _) = start(&["--write-timeout", &timeout]);
    let id = fresh_id("slow-binary");
    let mut binary = narrow_binary(&relay, &id);
    let (mut phone, conn_id) = relay.registered_phone(&id);
    let flooding = std::thread::spawn(move || {
        for number in 0..MESSAGES {
            phone.send_text(&flood(number));
        }
        phone
    });
    let slowly = read_slowly(&mut binary, Duration::from_millis(1800));
    assert!(slowly < MESSAGES * FLOOD_LENGTH / 2, "the slow part read {slowly} bytes");
    widen(&binary);
    Floods::of(&[conn_id]).read_until(&mut binary, &[MESSAGES]);
    flooding.join().unwrap().sync();
    assert_eq!(events::count("server_released", &[("server_id", &id)]), 0);
}

#[test]
fn a_close_notice_is_admitted_past_the_bound_and_comes_behind_the_phones_last_message() {
    let (relay, mut bystander) = start(&[]);
    let id = fresh_id("past-the-bound");
    let mut binary = narrow_binary(&relay, &id);
    let (mut leaver, leaver_id) = relay.registered_phone(&id);
    introduce(&mut leaver, &mut binary, &leaver_id);
    let (first, first_id) = relay.registered_phone(&id);
    let (second, second_id) = relay.registered_phone(&id);
    let first = Flooder::new(first, || bystander.sync());
    leaver.send_text("\"last\"");
    leaver.sync();
    let second = Flooder::new(second, || bystander.sync());
    leaver.send_close(4000, "");
    leaver.expect_close_code(4000);
    events::wait("phone_unregistered", &[("conn_id", &leaver_id)]);
    let floods = [first, second].map(Flooder::finish);
    let [(first_count, first), (second_count, second)] = floods;
    widen(&binary);
    let ids = [first_id, second_id];
    let mut floods = Floods::of(&ids);
    let mut others = Vec::new();
    while others.len() < 2 {
        others.extend(floods.read(&mut binary));
    }
    assert_eq!(others, [envelope(&leaver_id, "\"last\""), notice(&leaver_id, 4000)]);
    floods.read_until(&mut binary, &[first_count, second_count]);
    let mut phones = [first, second].map(|phone| phone.join().unwrap());
    phones.iter_mut().for_each(Ws::sync);
    binary.sync();
}

#[test]
fn unknown_phones_are_not_answered_while_the_queue_is_over_half_full() {
    let (relay, mut bystander) = start(&[]);
    let id = fresh_id("over-half");
    let mut binary = narrow_binary(&relay, &id);
    let (flooding, flooding_id) = relay.registered_phone(&id);
    let (mut calm, calm_id) = relay.registered_phone(&id);
    let flooder = Flooder::new(flooding, || bystander.sync());
    // The flood fills a half to the last message, this goes past it.
    calm.send_text(&numbered(0, FLOOD_LENGTH));
    calm.sync();
    let ghost = |number: usize| format!("client-{id}-{number:016x}");
    for number in 0..100 {
        binary.send_text(&envelope(&ghost(number), "1"));
    }
    // The relay has carried out all of that when this has come through.
    binary.send_text(&envelope(&calm_id, "1"));
    assert_eq!(calm.read_text(), "1");
    let (count, flooding) = flooder.finish();
    widen(&binary);
    let ids = [flooding_id];
    let mut floods = Floods::of(&ids);
    let mut others = Vec::new();
    while floods.next[0] < count {
        others.extend(floods.read(&mut binary));
    }
    assert_eq!(others, [envelope(&calm_id, &numbered(0, FLOOD_LENGTH))]);
    let mut phone = flooding.join().unwrap();
    phone.sync();
    settle(&mut binary);
    // It was not given then, so it is due now.
    binary.send_text(&envelope(&ghost(0), "1"));
    assert_eq!(binary.read_text(), notice(&ghost(0), 1001));
}
