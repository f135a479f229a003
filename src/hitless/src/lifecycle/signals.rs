//! The signals that tell the process to leave.

use std::io::Write;

use tokio::signal::unix::{SignalKind, signal};

/// Why the process leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A stop by the service manager, or an operator: `SIGTERM`.
    Terminate,
    /// A developer's Ctrl-C: `SIGINT`. Quick.
    Interrupt,
    /// A restart by the service manager, or the terminal was closed: `SIGHUP`.
    Hangup,
    /// A task has ended that the service cannot do without: the process is to make way for another.
    Failure,
}

/// Handles the signals that tell the process to leave, and waits for the first of them. From then on a second one of
/// the same kind ends the process at once.
///
/// # Errors
/// When signals cannot be handled.
pub fn told_to_leave() -> std::io::Result<impl Future<Output = Reason> + Send + use<>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        let (reason, mut again) = tokio::select! {
            _ = terminate.recv() => (Reason::Terminate, terminate),
            _ = interrupt.recv() => (Reason::Interrupt, interrupt),
            _ = hangup.recv() => (Reason::Hangup, hangup),
        };
        tracing::info!("told to leave ({reason:?})");
        tokio::spawn(async move {
            again.recv().await;
            // Not by tracing: nobody writes after this what waits to be written.
            let _ = writeln!(std::io::stderr(), "told to leave a second time ({reason:?}): ending at once");
            std::process::exit(1);
        });
        reason
    })
}
