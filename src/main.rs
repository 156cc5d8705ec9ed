//! The `pyrycode-relay` program: parse, log, bind, run, exit code.

use std::io::{IsTerminal as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;

use async_signal::{Signal, Signals};
use futures_lite::StreamExt as _;
use log::{error, info, warn};
use smol::LocalExecutor;

use pyrycode_relay::accept::{Sockets, run_on};
use pyrycode_relay::config::{Config, Listen, Options, StatusOptions, Subcommand};
use pyrycode_relay::limits::RESERVED_DESCRIPTORS;
use pyrycode_relay::reload::Reload;
use pyrycode_relay::shutdown::Stop;
use pyrycode_relay::status::{self, Style};
use pyrycode_relay::systemd::{self, Inherited};
use pyrycode_relay::{listen, logging};

/// Exit code: could not start, or told twice to stop.
const FAILURE: u8 = 1;
/// Exit code: a bad option, or a combination that cannot work.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let options = match Options::parse_from_process() {
        Ok(options) => options,
        Err(error) => {
            let is_error = error.use_stderr();
            // Help for a closed pipe is nobody's loss.
            let _ = error.print();
            return if is_error { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if let Some(Subcommand::Status(asked)) = &options.command {
        return show_status(asked);
    }
    let log_level = options.logging.log_level;
    let config = match Config::from_options(options) {
        Ok(config) => config,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "error: {message}");
            return ExitCode::from(USAGE);
        }
    };
    start_logging(log_level);
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            error!(reason = message.as_str(); "failed");
            ExitCode::from(code)
        }
    }
}

fn show_status(asked: &StatusOptions) -> ExitCode {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let style = match asked.json {
        true => Style::Json,
        false => Style::Table { colour: std::io::stdout().is_terminal() && !no_colour },
    };
    match status::ask(asked.url.as_deref(), style) {
        Ok(report) => {
            // The exit code tells it too, to whoever does not read on.
            let _ = std::io::stdout().write_all(report.text.as_bytes());
            if report.healthy { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) }
        }
        Err(failure) => {
            let (code, message) = match failure {
                status::Failure::Usage(message) => (USAGE, message),
                status::Failure::Unreachable(message) => (FAILURE, message),
            };
            let _ = writeln!(std::io::stderr(), "error: {message}");
            ExitCode::from(code)
        }
    }
}

fn start_logging(level: Option<log::LevelFilter>) {
    let directives = std::env::var("RUST_LOG").ok();
    // systemd sets it when standard error is the journal, which has its own time stamps.
    let timestamps = std::env::var_os("JOURNAL_STREAM").is_none();
    if let Ok(Some(complaint)) = logging::install(level, directives.as_deref(), timestamps) {
        warn!(reason = complaint.as_str(); "RUST_LOG is ignored");
    }
}

/// Runs the relay; the error is the exit code and a sentence.
fn run(config: Config) -> Result<(), (u8, String)> {
    let failed = |message| (FAILURE, message);
    raise_descriptor_limit(config.max_connections);
    // Before the signals are watched: that starts the event loop's helper thread.
    let Inherited { relay, metrics } = systemd::inherited_listeners().map_err(failed)?;
    // Before anybody can know that the relay is up: a signal from then on is an orderly stop.
    let mut watched = vec![Signal::Term, Signal::Int];
    // Without anything to read anew, the end of a terminal ends the relay that was started in it.
    if config.allow_server.is_some() || systemd::is_present() {
        watched.push(Signal::Hup);
    }
    let mut signals = Signals::new(watched)
        .map_err(|error| failed(format!("cannot watch for signals: {error}")))?;
    for socket in &metrics {
        let address = address_of(socket).map_err(failed)?;
        config.check_metrics(Listen::At(address)).map_err(|message| (USAGE, message))?;
    }
    let sockets = Sockets {
        relay: open_listeners(&config, relay).map_err(failed)?,
        metrics: open_metrics(&config, metrics).map_err(failed)?,
    };
    let stop = Stop::new();
    let executor = LocalExecutor::new();
    let reload = Reload::new();
    let (raised, asked) = (stop.clone(), reload.clone());
    executor
        .spawn(async move {
            let mut stopping = false;
            loop {
                match signals.next().await {
                    Some(Ok(Signal::Hup)) => asked.ask(),
                    _ if stopping => std::process::exit(FAILURE.into()),
                    _ => {
                        stopping = true;
                        raised.raise();
                    }
                }
            }
        })
        .detach();
    run_on(&executor, sockets, config, &stop, &reload)
        .map_err(|error| failed(format!("cannot start: {error}")))
}

/// The sockets that systemd handed over, or else those that the options name.
fn open_listeners(
    config: &Config,
    inherited: Vec<TcpListener>,
) -> Result<Vec<TcpListener>, String> {
    for listener in &inherited {
        info!(address:% = address_of(listener)?, inherited = true; "listening");
    }
    if !inherited.is_empty() {
        return Ok(inherited);
    }
    config
        .listen
        .iter()
        .map(|listen| {
            let listener = listen::open(*listen)
                .map_err(|error| format!("cannot listen on {listen}: {error}"))?;
            info!(address:% = address_of(&listener)?; "listening");
            Ok(listener)
        })
        .collect()
}

/// The same for the metrics, which may have none.
fn open_metrics(config: &Config, inherited: Vec<TcpListener>) -> Result<Vec<TcpListener>, String> {
    let (sockets, inherited) = match config.metrics_listen {
        Some(listen) if inherited.is_empty() => {
            let socket = listen::open(listen)
                .map_err(|error| format!("cannot serve metrics at {listen}: {error}"))?;
            (vec![socket], false)
        }
        _ => (inherited, true),
    };
    for socket in &sockets {
        info!(address:% = address_of(socket)?, inherited = inherited; "serving_metrics");
    }
    Ok(sockets)
}

fn address_of(listener: &TcpListener) -> Result<SocketAddr, String> {
    listener.local_addr().map_err(|error| error.to_string())
}

/// Raises the soft descriptor limit to the hard one: 1024, the usual soft limit, is too few.
fn raise_descriptor_limit(max_connections: usize) {
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(0);
    let needed = u64::try_from(max_connections + RESERVED_DESCRIPTORS).unwrap_or(u64::MAX);
    if limit < needed {
        warn!(
            descriptors = limit, max_connections = max_connections;
            "the descriptor limit does not fit --max-connections: raise it (LimitNOFILE=) or lower that"
        );
    }
}
