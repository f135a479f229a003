//! A release that is no good, though it starts, runs and says that it is ready: every POST is answered with a 500. For the
//! laboratory, whose deploys have to notice.
//!
//! `LAB_BAD_AFTER`: only so many seconds after its start. `LAB_BAD_ONCE`: only once this file exists.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use service::app::{self, AppState};
use service::config::Config;
use service::hitless::{Application, systemd};
use service::{server, telemetry};
use tokio::runtime::Runtime;

/// As in `src/main.rs`, without its command line.
pub fn main() -> Result<ExitCode, Box<dyn Error>> {
    // Before there are threads: it changes the environment.
    let given = systemd::given();
    let config = Config::load(None)?;
    let _logging = telemetry::init(&config.log)?;
    let runtime = Runtime::new()?;
    let outcome = runtime.block_on(server::run(config, given, bad));
    runtime.shutdown_background();
    Ok(ExitCode::from(&outcome?))
}

/// The service, and what is wrong with it.
fn bad(state: AppState) -> impl Application {
    let after = env::var("LAB_BAD_AFTER").ok().and_then(|seconds| seconds.parse().ok());
    let (begun, after) = (Instant::now(), Duration::from_secs(after.unwrap_or(0)));
    let once = env::var_os("LAB_BAD_ONCE");
    let spoil = move |request: Request, next: Next| {
        let is_bad = *request.method() == Method::POST
            && begun.elapsed() >= after
            && once.as_ref().is_none_or(|file| Path::new(file).exists());
        spoil(request, next, is_bad)
    };
    app::layered(app::routes().layer(middleware::from_fn(spoil)), state)
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
