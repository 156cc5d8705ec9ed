//! Messages in both directions: verbatim, in order, to nobody else.

use crate::rig::{Relay, envelope, fresh_id};

#[test]
fn messages_pass_both_ways_byte_for_byte() {
    let relay = Relay::start(&[]);
    let id = fresh_id("verbatim");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    for text in ["{\"a\":1}", " { \"x\" : [1, 2.50, 1e400] }\n", "\"\\u00e9 é 😀\"", "null"] {
        phone.send_text(text);
        assert_eq!(binary.read_text(), envelope(&conn_id, text));
        binary.send_text(&envelope(&conn_id, text));
        assert_eq!(phone.read_text(), text.trim());
    }
    assert_eq!(relay.health(), (1, 1));
}
