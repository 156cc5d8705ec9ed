//! What must hold, and whether it does.

use serde_json::{Value, json};

use super::attacks::ATTACKS;
use super::crowded::{EIGHTH, EMPTY_FRAGMENTS, FULL_SPEED, ORDINARY};
use super::evict;
use super::sheet::{Sheet, median, number, pairwise};
use super::siege::{BY_BOUND, OTHERS_CLOSED};
use super::target::FLOOR;

/// One figure that must hold.
struct Goal {
    about: &'static str,
    unit: &'static str,
    bound: Bound,
    figure: fn(&Sheet) -> f64,
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    /// The figure and whether it holds; `None` if it was not measured.
    fn judge(&self, sheet: &Sheet) -> Option<(f64, bool)> {
        let figure = (self.figure)(sheet);
        let holds = match self.bound {
            Bound::AtMost(bound) => figure <= bound,
            Bound::AtLeast(bound) => figure >= bound,
        };
        (!figure.is_nan()).then_some((figure, holds))
    }
}

/// The goals for people.
pub fn table(sheet: &Sheet) -> String {
    let mut text = format!("{:<72}{:>12}{:>12}\n", "what must hold", "goal", "figure");
    for goal in GOALS {
        let Some((figure, holds)) = goal.judge(sheet) else { continue };
        let bound = match goal.bound {
            Bound::AtMost(bound) => format!("<= {}", number(bound)),
            Bound::AtLeast(bound) => format!(">= {}", number(bound)),
        };
        let verdict = if holds { "" } else { "   does not hold" };
        let figure = format!("{} {}", number(figure), goal.unit);
        text += &format!("{:<72}{bound:>12}{figure:>12}{verdict}\n", goal.about);
    }
    text
}

/// The goals for machines.
pub fn json(sheet: &Sheet) -> Value {
    GOALS
        .iter()
        .filter_map(|goal| {
            let (figure, holds) = goal.judge(sheet)?;
            let (Bound::AtMost(bound) | Bound::AtLeast(bound)) = goal.bound;
            Some(json!({ "about": goal.about, "goal": bound, "figure": figure, "holds": holds }))
        })
        .collect()
}

fn relay(sheet: &Sheet, profile: &str, figure: &str) -> f64 {
    median(sheet.values(profile, figure, RELAY))
}

/// The median of the ratios pair by pair: a figure of the relay by one of the floor.
fn ratio(sheet: &Sheet, profile: &str, figure: &str, of: &str) -> f64 {
    let values = sheet.values(profile, figure, RELAY);
    median(&pairwise(values, sheet.values(profile, of, FLOOR)))
}

const RELAY: &str = "relay";
const KIB: f64 = 1024.0;

/// CPU a frame, by the floor's for the same frames one at a time.
fn frame_cost(sheet: &Sheet, way: &str, pace: &str) -> f64 {
    let figure = format!("{way}, {pace}: CPU a frame");
    ratio(sheet, "frame", &figure, &format!("{way}, one at a time: CPU a frame"))
}

/// CPU a frame to a binary that proves what it has read, by the same without.
fn proof_cost(sheet: &Sheet, pace: &str) -> f64 {
    let with = sheet.values("frame", &format!("to binary, {pace}: CPU a frame"), RELAY);
    let without = format!("to binary without proofs, {pace}: CPU a frame");
    median(&pairwise(with, sheet.values("frame", &without, RELAY)))
}

/// The highest of the medians over loads and figures of `crowded`.
fn crowded(sheet: &Sheet, loads: &[&[&str]], speed: &str, figures: &[&str]) -> f64 {
    let loads = loads.iter().copied().flatten();
    loads
        .flat_map(|load| figures.iter().map(move |figure| format!("{load}{speed}: {figure}")))
        .map(|figure| relay(sheet, "crowded", &figure))
        .fold(f64::NAN, f64::max)
}

/// The highest of the medians over the attacks of `siege`.
fn siege(sheet: &Sheet, figure: &str) -> f64 {
    ATTACKS
        .iter()
        .map(|attack| relay(sheet, "siege", &format!("{}: {figure}", attack.name)))
        .fold(f64::NAN, f64::max)
}

