use std::io::{Read as _, Write as _};
use std::sync::Arc;

use relay_test_kit::protection::Protection;
use rustls::client::Resumption;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::crypto::ring::default_provider;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, ConnectionTrafficSecrets, DEFAULT_VERSIONS,
    Error, PeerMisbehaved, ServerConfig, SupportedCipherSuite,
};

use self::differential::{ALERT, DATA, HANDSHAKE, KEY_UPDATE, heard};
use super::{Certified, NAME};
use crate::tls::handshake::{Next, Secrets, Shaking};
use crate::tls::keys::{FRAGMENT, HEADER, Keys, Secret};
use crate::tls::record::{
    BATCH, EMPTY_RECORDS, Inbound, KEY_UPDATES, Outbound, SEALED_BATCH, UPDATES_A_TURN, WARNINGS,
};

mod differential;
mod frozen;

/// All that go with a certificate of ECDSA. Those of RSA protect records in the same way.
fn suites() -> Vec<SupportedCipherSuite> {
    let is_rsa = |suite: &SupportedCipherSuite| format!("{:?}", suite.suite()).contains("_RSA_");
    ring::ALL_CIPHER_SUITES.iter().copied().filter(|suite| !is_rsa(suite)).collect()
}

/// A client of rustls, and the record layer that it talks to, with one suite.
struct Pair {
    client: ClientConnection,
    inbound: Inbound,
    outbound: Outbound,
}

impl Pair {
    fn with(suite: SupportedCipherSuite) -> Self {
        let provider = CryptoProvider { cipher_suites: vec![suite], ..default_provider() };
        let (server, mut config) = Certified::new().configs(provider, DEFAULT_VERSIONS);
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(NAME).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        client.set_buffer_limit(None);
        let secrets = Arc::<Secrets>::default();
        let mut shaking = Shaking::new(Arc::new(secrets.heard_of(server))).unwrap();
        let mut received = Vec::new();
        loop {
            match shaking.go_on(&mut received, &secrets) {
                Next::Send(bytes) => {
                    let mut unread = &bytes[..];
                    while !unread.is_empty() {
                        client.read_tls(&mut unread).unwrap();
                        client.process_new_packets().unwrap();
                    }
                }
                Next::Read => assert!(client.write_tls(&mut received).unwrap() > 0),
                Next::Fail(error, _) => panic!("{error}"),
                Next::Finish => break,
            }
        }
        let (inbound, outbound) = shaking.finish().unwrap();
        assert!(!client.is_handshaking());
        Self { client, inbound, outbound }
    }
}

impl Pair {
    /// What the client has to say now, opened by the relay's end.
    fn hear_client(&mut self) -> (Vec<u8>, Option<Error>) {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        let opened = self.inbound.open(&mut bytes, &mut self.outbound);
        bytes.truncate(opened.plaintext);
        (bytes, opened.failed)
    }

    /// Shows the client what was sealed; returns what it reads.
    fn tell_client(&mut self, sealed: &[u8]) -> Vec<u8> {
        let mut unread = sealed;
        while !unread.is_empty() {
            self.client.read_tls(&mut unread).unwrap();
            self.client.process_new_packets().unwrap();
        }
        let mut plaintext = vec![0; 1 << 20];
        let mut length = 0;
        while let Ok(read @ 1..) = self.client.reader().read(&mut plaintext[length..]) {
            length += read;
        }
        plaintext.truncate(length);
        plaintext
    }
}

#[test]
fn both_ends_understand_each_other_whatever_the_suite() {
    for suite in suites() {
        let mut pair = Pair::with(suite);
        for length in [1, 700, FRAGMENT, 80_500] {
            let message: Vec<_> = (0..length).map(|at| at.to_le_bytes()[0]).collect();
            pair.client.writer().write_all(&message).unwrap();
            let (read, failed) = pair.hear_client();
            assert!(read == message && failed.is_none(), "{suite:?}, {length} bytes: {failed:?}");
            let mut buffer = vec![0; SEALED_BATCH];
            let (mut taken, mut heard) = (0, Vec::new());
            while taken < length {
                let (more, sealed) = pair.outbound.seal(&message[taken..], &mut buffer).unwrap();
                taken += more;
                heard.extend(pair.tell_client(&buffer[..sealed]));
            }
            assert!(heard == message, "{suite:?}, {length} bytes");
        }
    }
}

