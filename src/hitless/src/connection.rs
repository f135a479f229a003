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
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use axum::extract::connect_info::Connected;
use axum::http::{HeaderMap, Method, StatusCode, Uri, Version, header};
use axum::serve::IncomingStream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use super::frames::Frames;
use super::gate::{Cut, Gate, Limits, Mode, Obstacle, YIELDS_AFTER};
use super::held::{READ, READ_WHEN_TIGHT, REQUEST};
use super::ledger::{Body, Ledger};
use super::listener::Listener;
use super::notice::Kind;
use super::parcel::Clean;
use super::upload::{Upload, Watched};

/// How much of what a client still sends after an early answer is discarded, in bytes.
const LINGER_BYTES: u64 = 64 << 20;

/// How often in a row a client that still sends is read from, before others are served.
const LINGER_READS: usize = 16;

/// How long a connection has to have been quiet to be taken before the gate closes.
pub(super) const QUIET: Duration = Duration::from_millis(500);

/// How much a connection may say before others are served: 16 KiB may be thousands of frames, or of chunks.
const FAIR_BYTES: usize = 16 << 10;

/// How long a client that was told to go, or does not read, has until it is taken for one that does not hear.
const DEAF_AFTER: Duration = Duration::from_millis(100);

/// How much of the path of a request that is cut off is told, in bytes.
const PATH: usize = 256;

/// A stream socket of either kind.
pub type Socket = Either<TcpStream, UnixStream>;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A client by TCP.
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

/// How a connection is idle, in the order in which they make room for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Idle {
    /// It has ended, and what its client still sends is discarded.
    Lingering,
    /// Nothing was asked yet.
    Silent,
    Asked,
}

/// How a connection came to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Accepted,
    /// Accepted over the limit: served if another one makes room for it, else only told so.
    Surplus,
    /// Handed over by the process before, or put aside by this one.
    Adopted,
    /// The same, and nothing was asked on it yet.
    Unasked,
    /// Handed over by a sibling.
    Guest,
}

/// What a request of HTTP/1.1 carries as an extension whose target has a fragment: hyper has dropped that, and a proxy in
/// front may have taken it for a part of the path.
#[derive(Clone, Copy, Debug)]
pub struct Fragment;

