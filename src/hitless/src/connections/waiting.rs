//! Waits until connections have come to where they may be left, or have gone.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Gate;
use crate::connection::Connection;
use crate::parcel::Clean;

impl Gate {
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
}