#[test]
fn keys_that_are_used_up_are_followed_by_others() {
    for suite in suites() {
        let mut pair = Pair::with(suite);
        pair.outbound.set_limit(10);
        let mut buffer = vec![0; SEALED_BATCH];
        let mut heard = 0;
        for number in 0..100_u8 {
            match pair.outbound.seal(&[number], &mut buffer) {
                Ok((_, sealed)) => heard += pair.tell_client(&buffer[..sealed]).len(),
                Err(_) => break,
            }
        }
        // Those of TLS 1.2 are not: the connection ends in order.
        let is_tls13 = suite.tls13().is_some();
        assert!(if is_tls13 { heard == 100 } else { heard < 10 }, "{suite:?}: {heard}");
    }
}

#[test]
fn a_wish_for_other_keys_is_answered_once() {
    for suite in suites().into_iter().filter(|suite| suite.tls13().is_some()) {
        let mut pair = Pair::with(suite);
        let mut buffer = vec![0; SEALED_BATCH];
        for _ in 0..3 {
            pair.client.refresh_traffic_keys().unwrap();
        }
        pair.client.writer().write_all(b"from the new keys").unwrap();
        let (read, failed) = pair.hear_client();
        assert!(failed.is_none() && read == b"from the new keys", "{suite:?}: {failed:?}");
        assert!(pair.outbound.has_due());
        let sealed = pair.outbound.seal_due(&mut buffer);
        assert!(sealed > 0 && !pair.outbound.has_due());
        assert_eq!(pair.tell_client(&buffer[..sealed]), b"");
        let (_, sealed) = pair.outbound.seal(b"by other keys", &mut buffer).unwrap();
        assert_eq!(pair.tell_client(&buffer[..sealed]), b"by other keys");
    }
}

/// Both directions of a connection with made-up keys, and what its peer has for them.
struct Ends {
    inbound: Inbound,
    outbound: Outbound,
    client: Protection,
    server: Protection,
}

impl Ends {
    fn with(suite: SupportedCipherSuite) -> Self {
        let keys = |byte: u8| {
            let secret = suite.tls13().map_or(0, |suite| suite.common.hash_provider.output_len());
            let secret = vec![byte; secret];
            // Of a key that is too long for its cipher, the beginning counts.
            let (key, iv) = (AeadKey::from([byte; 32]), Iv::from([byte; 12]));
            let secrets = match format!("{:?}", suite.suite()) {
                name if name.contains("AES_128") => ConnectionTrafficSecrets::Aes128Gcm { key, iv },
                name if name.contains("AES_256") => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
                _ => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
            };
            let keys = Keys::new(suite, (0, secrets), Secret::new(&secret)).unwrap();
            (keys, Protection::new(suite, 0, &[byte; 32], &[byte; 12], &secret))
        };
        let ((inbound, client), (outbound, server)) = (keys(1), keys(2));
        Self { inbound: Inbound::new(inbound), outbound: Outbound::new(outbound), client, server }
    }

    /// With a suite of each version.
    fn of_both_versions() -> [Self; 2] {
        let of = |is_tls13| {
            let suite = suites().into_iter().find(|suite| suite.tls13().is_some() == is_tls13);
            Self::with(suite.unwrap())
        };
        [of(true), of(false)]
    }

    /// The plaintext of whole records, or why there is no more of it.
    fn open(&mut self, records: &[u8]) -> Result<Vec<u8>, Error> {
        let mut records = records.to_vec();
        let opened = self.inbound.open(&mut records, &mut self.outbound);
        records.truncate(opened.plaintext);
        opened.failed.map_or(Ok(records), Err)
    }

