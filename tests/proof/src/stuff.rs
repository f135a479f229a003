//! What stands in for a service on a host and puts descriptors into its store that are not its own, before it becomes the
//! service.

use std::convert::Infallible;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};
use sd_notify::NotifyState;

/// With what to fill the store.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// So many descriptors that mean nothing to the service.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub descriptors: u32,
    /// A handover queue of this version, with a connection in it.
    #[arg(long, value_name = "VERSION")]
    pub queue: Option<u8>,
    /// The service and its arguments.
    #[arg(last = true, required = true)]
    pub service: Vec<String>,
}

/// Fills the store and becomes the service.
pub fn stuff(options: &Options) -> anyhow::Result<Infallible> {
    for _ in 0..options.descriptors {
        let (reader, _writer) = std::io::pipe()?;
        store("other", reader.as_fd())?;
    }
    if let Some(version) = options.queue {
        let (queue, _sender) = queue(version)?;
        store("parcel", queue.as_fd())?;
    }
    let [program, arguments @ ..] = &options.service[..] else { unreachable!("clap asks for one") };
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("starting {program}"))
}

/// A queue's two ends: the receiving one, the sending one. The connection in it has nobody at its other end.
fn queue(version: u8) -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let (sender, receiver) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let (connection, _client) = UnixStream::pair()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sockets = [connection.as_fd()];
    // There is space for one.
    control.push(SendAncillaryMessage::ScmRights(&sockets));
    let message = [&[version][..], b" is not what this release opens"].concat();
    sendmsg(&sender, &[IoSlice::new(&message)], &mut control, SendFlags::empty())?;
    Ok((receiver, sender))
}

/// Without a wait: what systemd is told before the next message is handled before it.
fn store(name: &str, fd: std::os::fd::BorrowedFd<'_>) -> anyhow::Result<()> {
    let message = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&message, &[fd]).context("telling systemd")
}
