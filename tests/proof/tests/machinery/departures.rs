//! Clients that leave: at whatever point of a message, in whatever way, whatever their handler does just then. Their
//! connection is let go, and who only closes its own side still gets the answer to what it asked.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::post;
use futures_util::stream;
use rustix::net::{Shutdown, shutdown, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::client::{PATIENCE, soon};
use crate::start::{App, spawn_app};

/// Short limits, so that what ends by a limit ends within the test.
const LIMITS: &str = "shutdown_timeout = '6s'
[limits]
idle_timeout = '1s'
request_timeout = '1s'
header_timeout = '500ms'
";

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Its end travels in the very packet that has its last byte.
    EndsAtOnce,
    EndsLater,
    /// It closes its own side and waits.
    ClosesItsSideAtOnce,
    ClosesItsSideLater,
    Resets,
}

const WAYS: [Way; 5] =
    [Way::EndsAtOnce, Way::EndsLater, Way::ClosesItsSideAtOnce, Way::ClosesItsSideLater, Way::Resets];

/// What a client has sent of a request to `path` when it leaves, and whether that is all of it.
fn messages(path: &str) -> Vec<(Vec<u8>, bool)> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\n");
    let sized = format!("{head}Content-Length: 10\r\n\r\n");
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    let upgrade = format!("{head}Connection: upgrade\r\nUpgrade: echo\r\n");
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let parts = [
        (String::new(), false),
        ("\r\n".to_owned(), false),
        ("POST".to_owned(), false),
        (head.clone(), false),
        (format!("{head}\r\n"), true),
        (sized.clone(), false),
        (format!("{sized}01234"), false),
        (format!("{sized}0123456789"), true),
        (format!("{sized}0123456789POST"), true),
        (format!("{head}\r\n{sized}"), true),
        (format!("{head}Expect: 100-continue\r\nContent-Length: 10\r\n\r\n"), false),
        (chunked.clone(), false),
        (format!("{chunked}5"), false),
        (format!("{chunked}5;a=\""), false),
        (format!("{chunked}5\r\nhe"), false),
        (format!("{chunked}5\r\nhello\r\n"), false),
        (format!("{chunked}ffffffff\r\nhello"), false),
        (format!("{chunked}5\r\nhello\r\n0\r\n"), false),
        (format!("{chunked}5\r\nhello\r\n0\r\nX: "), false),
        (format!("{chunked}5\r\nhello\r\n0\r\n\r\n"), true),
        (format!("{chunked}nonsense"), false),
        (format!("{upgrade}\r\n"), true),
        (format!("{upgrade}Content-Length: 10\r\n\r\n01234"), false),
        (preface[..16].to_owned(), false),
        (preface[..20].to_owned(), false),
        (preface.to_owned(), false),
        // Settings, and a request of stream 1 that has no end.
        (format!("{preface}\0\0\0\x04\0\0\0\0\0\0\0\x09\x01\x04\0\0\0\x01"), false),
    ];
    parts.map(|(text, whole)| (text.into_bytes(), whole)).to_vec()
}

/// Where a handler is when its client leaves: echoing, waiting for the whole body, at work and not looking at it,
/// streaming an answer that has nothing more to say.
fn routes() -> Router<crate::application::Shared> {
    let work = async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        "done"
    };
    let silence = async || Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    Router::new()
        .route("/take", post(async |body: Bytes| body))
        .route("/work", post(work))
        .route("/silence", post(silence))
}

/// Sends `message`, leaves as `way` says, and gives all that was heard.
async fn leave(address: SocketAddr, message: &[u8], way: Way) -> Vec<u8> {
    let mut client = TcpStream::connect(address).await.expect("connecting");
    let at_once = matches!(way, Way::EndsAtOnce | Way::ClosesItsSideAtOnce);
    sockopt::set_tcp_cork(&client, at_once).expect("TCP_CORK");
    client.write_all(message).await.expect("sending");
    if !at_once {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut heard = Vec::new();
    match way {
        Way::EndsAtOnce | Way::EndsLater => {}
        Way::Resets => client.set_zero_linger().expect("SO_LINGER"),
        Way::ClosesItsSideAtOnce | Way::ClosesItsSideLater => {
            shutdown(&client, Shutdown::Write).expect("closing one side");
            // Where a message was broken off, the end may be a reset.
            let ended = tokio::time::timeout(PATIENCE, client.read_to_end(&mut heard)).await;
            assert!(
                ended.is_ok(),
                "{way:?} after {:?}: neither an answer nor an end",
                message.escape_ascii().to_string()
            );
        }
    }
    heard
}

/// Waits until the service has let go of every connection.
async fn assert_all_gone(app: &App, whose: &str) {
    let gone = async {
        while !app.connections.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let left = tokio::time::timeout(PATIENCE, gone).await;
    assert!(left.is_ok(), "{whose}: {} connections are never let go", app.connections.len());
}

async fn every_way_to_leave(path: &'static str) {
    let app = spawn_app(LIMITS, routes()).await;
    let address = app.address;
    for (message, whole) in messages(path) {
        let mut clients = JoinSet::new();
        for way in WAYS.into_iter().cycle().take(50) {
            let message = message.clone();
            clients.spawn(async move { (way, leave(address, &message, way).await) });
        }
        let text = message.escape_ascii().to_string();
        while let Some(client) = soon("a client's end", clients.join_next()).await {
            let (way, heard) = client.expect("a client without a panic");
            if whole && matches!(way, Way::ClosesItsSideAtOnce | Way::ClosesItsSideLater) {
                let heard = heard.escape_ascii().to_string();
                assert!(heard.starts_with("HTTP/1.1 "), "{way:?} after {text:?}: {heard:?}");
            }
        }
        assert_all_gone(&app, &text).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leaves_is_let_go_and_who_waits_is_answered() {
    let mut handlers = JoinSet::new();
    for path in ["/echo", "/take", "/work", "/silence", "/nowhere"] {
        handlers.spawn(every_way_to_leave(path));
    }
    while let Some(handler) = handlers.join_next().await {
        handler.expect("every client is let go");
    }
}
