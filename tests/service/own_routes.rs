//! A service with routes that the template has not: `/upgrade`, which shouts back what it hears, `/length`, which streams
//! an answer whose length only the header knows, and `/work`, which answers at once and works on. As a process it is
//! this test binary, started once more.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::TokioIo;
use lab::manager::Manager;
use service::app::{self, AppState};
use service::hitless::{Gate, Handle, Lifecycle, Listener, lifecycle, parcel, systemd};
use service::server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::start::config;

/// The process under the stand-in for systemd.
pub fn managed() -> Manager {
    let test = std::env::current_exe().expect("this binary");
    Manager::new(test).args(["--exact", "own_routes::serves", "--ignored", "--nocapture"])
}

#[tokio::test]
#[ignore = "is a process of another test's"]
async fn serves() {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let given = systemd::given();
    let config = config("");
    let told = lifecycle::told_to_leave().expect("signals");
    let lifecycle = Lifecycle::new(config.shutdown_timeout);
    let state = AppState::new(Arc::new(config), lifecycle.handle());
    let app = app::layered(app::routes().merge(routes()), state);
    let mut listener = Listener::new(given.listeners, Arc::new(Gate::default()), 100).expect("a listener");
    let mut connections = Vec::new();
    for parcel in &given.parcels {
        parcel::unpack(parcel, &mut connections).expect("a parcel");
    }
    systemd::forget(parcel::NAME);
    listener.adopt(connections);
    let outcome = server::serve(listener, app, &lifecycle, told).await;
    assert!(outcome.cut.is_empty() && outcome.unfinished == 0, "{outcome:?}");
}

pub fn routes() -> Router<AppState> {
    Router::new().route("/upgrade", get(upgrade)).route("/length", get(length)).route("/work", get(work))
}

async fn length() -> impl IntoResponse {
    let whole = futures_util::stream::once(async { Ok::<_, Infallible>("whole") });
    ([(header::CONTENT_LENGTH, "5")], Body::from_stream(whole))
}

/// What `/work` says in the log when it is done.
pub const DONE: &str = "the work is done";

async fn work(State(handle): State<Handle>) {
    handle.spawn(async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        println!("{DONE}");
    });
}

async fn upgrade(State(handle): State<Handle>, mut request: Request) -> impl IntoResponse {
    let upgraded = hyper::upgrade::on(&mut request);
    let leaving = handle.clone();
    handle.spawn(async move {
        let mut stream = TokioIo::new(upgraded.await.expect("an upgrade"));
        let mut heard = [0; 100];
        loop {
            let count = tokio::select! {
                count = stream.read(&mut heard) => count.unwrap_or(0),
                () = leaving.draining() => break,
            };
            if count == 0 {
                return;
            }
            stream.write_all(&heard[..count].to_ascii_uppercase()).await.expect("a client that listens");
        }
        stream.write_all(b"BYE").await.expect("a client that listens");
        stream.shutdown().await.expect("an end of file");
    });
    (StatusCode::SWITCHING_PROTOCOLS, [(header::CONNECTION, "upgrade"), (header::UPGRADE, "shout")])
}
