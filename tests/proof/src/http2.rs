//! A strict HTTP/2 client: several streams on one connection, no stream may be lost.
//!
//! An HTTP/2 connection does not live through a restart: `GOAWAY` announces its end, every stream
//! that was opened is still answered, and a new connection is made. That is polite. An end without
//! `GOAWAY` is not.
//!
//! Whether a request that failed had been sent, hyper cannot say; the frames on the wire can. So the
//! connection notes which streams were opened and which were answered to their end. Streams that h2
//! opens although it has read the `GOAWAY` already (those it had queued: RFC 9113, 6.8 forbids it) are
//! the client's own fault, and not counted.

use std::collections::HashSet;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use lab::http1::{Fault, PATIENCE, Place, Socket};
use lab::traffic::Request;

/// What came of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered,
    /// Answered, but wrongly.
    Wrong(String),
    /// No answer: lost if it was sent, which [`Connection::end`] knows.
    Unanswered(String),
}

/// What went by on the wire.
#[derive(Debug, Default)]
struct Seen {
    went_away: AtomicBool,
    /// Streams opened and not yet answered to their end.
    open: Mutex<HashSet<u32>>,
}

impl Seen {
    fn began(&self, stream: u32) {
        if !self.went_away.load(Relaxed) {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(stream);
        }
    }

    fn ended(&self, stream: u32) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&stream);
    }
}

/// One connection, shared by its streams.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    seen: Arc<Seen>,
    task: JoinHandle<Result<(), hyper::Error>>,
}

/// A handle for one stream at a time.
pub type Stream = SendRequest<Full<Bytes>>;

impl Connection {
    /// Connects with prior knowledge.
    pub async fn open(place: impl Into<Place>) -> Result<Self, Fault> {
        let place = place.into();
        let seen = Arc::new(Seen::default());
        let open = async {
            let socket = place.connect(None).await.map_err(|e| format!("connect: {e}"))?;
            let (incoming, outgoing) = (Frames::default(), Frames { skip: PREFACE, ..Frames::default() });
            let watched = Watched { socket, incoming, outgoing, seen: seen.clone() };
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(watched))
                .await
                .map_err(|e| format!("HTTP/2 handshake: {e}"))
        };
        match timeout(Duration::from_secs(8), open).await {
            Ok(Ok((sender, connection))) => Ok(Self { sender, seen, task: tokio::spawn(connection) }),
            Ok(Err(what)) => Err(Fault::Refused(what)),
            Err(_) => Err(Fault::Refused("connect: no answer in time".into())),
        }
    }

    pub fn stream(&self) -> Stream {
        self.sender.clone()
    }

    /// Ends the connection, whose streams are done. Says how many of them were sent and never
    /// answered, and whether the server had closed the connection unannounced.
    pub async fn end(mut self) -> (usize, Result<(), Fault>) {
        let by_server = self.sender.is_closed();
        drop(self.sender);
        let ended = timeout(Duration::from_secs(5), &mut self.task).await;
        self.task.abort();
        let lost = self.seen.open.lock().unwrap_or_else(PoisonError::into_inner).len();
        if !by_server || self.seen.went_away.load(Relaxed) {
            return (lost, Ok(()));
        }
        let how = match ended {
            Ok(Ok(Err(error))) => chain(&error),
            _ => "end of file".to_owned(),
        };
        (lost, Err(Fault::Closed(format!("HTTP/2, without GOAWAY: {how}"))))
    }
}

/// Sends one request on a stream of its own and reads the answer, whole.
pub async fn exchange(stream: &mut Stream, ask: &Request) -> Outcome {
    let request = hyper::Request::builder().method(&ask.method).uri(format!("http://lab{}", ask.path));
    let request = ask.headers.iter().fold(request, |request, (name, value)| request.header(name, value));
    let request = request
        .body(Full::new(ask.send.clone().unwrap_or_default()))
        .expect("what traffic.toml asks for was looked at when it was loaded");
    let answer = async {
        stream.ready().await?;
        let response = stream.send_request(request).await?;
        let status = response.status().as_u16();
        Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
    };
    let name = format!("HTTP/2 {} {}", ask.method, ask.path);
    match timeout(PATIENCE, answer).await {
        Err(_) => Outcome::Unanswered(format!("{name}: no whole answer within {PATIENCE:?}")),
        Ok(Err(error)) => Outcome::Unanswered(format!("{name}: {}", chain(&error))),
        Ok(Ok((status, _))) if status != ask.status => {
            Outcome::Wrong(format!("{name}: answered {status} instead of {}", ask.status))
        }
        Ok(Ok((_, body))) if ask.body.as_ref().is_some_and(|expected| *expected != body) => {
            Outcome::Wrong(format!("{name}: another body of {} bytes", body.len()))
        }
        Ok(Ok(_)) => Outcome::Answered,
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A socket that notices which frames go by: neither h2 nor hyper tells an announced end from a bare
/// one once all streams are done.
#[derive(Debug)]
struct Watched {
    socket: Socket,
    incoming: Frames,
    outgoing: Frames,
    seen: Arc<Seen>,
}

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;

/// A frame's header (RFC 9113, 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
}

/// Walks over frames, whatever pieces they come in.
#[derive(Debug, Default)]
struct Frames {
    header: Vec<u8>,
    /// Of the preface or a payload, what is still to come.
    skip: usize,
}

impl Frames {
    const HEADER: usize = 9;

    /// The frames that end in these bytes.
    fn ending_in(&mut self, mut bytes: &[u8]) -> Vec<Frame> {
        let mut frames = vec![];
        loop {
            let skip = self.skip.min(bytes.len());
            self.skip -= skip;
            bytes = &bytes[skip..];
            if self.skip > 0 {
                return frames;
            }
            if let [_, _, _, kind, flags, a, b, c, d] = self.header[..] {
                frames.push(Frame { kind, flags, stream: u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff });
                self.header.clear();
            }
            let take = (Self::HEADER - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.header.len() < Self::HEADER {
                return frames;
            }
            self.skip = u32::from_be_bytes([0, self.header[0], self.header[1], self.header[2]]) as usize;
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        for frame in self.incoming.ending_in(&buffer.filled()[before..]) {
            match frame.kind {
                GOAWAY => self.seen.went_away.store(true, Relaxed),
                DATA | HEADERS if frame.flags & END_STREAM != 0 => self.seen.ended(frame.stream),
                _ => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write(context, bytes))?;
        for frame in self.outgoing.ending_in(&bytes[..written]) {
            if frame.kind == HEADERS {
                self.seen.began(frame.stream);
            }
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