    fn update(&mut self, request: u8) -> Vec<u8> {
        let record = self.client.seal(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, request]);
        self.client.update();
        record
    }

    /// What the peer hears in these records.
    fn heard(&mut self, sealed: &[u8]) -> Vec<(u8, Vec<u8>)> {
        heard(&mut self.server, sealed)
    }

    fn seal_due(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; SEALED_BATCH];
        let sealed = self.outbound.seal_due(&mut buffer);
        buffer.truncate(sealed);
        buffer
    }
}

#[test]
fn a_record_may_end_anywhere_in_what_was_read() {
    for suite in suites() {
        let mut ends = Ends::with(suite);
        let stream = |ends: &mut Ends| {
            let mut stream = ends.client.seal(DATA, b"first");
            if suite.tls13().is_some() {
                stream.extend(ends.update(1));
            }
            stream.extend(ends.client.seal_padded(DATA, b"the second", 7));
            stream
        };
        let whole = stream(&mut ends);
        assert_eq!(ends.open(&whole).unwrap(), b"firstthe second", "{suite:?}");
        for split in 0..=whole.len() {
            let mut ends = Ends::with(suite);
            let stream = stream(&mut ends);
            let (mut read, mut records) = (Vec::new(), Vec::new());
            for part in [&stream[..split], &stream[split..]] {
                records.extend_from_slice(part);
                let before = records.clone();
                let opened = ends.inbound.open(&mut records, &mut ends.outbound);
                assert!(opened.failed.is_none(), "{suite:?} at {split}: {:?}", opened.failed);
                assert_eq!(records[opened.used..], before[opened.used..], "{suite:?} at {split}");
                read.extend_from_slice(&records[..opened.plaintext]);
                records.drain(..opened.used);
            }
            assert!(records.is_empty() && read == b"firstthe second", "{suite:?} at {split}");
        }
    }
}

#[test]
fn plaintext_of_many_records_comes_together_and_half_a_record_stays_as_it_is() {
    for suite in suites() {
        let mut ends = Ends::with(suite);
        let lengths = [1, 0, 700, FRAGMENT, 0, 2, FRAGMENT, 33];
        let (mut buffer, mut plaintext) = (Vec::new(), Vec::new());
        for (byte, length) in (1..).zip(lengths) {
            let content = vec![byte; length];
            buffer.extend(ends.client.seal_padded(DATA, &content, (FRAGMENT - length).min(50)));
            plaintext.extend(content);
        }
        let whole = buffer.len();
        let half = ends.client.seal(DATA, &[9; 5000]);
        buffer.extend_from_slice(&half[..half.len() - 1]);
        let opened = ends.inbound.open(&mut buffer, &mut ends.outbound);
        assert!(opened.failed.is_none() && opened.used == whole, "{suite:?}: {opened:?}");
        assert!(buffer[..opened.plaintext] == plaintext, "{suite:?}");
        assert!(buffer[whole..] == half[..half.len() - 1], "{suite:?}");
        assert_eq!(ends.open(&half).unwrap(), [9; 5000], "{suite:?}");
    }
}

#[test]
fn key_updates_are_counted_from_one_record_of_data_to_the_next() {
    let mut ends = Ends::of_both_versions().into_iter().next().unwrap();
    for _ in 0..3 {
        for _ in 0..KEY_UPDATES {
            let update = ends.update(0);
            assert_eq!(ends.open(&update).unwrap(), b"");
        }
        let data = ends.client.seal(DATA, b"data");
        assert_eq!(ends.open(&data).unwrap(), b"data");
    }
    for _ in 0..KEY_UPDATES {
        // Without content it is no data.
        let records = [ends.update(0), ends.client.seal(DATA, b"")].concat();
        assert_eq!(ends.open(&records).unwrap(), b"");
    }
    let update = ends.update(0);
    let error = ends.open(&update).unwrap_err();
    assert_eq!(error, PeerMisbehaved::TooManyKeyUpdateRequests.into());
}

