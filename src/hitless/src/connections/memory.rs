//! What the connections hold together stays within its limit.

use std::cmp::Reverse;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::{Gate, Mode};
use crate::connection::Connection;

impl Gate {
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
        if self.mode() != Mode::Open {
            self.all().values().for_each(Connection::look_at_unsent);
        }
    }

    /// Whether the connections hold so much that each is to hold less.
    pub(crate) fn is_tight(&self) -> bool {
        self.tight.load(Relaxed)
    }
}
