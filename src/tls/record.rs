//! The record layer of a connection whose handshake is done (RFC 8446, sections 4.6.3, 5 and 6; RFC 5246, sections
//! 6 and 7.2).
//!
//! Nothing here waits or allocates for a peer: what comes in is opened where it lies, what goes out is sealed into
//! a buffer of the caller's.

mod frozen;

use rustls::{AlertDescription, ContentType, Error, HandshakeType, InvalidMessage, PeerMisbehaved};

pub(crate) use self::frozen::{FrozenInbound, FrozenOutbound};
use super::keys::{Content, FRAGMENT, HEADER, Keys, OVERHEAD};

/// The longest payload of a record: in TLS 1.3 (RFC 8446, section 5.2), and before (RFC 5246, section 6.2.3).
const LONGEST_PAYLOAD: [usize; 2] = [FRAGMENT + 256, FRAGMENT + 2048];
/// The longest record.
pub(super) const LONGEST_RECORD: usize = HEADER + FRAGMENT + 2048;
/// Plaintext that is sealed at once: two records of the largest size. More would only wait here instead of in the
/// queue.
pub(super) const BATCH: usize = 2 * FRAGMENT;
/// A buffer for that, and for whatever is due before it.
pub const SEALED_BATCH: usize = BATCH + 8 * OVERHEAD;

/// Key updates between two records of data, records without content in a row, warnings, and wishes to renegotiate
/// that a peer is allowed; as with rustls and BoringSSL.
pub(super) const KEY_UPDATES: u8 = 32;
pub(super) const EMPTY_RECORDS: u8 = 32;
pub(super) const WARNINGS: u8 = 4;
const RENEGOTIATIONS: u8 = 1;

/// New keys cost as much as some thousand bytes of data, and a peer may have as many as it sends bytes.
pub(super) const UPDATES_A_TURN: u8 = 16;

/// What comes in.
#[derive(Debug)]
pub struct Inbound {
    keys: Keys,
    message: Message,
    /// The peer has said that nothing follows.
    is_over: bool,
    key_updates: u8,
    empty_records: u8,
    warnings: u8,
    renegotiations: u8,
}

/// A handshake message that has begun.
#[derive(Default, Debug)]
struct Message {
    head: [u8; 4],
    /// Bytes of it so far, its head included; none between two messages.
    length: usize,
}

/// What goes out.
#[derive(Debug)]
pub struct Outbound {
    keys: Keys,
    /// The peer wants to see new keys.
    update_is_due: bool,
    /// To be told to the peer as soon as there is room.
    alert: Option<AlertDescription>,
    /// An alert was sealed after which nothing follows.
    is_over: bool,
}

/// What became of a buffer with records.
#[derive(Debug, Default)]
pub struct Opened {
    /// Plaintext that is now at the beginning of the buffer.
    pub plaintext: usize,
    /// Where the records begin that are not complete.
    pub used: usize,
    /// Complete ones may be among them: it was enough for a turn.
    pub has_more: bool,
    /// Why the connection is over, for whoever has read the plaintext.
    pub failed: Option<Error>,
}

/// Why a connection cannot go on, and the alert that says so.
type Refusal = (Option<AlertDescription>, Error);

impl Inbound {
    /// What `keys` are to take the protection off.
    pub fn new(keys: Keys) -> Self {
        Self {
            keys,
            message: Message::default(),
            is_over: false,
            key_updates: 0,
            empty_records: 0,
            warnings: 0,
            renegotiations: 0,
        }
    }

