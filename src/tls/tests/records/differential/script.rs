//! What a client does, and how a chain of it is drawn.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// What a client does.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Seal {
        kind: u8,
        content: Vec<u8>,
        padding: usize,
    },
    /// A record with whatever in it and in its header.
    Inner {
        kind: u8,
        version: [u8; 2],
        inner: Vec<u8>,
    },
    /// A key update in records of so many bytes, and the next keys from then on.
    Update {
        request: u8,
        pieces: usize,
    },
    /// Any handshake message, in as many bytes a record.
    Message {
        message: Vec<u8>,
        pieces: usize,
    },
    Repeated(u8, Box<Self>),
    /// Not protected.
    Plain(Vec<u8>),
    /// A record of data with one bit changed.
    Flipped {
        length: usize,
        at: Index,
        bit: u8,
    },
    /// The servers write.
    Answer(usize),
}

impl Act {
    pub(super) fn bytes(&self, client: &mut Protection) -> Vec<u8> {
        match self {
            Self::Seal { kind, content, padding } => client.seal_padded(*kind, content, *padding),
            Self::Inner { kind, version, inner } => client.seal_inner(*kind, *version, inner),
            Self::Update { request, pieces } => {
                let bytes = in_pieces(client, &[KEY_UPDATE, 0, 0, 1, *request], *pieces);
                client.update();
                bytes
            }
            Self::Message { message, pieces } => in_pieces(client, message, *pieces),
            Self::Repeated(times, act) => (0..*times).flat_map(|_| act.bytes(client)).collect(),
            Self::Plain(bytes) => bytes.clone(),
            Self::Flipped { length, at, bit } => {
                let mut record = client.seal(DATA, &vec![3; *length]);
                let at = at.index(record.len());
                record[at] ^= 1 << bit;
                record
            }
            Self::Answer(_) => Vec::new(),
        }
    }
}

pub(super) fn in_pieces(client: &mut Protection, message: &[u8], pieces: usize) -> Vec<u8> {
    message.chunks(pieces).flat_map(|piece| client.seal(HANDSHAKE, piece)).collect()
}

pub(super) fn seal(kind: u8, content: impl Into<Vec<u8>>) -> Act {
    Act::Seal { kind, content: content.into(), padding: 0 }
}

pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], body].concat()
}

/// One that rustls can read: a session id, a suite and compression of none, and no extensions.
pub(super) fn client_hello() -> Vec<u8> {
    let body = [&[3, 3][..], &[1; 32], &[0], &[0, 2, 0xc0, 0x2b], &[1, 0]].concat();
    message(CLIENT_HELLO, &body)
}

pub(super) fn plain(kind: u8, version: [u8; 2], length: u16, payload: &[u8]) -> Act {
    Act::Plain([&[kind], &version[..], &length.to_be_bytes(), payload].concat())
}

pub(super) fn pieces() -> impl Strategy<Value = usize> {
    prop_oneof![1_usize..6, 6_usize..80]
}

pub(super) fn bytes(
    length: impl Into<proptest::collection::SizeRange>,
) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), length)
}

/// What a client may do.
pub(super) fn a_fair_act() -> impl Strategy<Value = Act> {
    let length = prop_oneof![4 => 1_usize..300, 1 => 1..=FRAGMENT, 1 => Just(FRAGMENT)];
    let padding = prop_oneof![2 => Just(0_usize), 1 => 0_usize..300];
    let data = (any::<u8>(), length, padding).prop_map(|(byte, length, padding)| Act::Seal {
        kind: DATA,
        content: vec![byte; length],
        // The longest record that there may be.
        padding: padding.min(FRAGMENT - length),
    });
    let empty = (1_u8..=34, 0_usize..20).prop_map(|(times, padding)| {
        let empty = Act::Seal { kind: DATA, content: Vec::new(), padding };
        Act::Repeated(times, Box::new(empty))
    });
    let update = (0_u8..2, pieces()).prop_map(|(request, pieces)| Act::Update { request, pieces });
    let hello = pieces().prop_map(|pieces| Act::Message { message: client_hello(), pieces });
    let warning = prop_oneof![Just(90_u8), Just(0), Just(100), any::<u8>()]
        .prop_map(|description| seal(ALERT, [WARNING, description]));
    prop_oneof![
        12 => data,
        2 => empty,
        5 => update,
        2 => (29_u8..35, 0_u8..2).prop_map(|(times, request)| {
            Act::Repeated(times, Box::new(Act::Update { request, pieces: 5 }))
        }),
        2 => hello,
        1 => warning,
        1 => (1_u8..6).prop_map(|times| {
            Act::Repeated(times, Box::new(seal(ALERT, [WARNING, 90])))
        }),
        3 => (1_usize..200).prop_map(Act::Answer),
    ]
}

