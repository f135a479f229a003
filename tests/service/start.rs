//! Starts the service: inside the test, as a process on its own, or as one under the stand-in for systemd.

use std::ffi::OsStr;
use std::net::{SocketAddr, TcpListener};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use lab::manager::Manager;
use rustix::process::{Pid, Signal, kill_process};
use service::app::{self, AppState};
use service::config::Config;
use service::hitless::systemd::Activated;
use service::hitless::{Gate, Handle, Lifecycle, Listener, Outcome, Reason, lifecycle};
use service::server;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::client::{Client, soon};

/// The service's binary.
pub const BINARY: &str = env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME")));

/// The environment variable for a key of the configuration: `limits.max_connections`.
pub fn variable(key: &str) -> String {
    let name = env!("CARGO_PKG_NAME").replace('-', "_");
    format!("{name}_{}", key.replace('.', "__")).to_uppercase()
}

/// A configuration in which `/ping` does not take its time; `overrides` are TOML.
pub fn config(overrides: &str) -> Config {
    let ping_delay = if overrides.contains("ping_delay") { "" } else { "ping_delay = \"10ms\"\n" };
    Config::with(&format!("{ping_delay}{overrides}")).expect("a good configuration")
}

/// The service within the test, without a service manager. What is left of it ends with the test.
pub struct App {
    pub address: SocketAddr,
    pub handle: Handle,
    pub gate: Arc<Gate>,
    tell: Option<oneshot::Sender<Reason>>,
    outcome: JoinHandle<(Outcome, Duration)>,
}

/// Starts the service on a free port, with `routes` beside its own and behind the same layers.
pub async fn spawn_app(overrides: &str, routes: Router<AppState>) -> App {
    spawn_app_with(JoinSet::new(), overrides, routes).await
}

/// The same, with further tasks that the service cannot do without.
pub async fn spawn_app_with(mut machinery: JoinSet<()>, overrides: &str, routes: Router<AppState>) -> App {
    let config = config(overrides);
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("the port");

    let gate = Arc::new(Gate::new(config.connection_limits()));
    let lifecycle = Lifecycle::new(config.shutdown_timeout);
    let handle = lifecycle.handle();
    let listener = Listener::new(vec![Activated::Tcp(socket)], Arc::clone(&gate), config.limits.max_connections)
        .expect("a listener");
    machinery.spawn(lifecycle::expire(Arc::clone(&gate)));

    let config = Arc::new(config);
    let state = AppState::new(Arc::clone(&config), handle.clone()).await.expect("its state");
    let app = app::layered(app::routes().merge(routes).with_state(state), &config);
    let (tell, told) = oneshot::channel();
    let told = async move {
        // A test that ends without telling leaves the service to its end.
        match told.await {
            Ok(reason) => (reason, Instant::now()),
            Err(_) => std::future::pending().await,
        }
    };
    let outcome = tokio::spawn(async move {
        let mut since = Instant::now();
        let told = async {
            let (reason, instant) = told.await;
            since = instant;
            reason
        };
        let outcome = server::serve(listener, app, &lifecycle, machinery, told).await;
        (outcome, since.elapsed())
    });
    App { address, handle, gate, tell: Some(tell), outcome }
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

/// The service under the stand-in for systemd; `/ping` takes 200 ms.
pub fn managed() -> Manager {
    Manager::new(BINARY).env(variable("ping_delay"), "200ms").env(variable("log.format"), "json")
}

/// The service as a process on its own, on a free port.
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

    /// The same, with arguments.
    pub async fn start_with(arguments: &[&OsStr], settings: &[(&str, &str)]) -> Self {
        // Nobody else gets this port meanwhile: it is shared with a socket that does not listen.
        let port = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
        let port = port.expect("a socket");
        rustix::net::sockopt::set_socket_reuseport(&port, true).expect("SO_REUSEPORT");
        rustix::net::bind(&port, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let address = rustix::net::getsockname(&port).expect("the port").try_into().expect("a TCP address");
        let listen = format!("{address}");
        let mut child = command()
            .args(arguments)
            .envs([(variable("listen"), &*listen), (variable("reuse_port"), "true"), (variable("ping_delay"), "10ms")])
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

/// The binary, in an environment without settings and without a service manager; killed at the test's end.
pub fn command() -> Command {
    let mut command = Command::new(BINARY);
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
