//! What follows from the state of a connection, and what a process that leaves asks of it.

use std::task::Waker;
use std::time::{Duration, Instant};

use super::io::is_sent;
use super::request::{InFlight, Progress};
use super::{Connection, Due, Protocol, QUIET, Socket, Stage, State, Upgrade};
use crate::connections::{Connections, Obstacle};

/// How long a client that was told to go, or does not read, has until it is taken for one that does not hear.
const UNRESPONSIVE_AFTER: Duration = Duration::from_millis(100);

impl State {
    /// Whether another process can go on with the connection.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.stage == Stage::Open && self.is_quiet() && !self.last && self.ledger.unparsed().is_some()
    }

    /// Whether there is a request of which hyper has nothing more to read, as far as is known.
    pub(super) fn has_request(&self) -> bool {
        self.protocol == Protocol::Http1 && (self.ledger.answer_due() || self.ledger.dispatch_due())
    }

    /// Whether hyper is not to read for now. Once it is `paused`, what follows an answer is for the next process; and the
    /// end of file of a client that waits for its answer is no reason to drop it.
    pub(super) fn withholds(&self, paused: bool) -> bool {
        (paused && self.ledger.answer_due())
            || (self.half_closed && self.has_request())
            || ((paused || self.half_closed) && self.unflushed)
    }

    /// Records that the connection, if it was to make room, need not be waited for: it has gone, lingers, or asks after all.
    pub(super) fn has_yielded(&mut self, connections: &Connections) {
        if self.due == Due::Yielding {
            self.due = Due::Expired;
            connections.yielded();
        }
    }

    /// Records that the connection is not to end after all: its client has said something, or is told why it ends.
    pub(super) fn spare(&mut self, connections: &Connections) {
        self.has_yielded(connections);
        self.due = Due::Not;
    }

    pub(super) fn is_lingering(&self) -> bool {
        matches!(self.stage, Stage::Lingering { .. })
    }

    /// Records that either side closes the connection.
    pub(super) fn close(&mut self) {
        if !self.is_lingering() {
            self.stage = Stage::Closing;
        }
    }

    /// Has hyper read, if that was withheld: each step of a request may have taken away the reason for it.
    pub(super) fn read_again(&mut self) {
        if std::mem::take(&mut self.withheld) {
            self.wake();
        }
    }

    /// Whether no other process can ever go on with the connection.
    pub(super) fn is_never_at_boundary(&self) -> bool {
        self.last || self.ledger.is_lost()
    }

    /// Whether nobody is likely to notice that the connection is detached a little before the others.
    pub(super) fn may_leave_early(&self) -> bool {
        self.is_at_boundary() && !self.is_at_head() && self.since.elapsed() >= QUIET
    }

    /// Whether nothing is lost when axum, told to end, closes the connection: HTTP/2, or what cannot be handed over,
    /// without a request; what was only upgraded to be told goodbye; and what lingers, after its end.
    pub(super) fn leaves_by_itself(&self) -> bool {
        if self.is_lingering() {
            return true;
        }
        let late = self.requests.iter().filter(|request| request.is_late()).count();
        let quiet = self.requests.len() == late && self.frames.open() <= late && !self.unflushed;
        quiet && self.is_never_at_boundary() && self.protocol != Protocol::Upgraded(Upgrade::Early)
    }

    /// Whether the kernel still holds a part of an answer that it would not send any more after the end of the process, when
    /// the client goes on to say something. Other processes go on with HTTP/1.1.
    pub(super) fn is_sending(&self) -> bool {
        self.unsent && (self.protocol == Protocol::Http2 || self.is_lingering())
    }

    /// Looks whether that is still so, once it matters: the service `leaves`.
    pub(super) fn look_at_unsent(&mut self, socket: &Socket, leaves: bool) {
        if leaves && self.is_sending() && is_sent(socket) {
            self.unsent = false;
        }
    }

    /// Whether no request is in flight and no answer on its way to the socket.
    pub(super) fn is_quiet(&self) -> bool {
        self.requests.is_empty() && self.frames.open() == 0 && !self.unflushed
    }

    /// Whether the client of HTTP/2 was told to go and has heard, or once everybody else waits, has had the time to.
    pub(super) fn is_to_go(&self, keeps_waiting: bool) -> bool {
        self.frames.has_heard() || (keeps_waiting && (self.is_unresponsive() || has_passed(self.frames.told())))
    }

    /// Whether the client of HTTP/2 neither asks nor reads while everybody else waits.
    pub(super) fn is_given_up(&self, paused: bool) -> bool {
        paused && self.frames.is_http2() && self.is_quiet() && self.is_unresponsive()
    }

    /// Whether nothing can be told to the client, as it does not read.
    pub(super) fn is_unresponsive(&self) -> bool {
        has_passed(self.stalled)
    }

    /// Records that HTTP/2 streams have ended.
    pub(super) fn streams_ended(&mut self) {
        self.since = Instant::now();
        self.forget_answered();
    }

    /// Drops what is known of requests whose answers have ended; in HTTP/2, have left.
    pub(super) fn forget_answered(&mut self) {
        let frames = &self.frames;
        self.requests.retain(|request| {
            request.progress != Progress::Answered || request.stream.is_some_and(|id| frames.is_open(id))
        });
    }

    /// Whether the client may still send something while the last that it was sent is on its way: after an answer that
    /// ends the connection, behind which others may be asked for already; and in HTTP/2 at any time, as each part of an
    /// answer that it takes is told to the service. A client that was idle has everything.
    pub(super) fn is_to_linger(&self) -> bool {
        match self.protocol {
            Protocol::Http1 => {
                self.is_never_at_boundary() || self.ledger.unparsed().is_none_or(|head| !head.is_empty())
            }
            Protocol::Http2 => true,
            Protocol::Upgraded(_) => false,
        }
    }

    /// Whether the beginning of a head has been read, or of the preface of HTTP/2.
    pub(super) fn is_at_head(&self) -> bool {
        self.ledger.is_within_head() || self.frames.is_at_preface()
    }

    /// Whether nothing has been asked on a connection that was accepted here.
    pub(super) fn is_silent(&self) -> bool {
        !self.has_asked() && self.ledger.is_before_head()
    }

    /// Whether something was asked on the connection, here or where it was accepted.
    pub(super) fn has_asked(&self) -> bool {
        self.dispatched > 0 || self.asked
    }

    /// Whether the connection waits for its client's next request, or for the rest of its head.
    pub(super) fn awaits_request(&self) -> bool {
        let upgraded = matches!(self.protocol, Protocol::Upgraded(_));
        // hyper may have the whole head, and not have dispatched its request yet.
        let waits = self.is_quiet() && !self.ledger.dispatch_due();
        self.stage == Stage::Open && waits && self.due == Due::Not && !upgraded
    }

    /// Whether nothing has come of the request that the connection waits for.
    pub(super) fn is_idle(&self) -> bool {
        self.awaits_request() && !self.is_at_head()
    }

    /// What keeps a moment from being calm here; as [`Connections::obstacle`].
    fn obstacle(&self, calm: Duration) -> Obstacle {
        if self.is_lingering() {
            return Obstacle::None;
        }
        let mut slow = self.requests.iter().filter(|request| !request.is_late() && request.since.elapsed() > calm);
        if slow.clone().any(InFlight::is_at_work) {
            return Obstacle::Bounded;
        }
        // The answer has ended, and the client does not read the rest of it.
        let unread = self.unflushed && self.since.elapsed() > calm;
        let upgraded = self.protocol == Protocol::Upgraded(Upgrade::Early);
        let unbounded = unread || upgraded || slow.next().is_some();
        if unbounded { Obstacle::Unbounded } else { Obstacle::None }
    }

    pub(super) fn wake(&self) {
        self.reader.iter().chain(&self.writer).for_each(Waker::wake_by_ref);
    }
}

