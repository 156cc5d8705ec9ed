//! The `pyrycode-relay` program: parse, log, bind, run, exit code.

use std::io::{IsTerminal as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use async_signal::{Signal, Signals};
use futures_lite::StreamExt as _;
use log::{error, info, warn};
use smol::LocalExecutor;

use pyrycode_relay::cli::board::Board;
use pyrycode_relay::cli::check::{Report, address};
use pyrycode_relay::cli::status::{self, Style};
use pyrycode_relay::cli::upgrade;
use pyrycode_relay::clock;
use pyrycode_relay::config::{Config, Given, Options, StatusOptions, Subcommand};
use pyrycode_relay::handover::{self, Program};
use pyrycode_relay::limits::{LOOP_DESCRIPTORS, PROBE_STACK, RESERVED_DESCRIPTORS};
use pyrycode_relay::net::listen::{self, Listen};
use pyrycode_relay::server::systemd::{self, Inherited};
use pyrycode_relay::server::{Sockets, Upgrades, run_with};
use pyrycode_relay::signals::{self, Request, Stop, StopRequest, StopRequests};
use pyrycode_relay::telemetry::logging::{self, Format, Repeats};

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
    if let Some(Subcommand::Upgrade(asked)) = &options.command {
        return match upgrade::upgrade(asked.pid) {
            Ok(outcome) => {
                // The exit code tells it too, to whoever does not read on.
                let _ = writeln!(std::io::stdout(), "{outcome}");
                ExitCode::SUCCESS
            }
            Err(message) => {
                let _ = writeln!(std::io::stderr(), "error: {message}");
                ExitCode::from(FAILURE)
            }
        };
    }
    let is_check = options.command == Some(Subcommand::Check);
    let (level, format) = (options.logging.log_level, options.logging.log_format);
    let sources = options.sources.clone();
    let config = match Config::from_options(options) {
        Ok(config) => config,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "error: {message}");
            return ExitCode::from(USAGE);
        }
    };
    if is_check {
        return check(&config, &sources);
    }
    if handover::try_out(&config) {
        return ExitCode::SUCCESS;
    }
    let repeats = start_logging(level, format);
    let outcome = run(config, &sources, &repeats);
    repeats.tell();
    match outcome {
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

/// Shows what the relay would do; the exit code tells whether something looks wrong.
fn check(config: &Config, sources: &Given) -> ExitCode {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let coloured = std::io::stdout().is_terminal() && !no_colour;
    let report = Report::new(config, sources, Board::look(), address::look);
    // The exit code tells it too, to whoever does not read on.
    let _ = std::io::stdout().write_all(report.text(coloured).as_bytes());
    if report.is_fine() { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) }
}

fn start_logging(level: Option<log::LevelFilter>, format: Format) -> Arc<Repeats> {
    let directives = std::env::var("RUST_LOG").ok();
    let installed = logging::install(level, directives.as_deref(), format);
    for (event, reason) in installed.complaints {
        warn!(reason = reason.as_str(); "{event}");
    }
    installed.repeats
}

/// Runs the relay; the error is the exit code and a sentence.
fn run(config: Config, sources: &Given, repeats: &Arc<Repeats>) -> Result<(), (u8, String)> {
    let failed = |message| (FAILURE, message);
    upgrade::take_name();
    let descriptors = raise_descriptor_limit(config.max_connections);
    announce(&config, sources, descriptors);
    // Before the signals are watched: that starts the event loop's helper thread.
    let program = Program::current().map_err(|error| {
        failed(format!("cannot find the program file of this process: {error}"))
    })?;
    // Threads that are started from here on leave all signals to this one.
    signals::hold().map_err(|error| failed(format!("cannot hold signals back: {error}")))?;
    let mut taken = handover::receive().map_err(failed)?;
    let Inherited { relay, tls, metrics } = match &mut taken {
        Some(taken) => Inherited {
            relay: std::mem::take(&mut taken.relay),
            tls: std::mem::take(&mut taken.tls),
            metrics: std::mem::take(&mut taken.metrics),
        },
        None => systemd::inherited_listeners().map_err(failed)?,
    };
    check_resources().map_err(failed)?;
    // Before anybody can know that the relay is up: a signal from then on is an orderly stop.
    // Apart from all others: a storm of those must not cost a stop its place in the queue.
    let watch = |watched: &[Signal]| {
        Signals::new(watched.iter().copied())
            .map_err(|error| failed(format!("cannot watch for signals: {error}")))
    };
    let mut stops = watch(&[Signal::Term, Signal::Int])?;
    let mut watched = vec![Signal::Usr1, Signal::Usr2];
    // Without anything to read anew, the end of a terminal ends the relay that was started in it.
    if config.reads_files() || systemd::is_present() {
        watched.push(Signal::Hup);
    }
    let mut signals = watch(&watched)?;
    signals::release().map_err(|error| failed(format!("cannot release signals: {error}")))?;
    for socket in &metrics {
        let address = address_of(socket).map_err(failed)?;
        config.check_metrics(Listen::At(address)).map_err(|message| (USAGE, message))?;
    }
    let sockets = open_listeners(&config, relay, tls)?;
    let sockets = Sockets { metrics: open_metrics(&config, metrics).map_err(failed)?, ..sockets };
    let stop = Stop::new();
    let executor = LocalExecutor::new();
    let reload = Request::new();
    let held_back = Arc::clone(repeats);
    executor.spawn(async move { held_back.tell_when_due().await }).detach();
    let upgrade = Request::new();
    let upgrades = Upgrades { asked: upgrade.clone(), program };
    let (raised, asked, held_back) = (stop.clone(), reload.clone(), Arc::clone(repeats));
    executor
        .spawn(async move {
            let mut requests = StopRequests::default();
            while stops.next().await.is_some() {
                match requests.note(clock::now()) {
                    StopRequest::First => {
                        held_back.tell();
                        raised.raise();
                    }
                    StopRequest::Same => {}
                    StopRequest::Again => {
                        held_back.tell();
                        std::process::exit(FAILURE.into())
                    }
                }
            }
        })
        .detach();
    executor
        .spawn(async move {
            while let Some(signal) = signals.next().await {
                match signal {
                    Ok(Signal::Hup) => asked.ask(),
                    Ok(Signal::Usr2) => upgrade.ask(),
                    // The default action of SIGUSR1 would end the relay; nothing is asked for by it.
                    _ => {}
                }
            }
        })
        .detach();
    run_with(&executor, sockets, config, &stop, &reload, Some(upgrades), taken)
        .map_err(|error| failed(format!("cannot start: {error}")))
}

