//! A picture of one restart, for a README.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt::Write;

use crate::record::Record;
use crate::report::{COLOURS, THEME, apart, count, escape, holds, milliseconds, plural, sorted, span, strand, verdict};

/// One typical restart as its clients saw it, as an SVG that needs nothing else: each answer a line from
/// the moment its request was sent to the moment it was whole, at the height of its latency; below them
/// the connections. Empty if no restart succeeded.
pub fn of(record: &Record) -> String {
    const LEFT: f64 = 212.0;
    const RIGHT: f64 = 826.0;
    const TOP: f64 = 112.0;
    const BOTTOM: f64 = 380.0;
    const ROW: f64 = 19.0;

    let mut restarts: Vec<_> = record.restarts.iter().filter(|restart| restart.ok).collect();
    restarts.sort_by(|a, b| milliseconds(a).total_cmp(&milliseconds(b)));
    let Some(restart) = restarts.get(restarts.len() / 2) else {
        return String::new();
    };
    let around = (2.0 * (restart.ready - restart.at)).max(0.2);
    let (from, to) = (restart.at - around, restart.ready + around);
    let x = |at: f64| LEFT + ((at - from) / (to - from)).clamp(0.0, 1.0) * (RIGHT - LEFT);
    let (began, ended) = (x(restart.at), x(restart.ready));

    let answers: Vec<_> = record
        .answers
        .iter()
        .map(|answer| (usize::from(answer.scenario), answer.at, f64::from(answer.ms).max(0.01)))
        .filter(|(_, at, ms)| *at < to && at + ms / 1000.0 > from)
        .collect();
    let latencies = sorted(answers.iter().map(|(_, _, ms)| *ms));
    let low = latencies.first().unwrap_or(&1.0).log10() - 0.15;
    let high = (latencies.last().unwrap_or(&1.0).log10() + 0.15).max(low + 1.0);
    let y = |ms: f64| BOTTOM - (ms.log10() - low) / (high - low) * (BOTTOM - TOP);

    let end = BOTTOM + 22.0 + ROW * record.scenarios.len() as f64;
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 960 {height}' role='img' font-size='13' \
         font-family='system-ui,-apple-system,Segoe UI,Roboto,sans-serif'><title>{verdict}</title>\
         <style>{THEME}.ink{{fill:var(--ink)}}.soft{{fill:var(--soft)}}.ray{{fill:none;stroke-linecap:round}}\
         </style><rect width='960' height='{height}' rx='10' style='fill:var(--card)'/>\
         <text class='ink' x='24' y='40' font-size='20' font-weight='600'>{title}</text>\
         <text class='soft' x='24' y='62'>Each mark is an answer, from its request to its last byte; the \
         higher, the slower. Shaded: the restart.</text>\
         <rect x='{began:.1}' y='{top}' width='{width:.1}' height='{tall}' style='fill:var(--band)'/>\
         <text class='ink' x='{middle:.1}' y='{label}' text-anchor='middle' font-weight='600'>{took}</text>",
        height = end + 52.0,
        verdict = verdict(record),
        title = match &record.peer {
            Some(peer) => format!("A restart of {}, seen by its clients", escape(peer)),
            None => "A restart, seen by its clients".into(),
        },
        top = TOP - 12.0,
        width = (ended - began).max(1.0),
        tall = end - TOP + 12.0,
        middle = (began + ended) / 2.0,
        label = TOP - 20.0,
        took = span(milliseconds(restart)),
    );
    for decade in low.ceil() as i32..=high.floor() as i32 {
        let ms = 10f64.powi(decade);
        let label = if ms < 1000.0 { format!("{ms} ms") } else { format!("{} s", ms / 1000.0) };
        let _ = write!(
            svg,
            "<path style='stroke:var(--line)' d='M{LEFT} {y:.1}H{RIGHT}'/>\
             <text class='soft' x='{}' y='{:.1}' text-anchor='end'>{label}</text>",
            LEFT - 12.0,
            y(ms) + 4.0,
            y = y(ms),
        );
    }

    let mut rays = vec![BTreeSet::new(); record.scenarios.len()];
    for (scenario, at, ms) in answers {
        if let Some(rays) = rays.get_mut(scenario) {
            // Whole pixels: what falls on the same ones is drawn once.
            let (start, stop) = (x(at).round() as i32, x(at + ms / 1000.0).round() as i32);
            rays.insert((y(ms).round() as i32, start, stop - start));
        }
    }
    let mut order: Vec<_> = (0..rays.len()).collect();
    order.sort_by_key(|&scenario| Reverse(rays[scenario].len()));
    for scenario in order {
        let path = rays[scenario]
            .iter()
            .fold(String::new(), |path, (y, start, length)| format!("{path}M{start} {y}h{length}"));
        let _ = write!(
            svg,
            "<path class='ray' style='stroke:var(--c{})' stroke-width='2' stroke-opacity='.75' d='{path}'/>",
            scenario % COLOURS,
        );
    }

    for (i, scenario) in record.scenarios.iter().enumerate() {
        let middle = BOTTOM + 22.0 + (i as f64 + 0.5) * ROW;
        let _ = write!(
            svg,
            "<circle cx='30' cy='{middle}' r='3' style='fill:{};stroke:var(--c{});stroke-width:2'/>\
             <text class='ink' x='42' y='{}'>{}</text>",
            if i < COLOURS { format!("var(--c{i})") } else { "none".into() },
            i % COLOURS,
            middle + 4.5,
            escape(&scenario.name),
        );
        if !holds(record, scenario) {
            let _ = write!(
                svg,
                "<path class='ray' style='stroke:var(--c{})' stroke-dasharray='0 7' d='M{LEFT} {middle}H{RIGHT}'/>",
                i % COLOURS,
            );
            continue;
        }
        let (whole, torn) = strand(record, i, 3, x, [middle - ROW / 2.0, ROW]);
        let _ = write!(
            svg,
            "<path class='ray' style='stroke:var(--c{})' d='{whole}'/>\
             <path class='ray' style='stroke:var(--bad)' d='{torn}'/>\
             <text class='ink' x='{}' y='{}'>{} of {} kept</text>",
            i % COLOURS,
            RIGHT + 12.0,
            middle + 4.5,
            count(scenario.kept),
            count(scenario.clients),
        );
    }
    let failures = record.failures.iter().map(|failure| failure.at);
    for cross in apart(failures.filter(|at| (from..to).contains(at)).map(x), 11) {
        let _ = write!(
            svg,
            "<path style='stroke:var(--bad)' stroke-width='2.5' d='M{} {}l8 8m0-8l-8 8'/>",
            cross - 4,
            TOP - 10.0,
        );
    }
    let _ = write!(
        svg,
        "<text class='ink' x='24' y='{foot}' font-weight='600'>{}</text>\
         <text class='soft' x='936' y='{foot}' text-anchor='end'>{}, {} at once</text></svg>",
        verdict(record),
        escape(&record.stage),
        plural(record.totals().clients, "client"),
        foot = end + 32.0,
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab::record::{Answer, Failure, Restart, Scenario};

    #[test]
    fn what_the_record_says_cannot_leave_its_place() {
        let evil = "</script><script>alert(1)</script>\"'&";
        let scenario = Scenario { name: evil.into(), about: evil.into(), clients: 1, kept: 1, ..Scenario::default() };
        for peer in [None, Some(evil.to_owned())] {
            let record = Record {
                service: evil.into(),
                version: evil.into(),
                stage: evil.into(),
                peer,
                started_unix: 0,
                seconds: 3.0,
                restarts: vec![Restart { at: 1.0, ready: 1.1, ok: true }],
                scenarios: vec![scenario.clone()],
                programs: vec![],
                at_the_gate: vec![],
                answers: vec![Answer { scenario: 0, at: 1.05, ms: 50.0 }],
                failures: vec![Failure { scenario: 0, at: 1.0, kind: evil.into(), what: evil.into() }],
            };
            let picture = of(&record);
            assert!(picture.starts_with("<svg") && !picture.contains("<script"), "{picture}");
        }
    }
}
