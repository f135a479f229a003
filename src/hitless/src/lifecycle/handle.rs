//! What handlers and background tasks see of the process' life.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::ShutdownTimeout;

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not ready yet.
    Starting,
    /// Ready.
    Serving,
    /// Told to leave, still serving (a lame duck).
    Leaving {
        /// When it was told.
        since: Instant,
        /// Whoever is sent here is served at once.
        ready: bool,
    },
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Leaving { .. } => "leaving",
        })
    }
}

/// What handlers and background tasks see of the process' life.
#[derive(Clone, Debug)]
pub struct Handle(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) timeout: ShutdownTimeout,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) tasks: TaskTracker,
}

impl Handle {
    /// Where the process is in its life.
    pub fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    /// Whether whoever is sent here now is served at once. A service that leaves is ready as long as that is so: it hands
    /// its connections over within a moment.
    pub fn is_ready(&self) -> bool {
        matches!(self.phase(), Phase::Serving | Phase::Leaving { ready: true, .. })
    }

    /// Waits until the process is told to leave.
    ///
    /// For what lasts: a stream of events ends, a WebSocket is closed with 1012 (service restart), a loop stops.
    pub async fn draining(&self) {
        let mut phase = self.0.phase.clone();
        // The sender outlives every handler; should it go, the process is leaving all the same.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Leaving { .. })).await;
    }

    /// How much of T is left, once the process was told to leave.
    pub fn remaining(&self) -> Option<Duration> {
        match self.phase() {
            Phase::Leaving { since, .. } => Some(self.0.timeout.total().saturating_sub(since.elapsed())),
            Phase::Starting | Phase::Serving => None,
        }
    }

    /// Runs work that must end before the process does. The process waits for it, until T.
    ///
    /// Work that goes on by itself has to watch [`draining`](Self::draining).
    pub fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.0.tasks.spawn(work)
    }
}
