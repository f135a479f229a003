//! What a rehearsal found: everything the report is made from.
//!
//! Times are seconds since the run started unless a name says otherwise; latencies are milliseconds.

use std::fmt::Write;

use lab::record::{Answer, Failure, Restart, SPELLED_OUT, Scenario, aligned, heading, table};

/// One run: a service, the stage it stood on, the restarts it went through and what its clients saw.
#[derive(Debug, Clone)]
pub struct Record {
    pub service: String,
    pub version: String,
    /// What restarted it: "Debian 12, systemd 252", or "stand-in for systemd".
    pub stage: String,
    /// The system it was compared with, if this run is such a comparison: "axum".
    pub peer: Option<String>,
    pub started_unix: u64,
    pub seconds: f64,
    pub restarts: Vec<Restart>,
    pub scenarios: Vec<Scenario>,
    /// Other people's programs that kept connections to the service.
    pub programs: Vec<Program>,
    /// For each restart in which that is known: seconds between the last request that the old process answered and the
    /// first that the new one did, in order of size.
    pub at_the_gate: Vec<f64>,
    pub answers: Vec<Answer>,
    pub failures: Vec<Failure>,
}

/// A program in front of the service, by its own account and by that of the kernel.
#[derive(Debug, Clone)]
pub struct Program {
    /// "nginx 1.22.1".
    pub name: String,
    /// Requests it passed on.
    pub requests: u64,
    /// Connections to the service before the first restart, how many of them were still there after the last, and how
    /// many there were then.
    pub pooled: u64,
    pub survived: u64,
    pub at_the_end: u64,
    /// What it complained of.
    pub complaints: Vec<String>,
}

impl Program {
    /// It had connections, has them still, and has nothing to complain of.
    pub fn is_content(&self) -> bool {
        self.requests > 0 && self.pooled > 0 && self.survived == self.pooled && self.complaints.is_empty()
    }
}

impl Record {
    pub fn totals(&self) -> Scenario {
        Scenario::all(&self.scenarios)
    }

    /// Nothing lost, refused or closed, every restart went well, and no program has anything to complain of.
    pub fn spotless(&self) -> bool {
        self.totals().is_spotless()
            && self.restarts.iter().all(|restart| restart.ok)
            && self.programs.iter().all(Program::is_content)
    }

    /// What a person at a terminal gets to read.
    pub fn verdict(&self) -> String {
        let subject = match &self.peer {
            Some(peer) => peer.clone(),
            None => format!("{} {}", self.service, self.version),
        };
        heading(&subject, &self.stage, &self.restarts, self.seconds)
            + &table(&self.scenarios, &self.failures)
            + &programs(&self.programs)
            + &at_the_gate(self).map(|sentence| format!("\n{sentence}\n")).unwrap_or_default()
    }
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
