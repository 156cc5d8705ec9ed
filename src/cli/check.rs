//! `pyrycode-relay check`: shows what the relay would do with these options on this machine, and
//! what looks wrong.

pub mod address;
#[cfg(feature = "tls")]
mod tls;

use std::fmt::{Display, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytesize::ByteSize;

use self::address::Occupancy;
use crate::cli::board::Board;
use crate::config::{Config, Given};
use crate::limits::RESERVED_DESCRIPTORS;
use crate::net::listen::Listen;
use crate::telemetry::printable::printable;

/// The findings.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<(&'static str, String, String)>,
    wrong: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    /// Examines `config` on `board`; `look` says who holds an address.
    pub fn new(
        config: &Config,
        sources: &Given,
        board: Board,
        look: impl Fn(Listen) -> Occupancy,
    ) -> Self {
        let mut report = Self::default();
        report.options(sources);
        report.addresses(config, look);
        #[cfg(feature = "tls")]
        report.tls(config, crate::clock::wall());
        report.admission(config);
        report.descriptors(config, board);
        report.memory(config, board);
        report
    }

    /// Whether nothing is wrong. Notes do not count.
    pub fn is_fine(&self) -> bool {
        self.wrong.is_empty()
    }

    /// The report as text: a table, the faults, the notes, and a verdict.
    pub fn text(&self, coloured: bool) -> String {
        let width = |cell: fn(&(&'static str, String, String)) -> usize| {
            self.rows.iter().map(cell).max().unwrap_or(0)
        };
        let (first, second) = (width(|row| row.0.len()), width(|row| row.1.chars().count()));
        let mut text = String::new();
        for (label, value, remark) in &self.rows {
            let row = format!("{label:first$}  {value:second$}  {remark}");
            text.push_str(row.trim_end());
            text.push('\n');
        }
        text.push('\n');
        let mut findings = |colour: &str, word: &str, findings: &[String]| {
            for finding in findings {
                // Writing into a string never fails.
                let _ = match coloured {
                    true => writeln!(text, "\u{1b}[{colour}m{word}\u{1b}[0m  {finding}"),
                    false => writeln!(text, "{word}  {finding}"),
                };
            }
        };
        findings("1;31", "wrong", &self.wrong);
        findings("33", "note ", &self.notes);
        if self.is_fine() {
            findings("32", "fine ", &["the relay can run with these options".to_owned()]);
        }
        text
    }

    fn row(&mut self, label: &'static str, value: impl Display, remark: impl Display) {
        self.rows.push((label, value.to_string(), remark.to_string()));
    }

    fn options(&mut self, sources: &Given) {
        let mut label = "options";
        for (names, from) in
            [(&sources.command_line, "command line"), (&sources.environment, "environment")]
        {
            for name in names {
                self.row(std::mem::take(&mut label), name, from);
            }
        }
        let rest = if label.is_empty() { "all others" } else { "all" };
        self.row(label, rest, "default");
    }

    fn addresses(&mut self, config: &Config, look: impl Fn(Listen) -> Occupancy) {
        let plain = config.listen.iter().map(|listen| (*listen, Socket::Plain));
        let tls = config.tls_listen().iter().map(|listen| (*listen, Socket::Tls));
        let addresses: Vec<_> = plain.chain(tls).collect();
        let mut before = None;
        for (index, &(listen, socket)) in addresses.iter().enumerate() {
            let found = look(listen);
            let remark = match &found {
                Occupancy::Free => "free".to_owned(),
                Occupancy::Absent => "free; no interface has it now".to_owned(),
                Occupancy::Relay(None) => "in use by a running relay".to_owned(),
                Occupancy::Relay(Some(version)) => {
                    format!("in use by a running relay, version {}", printable(version))
                }
                Occupancy::Taken(Some(holder)) => format!("in use by {}", printable(holder)),
                Occupancy::Taken(None) => "in use by another program".to_owned(),
                Occupancy::Refused(error) => error.clone(),
            };
            match &found {
                Occupancy::Refused(_) if is_low(listen) => self.wrong.push(format!(
                    "{listen} cannot be listened on: {remark} (let {} open it)",
                    socket.unit()
                )),
                Occupancy::Taken(_) | Occupancy::Refused(_) => {
                    self.wrong.push(format!("{listen} cannot be listened on: {remark}"));
                }
                Occupancy::Absent => self.notes.push(format!(
                    "no interface has {listen} now: nobody can connect before one has"
                )),
                Occupancy::Free if is_low(listen) => self.notes.push(format!(
                    "{listen} needs a privilege that the systemd service does not have: let {} \
                     open it",
                    socket.unit()
                )),
                _ => {}
            }
            match addresses[..index].iter().find(|(other, _)| overlap(*other, listen)) {
                Some((other, same)) if *same == socket => self
                    .wrong
                    .push(format!("{listen} and {other} overlap: one of them is enough")),
                Some((other, _)) => self.wrong.push(format!(
                    "--tls-listen {listen} and --listen {other} overlap: TLS needs a port of its own"
                )),
                None => {}
            }
            let label = if before == Some(socket) { "" } else { socket.label() };
            before = Some(socket);
            self.row(label, listen, remark);
        }
        match config.metrics_listen {
            Some(listen) => self.row("metrics", listen, "not looked at"),
            None => self.row("metrics", "off", ""),
        }
        match (is_public(&config.listen), is_tls(config)) {
            (false, _) => {}
            (true, true) => self.notes.push(
                "other machines can connect without TLS too: without --listen, or with a loopback \
                 address there, they cannot"
                    .to_owned(),
            ),
            (true, false) => self.notes.push(
                "other machines can connect without TLS, and whoever is on the way reads tokens: \
                 use --tls-listen, or put something that speaks TLS before it"
                    .to_owned(),
            ),
        }
    }

    fn admission(&mut self, config: &Config) {
        let off = || "off".to_owned();
        let share = config.max_connections_per_ip.map_or_else(off, |share| share.to_string());
        let rate = config.rate.map_or_else(off, |rate| rate.to_string());
        self.row("connections", config.max_connections, format!("of one address: {share}"));
        self.row("attempts", rate, "of one address");
        self.row("phones", config.max_phones, "of one server-id");
        if let (Some(rate), Some(share)) = (config.rate, config.max_connections_per_ip) {
            if usize::try_from(rate.burst).is_ok_and(|burst| burst < share) {
                self.notes.push(format!(
                    "--rate-burst {} is less than --max-connections-per-ip {share}: after a restart \
                     an address with more connections waits for --rate-limit",
                    rate.burst
                ));
            }
        }
        // Sockets for TLS that are not named here come from systemd.
        let is_public = is_public(&config.listen)
            || is_public(config.tls_listen())
            || (is_tls(config) && config.tls_listen().is_empty());
        let proxies = config.proxies.networks();
        let mut label = "proxies";
        for network in proxies {
            let remark = if config.proxies.send_header() { "sends a PROXY header" } else { "" };
            self.row(std::mem::take(&mut label), network, remark);
        }
        if proxies.is_empty() {
            self.row(label, "none", "clients are known by the address that they connect from");
            if is_public && config.rate.is_none() {
                self.wrong.push(
                    "--rate-limit is off where anybody can connect: whoever likes may guess \
                     server-ids without end (behind a proxy, --trusted-proxy is what you want)"
                        .to_owned(),
                );
            }
            if is_public && config.max_connections_per_ip.is_none() {
                self.notes.push(
                    "--max-connections-per-ip is off: one address can take all connections"
                        .to_owned(),
                );
            }
            if !is_public {
                self.notes.push(
                    "a proxy on this machine has to be named (--trusted-proxy 127.0.0.1): without \
                     that all its clients share one address and its limits"
                        .to_owned(),
                );
            }
        }
        match &config.allow_server {
            Some(file) => {
                let path = printable(&file.path().display().to_string());
                self.row("allow-list", &path, format!("{} server-ids", file.list().ids()));
                if !is_readable_by_all(file.path()) {
                    self.notes.push(format!(
                        "not everybody may read {path}, and the systemd service runs as a user of \
                         its own (chmod a+r, and a+x for the folders above it)"
                    ));
                }
            }
            None => {
                self.row("allow-list", "none", "any server-id may be claimed");
                if is_public || !proxies.is_empty() {
                    self.notes.push(
                        "anybody who can connect may claim any server-id: list yours in a file and \
                         name that with --allow-server"
                            .to_owned(),
                    );
                }
            }
        }
    }

    fn descriptors(&mut self, config: &Config, board: Board) {
        let needed = config.max_connections + RESERVED_DESCRIPTORS;
        let Some((soft, hard)) = board.descriptors else {
            self.row("descriptors", "unknown", format!("{needed} are needed"));
            return;
        };
        let limits = format!("{soft}, can be raised to {hard}");
        self.row("descriptors", limits, format!("{needed} are needed"));
        if hard < needed as u64 {
            self.wrong.push(format!(
                "{} connections need {needed} descriptors, and this process may have {hard}: lower \
                 --max-connections, or raise the limit (LimitNOFILE= in the systemd service)",
                config.max_connections
            ));
        }
    }

    fn memory(&mut self, config: &Config, board: Board) {
        let budget = config.memory_budget as u64;
        let there = match (board.memory, board.memory_limit) {
            (Some(all), Some(limit)) if limit < all => Some((limit, "that this process may use")),
            (Some(all), _) => Some((all, "of this machine")),
            (None, limit) => limit.map(|limit| (limit, "that this process may use")),
        };
        let value = format!("{} budget", ByteSize(budget));
        let Some((bytes, whose)) = there else {
            self.row("memory", value, "");
            return;
        };
        self.row("memory", value, format!("of {} {whose}", ByteSize(bytes)));
        if budget > bytes / 2 {
            self.wrong.push(format!(
                "--memory-budget is more than half of the {} {whose}: connections and the kernel's \
                 buffers come on top of it",
                ByteSize(bytes)
            ));
        }
    }
}

/// Which protocol an address speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Socket {
    Plain,
    Tls,
}

