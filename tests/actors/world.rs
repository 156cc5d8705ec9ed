//! What one server-id's daemon and phones did, and the judge of what arrives: as strict as the
//! contract allows.
//!
//! Nothing is lost, repeated or reordered, with these exceptions alone:
//! - At a reclaim a phone is closed of which something may be lost: whatever the daemon has not proved to have
//!   read, and what was on its way to the phone. Whoever outlives it has everything; whoever has left before
//!   it has had what was kept delivered, with a gap in front of it where the connection was reset or silent.
//! - A phone must outlive it that the daemon had proved to have read everything of, before it closed its
//!   connection in an orderly way.
//! - After silence every phone is closed that the daemon had heard of; none of these may outlive it.
//! - Phones that were kept are closed if the daemon speaks to none of them in time, or does not know one.
//! - What a daemon sent on a connection that it reset may be lost on its way to the relay.
//! - After the grace window, and after a close with "backlog full", the session is over.
//! - The end of what is on its way to somebody who goes away.

mod judge;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use pyrycode_relay::clock;

use super::text::{Text, Way};

/// One server-id.
pub struct World {
    pub number: u32,
    pub id: String,
    pub seed: u64,
    pub grace: Duration,
    pub phones: BTreeMap<u32, Phone>,
    /// The daemon's connections; the first one is number 1.
    pub connections: Vec<Connection>,
    /// How often the log told of them. The connection that is released is the one claimed last.
    pub claimed: u32,
    pub released: u32,
    pub expired: u32,
    /// The daemon is there and serves: phones may come.
    pub open: bool,
    /// Nothing new is begun; what was sent must arrive.
    pub ending: bool,
    /// The daemon's connection stays for the rest of the world's time.
    pub settled: bool,
    /// Claims by somebody else that are under way.
    pub usurpers: u32,
    /// Phones that the relay took off the slot, by their ids.
    departures: BTreeMap<String, Departure>,
    /// Ids that the daemon made up; how often the relay told it that there is no such phone.
    pub strangers: BTreeMap<String, u32>,
    pub done: bool,
    pub tally: Tally,
    /// The first thing that went wrong.
    pub wrong: Option<String>,
    journal: VecDeque<(Instant, String)>,
}

/// What happened, for the report.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    pub to_binary: u64,
    pub to_phone: u64,
    pub bytes: u64,
    pub phones: u64,
    pub clean: u64,
    pub lossy: u64,
    pub lost: u64,
    pub silent: u64,
    pub expired: u64,
    pub notices: u64,
    pub directives: u64,
    pub backlog_full: u64,
    pub usurpers: u64,
    /// Phones that outlived a change of the daemon's connection, and those that were closed for it.
    pub kept: u64,
    pub closed: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.to_binary += other.to_binary;
        self.to_phone += other.to_phone;
        self.bytes += other.bytes;
        self.phones += other.phones;
        self.clean += other.clean;
        self.lossy += other.lossy;
        self.lost += other.lost;
        self.silent += other.silent;
        self.expired += other.expired;
        self.notices += other.notices;
        self.directives += other.directives;
        self.backlog_full += other.backlog_full;
        self.usurpers += other.usurpers;
        self.kept += other.kept;
        self.closed += other.closed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { to_binary, to_phone, bytes, phones, clean, lossy, .. } = self;
        let Self { lost, silent, expired, notices, directives, backlog_full, usurpers, .. } = self;
        let Self { kept, closed, .. } = self;
        write!(
            f,
            "{to_binary} messages to daemons and {to_phone} to phones ({} MB), {phones} phones, \
             daemons' connections: {clean} closed, {lossy} reset, {silent} fell silent, {expired} \
             expired; {usurpers} usurpers, {notices} notices, {directives} directives, \
             {backlog_full} backlogs full, {kept} phones kept at reclaims and {closed} closed, {lost} messages of phones that left lost",
            bytes / 1_000_000
        )
    }
}

/// A connection of the daemon.
pub struct Connection {
    /// When the daemon began to dial: no claim was earlier.
    pub dialed: Instant,
    /// When a phone that was kept for it is known to have heard of it.
    pub confirmed: Option<Instant>,
    /// Before that, the daemon asked for a close that says that it does not know a session.
    pub disproved: bool,
    /// It ends with the daemon's own close frame: how many messages of each phone were proven by then.
    pub proven: BTreeMap<u32, u64>,
    /// The phones that must outlive it.
    pub whole: BTreeSet<u32>,
    /// When the relay was seen to have given it the slot.
    pub seated: Option<Instant>,
    /// When the daemon began to end it.
    pub left: Option<Instant>,
    pub end: Option<End>,
}

