//! The listener that axum serves: connections handed over by an earlier process first, then new ones.
//!
//! It accepts from any number of sockets, TCP and Unix, until the connections are paused; from then on clients wait in the
//! kernel's queue for the next process.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, accept_with};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use super::connection::{Io, Origin, Peer, Socket};
use super::connections::{Connections, Mode};
use super::queue::Detached;
use super::systemd::ListeningSocket;

/// How many connections over the limit are accepted, to be served where another makes room, else to be told so; further ones
/// wait in the kernel's queue.
pub const OVER_LIMIT: usize = 64;

/// How many connections that were parked are let in at a time.
const BATCH: usize = 64;

/// How many more connections of a flood make room at a time.
const AT_ONCE: usize = 15;

/// How long to wait for a connection to go before looking again whether one may be told to.
const FULL: Duration = Duration::from_millis(20);

/// Descriptors that the process needs apart from its connections.
pub const SPARE_DESCRIPTORS: usize = 192;

/// What axum accepts from: connections of the process before first, then those that come to the listening sockets.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<Either<TcpListener, UnixListener>>,
    adopted: VecDeque<(Io, Peer)>,
    connections: Arc<Connections>,
}

impl Listener {
    /// A listener on sockets that the service manager keeps, or that were bound here.
    ///
    /// # Errors
    /// When there is no socket, or one cannot be registered with the runtime.
    pub(super) fn new(
        sockets: Vec<ListeningSocket>,
        connections: Arc<Connections>,
        max_connections: usize,
    ) -> io::Result<Self> {
        if sockets.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is no socket to listen on"));
        }
        let sockets = sockets
            .into_iter()
            .map(|socket| match socket {
                ListeningSocket::Tcp(socket) => {
                    socket.set_nonblocking(true)?;
                    TcpListener::from_std(socket).map(Either::Left)
                }
                ListeningSocket::Unix(socket) => {
                    socket.set_nonblocking(true)?;
                    UnixListener::from_std(socket).map(Either::Right)
                }
            })
            .collect::<io::Result<_>>()?;
        connections.set_places(max_connections, 0);
        Ok(Self { sockets, adopted: VecDeque::new(), connections })
    }

    /// The same, with room for so many connections that siblings hand in, beside those that are accepted here: new clients
    /// are not to be turned away because another instance is restarted.
    pub(super) fn with_guests(self, guests: usize) -> Self {
        self.connections.set_places(self.connections.places(), guests);
        self
    }

    /// Lets in connections that were parked: those who wait are answered before thousands of idle ones are looked at.
    fn let_in(&mut self, connections: Vec<Detached>) {
        for Detached { socket, unparsed, origin, since } in connections {
            match register(socket) {
                Ok((socket, peer)) => {
                    if origin == Origin::Guest && peer != Peer::Operator {
                        self.connections.count_taken_over(1);
                    }
                    let io = self.connections.admit(socket, peer, unparsed, origin);
                    // Those that are back from a pause that was none: the next one has them early once more.
                    io.connection().set_quiet_since(since);
                    self.adopted.push_back((io, peer));
                }
                // Most often its client has gone in the meantime.
                Err(error) => tracing::debug!("a parked connection cannot be served: {error}"),
            }
        }
    }

    /// The connections, those that come to these sockets among them.
    pub(super) fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// Where the service listens, for people to read.
    pub(super) fn addresses(&self) -> Vec<String> {
        let address = |socket: &Either<TcpListener, UnixListener>| match socket {
            Either::Left(tcp) => tcp.local_addr().map(|address| address.to_string()),
            Either::Right(unix) => unix.local_addr().map(|address| format!("{address:?}")),
        };
        self.sockets.iter().map(|socket| address(socket).unwrap_or_else(|error| error.to_string())).collect()
    }

    /// The next connection from whichever socket has one, admitted.
    async fn next(&self) -> io::Result<(Io, Peer)> {
        std::future::poll_fn(|cx| {
            let _admission = self.connections.admission();
            if self.connections.is_paused() {
                return Poll::Pending; // `accept` hears of it.
            }
            for socket in &self.sockets {
                let accepted = match socket {
                    Either::Left(tcp) => tcp.poll_accept(cx).map_ok(|(stream, address)| {
                        // Small answers go out at once.
                        let _ = stream.set_nodelay(true);
                        (Either::Left(stream), Peer::tcp(address))
                    }),
                    Either::Right(unix) => {
                        unix.poll_accept(cx).map_ok(|(stream, _)| (Either::Right(stream), Peer::Unix))
                    }
                };
                if let Poll::Ready(accepted) = accepted {
                    let origin = self.origin();
                    return Poll::Ready(
                        accepted.map(|(socket, peer)| (self.connections.admit(socket, peer, Vec::new(), origin), peer)),
                    );
                }
            }
            Poll::Pending
        })
        .await
    }

    /// What becomes of a connection that is accepted now.
    fn origin(&self) -> Origin {
        let room = self.connections.len_without_guests() < self.connections.places();
        if room { Origin::Accepted } else { Origin::OverLimit }
    }

    async fn accept_new(&self) -> (Io, Peer) {
        let mut told = false;
        loop {
            let mut gone = std::pin::pin!(self.connections.gone().notified());
            gone.as_mut().enable();
            let (open, most) = (self.connections.len_without_guests(), self.connections.places() + OVER_LIMIT);
            if open < most {
                match self.next().await {
                    Ok(admitted) => return admitted,
                    Err(error) if is_gone(&error) => continue,
                    // No descriptors, or no memory: a connection that ends may free what is missing.
                    Err(_) if std::mem::replace(&mut told, true) => {}
                    Err(error) => {
                        tracing::error!("cannot accept connections, with {} open: {error}", self.connections.len());
                    }
                }
            } else if self.connections.yielding() == 0 && self.is_awaited() {
                // Beyond that, which another process may have handed over, one that goes is not room for another yet.
                let made = self.connections.make_room(false, open > most);
                // There are more where those of a flood come from.
                let mut more = if made && self.connections.has_flood() { AT_ONCE } else { 0 };
                while more > 0 && self.connections.make_room(false, true) {
                    more -= 1;
                }
            }
            let _ = tokio::time::timeout(FULL, gone).await;
        }
    }

    /// Whether somebody has connected and waits to be accepted.
    fn is_awaited(&self) -> bool {
        self.sockets.iter().any(|socket| {
            let mut asked = match socket {
                Either::Left(tcp) => [PollFd::new(tcp, PollFlags::IN)],
                Either::Right(unix) => [PollFd::new(unix, PollFlags::IN)],
            };
            poll(&mut asked, Some(&Timespec::default())).is_ok_and(|count| count > 0)
        })
    }

    /// Accepts who has connected already, as far as there are descriptors for connections; then closes the sockets, so that
    /// the kernel refuses others at once and they can turn elsewhere.
    ///
    /// It asks the kernel itself: the runtime has not been told yet of who has connected just now.
    fn accept_last(&mut self) {
        let connections = Arc::clone(&self.connections);
        let _admission = connections.admission();
        let most = connections.places_for_all() + OVER_LIMIT;
        let mut room = most.saturating_sub(connections.len() + connections.parked());
        for socket in std::mem::take(&mut self.sockets) {
            while room > 0 {
                let accepted = match &socket {
                    Either::Left(tcp) => accept_with(tcp, SocketFlags::CLOEXEC),
                    Either::Right(unix) => accept_with(unix, SocketFlags::CLOEXEC),
                };
                match accepted.map(register) {
                    Ok(Ok((socket, peer))) => {
                        if let Either::Left(tcp) = &socket {
                            let _ = tcp.set_nodelay(true);
                        }
                        let io = self.connections.admit(socket, peer, Vec::new(), self.origin());
                        self.adopted.push_back((io, peer));
                        room -= 1;
                    }
                    // Its client has gone in the meantime (accept(2)).
                    Ok(Err(_)) | Err(Errno::CONNABORTED | Errno::CONNRESET | Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
        self.connections.set_listeners_closed();
    }
}

impl axum::serve::Listener for Listener {
    type Io = Io;
    type Addr = Peer;

    async fn accept(&mut self) -> (Io, Peer) {
        let connections = Arc::clone(&self.connections);
        loop {
            if let Some(adopted) = self.adopted.pop_front() {
                return adopted;
            }
            let mut changed = std::pin::pin!(connections.changed().notified());
            changed.as_mut().enable();
            let paused = {
                // They are not paused meanwhile: connections on their way back are known to nobody.
                let _admission = connections.admission();
                if connections.is_running() {
                    self.let_in(connections.take_some_parked(BATCH));
                }
                connections.is_paused()
            };
            if paused {
                changed.await;
                continue;
            }
            if !self.adopted.is_empty() {
                // The batch before is served first, on however few threads.
                tokio::task::yield_now().await;
                continue;
            }
            if connections.mode() == Mode::Retired {
                if self.sockets.is_empty() {
                    changed.await;
                } else {
                    self.accept_last();
                }
                continue;
            }
            tokio::select! {
                biased;
                () = changed => {}
                accepted = self.accept_new() => return accepted,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        match self.sockets.first() {
            Some(Either::Left(tcp)) => tcp.local_addr().map(Peer::Tcp),
            Some(Either::Right(_)) => Ok(Peer::Unix),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Whether the client has gone before its connection was accepted (accept(2)).
fn is_gone(error: &io::Error) -> bool {
    let error = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(error, Some(Errno::CONNABORTED | Errno::CONNRESET | Errno::INTR))
}

/// Registers a socket with the runtime that came without it: from another process, or out of the kernel's queue, or parked
/// here.
fn register(socket: OwnedFd) -> io::Result<(Socket, Peer)> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    let address = rustix::net::getsockname(&socket)?;
    if address.address_family() == AddressFamily::UNIX {
        // What a listening socket accepts has its name. A pair has none, its address is the family alone (unix(7)), and who
        // may hand it in has made it.
        let is_pair = address.addr_len() as usize == size_of::<AddressFamily>();
        let peer = if is_pair { Peer::Operator } else { Peer::Unix };
        return Ok((Either::Right(UnixStream::from_std(socket.into())?), peer));
    }
    let stream = TcpStream::from_std(socket.into())?;
    // The client may have gone while the connection was on its way.
    let peer = stream.peer_addr()?;
    Ok((Either::Left(stream), Peer::tcp(peer)))
}
