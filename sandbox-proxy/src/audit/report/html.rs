//! The page.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sandbox_core::audit::{AuditDecision, AuditEvent, AuditKind};

use super::gather::{Bar, Denial, Gathered, Sum, Table, is_failure, millis, target};
use super::show::{bytes, count, duration, moment, text};
use crate::audit::chain::Note;
use crate::audit::verify::{KeyCheck, Verified, VerifyError};
use crate::defence::holds;

const STYLE: &str = include_str!("style.css");

pub(super) fn write(
    out: &mut impl Write,
    path: &Path,
    verified: &Result<Verified, VerifyError>,
    gathered: Gathered,
) -> io::Result<()> {
    head(out)?;
    title(out, path, &gathered)?;
    verdict(out, verified)?;
    cards(out, &gathered)?;
    timeline(out, &gathered)?;
    hosts(out, &gathered)?;
    denials(out, &gathered.denials)?;
    writeln!(out, "<div class=\"columns\">")?;
    names(
        out,
        "Rules",
        "Rule",
        &gathered.rules,
        "(none: refused before any rule was asked)",
    )?;
    writeln!(out, "<div>")?;
    names(out, "Credentials", "Service", &gathered.credentials, "")?;
    names(out, "Sandboxes", "Sandbox", &gathered.sandboxes, "")?;
    writeln!(out, "</div></div>")?;
    latest(out, &gathered)?;
    notes(out, &gathered)?;
    writeln!(
        out,
        "<footer>Times are UTC. Bytes of requests are those of their bodies. Text from inside a sandbox is shown \
         with everything but printable ASCII escaped, and is cut after 1024 characters.</footer>\n</main></body></html>"
    )
}

fn head(out: &mut impl Write) -> io::Result<()> {
    let hash = BASE64_STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
    let policy =
        format!("default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'");
    let policy = if holds("audit-report-csp") {
        policy
    } else {
        String::new()
    };
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Audit report</title>\n<style>{STYLE}</style></head><body><main>"
    )
}

fn title(out: &mut impl Write, path: &Path, gathered: &Gathered) -> io::Result<()> {
    writeln!(out, "<h1>Audit report</h1>")?;
    let file = text(&path.display().to_string());
    match gathered.span {
        None => writeln!(
            out,
            "<p class=\"soft\"><code>{file}</code> &middot; no attempts</p>"
        ),
        Some((first, last)) => writeln!(
            out,
            "<p class=\"soft\"><code>{file}</code> &middot; {} to {} UTC ({})</p>",
            moment(first),
            moment(last),
            duration(last - first)
        ),
    }
}

fn verdict(out: &mut impl Write, verified: &Result<Verified, VerifyError>) -> io::Result<()> {
    match verified {
        Err(error) => writeln!(
            out,
            "<div class=\"verdict bad\"><strong>The log is not known to be what was written.</strong>\
             <p>{}</p><p class=\"soft\">Below is all that can be read, which may not be all that happened.</p></div>",
            text(&error.to_string())
        ),
        Ok(log) => {
            let files = if log.files == 1 { "one file" } else { "files" };
            let files = if log.files == 1 {
                files.to_owned()
            } else {
                format!("{} {files}", log.files)
            };
            writeln!(
                out,
                "<div class=\"verdict\"><strong>The log is as it was written</strong>: records {} to {}, in {files}.",
                count(log.first),
                count(log.head.seq)
            )?;
            let key = match log.key {
                KeyCheck::Checked => "Every line was made with the key.",
                KeyCheck::NotGiven => {
                    "The log has a key, which was not given: that its lines are of the key's holder was not checked."
                }
                KeyCheck::None => "The log has no key: whoever could write the file could have made it anew.",
            };
            let end = if log.is_closed {
                "It was closed in order."
            } else if log.torn_bytes > 0 {
                "Its last line is not finished: its program crashed, or is writing now."
            } else {
                "It was not closed: it is still written, its program crashed, or its end was removed."
            };
            writeln!(
                out,
                "<p class=\"soft\">{key} {end}{}</p><p class=\"soft small\">Head <code>{}</code></p></div>",
                match log.crashes {
                    0 => String::new(),
                    1 => " Once, a program went away without closing it.".to_owned(),
                    times => format!(" {} times, a program went away without closing it.", count(times)),
                },
                log.head
            )
        }
    }
}

