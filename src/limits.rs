//! Every size, count and duration that the relay is built around: unit, default, reason, cost.
//!
//! What the command line can change is a default here; the rest is fixed because nobody gains by
//! turning it.

use std::time::Duration;

/// Where the relay listens unless told otherwise: loopback, so that a first try exposes nothing.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8080";

/// How long a server-id stays claimed after its binary's connection ended.
pub const DEFAULT_GRACE: &str = "30s";
/// How long the holder of a server-id may take to answer a probe; a busy daemon may not read for
/// that long.
pub const DEFAULT_PROBE_TIMEOUT: &str = "10s";
/// Silence after which a ping is sent.
pub const DEFAULT_HEARTBEAT_INTERVAL: &str = "30s";
/// Silence after that ping at which the peer counts as gone.
pub const DEFAULT_HEARTBEAT_TIMEOUT: &str = "30s";
/// Time for a whole request head, counted from the accept.
pub const DEFAULT_HEADER_TIMEOUT: &str = "5s";
/// Time for a whole message, counted from its first byte.
pub const DEFAULT_MESSAGE_TIMEOUT: &str = "30s";
/// Time a write may make no progress.
pub const DEFAULT_WRITE_TIMEOUT: &str = "10s";
/// Time a stop waits for the peers' close frames; one client's test rig allows a relay 3 s.
pub const DEFAULT_DRAIN_TIMEOUT: &str = "2s";

/// Largest message, in bytes of payload; the largest legal frame of the field is 87.4 KB.
pub const DEFAULT_MAX_FRAME: &str = "256KiB";
/// Bound of the queue towards one phone: a binary at home hands over a 16 MiB file, 30 MB on the
/// wire, at once to a phone on a slow link.
pub const DEFAULT_MAX_QUEUE: &str = "32MiB";
/// Bound of the queue towards one binary.
pub const DEFAULT_MAX_SLOT_QUEUE: &str = "1MiB";
/// Bound of everything that the relay holds for its peers.
pub const DEFAULT_MEMORY_BUDGET: &str = "64MiB";
/// Phones a server-id.
pub const DEFAULT_MAX_PHONES: &str = "16";
/// Upgraded connections; also bounds the slots, live and in grace.
pub const DEFAULT_MAX_CONNECTIONS: &str = "4096";
/// Connections of one source address: a household or a small office behind one address.
pub const DEFAULT_MAX_CONNECTIONS_PER_IP: &str = "64";
/// One in so many connection permits is kept for source addresses that hold none: with the defaults
/// 512 of 4096, which is what 56 addresses with 64 connections each leave to all others.
pub const STRANGERS_SHARE: usize = 8;
/// Upgrade attempts a source address.
pub const DEFAULT_RATE_LIMIT: &str = "30/min";
/// Attempts a source may make at once before the rate holds it back: as many as it may hold
/// connections, so that all of them are back at once after a restart.
pub const DEFAULT_RATE_BURST: &str = "64";
/// How records are written unless told otherwise.
pub const DEFAULT_LOG_FORMAT: &str = "auto";
/// After a refusal was logged: how long others of its kind are counted, to be told by one line.
pub const REPEAT_WINDOW: Duration = Duration::from_secs(60);
/// Kinds of refusals that are counted apart: more than there are, and a bound whatever may come.
pub const REPEAT_KINDS: usize = 32;

/// How long the subcommand `check` waits for an answer of whoever holds an address.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How much of that answer it reads, in bytes; a health page has less than 500.
pub const CHECK_MAX_ANSWER: usize = 8 * 1024;

/// Longest duration that an option takes: anything longer is a typing error, and the bound keeps
/// additions to an `Instant` far from overflow.
pub const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Shortest duration that an option takes: timers ring no finer, and a shorter one is a mistake.
pub const MIN_DURATION: Duration = Duration::from_millis(1);
/// Largest size that an option takes, in bytes: 64 GiB is more than any board has. On 32 bits the
/// sum of a few sizes must fit below 4 GiB.
pub const MAX_SIZE: u64 = if usize::BITS > 32 { 64 << 30 } else { 512 << 20 };
/// Largest value of `--max-frame-bytes`, in bytes. The codec reserves what a frame announces.
pub const LARGEST_MAX_FRAME: u64 = 16 * 1024 * 1024;
/// Largest count that an option takes: Linux gives a process at most as many descriptors.
pub const MAX_COUNT: u32 = 1024 * 1024;

/// Largest request head in bytes, its blank line included.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Most header fields in a request head.
pub const MAX_HEADERS: usize = 100;
/// Request heads (and refusals that still linger) at one time; the oldest is closed for a
/// newcomer. 256 heads cost at most 2 MiB.
pub const MAX_HEADS: usize = 256;
/// Longest server-id in bytes.
pub const MAX_SERVER_ID_BYTES: usize = 128;
/// Where device names and version labels are cut, in bytes, before they are kept or logged.
pub const MAX_LABEL_BYTES: usize = 128;

