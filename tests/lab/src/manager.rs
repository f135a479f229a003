//! A stand-in for systemd: it starts a service as a unit with a socket and a descriptor store does, and restarts it. No
//! root, no systemd, no container.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Descriptors one message can carry (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;

/// `TimeoutStartSec=` and `TimeoutStopSec=`; the second is that of the longest T that makes sense here.
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(90);

/// A service that is yet to be started.
#[derive(Debug)]
pub struct Manager {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: HashMap<String, String>,
    /// `RestartKillSignal=`.
    pub restart_signal: Signal,
}

/// The descriptor store: of each descriptor its name.
type Store = Arc<Mutex<Vec<(String, OwnedFd)>>>;

/// A service under the stand-in; its process ends when this is dropped.
#[derive(Debug)]
pub struct Service {
    manager: Manager,
    socket: TcpListener,
    store: Store,
    /// How often it said that it is ready.
    ready: watch::Receiver<usize>,
    hearing: JoinHandle<io::Result<()>>,
    child: Child,
    directory: tempfile::TempDir,
}

impl Manager {
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: vec![], env: HashMap::new(), restart_signal: Signal::HUP }
    }

    /// Binds a free port of 127.0.0.1, starts the process and waits until it is ready.
    pub async fn start(self) -> anyhow::Result<Service> {
        let directory = tempfile::Builder::new().prefix("lab-").tempdir()?;
        let socket = TcpListener::bind("127.0.0.1:0")?;
        // As systemd would: the whole of net.core.somaxconn, not std's 128.
        rustix::net::listen(&socket, 4096)?;
        let notify = UnixDatagram::bind(directory.path().join("notify"))?;
        let (told, ready) = watch::channel(0);
        let store = Store::default();
        let hearing = tokio::spawn(hear(notify, store.clone(), told));
        let child = self.spawn(&directory, &socket, &store)?;
        let mut service = Service { manager: self, socket, store, ready, hearing, child, directory };
        service.is_ready().await?;
        Ok(service)
    }

    fn spawn(&self, directory: &tempfile::TempDir, socket: &TcpListener, store: &Store) -> anyhow::Result<Child> {
        let mut names = vec!["service.socket".to_owned()];
        let mut fds = vec![OwnedFd::from(socket.try_clone()?)];
        for (name, fd) in &*store.lock().unwrap_or_else(PoisonError::into_inner) {
            names.push(name.clone());
            fds.push(fd.try_clone()?);
        }
        let log = File::options().create(true).append(true).open(directory.path().join("log"))?;
        // Only the new process knows its own id, hence the shell. And a service manager's children ignore no signal, whatever
        // this process was started with (nohup(1)).
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", r#"LISTEN_PID=$$ exec env --default-signal "$@""#, "sh"])
            .arg(&self.program)
            .args(&self.args)
            .env_remove("WATCHDOG_PID")
            .env_remove("WATCHDOG_USEC")
            .env("NOTIFY_SOCKET", directory.path().join("notify"))
            .env("LISTEN_FDS", fds.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .envs((self.restart_signal == Signal::HUP).then_some(("RESTARTSIGNAL", "SIGHUP")))
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        let mappings = (3..).zip(fds).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect())?;
        command.spawn().with_context(|| format!("starting {}", self.program.display()))
    }
}

impl Service {
    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("a socket that is bound")
    }

    /// Everything the service has written to standard output and error, from its first start on.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.directory.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// `systemctl restart`: stops the process, starts it again with what is in the store, waits until it is ready. Fails
    /// unless the old process ended well.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        rustix::process::kill_process(pid.context("the service is not running")?, self.manager.restart_signal)?;
        let status = timeout(STOP, self.child.wait()).await;
        let status = status.with_context(|| format!("the service did not end; its log:\n{}", self.log()))??;
        ensure!(status.success(), "the old process ended with {status}; its log:\n{}", self.log());
        self.ready.mark_unchanged();
        self.child = self.manager.spawn(&self.directory, &self.socket, &self.store)?;
        self.is_ready().await
    }

    /// Waits until the process that was just started says so.
    async fn is_ready(&mut self) -> anyhow::Result<()> {
        let why = tokio::select! {
            Ok(()) = self.ready.changed() => return Ok(()),
            status = self.child.wait() => format!("ended before it was ready ({})", status?),
            () = sleep(START) => format!("was not ready within {START:?}"),
        };
        bail!("the service {why}; its log:\n{}", self.log())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.hearing.abort();
    }
}

/// Hears what the service says, and keeps what it wants kept (sd_notify(3)).
async fn hear(socket: UnixDatagram, store: Store, ready: watch::Sender<usize>) -> io::Result<()> {
    loop {
        let (text, fds) = socket.async_io(Interest::READABLE, || receive(&socket)).await?;
        let says = |line| text.lines().any(|said| said == line);
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        if says("FDSTOREREMOVE=1") {
            store.retain(|(stored, _)| stored != name);
        }
        // What comes with BARRIER=1 is closed here, which tells the sender that all before it was heard.
        if says("FDSTORE=1") {
            store.extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
        }
        if says("READY=1") {
            ready.send_modify(|times| *times += 1);
        }
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut text = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = rights.flatten().collect();
    text.truncate(received.bytes);
    Ok((String::from_utf8_lossy(&text).into_owned(), fds))
}
