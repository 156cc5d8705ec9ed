//! Connections that go on in another program.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_lite::{AsyncRead as _, AsyncWrite as _};
use proptest::prelude::*;
use rustls::{AlertDescription, ClientConnection, SupportedCipherSuite};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockRef, Socket, Type};

use super::differential::{ALERT, DATA, HANDSHAKE};
use super::{Ends, Pair, suites};
use crate::clock;
use crate::net::scratch::Scratch;
use crate::net::transport::{Tcp, Transport as _};
use crate::origin::NOBODY;
use crate::queue::budget::{Account, Charge, Ledger};
use crate::tls::keys::{FRAGMENT, Unusable};
use crate::tls::record::{
    EMPTY_RECORDS, FrozenInbound, FrozenOutbound, Inbound, KEY_UPDATES, Outbound, SEALED_BATCH,
    WARNINGS,
};
use crate::tls::stream::{Frozen, Tls};

const DEADLINE: Duration = Duration::from_secs(20);

fn packed(frozen: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(frozen).unwrap()
}

fn carried<T: Serialize + DeserializeOwned>(frozen: &T) -> T {
    rmp_serde::from_slice(&packed(frozen)).unwrap()
}

fn carry(inbound: &mut Inbound, outbound: &mut Outbound) {
    *inbound = Inbound::thaw(&carried(&inbound.freeze())).unwrap();
    *outbound = Outbound::thaw(&carried(&outbound.freeze())).unwrap();
    assert!(inbound.goes_with(outbound));
}

/// Bytes of which each four say where they are.
fn pattern(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| u32::try_from(at / 4).unwrap().to_le_bytes()[at % 4]).collect()
}

#[test]
fn records_that_are_cut_anywhere_go_on_under_the_next_keys_too() {
    for suite in suites() {
        let is_tls13 = suite.tls13().is_some();
        let mut pair = Pair::with(suite);
        let mut buffer = vec![0; SEALED_BATCH];
        let (mut received, mut read) = (Vec::new(), Vec::new());
        for round in 0..200 {
            if is_tls13 && round % 3 == 0 {
                pair.client.refresh_traffic_keys().unwrap();
            }
            pair.client.writer().write_all(&pattern(read.len(), 50)).unwrap();
            let mut bytes = Vec::new();
            pair.client.write_tls(&mut bytes).unwrap();
            let cut = round % bytes.len();
            let mut plaintext = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                received.extend_from_slice(part);
                let opened = pair.inbound.open(&mut received, &mut pair.outbound);
                assert!(opened.failed.is_none(), "{suite:?}: {:?}", opened.failed);
                plaintext.extend_from_slice(&received[..opened.plaintext]);
                received.drain(..opened.used);
                carry(&mut pair.inbound, &mut pair.outbound);
            }
            assert_eq!(plaintext, pattern(read.len(), 50), "{suite:?}");
            read.extend(plaintext);
            assert_eq!(pair.outbound.has_due(), is_tls13 && round % 3 == 0);
            let (_, sealed) = pair.outbound.seal(&pattern(round, 9), &mut buffer).unwrap();
            assert_eq!(pair.tell_client(&buffer[..sealed]), pattern(round, 9), "{suite:?}");
        }
        assert!(received.is_empty());
    }
}

#[test]
fn freezing_changes_nothing() {
    for suite in suites() {
        let mut pair = Pair::with(suite);
        let mut buffer = vec![0; SEALED_BATCH];
        for _ in 0..20 {
            let before = (packed(&pair.inbound.freeze()), packed(&pair.outbound.freeze()));
            assert_eq!(before.0, packed(&pair.inbound.freeze()));
            assert_eq!(before.1, packed(&pair.outbound.freeze()));
            pair.client.writer().write_all(b"up").unwrap();
            assert_eq!(pair.hear_client(), (b"up".to_vec(), None));
            let (_, sealed) = pair.outbound.seal(b"down", &mut buffer).unwrap();
            assert_eq!(pair.tell_client(&buffer[..sealed]), b"down");
        }
    }
}

