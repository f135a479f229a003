//! Puts listener, application and lifecycle into `axum::serve`.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::pin::pin;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use axum::{BoxError, ServiceExt};
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;

use crate::config::{Config, Listen};
use crate::{telemetry, unit};
use hitless::systemd::{self, Activated, Given};
use hitless::{
    Application, Connection, Gate, Handle, Lifecycle, Listener, Outcome, Reason, Siblings, Succession, Track,
    lifecycle, listener, parcel,
};

/// The process of a service, to its exit status: what has to be done before there are threads, then the service itself. Why
/// it could not start is in its log.
///
/// # Errors
/// When there is no log, or no runtime.
pub fn process<A: Application>(
    config: Config,
    app: impl AsyncFnOnce(Arc<Config>, Handle) -> Result<A, BoxError>,
) -> Result<ExitCode, BoxError> {
    // The one changes the environment, for the other the threads would have to be waited for.
    let given = systemd::given();
    make_room(config.limits.max_connections);
    let _logging = telemetry::init(&config.log)?;
    tracing::debug!("configured");
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(run(config, given, app));
    // What was cut at T may block a thread: nobody waits for it.
    runtime.shutdown_background();
    Ok(outcome.as_ref().map_or_else(
        |error| {
            tracing::error!("the service does not start: {}", with_causes(&**error));
            ExitCode::FAILURE
        },
        ExitCode::from,
    ))
}

/// What an error says, and each of its causes, unless that was said already.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |error| error.source()).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {cause}");
        }
    }
    text
}

/// Runs the service that `app` makes, from the start to the end of the process.
///
/// # Errors
/// When it cannot listen, or is allowed too few descriptors, or `app` fails.
async fn run<A: Application>(
    config: Config,
    given: Given,
    app: impl AsyncFnOnce(Arc<Config>, Handle) -> Result<A, BoxError>,
) -> Result<Outcome, BoxError> {
    let mut told = pin!(lifecycle::told_to_leave()?);
    // Siblings share the sockets that systemd keeps. What comes to a socket of this process alone is its own.
    let (siblings, succession) = match (given.listeners.is_empty(), systemd::tells_restarts()) {
        (true, _) => (None, Succession::None),
        (false, false) => (Siblings::of_unit(), Succession::Always),
        (false, true) => (Siblings::of_unit(), Succession::AfterRestart),
    };
    let lifecycle = Lifecycle::new(config.shutdown_timeout).among(siblings).followed(succession).ended_at_last()?;
    let gate = Arc::new(Gate::new(config.connection_limits()));
    let Room { max_connections, guests } = allow_connections(config.limits.max_connections)?;
    if !given.listeners.is_empty() {
        for reason in unit::asked_in_vain(&config, &bound(&given.listeners)?) {
            tracing::warn!("{reason}");
        }
    }
    let sockets = if given.listeners.is_empty() { vec![bind(&config)?] } else { given.listeners };
    for (name, error) in &given.strangers {
        tracing::warn!("a descriptor that is no socket to serve is dropped, {name:?}: {error}");
        systemd::forget(name);
    }
    let listener = Listener::new(sockets, Arc::clone(&gate), max_connections)?.with_guests(guests);

    let mut machinery = JoinSet::new();
    machinery.spawn(systemd::feed_watchdog());
    machinery.spawn(lifecycle::report(Arc::clone(&gate), lifecycle.handle()));
    machinery.spawn(lifecycle::expire(Arc::clone(&gate)));
    machinery.spawn(lifecycle::relieve(gate));
    // It may take its time, and may be told to leave meanwhile.
    let app = tokio::select! {
        biased;
        app = app(Arc::new(config), lifecycle.handle()) => app?,
        reason = &mut told => {
            tracing::info!("told to leave before it was ready ({reason:?})");
            return Ok(Outcome::default());
        }
    };

    // The last step: up to here a failure costs nobody a connection.
    let others = parcel::take_over(given.parcels, Arc::clone(listener.gate()));
    let told = async {
        // `serve` asks for this only when READY=1 is said.
        let taking_over = tokio::spawn(others);
        let reason = told.await;
        // What is still in the old parcel belongs into the new one.
        let _ = taking_over.await;
        reason
    };
    Ok(serve(listener, app, &lifecycle, machinery, told).await)
}

