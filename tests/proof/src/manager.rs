//! A stand-in for systemd, small enough to read: it starts one service the way a unit with a socket
//! and a descriptor store does, and restarts it. No root, no systemd, no container.
//!
//! ```no_run
//! # async fn story() -> anyhow::Result<()> {
//! use proof::manager::Manager;
//!
//! let mut service = Manager::new("target/debug/my-api").env("RUST_LOG", "debug").start().await?;
//! let before = service.pid();
//! service.restart().await?;
//! assert_ne!(before, service.pid());
//! assert!(service.stop().await?.success());
//! # Ok(())
//! # }
//! ```
//!
//! It does what `systemd.service(5)`, `sd_listen_fds(3)` and `sd_notify(3)` say of the few things
//! hitless builds on, and nothing else: no sandbox, no control groups, no watchdog that bites.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};

/// Descriptors one message can carry (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;

/// A service that is yet to be started.
#[derive(Debug)]
pub struct Manager {
    executable: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    listen: Vec<(String, Listen)>,
    store: usize,
    timeout_start: Duration,
    timeout_stop: Duration,
    restart_signal: Signal,
    notifies: bool,
}

#[derive(Debug)]
enum Listen {
    Tcp(String),
    Unix(PathBuf),
}

impl Manager {
    pub fn new(executable: impl Into<PathBuf>) -> Self {
        Self {
            executable: executable.into(),
            args: vec![],
            env: vec![],
            listen: vec![],
            store: 64,
            timeout_start: Duration::from_secs(30),
            timeout_stop: Duration::from_secs(90),
            restart_signal: Signal::HUP,
            notifies: true,
        }
    }

    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// `ListenStream=` on a TCP address; port 0 for any. Without a call of this or [`Self::listen_unix`]
    /// there is one socket on a free port of 127.0.0.1.
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen.push(("service.socket".into(), Listen::Tcp(address.into())));
        self
    }

    /// `ListenStream=` on a path.
    pub fn listen_unix(mut self, path: impl Into<PathBuf>) -> Self {
        self.listen.push(("service.socket".into(), Listen::Unix(path.into())));
        self
    }

    /// `FileDescriptorName=` of the socket added last.
    pub fn named(mut self, name: &str) -> Self {
        if let Some((last, _)) = self.listen.last_mut() {
            *last = name.into();
        }
        self
    }

    /// `FileDescriptorStoreMax=`; 0 keeps nothing.
    pub fn store(mut self, most: usize) -> Self {
        self.store = most;
        self
    }

    /// `Type=exec`: a process is ready once it runs, whatever it says.
    pub fn exec(mut self) -> Self {
        self.notifies = false;
        self
    }

    /// `TimeoutStartSec=`.
    pub fn timeout_start(mut self, timeout: Duration) -> Self {
        self.timeout_start = timeout;
        self
    }

    /// `TimeoutStopSec=`.
    pub fn timeout_stop(mut self, timeout: Duration) -> Self {
        self.timeout_stop = timeout;
        self
    }

    /// A unit without `RestartKillSignal=SIGHUP`, and without the variable that tells of it: a restart begins like a stop.
    pub fn one_signal(mut self) -> Self {
        self.restart_signal = Signal::TERM;
        self
    }

    /// Binds the sockets, starts the process and waits until it is ready.
    pub async fn start(mut self) -> anyhow::Result<Service> {
        if self.listen.is_empty() {
            self = self.listen("127.0.0.1:0");
        }
        let directory = tempfile::Builder::new().prefix("lab-").tempdir()?;
        let mut addresses = vec![];
        let mut sockets = vec![];
        for (name, listen) in &self.listen {
            let socket: OwnedFd = match listen {
                Listen::Tcp(address) => {
                    let listener = TcpListener::bind(address).with_context(|| format!("binding {address}"))?;
                    // As systemd would: the whole of net.core.somaxconn, not std's 128.
                    rustix::net::listen(&listener, 4096)?;
                    addresses.push(listener.local_addr()?);
                    listener.into()
                }
                Listen::Unix(path) => {
                    UnixListener::bind(path).with_context(|| format!("binding {}", path.display()))?.into()
                }
            };
            sockets.push((name.clone(), socket));
        }
        let notify = UnixDatagram::bind(directory.path().join("notify"))?;
        let (news, _) = watch::channel(());
        let state = Arc::new(Mutex::new(State { store_max: self.store, ..State::default() }));
        let (stuck, is_stuck) = watch::channel(false);
        let listener = tokio::spawn(listen(notify, state.clone(), news.clone(), is_stuck));
        let (child, exits) = (None, vec![]);
        let mut service =
            Service { manager: self, addresses, sockets, state, news, stuck, listener, child, exits, directory };
        service.start_process().await?;
        Ok(service)
    }
}

/// One `sd_notify` message.
#[derive(Debug, Clone)]
pub struct Message {
    /// As it came: lines of `KEY=value`.
    pub text: String,
    /// How many descriptors came with it.
    pub fds: usize,
    /// Which start of the service it came after, counted from 1.
    pub start: usize,
    pub at: Instant,
}

