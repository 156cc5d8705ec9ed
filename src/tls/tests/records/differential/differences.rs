//! Where this record layer is another on purpose, and which section of an RFC says so.

use rustls::{ContentType, InvalidMessage};

use super::*;

/// Who of the two goes on where the other one ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Later {
    Theirs,
    Ours,
}

/// Where this record layer is another on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Difference {
    pub(super) why: &'static str,
    pub(super) later: Option<Later>,
}

impl Difference {
    /// What explains these ends, with their alerts. This record layer has `left` bytes that are no whole record,
    /// and something that is `due`.
    pub(super) fn of(
        is_tls13: bool,
        theirs: (Option<&Error>, Option<AlertDescription>),
        ours: (Option<&Error>, Option<AlertDescription>),
        left: usize,
        due: Option<AlertDescription>,
    ) -> Option<Self> {
        use AlertDescription::*;
        use Error::{
            AlertReceived, DecryptError, InappropriateMessage, InvalidMessage as Invalid,
            PeerMisbehaved as Misbehaved, PeerSentOversizedRecord,
        };
        let (theirs, their_alert) = theirs;
        let (ours, our_alert) = ours;
        let Some(ours) = ours else {
            let is_header = matches!(
                theirs,
                Some(Invalid(
                    InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion
                ))
            );
            let why = match theirs {
                Some(Invalid(_)) if due == Some(NoRenegotiation) => CLIENT_HELLO_IS_NOT_READ,
                Some(_) if is_header && left < HEADER => HALF_A_HEADER,
                _ => return None,
            };
            return Some(Self { why, later: Some(Later::Ours) });
        };
        let later = if theirs.is_none() { Some(Later::Theirs) } else { None };
        let (why, later) = match (theirs, their_alert, ours, our_alert) {
            (Some(Misbehaved(theirs)), None, Misbehaved(ours), Some(UnexpectedMessage))
                if theirs == ours =>
            {
                (SILENCE, None)
            }
            (
                _,
                _,
                Misbehaved(PeerMisbehaved::TooManyKeyUpdateRequests),
                Some(UnexpectedMessage),
            ) => (NO_DATA, Some(Later::Theirs)),
            (
                Some(Invalid(_)),
                Some(DecodeError),
                Misbehaved(PeerMisbehaved::TooManyRenegotiationRequests),
                Some(UnexpectedMessage),
            ) => (CLIENT_HELLO_IS_NOT_READ, None),
            // Which of the two is wrong is seen first.
            (
                Some(Misbehaved(PeerMisbehaved::TooManyKeyUpdateRequests)),
                None,
                Invalid(InvalidMessage::InvalidKeyUpdate),
                Some(IllegalParameter),
            ) => (SILENCE, None),
            (
                Some(Invalid(InvalidMessage::MessageTooLarge) | DecryptError) | None,
                _,
                PeerSentOversizedRecord,
                Some(RecordOverflow),
            ) => (TOO_LONG, later),
            (
                Some(Invalid(InvalidMessage::InvalidEmptyPayload)),
                _,
                DecryptError,
                Some(BadRecordMac),
            ) if !is_tls13 => (NO_PAYLOAD, None),
            // A version that rustls knows, and whatever is in that record.
            (_, _, Invalid(InvalidMessage::UnknownProtocolVersion), Some(DecodeError)) => {
                (OTHER_PROTOCOL, Some(Later::Theirs))
            }
            // Of several messages in one record, the length of each is looked at before the first.
            (Some(Invalid(InvalidMessage::HandshakePayloadTooLarge)), None, _, Some(_)) => {
                (LENGTH_IS_SEEN, None)
            }
            // A head without a body, and whatever is in the next record.
            (
                _,
                _,
                Invalid(
                    InvalidMessage::InvalidKeyUpdate | InvalidMessage::HandshakePayloadTooLarge,
                ),
                Some(DecodeError),
            ) => (LENGTH_IS_SEEN, Some(Later::Theirs)),
            // rustls does not look at the type outside, or does so once the record is there.
            (theirs, _, InappropriateMessage { got_type, .. }, Some(UnexpectedMessage))
                if !matches!(theirs, Some(AlertReceived(_))) || is_tls13 =>
            {
                let why = match got_type {
                    ContentType::Unknown(_) | ContentType::Heartbeat => UNKNOWN_TYPE,
                    ContentType::ChangeCipherSpec => CHANGE_CIPHER_SPEC,
                    ContentType::Alert | ContentType::Handshake => OUTER_TYPE_OR_MESSAGE,
                    _ => return None,
                };
                (why, Some(Later::Theirs))
            }
            _ => return None,
        };
        Some(Self { why, later })
    }
}

pub(super) const SILENCE: &str = "RFC 8446, 5.1, 5.4 and 6.2: rustls ends without an alert";
pub(super) const TOO_LONG: &str =
    "RFC 8446, 5.1 and 5.2; RFC 5246, 6.2.3: too long a record is record_overflow";
pub(super) const NO_PAYLOAD: &str =
    "RFC 5246, 7.2.2: a record without room for a MAC is bad_record_mac";
pub(super) const OTHER_PROTOCOL: &str =
    "RFC 8446, 5.1: rustls lets the versions of SSL 2 and DTLS pass, none else";
pub(super) const CLIENT_HELLO_IS_NOT_READ: &str =
    "RFC 5246, 7.2.2: one that is declined may be any";
pub(super) const NO_DATA: &str =
    "none: a record without content, which is cheap too, does not allow more key updates";
pub(super) const HALF_A_HEADER: &str =
    "RFC 8446, 5.1: a header is looked at once all of it is there";
pub(super) const LENGTH_IS_SEEN: &str =
    "RFC 8446, 4.6.3 and 6.2: a length that is wrong is not waited for";
pub(super) const UNKNOWN_TYPE: &str =
    "RFC 8446, 5: an unexpected content type is unexpected_message";
pub(super) const CHANGE_CIPHER_SPEC: &str =
    "RFC 8446, 5; RFC 5246, 7.1: change_cipher_spec is unexpected_message, whatever is in it";
pub(super) const OUTER_TYPE_OR_MESSAGE: &str = "RFC 8446, 4, 5.1, 5.2 and 5.4: what is not application_data outside, a \
     handshake message that is not expected, and one or an alert of no bytes, are unexpected_message";
