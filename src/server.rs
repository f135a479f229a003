//! Puts listener, application and lifecycle into `axum::serve`.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Instant;

use axum::BoxError;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::runtime::{Builder, Runtime};

use crate::config::{Config, Listen};
use crate::{metrics, problem, telemetry, unit};
use hitless::{Application, Handle, Handover, Inherited, Listener, ListeningSocket, Outcome};

/// The process of a service, to its exit status: what has to be done before there are threads, then the service itself. Why
/// it could not start is in its log.
///
/// # Errors
/// When there is no log, or no runtime.
pub fn process<A: Application>(
    config: Config,
    app: impl AsyncFnOnce(Arc<Config>, Handle) -> Result<A, BoxError>,
) -> Result<ExitCode, BoxError> {
    let begun = Instant::now();
    let inherited = Inherited::from_env(config.connection_limits());
    let _logging = telemetry::init(&config.log)?;
    tracing::debug!("configured");
    let runtime = runtime(config.unit.tasks_max)?;
    let outcome = runtime.block_on(run(config, inherited, begun, app));
    // What was cut at T may block a thread: nobody waits for it.
    runtime.shutdown_background();
    Ok(outcome.as_ref().map_or_else(
        |error| {
            tracing::error!("the service does not start: {}", problem::with_causes(&**error));
            ExitCode::FAILURE
        },
        ExitCode::from,
    ))
}

/// The runtime, of which no more threads come than there may be: half of them for tasks, a quarter for what handlers start, and
/// for the service itself, the rest for what blocks.
fn runtime(tasks_max: u32) -> io::Result<Runtime> {
    let most = tasks_max as usize;
    let processors = available_parallelism().map_or(1, usize::from);
    let mut runtime = Builder::new_multi_thread();
    // Unless it has to be, TOKIO_WORKER_THREADS decides.
    if processors > most / 2 {
        runtime.worker_threads(most / 2);
    }
    // 512 are tokio's own limit.
    let blocking = (most - processors.min(most / 2) - most / 4).min(512);
    runtime.enable_all().max_blocking_threads(blocking).build()
}

/// Runs the service that `app` makes, from the start to the end of the process.
///
/// # Errors
/// When it cannot listen, or is allowed too few descriptors, or `app` fails.
async fn run<A: Application>(
    config: Config,
    inherited: Inherited,
    begun: Instant,
    app: impl AsyncFnOnce(Arc<Config>, Handle) -> Result<A, BoxError>,
) -> Result<Outcome, BoxError> {
    let bound = bound(inherited.sockets())?;
    let (mut handover, listener) = inherited.handover(config.shutdown_timeout, || bind(&config))?;
    if !bound.is_empty() {
        for reason in unit::asked_in_vain(&config, &bound) {
            tracing::warn!("{reason}");
        }
    }
    metrics::watch(handover.handle(), begun);
    // It may take its time, and may be told to leave meanwhile.
    let app = app(Arc::new(config), handover.handle());
    let Some(app) = handover.unless_told(app).await else { return Ok(Outcome::default()) };
    Ok(serve(handover, listener, app?).await)
}

/// Serves `app` until the process is told to leave, then leaves.
pub async fn serve(handover: Handover, listener: Listener, app: impl Application) -> Outcome {
    let server = axum::serve(listener, handover.track(app)).with_graceful_shutdown(handover.quiesced());
    handover.run(server).await
}

/// Where sockets that the service manager keeps are bound.
fn bound(sockets: &[ListeningSocket]) -> io::Result<Vec<Listen>> {
    let bound = |socket: &ListeningSocket| match socket {
        ListeningSocket::Tcp(socket) => socket.local_addr().map(Listen::Tcp),
        ListeningSocket::Unix(socket) => {
            socket.local_addr().map(|address| Listen::Unix(address.as_pathname().unwrap_or(Path::new("")).to_owned()))
        }
    };
    sockets.iter().map(bound).collect()
}

/// Listens where the configuration says.
fn bind(config: &Config) -> io::Result<ListeningSocket> {
    let bound = match &config.listen {
        Listen::Tcp(address) => bind_tcp(*address, config.reuse_port).map(ListeningSocket::Tcp),
        Listen::Unix(path) => bind_unix(path).map(ListeningSocket::Unix),
    };
    bound.map_err(|error| {
        let hint = match &config.listen {
            Listen::Tcp(address) if error.kind() == io::ErrorKind::AddrInUse => {
                format!(" (who has it: ss --listening --tcp --processes 'sport = :{}')", address.port())
            }
            _ => String::new(),
        };
        io::Error::new(error.kind(), format!("cannot listen on {}: {error}{hint}", config.listen))
    })
}

fn bind_tcp(address: SocketAddr, reuse_port: bool) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    // Not for what a handler starts, which would keep the port.
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, reuse_port)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 4096)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        // A socket that refuses was left by a process that was killed.
        Err(error)
            if error.kind() == io::ErrorKind::AddrInUse
                && std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
                && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) =>
        {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}
