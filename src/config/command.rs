//! The definition of the command line: one place for names, defaults, help and parsing.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Command, CommandFactory as _, FromArgMatches as _, Parser, ValueEnum};
use ipnet::IpNet;
use log::LevelFilter;

use super::given::{Environment, Given, name_variable};
use super::values::{
    MetricsListen, RateLimit, Share, parse_count, parse_count_u32, parse_duration,
    parse_frame_size, parse_metrics_listen, parse_rate, parse_share, parse_size, parse_switch,
};
use crate::http::proxies::parse_network;
use crate::limits;
use crate::net::listen::{Listen, parse_listen};
use crate::telemetry::logging::Format;
use crate::tls::options::TlsOptions;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit:  ",
    env!("RELAY_COMMIT"),
    "\ntarget:  ",
    env!("RELAY_TARGET"),
    "\nprofile: ",
    env!("RELAY_PROFILE"),
);

const AFTER_LONG_HELP: &str = "\
Durations are written as 30s, 250ms or 2m; sizes in bytes, or as 256KiB or 1MiB.
Every option can also be set by its environment variable; the command line wins. An empty
variable is as good as none. A switch is set by true, yes, on or 1.

Exit codes:
  0  stopped by SIGTERM or SIGINT
  1  could not start (an address in use, no permission), or a second signal
  2  a bad option, or a combination that cannot work";

const CHECK: &str = "check";
const STATUS: &str = "status";
const UPGRADE: &str = "upgrade";
const CHECK_HELP: &str = "\
Exit codes:
  0  the relay can run so
  1  something looks wrong
  2  a bad option: the relay would not start";

const STATUS_HELP: &str = "\
Exit codes:
  0  it is healthy
  1  it is not, or it does not answer
  2  a bad option";

const UPGRADE_HELP: &str = "\
Exit codes:
  0  the relay runs the new program
  1  it does not; the message says why
  2  a bad option";

