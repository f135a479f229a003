//! Whom and what a request is for, and how its body was encoded to be transferred: those that do not say so, or say two
//! things, are refused (RFC 9112, sections 3.2 and 6.1; RFC 9113, section 8.3.1). A cache or a proxy in front may have
//! understood them otherwise.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::Ipv6Addr;
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::http::uri::Scheme;
use axum::http::{HeaderValue, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use tokio_util::either::Either;
use tower::{Layer, Service};

use crate::problem::Problem;
use hitless::Fragment;

/// Refuses requests whose host, target or transfer coding is unclear with 400. For the others, `Host` is the host of the
/// request's target where there are both; in HTTP/2 there may be no `Host`.
#[derive(Clone, Copy, Debug)]
pub struct Check;

impl<S> Layer<S> for Check {
    type Service = Checked<S>;

    fn layer(&self, inner: S) -> Checked<S> {
        Checked(inner)
    }
}

/// A service whose requests are clear.
#[derive(Clone, Debug)]
pub struct Checked<S>(S);

impl<S> Service<Request> for Checked<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        match understood(&request).and_then(|()| settle(&mut request)) {
            Ok(()) => Either::Right(self.0.call(request)),
            Err(fault) => Either::Left(ready(Ok(Problem::new(StatusCode::BAD_REQUEST, fault).into_response()))),
        }
    }
}

/// Refuses a target of which hyper has dropped a part, and what has been encoded more than once, or otherwise than hyper
/// decodes it: handlers would take the code for the body.
fn understood(request: &Request) -> Result<(), &'static str> {
    if request.extensions().get::<Fragment>().is_some() {
        return Err("there is a fragment in the target");
    }
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    let chunked = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if chunked && codings.next().is_none() { Ok(()) } else { Err("Transfer-Encoding is not \"chunked\"") }
}

/// Settles whom a request is for, or says why that cannot be.
fn settle(request: &mut Request) -> Result<(), &'static str> {
    let version = request.version();
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err("there is more than one Host");
    }
    if host.is_none() && version == Version::HTTP_11 {
        return Err("there is no Host");
    }
    if host.is_none() && version > Version::HTTP_11 && request.uri().authority().is_none() {
        return Err("there is neither :authority nor Host");
    }
    let place = host.map(|host| Place::of(host.as_bytes()).ok_or("Host is neither HOST nor HOST:PORT")).transpose()?;

    let Some(authority) = request.uri().authority() else { return Ok(()) };
    let target = Place::of(authority.as_str().as_bytes()).ok_or("the target is at neither HOST nor HOST:PORT")?;
    let default_port = if request.uri().scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    if place.is_some_and(|place| !place.is(&target, default_port)) {
        if version > Version::HTTP_11 {
            return Err("Host and :authority differ");
        }
        // HTTP/1.1 has the target win (RFC 9112, section 3.2.2), for whoever asks afterwards. What is a place is a header.
        let host = HeaderValue::from_str(authority.as_str()).unwrap_or(HeaderValue::from_static(""));
        request.headers_mut().insert(header::HOST, host);
    }
    Ok(())
}

/// `uri-host [ ":" port ]` (RFC 9110, section 7.2; RFC 3986, section 3.2.2). The host may be empty, and so may be the port.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    host: &'a [u8],
    port: Option<u16>,
}

impl<'a> Place<'a> {
    fn of(text: &'a [u8]) -> Option<Self> {
        let is_literal = text.first() == Some(&b'[');
        let end = if is_literal { text.iter().position(|byte| *byte == b']')? + 1 } else { name_end(text) };
        let (host, port) = text.split_at(end);
        let is_good = !is_literal || is_ipv6(&host[1..end - 1]);
        let port = match port {
            [] | [b':'] => None,
            [b':', digits @ ..] => Some(number(digits)?),
            _ => return None,
        };
        is_good.then_some(Self { host, port })
    }

    fn is(&self, other: &Self, default_port: u16) -> bool {
        let [own, others] = [self, other].map(|place| place.port.unwrap_or(default_port));
        self.host.eq_ignore_ascii_case(other.host) && own == others
    }
}

fn number(digits: &[u8]) -> Option<u16> {
    let place = |number: u16, digit: &u8| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    };
    digits.iter().try_fold(0, place)
}

fn is_ipv6(text: &[u8]) -> bool {
    str::from_utf8(text).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// Where a registered name ends, which IPv4 addresses are among.
fn name_end(text: &[u8]) -> usize {
    let mut end = 0;
    loop {
        let rest = &text[end..];
        end += rest.iter().position(|byte| !IN_NAMES[usize::from(*byte)]).unwrap_or(rest.len());
        match &text[end..] {
            [b'%', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => end += 3,
            _ => return end,
        }
    }
}

/// What a registered name has beside percent-encoded bytes.
const IN_NAMES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut marks: &[u8] = b"-._~!$&'()*+,;=";
    while let [mark, rest @ ..] = marks {
        table[*mark as usize] = true;
        marks = rest;
    }
    table
};

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/strict.rs"]
mod tests;
