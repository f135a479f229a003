//! Starts the service: inside the test, as a process on its own, or as one under the stand-in for systemd. What it serves is
//! the application of the proofs.

use std::ffi::{OsStr, OsString};
use std::net::{SocketAddr, TcpListener};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::{BoxError, Router};
use hitless::testing::{Connections, Reason};
use hitless::{Application, Handle, Outcome, testing};
use humantime_serde::re::humantime::parse_duration;
use lab::stage::setting;
use proof::manager::Manager;
use rustix::process::{Pid, Signal, kill_process};
use service::config::Config;
use service::server;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::application::{self, PING_DELAY, PROCESS, Shared, command_line};
use crate::client::{Client, soon};

/// The service's binary.
pub const BINARY: &str = env!("CARGO_BIN_EXE_served");

/// The environment variable for a key of the configuration: `limits.max_connections`.
pub fn variable(key: &str) -> String {
    setting(name!(), key)
}

/// The defaults, with `overrides` in TOML.
pub fn config(overrides: &str) -> Config {
    Config::with(overrides).expect("a good configuration")
}

/// The service within the test, without a service manager. What is left of it ends with the test.
pub struct App {
    pub address: SocketAddr,
    pub handle: Handle,
    pub connections: Arc<Connections>,
    tell: Option<oneshot::Sender<Reason>>,
    outcome: JoinHandle<(Outcome, Duration)>,
}

/// Starts the application of the proofs on a free port, with `routes` beside its own and behind the same layers. `/ping`
/// takes as long as `ping_delay` among the overrides says.
pub async fn spawn_app(overrides: &str, routes: Router<Shared>) -> App {
    spawn_app_with(JoinSet::new(), overrides, routes).await
}

/// The same, with further tasks that the service cannot do without.
pub async fn spawn_app_with(machinery: JoinSet<()>, overrides: &str, routes: Router<Shared>) -> App {
    let mut overrides: toml::Table = overrides.parse().expect("TOML");
    let ping_delay = overrides.remove("ping_delay").unwrap_or_else(|| "10ms".into());
    let ping_delay = parse_duration(ping_delay.as_str().expect("a text")).expect("a duration");
    let make = async |config: Arc<Config>, handle| Ok(application::app(&config, handle, ping_delay, routes));
    spawn(machinery, config(&overrides.to_string()), make).await
}

/// Starts what `make` makes on a free port.
async fn spawn<A: Application>(
    machinery: JoinSet<()>,
    config: Config,
    make: impl AsyncFnOnce(Arc<Config>, Handle) -> Result<A, BoxError>,
) -> App {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("the port");

    let (tell, told) = oneshot::channel();
    let told = async move {
        // A test that ends without telling leaves the service to its end.
        match told.await {
            Ok(reason) => (reason, Instant::now()),
            Err(_) => std::future::pending().await,
        }
    };
    let since = Arc::new(OnceLock::new());
    let begins = Arc::clone(&since);
    let told = async move {
        let (reason, instant) = told.await;
        let _ = begins.set(instant);
        reason
    };
    let (handover, listener) =
        testing::handover(socket, config.shutdown_timeout, config.connection_limits(), machinery, told)
            .expect("a listener");
    let (handle, connections) = (handover.handle(), testing::connections(&handover));
    let app = make(Arc::new(config), handle.clone()).await.expect("an application");
    let started = Instant::now();
    let outcome = tokio::spawn(async move {
        let outcome = server::serve(handover, listener, app).await;
        (outcome, since.get().unwrap_or(&started).elapsed())
    });
    App { address, handle, connections, tell: Some(tell), outcome }
}

impl App {
    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Tells the service to leave, and waits until its handlers know.
    pub async fn leave(&mut self, reason: Reason) {
        let tell = self.tell.take().expect("a service that was not told before");
        tell.send(reason).expect("a service that serves");
        soon("leaving", self.handle.draining()).await;
    }

    /// Waits until the service has left: how that went, and how long it took.
    pub async fn left(self) -> (Outcome, Duration) {
        soon("the end", self.outcome).await.expect("an end without a panic")
    }
}

