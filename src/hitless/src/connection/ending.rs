//! When the service ends a connection, and how: with a goodbye, or an answer in hyper's place, and in such a way that the
//! client gets it.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::io::{has_room, has_unread};
use super::request::{HEAD_TOO_LARGE, Progress};
use super::{Connection, Due, Idle, Protocol, Socket, Stage, State};
use crate::connections::{Limits, YIELDS_AFTER};
use crate::held::REQUEST;
use crate::notice::Kind;
use crate::upload::Upload;

impl Connection {
    /// How and since when the connection waits for its client, and might make room; `None` when it does not.
    pub(crate) fn idle(&self) -> Option<(Idle, Instant)> {
        let state = self.lock();
        if let (Stage::Lingering { since, .. }, Due::Not) = (state.stage, state.due) {
            return Some((Idle::Lingering, since));
        }
        let kind = if state.has_asked() { Idle::Asked } else { Idle::Silent };
        state.awaits_request().then_some((kind, state.since))
    }

    /// Ends the connection if it may make room for another: it only lingers, or has waited for its client's request for
    /// `YIELDS_AFTER`; where nothing was asked on it yet, for `patience`. Says whether it does.
    pub(crate) fn make_room(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        let lingers = state.is_lingering() && state.due == Due::Not;
        let patience = if state.has_asked() { YIELDS_AFTER } else { patience };
        let makes_room = lingers || (state.awaits_request() && state.since.elapsed() >= patience);
        if makes_room {
            state.due = Due::Yielding;
            self.0.connections.yields();
            state.wake();
            self.0.connections.notice(Kind::Yielded, self.peer());
        }
        makes_room
    }

    /// Whether the connection is over the limit, and stays so although it has something to ask: there is no room, and nobody
    /// makes any.
    pub(crate) fn is_turned_away(&self) -> bool {
        if self.is_over_limit() && self.0.connections.give_place(self) {
            // It may have been taken for one that is not read any more.
            self.lock().read_again();
        }
        self.is_over_limit()
    }

    /// Ends what has reached its limit: silence, a head, a body that is waited for, an answer that is not read. Where an
    /// answer has had nothing to say for `idle_timeout`, no write tells whether the client has gone: the socket is asked.
    pub(crate) fn expire(&self, limits: &Limits) {
        let mut state = self.lock();
        let now = Instant::now();
        let tell = |kind| self.0.connections.notice(kind, self.peer());
        let has_come = |since: Instant, limit| now.saturating_duration_since(since) > limit;
        let head = state.frames.unfinished().or((state.is_at_head() || state.is_silent()).then_some(state.since));
        match head {
            Some(began) if state.is_quiet() && state.due == Due::Not => {
                // Frames that follow each other without a pause are no request either.
                let idle = state.is_idle() && state.frames.is_http2() && has_come(state.since, limits.idle_timeout);
                if has_come(began, limits.header_timeout) || idle {
                    state.due = Due::Expired;
                    if state.is_silent() {
                        tell(Kind::Silent);
                    }
                }
            }
            None if state.is_idle() && has_come(state.since, limits.idle_timeout) => state.due = Due::Expired,
            _ => {}
        }
        let unread = state.stalled.is_some_and(|since| has_come(since, limits.send_timeout));
        if state.due == Due::Not && (unread || state.frames.is_stuck(limits.send_timeout, now)) {
            state.due = Due::Expired;
            tell(Kind::SendTimeout);
        }
        let lingers = match state.stage {
            Stage::Lingering { since, .. } => Some(since),
            // Others wait to be told as much as this one, which does not take what it was told.
            _ if self.is_over_limit() && state.dispatched > 0 => Some(state.since),
            _ => None,
        };
        if state.due == Due::Not && lingers.is_some_and(|since| has_come(since, limits.linger_timeout)) {
            state.due = Due::Expired;
        }
        let given_up = state.frames.give_up(limits.send_timeout, now);
        (0..given_up).for_each(|_| tell(Kind::SendTimeout));
        let is_late = state.late_uploads(limits.body_timeout).next().is_some();
        state.late = is_late;
        if std::mem::take(&mut state.wrote) && !state.requests.is_empty() {
            state.since = now;
        }
        let mute = state.protocol == Protocol::Http1
            && !state.requests.is_empty()
            && state.requests.iter().all(|request| request.progress != Progress::Handling)
            && has_come(state.since, limits.idle_timeout);
        if mute {
            state.since = now;
            state.doubted = true;
        }
        if state.due != Due::Not || state.late || mute || given_up > 0 {
            state.wake();
        }
    }