impl Socket {
    fn label(self) -> &'static str {
        match self {
            Self::Plain => "listen",
            Self::Tls => "TLS",
        }
    }

    /// The socket unit that opens such an address.
    fn unit(self) -> &'static str {
        match self {
            Self::Plain => "pyrycode-relay.socket",
            Self::Tls => "pyrycode-relay-tls.socket",
        }
    }
}

/// Whether the relay speaks TLS somewhere.
fn is_tls(config: &Config) -> bool {
    config.tls.is_some()
}

/// Whether other machines can connect to one of these.
fn is_public(addresses: &[Listen]) -> bool {
    addresses.iter().any(|listen| match listen {
        Listen::Everywhere(_) => true,
        Listen::At(address) => !address.ip().to_canonical().is_loopback(),
    })
}

/// Whether listening there needs a privilege.
fn is_low(listen: Listen) -> bool {
    (1..1024).contains(&port(listen))
}

fn port(listen: Listen) -> u16 {
    match listen {
        Listen::Everywhere(port) => port,
        Listen::At(address) => address.port(),
    }
}

/// Whether `other` cannot be bound while the relay listens on `one`.
fn overlap(one: Listen, other: Listen) -> bool {
    if port(one) == 0 || port(one) != port(other) {
        return false;
    }
    match (one, other) {
        (Listen::At(one), Listen::At(other)) => {
            let (one, other) = (one.ip(), other.ip());
            let any = one.is_unspecified() || other.is_unspecified();
            one == other || (any && one.is_ipv4() == other.is_ipv4())
        }
        _ => true,
    }
}

fn is_readable_by_all(path: &Path) -> bool {
    const OTHERS_MAY_READ: u32 = 0o004;
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & OTHERS_MAY_READ != 0)
}

#[cfg(test)]
mod tests;
