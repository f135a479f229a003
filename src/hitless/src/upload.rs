//! A request's body on its way from the client.
//!
//! Who waits for its own client is told apart from a handler at work: such a request holds nobody else up at a restart,
//! and ends when the client pauses for too long.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;

use super::held::PART;

/// What is known of a request's body. Requests that have one carry it as an extension.
#[derive(Clone, Debug, Default)]
pub(super) struct Upload(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Since when the handler waits for bytes that the client has not sent.
    awaited: Option<Instant>,
    /// The handler's task, while it waits.
    waker: Option<Waker>,
    /// The client has paused for too long.
    given_up: bool,
    /// The handler has let go of the body before its end.
    abandoned: bool,
    /// The handler has let go of the body.
    dropped: bool,
    /// The client has broken it off.
    broken: bool,
    /// How much of the body the handler has got, as [`PART`] counts it.
    taken: usize,
}

impl Upload {
    /// Since when the handler waits for the client.
    pub(super) fn awaited(&self) -> Option<Instant> {
        self.lock().awaited
    }

    /// Whether the handler has let go of the body before its end.
    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().abandoned
    }

    /// Whether somebody makes something of the body who has not got all of it, and perhaps never will.
    pub(super) fn is_wanting(&self) -> bool {
        let state = self.lock();
        !state.dropped || state.broken || state.given_up
    }

    /// How much is held of the body, of which so much was received.
    pub(super) fn held(&self, received: usize) -> usize {
        let state = self.lock();
        if state.awaited.is_some() || state.abandoned { 0 } else { received.saturating_sub(state.taken) }
    }

    /// Ends the body with an error.
    pub(super) fn give_up(&self) {
        self.lock().given_up = true;
        Arc::clone(&self.0).wake();
    }

    /// Whether the client has paused for too long.
    pub(super) fn is_given_up(&self) -> bool {
        self.lock().given_up
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each step of the state is one assignment, so a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something has arrived: from now on it is the handler that has to look at it, and not the client that is waited for.
impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        let mut state = self.lock();
        state.awaited = None;
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// What a handler that reads the body of a client that pauses for too long is told.
#[derive(Debug)]
struct TooSlow;

impl std::fmt::Display for TooSlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(TOO_SLOW)
    }
}

impl std::error::Error for TooSlow {}

/// What is wrong with a client that pauses for too long.
pub(super) const TOO_SLOW: &str = "the request's body did not arrive in the time allowed";

pin_project! {
    /// A request's body that tells when its handler waits for the client.
    pub(super) struct Watched {
        #[pin]
        body: Body,
        upload: Upload,
        ended: bool,
    }

    impl PinnedDrop for Watched {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            let mut state = this.upload.lock();
            state.awaited = None;
            state.dropped = true;
            state.abandoned = state.given_up || (!*this.ended && !http_body::Body::is_end_stream(&*this.body));
        }
    }
}

impl Watched {
    pub(super) fn new(body: Body, upload: Upload) -> Self {
        Self { body, upload, ended: false }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.project();
        if *this.ended {
            // Some read on after an error, until there is nothing more.
            return Poll::Ready(None);
        }
        if this.upload.is_given_up() {
            *this.ended = true;
            return Poll::Ready(Some(Err(axum::Error::new(TooSlow))));
        }
        this.upload.lock().waker = Some(cx.waker().clone());
        let arrival = Waker::from(Arc::clone(&this.upload.0));
        let frame = this.body.poll_frame(&mut Context::from_waker(&arrival));
        let mut state = this.upload.lock();
        match &frame {
            // Unless it has arrived meanwhile, which has taken the waker.
            Poll::Pending if state.waker.is_some() => _ = state.awaited.get_or_insert_with(Instant::now),
            Poll::Pending => {}
            Poll::Ready(frame) => {
                state.awaited = None;
                if let Some(Ok(frame)) = frame {
                    state.taken += frame.data_ref().map_or(0, |data| data.len() + PART);
                }
                state.broken |= matches!(frame, Some(Err(_)));
                *this.ended = !matches!(frame, Some(Ok(_)));
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