fn cards(out: &mut impl Write, gathered: &Gathered) -> io::Result<()> {
    let totals = &gathered.sum.totals;
    writeln!(out, "<div class=\"cards\">")?;
    let mut card = |class: &str, value: String, what: &str| {
        writeln!(
            out,
            "<div class=\"card {class}\"><b>{value}</b><span class=\"soft\">{what}</span></div>"
        )
    };
    card("", count(totals.attempts()), "attempts")?;
    card("allowed", count(totals.allowed), "allowed")?;
    card("denied", count(totals.denied), "denied")?;
    card("failed", count(gathered.sum.failed), "allowed, then failed")?;
    card("", bytes(totals.bytes_out), "sent")?;
    card("", bytes(totals.bytes_in), "received")?;
    writeln!(out, "</div>")
}

/// Size of the timeline's picture, and of the room for its labels.
const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 46.0;
const BOTTOM: f64 = 22.0;
const TOP: f64 = 8.0;

fn timeline(out: &mut impl Write, gathered: &Gathered) -> io::Result<()> {
    let most = gathered.bars.iter().map(Bar::all).max().unwrap_or(0);
    if most == 0 {
        return Ok(());
    }
    writeln!(
        out,
        "<section><header><h2>Timeline</h2><span class=\"soft\">attempts per {}</span>\
         <span class=\"key allowed\">allowed</span><span class=\"key denied\">denied</span></header>\
         <div class=\"timeline\"><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"Attempts over time\">",
        step(gathered.step)
    )?;
    let top = round_up(most);
    let room = HEIGHT - BOTTOM - TOP;
    let height = |value: u64| value as f64 / top as f64 * room;
    let mut marks = vec![0, top / 2, top];
    marks.dedup();
    for mark in marks {
        let y = HEIGHT - BOTTOM - height(mark);
        writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            count(mark)
        )?;
    }
    let width = (WIDTH - LEFT) / gathered.bars.len() as f64;
    // A short log has few bars, which are not to be as wide as walls.
    let bar_width = (width * 0.82).min(40.0);
    for (index, bar) in gathered.bars.iter().enumerate() {
        if bar.all() == 0 {
            continue;
        }
        let from = gathered.start + gathered.step * index as u64;
        let x = LEFT + width * index as f64 + (width - bar_width) / 2.0;
        writeln!(
            out,
            "<g><title>{} UTC: {} allowed, {} denied</title>",
            moment(from),
            count(bar.allowed),
            count(bar.denied)
        )?;
        let mut base = HEIGHT - BOTTOM;
        for (class, value) in [("allowed", bar.allowed), ("denied", bar.denied)] {
            if value > 0 {
                // One among thousands is to be seen, too.
                let height = height(value).max(1.5);
                base -= height;
                writeln!(
                    out,
                    "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{base:.1}\" width=\"{bar_width:.1}\" height=\"{height:.1}\"/>"
                )?;
            }
        }
        writeln!(out, "</g>")?;
    }
    let labels = gathered.bars.len().min(6);
    let days = gathered
        .span
        .is_some_and(|(first, last)| first / 86_400_000 != last / 86_400_000);
    for label in 0..labels {
        let index = label * gathered.bars.len() / labels;
        let from = moment(gathered.start + gathered.step * index as u64);
        let shown = if days { from.get(..16) } else { from.get(11..) };
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT + width * index as f64 + (width - bar_width) / 2.0,
            HEIGHT - 6.0,
            shown.unwrap_or(&from)
        )?;
    }
    writeln!(out, "</svg></div></section>")
}

fn hosts(out: &mut impl Write, gathered: &Gathered) -> io::Result<()> {
    let mut all = std::collections::HashMap::<&str, Sum>::new();
    for (host, sum) in gathered.reached.rows.iter().chain(&gathered.refused.rows) {
        all.entry(host).or_default().join(sum);
    }
    let mut rows: Vec<_> = all.into_iter().collect();
    rows.sort_by(|(host, sum), (other_host, other)| {
        let by_count = other.totals.attempts().cmp(&sum.totals.attempts());
        by_count.then_with(|| host.cmp(other_host))
    });
    section(
        out,
        "Hosts",
        &format!("{} shown, most attempts first", count(rows.len() as u64)),
        &[
            ("all", "all"),
            ("only-allowed", "reached"),
            ("only-denied", "denied"),
            ("only-failed", "failed"),
            ("only-credential", "with credential"),
        ],
    )?;
    writeln!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th>Host</th><th class=\"n\">Attempts</th><th class=\"n\">Allowed</th>\
         <th class=\"n\">Denied</th><th class=\"n\">Failed</th><th class=\"n\">Sent</th><th class=\"n\">Received</th>\
         <th>Credential</th><th>Rule</th><th>Last</th></tr></thead><tbody>"
    )?;
    for (host, sum) in &rows {
        host_row(out, if host.is_empty() { "(not known)" } else { host }, sum)?;
    }
    for (table, what) in [
        (&gathered.reached, "(other hosts that were reached)"),
        (&gathered.refused, "(other hosts that were denied)"),
    ] {
        if table.is_over {
            host_row(out, what, &table.rest)?;
        }
    }
    writeln!(out, "</tbody></table></div></section>")
}

