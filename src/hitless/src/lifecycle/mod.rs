//! The life of the process: ready, leaving, gone. One number governs the end, [`ShutdownTimeout`].

mod leave;
mod timeout;
mod to_next_process;
mod to_nobody;
mod to_siblings;
mod upkeep;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use crate::connections::{Connections, Counts};
use crate::sibling::{HandoverSocket, Siblings};
use crate::systemd;

pub use leave::Outcome;
pub use timeout::ShutdownTimeout;
pub use upkeep::{Reason, expire, failure, heed_drain, relieve, report, told_to_leave};

use upkeep::LastResort;

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
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    timeout: ShutdownTimeout,
    phase: watch::Receiver<Phase>,
    tasks: TaskTracker,
    /// As soon as there are any.
    connections: OnceLock<Arc<Connections>>,
    serving_since: OnceLock<Instant>,
}

impl Handle {
    /// Where the process is in its life.
    pub fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    /// Whether whoever is sent here now is served at once. A service that leaves is ready as long as that is so: it hands
    /// its connections over within a moment. On a host that is drained nobody is to be sent here.
    pub fn is_ready(&self) -> bool {
        matches!(self.phase(), Phase::Serving | Phase::Leaving { ready: true, .. }) && !self.is_drained()
    }

    /// Whether the operator has drained this host ([`Siblings::set_drained`](crate::Siblings::set_drained)).
    pub fn is_drained(&self) -> bool {
        self.0.connections.get().is_some_and(|connections| connections.is_drained())
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

    /// Since when the service is ready, if it is.
    pub fn serving_since(&self) -> Option<Instant> {
        self.0.serving_since.get().copied()
    }

    /// What connections and requests came to so far. To look at 10,000 connections takes a millisecond.
    pub fn counts(&self) -> Counts {
        self.0.connections.get().map(|connections| connections.all_counts()).unwrap_or_default()
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

/// Leads the process through its life.
#[derive(Debug)]
pub struct Lifecycle {
    handle: Handle,
    phase: watch::Sender<Phase>,
    quiesced: CancellationToken,
    siblings: Option<Siblings>,
    succession: Succession,
    last_resort: Option<LastResort>,
}

/// Whether another process follows this one, for which the service manager keeps the connections meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// Never: the listening sockets are this process' own. They, and perhaps the network that they are in, end with it.
    None,
    /// After every end, as far as this process can tell.
    Always,
    /// Not after a stop, which is told by `SIGTERM`, and a restart is not (`RestartKillSignal=`).
    AfterRestart,
}

impl Lifecycle {
    /// A life that is about to begin.
    pub fn new(timeout: ShutdownTimeout) -> Self {
        let (sender, phase) = watch::channel(Phase::Starting);
        let handle = Handle(Arc::new(Shared {
            timeout,
            phase,
            tasks: TaskTracker::new(),
            connections: OnceLock::new(),
            serving_since: OnceLock::new(),
        }));
        let quiesced = CancellationToken::new();
        Self { handle, phase: sender, quiesced, siblings: None, succession: Succession::None, last_resort: None }
    }

    /// The same, among siblings.
    pub fn among(self, siblings: Option<Siblings>) -> Self {
        Self { siblings, ..self }
    }

    /// The same, where the service manager starts another process afterwards.
    pub fn followed(self, succession: Succession) -> Self {
        Self { succession, ..self }
    }

    /// The same, with a thread that ends the process where nothing else does.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn with_last_resort(self) -> std::io::Result<Self> {
        let last_resort = LastResort::start(self.handle.0.timeout)?;
        Ok(Self { last_resort: Some(last_resort), ..self })
    }

    /// Who shares this instance's listening socket.
    pub fn siblings(&self) -> Option<Siblings> {
        self.siblings.clone()
    }

    /// What handlers and tasks see of it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The connections that the handle counts.
    pub(crate) fn counts(&self, connections: &Arc<Connections>) {
        self.handle.0.connections.get_or_init(|| Arc::clone(connections));
    }

    /// Resolves when axum may close what is left: no HTTP/1.1 connection is, that could have been handed over.
    pub fn quiesced(&self) -> WaitForCancellationFutureOwned {
        self.quiesced.clone().cancelled_owned()
    }

    /// Records that the service serves: siblings may hand their connections in from now on.
    pub fn serving(&self, connections: &Arc<Connections>) -> Option<HandoverSocket> {
        self.phase.send_replace(Phase::Serving);
        self.handle.0.serving_since.get_or_init(Instant::now);
        let handover_socket =
            self.siblings.as_ref().map(|siblings| siblings.listen(Arc::clone(connections))).transpose();
        systemd::ready();
        handover_socket.unwrap_or_else(|error| {
            tracing::error!("instances that leave cannot hand their connections to this one: {error}");
            None
        })
    }

    /// Tells whoever asks from now on whether to turn elsewhere.
    fn set_ready(&self, is_ready: bool) {
        self.phase.send_if_modified(|phase| match phase {
            Phase::Leaving { ready, .. } => std::mem::replace(ready, is_ready) != is_ready,
            Phase::Starting | Phase::Serving => false,
        });
    }
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../../tests/unit/lifecycle.rs"]
mod tests;