/// A relay for WebSocket messages between phones and a daemon behind NAT.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "pyrycode-relay",
    version = VERSION,
    long_version = LONG_VERSION,
    after_help = "Try --help for what each option is for.",
    after_long_help = AFTER_LONG_HELP,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Options {
    /// Address to listen on; repeatable
    ///
    /// ":8080" means every interface, IPv6 and IPv4. An address that the machine does not have yet
    /// is bound all the same. Port 0 picks a free one, and the log says which.
    #[arg(
        long, visible_alias = "insecure-listen", env = "PYRYCODE_RELAY_LISTEN", value_name = "ADDR",
        default_value = limits::DEFAULT_LISTEN, value_delimiter = ',', value_parser = parse_listen,
        help_heading = "Listening"
    )]
    pub listen: Vec<Listen>,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take a doc comment for its help")]
    pub(crate) tls: TlsOptions,

    /// How long a server-id stays claimed after its binary's connection ended
    #[arg(
        long, env = "PYRYCODE_RELAY_GRACE", value_name = "DURATION",
        default_value = limits::DEFAULT_GRACE, value_parser = parse_duration,
        help_heading = "Claims"
    )]
    pub(crate) grace: Duration,

    /// Which phones stay attached when a binary comes back
    #[arg(
        long,
        env = "PYRYCODE_RELAY_RECLAIM",
        value_name = "MODE",
        default_value = "keep",
        help_heading = "Claims"
    )]
    pub(crate) reclaim: Reclaim,

    /// How long the holder of a server-id may take to answer when somebody else claims it
    #[arg(
        long, env = "PYRYCODE_RELAY_PROBE_TIMEOUT", value_name = "DURATION",
        default_value = limits::DEFAULT_PROBE_TIMEOUT, value_parser = parse_duration,
        help_heading = "Claims"
    )]
    pub(crate) probe_timeout: Duration,

    /// Silence after which a peer is pinged
    #[arg(
        long, env = "PYRYCODE_RELAY_HEARTBEAT_INTERVAL", value_name = "DURATION",
        default_value = limits::DEFAULT_HEARTBEAT_INTERVAL, value_parser = parse_duration,
        help_heading = "Timeouts"
    )]
    pub(crate) heartbeat_interval: Duration,

    /// Silence after that ping at which the peer counts as gone
    #[arg(
        long, env = "PYRYCODE_RELAY_HEARTBEAT_TIMEOUT", value_name = "DURATION",
        default_value = limits::DEFAULT_HEARTBEAT_TIMEOUT, value_parser = parse_duration,
        help_heading = "Timeouts"
    )]
    pub(crate) heartbeat_timeout: Duration,

    /// Time for a whole request head
    #[arg(
        long, env = "PYRYCODE_RELAY_HEADER_TIMEOUT", value_name = "DURATION",
        default_value = limits::DEFAULT_HEADER_TIMEOUT, value_parser = parse_duration,
        help_heading = "Timeouts"
    )]
    pub(crate) header_timeout: Duration,

    /// Time for a whole message from its first byte
    #[arg(
        long, env = "PYRYCODE_RELAY_MESSAGE_TIMEOUT", value_name = "DURATION",
        default_value = limits::DEFAULT_MESSAGE_TIMEOUT, value_parser = parse_duration,
        help_heading = "Timeouts"
    )]
    pub(crate) message_timeout: Duration,

    /// Time a write may make no progress
    #[arg(
        long, env = "PYRYCODE_RELAY_WRITE_TIMEOUT", value_name = "DURATION",
        default_value = limits::DEFAULT_WRITE_TIMEOUT, value_parser = parse_duration,
        help_heading = "Timeouts"
    )]
    pub(crate) write_timeout: Duration,

    /// Time a stop waits for the peers' close frames
    #[arg(
        long, env = "PYRYCODE_RELAY_DRAIN_TIMEOUT", value_name = "DURATION",
        default_value = limits::DEFAULT_DRAIN_TIMEOUT, value_parser = parse_duration,
        help_heading = "Timeouts"
    )]
    pub(crate) drain_timeout: Duration,

    /// Largest message
    ///
    /// At most 16MiB. --max-slot-queue-bytes must hold two of them with their envelopes.
    #[arg(
        long, env = "PYRYCODE_RELAY_MAX_FRAME_BYTES", value_name = "SIZE",
        default_value = limits::DEFAULT_MAX_FRAME, value_parser = parse_frame_size,
        help_heading = "Memory"
    )]
    pub max_frame_bytes: usize,

    /// What may be queued for one phone; above it the phone is closed
    #[arg(
        long, env = "PYRYCODE_RELAY_MAX_QUEUE_BYTES", value_name = "SIZE",
        default_value = limits::DEFAULT_MAX_QUEUE, value_parser = parse_size,
        help_heading = "Memory"
    )]
    pub(crate) max_queue_bytes: usize,

    /// What may be queued for one binary; above it its phones are not read
    #[arg(
        long, env = "PYRYCODE_RELAY_MAX_SLOT_QUEUE_BYTES", value_name = "SIZE",
        default_value = limits::DEFAULT_MAX_SLOT_QUEUE, value_parser = parse_size,
        help_heading = "Memory"
    )]
    pub(crate) max_slot_queue_bytes: usize,

    /// What may be held for all peers together; above it the phone that holds most is closed
    #[arg(
        long, env = "PYRYCODE_RELAY_MEMORY_BUDGET", value_name = "SIZE",
        default_value = limits::DEFAULT_MEMORY_BUDGET, value_parser = parse_size,
        help_heading = "Memory"
    )]
    pub memory_budget: usize,

    /// Phones a server-id
    #[arg(
        long, env = "PYRYCODE_RELAY_MAX_PHONES", value_name = "COUNT",
        default_value = limits::DEFAULT_MAX_PHONES, value_parser = parse_count,
        help_heading = "Admission"
    )]
    pub max_phones: usize,

    /// Upgraded connections, binaries and phones together
    #[arg(
        long, env = "PYRYCODE_RELAY_MAX_CONNECTIONS", value_name = "COUNT",
        default_value = limits::DEFAULT_MAX_CONNECTIONS, value_parser = parse_count,
        help_heading = "Admission"
    )]
    pub max_connections: usize,

    /// Connections of one source address, upgraded or with a request in progress, or "off"
    ///
    /// An IPv6 network of 64 bits counts as one source. One in eight of --max-connections is kept
    /// for addresses that hold none. Behind a proxy all clients share its address unless
    /// --trusted-proxy names it. With "off" one address may take all there is.
    #[arg(
        long, env = "PYRYCODE_RELAY_MAX_CONNECTIONS_PER_IP", value_name = "COUNT",
        default_value = limits::DEFAULT_MAX_CONNECTIONS_PER_IP, value_parser = parse_share,
        help_heading = "Admission"
    )]
    pub max_connections_per_ip: Share,

    /// Upgrade attempts a source address, as N/min, or "off"
    ///
    /// An IPv6 network of 64 bits counts as one source. Behind a proxy all clients share its
    /// address unless --trusted-proxy names it. TLS handshakes that no upgrade follows have an
    /// allowance of the same size.
    #[arg(
        long, env = "PYRYCODE_RELAY_RATE_LIMIT", value_name = "RATE",
        default_value = limits::DEFAULT_RATE_LIMIT, value_parser = parse_rate,
        help_heading = "Admission"
    )]
    pub(crate) rate_limit: RateLimit,

    /// Attempts that a source may make at once
    ///
    /// It should be at least --max-connections-per-ip: then everybody at one address is back at once
    /// after a restart.
    #[arg(
        long, env = "PYRYCODE_RELAY_RATE_BURST", value_name = "COUNT",
        default_value = limits::DEFAULT_RATE_BURST, value_parser = parse_count_u32,
        help_heading = "Admission"
    )]
    pub(crate) rate_burst: u32,

    /// Address or network of a proxy that is trusted to say from where a connection comes;
    /// repeatable
    ///
    /// X-Forwarded-For and Forwarded of such a peer are believed. The client is the last address in
    /// the header that is not a trusted proxy. If the two headers disagree, or one cannot be read,
    /// the request is refused with 400. A network may be at most a /8, in IPv6 a /16, or all of
    /// fc00::/7.
    #[arg(
        long, env = "PYRYCODE_RELAY_TRUSTED_PROXY", value_name = "CIDR", value_delimiter = ',',
        value_parser = parse_network, help_heading = "Behind a proxy"
    )]
    pub(crate) trusted_proxy: Vec<IpNet>,

    /// Trusted proxies send a PROXY header, version 1 or 2, before the request
    ///
    /// It is required from them then, and refused from anybody else.
    #[arg(
        long, env = "PYRYCODE_RELAY_PROXY_PROTOCOL", value_parser = parse_switch,
        action = ArgAction::SetTrue, help_heading = "Behind a proxy"
    )]
    pub(crate) proxy_protocol: bool,

    /// File with the server-ids that may be claimed, one a line, "#" for comments
    ///
    /// Any other gets 403 on /v1/server, and on /v1/client the answer of one that nobody holds.
    /// SIGHUP has the file read again: a binary whose server-id is gone is closed, and a file with a
    /// mistake changes nothing. Without this option any server-id may be claimed.
    #[arg(
        long,
        env = "PYRYCODE_RELAY_ALLOW_SERVER",
        value_name = "FILE",
        help_heading = "Admission"
    )]
    pub(crate) allow_server: Option<PathBuf>,
    /// Where to serve metrics and the status page, or "off"
    ///
    /// "/" is a page for people, "/status.json" the same for programs, "/metrics" for Prometheus.
    /// A loopback address unless --metrics-public is given. A socket that systemd hands over under
    /// the name "metrics" takes its place.
    #[arg(
        long, env = "PYRYCODE_RELAY_METRICS_LISTEN", value_name = "ADDR",
        default_value = limits::DEFAULT_METRICS_LISTEN, value_parser = parse_metrics_listen,
        help_heading = "Monitoring"
    )]
    pub metrics_listen: MetricsListen,

    /// Let other machines read the metrics and the status page
    ///
    /// Whoever reaches the address can read them. They hold no server-ids and no addresses.
    #[arg(
        long, env = "PYRYCODE_RELAY_METRICS_PUBLIC", value_parser = parse_switch,
        action = ArgAction::SetTrue, default_value = "false", help_heading = "Monitoring"
    )]
    pub(crate) metrics_public: bool,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take a doc comment for its help")]
    pub logging: Logging,

    /// From where the options come; not an option.
    #[arg(skip)]
    pub sources: Given,

    #[command(subcommand)]
    #[allow(missing_docs, reason = "clap would take a doc comment for its help")]
    pub command: Option<Subcommand>,
}

