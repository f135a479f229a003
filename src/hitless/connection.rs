//! A connection: its socket as hyper sees it, and what is known of its requests.
//!
//! A connection is *clean* when every byte read from it belongs to a request that was answered and flushed, apart from
//! the beginning of a head, which travels along. Nothing else about it lives in this process, so whoever holds the
//! socket can go on with it. Once the [gate](Gate) is closed, a clean connection leaves hyper at its next read: it gets an
//! *end of file* without the socket being touched, takes the client for gone and lets go; [`Io`]'s drop then puts the
//! untouched socket aside for the parcel.
//!
//! The state stands behind a lock of its own, held for a few instructions and never across an await.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use axum::extract::connect_info::Connected;
use axum::http::{HeaderMap, Method, StatusCode, Uri, Version, header};
use axum::serve::IncomingStream;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use super::frames::Frames;
use super::gate::{Cut, Gate, Mode, Obstacle};
use super::ledger::{Body, Ledger};
use super::listener::Listener;
use super::parcel::Clean;

/// What a client that takes too long over a request's head is told (RFC 9110, section 15.5.9; RFC 9457).
const HEAD_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\
Content-Type: application/problem+json\r\nContent-Length: 106\r\n\r\n\
{\"title\":\"Request Timeout\",\"status\":408,\"detail\":\"the request's head did not arrive in the time allowed\"}\n";

/// How long a connection has to have been quiet to be taken before the gate closes.
pub(super) const QUIET: Duration = Duration::from_millis(500);

/// A stream socket of either kind.
pub type Socket = Either<TcpStream, UnixStream>;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// A process on this host.
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Unix => f.write_str("unix"),
        }
    }
}

/// A live connection. Handlers get it as `ConnectInfo<Connection>`.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: u64,
    peer: Peer,
    surplus: bool,
    gate: Arc<Gate>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    frames: Frames,
    protocol: Protocol,
    fate: Fate,
    /// The requests in flight: one at most in HTTP/1.1; in HTTP/2 many, each until its stream has ended.
    requests: Vec<InFlight>,
    tickets: u64,
    /// It ends with the request in flight: either side has said so.
    last: bool,
    /// The client has closed its side, and waits for its answer.
    half_closed: bool,
    /// Upgraded when the service had been told to leave: its handler knew so from the first moment.
    late: bool,
    /// A response has ended and its last bytes are not known to have reached the socket.
    unflushed: bool,
    /// When the connection became idle, or the head that is being read began.
    since: Instant,
    /// Since when the client has not read what is written.
    stalled: Option<Instant>,
    /// Idle, at its head, or not reading, for too long.
    expired: bool,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// HTTP/1.1, or nothing known yet.
    Http1,
    Http2,
    /// WebSocket and the like.
    Upgraded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    /// Taken from hyper; the socket belongs to the parcel.
    Taken,
    /// Being closed, by either side.
    Closing,
}

#[derive(Debug)]
struct InFlight {
    ticket: u64,
    since: Instant,
    /// The application's answer has begun, and goes on as long as it goes on.
    answering: bool,
    /// The application's answer has ended. In HTTP/2 it may not have left.
    answered: bool,
    /// In HTTP/2: turned into a WebSocket and the like, and that when the service had been told to leave.
    upgraded: bool,
    late: bool,
    /// Its stream of HTTP/2.
    stream: Option<u32>,
    method: Method,
    uri: Uri,
}

impl Connection {
    /// The address of the client, or of the proxy before it.
    pub fn peer(&self) -> Peer {
        self.0.peer
    }

    /// Whether the connection is over the limit, and to be told so.
    pub(super) fn is_surplus(&self) -> bool {
        self.0.surplus
    }

