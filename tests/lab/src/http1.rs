//! A strict HTTP/1.1 client on a bare socket: it never retries, never reconnects, and takes an
//! answer for whole only when its framing says so.
//!
//! The kinds of failure are those of the promise: a request is *lost* when one byte of it was sent
//! and no whole, correct answer came; *refused* when there was no connection to send it on; a
//! connection is *closed* when the server closed it without having said so in a response.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http::Method;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::{sleep, sleep_until, timeout, timeout_at};
use tokio_util::either::Either;

use crate::traffic::Request;

/// How long an answer may take before it counts as lost.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// How long a connect may take: three of TCP's own attempts (1 s, 2 s, 4 s).
const CONNECT_PATIENCE: Duration = Duration::from_secs(8);

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// There was no connection to send it on.
    Refused(String),
    /// The server closed the connection, unannounced, before a byte of a request was sent.
    Closed(String),
    /// A byte was sent and no whole, correct answer came. If `closed`, the connection went too.
    Lost { what: String, closed: bool },
}

/// Where a service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

/// A socket of either kind.
pub type Socket = Either<TcpStream, UnixStream>;

impl Place {
    /// Connects. `window`: `SO_RCVBUF` in bytes, where that means anything.
    pub async fn connect(&self, window: Option<u32>) -> io::Result<Socket> {
        match self {
            Self::Tcp(address) => {
                let socket = TcpSocket::new_v4()?;
                if let Some(window) = window {
                    socket.set_recv_buffer_size(window)?;
                }
                let socket = socket.connect(*address).await?;
                socket.set_nodelay(true)?;
                Ok(Either::Left(socket))
            }
            Self::Unix(path) => UnixStream::connect(path).await.map(Either::Right),
        }
    }
}

/// A request, byte for byte, and the answer it must get.
#[derive(Debug, Clone)]
pub struct Ask {
    /// What it is, for a reader: `GET /livez`.
    pub name: String,
    /// The request, cut into the pieces that are sent with `pause` between them.
    pub pieces: Vec<Bytes>,
    pub pause: Duration,
    /// Time between two reads of the answer.
    pub sip: Option<Duration>,
    /// How long nothing of the answer is read.
    pub unread: Duration,
    /// The writing side is shut down behind the request, and the end of file has to come behind the answer.
    pub half_closes: bool,
    pub status: u16,
    /// Whether an answer may also say that the service has failed (500).
    pub may_fail: bool,
    pub body: Option<Bytes>,
}

impl Ask {
    /// `GET path`.
    pub fn get(path: &str, status: u16, body: Option<&str>) -> Self {
        Self::of(Request::get(path, status, body))
    }

    /// `POST path`; the right answer is the body itself.
    pub fn echo(path: &str, status: u16, body: &[u8]) -> Self {
        Self::of(Request::echo(path, status, body.to_vec()))
    }

