//! The service's way through its process, in the order that it has to take: each step gives what the next one needs.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::ServiceExt;
use axum::extract::ConnectInfo;
use axum::extract::connect_info::IntoMakeServiceWithConnectInfo;
use axum::middleware::AddExtension;
use axum::serve::WithGracefulShutdown;
use tokio::task::JoinSet;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::connection::Connection;
use super::connections::{Connections, Limits};
use super::lifecycle::{self, Handle, Lifecycle, Outcome, Reason, ShutdownTimeout, Succession};
use super::listener::Listener;
use super::room::{self, Room};
use super::sibling::Siblings;
use super::systemd::{self, Given, ListeningSocket};
use super::track::{Application, Track};
use super::{Error, queue};

/// What the process was given at its start: listening sockets, and the connections of the process before.
#[must_use = "the connections of the process before wait until somebody takes them over"]
#[derive(Debug)]
pub struct Inherited {
    given: Given,
    limits: Limits,
}

impl Inherited {
    /// Takes what the service manager passed on, and makes room for `limits.max_connections`. Only the first call gets it.
    ///
    /// First of all in `main`: it takes variables out of the environment, which nobody may read meanwhile, and where there are
    /// threads the kernel would have to wait for them. So it comes before the log and the runtime.
    pub fn from_env(limits: Limits) -> Self {
        let given = systemd::given();
        let limits = Limits { max_connections: limits.max_connections.min(Limits::MAX_CONNECTIONS), ..limits };
        room::make_room(limits.max_connections);
        Self { given, limits }
    }

    /// The listening sockets that the service manager keeps. There are none where the service has to bind its own.
    pub fn sockets(&self) -> &[ListeningSocket] {
        &self.given.listeners
    }

    /// Listens: on the sockets that the service manager keeps, or where there are none on the one that `bind` gives. From here
    /// on the process leaves within `timeout` of being told to, by `SIGHUP`, `SIGTERM` or `SIGINT`.
    ///
    /// Nobody is served before [`Handover::run`], and the signals are only noted: what takes its time until then belongs into
    /// [`Handover::unless_told`].
    ///
    /// # Errors
    /// When there is no runtime, the process is allowed too few descriptors, or it cannot listen.
    pub fn handover<S: Into<ListeningSocket>>(
        self,
        timeout: ShutdownTimeout,
        bind: impl FnOnce() -> io::Result<S>,
    ) -> Result<(Handover, Listener), Error> {
        let Self { given, limits } = self;
        tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let told = lifecycle::told_to_leave().map_err(Error::Signals)?;
        // Siblings share the sockets that systemd keeps. What comes to a socket of this process alone is its own.
        let (siblings, succession) = match (given.listeners.is_empty(), systemd::tells_restarts()) {
            (true, _) => (None, Succession::None),
            (false, false) => (Siblings::of_unit(), Succession::Always),
            (false, true) => (Siblings::of_unit(), Succession::AfterRestart),
        };
        let lifecycle = Lifecycle::new(timeout).among(siblings).followed(succession);
        let lifecycle = lifecycle.with_last_resort().map_err(Error::Thread)?;
        let Room { max_connections, guests } = room::allow_connections(limits.max_connections)?;
        let sockets = match given.listeners {
            none if none.is_empty() => vec![bind().map_err(Error::Bind)?.into()],
            sockets => sockets,
        };
        for (name, error) in &given.unrecognised {
            tracing::warn!("a descriptor that is no socket to serve is dropped, {name:?}: {error}");
            systemd::forget(name);
        }
        let connections = Arc::new(Connections::new(limits));
        let listener = Listener::new(sockets, Arc::clone(&connections), max_connections).map_err(Error::Listen)?;
        let listener = listener.with_guests(guests);
        let mut machinery = JoinSet::new();
        machinery.spawn(systemd::feed_watchdog());
        machinery.spawn(lifecycle::report(Arc::clone(&connections), lifecycle.handle()));
        let handover = Handover::new(lifecycle, &listener, machinery, given.queues, told);
        Ok((handover, listener))
    }
}

/// Leads the service through the rest of its process: ready, leaving, gone.
#[must_use = "the service is served by `run`"]
pub struct Handover {
    lifecycle: Lifecycle,
    connections: Arc<Connections>,
    addresses: Vec<String>,
    machinery: JoinSet<()>,
    queues: Vec<OwnedFd>,
    told: Told,
}

/// Whether the process was told to leave already.
enum Told {
    NotYet(Pin<Box<dyn Future<Output = Reason> + Send>>),
    Already(Reason),
}

/// What [`Handover::run`] serves: `axum::serve` of the [`Listener`] that came with the handover, and of what
/// [`track`](Handover::track) made, with [`quiesced`](Handover::quiesced) for its graceful shutdown.
pub type Server<A> =
    WithGracefulShutdown<Listener, Tracked<A>, AddExtension<Track<A>, ConnectInfo<Connection>>, Quiesced>;

