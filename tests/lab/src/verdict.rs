//! What a person at a terminal gets to read.

use std::fmt::Write;

use crate::record::{Failure, Program, Record, Scenario, Totals};

/// Kinds of failures spelled out, at most.
const SPELLED_OUT: usize = 20;

/// What became of a rehearsal.
pub fn table(record: &Record) -> String {
    let subject = match &record.peer {
        Some(peer) => peer.clone(),
        None => format!("{} {}", record.service, record.version),
    };
    let longest = record.restarts.iter().map(|restart| restart.ready - restart.at).fold(0.0, f64::max);
    format!(
        "\n{subject} on {}: {} restarts in {:.0} s, the longest took {:.1} s\n\n{}{}{}",
        record.stage,
        record.restarts.len(),
        record.seconds,
        longest,
        scenarios(&record.scenarios, &record.failures),
        programs(&record.programs),
        at_the_gate(record).map(|sentence| format!("\n{sentence}\n")).unwrap_or_default(),
    )
}

/// What became of the connections that other programs keep, and what these have to say.
fn programs(programs: &[Program]) -> String {
    if programs.is_empty() {
        return String::new();
    }
    let mut rows = vec![["", "requests", "pooled", "survived", "at the end", "complaints"].map(String::from)];
    for program in programs {
        rows.push([
            program.name.clone(),
            program.requests.to_string(),
            program.pooled.to_string(),
            program.survived.to_string(),
            program.at_the_end.to_string(),
            program.complaints.len().to_string(),
        ]);
    }
    let mut text = format!("\n{}", aligned(&rows));
    for program in programs {
        for complaint in program.complaints.iter().take(SPELLED_OUT) {
            let _ = writeln!(text, "      {}: {complaint}", program.name);
        }
    }
    text
}

/// How near to the handover clients asked.
pub fn at_the_gate(record: &Record) -> Option<String> {
    let gaps = &record.at_the_gate;
    let micros = |at: usize| gaps.get(at).map(|gap| (gap * 1e6).round());
    let (nearest, median, farthest) = (micros(0)?, micros(gaps.len() / 2)?, micros(gaps.len() - 1)?);
    Some(format!(
        "The last request that an old process answered and the first that waited for its successor were sent {median} µs \
         apart (median of {} restarts; the nearest {nearest} µs, the farthest {farthest} µs).",
        gaps.len()
    ))
}

/// The figures as a table, with the first failures below it.
pub fn scenarios(scenarios: &[Scenario], failures: &[Failure]) -> String {
    let mut rows = vec![
        ["", "clients", "answered", "lost", "refused", "closed", "kept", "median", "99 %", "slowest"].map(String::from),
    ];
    for scenario in scenarios {
        // A browser times nothing.
        let latency = |ms| if scenario.slowest_ms > 0.0 { millis(ms) } else { String::new() };
        rows.push([
            scenario.name.clone(),
            scenario.clients.to_string(),
            scenario.answered.to_string(),
            scenario.lost.to_string(),
            scenario.refused.to_string(),
            scenario.closed.to_string(),
            scenario.kept.to_string(),
            latency(scenario.median_ms),
            latency(scenario.p99_ms),
            latency(scenario.slowest_ms),
        ]);
    }
    let totals = Totals::of(scenarios);
    rows.push([
        "all".into(),
        totals.clients.to_string(),
        totals.answered.to_string(),
        totals.lost.to_string(),
        totals.refused.to_string(),
        totals.closed.to_string(),
        totals.kept.to_string(),
        String::new(),
        String::new(),
        String::new(),
    ]);
    aligned(&rows) + &listed(scenarios, failures)
}

/// What went wrong, alike things together, in the order they first happened.
fn listed(scenarios: &[Scenario], failures: &[Failure]) -> String {
    let mut kinds: Vec<(&Failure, usize)> = vec![];
    for failure in failures {
        let alike = |other: &Failure| {
            (other.scenario, &other.kind, &other.what) == (failure.scenario, &failure.kind, &failure.what)
        };
        match kinds.iter_mut().find(|(first, _)| alike(first)) {
            Some((_, times)) => *times += 1,
            None => kinds.push((failure, 1)),
        }
    }
    let mut text = String::from(if kinds.is_empty() { "" } else { "\n" });
    for (first, times) in kinds.iter().take(SPELLED_OUT) {
        let scenario = &scenarios[usize::from(first.scenario)].name;
        let _ =
            writeln!(text, "{times:5} {:7}  {scenario}: {} (first after {:.3} s)", first.kind, first.what, first.at);
    }
    if kinds.len() > SPELLED_OUT {
        let _ = writeln!(text, "      and {} other kinds of failure: see the report", kinds.len() - SPELLED_OUT);
    }
    text
}

/// Rows of cells as columns: the first to the left, the others to the right.
pub fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let mut line = format!("{:<width$}", row[0], width = width(0));
        for (column, cell) in row.iter().enumerate().skip(1) {
            let _ = write!(line, "  {cell:>width$}", width = width(column));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

pub fn millis(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}
