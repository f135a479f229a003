//! What is known of each request: its id, its span in the log, its outcome.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument, debug, error, error_span};

use crate::problem;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Makes request ids: when this process began, in hexadecimal nanoseconds since 1970, and the request's number in it.
#[derive(Clone, Debug)]
pub struct Ids(Arc<(String, AtomicU64)>);

impl Default for Ids {
    fn default() -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(Arc::new((format!("{:x}-", began.as_nanos()), AtomicU64::new(1))))
    }
}

impl Ids {
    fn next(&self) -> HeaderValue {
        let (process, number) = &*self.0;
        let id = format!("{process}{}", number.fetch_add(1, Relaxed));
        // Cannot fail: digits and a dash.
        HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("-"))
    }
}

/// Gives every request an id, the client's own or a new one: it is in each log line of the request, in the request's
/// and in the answer's `x-request-id`. Logs the outcome, and lets no error out that is not a problem document.
pub async fn observe(State(ids): State<Ids>, mut request: Request, next: Next) -> Response {
    let id = request.headers_mut().entry(X_REQUEST_ID).or_insert_with(|| ids.next()).clone();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let span = error_span!("request", request_id = %id.to_str().unwrap_or("-"));
    let begun = Instant::now();
    let observed = async {
        let response = problem::document(next.run(request).await);
        let (path, status, took) = (uri.path(), response.status().as_u16(), begun.elapsed());
        if status >= 500 {
            error!(target: "requests", %method, path, status, ?took, "failed");
        } else {
            debug!(target: "requests", %method, path, status, ?took, "answered");
        }
        response
    };
    let mut response = observed.instrument(span).await;
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}