/// A live connection. Handlers get it as `ConnectInfo<Connection>`.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: u64,
    peer: Peer,
    origin: Origin,
    /// Over the limit of connections.
    surplus: AtomicBool,
    /// Of its answers, what hyper has and the client has not, in bytes.
    unread: AtomicUsize,
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
    /// Something was asked on it before it came to this process.
    asked: bool,
    /// It ends with the request in flight: either side has said so.
    last: bool,
    /// The client has closed its side, and waits for its answer.
    half_closed: bool,
    /// Upgraded when the service had been told to leave: its handler knew so from the first moment.
    late: bool,
    /// A response has ended and its last bytes are not known to have reached the socket.
    unflushed: bool,
    /// Something was written of which the kernel may still hold a part.
    unsent: bool,
    /// hyper was told that there is nothing to read, without the socket having been asked.
    withheld: bool,
    /// When the connection became idle, the head that is being read began, or a part of an answer was found written.
    since: Instant,
    /// Something was written since the limits were looked at.
    wrote: bool,
    /// Since when the client has not read what is written.
    stalled: Option<Instant>,
    /// Idle, at its head, or not reading, for too long; or it is to make room.
    expired: bool,
    /// It is to make room, and counted so.
    yielding: bool,
    /// It holds too much, and is to end whatever it is at.
    shed: bool,
    /// Since when what the client still sends is discarded, and how much it was.
    lingering: Option<(Instant, u64)>,
    /// To be asked whether its client has closed its side.
    doubted: bool,
    /// How much was read since there was nothing to read, or others were served.
    streak: usize,
    /// Of the task that read last.
    reader: Option<Waker>,
    /// Of the task that waits for the client to read: once the connection is upgraded, it may be another one, and nobody
    /// may read at all.
    writer: Option<Waker>,
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
    /// The request's body, if it has one that has not arrived yet.
    upload: Option<Upload>,
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

    /// Whether the connection is over the limit.
    fn is_surplus(&self) -> bool {
        self.0.surplus.load(Relaxed)
    }

    /// Enters that hyper handed a request to the application. From then on its body tells when it is waited for.
    pub(super) fn dispatched(&self, request: &mut axum::extract::Request) -> Ticket {
        use http_body::Body as _;
        let upload = (!request.body().is_end_stream()).then(Upload::default);
        let mut state = self.lock();
        let http1 = request.version() <= Version::HTTP_11;
        let mut stream = None;
        if !http1 {
            state.protocol = Protocol::Http2;
            state.ledger.lose();
            stream = state.frames.dispatched();
        } else {
            if state.ledger.has_fragment() {
                request.extensions_mut().insert(Fragment);
            }
            // hyper's own reading of the head, so that there are no two opinions on where the request ends.
            let length = request.body().size_hint().exact();
            state.ledger.dispatched(length.map_or(Body::Chunked, Body::Length));
            // Such a client waits for the end of file.
            state.last |= state.half_closed || request.version() < Version::HTTP_11 || says_close(request.headers());
        }
        self.0.gate.take_in(REQUEST);
        state.tickets += 1;
        let ticket = state.tickets;
        state.requests.push(InFlight {
            ticket,
            since: Instant::now(),
            answering: false,
            upload: upload.clone(),
            answered: false,
            upgraded: false,
            late: false,
            stream,
            method: request.method().clone(),
            uri: request.uri().clone(),
        });
        state.read_again();
        drop(state);
        if let Some(upload) = &upload {
            let body = std::mem::take(request.body_mut());
            *request.body_mut() = axum::body::Body::new(Watched::new(body, upload.clone()));
            request.extensions_mut().insert(upload.clone());
        }
        Ticket { connection: self.clone(), id: ticket, http1, answered: false, upload }
    }

    /// Has hyper read from the connection once more.
    pub(super) fn wake(&self) {
        self.lock().wake();
    }

    /// What keeps a moment from being calm here; as [`Gate::obstacle`].
    pub(super) fn obstacle(&self, calm: Duration) -> Obstacle {
        let state = self.lock();
        if state.lingering.is_some() {
            return Obstacle::None;
        }
        let mut slow = state.requests.iter().filter(|request| !request.late && request.since.elapsed() > calm);
        if slow.clone().any(InFlight::is_at_work) {
            return Obstacle::Bounded;
        }
        // The answer has ended, and the client does not read the rest of it.
        let unread = state.unflushed && state.since.elapsed() > calm;
        let upgraded = state.protocol == Protocol::Upgraded && !state.late;
        let unbounded = unread || upgraded || slow.next().is_some();
        if unbounded { Obstacle::Unbounded } else { Obstacle::None }
    }

    /// How and since when the connection waits for its client, and might make room; `None` when it does not.
    pub(super) fn idle(&self) -> Option<(Idle, Instant)> {
        let state = self.lock();
        if let Some((since, _)) = state.lingering.filter(|_| !state.expired) {
            return Some((Idle::Lingering, since));
        }
        let kind = if state.has_asked() { Idle::Asked } else { Idle::Silent };
        state.awaits_request().then_some((kind, state.since))
    }

    /// Ends the connection if it may make room for another: it only lingers, or has waited for its client's request for
    /// `YIELDS_AFTER`; where nothing was asked on it yet, for `patience`. Says whether it does.
    pub(super) fn make_room(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        let lingers = state.lingering.is_some() && !state.expired;
        let patience = if state.has_asked() { YIELDS_AFTER } else { patience };
        let makes_room = lingers || (state.awaits_request() && state.since.elapsed() >= patience);
        if makes_room {
            state.expired = true;
            if !std::mem::replace(&mut state.yielding, true) {
                self.0.gate.yields();
            }
            state.wake();
            self.0.gate.notice(Kind::Yielded, self.peer());
        }
        makes_room
    }

    /// Whether the connection is over the limit, and stays so although it has something to ask: nobody makes room.
    pub(super) fn is_turned_away(&self) -> bool {
        if self.is_surplus() && self.0.gate.make_room(true, false) {
            self.0.surplus.store(false, Relaxed);
            // It may have been taken for one that is not read any more.
            self.lock().read_again();
        }
        self.is_surplus()
    }

    /// Whether the connection has to be waited for before HTTP/2 is told to go away; as [`Gate::taken`].
    pub(super) fn is_awaited(&self, before: Option<Instant>) -> bool {
        let state = self.lock();
        match state.protocol {
            Protocol::Http1 => state.fate == Fate::Open && !state.leaves_by_itself(),
            Protocol::Http2 => {
                if state.lingering.is_some() {
                    return false;
                }
                let mut requests = state.requests.iter().filter(|request| !request.upgraded);
                requests.any(|request| before.is_some_and(|before| request.since < before))
            }
            Protocol::Upgraded => false,
        }
    }

    /// Whether the connection has lingered for so long.
    pub(super) fn has_lingered(&self, time: Duration) -> bool {
        self.lock().lingering.is_some_and(|(since, _)| since.elapsed() >= time)
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

    /// Whether a client of HTTP/2 is told to go since `began`, and has not heard, or not gone.
    pub(super) fn is_told(&self, began: Instant) -> bool {
        let state = self.lock();
        let is_told = state.frames.is_http2() && state.fate == Fate::Open && !state.is_deaf();
        let lately = state.frames.told().is_none_or(|told| told >= began);
        is_told && lately && (state.is_quiet() || !state.frames.has_heard())
    }

    /// Whether something would be lost with the connection.
    pub(super) fn is_busy(&self) -> bool {
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
    pub(super) fn look_at_unsent(&self) {
        let state = self.lock();
        if state.lingering.is_some() && state.unsent {
            state.wake();
        }
    }

    /// Whether what goes on here ends by itself, whatever the client does.
    pub(super) fn is_bounded(&self) -> bool {
        let state = self.lock();
        let is_only_sending = state.is_sending() && state.leaves_by_itself();
        drop(state);
        !is_only_sending && self.obstacle(Duration::ZERO) != Obstacle::Unbounded
    }

    /// Whether a request may well be on its way: the first one, or one whose head has begun.
    pub(super) fn is_expected(&self) -> bool {
        let state = self.lock();
        state.fate == Fate::Open && (state.is_at_head() || (state.tickets == 0 && state.ledger.rest().is_some()))
    }

    /// Ends what has reached its limit: silence, a head, a body that is waited for, an answer that is not read. Where an
    /// answer has had nothing to say for `idle_timeout`, no write tells whether the client has gone: the socket is asked.
    pub(super) fn expire(&self, limits: &Limits) {
        let mut state = self.lock();
        let now = Instant::now();
        let tell = |kind| self.0.gate.notice(kind, self.peer());
        let has_come = |since: Instant, limit| now.saturating_duration_since(since) > limit;
        let head = state.frames.unfinished().or((state.is_at_head() || state.is_silent()).then_some(state.since));
        match head {
            Some(began) if state.is_quiet() && !state.expired => {
                // Frames that follow each other without a pause are no request either.
                let idle = state.is_idle() && state.frames.is_http2() && has_come(state.since, limits.idle_timeout);
                state.expired = has_come(began, limits.header_timeout) || idle;
                if state.expired && state.is_silent() {
                    tell(Kind::Silent);
                }
            }
            None if state.is_idle() => state.expired = has_come(state.since, limits.idle_timeout),
            _ => {}
        }
        let unread = state.stalled.is_some_and(|since| has_come(since, limits.send_timeout));
        if !state.expired && (unread || state.frames.is_stuck(limits.send_timeout, now)) {
            state.expired = true;
            tell(Kind::SendTimeout);
        }
        state.expired |= state.lingering.is_some_and(|(since, _)| has_come(since, limits.linger_timeout));
        // Others wait to be told as much as this one, which does not take what it was told.
        state.expired |= self.is_surplus() && state.tickets > 0 && has_come(state.since, limits.linger_timeout);
        let given_up = state.frames.give_up(limits.send_timeout, now);
        (0..given_up).for_each(|_| tell(Kind::SendTimeout));
        let is_late = |upload: &&Upload| upload.awaited().is_some_and(|since| has_come(since, limits.body_timeout));
        for upload in state.requests.iter().filter_map(|request| request.upload.as_ref()).filter(is_late) {
            upload.give_up();
            tell(Kind::BodyTimeout);
        }
        if std::mem::take(&mut state.wrote) && !state.requests.is_empty() {
            state.since = now;
        }
        let mute = state.protocol == Protocol::Http1
            && !state.requests.is_empty()
            && state.requests.iter().all(|request| request.answering)
            && has_come(state.since, limits.idle_timeout);
        if mute {
            state.since = now;
            state.doubted = true;
        }
        if state.expired || mute || given_up > 0 {
            state.wake();
        }
    }

    /// Of its answers, what hyper has and the client has not, in bytes.
    pub(super) fn unread(&self) -> &AtomicUsize {
        &self.0.unread
    }

    /// Whether the connections hold so much that each is to hold less.
    pub(super) fn is_tight(&self) -> bool {
        self.0.gate.is_tight()
    }

    /// How much the service holds for the client, in bytes, and for how long it has not got any further; `None` when that is
    /// nothing. A flood is over with that.
    pub(super) fn held(&self) -> Option<(usize, Duration)> {
        let mut state = self.lock();
        state.read_again();
        if state.shed {
            return None;
        }
        let uploads = state.requests.iter().filter_map(|request| Some((request.upload.as_ref()?, request.stream?)));
        let uploads: usize = uploads.map(|(upload, id)| upload.held(state.frames.received(id))).sum();
        let requests = state.requests.len().max(state.frames.open()) * REQUEST;
        // hyper has what is read of a head as well.
        let head = state.ledger.rest().map_or(0, |rest| rest.len() * 2);
        let since = state.frames.stands_still().or(state.stalled).unwrap_or(state.since);
        let held = self.unread().load(Relaxed) + uploads + requests + head;
        (held > 0).then(|| (held, since.elapsed()))
    }

    /// Ends the connection because of what it holds.
    pub(super) fn shed(&self) {
        let mut state = self.lock();
        state.shed = true;
        state.expired = true;
        state.wake();
        self.0.gate.notice(Kind::Shed, self.peer());
    }

    /// Ends an HTTP/1.1 connection that has been silent between requests for so long.
    pub(super) fn expire_idle(&self, silence: Duration) {
        let mut state = self.lock();
        let asked = !state.is_at_head() && !state.is_silent();
        if asked && state.is_idle() && !state.frames.is_http2() && state.since.elapsed() > silence {
            state.expired = true;
            state.wake();
        }
    }

    /// What is lost when the connection is cut now.
    pub(super) fn cut(&self) -> Vec<Cut> {
        let state = self.lock();
        let peer = self.peer();
        if state.requests.is_empty() {
            return vec![Cut { peer, request: None, age: state.since.elapsed(), at_work: false }];
        }
        let cut = |request: &InFlight| Cut {
            peer,
            request: Some((request.method.clone(), beginning(request.uri.path()).to_owned())),
            age: request.since.elapsed(),
            at_work: request.is_at_work(),
        };
        state.requests.iter().map(cut).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves the state as it was before a single step of it.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As much of a path as is told. Clients choose them, kilobytes of them.
fn beginning(path: &str) -> &str {
    &path[..path.floor_char_boundary(PATH)]
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
    upload: Option<Upload>,
}

impl Ticket {
    /// Enters that the answer's head is ready, and says whether it has to announce the end of the connection.
    ///
    /// `last`: the application ends the connection with this answer. `upgrade`: it turns it into something else.
    pub(super) fn answering(&self, status: StatusCode, last: bool, upgrade: bool) -> bool {
        self.connection.0.gate.count(status.is_server_error());
        let unread = self.upload.as_ref().is_some_and(Upload::is_abandoned);
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
            state.read_again();
            return false;
        }
        // In the second case hyper will close the connection, because the request's body was not read.
        state.last |= last || (unread && !state.ledger.answer_due());
        // What cannot be handed over ends now, with notice, rather than at a restart, without.
        state.last |= match self.connection.0.gate.mode() {
            Mode::Open | Mode::HandingOver => state.is_never_clean(),
            Mode::Retiring | Mode::Retired => true,
        };
        state.last
    }

    pub(super) fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// Notes that the request is turned away, as its connection is over the limit; gives its id.
    pub(super) fn refuse(&self) -> String {
        let Shared { gate, peer, .. } = &*self.connection.0;
        gate.notice(Kind::Full, *peer);
        gate.refusal_id()
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
        state.read_again();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.finish(false);
        }
    }
}

impl InFlight {
    /// Whether a handler is at work, which does not wait for its client.
    fn is_at_work(&self) -> bool {
        !self.answering && self.upload.as_ref().is_none_or(|upload| upload.awaited().is_none())
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

    /// Whether hyper is not to read for now. Once it is `paused`, what follows an answer is for the next process; and the
    /// end of file of a client that waits for its answer is no reason to drop it.
    fn withholds(&self, paused: bool) -> bool {
        (paused && self.ledger.answer_due())
            || (self.half_closed && self.has_request())
            || ((paused || self.half_closed) && self.unflushed)
    }

    /// Enters that the connection, if it was to make room, need not be waited for: it has gone, lingers, or asks after all.
    fn has_yielded(&mut self, gate: &Gate) {
        if std::mem::take(&mut self.yielding) {
            gate.yielded();
        }
    }

    /// Has hyper read, if that was withheld: each step of a request may have taken away the reason for it.
    fn read_again(&mut self) {
        if std::mem::take(&mut self.withheld) {
            self.wake();
        }
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
    /// without a request; what was only upgraded to be told goodbye; and what lingers, after its end.
    fn leaves_by_itself(&self) -> bool {
        if self.lingering.is_some() {
            return true;
        }
        let late = self.requests.iter().filter(|request| request.late).count();
        let quiet = self.requests.len() == late && self.frames.open() <= late && !self.unflushed;
        quiet && self.is_never_clean() && (self.protocol != Protocol::Upgraded || self.late)
    }

    /// Whether the kernel still holds a part of an answer that it would not send any more after the end of the process, when
    /// the client goes on to say something. Other processes go on with HTTP/1.1.
    fn is_sending(&self) -> bool {
        self.unsent && (self.protocol == Protocol::Http2 || self.lingering.is_some())
    }

    /// Looks whether that is still so, once it matters: the service `leaves`.
    fn look_at_unsent(&mut self, socket: &Socket, leaves: bool) {
        if leaves && self.is_sending() && is_sent(socket) {
            self.unsent = false;
        }
    }

    /// Whether no request is in flight and no answer on its way to the socket.
    fn is_quiet(&self) -> bool {
        self.requests.is_empty() && self.frames.open() == 0 && !self.unflushed
    }

    /// Whether the client of HTTP/2 was told to go and has heard, or once everybody else waits, has had the time to.
    fn is_to_go(&self, paused: bool) -> bool {
        self.frames.has_heard() || (paused && (self.is_deaf() || has_passed(self.frames.told())))
    }

    /// Whether the client of HTTP/2 neither asks nor reads while everybody else waits.
    fn is_given_up(&self, paused: bool) -> bool {
        paused && self.frames.is_http2() && self.is_quiet() && self.is_deaf()
    }

    /// Whether nothing can be told to the client, as it does not read.
    fn is_deaf(&self) -> bool {
        has_passed(self.stalled)
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

    /// Whether the client may still send something while the last that it was sent is on its way: after an answer that
    /// ends the connection, behind which others may be asked for already; and in HTTP/2 at any time, as each part of an
    /// answer that it takes is told to the service. A client that was idle has everything.
    fn is_to_linger(&self) -> bool {
        match self.protocol {
            Protocol::Http1 => self.is_never_clean() || self.ledger.rest().is_none_or(|rest| !rest.is_empty()),
            Protocol::Http2 => true,
            Protocol::Upgraded => false,
        }
    }

    /// Whether the beginning of a head has been read, or of the preface of HTTP/2.
    fn is_at_head(&self) -> bool {
        self.ledger.rest().is_some_and(|rest| !rest.is_empty()) || self.frames.is_at_preface()
    }

    /// Whether nothing has come on a connection that was accepted here.
    fn is_silent(&self) -> bool {
        !self.has_asked() && self.ledger.rest().is_some_and(<[u8]>::is_empty)
    }

    /// Whether something was asked on the connection, here or where it was accepted.
    fn has_asked(&self) -> bool {
        self.tickets > 0 || self.asked
    }

    /// Whether the connection waits for its client's next request, or for the rest of its head.
    fn awaits_request(&self) -> bool {
        self.fate == Fate::Open && self.is_quiet() && !self.expired && self.protocol != Protocol::Upgraded
    }

    /// Whether nothing has come of the request that the connection waits for.
    fn is_idle(&self) -> bool {
        self.awaits_request() && !self.is_at_head()
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
        self.reader.iter().chain(&self.writer).for_each(Waker::wake_by_ref);
    }

    /// Closes this side of the connection, and discards what the client still sends until it closes its own, or has had
    /// enough time. A socket that is closed while something is unread resets the connection, and its client may never see
    /// the answer (RFC 9112, section 9.6).
    ///
    /// While the service `leaves`, this side is closed only when everything was sent: afterwards nothing tells.
    fn poll_linger(&mut self, mut socket: Pin<&mut Socket>, cx: &mut Context<'_>, leaves: bool) -> Poll<()> {
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
            let (_, discarded) = self.lingering.get_or_insert_with(|| (Instant::now(), 0));
            *discarded += count;
            match read {
                Poll::Ready(Ok(())) if count > 0 && *discarded < LINGER_BYTES && !self.expired => {}
                Poll::Pending if !self.expired => return Poll::Pending,
                _ => return Poll::Ready(()),
            }
        }
        // Others are to be served meanwhile.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Whether a client has had the time to hear since then.
fn has_passed(since: Option<Instant>) -> bool {
    since.is_some_and(|since| since.elapsed() >= DEAF_AFTER)
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
    /// A connection behind `gate`, where it is number `id`. `rest` is what another process has read of its next request.
    pub(super) fn new(gate: Arc<Gate>, id: u64, socket: Socket, peer: Peer, rest: Vec<u8>, origin: Origin) -> Self {
        let state = State {
            ledger: Ledger::default(),
            frames: Frames::default(),
            protocol: Protocol::Http1,
            fate: Fate::Open,
            requests: Vec::new(),
            tickets: 0,
            asked: matches!(origin, Origin::Adopted | Origin::Guest),
            last: false,
            half_closed: false,
            late: false,
            unflushed: false,
            unsent: false,
            withheld: false,
            since: Instant::now(),
            wrote: false,
            stalled: None,
            expired: false,
            yielding: false,
            shed: false,
            lingering: None,
            doubted: false,
            streak: 0,
            reader: None,
            writer: None,
        };
        let surplus = AtomicBool::new(origin == Origin::Surplus);
        let unread = AtomicUsize::new(0);
        let connection =
            Connection(Arc::new(Shared { id, peer, origin, surplus, unread, gate, state: Mutex::new(state) }));
        Self { socket: Some(socket), unread: rest, connection }
    }

    /// What others may know of it.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// Reads so many bytes at the `most`.
fn poll_read_some(
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
fn has_unread(socket: &Socket) -> bool {
    let (mut byte, flags) = ([0], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    let received = match socket {
        Either::Left(tcp) => recv(tcp, &mut byte, flags),
        Either::Right(unix) => recv(unix, &mut byte, flags),
    };
    received.is_ok_and(|(_, count)| count > 0)
}

/// Whether the kernel has sent everything. What it has sent and the client has not read is with the client already.
fn is_sent(socket: &Socket) -> bool {
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
fn has_hung_up(socket: &Socket) -> bool {
    let interest = PollFlags::RDHUP;
    let mut asked = match socket {
        Either::Left(tcp) => [PollFd::new(tcp, interest)],
        Either::Right(unix) => [PollFd::new(unix, interest)],
    };
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

/// Why `Io::socket` can be unwrapped.
const PRESENT: &str = "the socket is there until the drop";

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Io { socket, unread, connection } = self.get_mut();
        let mut socket = Pin::new(socket.as_mut().expect(PRESENT));
        let mut state = connection.lock();
        let closed = connection.0.gate.is_closed();
        let leaves = connection.0.gate.mode() != Mode::Open;
        match &mut state.reader {
            Some(waker) => waker.clone_from(cx.waker()),
            waker => *waker = Some(cx.waker().clone()),
        }
        if closed && state.is_clean() {
            state.fate = Fate::Taken;
        }
        if state.fate == Fate::Taken {
            return Poll::Ready(Ok(()));
        }
        if state.lingering.is_some() {
            // Its request was refused, and hyper is to drop what it has of it.
            ready!(state.poll_linger(socket, cx, leaves));
            state.fate = Fate::Closing;
            return Poll::Ready(Ok(()));
        }
        state.look_at_unsent(&socket, leaves);
        state.withheld = state.withholds(closed) || connection.0.gate.is_flooded();
        if state.withheld {
            return Poll::Pending;
        }
        if state.shed {
            return state.say_goodbye(socket, cx);
        }
        if connection.0.gate.is_telling()
            && state.stalled.is_none()
            && let Some(notice) = state.frames.notice_to_leave()
        {
            // Where there is no room for it the client is told later, by hyper.
            match state.interject(socket.as_mut(), cx, &notice) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    state.fate = Fate::Closing;
                    return Poll::Ready(Err(error));
                }
                _ => {}
            }
        }
        if state.frames.is_http2() && state.is_quiet() && (state.expired || state.is_to_go(closed)) {
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
                    state.fate = Fate::Closing;
                    return Poll::Ready(Err(error));
                }
            }
        }
        if connection.is_surplus() && state.frames.has_asked() {
            // The end of the last stream wakes the task, or that there is room after all.
            state.withheld = state.frames.open() > 0 && !state.expired;
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
                    state.fate = Fate::Closing;
                    return Poll::Ready(Err(error));
                }
                Poll::Pending if state.expired && !has_unread(&socket) => {
                    if state.is_at_head() {
                        connection.refuse(&mut state, StatusCode::REQUEST_TIMEOUT, socket.as_mut(), cx);
                        ready!(state.poll_linger(socket.as_mut(), cx, leaves));
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
                // Its request may well be whole, and it waits for the answer. hyper would drop the request.
                state.half_closed = true;
                state.last |= state.ledger.answer_due();
                state.withheld = true;
                return Poll::Pending;
            }
            state.fate = Fate::Closing;
            return Poll::Ready(Ok(()));
        }
        connection.0.gate.take_in(read.len());
        let now = Instant::now();
        // A client of HTTP/2 is as silent as its streams, whatever else it sends.
        if !state.is_at_head() && !state.frames.is_http2() {
            state.since = now;
        }
        state.expired = false;
        state.has_yielded(&connection.0.gate);
        state.ledger.read(read);
        if !state.ledger.is_lost() && state.ledger.head_bytes() > connection.0.gate.limits().max_head_bytes {
            let refused = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            buf.set_filled(start);
            connection.refuse(&mut state, refused, socket.as_mut(), cx);
            ready!(state.poll_linger(socket, cx, leaves));
            state.fate = Fate::Closing;
            return Poll::Ready(Ok(()));
        }
        if state.frames.read(read, now) {
            state.streams_ended();
        }
        Poll::Ready(Ok(()))
    }
}

impl Connection {
    /// Answers in hyper's place a request that no handler gets to see, as far as the socket takes it. What follows is not
    /// read but discarded.
    fn refuse(&self, state: &mut State, status: StatusCode, socket: Pin<&mut Socket>, cx: &mut Context<'_>) {
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
        state.expired = false;
        state.lingering = Some((Instant::now(), 0));
        state.has_yielded(gate);
        state.unsent = socket.poll_write(cx, answer.as_bytes()).is_ready();
    }
}

/// The status of an answer that hyper gives by itself.
fn refusal(bytes: &[io::IoSlice<'_>]) -> Option<StatusCode> {
    let line = bytes.iter().find(|slice| !slice.is_empty())?.strip_prefix(b"HTTP/1.1 ")?;
    StatusCode::from_bytes(line.get(..3)?).ok()
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
        if state.shed {
            state.fate = Fate::Closing;
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
                if connection.is_surplus() || state.frames.has_heard() {
                    // Its end is due.
                    cx.waker().wake_by_ref();
                }
            }
        } else if (state.expired && state.stalled.is_some()) || state.is_given_up(connection.0.gate.is_closed()) {
            state.fate = Fate::Closing;
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
            state.fate = Fate::Closing;
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Io { socket, connection, .. } = self.get_mut();
        let socket = Pin::new(socket.as_mut().expect(PRESENT));
        let leaves = connection.0.gate.mode() != Mode::Open;
        let mut state = connection.lock();
        if state.fate == Fate::Taken {
            return Poll::Ready(Ok(()));
        }
        state.fate = Fate::Closing;
        if state.is_to_linger() && !state.shed {
            state.lingering.get_or_insert_with(|| (Instant::now(), 0));
            state.has_yielded(&connection.0.gate);
            return state.poll_linger(socket, cx, leaves).map(Ok);
        }
        drop(state);
        socket.poll_shutdown(cx)
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
                Ok(socket) => {
                    let origin = if state.has_asked() { Origin::Adopted } else { Origin::Unasked };
                    gate.put(vec![Clean { socket, rest, origin }]);
                }
                Err(error) => tracing::error!("the connection of {} cannot be taken: {error}", self.connection.peer()),
            }
        }
        state.fate = Fate::Closing;
        // What has gone makes no room.
        state.lingering = None;
        state.has_yielded(gate);
        drop(state);
        gate.forget(self.connection.0.id, self.connection.0.origin);
    }
}
