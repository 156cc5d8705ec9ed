//! The command line and the environment, parsed into a [`Config`] that is valid by type.

mod command;
mod given;
mod values;

use std::path::Path;
use std::time::Duration;

pub use self::command::{Options, StatusOptions, Subcommand, UpgradeOptions, command};
pub use self::given::Given;
use crate::admission::allow::AllowFile;
use crate::admission::attempts::Rate;
use crate::http::proxies::Proxies;
use crate::limits::{BATCH_BYTES, ENVELOPE_ALLOWANCE, MESSAGE_OVERHEAD};
use crate::net::listen::Listen;
use crate::tls::options::{NOT_SET_UP, TlsSettings};

/// Everything that the relay can be told. Durations are never zero, sizes in bytes and counts
/// neither, and the combinations work.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen without TLS; none where TLS alone is wanted.
    pub listen: Vec<Listen>,
    /// TLS, if it is wanted.
    pub(crate) tls: Option<TlsSettings>,
    /// How long a server-id stays claimed after its binary's connection ended.
    pub(crate) grace: Duration,
    /// Whether every reclaim closes the attached phones.
    pub(crate) reclaim_evicts: bool,
    /// How long the holder of a server-id may take to answer a probe.
    pub(crate) probe_timeout: Duration,
    /// Silence after which a ping is sent.
    pub(crate) heartbeat_interval: Duration,
    /// Silence after the ping at which the peer counts as gone.
    pub(crate) heartbeat_timeout: Duration,
    /// Time for a whole request head.
    pub(crate) header_timeout: Duration,
    /// Time for a whole message from its first byte.
    pub(crate) message_timeout: Duration,
    /// Time a write may make no progress.
    pub(crate) write_timeout: Duration,
    /// Time a stop waits for the peers.
    pub(crate) drain_timeout: Duration,
    /// Largest message of a phone, in bytes.
    pub max_frame_bytes: usize,
    /// Bound of the queue towards one phone, in bytes held.
    pub(crate) max_queue_bytes: usize,
    /// Bound of the queue towards one binary, in bytes held.
    pub(crate) max_slot_queue_bytes: usize,
    /// Bound of everything held for peers, in bytes.
    pub memory_budget: usize,
    /// Phones a server-id.
    pub max_phones: usize,
    /// Upgraded connections.
    pub max_connections: usize,
    /// Connections of one source; `None` for no limit.
    pub max_connections_per_ip: Option<usize>,
    /// The proxies that are trusted to say from where a connection comes.
    pub proxies: Proxies,
    /// Upgrade attempts a source; `None` for no limit.
    pub rate: Option<Rate>,
    /// The server-ids that may be claimed; `None` for any.
    pub(crate) allow_server: Option<AllowFile>,
    /// Where to serve the metrics and the status page, if at all.
    pub metrics_listen: Option<Listen>,
    /// Whether they may be served to other machines.
    pub(crate) metrics_public: bool,
}