/// The sockets that systemd handed over, or else those that the options name.
fn open_listeners(
    config: &Config,
    relay: Vec<TcpListener>,
    tls: Vec<TcpListener>,
) -> Result<Sockets, (u8, String)> {
    let failed = |message| (FAILURE, message);
    let inherited = !relay.is_empty() || !tls.is_empty();
    let opened = |socket: &TcpListener, is_tls| -> Result<(), (u8, String)> {
        let address = address_of(socket).map_err(failed)?;
        match (inherited, is_tls) {
            (false, false) => info!(address:% = address; "listening"),
            (true, false) => info!(address:% = address, inherited = true; "listening"),
            (false, true) => info!(address:% = address, tls = true; "listening"),
            (true, true) => info!(address:% = address, inherited = true, tls = true; "listening"),
        }
        Ok(())
    };
    let open = |addresses: &[Listen], given: Vec<TcpListener>, is_tls| {
        if inherited {
            given.iter().try_for_each(|socket| opened(socket, is_tls))?;
            return Ok(given);
        }
        let open_one = |listen: &Listen| {
            let socket = listen::open(*listen)
                .map_err(|error| failed(format!("cannot listen on {listen}: {error}")))?;
            opened(&socket, is_tls)?;
            Ok(socket)
        };
        addresses.iter().map(open_one).collect()
    };
    let relay = open(&config.listen, relay, false)?;
    let tls = open(config.tls_listen(), tls, true)?;
    config.check_tls(!tls.is_empty()).map_err(|message| (USAGE, message))?;
    Ok(Sockets { relay, tls, ..Sockets::default() })
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

/// Says from where the options come, and which limits hold.
fn announce(config: &Config, sources: &Given, descriptors: u64) {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        command_line = sources.command_line.join(" "),
        environment = sources.environment.join(" ");
        "starting"
    );
    let text = |limit: Option<String>| limit.unwrap_or_else(|| "off".to_owned());
    info!(
        max_connections = config.max_connections,
        max_connections_per_ip = text(config.max_connections_per_ip.map(|share| share.to_string())),
        max_phones = config.max_phones,
        rate_limit = text(config.rate.map(|rate| rate.to_string())),
        max_frame_bytes = config.max_frame_bytes,
        memory_budget = config.memory_budget,
        descriptors = descriptors;
        "limits"
    );
}

/// Whether the event loop can have its descriptors and its helper thread: without them it panics.
fn check_resources() -> Result<(), String> {
    let pairs: Result<Vec<_>, _> = (0..LOOP_DESCRIPTORS / 2).map(|_| UnixStream::pair()).collect();
    pairs.map(drop).map_err(|error| {
        format!("cannot start the event loop: {error} (the limit is LimitNOFILE=, ulimit -n)")
    })?;
    let thread = std::thread::Builder::new().stack_size(PROBE_STACK).spawn(|| ());
    let ended = thread.map(std::thread::JoinHandle::join);
    // The thread does nothing that could panic.
    ended.map(drop).map_err(|error| {
        format!(
            "cannot start the event loop's helper thread: {error} (the limits are LimitNPROC=, \
             ulimit -u, TasksMax=, and of memory LimitAS=, ulimit -v)"
        )
    })
}

/// Raises the soft descriptor limit to the hard one: 1024, the usual soft limit, is too few.
/// Returns what it is then.
fn raise_descriptor_limit(max_connections: usize) -> u64 {
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(0);
    let needed = u64::try_from(max_connections + RESERVED_DESCRIPTORS).unwrap_or(u64::MAX);
    if limit < needed {
        warn!(
            descriptors = limit, max_connections = max_connections;
            "the descriptor limit does not fit --max-connections: raise it (LimitNOFILE=) or lower that"
        );
    }
    reserve_descriptors(needed.min(limit));
    limit
}

/// Has the kernel make its table of descriptors as large as it will be. It grows by doubling, and while the
/// process has a second thread, whoever needs one more descriptor waits 10 to 20 ms for that.
fn reserve_descriptors(count: u64) {
    let highest = i32::try_from(count).unwrap_or(i32::MAX).saturating_sub(1);
    // The table keeps its size when this is closed. Without it the relay works just as well, but for that wait.
    drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), highest));
}
