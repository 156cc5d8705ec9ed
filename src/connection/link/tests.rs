use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::task::Waker;
use std::time::Duration;

use relay_test_kit::frame::{CLOSE, CONTINUATION, PING, PONG, TEXT, encode};
use relay_test_kit::socket::MockSocket;

use super::*;
use crate::clock;
use crate::config::{Config, Options};
use crate::limits::{BATCH_BYTES, TURN_FRAMES, TURN_TIME};
use crate::origin::{NOBODY, Origin};
use crate::queue::probe::{Inquiry, Outcome, Probe};
use crate::signals::Stop;

/// Nobody tells that it has become readable.
impl Transport for MockSocket {
    fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn has_hung_up(&self) -> bool {
        false
    }

    fn reset(&mut self) {}
}

/// A link over such a socket.
struct Scene<P> {
    began: Instant,
    link: Link<MockSocket, P>,
}

impl Scene<Rejected> {
    fn new() -> Self {
        Self::with(|peer| peer)
    }
}

impl<P: Peer> Scene<P> {
    fn with(peer: impl FnOnce(Rejected) -> P) -> Self {
        let options = Options::parse_arguments(["pyrycode-relay"]).unwrap();
        let relay = Relay::new(Config::from_options(options).unwrap(), Stop::new());
        let remote = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let upgraded = Upgraded {
            io: MockSocket::default(),
            leftover: Vec::new(),
            remote,
            permit: relay.permits.acquire(Origin::of(remote)).unwrap(),
        };
        let rejected = Rejected {
            leg: Leg::Phone,
            account: Account::open(&relay.ledger, NOBODY),
            relay: Rc::clone(&relay),
        };
        let link = Link::new(&relay, upgraded, Outbox::new(None), peer(rejected));
        Self { began: clock::now(), link }
    }

    /// What arrives while nobody looks.
    fn arrives(&mut self, bytes: Vec<u8>) {
        self.link.incoming.io().arriving.push_back(bytes);
    }

    /// A turn at that time after the first, and the opcodes that it wrote.
    fn turn_after(&mut self, minutes: u32) -> Vec<u8> {
        let now = self.began + minutes * Duration::from_secs(60);
        self.link.turn(&mut Context::from_waker(Waker::noop()), now);
        let socket = self.link.incoming.io();
        let opcodes = socket.frames().iter().map(|frame| frame.opcode).collect();
        socket.taken.clear();
        opcodes
    }
}

/// A peer that is probed.
struct Probed {
    inquiry: Rc<Inquiry>,
    otherwise: Rejected,
}

impl Peer for Probed {
    fn inquiry(&self) -> Option<&Inquiry> {
        Some(&self.inquiry)
    }

    fn leg(&self) -> Leg {
        Leg::Binary
    }

    fn conn_id(&self) -> String {
        self.otherwise.conn_id()
    }

    fn largest_message(&self) -> usize {
        self.otherwise.largest_message()
    }

    fn account(&self) -> Rc<Account> {
        self.otherwise.account()
    }

    fn message(&mut self, text: Option<&str>, now: Instant) -> Verdict {
        self.otherwise.message(text, now)
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.otherwise.poll_resume(cx)
    }

    fn freeze(&self, outbox: &Outbox, now: Instant) -> FrozenPeer {
        self.otherwise.freeze(outbox, now)
    }

    fn ended(&mut self, ended: Ended, amid: bool, now: Instant) {
        self.otherwise.ended(ended, amid, now);
    }
}

const NOTHING: [u8; 0] = [];

#[test]
fn an_answer_that_came_while_nobody_looked_is_heard_before_the_peer_is_given_up() {
    let mut scene = Scene::new();
    assert_eq!(scene.turn_after(0), NOTHING);
    assert_eq!(scene.turn_after(1), [PING]);
    scene.arrives(encode(true, PONG, b""));
    assert_eq!(scene.turn_after(2), NOTHING);
    assert_eq!(scene.turn_after(3), [PING]);
    assert_eq!(scene.turn_after(4), [CLOSE]);
}

