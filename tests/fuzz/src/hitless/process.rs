//! A process that serves, as far as its connections can tell: what axum does between a listener and an application.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};

use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::connection::{Io, Origin, Peer};
use super::connections::Connections;
use super::queue::Detached;
use super::track::Track;
use crate::application;

/// As in `src/hitless/tests/unit/testing.rs`.
impl Connections {
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The tasks of a process.
#[derive(Clone, Default)]
pub struct Tasks(Arc<Mutex<Vec<Task>>>);

struct Task {
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    woken: Arc<Woken>,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

impl Tasks {
    #[cfg(feature = "shuttle")]
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        shuttle::future::spawn(future);
    }

    #[cfg(not(feature = "shuttle"))]
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        self.0.lock().unwrap().push(Task { future: Box::pin(future), woken });
    }

    /// Does all that can be done: polls those that were woken, and nobody else, until nobody is.
    pub fn settle(&self) {
        loop {
            // Not under the lock: tasks spawn tasks.
            let mut tasks = std::mem::take(&mut *self.0.lock().unwrap());
            let mut polled = false;
            tasks.retain_mut(|Task { future, woken }| {
                if !woken.0.swap(false, SeqCst) {
                    return true;
                }
                polled = true;
                let waker = Waker::from(Arc::clone(woken));
                future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending()
            });
            self.0.lock().unwrap().extend(tasks);
            if !polled {
                return;
            }
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        self.spawn(future);
    }
}

/// Serves a connection as axum does, until it is told to end.
pub async fn serve(io: Io, tasks: Tasks, ending: CancellationToken) {
    let connection = io.connection().clone();
    let handlers = tasks.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(connection.clone()));
        let tasks = handlers.clone();
        Track(tower::service_fn(move |request| application::answer(tasks.clone(), request))).call(request)
    });
    let mut builder = auto::Builder::new(tasks);
    builder.http1().auto_date_header(false);
    builder.http2().auto_date_header(false).enable_connect_protocol();
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(io), service));
    tokio::select! {
        _ = connection.as_mut() => return,
        () = ending.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// A process with connections that were given to it.
#[derive(Default)]
pub struct Process {
    pub(super) connections: Arc<Connections>,
    pub(super) tasks: Tasks,
    pub(super) ending: CancellationToken,
}

impl Process {
    /// Takes a connection in.
    pub fn adopt(&self, Detached { socket, unparsed, .. }: Detached) {
        let peer = Peer::Tcp(socket.peer_addr().unwrap());
        let io = self.connections.admit(Either::Left(socket), peer, unparsed, Origin::Adopted);
        self.tasks.spawn(serve(io, self.tasks.clone(), self.ending.clone()));
    }

    /// Does all that can be done.
    pub fn settle(&self) {
        self.tasks.settle();
    }

    pub fn pause(&self) {
        self.connections.pause();
        self.settle();
    }

    pub fn resume(&self) {
        self.connections.resume();
        self.settle();
    }

    /// The connections that were detached.
    pub fn take_parked(&self) -> Vec<Detached> {
        self.connections.take_parked()
    }

    /// Whether there is no live connection.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The tasks hold on to the list they are in.
        let tasks = std::mem::take(&mut *self.tasks.0.lock().unwrap());
        drop(tasks);
    }
}
