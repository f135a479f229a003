//! The handover queue: connections that wait for the next process.
//!
//! A queue is one `SOCK_SEQPACKET` socket pair. Its receiving end is kept by systemd's file descriptor store, and the
//! connections wait inside it as `SCM_RIGHTS` messages, so that the store holds a single descriptor however many
//! connections there are (systemd compares each new descriptor with all that it has: 9,000 of them take it 34 s).
//! The store gets the empty queue first: one that it does not keep is noticed while nothing is in it yet.
//!
//! What was read of unfinished heads travels beside the messages, in memory that has a descriptor (memfd_create(2)):
//! a socket's buffer takes some hundred kilobytes, and clients that send long heads slowly would fill it.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};

use super::connection::Origin;
use super::connections::Connections;
use super::{ledger, systemd};

/// The queue's name in systemd's descriptor store: what the first release called it.
pub const NAME: &str = "parcel";

/// How long systemd 257 may take to close a descriptor that it does not keep, after it has said that it is done.
const SECOND_THOUGHTS: Duration = Duration::from_millis(50);
/// The format's version, the first byte of every message. A message of another version is not opened.
///
/// After it stands the length of what is unparsed of each connection, in four bytes. The descriptors are the connections, then, where
/// there is any of that, the memory with all of them. Where nothing was asked on the connections yet, there is memory, and a byte
/// more in it than these lengths: releases that know nothing of it do not look there.
pub(super) const VERSION: u8 = 2;
/// The most descriptors that one message can carry (`SCM_MAX_FD`, unix(7)).
const MESSAGE_DESCRIPTORS: usize = 253;
/// The most connections in a message.
const MESSAGE_SOCKETS: usize = MESSAGE_DESCRIPTORS - 1;
/// The largest message, in bytes.
const MESSAGE_LIMIT: usize = 1 + MESSAGE_SOCKETS * size_of::<u32>();

/// A connection that stands at a message boundary, and that hyper has let go of.
#[derive(Debug)]
pub struct Detached {
    pub socket: OwnedFd,
    /// What was already read of its next request.
    pub unparsed: Vec<u8>,
    /// How it comes to whoever takes it.
    pub origin: Origin,
    /// Since when nothing has come of its next request, or that has begun; as far as this process can tell.
    pub since: Instant,
}

/// The sending end of a queue whose receiving end the service manager keeps.
#[derive(Debug)]
pub struct HandoverQueue(OwnedFd);

impl HandoverQueue {
    /// Opens an empty queue in the service manager's descriptor store, within `timeout`.
    ///
    /// # Errors
    /// When there is no service manager, it does not answer, or it does not keep the descriptor (no
    /// `FileDescriptorStoreMax=`, or the store is full).
    pub async fn open(timeout: Duration) -> io::Result<Self> {
        let (sender, receiver) = pair()?;
        systemd::store(NAME, receiver.as_fd(), timeout).await?;
        drop(receiver);
        let queue = Self(sender);
        tokio::time::sleep(SECOND_THOUGHTS).await;
        queue.is_kept()?;
        Ok(queue)
    }

    /// Fails when nobody holds the other end.
    ///
    /// # Errors
    /// When what is put into it would be lost.
    pub fn is_kept(&self) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.0, PollFlags::empty())], Some(&Timespec::default()))? {
            0 => Ok(()),
            _ => Err(io::Error::other(
                "the service manager does not keep descriptors (FileDescriptorStoreMax= is not set, or the store is full)",
            )),
        }
    }

    /// Puts connections into the queue, in an order of its own, and closes it.
    ///
    /// # Errors
    /// When the kernel takes no more, with the number of connections that did get in.
    pub fn fill(self, connections: &mut [Detached]) -> Result<usize, (usize, io::Error)> {
        // Those detached last were busy until the last moment, and are likeliest to wait for an answer. And should there be
        // no memory for what was read, then only those that it belongs to are lost.
        connections.reverse();
        connections.sort_by_key(|detached| (detached.origin == Origin::Unasked, detached.unparsed.len()));
        let asked = connections.partition_point(|detached| detached.origin != Origin::Unasked);
        let mut queued = 0;
        while queued < connections.len() {
            let until = if queued < asked { asked } else { connections.len() };
            queued += send(&self.0, &connections[queued..until]).map_err(|error| (queued, error))?;
        }
        Ok(queued)
    }
}

/// A queue's two ends: the sending one, the receiving one.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (sender, receiver) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // What waits inside counts against the sender's buffer: ask for the most that there is (net.core.wmem_max).
    sockopt::set_socket_send_buffer_size(&sender, 4 << 20)?;
    Ok((sender, receiver))
}

/// Sends the first of `connections` in one message, which their descriptors' copies travel with; gives their number. In
/// a message something was asked on all of them or on none, which the first tells.
///
/// # Errors
/// When the kernel does not take the message, as it is, at once.
pub(super) fn send(to: impl AsFd, connections: &[Detached]) -> io::Result<usize> {
    let connections = &connections[..connections.len().min(MESSAGE_SOCKETS)];
    let mut message = vec![VERSION];
    // Each is at most 64 KiB long (the ledger's limit).
    message.extend(connections.iter().flat_map(|detached| (detached.unparsed.len() as u32).to_le_bytes()));
    let memory = unparsed(connections)?;
    let sockets = connections.iter().map(|detached| detached.socket.as_fd());
    let descriptors: Vec<BorrowedFd> = sockets.chain(memory.iter().map(AsFd::as_fd)).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        // Cannot fail: there is space for MESSAGE_DESCRIPTORS.
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(to, &[IoSlice::new(&message)], &mut control, flags)?;
    Ok(connections.len())
}

