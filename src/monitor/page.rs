//! `/`: the page for people. One file without any script; it comes anew every ten seconds.
//!
//! Nothing on it was sent by a peer, so there is nothing to escape.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use bytesize::ByteSize;

use super::chart::{Line, draw, round_up};
use super::snapshot::{Series, Snapshot};
use crate::clock;
use crate::ids::random_payload;
use crate::limits::{HISTORY_DAY, HISTORY_HOUR};
use crate::telemetry::history::Point;

/// A fresh value that lets the page's own style pass its content policy.
pub(crate) fn nonce() -> String {
    random_payload().iter().fold(String::new(), |nonce, byte| nonce + &format!("{byte:02x}"))
}

/// The page.
pub(crate) fn render(snapshot: &Snapshot, nonce: &str) -> String {
    let mut page = String::with_capacity(32 * 1024);
    let well = snapshot.problems.is_empty();
    let (mood, verdict) =
        if well { ("well", "All is well") } else { ("ill", "Something is wrong") };
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <meta http-equiv=\"refresh\" content=\"10\">\
         <title>{title}pyrycode-relay</title><link rel=\"icon\" href=\"data:,\">\
         <style nonce=\"{nonce}\">{STYLE}</style></head><body><main>\
         <header><h1>pyrycode-relay</h1><p class=\"{mood}\">{verdict}</p></header>",
        title = if well { "" } else { "(!) " },
    );
    if !well {
        page += "<ul class=\"problems\">";
        for problem in &snapshot.problems {
            let _ = write!(page, "<li>{problem}</li>");
        }
        page += "</ul>";
    }
    tiles(&mut page, snapshot);
    charts(&mut page, snapshot);
    refusals(&mut page, snapshot);
    let _ = write!(
        page,
        "<footer>up since {} · the same for programs: <a href=\"/status.json\">status.json</a>, \
         <a href=\"/metrics\">metrics</a></footer></main></body></html>",
        date(snapshot.started_at),
    );
    page
}

fn tiles(page: &mut String, snapshot: &Snapshot) {
    let counts = snapshot.counts;
    let process = snapshot.process;
    let known = |figure: Option<u64>| figure.map_or("–".to_owned(), |figure| figure.to_string());
    let waiting = match counts.in_grace {
        0 => "none is awaited".to_owned(),
        1 => "1 more is awaited back".to_owned(),
        more => format!("{more} more are awaited back"),
    };
    let kept = match snapshot.backlog.kept {
        0 => String::new(),
        kept => format!(", {kept} messages kept for them"),
    };
    let queued = snapshot.backlog.to_binaries + snapshot.backlog.to_phones;
    let certificate = snapshot.certificate.as_ref().map(|certificate| {
        let days = match certificate.days_left(clock::wall()) {
            None => "none".to_owned(),
            Some(1) => "1 day".to_owned(),
            Some(days) => format!("{days} days"),
        };
        let until = certificate.not_after().map(|at| {
            let date = humantime::format_rfc3339_seconds(at).to_string();
            format!("until {}", &date[..date.len().min(10)])
        });
        ("Certificate", days, until.unwrap_or_default())
    });
    page.push_str("<section class=\"tiles\">");
    for (name, value, more) in [
        ("Up", duration(snapshot.uptime), format!("version {}", env!("CARGO_PKG_VERSION"))),
        ("Binaries", counts.binaries.to_string(), waiting + &kept),
        ("Phones", counts.phones.to_string(), "connected now".to_owned()),
        ("Messages", rate(snapshot.rate), "a second, in the last minute".to_owned()),
        (
            "Longest turn",
            turn(snapshot.worst_turn),
            "of the event loop, in the last minute".to_owned(),
        ),
        (
            "Held for peers",
            bytes(snapshot.held as u64),
            format!("of {} budget; {} queued", bytes(snapshot.budget as u64), bytes(queued as u64)),
        ),
        (
            "Memory",
            process.resident.map_or("–".to_owned(), bytes),
            "in use by the program".to_owned(),
        ),
        (
            "Descriptors",
            known(process.descriptors),
            format!("of {}", known(process.descriptor_limit)),
        ),
    ]
    .into_iter()
    .chain(certificate)
    {
        let _ = write!(page, "<div><h2>{name}</h2><b>{value}</b><p>{more}</p></div>");
    }
    page.push_str("</section>");
}

fn charts(page: &mut String, snapshot: &Snapshot) {
    page.push_str("<section class=\"charts\">");
    for (title, unit, keys, values) in [
        (
            "Messages a second",
            "",
            &[("a", "both ways")][..],
            &(|point: &Point, seconds: f64| vec![f64::from(point.messages) / seconds])
                as &dyn Fn(&Point, f64) -> Vec<f64>,
        ),
        ("Connections", "", &[("a", "phones"), ("b", "binaries")], &|point, _| {
            vec![f64::from(point.phones), f64::from(point.binaries)]
        }),
        ("Longest turn of the event loop", " ms", &[("a", "in each period")], &|point, _| {
            vec![f64::from(point.worst_turn) / 1000.0]
        }),
    ] {
        for (series, places, span) in [
            (&snapshot.hour, HISTORY_HOUR.points, ("60 min ago", "last hour")),
            (&snapshot.day, HISTORY_DAY.points, ("24 h ago", "last day")),
        ] {
            chart(page, (title, unit), keys, span, places, series, values);
        }
    }
    page.push_str("</section>");
}

