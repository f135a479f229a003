//! How a process accepts and leaves, beside others: the steps of `axum::serve` and of `src/hitless/src/lifecycle/`,
//! without what has to do with an operating system.

use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener as _;
use shuttle::future::{JoinHandle, spawn};
use world::Backlog;

use super::connections::Mode;
use super::listener::Listener;
use super::parcel::Clean;
use super::process::{Process, serve};
use super::systemd::ListeningSocket;

impl Process {
    /// Serves these connections, and whoever connects.
    pub fn listen(&self, backlog: &Backlog, connections: Vec<Clean>) -> JoinHandle<()> {
        let sockets = vec![ListeningSocket::Tcp(backlog.clone())];
        let mut listener = Listener::new(sockets, Arc::clone(&self.gate), 1000).unwrap();
        self.gate.put(connections);
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
        self.gate.set_mode(Mode::HandingOver);
        self.gate.thin_out(Duration::from_millis(10)).await;
        self.gate.close();
        let _ = world::time::timeout(Duration::from_millis(10), self.gate.taken(None)).await;
        self.gate.open();
    }

    /// Hands every connection over.
    pub async fn leave(&self, server: JoinHandle<()>) -> Vec<Clean> {
        self.gate.set_mode(Mode::HandingOver);
        self.gate.thin_out(Duration::from_millis(10)).await;
        self.gate.close();
        self.gate.taken(None).await;
        self.end(server).await
    }

    /// Gives every connection to `sibling` as soon as it is clean.
    pub async fn give(&self, server: JoinHandle<()>, sibling: &Process) -> Vec<Clean> {
        self.gate.set_mode(Mode::HandingOver);
        self.gate.close();
        while let Some(connections) = self.gate.next_taken().await {
            sibling.gate.put(connections);
        }
        self.end(server).await
    }

    /// Has axum end. What was not taken by then is lost.
    async fn end(&self, server: JoinHandle<()>) -> Vec<Clean> {
        self.ending.cancel();
        server.abort();
        let _ = server.await;
        self.gate.all_gone(Duration::MAX, Duration::from_millis(500)).await;
        self.gate.take()
    }
}
