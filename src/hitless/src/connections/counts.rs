//! What the connections came to so far, in numbers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Connections;
use crate::connection::Connection;
use crate::notice::Kind;

/// What the service's connections and requests came to so far, for whoever exports that. What is not said to be there now was
/// counted since the process began.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Connections that are open now.
    pub open: usize,
    /// How many may be open.
    pub max_connections: usize,
    /// Connections that are detached now, and wait for a process to serve them.
    pub parked: usize,
    /// Requests that are in flight now, each until its answer has ended.
    pub in_flight: usize,
    /// Connections that came to the listening sockets.
    pub accepted: u64,
    /// Connections that were taken over, from the process before or from other instances.
    pub taken_over: u64,
    /// Connections that other instances have taken over. What is left for the next process is counted there.
    pub handed_over: u64,
    /// Connections whose clients were told that the service ends them, since nobody takes them over.
    pub retired: u64,
    /// Handovers that went wrong: an instance that did not take connections, or a message that could not be read.
    pub failed_handovers: u64,
    /// How often the service has acted on account of a client, with the reason in a word or two, such as `head_timeout`.
    pub limited: Vec<(&'static str, u64)>,
}

impl Connections {
    /// What they came to so far.
    pub(crate) fn all_counts(&self) -> Counts {
        Counts {
            open: self.len(),
            max_connections: self.limits().max_connections,
            parked: self.parked(),
            in_flight: self.all().values().map(Connection::in_flight).sum(),
            accepted: self.accepted.load(Relaxed),
            taken_over: self.taken_over.load(Relaxed),
            handed_over: self.handed_over.load(Relaxed),
            retired: self.retired.load(Relaxed),
            failed_handovers: self.failed_handovers.load(Relaxed),
            limited: Kind::ALL.map(|kind| (kind.word(), self.notices.total(kind))).to_vec(),
        }
    }

    /// Counts connections that are taken over.
    pub(crate) fn count_taken_over(&self, count: usize) {
        add(&self.taken_over, count);
    }

    /// Counts connections that another instance has taken over.
    pub(crate) fn count_handed_over(&self, count: usize) {
        add(&self.handed_over, count);
    }

    /// Counts a connection whose client is told that the service ends it.
    pub(crate) fn count_retired(&self) {
        add(&self.retired, 1);
    }

    /// Counts a handover that went wrong.
    pub(crate) fn count_failed_handover(&self) {
        add(&self.failed_handovers, 1);
    }
}

fn add(count: &AtomicU64, more: usize) {
    count.fetch_add(more as u64, Relaxed);
}