    /// Whether the peer has said that nothing follows.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Opens the records that are complete in `buffer`, and brings their plaintext together at its beginning. What
    /// the peer is to be told because of them is left to `outbound`.
    pub fn open(&mut self, buffer: &mut [u8], outbound: &mut Outbound) -> Opened {
        let mut opened = Opened::default();
        let (mut cipher, mut updates) = (None, 0);
        while !self.is_over {
            if updates == UPDATES_A_TURN {
                opened.has_more = true;
                break;
            }
            let record = match self.next(&buffer[opened.used..]) {
                Ok(Some(length)) => opened.used..opened.used + length,
                Ok(None) => break,
                Err(refusal) => {
                    opened.failed = Some(outbound.refuse(refusal));
                    break;
                }
            };
            let payload = record.start + HEADER;
            opened.used = record.end;
            let cipher_now = cipher.get_or_insert_with(|| self.keys.cipher());
            let content = self.keys.open(cipher_now, &mut buffer[record]).map_err(refused);
            let handled = content.and_then(|Content { kind, length }| {
                let content = &buffer[payload..payload + length];
                let updated = self.handle(kind, content, outbound)?;
                Ok((kind, length, updated))
            });
            match handled {
                Ok((ContentType::ApplicationData, length, _)) => {
                    buffer.copy_within(payload..payload + length, opened.plaintext);
                    opened.plaintext += length;
                }
                Ok((_, _, true)) => (cipher, updates) = (None, updates + 1),
                Ok(_) => {}
                Err(refusal) => {
                    opened.failed = Some(outbound.refuse(refusal));
                    break;
                }
            }
        }
        opened
    }

    /// Length of the record at the beginning of `bytes`, if all of it is there.
    fn next(&self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        let Some([kind, major, _, high, low]) = bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let kind = ContentType::from(*kind);
        let is_expected = match kind {
            ContentType::ApplicationData => true,
            ContentType::Alert | ContentType::Handshake => !self.keys.is_tls13(),
            _ => false,
        };
        if !is_expected {
            return Err(unexpected(kind));
        }
        if *major != 3 {
            return Err(refused(InvalidMessage::UnknownProtocolVersion.into()));
        }
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length > LONGEST_PAYLOAD[usize::from(!self.keys.is_tls13())] {
            return Err(refused(Error::PeerSentOversizedRecord));
        }
        Ok((bytes.len() >= HEADER + length).then_some(HEADER + length))
    }

    /// Handles a record's content. Returns whether the keys are others from now on.
    fn handle(
        &mut self,
        kind: ContentType,
        content: &[u8],
        outbound: &mut Outbound,
    ) -> Result<bool, Refusal> {
        if kind != ContentType::Handshake && self.message.length > 0 {
            let error = PeerMisbehaved::MessageInterleavedWithHandshakeMessage;
            return Err((Some(AlertDescription::UnexpectedMessage), error.into()));
        }
        if kind != ContentType::ApplicationData && content.is_empty() {
            // RFC 8446, section 5.4.
            return Err(unexpected(kind));
        }
        self.empty_records = if content.is_empty() { self.empty_records + 1 } else { 0 };
        if self.empty_records > EMPTY_RECORDS {
            return Err(misbehaved(PeerMisbehaved::TooManyEmptyFragments));
        }
        match kind {
            ContentType::ApplicationData => {
                if !content.is_empty() {
                    self.key_updates = 0;
                }
                Ok(false)
            }
            ContentType::Handshake if self.keys.is_tls13() => {
                self.handle_key_update(content, outbound)
            }
            ContentType::Handshake => {
                self.decline_renegotiation(content, outbound)?;
                Ok(false)
            }
            ContentType::Alert => {
                self.handle_alert(content)?;
                Ok(false)
            }
            other => Err(unexpected(other)),
        }
    }

    /// The one handshake message that a client may send now is `KeyUpdate` (RFC 8446, section 4.6.3). It ends with
    /// its record.
    fn handle_key_update(
        &mut self,
        mut content: &[u8],
        outbound: &mut Outbound,
    ) -> Result<bool, Refusal> {
        self.message.begin(&mut content);
        if self.message.kind() != Some(HandshakeType::KeyUpdate) {
            return Err(unexpected(ContentType::Handshake));
        }
        let Some(length) = self.message.announced() else { return Ok(false) };
        if length != 1 {
            return Err(refused(InvalidMessage::InvalidKeyUpdate.into()));
        }
        let (request, rest) = match content {
            [] => return Ok(false),
            [request, rest @ ..] => (request, rest),
        };
        if !rest.is_empty() {
            return Err(misbehaved(PeerMisbehaved::KeyEpochWithPendingFragment));
        }
        if *request > 1 {
            let error = InvalidMessage::InvalidKeyUpdate;
            return Err((Some(AlertDescription::IllegalParameter), error.into()));
        }
        self.message.length = 0;
        self.key_updates += 1;
        if self.key_updates > KEY_UPDATES {
            return Err(misbehaved(PeerMisbehaved::TooManyKeyUpdateRequests));
        }
        // One answer is enough for however many wishes.
        outbound.update_is_due |= *request == 1;
        self.keys.update();
        Ok(true)
    }