/// What to do instead of relaying.
#[derive(clap::Subcommand, Clone, PartialEq, Eq, Debug)]
pub enum Subcommand {
    /// Show what the relay would do with its options here, and what looks wrong
    ///
    /// Give it the options and the environment of the relay, behind its own name. A relay that runs
    /// is not disturbed.
    #[command(after_help = CHECK_HELP, max_term_width = 100)]
    Check,

    /// Show how a running relay is, and tell it by the exit code
    Status(StatusOptions),

    /// Have a running relay change to the program file that is installed now; nobody is disconnected
    ///
    /// Sends SIGUSR2 and waits for the outcome, at most 15 s. If the new program cannot take over,
    /// the relay goes on with the old one and logs why (event upgrade_failed). Run this as the
    /// relay's user or as root.
    #[command(after_help = UPGRADE_HELP, max_term_width = 100)]
    Upgrade(UpgradeOptions),
}

/// What `pyrycode-relay upgrade` is asked.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct UpgradeOptions {
    /// Process of the relay; needed only if several are running
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
}

/// What `pyrycode-relay status` is asked.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(
    about = "Show how a running relay is, and tell it by the exit code",
    after_help = STATUS_HELP,
    max_term_width = 100
)]
pub struct StatusOptions {
    /// Where the relay serves its status, as http://127.0.0.1:9464
    ///
    /// Without it: the address of PYRYCODE_RELAY_METRICS_LISTEN if that is set, else
    /// 127.0.0.1:9464, and where nobody listens there, the health page at the first address of
    /// PYRYCODE_RELAY_LISTEN or at 127.0.0.1:8080. At a URL without a status page the health page is
    /// asked.
    #[arg(value_name = "URL")]
    pub url: Option<String>,