    /// Enters that hyper handed a request to the application.
    pub(super) fn dispatched(&self, request: &axum::extract::Request) -> Ticket {
        use http_body::Body as _;
        let mut state = self.lock();
        let http1 = request.version() <= Version::HTTP_11;
        let mut stream = None;
        if !http1 {
            state.protocol = Protocol::Http2;
            state.ledger.lose();
            stream = state.frames.dispatched();
        } else {
            // hyper's own reading of the head, so that there are no two opinions on where the request ends.
            let length = request.body().size_hint().exact();
            state.ledger.dispatched(length.map_or(Body::Chunked, Body::Length));
            // Such a client waits for the end of file.
            state.last |= state.half_closed || request.version() < Version::HTTP_11 || says_close(request.headers());
        }
        state.tickets += 1;
        let ticket = state.tickets;
        state.requests.push(InFlight {
            ticket,
            since: Instant::now(),
            answering: false,
            answered: false,
            upgraded: false,
            late: false,
            stream,
            method: request.method().clone(),
            uri: request.uri().clone(),
        });
        drop(state);
        Ticket { connection: self.clone(), id: ticket, http1, answered: false }
    }

    /// Has hyper read from the connection once more.
    pub(super) fn wake(&self) {
        self.lock().wake();
    }

    /// What keeps a moment from being calm here; as [`Gate::obstacle`].
    pub(super) fn obstacle(&self, calm: Duration) -> Obstacle {
        let state = self.lock();
        let now = Instant::now();
        // A client that stands still over its request may do so for as long as one that does not read.
        let is_at_work = |request: &InFlight| {
            !request.answering && !request.stream.is_some_and(|id| state.frames.is_waiting_for_client(id, calm, now))
        };
        let mut slow = state.requests.iter().filter(|request| !request.late && now - request.since > calm);
        if slow.clone().any(is_at_work) {
            return Obstacle::Passing;
        }
        // The answer has ended, and the client does not read the rest of it.
        let unread = state.unflushed && state.since.elapsed() > calm;
        let upgraded = state.protocol == Protocol::Upgraded && !state.late;
        let lasting = unread || upgraded || slow.next().is_some();
        if lasting { Obstacle::Lasting } else { Obstacle::None }
    }

    /// Whether the connection has to be waited for before HTTP/2 is told to go away; as [`Gate::taken`].
    pub(super) fn is_awaited(&self, before: Option<Instant>) -> bool {
        let state = self.lock();
        match state.protocol {
            Protocol::Http1 => state.fate == Fate::Open && !state.leaves_by_itself(),
            Protocol::Http2 => {
                let mut requests = state.requests.iter().filter(|request| !request.upgraded);
                requests.any(|request| before.is_some_and(|before| request.since < before))
            }
            Protocol::Upgraded => false,
        }
    }

    /// Whether the connection was taken from hyper, and is not put aside yet.
    pub(super) fn is_taken(&self) -> bool {
        self.lock().fate == Fate::Taken
    }

    /// Whether the connection, quiet since `before`, is to be taken before the gate closes and not put aside yet.
    pub(super) fn leaves_early(&self, before: Instant) -> bool {
        let state = self.lock();
        state.fate == Fate::Taken || (state.may_leave_early() && state.since < before)
    }

    /// Whether something would be lost with the connection.
    pub(super) fn is_busy(&self) -> bool {
        !self.lock().leaves_by_itself()
    }

    /// Whether a request may well be on its way: the first one, or one whose head has begun.
    pub(super) fn is_expected(&self) -> bool {
        let state = self.lock();
        state.fate == Fate::Open && (state.is_at_head() || (state.tickets == 0 && state.ledger.rest().is_some()))
    }

    /// Ends the connection if it has been silent, or not reading, for `idle`, or sending a head for `head`.
    ///
    /// A client of HTTP/2 reads each answer or not: counts the streams that end because it has not, for `idle`.
    pub(super) fn expire(&self, idle: Duration, head: Duration) -> usize {
        let mut state = self.lock();
        let now = Instant::now();
        let (since, limit) = match state.frames.unfinished() {
            Some(began) => (began, head),
            None => (state.since, if state.is_at_head() { head } else { idle }),
        };
        let upgraded = state.protocol == Protocol::Upgraded;
        let silent = state.fate == Fate::Open && !upgraded && state.is_quiet() && since.elapsed() > limit;
        let given_up = state.frames.give_up(idle, now);
        let stuck = state.stalled.is_some_and(|since| since.elapsed() > idle) || state.frames.is_stuck(idle, now);
        state.expired |= silent || stuck;
        if silent || stuck || given_up > 0 {
            state.wake();
        }
        given_up
    }

