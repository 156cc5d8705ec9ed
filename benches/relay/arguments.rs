//! The benchmark's command line.

use std::io;
use std::path::PathBuf;

use clap::Parser;

use super::profiles::{PROFILES, Profile};

/// What to measure.
pub struct Arguments {
    pub profiles: Vec<&'static Profile>,
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
        let names: Vec<_> = PROFILES.iter().map(|profile| profile.name).collect();
        if let Some(unknown) = line.profiles.iter().find(|name| !names.contains(&name.as_str())) {
            let message = format!("no profile {unknown:?}; there are {}", names.join(", "));
            return Err(io::Error::other(message));
        }
        let is_meant = |profile: &&Profile| {
            line.profiles.is_empty() || line.profiles.iter().any(|name| name == profile.name)
        };
        Ok(Self {
            profiles: PROFILES.iter().filter(is_meant).collect(),
            // Cargo passes --bench from `cargo bench` and nothing from `cargo test --benches`.
            quick: line.quick || !line.bench,
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
    /// A few seconds a profile, to see that everything works; the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Keeps the client to the first core and what is measured to the last: steadier figures, as
    /// long as nothing else wants these cores
    #[arg(long)]
    pin: bool,
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
    text
}