    /// The one handshake message that a client may send now is `ClientHello`, to begin again. It is read over, and
    /// declined (RFC 5246, section 7.2.2).
    fn decline_renegotiation(
        &mut self,
        mut content: &[u8],
        outbound: &mut Outbound,
    ) -> Result<(), Refusal> {
        while !content.is_empty() {
            self.message.begin(&mut content);
            if self.message.kind() != Some(HandshakeType::ClientHello) {
                return Err(unexpected(ContentType::Handshake));
            }
            let Some(length) = self.message.announced() else { return Ok(()) };
            let end = self.message.head.len() + length;
            if end > FRAGMENT {
                return Err(refused(InvalidMessage::HandshakePayloadTooLarge.into()));
            }
            let taken = content.len().min(end - self.message.length);
            content = &content[taken..];
            self.message.length += taken;
            if self.message.length == end {
                self.message.length = 0;
                self.renegotiations += 1;
                if self.renegotiations > RENEGOTIATIONS {
                    return Err(misbehaved(PeerMisbehaved::TooManyRenegotiationRequests));
                }
                // Not in place of one after which nothing follows.
                outbound.alert.get_or_insert(AlertDescription::NoRenegotiation);
            }
        }
        Ok(())
    }

    /// RFC 8446, section 6; RFC 5246, section 7.2.
    fn handle_alert(&mut self, content: &[u8]) -> Result<(), Refusal> {
        let &[level, description] = content else {
            return Err(refused(InvalidMessage::MessageTooShort.into()));
        };
        let description = AlertDescription::from(description);
        let error = Error::AlertReceived(description);
        match level {
            1 | 2 if description == AlertDescription::CloseNotify => {
                self.is_over = true;
                Ok(())
            }
            1 => {
                self.warnings += 1;
                if self.warnings > WARNINGS {
                    return Err(misbehaved(PeerMisbehaved::TooManyWarningAlertsReceived));
                }
                // In TLS 1.3 every other alert is an error, whatever level it gives.
                if self.keys.is_tls13() && description != AlertDescription::UserCanceled {
                    return Err((Some(AlertDescription::DecodeError), error));
                }
                Ok(())
            }
            2 => Err((None, error)),
            _ => Err((Some(AlertDescription::IllegalParameter), error)),
        }
    }
}

impl Message {
    /// Takes as much of the head from `content` as is missing.
    fn begin(&mut self, content: &mut &[u8]) {
        if let Some(missing) = self.head.get_mut(self.length..) {
            let taken = missing.len().min(content.len());
            missing[..taken].copy_from_slice(&content[..taken]);
            self.length += taken;
            *content = &content[taken..];
        }
    }

    fn kind(&self) -> Option<HandshakeType> {
        (self.length > 0).then(|| HandshakeType::from(self.head[0]))
    }

    /// Bytes that follow the head, once all of that is there.
    fn announced(&self) -> Option<usize> {
        let [_, length @ ..] = self.head;
        let [high, middle, low] = length.map(usize::from);
        (self.length >= self.head.len()).then_some(high << 16 | middle << 8 | low)
    }
}

impl Outbound {
    /// What `keys` are to protect.
    pub fn new(keys: Keys) -> Self {
        Self { keys, update_is_due: false, alert: None, is_over: false }
    }

    /// Seals what is due besides data, at the beginning of `to`, which has [`SEALED_BATCH`] bytes. Returns its length.
    pub fn seal_due(&mut self, to: &mut [u8]) -> usize {
        if self.is_over {
            return 0;
        }
        let mut sealed = 0;
        if self.update_is_due {
            sealed += self.seal_key_update(to);
        }
        if let Some(alert) = self.alert.take() {
            sealed += self.seal_alert(alert, &mut to[sealed..]);
        }
        sealed
    }

