//! The trace that a request belongs to, through all the services that have to do with it (W3C Trace Context): taken from
//! `traceparent`, written into the log, and taken along to whom a handler asks in turn.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hasher};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use hitless::request_id;

use crate::requests::X_REQUEST_ID;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace of a request. A handler that asks for it takes it along to other services: `.headers(trace.headers())`.
#[derive(Clone, Debug)]
pub struct Trace {
    id: String,
    sampled: bool,
    states: Vec<HeaderValue>,
}

impl Trace {
    /// The trace's id: 32 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The headers for one request to another service, which is thereby part of the same trace.
    pub fn headers(&self) -> HeaderMap {
        // The second half of an id is 16 hexadecimal digits, and nobody else's.
        let call = request_id();
        let call = call.to_str().unwrap_or_default().rsplit('-').next().unwrap_or_default();
        let parent = format!("00-{}-{call}-{:02x}", self.id, u8::from(self.sampled));
        // Cannot fail: digits and dashes make a header.
        let parent = HeaderValue::try_from(parent).map(|parent| (TRACEPARENT.clone(), parent));
        parent.into_iter().chain(self.states.iter().map(|state| (TRACESTATE.clone(), state.clone()))).collect()
    }
}

impl<S: Sync> FromRequestParts<S> for Trace {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(match parent(&parts.headers).and_then(|parent| understood(&parent)) {
            Some((id, sampled)) => {
                Self { id, sampled, states: parts.headers.get_all(&TRACESTATE).iter().cloned().collect() }
            }
            None => {
                let id = parts.headers.get(X_REQUEST_ID).map_or_else(|| own(&request_id()), own);
                Self { id, sampled: true, states: Vec::new() }
            }
        })
    }
}

/// What the headers of a request say of its trace, unless they say two things.
pub(crate) fn parent(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut parents = headers.get_all(&TRACEPARENT).iter();
    parents.next().filter(|_| parents.next().is_none()).cloned()
}

/// The id of the trace of a request with these headers: the one that it came with, or one that begins with it.
pub(crate) fn id(parent: Option<&HeaderValue>, request_id: &HeaderValue) -> String {
    parent.and_then(understood).map_or_else(|| own(request_id), |(id, _)| id)
}

/// The trace's id, and whether it is recorded, as `traceparent` has them: `00-ID-CALL-FLAGS`, and more in later versions.
fn understood(parent: &HeaderValue) -> Option<(String, bool)> {
    let parts: Vec<&str> = parent.to_str().ok()?.splitn(5, '-').collect();
    let [version, id, call, flags, ref more @ ..] = *parts else { return None };
    let is_version = is_hex(version, 2) && version != "ff" && (version != "00" || more.is_empty());
    let is_good = is_version && is_id(id, 32) && is_id(call, 16) && is_hex(flags, 2);
    let flags = u8::from_str_radix(flags, 16).ok().filter(|_| is_good)?;
    Some((id.to_owned(), flags & 1 == 1))
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| b"0123456789abcdef".contains(&byte))
}

/// Zeros alone are no id.
fn is_id(text: &str, length: usize) -> bool {
    is_hex(text, length) && text.bytes().any(|byte| byte != b'0')
}

/// The id of the trace that begins with this request: its own, where that will do.
fn own(request_id: &HeaderValue) -> String {
    let digits = request_id.to_str().unwrap_or_default().replace('-', "");
    if is_id(&digits, 32) {
        return digits;
    }
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(salt);
        hasher.write(request_id.as_bytes());
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(0), half(1))
}
