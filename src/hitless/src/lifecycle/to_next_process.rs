//! The second way to leave: to the next process. The service manager keeps the connections until it is there.
//!
//! ```text
//! the empty queue goes into the service manager's store: else nobody comes for it
//! a calm moment is waited for, for T/3 at most       everything is served
//! clients of HTTP/2 are told to go                   everything is served
//! idle connections are detached                      everything else is served
//! pause: the others are detached, each at its next   everybody waits: 100 ms, or it was no calm moment after all
//! message boundary
//! ```

use std::io;
use std::time::{Duration, Instant};

use super::leave::Farewell;
use super::{Lifecycle, Reason, Succession};
use crate::connections::{Connections, Obstacle};
use crate::queue::{Detached, HandoverQueue};

/// How long connections that are paused wait for a request that nothing bounds but its client.
pub(super) const UNBOUNDED: Duration = Duration::from_millis(100);

/// The same beside handlers at work, for which everybody waits in any case: what goes on has not been waited for yet.
const UNBOUNDED_BESIDE_WORK: Duration = Duration::from_millis(400);

/// How long clients of HTTP/2 that are told to go have to hear, before the connections are paused. In the pause they have [`CALM`]
/// more.
const HEARS_WITHIN: Duration = Duration::from_millis(200);

/// A calm moment is one at which every request in flight began, and ends, within this time.
pub(super) const CALM: Duration = Duration::from_millis(100);

/// When the connections are paused.
enum Moment {
    /// All requests in flight are short ones.
    Calm,
    /// No calm moment came in time. Handlers are at work, or only what nothing bounds goes on.
    Last { at_work: bool },
}

impl Lifecycle {
    /// Opens a `queue` where another process follows, and detaches the connections that go into it.
    ///
    /// # Errors
    /// When nobody comes for it, or nobody keeps it, with the reason. The connections are then served on.
    pub(super) async fn to_next_process(
        &self,
        connections: &Connections,
        since: Instant,
        reason: Reason,
        queue: &mut Option<HandoverQueue>,
    ) -> io::Result<Farewell> {
        self.successor(reason)?;
        // It waits for the service manager, which may be busy with itself, and requests are still served.
        // Siblings may have taken their time, and where it does not answer somebody is to be told so.
        let timeout = self.handle.0.timeout;
        let left = timeout.total().saturating_sub(since.elapsed());
        let opened = queue.insert(HandoverQueue::open(timeout.calm().min(left / 2)).await?);
        let paused = self.detach_all(connections, since).await;
        if let Err(lost) = opened.is_kept() {
            *queue = None;
            connections.resume();
            return Err(lost);
        }
        Ok(Farewell { unbounded: UNBOUNDED.saturating_sub(paused.elapsed()), goodbye: UNBOUNDED })
    }

    /// Whether there will be a process to hand connections over to.
    ///
    /// # Errors
    /// When nobody comes, with the reason.
    pub(super) fn successor(&self, reason: Reason) -> io::Result<()> {
        let nobody = match (self.succession, reason) {
            (Succession::None, _) => "no service manager keeps the listening sockets",
            (Succession::AfterRestart, Reason::Terminate) => {
                "the service is stopped. Unless its socket unit is stopped too, that still listens, and the next client \
                 starts the service again"
            }
            (Succession::Always | Succession::AfterRestart, _) => return Ok(()),
        };
        Err(io::Error::other(nobody))
    }

