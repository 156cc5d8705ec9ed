//! Plots as SVG, drawn by hand: a few lines over two axes.

use std::fmt::Write as _;

use super::sheet::{Curve, number, range};

/// What a plot says besides its curves.
pub struct Plot<'a> {
    pub title: &'a str,
    pub x_axis: &'a str,
    pub y_axis: &'a str,
    /// Logarithmic axes, where the values are orders of magnitude apart; otherwise both begin at 0.
    pub logarithmic: bool,
}

impl Plot<'_> {
    /// The whole picture; `None` without a single curve.
    pub fn draw(&self, curves: &[(String, &Curve)]) -> Option<String> {
        let points = || curves.iter().flat_map(|(_, curve)| &curve.points);
        if points().count() < 2 {
            return None;
        }
        let x = self.axis(&points().map(|point| point.0).collect::<Vec<_>>(), LEFT, RIGHT);
        let y = self.axis(&points().map(|point| point.1).collect::<Vec<_>>(), BOTTOM, TOP);
        let mut svg = String::new();
        let out = &mut svg;
        // Black on white everywhere: a page may be shown on a dark ground.
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n\
             <text x=\"{RIGHT}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
             <text x=\"{LEFT}\" y=\"40\">{}</text>",
            self.title,
            HEIGHT - 8.0,
            self.x_axis,
            self.y_axis
        )
        .ok()?;
        for tick in &x.ticks {
            let at = x.place(*tick);
            line(out, (at, BOTTOM), (at, TOP), "#ddd");
            label(out, (at, BOTTOM + 16.0), "middle", *tick);
        }
        for tick in &y.ticks {
            let at = y.place(*tick);
            line(out, (LEFT, at), (RIGHT, at), "#ddd");
            label(out, (LEFT - 6.0, at + 4.0), "end", *tick);
        }
        line(out, (LEFT, BOTTOM), (RIGHT, BOTTOM), "black");
        line(out, (LEFT, BOTTOM), (LEFT, TOP), "black");
        let targets: Vec<_> = curves.iter().map(|(_, curve)| curve.target.as_str()).collect();
        for (place, (name, curve)) in curves.iter().enumerate() {
            // A colour a target; what comes second of a target is dashed.
            let first = targets.iter().position(|target| *target == curve.target).unwrap_or(place);
            let color = COLORS[first % COLORS.len()];
            let dash = if first < place { " stroke-dasharray=\"5 4\"" } else { "" };
            let path: Vec<_> = curve
                .points
                .iter()
                .map(|point| format!("{:.1},{:.1}", x.place(point.0), y.place(point.1)))
                .collect();
            writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"{dash}/>",
                path.join(" ")
            )
            .ok()?;
            let row = TOP + 16.0 * (place as f64 + 1.0);
            writeln!(out, "<text x=\"{}\" y=\"{row}\" fill=\"{color}\">{name}</text>", LEFT + 10.0)
                .ok()?;
        }
        out.push_str("</svg>\n");
        Some(svg)
    }

    fn axis(&self, values: &[f64], from: f64, to: f64) -> Axis {
        let (low, high) = range(values);
        let ticks: Vec<f64> = if self.logarithmic {
            let exponents = exponent(low.log10().floor())..=exponent(high.log10().ceil());
            let ticks =
                exponents.flat_map(|exponent| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(exponent)));
            let (below, above) = (low * 0.99, high * 1.01);
            let mut ticks: Vec<_> = ticks.collect();
            // The nearest ticks outside the values, and all between.
            let first = ticks.iter().rposition(|tick| *tick <= above.min(below)).unwrap_or(0);
            let last = ticks.iter().position(|tick| *tick >= above).unwrap_or(ticks.len() - 1);
            ticks.drain(last + 1..);
            ticks.drain(..first);
            ticks
        } else {
            let rough = high / 6.0;
            let magnitude = 10f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * magnitude);
            let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
            let count = exponent((high / step).ceil());
            (0..=count).map(|tick| f64::from(tick) * step).collect()
        };
        Axis { ticks, logarithmic: self.logarithmic, from, to }
    }
}

/// One direction of the picture.
struct Axis {
    ticks: Vec<f64>,
    logarithmic: bool,
    from: f64,
    to: f64,
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let scaled = |value: f64| if self.logarithmic { value.log10() } else { value };
        let (low, high) = (scaled(self.ticks[0]), scaled(self.ticks[self.ticks.len() - 1]));
        self.from + (self.to - self.from) * (scaled(value) - low) / (high - low)
    }
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), color: &str) {
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{color}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn label(out: &mut String, at: (f64, f64), anchor: &str, value: f64) {
    let text = if value.fract() == 0.0 { format!("{value}") } else { number(value) };
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{text}</text>",
        at.0, at.1
    );
}

/// A small whole number that was computed as a float.
fn exponent(value: f64) -> i32 {
    #[allow(clippy::cast_possible_truncation, reason = "a handful of ticks or decades")]
    let whole = value as i32;
    whole
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 620.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 350.0;
const COLORS: [&str; 4] = ["#086", "#c33", "#36c", "#a60"];