/// Largest allow-list in bytes: [`ALLOW_FILE_IDS`] of the longest ids, and as much again for comments.
/// It is read by the event loop, in a few milliseconds.
pub const ALLOW_FILE_BYTES: usize = 4 * 1024 * 1024;
/// Most server-ids in an allow-list: as many as the unit's descriptors serve. About 200 bytes each.
pub const ALLOW_FILE_IDS: usize = 16 * 1024;

/// What the envelope may add to a message on the binary's leg, in bytes.
pub const ENVELOPE_ALLOWANCE: usize = 1024;
/// What one queued message costs besides its bytes: its place in the queue and what the allocator
/// adds. 400,000 one-byte messages measured 31 MB, 78 bytes each in all.
pub const MESSAGE_OVERHEAD: usize = 64;
/// Ids of phones that a binary's connection was told about; a frame for one of these is not
/// answered again.
pub const REMEMBERED_NOTICES: usize = 1024;

/// Steps in a heartbeat interval: heartbeats ring only at these, together. With 30 s that is every
/// 234 ms; a ping may be late by as much.
pub const HEARTBEAT_STEPS: u32 = 128;

/// Requests in progress that one address may have although it holds as many connections as it may:
/// they get an answer. An address without connections may have more.
pub const REQUESTS_AT_CAP: usize = 16;

/// Turns of reading for a message whose time is over, while there is more to read at once: where the
/// process did not run for a while, the rest may have come in time. The largest message takes fewer.
pub const LATE_TURNS: u8 = 32;

/// How long after a probe's ping a byte must arrive to count as an answer: what arrives earlier
/// may have been on its way before the peer vanished.
pub const PROBE_BLIND: Duration = Duration::from_secs(1);

/// After a close frame or a refusal: how long input is read and discarded, so that no reset
/// destroys what was just written.
pub const LINGER_TIME: Duration = Duration::from_secs(2);
/// After a close frame or a refusal: how much input is discarded, in bytes.
pub const LINGER_BYTES: usize = 1024 * 1024;

/// One batch of a write, and the buffer that all reads share, in bytes. A ping is answered behind
/// at most one batch.
pub const BATCH_BYTES: usize = 64 * 1024;
/// Frames from this size on are written from the queue itself, smaller ones are gathered into a
/// batch first.
pub const GATHER_BELOW: usize = 16 * 1024;
/// Reads, and batches written, by one connection before the others get their turn.
pub const TURN_BATCHES: usize = 4;
/// Messages handled for one connection before the others get their turn: a batch can hold ten
/// thousand of the smallest, which would take milliseconds.
pub const TURN_MESSAGES: usize = 512;
/// The codec's read buffer in bytes, held only while a message is in progress.
pub const CODEC_BUFFER: usize = 4 * 1024;
/// What a codec costs besides its buffer, in bytes.
pub const CODEC_OVERHEAD: usize = 768;
/// Codecs kept for connections with something to decode: one a leg in a turn, and a few for
/// messages that come in pieces.
pub const SPARE_CODECS: usize = 8;

/// Unsent bytes above which the kernel reports a socket as not writable (`TCP_NOTSENT_LOWAT`):
/// it keeps the backlog here, where it is counted, instead of 2 MB deep in the kernel.
pub const NOTSENT_LOWAT: u32 = 64 * 1024;
/// Most sockets that systemd may hand over: a unit has one for each address, port and family.
pub const MAX_INHERITED: usize = 64;
/// Length of the listening socket's backlog.
pub const LISTEN_BACKLOG: i32 = 4096;
/// First pause after a failed accept; it doubles up to [`ACCEPT_BACKOFF_MAX`].
pub const ACCEPT_BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest pause after failed accepts.
pub const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// What a TLS connection may hold of bytes that its socket has not taken: two records of the largest
/// size (RFC 8446, section 5.1). More would only wait here instead of in the queue.
pub const TLS_WRITE_BUFFER: usize = 32 * 1024;
/// A certificate that expires sooner is a problem that the pages tell, or in the last sixth of its
/// life if that is shorter: by ACME it would have been renewed by then.
pub const CERTIFICATE_PROBLEM: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// How often systemd is told anew how many days a certificate has left.
pub const CERTIFICATE_STATUS: Duration = Duration::from_secs(60 * 60);
/// How often files with a certificate are looked at for a change, which costs two system calls.
pub const CERTIFICATE_CHECK: Duration = Duration::from_secs(10);
/// Connections taken from one listener before other tasks get their turn.
pub const ACCEPT_BATCH: usize = 64;
/// Descriptors that are not connections: listeners, the event loop, standard streams, some spare.
pub const RESERVED_DESCRIPTORS: usize = 32;

/// Descriptors that the event loop takes at the start: `epoll`, an event, a timer, and for signals a
/// pair of sockets and a copy; a few to spare.
pub const LOOP_DESCRIPTORS: usize = 8;
/// Stack of the thread that is started to see whether one can be had, in bytes: twice that of a
/// thread of the event loop, which needs some memory besides.
pub const PROBE_STACK: usize = 4 * 1024 * 1024;

