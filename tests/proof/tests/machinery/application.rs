//! The application of the proofs, so that none of them depends on the routes, the settings and the state of the service
//! itself, which are its owner's. It stands behind the same layers.
//!
//! `/ping` takes its time, and `/echo` streams a body back; `/length` streams an answer whose length only the header knows,
//! `/work` answers at once and works on, `/endless` has work that does not end, `/blocking` takes every thread there is for
//! what blocks, `/breaks/{how}` breaks its answer off, `/fails/{status}` answers with what it was sent, and `/problems/{status}` with a problem that has a cause;
//! `/tells` has something to log after its answer, or when it is given up.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::future::ready;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRef, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{BoxError, Json, Router};
use futures_util::{StreamExt, stream};
use hitless::{Application, Handle};
use layers::problem::Problem;
use serde_json::{Value, json};
use service::config::Config;
use service::routes::health::{self, Readiness};
use service::{app, server};
use tower::Service;
use tracing::{Instrument, Span, info, info_span};

use crate::metrics::ORDERS;

/// What its handlers share.
#[derive(Clone, Debug, FromRef)]
pub struct Shared {
    handle: Handle,
    readiness: Readiness,
    ping_delay: Duration,
}

/// It, with `more` routes, which go before its own.
pub fn app(config: &Config, handle: Handle, ping_delay: Duration, more: Router<Shared>) -> impl Application + use<> {
    let mut readiness = Readiness::new(config.readiness_timeout);
    if std::env::var_os(NO_DATABASE).is_some() {
        readiness = readiness.check("database", || ready(Err("no route to host")));
    }
    let shared = Shared { handle, readiness, ping_delay };
    let own = routes().with_state(shared.clone());
    let routes = if more.has_routes() { more.with_state(shared).fallback_service(own) } else { own };
    app::layered(routes, config)
}

/// As a process, a test says by its environment that it is to be one: how long `/ping` takes there.
pub const PING_DELAY: &str = "PING_DELAY";

/// Has a readiness check fail there.
pub const NO_DATABASE: &str = "NO_DATABASE";

/// Names another file of the configuration there.
pub const CONFIG: &str = "CONFIG";

/// This test binary, started once more for the test `name`, which is a process then.
pub fn command_line(name: &str) -> [OsString; 5] {
    let test = std::env::current_exe().expect("this binary");
    [test.into(), "--exact".into(), name.into(), "--ignored".into(), "--nocapture".into()]
}

/// The test that is the process of this application.
pub const PROCESS: &str = "application::serves";

/// Makes the process of an application out of a test, unless somebody runs all ignored ones.
pub fn process<A: Application>(app: impl AsyncFnOnce(Arc<Config>, Handle) -> Result<A, BoxError>) {
    if std::env::var_os(PING_DELAY).is_some() {
        let file = std::env::var_os(CONFIG).map(PathBuf::from);
        let config = Config::load(file.as_deref()).expect("a good configuration");
        let code = server::process(config, app).expect("a process");
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    }
}

#[test]
#[ignore = "is a process of another test's"]
fn serves() {
    process(started);
}

/// The test that is a process which can be asked to panic where connections are accepted, by `/fragile`.
pub const FRAGILE: &str = "application::serves_until_it_breaks";

#[test]
#[ignore = "is a process of another test's"]
fn serves_until_it_breaks() {
    let fragile = Arc::new(AtomicBool::new(false));
    let breaks = Arc::clone(&fragile);
    let route = async move || breaks.store(true, Relaxed);
    process(async |config, handle| {
        let app = app(&config, handle, Duration::ZERO, Router::new().route("/fragile", get(route)));
        Ok(Fragile { app, fragile })
    });
}

/// It, in a process. `STATE` in the environment says what becomes of it before it is ready.
async fn started(config: Arc<Config>, handle: Handle) -> Result<impl Application, BoxError> {
    match std::env::var("STATE").as_deref() {
        Ok("fails") => return Err(NoDatabase(std::io::Error::other("nobody listens")).into()),
        Ok("waits") => tokio::time::sleep(Duration::from_secs(1)).await,
        Ok("hangs") => {
            println!("{HANGS}");
            std::future::pending().await
        }
        _ => {}
    }
    let ping_delay = humantime_serde::re::humantime::parse_duration(&std::env::var(PING_DELAY)?)?;
    Ok(app(&config, handle, ping_delay, Router::new()))
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

fn routes() -> Router<Shared> {
    Router::new()
        .route("/ping", get(ping))
        .route("/echo", post(async |body: Body| body))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/length", get(length))
        .route("/work", get(work))
        .route("/endless", get(endless))
        .route("/breaks/{how}", get(breaks))
        .route("/fails/{status}", post(fails))
        .route("/problems/{status}", get(problem))
        .route("/blocking", get(blocking))
        .route("/tells/{when}", get(tells))
        .route("/order", get(order))
}

async fn ping(State(delay): State<Duration>) -> Json<Value> {
    tokio::time::sleep(delay).await;
    Json(json!({ "message": "pong" }))
}

async fn order() {
    ORDERS.inc();
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
    // More than the runtime has threads for them.
    for _ in 0..600 {
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(60)));
    }
}

/// Begins to answer, and then fails or panics.
async fn breaks(Path(how): Path<String>) -> Body {
    let rest = async move {
        assert!(how != "panics", "on purpose");
        Err(NoDatabase(std::io::Error::other("nobody listens")))
    };
    Body::from_stream(stream::once(ready(Ok("begun"))).chain(stream::once(rest)))
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

/// Fails with this status, and tells the client something else than its cause. Fails with nothing but the cause at 0.
async fn problem(Path(status): Path<u16>) -> Result<(), Problem> {
    let cause = NoDatabase(std::io::Error::other("nobody listens"));
    if status == 0 {
        return Err(cause.into());
    }
    let problem = Problem::new(StatusCode::from_u16(status).expect("a status"), "told").caused_by(cause);
    let problem = problem.with("type", "https://test/none").with("instance", "/problems/7");
    Err(problem.with("title", "None").with("balance", 30).with("status", "mine"))
}

/// Logs, in a span of its own within that of its request: `after` its answer, or as it is `given-up`.
/// What `/tells/given-up` says beside the log, where it makes no span, when it has begun.
pub const BEGUN: &str = "it has begun";

async fn tells(Path(when): Path<String>) {
    struct Tells;
    impl Drop for Tells {
        fn drop(&mut self) {
            info_span!("own", number = 7).in_scope(|| info!("given up"));
        }
    }
    if when == "given-up" {
        let _tells = Tells;
        println!("{BEGUN}");
        std::future::pending().await
    }
    // Nothing was logged before that might have made the span.
    let request = Span::current();
    tokio::spawn(async { info_span!("own", number = 7).in_scope(|| info!("after")) }.instrument(request));
}
