//! Every size, count and duration that the relay is built around: unit, default, reason, cost.
//!
//! Names with `DEFAULT` can be changed on the command line. The rest is fixed, because nobody gains
//! by changing it.

use std::time::Duration;

/// Address to listen on by default: loopback, so that a first try exposes nothing.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8080";

/// How long a server-id stays claimed after its binary's connection has ended.
pub const DEFAULT_GRACE: &str = "30s";
/// How long the holder of a server-id may take to answer a probe: a busy daemon may read nothing
/// for several seconds.
pub const DEFAULT_PROBE_TIMEOUT: &str = "10s";
/// Silence after which a ping is sent.
pub const DEFAULT_HEARTBEAT_INTERVAL: &str = "30s";
/// Silence after that ping at which the peer counts as gone.
pub const DEFAULT_HEARTBEAT_TIMEOUT: &str = "30s";
/// Time for a whole request head, counted from the accept.
pub const DEFAULT_HEADER_TIMEOUT: &str = "5s";
/// Time for a whole message, counted from its first byte.
pub const DEFAULT_MESSAGE_TIMEOUT: &str = "30s";
/// How long a write may make no progress.
pub const DEFAULT_WRITE_TIMEOUT: &str = "10s";
/// How long a stop waits for the peers' close frames; the tests of one client allow a relay 3 s.
pub const DEFAULT_DRAIN_TIMEOUT: &str = "2s";

/// Largest message, in bytes of payload; the largest legal frame of the field is 87.4 KB.
pub const DEFAULT_MAX_FRAME: &str = "256KiB";
/// Bound of the queue towards one phone: a daemon may send a file of 16 MiB, 30 MB on the wire, at
/// once to a phone on a slow link.
pub const DEFAULT_MAX_QUEUE: &str = "32MiB";
/// Bound of the queue towards one binary.
pub const DEFAULT_MAX_SLOT_QUEUE: &str = "1MiB";
/// Bound of all bytes that the relay holds for its peers.
pub const DEFAULT_MEMORY_BUDGET: &str = "64MiB";
/// Phones per server-id.
pub const DEFAULT_MAX_PHONES: &str = "16";
/// Upgraded connections. Also bounds the slots, those in grace included.
pub const DEFAULT_MAX_CONNECTIONS: &str = "4096";
/// Connections per source address: room for a household or a small office behind one address.
pub const DEFAULT_MAX_CONNECTIONS_PER_IP: &str = "64";
/// One connection permit in this many is reserved for source addresses that hold none. With the
/// defaults that is 512 of 4096, and 56 addresses with 64 connections each take all others.
pub const STRANGERS_SHARE: usize = 8;
/// Upgrade attempts per source address.
pub const DEFAULT_RATE_LIMIT: &str = "30/min";
/// Attempts that a source may make at once before the rate limits it: as many as it may hold
/// connections, so that all of them are back at once after a restart.
pub const DEFAULT_RATE_BURST: &str = "64";
/// Default format of the log.
pub const DEFAULT_LOG_FORMAT: &str = "auto";
/// After a refusal is logged: how long further ones of its kind are only counted, for one line that
/// sums them up.
pub const REPEAT_WINDOW: Duration = Duration::from_secs(60);
/// Kinds of refusals that are counted separately; more than exist.
pub const REPEAT_KINDS: usize = 32;

/// How long the subcommand `check` waits for an answer from the program that holds an address.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest answer that it accepts, in bytes; a health page has less than 500.
pub const CHECK_MAX_ANSWER: usize = 8 * 1024;

/// Longest duration that an option accepts: anything longer is a typing error, and the bound keeps
/// additions to an `Instant` far from overflow.
pub const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Shortest duration that an option accepts: timers are no finer, and a shorter one is a mistake.
pub const MIN_DURATION: Duration = Duration::from_millis(1);
/// Largest size that an option accepts, in bytes: 64 GiB is more than any board has. On 32 bits the sum of
/// a few sizes must fit below 4 GiB.
pub const MAX_SIZE: u64 = if usize::BITS > 32 { 64 << 30 } else { 512 << 20 };
/// Largest value of `--max-frame-bytes`, in bytes.
pub const LARGEST_MAX_FRAME: u64 = 16 * 1024 * 1024;
/// Largest count that an option accepts: Linux gives a process at most as many descriptors.
pub const MAX_COUNT: u32 = 1024 * 1024;

