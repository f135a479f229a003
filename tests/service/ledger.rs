//! The ledger beside the real hyper: wherever it says that a connection could go to another process, another hyper
//! that is fed the rest and what follows answers exactly as this one would have.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::header::CONNECTION;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use proptest::collection::vec;
use proptest::prelude::*;
use service::hitless::ledger::{Body, Ledger};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection's wire, and the ledger that watches it.
#[derive(Default)]
struct Wire {
    /// Sent by the client, not read yet.
    incoming: Vec<u8>,
    /// Nothing more will come.
    over: bool,
    /// What the server has written.
    answers: Vec<u8>,
    ledger: Ledger,
    /// Requests that have no whole answer yet.
    in_flight: usize,
    /// An answer has ended and was not flushed yet.
    unflushed: bool,
    closed: bool,
    reader: Option<Waker>,
}

impl Wire {
    fn is_quiet(&self) -> bool {
        self.in_flight == 0 && !self.unflushed
    }
}

#[derive(Clone, Default)]
struct Io(Arc<Mutex<Wire>>);

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.lock().unwrap();
        let count = wire.incoming.len().min(buf.remaining());
        if count == 0 && !wire.over {
            wire.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let bytes: Vec<u8> = wire.incoming.drain(..count).collect();
        wire.ledger.read(&bytes);
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut wire = self.0.lock().unwrap();
        if wire.is_quiet() {
            // hyper's own answer to what it refuses: see `Io` in src/hitless/connection.rs.
            wire.ledger.lose();
        }
        wire.answers.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().unwrap().unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().unwrap().closed = true;
        Poll::Ready(Ok(()))
    }
}

/// An answer's body that enters its own end.
struct Answer(Full<Bytes>, Io);

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let mut wire = self.1.0.lock().unwrap();
        wire.in_flight -= 1;
        wire.unflushed = true;
        wire.ledger.answered();
    }
}

/// Answers with all that it has received; on `/early` before that.
async fn tell(io: Io, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    {
        let mut wire = io.0.lock().unwrap();
        wire.in_flight += 1;
        let closes = request.headers().get_all(CONNECTION).iter().any(|value| value.as_bytes() == b"close");
        if request.version() != Version::HTTP_11 || closes {
            wire.ledger.lose();
        } else {
            let length = request.body().size_hint().exact();
            wire.ledger.dispatched(length.map_or(Body::Chunked, Body::Length));
        }
    }
    let (head, body) = request.into_parts();
    let mut heard = format!("{} {} {:?} ", head.method, head.uri, head.headers);
    if head.uri.path() != "/early" {
        match body.collect().await {
            Ok(body) => heard += &format!("{:?} {:?}", body.trailers().cloned(), body.to_bytes()),
            Err(_) => heard += "broken",
        }
    }
    Ok(Response::new(Answer(Full::new(heard.into()), io)))
}