impl Connection {
    /// One that was dialed at that time.
    pub fn dialed(dialed: Instant) -> Self {
        Self {
            dialed,
            confirmed: None,
            disproved: false,
            proven: BTreeMap::new(),
            whole: BTreeSet::new(),
            seated: None,
            left: None,
            end: None,
        }
    }
}

/// How it ended, and so what it may have cost.
pub enum End {
    /// It was read to its end: nothing is lost.
    Clean,
    /// By a reset.
    Reset,
    /// It fell silent at that time.
    Silent { since: Instant },
    /// Nobody came back within the grace window, as the log said at that time.
    Expired { since: Instant },
}

/// One phone's connection.
#[derive(Default)]
pub struct Phone {
    pub opened: Option<Instant>,
    /// The daemon's latest connection when it dialed.
    pub opened_on: u32,
    /// Messages that it sent.
    pub sent: u64,
    /// How it leaves by its own decision.
    pub leaving: Option<Leaving>,
    pub leaving_since: Option<Instant>,
    /// It sent more behind its close frame, a pong or what no peer may (RFC 6455 section 5.5.1): where
    /// the relay's close crossed it, or once the relay has waited for two seconds, a reset meets that.
    pub babbled: bool,
    /// It does not read: the relay may lose patience with it.
    pub stalled: bool,
    /// Its connection is over.
    pub gone: bool,
    /// By a reset.
    pub was_reset: bool,
    /// The relay's close code.
    pub closed_with: Option<u16>,
    /// It has sent its last message and waits for the daemon's.
    pub waiting: bool,
    /// The daemon's last message is sent.
    pub dismissed: bool,
    /// The last message of the daemon that it received.
    got: Option<(u32, u64)>,

    pub conn_id: Option<String>,
    /// Messages of it that the daemon received or was allowed to lose.
    pub received: u64,
    /// Messages of it that the daemon has proved to have read: it answered a ping behind them.
    pub proven: u64,
    heard_on: u32,
    /// The first connection of the daemon that it was heard on.
    pub first_heard_on: u32,
    pub notice: Option<u16>,
    /// Messages that the daemon sent it, how long each is, and of which numbers on which connection.
    pub answered: u64,
    lengths: Vec<usize>,
    pub spans: BTreeMap<u32, (u64, u64)>,
    /// The daemon asked for a close: what it may come to.
    pub directive: Option<Directive>,
    /// Its session is over for the daemon, for a reason that is the daemon's own.
    pub forgotten: bool,
}

/// That the relay took a phone off the slot, as the log told it.
struct Departure {
    /// It was then or later.
    since: Instant,
    /// Claims that the log had told of by then.
    claimed: u32,
    reason: String,
    /// For a full backlog, and there may have been one.
    overflowed: bool,
}

/// What a daemon asked for.
#[derive(Clone, Copy, Debug)]
pub struct Directive {
    pub codes: [u16; 2],
    pub connection: u32,
    pub since: Instant,
    /// Messages in front of it.
    pub behind: u64,
    /// The last of these is a part of it, and so confirms no phones that were kept.
    pub carries: bool,
}

/// How a phone leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaving {
    /// In an orderly way: everything before it arrives, and the daemon is told this code.
    Orderly { answer: Option<u16>, notice: u16 },
    /// At once: the end of what it sent may be lost.
    Abrupt,
}

impl World {
    pub fn new(number: u32, id: String, seed: u64, grace: Duration) -> Self {
        Self {
            number,
            id,
            seed,
            grace,
            phones: BTreeMap::new(),
            connections: Vec::new(),
            claimed: 0,
            released: 0,
            expired: 0,
            open: false,
            ending: false,
            settled: false,
            usurpers: 0,
            departures: BTreeMap::new(),
            strangers: BTreeMap::new(),
            done: false,
            tally: Tally::default(),
            wrong: None,
            journal: VecDeque::new(),
        }
    }

    /// The daemon's latest connection.
    pub fn latest(&self) -> u32 {
        u32::try_from(self.connections.len()).unwrap()
    }