#[test]
fn so_many_new_keys_are_enough_for_a_turn() {
    let mut ends = Ends::of_both_versions().into_iter().next().unwrap();
    let mut records = Vec::new();
    for _ in 0..2 * UPDATES_A_TURN {
        records.extend(ends.update(0));
        records.extend(ends.client.seal(DATA, b"x"));
    }
    let half = records.len() / 2;
    let opened = ends.inbound.open(&mut records, &mut ends.outbound);
    // The last record of data is left.
    assert!(opened.has_more && opened.plaintext == usize::from(UPDATES_A_TURN) - 1, "{opened:?}");
    let rest = records.split_off(opened.used);
    assert!(rest.len() > half && ends.open(&rest).is_ok());
}

#[test]
fn records_without_content_are_counted_in_a_row() {
    for mut ends in Ends::of_both_versions() {
        for _ in 0..3 {
            for _ in 0..EMPTY_RECORDS {
                let empty = ends.client.seal(DATA, b"");
                assert_eq!(ends.open(&empty).unwrap(), b"");
            }
            let data = ends.client.seal(DATA, b"data");
            assert_eq!(ends.open(&data).unwrap(), b"data");
        }
        let empty: Vec<_> = (0..=EMPTY_RECORDS).flat_map(|_| ends.client.seal(DATA, b"")).collect();
        let error = ends.open(&empty).unwrap_err();
        assert_eq!(error, PeerMisbehaved::TooManyEmptyFragments.into());
    }
}

#[test]
fn warnings_and_wishes_to_begin_again_are_counted_for_good() {
    for mut ends in Ends::of_both_versions() {
        for _ in 0..WARNINGS {
            let canceled = AlertDescription::UserCanceled.into();
            let records =
                [ends.client.seal(ALERT, &[1, canceled]), ends.client.seal(DATA, b"data")];
            assert_eq!(ends.open(&records.concat()).unwrap(), b"data");
        }
        let warning = ends.client.seal(ALERT, &[1, AlertDescription::UserCanceled.into()]);
        let error = ends.open(&warning).unwrap_err();
        assert_eq!(error, PeerMisbehaved::TooManyWarningAlertsReceived.into());
    }
    let [_, mut ends] = Ends::of_both_versions();
    let hello = ends.client.seal(HANDSHAKE, &[1, 0, 0, 2, 3, 3]);
    assert_eq!(ends.open(&hello).unwrap(), b"");
    let due = ends.seal_due();
    assert_eq!(ends.heard(&due), [(ALERT, vec![1, AlertDescription::NoRenegotiation.into()])]);
    let records =
        [ends.client.seal(DATA, b"data"), ends.client.seal(HANDSHAKE, &[1, 0, 0, 2, 3, 3])];
    let error = ends.open(&records.concat()).unwrap_err();
    assert_eq!(error, PeerMisbehaved::TooManyRenegotiationRequests.into());
}

#[test]
fn after_the_end_nothing_is_sealed() {
    for mut ends in Ends::of_both_versions() {
        let is_tls13 = ends.client.is_tls13();
        if is_tls13 {
            let update = ends.update(1);
            assert_eq!(ends.open(&update).unwrap(), b"");
        }
        ends.outbound.close();
        ends.outbound.close();
        assert!(ends.outbound.has_due());
        let due = ends.seal_due();
        let heard = ends.heard(&due);
        let close = (ALERT, vec![1, AlertDescription::CloseNotify.into()]);
        assert_eq!(heard.last(), Some(&close));
        assert_eq!(heard.len(), if is_tls13 { 2 } else { 1 });
        if is_tls13 {
            // A wish that comes later is not answered any more.
            let update = ends.update(1);
            assert_eq!(ends.open(&update).unwrap(), b"");
        }
        ends.outbound.close();
        assert!(!ends.outbound.has_due() && ends.seal_due().is_empty());
        assert!(ends.outbound.seal(b"data", &mut vec![0; SEALED_BATCH]).is_err());
        // Nor is the peer told what is wrong with it.
        assert!(ends.open(&[0; HEADER]).is_err());
        assert!(!ends.outbound.has_due() && ends.seal_due().is_empty());
    }
}

