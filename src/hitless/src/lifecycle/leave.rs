//! How the process leaves, step by step. The steps have the numbers of the README's list, How a restart goes.

use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::{Lifecycle, Outcome, Phase, Reason, to_next_process};
use crate::connections::{Gate, Mode};
use crate::sibling::Door;
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
    pub async fn leave(&self, gate: &Gate, door: Option<Door>, reason: Reason, server: AbortHandle) -> Outcome {
        let since = Instant::now();
        let timeout = self.handle.0.timeout;
        let deadline = tokio::time::Instant::from_std(since + timeout.total());
        self.begin_to_leave(gate, door, reason, since).await;

        let mut outcome = Outcome { failed: reason == Reason::Failure, ..Outcome::default() };
        let mut parcel = None;
        // 0. Siblings get each connection as soon as it is clean. This keeps to T by itself: whoever stopped it would not
        //    know whose the connections on their way are.
        let given = self.to_siblings(gate, since, &mut outcome.handed_over).await;
        let in_time = tokio::time::timeout_at(deadline, async {
            let farewell = if given {
                // They have the others: nobody waits for what goes on here.
                Farewell { unbounded: timeout.total(), goodbye: timeout.sixth() }
            } else {
                // 1. and 2. Everything is served until a calm moment; then the connections are paused, and taken.
                match self.to_next_process(gate, since, reason, &mut parcel).await {
                    Ok(farewell) => farewell,
                    Err(nobody) => self.to_nobody(gate, since, reason, &nobody).await,
                }
            };
            // 3. axum ends what is left: HTTP/2.
            self.quiesced.cancel();
            gate.all_gone(farewell.unbounded, farewell.goodbye).await;
            self.handle.0.tasks.close();
            self.handle.0.tasks.wait().await;
        })
        .await;

        // 6. At T, whatever is left is cut, counted and logged.
        server.abort();
        (outcome.cut, outcome.left_behind) = gate.left().into_iter().partition(|cut| cut.at_work);
        if in_time.is_err() {
            outcome.unfinished = self.handle.0.tasks.len();
        }
        // 4. The clean sockets go into the parcel, and the process ends. (5. is the next process'.)
        let connections = gate.take();
        let count = connections.len();
        let packed = parcel.map_or(0, |parcel| to_next_process::pack(parcel, connections));
        outcome.handed_over += packed;
        outcome.lost = count - packed;
        outcome.log(since.elapsed());
        if let Some(last_resort) = &self.last_resort {
            last_resort.left(outcome.is_good());
        }
        outcome
    }

    /// Tells everybody whom it concerns that the process leaves, `since` when.
    async fn begin_to_leave(&self, gate: &Gate, door: Option<Door>, reason: Reason, since: Instant) {
        if let Some(last_resort) = &self.last_resort {
            last_resort.leaving();
        }
        let ready = self.siblings.is_some() || self.successor(reason).is_ok();
        self.phase.send_replace(Phase::Leaving { since, ready });
        gate.set_mode(Mode::HandingOver);
        systemd::stopping(self.handle.0.timeout.unit_stop());
        if let Some(door) = door {
            door.close().await;
        }
    }
}
