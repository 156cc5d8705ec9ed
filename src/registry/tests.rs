mod claims;
mod grace;
mod memory;
mod model;
mod routing;
mod upgrade;

use relay_test_kit::frame::{CLOSE, PING, Received, TEXT};
use relay_test_kit::socket::MockSocket;
use relay_test_kit::wake::Wakes;

use super::*;
use crate::admission::allow::AllowList;
use crate::clock;
use crate::config::Options;
use crate::envelope::{Envelope, Prefix};
use crate::limits::{BATCH_BYTES, REMEMBERED_NOTICES};
use crate::origin::NOBODY;
use crate::queue::outbox::FlushEnd;
use crate::queue::probe::Outcome;
use crate::websocket::frames::Frame;

/// Strangers who hold memory elsewhere: many sources, none of which is ever the largest.
struct Crowd(Vec<Rc<Account>>);

impl Crowd {
    fn new(registry: &Registry) -> Self {
        let source = |number: u16| {
            Origin::V4({
                let [a, b] = number.to_be_bytes();
                [9, 9, a, b]
            })
        };
        Self((0..512).map(|number| Account::open(&registry.ledger, source(number))).collect())
    }

    fn held(&self) -> usize {
        self.0.iter().map(|account| account.held()).sum()
    }

    fn add(&self, bytes: usize) {
        for (number, account) in self.0.iter().enumerate() {
            account.add(bytes / self.0.len() + usize::from(number < bytes % self.0.len()));
        }
    }

    fn clear(&self) {
        self.0.iter().for_each(|account| account.sub(account.held()));
    }
}

const GRACE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// As long as the binary must not have spoken to a phone before its connection broke.
const QUIET: Duration = Duration::from_secs(2);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Options under which a few dozen kilobytes are a lot.
const SMALL: [&str; 8] = [
    "--max-frame-bytes",
    "4KiB",
    "--max-queue-bytes",
    "64KiB",
    "--max-slot-queue-bytes",
    "64KiB",
    "--memory-budget",
    "128KiB",
];

#[test]
fn guards_leave_nothing_behind_in_whatever_order_they_are_dropped() {
    for order in 0..6 {
        let registry = registry(&[]);
        let now = clock::now();
        let holder = seated(&registry, "box", now);
        let phone = joined(&registry, "box");
        forward(&phone, "\"kept\"");
        deliver(&holder, &wrapped(&phone, "\"queued\""));
        let contest = contested(&registry, "box", now);
        let mut guards: [Option<Box<dyn std::any::Any>>; 3] =
            [Some(Box::new(holder)), Some(Box::new(phone)), Some(Box::new(contest))];
        let [first, second, third] =
            [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][order];
        for guard in [first, second, third] {
            drop(guards[guard].take());
        }
        assert_eq!(registry.counts(), Counts { binaries: 0, phones: 0, in_grace: 1 }, "{order}");
        drop(seated(&registry, "box", now));
        registry.expire(clock::now() + GRACE);
        assert_eq!(registry.counts(), Counts::default(), "{order}");
        assert_eq!(registry.ledger.total(), 0, "{order}");
    }
}

#[test]
fn a_stop_reaches_holders_attached_phones_and_those_on_their_way_out() {
    let registry = registry(&[]);
    let now = clock::now();
    let holder = seated(&registry, "box", now);
    let mut absent = seated(&registry, "absent", now);
    let (phone, leaving) = (joined(&registry, "box"), joined(&registry, "box"));
    let waiting = joined(&registry, "absent");
    absent.vacate(Ended::Dropped, false, now);
    fill_queue(&holder, &phone, 1);
    fill_queue(&holder, &leaving, 1);
    close(&holder, &leaving, 4401);
    let outboxes = registry.close_all();
    assert_eq!(said(&holder), ["close 1001 shutting down"]);
    assert_eq!(said_to(&waiting), ["close 1001 shutting down"]);
    assert_eq!(said_to(&phone)[1..], ["close 1001 shutting down"]);
    assert_eq!(outboxes.len(), 4);
    for outbox in outboxes {
        outbox.close(Close::ShuttingDown, Manner::Abort);
    }
    assert_eq!(said_to(&leaving), ["close 4401 "], "the first close stands, without the queue");
}

fn registry(arguments: &[&str]) -> Rc<Registry> {
    let all = ["pyrycode-relay"].into_iter().chain(arguments.iter().copied());
    let config = Config::from_options(Options::parse_arguments(all).unwrap()).unwrap();
    Registry::new(&config, &Ledger::new(config.memory_budget), &Rc::default())
}

fn id(server: &str) -> ServerId {
    ServerId::parse(server.as_bytes()).unwrap()
}

fn seated(registry: &Rc<Registry>, server: &str, now: Instant) -> ServerSeat {
    match registry.claim(&id(server), NOBODY, now) {
        Claim::Seated(seat) => seat,
        other => panic!("{other:?} instead of a seat"),
    }
}

fn contested(registry: &Rc<Registry>, server: &str, now: Instant) -> Contest {
    match registry.claim(&id(server), NOBODY, now) {
        Claim::Contested(contest) => contest,
        other => panic!("{other:?} instead of a contest"),
    }
}

fn joined(registry: &Rc<Registry>, server: &str) -> PhoneSeat {
    match registry.join(&id(server), NOBODY) {
        Join::Seated(seat) => seat,
        other => panic!("{other:?} instead of a seat"),
    }
}

