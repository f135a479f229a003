//! The gate: all live connections, and whether they may still be read from.
//!
//! Open, it lets everything pass. Closed, it stops `accept`, and every connection that is clean, or becomes so, is taken
//! out of hyper and put aside: for the parcel, or for the listener, should the gate open again. Those that were
//! quiet for a while are taken a little earlier, so that thousands of them keep nobody waiting.
//!
//! It is closed *first*, then every connection is woken under its lock: a read that saw the gate open has left its waker
//! there, and a later one sees the gate closed. So none is missed.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::Method;
use tokio::sync::Notify;

use super::connection::{Connection, Idle, Io, Origin, Peer, QUIET, Socket};
use super::notice::{Kind, Notices};
use super::parcel::Clean;

/// How many connections on which nothing was asked yet are more than those of clients that are just about to ask.
const FLOOD: usize = 64;

/// How long a connection has to have been idle to make room for another, and one among a flood of those on which nothing
/// was asked yet: what a client says first has come by the time that its connection is accepted, or does so in a moment.
pub(super) const YIELDS_AFTER: Duration = Duration::from_secs(1);
const FLOOD_YIELDS_AFTER: Duration = Duration::from_millis(25);

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
    Open,
    /// About to hand its connections over: they stay open.
    HandingOver,
    /// About to close its connections: each is told so with its next answer.
    Retiring,
    /// The same, and new ones are no longer accepted.
    Retired,
}

/// What keeps a moment from being calm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    None,
    /// A handler at work: the request timeout bounds it.
    Bounded,
    /// Nothing bounds it but its client: an upload, a streamed answer, a client that does not read, a WebSocket.
    Unbounded,
}

/// What a connection may take from the service.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many connections there may be at a time.
    pub max_connections: usize,
    /// Of a request's head.
    pub max_head_bytes: usize,
    /// From the first byte of a request's head to its last; and until the first byte of a new connection.
    pub header_timeout: Duration,
    /// Between two parts of a request's body, while it is waited for.
    pub body_timeout: Duration,
    /// While nothing of an answer is read.
    pub send_timeout: Duration,
    /// Between two requests.
    pub idle_timeout: Duration,
    /// While what a client still sends is discarded, after an answer that did not wait for it.
    pub linger_timeout: Duration,
    /// All that the connections hold together for their clients, beside what each takes when it is idle.
    pub held_bytes: usize,
}

impl Limits {
    /// None that anybody would meet, but on the number of connections: for tests, and behind what has limits of its own.
    pub(super) fn unbounded() -> Self {
        let long = Duration::from_secs(3600);
        Self {
            max_connections: 10_000,
            max_head_bytes: 64 * 1024,
            header_timeout: long,
            body_timeout: long,
            send_timeout: long,
            idle_timeout: long,
            linger_timeout: long,
            held_bytes: usize::MAX,
        }
    }
}

/// Those of a gate.
#[derive(Debug)]
struct Bounds(Limits);

impl Default for Bounds {
    fn default() -> Self {
        Self(Limits::unbounded())
    }
}

