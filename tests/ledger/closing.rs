//! What is still due when a phone has left: close notices, and the rest of a message.

use relay_test_kit::frame::{TEXT, encode};

use crate::client::{Ws, envelope, introduce, json};
use crate::measure::Expected::{AtLeast, AtMost};
use crate::measure::Watched;

const LARGEST: usize = 256 * 1024;

#[test]
fn close_notices_for_an_absent_binary_are_charged_as_they_are_allocated() {
    const PHONES: usize = 64;
    let mut watched = Watched::start(&["--grace", "1000s"]);
    let mut binary = watched.binary("notices");
    let introduced = |watched: &Watched, binary: &mut Ws| -> Vec<_> {
        let phones = (0..PHONES).map(|_| {
            let mut phone = watched.phone("notices");
            introduce(&mut phone, binary);
            phone
        });
        phones.collect()
    };
    drop(introduced(&watched, &mut binary));
    binary.read_messages(PHONES);
    binary.sync();
    watched.rebase();
    let phones = introduced(&watched, &mut binary);
    binary.sync();
    drop(binary);
    watched.wait_for("the window has begun", |status| status["connected_binaries"] == 0);
    drop(phones);
    watched.wait_for("they have left", |status| status["connected_phones"] == 0);
    watched.check("close notices for 64 phones", 1, AtLeast(64 * PHONES));
    let mut binary = watched.binary("notices");
    binary.read_messages(PHONES);
    binary.sync();
    watched.check("close notices that were read", 1, AtMost(0));
    drop(binary);
    watched.finish();
}

#[test]
fn phones_that_say_a_word_and_go_are_charged_as_what_is_left_of_them_is_allocated() {
    const PHONES: usize = 256;
    let mut watched = Watched::start(&[]);
    let mut binary = watched.narrow_binary("passers-by");
    let mut phone = watched.phone("passers-by");
    // The binary does not read, and the kernel has no room for more than a part of this.
    phone.send_text(&json(LARGEST));
    phone.sync();
    for _ in 0..PHONES {
        let mut passing = watched.phone("passers-by");
        passing.send_text("1");
        passing.sync();
    }
    watched.wait_for("they have left", |status| status["connected_phones"] == 1);
    watched.check("256 phones that said a word", 2, AtLeast(LARGEST + 128 * PHONES));
    binary.widen(LARGEST);
    binary.read_messages(1 + 2 * PHONES);
    binary.sync();
    watched.check("256 phones that were read", 2, AtMost(0));
    drop((binary, phone));
    watched.finish();
}

#[test]
fn answers_for_phones_that_are_not_known_are_charged_as_they_are_allocated() {
    const UNKNOWN: usize = 1024;
    let mut watched = Watched::start(&[]);
    let mut binary = watched.narrow_binary("unknown");
    let mut phone = watched.phone("unknown");
    phone.send_text(&json(LARGEST));
    phone.sync();
    let mut bytes = Vec::new();
    for number in 0..UNKNOWN {
        let envelope = envelope(&format!("client-unknown-{number:016x}"), "1");
        bytes.extend(encode(true, TEXT, envelope.as_bytes()));
    }
    binary.send_raw(&bytes);
    watched.check("1024 answers", 2, AtLeast(LARGEST + 64 * UNKNOWN));
    binary.widen(LARGEST);
    binary.read_messages(1 + UNKNOWN);
    binary.sync();
    watched.check("1024 answers that were read", 2, AtMost(0));
    drop((binary, phone));
    watched.finish();
}

#[test]
fn the_rest_of_a_message_that_is_cut_short_is_charged_as_it_is_allocated() {
    const PHONES: usize = 8;
    let mut watched = Watched::start(&["--max-queue-bytes", "512KiB"]);
    let mut binary = watched.binary("cut");
    let phones: Vec<_> = (0..PHONES)
        .map(|_| {
            let mut phone = watched.narrow_phone("cut");
            let conn_id = introduce(&mut phone, &mut binary);
            for _ in 0..2 {
                binary.send_text(&envelope(&conn_id, &json(LARGEST)));
            }
            // The close notice: the phone's backlog is full.
            binary.read_messages(1);
            phone
        })
        .collect();
    let rest = LARGEST - 192 * 1024;
    watched.check("the rest of 8 messages", 1 + PHONES, AtLeast(PHONES * rest));
    drop((binary, phones));
    watched.finish();
}