fn outcome(contest: &Contest) -> Option<Outcome> {
    match contest.poll_outcome(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

fn forward(phone: &PhoneSeat, text: &str) {
    let frame = Prefix::new(&phone.conn_id()).wrap(text);
    assert!(matches!(phone.forward(frame), Passed::Queued));
}

fn forward_bytes(phone: &PhoneSeat, length: usize) {
    assert!(matches!(phone.forward(message(phone, length).1), Passed::Queued));
}

/// A message of `length` bytes from `phone`: as text and as it is queued.
fn message(phone: &PhoneSeat, length: usize) -> (String, Frame) {
    let inner = "7".repeat(length);
    (wrapped(phone, &inner), Prefix::new(&phone.conn_id()).wrap(&inner))
}

fn deliver(holder: &ServerSeat, text: &str) -> Delivery {
    deliver_at(holder, text, clock::now())
}

fn deliver_at(holder: &ServerSeat, text: &str, now: Instant) -> Delivery {
    holder.deliver(&Envelope::parse(text).unwrap(), now)
}

fn close(holder: &ServerSeat, phone: &PhoneSeat, code: u16) {
    assert_eq!(deliver(holder, &noticed(&phone.conn_id(), code)), Delivery::Done);
}

/// Queues `count` messages of about 1 KB for a phone that does not read.
fn fill_queue(holder: &ServerSeat, phone: &PhoneSeat, count: usize) {
    for _ in 0..count {
        deliver(holder, &wrapped(phone, &"7".repeat(1_000)));
    }
}

fn envelope(conn_id: &str, frame: &str) -> String {
    format!(r#"{{"conn_id":"{conn_id}","frame":{frame}}}"#)
}

fn wrapped(phone: &PhoneSeat, frame: &str) -> String {
    envelope(&phone.conn_id(), frame)
}

fn noticed(conn_id: &str, code: u16) -> String {
    format!(r#"{{"conn_id":"{conn_id}","close_code":{code}}}"#)
}

/// What is written to the binary by a socket that takes everything.
fn said(holder: &ServerSeat) -> Vec<String> {
    written_by(holder.outbox())
}

/// The same with a ping behind it, which is answered.
fn said_and_read(holder: &ServerSeat) -> Vec<String> {
    assert_eq!(holder.outbox().prove(clock::now()), None);
    let mut socket = MockSocket::default();
    flush(holder.outbox(), &mut socket);
    let ping = socket.frames().pop().expect("a ping");
    assert_eq!(ping.opcode, PING);
    holder.outbox().heard_pong(&ping.payload);
    let mut said = words(&socket);
    said.pop();
    said
}

/// The same for a phone.
fn said_to(phone: &PhoneSeat) -> Vec<String> {
    written_by(phone.outbox())
}

fn written_by(outbox: &Outbox) -> Vec<String> {
    let mut socket = MockSocket::default();
    flush(outbox, &mut socket);
    words(&socket)
}

/// Text as it is, control frames by what they say.
fn words(socket: &MockSocket) -> Vec<String> {
    let say = |frame: Received| match frame.opcode {
        TEXT => String::from_utf8(frame.payload).unwrap(),
        CLOSE => format!("close {} {}", frame.close().0, frame.close().1),
        PING => "ping".to_owned(),
        other => panic!("opcode {other:#x}"),
    };
    socket.frames().into_iter().map(say).collect()
}

/// Writes to the socket until nothing is left or it takes no more.
fn flush(outbox: &Outbox, socket: &mut MockSocket) {
    let mut scratch = vec![0; BATCH_BYTES];
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match outbox.poll_flush(&mut cx, socket, &mut scratch).end {
            FlushEnd::More => {}
            FlushEnd::Idle | FlushEnd::Blocked | FlushEnd::Closed => return,
            end @ (FlushEnd::Failed(_) | FlushEnd::Cut) => panic!("{end:?}"),
        }
    }
}

#[test]
fn a_revoked_slot_leaves_nothing_whether_it_is_held_probed_or_in_grace() {
    let registry = registry(&[]);
    let now = clock::now();
    let kept = seated(&registry, "kept", now);
    let held = seated(&registry, "held", now);
    let contest = contested(&registry, "held", now);
    let phone = joined(&registry, "held");
    let mut parted = seated(&registry, "parted", now);
    parted.vacate(Ended::Dropped, false, now);
    let waiting = joined(&registry, "parted");
    let list = AllowList::parse(b"kept\nnever-claimed\n").unwrap();
    assert_eq!(registry.revoke(&list), 2);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 0, in_grace: 0 });
    assert_eq!(held.outbox().sealed(), Some((Close::NotAllowed, Manner::Abort)));
    for phone in [&phone, &waiting] {
        assert_eq!(phone.outbox().sealed(), Some((Close::NoServer, Manner::Abort)));
    }
    assert_eq!(kept.outbox().sealed(), None);
    assert_eq!(outcome(&contest), Some(Outcome::HolderGone));
    drop((held, contest, phone, waiting));
    registry.expire(now + 10 * GRACE);
    assert_eq!(registry.counts(), Counts { binaries: 1, phones: 0, in_grace: 0 });
    assert_eq!(registry.revoke(&list), 0);
}