    /// Print JSON, as the relay sent it
    #[arg(long)]
    pub json: bool,
}

/// What is logged.
#[derive(Args, Clone, Debug)]
pub struct Logging {
    /// What is logged: off, error, warn, info, debug or trace [default: info]
    ///
    /// Without it RUST_LOG is heeded. Tokens and message content are not logged at any level.
    #[arg(long, env = "PYRYCODE_RELAY_LOG_LEVEL", value_name = "LEVEL", help_heading = "Logging")]
    pub log_level: Option<LevelFilter>,

    /// How it is written
    ///
    /// "journal" sends every field as one of the journal's, to be searched for as SERVER_ID=...;
    /// "logfmt" and "json" write lines to standard error. "auto" is "journal" where standard error
    /// is the journal and "logfmt" elsewhere.
    #[arg(
        long, env = "PYRYCODE_RELAY_LOG_FORMAT", value_name = "FORMAT",
        default_value = limits::DEFAULT_LOG_FORMAT, hide_possible_values = true,
        help = "How it is written: auto, logfmt, json or journal", help_heading = "Logging"
    )]
    pub log_format: Format,
}

/// What a reclaim does to the phones that are still attached.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reclaim {
    /// Those whose session is provably whole; the others are closed and dial again.
    Keep,
    /// None: all are closed and dial again.
    Evict,
}

impl Options {
    /// Parses the process's arguments and environment. On an error, and for help and version,
    /// clap's own error says what to print and which exit code to use.
    pub fn parse_from_process() -> Result<Self, clap::Error> {
        Self::parse(std::env::args_os().collect())
    }

    /// Parses `arguments`, the program's name first.
    pub fn parse_arguments<'a>(
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, clap::Error> {
        Self::parse(arguments.into_iter().map(OsString::from).collect())
    }

    fn parse(arguments: Vec<OsString>) -> Result<Self, clap::Error> {
        let mut command = command();
        // It has the options of the relay for its own: its variables are to be looked at once.
        let check = command.find_subcommand(CHECK).cloned();
        let check = check.filter(|_| arguments.get(1).is_some_and(|first| first == CHECK));
        let (is_check, given) = (check.is_some(), &arguments[usize::from(check.is_some())..]);
        if let Some(check) = check {
            command = check.bin_name("pyrycode-relay check");
        }
        let is_asking =
            !is_check && arguments.get(1).is_some_and(|first| first == STATUS || first == UPGRADE);
        let environment = match is_asking {
            true => Environment::forget_untidy(&mut command),
            false => Environment::tidy(&mut command, given),
        };
        let tidied = environment.arguments();
        let matches = command.try_get_matches_from_mut(given.iter().cloned().chain(tidied));
        let matches = matches.map_err(|error| name_variable(error, &command, given))?;
        let mut options = Self::from_arg_matches(&matches)?;
        if is_check {
            options.command = Some(Subcommand::Check);
        }
        options.sources = Given::of(&command, &matches, &environment);
        Ok(options)
    }
}

/// The definition itself, for help texts and whatever is made from them.
pub fn command() -> Command {
    let command = Options::command();
    let options: Vec<_> = command.get_arguments().cloned().collect();
    command.mut_subcommand(CHECK, |check| check.args(options))
}
