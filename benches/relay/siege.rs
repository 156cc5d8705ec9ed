//! Profile `siege`: attacks from few addresses on a relay with its default limits, beside people at
//! other addresses. Whether the relay closes or refuses anybody of these, and how its memory compares
//! with what it promises: what it had at the start, 4 KiB a connection, and 1.15 times its budget.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::attacks::{ATTACKS, Aim, Attack};
use super::bench::{Bench, StopOnDrop};
use super::crew::Done;
use super::neighbours::{FILE_WINDOW, Neighbours, Outcome};
use super::page::StatusPage;
use super::process;
use super::target::Running;

pub fn run(bench: &mut Bench<'_>) -> io::Result<()> {
    ATTACKS.iter().try_for_each(|attack| one(bench, attack))
}

fn one(bench: &mut Bench<'_>, attack: &Attack) -> io::Result<()> {
    bench.progress(attack.name);
    let (time, file_size, rest) = if bench.quick {
        (Duration::from_secs(2), QUICK_FILE_BYTES, Duration::from_millis(300))
    } else {
        (Duration::from_secs(10), FILE_BYTES, Duration::from_secs(2))
    };
    let mut site = Site::start(bench, attack)?;
    let at_start = site.running.resident();
    let descriptors = site.look().map_or(f64::NAN, |look| look.descriptors);
    let neighbours = Neighbours::connect(&site.running, file_size)?;
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    let (outcome, done, seen) = std::thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let attackers = scope.spawn(|| (attack.run)(&site.aim, attack.sources, &stop));
        let watching = scope.spawn(|| site.watch(&stop));
        let outcome = neighbours.live(time);
        drop(stopping);
        let done = attackers.join().expect("the attackers do not panic");
        (outcome, done, watching.join().expect("who watches does not panic"))
    });
    let (outcome, done) = (outcome?, done?);
    let seconds = began.elapsed().as_secs_f64();
    std::thread::sleep(rest);
    site.running.check_alive()?;
    record_others(bench, attack, &outcome);
    record_memory(bench, attack, &site, at_start, descriptors, &seen);
    record_attackers(bench, attack, &done, seconds);
    Ok(())
}

/// Whether anybody of another source was closed or refused.
fn record_others(bench: &mut Bench<'_>, attack: &Attack, outcome: &Outcome) {
    let name = attack.name;
    let Outcome { pair_closed, pair_lost, welcome, .. } = outcome;
    // The largest source loses: with this many attackers that may be the one with the file.
    let may_lose_file = FILE_WINDOW * (usize::from(attack.sources) + 1) > BUDGET;
    let file_closed = u32::from(outcome.file_closed);
    let counted = if may_lose_file { 0 } else { file_closed };
    let lost = welcome.tried - welcome.through;
    for (figure, unit, value) in [
        (OTHERS_CLOSED, "", f64::from(pair_closed + lost + counted)),
        ("healthy pair closed", "", f64::from(*pair_closed)),
        ("healthy pair unanswered", "", f64::from(*pair_lost)),
        ("healthy pair worst", "ms", outcome.pair_worst as f64 / 1e6),
        ("newcomers tried", "", f64::from(welcome.tried)),
        ("newcomers through", "", f64::from(welcome.through)),
        ("newcomers slowest", "ms", welcome.slowest.as_secs_f64() * 1e3),
        ("file closed", "", f64::from(file_closed)),
        ("file through", "%", outcome.file_bytes as f64 / outcome.file_size as f64 * 100.0),
    ] {
        bench.record(&format!("{name}: {figure}"), unit, value);
    }
    for wrong in &outcome.wrongs {
        let allowed = "; it may have been the largest source, which loses";
        let is_allowed = may_lose_file && wrong.contains("file transfer");
        let remark = if is_allowed { allowed } else { "" };
        let target = &bench.target.name;
        bench.sheet.warn(format!("{}, {name}, {target}: {wrong}{remark}", bench.profile));
    }
}

