//! What must hold, and whether it does.

use serde_json::{Value, json};

use super::sheet::{Sheet, median, number, pairwise};
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
    #[allow(dead_code)]
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

const GOALS: &[Goal] = &[
    Goal {
        about: "CPU a 700 B frame to a binary, one at a time, by the floor's",
        unit: "",
        bound: Bound::AtMost(1.6),
        figure: |sheet| {
            let figure = "to binary, one at a time: CPU a frame";
            ratio(sheet, "frame", figure, figure)
        },
    },
    Goal {
        about: "CPU a 700 B frame to a phone, one at a time, by the floor's",
        unit: "",
        bound: Bound::AtMost(1.6),
        figure: |sheet| {
            let figure = "to phone, one at a time: CPU a frame";
            ratio(sheet, "frame", figure, figure)
        },
    },
    Goal {
        about: "CPU a 700 B frame to a binary in a stream, by the floor's one at a time",
        unit: "",
        bound: Bound::AtMost(1.0),
        figure: |sheet| {
            let of = "to binary, one at a time: CPU a frame";
            ratio(sheet, "frame", "to binary, stream: CPU a frame", of)
        },
    },
    Goal {
        about: "CPU a 700 B frame to a phone in a stream, by the floor's one at a time",
        unit: "",
        bound: Bound::AtMost(1.0),
        figure: |sheet| {
            let of = "to phone, one at a time: CPU a frame";
            ratio(sheet, "frame", "to phone, stream: CPU a frame", of)
        },
    },
    Goal {
        about: "stripped program",
        unit: "KiB",
        bound: Bound::AtMost(2.0 * KIB),
        figure: |sheet| relay(sheet, "program", "size"),
    },
];