/// Whether a client has had the time to hear since then.
fn has_passed(since: Option<Instant>) -> bool {
    since.is_some_and(|since| since.elapsed() >= UNRESPONSIVE_AFTER)
}

impl Connection {
    /// What keeps a moment from being calm here; as [`Connections::obstacle`].
    pub(crate) fn obstacle(&self, calm: Duration) -> Obstacle {
        self.lock().obstacle(calm)
    }

    /// Whether the connection has to be waited for before HTTP/2 is told to go away; as [`Connections::detached`].
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

    /// Whether hyper is to let go of the connection, and it is not parked yet.
    pub(crate) fn is_detached(&self) -> bool {
        self.lock().stage == Stage::Detached
    }

    /// Whether the connection, quiet since `before`, is to be detached before the others are paused and not parked yet.
    pub(crate) fn leaves_early(&self, before: Instant) -> bool {
        let state = self.lock();
        state.stage == Stage::Detached || (state.may_leave_early() && state.since < before)
    }

    /// Whether a client of HTTP/2 that is told to go, since `began`, has not heard yet, or has nothing to wait for and has not
    /// gone.
    pub(crate) fn is_told(&self, began: Instant) -> bool {
        let state = self.lock();
        let is_told = state.frames.is_http2() && state.stage == Stage::Open && !state.is_unresponsive();
        let lately = state.frames.told().is_none_or(|told| told >= began);
        is_told && lately && (state.is_quiet() || !state.frames.has_heard())
    }

    /// Records that the connection was quiet before it came here, or came back.
    pub(crate) fn set_quiet_since(&self, since: Instant) {
        self.lock().since = since;
    }

    /// Whether a client of HTTP/2 is still here, and may ask.
    pub(crate) fn may_ask_by_http2(&self) -> bool {
        let state = self.lock();
        let is_ending = state.requests.iter().any(InFlight::is_late);
        let may_ask = state.frames.is_http2() && state.stage == Stage::Open && !state.is_unresponsive() && !is_ending;
        if may_ask {
            // Nobody tells when it has had the time to hear that it is to go: its task looks again.
            state.wake();
        }
        may_ask
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

    /// Whether what goes on here ends by itself, whatever the client does; or a request was just dispatched, or the service has
    /// just begun an answer, or ended one, and the client has not had the time yet to send the rest, or to take it. By HTTP/2
    /// that holds for the answers of handlers that were at work for a while `before`, as a client may go on to ask.
    pub(crate) fn is_bounded(&self, before: Instant) -> bool {
        let state = self.lock();
        let is_only_sending = state.is_sending() && state.leaves_by_itself();
        let http1 = state.protocol == Protocol::Http1;
        let requests = state.requests.iter().filter(|request| http1 || request.since + UNRESPONSIVE_AFTER < before);
        let began = requests.map(|request| request.answering_since.unwrap_or(request.since));
        let ended = (state.unflushed || is_only_sending).then_some(state.since);
        if began.chain(ended).any(|since| !has_passed(Some(since))) {
            return true;
        }
        !is_only_sending && state.obstacle(Duration::ZERO) != Obstacle::Unbounded
    }

    /// Whether a request may well be on its way: the first one, or one whose head has begun.
    pub(crate) fn is_expected(&self) -> bool {
        let state = self.lock();
        state.stage == Stage::Open
            && (state.is_at_head() || (state.dispatched == 0 && state.ledger.unparsed().is_some()))
    }
}