/// What the relay took, beside what it may take.
fn record_memory(
    bench: &mut Bench<'_>,
    attack: &Attack,
    site: &Site,
    at_start: f64,
    descriptors: f64,
    seen: &[Look],
) {
    let name = attack.name;
    let highest = process::resident_peak(site.running.pid());
    let most = |figure: fn(&Look) -> f64| seen.iter().map(figure).fold(f64::NAN, f64::max);
    let held_then = seen.iter().max_by(|one, other| one.resident.total_cmp(&other.resident));
    let connections = most(|look| look.descriptors) - descriptors;
    // Of a program without such a page nothing is known of the connections: that is little.
    let for_connections = if connections.is_nan() { 0.0 } else { connections * A_CONNECTION };
    let bound = at_start + for_connections + BUDGET as f64 * BUDGET_FACTOR;
    for (figure, value) in [
        ("resident at the start", at_start),
        ("resident at its highest", highest),
        ("resident afterwards", site.running.resident()),
        ("resident bound", bound),
        ("ledger at its highest", most(|look| look.held)),
        ("ledger when resident was highest", held_then.map_or(f64::NAN, |look| look.held)),
    ] {
        bench.record(&format!("{name}: {figure}"), "MiB", value / MIB);
    }
    bench.record(&format!("{name}: connections open"), "", connections);
    bench.record(&format!("{name}: {BY_BOUND}"), "", highest / bound);
    if highest > bound {
        let (target, highest, bound) = (&bench.target.name, highest / MIB, bound / MIB);
        bench.sheet.warn(format!(
            "{}, {name}, {target}: resident memory rose to {highest:.0} MiB; the bound is {bound:.0}",
            bench.profile
        ));
    }
}

fn record_attackers(bench: &mut Bench<'_>, attack: &Attack, done: &Done, seconds: f64) {
    let name = attack.name;
    for (figure, unit, value) in [
        ("attackers' dials", "1/s", f64::from(done.dialed) / seconds),
        ("attackers refused", "1/s", f64::from(done.refused) / seconds),
        ("attackers closed", "1/s", f64::from(done.closed) / seconds),
        ("attackers sent", "MB/s", done.written as f64 / seconds / 1e6),
    ] {
        bench.record(&format!("{name}: {figure}"), unit, value);
    }
}

/// The relay that is attacked.
struct Site {
    running: Running,
    page: StatusPage,
    aim: Aim,
    _tls: Tls,
}

/// What an attack over TLS needs.
#[derive(Default)]
struct Tls {
    options: Vec<String>,
    aim: Option<(u16, Vec<u8>)>,
    /// Its files go with it.
    #[cfg(feature = "tls")]
    _certificate: Option<super::tls::Certificate>,
}

impl Tls {
    #[cfg(feature = "tls")]
    fn prepare(attack: &Attack) -> io::Result<Self> {
        if !attack.over_tls {
            return Ok(Self::default());
        }
        let certificate = super::tls::Certificate::new()?;
        let port = super::target::free_port()?;
        let (options, hello) = (certificate.options(port), certificate.hello()?);
        Ok(Self { options, aim: Some((port, hello)), _certificate: Some(certificate) })
    }

    #[cfg(not(feature = "tls"))]
    #[allow(clippy::unnecessary_wraps, reason = "as with TLS")]
    fn prepare(_attack: &Attack) -> io::Result<Self> {
        Ok(Self::default())
    }
}

/// A look at the status page; bytes.
struct Look {
    resident: f64,
    held: f64,
    descriptors: f64,
}

impl Site {
    fn start(bench: &Bench<'_>, attack: &Attack) -> io::Result<Self> {
        let page = StatusPage::at_a_free_port()?;
        let address = page.address();
        let mut tls = Tls::prepare(attack)?;
        let mut options = vec!["--metrics-listen", &address];
        options.extend(tls.options.iter().map(String::as_str));
        let running = bench.target.start_guarded(&options)?;
        let aim = Aim { port: running.port, tls: tls.aim.take() };
        Ok(Self { running, page, aim, _tls: tls })
    }

    fn look(&self) -> Option<Look> {
        let page = self.page.ask(LOOK_PATIENCE)?;
        Some(Look {
            resident: page["memory"]["resident_bytes"].as_f64()?,
            held: page["memory"]["held_bytes"].as_f64()?,
            descriptors: page["descriptors"]["used"].as_f64()?,
        })
    }

    /// Looks again and again. A page that does not come in time is left out.
    fn watch(&self, stop: &AtomicBool) -> Vec<Look> {
        let mut seen = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            seen.extend(self.look());
            std::thread::sleep(LOOK_EACH);
        }
        seen
    }
}

/// Figures of every attack that goals are about.
pub const OTHERS_CLOSED: &str = "others closed or refused";
pub const BY_BOUND: &str = "resident by the bound";

const MIB: f64 = 1024.0 * 1024.0;
/// The default of `--memory-budget`, and the bound that the contract derives from it.
const BUDGET: usize = 64 * 1024 * 1024;
const BUDGET_FACTOR: f64 = 1.15;
const A_CONNECTION: f64 = 4096.0;
const FILE_BYTES: usize = 16 * 1024 * 1024;
/// What is read in a second.
const QUICK_FILE_BYTES: usize = 4 * 1024 * 1024;
const LOOK_EACH: Duration = Duration::from_millis(100);
const LOOK_PATIENCE: Duration = Duration::from_secs(1);