/// Whether a task was woken.
#[derive(Default)]
struct Woken(std::sync::atomic::AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

/// A server of one connection, as axum makes it.
struct Server {
    io: Io,
    connection: Pin<Box<dyn Future<Output = ()>>>,
    ended: bool,
}

impl Server {
    fn new() -> Self {
        let io = Io::default();
        let (wire, handlers) = (TokioIo::new(io.clone()), io.clone());
        let connection = Box::pin(async move {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().auto_date_header(false);
            let _ = builder
                .serve_connection_with_upgrades(wire, service_fn(move |request| tell(handlers.clone(), request)))
                .await;
        });
        Self { io, connection, ended: false }
    }

    /// Takes what the client sends, and does all that can be done about it.
    fn feed(&mut self, bytes: &[u8], over: bool) {
        let reader = {
            let mut wire = self.io.0.lock().unwrap();
            wire.incoming.extend_from_slice(bytes);
            wire.over = over;
            wire.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        while !self.ended {
            self.ended = pin!(&mut self.connection).poll(&mut Context::from_waker(&waker)).is_ready();
            if !woken.0.swap(false, std::sync::atomic::Ordering::SeqCst) {
                break;
            }
        }
    }

    /// How much was answered so far.
    fn answered(&self) -> usize {
        self.io.0.lock().unwrap().answers.len()
    }

    /// What would travel with the connection, if it can be handed over now.
    fn rest(&self) -> Option<Vec<u8>> {
        let wire = self.io.0.lock().unwrap();
        let open = !self.ended && !wire.closed && wire.is_quiet() && wire.incoming.is_empty();
        wire.ledger.rest().filter(|_| open).map(<[u8]>::to_vec)
    }

    fn answers(&self) -> Vec<u8> {
        self.io.0.lock().unwrap().answers.clone()
    }
}

/// What hyper answers to what is no request.
const REFUSAL: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Feeds a connection in these pieces, and holds the ledger to what hyper does, wherever the client pauses.
fn hold(pieces: &[Vec<u8>]) -> Result<Server, TestCaseError> {
    let mut old = Server::new();
    let mut moments = Vec::new();
    for (number, piece) in pieces.iter().enumerate() {
        moments.extend(old.rest().map(|rest| (number, rest, old.answered())));
        old.feed(piece, false);
    }
    let clean_at_the_end = old.rest();
    let answered_at_the_end = old.answered();
    old.feed(&[], true);
    let answers = old.answers();
    moments.extend(clean_at_the_end.map(|rest| (pieces.len(), rest, answered_at_the_end)));

    // An unfinished head that cannot become a good one: hyper refuses it at its first look, or, having looked before it
    // was that bad, when it is whole. A new hyper has its first look later.
    let unfinished = moments.last().is_some_and(|(number, rest, _)| *number == pieces.len() && !rest.is_empty());
    for (number, rest, answered) in moments {
        let mut new = Server::new();
        new.feed(&rest, false);
        for piece in &pieces[number..] {
            new.feed(piece, false);
        }
        new.feed(&[], true);
        let mut others = new.answers();
        if unfinished && others.ends_with(REFUSAL) && !answers[answered..].ends_with(REFUSAL) {
            others.truncate(others.len() - REFUSAL.len());
        }
        prop_assert_eq!(
            others.escape_ascii().to_string(),
            answers[answered..].escape_ascii().to_string(),
            "handed over before piece {} with the rest {:?}",
            number,
            Text(rest)
        );
    }
    Ok(old)
}

/// Bytes that can be read in a failure's message.
#[derive(Clone)]
struct Text(Vec<u8>);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// Requests, one after the other.
fn stream(requests: Vec<Vec<u8>>) -> Text {
    Text(requests.concat())
}

/// `bytes` in pieces of these sizes, over and over.
fn split(bytes: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut sizes = sizes.iter().cycle();
    let mut left = bytes;
    let mut pieces = Vec::new();
    while !left.is_empty() {
        let (piece, rest) = left.split_at(left.len().min(*sizes.next().unwrap()));
        pieces.push(piece.to_vec());
        left = rest;
    }
    pieces
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![vec(1..4_usize, 1..6), vec(1..60_usize, 1..6), vec(20..2000_usize, 1..3)]
}

/// What may stand in a body: text that looks like heads and chunks.
fn body() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'a'), Just(b';'), any::<u8>()], 0..40)
}

/// The end of a line: hyper takes a bare LF too.
fn line_end() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just("\r\n"), 1 => Just("\n")]
}

