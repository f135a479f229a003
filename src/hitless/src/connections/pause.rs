//! Pauses the connections, and resumes them.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Gate;
use crate::connection::QUIET;

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
}
