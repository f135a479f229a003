//! Sockets in memory. What the kernel does within one call is one step here.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Debug, Default)]
struct Wire {
    /// Sent by the client, not read yet.
    requests: VecDeque<u8>,
    /// The client has closed its side.
    over: bool,
    /// Written by the server.
    answers: Vec<u8>,
    /// How many more bytes of answers the socket takes; any number when `None`.
    room: Option<usize>,
    /// The server has closed its side.
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    client: Option<Waker>,
}

/// A connection, as its client has it.
#[derive(Clone, Debug, Default)]
pub struct Client(Arc<Mutex<Wire>>);

impl Client {
    /// The server's end. There is one.
    pub fn socket(&self) -> Socket {
        Socket(self.clone())
    }

    pub fn send(&self, bytes: &[u8]) {
        self.change(|wire| wire.requests.extend(bytes));
    }

    /// Closes the client's side.
    pub fn end(&self) {
        self.change(|wire| wire.over = true);
    }

    /// Lets the socket take `room` more bytes of answers, or any number.
    pub fn set_room(&self, room: Option<usize>) {
        self.change(|wire| wire.room = room);
    }

    /// All that was answered so far.
    pub fn answers(&self) -> Vec<u8> {
        self.0.lock().unwrap().answers.clone()
    }

    /// Whether the server has closed its side.
    pub fn is_closed(&self) -> bool {
        self.0.lock().unwrap().closed
    }

    /// What was sent and not read by a server.
    pub fn unread(&self) -> Vec<u8> {
        self.0.lock().unwrap().requests.iter().copied().collect()
    }

    /// Waits until `done` is content with the answers, or the server has closed its side.
    pub async fn until(&self, done: impl Fn(&[u8]) -> bool) {
        std::future::poll_fn(|cx| {
            let mut wire = self.0.lock().unwrap();
            if wire.closed || done(&wire.answers) {
                return Poll::Ready(());
            }
            wire.client = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Changes the wire in one step, then wakes the server.
    fn change(&self, change: impl FnOnce(&mut Wire)) {
        let mut wire = self.0.lock().unwrap();
        change(&mut wire);
        let woken = [wire.reader.take(), wire.writer.take()];
        drop(wire);
        woken.into_iter().flatten().for_each(Waker::wake);
    }
}

/// A connection, as its server has it: a `TcpStream`, a `UnixStream`, or the descriptor of either.
#[derive(Debug)]
pub struct Socket(Client);

impl Socket {
    pub fn from_std(socket: Self) -> io::Result<Self> {
        Ok(socket)
    }

    pub fn into_std(self) -> io::Result<Self> {
        // The runtime that the socket was registered with wakes nobody for it any more.
        let mut wire = self.0.0.lock().unwrap();
        (wire.reader, wire.writer) = (None, None);
        drop(wire);
        Ok(self)
    }

    pub fn set_nodelay(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok((Ipv4Addr::LOCALHOST, 1).into())
    }

    fn close(&self) {
        let mut wire = self.0.0.lock().unwrap();
        wire.closed = true;
        let client = wire.client.take();
        drop(wire);
        client.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.close();
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.0.lock().unwrap();
        let count = wire.requests.len().min(buf.remaining());
        if count == 0 && !wire.over {
            wire.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        wire.requests.drain(..count).for_each(|byte| buf.put_slice(&[byte]));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut wire = self.0.0.lock().unwrap();
        let mut bytes: Vec<u8> = bytes.iter().flat_map(|slice| slice.iter().copied()).collect();
        if let Some(room) = &mut wire.room {
            bytes.truncate(*room);
            *room -= bytes.len();
            if bytes.is_empty() {
                wire.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        wire.answers.extend_from_slice(&bytes);
        let client = wire.client.take();
        drop(wire);
        client.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(bytes.len()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

/// A listening socket, which may be shared: a `TcpListener` or a `UnixListener`.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<Mutex<(VecDeque<Socket>, Vec<Waker>)>>);

impl Backlog {
    /// Connects a client.
    pub fn connect(&self) -> Client {
        let client = Client::default();
        let mut backlog = self.0.lock().unwrap();
        backlog.0.push_back(client.socket());
        let woken = std::mem::take(&mut backlog.1);
        drop(backlog);
        woken.into_iter().for_each(Waker::wake);
        client
    }

    /// Who has connected first, if somebody waits.
    pub fn pop(&self) -> Option<Socket> {
        self.0.lock().unwrap().0.pop_front()
    }

    pub fn from_std(backlog: Self) -> io::Result<Self> {
        Ok(backlog)
    }

    pub fn set_nonblocking(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok((Ipv4Addr::LOCALHOST, 1).into())
    }

    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, SocketAddr)>> {
        let mut backlog = self.0.lock().unwrap();
        let Some(socket) = backlog.0.pop_front() else {
            backlog.1.push(cx.waker().clone());
            return Poll::Pending;
        };
        let peer = socket.peer_addr()?;
        Poll::Ready(Ok((socket, peer)))
    }
}
