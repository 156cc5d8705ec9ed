//! The judge, judged: what it accepts, and that it still condemns whatever lies just beyond.

use std::cell::{RefCell, RefMut};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use pyrycode_relay::clock;
use pyrycode_relay::clock::simulated::Simulation;
use pyrycode_relay::limits::{LINGER_TIME, MESSAGE_OVERHEAD};

use crate::actors::text::{Text, Way};
use crate::actors::world::{Connection, Directive, End, Leaving, Phone, World};
use crate::actors::{GRACE, QUEUE_BYTES, read_log};
use crate::rig::millis;
use crate::run::Expiries;

#[test]
fn a_window_counts_from_the_beginning_of_the_turn_that_logs_it_and_not_a_nanosecond_less() {
    let lasting = |lasted: Duration| {
        let simulation = begin();
        let mut expiries = Expiries::new(GRACE);
        let turn = clock::now();
        // A slow machine: the turn takes a while, and the log is read at its end.
        advance(&simulation, millis(3));
        expiries.read("event=server_released server_id=home", turn).unwrap();
        advance(&simulation, lasted - millis(3));
        expiries.read("event=server_expired server_id=home phones=0", clock::now())
    };
    assert_eq!(lasting(GRACE), Ok(()));
    assert_eq!(
        lasting(GRACE - Duration::from_nanos(1)),
        Err("the window of home lasted 2.499999999s".to_owned())
    );
    assert!(lasting(GRACE + millis(1001)).is_err());
}

#[test]
fn a_close_that_two_seconds_were_not_enough_for_may_end_in_a_reset_and_in_nothing_else() {
    let ending = |reason: &str, waited: Duration, was_reset: bool| {
        let stage = Stage::open();
        stage.phone_joins(0);
        stage.phone_says(0);
        stage.daemon_ends(End::Reset);
        stage.daemon_dials();
        stage.phone_departs(reason);
        advance(&stage.simulation, waited);
        stage.phone(0).was_reset = was_reset;
        stage.world().phone_ended(0, None, "");
        stage.verdict()
    };
    let reclaimed = "binary reclaimed server-id";
    assert_eq!(ending(reclaimed, LINGER_TIME, true), Ok(()));
    for (reason, waited, was_reset) in [
        // Too soon; an orderly end, with no close before it; no close that was ever due.
        (reclaimed, LINGER_TIME - millis(1), true),
        (reclaimed, LINGER_TIME, false),
        ("connection lost", LINGER_TIME, true),
    ] {
        let wrong = ending(reason, waited, was_reset).unwrap_err();
        assert!(wrong.contains("nobody asked for it"), "{wrong}");
    }
}

#[test]
fn a_phone_that_closes_first_is_owed_nothing_before_a_directive_and_any_other_phone_everything() {
    // What was queued was sent on the connection before, or on the one of the directive.
    for is_older in [true, false] {
        let ending = |leaving: Option<Leaving>| {
            let stage = Stage::open();
            stage.phone_joins(0);
            stage.phone_says(0);
            let first = stage.daemon_says(0);
            stage.daemon_says(0);
            if is_older {
                stage.daemon_ends(End::Clean);
                stage.daemon_dials();
            }
            stage.world().at_phone(0, &first);
            stage.daemon_directs(0, 1011);
            stage.phone(0).leaving = leaving;
            stage.world().phone_ended(0, Some(1011), "");
            stage.verdict()
        };
        let orderly = |answer, notice| Some(Leaving::Orderly { answer, notice });
        assert_eq!(ending(orderly(Some(3000), 3000)), Ok(()));
        // Whoever has shut down writing alone still reads.
        for leaving in [None, orderly(None, 1001)] {
            assert!(ending(leaving).is_err(), "{leaving:?}, {is_older}");
        }
    }
}

#[test]
fn a_gap_is_right_for_a_phone_that_left_before_the_claim_and_wrong_for_one_that_stayed() {
    let arriving = |before: &str, after: &str| {
        let stage = Stage::open();
        stage.phone_joins(0);
        stage.phone_says(0);
        // One is lost with the connection.
        stage.phone(0).sent += 1;
        stage.daemon_ends(End::Reset);
        stage.phone_departs(before);
        stage.daemon_dials();
        stage.phone_departs(after);
        stage.phone_says(0);
        stage.verdict()
    };
    let (lost, reclaimed) = ("connection lost", "binary reclaimed server-id");
    assert_eq!(arriving(lost, ""), Ok(()));
    for (before, after) in [("", ""), (reclaimed, ""), ("", lost)] {
        let wrong = arriving(before, after).unwrap_err();
        assert!(wrong.contains("number 1 was due"), "{wrong}");
    }
}

