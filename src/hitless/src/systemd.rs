//! What the service says to its service manager, and what it is given: sd_notify(3), sd_listen_fds(3).
//!
//! Without a service manager every message goes nowhere and nothing is given. [`store`] alone reports that, because
//! connections depend on it.
//!
//! A service manager may have no time to read, or stop. No thread ever waits for it: what tells how the service is, is
//! then dropped, and the rest is sent as soon as there is room.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::LazyLock;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, sendmsg_addr,
};
use sd_notify::NotifyState;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;

use super::queue;

/// What the service manager passed on at the start.
#[derive(Debug, Default)]
pub struct Given {
    /// The listening sockets of the socket units.
    pub listeners: Vec<ListeningSocket>,
    /// The handover queues that earlier processes left in the descriptor store.
    pub queues: Vec<OwnedFd>,
    /// What else there was, by its name in the descriptor store, with the reason why it is of no use: another release
    /// may have stored it.
    pub unrecognised: Vec<(String, io::Error)>,
}

/// A listening socket, of the service manager or of the service itself.
#[derive(Debug)]
pub enum ListeningSocket {
    /// One of TCP.
    Tcp(std::net::TcpListener),
    /// One with a path.
    Unix(std::os::unix::net::UnixListener),
}

impl From<std::net::TcpListener> for ListeningSocket {
    fn from(socket: std::net::TcpListener) -> Self {
        Self::Tcp(socket)
    }
}

impl From<std::os::unix::net::UnixListener> for ListeningSocket {
    fn from(socket: std::os::unix::net::UnixListener) -> Self {
        Self::Unix(socket)
    }
}

/// Takes what the service manager passed on. Only the first call gets it.
pub fn given() -> Given {
    // listenfd forgets the names, which tell a handover queue from a listener, and takes away the variables.
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut fds = ListenFd::from_env();
    let mut given = Given::default();
    for index in 0..fds.len() {
        let name = names.next().unwrap_or_default();
        let taken = if name == queue::NAME {
            let (family, kind) = (AddressFamily::UNIX.as_raw().into(), SocketType::SEQPACKET.as_raw() as i32);
            fds.take_custom::<OwnedFd>(index, family, kind, "handover queue").map(|queue| given.queues.extend(queue))
        } else if let Ok(Some(listener)) = fds.take_unix_listener(index) {
            given.listeners.push(ListeningSocket::Unix(listener));
            Ok(())
        } else {
            fds.take_tcp_listener(index).map(|listener| given.listeners.extend(listener.map(ListeningSocket::Tcp)))
        };
        given.unrecognised.extend(taken.err().map(|error| (name.to_owned(), error)));
    }
    given
}

/// Whether a restart comes with another signal than a stop: `RestartKillSignal=SIGHUP` (systemd.kill(5)). A process cannot
/// see what its unit says, so the unit tells it by a variable. Its name has no `_`, so that it is no setting's.
pub fn tells_restarts() -> bool {
    std::env::var_os("RESTARTSIGNAL").is_some_and(|signal| signal == "SIGHUP")
}

/// Says that the service serves.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Says that the service leaves, and that this may take until `timeout` from now.
pub fn stopping(timeout: Duration) {
    let timeout = u32::try_from(timeout.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(timeout)]);
}

/// Says how the service is, in a line for `systemctl status` and for scripts (`StatusText`), if there is room for that.
pub fn status(text: &str) -> bool {
    mention(&NotifyState::Status(text).to_string())
}

/// Keeps telling the watchdog that the runtime still runs tasks, when the unit has `WatchdogSec=`.
///
/// The message is sent by a task that waits for another task each time: handlers that block every worker thread stop
/// it, and systemd then restarts the service.
pub async fn feed_watchdog() {
    let timeout = sd_notify::watchdog_enabled().filter(|timeout| !timeout.is_zero());
    let Some(timeout) = timeout else { return std::future::pending().await };
    loop {
        if tokio::spawn(async {}).await.is_ok() {
            mention(&NotifyState::Watchdog.to_string());
        }
        tokio::time::sleep(timeout / 3).await;
    }
}

/// Puts a descriptor into the store under `name`, and waits until the service manager has handled that, for `timeout` at
/// most.
///
/// `FDPOLL=0` keeps it there when its other end is closed, which for a filled queue is the rule.
///
/// # Errors
/// When there is no service manager or it does not answer in time. That it *kept* the descriptor is not reported.
pub async fn store(name: &str, fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    if MANAGER.is_none() {
        return Err(io::Error::other("there is no service manager (NOTIFY_SOCKET is not set)"));
    }
    let handled = tokio::time::timeout(timeout, async {
        let parts = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        deliver(&message(&parts), Some(fd)).await?;
        barrier().await
    });
    handled.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the service manager does not answer")).flatten()
}

/// Takes what is kept under `name` out of the store.
pub fn forget(name: &str) {
    tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// Waits until the service manager has handled everything that was sent before.
async fn barrier() -> io::Result<()> {
    let (ours, theirs) = io::pipe()?;
    deliver("BARRIER=1", Some(theirs.as_fd())).await?;
    drop(theirs);
    // It is readable when the other end is closed.
    pipe::Receiver::from_owned_fd(ours.into())?.readable().await
}

/// Where the service manager listens, if there is one, and a socket to send from: there may be no descriptor for one
/// later. Messages go by the path, so that they find a socket that is made anew.
static MANAGER: LazyLock<Option<(UnixDatagram, SocketAddrUnix)>> = LazyLock::new(|| {
    find_manager().unwrap_or_else(|error| {
        tracing::error!("the service manager cannot be told anything: {error}");
        None
    })
});

fn find_manager() -> io::Result<Option<(UnixDatagram, SocketAddrUnix)>> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(path)?,
    };
    Ok(Some((UnixDatagram::unbound()?, address)))
}

/// A message as sd_notify(3) has it, a line for each part.
fn message(parts: &[NotifyState<'_>]) -> String {
    parts.iter().map(|part| format!("{part}\n")).collect()
}

/// Sends a message, and a descriptor with it, without waiting: sd-notify's own way to send waits for room.
fn send(message: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some((socket, address)) = &*MANAGER else { return Ok(()) };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() {
        // Cannot fail: there is space for one.
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg_addr(socket, address, &[IoSlice::new(message.as_bytes())], &mut control, flags)?;
    Ok(())
}

/// Whose turn it is among the messages that must not be dropped. One that waits is not overtaken by those that are told
/// later: what takes a queue out of the store must not take out the next one.
static TURN: Mutex<()> = Mutex::const_new(());

/// Sends a message as soon as the service manager has room for it.
async fn deliver(message: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let _turn = TURN.lock().await;
    loop {
        match send(message, fd) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            sent => return sent,
        }
    }
}

/// Sends a message that must not be dropped: now, or by a task that waits until there is room for it.
fn tell(parts: &[NotifyState<'_>]) {
    let message = message(parts);
    if TURN.try_lock().is_err() || !mention(&message) {
        tokio::spawn(async move { report(&message, deliver(&message, None).await) });
    }
}

/// Sends a message that the service can do without. False when there is no room for it; any other failure is logged.
fn mention(message: &str) -> bool {
    match send(message, None) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        sent => {
            report(message, sent);
            true
        }
    }
}

fn report(message: &str, sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::warn!("the service manager cannot be told {message:?}: {error}");
    }
}
