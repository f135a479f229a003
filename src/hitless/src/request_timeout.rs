//! The layer that bounds the time until a request's answer begins.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::{Layer, Service};

use super::upload::{TOO_SLOW, Upload};

/// A layer that bounds the time until a request's answer begins.
///
/// Beyond it the answer is 503 (Service Unavailable), or 408 (Request Timeout) where the handler waits for the rest of the
/// request; a client that pauses for longer than `limits.body_timeout` gets that sooner (RFC 9110, section 15.5.9).
#[derive(Clone, Copy, Debug)]
pub struct RequestTimeout(Duration);

impl RequestTimeout {
    /// A layer that gives requests this long.
    pub fn new(timeout: Duration) -> Self {
        Self(timeout)
    }
}

impl<S> Layer<S> for RequestTimeout {
    type Service = Timely<S>;

    fn layer(&self, inner: S) -> Timely<S> {
        Timely { inner, timeout: self.0 }
    }
}

/// A service whose answers begin in time.
#[derive(Clone, Debug)]
pub struct Timely<S> {
    inner: S,
    timeout: Duration,
}

impl<S> Service<Request> for Timely<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = TimelyAnswer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let upload = request.extensions().get::<Upload>().cloned();
        TimelyAnswer { answer: self.inner.call(request), timeout: self.timeout, limit: None, upload }
    }
}

pin_project! {
    /// An answer that begins in time.
    pub struct TimelyAnswer<F> {
        #[pin]
        answer: F,
        timeout: Duration,
        // From the first time that the answer has to be waited for: most are there at once.
        #[pin]
        limit: Option<Sleep>,
        upload: Option<Upload>,
    }
}

impl<F> Future for TimelyAnswer<F>
where
    F: Future<Output = Result<Response, Infallible>>,
{
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let too_slow = || Ok((StatusCode::REQUEST_TIMEOUT, TOO_SLOW).into_response());
        if let Poll::Ready(Ok(response)) = this.answer.poll(cx) {
            let status = response.status();
            let failed = status.is_client_error() || status.is_server_error();
            // Whatever the handler made of the broken body: that is the reason.
            let broken = failed && this.upload.as_ref().is_some_and(Upload::is_given_up);
            return Poll::Ready(if broken { too_slow() } else { Ok(response) });
        }
        if this.limit.is_none() {
            this.limit.set(Some(tokio::time::sleep(*this.timeout)));
        }
        if let Some(limit) = this.limit.as_pin_mut() {
            ready!(limit.poll(cx));
        }
        let waits = this.upload.as_ref().is_some_and(|upload| upload.awaited().is_some());
        Poll::Ready(if waits { too_slow() } else { Ok(StatusCode::SERVICE_UNAVAILABLE.into_response()) })
    }
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/request_timeout.rs"]
mod tests;