fn host_row(out: &mut impl Write, host: &str, sum: &Sum) -> io::Result<()> {
    let totals = &sum.totals;
    writeln!(
        out,
        "<tr class=\"{}\"><td class=\"wide mono\">{}{}</td>{}{}{}{}{}{}<td>{}</td><td class=\"wide mono\">{}</td>\
         <td class=\"when\">{}</td></tr>",
        classes(sum),
        text(host),
        share(totals.allowed, totals.denied),
        number("", totals.attempts()),
        number("allowed", totals.allowed),
        number("denied", totals.denied),
        number("failed", sum.failed),
        size(totals.bytes_out),
        size(totals.bytes_in),
        tags(&sum.credentials),
        list(&sum.rules),
        moment(sum.last)
    )
}

fn denials(out: &mut impl Write, table: &Table<Denial>) -> io::Result<()> {
    if table.rows.is_empty() {
        return Ok(());
    }
    section(
        out,
        "Denied",
        "what was asked for and refused, most often first",
        &[],
    )?;
    writeln!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th>Target</th><th>Request</th><th class=\"n\">Times</th><th>Rule</th>\
         <th>Why</th><th>Last</th></tr></thead><tbody>"
    )?;
    let mut row = |target: &str, request: &str, sum: &Sum, rule: &str, outcome: &str| {
        writeln!(
            out,
            "<tr class=\"is-denied\"><td class=\"wide mono\">{}</td><td class=\"wide text mono\"><div class=\"clamp\">{}</div></td>{}\
             <td class=\"wide mono\">{}</td><td class=\"wide text\">{}</td><td class=\"when\">{}</td></tr>",
            text(target),
            text(request),
            number("denied", sum.totals.denied),
            text(rule),
            text(outcome),
            moment(sum.last)
        )
    };
    for (denial, sum) in table.sorted() {
        let target = if denial.target.is_empty() {
            "(not known)"
        } else {
            &denial.target
        };
        let request = format!("{} {}", denial.method, denial.path);
        row(target, request.trim(), sum, &denial.rule, &denial.outcome)?;
    }
    if table.is_over {
        row("(others)", "", &table.rest, "", "")?;
    }
    writeln!(out, "</tbody></table></div></section>")
}

fn names(
    out: &mut impl Write,
    title: &str,
    what: &str,
    table: &Table<String>,
    unnamed: &str,
) -> io::Result<()> {
    if table.rows.is_empty() {
        return Ok(());
    }
    section(out, title, "", &[])?;
    writeln!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th>{what}</th><th class=\"n\">Allowed</th><th class=\"n\">Denied</th>\
         <th class=\"n\">Sent</th><th class=\"n\">Received</th></tr></thead><tbody>"
    )?;
    let mut row = |name: &str, sum: &Sum| {
        writeln!(
            out,
            "<tr class=\"{}\"><td class=\"wide mono\">{}</td>{}{}{}{}</tr>",
            classes(sum),
            text(name),
            number("allowed", sum.totals.allowed),
            number("denied", sum.totals.denied),
            size(sum.totals.bytes_out),
            size(sum.totals.bytes_in)
        )
    };
    for (name, sum) in table.sorted() {
        row(if name.is_empty() { unnamed } else { name }, sum)?;
    }
    if table.is_over {
        row("(others)", &table.rest)?;
    }
    writeln!(out, "</tbody></table></div></section>")
}

