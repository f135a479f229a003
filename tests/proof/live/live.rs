//! What lasts longer than a request, through restarts: events, a WebSocket, a background task, and a page that watches
//! them. To copy from. `cargo run --example live`, then open http://localhost:8080 and restart it (Ctrl-C here).
//!
//! Whatever lasts asks for the [`Handle`], and ends when `handle.draining()` resolves. Clients come back by themselves.
//! For a moment they may still reach the process that leaves: it turns nobody away, and tells them the same at once.

use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{FromRef, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive};
use axum::response::{Html, IntoResponse, Sse};
use axum::routing::get;
use axum::{BoxError, Router};
use futures_util::{StreamExt, stream};
use hitless::{Application, Handle};
use service::app::{self, AppState};
use service::config::Config;
use service::server;

/// As in `src/main.rs`, without its command line.
pub fn main() -> Result<ExitCode, BoxError> {
    server::process(Config::load(None)?, live)
}

/// The service, and what is added to it here, which goes before what it has under the same paths.
async fn live(config: Arc<Config>, handle: Handle) -> Result<impl Application, BoxError> {
    begin(&handle);
    let state = AppState::new(Arc::clone(&config), handle).await?;
    let service = app::routes().with_state(state.clone());
    Ok(app::layered(routes().with_state(state).fallback_service(service), &config))
}

/// Begins what goes on in the background.
pub fn begin(handle: &Handle) {
    handle.spawn(rounds(handle.clone()));
}

/// The routes, for any state that has a [`Handle`].
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S>
where
    Handle: FromRef<S>,
{
    let page = Html(include_str!("page.html"));
    Router::new().route("/", get(page)).route("/events", get(events)).route("/socket", get(socket))
}

/// How long a round takes, and the pause before it.
const ROUND: Duration = Duration::from_millis(50);

/// A background task. It is told between two rounds: one that has begun ends, and the process waits for it.
async fn rounds(handle: Handle) {
    let mut done = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            () = handle.draining() => break,
        }
        // The work.
        tokio::time::sleep(ROUND).await;
        done += 1;
    }
    tracing::info!("told to leave after {done} rounds, all of them whole");
}

/// An event comes with each tick of the clock. Its id is how many there were since 1970, so that any process can go on
/// after any id: as it could with the numbers of rows in a table that all of them read.
const TICK: Duration = Duration::from_millis(100);

/// How many events a client may have missed, at most.
const KEPT: u64 = 6000;

/// How long a client waits, when its stream has ended, before it comes back.
const RETRY: Duration = Duration::from_millis(200);

/// `GET /events`: a stream of events, that goes on after the one that the client names in `Last-Event-ID`.
async fn events(State(handle): State<Handle>, headers: HeaderMap) -> impl IntoResponse {
    let now = ticks();
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok()).unwrap_or(now);
    let first = seen.saturating_add(1).clamp(now - KEPT, now + 1);

    let retry = stream::once(async { Ok::<_, Infallible>(Event::default().retry(RETRY)) });
    let events = stream::unfold((handle, first), |(handle, id)| async move {
        tokio::select! {
            // In this order: who leaves begins nothing more, whatever is due.
            biased;
            () = handle.draining() => None,
            () = tick(id) => Some((Ok(Event::default().id(id.to_string()).data("tick")), (handle, id + 1))),
        }
    });
    // Without a word for long, proxies take a stream for dead.
    Sse::new(retry.chain(events)).keep_alive(KeepAlive::default())
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn ticks() -> u64 {
    (since_1970().as_millis() / TICK.as_millis()) as u64
}

async fn tick(id: u64) {
    let due = Duration::from_millis(id * TICK.as_millis() as u64);
    tokio::time::sleep(due.saturating_sub(since_1970())).await;
}

/// How long a client has to close its side, once it was told.
const GOODBYE: Duration = Duration::from_secs(3);

/// `GET /socket`: a WebSocket, that says what it hears.
async fn socket(State(handle): State<Handle>, upgrade: WebSocketUpgrade) -> impl IntoResponse {
    upgrade.on_upgrade(async move |mut socket| {
        tokio::select! {
            () = echo(&mut socket) => {}
            () = handle.draining() => {
                // The process waits for its sockets, and a client may never answer.
                let _ = tokio::time::timeout(GOODBYE, say_goodbye(&mut socket)).await;
            }
        }
    })
}

async fn echo(socket: &mut WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if matches!(message, Message::Text(_)) && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// Closes with 1012, service restart, and reads up to the client's own close.
async fn say_goodbye(socket: &mut WebSocket) {
    let restart = CloseFrame { code: close_code::RESTART, reason: "service restart".into() };
    if socket.send(Message::Close(Some(restart))).await.is_ok() {
        while let Some(Ok(_)) = socket.recv().await {}
    }
}