/// Largest request head in bytes, including its blank line.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Most header fields in a request head.
pub const MAX_HEADERS: usize = 100;
/// Request heads in progress at one time, including refusals that still linger. A newcomer replaces
/// the oldest head of the source that has the most. 256 heads cost at most 2 MiB.
pub const MAX_HEADS: usize = 256;
/// Longest server-id in bytes.
pub const MAX_SERVER_ID_BYTES: usize = 128;
/// Longest device name or version label that is kept and logged, in bytes; longer ones are cut.
pub const MAX_LABEL_BYTES: usize = 128;

/// Largest allow-list in bytes: [`ALLOW_FILE_IDS`] of the longest ids, and as much again for
/// comments. The event loop reads it in a few milliseconds.
pub const ALLOW_FILE_BYTES: usize = 4 * 1024 * 1024;
/// Most server-ids in an allow-list: the systemd unit's descriptors serve no more. About 200 bytes
/// each.
pub const ALLOW_FILE_IDS: usize = 16 * 1024;

/// Bytes that the envelope may add to a message on the binary's leg.
pub const ENVELOPE_ALLOWANCE: usize = 1024;
/// Bytes that a queued message costs beyond its own: its place in the queue, and what the allocator
/// adds. 400,000 one-byte messages measured 31 MB, 78 bytes each in all.
pub const MESSAGE_OVERHEAD: usize = 64;
/// Unknown phones that the relay remembers per binary's connection: a further frame for one of these
/// is not answered again.
pub const REMEMBERED_NOTICES: usize = 1024;

/// Steps per heartbeat interval. Heartbeats fire only at these steps, so that many share one wake-up.
/// With an interval of 30 s a step is 234 ms, and a ping may be that late.
pub const HEARTBEAT_STEPS: u32 = 128;

/// Requests in progress allowed to an address that already holds all its connections, so that they
/// get an answer. An address without connections may have more.
pub const REQUESTS_AT_CAP: usize = 16;

/// Bytes that arrive within this time of a probe's ping do not count as an answer: the peer may have
/// sent them before it vanished.
pub const PROBE_BLIND: Duration = Duration::from_secs(1);

/// A second signal to stop ends the relay at once if it comes at least this long after the first. An
/// earlier one is the same stop: `timeout` and some supervisors send two with no gap.
pub const STOP_AGAIN: Duration = Duration::from_millis(500);

/// After a close frame or a refusal: how long input is read and discarded, so that no reset
/// destroys the bytes just written.
pub const LINGER_TIME: Duration = Duration::from_secs(2);
/// Turns of reading after a write has failed. What the kernel has received ahead is read in two or three of them,
/// on a slow machine in more.
pub const READS_BEHIND: usize = 16;
/// How often it is looked whether a peer has hung up that is held back, and so not read.
pub const HANGUP_CHECK: Duration = Duration::from_secs(1);

/// One batch of a write, and the buffer that all reads share, in bytes. A pong waits for at most one
/// batch.
pub const BATCH_BYTES: usize = 64 * 1024;
/// Frames of at least this size are written straight from the queue; smaller ones are first gathered
/// into a batch.
pub const GATHER_BELOW: usize = 16 * 1024;
/// Work after which a connection lets the others have their turn, and after which the event loop asks
/// the operating system for news (contract, Fairness). A single message may take longer.
pub const TURN_TIME: Duration = Duration::from_millis(1);
/// Frames of any kind that one connection reads, or writes, in a turn: a batch can hold ten thousand of
/// the smallest, which would take milliseconds.
pub const TURN_FRAMES: usize = 512;
/// Write calls of one connection in a turn: a socket may take little at a time.
pub const TURN_WRITES: usize = 4;
/// Empty fragments that one message may have. No client comes near it, and a message without an end
/// would cost work for ever and never a byte of what is bounded.
pub const MAX_EMPTY_FRAGMENTS: usize = 1024;
/// The small pieces of a half-received message, in bytes: powers of two.
pub(crate) const SMALLEST_PIECE: usize = 256;
pub(crate) const LARGEST_SMALL_PIECE: usize = 2 * 1024;
/// What arrives of a message at once is one piece from here on, in bytes, and small pieces are joined: the
/// allocator, as the systemd unit sets it, gives that back to the system at once.
pub(crate) const LARGE_PIECE: usize = 32 * 1024;
/// The codec's read buffer in bytes. A codec is held only within a turn, or as a spare.
pub const CODEC_BUFFER: usize = 4 * 1024;
/// Codecs kept for connections with something to decode: one per leg.
pub const SPARE_CODECS: usize = 2;