fn latest(out: &mut impl Write, gathered: &Gathered) -> io::Result<()> {
    if gathered.latest.is_empty() {
        return Ok(());
    }
    let shown = count(gathered.latest.len() as u64);
    section(
        out,
        "Latest attempts",
        &format!("the last {shown} to end, newest first"),
        &[
            ("all", "all"),
            ("only-allowed", "allowed"),
            ("only-denied", "denied"),
            ("only-failed", "failed"),
            ("only-credential", "with credential"),
        ],
    )?;
    writeln!(
        out,
        "<div class=\"scroll\"><table class=\"latest\"><thead><tr><th>Time</th><th>Sandbox</th><th>Attempt</th>\
         <th>Decision</th><th>Rule</th><th>Credential</th><th class=\"n\">Sent</th><th class=\"n\">Received</th>\
         <th class=\"n\">Took</th></tr></thead><tbody>"
    )?;
    for event in gathered.latest.iter().rev() {
        attempt(out, event)?;
    }
    writeln!(out, "</tbody></table></div></section>")
}

fn attempt(out: &mut impl Write, event: &AuditEvent) -> io::Result<()> {
    let is_denied = event.decision == AuditDecision::Denied;
    let mut sum = Sum::default();
    sum.totals.add(event);
    sum.failed = u64::from(is_failure(event));
    sum.credentials.extend(event.credential.clone());
    let what = match (event.kind, event.method.as_deref()) {
        (AuditKind::Lookup, Some(kind)) => format!("DNS {kind}"),
        (_, Some(method)) => method.to_owned(),
        (_, None) => String::new(),
    };
    let host = target(event);
    let host = if host.is_empty() { "(not known)" } else { &host };
    let attempts = match event.attempts {
        1 => String::new(),
        times => format!(" &times; {}", count(times)),
    };
    let status = event
        .status
        .map(|status| format!(" {status}"))
        .unwrap_or_default();
    let (class, decision) = if is_denied {
        ("denied", "denied")
    } else {
        ("allowed", "allowed")
    };
    writeln!(
        out,
        "<tr class=\"{}\"><td class=\"when\">{}</td><td class=\"mono\">{}</td><td class=\"wide text\"><div class=\"mono clamp\">{} {}{}{attempts}</div>{}</td>\
         <td><span class=\"tag {class}\">{decision}{status}</span></td><td class=\"wide mono\">{}</td><td>{}{}</td>{}{}\
         <td class=\"n\">{}</td></tr>",
        classes(&sum),
        moment(millis(event.time)),
        text(event.sandbox.as_str()),
        text(&what),
        text(host),
        text(event.path.as_deref().unwrap_or_default()),
        small(&event.outcome),
        text(&event.rule),
        tags(&sum.credentials),
        small(event.credential_reason.as_deref().unwrap_or_default()),
        size(event.bytes_out),
        size(event.bytes_in),
        duration(u64::try_from(event.duration.as_millis()).unwrap_or(u64::MAX))
    )
}

fn notes(out: &mut impl Write, gathered: &Gathered) -> io::Result<()> {
    section(out, "The log itself", "", &[])?;
    writeln!(out, "<ul>")?;
    if gathered.unknown > 0 {
        writeln!(
            out,
            "<li>{} lines could not be read as records; they are in no sum above.</li>",
            count(gathered.unknown)
        )?;
    }
    for note in &gathered.notes {
        let (time, what) = match note {
            Note::File { .. } => continue,
            Note::Start {
                time, in_order: true, ..
            } => (time, "opened".to_owned()),
            Note::Start {
                time, torn_bytes: 0, ..
            } => (time, "opened; the program before did not close it".to_owned()),
            Note::Start {
                time,
                torn_bytes,
                torn,
                ..
            } => (
                time,
                format!(
                    "opened; the program before crashed while it wrote a line, of which {torn_bytes} bytes were cut off: {}",
                    torn.as_deref().unwrap_or_default()
                ),
            ),
            Note::Stop { time } => (time, "closed".to_owned()),
            Note::Removed { time, file, last } => (
                time,
                format!("file {file}, up to record {last}, was removed to make room"),
            ),
            Note::Lost {
                time,
                allowed,
                denied,
            } => (
                time,
                format!(
                    "{allowed} allowed and {denied} denied attempts were counted only: the log could not keep up"
                ),
            ),
            Note::Failed { time, until, why } => (
                time,
                format!("could not be written until {}: {why}", moment(*until)),
            ),
        };
        writeln!(
            out,
            "<li><span class=\"when\">{}</span> {}</li>",
            moment(*time),
            text(&what)
        )?;
    }
    writeln!(out, "</ul></section>")
}