#[test]
fn a_handshake_message_goes_on_at_any_byte() {
    for mut ends in Ends::of_both_versions() {
        let hello = [&[1, 0, 1, 0][..], &[7; 256]].concat();
        let update = vec![super::KEY_UPDATE, 0, 0, 1, 1];
        let is_tls13 = ends.client.is_tls13();
        for byte in if is_tls13 { update } else { hello } {
            let record = ends.client.seal(HANDSHAKE, &[byte]);
            assert_eq!(ends.open(&record).unwrap(), b"");
            carry(&mut ends.inbound, &mut ends.outbound);
        }
        if is_tls13 {
            ends.client.update();
        }
        let data = ends.client.seal(DATA, b"data");
        assert_eq!(ends.open(&data).unwrap(), b"data");
        let due = ends.seal_due();
        let declined = (ALERT, vec![1, AlertDescription::NoRenegotiation.into()]);
        let told = (HANDSHAKE, vec![super::KEY_UPDATE, 0, 0, 1, 0]);
        assert_eq!(ends.heard(&due), [if is_tls13 { told } else { declined }]);
    }
}

#[test]
fn what_a_peer_has_used_up_stays_used_up() {
    let [mut newer, mut older] = Ends::of_both_versions();
    for ends in [&mut newer, &mut older] {
        for _ in 0..EMPTY_RECORDS {
            let empty = ends.client.seal(DATA, b"");
            assert_eq!(ends.open(&empty).unwrap(), b"");
        }
        carry(&mut ends.inbound, &mut ends.outbound);
        let empty = ends.client.seal(DATA, b"");
        assert!(ends.open(&empty).is_err());
        // It ends in the same way as without another program.
        carry(&mut ends.inbound, &mut ends.outbound);
        let due = ends.seal_due();
        let alert = AlertDescription::UnexpectedMessage.into();
        assert_eq!(ends.heard(&due), [(ALERT, vec![2, alert])]);
        carry(&mut ends.inbound, &mut ends.outbound);
        assert!(ends.outbound.seal(b"data", &mut vec![0; SEALED_BATCH]).is_err());
    }
    let [mut newer, mut older] = Ends::of_both_versions();
    for _ in 0..KEY_UPDATES {
        let update = newer.update(0);
        assert_eq!(newer.open(&update).unwrap(), b"");
        carry(&mut newer.inbound, &mut newer.outbound);
    }
    let update = newer.update(0);
    assert!(newer.open(&update).is_err());
    for _ in 0..WARNINGS {
        let warning = older.client.seal(ALERT, &[1, AlertDescription::UserCanceled.into()]);
        assert_eq!(older.open(&warning).unwrap(), b"");
        carry(&mut older.inbound, &mut older.outbound);
    }
    let warning = older.client.seal(ALERT, &[1, AlertDescription::UserCanceled.into()]);
    assert!(older.open(&warning).is_err());
}

/// A server over a socket, which goes from program to program, and its client.
struct Served {
    tls: Tls,
    socket: TcpStream,
    scratch: Rc<Scratch>,
    client: ClientConnection,
    peer: TcpStream,
    told: usize,
    heard: usize,
}

/// What is seen of a frozen connection from outside.
#[derive(Deserialize)]
struct Seen {
    #[serde(with = "serde_bytes")]
    records: Vec<u8>,
    #[serde(with = "serde_bytes")]
    plaintext: Vec<u8>,
    #[serde(with = "serde_bytes")]
    unsent: Vec<u8>,
    outbound: SeenOutbound,
    failed: Option<String>,
}

#[derive(Deserialize)]
struct SeenOutbound {
    update_is_due: bool,
}

