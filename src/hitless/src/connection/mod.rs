//! A connection: its socket as hyper sees it, and what is known of its requests.
//!
//! A connection stands *at a message boundary* when every byte read from it belongs to a request that was answered and
//! flushed, apart from the beginning of a head, which travels along. Nothing else about it lives in this process, so whoever
//! holds the socket can go on with it. Once the [connections](Connections) are paused, such a one is *detached* from hyper at
//! its next read: hyper gets an *end of file* without the socket being touched, takes the client for gone and lets go;
//! [`Io`]'s drop then parks the untouched socket.
//!
//! The state stands behind a lock of its own, held for a few instructions and never across an await.

mod ending;
mod io;
mod request;
mod state;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;

use crate::connections::Connections;
use crate::frames::Frames;
use crate::ledger::Ledger;
use crate::listener::Listener;

pub use io::{Io, Socket};
pub use request::Fragment;
pub(crate) use request::{RequestGuard, says_close};

use request::InFlight;

/// How long a connection has to have been quiet to be detached before the others are paused.
pub(crate) const QUIET: Duration = Duration::from_millis(500);

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A client by TCP.
    Tcp(SocketAddr),
    /// A process on this host.
    Unix,
    /// Who operates the service: root, or the service itself, by [`Siblings::connect`](crate::Siblings::connect).
    Operator,
}

impl Peer {
    /// A client has one address, whether or not its socket takes IPv6 as well.
    pub(crate) fn tcp(address: SocketAddr) -> Self {
        Self::Tcp(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Unix => f.write_str("unix"),
            Peer::Operator => f.write_str("operator"),
        }
    }
}

/// How a connection is idle, in the order in which they make room for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Idle {
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
    OverLimit,
    /// Handed over by the process before, or parked by this one.
    Adopted,
    /// The same, and nothing was asked on it yet.
    Unasked,
    /// Handed over by a sibling.
    Guest,
}

/// A live connection. Handlers get it as `ConnectInfo<Connection>`.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: u64,
    peer: Peer,
    origin: Origin,
    /// Over the limit of connections.
    over_limit: AtomicBool,
    /// Of its answers, what hyper has and the client has not, in bytes.
    unread: AtomicUsize,
    connections: Arc<Connections>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    frames: Frames,
    protocol: Protocol,
    stage: Stage,
    due: Due,
    /// The requests in flight: one at most in HTTP/1.1; in HTTP/2 many, each until its stream has ended.
    requests: Vec<InFlight>,
    /// How many requests were dispatched here.
    dispatched: u64,
    /// Something was asked on it before it came to this process.
    asked: bool,
    /// It ends with the request in flight: either side has said so.
    last: bool,
    /// The client has closed its side, and waits for its answer.
    half_closed: bool,
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
    /// A body has been waited for too long, if nothing of it has come.
    late: bool,
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
    Upgraded(Upgrade),
}

/// How a connection, or a stream of HTTP/2, became a WebSocket and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upgrade {
    Early,
    /// When the service had been told to leave: its handler knew so from the first moment.
    Late,
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// hyper reads and writes it.
    Open,
    /// hyper is to let go of it, and its socket to be parked.
    Detached,
    /// It has ended for hyper, and what the client still sends is discarded: since when, and how many bytes it was.
    Lingering { since: Instant, discarded: u64 },
    /// Being closed, by either side.
    Closing,
}

/// Whether a connection is to end, as soon as nothing is lost with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Not,
    /// It was idle, at its head, or not reading, for too long.
    Expired,
    /// It is to make room, and counted so.
    Yielding,
    /// It holds too much, and is to end whatever it is at.
    Shed,
}

impl Connection {
    /// The address of the client, or of the proxy before it.
    pub fn peer(&self) -> Peer {
        self.0.peer
    }

    /// Whether the connection is over the limit.
    pub(crate) fn is_over_limit(&self) -> bool {
        self.0.over_limit.load(Relaxed)
    }

    /// Records that the connection is not over the limit any more, and says whether it was.
    pub(crate) fn take_over_limit(&self) -> bool {
        self.0.over_limit.swap(false, Relaxed)
    }

    /// Has hyper read from the connection once more.
    pub(crate) fn wake(&self) {
        self.lock().wake();
    }

    /// Of its answers, what hyper has and the client has not, in bytes.
    pub(crate) fn unread(&self) -> &AtomicUsize {
        &self.0.unread
    }

    /// Whether the connections hold so much that each is to hold less.
    pub(crate) fn is_tight(&self) -> bool {
        self.0.connections.is_tight()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves the state as it was before a single step of it.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected<IncomingStream<'_, Listener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.io().connection().clone()
    }
}
