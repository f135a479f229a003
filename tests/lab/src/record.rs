//! What a run of the lab found: everything the verdict and the report are made from.
//!
//! Times are seconds since the run started unless a name says otherwise; latencies are milliseconds.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One run: a service, the stage it stood on, the restarts it went through and what its clients saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
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

/// One `systemctl restart`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Restart {
    /// When it was called.
    pub at: f64,
    /// When it returned: the new process is ready.
    pub ready: f64,
    pub ok: bool,
}

/// A kind of client, and what all the clients of that kind saw together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Scenario {
    pub name: String,
    /// One sentence a reader understands without the source.
    pub about: String,
    pub clients: u32,
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

/// A program in front of the service, by its own account and by that of the kernel.
#[derive(Debug, Clone, Serialize, Deserialize)]
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

/// One answer's latency. May be thinned: of each hundredth of a second the slowest is kept, of the others a sample.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// Index into [`Record::scenarios`].
    pub scenario: u16,
    /// When the request was sent.
    pub at: f64,
    pub ms: f32,
}

/// Something that must not happen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// Index into [`Record::scenarios`].
    pub scenario: u16,
    pub at: f64,
    /// `lost`, `refused` or `closed`.
    pub kind: String,
    pub what: String,
}

/// The sums over all scenarios.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub clients: u64,
    pub answered: u64,
    pub lost: u64,
    pub refused: u64,
    pub closed: u64,
    pub opened: u64,
    pub kept: u64,
}

impl Totals {
    /// Sums scenarios up.
    pub fn of(scenarios: &[Scenario]) -> Self {
        scenarios.iter().fold(Self::default(), |sum, scenario| Self {
            clients: sum.clients + u64::from(scenario.clients),
            answered: sum.answered + scenario.answered,
            lost: sum.lost + scenario.lost,
            refused: sum.refused + scenario.refused,
            closed: sum.closed + scenario.closed,
            opened: sum.opened + scenario.opened,
            kept: sum.kept + scenario.kept,
        })
    }

    /// Nothing lost, nothing refused, nothing closed.
    pub fn spotless(&self) -> bool {
        self.lost == 0 && self.refused == 0 && self.closed == 0
    }
}

impl Record {
    pub fn totals(&self) -> Totals {
        Totals::of(&self.scenarios)
    }

    /// Nothing lost, refused or closed, every restart went well, and no program has anything to complain of.
    pub fn spotless(&self) -> bool {
        self.totals().spotless()
            && self.restarts.iter().all(|restart| restart.ok)
            && self.programs.iter().all(Program::is_content)
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, lost, refused, closed, .. } = self;
        write!(f, "{answered} answered, {lost} lost, {refused} refused, {closed} closed")
    }
}
