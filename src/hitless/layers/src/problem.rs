//! Errors as clients see them: problem documents (RFC 9457), also where a handler panics.

use std::convert::Infallible;
use std::error::Error;
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{BoxError, Extension};
use http_body_util::LengthLimitError;
use pin_project_lite::pin_project;
use serde_json::{Map, Value};
use tower::{Layer, Service};

/// The media type of a problem document.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The longest text of an error that is passed on, in bytes.
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

/// Why a request failed: for the log, where [`Observe`](crate::requests::Observe) puts it, and not for clients.
#[derive(Clone, Debug)]
pub struct Withheld(pub String);

/// What a handler fails with: what the client may know of it, and apart from that, for the log, its cause.
///
/// Any error becomes one by `?`: the client learns that the service failed (500), the log with what. Only what is wrong with
/// the request's body is the client's fault, and told; so it looks when another body breaks that axum reads, whose error is to
/// be given to [`caused_by`](Problem::caused_by).
#[derive(Debug)]
pub struct Problem(Box<Parts>);

#[derive(Debug)]
struct Parts {
    status: StatusCode,
    members: Map<String, Value>,
    cause: Option<BoxError>,
}

impl Problem {
    /// A problem with its HTTP status, and what the client should know of it; empty if nothing.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let problem = Self(Box::new(Parts { status, members: Map::new(), cause: None }));
        let problem = problem.with("title", status.canonical_reason().unwrap_or("Error"));
        let detail = detail.into();
        if detail.is_empty() { problem } else { problem.with("detail", detail) }
    }

    /// The same with a member of the document: `type` and `instance`, which the standard has, a `title` that suits the type,
    /// or any of one's own.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.0.members.insert(member.to_owned(), value.into());
        self
    }

    /// The same with what it came of, which the log tells with all of its own causes, and the client never hears.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<BoxError>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }
}

impl<E: Into<BoxError>> From<E> for Problem {
    fn from(error: E) -> Self {
        let error = error.into();
        // What a request's body is lacking, or has too much of, is its client's affair.
        let status = if is_caused_by::<LengthLimitError>(&*error) {
            StatusCode::PAYLOAD_TOO_LARGE
        } else if is_caused_by::<axum::Error>(&*error) {
            StatusCode::BAD_REQUEST
        } else {
            return Self::new(StatusCode::INTERNAL_SERVER_ERROR, "").caused_by(error);
        };
        Self::new(status, with_causes(&*error))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Parts { status, mut members, cause } = *self.0;
        members.insert("status".to_owned(), status.as_u16().into());
        let told =
            members.get("detail").and_then(Value::as_str).filter(|_| cause.is_some() || status.is_server_error());
        let cause = cause.map(|cause| with_causes(&*cause));
        let why: Vec<&str> = told.into_iter().chain(cause.as_deref()).collect();
        let withheld = (!why.is_empty()).then(|| Extension(Withheld(beginning(&why.join(": ")))));
        (status, withheld, [(header::CONTENT_TYPE, MEDIA_TYPE)], Value::Object(members).to_string()).into_response()
    }
}

/// What an error says, and each of its causes, unless that was said already.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for said in chain(error).map(ToString::to_string) {
        if text.is_empty() {
            text = said;
        } else if !text.ends_with(&said) {
            text = text + ": " + &said;
        }
    }
    text
}

fn is_caused_by<E: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|error| error.is::<E>())
}

/// An error and its causes.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// As much of a text as is passed on.
fn beginning(text: &str) -> String {
    text[..text.floor_char_boundary(DETAIL_LIMIT)].trim_end().to_owned()
}

/// Turns an error that a library answered with into a problem document. Other answers pass as they are.
///
/// What a server's failure says is [`Withheld`] from clients. A layer that compresses belongs outside of this one, which
/// cannot read what is compressed.
pub fn document<B>(response: Response<B>) -> Response
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
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
    beginning(&String::from_utf8_lossy(&text))
}

/// Answers 500 where a handler panics. With what, [`telemetry`](crate::telemetry) puts into the log.
///
/// tower-http's layer of this name boxes the body of every answer, which has to be boxed once more then.
#[derive(Clone, Copy, Debug)]
pub struct CatchPanic;

impl<S> Layer<S> for CatchPanic {
    type Service = Catching<S>;

    fn layer(&self, inner: S) -> Catching<S> {
        Catching(inner)
    }
}

/// A service whose panics are answers.
#[derive(Clone, Debug)]
pub struct Catching<S>(S);

impl<S> Service<Request> for Catching<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Caught<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // What has panicked is not asked again: each request has a clone of the service.
        Caught { answer: catch_unwind(AssertUnwindSafe(|| self.0.call(request))).ok() }
    }
}

pin_project! {
    /// An answer, or that there is none because of a panic.
    pub struct Caught<F> {
        #[pin]
        answer: Option<F>,
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Caught<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.project().answer.as_pin_mut();
        let polled = answer.and_then(|answer| catch_unwind(AssertUnwindSafe(|| answer.poll(cx))).ok());
        polled.unwrap_or_else(|| Poll::Ready(Ok(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "").into_response())))
    }
}