/// Unsent bytes above which the kernel reports a socket as not writable (`TCP_NOTSENT_LOWAT`). This
/// keeps the backlog in our queues, where it is counted, and not up to 2 MB of it in the kernel.
pub const NOTSENT_LOWAT: u32 = 64 * 1024;
/// Most sockets that systemd may hand over: a unit has one for each address, port and family.
pub const MAX_INHERITED: usize = 64;
/// What the kernel may receive ahead for one connection, in bytes (`SO_RCVBUF`; the kernel allocates
/// up to twice as much).
///
/// The relay does not read a peer that is held back. Without a bound the kernel lets such a peer's
/// buffer grow to megabytes (45 phones took 79 MiB), which no budget of ours counts. 128 KiB are a
/// window for 20 Mbit/s over a round trip of 50 ms: a stream measured 23 Mbit/s there (12 with half
/// the buffer), and the largest message took as long as without a bound (280 ms). The bound is below
/// what an unprivileged process may ask for (`net.core.rmem_max`, 208 KiB by default).
pub const RECEIVE_BUFFER: usize = 128 * 1024;
/// Length of the listening socket's backlog.
pub const LISTEN_BACKLOG: i32 = 4096;
/// First pause after a failed accept; it doubles up to [`ACCEPT_BACKOFF_MAX`].
pub const ACCEPT_BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest pause after failed accepts.
pub const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Bytes that a TLS connection holds beyond what every connection may, besides what is on its way.
pub const TLS_HELD: usize = 1024;
/// Bytes that a TLS handshake holds besides what the peer has sent; measured.
pub const TLS_HANDSHAKE_HELD: usize = 6 * 1024;
/// The longest ClientHello, in bytes, and the longest handshake message altogether. Those with a post-quantum key
/// share have about 1.8 KB.
pub const CLIENT_HELLO_BYTES: usize = 16 * 1024;
/// The pages report a certificate that expires sooner than this, or within the last sixth of
/// its life if that is shorter. ACME would have renewed it by then.
pub const CERTIFICATE_PROBLEM: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// How often systemd's status line is refreshed with the days that a certificate has left.
pub const CERTIFICATE_STATUS: Duration = Duration::from_secs(60 * 60);
/// How often certificate files are checked for a change; costs two system calls.
pub const CERTIFICATE_CHECK: Duration = Duration::from_secs(10);
/// Connections accepted from one listener before other tasks get their turn.
pub const ACCEPT_BATCH: usize = 64;
/// Descriptors that are not connections: listeners, the event loop, standard streams, a few spare.
pub const RESERVED_DESCRIPTORS: usize = 32;

/// Descriptors that the event loop takes at the start: `epoll`, an event, a timer, and for signals a
/// pair of sockets and a copy; a few to spare.
pub const LOOP_DESCRIPTORS: usize = 8;
/// Stack of the thread that is started to see whether one can be had, in bytes: twice that of a thread
/// of the event loop, which needs some memory besides.
pub const PROBE_STACK: usize = 4 * 1024 * 1024;

/// At a stop: how long request heads in progress may take to be completed and answered; never more
/// than half of the drain timeout. Enough for several round trips; a silent peer must not delay the
/// stop for longer.
pub const HEADS_AT_STOP: Duration = Duration::from_secs(1);

/// Delay between a change of the connections and the status line sent to systemd: a burst of changes
/// makes one line, and an upgrade has time to register.
pub const STATUS_DELAY: Duration = Duration::from_secs(2);
/// How soon a word for which the service manager had no room is sent again.
pub const NOTIFY_RETRY: Duration = Duration::from_secs(1);

/// Source addresses in each half of the rate limiter's table; about 100 bytes each.
pub const RATE_TABLE_HALF: usize = 8 * 1024;

/// `Retry-After` of a `503`. A probe takes up to 10 s; room under a cap may appear at any time.
pub const RETRY_AFTER_BUSY: Duration = Duration::from_secs(5);

