//! The judge, judged: what it accepts, and that it still condemns whatever lies just beyond.

use std::time::{Duration, Instant, SystemTime};

use pyrycode_relay::clock;
use pyrycode_relay::clock::simulated::Simulation;

use crate::actors::GRACE;
use crate::run::Expiries;

#[test]
fn a_window_counts_from_the_beginning_of_the_turn_that_logs_it_and_not_a_nanosecond_less() {
    let lasting = |lasted: Duration| {
        let simulation = begin();
        let mut expiries = Expiries::new(GRACE);
        let turn = clock::now();
        // A slow machine: the turn takes a while, and the log is read at its end.
        advance(&simulation, Duration::from_millis(3));
        expiries.read("event=server_released server_id=home", turn).unwrap();
        advance(&simulation, lasted - Duration::from_millis(3));
        expiries.read("event=server_expired server_id=home phones=0", clock::now())
    };
    assert_eq!(lasting(GRACE), Ok(()));
    assert_eq!(
        lasting(GRACE - Duration::from_nanos(1)),
        Err("the window of home lasted 2.499999999s".to_owned())
    );
    assert!(lasting(GRACE + Duration::from_millis(1001)).is_err());
}

fn begin() -> Simulation {
    Simulation::begin(1, SystemTime::UNIX_EPOCH)
}

/// Lets this long pass.
fn advance(simulation: &Simulation, time: Duration) -> Instant {
    simulation.advance(clock::now() + time);
    clock::now()
}
