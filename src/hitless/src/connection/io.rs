//! The socket of a connection as hyper reads and writes it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::http::StatusCode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use super::ending::refusal;
use super::{Connection, Due, Origin, Peer, Protocol, Shared, Stage, State};
use crate::connections::{Connections, Mode};
use crate::frames::Frames;
use crate::held::{READ, READ_WHEN_TIGHT};
use crate::ledger::Ledger;
use crate::queue::Detached;

/// How much a connection may say before others are served: 16 KiB may be thousands of frames, or of chunks.
const FAIR_BYTES: usize = 16 << 10;

/// The socket of a connection, as hyper reads and writes it.
#[derive(Debug)]
pub struct Io {
    /// Taken out in `drop` alone.
    socket: Option<Socket>,
    /// Bytes that another process has read and hyper here has not.
    unread: Vec<u8>,
    connection: Connection,
}

impl Io {
    /// A connection among `connections`, where it is number `id`. `unparsed` is what another process has read of its next request.
    pub(crate) fn new(
        connections: Arc<Connections>,
        id: u64,
        socket: Socket,
        peer: Peer,
        unparsed: Vec<u8>,
        origin: Origin,
    ) -> Self {
        let state = State {
            ledger: Ledger::default(),
            frames: Frames::default(),
            protocol: Protocol::Http1,
            stage: Stage::Open,
            due: Due::Not,
            requests: Vec::new(),
            dispatched: 0,
            asked: matches!(origin, Origin::Adopted | Origin::Guest),
            last: false,
            half_closed: false,
            unflushed: false,
            unsent: false,
            withheld: false,
            since: Instant::now(),
            wrote: false,
            stalled: None,
            doubted: false,
            streak: 0,
            reader: None,
            writer: None,
        };
        let over_limit = AtomicBool::new(origin == Origin::OverLimit);
        let unread = AtomicUsize::new(0);
        let connection = Connection(Arc::new(Shared {
            id,
            peer,
            origin,
            over_limit,
            unread,
            connections,
            state: Mutex::new(state),
        }));
        Self { socket: Some(socket), unread: unparsed, connection }
    }

