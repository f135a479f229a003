//! What is known of each request: its id, its span in the log, its outcome.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, MatchedPath, Request};
use axum::http::header::Entry;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::response::Response;
use axum::routing::Route;
use axum::{Extension, Router};
use pin_project_lite::pin_project;
use tower::layer::layer_fn;
use tower::{Layer, Service, service_fn};
use tracing::{Span, debug, error, error_span};

use crate::problem::Withheld;
use crate::{metrics, trace};
pub use hitless::Expected;
use hitless::request_id;

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from a client, in bytes.
const LONGEST_ID: usize = 128;

/// The target of a request's span. Its lines have another, as who wants none of them wants the id in all others. No module is
/// called so, nor begins so.
pub(crate) const SPAN: &str = "span of a request";

/// How much of a method or a path is logged, in bytes. Clients choose them, up to hundreds of kilobytes.
const LOGGED: usize = 1024;

/// Gives every request an id, the client's own ([`is_own_id`]) or a new one ([`request_id`]): it is in each log line of the
/// request, in the request's and in the answer's `x-request-id`. Logs the outcome, with what clients are not told of a failure.
#[derive(Clone, Debug)]
pub struct Observe(Routes);

impl Observe {
    /// Observes the requests of these routes.
    pub fn new(routes: &Router) -> Self {
        Self(Routes::of(routes))
    }
}

/// What finds the route of a request, when a line says it: the router once more, where each handler says how it was come by.
#[derive(Clone, Debug)]
struct Routes(Router);

impl Routes {
    fn of(routes: &Router) -> Self {
        let tell = |request: Request| {
            let route = request.extensions().get::<MatchedPath>().cloned();
            std::future::ready(Ok::<_, Infallible>((route.map(Extension), ())))
        };
        Self(routes.clone().layer(layer_fn(move |_: Route| service_fn(tell))))
    }

    /// The route: `/orders/{id}`.
    fn find(&self, method: &Method, uri: &Uri) -> Option<MatchedPath> {
        let mut request = Request::new(Body::empty());
        (*request.method_mut(), *request.uri_mut()) = (method.clone(), uri.clone());
        let found = pin!(self.0.clone().call(request)).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok(mut found)) = found else { return None };
        found.extensions_mut().remove()
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { routes: self.0.clone(), inner }
    }
}

/// A service whose requests are observed.
#[derive(Clone, Debug)]
pub struct Observed<S> {
    routes: Routes,
    inner: S,
}

impl<S> Service<Request> for Observed<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let id = identified(request.headers_mut());
        let traceparent = trace::parent(request.headers());
        let mut current = Some(Current { id, traceparent, span: None });
        let asked = Asked {
            method: request.method().clone(),
            uri: request.uri().clone(),
            client: request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(client)| client.ip()),
            begun: Instant::now(),
            routes: self.routes.clone(),
            route: None,
        };
        let answer = at_work(&mut current, || self.inner.call(request));
        Answer { answer: Some(answer), current, asked }
    }
}

/// What was asked: what a line of the log says of it is only made when that is written.
struct Asked {
    method: Method,
    uri: Uri,
    client: Option<IpAddr>,
    begun: Instant,
    routes: Routes,
    /// What the router has found, once it has looked.
    route: Option<Option<MatchedPath>>,
}

impl Asked {
    /// Counts the request. What was refused before the router saw it has a route nevertheless.
    fn count(&mut self, status: Option<u16>) {
        let route = self.route.take().unwrap_or_else(|| self.routes.find(&self.method, &self.uri));
        metrics::count(&self.method, route, status, self.begun.elapsed());
    }
}

/// Logs how a request ended, with what else is known of it.
macro_rules! line {
    ($level:ident, $asked:expr, { $($field:tt)* }, $outcome:expr) => {{
        let Asked { method, uri, client, begun, routes, .. } = $asked;
        $level!(
            target: "requests",
            method = beginning(method.as_str()),
            path = beginning(uri.path()),
            route = routes.find(method, uri).as_ref().map(MatchedPath::as_str),
            client = client.map(tracing::field::display),
            took = ?begun.elapsed(),
            $($field)*
            "{} {}: {}", beginning(method.as_str()), beginning(uri.path()), $outcome
        );
    }};
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
    traceparent: Option<HeaderValue>,
    span: Option<Box<Span>>,
}

thread_local! {
    static CURRENT: Cell<Option<Current>> = const { Cell::new(None) };
    /// What the router has just found for it: apart, so that it is not moved to and fro.
    static FOUND: Cell<Option<Option<MatchedPath>>> = const { Cell::new(None) };
}

/// Makes the span of the request that this thread is at work for, unless there is one already: a line is to be logged, or
/// somebody asks for the span. That is [`telemetry`](crate::telemetry)'s to notice.
pub(crate) fn make_span() {
    // Making a span may ask for one: meanwhile there is no request. Nor is there one for what the end of a thread logs.
    let Ok(Some(mut current)) = CURRENT.try_with(Cell::take) else { return };
    if current.span.is_none() {
        let trace_id = trace::id(current.traceparent.as_ref(), &current.id);
        let span = error_span!(target: SPAN, "request", request_id = current.id.to_str().unwrap_or("-"), trace_id);
        span.with_subscriber(|(id, subscriber)| subscriber.enter(id));
        current.span = Some(Box::new(span));
    }
    CURRENT.set(Some(current));
}

/// What tells the route of each request that the router hands on, to who observes it.
#[derive(Clone, Debug)]
pub struct Routed(Route);

impl Routed {
    /// As a layer of a router.
    pub fn layer() -> impl Layer<Route, Service = Self> + Clone + Send + Sync + 'static {
        layer_fn(Self)
    }
}

impl Service<Request> for Routed {
    type Response = Response;
    type Error = Infallible;
    type Future = <Route as Service<Request>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        FOUND.with(|found| found.set(Some(request.extensions().get::<MatchedPath>().cloned())));
        self.0.call(request)
    }
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

/// An answer's status, and what clients are not told.
struct Outcome<'a> {
    status: u16,
    why: Option<&'a String>,
}

impl fmt::Display for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        self.why.map_or(Ok(()), |why| write!(f, ": {why}"))
    }
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
        asked: Asked,
    }

    impl<F> PinnedDrop for Answer<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.answer.is_some() {
                // What is given up may have something to say.
                at_work(this.current, || {
                    this.answer.set(None);
                    line!(debug, &*this.asked, {}, "given up before it was answered");
                });
                this.asked.count(None);
            }
        }
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Answer<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        // What another request has left is not this one's.
        FOUND.take();
        let answered = at_work(this.current, || {
            let Ok(mut response) =
                ready!(this.answer.as_mut().as_pin_mut().expect("polled until it is there").poll(cx));
            this.answer.set(None);
            let status = response.status().as_u16();
            let withheld = response.extensions_mut().remove::<Withheld>();
            let outcome = Outcome { status, why: withheld.as_ref().map(|Withheld(why)| why) };
            let bytes = response.body().size_hint().exact();
            if status >= 500 && response.extensions().get::<Expected>().is_none() {
                line!(error, &*this.asked, { status, bytes, }, outcome);
            } else {
                line!(debug, &*this.asked, { status, bytes, }, outcome);
            }
            Poll::Ready(response)
        });
        if let Some(found) = FOUND.take() {
            this.asked.route = Some(found);
        }
        let mut response = ready!(answered);
        if let Some(Current { id, .. }) = this.current.take() {
            this.asked.count(Some(response.status().as_u16()));
            response.headers_mut().insert(X_REQUEST_ID, id);
        }
        Poll::Ready(Ok(response))
    }
}
