//! What a run of the lab found, as data and for a person at a terminal.
//!
//! Times are seconds since the run started unless a name says otherwise; latencies are milliseconds.

use std::fmt::{self, Write};

use serde::Serialize;

/// One `systemctl restart`.
#[derive(Debug, Clone, Serialize)]
pub struct Restart {
    /// When it was called.
    pub at: f64,
    /// When it returned: the new process is ready.
    pub ready: f64,
    pub ok: bool,
}

/// A kind of client, and what all the clients of that kind saw together.
#[derive(Debug, Clone, Default)]
pub struct Scenario {
    pub name: String,
    /// One sentence a reader understands without the source.
    pub about: String,
    pub clients: u64,
    /// Requests answered whole and correctly.
    pub answered: u64,
    /// Requests of which a byte was sent and that got no whole, correct answer.
    pub lost: u64,
    /// Connects that were refused or reset.
    pub refused: u64,
    /// Connections that the server closed without having said so in a response.
    pub closed: u64,
    /// Connections opened.
    pub opened: u64,
    /// Connections open since before the first restart and still open at the end.
    pub kept: u64,
    pub median_ms: f64,
    pub p99_ms: f64,
    pub slowest_ms: f64,
}

/// One answer's latency. May be thinned: of each hundredth of a second the slowest is kept, of the others a sample.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Which of the scenarios.
    pub scenario: u16,
    /// When the request was sent.
    pub at: f64,
    pub ms: f32,
}

/// Something that must not happen.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// Which of the scenarios.
    pub scenario: u16,
    pub at: f64,
    /// `lost`, `refused` or `closed`.
    pub kind: String,
    pub what: String,
}

impl Scenario {
    /// All of them together.
    pub fn all(scenarios: &[Self]) -> Self {
        let none = Self { name: "all".into(), ..Self::default() };
        scenarios.iter().fold(none, |sum, scenario| Self {
            clients: sum.clients + scenario.clients,
            answered: sum.answered + scenario.answered,
            lost: sum.lost + scenario.lost,
            refused: sum.refused + scenario.refused,
            closed: sum.closed + scenario.closed,
            opened: sum.opened + scenario.opened,
            kept: sum.kept + scenario.kept,
            ..sum
        })
    }

    /// Nothing lost, nothing refused, nothing closed.
    pub fn is_spotless(&self) -> bool {
        self.lost == 0 && self.refused == 0 && self.closed == 0
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, lost, refused, closed, .. } = self;
        write!(f, "{answered} answered, {lost} lost, {refused} refused, {closed} closed")
    }
}

/// Kinds of failures spelled out, at most.
pub const SPELLED_OUT: usize = 20;

/// What was restarted, on what, how often, and how long that took.
pub fn heading(service: &str, stage: &str, restarts: &[Restart], seconds: f64) -> String {
    let longest = restarts.iter().map(|restart| restart.ready - restart.at).fold(0.0, f64::max);
    let count = restarts.len();
    format!("\n{service} on {stage}: {count} restarts in {seconds:.0} s, the longest took {longest:.1} s\n\n")
}

/// The figures as a table, with the first failures below it.
pub fn table(scenarios: &[Scenario], failures: &[Failure]) -> String {
    let heads = ["", "clients", "answered", "lost", "refused", "closed", "kept", "median", "99 %", "slowest"];
    let mut rows = vec![heads.map(String::from)];
    for scenario in scenarios.iter().chain([&Scenario::all(scenarios)]) {
        // Not everything is timed.
        let latency = |ms| if scenario.slowest_ms > 0.0 { millis(ms) } else { String::new() };
        let Scenario { name, clients, answered, lost, refused, closed, kept, .. } = scenario;
        let [clients, answered, lost, refused, closed, kept] =
            [clients, answered, lost, refused, closed, kept].map(u64::to_string);
        let [median, p99, slowest] = [scenario.median_ms, scenario.p99_ms, scenario.slowest_ms].map(latency);
        rows.push([name.clone(), clients, answered, lost, refused, closed, kept, median, p99, slowest]);
    }
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
        let _ = writeln!(text, "      and {} other kinds of failure", kinds.len() - SPELLED_OUT);
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
