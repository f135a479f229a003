//! For tests of a service within their own process: no signals, no service manager, and nothing of the environment.

use std::sync::Arc;

use tokio::task::JoinSet;

pub use super::connections::Connections;
use super::lifecycle::ShutdownTimeout;
pub use super::lifecycle::{Lifecycle, Reason};
use super::listener::Listener;
pub use super::listener::OVER_LIMIT;
use super::systemd::ListeningSocket;
use super::{Error, Handover, Limits};

/// A handover that is told to leave by `told`, and whose service cannot do without `machinery`.
///
/// # Errors
/// When the socket cannot be registered with the runtime.
pub fn handover(
    socket: impl Into<ListeningSocket>,
    timeout: ShutdownTimeout,
    limits: Limits,
    machinery: JoinSet<()>,
    told: impl Future<Output = Reason> + Send + 'static,
) -> Result<(Handover, Listener), Error> {
    let max_connections = limits.max_connections;
    let listener = Listener::new(vec![socket.into()], Arc::new(Connections::new(limits)), max_connections);
    let listener = listener.map_err(Error::Listen)?;
    Ok((Handover::new(Lifecycle::new(timeout), &listener, machinery, Vec::new(), told), listener))
}

/// The connections of a handover.
pub fn connections(handover: &Handover) -> Arc<Connections> {
    Arc::clone(handover.connections())
}

impl Connections {
    /// Whether there is no live connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
