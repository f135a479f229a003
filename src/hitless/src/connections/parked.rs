//! Connections that were taken out of hyper, until somebody takes them.

use std::sync::{MutexGuard, PoisonError};

use super::Gate;
use crate::parcel::Clean;

impl Gate {
    /// Puts connections aside: for the parcel, or for the listener while the gate is open.
    pub(crate) fn put(&self, connections: Vec<Clean>) {
        self.aside().extend(connections);
        if self.is_open() {
            self.moved.notify_waiters();
        }
    }

    /// The connections put aside so far.
    pub(crate) fn take(&self) -> Vec<Clean> {
        std::mem::take(&mut self.aside())
    }

    /// Some of the connections put aside so far, `most` at most, the last first.
    pub(crate) fn take_some(&self, most: usize) -> Vec<Clean> {
        let mut aside = self.aside();
        let kept = aside.len().saturating_sub(most);
        aside.split_off(kept)
    }

    /// The number of connections put aside, and not taken yet.
    pub fn put_aside(&self) -> usize {
        self.aside().len()
    }

    pub(crate) fn aside(&self) -> MutexGuard<'_, Vec<Clean>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
