//! How leaving ended.

use std::process::{ExitCode, Termination};
use std::time::Duration;

use crate::connections::Cut;

/// How many of the requests that were cut off are told one by one, and how many of those that were left behind.
const TOLD: usize = 20;

/// How leaving ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Connections handed to a sibling, or to the next process.
    pub handed_over: usize,
    /// What was still there at T.
    pub cut: Vec<Cut>,
    /// What went on because of its client, or without end, and was cut for the sake of the others.
    pub left_behind: Vec<Cut>,
    /// Work that had to end before the process, and had not at T.
    pub unfinished: usize,
    /// Connections that could not be handed over.
    pub lost: usize,
    /// Nobody has told it to leave: it could not go on.
    pub failed: bool,
}

/// As what `main` gives: success, unless something was lost or cut.
impl Termination for Outcome {
    fn report(self) -> ExitCode {
        ExitCode::from(&self)
    }
}

impl From<&Outcome> for ExitCode {
    fn from(outcome: &Outcome) -> Self {
        if outcome.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl Outcome {
    /// Nothing was lost or cut for which the service is to blame, and somebody has told it to leave.
    pub(super) fn is_good(&self) -> bool {
        self.cut.is_empty() && self.unfinished == 0 && self.lost == 0 && !self.failed
    }

    pub(super) fn log(&self, took: Duration) {
        // Clients choose how many there are.
        for cut in self.cut.iter().take(TOLD).chain(self.left_behind.iter().take(TOLD)) {
            let Cut { peer, request, age, at_work } = cut;
            let method = request.as_ref().map(|(method, _)| method.as_str());
            let path = request.as_ref().map(|(_, path)| path);
            if *at_work {
                tracing::error!(%peer, method, path, ?age, "cut off at T: {cut}");
            } else {
                tracing::warn!(%peer, method, path, ?age, "left behind, as it waits for its client or has no end: {cut}");
            }
        }
        let Self { handed_over, cut, left_behind, unfinished, lost, failed: _ } = self;
        let (cut, left_behind) = (cut.len(), left_behind.len());
        if ExitCode::from(self) == ExitCode::SUCCESS {
            tracing::info!("left after {took:?}, {handed_over} connections handed over, {left_behind} left behind");
        } else {
            tracing::error!(
                "left after {took:?}, {handed_over} connections handed over, {left_behind} left behind, {lost} lost; \
                 {cut} requests and {unfinished} tasks cut off"
            );
        }
    }
}