impl Message {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }

    /// Whether it says `KEY=value`.
    pub fn says(&self, line: &str) -> bool {
        self.text.lines().any(|other| other == line)
    }
}

#[derive(Debug)]
struct Stored {
    name: String,
    fd: OwnedFd,
    /// Thrown away once the other end hangs up, unless stored with `FDPOLL=0`.
    poll: bool,
}

#[derive(Debug, Default)]
struct State {
    messages: Vec<Message>,
    store: Vec<Stored>,
    store_max: usize,
    starts: usize,
    extended_until: Option<Instant>,
}

impl State {
    /// What systemd does with a message, in its order.
    fn handle(&mut self, message: Message, mut fds: VecDeque<OwnedFd>) {
        // The sender waits for the other end of this descriptor to hang up: everything it sent
        // before has been handled by now.
        if message.says("BARRIER=1") {
            fds.clear();
        }
        if let Some(usec) = message.get("EXTEND_TIMEOUT_USEC").and_then(|usec| usec.parse().ok()) {
            self.extended_until = Some(message.at + Duration::from_micros(usec));
        }
        let name = message.get("FDNAME").unwrap_or("stored").to_owned();
        if message.says("FDSTOREREMOVE=1") {
            self.store.retain(|stored| stored.name != name);
        }
        if message.says("FDSTORE=1") {
            self.forget_hung_up();
            let poll = !message.says("FDPOLL=0");
            for fd in fds.drain(..) {
                if self.store.len() < self.store_max {
                    self.store.push(Stored { name: name.clone(), fd, poll });
                }
            }
        }
        self.messages.push(message);
    }

    fn forget_hung_up(&mut self) {
        self.store.retain(|stored| {
            if !stored.poll {
                return true;
            }
            let mut fds = [PollFd::new(&stored.fd, PollFlags::empty())];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            !matches!(poll(&mut fds, Some(&now)), Ok(1..))
        });
    }
}

/// A service under the stand-in; its process ends when this is dropped.
#[derive(Debug)]
pub struct Service {
    manager: Manager,
    addresses: Vec<SocketAddr>,
    sockets: Vec<(String, OwnedFd)>,
    state: Arc<Mutex<State>>,
    news: watch::Sender<()>,
    stuck: watch::Sender<bool>,
    listener: JoinHandle<()>,
    child: Option<Child>,
    exits: Vec<ExitStatus>,
    directory: tempfile::TempDir,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Service {
    /// The first TCP socket's address.
    pub fn address(&self) -> SocketAddr {
        *self.addresses.first().expect("a service with a TCP socket")
    }

    /// The running process; `None` once its end was seen.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Every message so far.
    pub fn messages(&self) -> Vec<Message> {
        self.state().messages.clone()
    }

    /// The names of the stored descriptors.
    pub fn stored(&self) -> Vec<String> {
        let mut state = self.state();
        state.forget_hung_up();
        state.store.iter().map(|stored| stored.name.clone()).collect()
    }

    /// How every process so far ended.
    pub fn exits(&self) -> &[ExitStatus] {
        &self.exits
    }

    /// Everything the service has written to standard output and error, from its first start on.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.directory.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the service has written this so many times; it writes while it serves.
    pub async fn logged(&self, text: &str, times: usize) -> anyhow::Result<()> {
        let written = async {
            while self.log().matches(text).count() < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match timeout(Duration::from_secs(30), written).await {
            Ok(()) => Ok(()),
            Err(_) => bail!("the service did not write {text}; its log:\n{}", self.log()),
        }
    }

    /// For more environment at the next start.
    pub fn set_env(&mut self, key: impl Into<OsString>, value: impl Into<OsString>) {
        self.manager.env.push((key.into(), value.into()));
    }

    /// `systemctl restart`: stops the process, starts it again, waits until it is ready. What is in
    /// the store stays there and goes to the new process.
    pub async fn restart(&mut self) -> anyhow::Result<ExitStatus> {
        let status = self.stop_process(self.manager.restart_signal).await?;
        self.start_process().await?;
        Ok(status)
    }

    /// `systemctl stop`: the store is emptied.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let status = self.stop_process(Signal::TERM).await?;
        self.state().store.clear();
        Ok(status)
    }

    /// Starts the service again after [`Self::stop`] or [`Self::exited`].
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.start_process().await
    }