    /// Ends the bodies of which nothing has come for too long.
    pub(super) fn give_up_uploads(&self, state: &State) {
        for upload in state.late_uploads(self.0.connections.limits().body_timeout) {
            upload.give_up();
            self.0.connections.notice(Kind::BodyTimeout, self.peer());
        }
    }

    /// How much the service holds for the client, in bytes, and for how long it has not got any further; `None` when that is
    /// nothing. A flood is over with that.
    pub(crate) fn held(&self) -> Option<(usize, Duration)> {
        let mut state = self.lock();
        state.read_again();
        if state.due == Due::Shed {
            return None;
        }
        let uploads = state.requests.iter().filter_map(|request| Some((request.upload.as_ref()?, request.stream?)));
        let uploads: usize = uploads.map(|(upload, id)| upload.held(state.frames.received(id))).sum();
        let requests = state.requests.len().max(state.frames.open()) * REQUEST;
        // hyper has what is read of a head as well.
        let head = state.ledger.unparsed().map_or(0, |head| head.len() * 2);
        let since = state.frames.stands_still().or(state.stalled).unwrap_or(state.since);
        let held = self.unread().load(Relaxed) + uploads + requests + head;
        (held > 0).then(|| (held, since.elapsed()))
    }

    /// Ends the connection because of what it holds.
    pub(crate) fn shed(&self) {
        let mut state = self.lock();
        state.has_yielded(&self.0.connections);
        state.due = Due::Shed;
        state.wake();
        self.0.connections.notice(Kind::Shed, self.peer());
    }

    /// Ends an HTTP/1.1 connection that has been silent between requests for so long.
    pub(crate) fn expire_idle(&self, silence: Duration) {
        let mut state = self.lock();
        let asked = !state.is_at_head() && !state.is_silent();
        if asked && state.is_idle() && !state.frames.is_http2() && state.since.elapsed() > silence {
            state.due = Due::Expired;
            state.wake();
        }
    }
}

/// How much of what a client still sends after an early answer is discarded, in bytes.
const LINGER_BYTES: u64 = 64 << 20;

/// How often in a row a client that still sends is read from, before others are served.
const LINGER_READS: usize = 16;

impl State {
    /// The bodies that have been waited for longer than `limit`.
    fn late_uploads(&self, limit: Duration) -> impl Iterator<Item = &Upload> {
        let is_late = move |upload: &&Upload| upload.awaited().is_some_and(|since| since.elapsed() > limit);
        self.requests.iter().filter_map(|request| request.upload.as_ref()).filter(is_late)
    }

    /// Whether the connection is to end, and what the runtime has not told of yet is no reason against it.
    pub(super) fn is_over(&self, socket: &Socket) -> bool {
        self.due != Due::Not && !has_unread(socket) && (self.stalled.is_none() || !has_room(socket))
    }

