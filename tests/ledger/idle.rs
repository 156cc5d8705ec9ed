//! Connections that have had much to do and have nothing to do now.

use relay_test_kit::frame::{TEXT, encode};

use crate::client::{Ws, envelope, introduce, json};
use crate::measure::Expected::AtMost;
use crate::measure::Watched;

#[test]
fn connections_that_are_idle_after_a_burst_cost_as_much_as_they_may() {
    const SERVERS: usize = 16;
    const PHONES: usize = 3;
    let mut watched = Watched::start(&[]);
    let mut connected = Vec::new();
    for number in 0..SERVERS {
        let server = format!("burst-{number}");
        let mut binary = watched.binary(&server);
        for _ in 0..PHONES {
            let mut phone = watched.phone(&server);
            let conn_id = introduce(&mut phone, &mut binary);
            for (size, count) in [(1, 200), (700, 100), (64 * 1024, 2), (200_000, 1)] {
                let message = encode(true, TEXT, json(size).as_bytes());
                phone.send_raw(&message.repeat(count));
                binary.read_messages(count);
                let message = encode(true, TEXT, envelope(&conn_id, &json(size)).as_bytes());
                binary.send_raw(&message.repeat(count));
                phone.read_messages(count);
            }
            connected.push(phone);
        }
        connected.push(binary);
    }
    connected.iter_mut().for_each(Ws::sync);
    watched.check("idle after a burst", connected.len(), AtMost(0));
    drop(connected);
    watched.finish();
}