    /// Detaches every HTTP/1.1 connection, at a moment when that keeps nobody waiting. Gives the moment from which on
    /// everybody waits.
    ///
    /// That no request in flight is old does not tell how long they will take. So this is a try: when they take long,
    /// the connections are resumed, those that were detached too.
    pub(super) async fn detach_all(&self, connections: &Connections, since: Instant) -> Instant {
        let timeout = self.handle.0.timeout;
        let paused = loop {
            let moment = self.moment(connections, since).await;
            let left = (timeout.total() - UNBOUNDED * 2).saturating_sub(since.elapsed());
            connections.tell_http2(HEARS_WITHIN.min(left)).await;
            match moment {
                Moment::Last { at_work } => break self.pause_for_good(connections, at_work).await,
                Moment::Calm => {
                    if let Some(paused) = self.try_to_pause(connections).await {
                        break paused;
                    }
                }
            }
            connections.resume();
            tokio::time::sleep(CALM).await;
        };
        tracing::info!("connections are paused after {:?}", since.elapsed());
        paused
    }

    /// Waits for a moment to pause the connections. For handlers at work until T/3, since their time is bounded and everybody
    /// waits for them then; for what nothing bounds until shortly before T.
    async fn moment(&self, connections: &Connections, since: Instant) -> Moment {
        let timeout = self.handle.0.timeout;
        loop {
            let obstacle = self.obstacle(connections);
            let at_work = obstacle == Obstacle::Bounded;
            self.set_ready(!at_work || since.elapsed() < timeout.turn_away());
            let patience = if obstacle == Obstacle::Unbounded { timeout.last_pause() } else { timeout.calm() };
            if since.elapsed() >= patience {
                return Moment::Last { at_work };
            }
            if obstacle == Obstacle::None {
                return Moment::Calm;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What stands in the way of a calm moment: what the connections do, or work that must end before the process.
    fn obstacle(&self, connections: &Connections) -> Obstacle {
        match connections.obstacle(CALM) {
            Obstacle::None if !self.handle.0.tasks.is_empty() => Obstacle::Unbounded,
            obstacle => obstacle,
        }
    }

    /// Pauses the connections at a calm moment; `None` when it was none after all.
    pub(super) async fn try_to_pause(&self, connections: &Connections) -> Option<Instant> {
        if self.obstacle(connections) != Obstacle::None {
            return None;
        }
        connections.detach_idle(self.handle.0.timeout.total() / 30).await;
        let paused = pause(connections);
        let detached = async {
            connections.detached(Some(Instant::now())).await;
            // A handler may have begun it as the last that it did.
            self.tasks_ended().await;
        };
        let until = tokio::time::Instant::now() + CALM;
        tokio::time::timeout_at(until, detached).await.ok()?;
        // From here on there is no way back. So who has come by HTTP/2 too late to hear has the rest of this time to go, and who
        // goes on asking is to ask nothing that takes long.
        let _ = tokio::time::timeout_at(until, connections.http2_gone()).await;
        (connections.obstacle(CALM / 2) == Obstacle::None && self.handle.0.tasks.is_empty()).then_some(paused)
    }

    /// Pauses the connections where there is no way back.
    async fn pause_for_good(&self, connections: &Connections, at_work: bool) -> Instant {
        let paused = pause(connections);
        let patience = if at_work { UNBOUNDED_BESIDE_WORK } else { UNBOUNDED };
        let slowest = connections.slowest().map(|cut| cut.to_string()).unwrap_or_default();
        tracing::warn!("no calm moment: clients wait for what is in flight, above all {slowest}");
        let bound = self.handle.0.timeout.request();
        let _ = tokio::time::timeout(bound, connections.detached_but_for_unbounded(patience)).await;
        paused
    }
}

fn pause(connections: &Connections) -> Instant {
    tracing::debug!("pausing connections");
    let paused = Instant::now();
    connections.pause();
    paused
}

/// Fills the queue; gives how many connections got in.
pub(super) fn fill(queue: HandoverQueue, mut detached: Vec<Detached>) -> usize {
    let queued = queue.fill(&mut detached).unwrap_or_else(|(queued, error)| {
        tracing::error!("the handover queue takes {queued} of {} connections: {error}", detached.len());
        queued
    });
    // Their descriptors here end with the process, which is next: it would take 4 ms to close 10,000 one by one.
    std::mem::forget(detached);
    queued
}
