//! What runs beside the service for as long as the process does: who hears signals, a last resort, and upkeep.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Handle, ShutdownTimeout};
use crate::connections::{Connections, Limits};
use crate::sibling::{HandoverSocket, Siblings};
use crate::systemd;

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

/// How long a program may go on after it has left: it may write its log, and drop a runtime one of whose threads is blocked.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// How long the threads of a runtime that is dropped may go on, where clients wait for the next process.
const THREADS_END_WITHIN: Duration = Duration::from_millis(100);

/// Ends the process a little after T even when the runtime no longer runs, because handlers block all its threads, even if they
/// did so before it was told to leave; and soon after it has left, even when something keeps `main` from returning.
#[derive(Debug)]
pub(super) struct LastResort(mpsc::UnboundedSender<Told>);

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Told {
    Leaving,
    Left {
        /// That went well.
        well: bool,
        /// Clients wait for the end of the process.
        awaited: bool,
    },
}

impl LastResort {
    /// Starts the thread. Later, there may be none to be had.
    ///
    /// # Errors
    /// When there is none, or it cannot hear signals.
    pub(super) fn start(timeout: ShutdownTimeout) -> io::Result<Self> {
        let (sender, told) = mpsc::unbounded_channel();
        // The service's own hears no signal while all its threads are blocked.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _within = runtime.enter();
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal)
        };
        let [terminate, interrupt, hangup] = signals;
        let signals = [terminate?, interrupt?, hangup?];
        std::thread::Builder::new().name("last resort".to_owned()).spawn(move || {
            if let Some(status) = runtime.block_on(end(timeout, told, signals)) {
                std::process::exit(status);
            }
        })?;
        Ok(Self(sender))
    }

    /// The process leaves from now on.
    pub(super) fn leaving(&self) {
        // Cannot fail, here and below: the thread waits for it.
        let _ = self.0.send(Told::Leaving);
    }

    /// The process has left, and that `well`: nothing keeps it any more. `awaited`: clients wait for its end.
    pub(super) fn left(&self, well: bool, awaited: bool) {
        let _ = self.0.send(Told::Left { well, awaited });
        // A task of this runtime: when it is dropped, so is this, and then the thread's messages end.
        let sender = self.0.clone();
        tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(sender);
        });
    }
}

/// Resolves when the process is to end, with its status; `None` when it never begins to leave.
pub(super) async fn end(
    timeout: ShutdownTimeout,
    mut told: mpsc::UnboundedReceiver<Told>,
    [mut terminate, mut interrupt, mut hangup]: [Signal; 3],
) -> Option<i32> {
    let mut leaves = tokio::select! {
        biased;
        told = told.recv() => told.map(|_| true)?,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        _ = hangup.recv() => false,
    };
    let limit = timeout.total() + ShutdownTimeout::MARGIN / 2;
    let mut until = Instant::now() + limit;
    let (well, awaited) = loop {
        let next = tokio::time::timeout_at(until, async {
            match told.recv().await {
                // Nobody leads it out any more.
                None if leaves => std::future::pending().await,
                next => next,
            }
        });
        match next.await {
            // It may have had to finish what it was at when the signal came.
            Ok(Some(Told::Leaving)) => (leaves, until) = (true, Instant::now() + limit),
            Ok(Some(Told::Left { well, awaited })) => break (well, awaited),
            Ok(None) => return None,
            Err(_) => {
                // Whoever reads it may have gone.
                let _ =
                    writeln!(io::stderr(), "the process did not end by T: handlers may block the runtime's threads");
                return Some(1);
            }
        }
    };
    let threads_end = async {
        while told.recv().await.is_some() {}
        tokio::time::sleep(if awaited { THREADS_END_WITHIN } else { ENDS_WITHIN }).await;
    };
    let _ = tokio::time::timeout(ENDS_WITHIN, threads_end).await;
    Some(i32::from(!well))
}

/// How often is looked at what the connections hold, at the least.
const RELIEVE_PAUSE: Duration = Duration::from_millis(100);

/// Resolves when one of the tasks ends that run for as long as the process does, and says so in the log.
pub async fn failure(machinery: &mut JoinSet<()>, handover_socket: &mut Option<HandoverSocket>) -> Reason {
    let closed = async {
        match handover_socket {
            Some(socket) => socket.ended().await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        Some(ended) = machinery.join_next() => ended,
        ended = closed => ended,
    };
    let why = ended.map_or_else(|error| error.to_string(), |()| "a task has ended".to_owned());
    tracing::error!("the service cannot go on, and leaves to be started anew: {why}");
    Reason::Failure
}

/// Keeps ending what has reached its limit.
pub async fn expire(connections: Arc<Connections>) {
    let Limits { header_timeout, body_timeout, send_timeout, idle_timeout, linger_timeout, .. } = *connections.limits();
    let shortest = header_timeout.min(body_timeout).min(send_timeout).min(idle_timeout).min(linger_timeout);
    let pause = (shortest / 8).clamp(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        tokio::time::sleep(pause).await;
        connections.expire();
    }
}

/// Keeps what the connections hold within its limit.
pub async fn relieve(connections: Arc<Connections>) {
    loop {
        connections.taken_in(RELIEVE_PAUSE).await;
        connections.relieve();
    }
}

/// How often an instance looks whether its host is drained.
const HEED_PAUSE: Duration = Duration::from_millis(250);

/// Keeps looking whether the operator has drained this host, from now on: who starts there is not ready for a moment.
pub fn heed_drain(connections: Arc<Connections>, siblings: Siblings) -> impl Future<Output = ()> {
    connections.set_drained(siblings.are_drained());
    async move {
        loop {
            tokio::time::sleep(HEED_PAUSE).await;
            connections.set_drained(siblings.are_drained());
        }
    }
}

/// Keeps telling the service manager how the service is, for `systemctl status` and scripts: "serving 12 connections;
/// 3456 requests, 2 failed".
pub async fn report(connections: Arc<Connections>, handle: Handle) {
    let mut told = String::new();
    let mut phase = handle.0.phase.clone();
    loop {
        let (answered, failed) = connections.counts();
        let drained = if handle.is_drained() { "drained, " } else { "" };
        let (now, count) = (handle.phase(), connections.len());
        let status = format!("{drained}{now} {count} connections; {answered} requests, {failed} failed");
        if status != told && systemd::status(&status) {
            told = status;
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), phase.changed()).await;
    }
}
