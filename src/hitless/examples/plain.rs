//! A small service as axum's own documentation would have it. `adopted.rs` is the same with hitless.

use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let app = Router::new()
        .route("/livez", get(async || "live\n"))
        .route("/ping", get(ping))
        .route("/echo", post(async |body: Body| body));
    let listener = TcpListener::bind("0.0.0.0:8080").await?;
    axum::serve(listener, app).await?;
    Ok(())
}

async fn ping() -> &'static str {
    tokio::time::sleep(Duration::from_secs(1)).await;
    "{\"message\":\"pong\"}"
}
