//! The `std`, `tokio`, `rustix` and `socket2` that `src/hitless` is compiled against here: the real ones, but for sockets, which
//! are in memory, and for time, which does not pass. With the feature `shuttle`, its scheduler has the locks and atomics.
//!
//! So what is tested is the very code that serves, without a line changed and without a kernel below it.

mod socket;

pub use socket::{Backlog, Client, Socket};
pub use std::*;
pub use tokio::select;

pub mod sync {
    #[cfg(feature = "shuttle")]
    pub use shuttle::sync::{Mutex, MutexGuard, atomic};
    pub use std::sync::*;
    pub use tokio::sync::Notify;
}

pub mod collections {
    use std::hash::{BuildHasherDefault, DefaultHasher};

    pub use std::collections::*;

    /// One whose order is the same in every run, so that a failure can be replayed.
    pub type HashMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<DefaultHasher>>;
}

pub mod io {
    pub use rustix::io::Errno;
    pub use std::io::*;
    pub use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, copy, split};

    pub fn ioctl_fionbio(_: &crate::Socket, _: bool) -> Result<()> {
        Ok(())
    }
}

pub mod net {
    pub use rustix::net::{AddressFamily, RecvFlags, SocketAddrAny, SocketFlags};
    pub use std::net::*;

    pub use crate::{Backlog as TcpListener, Backlog as UnixListener, Socket as TcpStream, Socket as UnixStream};

    /// Nothing arrives that is not told of at once.
    pub fn recv(_: &crate::Socket, _: &mut [u8], _: RecvFlags) -> crate::io::Result<(usize, usize)> {
        Ok((0, 0))
    }

    /// Accepts who has connected already.
    pub fn accept_with(backlog: &crate::Backlog, _: SocketFlags) -> Result<crate::Socket, rustix::io::Errno> {
        backlog.pop().ok_or(rustix::io::Errno::AGAIN)
    }

    pub fn getsockname(socket: &crate::Socket) -> std::io::Result<SocketAddrAny> {
        socket.peer_addr().map(Into::into)
    }
}

pub mod event {
    pub use rustix::event::{PollFlags, Timespec};

    pub struct PollFd;

    impl PollFd {
        pub fn new<T>(_: &T, _: PollFlags) -> Self {
            Self
        }
    }

    /// Nothing happens that is not told of at once.
    pub fn poll(_: &mut [PollFd], _: Option<&Timespec>) -> crate::io::Result<usize> {
        Ok(0)
    }
}

pub struct SockRef;

impl From<&Socket> for SockRef {
    fn from(_: &Socket) -> Self {
        Self
    }
}

impl SockRef {
    /// There are no options. What is written is with the client.
    pub fn set_tcp_notsent_lowat(&self, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub mod os {
    pub mod fd {
        pub use crate::Socket as OwnedFd;
    }
}

pub mod task {
    pub use std::task::*;

    #[cfg(feature = "shuttle")]
    pub use shuttle::future::yield_now;
    #[cfg(not(feature = "shuttle"))]
    pub use tokio::task::yield_now;
}

pub mod time {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    pub use std::time::*;

    #[derive(Debug)]
    pub struct Elapsed;

    /// Ten milliseconds are a turn for all others.
    pub async fn sleep(time: Duration) {
        for _ in 0..time.as_millis().div_ceil(10) {
            crate::task::yield_now().await;
        }
    }

    pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        let mut limit = pin!(sleep(limit));
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => limit.as_mut().poll(cx).map(|()| Err(Elapsed)),
        })
        .await
    }
}