    /// Whether that would be anything.
    pub fn has_due(&self) -> bool {
        !self.is_over && (self.update_is_due || self.alert.is_some())
    }

    /// Seals as much of `plaintext` as is sealed at once, and what is due before, at the beginning of `to`, which
    /// has [`SEALED_BATCH`] bytes. Returns how much plaintext that is, and how much it has become; the error says
    /// that nothing may be sent any more.
    pub fn seal(&mut self, plaintext: &[u8], to: &mut [u8]) -> Result<(usize, usize), Error> {
        let mut sealed = self.seal_due(to);
        let mut taken = 0;
        let mut cipher = self.keys.cipher();
        for fragment in plaintext[..plaintext.len().min(BATCH)].chunks(FRAGMENT) {
            if self.is_over {
                break;
            }
            if self.keys.are_used_up() {
                if !self.keys.is_tls13() {
                    // TLS 1.2 has no other keys (RFC 9325, section 4.4).
                    sealed += self.seal_alert(AlertDescription::CloseNotify, &mut to[sealed..]);
                    break;
                }
                sealed += self.seal_key_update(&mut to[sealed..]);
                cipher = self.keys.cipher();
            }
            let kind = ContentType::ApplicationData;
            sealed += self.keys.seal(&cipher, kind, fragment, &mut to[sealed..]);
            taken += fragment.len();
        }
        if taken == 0 && self.is_over && sealed == 0 {
            Err(Error::EncryptError)
        } else {
            Ok((taken, sealed))
        }
    }

    /// Nothing follows.
    pub fn close(&mut self) {
        if !self.is_over && !self.alert.is_some_and(is_final) {
            self.alert = Some(AlertDescription::CloseNotify);
        }
    }

    /// Nothing follows, and nothing is to be said about it.
    pub(super) fn give_up(&mut self) {
        self.is_over = true;
    }

    /// From now on a key is good for so many records.
    #[cfg(test)]
    pub(super) fn set_limit(&mut self, records: u64) {
        self.keys.set_limit(records);
    }

    /// What the peer is to be told.
    #[cfg(test)]
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        self.alert
    }

    /// This is due as if the peer had caused it.
    #[cfg(test)]
    pub(super) fn owe(&mut self, update: bool, alert: Option<AlertDescription>) {
        (self.update_is_due, self.alert) = (update, alert);
    }

    fn refuse(&mut self, (alert, error): Refusal) -> Error {
        match alert {
            Some(_) => self.alert = alert,
            // Whoever has given up is told nothing.
            None => self.is_over = true,
        }
        error
    }

    fn seal_key_update(&mut self, to: &mut [u8]) -> usize {
        self.update_is_due = false;
        // `update_not_requested`: it is up to the peer when it takes others.
        let message = [u8::from(HandshakeType::KeyUpdate), 0, 0, 1, 0];
        let cipher = self.keys.cipher();
        let sealed = self.keys.seal(&cipher, ContentType::Handshake, &message, to);
        self.keys.update();
        sealed
    }

    fn seal_alert(&mut self, alert: AlertDescription, to: &mut [u8]) -> usize {
        let is_warning =
            matches!(alert, AlertDescription::CloseNotify | AlertDescription::NoRenegotiation);
        let message = [if is_warning { 1 } else { 2 }, u8::from(alert)];
        let cipher = self.keys.cipher();
        self.is_over = is_final(alert);
        self.keys.seal(&cipher, ContentType::Alert, &message, to)
    }
}

fn is_final(alert: AlertDescription) -> bool {
    alert != AlertDescription::NoRenegotiation
}

fn refused(error: Error) -> Refusal {
    let alert = match &error {
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        Error::InvalidMessage(_) => AlertDescription::DecodeError,
        _ => AlertDescription::UnexpectedMessage,
    };
    (Some(alert), error)
}

fn misbehaved(how: PeerMisbehaved) -> Refusal {
    refused(how.into())
}

fn unexpected(got_type: ContentType) -> Refusal {
    let expect_types = vec![ContentType::ApplicationData];
    refused(Error::InappropriateMessage { expect_types, got_type })
}
