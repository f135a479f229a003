//! The small service of `plain.rs`, with hitless.

use std::error::Error;
use std::net::TcpListener;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use hitless::{Inherited, Limits, Outcome, ShutdownTimeout};

fn main() -> Result<Outcome, Box<dyn Error>> {
    serve(Inherited::from_env(Limits::new(ShutdownTimeout::default())))
}

#[tokio::main]
async fn serve(inherited: Inherited) -> Result<Outcome, Box<dyn Error>> {
    let app = Router::new()
        .route("/livez", get(async || "live\n"))
        .route("/ping", get(ping))
        .route("/echo", post(async |body: Body| body));
    let (handover, listener) = inherited.handover(ShutdownTimeout::default(), || TcpListener::bind("0.0.0.0:8080"))?;
    let server = axum::serve(listener, handover.track(app)).with_graceful_shutdown(handover.quiesced());
    Ok(handover.run(server).await)
}

async fn ping() -> &'static str {
    tokio::time::sleep(Duration::from_secs(1)).await;
    "{\"message\":\"pong\"}"
}