/// Opens a section; with what its rows can be chosen by, first all.
fn section(out: &mut impl Write, title: &str, hint: &str, filters: &[(&str, &str)]) -> io::Result<()> {
    write!(
        out,
        "<section><header><h2>{title}</h2><span class=\"soft\">{hint}</span>"
    )?;
    if !filters.is_empty() {
        write!(out, "<span class=\"filter\">")?;
        for (index, (class, label)) in filters.iter().enumerate() {
            let checked = if index == 0 { " checked" } else { "" };
            write!(
                out,
                "<label><input type=\"radio\" name=\"{title}\" class=\"{class}\"{checked}>{label}</label>"
            )?;
        }
        write!(out, "</span>")?;
    }
    writeln!(out, "</header>")
}

fn classes(sum: &Sum) -> String {
    let all = [
        ("is-allowed", sum.totals.allowed > 0),
        ("is-denied", sum.totals.denied > 0),
        ("is-failed", sum.failed > 0),
        ("has-credential", !sum.credentials.is_empty()),
    ];
    let set: Vec<_> = all
        .iter()
        .filter(|(_, is_set)| *is_set)
        .map(|(class, _)| *class)
        .collect();
    set.join(" ")
}

fn number(class: &str, value: u64) -> String {
    let class = if value == 0 { "zero" } else { class };
    format!("<td class=\"n {class}\">{}</td>", count(value))
}

fn size(value: u64) -> String {
    let class = if value == 0 { " zero" } else { "" };
    format!("<td class=\"n{class}\">{}</td>", bytes(value))
}

fn tags(names: &BTreeSet<String>) -> String {
    let tag = |name: &String| format!("<span class=\"tag credential\">{}</span>", text(name));
    names.iter().map(tag).collect::<Vec<_>>().join(" ")
}

/// A second line of a cell, if there is anything to say.
fn small(what: &str) -> String {
    if what.is_empty() {
        return String::new();
    }
    format!("<div class=\"soft small\">{}</div>", text(what))
}

fn list(names: &BTreeSet<String>) -> String {
    names
        .iter()
        .map(|name| text(name))
        .collect::<Vec<_>>()
        .join("<br>")
}

/// How much of it was allowed, as a picture.
fn share(allowed: u64, denied: u64) -> String {
    let all = allowed.saturating_add(denied).max(1) as f64;
    let width = allowed as f64 / all * 110.0;
    format!(
        "<svg class=\"share\" viewBox=\"0 0 110 5\" aria-hidden=\"true\"><rect class=\"ground\" width=\"110\" height=\"5\" rx=\"2\"/>\
         <rect class=\"allowed\" width=\"{width:.1}\" height=\"5\"/><rect class=\"denied\" x=\"{width:.1}\" \
         width=\"{:.1}\" height=\"5\"/></svg>",
        if denied > 0 { 110.0 - width } else { 0.0 }
    )
}

fn step(millis: u64) -> String {
    match millis {
        0..1000 => format!("{millis} ms"),
        1000..60_000 => format!("{} s", millis / 1000),
        60_000..3_600_000 => format!("{} min", millis / 60_000),
        3_600_000..86_400_000 => format!("{} h", millis / 3_600_000),
        _ => format!("{} days", millis / 86_400_000),
    }
}

/// The next number that is easy to read on an axis, and even.
fn round_up(most: u64) -> u64 {
    let mut unit = 1_u64;
    loop {
        for factor in [2, 4, 6, 10, 16] {
            let top = unit.saturating_mul(factor);
            if top >= most || top == u64::MAX {
                return top;
            }
        }
        unit = unit.saturating_mul(10);
    }
}

impl Bar {
    fn all(&self) -> u64 {
        self.allowed.saturating_add(self.denied)
    }
}

impl Sum {
    fn join(&mut self, other: &Self) {
        let (to, from) = (&mut self.totals, &other.totals);
        to.allowed = to.allowed.saturating_add(from.allowed);
        to.denied = to.denied.saturating_add(from.denied);
        to.bytes_out = to.bytes_out.saturating_add(from.bytes_out);
        to.bytes_in = to.bytes_in.saturating_add(from.bytes_in);
        self.failed = self.failed.saturating_add(other.failed);
        self.rules.extend(other.rules.iter().cloned());
        self.credentials.extend(other.credentials.iter().cloned());
        self.last = self.last.max(other.last);
    }
}