/// The application of the proofs under the stand-in for systemd; `/ping` takes 200 ms.
pub fn managed() -> Manager {
    managed_as(PROCESS)
}

/// The process of another test under it.
pub fn managed_as(test: &str) -> Manager {
    let [program, arguments @ ..] = command_line(test);
    Manager::new(program).args(arguments).env(PING_DELAY, "200ms").env(variable("log.format"), "json")
}

/// The application under it, started by a shell script as `"$@"`.
pub fn managed_by(script: &str) -> Manager {
    let script = ["-c", script, "sh"].map(OsString::from);
    let manager = Manager::new("/bin/sh").args(script).args(command_line(PROCESS));
    manager.env(PING_DELAY, "200ms").env(variable("log.format"), "json")
}

/// The application of the proofs as a process on its own, on a free port.
pub struct Process {
    pub address: SocketAddr,
    child: Child,
    stderr: ChildStderr,
}

impl Process {
    /// Starts it with `settings`: keys of the configuration and their values.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_with(&[], settings).await
    }

    /// The same, with more in its environment.
    pub async fn start_with(environment: &[(&str, &OsStr)], settings: &[(&str, &str)]) -> Self {
        // Nobody else gets this port meanwhile: it is shared with a socket that does not listen.
        let (family, flags) = (rustix::net::AddressFamily::INET, rustix::net::SocketFlags::CLOEXEC);
        let port = rustix::net::socket_with(family, rustix::net::SocketType::STREAM, flags, None);
        let port = port.expect("a socket");
        rustix::net::sockopt::set_socket_reuseport(&port, true).expect("SO_REUSEPORT");
        rustix::net::bind(&port, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let address = rustix::net::getsockname(&port).expect("the port").try_into().expect("a TCP address");
        let listen = format!("{address}");
        let mut child = application()
            .envs([(variable("listen"), &*listen), (variable("reuse_port"), "true")])
            .envs(environment.iter().copied())
            .envs(settings.iter().map(|(key, value)| (variable(key), value)))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starting the service");
        let stderr = child.stderr.take().expect("its standard error");
        let process = Self { address, child, stderr };
        soon("listening", async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        process
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).expect("a process that runs");
        kill_process(pid, signal).expect("sending a signal");
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("a process that runs")
    }

    /// What the kernel knows of it by this name (proc(5)).
    pub fn status(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("what is known of it");
        let value =
            status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).expect(name)
    }

    /// The most memory that it had so far, in bytes.
    pub fn peak_memory(&self) -> usize {
        self.status("VmHWM") << 10
    }

    /// The memory that it has, in bytes.
    pub fn memory(&self) -> usize {
        self.status("VmRSS") << 10
    }

    /// Its log, line by line. Nobody else reads it until the end.
    pub fn log(&mut self) -> Lines<BufReader<&mut ChildStderr>> {
        BufReader::new(&mut self.stderr).lines()
    }

    /// Waits for its end: the status and what was not read yet of the log.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        soon("the log", self.stderr.read_to_string(&mut log)).await.expect("a log of text");
        (soon("the end", self.child.wait()).await.expect("waiting for the end"), log)
    }
}

/// The application of the proofs, as [`command`] has the service.
pub fn application() -> Command {
    let [program, arguments @ ..] = command_line(PROCESS);
    let mut command = alone(&program);
    // What the test harness says is nothing to the tests.
    command.args(arguments).env(PING_DELAY, "10ms").stdout(Stdio::null());
    command
}

/// The service's binary, in an environment without settings and without a service manager; killed at the test's end.
pub fn command() -> Command {
    alone(BINARY.as_ref())
}

fn alone(program: &OsStr) -> Command {
    let mut command = Command::new(program);
    let prefix = variable("");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(&prefix)) {
        command.env_remove(name);
    }
    for name in ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "JOURNAL_STREAM"] {
        command.env_remove(name);
    }
    command.kill_on_drop(true);
    command
}
