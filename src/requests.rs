//! What is known of each request: its id, its span in the log, its outcome.

use std::cell::Cell;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::extract::Request;
use axum::http::header::Entry;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::response::Response;
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tracing::{Span, debug, error, error_span};

use crate::problem::Withheld;
use hitless::request_id;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from a client, in bytes.
const LONGEST_ID: usize = 128;

/// How much of a method or a path is logged, in bytes. Clients choose them, up to hundreds of kilobytes.
const LOGGED: usize = 1024;

/// Gives every request an id, the client's own ([`is_own_id`]) or a new one ([`request_id`]): it is in each log line of the
/// request, in the request's and in the answer's `x-request-id`. Logs the outcome, with what clients are not told of a failure.
#[derive(Clone, Copy, Debug)]
pub struct Observe;

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed(inner)
    }
}

/// A service whose requests are observed.
#[derive(Clone, Debug)]
pub struct Observed<S>(S);

impl<S> Service<Request> for Observed<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let mut current = Some(Current { id: identified(request.headers_mut()), span: None });
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let begun = Instant::now();
        let answer = at_work(&mut current, || self.0.call(request));
        Answer { answer: Some(answer), current, method, uri, begun }
    }
}

/// The id of the request with these headers, among which it is from now on.
fn identified(headers: &mut HeaderMap) -> HeaderValue {
    match headers.entry(X_REQUEST_ID) {
        Entry::Occupied(own) if is_own_id(own.iter()) => own.get().clone(),
        Entry::Occupied(mut other) => {
            let id = request_id();
            other.insert(id.clone());
            id
        }
        Entry::Vacant(none) => none.insert(request_id()).clone(),
    }
}

/// Whether a client has given its request an id: one, of 1 to [`LONGEST_ID`] letters, digits and `-._~:/+=@`, of which
/// everybody's ids are made. It goes into logs, headers and whatever is behind them, where others do harm.
fn is_own_id<'a>(mut ids: impl Iterator<Item = &'a HeaderValue>) -> bool {
    let Some(id) = ids.next().filter(|_| ids.next().is_none()) else { return false };
    let is_plain = id.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:/+=@".contains(byte));
    is_plain && (1..=LONGEST_ID).contains(&id.len())
}

/// What the log says of the request that a thread is at work for. Most requests log nothing, and need no span.
struct Current {
    id: HeaderValue,
    span: Option<Box<Span>>,
}

thread_local! {
    static CURRENT: Cell<Option<Current>> = const { Cell::new(None) };
}

/// Makes the span of the request that this thread is at work for, unless there is one already: a line is to be logged, or
/// somebody asks for the span. That is [`telemetry`](crate::telemetry)'s to notice.
pub(crate) fn make_span() {
    // Making a span may ask for one: meanwhile there is no request. Nor is there one for what the end of a thread logs.
    let Ok(Some(mut current)) = CURRENT.try_with(Cell::take) else { return };
    if current.span.is_none() {
        let span = error_span!("request", request_id = current.id.to_str().unwrap_or("-"));
        span.with_subscriber(|(id, subscriber)| subscriber.enter(id));
        current.span = Some(Box::new(span));
    }
    CURRENT.set(Some(current));
}

fn span_of(current: &Option<Current>) -> Option<&Span> {
    current.as_ref()?.span.as_deref()
}

/// Does what is to be done for the current request, within its span as soon as there is one.
fn at_work<R>(current: &mut Option<Current>, work: impl FnOnce() -> R) -> R {
    /// Takes the request up, and lays it down in the end, also when the work panics.
    struct Turn<'a> {
        current: &'a mut Option<Current>,
        outer: Option<Current>,
    }
    impl Drop for Turn<'_> {
        fn drop(&mut self) {
            *self.current = CURRENT.replace(self.outer.take());
            if let Some(span) = span_of(self.current) {
                span.with_subscriber(|(id, subscriber)| subscriber.exit(id));
            }
        }
    }
    if let Some(span) = span_of(current) {
        span.with_subscriber(|(id, subscriber)| subscriber.enter(id));
    }
    let outer = CURRENT.replace(current.take());
    let _turn = Turn { current, outer };
    work()
}

fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(LOGGED)]
}

pin_project! {
    /// The answer to an observed request.
    pub struct Answer<F> {
        // Until it is there.
        #[pin]
        answer: Option<F>,
        current: Option<Current>,
        method: Method,
        uri: Uri,
        begun: Instant,
    }

    impl<F> PinnedDrop for Answer<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.answer.is_some() {
                // What is given up may have something to say.
                at_work(this.current, || this.answer.set(None));
            }
        }
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Answer<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let answered = at_work(this.current, || {
            let Ok(mut response) =
                ready!(this.answer.as_mut().as_pin_mut().expect("polled until it is there").poll(cx));
            this.answer.set(None);
            let (method, path) = (beginning(this.method.as_str()), beginning(this.uri.path()));
            let took = || this.begun.elapsed();
            let status = response.status().as_u16();
            if status >= 500 {
                let withheld = response.extensions_mut().remove::<Withheld>();
                let reason = withheld.map_or_else(String::new, |Withheld(text)| format!(": {text}"));
                error!(target: "requests", method, path, status, took = ?took(), "{method} {path}: {status}{reason}");
            } else {
                debug!(target: "requests", method, path, status, took = ?took(), "{method} {path}: {status}");
            }
            Poll::Ready(response)
        });
        let mut response = ready!(answered);
        if let Some(current) = this.current.take() {
            response.headers_mut().insert(X_REQUEST_ID, current.id);
        }
        Poll::Ready(Ok(response))
    }
}