    /// Any request.
    pub fn of(request: Request) -> Self {
        let body = request.send.clone().unwrap_or_default();
        // A request that usually has a body says so where it has none (RFC 9110, section 8.6).
        let usual = request.send.is_some() || [Method::POST, Method::PUT, Method::PATCH].contains(&request.method);
        let framing = if usual { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
        Self::framed(request, &framing, [body].into_iter().filter(|body| !body.is_empty()))
    }

    /// A request whose body comes in chunks of so many bytes, sent `pause` apart.
    pub fn chunked(request: Request, size: usize, pause: Duration) -> Self {
        let body = request.send.clone().unwrap_or_default();
        let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat().into();
        let chunks = body.chunks(size).map(chunk).chain([Bytes::from_static(b"0\r\n\r\n")]);
        let mut ask = Self { pause, ..Self::framed(request, "Transfer-Encoding: chunked\r\n", [].into_iter()) };
        ask.pieces.extend(chunks);
        ask
    }

    /// The request's head, and what follows it at once.
    fn framed(request: Request, framing: &str, body: impl Iterator<Item = Bytes>) -> Self {
        let name = format!("{} {}", request.method, request.path);
        let headers: String = request.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{name} HTTP/1.1\r\nHost: lab\r\n{headers}{framing}\r\n");
        Self {
            name,
            pieces: vec![std::iter::once(Bytes::from(head)).chain(body).collect::<Vec<_>>().concat().into()],
            pause: Duration::ZERO,
            sip: None,
            unread: Duration::ZERO,
            half_closes: false,
            status: request.status,
            may_fail: false,
            body: request.body,
        }
    }

    /// The same request with `Connection: close`.
    pub fn last(mut self) -> Self {
        const HOST: &[u8] = b"Host: lab\r\n";
        let bytes = self.pieces.concat();
        if let Some(at) = bytes.windows(HOST.len()).position(|window| window == HOST) {
            let (before, after) = bytes.split_at(at);
            self.pieces = vec![[before, b"Connection: close\r\n", after].concat().into()];
        }
        self
    }

    /// The same request, cut into two after `at` bytes.
    pub fn in_two(self, at: usize, pause: Duration) -> Self {
        let mut bytes = Bytes::from(self.pieces.concat());
        let head = bytes.split_to(at.min(bytes.len()));
        Self { pieces: vec![head, bytes], pause, ..self }
    }

    /// The same request in pieces of `size` bytes.
    pub fn in_pieces(self, size: usize, pause: Duration) -> Self {
        let bytes = Bytes::from(self.pieces.concat());
        let pieces = (0..bytes.len()).step_by(size).map(|at| bytes.slice(at..bytes.len().min(at + size))).collect();
        Self { pieces, pause, ..self }
    }
}

/// Whether a connection may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    Open,
    /// The server said `Connection: close`.
    Announced,
}

/// One connection, kept as long as the server keeps it.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    buffer: BytesMut,
    pub opened: Instant,
    /// Which process answered last, as far as its answer's `x-request-id` tells: what stands there before the dash.
    pub answered_by: Bytes,
}

impl Connection {
    /// Connects. `window`: `SO_RCVBUF` in bytes, for a client that shall be slow to take an answer.
    pub async fn open(place: impl Into<Place>, window: Option<u32>) -> Result<Self, Fault> {
        let place = place.into();
        match timeout(CONNECT_PATIENCE, place.connect(window)).await {
            Ok(Ok(socket)) => Ok(Self {
                socket,
                buffer: BytesMut::with_capacity(1024),
                opened: Instant::now(),
                answered_by: Bytes::new(),
            }),
            Ok(Err(error)) => Err(Fault::Refused(format!("connect: {error}"))),
            Err(_) => Err(Fault::Refused(format!("connect: no answer within {CONNECT_PATIENCE:?}"))),
        }
    }

    /// Sends one request and reads its answer, whole.
    pub async fn exchange(&mut self, ask: &Ask) -> Result<Stays, Fault> {
        let sent = AtomicBool::new(false);
        let (reader, mut writer) = match &mut self.socket {
            Either::Left(tcp) => {
                let (reader, writer) = tcp.split();
                (Either::Left(reader), Either::Left(writer))
            }
            Either::Right(unix) => {
                let (reader, writer) = unix.split();
                (Either::Right(reader), Either::Right(writer))
            }
        };
        let send = async {
            let mut due = tokio::time::Instant::now();
            for (index, piece) in ask.pieces.iter().enumerate() {
                if index > 0 {
                    // Not one pause after the other: what each of them is late would add up.
                    due += ask.pause;
                    sleep_until(due).await;
                }
                let mut piece = piece.clone();
                while piece.has_remaining() {
                    writer.write_buf(&mut piece).await.map_err(Broken::Gone)?;
                    sent.store(true, Relaxed);
                }
            }
            if ask.half_closes {
                writer.shutdown().await.map_err(Broken::Gone)?;
            }
            Ok(())
        };
        let answered_by = &mut self.answered_by;
        let mut incoming = Incoming { reader, buffer: &mut self.buffer, sip: ask.sip, answered_by };
        let answer = async {
            if !ask.unread.is_zero() {
                sleep(ask.unread).await;
            }
            let stays = incoming.answer(ask).await?;
            if ask.half_closes { incoming.end().await.map(|()| Stays::Announced) } else { Ok(stays) }
        };
        let exchange = async { tokio::try_join!(send, answer) };
        let broken = match timeout(PATIENCE, exchange).await {
            Ok(Ok(((), stays))) => return Ok(stays),
            Ok(Err(broken)) => broken,
            Err(_) => Broken::Wrong(format!("no whole answer within {PATIENCE:?}")),
        };
        let closed = matches!(broken, Broken::Gone(_));
        let what = match broken {
            Broken::Gone(error) => format!("{}: {error}", ask.name),
            Broken::Wrong(what) => format!("{}: {what}", ask.name),
        };
        match sent.into_inner() {
            false => Err(Fault::Closed(what)),
            true => Err(Fault::Lost { what, closed }),
        }
    }