/// What [`Handover::track`] makes of an application.
pub type Tracked<A> = IntoMakeServiceWithConnectInfo<Track<A>, Connection>;

impl Handover {
    pub(crate) fn new(
        lifecycle: Lifecycle,
        listener: &Listener,
        mut machinery: JoinSet<()>,
        queues: Vec<OwnedFd>,
        told: impl Future<Output = Reason> + Send + 'static,
    ) -> Self {
        let connections = Arc::clone(listener.connections());
        lifecycle.counts(&connections);
        machinery.spawn(lifecycle::expire(Arc::clone(&connections)));
        machinery.spawn(lifecycle::relieve(Arc::clone(&connections)));
        if let Some(siblings) = lifecycle.siblings() {
            machinery.spawn(lifecycle::heed_drain(Arc::clone(&connections), siblings));
        }
        let told = Told::NotYet(Box::pin(told));
        Self { lifecycle, connections, addresses: listener.addresses(), machinery, queues, told }
    }

    #[cfg(all(feature = "testing", proofs))]
    pub(crate) fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// What handlers and background tasks see of the process' life.
    pub fn handle(&self) -> Handle {
        self.lifecycle.handle()
    }

    /// Does what has to be done before the service is ready, however long it takes. `None` when the process is told to leave
    /// before that is done.
    pub async fn unless_told<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let Told::NotYet(told) = &mut self.told else { return None };
        let reason = tokio::select! {
            biased;
            done = work => return Some(done),
            reason = told => reason,
        };
        tracing::info!("told to leave before it was ready ({reason:?})");
        self.told = Told::Already(reason);
        None
    }

    /// The application, with each request and answer entered with its connection, for `axum::serve`.
    pub fn track<A: Application>(&self, app: A) -> Tracked<A> {
        Track(app).into_make_service_with_connect_info::<Connection>()
    }

    /// Resolves when axum may close what is left: no HTTP/1.1 connection is, that could have been handed over.
    pub fn quiesced(&self) -> Quiesced {
        Quiesced(Box::pin(self.lifecycle.quiesced()))
    }

    /// Takes the connections of the process before over, says that the service is ready, serves until the process is told to
    /// leave, and leaves.
    ///
    /// The process ends with the [`Outcome`] as its exit status. Where something failed that the service cannot do without,
    /// such as axum's own task, it leaves to be started anew.
    ///
    /// A server that would go on when this one is to end is another type:
    ///
    /// ```compile_fail,E0308
    /// # async fn run(handover: hitless::Handover, listener: hitless::Listener, app: axum::Router) {
    /// let server = axum::serve(listener, handover.track(app));
    /// handover.run(server).await;
    /// # }
    /// ```
    ///
    /// And so is one whose connections nobody could take:
    ///
    /// ```compile_fail,E0308
    /// # async fn run(handover: hitless::Handover, listener: tokio::net::TcpListener, app: axum::Router) {
    /// let server = axum::serve(listener, app).with_graceful_shutdown(handover.quiesced());
    /// handover.run(server).await;
    /// # }
    /// ```
    pub async fn run<A: Application>(self, server: Server<A>) -> Outcome {
        let Self { lifecycle, connections, addresses, mut machinery, queues, told } = self;
        // The last step: up to here a failure costs nobody a connection.
        let others = queue::take_over(queues, Arc::clone(&connections));
        tracing::info!("serving on {}", addresses.join(", "));
        let server = machinery.spawn(async {
            // axum::serve gives no error.
            let _ = server.await;
        });
        let mut handover_socket = lifecycle.serving(&connections);
        // READY=1 is said.
        let mut taking_over = tokio::spawn(others);
        let told = async {
            let reason = match told {
                Told::NotYet(told) => told.await,
                Told::Already(reason) => reason,
            };
            // What is still in the old queue belongs into the new one.
            let _ = (&mut taking_over).await;
            reason
        };
        // None of these tasks ends while all is well: where one does, the process would be ready for ever, and serve nobody.
        let reason = tokio::select! {
            reason = told => reason,
            failure = lifecycle::failure(&mut machinery, &mut handover_socket) => failure,
        };
        // Where something failed, nobody lets in what would still be taken out of it: there it waits for the next process.
        taking_over.abort();
        if !taking_over.is_finished() {
            let _ = taking_over.await;
        }
        lifecycle.leave(&connections, handover_socket, reason, server).await
    }
}

/// Resolves when axum may close what is left ([`Handover::quiesced`]).
#[derive(Debug)]
pub struct Quiesced(Pin<Box<WaitForCancellationFutureOwned>>);

impl Future for Quiesced {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/handover.rs"]
mod tests;
