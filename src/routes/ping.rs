//! `GET /ping`: the example of a slow request. A restart waits for it and keeps nobody else waiting.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::config::Config;

/// The answer to a ping.
#[derive(Serialize)]
pub struct Pong {
    message: &'static str,
}

/// Answers after `ping_delay`.
pub async fn ping(State(config): State<Arc<Config>>) -> Json<Pong> {
    if !config.ping_delay.is_zero() {
        tokio::time::sleep(config.ping_delay).await;
    }
    Json(Pong { message: "pong" })
}
