//! Errors as clients see them: problem documents (RFC 9457).

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// The media type of a problem document.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The longest text of a library's error that is passed on, in bytes.
const DETAIL_LIMIT: usize = 4096;

/// Of how many frames a text is put together at most.
const MOST_FRAMES: usize = 64;

/// What headers say of a body, and no longer holds for the document in its place (RFC 9110, section 8).
const OF_THE_BODY: [HeaderName; 7] = [
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::CONTENT_LOCATION,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
];

/// Why the server failed, as a library's answer told it: for the log, where [`Observe`](crate::requests::Observe) puts
/// it, and not for clients.
#[derive(Clone, Debug)]
pub struct Withheld(pub String);

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
///
/// What a server's failure says is [`Withheld`] from clients. A layer that compresses belongs outside of this one, which
/// cannot read what is compressed.
pub fn document<B>(response: Response<B>) -> Response
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let response = response.map(Body::new);
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    // A handler's JSON, or any other document of its own, is its own affair.
    let is_plain = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_none_or(|media_type| media_type.as_bytes().starts_with(b"text/plain"));
    if !is_plain {
        return response;
    }
    let is_coded = response.headers().contains_key(header::CONTENT_ENCODING);
    if is_coded && status.is_client_error() {
        // What it says reaches the client all the same.
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let mut detail = if is_coded { String::new() } else { text(body) };
    if status.is_server_error() && !detail.is_empty() {
        parts.extensions.insert(Withheld(std::mem::take(&mut detail)));
    }
    let (document, body) = Problem::new(status, detail).into_response().into_parts();
    for name in OF_THE_BODY {
        parts.headers.remove(name);
    }
    parts.headers.extend(document.headers);
    if status == StatusCode::SERVICE_UNAVAILABLE && !parts.headers.contains_key(header::RETRY_AFTER) {
        parts.headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    Response::from_parts(parts, body)
}

/// The text of a library's answer: it is there at once. Of more than [`DETAIL_LIMIT`], the beginning.
fn text(mut body: Body) -> String {
    let mut text = Vec::new();
    let mut context = Context::from_waker(Waker::noop());
    // Frames may be empty, without end.
    for _ in 0..MOST_FRAMES {
        let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) else { break };
        text.extend(frame.into_data().unwrap_or_default());
        if text.len() >= DETAIL_LIMIT {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text);
    text[..text.floor_char_boundary(DETAIL_LIMIT)].trim_end().to_owned()
}
