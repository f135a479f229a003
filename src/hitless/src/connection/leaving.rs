//! What a process that leaves asks of its connections.

use std::time::{Duration, Instant};

use super::request::InFlight;
use super::{Connection, Protocol, Stage, Upgrade};
use crate::connections::Obstacle;

impl Connection {
    /// What keeps a moment from being calm here; as [`Gate::obstacle`].
    pub(crate) fn obstacle(&self, calm: Duration) -> Obstacle {
        let state = self.lock();
        if state.is_lingering() {
            return Obstacle::None;
        }
        let mut slow = state.requests.iter().filter(|request| !request.is_late() && request.since.elapsed() > calm);
        if slow.clone().any(InFlight::is_at_work) {
            return Obstacle::Bounded;
        }
        // The answer has ended, and the client does not read the rest of it.
        let unread = state.unflushed && state.since.elapsed() > calm;
        let upgraded = state.protocol == Protocol::Upgraded(Upgrade::Early);
        let unbounded = unread || upgraded || slow.next().is_some();
        if unbounded { Obstacle::Unbounded } else { Obstacle::None }
    }

    /// Whether the connection has to be waited for before HTTP/2 is told to go away; as [`Gate::taken`].
    pub(crate) fn is_awaited(&self, before: Option<Instant>) -> bool {
        let state = self.lock();
        match state.protocol {
            Protocol::Http1 => state.stage == Stage::Open && !state.leaves_by_itself(),
            Protocol::Http2 => {
                if state.is_lingering() {
                    return false;
                }
                let mut requests = state.requests.iter().filter(|request| request.upgrade.is_none());
                requests.any(|request| before.is_some_and(|before| request.since < before))
            }
            Protocol::Upgraded(_) => false,
        }
    }

    /// Whether the connection has lingered for so long.
    pub(crate) fn has_lingered(&self, time: Duration) -> bool {
        matches!(self.lock().stage, Stage::Lingering { since, .. } if since.elapsed() >= time)
    }

    /// Whether the connection was taken from hyper, and is not put aside yet.
    pub(crate) fn is_taken(&self) -> bool {
        self.lock().stage == Stage::Taken
    }

    /// Whether the connection, quiet since `before`, is to be taken before the gate closes and not put aside yet.
    pub(crate) fn leaves_early(&self, before: Instant) -> bool {
        let state = self.lock();
        state.stage == Stage::Taken || (state.may_leave_early() && state.since < before)
    }

    /// Whether a client of HTTP/2 is told to go since `began`, and has not heard, or not gone.
    pub(crate) fn is_told(&self, began: Instant) -> bool {
        let state = self.lock();
        let is_told = state.frames.is_http2() && state.stage == Stage::Open && !state.is_deaf();
        let lately = state.frames.told().is_none_or(|told| told >= began);
        is_told && lately && (state.is_quiet() || !state.frames.has_heard())
    }

    /// Whether something would be lost with the connection.
    pub(crate) fn is_busy(&self) -> bool {
        let state = self.lock();
        if !state.leaves_by_itself() {
            return true;
        }
        let is_sending = state.is_sending();
        if is_sending {
            // Nobody tells when the kernel has sent it: its task looks again.
            state.wake();
        }
        is_sending
    }

    /// Has a connection that has ended look whether the last of its answer was sent: nothing else tells.
    pub(crate) fn look_at_unsent(&self) {
        let state = self.lock();
        if state.is_lingering() && state.unsent {
            state.wake();
        }
    }

    /// Whether what goes on here ends by itself, whatever the client does.
    pub(crate) fn is_bounded(&self) -> bool {
        let state = self.lock();
        let is_only_sending = state.is_sending() && state.leaves_by_itself();
        drop(state);
        !is_only_sending && self.obstacle(Duration::ZERO) != Obstacle::Unbounded
    }

    /// Whether a request may well be on its way: the first one, or one whose head has begun.
    pub(crate) fn is_expected(&self) -> bool {
        let state = self.lock();
        state.stage == Stage::Open && (state.is_at_head() || (state.tickets == 0 && state.ledger.rest().is_some()))
    }
}
