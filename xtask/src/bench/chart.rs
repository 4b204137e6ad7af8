//! The proxy's benchmark as a picture for the README: one panel per figure, one bar per subject.

use std::fmt::Write as _;

use serde_json::Value;

/// Subjects in the order of their bars, and their class in the style.
const SUBJECTS: [(&str, &str); 6] = [
    ("direct", "direct"),
    ("ours-tunnel", "ours"),
    ("ours-intercept", "ours"),
    ("squid", "rival"),
    ("mitmproxy", "rival"),
    ("hudsucker", "rival"),
];

/// One figure: which rows, what they are multiplied by, and how they are told.
struct Panel {
    title: &'static str,
    better: &'static str,
    case: &'static str,
    metric: &'static str,
    factor: f64,
    digits: usize,
}

const fn panel(
    (title, better): (&'static str, &'static str),
    (case, metric): (&'static str, &'static str),
    (factor, digits): (f64, usize),
) -> Panel {
    Panel {
        title,
        better,
        case,
        metric,
        factor,
        digits,
    }
}

const MORE: &str = "more is better";
const LESS: &str = "less is better";
const PANELS: [Panel; 6] = [
    panel(
        ("Requests per second, HTTP/1.1", MORE),
        ("small-h1", "rate"),
        (1.0, 0),
    ),
    panel(
        ("Requests per second, HTTP/2", MORE),
        ("small-h2", "rate"),
        (1.0, 0),
    ),
    panel(
        ("Added median latency, µs", LESS),
        ("latency-h1", "added p50"),
        (1e3, 0),
    ),
    panel(
        ("Download of 1 GiB, MB/s", MORE),
        ("download-h1", "throughput"),
        (1.0, 0),
    ),
    panel(
        ("Processor seconds per GiB", LESS),
        ("download-h1", "cpu per GiB"),
        (1.0, 2),
    ),
    panel(
        ("Memory per idle tunnel, KiB", LESS),
        ("idle-1000", "memory per tunnel"),
        (1.0, 1),
    ),
];

const COLUMNS: usize = 2;
const PANEL_WIDTH: usize = 420;
const PANEL_HEIGHT: usize = 176;
const BAR_START: usize = 110;
const BAR_WIDTH: f64 = 230.0;
const BAR_STEP: usize = 22;

/// A bar this many times as long as the next one is cut, or nobody sees the others.
const OUTLIER: f64 = 4.0;

/// Colours that both of a reader's backgrounds leave readable; text follows the scheme.
const STYLE: &str = "
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 13px }
.note { fill: #656d76; font-size: 11px }
.name { text-anchor: end }
.ours { fill: #2f81f7 } .rival { fill: #9aa4af } .direct { fill: #57ab5a }
.cut { stroke: #ffffff; stroke-width: 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #8d96a0 } .rival { fill: #6e7681 } .cut { stroke: #0d1117 }
}
";

/// The picture, from the rows of `proxy.json`; `None` where they are no rows.
pub(super) fn draw(rows: &Value) -> Option<String> {
    let rows = rows.as_array()?;
    let height = PANELS.len().div_ceil(COLUMNS) * PANEL_HEIGHT;
    let width = COLUMNS * PANEL_WIDTH;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\" aria-label=\"The proxy compared with others\">\n<style>{STYLE}</style>\n"
    );
    for (at, panel) in PANELS.iter().enumerate() {
        let (x, y) = (at % COLUMNS * PANEL_WIDTH, at / COLUMNS * PANEL_HEIGHT);
        // Writing to a string cannot fail.
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        draw_panel(&mut svg, panel, rows);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

/// Whether every subject has a row: else it is no comparison to show.
pub(super) fn is_complete(rows: &Value) -> bool {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    SUBJECTS
        .iter()
        .all(|(subject, _)| value(rows, subject, "small-h1", "rate").is_some())
}

fn draw_panel(svg: &mut String, panel: &Panel, rows: &[Value]) {
    let _ = writeln!(
        svg,
        "<text class=\"title\" x=\"8\" y=\"20\">{} <tspan class=\"note\">({})</tspan></text>",
        panel.title, panel.better
    );
    let bars: Vec<_> = SUBJECTS
        .iter()
        .filter_map(|(subject, class)| {
            let value = value(rows, subject, panel.case, panel.metric)?;
            Some((*subject, *class, (value * panel.factor).max(0.0)))
        })
        .collect();
    let full = scale(bars.iter().map(|(_, _, value)| *value).collect());
    for (at, (subject, class, value)) in bars.into_iter().enumerate() {
        let y = 34 + at * BAR_STEP;
        let length = (value / full).min(1.0) * BAR_WIDTH;
        let middle = y + 12;
        let _ = writeln!(
            svg,
            "<text class=\"name\" x=\"{}\" y=\"{middle}\">{subject}</text>\
             <rect class=\"{class}\" x=\"{BAR_START}\" y=\"{y}\" width=\"{length:.1}\" height=\"15\" rx=\"2\"/>\
             <text x=\"{:.1}\" y=\"{middle}\">{}</text>",
            BAR_START - 8,
            BAR_START as f64 + length + 6.0,
            shown(value, panel.digits),
        );
        if value > full {
            let cut = BAR_START as f64 + BAR_WIDTH * 0.9;
            let _ = writeln!(
                svg,
                "<line class=\"cut\" x1=\"{:.1}\" y1=\"{}\" x2=\"{:.1}\" y2=\"{}\"/>",
                cut - 4.0,
                y + 17,
                cut + 4.0,
                y.saturating_sub(2)
            );
        }
    }
}

/// The value whose bar is as long as a bar can be.
fn scale(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.as_slice() {
        [] => 1.0,
        [.., next, most] if *next > 0.0 && *most > OUTLIER * next => next * 1.5,
        [.., most] => most.max(f64::MIN_POSITIVE),
    }
}

fn value(rows: &[Value], subject: &str, case: &str, metric: &str) -> Option<f64> {
    let is = |row: &Value, key: &str, text: &str| row.get(key).and_then(Value::as_str) == Some(text);
    rows.iter()
        .find(|row| is(row, "subject", subject) && is(row, "case", case) && is(row, "metric", metric))?
        .get("value")?
        .as_f64()
}

/// A number with its thousands apart.
fn shown(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(subjects: &[&str]) -> Value {
        let row = |subject: &&str| serde_json::json!({"subject": subject, "case": "small-h1", "metric": "rate", "unit": "requests/s", "value": 12345.6});
        subjects.iter().map(row).collect()
    }

    #[test]
    fn every_measured_subject_has_a_bar() {
        let svg = draw(&rows(&["direct", "squid"])).unwrap();
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains(">squid<") && svg.contains(">12,346<"), "{svg}");
    }

    #[test]
    fn only_all_subjects_together_are_a_comparison() {
        assert!(!is_complete(&rows(&["direct", "squid"])));
        assert!(is_complete(&rows(&SUBJECTS.map(|(name, _)| name))));
    }

    #[test]
    fn one_value_far_from_the_others_does_not_hide_them() {
        assert_eq!(scale(vec![1.0, 2.0, 100.0]), 3.0);
        assert_eq!(scale(vec![1.0, 2.0, 3.0]), 3.0);
    }
}
