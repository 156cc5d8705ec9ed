//! A FIFO that nobody writes to in the place of a certificate file or its key. That of the allow-list
//! is with the allow-list.

use super::{Running, exchange, program, run, text};
use crate::rig::{Plain, fresh_id};
use crate::tls::client::Files;

#[test]
fn at_a_hangup_it_is_told_and_holds_nothing_up() {
    for is_key in [false, true] {
        let files = Files::new();
        let options = files.options();
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let relay = Running::plain(Plain::ItsOwnTls, &options);
        let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("fifo"));
        files.replace_with_fifo(is_key);
        relay.signal("HUP");
        let reason = relay.wait("certificate_kept").field("reason").to_owned();
        assert!(reason.ends_with("it is no regular file"), "{reason}");
        exchange(&mut binary, &mut phone, &conn_id);
        drop((binary, phone));
        relay.stop();
    }
}

#[test]
fn at_the_start_and_in_a_check_it_is_a_mistake() {
    for is_key in [false, true] {
        let files = Files::new();
        files.replace_with_fifo(is_key);
        for command in [&[][..], &["check"]] {
            let mut command = program(command);
            command.args(files.options());
            let output = run(command);
            let said = [text(&output.stdout), text(&output.stderr)].concat();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("it is no regular file"), "{said}");
        }
    }
}
