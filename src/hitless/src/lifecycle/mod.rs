//! The life of the process: ready, leaving, gone. One number governs the end, [`ShutdownTimeout`].

mod handle;
mod last_resort;
mod leave;
mod outcome;
mod signals;
mod timeout;
mod to_next_process;
mod to_nobody;
mod to_siblings;
mod upkeep;

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use crate::connections::Gate;
use crate::sibling::{Door, Siblings};
use crate::systemd;

pub use handle::{Handle, Phase};
pub use outcome::Outcome;
pub use signals::{Reason, told_to_leave};
pub use timeout::ShutdownTimeout;
pub use upkeep::{expire, failure, relieve, report};

use handle::Shared;
use last_resort::LastResort;

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
        let handle = Handle(Arc::new(Shared { timeout, phase, tasks: TaskTracker::new() }));
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

    /// What handlers and tasks see of it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Resolves when axum may close what is left: no HTTP/1.1 connection is, that could have been handed over.
    pub fn quiesced(&self) -> WaitForCancellationFutureOwned {
        self.quiesced.clone().cancelled_owned()
    }

    /// Enters that the service serves, behind `gate`: siblings may hand their connections in, at the door.
    pub fn serving(&self, gate: &Arc<Gate>) -> Option<Door> {
        self.phase.send_replace(Phase::Serving);
        let door = self.siblings.as_ref().map(|siblings| siblings.open_door(Arc::clone(gate))).transpose();
        systemd::ready();
        door.unwrap_or_else(|error| {
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

#[cfg(all(test, feature = "proofs"))]
#[rustfmt::skip]
#[path = "../../tests/unit/lifecycle.rs"]
mod tests;