#[test]
fn a_probe_whose_time_is_over_counts_what_came_while_nobody_looked() {
    for (answer, outcome) in [(true, Outcome::Answered), (false, Outcome::Silent)] {
        let probe = Rc::new(Probe::new(clock::now()));
        let inquiry = Inquiry::new(Some(Rc::clone(&probe)));
        let mut scene = Scene::with(|otherwise| Probed { inquiry, otherwise });
        scene.link.outbox.ask(*probe.payload());
        assert_eq!(scene.turn_after(0), [PING]);
        if answer {
            scene.arrives(encode(true, PONG, probe.payload()));
        }
        probe.call_last();
        assert_eq!(probe.outcome(), None);
        scene.turn_after(0);
        assert_eq!(probe.outcome(), Some(outcome));
    }
}

#[test]
fn the_end_of_a_message_that_came_while_nobody_looked_is_in_time() {
    let message = encode(true, TEXT, &[b' '; 256 * 1024]);
    for comes_to_its_end in [true, false] {
        let mut scene = Scene::new();
        let (beginning, rest) = message.split_at(9);
        scene.arrives(beginning.to_vec());
        assert_eq!(scene.turn_after(0), NOTHING);
        let until = rest.len() - usize::from(!comes_to_its_end);
        // More than a turn takes; a read that is not full has taken all there was.
        for record in rest[..until].chunks(BATCH_BYTES) {
            scene.arrives(record.to_vec());
        }
        let written: Vec<_> = (0..20).flat_map(|_| scene.turn_after(1)).collect();
        assert_eq!(written.contains(&CLOSE), !comes_to_its_end, "{written:?}");
    }
}

#[test]
fn a_message_that_never_ends_is_late_whatever_keeps_coming() {
    let mut scene = Scene::new();
    scene.arrives(encode(false, TEXT, b"1"));
    assert_eq!(scene.turn_after(0), NOTHING);
    let pongs = encode(true, PONG, &[b'p'; 125]).repeat(500);
    let mut flood = pongs.iter().copied().cycle();
    // As much as the largest message may still be that one's rest.
    let largest = scene.link.peer.largest_message() / BATCH_BYTES;
    for turn in 0.. {
        assert!(turn <= largest + 1, "it goes on for ever");
        scene.arrives(flood.by_ref().take(BATCH_BYTES).collect());
        if scene.turn_after(1).contains(&CLOSE) {
            assert!(turn >= largest, "there was more to read: {turn}");
            break;
        }
    }
}

#[test]
fn a_turn_that_begins_late_reads_all_the_same() {
    let mut scene = Scene::new();
    std::thread::sleep(2 * TURN_TIME);
    scene.arrives(encode(true, PING, b"late"));
    assert_eq!(scene.turn_after(0), [PONG]);
}

#[test]
fn a_message_that_was_given_up_for_the_budget_is_free_at_once_and_its_rest_is_no_message() {
    for in_its_own_turn in [true, false] {
        let mut scene = Scene::new();
        let account = Rc::clone(scene.link.charge.account());
        let relay = Rc::clone(&scene.link.relay);
        let ledger = &relay.ledger;
        // None of them holds as much as the message, and all of them hold nearly everything.
        let others: Vec<_> =
            (0..ledger.limit() / 10_000).map(|_| Account::open(ledger, NOBODY)).collect();
        let fill = || others.iter().for_each(|other| other.add(10_000));
        // More frames than a turn takes: some input is left.
        let empty = encode(false, CONTINUATION, b"").repeat(TURN_FRAMES);
        let more = encode(false, CONTINUATION, &[b' '; 20_000]);
        scene.arrives([encode(false, TEXT, &[b' '; 20_000]), empty, more].concat());
        if in_its_own_turn {
            fill();
            scene.link.turn(&mut Context::from_waker(Waker::noop()), scene.began);
        } else {
            scene.link.turn(&mut Context::from_waker(Waker::noop()), scene.began);
            assert!(scene.link.incoming.held() >= 40_000);
            scene.link.turn(&mut Context::from_waker(Waker::noop()), scene.began);
            fill();
            relay.registry.relieve();
        }
        assert!(account.is_condemned());
        assert_eq!(scene.link.incoming.held(), 0);
        // JSON by itself, and one more message.
        scene.arrives([encode(true, CONTINUATION, b"1"), encode(true, TEXT, b"2")].concat());
        scene.link.look_again();
        scene.link.read(&mut Context::from_waker(Waker::noop()), scene.began);
        assert_eq!(scene.link.tally.messages_in, 0);
        assert_eq!(scene.turn_after(0), [CLOSE]);
        assert!(!others.iter().any(|other| other.is_condemned()));
    }
}