/// What ends most connections.
pub(super) fn a_foul_act() -> impl Strategy<Value = Act> {
    let version = || prop_oneof![4 => Just([3, 3]), 2 => Just([3, 1]), 1 => any::<[u8; 2]>()];
    let kind = || prop_oneof![3 => 19_u8..26, 1 => any::<u8>()];
    let long = (FRAGMENT - 2)..(FRAGMENT + 300);
    prop_oneof![
        any::<u8>().prop_map(|request| Act::Update { request, pieces: 5 }),
        // Key updates of another length, and with something behind them.
        (bytes(0..4), bytes(0..3), pieces()).prop_map(|(body, rest, pieces)| Act::Message {
            message: [message(KEY_UPDATE, &body), rest].concat(),
            pieces,
        }),
        // It begins, and no more.
        (any::<[u8; 4]>(), 1_usize..5, bytes(0..9)).prop_map(|(head, length, rest)| {
            seal(HANDSHAKE, [&head[..length], &rest].concat())
        }),
        (prop_oneof![1_u8..25, any::<u8>()], bytes(0..60), pieces()).prop_map(
            |(kind, body, pieces)| Act::Message { message: message(kind, &body), pieces }
        ),
        pieces().prop_map(|pieces| Act::Message { message: client_hello().repeat(2), pieces }),
        Just(seal(HANDSHAKE, [])),
        (1_usize..4).prop_map(|length| seal(HANDSHAKE, &client_hello()[..length])),
        (any::<u8>(), any::<u8>())
            .prop_map(|(level, description)| { seal(ALERT, [level % 4, description]) }),
        bytes(0..5).prop_map(|content| seal(ALERT, content)),
        (kind(), bytes(0..5)).prop_map(|(kind, content)| seal(kind, content)),
        (0_usize..50).prop_map(|length| Act::Inner {
            kind: DATA,
            version: [3, 3],
            inner: vec![0; length],
        }),
        (long, any::<bool>()).prop_map(|(length, is_data)| Act::Inner {
            kind: DATA,
            version: [3, 3],
            inner: [vec![1; length], vec![if is_data { DATA } else { 0 }]].concat(),
        }),
        (kind(), version(), bytes(0..20)).prop_map(|(kind, version, mut inner)| {
            inner.push(DATA);
            Act::Inner { kind, version, inner }
        }),
        (kind(), version(), 0_u16..40, bytes(0..60)).prop_map(
            |(kind, version, length, payload)| { plain(kind, version, length, &payload) }
        ),
        (kind(), version(), any::<u16>(), bytes(0..60))
            .prop_map(|(kind, version, length, payload)| plain(kind, version, length, &payload)),
        (kind(), version()).prop_map(|(kind, version)| plain(kind, version, 0, &[])),
        Just(plain(CHANGE_CIPHER, [3, 3], 1, &[1])),
        bytes(0..30).prop_map(Act::Plain),
        (0_usize..100, any::<Index>(), 0_u8..8).prop_map(|(length, at, bit)| Act::Flipped {
            length,
            at,
            bit,
        }),
    ]
}
