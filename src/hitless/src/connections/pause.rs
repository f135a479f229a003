//! Pauses the connections and resumes them, waits until they have come to where they may be left, and keeps those that were
//! taken out of hyper until somebody takes them.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Gate;
use crate::connection::{Connection, QUIET};
use crate::parcel::Clean;

/// What keeps a moment from being calm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    None,
    /// A handler at work: the request timeout bounds it.
    Bounded,
    /// Nothing bounds it but its client: an upload, a streamed answer, a client that does not read, a WebSocket.
    Unbounded,
}

/// How far the gate is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    /// It is about to close: connections that have been quiet for a while are taken already.
    Thinning,
    Closed,
}

impl Gate {
    /// Stops accepting, and takes every connection from hyper that is clean or becomes so.
    pub(crate) fn close(&self) {
        self.set_flow(Flow::Closed);
        // A connection that is being accepted is let in first.
        drop(self.enter());
        self.wake();
    }

    /// Tells the clients of HTTP/2 to go, and waits until they have heard, for `patience` at most. Everybody is served
    /// meanwhile, by HTTP/2 too: a client has a round trip to make, or never hears.
    pub(crate) async fn tell_http2(&self, patience: Duration) {
        let began = Instant::now();
        self.telling.store(true, SeqCst);
        self.wake();
        let heard = self.wait_until(|gate| !gate.all().values().any(|connection| connection.is_told(began)));
        let _ = tokio::time::timeout(patience, heard).await;
    }

    /// Whether clients of HTTP/2 are to be told to go.
    pub(crate) fn is_telling(&self) -> bool {
        self.telling.load(SeqCst)
    }

    /// Takes the connections that have been quiet for a while, before the gate is closed; `patience` bounds it.
    ///
    /// Thousands of connections are not taken in a moment. Those who ask all the time are served meanwhile.
    pub(crate) async fn thin_out(&self, patience: Duration) {
        // Those that become quiet meanwhile are not woken, and not waited for.
        let Some(before) = Instant::now().checked_sub(QUIET) else { return };
        self.set_flow(Flow::Thinning);
        self.wake();
        let thinned = self.wait_until(|gate| !gate.all().values().any(|connection| connection.leaves_early(before)));
        let _ = tokio::time::timeout(patience, thinned).await;
    }

    pub(crate) fn is_thinning(&self) -> bool {
        self.flow.load(SeqCst) == Flow::Thinning as u8
    }

    /// Whether connections that were taken are given back to the listener.
    pub(crate) fn is_open(&self) -> bool {
        self.flow.load(SeqCst) == Flow::Open as u8
    }

    fn set_flow(&self, flow: Flow) {
        self.flow.store(flow as u8, SeqCst);
    }

    /// Goes on accepting, and gives the connections that were taken back to the listener.
    pub(crate) fn open(&self) {
        self.telling.store(false, SeqCst);
        self.set_flow(Flow::Open);
        self.wake();
    }

    fn wake(&self) {
        self.moved.notify_waiters();
        for connection in self.all().values() {
            connection.wake();
        }
    }