    /// Stops reading what the service says, or goes on. Stopped, there is no room for another message.
    pub fn get_stuck(&self, stuck: bool) -> anyhow::Result<()> {
        self.stuck.send_replace(stuck);
        let socket = std::os::unix::net::UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let fill = || socket.send_to(b"STATUS=stuck", self.directory.path().join("notify"));
        match if stuck { std::iter::repeat_with(fill).find_map(Result::err) } else { None } {
            Some(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        rustix::process::kill_process(pid.context("the service is not running")?, signal)?;
        Ok(())
    }

    /// Waits for the process to end by itself. `Restart=` is up to the caller.
    pub async fn exited(&mut self) -> anyhow::Result<ExitStatus> {
        let child = self.child.as_mut().context("the service is not running")?;
        let status = child.wait().await?;
        self.child = None;
        self.exits.push(status);
        Ok(status)
    }

    /// Waits for a line such as `STOPPING=1` from the process that runs now.
    pub async fn wait_for(&self, line: &str) -> anyhow::Result<Message> {
        let said = message(&self.state, &self.news, line);
        match timeout(Duration::from_secs(30), said).await {
            Ok(message) => Ok(message),
            Err(_) => bail!("the service did not say {line}; its log:\n{}", self.log()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn start_process(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(self.child.is_none(), "the service is running already");
        let mut names = vec![];
        let mut fds = vec![];
        for (name, socket) in &self.sockets {
            names.push(name.clone());
            fds.push(socket.try_clone()?);
        }
        {
            let mut state = self.state();
            state.forget_hung_up();
            state.starts += 1;
            for stored in &state.store {
                names.push(stored.name.clone());
                fds.push(stored.fd.try_clone()?);
            }
        }
        let log = File::options().create(true).append(true).open(self.directory.path().join("log"))?;
        // Only the new process knows its own id, hence the shell. And a service manager's children ignore no signal, whatever
        // this process was started with (nohup(1)).
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", r#"LISTEN_PID=$$ exec env --default-signal "$@""#, "sh"])
            .arg(&self.manager.executable)
            .args(&self.manager.args)
            .env_remove("WATCHDOG_PID")
            .env_remove("WATCHDOG_USEC")
            .env("NOTIFY_SOCKET", self.directory.path().join("notify"))
            .env("LISTEN_FDS", fds.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .envs((self.manager.restart_signal == Signal::HUP).then_some(("RESTARTSIGNAL", "SIGHUP")))
            .envs(self.manager.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        let mappings = (3..).zip(fds);
        command.fd_mappings(mappings.map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd }).collect())?;
        let child = command.spawn().with_context(|| format!("starting {}", self.manager.executable.display()))?;
        let child = self.child.insert(child);
        if !self.manager.notifies {
            return Ok(());
        }
        // Borrowed apart from `self`, so that both can be waited for.
        let status = {
            let ready = message(&self.state, &self.news, "READY=1");
            tokio::select! {
                ready = timeout(self.manager.timeout_start, ready) => match ready {
                    Ok(_) => return Ok(()),
                    Err(_) => None,
                },
                status = child.wait() => Some(status?),
            }
        };
        match status {
            Some(status) => {
                self.child = None;
                self.exits.push(status);
                bail!("the service ended before it was ready ({status}); its log:\n{}", self.log())
            }
            None => {
                bail!("the service was not ready within {:?}; its log:\n{}", self.manager.timeout_start, self.log())
            }
        }
    }

    async fn stop_process(&mut self, signal: Signal) -> anyhow::Result<ExitStatus> {
        self.state().extended_until = None;
        self.signal(signal)?;
        let began = Instant::now();
        loop {
            let extended = self.state().extended_until;
            let until = (began + self.manager.timeout_stop).max(extended.unwrap_or(began));
            let mut news = self.news.subscribe();
            let child = self.child.as_mut().context("the service is not running")?;
            tokio::select! {
                status = child.wait() => {
                    let status = status?;
                    self.child = None;
                    self.exits.push(status);
                    return Ok(status);
                }
                // It may have asked for more time.
                _ = news.changed() => {}
                () = sleep_until(until.into()) => self.signal(Signal::KILL)?,
            }
        }
    }
}

/// Waits until the process that runs now has said `line`.
async fn message(state: &Mutex<State>, news: &watch::Sender<()>, line: &str) -> Message {
    let mut news = news.subscribe();
    loop {
        {
            let state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let mut own = state.messages.iter().filter(|message| message.start == state.starts);
            if let Some(found) = own.find(|message| message.says(line)) {
                return found.clone();
            }
        }
        // Cannot fail while the caller holds the sender.
        let _ = news.changed().await;
    }
}

/// Receives messages for as long as the service is looked after.
async fn listen(
    socket: UnixDatagram,
    state: Arc<Mutex<State>>,
    news: watch::Sender<()>,
    mut stuck: watch::Receiver<bool>,
) {
    while stuck.wait_for(|stuck| !stuck).await.is_ok() {
        let received = tokio::select! {
            _ = stuck.changed() => continue,
            received = socket.async_io(Interest::READABLE, || receive(&socket)) => received,
        };
        let Ok((text, fds)) = received else { return };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let start = state.starts;
        let message = Message { text, fds: fds.len(), start, at: Instant::now() };
        state.handle(message, fds);
        drop(state);
        news.send_replace(());
    }
}

fn receive(socket: impl AsFd) -> io::Result<(String, VecDeque<OwnedFd>)> {
    let mut text = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    text.truncate(received.bytes);
    Ok((String::from_utf8_lossy(&text).into_owned(), fds))
}

/// How a process ended, in the words of `systemctl status`.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

#[cfg(test)]
#[rustfmt::skip]
#[path = "../unit/manager.rs"]
mod tests;
