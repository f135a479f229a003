//! A service with routes that the template has not: `/length`, which streams an answer whose length only the header knows,
//! `/work`, which answers at once and works on, `/endless`, whose work does not end, `/blocking`, which takes every thread
//! there is for what blocks, and `/fails/{status}`, which answers with what it was sent.

use std::convert::Infallible;
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{BoxError, Router};
use lab::manager::Manager;
use service::app::{self, AppState};
use service::config::Config;
use service::hitless::{Application, Handle};
use service::server;
use tower::Service;

/// The process under the stand-in for systemd.
pub fn managed() -> Manager {
    process_of("own_routes::serves")
}

/// A process under the stand-in that is this test binary, started once more for the test `name`.
pub fn process_of(name: &str) -> Manager {
    let test = std::env::current_exe().expect("this binary");
    Manager::new(test).args(["--exact", name, "--ignored", "--nocapture"])
}

/// Whether this is such a process, and not somebody running all ignored tests.
pub fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Ends such a process as the service's own ends.
pub fn exit(code: ExitCode) {
    std::process::exit(i32::from(code != ExitCode::SUCCESS));
}

#[test]
#[ignore = "is a process of another test's"]
fn serves() {
    serve(async |config, handle| own(config, handle, Router::new()).await);
}

/// The same service, but that it can be asked to panic where connections are accepted, by `/fragile`.
#[test]
#[ignore = "is a process of another test's"]
fn serves_until_it_breaks() {
    let fragile = Arc::new(AtomicBool::new(false));
    let breaks = Router::new().route(
        "/fragile",
        get({
            let fragile = Arc::clone(&fragile);
            async move || fragile.store(true, Relaxed)
        }),
    );
    serve(async |config, handle| Ok(Fragile { app: own(config, handle, breaks).await?, fragile }));
}

fn serve<A: Application>(app: impl AsyncFnOnce(Arc<Config>, Handle) -> Result<A, BoxError>) {
    if is_managed() {
        let config = Config::load(None).expect("a good configuration");
        exit(server::process(config, app).expect("a process"));
    }
}

/// The service with these routes and `more`. `STATE` in the environment says what becomes of it before it is ready.
async fn own(config: Arc<Config>, handle: Handle, more: Router<AppState>) -> Result<impl Application, BoxError> {
    match std::env::var("STATE").as_deref() {
        Ok("fails") => return Err(NoDatabase(std::io::Error::other("nobody listens")).into()),
        Ok("waits") => tokio::time::sleep(Duration::from_secs(1)).await,
        Ok("hangs") => {
            println!("{HANGS}");
            std::future::pending().await
        }
        _ => {}
    }
    let state = AppState::new(Arc::clone(&config), handle).await?;
    Ok(app::layered(app::routes().merge(routes()).merge(more).with_state(state), &config))
}

/// An error that does not say its cause by itself.
#[derive(Debug)]
struct NoDatabase(std::io::Error);

impl fmt::Display for NoDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no database")
    }
}

impl std::error::Error for NoDatabase {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// An application of which axum makes a copy for each connection that it accepts.
struct Fragile<A> {
    app: A,
    fragile: Arc<AtomicBool>,
}

impl<A: Clone> Clone for Fragile<A> {
    fn clone(&self) -> Self {
        assert!(!self.fragile.load(Relaxed), "{BROKEN}");
        Self { app: self.app.clone(), fragile: Arc::clone(&self.fragile) }
    }
}

impl<A: Application> Service<Request> for Fragile<A> {
    type Response = A::Response;
    type Error = A::Error;
    type Future = A::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), A::Error>> {
        self.app.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> A::Future {
        self.app.call(request)
    }
}

/// What the panic says.
pub const BROKEN: &str = "the application broke";

pub fn routes() -> Router<AppState> {
    Router::new()
        .route("/length", get(length))
        .route("/work", get(work))
        .route("/endless", get(endless))
        .route("/fails/{status}", post(fails))
        .route("/blocking", get(blocking))
}

async fn length() -> impl IntoResponse {
    let whole = futures_util::stream::once(async { Ok::<_, Infallible>("whole") });
    ([(header::CONTENT_LENGTH, "5")], Body::from_stream(whole))
}

/// What it says where its state never comes.
pub const HANGS: &str = "nothing comes of it";

/// What `/work` says in the log when it is done.
pub const DONE: &str = "the work is done";

async fn work(State(handle): State<Handle>) {
    handle.spawn(async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        println!("{DONE}");
    });
}

async fn endless(State(handle): State<Handle>) {
    handle.spawn(std::future::pending::<()>());
}

async fn blocking() {
    // The runtime has 512 threads for them.
    for _ in 0..600 {
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(60)));
    }
}

/// Answers with this status, and the body, its type and its coding that came with the request. Panics at 0.
async fn fails(Path(status): Path<u16>, headers: HeaderMap, body: String) -> impl IntoResponse {
    assert!(status != 0, "{body}");
    let status = StatusCode::from_u16(status).expect("a status");
    let mut told = HeaderMap::from_iter([(header::ETAG, HeaderValue::from_static("\"of the body\""))]);
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
        if let Some(value) = headers.get(&name) {
            told.insert(name, value.clone());
        }
    }
    (status, told, Body::from(body))
}
