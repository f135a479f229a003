//! Siblings: other instances of this service on this host, which accept from the same listening socket.
//!
//! An instance that serves has a *handover socket*, `$RUNTIME_DIRECTORY/<pid>`. One that leaves hands its connections in
//! at that of one that serves on, each as soon as it stands at a message boundary: no client waits for a process to start.
//!
//! A connection changes hands exactly once. The giver keeps its descriptors until the sibling has said that it has them,
//! and the sibling reads from none of them before it has said so. When it says nothing, the giver first makes sure that
//! it cannot say so any more, and then goes on with the connections itself.
//!
//! With that a sibling says how many connections it has, so that the one that leaves makes all of them even.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen,
    recv, send, shutdown, socket_with,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinError, JoinHandle};

use super::Error;
use super::connection::Origin;
use super::connections::Connections;
use super::queue::{self, Detached};

/// How long a sibling may take over a message, before it counts as stuck.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// What the sibling says of a message: the connections are its own from now on. After it stands in four bytes how many
/// it has by then, which earlier releases neither say nor read.
const TAKEN: u8 = 6; // ASCII's ACK

/// Whether a file is there, and neither a link to one nor anything else.
fn is_file(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.is_file())
}

/// The file that says that this host is drained. No instance has such a name.
const DRAINED: &str = "drained";

/// The instances of this service on this host.
#[derive(Clone, Debug)]
pub struct Siblings(PathBuf);

impl Siblings {
    /// Those whose handover sockets are in `directory`, which has to belong to the service alone.
    pub fn within(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// Those that share this instance's `RuntimeDirectory=` (systemd.exec(5)); without one it is alone.
    pub fn of_unit() -> Option<Self> {
        let directories = std::env::var_os("RUNTIME_DIRECTORY")?;
        std::env::split_paths(&directories).next().map(Self::within)
    }

    /// The living instances' process ids, this one's not among them. The socket of one that was killed is removed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            // What else stands there is somebody else's. Its name may be a number as well.
            if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
                pids.extend(entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
            }
        }
        pids.retain(|pid| *pid != std::process::id() && !is_left(&self.path(*pid)));
        pids.sort_unstable();
        Ok(pids)
    }

    /// A connection to the instance with this process id, whichever sockets it shares: it serves this one as if a sibling had
    /// handed it in.
    ///
    /// # Errors
    /// When there is no such instance, or it does not take connections.
    pub async fn connect(&self, pid: u32) -> Result<UnixStream, Error> {
        let connected = async {
            let (ours, theirs) = UnixStream::pair()?;
            let socket = theirs.into_std()?.into();
            let theirs = Detached { socket, unparsed: Vec::new(), origin: Origin::Adopted, since: Instant::now() };
            hand_in(&self.path(pid), &[theirs], PATIENCE).await?;
            Ok(ours)
        };
        connected.await.map_err(Error::Instance)
    }

    /// Whether this host is drained: its instances say that they are not ready, and end connections with their answers.
    pub fn are_drained(&self) -> bool {
        is_file(&self.0.join(DRAINED))
    }

    /// Drains this host, or takes it back. Instances heed it within a moment, and those that are started later as well.
    ///
    /// # Errors
    /// When the directory is not there, as no instance has run yet, or it cannot be written to.
    pub fn set_drained(&self, drained: bool) -> io::Result<()> {
        let path = self.0.join(DRAINED);
        if drained && is_file(&path) {
            return Ok(());
        }
        // The directory is the service's own, and root may be who drains: no link that stands there is followed.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound || !self.0.is_dir() => Err(error),
            _ if drained => std::fs::File::create_new(path).map(drop),
            _ => Ok(()),
        }
    }

    /// The path of the handover socket of the instance with this process id.
    pub(crate) fn path(&self, pid: u32) -> PathBuf {
        self.0.join(pid.to_string())
    }

    /// Opens this instance's own handover socket: what is handed in there is served with `connections`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(crate) fn listen(&self, connections: Arc<Connections>) -> io::Result<HandoverSocket> {
        let path = self.path(std::process::id());
        let socket = seqpacket()?;
        // Its name, a number, only once it listens. Either may be left of a process that was killed.
        let unfinished = path.with_extension("new");
        let _ = std::fs::remove_file(&unfinished);
        bind(&socket, &SocketAddrUnix::new(&unfinished)?)?;
        listen(&socket, 64)?;
        std::fs::rename(&unfinished, &path)?;
        Ok(HandoverSocket { path, task: tokio::spawn(accept(UnixListener::from_std(socket.into())?, connections)) })
    }
}

