//! The report of a run: one HTML page with everything in it.
//!
//! Verdict, lifelines and tables are plain HTML made here, so they can be read without JavaScript; the
//! script in `report.html` draws the answers, which may be a hundred thousand. Whatever comes from the
//! record is escaped on its way into the page.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs, io,
    path::Path,
};

use serde_json::json;

use lab::record::{Restart, Scenario};

use crate::record::Record;

/// The page with a comment at each place to fill, which no escaped value can contain.
const PAGE: &str = include_str!("report.html");

/// The colours of the page. Those of the scenarios and of failures stay apart for readers with
/// deuteranopia and protanopia too: every pair by at least 16 in CIELAB. Print is always light.
pub const THEME: &str = "
:root{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#1c2128;--soft:#5d6570;--line:#e3e1dc;
--band:#1c212824;--good:#00695c;--bad:#c2330a;--c0:#117bcd;--c1:#e08a00;--c2:#1b9c71;--c3:#a13a94;
--c4:#45a5e0;--c5:#b19e4c;--c6:#46379e;--c7:#7a838f;--c8:#0b3d0b;--c9:#8b5e3c}
@media screen and (prefers-color-scheme:dark){
:root{--paper:#12151a;--card:#191d23;--ink:#e8e6e1;--soft:#9aa3ad;--line:#2c323a;
--band:#e8e6e129;--good:#4fc9b4;--bad:#ff7a4d;--c0:#66a0d7;--c1:#f6ac2a;--c2:#33c597;--c3:#b458a3;
--c4:#93d3f7;--c5:#efe36d;--c6:#9a93ff;--c7:#9ca8b7;--c8:#90d280;--c9:#b68167}}
";
/// How many of them are for scenarios; with one more scenario they begin again, and its marks are hollow.
pub const COLOURS: usize = 10;

/// The mark of a scenario in a legend.
fn swatch(index: usize) -> String {
    let class = if index < COLOURS { "" } else { " class=hollow" };
    format!(r#"<i{class} style="--c:var(--c{})"></i>"#, index % COLOURS)
}

/// Groups of failures listed; what is beyond is only counted.
const LISTED: usize = 60;

/// Writes the record as one self-contained HTML page.
pub fn write(record: &Record, path: &Path) -> io::Result<()> {
    fs::write(path, page(record))
}

/// The outcome in one line: `23 restarts. 412,308 answers. 0 lost. 0 connections closed.`
pub fn verdict(record: &Record) -> String {
    let parts = parts(record);
    let sentences: Vec<_> = parts.iter().map(|part| format!("{} {}.", count(part.number), part.what)).collect();
    sentences.join(" ")
}

struct Part {
    number: u64,
    what: &'static str,
    /// The promise is kept or broken by this number; `None` where it only says how much was tried.
    good: Option<bool>,
}

fn parts(record: &Record) -> Vec<Part> {
    let totals = record.totals();
    let restarts = record.restarts.len() as u64;
    let failed = record.restarts.iter().filter(|restart| !restart.ok).count() as u64;
    let tried = |number, one, many| Part { number, what: if number == 1 { one } else { many }, good: None };
    let promised = |number, one, many| Part {
        good: Some(number == 0 && totals.answered > 0 && restarts > 0),
        ..tried(number, one, many)
    };
    let mut parts = vec![tried(restarts, "restart", "restarts")];
    if failed > 0 {
        parts.push(promised(failed, "restart failed", "restarts failed"));
    }
    parts.push(tried(totals.answered, "answer", "answers"));
    parts.push(promised(totals.lost, "lost", "lost"));
    if totals.refused > 0 {
        parts.push(promised(totals.refused, "refused", "refused"));
    }
    parts.push(promised(totals.closed, "connection closed", "connections closed"));
    parts
}

fn page(record: &Record) -> String {
    let mut page = PAGE.to_owned();
    for (place, content) in [
        ("/*theme*/", THEME.into()),
        ("<!--title-->", format!("{} – {}", escape(subject(record)), verdict(record))),
        ("<!--about-->", about(record)),
        ("<!--verdict-->", headline(record)),
        ("<!--lede-->", lede(record)),
        ("<!--facts-->", facts(record)),
        ("<!--legend-->", legend(record)),
        ("<!--lifelines-->", lifelines(record)),
        ("<!--failures-->", failures(record)),
        ("<!--figures-->", figures(record)),
        ("<!--programs-->", programs(record)),
        ("<!--data-->", data(record)),
    ] {
        page = page.replace(place, &content);
    }
    page
}

/// Whose restarts these are.
fn subject(record: &Record) -> &str {
    record.peer.as_deref().unwrap_or(&record.service)
}

fn about(record: &Record) -> String {
    match &record.peer {
        Some(peer) => format!("For contrast: <b>{}</b> and its own graceful shutdown", escape(peer)),
        None => format!("Rehearsal of <b>{}</b>", escape(&record.service)),
    }
}

fn headline(record: &Record) -> String {
    let mut html = String::new();
    for part in parts(record) {
        let class = match part.good {
            None => "",
            Some(true) => " class=good",
            Some(false) => " class=bad",
        };
        let number = count(part.number);
        let _ = write!(html, "<span{class}><b>{number}</b> {}.</span> ", part.what);
    }
    html
}

fn lede(record: &Record) -> String {
    let totals = record.totals();
    let unanswered = totals.lost + totals.refused;
    let restarts = record.restarts.len();
    if restarts == 0 || totals.answered == 0 {
        return "Nothing was measured, so nothing is proven.".into();
    }
    let scene = format!(
        "{} that never retry went on with {} while <code>systemctl restart</code> ran {}",
        plural(totals.clients, "client"),
        plural(record.scenarios.len() as u64, "scenario"),
        if restarts == 1 { "once".into() } else { plural(restarts as u64, "time") },
    );
    match (&record.peer, totals.is_spotless()) {
        (Some(peer), false) => format!(
            "This is the contrast, and not this service: the same load and the same restarts on {}. \
             {scene}: <strong>{} not answered and {} closed without a word</strong>, {:.1} for each restart.",
            escape(peer),
            plural(unanswered, "request"),
            plural(totals.closed, "connection"),
            (unanswered + totals.closed) as f64 / restarts as f64,
        ),
        (Some(peer), true) => format!(
            "This is the contrast, and not this service: the same load and the same restarts on {}. \
             {scene}. This time it lost nothing.",
            escape(peer),
        ),
        (None, true) if totals.kept == 0 => format!("{scene}. Every request was answered."),
        (None, true) => format!(
            "{scene}. Every request was answered, and {} open since before the first restart \
             {} still open after the last.",
            plural(totals.kept, "connection"),
            if totals.kept == 1 { "was" } else { "were" },
        ),
        (None, false) => format!(
            "{scene}: <strong>{} not answered and {} closed without a word</strong>. \
             Each is marked in the picture and listed below it.",
            plural(unanswered, "request"),
            plural(totals.closed, "connection"),
        ),
    }
}

fn facts(record: &Record) -> String {
    let took = sorted(record.restarts.iter().map(milliseconds));
    let restart = match took[..] {
        [] => "–".into(),
        [only] => span(only),
        [.., slowest] => format!("{} (slowest {})", span(took[took.len() / 2]), span(slowest)),
    };
    let service = match &record.peer {
        Some(peer) => escape(peer),
        None => escape(&format!("{} {}", record.service, record.version)),
    };
    let stage = escape(&record.stage);
    let watched = span(record.seconds * 1000.0);
    let gate = match record.at_the_gate[..] {
        [] => String::new(),
        [nearest, ..] => {
            let median = record.at_the_gate[record.at_the_gate.len() / 2];
            let [nearest, median] = [nearest, median].map(|gap| count((gap * 1e6).round() as u64));
            format!(
                "<div title=\"Between the last request that an old process answered and the first that waited for its \
                 successor\"><dt>Asked at the gate</dt><dd>{median} µs apart (nearest {nearest} µs)</dd></div>"
            )
        }
    };
    // The script knows the reader's time zone.
    format!(
        "<div><dt>Service</dt><dd>{service}</dd></div>\
         <div><dt>Restarted by</dt><dd>{stage}</dd></div>\
         <div><dt>A restart took</dt><dd>{restart}</dd></div>\
         <div><dt>Watched for</dt><dd>{watched}</dd></div>{gate}\
         <div hidden><dt>On</dt><dd><time data-unix={}></time></dd></div>",
        record.started_unix,
    )
}

fn legend(record: &Record) -> String {
    let mut html = String::new();
    for (i, scenario) in record.scenarios.iter().enumerate() {
        let _ = write!(
            html,
            r#"<button type=button aria-pressed=true title="{}">{}{}</button>"#,
            escape(&scenario.about),
            swatch(i),
            escape(&scenario.name),
        );
    }
    html
}

/// For each scenario that holds on to connections a strand of lines through all restarts.
fn lifelines(record: &Record) -> String {
    let whole = record.seconds.max(f64::MIN_POSITIVE);
    let x = |at: f64| (at / whole * 1000.0).clamp(0.0, 1000.0);
    let bands = record.restarts.iter().fold(String::new(), |path, restart| {
        let (from, to) = (x(restart.at), x(restart.ready));
        format!("{path}M{from:.1} 0H{to:.1}V100H{from:.1}Z")
    });
    let mut html = String::new();
    for (i, scenario) in record.scenarios.iter().enumerate() {
        if !holds(record, scenario) {
            continue;
        }
        let (whole, torn) = strand(record, i, 10, x, [0.0, 100.0]);
        let _ = write!(
            html,
            "<li style=\"--c:var(--c{})\"><span>{}{}</span><b{}>{} of {} kept</b>\
             <svg viewBox=\"0 0 1000 100\" preserveAspectRatio=none aria-hidden=true>\
             <path class=band d=\"{bands}\"/><path d=\"{whole}\"/><path class=torn d=\"{torn}\"/></svg>",
            i % COLOURS,
            swatch(i),
            escape(&scenario.name),
            if scenario.kept < scenario.clients { " class=bad" } else { "" },
            count(scenario.kept),
            count(scenario.clients),
        );
    }
    if html.is_empty() {
        html.push_str("<li>No client of this run held on to a connection.");
    }
    html
}

fn failures(record: &Record) -> String {
    // What was seen, to how often and when first.
    let mut groups = BTreeMap::<_, (u64, f64)>::new();
    for failure in &record.failures {
        let group = groups.entry((&failure.kind, failure.scenario, &failure.what)).or_insert((0, failure.at));
        group.0 += 1;
        group.1 = group.1.min(failure.at);
    }
    if groups.is_empty() {
        return "<p>None: nothing lost, nothing refused, no connection closed.</p>".into();
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, (times, _))| Reverse(*times));
    let mut html = String::from("<ul class=failures>");
    for ((kind, scenario, what), (times, first)) in groups.iter().take(LISTED) {
        let scenario = record.scenarios.get(usize::from(*scenario));
        let _ = write!(
            html,
            "<li><b class=bad>{}&times; {}</b> <span>{}: {}</span> \
             <button type=button data-at={first}>first at {first:.2} s</button>",
            count(*times),
            escape(kind),
            escape(scenario.map_or("", |scenario| &scenario.name)),
            escape(what),
        );
    }
    html.push_str("</ul>");
    if groups.len() > LISTED {
        let _ = write!(html, "<p>And {} more kinds.</p>", groups.len() - LISTED);
    }
    html
}

fn figures(record: &Record) -> String {
    let row = |name: String, about: &str, counts: [u64; 7], latencies: [f64; 3]| {
        let mut html = format!("<tr><th scope=row>{name}<small>{}</small></th>", escape(about));
        let labels = ["Clients", "Answered", "Lost", "Refused", "Closed", "Opened", "Kept"];
        for (label, number) in labels.into_iter().zip(counts) {
            let bad = matches!(label, "Lost" | "Refused" | "Closed") && number > 0;
            let class = if bad { " class=bad" } else { "" };
            let _ = write!(html, "<td data-label={label}{class}>{}</td>", count(number));
        }
        for (label, ms) in ["Median", "99 %", "Slowest"].into_iter().zip(latencies) {
            let shown = if ms > 0.0 { span(ms) } else { "–".into() };
            let _ = write!(html, "<td data-label=\"{label}\">{shown}</td>");
        }
        html + "</tr>"
    };
    let mut html = String::from("<tbody>");
    for (i, s) in record.scenarios.iter().enumerate() {
        html += &row(
            format!("{}{}", swatch(i), escape(&s.name)),
            &s.about,
            [s.clients, s.answered, s.lost, s.refused, s.closed, s.opened, s.kept],
            [s.median_ms, s.p99_ms, s.slowest_ms],
        );
    }
    let t = record.totals();
    let slowest = record.scenarios.iter().map(|s| s.slowest_ms).fold(0.0, f64::max);
    html += "</tbody><tfoot>";
    html += &row(
        "Together".into(),
        "",
        [t.clients, t.answered, t.lost, t.refused, t.closed, t.opened, t.kept],
        [f64::NAN, f64::NAN, slowest],
    );
    html + "</tfoot>"
}

/// What became of the connections that other programs keep; nothing where there were none.
fn programs(record: &Record) -> String {
    if record.programs.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<h2 id=programs>Pools</h2><p>Connections that other programs keep to the service, by the kernel's account: open \
         since before the first restart, and still open after the last. What they complained of stands in their logs and \
         counters.</p><table aria-labelledby=programs><thead><tr><th scope=col>Program<th scope=col>Requests\
         <th scope=col>Connections before<th scope=col>Of these after<th scope=col>Connections after\
         <th scope=col>Complaints</tr></thead><tbody>",
    );
    for program in &record.programs {
        let complaints = program.complaints.len() as u64;
        let cells = [
            ("Requests", program.requests, false),
            ("Connections before", program.pooled, program.pooled == 0),
            ("Of these after", program.survived, program.survived < program.pooled),
            ("Connections after", program.at_the_end, false),
            ("Complaints", complaints, complaints > 0),
        ];
        let _ = write!(html, "<tr><th scope=row>{}", escape(&program.name));
        for complaint in program.complaints.iter().take(LISTED) {
            let _ = write!(html, "<small>{}</small>", escape(complaint));
        }
        html.push_str("</th>");
        for (label, number, bad) in cells {
            let class = if bad { " class=bad" } else { "" };
            let _ = write!(html, "<td data-label=\"{label}\"{class}>{}</td>", count(number));
        }
        html.push_str("</tr>");
    }
    html + "</tbody></table>"
}

/// What the script draws from, as compact as it can be: integers, and one flat list of answers for each
/// scenario (tenths of a millisecond since the start, then microseconds of latency).
fn data(record: &Record) -> String {
    let mut answers = vec![Vec::new(); record.scenarios.len()];
    for answer in &record.answers {
        if let Some(list) = answers.get_mut(usize::from(answer.scenario)) {
            list.push((answer.at * 1e4).round() as i64);
            list.push((f64::from(answer.ms) * 1e3).round() as i64);
        }
    }
    let scenarios: Vec<_> = record.scenarios.iter().map(|scenario| &scenario.name).collect();
    let data = json!({
        "seconds": record.seconds,
        "answered": record.totals().answered,
        "restarts": record.restarts,
        "scenarios": scenarios,
        "answers": answers,
        "failures": record.failures,
    });
    // Inside a script element only `<` can end it or open a comment.
    data.to_string().replace('<', "\\u003c")
}

/// Whether the clients of a scenario hold on to a connection: some lived through everything, or, where the
/// server closed them, no client opened many more than the restarts account for.
pub fn holds(record: &Record, scenario: &Scenario) -> bool {
    let fair = 2 * (record.restarts.len() as u64 + 1) * scenario.clients;
    scenario.kept > 0 || (scenario.closed > 0 && scenario.opened <= fair)
}

/// The connections of a scenario as two SVG paths of parallel lines: whole for the share that was kept,
/// torn for the rest, cut wherever the server closed one.
pub fn strand(
    record: &Record,
    index: usize,
    most: u64,
    x: impl Fn(f64) -> f64,
    [top, height]: [f64; 2],
) -> (String, String) {
    let scenario = &record.scenarios[index];
    let clients = scenario.clients.max(scenario.kept).max(1);
    let lines = clients.min(most);
    // Rounded down, so that even one closed connection shows.
    let kept = lines * scenario.kept / clients;
    let (start, stop) = (x(0.0), x(record.seconds));
    let cuts = record
        .failures
        .iter()
        .filter(|failure| usize::from(failure.scenario) == index && failure.kind == "closed")
        .map(|failure| x(failure.at))
        .filter(|cut| start < *cut && *cut < stop);
    let cuts = apart(cuts, 11);
    let (mut whole, mut torn) = (String::new(), String::new());
    for line in 0..lines {
        let y = top + (line as f64 + 1.0) * height / (lines as f64 + 1.0);
        let path = if line < kept { &mut whole } else { &mut torn };
        let _ = write!(path, "M{start} {y:.1}");
        if line >= kept {
            for cut in &cuts {
                let _ = write!(path, "H{}M{} {y:.1}", cut - 5, cut + 5);
            }
        }
        let _ = write!(path, "H{stop}");
    }
    (whole, torn)
}

/// The places in order and in whole pixels, without those nearer than `gap` to the one before.
pub fn apart(places: impl Iterator<Item = f64>, gap: i32) -> Vec<i32> {
    let places: BTreeSet<_> = places.map(|place| place.round() as i32).collect();
    let mut kept = Vec::<i32>::new();
    for place in places {
        if kept.last().is_none_or(|last| place - last >= gap) {
            kept.push(place);
        }
    }
    kept
}

/// How long a restart took.
pub fn milliseconds(restart: &Restart) -> f64 {
    (restart.ready - restart.at) * 1000.0
}

/// Those that are numbers, in order.
pub fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// 412308 as `412,308`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 client`, `1,234 clients`.
pub fn plural(number: u64, what: &str) -> String {
    format!("{} {what}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A time with the digits that matter: `0.42 ms`, `112 ms`, `5.0 s`.
pub fn span(ms: f64) -> String {
    match ms {
        _ if !ms.is_finite() => "–".into(),
        _ if ms < 1.0 => format!("{ms:.2} ms"),
        _ if ms < 10.0 => format!("{ms:.1} ms"),
        _ if ms < 999.5 => format!("{ms:.0} ms"),
        _ if ms < 9_950.0 => format!("{:.1} s", ms / 1000.0),
        _ => format!("{:.0} s", ms / 1000.0),
    }
}

/// Text for HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
#[rustfmt::skip]
#[path = "../unit/report.rs"]
mod tests;
