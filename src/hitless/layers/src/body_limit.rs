//! One limit on every request's body, whoever reads it: axum's own, of 2 MB, is for its extractors alone.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::extract::{DefaultBodyLimit, Request};
use axum::response::Response;
use tokio_util::either::Either;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_http::ServiceBuilderExt;
use tower_http::limit::RequestBodyLimitLayer;

/// Refuses a longer body with 413 (Content Too Large): at once where its length is announced, else whoever reads it gets an
/// error in place of what is too much.
///
/// Most requests have no body, or one of announced length, of which hyper gives no more than that. They do not take the way
/// through tower-http's layer, which boxes the body of the request and of the answer.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimit(usize);

impl BodyLimit {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(bytes)
    }
}

impl<S> Layer<S> for BodyLimit {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner, most: self.0 }
    }
}

/// A service whose requests' bodies are limited.
#[derive(Clone, Debug)]
pub struct Limited<S> {
    inner: S,
    most: usize,
}

impl<S> Service<Request> for Limited<S>
where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let longest = request.body().size_hint().upper();
        if longest != Some(0) {
            DefaultBodyLimit::disable().apply(&mut request);
        }
        if longest.is_some_and(|longest| longest <= self.most as u64) {
            return Either::Right(self.inner.call(request));
        }
        let limited = ServiceBuilder::new()
            .map_response(|response: Response<_>| response.map(Body::new))
            .layer(RequestBodyLimitLayer::new(self.most))
            .map_request_body(Body::new)
            .service(self.inner.clone());
        Either::Left(Box::pin(limited.oneshot(request)))
    }
}