    /// What others may know of it.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// Why `Io::socket` can be unwrapped.
const PRESENT: &str = "the socket is there until the drop";

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Io { socket, unread, connection } = self.get_mut();
        let mut socket = Pin::new(socket.as_mut().expect(PRESENT));
        let mut state = connection.lock();
        let closed = connection.0.connections.is_paused();
        let leaves = connection.0.connections.mode() != Mode::Serving;
        match &mut state.reader {
            Some(waker) => waker.clone_from(cx.waker()),
            waker => *waker = Some(cx.waker().clone()),
        }
        if closed && state.is_at_boundary() {
            state.stage = Stage::Detached;
        }
        if state.stage == Stage::Detached {
            return Poll::Ready(Ok(()));
        }
        if state.is_lingering() {
            // Its request was refused, and hyper is to drop what it has of it.
            return state.poll_linger(socket, cx, leaves).map(Ok);
        }
        state.look_at_unsent(&socket, leaves);
        state.withheld = state.withholds(closed) || connection.0.connections.is_flooded();
        if state.withheld {
            return Poll::Pending;
        }
        if state.due == Due::Shed {
            return state.say_goodbye(socket, cx);
        }
        if connection.0.connections.is_telling()
            && state.stalled.is_none()
            && let Some(notice) = state.frames.notice_to_leave()
        {
            // Where there is no room for it the client is told later, by hyper.
            match state.interject(socket.as_mut(), cx, &notice) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    state.close();
                    return Poll::Ready(Err(error));
                }
                _ => {}
            }
        }
        if state.frames.is_http2() && state.is_quiet() && (state.due != Due::Not || state.is_to_go(closed)) {
            // However much it goes on to say, it asks nothing.
            return state.say_goodbye(socket, cx);
        }
        let resets = state.frames.resets();
        if !resets.is_empty() && unread.is_empty() {
            match state.interject(socket.as_mut(), cx, &resets) {
                // The client has them from the service, and hyper gets them as if they came from the client.
                Ok(()) => *unread = resets,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    state.close();
                    return Poll::Ready(Err(error));
                }
            }
        }
        if connection.is_over_limit() && state.frames.has_asked() {
            // The end of the last stream wakes the task, or that there is room after all.
            state.withheld = state.frames.open() > 0 && state.due == Due::Not;
            return if state.withheld { Poll::Pending } else { state.say_goodbye(socket, cx) };
        }

        let start = buf.filled().len();
        if !unread.is_empty() {
            let count = unread.len().min(buf.remaining());
            buf.put_slice(&unread[..count]);
            unread.drain(..count);
        } else if state.streak >= FAIR_BYTES {
            state.streak = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        } else {
            let most = if connection.is_tight() { READ_WHEN_TIGHT } else { READ };
            let read = poll_read_some(socket.as_mut(), cx, buf, most);
            state.streak = if read.is_pending() { 0 } else { state.streak + buf.filled().len() - start };
            match read {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    state.close();
                    return Poll::Ready(Err(error));
                }
                Poll::Pending if state.due != Due::Not && !has_unread(&socket) => {
                    if state.is_at_head() {
                        connection.refuse(&mut state, StatusCode::REQUEST_TIMEOUT, socket.as_mut(), cx);
                        return state.poll_linger(socket, cx, leaves).map(Ok);
                    }
                    return state.say_goodbye(socket, cx);
                }
                Poll::Pending if connection.0.connections.is_detaching_idle() && state.may_leave_early() => {
                    state.stage = Stage::Detached;
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => return Poll::Pending,
            }
        }

        let read = &buf.filled()[start..];
        if read.is_empty() {
            if state.has_request() {
                // Its request may well be whole, and it waits for the answer. hyper would drop the request.
                state.half_closed = true;
                state.last |= state.ledger.answer_due();
                state.withheld = true;
                return Poll::Pending;
            }
            state.close();
            return Poll::Ready(Ok(()));
        }
        connection.0.connections.take_in(read.len());
        let now = Instant::now();
        // A client of HTTP/2 is as silent as its streams, whatever else it sends.
        if !state.is_at_head() && !state.frames.is_http2() {
            state.since = now;
        }
        state.spare(&connection.0.connections);
        state.ledger.read(read);
        if !state.ledger.is_lost() && state.ledger.head_bytes() > connection.0.connections.limits().max_head_bytes {
            let refused = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            buf.set_filled(start);
            connection.refuse(&mut state, refused, socket.as_mut(), cx);
            return state.poll_linger(socket, cx, leaves).map(Ok);
        }
        if state.frames.read(read, now) {
            state.streams_ended();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Io { socket, connection, .. } = self.get_mut();
        let mut state = connection.lock();
        if state.stage == Stage::Detached {
            // hyper refuses the part of a head that it has. The whole goes to another process.
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.due == Due::Shed {
            state.close();
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let mut socket = Pin::new(socket.as_mut().expect(PRESENT));
        if state.protocol == Protocol::Http1 && state.is_quiet() {
            // Not an answer of the application: hyper refuses what it read, and will close. Or it begins with HTTP/2.
            if let Some(status) = refusal(bytes) {
                connection.refuse(&mut state, status, socket.as_mut(), cx);
                return Poll::Ready(Ok(bytes.iter().map(|slice| slice.len()).sum()));
            }
            state.ledger.lose();
        }
        let written = socket.poll_write_vectored(cx, bytes);
        if let Poll::Ready(result) = &written {
            state.stalled = None;
            state.wrote = true;
            state.writer = None;
            let count = *result.as_ref().unwrap_or(&0);
            state.unsent |= count > 0;
            if state.frames.is_http2() && state.frames.written(bytes, count, Instant::now()) {
                state.streams_ended();
                if connection.is_over_limit() || state.frames.has_heard() {
                    // Its end is due.
                    cx.waker().wake_by_ref();
                }
            }
        } else if (state.due != Due::Not && state.stalled.is_some())
            || state.is_given_up(connection.0.connections.is_paused())
        {
            state.close();
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        } else {
            state.stalled.get_or_insert_with(Instant::now);
            state.writer = Some(cx.waker().clone());
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes only when it has written all that it had. A socket's own flush does nothing.
        let Io { socket, connection, .. } = self.get_mut();
        let mut state = connection.lock();
        if std::mem::take(&mut state.unflushed) {
            state.read_again();
        }
        // hyper does not read while it answers a request whose body it gave up.
        if std::mem::take(&mut state.doubted) && has_hung_up(socket.as_ref().expect(PRESENT)) {
            state.close();
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Io { socket, connection, .. } = self.get_mut();
        let socket = Pin::new(socket.as_mut().expect(PRESENT));
        let leaves = connection.0.connections.mode() != Mode::Serving;
        let mut state = connection.lock();
        if state.stage == Stage::Detached {
            return Poll::Ready(Ok(()));
        }
        state.close();
        if state.is_to_linger() && state.due != Due::Shed {
            if !state.is_lingering() {
                state.stage = Stage::Lingering { since: Instant::now(), discarded: 0 };
            }
            state.has_yielded(&connection.0.connections);
            return state.poll_linger(socket, cx, leaves).map(Ok);
        }
        drop(state);
        socket.poll_shutdown(cx)
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        let Some(socket) = self.socket.take() else { return };
        let connections = &self.connection.0.connections;
        let mut state = self.connection.lock();
        if state.stage == Stage::Detached {
            let mut unparsed = state.ledger.unparsed().unwrap_or_default().to_vec();
            unparsed.append(&mut self.unread);
            let socket = match socket {
                Either::Left(tcp) => tcp.into_std().map(Into::into),
                Either::Right(unix) => unix.into_std().map(Into::into),
            };
            match socket {
                Ok(socket) => {
                    let origin = if state.has_asked() { Origin::Adopted } else { Origin::Unasked };
                    connections.park(vec![Detached { socket, unparsed, origin }]);
                }
                Err(error) => {
                    tracing::error!("the connection of {} cannot be detached: {error}", self.connection.peer())
                }
            }
        }
        // What has gone makes no room.
        state.stage = Stage::Closing;
        state.has_yielded(connections);
        drop(state);
        connections.forget(self.connection.0.id, self.connection.0.origin);
    }
}

/// A stream socket of either kind.
pub type Socket = Either<TcpStream, UnixStream>;

/// Reads so many bytes at the `most`.
pub(super) fn poll_read_some(
    socket: Pin<&mut Socket>,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
    most: usize,
) -> Poll<io::Result<()>> {
    if buf.remaining() <= most {
        return socket.poll_read(cx, buf);
    }
    // A part of the buffer that was filled with zeros first would be written twice.
    Pin::new(&mut socket.take(most as u64)).poll_read(cx, buf)
}

/// Whether something has arrived that the runtime has not told of yet: after a standstill there is a lot to tell.
pub(super) fn has_unread(socket: &Socket) -> bool {
    let (mut byte, flags) = ([0], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    let received = match socket {
        Either::Left(tcp) => recv(tcp, &mut byte, flags),
        Either::Right(unix) => recv(unix, &mut byte, flags),
    };
    received.is_ok_and(|(_, count)| count > 0)
}

/// Whether the kernel has sent everything. What it has sent and the client has not read is with the client already.
pub(super) fn is_sent(socket: &Socket) -> bool {
    // To a client on this host everything is sent at once.
    let Either::Left(tcp) = socket else { return true };
    let options = SockRef::from(tcp);
    // Writable is from now on a socket of which nothing waits to be sent; 0 takes that back.
    if options.set_tcp_notsent_lowat(1).is_err() {
        return true;
    }
    let mut asked = [PollFd::new(tcp, PollFlags::OUT)];
    let is_sent = poll(&mut asked, Some(&Timespec::default())).is_ok_and(|count| count > 0);
    let _ = options.set_tcp_notsent_lowat(0);
    is_sent
}

/// Whether the client has closed its side, which it may have done behind bytes that nobody reads.
pub(super) fn has_hung_up(socket: &Socket) -> bool {
    let interest = PollFlags::RDHUP;
    let mut asked = match socket {
        Either::Left(tcp) => [PollFd::new(tcp, interest)],
        Either::Right(unix) => [PollFd::new(unix, interest)],
    };
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}