/// Serves `app` until `told` resolves, then leaves. Everything that has to do with the process stays outside.
///
/// None of the tasks of `machinery` ends while all is well, and neither does axum's: where one does, the process would be
/// ready for ever, and serve nobody. It leaves, and has failed.
pub async fn serve(
    listener: Listener,
    app: impl Application,
    lifecycle: &Lifecycle,
    mut machinery: JoinSet<()>,
    told: impl Future<Output = Reason>,
) -> Outcome {
    let gate = Arc::clone(listener.gate());
    tracing::info!("serving on {}", listener.addresses().join(", "));
    let server = axum::serve(listener, Track(app).into_make_service_with_connect_info::<Connection>())
        .with_graceful_shutdown(lifecycle.quiesced());
    let server = machinery.spawn(async {
        // axum::serve gives no error.
        let _ = server.await;
    });
    let mut door = lifecycle.serving(&gate);
    let reason = tokio::select! {
        reason = told => reason,
        failure = lifecycle::failure(&mut machinery, &mut door) => failure,
    };
    lifecycle.leave(&gate, door, reason, server).await
}

/// Where sockets that the service manager keeps are bound.
fn bound(sockets: &[Activated]) -> io::Result<Vec<Listen>> {
    let bound = |socket: &Activated| match socket {
        Activated::Tcp(socket) => socket.local_addr().map(Listen::Tcp),
        Activated::Unix(socket) => {
            socket.local_addr().map(|address| Listen::Unix(address.as_pathname().unwrap_or(Path::new("")).to_owned()))
        }
    };
    sockets.iter().map(bound).collect()
}

/// Listens where the configuration says.
fn bind(config: &Config) -> io::Result<Activated> {
    let bound = match &config.listen {
        Listen::Tcp(address) => bind_tcp(*address, config.reuse_port).map(Activated::Tcp),
        Listen::Unix(path) => bind_unix(path).map(Activated::Unix),
    };
    bound.map_err(|error| {
        let holder = match &config.listen {
            Listen::Tcp(address) if error.kind() == io::ErrorKind::AddrInUse => holder(*address),
            _ => String::new(),
        };
        io::Error::new(error.kind(), format!("cannot listen on {}: {error}{holder}", config.listen))
    })
}

fn bind_tcp(address: SocketAddr, reuse_port: bool) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, reuse_port)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 4096)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        // A socket that nobody answers on was left by a process that was killed.
        Err(error)
            if error.kind() == io::ErrorKind::AddrInUse
                && std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
                && UnixStream::connect(path).is_err() =>
        {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// Who listens on `address`, as far as ss(8) can tell.
fn holder(address: SocketAddr) -> String {
    let filter = format!("sport = :{}", address.port());
    let output = Command::new("ss").args(["--no-header", "--listening", "--tcp", "--processes", &filter]).output();
    let lines = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if lines.is_empty() { lines } else { format!("; held by:\n{lines}") }
}

/// How many connections the process may hold.
struct Room {
    max_connections: usize,
    /// And how many beside that siblings hand in: as many again, if there are descriptors for them.
    guests: usize,
}

/// Sees to it that the process may hold `max_connections`, or says how many it may hold. There is always room for what
/// takes connections over, or hands them over.
fn allow_connections(max_connections: usize) -> io::Result<Room> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let apart = descriptors(0);
    let wanted = descriptors(max_connections);
    let mut allowed = current.unwrap_or(u64::MAX);
    if allowed < wanted && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        allowed = maximum.unwrap_or(u64::MAX);
    }
    if allowed <= apart {
        return Err(io::Error::other(format!(
            "{allowed} descriptors are allowed (ulimit -n, LimitNOFILE=), which is not enough: the service needs {apart}, and \
             one for each connection"
        )));
    }
    if allowed < wanted {
        let room = allowed - apart;
        tracing::warn!(
            "{room} connections are allowed, and not limits.max_connections = {max_connections}: that needs {wanted} \
             descriptors, and there are {allowed} (ulimit -n, LimitNOFILE=)"
        );
        return Ok(Room { max_connections: room as usize, guests: 0 });
    }
    let guests = usize::try_from(allowed - wanted).unwrap_or(usize::MAX).min(max_connections);
    Ok(Room { max_connections, guests })
}

/// How many descriptors the process needs with so many connections.
fn descriptors(connections: usize) -> u64 {
    (connections + listener::SURPLUS + listener::SPARE_DESCRIPTORS) as u64
}

/// Has the kernel's table of descriptors made large enough for `max_connections`.
///
/// It grows by doubling, and where there are threads the kernel first waits for every processor, some 10 ms each time:
/// clients whose connections are taken over would wait for that, 40 ms where there are a thousand of them.
fn make_room(max_connections: usize) {
    let wanted = descriptors(max_connections);
    let most = getrlimit(Resource::Nofile).current.unwrap_or(wanted).min(wanted);
    // A descriptor of that number makes the table as large at once. It is closed again, and nothing depends on it.
    let _ = rustix::io::fcntl_dupfd_cloexec(io::stdin(), i32::try_from(most).unwrap_or(i32::MAX) - 1);
}