    /// Closes the connection for hyper, and says so where there are words for it, as far as the socket takes them.
    pub(super) fn say_goodbye(&mut self, socket: Pin<&mut Socket>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        let Some(goodbye) = self.frames.goodbye() else { return Poll::Ready(Ok(())) };
        match self.interject(socket, cx, &goodbye) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Writes frames of its own between those of hyper. After any error but `WouldBlock` nothing more can be written.
    pub(super) fn interject(
        &mut self,
        socket: Pin<&mut Socket>,
        cx: &mut Context<'_>,
        frames: &[u8],
    ) -> io::Result<()> {
        let Poll::Ready(written) = socket.poll_write(cx, frames) else { return Err(io::ErrorKind::WouldBlock.into()) };
        if written? < frames.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if self.frames.written(&[io::IoSlice::new(frames)], frames.len(), Instant::now()) {
            self.streams_ended();
        }
        Ok(())
    }

    /// Closes this side of the connection, and discards what the client still sends until it closes its own, or has had
    /// enough time. A socket that is closed while something is unread resets the connection, and its client may never see
    /// the answer (RFC 9112, section 9.6).
    ///
    /// While the service `leaves`, this side is closed only when everything was sent: afterwards nothing tells.
    pub(super) fn poll_linger(&mut self, mut socket: Pin<&mut Socket>, cx: &mut Context<'_>, leaves: bool) -> Poll<()> {
        self.look_at_unsent(&socket, leaves);
        if !leaves || !self.unsent {
            // A client that has gone needs no end.
            let _ = ready!(socket.as_mut().poll_shutdown(cx));
            self.unsent = false;
        }
        self.reader = Some(cx.waker().clone());
        let mut scrap = [MaybeUninit::uninit(); 8192];
        for _ in 0..LINGER_READS {
            let mut scrap = ReadBuf::uninit(&mut scrap);
            let read = socket.as_mut().poll_read(cx, &mut scrap);
            let count = scrap.filled().len() as u64;
            let Stage::Lingering { discarded, .. } = &mut self.stage else { return Poll::Ready(()) };
            *discarded += count;
            match read {
                Poll::Ready(Ok(())) if count > 0 && *discarded < LINGER_BYTES && self.due == Due::Not => {}
                Poll::Pending if self.due == Due::Not => return Poll::Pending,
                _ => return Poll::Ready(()),
            }
        }
        // Others are to be served meanwhile.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Connection {
    /// Answers in hyper's place a request that no handler gets to see, as far as the socket takes it. What follows is not
    /// read but discarded.
    pub(super) fn refuse(&self, state: &mut State, status: StatusCode, socket: Pin<&mut Socket>, cx: &mut Context<'_>) {
        let (kind, detail) = match status {
            StatusCode::REQUEST_TIMEOUT => (Kind::HeadTimeout, "the request's head did not arrive in the time allowed"),
            StatusCode::URI_TOO_LONG => (Kind::Malformed, "the request's target is too long"),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (Kind::HeadTooLarge, HEAD_TOO_LARGE),
            _ => (Kind::Malformed, "the request cannot be understood"),
        };
        let (connections, peer) = (&self.0.connections, self.peer());
        let id = connections.refusal_id();
        connections.count(false);
        connections.notice(kind, peer);
        tracing::debug!(%peer, request_id = id, status = status.as_u16(), "{detail}");
        let title = status.canonical_reason().unwrap_or("Error");
        let body = format!("{{\"title\":\"{title}\",\"status\":{},\"detail\":\"{detail}\"}}\n", status.as_u16());
        let answer = format!(
            "HTTP/1.1 {} {title}\r\nx-request-id: {id}\r\nconnection: close\r\ncontent-type: application/problem+json\r\n\
             content-length: {}\r\n\r\n{body}",
            status.as_u16(),
            body.len(),
        );
        state.ledger.lose();
        state.stage = Stage::Lingering { since: Instant::now(), discarded: 0 };
        state.spare(connections);
        state.unsent = socket.poll_write(cx, answer.as_bytes()).is_ready();
    }
}

/// The status of an answer that hyper gives by itself.
pub(super) fn refusal(bytes: &[io::IoSlice<'_>]) -> Option<StatusCode> {
    let line = bytes.iter().find(|slice| !slice.is_empty())?.strip_prefix(b"HTTP/1.1 ")?;
    StatusCode::from_bytes(line.get(..3)?).ok()
}
