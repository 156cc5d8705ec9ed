//! Lines over time as SVG, drawn here so that the page needs no script.

use std::fmt::Write as _;

/// One line of a chart.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// The class that gives it its colour.
    pub class: &'static str,
    /// Values, oldest first; the last one is at the right edge.
    pub values: Vec<f64>,
}

/// Draws `lines` over `places` points of time, from zero to `top`, which is not zero. `label` says
/// in words what they show.
pub(crate) fn draw(lines: &[Line], places: usize, top: f64, label: &str) -> String {
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"{label}\">"
    );
    for quarter in 1..4 {
        let y = HEIGHT / 4 * quarter;
        let _ = write!(svg, "<path class=\"grid\" d=\"M0 {y}H{WIDTH}\"/>");
    }
    for Line { class, values } in lines {
        let step = f64::from(WIDTH) / (places.max(2) - 1) as f64;
        let missing = places.saturating_sub(values.len());
        let place = |index: usize, value: f64| {
            let x = (missing + index) as f64 * step;
            let y = f64::from(HEIGHT) - (value / top).clamp(0.0, 1.0) * f64::from(HEIGHT - 2) - 1.0;
            format!("{x:.1} {y:.1}")
        };
        let mut path = String::new();
        for (index, value) in values.iter().enumerate() {
            path.push(if index == 0 { 'M' } else { 'L' });
            path += &place(index, *value);
        }
        if let [only] = values[..] {
            // A point alone would not be seen.
            path = format!(
                "M{:.1} {}",
                f64::from(WIDTH) - step,
                place(0, only).split(' ').nth(1).unwrap_or("0")
            );
            path += &format!("H{WIDTH}");
        }
        let _ = write!(svg, "<path class=\"line {class}\" d=\"{path}\"/>");
    }
    svg + "</svg>"
}

/// The next number above `value` that reads well: 1, 2 or 5 with zeros.
pub(crate) fn round_up(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let magnitude = 10_f64.powf(value.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * magnitude);
    // The smallest may be above by what the logarithm is off.
    nice.into_iter().find(|nice| *nice >= value * 0.999_999).unwrap_or(10.0 * magnitude)
}

const WIDTH: u32 = 600;
const HEIGHT: u32 = 120;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_ends_in_a_number_that_reads_well() {
        for (value, expected) in
            [(0.0, 1.0), (0.03, 0.05), (1.0, 1.0), (1.1, 2.0), (42.0, 50.0), (501.0, 1000.0)]
        {
            assert!((round_up(value) - expected).abs() < 1e-9, "{value}: {}", round_up(value));
        }
    }

    #[test]
    fn the_newest_value_is_at_the_right_edge_and_the_top_at_the_top() {
        let line = Line { class: "a", values: vec![0.0, 10.0] };
        let svg = draw(&[line], 61, 10.0, "x");
        assert!(svg.contains("d=\"M590.0 119.0L600.0 1.0\""), "{svg}");
    }

    #[test]
    fn no_value_and_one_value_are_drawn_too() {
        assert!(draw(&[Line { class: "a", values: vec![] }], 60, 1.0, "x").contains("d=\"\""));
        let svg = draw(&[Line { class: "a", values: vec![1.0] }], 61, 1.0, "x");
        assert!(svg.contains("d=\"M590.0 1.0H600\""), "{svg}");
    }
}
