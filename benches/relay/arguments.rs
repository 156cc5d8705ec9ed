//! The benchmark's command line.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::profiles::{PROFILES, Profile};

/// What to measure.
pub struct Arguments {
    pub profiles: Vec<&'static Profile>,
    /// Instead of the profiles: a soak of this length.
    pub soak: Option<Duration>,
    pub relays: Vec<String>,
    pub quick: bool,
    pub pin: bool,
    pub rounds: Option<usize>,
    pub json: Option<PathBuf>,
    pub plots: Option<PathBuf>,
}

impl Arguments {
    pub fn from_process() -> io::Result<Self> {
        let line = Line::parse();
        let is_soak = line.profiles == [SOAK];
        let names: Vec<_> = PROFILES.iter().map(|profile| profile.name).collect();
        let unknown = line.profiles.iter().find(|name| !names.contains(&name.as_str()));
        if let Some(unknown) = unknown.filter(|_| !is_soak) {
            let names = names.join(", ");
            let message = format!("no profile {unknown:?}; there are {names}, and {SOAK} alone");
            return Err(io::Error::other(message));
        }
        // Cargo passes --bench from `cargo bench` and nothing from `cargo test --benches`.
        let quick = line.quick || !line.bench;
        let is_meant = |profile: &&Profile| match line.profiles.as_slice() {
            [] => !(quick && profile.is_long),
            named => named.iter().any(|name| name == profile.name),
        };
        Ok(Self {
            soak: is_soak.then(|| Duration::from_secs_f64(line.minutes * 60.0)),
            profiles: PROFILES.iter().filter(is_meant).collect(),
            quick,
            relays: line.relays,
            pin: line.pin,
            rounds: line.rounds,
            json: line.json,
            plots: line.plots.filter(|_| !line.quick),
        })
    }
}

/// Measures the relay, a floor, and other relays in turn.
#[derive(Parser)]
#[command(name = "cargo bench --", after_help = about_profiles())]
struct Line {
    /// Profiles to run; all of them if none is named
    profiles: Vec<String>,
    /// A further relay: a shell command in which {port} stands for its port on 127.0.0.1, and
    /// {options} for what the profile needs if it takes this relay's options; repeatable
    #[arg(long = "relay", value_name = "COMMAND")]
    relays: Vec<String>,
    /// A few seconds a profile, to see that everything works; the figures mean nothing. Leaves
    /// `siege` out unless it is named
    #[arg(long)]
    quick: bool,
    /// Keeps the client to the first core and what is measured to the last: steadier figures, as
    /// long as nothing else wants these cores
    #[arg(long)]
    pin: bool,
    /// Length of the soak
    #[arg(long, value_name = "MINUTES", default_value_t = 30.0)]
    minutes: f64,
    /// Rounds of each profile
    #[arg(long, value_name = "COUNT")]
    rounds: Option<usize>,
    /// Writes all figures to a file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws the plots of the profiles into a folder; not with --quick
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
    #[arg(long, hide = true)]
    bench: bool,
}

fn about_profiles() -> String {
    let mut text = String::from("Profiles:\n");
    for profile in PROFILES {
        text += &format!("  {:<8} {}\n", profile.name, profile.about);
    }
    text += &format!("  {SOAK:<8} alone: mixed load with churn for as long as --minutes says\n");
    text
}

const SOAK: &str = "soak";