    /// What is lost when the connection is cut now.
    pub(super) fn cut(&self) -> Vec<Cut> {
        let state = self.lock();
        let peer = self.peer();
        if state.requests.is_empty() {
            return vec![Cut { peer, request: None, age: state.since.elapsed() }];
        }
        let cut = |request: &InFlight| Cut {
            peer,
            request: Some((request.method.clone(), request.uri.path().to_owned())),
            age: request.since.elapsed(),
        };
        state.requests.iter().map(cut).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves the state as it was before a single step of it.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a message announces the end of its connection (RFC 9110, section 7.6.1).
pub(super) fn says_close(headers: &HeaderMap) -> bool {
    let mut options = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    options.any(|options| options.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")))
}

impl Connected<IncomingStream<'_, Listener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.io().connection().clone()
    }
}

/// A request's entry among those in flight, until it is answered. Dropped before, it stands for an answer that was
/// given up.
#[derive(Debug)]
pub(super) struct Ticket {
    connection: Connection,
    id: u64,
    http1: bool,
    answered: bool,
}

impl Ticket {
    /// Enters that the answer's head is ready, and says whether it has to announce the end of the connection.
    ///
    /// `last`: the application ends the connection with this answer. `upgrade`: it turns it into something else.
    /// With a `status` that is no success, it may have left the request's body unread.
    pub(super) fn answering(&self, status: StatusCode, last: bool, upgrade: bool) -> bool {
        self.connection.0.gate.count(status.is_server_error());
        let failed = status.is_client_error() || status.is_server_error();
        let late = self.connection.0.gate.mode() != Mode::Open;
        let mut state = self.connection.lock();
        if let Some(request) = state.requests.iter_mut().find(|request| request.ticket == self.id) {
            request.answering = true;
            request.upgraded = upgrade && !self.http1;
            request.late = request.upgraded && late;
        }
        if upgrade && self.http1 {
            state.protocol = Protocol::Upgraded;
            state.late = late;
        }
        if !self.http1 || upgrade {
            state.ledger.lose();
            return false;
        }
        // In the second case hyper will close the connection, because the request's body was not read.
        state.last |= last || (failed && !state.ledger.answer_due());
        match self.connection.0.gate.mode() {
            // What cannot be handed over ends now, with notice, rather than at a restart, without.
            Mode::Open | Mode::HandingOver => state.is_never_clean(),
            Mode::Retiring | Mode::Retired => true,
        }
    }

    /// Enters that the answer has ended, whole.
    pub(super) fn answered(&mut self) {
        if !self.answered {
            self.answered = true;
            self.finish(true);
        }
    }

    fn finish(&self, whole: bool) {
        let mut state = self.connection.lock();
        if let Some(request) = state.requests.iter_mut().find(|request| request.ticket == self.id) {
            request.answering = true;
            request.answered = true;
        }
        state.forget_answered();
        state.since = Instant::now();
        if state.protocol == Protocol::Http1 {
            state.unflushed = true;
            if whole {
                state.ledger.answered();
            } else {
                state.ledger.lose();
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.finish(false);
        }
    }
}

impl State {
    /// Whether another process can go on with the connection.
    fn is_clean(&self) -> bool {
        self.fate == Fate::Open && self.is_quiet() && !self.last && self.ledger.rest().is_some()
    }

    /// Whether there is a request of which hyper has nothing more to read, as far as is known.
    fn has_request(&self) -> bool {
        self.protocol == Protocol::Http1 && (self.ledger.answer_due() || self.ledger.dispatch_due())
    }

    /// Whether no other process can ever go on with the connection.
    fn is_never_clean(&self) -> bool {
        self.last || self.ledger.is_lost()
    }

    /// Whether nobody is likely to notice that the connection is taken a little before the others.
    fn may_leave_early(&self) -> bool {
        self.is_clean() && !self.is_at_head() && self.since.elapsed() >= QUIET
    }

    /// Whether nothing is lost when axum, told to end, closes the connection: HTTP/2, or what cannot be handed over,
    /// without a request; and what was only upgraded to be told goodbye.
    fn leaves_by_itself(&self) -> bool {
        let late = self.requests.iter().filter(|request| request.late).count();
        let quiet = self.requests.len() == late && self.frames.open() <= late && !self.unflushed;
        quiet && self.is_never_clean() && (self.protocol != Protocol::Upgraded || self.late)
    }

