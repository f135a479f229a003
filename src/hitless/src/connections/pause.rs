//! Pauses the connections and resumes them, waits until they have come to where they may be left, and keeps those that were
//! detached until somebody takes them.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Connections;
use crate::connection::{Connection, QUIET};
use crate::queue::Detached;

/// What keeps a moment from being calm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    None,
    /// A handler at work: the request timeout bounds it.
    Bounded,
    /// Nothing bounds it but its client: an upload, a streamed answer, a client that does not read, a WebSocket.
    Unbounded,
}

/// How far the connections are paused, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Running,
    /// They are about to be paused: those that have been quiet for a while are detached already.
    DetachingIdle,
    /// Paused, and somebody else serves whoever is detached, and whoever comes: nobody waits.
    Giving,
    /// Paused, and everybody waits.
    Paused,
}

impl Connections {
    /// Stops accepting, and detaches every connection that stands at a message boundary, or comes to one.
    pub(crate) fn pause(&self) {
        self.pause_as(Flow::Paused);
    }

    /// The same, where siblings serve everybody meanwhile. Clients of HTTP/2 are told to go, which takes them as long as it
    /// takes.
    pub(crate) fn give(&self) {
        self.telling.store(true, SeqCst);
        self.pause_as(Flow::Giving);
    }

    fn pause_as(&self, flow: Flow) {
        self.set_flow(flow);
        // A connection that is being accepted is let in first.
        drop(self.admission());
        self.wake();
    }

    /// Tells the clients of HTTP/2 to go, and waits until they have heard, for `patience` at most. Everybody is served
    /// meanwhile, by HTTP/2 too: a client has a round trip to make, or never hears.
    pub(crate) async fn tell_http2(&self, patience: Duration) {
        let began = Instant::now();
        self.telling.store(true, SeqCst);
        self.wake();
        let heard = self.wait_until(|| !self.any(|connection| connection.is_told(began)));
        let _ = tokio::time::timeout(patience, heard).await;
    }

    /// Whether clients of HTTP/2 are to be told to go.
    pub(crate) fn is_telling(&self) -> bool {
        self.telling.load(SeqCst)
    }

    /// Detaches the connections that have been quiet for a while, before the others are paused; `patience` bounds it.
    ///
    /// Thousands of connections are not detached in a moment. Those who ask all the time are served meanwhile.
    pub(crate) async fn detach_idle(&self, patience: Duration) {
        // Those that become quiet meanwhile are not woken, and not waited for.
        let Some(before) = Instant::now().checked_sub(QUIET) else { return };
        self.set_flow(Flow::DetachingIdle);
        self.wake();
        let detached = self.wait_until(|| !self.any(|connection| connection.leaves_early(before)));
        let _ = tokio::time::timeout(patience, detached).await;
    }

    pub(crate) fn is_detaching_idle(&self) -> bool {
        self.flow.load(SeqCst) == Flow::DetachingIdle as u8
    }

    /// Whether connections that were detached are given back to the listener.
    pub(crate) fn is_running(&self) -> bool {
        self.flow.load(SeqCst) == Flow::Running as u8
    }

    fn set_flow(&self, flow: Flow) {
        self.flow.store(flow as u8, SeqCst);
    }

    /// Goes on accepting, and gives the connections that were detached back to the listener.
    pub(crate) fn resume(&self) {
        self.telling.store(false, SeqCst);
        self.set_flow(Flow::Running);
        self.wake();
    }

    fn wake(&self) {
        self.changed.notify_waiters();
        for connection in self.all().values() {
            connection.wake();
        }
    }

