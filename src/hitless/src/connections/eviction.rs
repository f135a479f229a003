//! When the service is full: who makes room for whom.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Gate;
use crate::connection::{Connection, Idle};

/// How many connections on which nothing was asked yet are more than those of clients that are just about to ask.
const FLOOD: usize = 64;

/// How long a connection has to have been idle to make room for another, and one among a flood of those on which nothing
/// was asked yet: what a client says first has come by the time that its connection is accepted, or does so in a moment.
pub(crate) const YIELDS_AFTER: Duration = Duration::from_secs(1);
const FLOOD_YIELDS_AFTER: Duration = Duration::from_millis(25);

impl Gate {
    /// Enters that a connection is to make room.
    pub(crate) fn yields(&self) {
        self.yielding.fetch_add(1, Relaxed);
    }

    /// Enters that a connection that was to make room has gone, or that its client has said something after all.
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
}
