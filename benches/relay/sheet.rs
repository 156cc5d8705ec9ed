//! The figures of a run: recorded by the profiles, compared pair by pair, written as a table for
//! people and as JSON for machines.

use serde_json::{Value, json};

use super::target::FLOOR;

/// All figures.
#[derive(Default)]
pub struct Sheet {
    rows: Vec<Row>,
    curves: Vec<Curve>,
    /// What a reader must know before believing the figures.
    pub warnings: Vec<String>,
}

/// One figure of one profile, for every target.
struct Row {
    profile: &'static str,
    figure: String,
    unit: &'static str,
    /// By target, one value a round.
    values: Vec<(String, Vec<f64>)>,
}

/// Points of a plot.
pub struct Curve {
    pub plot: &'static str,
    pub target: String,
    pub points: Vec<(f64, f64)>,
}

impl Sheet {
    pub fn record(
        &mut self,
        profile: &'static str,
        target: &str,
        figure: &str,
        unit: &'static str,
        value: f64,
    ) {
        let place = self.rows.iter().position(|row| row.profile == profile && row.figure == figure);
        let place = place.unwrap_or_else(|| {
            let values = Vec::new();
            self.rows.push(Row { profile, figure: figure.to_owned(), unit, values });
            self.rows.len() - 1
        });
        let values = &mut self.rows[place].values;
        match values.iter_mut().find(|(name, _)| name == target) {
            Some((_, values)) => values.push(value),
            None => values.push((target.to_owned(), vec![value])),
        }
    }

    pub fn plot(&mut self, plot: &'static str, target: &str, point: (f64, f64)) {
        match self.curves.iter_mut().find(|curve| curve.plot == plot && curve.target == target) {
            Some(curve) => curve.points.push(point),
            None => {
                let target = target.to_owned();
                self.curves.push(Curve { plot, target, points: vec![point] });
            }
        }
    }

    pub fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    pub fn curves(&self, plot: &str) -> Vec<&Curve> {
        self.curves.iter().filter(|curve| curve.plot == plot).collect()
    }

    /// The values of a figure, one a round.
    pub fn values(&self, profile: &str, figure: &str, target: &str) -> &[f64] {
        self.rows
            .iter()
            .find(|row| row.profile == profile && row.figure == figure)
            .and_then(|row| row.values.iter().find(|(name, _)| name == target))
            .map_or(&[], |(_, values)| values)
    }

    /// The table for people: the median of each figure, and its ratios to the floor pair by pair.
    pub fn table(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in self.rows.iter().flat_map(|row| &row.values) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        let mut text = format!("\n{:<9}{:<50}{:>7}", "profile", "figure", "unit");
        names.iter().for_each(|name| text += &format!("{name:>15}"));
        text += "   ratio to the floor, or added to what is apart from the load: median (lowest to \
                 highest of the pairs)\n";
        for row in &self.rows {
            text += &format!("{:<9}{:<50}{:>7}", row.profile, row.figure, row.unit);
            for name in &names {
                let values = self.values(row.profile, &row.figure, name);
                let cell = if values.is_empty() { "-".to_owned() } else { number(median(values)) };
                text += &format!("{cell:>15}");
            }
            for name in names.iter().filter(|name| **name != FLOOR) {
                let ratios = self.ratios(row, name);
                if !ratios.is_empty() {
                    let (low, high) = range(&ratios);
                    text += &format!("   {name} {:.2} ({low:.2} to {high:.2})", median(&ratios));
                }
                let added = self.added(row, name);
                if !added.is_empty() {
                    let (low, high) = range(&added);
                    let [median, low, high] = [median(&added), low, high].map(number);
                    text += &format!("   {name} + {median} ({low} to {high})");
                }
            }
            text.push('\n');
        }
        self.warnings.iter().for_each(|warning| text += &format!("warning: {warning}\n"));
        text
    }

    /// All figures for machines.
    pub fn json(&self, machine: &str, goals: Value) -> Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let values: serde_json::Map<_, _> =
                    row.values.iter().map(|(name, values)| (name.clone(), json!(values))).collect();
                let ratios: serde_json::Map<_, _> = row
                    .values
                    .iter()
                    .filter(|(name, _)| name != FLOOR)
                    .map(|(name, _)| (name.clone(), json!(self.ratios(row, name))))
                    .collect();
                let added: serde_json::Map<_, _> = row
                    .values
                    .iter()
                    .map(|(name, _)| (name.clone(), self.added(row, name)))
                    .filter(|(_, added)| !added.is_empty())
                    .map(|(name, added)| (name, json!(added)))
                    .collect();
                json!({
                    "profile": row.profile, "figure": row.figure, "unit": row.unit,
                    "values": values, "ratios_to_floor": ratios, "added": added,
                })
            })
            .collect();
        let curves: Vec<_> = self
            .curves
            .iter()
            .map(|curve| {
                json!({ "plot": curve.plot, "target": curve.target, "points": curve.points })
            })
            .collect();
        json!({
            "machine": machine, "figures": rows, "curves": curves, "goals": goals,
            "warnings": self.warnings,
        })
    }

    fn ratios(&self, row: &Row, target: &str) -> Vec<f64> {
        let floor = self.values(row.profile, &row.figure, FLOOR);
        let values = self.values(row.profile, &row.figure, target);
        pairwise(values, floor)
    }

    /// What a load added, round by round: the values beside it less those apart from it.
    fn added(&self, row: &Row, target: &str) -> Vec<f64> {
        let beside = self.values(row.profile, &row.figure, target);
        let apart = self.values(row.profile, &row.figure, &apart(target));
        beside.iter().zip(apart).map(|(beside, apart)| beside - apart).collect()
    }
}

/// The name under which a second process of a target is recorded, which is apart from the load.
pub fn apart(target: &str) -> String {
    format!("{target}, apart")
}

/// Quotients of the values of the same rounds.
pub fn pairwise(values: &[f64], of: &[f64]) -> Vec<f64> {
    values.iter().zip(of).map(|(value, of)| value / of).filter(|ratio| ratio.is_finite()).collect()
}

/// The middle value; of an even count the mean of the middle two. Not a number if there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// Lowest and highest.
pub fn range(values: &[f64]) -> (f64, f64) {
    let fold = |start, pick: fn(f64, f64) -> f64| values.iter().copied().fold(start, pick);
    (fold(f64::INFINITY, f64::min), fold(f64::NEG_INFINITY, f64::max))
}

/// Three significant digits, or whole numbers.
pub fn number(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude == 0.0 || magnitude >= 100.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        magnitude if magnitude >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
