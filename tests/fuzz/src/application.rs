//! What is served here: a path for each kind of answer. An answer tells all that was heard of its request.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::task::Waker;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::hitless::process::Tasks;

/// A path for each kind of answer; any other has the kind of `/`.
pub const PATHS: [&str; 12] =
    ["/", EARLY, "/slow", "/204", "/304", "/500", "/chunked", "/trailers", "/sized", "/broken", "/close", "/upgrade"];

/// Is answered before its body was read.
pub const EARLY: &str = "/early";

pub async fn answer(tasks: Tasks, mut request: Request) -> Result<Response, Infallible> {
    let upgrade = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let mut heard = format!("{} {} {:?} ", head.method, head.uri, head.headers);
    let mut whole = true;
    let path = head.uri.path();
    if path != EARLY {
        match body.collect().await {
            Ok(body) => heard += &format!("{:?} {:?}", body.trailers().cloned(), body.to_bytes()),
            Err(_) => whole = false,
        }
    }
    let with = |status, field: Option<(HeaderName, HeaderValue)>, body| {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().extend(field);
        response
    };
    let ok = StatusCode::OK;
    let length = HeaderValue::from(heard.len());
    Ok(match (path, upgrade) {
        ("/slow", _) => {
            pause().await;
            with(ok, None, heard.into())
        }
        ("/204", _) => with(StatusCode::NO_CONTENT, None, Body::empty()),
        ("/304", _) => with(StatusCode::NOT_MODIFIED, None, Body::empty()),
        ("/500", _) => with(StatusCode::INTERNAL_SERVER_ERROR, None, heard.into()),
        ("/chunked", _) => with(ok, None, in_parts(heard, None)),
        ("/trailers", _) => with(ok, None, in_parts(heard, Some(Ok(HeaderMap::from_iter([(header::ETAG, length)]))))),
        ("/broken", _) => with(ok, None, in_parts(heard, Some(Err("broken")))),
        // The length stands in a header alone.
        ("/sized", _) => with(ok, Some((header::CONTENT_LENGTH, length)), in_parts(heard, None)),
        ("/close", _) => with(ok, Some((header::CONNECTION, HeaderValue::from_static("close"))), heard.into()),
        ("/upgrade", Some(upgrade)) if whole => {
            tasks.spawn(send_back(upgrade));
            let field = (header::UPGRADE, HeaderValue::from_static("echo"));
            with(StatusCode::SWITCHING_PROTOCOLS, Some(field), Body::empty())
        }
        _ => with(ok, None, heard.into()),
    })
}

/// `text` in two parts, a step apart, and what follows it.
fn in_parts(text: String, last: Option<Result<HeaderMap, &'static str>>) -> Body {
    let mut text = Bytes::from(text);
    let first = text.split_to(text.len() / 2);
    let mut frames = vec![Ok(Frame::data(first)), Ok(Frame::data(text))];
    frames.extend(last.map(|last| last.map(Frame::trailers)));
    Body::new(StreamBody::new(stream::unfold(frames.into_iter(), |mut frames| async {
        let frame = frames.next()?;
        if frames.len() > 0 {
            pause().await;
        }
        Some((frame, frames))
    })))
}

/// A protocol of its own: whatever comes is sent back.
async fn send_back(upgrade: OnUpgrade) {
    if let Ok(upgraded) = upgrade.await {
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    }
}

thread_local! {
    static STEP: Cell<u64> = const { Cell::new(0) };
    static PAUSING: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// Lets a step pass. Says whether somebody had waited for it.
pub fn step() -> bool {
    STEP.set(STEP.get() + 1);
    let pausing = PAUSING.take();
    let waited = !pausing.is_empty();
    pausing.into_iter().for_each(Waker::wake);
    waited
}

/// Waits for the next step.
async fn pause() {
    #[cfg(feature = "shuttle")]
    return world::time::sleep(Default::default()).await;
    #[cfg(not(feature = "shuttle"))]
    {
        let begun = STEP.get();
        use std::task::Poll;
        std::future::poll_fn(|cx| {
            if STEP.get() > begun {
                return Poll::Ready(());
            }
            PAUSING.with_borrow_mut(|pausing| pausing.push(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}
