//! A client that asks once, on a connection of its own, and is patient, but not for ever.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long anything may take before the test fails. Far longer than it does take, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for what has to happen.
pub async fn soon<F: Future>(what: &str, event: F) -> F::Output {
    timeout(PATIENCE, event).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub text: String,
}

/// `GET path`.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &format!("GET {path}"), "", "").await
}

/// Sends a request, such as `POST /orders`, with these header fields, each with its end of line, and this body.
pub async fn ask(address: SocketAddr, request: &str, headers: &str, body: &str) -> Answer {
    let answer = async {
        let mut socket = TcpStream::connect(address).await?;
        let length = body.len();
        let head = format!("{request} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}");
        socket.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.map(|_| answer)
    };
    let answer = soon("an answer", answer).await.expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let (_, text) = answer.split_once("\r\n\r\n").expect("a head");
    Answer { status, text: text.to_owned() }
}
