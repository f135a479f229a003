//! A release that is no good, though it starts, runs and says that it is ready: every POST is answered with a 500. For the
//! laboratory, whose deploys have to notice.
//!
//! `LAB_BAD_AFTER`: only so many seconds after its start. `LAB_BAD_ONCE`: only once this file exists.

use std::env;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::BoxError;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use hitless::{Application, Handle};
use service::app::{self, AppState};
use service::config::Config;
use service::server;

/// As in `src/main.rs`, without its command line.
pub fn main() -> Result<ExitCode, BoxError> {
    server::process(Config::load(None)?, bad)
}

/// The service, and what is wrong with it.
async fn bad(config: Arc<Config>, handle: Handle) -> Result<impl Application, BoxError> {
    let after = env::var("LAB_BAD_AFTER").ok().and_then(|seconds| seconds.parse().ok());
    let (begun, after) = (Instant::now(), Duration::from_secs(after.unwrap_or(0)));
    let once = env::var_os("LAB_BAD_ONCE");
    let spoil = move |request: Request, next: Next| {
        let is_bad = *request.method() == Method::POST
            && begun.elapsed() >= after
            && once.as_ref().is_none_or(|file| Path::new(file).exists());
        spoil(request, next, is_bad)
    };
    let state = AppState::new(Arc::clone(&config), handle).await?;
    let routes = app::routes().layer(middleware::from_fn(spoil)).with_state(state);
    Ok(app::layered(routes, &config))
}

/// The right answer under a wrong status: the request has failed, its body was read, its connection stays.
async fn spoil(request: Request, next: Next, is_bad: bool) -> Response {
    let mut response = next.run(request).await;
    if is_bad {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        // Of plain text a problem document would be made.
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    }
    response
}
