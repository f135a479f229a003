//! Puts listener, application and lifecycle into `axum::serve`.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Instant;

use axum::BoxError;
use tokio::runtime::{Builder, Runtime};

use crate::config::Config;
use crate::unit;
use hitless::{Application, Handle, Handover, Inherited, Listener, Outcome};
use layers::listen::Listen;
use layers::{metrics, problem, telemetry};

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
    let _logging = telemetry::init(crate::NAME, &config.log)?;
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

/// The runtime, with no more threads than there may be, beyond which it panics: up to half of them run tasks, a quarter is for
/// the service itself and what handlers start, the rest for what blocks.
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
    let bound = inherited.sockets().iter().map(Listen::of).collect::<Result<Vec<_>, _>>()?;
    let (mut handover, listener) =
        inherited.handover(config.shutdown_timeout, || config.listen.bind(config.reuse_port))?;
    if !bound.is_empty() {
        for reason in unit::asked_in_vain(&config, &bound) {
            tracing::warn!("{reason}");
        }
    }
    metrics::watch(env!("CARGO_PKG_VERSION"), handover.handle(), begun);
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
