//! The layer around the whole application that tells each connection when a request begins and when its answer ends.
//!
//! It also announces the end of a connection that this process is about to close, and turns away clients over the
//! limit. It adds no box of its own but the one around the body that tells its end.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::Service;

use super::connection::{Connection, Peer, RequestGuard, says_close};
use super::held::{SMALL, Unread};

/// In an answer's extensions: nobody is to be told of it, although it is a failure by its status, for that is what was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Expected;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What can be served: a router, or layers around one.
pub trait Application:
    Service<Request, Response = Response, Error = Infallible, Future: Send + 'static> + Clone + Send + 'static
{
}

impl<S> Application for S where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send + 'static> + Clone + Send + 'static
{
}

/// A service whose requests and answers are entered with their connection.
#[derive(Clone, Debug)]
pub struct Track<S>(pub(super) S);

impl<S> Service<Request> for Track<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let head = *request.method() == Method::HEAD;
        let connect = *request.method() == Method::CONNECT;
        let version = request.version();
        let connection = request.extensions().get::<ConnectInfo<Connection>>().cloned();
        // Libraries know a client by its address, and so do handlers that were there before this crate.
        if let Some(Peer::Tcp(address)) = connection.as_ref().map(|ConnectInfo(connection)| connection.peer()) {
            request.extensions_mut().insert(ConnectInfo(address));
        }
        let guard = connection.map(|ConnectInfo(connection)| connection.dispatched(&mut request));
        let turned_away = guard.as_ref().is_some_and(RequestGuard::is_turned_away);
        let answer = if turned_away { None } else { Some(self.0.call(request)) };
        Answering { answer, guard, head, connect, version }
    }
}

pin_project! {
    /// A request that is being answered; `None` turns it away.
    pub struct Answering<F> {
        #[pin]
        answer: Option<F>,
        guard: Option<RequestGuard>,
        head: bool,
        connect: bool,
        version: Version,
    }
}

impl<F> Future for Answering<F>
where
    F: Future<Output = Result<Response, Infallible>>,
{
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.answer.as_pin_mut() {
            Some(answer) => match ready!(answer.poll(cx)) {
                Ok(response) => response,
                Err(never) => match never {},
            },
            None => this.guard.as_ref().map(turned_away).unwrap_or_default(),
        };
        let Some(guard) = this.guard.take() else { return Poll::Ready(Ok(response)) };

        let status = response.status();
        let last = says_close(response.headers());
        let upgrade = status == StatusCode::SWITCHING_PROTOCOLS || (*this.connect && status.is_success());
        // On a drained host a balancer is told so all the time, which is nobody's failure.
        let failed =
            status.is_server_error() && !(guard.is_drained() && response.extensions().get::<Expected>().is_some());
        if guard.answering(failed, last, upgrade) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            // Otherwise hyper adds `keep-alive` where an HTTP/1.0 client has asked for it.
            *response.version_mut() = *this.version;
        }
        let bodiless = *this.head || status.is_informational() || matches!(status.as_u16(), 204 | 304);
        // hyper goes by the header where the body does not know its length (files, proxied answers).
        let announced = || response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        let known = http_body::Body::size_hint(response.body()).exact();
        // What is whole already does not fail.
        let id = if known.is_none() { response.headers().get(X_REQUEST_ID).cloned() } else { None };
        let left = if bodiless { Some(0) } else { known.or_else(announced) };
        Poll::Ready(Ok(response.map(|body| Body::new(Answer { body, guard, id, left, unread: None }))))
    }
}

fn turned_away(guard: &RequestGuard) -> Response {
    let (status, detail, id) = guard.turn_away();
    let title = status.canonical_reason().unwrap_or("Error");
    let body = format!("{{\"title\":\"{title}\",\"status\":{},\"detail\":\"{detail}\"}}\n", status.as_u16());
    let headers =
        [(header::CONTENT_TYPE, "application/problem+json"), (header::CONNECTION, "close"), (X_REQUEST_ID, &id)];
    let mut response = (status, headers, body).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

pin_project! {
    /// A response's body that enters its own end.
    struct Answer {
        #[pin]
        body: Body,
        guard: RequestGuard,
        // What the log calls the request.
        id: Option<HeaderValue>,
        // The bytes still to come, where that is known. hyper drops a body after the last of them.
        left: Option<u64>,
        // What hyper has and the client has not, unless that is a small answer at once.
        unread: Option<Unread>,
    }

    impl PinnedDrop for Answer {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if *this.left == Some(0) || http_body::Body::is_end_stream(&*this.body) {
                this.guard.answered();
            }
        }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut this = self.project();
        if let Some(unread) = &this.unread {
            ready!(unread.poll_ready(cx));
        }
        let polled = catch_unwind(AssertUnwindSafe(|| this.body.as_mut().poll_frame(cx)));
        let mut frame = ready!(polled.unwrap_or_else(|_| Poll::Ready(Some(Err(axum::Error::new("it panicked"))))));
        if let Some(Ok(part)) = &mut frame
            && let Some(data) = part.data_mut()
            && (data.len() > SMALL || *this.left != Some(data.len() as u64))
        {
            let unread = this.unread.get_or_insert_with(|| Unread::new(this.guard.connection()));
            *data = unread.count(std::mem::take(data));
        }
        match &frame {
            Some(Ok(frame)) => match (frame.data_ref(), &mut *this.left) {
                (Some(data), Some(left)) => *left = left.saturating_sub(data.len() as u64),
                (Some(_), None) => {}
                // Nothing follows trailers, and nobody asks whether something does.
                (None, left) => *left = Some(0),
            },
            // Its head has left, so that nobody else gets to know.
            Some(Err(error)) => this.guard.broke_off(this.id.as_ref(), error),
            None => this.guard.answered(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
