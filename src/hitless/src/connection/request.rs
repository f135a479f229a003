//! The requests in flight of a connection.

use std::error::Error;
use std::iter;
use std::time::Instant;

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};

use super::{Connection, Protocol, Shared, Upgrade};
use crate::connections::{Cut, Mode};
use crate::held::REQUEST;
use crate::ledger::Body;
use crate::notice::Kind;
use crate::upload::{Upload, Watched};

/// What a request of HTTP/1.1 carries as an extension whose target has a fragment: hyper has dropped that, and a proxy in
/// front may have taken it for a part of the path.
#[derive(Clone, Copy, Debug)]
pub struct Fragment;

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Handling,
    /// The application's answer has begun, and goes on as long as it goes on.
    Answering,
    /// The application's answer has ended. In HTTP/2 it may not have left.
    Answered,
}

/// What is wrong with a request of more than [`max_head_bytes`](crate::connections::Limits::max_head_bytes).
pub(super) const HEAD_TOO_LARGE: &str = "the request's head is too large";

/// How much of the path of a request that is cut off is told, in bytes.
const PATH: usize = 256;

/// A request in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) number: u64,
    pub(super) since: Instant,
    pub(super) progress: Progress,
    /// When its answer began, if the service was about to leave by then.
    pub(super) answering_since: Option<Instant>,
    /// The request's body, if it has one that has not arrived yet.
    pub(super) upload: Option<Upload>,
    /// In HTTP/2: its stream was turned into a WebSocket and the like.
    pub(super) upgrade: Option<Upgrade>,
    /// Its stream of HTTP/2.
    pub(super) stream: Option<u32>,
    pub(super) method: Method,
    pub(super) uri: Uri,
}

impl Connection {
    /// Records that hyper handed a request to the application. From then on its body tells when it is waited for.
    pub(crate) fn dispatched(&self, request: &mut axum::extract::Request) -> RequestGuard {
        use http_body::Body as _;
        let upload = (!request.body().is_end_stream()).then(Upload::default);
        let mut state = self.lock();
        let http1 = request.version() <= Version::HTTP_11;
        // Where it was read with the request before, nobody has looked at its length yet.
        let too_large = http1 && state.ledger.head_bytes() > self.0.connections.limits().max_head_bytes;
        let mut stream = None;
        if !http1 {
            state.protocol = Protocol::Http2;
            state.ledger.lose();
            stream = state.frames.dispatched();
        } else {
            if state.ledger.has_fragment() {
                request.extensions_mut().insert(Fragment);
            }
            // hyper's own reading of the head, so that there are no two opinions on where the request ends.
            let length = request.body().size_hint().exact();
            state.ledger.dispatched(length.map_or(Body::Chunked, Body::Length));
            // Such a client waits for the end of file.
            state.last |= state.half_closed || request.version() < Version::HTTP_11 || says_close(request.headers());
        }
        self.0.connections.take_in(REQUEST);
        state.dispatched += 1;
        let number = state.dispatched;
        state.requests.push(InFlight {
            number,
            since: Instant::now(),
            progress: Progress::Handling,
            answering_since: None,
            upload: upload.clone(),
            upgrade: None,
            stream,
            method: request.method().clone(),
            uri: request.uri().clone(),
        });
        state.read_again();
        drop(state);
        if let Some(upload) = &upload {
            let body = std::mem::take(request.body_mut());
            *request.body_mut() = axum::body::Body::new(Watched::new(body, upload.clone()));
            request.extensions_mut().insert(upload.clone());
        }
        RequestGuard { connection: self.clone(), number, http1, too_large, answered: false, upload }
    }

    /// The number of requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().requests.len()
    }

    /// What is lost when the connection is cut now.
    pub(crate) fn cut(&self) -> Vec<Cut> {
        let state = self.lock();
        let peer = self.peer();
        if state.requests.is_empty() {
            return vec![Cut { peer, request: None, age: state.since.elapsed(), at_work: false }];
        }
        let cut = |request: &InFlight| Cut {
            peer,
            request: Some((request.method.clone(), beginning(request.uri.path()).to_owned())),
            age: request.since.elapsed(),
            at_work: request.is_at_work(),
        };
        state.requests.iter().map(cut).collect()
    }
}

/// As much of a path as is told. Clients choose them, kilobytes of them.
fn beginning(path: &str) -> &str {
    &path[..path.floor_char_boundary(PATH)]
}

