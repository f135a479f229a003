//! The parcel: clean connections, packed for the next process.
//!
//! A parcel is one `SOCK_SEQPACKET` socket pair. Its receiving end is kept by systemd's file descriptor store, and the
//! connections wait inside it as `SCM_RIGHTS` messages, so that the store holds a single descriptor however many
//! connections there are (systemd compares each new descriptor with all that it has: 9,000 of them take it 34 s).
//! The store gets the empty parcel first: one that it does not keep is noticed while nothing is packed yet.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};

use super::systemd;

/// The parcel's name in systemd's descriptor store.
pub const NAME: &str = "parcel";

/// The format's version, the first byte of every message. A message of another version is not opened.
const VERSION: u8 = 1;
/// The most descriptors that one message can carry (`SCM_MAX_FD`, unix(7)).
const MESSAGE_SOCKETS: usize = 253;
/// The most bytes in a message, apart from the last connection's rest.
const MESSAGE_BYTES: usize = 32 * 1024;
/// The largest message: what precedes the last rest, and that rest.
const MESSAGE_LIMIT: usize = MESSAGE_BYTES + 72 * 1024;

/// A connection that stands before a request, and what was already read of that request.
#[derive(Debug)]
pub struct Clean {
    pub socket: OwnedFd,
    pub rest: Vec<u8>,
}

/// The sending end of a parcel whose receiving end the service manager keeps.
#[derive(Debug)]
pub struct Parcel(OwnedFd);

impl Parcel {
    /// Opens an empty parcel in the service manager's descriptor store, within `timeout`.
    ///
    /// # Errors
    /// When there is no service manager, it does not answer, or it does not keep the descriptor (no
    /// `FileDescriptorStoreMax=`, or the store is full).
    pub fn open(timeout: Duration) -> io::Result<Self> {
        let (sender, receiver) = pair()?;
        systemd::store(NAME, receiver.as_fd(), timeout)?;
        drop(receiver);
        let parcel = Self(sender);
        if parcel.is_kept()? {
            Ok(parcel)
        } else {
            Err(io::Error::other(
                "the service manager does not keep descriptors (FileDescriptorStoreMax= is not set, or the store is full)",
            ))
        }
    }

    /// Puts connections into the parcel and closes it.
    ///
    /// # Errors
    /// When the kernel takes no more, with the number of connections that did get in.
    pub fn pack(self, connections: Vec<Clean>) -> Result<usize, (usize, io::Error)> {
        let mut packed = 0;
        while packed < connections.len() {
            packed += send(&self.0, &connections[packed..]).map_err(|error| (packed, error))?;
        }
        Ok(packed)
    }

    /// Whether somebody holds the other end.
    fn is_kept(&self) -> io::Result<bool> {
        let mut ends = [PollFd::new(&self.0, PollFlags::empty())];
        poll(&mut ends, Some(&rustix::time::Timespec::default()))?;
        Ok(!ends[0].revents().contains(PollFlags::HUP))
    }
}

/// A parcel's two ends: the sending one, the receiving one.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (sender, receiver) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // What waits inside counts against the sender's buffer: ask for the most that there is (net.core.wmem_max).
    sockopt::set_socket_send_buffer_size(&sender, 4 << 20)?;
    Ok((sender, receiver))
}

/// Sends the first of `connections` in one message, which their descriptors' copies travel with; gives their number.
///
/// # Errors
/// When the kernel does not take the message, as it is, at once.
pub(super) fn send(to: impl AsFd, connections: &[Clean]) -> io::Result<usize> {
    let (message, count) = compose(connections);
    let sockets: Vec<BorrowedFd> = connections[..count].iter().map(|clean| clean.socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() {
        // Cannot fail: there is space for MESSAGE_SOCKETS, and compose takes no more.
        control.push(SendAncillaryMessage::ScmRights(&sockets));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(to, &[IoSlice::new(&message)], &mut control, flags)?;
    Ok(count)
}

/// The message for the first of `connections`, and how many of them it carries.
fn compose(connections: &[Clean]) -> (Vec<u8>, usize) {
    let mut message = vec![VERSION];
    let mut count = 0;
    for clean in connections.iter().take(MESSAGE_SOCKETS) {
        if message.len() > MESSAGE_BYTES {
            break;
        }
        // A rest is at most 64 KiB (the ledger's limit).
        message.extend_from_slice(&(clean.rest.len() as u32).to_le_bytes());
        message.extend_from_slice(&clean.rest);
        count += 1;
    }
    (message, count)
}

/// Takes out everything that a parcel holds.
///
/// # Errors
/// When a message cannot be read, or is of another version. Its connections are closed, all others are in `connections`.
pub fn unpack(parcel: &OwnedFd, connections: &mut Vec<Clean>) -> io::Result<()> {
    let mut outcome = Ok(());
    loop {
        match receive(parcel) {
            Ok(Some(message)) => match message.open() {
                Ok(opened) => connections.extend(opened),
                Err(error) => outcome = Err(error),
            },
            Ok(None) => return outcome,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return outcome,
            Err(error) => return Err(error),
        }
    }
}

/// A message as it came, not opened yet.
#[derive(Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
    sockets: Vec<OwnedFd>,
    cut_short: bool,
}

impl Message {
    /// The connections in it.
    ///
    /// # Errors
    /// When it was cut short, or is of another version: then its connections are closed here.
    pub(super) fn open(self) -> io::Result<Vec<Clean>> {
        if self.cut_short {
            return Err(io::Error::other("a message was cut short: too few descriptors (LimitNOFILE=)?"));
        }
        decompose(&self.bytes, self.sockets)
    }
}

/// Receives one message; `None` when there will be no more.
///
/// # Errors
/// When there is none now (`WouldBlock`), or it cannot be read.
pub(super) fn receive(from: impl AsFd) -> io::Result<Option<Message>> {
    let mut bytes = vec![0; MESSAGE_LIMIT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    if message.bytes == 0 {
        return Ok(None);
    }
    let sockets = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        })
        .flatten()
        .collect();
    bytes.truncate(message.bytes);
    let cut_short = message.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC);
    Ok(Some(Message { bytes, sockets, cut_short }))
}

/// The connections of one message.
fn decompose(message: &[u8], sockets: Vec<OwnedFd>) -> io::Result<Vec<Clean>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a message of the parcel is malformed");
    let (&version, mut rests) = message.split_first().ok_or_else(malformed)?;
    if version != VERSION {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the parcel has format {version}, this release opens format {VERSION}: its {} connections are closed",
                sockets.len()
            ),
        ));
    }
    let connections = sockets
        .into_iter()
        .map(|socket| {
            let (length, tail) = rests.split_first_chunk()?;
            let (rest, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rests = tail;
            Some(Clean { socket, rest: rest.to_vec() })
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(malformed)?;
    if rests.is_empty() { Ok(connections) } else { Err(malformed()) }
}

#[cfg(test)]
#[path = "../../tests/unit/parcel.rs"]
mod tests;