const GOALS: &[Goal] = &[
    Goal {
        about: "resident at start",
        unit: "MiB",
        bound: Bound::AtMost(4.0),
        figure: |sheet| relay(sheet, "idle", "resident at start"),
    },
    Goal {
        about: "resident a connection of 9,000, at 2 s",
        unit: "B",
        bound: Bound::AtMost(4.0 * KIB),
        figure: |sheet| relay(sheet, "idle", "a connection at 2 s"),
    },
    Goal {
        about: "resident a connection of 9,000, after two rounds of clients' pings",
        unit: "B",
        bound: Bound::AtMost(4.0 * KIB),
        figure: |sheet| relay(sheet, "idle", "a connection after two rounds of clients' pings"),
    },
    Goal {
        about: "resident a connection of 9,000, after two rounds of the relay's pings",
        unit: "B",
        bound: Bound::AtMost(4.0 * KIB),
        figure: |sheet| relay(sheet, "idle", "a connection after two rounds of relay's pings"),
    },
    Goal {
        about: "resident a connection 10 s after 64 KiB both ways",
        unit: "B",
        bound: Bound::AtMost(5.0 * KIB),
        figure: |sheet| relay(sheet, "idle", "a connection 10 s after 64 KiB both ways"),
    },
    Goal {
        about: "the same where all had carried a small message before",
        unit: "B",
        bound: Bound::AtMost(5.0 * KIB),
        figure: |sheet| relay(sheet, "idle", "a connection 10 s after 64 B, then 64 KiB both ways"),
    },
    Goal {
        about: "resident with 9,000 connections",
        unit: "MiB",
        bound: Bound::AtMost(48.0),
        figure: |sheet| relay(sheet, "idle", "resident after two rounds of relay's pings"),
    },
    Goal {
        about: "CPU of a core for the clients' pings of 9,000 connections",
        unit: "%",
        bound: Bound::AtMost(1.0),
        figure: |sheet| relay(sheet, "idle", "CPU of a core, clients ping"),
    },
    Goal {
        about: "CPU of a core for the relay's pings to 9,000 connections",
        unit: "%",
        bound: Bound::AtMost(1.0),
        figure: |sheet| relay(sheet, "idle", "CPU of a core, relay pings"),
    },
    Goal {
        about: "wake-ups in 10 s with nothing due",
        unit: "",
        bound: Bound::AtMost(0.0),
        figure: |sheet| relay(sheet, "idle", "wake-ups in 10 s with nothing due"),
    },
    Goal {
        about: "CPU a 700 B frame to a binary, one at a time, by the floor's",
        unit: "",
        bound: Bound::AtMost(1.6),
        figure: |sheet| frame_cost(sheet, "to binary", "one at a time"),
    },
    Goal {
        about: "CPU a 700 B frame to a phone, one at a time, by the floor's",
        unit: "",
        bound: Bound::AtMost(1.6),
        figure: |sheet| frame_cost(sheet, "to phone", "one at a time"),
    },
    Goal {
        about: "CPU a 700 B frame to a binary in a stream, by the floor's one at a time",
        unit: "",
        bound: Bound::AtMost(1.0),
        figure: |sheet| frame_cost(sheet, "to binary", "stream"),
    },
    Goal {
        about: "CPU a frame to a binary, one at a time, by the same without proofs",
        unit: "",
        bound: Bound::AtMost(1.15),
        figure: |sheet| proof_cost(sheet, "one at a time"),
    },
    Goal {
        about: "CPU a frame to a binary in a stream, by the same without proofs",
        unit: "",
        bound: Bound::AtMost(1.05),
        figure: |sheet| proof_cost(sheet, "stream"),
    },
    Goal {
        about: "CPU a 700 B frame to a phone in a stream, by the floor's one at a time",
        unit: "",
        bound: Bound::AtMost(1.0),
        figure: |sheet| frame_cost(sheet, "to phone", "stream"),
    },
    Goal {
        about: "bytes a second of `file`, by the floor's",
        unit: "",
        bound: Bound::AtLeast(0.8),
        figure: |sheet| ratio(sheet, "file", "both ways: bytes", "both ways: bytes"),
    },
    Goal {
        about: "added latency p99 in `steady`, by the floor's",
        unit: "",
        bound: Bound::AtMost(2.0),
        figure: |sheet| ratio(sheet, "steady", "added latency p99", "added latency p99"),
    },
    Goal {
        about: "latency p99 of a healthy pair in `hostile`, by its own without them",
        unit: "",
        bound: Bound::AtMost(2.0),
        figure: |sheet| {
            let values = |figure| sheet.values("hostile", figure, RELAY);
            let beside = values("healthy pair beside hostile peers p99");
            median(&pairwise(beside, values("healthy pair alone p99")))
        },
    },
    Goal {
        about: "`storm`: everybody exchanging after the last dial",
        unit: "ms",
        bound: Bound::AtMost(3000.0),
        figure: |sheet| relay(sheet, "storm", "exchanging after the last dial"),
    },
    Goal {
        about: "`storm`: refused or closed",
        unit: "",
        bound: Bound::AtMost(0.0),
        figure: |sheet| relay(sheet, "storm", "refused or closed"),
    },
    Goal {
        about: "`crowded`: worst message of a quiet pair beside a stream or pings",
        unit: "ms",
        bound: Bound::AtMost(50.0),
        figure: |sheet| crowded(sheet, &[ORDINARY], FULL_SPEED, &["quiet pair worst"]),
    },
    Goal {
        about: "the same beside empty fragments",
        unit: "ms",
        bound: Bound::AtMost(100.0),
        figure: |sheet| crowded(sheet, &[EMPTY_FRAGMENTS], FULL_SPEED, &["quiet pair worst"]),
    },
    Goal {
        about: "`crowded`: worst answer of /healthz",
        unit: "ms",
        bound: Bound::AtMost(250.0),
        figure: |sheet| {
            crowded(sheet, &[ORDINARY, EMPTY_FRAGMENTS], FULL_SPEED, &["/healthz worst"])
        },
    },
    Goal {
        about: "`crowded` at an eighth of the speed: p99 of either",
        unit: "ms",
        bound: Bound::AtMost(300.0),
        figure: |sheet| {
            let figures = ["quiet pair p99", "/healthz p99"];
            crowded(sheet, &[ORDINARY, EMPTY_FRAGMENTS], EIGHTH, &figures)
        },
    },
    Goal {
        about: "`crowded` at an eighth of the speed: longest turn of the event loop",
        unit: "ms",
        bound: Bound::AtMost(100.0),
        figure: |sheet| crowded(sheet, &[ORDINARY, EMPTY_FRAGMENTS], EIGHTH, &["longest turn"]),
    },
    Goal {
        about: "`siege`: people of other addresses closed or refused, worst attack",
        unit: "",
        bound: Bound::AtMost(0.0),
        figure: |sheet| siege(sheet, OTHERS_CLOSED),
    },
    Goal {
        about: "`siege`: resident by its bound, worst attack",
        unit: "",
        bound: Bound::AtMost(1.0),
        figure: |sheet| siege(sheet, BY_BOUND),
    },
    Goal {
        about: "`evict`: longest turn of the event loop",
        unit: "ms",
        bound: Bound::AtMost(20.0),
        figure: |sheet| relay(sheet, "evict", evict::LONGEST_TURN),
    },
    Goal {
        about: "`upgrade`: longest wait of a message, 1,000 connections",
        unit: "ms",
        bound: Bound::AtMost(100.0),
        figure: |sheet| relay(sheet, "upgrade", "longest wait, 1000 connections"),
    },
    Goal {
        about: "`upgrade`: longest wait of a message, 9,000 connections",
        unit: "ms",
        bound: Bound::AtMost(1_000.0),
        figure: |sheet| relay(sheet, "upgrade", "longest wait, 9000 connections"),
    },
    Goal {
        about: "stripped program",
        unit: "KiB",
        bound: Bound::AtMost(2.0 * KIB),
        figure: |sheet| relay(sheet, "program", "size"),
    },
];
