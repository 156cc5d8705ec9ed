//! The values that labels can have: enums alone, so that no label ever holds what a peer sent.

use crate::leg::Leg;

/// A closed set of label values.
pub trait Label: Copy + 'static {
    /// All of them, in the order of their [`Self::index`].
    const ALL: &'static [Self];

    /// The value as it is exposed.
    fn as_str(self) -> &'static str;

    /// Its place in [`Self::ALL`].
    fn index(self) -> usize;
}

impl Leg {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}

/// By the path of the endpoint.
impl Label for Leg {
    const ALL: &'static [Self] = &[Self::Binary, Self::Phone];

    fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "server",
            Self::Phone => "client",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// Defines an enum of label values, each with its text.
macro_rules! labels {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// How many there are.
            pub const COUNT: usize = [$($text),+].len();
        }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

labels! {
    /// Which way a message went.
    Direction {
        /// From a phone to its binary.
        PhoneToBinary = "phone_to_binary",
        /// From a binary to one of its phones.
        BinaryToPhone = "binary_to_phone",
    }
}

labels! {
    /// What became of an upgrade attempt. The first six are those of the reference relay.
    AttemptOutcome {
        /// It became a member: a binary that holds its slot, a phone that is attached.
        Accept = "accept",
        /// `400`: the header gate.
        RejectHeaders = "reject_headers",
        /// `4409`: the server-id is held by a binary that answered its probe.
        Reject409 = "reject_409",
        /// `4404`: nobody holds the server-id.
        Reject404 = "reject_404",
        /// `4429`: too many phones.
        Reject429 = "reject_429",
        /// `429`: too many attempts from the source.
        RejectRateLimit = "reject_rate_limit",
        /// `426`, or `400` for a bad key: no proper WebSocket upgrade.
        RejectUpgrade = "reject_upgrade",
        /// `403`: the server-id is not on the allow-list.
        Reject403 = "reject_403",
        /// `503`: a cap on connections, a probe under way, or the relay stops.
        RejectBusy = "reject_busy",
    }
}

labels! {
    /// Why a peer could not register; the values of the reference relay.
    Failure {
        /// A phone asked for a server-id that nobody holds.
        NoServer = "no_server",
        /// A binary claimed a server-id whose holder is alive.
        ServerInUse = "server_in_use",
        /// The phone cap of the server-id is reached.
        PhonesAtCap = "phones_at_cap",
        /// Too many attempts from the source.
        RateLimit = "ratelimit",
    }
}

labels! {
    /// Why a request was refused before any upgrade.
    Refused {
        /// `400`: not HTTP/1.
        MalformedHead = "malformed_head",
        /// `431`.
        HeadTooLarge = "head_too_large",
        /// `408`.
        HeadTimeout = "head_timeout",
        /// `404`.
        UnknownPath = "unknown_path",
        /// `405`.
        Method = "method",
        /// `429`.
        RateLimit = "rate_limit",
        /// `400`: a required header.
        HeaderGate = "header_gate",
        /// `426`.
        UpgradeRequired = "upgrade_required",
        /// `400`: the WebSocket key.
        BadKey = "bad_key",
        /// `503`: as many connections as there may be.
        ConnectionCap = "connection_cap",
        /// `503`: as many connections as one source may have.
        SourceCap = "source_cap",
        /// `403`: the server-id is not on the allow-list.
        NotAllowed = "not_allowed",
        /// `400`: a trusted proxy's forwarding field that is none.
        BadForwarding = "bad_forwarding",
        /// `503`: the relay stops.
        Stopping = "stopping",
        /// `503`: a probe of that slot is under way.
        ProbeUnderWay = "probe_under_way",
        /// `421`: over TLS, a `Host` that is not served.
        Misdirected = "misdirected",
        /// `400`: no TLS where TLS is spoken.
        NotTls = "not_tls",
        /// TLS for a server name that is not served.
        TlsName = "tls_name",
        /// A TLS handshake that failed.
        TlsHandshake = "tls_handshake",
    }
}

labels! {
    /// Why a binary's envelope was dropped.
    Dropped {
        /// Not one JSON object.
        NotAnObject = "not_an_object",
        /// `conn_id` is missing, empty or no string.
        ConnId = "conn_id",
        /// `close_code` is no integer from 0 to 65535.
        CloseCode = "close_code",
        /// Neither a frame nor a close code.
        Empty = "empty",
        /// Not UTF-8.
        NotText = "not_text",
        /// No such phone at this server-id.
        UnknownPhone = "unknown_phone",
    }
}

labels! {
    /// What became of a phone whose binary's connection changed.
    ReclaimOutcome {
        /// It stays.
        Kept = "kept",
        /// It was closed: the binary has not proved that it read everything of it, or the binary spoke to it just
        /// before its connection broke.
        Unproven = "unproven",
        /// It was closed after it had been kept: the binary did not show that it knows its session.
        Unconfirmed = "unconfirmed",
        /// It was closed: the old connection fell silent.
        Silent = "silent",
        /// It was closed by `--reclaim evict`.
        Evicted = "evicted",
    }
}

labels! {
    /// Who decided that a connection ends.
    Side {
        /// The relay.
        Relay = "relay",
        /// The binary: its own end, or a directive to close a phone.
        Binary = "binary",
        /// The phone.
        Phone = "phone",
    }
}

labels! {
    /// The close code of a connection, folded: what peers send is theirs to choose.
    Code {
        /// Normal.
        C1000 = "1000",
        /// Going away, and the relay's stop.
        C1001 = "1001",
        /// Protocol error.
        C1002 = "1002",
        /// A close frame without a code.
        C1005 = "1005",
        /// No close frame at all.
        C1006 = "1006",
        /// Not UTF-8, or not JSON.
        C1007 = "1007",
        /// A message that was not completed in time, or a server-id that is allowed no more.
        C1008 = "1008",
        /// Message too big.
        C1009 = "1009",
        /// Heartbeat timeout.
        C1011 = "1011",
        /// Backlog full, or the memory budget.
        C1013 = "1013",
        /// The binary's: not authorised.
        C4401 = "4401",
        /// No server with that id, or reclaimed.
        C4404 = "4404",
        /// Already claimed.
        C4409 = "4409",
        /// The binary's: a protocol that it does not speak.
        C4412 = "4412",
        /// The binary's: unknown session.
        C4421 = "4421",
        /// The binary's: it has to be newer.
        C4426 = "4426",
        /// Too many phones.
        C4429 = "4429",
        /// Any other.
        Other = "other",
    }
}

impl Code {
    /// The label of a code.
    pub fn of(code: u16) -> Self {
        match code {
            1000 => Self::C1000,
            1001 => Self::C1001,
            1002 => Self::C1002,
            1005 => Self::C1005,
            1006 => Self::C1006,
            1007 => Self::C1007,
            1008 => Self::C1008,
            1009 => Self::C1009,
            1011 => Self::C1011,
            1013 => Self::C1013,
            4401 => Self::C4401,
            4404 => Self::C4404,
            4409 => Self::C4409,
            4412 => Self::C4412,
            4421 => Self::C4421,
            4426 => Self::C4426,
            4429 => Self::C4429,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_folded_to_its_own_label_or_to_other() {
        let mut own = 0;
        for code in 0..=u16::MAX {
            match Code::of(code) {
                Code::Other => {}
                label => {
                    assert_eq!(label.as_str(), code.to_string());
                    own += 1;
                }
            }
        }
        assert_eq!(own, Code::COUNT - 1);
    }

    #[test]
    fn an_index_is_the_place_in_the_list() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(code.index(), index);
        }
    }
}