#[test]
fn a_peer_that_has_given_up_is_told_nothing() {
    for mut ends in Ends::of_both_versions() {
        if ends.client.is_tls13() {
            let update = ends.update(1);
            assert_eq!(ends.open(&update).unwrap(), b"");
        }
        let fatal = ends.client.seal(ALERT, &[2, AlertDescription::InternalError.into()]);
        assert!(ends.open(&fatal).is_err());
        ends.outbound.close();
        assert!(!ends.outbound.has_due() && ends.seal_due().is_empty());
        assert!(ends.outbound.seal(b"data", &mut vec![0; SEALED_BATCH]).is_err());
    }
}

#[test]
fn a_wish_to_begin_again_does_not_keep_the_end_from_being_told() {
    let [_, mut ends] = Ends::of_both_versions();
    ends.outbound.close();
    let hello = ends.client.seal(HANDSHAKE, &[1, 0, 0, 2, 3, 3]);
    assert_eq!(ends.open(&hello).unwrap(), b"");
    let due = ends.seal_due();
    assert_eq!(ends.heard(&due), [(ALERT, vec![1, AlertDescription::CloseNotify.into()])]);
}

#[test]
fn a_record_of_a_message_has_a_part_of_it() {
    for kind in [HANDSHAKE, ALERT] {
        for mut ends in Ends::of_both_versions() {
            let empty = ends.client.seal(kind, b"");
            assert!(ends.open(&empty).is_err());
            let due = ends.seal_due();
            let alert = AlertDescription::UnexpectedMessage.into();
            assert_eq!(ends.heard(&due), [(ALERT, vec![2, alert])], "{kind}");
        }
    }
}

#[test]
fn a_batch_has_room_for_the_most_that_can_be_due() {
    let plaintext = vec![5; BATCH + 1];
    for suite in suites() {
        for alert in [None, Some(AlertDescription::NoRenegotiation)] {
            let mut ends = Ends::with(suite);
            if suite.tls13().is_some() {
                // There is no more for these keys, nor for any that follow.
                ends.outbound.set_limit(0);
            }
            ends.outbound.owe(suite.tls13().is_some(), alert);
            let mut buffer = vec![0xee; SEALED_BATCH];
            let (taken, sealed) = ends.outbound.seal(&plaintext, &mut buffer).unwrap();
            assert!(taken == BATCH && buffer[sealed..].iter().all(|byte| *byte == 0xee));
            let heard = ends.heard(&buffer[..sealed]);
            let updates = if suite.tls13().is_some() { 3 } else { 0 };
            assert_eq!(heard.len(), 2 + updates + usize::from(alert.is_some()), "{suite:?}");
            let data: usize =
                heard.iter().filter(|(kind, _)| *kind == DATA).map(|(_, data)| data.len()).sum();
            assert_eq!(data, BATCH, "{suite:?}");
        }
        // The end comes between two records, where there are no other keys.
        let mut ends = Ends::with(suite);
        ends.outbound.set_limit(1);
        let mut buffer = vec![0; SEALED_BATCH];
        let (taken, sealed) = ends.outbound.seal(&plaintext, &mut buffer).unwrap();
        let heard = ends.heard(&buffer[..sealed]);
        let (most, last) = if suite.tls13().is_some() { (BATCH, DATA) } else { (FRAGMENT, ALERT) };
        assert!(taken == most && heard.last().unwrap().0 == last, "{suite:?}: {taken}");
    }
}