    /// Whether no request is in flight and no answer on its way to the socket.
    fn is_quiet(&self) -> bool {
        self.requests.is_empty() && self.frames.open() == 0 && !self.unflushed
    }

    /// Enters that HTTP/2 streams have ended.
    fn streams_ended(&mut self) {
        self.since = Instant::now();
        self.forget_answered();
    }

    /// Drops what is known of requests whose answers have ended; in HTTP/2, have left.
    fn forget_answered(&mut self) {
        let frames = &self.frames;
        self.requests.retain(|request| !request.answered || request.stream.is_some_and(|id| frames.is_open(id)));
    }

    /// Whether the beginning of a head has been read.
    fn is_at_head(&self) -> bool {
        self.ledger.rest().is_some_and(|rest| !rest.is_empty())
    }

    /// Closes the connection for hyper, and says so where there are words for it, as far as the socket takes them.
    fn say_goodbye(&mut self, socket: Pin<&mut Socket>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fate = Fate::Closing;
        let Some(goodbye) = self.frames.goodbye() else { return Poll::Ready(Ok(())) };
        match self.interject(socket, cx, &goodbye) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Writes frames of its own between those of hyper. After any error but `WouldBlock` nothing more can be written.
    fn interject(&mut self, socket: Pin<&mut Socket>, cx: &mut Context<'_>, frames: &[u8]) -> io::Result<()> {
        let Poll::Ready(written) = socket.poll_write(cx, frames) else { return Err(io::ErrorKind::WouldBlock.into()) };
        if written? < frames.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if self.frames.written(&[io::IoSlice::new(frames)], frames.len(), Instant::now()) {
            self.streams_ended();
        }
        Ok(())
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

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
    /// A connection behind `gate`, where it is number `id`. `rest` is what another process has read of its next
    /// request; a `surplus` connection is over the limit and only told so.
    pub(super) fn new(gate: Arc<Gate>, id: u64, socket: Socket, peer: Peer, rest: Vec<u8>, surplus: bool) -> Self {
        let state = State {
            ledger: Ledger::default(),
            frames: Frames::default(),
            protocol: Protocol::Http1,
            fate: Fate::Open,
            requests: Vec::new(),
            tickets: 0,
            last: false,
            half_closed: false,
            late: false,
            unflushed: false,
            since: Instant::now(),
            stalled: None,
            expired: false,
            waker: None,
        };
        let connection = Connection(Arc::new(Shared { id, peer, surplus, gate, state: Mutex::new(state) }));
        Self { socket: Some(socket), unread: rest, connection }
    }

    /// What others may know of it.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// Whether something has arrived that the runtime has not told of yet: after a standstill there is a lot to tell.
fn has_unread(socket: &Socket) -> bool {
    let (mut byte, flags) = ([0], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    let received = match socket {
        Either::Left(tcp) => recv(tcp, &mut byte, flags),
        Either::Right(unix) => recv(unix, &mut byte, flags),
    };
    received.is_ok_and(|(_, count)| count > 0)
}

/// Why `Io::socket` can be unwrapped.
const PRESENT: &str = "the socket is there until the drop";

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Io { socket, unread, connection } = self.get_mut();
        let mut socket = Pin::new(socket.as_mut().expect(PRESENT));
        let mut state = connection.lock();
        let closed = connection.0.gate.is_closed();
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            waker => *waker = Some(cx.waker().clone()),
        }
        if closed {
            if state.is_clean() {
                state.fate = Fate::Taken;
            }
            if state.ledger.answer_due() {
                // What comes next is for the next process. The end of this answer wakes the task.
                return Poll::Pending;
            }
        }
        if state.fate == Fate::Taken {
            return Poll::Ready(Ok(()));
        }
        if state.half_closed && state.has_request() && !state.expired {
            return Poll::Pending;
        }
        let resets = state.frames.resets();
        if !resets.is_empty() && unread.is_empty() {
            match state.interject(socket.as_mut(), cx, &resets) {
                // The client has them from the service, and hyper gets them as if they came from the client.
                Ok(()) => *unread = resets,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    state.fate = Fate::Closing;
                    return Poll::Ready(Err(error));
                }
            }
        }
        if connection.is_surplus() && state.frames.has_asked() {
            // The end of the last stream wakes the task.
            return if state.frames.open() > 0 { Poll::Pending } else { state.say_goodbye(socket, cx) };
        }

        let start = buf.filled().len();
        if !unread.is_empty() {
            let count = unread.len().min(buf.remaining());
            buf.put_slice(&unread[..count]);
            unread.drain(..count);
        } else {
            match socket.as_mut().poll_read(cx, buf) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    state.fate = Fate::Closing;
                    return Poll::Ready(Err(error));
                }
                Poll::Pending if state.expired && !has_unread(&socket) => {
                    if state.is_at_head() {
                        // As far as the socket takes it: the client has had its time.
                        let _ = socket.as_mut().poll_write(cx, HEAD_TIMEOUT);
                    }
                    return state.say_goodbye(socket, cx);
                }
                Poll::Pending if connection.0.gate.is_thinning() && state.may_leave_early() => {
                    state.fate = Fate::Taken;
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => return Poll::Pending,
            }
        }