    /// The latest connection of the daemon that is known to have got the slot.
    pub fn seated(&self) -> u32 {
        let seated = self.connections.iter().rposition(|known| known.seated.is_some());
        seated.map_or(0, |place| u32::try_from(place).unwrap() + 1)
    }

    pub fn note(&mut self, text: String) {
        if self.journal.len() == JOURNAL {
            self.journal.pop_front();
        }
        self.journal.push_back((clock::now(), text));
    }

    pub fn accuse(&mut self, text: String) {
        if self.wrong.is_some() {
            return;
        }
        let now = clock::now();
        let mut report = format!("{}: {text}", self.id);
        for (at, line) in &self.journal {
            report += &format!("\n    {:7.3} s before: {line}", (now - *at).as_secs_f64());
        }
        self.wrong = Some(report);
    }

    /// The log says that the daemon's connection was released.
    pub fn release_logged(&mut self) {
        self.released += 1;
        let released = self.connections.get_mut((self.claimed as usize).wrapping_sub(1));
        let Some(Connection { proven, whole, .. }) = released else { return };
        let sent = |number: &u32| self.phones[number].sent;
        whole.extend(
            proven
                .iter()
                .filter(|(number, proven)| sent(number) == **proven)
                .map(|(number, _)| *number),
        );
    }

    /// The daemon answers a ping of the relay that is behind all that it has read.
    pub fn prove(&mut self) {
        for phone in self.phones.values_mut() {
            phone.proven = phone.received;
        }
    }

    /// The daemon ends its connection `on` with a close frame of its own.
    pub fn close_orderly(&mut self, on: u32) {
        let heard = self.phones.iter().filter(|(_, phone)| phone.received > 0);
        let proven = heard.map(|(number, phone)| (*number, phone.proven)).collect();
        self.connections[on as usize - 1].proven = proven;
    }

    /// The daemon's next message to a phone, on its connection `on`, and whom it is for. It counts as sent.
    pub fn next_text(&mut self, on: u32, number: u32) -> Option<(String, String)> {
        let (way, world, seed) = (Way::ToPhone, self.number, self.seed);
        let phone = self.phones.get_mut(&number)?;
        if phone.directive.is_some() || phone.notice.is_some() || phone.forgotten {
            return None;
        }
        let text = Text { way, world, phone: number, connection: on, number: phone.answered };
        let written = text.write(seed);
        phone.answered += 1;
        phone.lengths.push(written.len());
        let span = phone.spans.entry(on).or_insert((text.number, text.number));
        span.1 = text.number;
        Some((phone.conn_id.clone()?, written))
    }

    /// The daemon asks for a close with this code on its connection `on`.
    pub fn directive_sent(&mut self, on: u32, code: u16) {
        let connection = &mut self.connections[on as usize - 1];
        connection.disproved |= code == 4421 && connection.confirmed.is_none();
    }

    /// The log tells what became of the phones at a claim, or when it was not confirmed.
    pub fn reclaim_logged(&mut self, kept: u64, closed: u64) {
        self.tally.kept += kept;
        self.tally.closed += closed;
    }

    /// The log says that the window passed: nobody came back in time.
    pub fn expiry_logged(&mut self) {
        self.expired += 1;
        let now = clock::now();
        let expired = self.connections.get_mut((self.claimed as usize).wrapping_sub(1));
        let Some(connection) = expired else {
            return self.accuse("a slot expired that was never claimed".to_owned());
        };
        let early = connection.left.is_none_or(|left| now - left < self.grace);
        // The daemon may still be reading what was on its way.
        connection.end = Some(End::Expired { since: now });
        if early {
            let claimed = self.claimed;
            return self.accuse(format!(
                "the slot of connection {claimed} expired while it was held or in its window"
            ));
        }
        self.tally.expired += 1;
        self.forget(now);
    }

    /// The log says that the relay took a phone off the slot, at `since` or later.
    pub fn departure_logged(&mut self, conn_id: &str, reason: &str, since: Instant) {
        let (claimed, reason) = (self.claimed, reason.to_owned());
        let mut phones = self.phones.values();
        let phone = phones.find(|phone| phone.conn_id.as_deref() == Some(conn_id));
        let overflowed = reason == "backlog full" && phone.is_some_and(Phone::may_have_overflowed);
        let departure = Departure { since, claimed, reason, overflowed };
        self.departures.insert(conn_id.to_owned(), departure);
    }

