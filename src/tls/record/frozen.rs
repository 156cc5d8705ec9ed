//! The record layer on its way to another program.

use rustls::AlertDescription;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{EMPTY_RECORDS, FRAGMENT, KEY_UPDATES, RENEGOTIATIONS, WARNINGS};
use super::{Inbound, Message, Outbound};
use crate::tls::keys::{FrozenKeys, Keys, Unusable};

/// What an [`Inbound`] is between two turns.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenInbound {
    keys: FrozenKeys,
    #[serde(default)]
    message: FrozenMessage,
    #[serde(default)]
    is_over: bool,
    #[serde(default)]
    key_updates: u8,
    #[serde(default)]
    empty_records: u8,
    #[serde(default)]
    warnings: u8,
    #[serde(default)]
    renegotiations: u8,
}

/// A handshake message that has begun, or none.
#[derive(Default, Debug, Serialize, Deserialize)]
#[serde(default)]
struct FrozenMessage {
    /// As much of its head as has arrived.
    head: ByteBuf,
    /// Bytes of it so far, its head included.
    length: usize,
}

/// What an [`Outbound`] is between two turns.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenOutbound {
    keys: FrozenKeys,
    #[serde(default)]
    update_is_due: bool,
    /// An alert that is due, by its number (RFC 8446, section 6).
    #[serde(default)]
    alert: Option<u8>,
    #[serde(default)]
    is_over: bool,
}

impl Inbound {
    /// What another program needs in order to go on.
    pub(in crate::tls) fn freeze(&self) -> FrozenInbound {
        let Self { keys, message, is_over, key_updates, empty_records, warnings, renegotiations } =
            self;
        FrozenInbound {
            keys: keys.freeze(),
            message: message.freeze(),
            is_over: *is_over,
            key_updates: *key_updates,
            empty_records: *empty_records,
            warnings: *warnings,
            renegotiations: *renegotiations,
        }
    }

    /// Goes on where another program stopped.
    pub(in crate::tls) fn thaw(frozen: &FrozenInbound) -> Result<Self, Unusable> {
        let keys = Keys::thaw(&frozen.keys)?;
        let message = Message::thaw(&frozen.message, keys.is_tls13())?;
        // What a peer has used up it has used up, and more than that is never counted.
        Ok(Self {
            keys,
            message,
            is_over: frozen.is_over,
            key_updates: frozen.key_updates.min(KEY_UPDATES),
            empty_records: frozen.empty_records.min(EMPTY_RECORDS),
            warnings: frozen.warnings.min(WARNINGS),
            renegotiations: frozen.renegotiations.min(RENEGOTIATIONS),
        })
    }

    /// Whether both are of one suite, as the two directions of a connection are.
    pub(in crate::tls) fn goes_with(&self, outbound: &Outbound) -> bool {
        self.keys.suite() == outbound.keys.suite()
    }
}

impl Message {
    fn freeze(&self) -> FrozenMessage {
        let Self { head, length } = self;
        let head = &head[..head.len().min(*length)];
        FrozenMessage { head: ByteBuf::from(head), length: *length }
    }

    fn thaw(frozen: &FrozenMessage, is_tls13: bool) -> Result<Self, Unusable> {
        let mut message = Self { length: frozen.length, ..Self::default() };
        let head = message.head.get_mut(..frozen.head.len()).ok_or(Unusable::Message)?;
        head.copy_from_slice(&frozen.head);
        let is_sound = match message.announced() {
            None => frozen.head.len() == frozen.length,
            // In TLS 1.2 what follows the head is counted until the message is whole.
            Some(announced) => {
                let end = message.head.len() + announced;
                let is_passed_over = !is_tls13 && end <= FRAGMENT && frozen.length < end;
                let has_head = frozen.head.len() == message.head.len();
                has_head && (frozen.length == message.head.len() || is_passed_over)
            }
        };
        if is_sound { Ok(message) } else { Err(Unusable::Message) }
    }
}

impl Outbound {
    /// What another program needs in order to go on.
    pub(in crate::tls) fn freeze(&self) -> FrozenOutbound {
        let Self { keys, update_is_due, alert, is_over } = self;
        FrozenOutbound {
            keys: keys.freeze(),
            update_is_due: *update_is_due,
            alert: alert.map(u8::from),
            is_over: *is_over,
        }
    }

    /// Goes on where another program stopped.
    pub(in crate::tls) fn thaw(frozen: &FrozenOutbound) -> Result<Self, Unusable> {
        let keys = Keys::thaw(&frozen.keys)?;
        Ok(Self {
            update_is_due: frozen.update_is_due && keys.is_tls13(),
            keys,
            alert: frozen.alert.map(AlertDescription::from),
            is_over: frozen.is_over,
        })
    }
}