fn chunked() -> impl Strategy<Value = Vec<u8>> {
    let extension = prop_oneof![3 => Just(""), 1 => Just(";a=b"), 1 => Just(";quoted=\"x\"")];
    let chunk = (body().prop_filter("an empty chunk is the last", |body| !body.is_empty()), extension);
    let trailers = prop_oneof![3 => Just(""), 1 => Just("A: b\r\n"), 1 => Just("A: b\r\nC: d\r\n")];
    (vec(chunk, 0..4), trailers, any::<bool>()).prop_map(|(chunks, trailers, upper)| {
        let mut bytes = Vec::new();
        for (chunk, extension) in chunks {
            let size = if upper { format!("{:X}", chunk.len()) } else { format!("0{:x}", chunk.len()) };
            bytes.extend_from_slice(format!("{size}{extension}\r\n").as_bytes());
            bytes.extend_from_slice(&chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
        bytes
    })
}

/// A request as clients send it.
fn plain() -> impl Strategy<Value = Vec<u8>> {
    let head = |line: &str, field: &str| format!("{line} HTTP/1.1\r\nHost: test\r\n{field}\r\n").into_bytes();
    prop_oneof![
        Just(head("GET /", "")),
        Just(head("GET /early?x", "Connection: keep-alive\r\n")),
        Just(head("HEAD /", "")),
        body().prop_map(move |body| [head("POST /", &format!("Content-Length: {}\r\n", body.len())), body].concat()),
        chunked().prop_map(move |body| [head("POST /", "Transfer-Encoding: chunked\r\n"), body].concat()),
    ]
}

/// A request as it may come too.
fn odd() -> impl Strategy<Value = Vec<u8>> {
    let version = prop_oneof![8 => Just("HTTP/1.1"), 1 => Just("HTTP/1.0"), 1 => Just("HTTP/2.0")];
    let start = prop_oneof![
        4 => Just("GET /"), 2 => Just("POST /"), 1 => Just("POST /early"), 1 => Just("HEAD /"), 1 => Just("PRI *"),
        1 => Just("PUT http://test/"), 1 => Just("OPTIONS *"),
    ];
    let field = prop_oneof![
        4 => Just("Host: test"),
        1 => Just("Connection: close"),
        1 => Just("Connection: keep-alive"),
        2 => Just("Content-Length: 3"),
        1 => Just("Content-Length: 0"),
        1 => Just("Content-Length: 4"),
        2 => Just("Transfer-Encoding: chunked"),
        1 => Just("Transfer-Encoding: gzip, chunked"),
        1 => Just("Expect: 100-continue"),
        1 => Just("X: \t folded or not"),
        1 => Just(" y"),
    ];
    let lines = vec((field, line_end()), 0..4);
    let leading = vec(line_end(), 0..3);
    let rest = prop_oneof![Just(Vec::new()), Just(b"abc".to_vec()), chunked(), body()];
    (leading, start, version, line_end(), lines, line_end(), rest).prop_map(
        |(leading, start, version, end, lines, last, rest)| {
            let mut text = leading.concat() + start + " " + version + end;
            for (line, end) in lines {
                text += line;
                text += end;
            }
            [(text + last).into_bytes(), rest].concat()
        },
    )
}

/// Bytes that break things.
fn breaking() -> impl Strategy<Value = (prop::sample::Index, Option<u8>)> {
    let byte = prop_oneof![
        Just(b'\r'),
        Just(b'\n'),
        Just(b' '),
        Just(b'\t'),
        Just(b':'),
        Just(b';'),
        Just(b'0'),
        Just(b'f'),
        Just(0),
        any::<u8>()
    ];
    (any::<prop::sample::Index>(), proptest::option::of(byte))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However plain requests are cut and pipelined, with the next one begun: the connection is clean.
    #[test]
    fn plain_clients_connections_are_clean_whenever_they_are_answered(
        requests in vec(plain(), 1..6).prop_map(stream), begun in 0..18_usize, sizes in sizes(),
    ) {
        let next = &b"GET /next HTTP/1.1\r\n"[..begun];
        let bytes = [requests.0, next.to_vec()].concat();
        let mut server = Server::new();
        for piece in split(&bytes, &sizes) {
            server.feed(&piece, false);
        }
        prop_assert_eq!(server.rest(), Some(next.to_vec()), "{}", String::from_utf8_lossy(&server.answers()));
        hold(&split(&bytes, &sizes))?;
    }

    #[test]
    fn another_hyper_goes_on_as_this_one_would_have(
        requests in vec(odd(), 1..5).prop_map(stream), sizes in sizes(),
    ) {
        hold(&split(&requests.0, &sizes))?;
    }

    #[test]
    fn and_so_it_does_with_bytes_that_are_broken(
        requests in vec(prop_oneof![plain(), odd()], 1..5).prop_map(stream),
        broken in vec(breaking(), 1..4),
        sizes in sizes(),
    ) {
        let mut bytes = requests.0;
        for (at, byte) in broken {
            let at = at.index(bytes.len());
            match byte {
                Some(byte) => bytes[at] = byte,
                None => { bytes.remove(at); }
            }
            if bytes.is_empty() {
                break;
            }
        }
        hold(&split(&bytes, &sizes))?;
    }
}

#[test]
fn hyper_answers_in_this_test_as_it_does_on_a_socket() {
    let mut server = Server::new();
    server.feed(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET", false);
    let answers = String::from_utf8(server.answers()).unwrap();
    assert!(answers.contains("GET /1 ") && answers.contains("GET /2 "), "{answers}");
    assert_eq!(server.rest(), Some(b"GET".to_vec()));
}