    /// Keeps a pause from beginning while a connection is accepted.
    pub(crate) fn admission(&self) -> MutexGuard<'_, ()> {
        self.admitting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.flow.load(SeqCst) >= Flow::Giving as u8
    }

    /// Whether the connections are paused, and nobody serves their clients meanwhile.
    pub(crate) fn keeps_waiting(&self) -> bool {
        self.flow.load(SeqCst) == Flow::Paused as u8
    }

    /// What tells that the connections were paused or resumed, or that there is one to take back.
    pub(crate) fn changed(&self) -> &Notify {
        &self.changed
    }

    /// What stands in the way of a calm moment: a request older than `calm`, or an upgraded connection.
    pub(crate) fn obstacle(&self, calm: Duration) -> Obstacle {
        let mut obstacle = Obstacle::None;
        for connection in self.all().values() {
            match connection.obstacle(calm) {
                Obstacle::Bounded => return Obstacle::Bounded,
                Obstacle::Unbounded => obstacle = Obstacle::Unbounded,
                Obstacle::None => {}
            }
        }
        obstacle
    }

    /// Waits until every HTTP/1.1 connection was detached or has ended, and with `before` every HTTP/2 request that began
    /// until then.
    pub(crate) async fn detached(&self, before: Option<Instant>) {
        self.wait_until(|| !self.any(|connection| connection.is_awaited(before))).await;
    }

    /// Waits until every client of HTTP/2 has gone that can go, with its answers.
    pub(crate) async fn http2_gone(&self) {
        self.wait_until(|| !self.any(Connection::may_ask_by_http2)).await;
    }

    /// As [`detached`](Self::detached) for every connection, except that those whose requests nothing bounds are waited for no
    /// longer than `patience`.
    pub(crate) async fn detached_but_for_unbounded(&self, patience: Duration) {
        self.wait_but_for_unbounded(patience, |connection| connection.is_awaited(None)).await;
    }

    /// Waits until no connection is `awaited` any more, and for `patience` at most for those whose requests nothing bounds.
    async fn wait_but_for_unbounded(&self, patience: Duration, awaited: impl Fn(&Connection) -> bool) {
        let began = Instant::now();
        self.wait_until(|| {
            let patient = began.elapsed() < patience;
            !self.any(|connection| awaited(connection) && (patient || connection.is_bounded(began)))
        })
        .await;
    }

    /// Records that nobody can connect any more.
    pub(crate) fn set_listeners_closed(&self) {
        self.listeners_closed.store(true, SeqCst);
    }

    /// Waits until nobody can connect, and hyper, told to end, would lose no request: it closes at once a connection
    /// from which it has not read a whole head.
    pub(crate) async fn heads_read(&self) {
        self.wait_until(|| self.listeners_closed.load(SeqCst) && !self.any(Connection::is_expected)).await;
    }

    /// Waits until nothing is in flight any more, and for `unbounded` at most for what nothing bounds, or is still to be
    /// sent. Connections without a request have `goodbye` to end; those that only linger no longer than `unbounded`.
    pub(crate) async fn all_gone(&self, unbounded: Duration, goodbye: Duration) {
        self.wait_but_for_unbounded(unbounded, Connection::is_busy).await;
        let ended = self.wait_until(|| !self.any(|connection| !connection.has_lingered(unbounded)));
        let _ = tokio::time::timeout(goodbye, ended).await;
        self.handlers_ended().await;
    }

    /// Waits for handlers at work: who did not hear in time may have asked meanwhile, by HTTP/2.
    pub(crate) async fn handlers_ended(&self) {
        self.wait_but_for_unbounded(Duration::ZERO, Connection::is_busy).await;
    }

    /// Connections that were parked meanwhile, as soon as there are some; `None` when every HTTP/1.1 connection was
    /// detached or has ended.
    pub(crate) async fn next_detached(&self) -> Option<Vec<Detached>> {
        let is_coming = |connection: &Connection| connection.is_awaited(None) || connection.is_detached();
        // One lock after the other: a connection takes them the other way round.
        self.wait_until(|| self.parked() > 0 || !self.any(is_coming)).await;
        Some(self.take_parked()).filter(|parked| !parked.is_empty())
    }

    /// What tells that a connection has gone.
    pub(crate) fn gone(&self) -> &Notify {
        &self.gone
    }

    /// Looks at the connections whenever some have gone, and in between. To count those that are waited for would cost each
    /// request; to look at 9,000 of them takes a process that leaves 0.7 ms.
    async fn wait_until(&self, done: impl Fn() -> bool) {
        loop {
            let mut gone = std::pin::pin!(self.gone.notified());
            gone.as_mut().enable();
            if done() {
                return;
            }
            // An HTTP/1.1 connection may stop being awaited without going, so look now and then in any case. And
            // thousands go at once: look again a moment after one has gone, not after each.
            let _ = tokio::time::timeout(Duration::from_millis(20), gone).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn any(&self, of_them: impl Fn(&Connection) -> bool) -> bool {
        self.all().values().any(of_them)
    }

    /// Keeps connections: for the handover queue, or while these here run, for the listener.
    pub(crate) fn park(&self, detached: Vec<Detached>) {
        self.lock_parked().extend(detached);
        if self.is_running() {
            self.changed.notify_waiters();
        }
    }

    /// The connections parked so far.
    pub(crate) fn take_parked(&self) -> Vec<Detached> {
        std::mem::take(&mut self.lock_parked())
    }

    /// Some of the connections parked so far, `most` at most, the last first.
    pub(crate) fn take_some_parked(&self, most: usize) -> Vec<Detached> {
        let mut parked = self.lock_parked();
        let kept = parked.len().saturating_sub(most);
        parked.split_off(kept)
    }

    /// The number of connections parked, and not taken yet.
    pub fn parked(&self) -> usize {
        self.lock_parked().len()
    }

    fn lock_parked(&self) -> MutexGuard<'_, Vec<Detached>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
