//! The set of all live connections, which is paused and resumed.
//!
//! While it runs, everything passes. Paused, nothing is accepted, and every connection that stands at a message boundary, or
//! comes to one, is detached from hyper and *parked*: for the handover queue, or for the listener, should the connections be
//! resumed. Those that were quiet for a while are detached a little earlier, so that thousands of them keep nobody waiting.
//!
//! The pause is set *first*, then every connection is woken under its lock: a read that saw the connections run has left its
//! waker there, and a later one sees the pause. So none is missed.
//!
//! The mode, the flow, whether HTTP/2 is told to go, and the listening sockets are set apart, and stand together like this:
//!
//! | mode | flow | HTTP/2 is told | sockets | |
//! |---|---|---|---|---|
//! | `Serving` | `Running` | no | open | |
//! | `HandingOver` | `Running` | no | open | a moment to pause is waited for |
//! | `HandingOver` | `Running` | yes | open | it has come, and clients of HTTP/2 hear of it |
//! | `HandingOver` | `DetachingIdle` | yes | open | those that are quiet are detached |
//! | `HandingOver` | `Paused` | either | open | nothing is accepted; resumed, it is the second row again |
//! | `Retiring` | `Running` | no | open | nobody takes the connections: they end with their answers |
//! | `Retired` | `Running` | no | closed soon | who has connected by then is served |

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
use crate::ledger::UNPARSED_LIMIT;
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
    /// How many may be served, and how many beside of those that siblings hand in.
    places: AtomicUsize,
    guest_places: AtomicUsize,
    /// Those that a sibling has handed in.
    guests: AtomicUsize,
    /// Those over the limit. It changes under the lock of `live`.
    over_limit: AtomicUsize,
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
    /// The host is drained, for as long as its operator wants.
    drained: AtomicBool,
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
        let max_head_bytes = limits.max_head_bytes.min(UNPARSED_LIMIT);
        Self { limits: Bounds(Limits { max_head_bytes, ..limits }), ..Self::default() }
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
        let mut live = self.all();
        live.insert(id, io.connection().clone());
        if origin == Origin::OverLimit {
            self.over_limit.fetch_add(1, Relaxed);
        }
        drop(live);
        match origin {
            Origin::Accepted | Origin::OverLimit => self.accepted.fetch_add(1, Relaxed),
            Origin::Guest => self.guests.fetch_add(1, Relaxed) as u64,
            Origin::Adopted | Origin::Unasked => 0,
        };
        io
    }

    /// Records that a connection has gone.
    pub(crate) fn forget(&self, id: u64, origin: Origin) {
        let mut live = self.all();
        if live.remove(&id).is_some_and(|gone| gone.take_over_limit()) {
            self.over_limit.fetch_sub(1, Relaxed);
        }
        drop(live);
        if origin == Origin::Guest {
            self.guests.fetch_sub(1, Relaxed);
        }
        self.gone.notify_waiters();
    }

    /// The number of live connections.
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// Has so many connections be served, and so many `guests` beside, which siblings hand in.
    pub(crate) fn set_places(&self, places: usize, guests: usize) {
        self.places.store(places, Relaxed);
        self.guest_places.store(guests, Relaxed);
    }

    /// How many connections may be served, beside guests.
    pub(crate) fn places(&self) -> usize {
        self.places.load(Relaxed)
    }

    /// How many connections may be served, guests among them.
    pub(crate) fn places_for_all(&self) -> usize {
        self.places() + self.guest_places.load(Relaxed)
    }

    /// How many connections count for `places`: those parked are among them, and guests for whom there is no place beside.
    pub(crate) fn len_without_guests(&self) -> usize {
        self.without_guests(self.len())
    }

    fn without_guests(&self, live: usize) -> usize {
        let guests = self.guests.load(Relaxed).min(self.guest_places.load(Relaxed));
        (live + self.parked()).saturating_sub(guests)
    }

    /// Gives a connection that is over the limit a place, where one is free by now, or another one makes room for it. Requests
    /// of HTTP/2 may ask for it at the same time.
    pub(crate) fn give_place(&self, connection: &Connection) -> bool {
        let take = |is_free: bool| {
            let live = self.all();
            let over = self.over_limit.load(Relaxed);
            let is_free = is_free || self.without_guests(live.len()).saturating_sub(over) < self.places();
            if is_free && connection.take_over_limit() {
                self.over_limit.fetch_sub(1, Relaxed);
            }
            is_free
        };
        take(false) || (self.make_room(true, false) && take(true))
    }

    /// Counts an answer; `failed` when the service is to blame (5xx).
    pub(crate) fn count(&self, failed: bool) {
        self.answered.fetch_add(1, Relaxed);
        if failed {
            self.failed.fetch_add(1, Relaxed);
        }
    }

    /// Counts an answer that has begun, and was counted as a good one, as a failure.
    pub(crate) fn count_broken(&self) {
        self.failed.fetch_add(1, Relaxed);
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

    /// From now on answers announce the end of their connections, whatever the mode, or do so no longer.
    pub(crate) fn set_drained(&self, drained: bool) {
        if self.drained.swap(drained, Relaxed) != drained {
            tracing::info!(
                "{}",
                if drained { "drained: clients are told to go elsewhere" } else { "no longer drained" }
            );
        }
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.drained.load(Relaxed)
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
