//! Claiming a server-id: the first wins, a silent holder loses, a loser owns nothing.

use crate::rig::{Relay, fresh_id};

#[test]
fn a_second_claim_loses_against_a_holder_that_answers() {
    let relay = Relay::start(&[]);
    let id = fresh_id("conflict");
    let mut holder = relay.binary(&id);
    let mut newcomer = relay.binary(&id);
    let probe = holder.read_frame();
    assert_eq!(probe.opcode, crate::rig::ws::PING);
    newcomer.expect_close(4409, "server-id already claimed");
    holder.sync();
}

#[test]
fn a_silent_holder_is_taken_over() {
    let relay = Relay::start(&["--probe-timeout", "1500ms"]);
    let id = fresh_id("ghost");
    let (mut holder, mut phone, _) = relay.pair(&id);
    holder.answers_pings = false;
    let mut newcomer = relay.binary(&id);
    phone.expect_close(4404, "binary reclaimed server-id");
    holder.expect_close(1011, "heartbeat timeout");
    newcomer.sync();
}
