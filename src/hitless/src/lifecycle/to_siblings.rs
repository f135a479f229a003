//! The first way to leave: to siblings, which serve on. Nobody waits for anything but its own answer.
//!
//! ```text
//! siblings are asked whether they take connections: else there is none
//! pause: each connection goes to who has fewest, as soon as it stands at a message boundary; clients of HTTP/2 are told to go
//! ```

use std::time::{Duration, Instant};

use super::Lifecycle;
use crate::connections::Connections;
use crate::queue::Detached;
use crate::sibling;

impl Lifecycle {
    /// Gives every connection to the siblings, each as soon as it stands at a message boundary: they serve everybody else
    /// meanwhile, so nobody has to be waited for. Counts those `given`. False when there is no sibling that takes them (all).
    pub(super) async fn to_siblings(&self, connections: &Connections, since: Instant, given: &mut usize) -> bool {
        let Some(siblings) = &self.siblings else { return false };
        let timeout = self.handle.0.timeout;
        let left = |until: Duration| until.saturating_sub(since.elapsed());
        let hand_in = async |pid: u32, detached: &[Detached]| {
            sibling::hand_in(&siblings.path(pid), detached, left(timeout.total()) / 2).await.inspect_err(|error| {
                connections.count_failed_handover();
                tracing::warn!("the instance with process id {pid} does not take connections: {error}");
            })
        };
        // How many connections each of them has, as far as it says so.
        let mut takers = Vec::new();
        for pid in siblings.pids().unwrap_or_default() {
            if let Ok(taken) = hand_in(pid, &[]).await {
                tracing::info!("the instance with process id {pid} takes connections");
                takers.push((taken.has.unwrap_or(0), pid));
            }
        }
        if takers.is_empty() {
            return false;
        }
        connections.give();
        loop {
            let next = tokio::time::timeout(left(timeout.last_moment()), connections.next_detached());
            // One may have been parked at the last moment.
            let next =
                next.await.unwrap_or_else(|_| Some(connections.take_parked()).filter(|parked| !parked.is_empty()));
            let Some(mut detached) = next else { return true };
            while !detached.is_empty() {
                takers.sort_unstable();
                let Some(&(has, pid)) = takers.first() else {
                    connections.park(detached);
                    connections.resume();
                    return false;
                };
                // So many that it would have as many as each of those that get any in the end.
                let mut all = detached.len();
                let shares = takers.iter().zip(1..).map(|((has, _), count)| {
                    all += has;
                    all.div_ceil(count)
                });
                let lot = shares.min().map_or(0, |fewest| fewest - has).min(detached.len());
                match hand_in(pid, &detached[..lot]).await {
                    Ok(taken) => {
                        detached.drain(..taken.count);
                        *given += taken.count;
                        connections.count_handed_over(taken.count);
                        takers[0].0 = taken.has.unwrap_or(has + taken.count);
                    }
                    // What it has refused, for want of descriptors perhaps, it would refuse again.
                    Err(_) => {
                        takers.swap_remove(0);
                    }
                }
            }
        }
    }
}
