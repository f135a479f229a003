//! Errors as clients see them: problem documents (RFC 9457).

use std::any::Any;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use axum::BoxError;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// The media type of a problem document.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The longest text of a library's error that is passed on, in bytes.
const DETAIL_LIMIT: usize = 4096;

/// An error, as a handler returns it: `Err(Problem::new(StatusCode::CONFLICT, "the order was paid already"))`.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    title: &'static str,
    #[serde(serialize_with = "number")]
    status: StatusCode,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

impl Problem {
    /// A problem with its HTTP status, and what the client should know of it; empty if nothing.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { title: status.canonical_reason().unwrap_or("Error"), status, detail: detail.into() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // Cannot fail: three plain fields.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        (self.status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response()
    }
}

fn number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

/// Turns an error that a library answered with into a problem document. Other answers pass as they are.
pub fn document<B>(response: Response<B>) -> Response
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let response = response.map(Body::new);
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    // A handler's JSON, or any other document of its own, is its own affair.
    let is_plain = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_none_or(|media_type| media_type.as_bytes().starts_with(b"text/plain"));
    if !is_error || !is_plain {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // A library's text is there at once. A server's failure is told to its operators, in the log, and not to clients.
    let text = pin!(to_bytes(body, DETAIL_LIMIT)).poll(&mut Context::from_waker(Waker::noop()));
    let detail = match text {
        Poll::Ready(Ok(text)) if status.is_client_error() => String::from_utf8_lossy(&text).into_owned(),
        _ => String::new(),
    };
    let (document, body) = Problem::new(status, detail).into_response().into_parts();
    for name in [header::CONTENT_LENGTH, header::CONTENT_TYPE] {
        parts.headers.remove(name);
    }
    parts.headers.extend(document.headers);
    if status == StatusCode::SERVICE_UNAVAILABLE && !parts.headers.contains_key(header::RETRY_AFTER) {
        parts.headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    Response::from_parts(parts, body)
}

/// The answer of a handler that panicked.
pub fn panicked(panic: Box<dyn Any + Send>) -> Response<Body> {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("(not a text)");
    tracing::error!("a handler panicked: {message}");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "").into_response()
}
