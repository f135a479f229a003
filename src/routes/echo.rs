//! `POST /echo`: the example of a streaming request and answer.

use axum::body::Body;

/// Sends the request's body back as it arrives.
pub async fn echo(body: Body) -> Body {
    body
}
