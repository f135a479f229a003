//! A handler's panic is its own request's failure and nobody else's.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::problem::Problem;

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