#[test]
fn a_backlog_is_full_only_where_what_has_not_arrived_does_not_fit() {
    let ending = |messages: usize, arrived: usize, reason: &str| {
        let stage = Stage::open();
        stage.phone_joins(0);
        stage.phone_says(0);
        let texts: Vec<_> = (0..messages).map(|_| stage.daemon_says(0)).collect();
        for text in &texts[..arrived] {
            stage.world().at_phone(0, text);
        }
        stage.phone_departs(reason);
        // The daemon hears of it before the phone does, and has just asked for the phone's end itself.
        stage.daemon_directs(0, 4000);
        let notice = format!("{{\"conn_id\":\"{CONN_ID}\",\"close_code\":1013}}");
        stage.world().at_daemon(1, &notice);
        let at_daemon = stage.verdict();
        if let Some(text) = texts.get(arrived) {
            // It was half written.
            stage.world().at_phone(0, text);
        }
        stage.world().phone_ended(0, Some(1013), "backlog full");
        assert_eq!(stage.verdict().is_ok(), at_daemon.is_ok());
        at_daemon
    };
    let fits = {
        let stage = Stage::open();
        stage.phone_joins(0);
        stage.phone_says(0);
        let (mut held, mut fits) = (0, 0_usize);
        loop {
            held += stage.daemon_says(0).len() + 10 + MESSAGE_OVERHEAD;
            if held > QUEUE_BYTES {
                break fits;
            }
            fits += 1;
        }
    };
    assert!(fits > 100, "{fits}");
    let full = "backlog full";
    assert_eq!(ending(fits + 1, 0, full), Ok(()));
    for (messages, arrived, reason) in
        [(fits, 0, full), (fits + 1, fits, full), (0, 0, full), (fits + 1, 0, "connection lost")]
    {
        let wrong = ending(messages, arrived, reason).unwrap_err();
        assert!(wrong.contains("phone 0 leaves None"), "{wrong}");
    }
}

/// A world of one phone whose daemon has just come, without a relay.
struct Stage {
    simulation: Simulation,
    worlds: HashMap<String, Rc<RefCell<World>>>,
}

impl Stage {
    fn open() -> Self {
        let world = World::new(0, "home".to_owned(), SEED, GRACE);
        let worlds = HashMap::from([(world.id.clone(), Rc::new(RefCell::new(world)))]);
        let stage = Self { simulation: begin(), worlds };
        stage.daemon_dials();
        stage
    }

    fn world(&self) -> RefMut<'_, World> {
        self.worlds["home"].borrow_mut()
    }

    fn phone(&self, number: u32) -> RefMut<'_, Phone> {
        RefMut::map(self.world(), |world| world.phones.get_mut(&number).unwrap())
    }

    /// What was found wrong.
    fn verdict(&self) -> Result<(), String> {
        self.world().wrong.take().map_or(Ok(()), Err)
    }

    fn log(&self, event: &str) {
        read_log(&format!("level=info event={event}"), clock::now(), &self.worlds);
    }

    /// A moment later the daemon is connected and has the slot.
    fn daemon_dials(&self) {
        let dialed = advance(&self.simulation, millis(10));
        self.log("server_claimed server_id=home");
        let seated = Some(advance(&self.simulation, millis(10)));
        self.world().connections.push(Connection { seated, ..Connection::dialed(dialed) });
    }

    fn daemon_ends(&self, end: End) {
        let left = advance(&self.simulation, millis(10));
        let on = self.world().latest();
        self.world().connections[on as usize - 1].left = Some(left);
        self.world().end_connection(on, end);
        self.log("server_released server_id=home");
    }

    fn phone_joins(&self, number: u32) {
        let opened = Some(advance(&self.simulation, millis(10)));
        let opened_on = self.world().seated();
        self.world().phones.entry(number).or_default();
        let mut phone = self.phone(number);
        (phone.opened, phone.opened_on) = (opened, opened_on);
    }

    /// The log tells that the relay took the phone off the slot, if there is a reason.
    fn phone_departs(&self, reason: &str) {
        if !reason.is_empty() {
            self.log(&format!(
                "phone_unregistered server_id=home conn_id={CONN_ID} reason={reason}"
            ));
        }
    }

    /// A message of a phone arrives at the daemon.
    fn phone_says(&self, phone: u32) {
        let (way, number) = (Way::ToBinary, self.phone(phone).sent);
        let frame = Text { way, world: 0, phone, connection: 0, number }.write(SEED);
        self.phone(phone).sent += 1;
        let on = self.world().latest();
        let envelope = format!("{{\"conn_id\":\"{CONN_ID}\",\"frame\":{frame}}}");
        self.world().at_daemon(on, &envelope);
    }

    /// The daemon sends a phone a message, which is returned.
    fn daemon_says(&self, number: u32) -> String {
        let on = self.world().latest();
        self.world().next_text(on, number).unwrap().1
    }

    fn daemon_directs(&self, number: u32, code: u16) {
        let (connection, since) = (self.world().latest(), clock::now());
        let mut phone = self.phone(number);
        let (codes, behind) = ([code; 2], phone.answered);
        phone.directive = Some(Directive { codes, connection, since, behind, carries: false });
    }
}

fn begin() -> Simulation {
    Simulation::begin(SEED, SystemTime::UNIX_EPOCH)
}

/// Lets this long pass.
fn advance(simulation: &Simulation, time: Duration) -> Instant {
    simulation.advance(clock::now() + time);
    clock::now()
}

const SEED: u64 = 1;
const CONN_ID: &str = "client-home-0123456789abcdef";
