//! Whose fault it is that there is no answer, and what is said of that.

use std::future::pending;

use axum::body::Body;
use futures_util::future::poll_immediate;
use futures_util::stream;
use tower::{ServiceExt, service_fn};

use super::super::upload::Watched;
use super::*;

/// What has come of the request's body.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Came {
    /// It has none.
    All,
    /// The handler does not wait for it.
    Some,
    /// The handler waits for it.
    Awaited,
    /// The handler was told that it does not come.
    TooLate,
}

#[tokio::test]
async fn an_answer_that_is_missing_or_bad_is_put_down_to_whom_it_was_waited_for() {
    for (came, answer, expected) in [
        (Came::All, Some(200), 200),
        (Came::All, None, 503),
        (Came::Some, Some(404), 404),
        (Came::Some, Some(500), 500),
        (Came::Some, None, 503),
        (Came::Awaited, Some(200), 200),
        (Came::Awaited, Some(400), 400),
        (Came::Awaited, None, 408),
        (Came::TooLate, Some(200), 200),
        (Came::TooLate, Some(303), 303),
        (Came::TooLate, Some(400), 408),
        (Came::TooLate, Some(500), 408),
    ] {
        let upload = Upload::default();
        let stream = stream::pending::<Result<&str, axum::Error>>();
        let mut body = std::pin::pin!(Watched::new(Body::from_stream(stream), upload.clone()));
        if matches!(came, Came::Awaited | Came::TooLate) {
            let part = std::future::poll_fn(|cx| http_body::Body::poll_frame(body.as_mut(), cx));
            assert!(poll_immediate(part).await.is_none());
        }
        if came == Came::TooLate {
            upload.give_up();
        }
        let mut request = Request::new(Body::empty());
        if came != Came::All {
            request.extensions_mut().insert(upload);
        }
        let handler = service_fn(async |_: Request| match answer {
            Some(status) => Ok(StatusCode::from_u16(status).unwrap().into_response()),
            None => pending().await,
        });
        let answered = RequestTimeout::new(Duration::from_millis(10)).layer(handler).oneshot(request);
        assert_eq!(answered.await.unwrap().status().as_u16(), expected, "{came:?} {answer:?}");
    }
}