fn chart(
    page: &mut String,
    (title, unit): (&str, &str),
    keys: &[(&'static str, &str)],
    (oldest, span): (&str, &str),
    places: usize,
    series: &Series,
    values: &dyn Fn(&Point, f64) -> Vec<f64>,
) {
    let last = series.points.len().saturating_sub(1);
    let rows: Vec<_> = series
        .points
        .iter()
        .enumerate()
        .map(|(index, point)| {
            // The last period is still in progress; what a moment holds says little.
            let whole = series.period.as_secs_f64();
            let begun = series.begun.max(series.period / 12).as_secs_f64();
            let seconds = if index == last { begun } else { whole };
            values(point, seconds)
        })
        .collect();
    let most = rows.iter().flatten().copied().fold(0.0, f64::max);
    let top = round_up(most);
    let lines: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(line, (class, _))| Line {
            class,
            values: rows.iter().map(|row| row[line]).collect(),
        })
        .collect();
    let label = format!("{title}, {span}: at most {}{unit}", number(most));
    let _ =
        write!(page, "<figure><figcaption><b>{title}</b> <span>{span}</span><span class=\"keys\">");
    for (class, key) in keys {
        let _ = write!(page, " <i class=\"{class}\"></i>{key}");
    }
    let _ = write!(
        page,
        "</span></figcaption><div class=\"plot\"><span class=\"top\">{}{unit}</span>{}</div>\
         <div class=\"axis\"><span>{oldest}</span><span>now</span></div></figure>",
        number(top),
        draw(&lines, places, top, &label),
    );
}

fn refusals(page: &mut String, snapshot: &Snapshot) {
    page.push_str("<section class=\"refusals\"><h2>Refused in the last hour</h2>");
    let mut seen: Vec<_> = snapshot.refusals.iter().filter(|(_, count)| *count > 0).collect();
    seen.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    if seen.is_empty() {
        page.push_str("<p>Nobody.</p></section>");
        return;
    }
    page.push_str("<table>");
    for (kind, count) in seen {
        let _ = write!(page, "<tr><td>{}</td><td>{count}</td></tr>", kind.replace('_', " "));
    }
    page.push_str("</table></section>");
}

/// "3 days 4 h", "4 h 5 min", "17 s": the two largest units.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (1, hours, _) => format!("1 day {hours} h"),
        (days, hours, _) => format!("{days} days {hours} h"),
    }
}

/// By the wall clock of the start, which may have been wrong on a board without one.
fn date(since_1970: f64) -> String {
    let time = UNIX_EPOCH + Duration::try_from_secs_f64(since_1970).unwrap_or_default();
    let text = format!("{}", humantime::format_rfc3339_seconds(time));
    // To the minute.
    text.get(..16).unwrap_or_default().replace('T', " ") + " UTC"
}

fn bytes(count: u64) -> String {
    ByteSize::b(count).to_string()
}

fn turn(time: Duration) -> String {
    match time.as_micros() {
        micros @ 0..1000 => format!("{micros} µs"),
        micros @ 1000..1_000_000 => format!("{} ms", number(micros as f64 / 1000.0)),
        micros => format!("{} s", number(micros as f64 / 1e6)),
    }
}

fn rate(value: f64) -> String {
    number(value)
}

/// With as many digits as tell something.
fn number(value: f64) -> String {
    let digits = match value {
        value if value >= 10.0 => 0,
        value if value >= 1.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

const STYLE: &str = include_str!("page.css");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::snapshot::tests::fresh;

    #[test]
    fn numbers_and_times_are_short() {
        for (value, text) in
            [(0.0, "0"), (0.034, "0.03"), (1.0, "1"), (1.26, "1.3"), (20.0, "20"), (1234.5, "1234")]
        {
            assert_eq!(number(value), text);
        }
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3_700, "1 h 1 min"),
            (90_000, "1 day 1 h"),
            (864_000, "10 days 0 h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(date(0.0), "1970-01-01 00:00 UTC");
        assert_eq!(turn(Duration::from_micros(1500)), "1.5 ms");
    }

    #[test]
    fn the_page_has_no_script_and_names_no_other_place() {
        let page = render(&fresh(), "0123456789abcdef");
        assert!(!page.contains("<script") && !page.contains(" style=") && !page.contains("://"));
        assert!(page.contains("All is well") && page.contains("Nobody."));
        assert_eq!(page.matches("<svg").count(), 6);
    }

    #[test]
    fn problems_and_refusals_are_told() {
        let mut snapshot = fresh();
        snapshot.problems.push("something broke".to_owned());
        snapshot.refusals[0].1 = 7;
        let page = render(&snapshot, "n");
        assert!(page.contains("Something is wrong") && page.contains("<li>something broke</li>"));
        assert!(page.contains("<tr><td>malformed head</td><td>7</td></tr>"));
    }
}