impl Config {
    /// Checks what the options cannot say one by one. The error is a sentence for the operator.
    pub fn from_options(options: Options) -> Result<Self, String> {
        let tls = TlsSettings::from_options(options.tls)?;
        let listen = match &tls {
            // What is only the default is not meant beside TLS.
            Some(_) if !options.sources.name("--listen", "PYRYCODE_RELAY_LISTEN") => Vec::new(),
            _ => options.listen,
        };
        let config = Self {
            listen,
            tls,
            grace: options.grace,
            reclaim_evicts: options.reclaim == command::Reclaim::Evict,
            probe_timeout: options.probe_timeout,
            heartbeat_interval: options.heartbeat_interval,
            heartbeat_timeout: options.heartbeat_timeout,
            header_timeout: options.header_timeout,
            message_timeout: options.message_timeout,
            write_timeout: options.write_timeout,
            drain_timeout: options.drain_timeout,
            max_frame_bytes: options.max_frame_bytes,
            max_queue_bytes: options.max_queue_bytes,
            max_slot_queue_bytes: options.max_slot_queue_bytes,
            memory_budget: options.memory_budget,
            max_phones: options.max_phones,
            max_connections: options.max_connections,
            max_connections_per_ip: options.max_connections_per_ip.0,
            proxies: Proxies::new(options.trusted_proxy, options.proxy_protocol),
            rate: options
                .rate_limit
                .0
                .map(|per_minute| Rate { per_minute, burst: options.rate_burst }),
            allow_server: options.allow_server.as_deref().map(read_allow_file).transpose()?,
            metrics_listen: options.metrics_listen.0,
            metrics_public: options.metrics_public,
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses an address for the metrics that other machines can reach, unless they may.
    pub fn check_metrics(&self, listen: Listen) -> Result<(), String> {
        let port = match listen {
            _ if self.metrics_public => return Ok(()),
            Listen::At(address) if address.ip().to_canonical().is_loopback() => return Ok(()),
            Listen::At(address) => address.port(),
            Listen::Everywhere(port) => port,
        };
        Err(format!(
            "the metrics at {listen} could be read from other machines, by anybody: use \
             127.0.0.1:{port}, or allow it with --metrics-public"
        ))
    }

    /// Where to listen for TLS.
    pub fn tls_listen(&self) -> &[Listen] {
        self.tls.as_ref().map_or(&[], TlsSettings::listen)
    }

    /// Whether anything comes from files that SIGHUP has read again.
    pub fn reads_files(&self) -> bool {
        self.tls.as_ref().is_some_and(TlsSettings::reads_files) || self.allow_server.is_some()
    }

    /// Refuses sockets for TLS without a certificate, and a certificate without sockets, where it is
    /// known which sockets there are.
    pub fn check_tls(&self, listens: bool) -> Result<(), String> {
        match (self.tls.is_some(), listens) {
            (true, false) => Err(
                "a certificate is of no use without a socket for TLS: --tls-listen, or systemd's \
                    pyrycode-relay-tls.socket"
                    .into(),
            ),
            (false, true) => Err(NOT_SET_UP.into()),
            _ => Ok(()),
        }
    }

    /// Largest message of a binary, its envelope included, in bytes.
    pub(crate) fn max_envelope_bytes(&self) -> usize {
        self.max_frame_bytes + ENVELOPE_ALLOWANCE
    }

    fn check(&self) -> Result<(), String> {
        if let Some(listen) = self.metrics_listen {
            self.check_metrics(listen)?;
        }
        self.proxies.check_width()?;
        if self.proxies.send_header_from_nobody() {
            return Err(
                "--proxy-protocol needs a --trusted-proxy that sends the PROXY header".into()
            );
        }
        let largest = self.max_envelope_bytes() + MESSAGE_OVERHEAD;
        at_least(
            ("--max-slot-queue-bytes", self.max_slot_queue_bytes),
            2 * largest,
            "twice the largest message and its envelope",
            ("--max-frame-bytes", self.max_frame_bytes),
        )?;
        at_least(
            ("--max-queue-bytes", self.max_queue_bytes),
            largest,
            "one largest message and its envelope",
            ("--max-frame-bytes", self.max_frame_bytes),
        )?;
        at_least(
            ("--memory-budget", self.memory_budget),
            self.max_queue_bytes.max(self.max_slot_queue_bytes) + BATCH_BYTES,
            "one full queue and a read buffer",
            ("--max-queue-bytes", self.max_queue_bytes),
        )
    }
}

fn read_allow_file(path: &Path) -> Result<AllowFile, String> {
    AllowFile::read(path).map_err(|broken| format!("--allow-server {}: {broken}", path.display()))
}

fn at_least(
    (option, value): (&str, usize),
    least: usize,
    what: &str,
    (other, other_value): (&str, usize),
) -> Result<(), String> {
    if value >= least {
        return Ok(());
    }
    Err(format!(
        "{option} is {value} bytes and must hold {what}: raise it to at least {least}, or lower \
         {other} (now {other_value})"
    ))
}

#[cfg(test)]
mod tests;