    /// Lets the connection rest for `pause`, and fails at once if the server closes it meanwhile.
    pub async fn rest(&mut self, pause: Duration) -> Result<Stays, Fault> {
        let end = tokio::time::Instant::now() + pause;
        // A loop, because readiness can be spurious.
        let readable = async |socket: &Socket| match socket {
            Either::Left(tcp) => tcp.readable().await,
            Either::Right(unix) => unix.readable().await,
        };
        while timeout_at(end, readable(&self.socket)).await.is_ok() {
            if let Stays::Announced = self.look()? {
                return Ok(Stays::Announced);
            }
        }
        Ok(Stays::Open)
    }

    /// What the server has done by now, while no request was under way. Ask before sending one: a
    /// close that has already arrived costs no request.
    pub fn look(&mut self) -> Result<Stays, Fault> {
        let read = match &self.socket {
            Either::Left(tcp) => tcp.try_read_buf(&mut self.buffer),
            Either::Right(unix) => unix.try_read_buf(&mut self.buffer),
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Stays::Open),
            Err(error) => Err(Fault::Closed(format!("while idle: {error}"))),
            Ok(0) => Err(Fault::Closed("while idle: end of file".into())),
            // Such as a 408 that says good-bye: a response, even if to no request.
            Ok(_) => match head(&self.buffer) {
                Ok(Some(head)) if head.close => Ok(Stays::Announced),
                _ => Err(Fault::Closed(format!("while idle: an answer to nothing: {:?}", excerpt(&self.buffer)))),
            },
        }
    }

    /// Ends the connection with a reset: one that is closed instead keeps its port for a minute, and a
    /// few rounds with thousands of connections use all ports up.
    pub fn abort(self) {
        if let Either::Left(tcp) = &self.socket {
            let _ = tcp.set_zero_linger();
        }
    }

    /// After an announced close, waits for it; `false` if it does not come in time.
    pub async fn closes(mut self) -> bool {
        let ended = async { matches!(self.socket.read_buf(&mut self.buffer).await, Ok(0) | Err(_)) };
        timeout(PATIENCE, ended).await.unwrap_or(false)
    }
}

/// What can befall an exchange.
#[derive(Debug)]
enum Broken {
    /// The connection ended.
    Gone(io::Error),
    /// The answer is not the right one, or not HTTP.
    Wrong(String),
}

#[derive(Debug)]
struct Head {
    length: usize,
    status: u16,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    answered_by: Option<Bytes>,
}

/// Parses a response's head; `None` while it is incomplete.
fn head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("not HTTP ({error}): {:?}", excerpt(bytes))),
    };
    let mut head = Head {
        length,
        status: response.code.unwrap_or_default(),
        content_length: None,
        chunked: false,
        close: response.version == Some(0),
        answered_by: None,
    };
    for header in response.headers.iter() {
        let value = str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = value.parse().map_err(|_| format!("Content-Length: {value}"))?;
            if head.content_length.replace(length).is_some() {
                return Err("Content-Length twice".into());
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            head.chunked = value.eq_ignore_ascii_case("chunked");
        } else if header.name.eq_ignore_ascii_case("connection") {
            head.close |= value.split(',').any(|token| token.trim().eq_ignore_ascii_case("close"));
        } else if header.name.eq_ignore_ascii_case("x-request-id") {
            head.answered_by = value.split_once('-').map(|(process, _)| Bytes::copy_from_slice(process.as_bytes()));
        }
    }
    Ok(Some(head))
}

/// The reading side of an exchange.
struct Incoming<'a, R> {
    reader: R,
    buffer: &'a mut BytesMut,
    sip: Option<Duration>,
    answered_by: &'a mut Bytes,
}

