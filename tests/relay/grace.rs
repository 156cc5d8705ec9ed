//! The grace window and what survives it.

use crate::rig::{Relay, envelope, events, fresh_id, millis};

#[test]
fn messages_sent_in_the_window_arrive_once_and_in_order_under_the_old_id() {
    let relay = Relay::start(&[]);
    let id = fresh_id("window");
    let (binary, mut phone, conn_id) = relay.pair(&id);
    binary.drop_connection();
    events::wait("server_released", &[("server_id", &id)]);
    for number in 0..100 {
        phone.send_text(&format!("{number}"));
    }
    phone.sync();
    let mut binary = relay.binary(&id);
    for number in 0..100 {
        assert_eq!(binary.read_text(), envelope(&conn_id, &number.to_string()));
    }
    binary.send_text(&envelope(&conn_id, "\"back\""));
    assert_eq!(phone.read_text(), "\"back\"");
}

#[test]
fn an_expired_window_closes_the_phones_and_frees_the_server_id() {
    let relay = Relay::start(&["--grace", &millis(150)]);
    let id = fresh_id("expiry");
    let (binary, mut phone, _) = relay.pair(&id);
    binary.reset();
    phone.expect_close(4404, "no server with that id");
    let expired = events::wait("server_expired", &[("server_id", &id)]);
    assert_eq!(events::field(&expired, "phones"), "1");
    relay.phone(&id).expect_close(4404, "no server with that id");
}
