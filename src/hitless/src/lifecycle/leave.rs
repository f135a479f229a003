//! How the process leaves, step by step. The steps have the numbers of the README's list, How a restart goes.

use std::process::{ExitCode, Termination};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::{Lifecycle, Phase, Reason, to_next_process};
use crate::connections::{Connections, Cut, Mode};
use crate::sibling::HandoverSocket;
use crate::systemd;

/// How long what axum ends by itself is waited for.
pub(super) struct Farewell {
    /// What nothing bounds but its client.
    pub(super) unbounded: Duration,
    /// Connections without a request, whose clients are told goodbye.
    pub(super) goodbye: Duration,
}

impl Lifecycle {
    /// Leaves: hands the connections over, to a sibling or the next process, or retires them where there is nobody to
    /// take them. Ends at T.
    ///
    /// `server` is axum's: told by [`quiesced`](Self::quiesced) that it may end, it does not say when it has.
    pub async fn leave(
        &self,
        connections: &Connections,
        handover_socket: Option<HandoverSocket>,
        reason: Reason,
        server: AbortHandle,
    ) -> Outcome {
        let since = Instant::now();
        let timeout = self.handle.0.timeout;
        let deadline = tokio::time::Instant::from_std(since + timeout.total());
        self.begin_to_leave(connections, handover_socket, reason, since).await;

        let mut outcome = Outcome { failed: reason == Reason::Failure, ..Outcome::default() };
        let mut queue = None;
        // 0. Siblings get each connection as soon as it stands at a message boundary. This keeps to T by itself: whoever
        //    stopped it would not know whose the connections on their way are.
        let given = self.to_siblings(connections, since, &mut outcome.handed_over).await;
        let in_time = tokio::time::timeout_at(deadline, async {
            let farewell = if given {
                // They have the others: nobody waits for what goes on here.
                Farewell { unbounded: timeout.total(), goodbye: timeout.sixth() }
            } else {
                // 1. and 2. Everything is served until a calm moment; then the connections are paused, and detached.
                match self.to_next_process(connections, since, reason, &mut queue).await {
                    Ok(farewell) => farewell,
                    Err(nobody) => self.to_nobody(connections, since, reason, &nobody).await,
                }
            };
            // 3. axum ends what is left: HTTP/2.
            self.quiesced.cancel();
            connections.all_gone(farewell.unbounded, farewell.goodbye).await;
            while !self.handle.0.tasks.is_empty() {
                self.tasks_ended().await;
                // That may have taken its time, and a handler may begin such work as the last that it does.
                connections.handlers_ended().await;
            }
        })
        .await;

        // 6. At T, whatever is left is cut, counted and logged.
        server.abort();
        (outcome.cut, outcome.left_behind) = connections.left().into_iter().partition(|cut| cut.at_work);
        if in_time.is_err() {
            outcome.unfinished = self.handle.0.tasks.len();
        }
        // 4. The detached connections go into the queue, and the process ends. (5. is the next process'.)
        let detached = connections.take_parked();
        let count = detached.len();
        let queued = queue.map_or(0, |queue| to_next_process::fill(queue, detached));
        outcome.handed_over += queued;
        outcome.lost = count - queued;
        outcome.log(since.elapsed());
        if let Some(last_resort) = &self.last_resort {
            last_resort.left(outcome.is_good(), queued > 0);
        }
        outcome
    }

    /// Waits until there is no work that must end before the process.
    pub(super) async fn tasks_ended(&self) {
        // Closed or not, it takes more; but only of a closed one is it told that it is empty.
        self.handle.0.tasks.close();
        self.handle.0.tasks.wait().await;
    }

    /// Tells everybody whom it concerns that the process leaves, `since` when.
    async fn begin_to_leave(
        &self,
        connections: &Connections,
        handover_socket: Option<HandoverSocket>,
        reason: Reason,
        since: Instant,
    ) {
        if let Some(last_resort) = &self.last_resort {
            last_resort.leaving();
        }
        let ready = self.siblings.is_some() || self.successor(reason).is_ok();
        self.phase.send_replace(Phase::Leaving { since, ready });
        connections.set_mode(Mode::HandingOver);
        systemd::stopping(self.handle.0.timeout.unit_stop());
        if let Some(socket) = handover_socket {
            socket.close().await;
        }
    }
}

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
    fn is_good(&self) -> bool {
        self.cut.is_empty() && self.unfinished == 0 && self.lost == 0 && !self.failed
    }

    fn log(&self, took: Duration) {
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