/// Time for the whole order of a certificate. Let's Encrypt takes 10 s, and a few more per domain. A
/// directory that hangs must not keep the relay from trying again.
pub const ORDER_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// First pause after an order that brought no lasting certificate. Each further pause is
/// [`ORDER_BACKOFF_FACTOR`] times longer, up to [`ORDER_BACKOFF_MAX`]. Attempts follow 15 s, 75 s,
/// 5 min, 21 min and 85 min after the first: Let's Encrypt allows 5 failed validations per hour.
pub const ORDER_BACKOFF_MIN: Duration = Duration::from_secs(15);
/// How many times longer each pause between orders is than the one before it.
pub const ORDER_BACKOFF_FACTOR: u32 = 4;
/// Longest pause between orders: once a name points here, the relay notices on the same day.
pub const ORDER_BACKOFF_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// Each pause is lengthened at random, by up to one part in this many: relays that lost their
/// directory at the same time must not return to it at the same time.
pub const ORDER_JITTER: u32 = 4;
/// How often the wall clock is read while nothing is to be done about the certificate: a board without a
/// battery-backed clock learns the time only after the start, and may learn another one at any time.
pub const CLOCK_STEP: Duration = Duration::from_secs(30);
/// By how much the wall clock and the monotonic one must have drifted apart for the wall clock to have been
/// set. A clock that is only corrected gains or loses two seconds an hour.
pub const CLOCK_JUMP: Duration = Duration::from_secs(60);
/// How soon after another a clock that was set may bring an order forward: one that is set again and again
/// must not use up what the directory allows.
pub const CLOCK_JUMP_PAUSE: Duration = Duration::from_secs(60 * 60);
/// Longest reason from elsewhere that is logged, in bytes; longer ones are cut. The detail of an ACME
/// problem is a sentence or two.
pub const MAX_REASON_BYTES: usize = 512;
/// Largest file of the certificate cache in bytes; a key with its chain takes 5 KiB.
pub const MAX_CACHED_BYTES: u64 = 256 * 1024;
/// Age at which the leftover of an interrupted write to the certificate cache is deleted: no process
/// is still writing it.
pub const LEFTOVER_AGE: Duration = Duration::from_secs(60 * 60);

/// Upper bounds of the histogram of event-loop turns. A turn usually takes microseconds; a person
/// notices one of 100 ms.
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

/// The size of one ring of the history.
#[derive(Clone, Copy, Debug)]
pub struct RingSize {
    /// Points in the ring, the one in progress included.
    pub points: usize,
    /// The time that one point covers.
    pub period: Duration,
}

/// The last minute, for rates; 20 bytes per point, as in the next two.
pub const HISTORY_MINUTE: RingSize = RingSize { points: 13, period: Duration::from_secs(5) };
/// The last hour, one point per minute.
pub const HISTORY_HOUR: RingSize = RingSize { points: 60, period: Duration::from_secs(60) };
/// The last day, one point per quarter of an hour.
pub const HISTORY_DAY: RingSize = RingSize { points: 96, period: Duration::from_secs(15 * 60) };
/// Refusals of the last hour; 4 bytes per point and kind of refusal.
pub const HISTORY_REFUSALS: RingSize = RingSize { points: 13, period: Duration::from_secs(5 * 60) };
/// What the history takes at most, with all kinds of refusals; the compiler checks it.
pub const HISTORY_BYTES: usize = 5 * 1024;

/// Address of the metrics and the status page by default: none.
pub const DEFAULT_METRICS_LISTEN: &str = "off";
/// Let's Encrypt: free, and every client trusts its certificates.
pub const DEFAULT_ACME_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Connections to the metrics listener at one time; a newcomer replaces the oldest. A page takes
/// milliseconds, and only a few scrapers and browsers are expected.
pub const MAX_MONITOR_CONNECTIONS: usize = 16;

/// The status page reports turns of the event loop that take at least this long: a daemon gives up on
/// a write after 5 s. A busy machine has turns of a second now and then.
pub const LAG_PROBLEM: Duration = Duration::from_secs(5);
/// Percentage of the memory budget, or of the descriptors, from which the status page reports a
/// problem.
pub const USE_PROBLEM: u64 = 90;

/// Address that `pyrycode-relay status` asks first by default: the one that the documentation uses
/// for the metrics.
pub const STATUS_METRICS: &str = "127.0.0.1:9464";
/// How long it waits for one whole answer, from the first connection attempt on.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that it accepts, in bytes.
pub const STATUS_MAX_ANSWER: usize = 1024 * 1024;
/// Longest text of an answer that its table shows, in characters; longer ones are cut.
pub const STATUS_MAX_TEXT: usize = 200;

/// How long the new program may take to say that it can go on: on the slowest board it takes half a second.
pub const TRIAL_TIME: Duration = Duration::from_secs(5);
/// Longest answer of a trial, in bytes.
pub const TRIAL_ANSWER: usize = 1024;
/// How long a trial that gave no answer may take to end by itself.
pub const TRIAL_REAPING: Duration = Duration::from_millis(500);
/// How long requests and handshakes in progress get before an upgrade (contract, Upgrade).
pub const UPGRADE_SETTLES: Duration = Duration::from_secs(1);
/// How long `pyrycode-relay upgrade` waits for the new program: longer than a trial and everything around it takes.
pub const UPGRADE_NOTICED: Duration = Duration::from_secs(15);
/// How long it waits for a relay that has just started to catch signals.
pub const UPGRADE_STARTS: Duration = Duration::from_secs(1);
/// How often it looks.
pub const UPGRADE_POLLS: Duration = Duration::from_millis(10);
/// Buffer in front of the file with the state, in bytes.
pub const HANDOVER_BUFFER: usize = 256 * 1024;
