//! The set of all live connections, which is paused and resumed.
//!
//! While it runs, everything passes. Paused, nothing is accepted, and every connection that stands at a message boundary, or
//! comes to one, is detached from hyper and *parked*: for the handover queue, or for the listener, should the connections be
//! resumed. Those that were quiet for a while are detached a little earlier, so that thousands of them keep nobody waiting.
//!
//! The pause is set *first*, then every connection is woken under its lock: a read that saw the connections run has left its
//! waker there, and a later one sees the pause. So none is missed.

mod counts;
mod limits;
mod pause;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::Method;
use tokio::sync::Notify;

use crate::connection::{Connection, Io, Origin, Peer, Socket};
use crate::notice::{Kind, Notices};
use crate::queue::Detached;

pub use counts::Counts;
pub use limits::Limits;
pub(crate) use limits::YIELDS_AFTER;
pub(crate) use pause::Obstacle;

use limits::Bounds;

/// Something that was cut off: a request, or a connection that would not end.
#[derive(Debug)]
pub struct Cut {
    /// Whose it was.
    pub peer: Peer,
    /// Method and path, where a request was in flight.
    pub request: Option<(Method, String)>,
    /// How long it had been there.
    pub age: Duration,
    /// A handler was at work. Else it went on because of its client, or without end.
    pub at_work: bool,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, request, age, .. } = self;
        match request {
            Some((method, path)) => write!(f, "{method} {path} of {peer}, after {age:?}"),
            None => write!(f, "a connection of {peer} without a request, after {age:?}"),
        }
    }
}

/// How the service stands to its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Serving,
    /// About to hand its connections over: they stay open.
    HandingOver,
    /// About to close its connections: each is told so with its next answer.
    Retiring,
    /// The same, and new ones are no longer accepted.
    Retired,
}

/// All live connections.
#[derive(Debug, Default)]
pub struct Connections {
    limits: Bounds,
    /// Idle connections, the one that is to make room first at the end, as they were found when room was wanted; and whether
    /// they were a flood.
    idle: Mutex<Vec<(Connection, bool)>>,
    /// When room was last wanted, there were so many on which nothing was asked yet that they are a flood.
    flood: AtomicBool,
    /// Connections that were told to make room and have not gone yet.
    yielding: AtomicUsize,
    /// The connections hold so much that each is to hold less.
    tight: AtomicBool,
    /// What has been read, and asked for, since that was looked at, in bytes.
    taken_in: AtomicUsize,
    to_relieve: Notify,
    notices: Notices,
    refused: AtomicU64,
    live: Mutex<HashMap<u64, Connection>>,
    parked: Mutex<Vec<Detached>>,
    /// Those that a sibling has handed in.
    guests: AtomicUsize,
    ids: AtomicU64,
    /// A [`Flow`].
    flow: AtomicU8,
    /// Clients of HTTP/2 are told to go.
    telling: AtomicBool,
    /// Held while a connection is accepted and taken in.
    admitting: Mutex<()>,
    /// The connections were paused or resumed, the mode was set, or one was parked that is to be taken back.
    changed: Notify,
    /// A [`Mode`].
    mode: AtomicU8,
    /// The listening sockets are closed.
    listeners_closed: AtomicBool,
    /// A connection has gone.
    gone: Notify,
    answered: AtomicU64,
    failed: AtomicU64,
    accepted: AtomicU64,
    taken_over: AtomicU64,
    handed_over: AtomicU64,
    retired: AtomicU64,
    failed_handovers: AtomicU64,
}

impl Connections {
    /// One without connections, which may take as much as `limits` says.
    pub fn new(limits: Limits) -> Self {
        Self { limits: Bounds(limits), ..Self::default() }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits.0
    }

    /// Records that the service acts on account of a client.
    pub(crate) fn notice(&self, kind: Kind, peer: Peer) {
        self.notices.tell(kind, peer);
    }

    /// An id for a request that no handler gets to see.
    pub(crate) fn refusal_id(&self) -> String {
        let number = self.refused.fetch_add(1, Relaxed);
        format!("{}r{:016x}", super::request_id::process_mark(), super::request_id::opaque(number))
    }

    /// Takes a new connection in. `unparsed` is what another process has read of its next request.
    pub(crate) fn admit(self: &Arc<Self>, socket: Socket, peer: Peer, unparsed: Vec<u8>, origin: Origin) -> Io {
        let id = self.ids.fetch_add(1, Relaxed);
        let io = Io::new(Arc::clone(self), id, socket, peer, unparsed, origin);
        self.all().insert(id, io.connection().clone());
        match origin {
            Origin::Accepted | Origin::OverLimit => self.accepted.fetch_add(1, Relaxed),
            Origin::Guest => self.guests.fetch_add(1, Relaxed) as u64,
            Origin::Adopted | Origin::Unasked => 0,
        };
        io
    }

    /// Records that a connection has gone.
    pub(crate) fn forget(&self, id: u64, origin: Origin) {
        self.all().remove(&id);
        if origin == Origin::Guest {
            self.guests.fetch_sub(1, Relaxed);
        }
        self.gone.notify_waiters();
    }

    /// The number of live connections.
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// The number of connections, those parked among them, but for those that siblings have handed in, up to so many.
    pub(crate) fn len_without(&self, guests: usize) -> usize {
        (self.len() + self.parked()).saturating_sub(self.guests.load(Relaxed).min(guests))
    }

    /// Whether there is no live connection.
    #[cfg(feature = "testing")]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts an answer; `failed` when the service is to blame (5xx).
    pub(crate) fn count(&self, failed: bool) {
        self.answered.fetch_add(1, Relaxed);
        if failed {
            self.failed.fetch_add(1, Relaxed);
        }
    }

    /// The answers so far, and how many of them are the service's failures.
    pub fn counts(&self) -> (u64, u64) {
        (self.answered.load(Relaxed), self.failed.load(Relaxed))
    }

    /// From now on answers leave connections open, or announce their end, as `mode` says.
    pub(crate) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, SeqCst);
        self.changed.notify_waiters();
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.mode.load(SeqCst) {
            mode if mode == Mode::HandingOver as u8 => Mode::HandingOver,
            mode if mode == Mode::Retiring as u8 => Mode::Retiring,
            mode if mode == Mode::Retired as u8 => Mode::Retired,
            _ => Mode::Serving,
        }
    }

    /// Ends what has reached its limit.
    pub(crate) fn expire(&self) {
        for connection in self.all().values() {
            connection.expire(&self.limits.0);
        }
        self.notices.tell_rest();
    }

    /// Ends each HTTP/1.1 connection that has been silent between requests for so long. Those of HTTP/2 are told goodbye.
    pub(crate) fn expire_idle(&self, silence: Duration) {
        for connection in self.all().values() {
            connection.expire_idle(silence);
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Connection>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is still in flight.
    pub(crate) fn left(&self) -> Vec<Cut> {
        self.all().values().filter(|connection| connection.is_busy()).flat_map(Connection::cut).collect()
    }

    /// The request that has been in flight for the longest.
    pub(crate) fn slowest(&self) -> Option<Cut> {
        self.left().into_iter().filter(|cut| cut.request.is_some()).max_by_key(|cut| cut.age)
    }
}
