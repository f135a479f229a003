//! What there is without hitless: axum's own graceful shutdown behind a systemd socket, and nothing
//! else, for comparison.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Json;
use axum::routing::{get, post};
use lab::host::Host;
use lab::manager::Manager;
use lab::stage::{Listen, PORT, Stage};
use listenfd::ListenFd;
use rustix::process::Signal;
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

/// Installs `proof peer` there: bare axum behind a systemd socket.
pub async fn deploy(host: Host) -> anyhow::Result<Stage> {
    host.put(&std::env::current_exe()?, "/opt/peer/peer", 0o755).await?;
    let socket = format!("[Socket]\nListenStream=0.0.0.0:{PORT}\nBacklog=4096\nNoDelay=yes\n");
    let service = "[Unit]\nStartLimitIntervalSec=0\n\n\
                   [Service]\nType=notify\nExecStart=/opt/peer/peer peer\nLimitNOFILE=65536\nTimeoutStopSec=30s\n";
    host.write(&socket, "/etc/systemd/system/peer.socket").await?;
    host.write(service, "/etc/systemd/system/peer.service").await?;
    host.run("systemctl daemon-reload && systemctl start peer.socket peer.service").await?;
    Ok(Stage::Host { host, name: "peer".into(), listen: Listen::Tcp })
}

/// Starts `proof peer` under the stand-in.
pub async fn stand_in() -> anyhow::Result<Stage> {
    let peer = Manager { args: vec!["peer".into()], ..Manager::new(std::env::current_exe()?) };
    // It knows of one signal alone.
    let service = Manager { restart_signal: Signal::TERM, ..peer }.start().await?;
    Ok(Stage::StandIn(Box::new(service)))
}
