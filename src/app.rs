//! The application: its routes, its state, and the layers around them, in one place. This file is yours.

use std::sync::Arc;

use axum::extract::FromRef;
use axum::routing::{get, post};
use axum::{BoxError, Router};
use tower::ServiceBuilder;

use crate::config::Config;
use crate::routes::health::Readiness;
use crate::routes::{echo, health, ping};
use hitless::{Application, Handle, RequestTimeout};
use layers::body_limit::BodyLimit;
use layers::{metrics, problem, requests, strict};

/// What handlers share. Each field is a handler's to ask for: `State(config): State<Arc<Config>>`.
#[derive(Clone, Debug, FromRef)]
pub struct AppState {
    pub config: Arc<Config>,
    /// Knows when the service leaves, and runs work that must end before it does.
    pub handle: Handle,
    pub readiness: Readiness,
}

impl AppState {
    /// The state of a service with this configuration.
    ///
    /// Until it is there the service is not ready, and clients wait: `unit.start_timeout` at most.
    ///
    /// # Errors
    /// When something cannot be had that the service cannot do without. The process ends, with the reason in its log; whoever
    /// waits is there for the next one.
    pub async fn new(config: Arc<Config>, handle: Handle) -> Result<Self, BoxError> {
        // A check for each thing that the service cannot do without, here with `let checked = pool.clone()` before it:
        //     .check("database", move || { let pool = checked.clone(); async move { pool.ping().await } })
        let readiness = Readiness::new(config.readiness_timeout);
        Ok(Self { config, handle, readiness })
    }
}

/// The service: its state, and its routes behind its layers.
///
/// # Errors
/// As for [`AppState::new`].
pub async fn app(config: Arc<Config>, handle: Handle) -> Result<impl Application, BoxError> {
    let state = AppState::new(Arc::clone(&config), handle).await?;
    Ok(layered(routes().with_state(state), &config))
}

/// The service's routes.
pub fn routes() -> Router<AppState> {
    Router::new()
        .route("/ping", get(ping::ping))
        .route("/echo", post(echo::echo))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
}

/// Puts the layers around any routes.
pub fn layered(routes: Router, config: &Config) -> impl Application + use<> {
    ServiceBuilder::new()
        // Who operates the service gets what it counts.
        .layer(metrics::Tell)
        // Whom a request is from, proxies tell that are trusted.
        .layer(config.proxies.clone())
        // Every request has an id, and its outcome is in the log.
        .layer(requests::Observe::new(&routes))
        // It is clear whom each request is for, and where it ends (RFC 9112, sections 3.2 and 6.1).
        .layer(strict::Check)
        // Whatever fails, and wherever, the client gets a problem document (RFC 9457).
        .map_response(problem::document)
        // A handler's panic is its own request's failure and nobody else's.
        .layer(problem::CatchPanic)
        // One limit on every body, whoever reads it.
        .layer(BodyLimit::new(config.limits.max_body_bytes))
        // No request outlasts half of the drain, so that all of them end before it.
        .layer(RequestTimeout::new(config.request_timeout()))
        // What a request counts as says its route.
        .service(routes.layer(requests::Routed::layer()))
}