        let read = &buf.filled()[start..];
        if read.is_empty() {
            if state.has_request() {
                // Its request is whole, and it may well wait for the answer. hyper would drop the request.
                state.half_closed = true;
                state.last |= state.ledger.answer_due();
                return Poll::Pending;
            }
            state.fate = Fate::Closing;
            return Poll::Ready(Ok(()));
        }
        let now = Instant::now();
        // A client of HTTP/2 is as silent as its streams, whatever else it sends.
        if !state.is_at_head() && !state.frames.is_http2() {
            state.since = now;
        }
        state.expired = false;
        state.ledger.read(read);
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
        if state.fate == Fate::Taken {
            // hyper refuses the part of a head that it has. The whole goes to another process.
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.protocol == Protocol::Http1 && state.is_quiet() {
            // Not an answer of the application: hyper refuses what it read, and will close.
            state.ledger.lose();
        }
        let written = Pin::new(socket.as_mut().expect(PRESENT)).poll_write_vectored(cx, bytes);
        if let Poll::Ready(result) = &written {
            state.stalled = None;
            let count = *result.as_ref().unwrap_or(&0);
            if state.frames.is_http2() && state.frames.written(bytes, count, Instant::now()) {
                state.streams_ended();
                if connection.is_surplus() {
                    // Its end is due.
                    cx.waker().wake_by_ref();
                }
            }
        } else if state.expired && state.stalled.is_some() {
            state.fate = Fate::Closing;
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        } else {
            state.stalled.get_or_insert_with(Instant::now);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes only when it has written all that it had. A socket's own flush does nothing.
        let mut state = self.connection.lock();
        let flushed = std::mem::take(&mut state.unflushed);
        if flushed && (state.half_closed || self.connection.0.gate.is_closed()) {
            // hyper may have nothing more to do with the connection: have it read once more, to be taken.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Io { socket, connection, .. } = self.get_mut();
        let mut state = connection.lock();
        if state.fate == Fate::Taken {
            return Poll::Ready(Ok(()));
        }
        state.fate = Fate::Closing;
        drop(state);
        Pin::new(socket.as_mut().expect(PRESENT)).poll_shutdown(cx)
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        let Some(socket) = self.socket.take() else { return };
        let gate = &self.connection.0.gate;
        let mut state = self.connection.lock();
        if state.fate == Fate::Taken {
            let mut rest = state.ledger.rest().unwrap_or_default().to_vec();
            rest.append(&mut self.unread);
            let socket = match socket {
                Either::Left(tcp) => tcp.into_std().map(Into::into),
                Either::Right(unix) => unix.into_std().map(Into::into),
            };
            match socket {
                Ok(socket) => gate.put(vec![Clean { socket, rest }]),
                Err(error) => tracing::error!("the connection of {} cannot be taken: {error}", self.connection.peer()),
            }
        }
        state.fate = Fate::Closing;
        drop(state);
        gate.forget(self.connection.0.id);
    }
}