/// All live connections, and whether they may still be read from.
#[derive(Debug, Default)]
pub struct Gate {
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
    connections: Mutex<HashMap<u64, Connection>>,
    taken: Mutex<Vec<Clean>>,
    /// Those that a sibling has handed in.
    guests: AtomicUsize,
    ids: AtomicU64,
    closed: AtomicBool,
    /// The gate is about to close: connections that have been quiet for a while are taken already.
    thinning: AtomicBool,
    /// Clients of HTTP/2 are told to go.
    telling: AtomicBool,
    /// Held while a connection is accepted and taken in.
    entering: Mutex<()>,
    /// The gate was closed or opened, the mode was set, or a connection was taken that nobody may take any more.
    moved: Notify,
    mode: AtomicU8,
    /// The listening sockets are closed.
    deaf: AtomicBool,
    /// A connection has gone.
    gone: Notify,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Gate {
    /// One without connections, which may take as much as `limits` says.
    pub fn new(limits: Limits) -> Self {
        Self { limits: Bounds(limits), ..Self::default() }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits.0
    }

    /// Records that the service acts on account of a client.
    pub(super) fn notice(&self, kind: Kind, peer: Peer) {
        self.notices.tell(kind, peer);
    }

    /// An id for a request that no handler gets to see.
    pub(super) fn refusal_id(&self) -> String {
        let number = self.refused.fetch_add(1, Relaxed);
        format!("{}r{:016x}", super::request_id::process_mark(), super::request_id::opaque(number))
    }

    /// Enters that a connection is to make room.
    pub(super) fn yields(&self) {
        self.yielding.fetch_add(1, Relaxed);
    }

    /// Enters that a connection that was to make room has gone, or that its client has said something after all.
    pub(super) fn yielded(&self) {
        self.yielding.fetch_sub(1, Relaxed);
    }

    /// Whether there is a flood of connections on which nothing was asked yet, as far as is known.
    pub(super) fn has_flood(&self) -> bool {
        self.flood.load(Relaxed)
    }

    /// The number of connections that were told to make room and have not gone yet.
    pub(super) fn yielding(&self) -> usize {
        self.yielding.load(Relaxed)
    }

    /// Has an idle connection make room for another one, on which something was `asked`; with `of_flood` only one of a
    /// flood of those on which nothing was. False when there is none.
    pub(super) fn make_room(&self, asked: bool, of_flood: bool) -> bool {
        // Who asks goes before a flood of those who do not, however new they are.
        let flood_yields_after = if asked { Duration::ZERO } else { FLOOD_YIELDS_AFTER };
        let patience = |flood| if flood { flood_yields_after } else { YIELDS_AFTER };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        for more in [false, true] {
            if more {
                idle.extend(self.idle_longest());
            }
            let mut candidates = std::iter::from_fn(|| idle.pop()).filter(|(_, flood)| *flood || !of_flood);
            if candidates.any(|(connection, flood)| connection.make_room(patience(flood))) {
                return true;
            }
        }
        false
    }

    /// Idle connections, who has been so for longest last: those that only linger; else those on which nothing was asked
    /// yet; or, where these are no flood, the others.
    ///
    /// Many at a time, since looking through all of them for each that comes would be the flood's own work. Of those on
    /// which something was asked a few: by the time that the last is to go there may be a flood.
    fn idle_longest(&self) -> impl Iterator<Item = (Connection, bool)> {
        let mut idle: Vec<_> = self.all().values().filter_map(|one| Some((one.idle()?, one.clone()))).collect();
        idle.sort_unstable_by_key(|(rank, _)| *rank);
        let lingering = idle.partition_point(|((kind, _), _)| *kind < Idle::Silent);
        let silent = idle.partition_point(|((kind, _), _)| *kind < Idle::Asked);
        let is_due = idle[lingering..silent].first().is_some_and(|((_, since), _)| since.elapsed() >= YIELDS_AFTER);
        let few = if lingering > 0 {
            0..lingering.min(FLOOD)
        } else if is_due || silent > FLOOD {
            0..silent.min(FLOOD)
        } else {
            silent..idle.len().min(silent + FLOOD / 8)
        };
        self.flood.store(silent > FLOOD, Relaxed);
        let few: Vec<_> = idle.drain(few).collect();
        few.into_iter().rev().map(move |(_, connection)| (connection, silent > FLOOD))
    }

    /// Takes a new connection in. `rest` is what another process has read of its next request.
    pub(super) fn admit(self: &Arc<Self>, socket: Socket, peer: Peer, rest: Vec<u8>, origin: Origin) -> Io {
        let id = self.ids.fetch_add(1, Relaxed);
        let io = Io::new(Arc::clone(self), id, socket, peer, rest, origin);
        self.all().insert(id, io.connection().clone());
        if origin == Origin::Guest {
            self.guests.fetch_add(1, Relaxed);
        }
        io
    }

    /// Enters that a connection has gone.
    pub(super) fn forget(&self, id: u64, origin: Origin) {
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

    /// The number of connections, those put aside among them, but for those that siblings have handed in, up to so many.
    pub(super) fn len_without(&self, guests: usize) -> usize {
        (self.len() + self.put_aside()).saturating_sub(self.guests.load(Relaxed).min(guests))
    }

    /// Whether there is no live connection.
    #[cfg(feature = "testing")]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts an answer; `failed` when the service is to blame (5xx).
    pub(super) fn count(&self, failed: bool) {
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
    pub(super) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, SeqCst);
        self.moved.notify_waiters();
    }

    pub(super) fn mode(&self) -> Mode {
        match self.mode.load(SeqCst) {
            mode if mode == Mode::HandingOver as u8 => Mode::HandingOver,
            mode if mode == Mode::Retiring as u8 => Mode::Retiring,
            mode if mode == Mode::Retired as u8 => Mode::Retired,
            _ => Mode::Open,
        }
    }

    /// Stops accepting, and takes every connection from hyper that is clean or becomes so.
    pub(super) fn close(&self) {
        self.closed.store(true, SeqCst);
        // A connection that is being accepted is let in first.
        drop(self.enter());
        self.wake();
    }

    /// Tells the clients of HTTP/2 to go, and waits until they have heard, for `patience` at most. Everybody is served
    /// meanwhile, by HTTP/2 too: a client has a round trip to make, or never hears.
    pub(super) async fn tell_http2(&self, patience: Duration) {
        let began = Instant::now();
        self.telling.store(true, SeqCst);
        self.wake();
        let heard = self.wait_until(|gate| !gate.all().values().any(|connection| connection.is_told(began)));
        let _ = tokio::time::timeout(patience, heard).await;
    }

    /// Whether clients of HTTP/2 are to be told to go.
    pub(super) fn is_telling(&self) -> bool {
        self.telling.load(SeqCst)
    }

    /// Takes the connections that have been quiet for a while, before the gate is closed; `patience` bounds it.
    ///
    /// Thousands of connections are not taken in a moment. Those who ask all the time are served meanwhile.
    pub(super) async fn thin_out(&self, patience: Duration) {
        // Those that become quiet meanwhile are not woken, and not waited for.
        let Some(before) = Instant::now().checked_sub(QUIET) else { return };
        self.thinning.store(true, SeqCst);
        self.wake();
        let thinned = self.wait_until(|gate| !gate.all().values().any(|connection| connection.leaves_early(before)));
        let _ = tokio::time::timeout(patience, thinned).await;
    }

    pub(super) fn is_thinning(&self) -> bool {
        self.thinning.load(SeqCst)
    }

    /// Goes on accepting, and gives the connections that were taken back to the listener.
    pub(super) fn open(&self) {
        self.telling.store(false, SeqCst);
        self.thinning.store(false, SeqCst);
        self.closed.store(false, SeqCst);
        self.wake();
    }

    fn wake(&self) {
        self.moved.notify_waiters();
        for connection in self.all().values() {
            connection.wake();
        }
    }

    /// Keeps the gate from closing while a connection is accepted.
    pub(super) fn enter(&self) -> MutexGuard<'_, ()> {
        self.entering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// What tells that the gate has moved, or that there is a connection to take back.
    pub(super) fn moved(&self) -> &Notify {
        &self.moved
    }

    /// What stands in the way of a calm moment: a request older than `calm`, or an upgraded connection.
    pub(super) fn obstacle(&self, calm: Duration) -> Obstacle {
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
    pub(super) async fn taken(&self, before: Option<Instant>) {
        self.wait_until(|gate| !gate.all().values().any(|connection| connection.is_awaited(before))).await;
    }

    /// The same for every connection, except that those whose requests nothing bounds are waited for no longer than
    /// `patience`.
    pub(super) async fn taken_but_for_unbounded(&self, patience: Duration) {
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
    pub(super) fn set_deaf(&self) {
        self.deaf.store(true, SeqCst);
    }

    /// Waits until nobody can connect, and hyper, told to end, would lose no request: it closes at once a connection
    /// from which it has not read a whole head.
    pub(super) async fn heads_read(&self) {
        self.wait_until(|gate| gate.deaf.load(SeqCst) && !gate.all().values().any(Connection::is_expected)).await;
    }

    /// Waits until nothing is in flight any more, and for `unbounded` at most for what nothing bounds, or is still to be
    /// sent. Connections without a request have `goodbye` to end; those that only linger no longer than `unbounded`.
    pub(super) async fn all_gone(&self, unbounded: Duration, goodbye: Duration) {
        self.wait_but_for_unbounded(unbounded, Connection::is_busy).await;
        let ended = self.wait_until(|gate| gate.all().values().all(|connection| connection.has_lingered(unbounded)));
        let _ = tokio::time::timeout(goodbye, ended).await;
        // Who did not hear of it in time may have asked meanwhile, by HTTP/2: that handler is waited for like any other.
        self.wait_but_for_unbounded(Duration::ZERO, Connection::is_busy).await;
    }

    /// What tells that a connection has gone.
    pub(super) fn gone(&self) -> &Notify {
        &self.gone
    }

    async fn wait_until(&self, done: impl Fn(&Self) -> bool) {
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
    pub(super) fn put(&self, connections: Vec<Clean>) {
        self.aside().extend(connections);
        if !self.is_closed() && !self.is_thinning() {
            self.moved.notify_waiters();
        }
    }

    /// The connections put aside so far.
    pub(super) fn take(&self) -> Vec<Clean> {
        std::mem::take(&mut self.aside())
    }

    /// Some of the connections put aside so far, `most` at most, the last first.
    pub(super) fn take_some(&self, most: usize) -> Vec<Clean> {
        let mut aside = self.aside();
        let kept = aside.len().saturating_sub(most);
        aside.split_off(kept)
    }

    /// The number of connections put aside, and not taken yet.
    pub fn put_aside(&self) -> usize {
        self.aside().len()
    }

    fn aside(&self) -> MutexGuard<'_, Vec<Clean>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections that were put aside meanwhile, as soon as there are some; `None` when every HTTP/1.1 connection was
    /// taken or has ended.
    pub(super) async fn next_taken(&self) -> Option<Vec<Clean>> {
        let is_coming = |connection: &Connection| connection.is_awaited(None) || connection.is_taken();
        let has_some = |gate: &Self| !gate.aside().is_empty();
        // One lock after the other: a connection takes them the other way round.
        self.wait_until(|gate| has_some(gate) || !gate.all().values().any(is_coming)).await;
        Some(self.take()).filter(|taken| !taken.is_empty())
    }

    /// What is still in flight.
    pub(super) fn left(&self) -> Vec<Cut> {
        self.all().values().filter(|connection| connection.is_busy()).flat_map(Connection::cut).collect()
    }

    /// The request that has been in flight for the longest.
    pub(super) fn slowest(&self) -> Option<Cut> {
        self.left().into_iter().filter(|cut| cut.request.is_some()).max_by_key(|cut| cut.age)
    }

    /// Ends what has reached its limit.
    pub(super) fn expire(&self) {
        for connection in self.all().values() {
            connection.expire(&self.limits.0);
        }
        self.notices.tell_rest();
    }

    /// Ends each HTTP/1.1 connection that has been silent between requests for so long. Those of HTTP/2 are told goodbye.
    pub(super) fn expire_idle(&self, silence: Duration) {
        for connection in self.all().values() {
            connection.expire_idle(silence);
        }
    }

    /// Sees to it that the connections do not hold more than they may. Nothing is looked at until a good deal has been taken
    /// in: with thousands of connections that would be work in itself.
    pub(super) fn relieve(&self) {
        let most = self.limits.0.held_bytes;
        if !self.is_tight() && self.taken_in.load(Relaxed) < most / 32 {
            return;
        }
        self.taken_in.store(0, Relaxed);
        let mut holders: Vec<_> = self.all().values().filter_map(|one| Some((one.held()?, one.clone()))).collect();
        let mut held: usize = holders.iter().map(|((bytes, _), _)| bytes).sum();
        self.tight.store(held > most / 4, Relaxed);
        if held <= most {
            return;
        }
        // What it costs to hold something is its size and the time. Who holds less than others on the average is not to
        // blame, for however long it does.
        let average = held / holders.len();
        let cost = |bytes: usize, time: Duration| (bytes > average, bytes as u128 * time.as_millis());
        holders.sort_unstable_by_key(|((bytes, time), _)| Reverse(cost(*bytes, *time)));
        for ((bytes, _), connection) in holders {
            if held <= most {
                return;
            }
            connection.shed();
            held -= bytes;
        }
    }

    /// Records that so many bytes more may be held.
    pub(super) fn take_in(&self, bytes: usize) {
        let most = self.limits.0.held_bytes / 32;
        let before = self.taken_in.fetch_add(bytes, Relaxed);
        if before < most && before.saturating_add(bytes) >= most {
            self.to_relieve.notify_one();
        }
    }

    /// Whether so much has been taken in that nothing more is read until that has been looked at.
    pub(super) fn is_flooded(&self) -> bool {
        self.taken_in.load(Relaxed) > self.limits.0.held_bytes / 8
    }

    /// Waits until a good deal has been taken in, or for `pause`.
    pub(super) async fn taken_in(&self, pause: Duration) {
        let _ = tokio::time::timeout(pause, self.to_relieve.notified()).await;
        if !self.is_flooded() {
            // To look at thousands of connections takes a millisecond.
            tokio::time::sleep(pause / 10).await;
        }
        if self.mode() != Mode::Open {
            self.all().values().for_each(Connection::look_at_unsent);
        }
    }

    /// Whether the connections hold so much that each is to hold less.
    pub(super) fn is_tight(&self) -> bool {
        self.tight.load(Relaxed)
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
