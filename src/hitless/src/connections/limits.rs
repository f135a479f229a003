//! What connections may take from the service, one by one and all together, and who makes room for whom.

use std::cmp::Reverse;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::{Connections, Mode};
use crate::connection::{Connection, Idle};

/// What a connection may take from the service.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many connections there may be at a time.
    pub max_connections: usize,
    /// Of a request's head; [`MAX_HEAD_BYTES`](Self::MAX_HEAD_BYTES) where it is more.
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
    pub(crate) fn unbounded() -> Self {
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

/// Those of all [`Connections`](super::Connections).
#[derive(Debug)]
pub(super) struct Bounds(pub(super) Limits);

impl Default for Bounds {
    fn default() -> Self {
        Self(Limits::unbounded())
    }
}

/// How many connections on which nothing was asked yet are more than those of clients that are just about to ask.
const FLOOD: usize = 64;

/// How long a connection has to have been idle to make room for another, and one among a flood of those on which nothing
/// was asked yet: what a client says first has come by the time that its connection is accepted, or does so in a moment.
pub(crate) const YIELDS_AFTER: Duration = Duration::from_secs(1);
const FLOOD_YIELDS_AFTER: Duration = Duration::from_millis(25);

impl Connections {
    /// Records that a connection is to make room.
    pub(crate) fn yields(&self) {
        self.yielding.fetch_add(1, Relaxed);
    }

    /// Records that a connection that was to make room has gone, or that its client has said something after all.
    pub(crate) fn yielded(&self) {
        self.yielding.fetch_sub(1, Relaxed);
    }

    /// Whether there is a flood of connections on which nothing was asked yet, as far as is known.
    pub(crate) fn has_flood(&self) -> bool {
        self.flood.load(Relaxed)
    }

    /// The number of connections that were told to make room and have not gone yet.
    pub(crate) fn yielding(&self) -> usize {
        self.yielding.load(Relaxed)
    }

    /// Has an idle connection make room for another one, on which something was `asked`; with `of_flood` only one of a
    /// flood of those on which nothing was. False when there is none.
    pub(crate) fn make_room(&self, asked: bool, of_flood: bool) -> bool {
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

    /// Sees to it that the connections do not hold more than they may. Nothing is looked at until a good deal has been taken
    /// in: with thousands of connections that would be work in itself.
    pub(crate) fn relieve(&self) {
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
    pub(crate) fn take_in(&self, bytes: usize) {
        let most = self.limits.0.held_bytes / 32;
        let before = self.taken_in.fetch_add(bytes, Relaxed);
        if before < most && before.saturating_add(bytes) >= most {
            self.to_relieve.notify_one();
        }
    }

    /// Whether so much has been taken in that nothing more is read until that has been looked at.
    pub(crate) fn is_flooded(&self) -> bool {
        self.taken_in.load(Relaxed) > self.limits.0.held_bytes / 8
    }

    /// Waits until a good deal has been taken in, or for `pause`.
    pub(crate) async fn taken_in(&self, pause: Duration) {
        let _ = tokio::time::timeout(pause, self.to_relieve.notified()).await;
        if !self.is_flooded() {
            // To look at thousands of connections takes a millisecond.
            tokio::time::sleep(pause / 10).await;
        }
        if self.mode() != Mode::Serving {
            self.all().values().for_each(Connection::look_at_unsent);
        }
    }

    /// Whether the connections hold so much that each is to hold less.
    pub(crate) fn is_tight(&self) -> bool {
        self.tight.load(Relaxed)
    }
}
