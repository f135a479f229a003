//! What is known of each request: its id, its span in the log, its outcome.

use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::response::Response;
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tracing::instrument::Instrumented;
use tracing::{Instrument, debug, error, error_span};

use crate::problem::Withheld;
use hitless::process_mark;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from a client, in bytes.
const LONGEST_ID: usize = 128;

/// How much of a method or a path is logged, in bytes. Clients choose them, up to hundreds of kilobytes.
const LOGGED: usize = 1024;

/// Gives every request an id, the client's own ([`own_id`]) or a new one: it is in each log line of the request, in the request's
/// and in the answer's `x-request-id`. Logs the outcome, with what clients are not told of a failure.
///
/// An id made here is when this process began, in hexadecimal nanoseconds since 1970, and the request's number in it.
#[derive(Clone, Debug)]
pub struct Observe(Arc<AtomicU64>);

impl Default for Observe {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(1)))
    }
}

impl Observe {
    fn next_id(&self) -> HeaderValue {
        let process = process_mark();
        let mut id = String::with_capacity(process.len() + 20);
        id.push_str(process);
        // Neither can fail: there is memory, and digits and a dash make a header.
        let _ = write!(id, "{}", self.0.fetch_add(1, Relaxed));
        HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("-"))
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { observe: self.clone(), inner }
    }
}

/// A service whose requests are observed.
#[derive(Clone, Debug)]
pub struct Observed<S> {
    observe: Observe,
    inner: S,
}

impl<S> Service<Request> for Observed<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Instrumented<Answer<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let id = own_id(request.headers()).cloned().unwrap_or_else(|| {
            let id = self.observe.next_id();
            request.headers_mut().insert(X_REQUEST_ID, id.clone());
            id
        });
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let span = error_span!("request", request_id = id.to_str().unwrap_or("-"));
        let begun = Instant::now();
        let answer = span.in_scope(|| self.inner.call(request));
        Answer { answer, id: Some(id), method, uri, begun }.instrument(span)
    }
}

/// The id that a client has given its request: one, of 1 to [`LONGEST_ID`] letters, digits and `-._~:/+=@`, of which
/// everybody's ids are made. It goes into logs, headers and whatever is behind them, where others do harm.
fn own_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut ids = headers.get_all(X_REQUEST_ID).iter();
    let id = ids.next().filter(|_| ids.next().is_none())?;
    let is_plain = id.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:/+=@".contains(byte));
    (is_plain && (1..=LONGEST_ID).contains(&id.len())).then_some(id)
}

fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(LOGGED)]
}

pin_project! {
    /// The answer to an observed request.
    pub struct Answer<F> {
        #[pin]
        answer: F,
        id: Option<HeaderValue>,
        method: Method,
        uri: Uri,
        begun: Instant,
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Answer<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.answer.poll(cx));
        let (method, path) = (beginning(this.method.as_str()), beginning(this.uri.path()));
        let took = this.begun.elapsed();
        let status = response.status().as_u16();
        let withheld = response.extensions_mut().remove::<Withheld>();
        let reason = withheld.map_or_else(String::new, |Withheld(text)| format!(": {text}"));
        if status >= 500 {
            error!(target: "requests", method, path, status, ?took, "{method} {path}: {status}{reason}");
        } else {
            debug!(target: "requests", method, path, status, ?took, "{method} {path}: {status}{reason}");
        }
        if let Some(id) = this.id.take() {
            response.headers_mut().insert(X_REQUEST_ID, id);
        }
        Poll::Ready(Ok(response))
    }
}