/// What a sibling has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// How many connections of those that were handed in.
    pub count: usize,
    /// How many it has by then, if it says so.
    pub has: Option<usize>,
}

/// Hands the first of `connections` in at a handover socket, within `patience`; gives how many were taken. None of none tells
/// whether somebody serves there, and understands this release's messages.
///
/// # Errors
/// When none was taken, and none will be.
pub async fn hand_in(path: &Path, connections: &[Detached], patience: Duration) -> io::Result<Taken> {
    let socket = seqpacket()?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let socket = UnixStream::from_std(socket.into())?;
    let count = queue::send(&socket, connections)?;
    // Readable when it has answered or is gone; or it is stuck.
    let _ = tokio::time::timeout(patience.min(PATIENCE), socket.readable()).await;
    // What it has not said by now it can no longer say.
    shutdown(&socket, Shutdown::Both)?;
    let mut answer = [0; 5];
    loop {
        match recv(&socket, &mut answer, RecvFlags::DONTWAIT) {
            Ok((length, _)) => match (length, answer) {
                (1, [TAKEN, ..]) => return Ok(Taken { count, has: None }),
                (5, [TAKEN, has @ ..]) => return Ok(Taken { count, has: Some(u32::from_le_bytes(has) as usize) }),
                _ => return Err(io::Error::other("it takes no connections")),
            },
            // Reported before what came first.
            Err(Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The handover socket of this instance. Siblings find it until it is closed.
#[derive(Debug)]
pub struct HandoverSocket {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl HandoverSocket {
    /// Resolves when nobody listens any more, which is so only when that went wrong.
    pub async fn ended(&mut self) -> Result<(), JoinError> {
        (&mut self.task).await
    }

    /// Closes the socket. Everything that was taken in is this instance's, everything else stays with its giver.
    pub async fn close(self) {
        let _ = std::fs::remove_file(&self.path);
        self.task.abort();
        // Unless `ended` has seen to that already.
        if !self.task.is_finished() {
            let _ = self.task.await;
        }
    }
}

/// Whether nobody listens at a handover socket any more, which is then removed. A socket of another type cannot connect, so
/// that the living are not disturbed.
fn is_left(path: &Path) -> bool {
    let tried = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    let left = tried.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if left {
        let _ = std::fs::remove_file(path);
    }
    left
}

/// Takes in what is handed in, one message after the other.
async fn accept(socket: UnixListener, connections: Arc<Connections>) {
    loop {
        let taken = match socket.accept().await {
            Ok((giver, _)) => {
                tokio::time::timeout(PATIENCE, take_in(&giver, &connections)).await.map_err(Into::into).flatten()
            }
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            connections.count_failed_handover();
            tracing::warn!("connections of a sibling are not taken over: {error}");
            // Where descriptors are short, they would be at once again.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn take_in(giver: &UnixStream, connections: &Connections) -> io::Result<()> {
    let user = giver.peer_cred()?.uid();
    if !may_hand_in(user, rustix::process::geteuid().as_raw()) {
        return Err(io::Error::other(format!("user {user} is a stranger")));
    }
    let message = giver.async_io(Interest::READABLE, || queue::receive(giver)).await?;
    let mut handed_in = message.ok_or(Errno::CONNRESET)?.open()?;
    handed_in.iter_mut().for_each(|one| one.origin = Origin::Guest);
    let has = u32::try_from(connections.len() + connections.parked() + handed_in.len()).unwrap_or(u32::MAX);
    let [a, b, c, d] = has.to_le_bytes();
    // Said first: a giver that is no longer there to hear it keeps them.
    send(giver, &[TAKEN, a, b, c, d], SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    connections.park(handed_in);
    Ok(())
}

/// Whether who runs as `user` may hand connections in to one that runs as `own`: root and the service itself may.
fn may_hand_in(user: u32, own: u32) -> bool {
    user == 0 || user == own
}

/// A socket that keeps messages apart. std and tokio have no type for it, and theirs for streams do all that is needed.
fn seqpacket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/sibling.rs"]
mod tests;