/// At a stop: how long request heads in progress may take to be complete and be answered, at most
/// half of the drain timeout. Several round trips; one that is silent must not delay the stop.
pub const HEADS_AT_STOP: Duration = Duration::from_secs(1);

/// From a change of the connections to the status that systemd is told: one line for a burst of
/// changes, and time for an upgrade to become a member.
pub const STATUS_DELAY: Duration = Duration::from_secs(2);

/// Source addresses in each of the two halves of the rate limiter's table; about 50 bytes each.
pub const RATE_TABLE_HALF: usize = 8 * 1024;

/// What a `503` tells a client to wait; a probe takes up to 10 s, and a cap clears at any time.
pub const RETRY_AFTER_BUSY: Duration = Duration::from_secs(5);

/// A whole order of a certificate: with Let's Encrypt it takes 10 s, a domain a few more; a
/// directory that hangs must not keep the relay from trying again.
pub const ORDER_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// First pause after an order that brought no certificate to last; the next ones are
/// [`ORDER_BACKOFF_FACTOR`] times longer, up to [`ORDER_BACKOFF_MAX`]. Attempts come 15 s, 75 s,
/// 5 min, 21 min and 85 min after the first one: Let's Encrypt allows 5 failed validations an hour.
pub const ORDER_BACKOFF_MIN: Duration = Duration::from_secs(15);
/// By what each pause between orders is longer than the one before.
pub const ORDER_BACKOFF_FACTOR: u32 = 4;
/// Longest pause between orders: a name that points here at last is noticed on the same day.
pub const ORDER_BACKOFF_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// Every pause is longer by a random part, up to one in so many: relays that lost their directory
/// together do not come back together.
pub const ORDER_JITTER: u32 = 4;
/// How often the wall clock is looked at while a certificate lasts: a board without a clock of its
/// own learns the time after the start.
pub const CLOCK_STEP: Duration = Duration::from_secs(60 * 60);
/// Where a reason that others supplied is cut, in bytes, before it is logged: the detail of an ACME
/// problem is a sentence or two.
pub const MAX_REASON_BYTES: usize = 512;
/// Largest file of the certificate cache in bytes; key and chain have 5 KiB.
pub const MAX_CACHED_BYTES: u64 = 256 * 1024;
/// What an interrupted write of the certificate cache left is cleared away once it is this old:
/// nobody is still writing it.
pub const LEFTOVER_AGE: Duration = Duration::from_secs(60 * 60);

/// Bounds of the buckets in which turns of the event loop are counted: a turn usually takes
/// microseconds, and one of 100 ms is felt by a person.
pub const LAG_BUCKETS: [Duration; 12] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_secs(1),
];

/// A ring of the history: how many points, of which length.
#[derive(Clone, Copy, Debug)]
pub struct RingSize {
    /// Points in the ring, the one in progress included.
    pub points: usize,
    /// What one point stands for.
    pub period: Duration,
}

/// The last minute, for rates; 20 bytes a point, here and below.
pub const HISTORY_MINUTE: RingSize = RingSize { points: 13, period: Duration::from_secs(5) };
/// The last hour, a point a minute.
pub const HISTORY_HOUR: RingSize = RingSize { points: 60, period: Duration::from_secs(60) };
/// The last day, a point a quarter of an hour.
pub const HISTORY_DAY: RingSize = RingSize { points: 96, period: Duration::from_secs(15 * 60) };
/// Refusals of the last hour; 68 bytes a point.
pub const HISTORY_REFUSALS: RingSize = RingSize { points: 13, period: Duration::from_secs(5 * 60) };

/// Where the metrics and the status page are served unless told otherwise: nowhere.
pub const DEFAULT_METRICS_LISTEN: &str = "off";
/// Let's Encrypt: the directory that is free for everybody, and that every client trusts.
pub const DEFAULT_ACME_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Connections to the metrics listener at one time; the oldest is closed for a newcomer. A page
/// takes milliseconds, and a few scrapers and browsers are what is expected.
pub const MAX_MONITOR_CONNECTIONS: usize = 16;

/// A turn of the event loop from which on the status page calls it a problem: a daemon gives up on
/// a write after 5 s. (A busy machine makes a turn of a second now and then.)
pub const LAG_PROBLEM: Duration = Duration::from_secs(5);
/// Part of the memory budget, or of the descriptors, in percent from which on the status page
/// calls it a problem.
pub const USE_PROBLEM: u64 = 90;

/// Where `pyrycode-relay status` looks first unless told otherwise: the address that the
/// documentation uses for the metrics.
pub const STATUS_METRICS: &str = "127.0.0.1:9464";
/// How long it waits for a connection, and for each read and write.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer that it reads, in bytes.
pub const STATUS_MAX_ANSWER: u64 = 1024 * 1024;