    /// Keeps the gate from closing while a connection is accepted.
    pub(crate) fn enter(&self) -> MutexGuard<'_, ()> {
        self.entering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.flow.load(SeqCst) == Flow::Closed as u8
    }

    /// What tells that the gate has moved, or that there is a connection to take back.
    pub(crate) fn moved(&self) -> &Notify {
        &self.moved
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

    /// Waits until every HTTP/1.1 connection was taken or has ended, and with `before` every HTTP/2 request that began
    /// until then.
    pub(crate) async fn taken(&self, before: Option<Instant>) {
        self.wait_until(|gate| !gate.all().values().any(|connection| connection.is_awaited(before))).await;
    }

    /// The same for every connection, except that those whose requests nothing bounds are waited for no longer than
    /// `patience`.
    pub(crate) async fn taken_but_for_unbounded(&self, patience: Duration) {
        self.wait_but_for_unbounded(patience, |connection| connection.is_awaited(None)).await;
    }

    /// Waits until no connection is `awaited` any more, and for `patience` at most for those whose requests nothing bounds.
    async fn wait_but_for_unbounded(&self, patience: Duration, awaited: impl Fn(&Connection) -> bool) {
        let began = Instant::now();
        self.wait_until(|gate| {
            let patient = began.elapsed() < patience;
            let holds = |one: &Connection| awaited(one) && (patient || one.is_bounded());
            !gate.all().values().any(holds)
        })
        .await;
    }

    /// Enters that nobody can connect any more.
    pub(crate) fn set_deaf(&self) {
        self.deaf.store(true, SeqCst);
    }

    /// Waits until nobody can connect, and hyper, told to end, would lose no request: it closes at once a connection
    /// from which it has not read a whole head.
    pub(crate) async fn heads_read(&self) {
        self.wait_until(|gate| gate.deaf.load(SeqCst) && !gate.all().values().any(Connection::is_expected)).await;
    }

    /// Waits until nothing is in flight any more, and for `unbounded` at most for what nothing bounds, or is still to be
    /// sent. Connections without a request have `goodbye` to end; those that only linger no longer than `unbounded`.
    pub(crate) async fn all_gone(&self, unbounded: Duration, goodbye: Duration) {
        self.wait_but_for_unbounded(unbounded, Connection::is_busy).await;
        let ended = self.wait_until(|gate| gate.all().values().all(|connection| connection.has_lingered(unbounded)));
        let _ = tokio::time::timeout(goodbye, ended).await;
        // Who did not hear of it in time may have asked meanwhile, by HTTP/2: that handler is waited for like any other.
        self.wait_but_for_unbounded(Duration::ZERO, Connection::is_busy).await;
    }

    /// Connections that were put aside meanwhile, as soon as there are some; `None` when every HTTP/1.1 connection was
    /// taken or has ended.
    pub(crate) async fn next_taken(&self) -> Option<Vec<Clean>> {
        let is_coming = |connection: &Connection| connection.is_awaited(None) || connection.is_taken();
        let has_some = |gate: &Self| !gate.aside().is_empty();
        // One lock after the other: a connection takes them the other way round.
        self.wait_until(|gate| has_some(gate) || !gate.all().values().any(is_coming)).await;
        Some(self.take()).filter(|taken| !taken.is_empty())
    }

    /// What tells that a connection has gone.
    pub(crate) fn gone(&self) -> &Notify {
        &self.gone
    }

    pub(crate) async fn wait_until(&self, done: impl Fn(&Self) -> bool) {
        loop {
            let mut gone = std::pin::pin!(self.gone.notified());
            gone.as_mut().enable();
            if done(self) {
                return;
            }
            // An HTTP/1.1 connection may stop being awaited without going, so look now and then in any case. And
            // thousands go at once: look again a moment after one has gone, not after each.
            let _ = tokio::time::timeout(Duration::from_millis(20), gone).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Puts connections aside: for the parcel, or for the listener while the gate is open.
    pub(crate) fn put(&self, connections: Vec<Clean>) {
        self.aside().extend(connections);
        if self.is_open() {
            self.moved.notify_waiters();
        }
    }

    /// The connections put aside so far.
    pub(crate) fn take(&self) -> Vec<Clean> {
        std::mem::take(&mut self.aside())
    }

    /// Some of the connections put aside so far, `most` at most, the last first.
    pub(crate) fn take_some(&self, most: usize) -> Vec<Clean> {
        let mut aside = self.aside();
        let kept = aside.len().saturating_sub(most);
        aside.split_off(kept)
    }

    /// The number of connections put aside, and not taken yet.
    pub fn put_aside(&self) -> usize {
        self.aside().len()
    }

    pub(crate) fn aside(&self) -> MutexGuard<'_, Vec<Clean>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