/// Whether a message announces the end of its connection (RFC 9110, section 7.6.1).
pub(crate) fn says_close(headers: &HeaderMap) -> bool {
    let mut options = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    options.any(|options| options.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")))
}

/// A request's entry among those in flight, until it is answered. Dropped before, it stands for an answer that was
/// given up.
#[derive(Debug)]
pub(crate) struct RequestGuard {
    connection: Connection,
    number: u64,
    http1: bool,
    /// Its head is longer than it may be.
    too_large: bool,
    answered: bool,
    upload: Option<Upload>,
}

impl RequestGuard {
    /// Records that the answer's head is ready, and says whether it has to announce the end of the connection.
    ///
    /// `failed`: the service is to blame for what it says. `last`: the application ends the connection with this answer.
    /// `upgrade`: it turns it into something else.
    pub(crate) fn answering(&self, failed: bool, last: bool, upgrade: bool) -> bool {
        let connections = &self.connection.0.connections;
        connections.count(failed);
        let unread = self.upload.as_ref().is_some_and(Upload::is_abandoned);
        let leaves = connections.mode() != Mode::Serving;
        let upgrade = upgrade.then_some(if leaves { Upgrade::Late } else { Upgrade::Early });
        let mut state = self.connection.lock();
        if let Some(request) = state.requests.iter_mut().find(|request| request.number == self.number) {
            request.progress = Progress::Answering;
            request.answering_since = leaves.then(Instant::now);
            request.upgrade = upgrade.filter(|_| !self.http1);
        }
        if let Some(upgrade) = upgrade.filter(|_| self.http1) {
            state.protocol = Protocol::Upgraded(upgrade);
        }
        if !self.http1 || upgrade.is_some() {
            state.ledger.lose();
            state.read_again();
            return false;
        }
        // In the second case hyper will close the connection, because the request's body was not read.
        state.last |= last || (unread && !state.ledger.answer_due());
        // What cannot be handed over ends now, with notice, rather than at a restart, without.
        state.last |= match connections.mode() {
            Mode::Serving | Mode::HandingOver if !connections.is_drained() => state.is_never_at_boundary(),
            _ => {
                connections.count_retired();
                true
            }
        };
        state.last
    }

    pub(crate) fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// Whether the operator has drained this host.
    pub(crate) fn is_drained(&self) -> bool {
        self.connection.0.connections.is_drained()
    }

    /// Whether no handler is to see the request: its head is too large, or its connection stays over the limit.
    pub(crate) fn is_turned_away(&self) -> bool {
        self.too_large || self.connection.is_turned_away()
    }

    /// Notes that the request is turned away; gives the answer's status, what is wrong, and the id.
    pub(crate) fn turn_away(&self) -> (StatusCode, &'static str, String) {
        let (kind, status, detail) = if self.too_large {
            (Kind::HeadTooLarge, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, HEAD_TOO_LARGE)
        } else {
            (Kind::Full, StatusCode::SERVICE_UNAVAILABLE, "too many open connections")
        };
        let Shared { connections, peer, .. } = &*self.connection.0;
        connections.notice(kind, *peer);
        (status, detail, connections.refusal_id())
    }

    /// Tells that the application fails to give the rest of its answer, and counts that, unless it is made of a request's body
    /// that does not come whole.
    pub(crate) fn broke_off(&self, id: Option<&HeaderValue>, error: &axum::Error) {
        if self.upload.as_ref().is_some_and(Upload::is_wanting) {
            return;
        }
        self.connection.0.connections.count_broken();
        let state = self.connection.lock();
        let Some(request) = state.requests.iter().find(|request| request.number == self.number) else { return };
        let (method, path) = (request.method.clone(), beginning(request.uri.path()).to_owned());
        drop(state);
        let mut why: Vec<_> =
            iter::successors(error.source(), |&error| error.source()).map(ToString::to_string).collect();
        // Errors of bodies say what those say that are in them.
        why.dedup();
        let why = why.join(": ");
        let request_id = id.and_then(|id| id.to_str().ok());
        tracing::error!(request_id, "{method} {path}: the answer breaks off: {why}");
    }

    /// Records that the answer has ended, whole.
    pub(crate) fn answered(&mut self) {
        if !self.answered {
            self.answered = true;
            self.finish(true);
        }
    }

    fn finish(&self, whole: bool) {
        let mut state = self.connection.lock();
        if let Some(request) = state.requests.iter_mut().find(|request| request.number == self.number) {
            request.progress = Progress::Answered;
        }
        state.forget_answered();
        state.since = Instant::now();
        if state.protocol == Protocol::Http1 {
            state.unflushed = true;
            if whole {
                state.ledger.answered();
            } else {
                state.ledger.lose();
            }
        }
        state.read_again();
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        if !self.answered {
            self.finish(false);
        }
    }
}

impl InFlight {
    /// Whether it was upgraded only to be told goodbye.
    pub(super) fn is_late(&self) -> bool {
        self.upgrade == Some(Upgrade::Late)
    }

    /// Whether a handler is at work, which does not wait for its client.
    pub(super) fn is_at_work(&self) -> bool {
        self.progress == Progress::Handling && self.upload.as_ref().is_none_or(|upload| upload.awaited().is_none())
    }
}
