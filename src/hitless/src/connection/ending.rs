//! How the service ends a connection: with a goodbye, or an answer in hyper's place, and in such a way that the client gets it.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Connection, Due, Socket, Stage, State};
use crate::notice::Kind;

/// How much of what a client still sends after an early answer is discarded, in bytes.
const LINGER_BYTES: u64 = 64 << 20;

/// How often in a row a client that still sends is read from, before others are served.
const LINGER_READS: usize = 16;

impl State {
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
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (Kind::HeadTooLarge, "the request's head is too large"),
            _ => (Kind::Malformed, "the request cannot be understood"),
        };
        let (gate, peer) = (&self.0.gate, self.peer());
        let id = gate.refusal_id();
        gate.count(false);
        gate.notice(kind, peer);
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
        state.spare(gate);
        state.unsent = socket.poll_write(cx, answer.as_bytes()).is_ready();
    }
}

/// The status of an answer that hyper gives by itself.
pub(super) fn refusal(bytes: &[io::IoSlice<'_>]) -> Option<StatusCode> {
    let line = bytes.iter().find(|slice| !slice.is_empty())?.strip_prefix(b"HTTP/1.1 ")?;
    StatusCode::from_bytes(line.get(..3)?).ok()
}
