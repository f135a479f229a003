//! What the service holds for clients, in bytes: answers that are not read, requests in flight, what was read of bodies and
//! heads and nobody wants yet.
//!
//! hyper takes of an answer whatever it is given, up to 400 kB in HTTP/1.1 and for each stream of HTTP/2, and
//! `axum::serve` does not let anybody set that. So an answer gives hyper a part only when those before have left, and each
//! part tells when it has: it is dropped. [`Connections`](super::connections::Connections) looks at the sum of all connections several times a
//! second. While that is large, answers give less, which slows down who reads slowly and cuts nobody off; beyond what it
//! may be, those are ended that have held most for longest.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use axum::body::Bytes;

use super::connection::Connection;

/// How much of an answer hyper gets ahead of its client, and while the sum is large.
const AHEAD: usize = 64 << 10;
const AHEAD_WHEN_TIGHT: usize = 8 << 10;

/// How much is read at a time, and while the sum is large. hyper doubles its buffer when a read fills it, up to 400 kB: one
/// byte less keeps it at this size.
pub(super) const READ: usize = (16 << 10) - 1;
pub(super) const READ_WHEN_TIGHT: usize = (8 << 10) - 1;

/// What a request in flight takes, measured, with an answer that is small ([`SMALL`]).
pub(super) const REQUEST: usize = 6 << 10;

/// What a part of a request's body takes beside its bytes, which may be one.
pub(super) const PART: usize = 128;

/// What a part of an answer takes beside its bytes, here and in hyper.
const ANSWER_PART: usize = 300;

/// The largest answer that is not counted by itself.
pub(super) const SMALL: usize = 4 << 10;

/// How much hyper has of an answer that its client has not.
#[derive(Debug)]
pub(super) struct Unread(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes: AtomicUsize,
    connection: Connection,
    /// Of the answer's task, while it waits until a part has left.
    waker: Mutex<Option<Waker>>,
}

impl Unread {
    pub(super) fn new(connection: Connection) -> Self {
        Self(Arc::new(Shared { bytes: AtomicUsize::new(0), connection, waker: Mutex::default() }))
    }

    /// Waits until hyper may have more of the answer.
    pub(super) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let most = if self.0.connection.is_tight() { AHEAD_WHEN_TIGHT } else { AHEAD };
        let has_room = || self.0.bytes.load(Relaxed) < most;
        if has_room() {
            return Poll::Ready(());
        }
        *self.0.waker() = Some(cx.waker().clone());
        // A part may have left before the waker was there.
        if has_room() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The same bytes, which are counted until hyper drops them.
    pub(super) fn count(&self, data: Bytes) -> Bytes {
        // What others hold too, such as a file that is kept in memory, is not there once more for each client.
        let size = if data.is_unique() { data.len() } else { data.len().min(AHEAD) } + ANSWER_PART;
        self.0.bytes.fetch_add(size, Relaxed);
        self.0.connection.unread().fetch_add(size, Relaxed);
        Bytes::from_owner(Part { data, size, answer: Arc::clone(&self.0) })
    }
}

impl Shared {
    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        // It holds one value, which is whole at any time.
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of an answer that hyper has.
struct Part {
    data: Bytes,
    size: usize,
    answer: Arc<Shared>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.answer.connection.unread().fetch_sub(self.size, Relaxed);
        self.answer.bytes.fetch_sub(self.size, Relaxed);
        let waker = self.answer.waker().take();
        waker.into_iter().for_each(Waker::wake);
    }
}