impl Served {
    fn with(suite: SupportedCipherSuite) -> Self {
        let Pair { client, inbound, mut outbound } = Pair::with(suite);
        if suite.tls13().is_some() {
            outbound.set_limit(5);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // There is room for a batch in several parts.
        peer.set_recv_buffer_size(8 * 1024).unwrap();
        peer.connect(&listener.local_addr().unwrap().into()).unwrap();
        peer.set_nonblocking(true).unwrap();
        let (peer, (socket, _)) = (TcpStream::from(peer), listener.accept().unwrap());
        SockRef::from(&socket).set_send_buffer_size(8 * 1024).unwrap();
        let tcp = Tcp::prepare(socket.try_clone().unwrap()).unwrap();
        let charge = Charge::new(Account::open(&Ledger::new(usize::MAX), NOBODY));
        let scratch = Rc::default();
        let tls = Tls::new(tcp, Vec::new(), charge, inbound, outbound, &scratch);
        Self { tls, socket, scratch, client, peer, told: 0, heard: 0 }
    }

    /// Goes on with what another program reads.
    fn carry(&mut self) {
        let tcp = Tcp::prepare(self.socket.try_clone().unwrap()).unwrap();
        let held = self.tls.held();
        let thawed = Tls::thaw(tcp, carried(&self.tls.freeze()), &self.scratch).unwrap();
        assert!(thawed.held() <= held);
        // Nobody says goodbye in an exec.
        std::mem::forget(std::mem::replace(&mut self.tls, thawed));
    }

    fn seen(&self) -> Seen {
        rmp_serde::from_slice(&packed(&self.tls.freeze())).unwrap()
    }

    /// Writes more of the pattern until the socket takes no more.
    fn fill(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        while let Poll::Ready(taken) =
            Pin::new(&mut self.tls).poll_write(cx, &pattern(self.told, 30_000))
        {
            self.told += taken.unwrap();
        }
    }

    /// One read of the server's; `None` if there is nothing.
    fn read(&mut self, length: usize) -> Option<Vec<u8>> {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut buffer = vec![0; length];
        match Pin::new(&mut self.tls).poll_read(cx, &mut buffer) {
            Poll::Ready(read) => Some(buffer[..read.unwrap()].to_vec()),
            Poll::Pending => None,
        }
    }

    /// Writes until a part of what waits for the socket has been accepted, and a part has not.
    fn fill_in_part(&mut self) {
        let begun = clock::now();
        loop {
            self.fill();
            let before = self.seen().unsent.len();
            while self.seen().unsent.len() == before {
                assert!(clock::since(begun) < DEADLINE);
                self.hear();
                let cx = &mut Context::from_waker(Waker::noop());
                let _ = Pin::new(&mut self.tls).poll_flush(cx);
            }
            if !self.seen().unsent.is_empty() {
                return;
            }
        }
    }

    /// What the client writes, as records.
    fn sealed_by_client(&mut self, plaintext: &[u8]) -> Vec<u8> {
        self.client.writer().write_all(plaintext).unwrap();
        let mut records = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut records).unwrap();
        }
        records
    }

    /// What has arrived at the client; it must be the pattern.
    fn hear(&mut self) {
        match self.client.read_tls(&mut self.peer) {
            Ok(_) => _ = self.client.process_new_packets().unwrap(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        let mut plaintext = vec![0; 1 << 16];
        while let Ok(read @ 1..) = self.client.reader().read(&mut plaintext) {
            assert!(plaintext[..read] == pattern(self.heard, read), "at {}", self.heard);
            self.heard += read;
        }
    }

    /// Lets both go on until the server has read `expected`, and the client all that it was told.
    fn settle(&mut self, expected: &[u8]) {
        let begun = clock::now();
        let mut read = Vec::new();
        while read.len() < expected.len() || self.heard < self.told {
            assert!(clock::since(begun) < DEADLINE, "{} and {}", read.len(), self.heard);
            let cx = &mut Context::from_waker(Waker::noop());
            if let Poll::Ready(flushed) = Pin::new(&mut self.tls).poll_flush(cx) {
                flushed.unwrap();
            }
            let more = self.read(1 << 16);
            self.hear();
            read.extend(more.unwrap_or_default());
        }
        assert!(read == expected);
    }
}

#[test]
fn a_connection_in_the_middle_of_everything_goes_on_in_another_program() {
    for suite in suites() {
        let is_tls13 = suite.tls13().is_some();
        let mut served = Served::with(suite);
        for round in 0..4_usize {
            // The socket takes no more, records are cut in both directions, and so is what was read.
            served.fill();
            if is_tls13 {
                served.client.refresh_traffic_keys().unwrap();
            }
            let message = pattern(round, 3 * FRAGMENT);
            let records = served.sealed_by_client(&message);
            let cut = records.len() - FRAGMENT / (round + 2);
            served.peer.write_all(&records[..cut]).unwrap();
            let begun = clock::now();
            let mut read = Vec::new();
            while served.seen().records.is_empty() {
                assert!(clock::since(begun) < DEADLINE);
                read.extend(served.read(100).unwrap_or_default());
            }
            // There is more of what was opened.
            read.extend(served.read(100).unwrap());
            let seen = served.seen();
            assert!(!seen.records.is_empty() && !seen.plaintext.is_empty());
            assert!(!seen.unsent.is_empty());
            assert_eq!(seen.outbound.update_is_due, is_tls13, "{suite:?}");
            served.carry();
            served.fill_in_part();
            served.carry();
            served.peer.write_all(&records[cut..]).unwrap();
            assert_eq!(read, message[..read.len()]);
            served.settle(&message[read.len()..]);
            // The other end of a key update has come to the client with that.
            served.carry();
            let records = served.sealed_by_client(b"and on");
            served.peer.write_all(&records).unwrap();
            served.settle(b"and on");
        }
    }
}

#[test]
fn a_connection_that_has_failed_says_so_in_another_program() {
    let mut served = Served::with(suites()[0]);
    let mut records = served.sealed_by_client(b"before");
    records.extend([9; 100]);
    served.peer.write_all(&records).unwrap();
    let begun = clock::now();
    while served.read(1).is_none() {
        assert!(clock::since(begun) < DEADLINE);
    }
    // It is told to whoever has read what came before.
    let words = served.seen().failed.unwrap();
    for _ in 0..3 {
        served.carry();
        assert_eq!(served.seen().failed.as_ref(), Some(&words));
    }
    assert_eq!(served.read(100).unwrap(), b"efore");
    let cx = &mut Context::from_waker(Waker::noop());
    let failed = Pin::new(&mut served.tls).poll_read(cx, &mut [0; 10]);
    let Poll::Ready(Err(error)) = failed else { panic!("{failed:?}") };
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(error.to_string().contains(&words), "{error} for {words}");
}

#[test]
fn directions_of_two_suites_are_no_connection() {
    #[derive(Serialize)]
    struct Mixed {
        inbound: FrozenInbound,
        outbound: FrozenOutbound,
    }
    let served = Served::with(suites()[0]);
    let thaw = |inbound: &Ends, outbound: &Ends| {
        let mixed =
            Mixed { inbound: inbound.inbound.freeze(), outbound: outbound.outbound.freeze() };
        // Whatever else there is of a connection may be missing.
        let frozen: Frozen = rmp_serde::from_slice(&packed(&mixed)).unwrap();
        let tcp = Tcp::prepare(served.socket.try_clone().unwrap()).unwrap();
        Tls::thaw(tcp, frozen, &served.scratch).err()
    };
    let [newer, older] = Ends::of_both_versions();
    assert_eq!(thaw(&newer, &newer), None);
    assert_eq!(thaw(&older, &older), None);
    assert_eq!(thaw(&newer, &older), Some(Unusable::Suite));
    assert_eq!(thaw(&older, &newer), Some(Unusable::Suite));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_read_in_place_of_a_connection_makes_nothing_panic(
        version in 0..2_usize,
        begun in proptest::collection::vec(any::<u8>(), 0..6),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        content in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut ends = Ends::of_both_versions().into_iter().nth(version).unwrap();
        let begin = ends.client.seal(HANDSHAKE, &begun);
        let _ = ends.open(&begin);
        let changed = |mut bytes: Vec<u8>| {
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            bytes
        };
        let inbound = rmp_serde::from_slice(&changed(packed(&ends.inbound.freeze())));
        let outbound = rmp_serde::from_slice(&changed(packed(&ends.outbound.freeze())));
        let inbound = inbound.ok().and_then(|inbound| Inbound::thaw(&inbound).ok());
        let outbound = outbound.ok().and_then(|outbound| Outbound::thaw(&outbound).ok());
        let mut buffer = vec![0; SEALED_BATCH];
        if let Some(inbound) = inbound {
            ends.inbound = inbound;
        }
        if let Some(outbound) = outbound {
            ends.outbound = outbound;
        }
        for _ in 0..2 {
            for kind in [HANDSHAKE, ALERT, DATA] {
                let record = ends.client.seal(kind, &content);
                let _ = ends.open(&record);
            }
            let _ = ends.outbound.seal(&content, &mut buffer);
        }
    }
}
