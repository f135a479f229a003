//! What the service says to its service manager, and what it is given: sd_notify(3), sd_listen_fds(3).
//!
//! Without a service manager every message goes nowhere and nothing is given. [`store`] alone reports that, because
//! connections depend on it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use listenfd::ListenFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketType};
use sd_notify::NotifyState;

use super::parcel;

/// What the service manager passed on at the start.
#[derive(Debug, Default)]
pub struct Given {
    /// The listening sockets of the socket units.
    pub listeners: Vec<Activated>,
    /// The parcels that earlier processes left in the descriptor store.
    pub parcels: Vec<OwnedFd>,
    /// What else there was, by its name in the descriptor store, with the reason why it is of no use: another release
    /// may have stored it.
    pub strangers: Vec<(String, io::Error)>,
}

/// A listening socket that the service manager keeps.
#[derive(Debug)]
pub enum Activated {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// Takes what the service manager passed on. Only the first call gets it.
pub fn given() -> Given {
    // listenfd forgets the names, which tell a parcel from a listener, and takes away the variables.
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut fds = ListenFd::from_env();
    let mut given = Given::default();
    for index in 0..fds.len() {
        let name = names.next().unwrap_or_default();
        let taken = if name == parcel::NAME {
            let (family, kind) = (AddressFamily::UNIX.as_raw().into(), SocketType::SEQPACKET.as_raw() as i32);
            fds.take_custom::<OwnedFd>(index, family, kind, "parcel").map(|parcel| given.parcels.extend(parcel))
        } else if let Ok(Some(listener)) = fds.take_unix_listener(index) {
            given.listeners.push(Activated::Unix(listener));
            Ok(())
        } else {
            fds.take_tcp_listener(index).map(|listener| given.listeners.extend(listener.map(Activated::Tcp)))
        };
        given.strangers.extend(taken.err().map(|error| (name.to_owned(), error)));
    }
    given
}

/// Whether there is a service manager.
pub fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Says that the service serves.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Says that the service leaves, and that this may take until `timeout` from now.
pub fn stopping(timeout: Duration) {
    let timeout = u32::try_from(timeout.as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(timeout)]);
}

/// Says how the service is, in a line for `systemctl status` and for scripts (`StatusText`).
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// Keeps telling the watchdog that the runtime still runs tasks, when the unit has `WatchdogSec=`.
///
/// The message is sent by a task that waits for another task each time: handlers that block every worker thread stop
/// it, and systemd then restarts the service.
pub async fn feed_watchdog() {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return };
    loop {
        if tokio::spawn(async {}).await.is_ok() {
            notify(&[NotifyState::Watchdog]);
        }
        tokio::time::sleep(timeout / 3).await;
    }
}

/// Puts a descriptor into the store under `name`, and waits until the service manager has handled that, for `timeout` at
/// most.
///
/// `FDPOLL=0` keeps it there when its other end is closed, which for a packed parcel is the rule.
///
/// # Errors
/// When there is no service manager or it does not answer in time. That it *kept* the descriptor is not reported.
pub fn store(name: &str, fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    if !is_there() {
        return Err(io::Error::other("there is no service manager (NOTIFY_SOCKET is not set)"));
    }
    let message = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&message, &[fd])?;
    barrier(timeout)
}

/// Takes what is kept under `name` out of the store.
pub fn forget(name: &str) {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// Waits until the service manager has handled everything that was sent before.
fn barrier(timeout: Duration) -> io::Result<()> {
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
    drop(theirs);
    let timeout = rustix::time::Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
    match poll(&mut [PollFd::new(&ours, PollFlags::empty())], Some(&timeout))? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "the service manager does not answer")),
        _ => Ok(()),
    }
}

/// Sends a message that the service can do without: a failure is logged, nothing more.
fn notify(message: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(message) {
        tracing::warn!("the service manager cannot be told {message:?}: {error}");
    }
}
