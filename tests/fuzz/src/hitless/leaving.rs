//! How a process accepts and leaves, beside others: the steps of `axum::serve` and of `src/hitless/src/lifecycle/`,
//! without what has to do with an operating system.

use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener as _;
use shuttle::future::{JoinHandle, spawn};
use world::Backlog;

use super::connections::Mode;
use super::listener::Listener;
use super::process::{Process, serve};
use super::queue::Detached;
use super::systemd::ListeningSocket;

impl Process {
    /// Serves these connections, and whoever connects.
    pub fn listen(&self, backlog: &Backlog, connections: Vec<Detached>) -> JoinHandle<()> {
        let sockets = vec![ListeningSocket::Tcp(backlog.clone())];
        let mut listener = Listener::new(sockets, Arc::clone(&self.connections), 1000).unwrap();
        self.connections.park(connections);
        let (tasks, ending) = (self.tasks.clone(), self.ending.clone());
        spawn(async move {
            loop {
                let (io, _) = listener.accept().await;
                tasks.spawn(serve(io, tasks.clone(), ending.clone()));
            }
        })
    }

    /// Tries to leave, and stays because that takes too long.
    pub async fn stay(&self) {
        self.connections.set_mode(Mode::HandingOver);
        self.connections.detach_idle(Duration::from_millis(10)).await;
        self.connections.pause();
        let _ = world::time::timeout(Duration::from_millis(10), self.connections.detached(None)).await;
        self.connections.resume();
    }

    /// Hands every connection over.
    pub async fn leave(&self, server: JoinHandle<()>) -> Vec<Detached> {
        self.connections.set_mode(Mode::HandingOver);
        self.connections.detach_idle(Duration::from_millis(10)).await;
        self.connections.pause();
        self.connections.detached(None).await;
        self.end(server).await
    }

    /// Gives every connection to `sibling` as soon as it stands at a message boundary.
    pub async fn give(&self, server: JoinHandle<()>, sibling: &Process) -> Vec<Detached> {
        self.connections.set_mode(Mode::HandingOver);
        self.connections.pause();
        while let Some(connections) = self.connections.next_detached().await {
            sibling.connections.park(connections);
        }
        self.end(server).await
    }

    /// Has axum end. What was not detached by then is lost.
    async fn end(&self, server: JoinHandle<()>) -> Vec<Detached> {
        self.ending.cancel();
        server.abort();
        let _ = server.await;
        self.connections.all_gone(Duration::MAX, Duration::from_millis(500)).await;
        self.connections.take_parked()
    }
}