    /// The sessions that were there at that time are over for the daemon.
    pub fn forget(&mut self, now: Instant) {
        for phone in self.phones.values_mut() {
            if phone.opened.is_some_and(|opened| opened < now) {
                phone.forgotten = true;
            }
        }
    }

    /// Those are over that the daemon has heard of.
    pub fn forget_known(&mut self) {
        for phone in self.phones.values_mut().filter(|phone| phone.conn_id.is_some()) {
            phone.forgotten = true;
        }
    }

    /// How the daemon's connection `number` ended.
    pub fn end_connection(&mut self, number: u32, end: End) {
        match end {
            End::Clean => self.tally.clean += 1,
            End::Reset => self.tally.lossy += 1,
            End::Silent { .. } => self.tally.silent += 1,
            End::Expired { .. } => {}
        }
        // The log may have been faster.
        let known = &mut self.connections[number as usize - 1].end;
        if known.is_none() {
            *known = Some(end);
        }
    }

    /// An envelope arrived at the daemon on its connection `on`. Returns the phone if it spoke.
    pub fn at_daemon(&mut self, on: u32, envelope: &str) -> Option<u32> {
        let parsed = parse_envelope(envelope, &self.id);
        let Some((conn_id, frame)) = parsed else {
            self.accuse(format!("the daemon got a strange envelope: {}", cut(envelope)));
            return None;
        };
        match frame {
            Envelope::Frame(frame) => {
                let Some(text) = Text::read(frame) else {
                    self.accuse(format!("the daemon got what nobody sent: {}", cut(frame)));
                    return None;
                };
                self.tally.to_binary += 1;
                self.tally.bytes += frame.len() as u64;
                if let Err(wrong) = self.judge_to_binary(on, conn_id, text, frame) {
                    self.accuse(format!("on connection {on}, {text:?}: {wrong}"));
                    return None;
                }
                Some(text.phone)
            }
            Envelope::Notice(code) => {
                self.tally.notices += 1;
                if let Err(wrong) = self.judge_notice(conn_id, code) {
                    self.accuse(format!(
                        "on connection {on}, notice {code} for {conn_id}: {wrong}"
                    ));
                }
                None
            }
        }
    }

    /// What still has to happen before the world is at rest, if anything.
    pub fn unrest(&self) -> Option<String> {
        let id = &self.id;
        if !self.done {
            let waiting: Vec<_> = self
                .phones
                .iter()
                .filter(|(_, phone)| !phone.gone)
                .map(|(number, phone)| {
                    format!(
                        "phone {number}: {} of {} received, {} answered, got {:?}, leaving {:?}",
                        phone.received, phone.sent, phone.answered, phone.got, phone.leaving
                    )
                })
                .collect();
            return Some(format!("{id}: the daemon is not done; {waiting:?}"));
        }
        None
    }

    /// A phone of which the daemon should have been told by now, and was not.
    pub fn untold(&self) -> Option<u32> {
        let owed = |phone: &Phone| {
            phone.conn_id.is_some()
                && !phone.forgotten
                && phone.notice.is_none()
                && phone.directive.is_none()
                && phone.gone
                && !self.troubled(phone)
        };
        self.phones.iter().find(|(_, phone)| owed(phone)).map(|(number, _)| *number)
    }
}

enum Envelope<'a> {
    Frame(&'a str),
    Notice(u16),
}

/// The relay writes its envelopes in one form alone; the server-ids here need no escapes.
fn parse_envelope<'a>(text: &'a str, id: &str) -> Option<(&'a str, Envelope<'a>)> {
    let (conn_id, rest) = text.strip_prefix("{\"conn_id\":\"")?.split_once('"')?;
    let suffix = conn_id.strip_prefix("client-")?.strip_prefix(id)?.strip_prefix('-')?;
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if suffix.len() != 16 || !suffix.bytes().all(is_hex) {
        return None;
    }
    let rest = rest.strip_prefix(',')?.strip_suffix('}')?;
    if let Some(frame) = rest.strip_prefix("\"frame\":") {
        return Some((conn_id, Envelope::Frame(frame)));
    }
    let code = rest.strip_prefix("\"close_code\":")?.parse().ok()?;
    Some((conn_id, Envelope::Notice(code)))
}

fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}

const JOURNAL: usize = 30;
