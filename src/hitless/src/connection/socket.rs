//! What the kernel tells of a socket, where the runtime does not.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};
use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

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
    let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
    ready!(socket.poll_read(cx, &mut part))?;
    let count = part.filled().len();
    buf.advance(count);
    Poll::Ready(Ok(()))
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
