//! Siblings: other instances of this service on this host, which accept from the same listening socket.
//!
//! An instance that serves has a *door*, the Unix socket `$RUNTIME_DIRECTORY/<pid>`. One that leaves hands its clean
//! connections in at the door of one that serves on, each as soon as it is clean: no client waits for a process to
//! start.
//!
//! A connection changes hands exactly once. The giver keeps its descriptors until the sibling has said that it has them,
//! and the sibling reads from none of them before it has said so. When it says nothing, the giver first makes sure that
//! it cannot say so any more, and then goes on with the connections itself.
//!
//! With that a sibling says how many connections it has, so that the one that leaves makes all of them even.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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
use super::connections::Gate;
use super::parcel::{self, Clean};

/// How long a sibling may take over a message, before it counts as stuck.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// What the sibling says of a message: the connections are its own from now on. After it stands in four bytes how many
/// it has by then, which earlier releases neither say nor read.
const TAKEN: u8 = 6; // ASCII's ACK

/// The instances of this service on this host.
#[derive(Clone, Debug)]
pub struct Siblings(PathBuf);

impl Siblings {
    /// Those whose doors are in `directory`, which has to belong to the service alone.
    pub fn within(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// Those that share this instance's `RuntimeDirectory=` (systemd.exec(5)); without one it is alone.
    pub fn of_unit() -> Option<Self> {
        let directories = std::env::var_os("RUNTIME_DIRECTORY")?;
        std::env::split_paths(&directories).next().map(Self::within)
    }

    /// The living instances' process ids, this one's not among them. The door of one that was killed is removed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        pids.retain(|pid| *pid != std::process::id() && !is_left(&self.door(*pid)));
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
            let theirs = Clean { socket: theirs.into_std()?.into(), rest: Vec::new(), origin: Origin::Adopted };
            hand_in(&self.door(pid), &[theirs], PATIENCE).await?;
            Ok(ours)
        };
        connected.await.map_err(Error::Instance)
    }

    /// The door of the instance with this process id.
    pub(crate) fn door(&self, pid: u32) -> PathBuf {
        self.0.join(pid.to_string())
    }

    /// Opens this instance's own door: what is handed in there is served behind `gate`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(crate) fn open_door(&self, gate: Arc<Gate>) -> io::Result<Door> {
        let path = self.door(std::process::id());
        let socket = seqpacket()?;
        // Its name, a number, only once it can be knocked at. Either may be left of a process that was killed.
        let unfinished = path.with_extension("new");
        let _ = std::fs::remove_file(&unfinished);
        bind(&socket, &SocketAddrUnix::new(&unfinished)?)?;
        listen(&socket, 64)?;
        std::fs::rename(&unfinished, &path)?;
        Ok(Door { path, task: tokio::spawn(attend(UnixListener::from_std(socket.into())?, gate)) })
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

/// Hands the first of `connections` in at a door, within `patience`; gives how many were taken. None of none tells
/// whether somebody serves there, and understands this release's messages.
///
/// # Errors
/// When none was taken, and none will be.
pub async fn hand_in(door: &Path, connections: &[Clean], patience: Duration) -> io::Result<Taken> {
    let socket = seqpacket()?;
    connect(&socket, &SocketAddrUnix::new(door)?)?;
    let socket = UnixStream::from_std(socket.into())?;
    let count = parcel::send(&socket, connections)?;
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

/// The door of this instance. Siblings find it until it is closed.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Door {
    /// Resolves when nobody is behind the door any more, which is so only when that went wrong.
    pub async fn ended(&mut self) -> Result<(), JoinError> {
        (&mut self.task).await
    }

    /// Closes the door. Everything that was taken in is behind the gate, everything else stays with its giver.
    pub async fn close(self) {
        let _ = std::fs::remove_file(&self.path);
        self.task.abort();
        // Unless `ended` has seen to that already.
        if !self.task.is_finished() {
            let _ = self.task.await;
        }
    }
}

/// Whether nobody is behind a door any more, which is then removed. A socket of another type is not let in, so that the
/// living are not disturbed.
fn is_left(door: &Path) -> bool {
    let knock = UnixDatagram::unbound().and_then(|socket| socket.connect(door));
    let left = knock.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if left {
        let _ = std::fs::remove_file(door);
    }
    left
}

/// Takes in what is handed in, one message after the other.
async fn attend(door: UnixListener, gate: Arc<Gate>) {
    loop {
        let taken = match door.accept().await {
            Ok((giver, _)) => {
                tokio::time::timeout(PATIENCE, take_in(&giver, &gate)).await.map_err(Into::into).flatten()
            }
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            tracing::warn!("connections of a sibling are not taken over: {error}");
            // Where descriptors are short, they would be at once again.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn take_in(giver: &UnixStream, gate: &Gate) -> io::Result<()> {
    let user = giver.peer_cred()?.uid();
    if !may_hand_in(user, rustix::process::geteuid().as_raw()) {
        return Err(io::Error::other(format!("user {user} is a stranger")));
    }
    let message = giver.async_io(Interest::READABLE, || parcel::receive(giver)).await?;
    let mut connections = message.ok_or(Errno::CONNRESET)?.open()?;
    connections.iter_mut().for_each(|clean| clean.origin = Origin::Guest);
    let has = u32::try_from(gate.len() + gate.put_aside() + connections.len()).unwrap_or(u32::MAX);
    let [a, b, c, d] = has.to_le_bytes();
    // Said first: a giver that is no longer there to hear it keeps them.
    send(giver, &[TAKEN, a, b, c, d], SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    gate.put(connections);
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

#[cfg(all(test, feature = "proofs"))]
#[rustfmt::skip]
#[path = "../tests/unit/sibling.rs"]
mod tests;
