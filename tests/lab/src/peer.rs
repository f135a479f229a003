//! What there is without hitless: axum's own graceful shutdown behind a systemd socket, and nothing
//! else, for comparison.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Json;
use axum::routing::{get, post};
use listenfd::ListenFd;
use tokio::signal::unix::{SignalKind, signal};

/// The template's routes, bare.
pub fn app(ping_delay: Duration) -> Router {
    let ping = async move || {
        tokio::time::sleep(ping_delay).await;
        Json(serde_json::json!({"message": "pong"}))
    };
    Router::new()
        .route("/livez", get(async || "alive"))
        .route("/ping", get(ping))
        .route("/echo", post(async |request: Request| Body::new(request.into_body())))
}

/// Serves them on the socket systemd hands over, until `SIGTERM`.
pub async fn serve(ping_delay: Duration) -> anyhow::Result<()> {
    let listener =
        ListenFd::from_env().take_tcp_listener(0)?.context("no socket from systemd: LISTEN_FDS is not set")?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut terminate = signal(SignalKind::terminate())?;
    sd_notify::notify(&[sd_notify::NotifyState::Ready])?;
    axum::serve(listener, app(ping_delay))
        .with_graceful_shutdown(async move {
            terminate.recv().await;
        })
        .await?;
    Ok(())
}