impl<R: AsyncRead + Unpin> Incoming<'_, R> {
    async fn answer(&mut self, ask: &Ask) -> Result<Stays, Broken> {
        let head = loop {
            match head(self.buffer).map_err(Broken::Wrong)? {
                Some(head) if head.status < 200 => self.buffer.advance(head.length),
                Some(head) => break head,
                None => self.more("before the answer's head was whole").await?,
            }
        };
        self.buffer.advance(head.length);
        *self.answered_by = head.answered_by.unwrap_or_default();
        let body = match (head.chunked, head.content_length) {
            (true, None) => self.chunks().await?,
            (false, Some(length)) => self.take(length).await?,
            (false, None) if matches!(head.status, 204 | 304) => Bytes::new(),
            (true, Some(_)) => return Err(Broken::Wrong("two framings at once".into())),
            (false, None) => {
                return Err(Broken::Wrong("no framing: nobody can tell whether it is whole".into()));
            }
        };
        if !self.buffer.is_empty() {
            return Err(Broken::Wrong(format!("more than the answer: {:?}", excerpt(self.buffer))));
        }
        if head.status != ask.status && !(ask.may_fail && head.status == 500) {
            return Err(Broken::Wrong(format!(
                "answered {} instead of {}: {:?}",
                head.status,
                ask.status,
                excerpt(&body)
            )));
        }
        match &ask.body {
            Some(expected) if *expected != body => Err(Broken::Wrong(format!(
                "another body: {} bytes {:?} instead of {} bytes {:?}",
                body.len(),
                excerpt(&body),
                expected.len(),
                excerpt(expected)
            ))),
            _ if head.close => Ok(Stays::Announced),
            _ => Ok(Stays::Open),
        }
    }

    /// `length` bytes.
    async fn take(&mut self, length: u64) -> Result<Bytes, Broken> {
        while (self.buffer.len() as u64) < length {
            self.more("in the middle of the answer's body").await?;
        }
        Ok(self.buffer.split_to(length as usize).freeze())
    }

    /// A chunked body (RFC 9112, 7.1); a trailer is read and dropped.
    async fn chunks(&mut self) -> Result<Bytes, Broken> {
        let mut body = BytesMut::new();
        loop {
            let (line, size) = loop {
                match httparse::parse_chunk_size(self.buffer) {
                    Ok(httparse::Status::Complete(found)) => break found,
                    Ok(httparse::Status::Partial) => self.more("in the middle of the answer's body").await?,
                    Err(_) => {
                        return Err(Broken::Wrong(format!("not a chunk: {:?}", excerpt(self.buffer))));
                    }
                }
            };
            self.buffer.advance(line);
            if size == 0 {
                while !self.line().await?.is_empty() {}
                return Ok(body.freeze());
            }
            body.extend_from_slice(&self.take(size).await?);
            if !self.line().await?.is_empty() {
                return Err(Broken::Wrong("a chunk longer than it says".into()));
            }
        }
    }

    /// A line without its end.
    async fn line(&mut self) -> Result<Bytes, Broken> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = self.buffer.split_to(end).freeze();
                self.buffer.advance(2);
                return Ok(line);
            }
            self.more("in the middle of the answer's body").await?;
        }
    }

    /// The end of file, and nothing before it.
    async fn end(&mut self) -> Result<(), Broken> {
        match self.reader.read_buf(self.buffer).await {
            Ok(0) => Ok(()),
            Ok(_) => Err(Broken::Wrong(format!("more than the answer: {:?}", excerpt(self.buffer)))),
            Err(error) => Err(Broken::Gone(io::Error::new(error.kind(), format!("{error} behind the answer")))),
        }
    }

    /// Waits for more bytes.
    async fn more(&mut self, when: &str) -> Result<(), Broken> {
        if let Some(sip) = self.sip {
            sleep(sip).await;
        }
        match self.reader.read_buf(self.buffer).await {
            Ok(0) => Err(Broken::Gone(io::Error::other(format!("end of file {when}")))),
            Ok(_) => Ok(()),
            Err(error) => Err(Broken::Gone(io::Error::new(error.kind(), format!("{error} {when}")))),
        }
    }
}

/// Enough of some bytes to recognise them by.
fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned()
}
