//! A client on a bare socket: it sends exactly the bytes it is given, never retries, and fails a test that would wait
//! for ever.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// How long anything may take before the test fails. Far longer than it does take, on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for what has to happen, within [`PATIENCE`].
pub async fn soon<F: Future>(what: &str, event: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, event).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// One connection.
pub struct Client {
    stream: Box<dyn Stream>,
    /// Read, and not yet part of an answer.
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = soon("connecting", TcpStream::connect(address)).await.expect("connecting");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Self::on(stream)
    }

    pub async fn connect_unix(path: &Path) -> Self {
        Self::on(soon("connecting", UnixStream::connect(path)).await.expect("connecting"))
    }

    pub fn on(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon("sending", self.stream.write_all(bytes.as_ref())).await.expect("sending");
    }

    /// Sends a `GET` without waiting for its answer.
    pub async fn ask(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).await;
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.ask(path).await;
        self.answer().await
    }

    /// Closes the client's side: nothing more will be sent.
    pub async fn close_side(&mut self) {
        soon("closing one side", self.stream.shutdown()).await.expect("closing one side");
    }

    /// Has a body echoed.
    pub async fn echo(&mut self, body: &str) -> Answer {
        let length = body.len();
        self.send(format!("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{body}")).await;
        self.answer().await
    }

    /// The next answer, whole.
    pub async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        let chunked = answer.header("transfer-encoding") == Some("chunked");
        let length = answer.header("content-length").map(|length| length.parse().expect("Content-Length"));
        answer.body = match length {
            _ if chunked => self.chunks().await,
            Some(length) => self.take(length).await,
            // Until the end of file, which HTTP/1.0 is told its answers by.
            None if answer.says_close() => self.until_end().await,
            None => Vec::new(),
        };
        answer
    }

    /// The head of the next answer; its body is left to be read.
    pub async fn head(&mut self) -> Answer {
        let head = self.take_until(b"\r\n\r\n").await;
        let head = String::from_utf8(head).expect("a head of text");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        Answer { status, head, body: Vec::new() }
    }

    /// The next chunk of an answer's body; empty for the last.
    pub async fn chunk(&mut self) -> Vec<u8> {
        let size = self.take_until(b"\r\n").await;
        let size = str::from_utf8(&size).ok().and_then(|size| usize::from_str_radix(size.trim_end(), 16).ok());
        let chunk = self.take(size.expect("a chunk's size")).await;
        assert_eq!(self.take(2).await, b"\r\n", "a chunk's end");
        chunk
    }

    async fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk().await;
            if chunk.is_empty() {
                return body;
            }
            body.extend(chunk);
        }
    }

    /// Everything up to the end of file; a reset is not one.
    pub async fn until_end(&mut self) -> Vec<u8> {
        while self.more().await > 0 {}
        std::mem::take(&mut self.buffer)
    }

    /// Waits until the server ends the connection, which it does without another byte.
    pub async fn ended(mut self) {
        let rest = self.until_end().await;
        assert!(rest.is_empty(), "before the end: {:?}", String::from_utf8_lossy(&rest));
    }

    /// The next `count` bytes.
    pub async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            self.need_more().await;
        }
        self.buffer.drain(..count).collect()
    }

    /// Whether something has come, or comes within this time.
    pub async fn has_answer_within(&mut self, time: Duration) -> bool {
        !self.buffer.is_empty() || tokio::time::timeout(time, self.more()).await.is_ok()
    }

    async fn take_until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return self.buffer.drain(..at + end.len()).collect();
            }
            self.need_more().await;
        }
    }

    async fn need_more(&mut self) {
        let count = self.more().await;
        assert!(count > 0, "the server closed the connection after {:?}", String::from_utf8_lossy(&self.buffer));
    }

    async fn more(&mut self) -> usize {
        soon("an answer", self.stream.read_buf(&mut self.buffer)).await.expect("reading")
    }
}

/// An answer.
pub struct Answer {
    pub status: u16,
    /// Status line and header fields, as they came.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub fn says_close(&self) -> bool {
        self.header("connection").is_some_and(|options| {
            let mut options = options.split(',').map(str::trim);
            options.any(|option| option.eq_ignore_ascii_case("close"))
        })
    }

    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("a body of text")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a body of JSON")
    }

    /// Which process answered: request ids begin with a mark of it.
    pub fn process(&self) -> &str {
        self.header("x-request-id").and_then(|id| id.split('-').next()).expect("a request id")
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.head, String::from_utf8_lossy(&self.body))
    }
}
