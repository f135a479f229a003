//! `without LAYER`: the service with one of its layers taken away (`none` or `all`), for `proof cost`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use axum::Router;
use hitless::{Application, RequestTimeout};
use layers::body_limit::BodyLimit;
use layers::{problem, requests, strict};
use service::app::{AppState, routes};
use service::config::Config;
use service::server;
use tower::ServiceBuilder;
use tower::util::MapResponseLayer;

/// As in the service itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<ExitCode> {
    let layer = std::env::args().nth(1).context("without what?")?;
    let process = server::process(Config::load(None)?, async |config, handle| {
        let state = AppState::new(Arc::clone(&config), handle).await?;
        Ok(layered(routes().with_state(state), &config, &layer))
    });
    process.map_err(|error| anyhow!(error))
}

/// As [`service::app::layered`], without this one.
fn layered(routes: Router, config: &Config, without: &str) -> impl Application + use<> {
    let has = |layer| without != layer && without != "all";
    let observe = has("requests").then(|| requests::Observe::new(&routes));
    let routes = if has("requests") { routes.layer(requests::Routed::layer()) } else { routes };
    ServiceBuilder::new()
        .option_layer(has("proxies").then(|| config.proxies.clone()))
        .option_layer(observe)
        .option_layer(has("strict").then_some(strict::Check))
        .option_layer(has("problem").then(|| MapResponseLayer::new(problem::document)))
        .option_layer(has("panics").then_some(problem::CatchPanic))
        .option_layer(has("body_limit").then(|| BodyLimit::new(config.limits.max_body_bytes)))
        .option_layer(has("timeout").then(|| RequestTimeout::new(config.request_timeout())))
        .service(routes)
}
