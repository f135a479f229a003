//! How near to the closing of the gate requests were sent, seen from outside.
//!
//! Between the last request that the old process answered and the first that the new one did, the gate closed. The
//! nearer they were sent to each other, the nearer they were to it.

use lab::load::Note;

/// What clients saw of one restart, in seconds since the run began.
#[derive(Debug, Clone, Copy, Default)]
struct Edge {
    last_before: Option<f64>,
    first_after: Option<f64>,
}

/// Seconds between the last request before and the first after.
pub type Gap = f64;

/// What they saw of each restart.
#[derive(Debug, Default)]
pub struct Edges(Vec<Edge>);

impl Edges {
    /// What clients noted.
    pub fn of(notes: &[Note]) -> Self {
        let mut edges = Self::default();
        notes.iter().for_each(|&(restart, at, by_another)| edges.note(restart, at, by_another));
        edges
    }

    /// Enters a request that was sent at `at` in restart number `restart`, and whether the new process answered it.
    fn note(&mut self, restart: usize, at: f64, by_another: bool) {
        if self.0.len() <= restart {
            self.0.resize(restart + 1, Edge::default());
        }
        let edge = &mut self.0[restart];
        if by_another {
            edge.first_after = Some(edge.first_after.map_or(at, |first| first.min(at)));
        } else {
            edge.last_before = Some(edge.last_before.map_or(at, |last| last.max(at)));
        }
    }

    /// The gap of each restart in which there were both, in order of size. It is none where the two come in the wrong
    /// order: connections are taken one after the other, and these requests were sent meanwhile.
    pub fn gaps(&self) -> Vec<Gap> {
        let gap = |edge: &Edge| Some((edge.first_after? - edge.last_before?).max(0.0));
        let mut gaps: Vec<_> = self.0.iter().filter_map(gap).collect();
        gaps.sort_by(f64::total_cmp);
        gaps
    }
}

#[cfg(test)]
#[rustfmt::skip]
#[path = "../unit/gate.rs"]
mod tests;