/// Memory with what was read of each connection's next request, and whether nothing was asked yet, unless neither is the case.
fn unparsed(connections: &[Detached]) -> io::Result<Option<File>> {
    let unasked = connections.first().is_some_and(|detached| detached.origin == Origin::Unasked);
    if !unasked && connections.iter().all(|detached| detached.unparsed.is_empty()) {
        return Ok(None);
    }
    let mut memory = File::from(memfd_create(c"unparsed", MemfdFlags::CLOEXEC)?);
    for detached in connections {
        memory.write_all(&detached.unparsed)?;
    }
    memory.write_all(if unasked { &[0] } else { &[] })?;
    Ok(Some(memory))
}

/// Takes over the connections in queues: those that were busy until the last moment before this returns, the others
/// by the future that it gives, each lot when the one before is let in. Should the process end before, they are still in
/// the queue.
///
/// That future is for after `READY=1`: where descriptors are short, it may leave none to say that with.
pub fn take_over(queues: Vec<OwnedFd>, connections: Arc<Connections>) -> impl Future<Output = ()> + Send + 'static {
    let any = !queues.is_empty();
    let mut messages = unpack(queues);
    let mut count = 0;
    let mut next = move |connections: &Connections| {
        match messages.next() {
            Some(Ok(detached)) => {
                count += detached.len();
                connections.count_taken_over(detached.len());
                // The listener begins with the last.
                connections.park(detached.into_iter().rev().collect());
            }
            Some(Err(error)) => {
                connections.count_failed_handover();
                tracing::error!("not all connections of the previous process can be taken over: {error}");
            }
            None if any => {
                tracing::info!("{count} connections of the previous process are taken over");
                // The next process is not to get it again.
                systemd::forget(NAME);
                return false;
            }
            None => return false,
        }
        true
    };
    let mut more = true;
    while more && connections.parked() < MESSAGE_SOCKETS {
        more = next(&connections);
    }
    async move {
        while more {
            tokio::task::yield_now().await;
            if connections.parked() == 0 {
                more = next(&connections);
            }
        }
    }
}

/// The connections in queues, message by message.
///
/// # Errors
/// When a message cannot be read, or is of another version: then its connections are closed.
fn unpack(mut queues: Vec<OwnedFd>) -> impl Iterator<Item = io::Result<Vec<Detached>>> {
    std::iter::from_fn(move || {
        while let Some(queue) = queues.pop() {
            match receive(&queue) {
                Ok(Some(message)) => {
                    queues.push(queue);
                    return Some(message.open());
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Some(Err(error)),
                Ok(None) | Err(_) => {}
            }
        }
        None
    })
}

/// A message as it came, not opened yet.
#[derive(Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    cut_short: bool,
}

impl Message {
    /// The connections in it.
    ///
    /// # Errors
    /// When it was cut short, or is of another version: then its connections are closed here.
    pub(super) fn open(self) -> io::Result<Vec<Detached>> {
        if self.cut_short {
            return Err(io::Error::other("a message was cut short: too few descriptors (LimitNOFILE=)?"));
        }
        decompose(&self.bytes, self.descriptors)
    }
}

/// Receives one message; `None` when there will be no more.
///
/// # Errors
/// When there is none now (`WouldBlock`), or it cannot be read.
pub(super) fn receive(from: impl AsFd) -> io::Result<Option<Message>> {
    let mut bytes = vec![0; MESSAGE_LIMIT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    if message.bytes == 0 {
        return Ok(None);
    }
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    bytes.truncate(message.bytes);
    let cut_short = message.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC);
    Ok(Some(Message { bytes, descriptors, cut_short }))
}

/// The connections of one message.
fn decompose(message: &[u8], mut descriptors: Vec<OwnedFd>) -> io::Result<Vec<Detached>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a message of the handover queue is malformed");
    let (&version, lengths) = message.split_first().ok_or_else(malformed)?;
    if version != VERSION {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the handover queue has format {version}, this release opens format {VERSION}: its connections are closed ({} descriptors)",
                descriptors.len()
            ),
        ));
    }
    let (lengths, cut) = lengths.as_chunks();
    let memory = if descriptors.len() > lengths.len() { descriptors.pop().map(File::from) } else { None };
    if !cut.is_empty() || descriptors.len() != lengths.len() {
        return Err(malformed());
    }
    let all: u64 = lengths.iter().map(|length| u64::from(u32::from_le_bytes(*length))).sum();
    let unasked = memory.as_ref().is_some_and(|memory| memory.metadata().is_ok_and(|memory| memory.len() > all));
    let origin = if unasked { Origin::Unasked } else { Origin::Adopted };
    let mut read = 0;
    let connections = descriptors.into_iter().zip(lengths).map(|(socket, length)| {
        let length = u32::from_le_bytes(*length) as usize;
        if length > ledger::UNPARSED_LIMIT {
            return Err(malformed());
        }
        let mut unparsed = vec![0; length];
        if !unparsed.is_empty() {
            memory.as_ref().ok_or_else(malformed)?.read_exact_at(&mut unparsed, read)?;
            read += unparsed.len() as u64;
        }
        Ok(Detached { socket, unparsed, origin, since: Instant::now() })
    });
    connections.collect()
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/queue.rs"]
mod tests;
