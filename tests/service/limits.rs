//! What one client may take: beyond it, a clear answer, and the others do not suffer.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use rustix::process::Signal;
use service::hitless::listener;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::client::{Answer, Client, soon};
use crate::start::{App, BINARY, Process, spawn_app};

async fn app(limits: &str) -> App {
    spawn_app(&format!("ping_delay = '600ms'\n[limits]\n{limits}"), Router::new()).await
}

#[track_caller]
fn assert_last_problem(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    assert_eq!(answer.json()["status"], status, "{answer:?}");
    assert!(answer.says_close(), "{answer:?}");
}

#[tokio::test]
async fn a_head_that_does_not_come_is_answered_408() {
    let app = app("header_timeout = '200ms'").await;
    let mut first = app.client().await;
    first.send("GET /livez HTTP/1.1\r\nHost").await;
    let mut later = app.client().await;
    assert_eq!(later.get("/livez").await.status, 200);
    later.send("G").await;
    for mut client in [first, later] {
        assert_last_problem(&client.answer().await, 408);
        client.ended().await;
    }
}

#[tokio::test]
async fn a_head_that_dribbles_in_is_answered_408_too() {
    let app = app("header_timeout = '300ms'").await;
    let mut client = app.client().await;
    let began = Instant::now();
    let head = format!("GET /livez HTTP/1.1\r\nHost: test\r\nX-Long: {}\r\n\r\n", "x".repeat(10_000));
    for byte in head.bytes() {
        client.send([byte]).await;
        if client.has_answer_within(Duration::from_millis(20)).await {
            break;
        }
    }
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(10));
    // The last byte may have come too late to be read, so that the end is a reset.
    assert_last_problem(&client.answer().await, 408);
}

#[tokio::test]
async fn a_head_that_comes_in_time_by_single_bytes_is_served() {
    let app = app("").await;
    let mut client = app.client().await;
    for byte in b"\r\nGET /livez HTTP/1.1\r\nHost: test\r\n\r\n" {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.answer().await.status, 200);
}

/// More clients than the runtime hears of at a time.
#[tokio::test]
async fn a_client_is_not_blamed_for_a_standstill_of_the_service() {
    let service = Process::start(&[("limits.header_timeout", "2s")]).await;
    let mut clients = Vec::new();
    for _ in 0..3_000 {
        clients.push(service.client().await);
    }
    for client in &mut clients {
        client.send("GET /livez HTTP/1.1\r\n").await;
    }
    service.signal(Signal::STOP);
    for client in &mut clients {
        client.send("Host: test\r\n\r\n").await;
    }
    tokio::time::sleep(Duration::from_millis(2500)).await;
    service.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.answer().await.status, 200);
    }
}

#[tokio::test]
async fn a_silent_connection_is_closed_quietly_and_a_busy_one_is_not_silent() {
    let app = app("idle_timeout = '200ms'").await;
    let mut busy = app.client().await;
    let mut uploading = app.client().await;
    let mut idle = app.client().await;
    let fresh = app.client().await;
    busy.ask("/ping").await;
    uploading.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n1").await;
    assert_eq!(idle.get("/livez").await.status, 200);
    idle.ended().await;
    fresh.ended().await;
    // Both took three times as long.
    assert_eq!(busy.answer().await.status, 200);
    uploading.send("2").await;
    assert_eq!(uploading.answer().await.text(), "12");
}

#[tokio::test]
async fn a_request_begins_the_idle_time_anew() {
    let app = app("idle_timeout = '2s'").await;
    let mut client = app.client().await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) {
        assert_eq!(client.get("/livez").await.status, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_left() {
    const LENGTH: usize = 64 << 20;
    let left = CancellationToken::new();
    let leaving = left.clone();
    let large = async move || {
        let guard = leaving.clone().drop_guard();
        let chunks = stream::repeat(Bytes::from_static(&[b'x'; 64 << 10])).take(LENGTH >> 16);
        Body::from_stream(chunks.map(move |chunk| {
            let _held_for_as_long_as_the_stream = &guard;
            Ok::<_, Infallible>(chunk)
        }))
    };
    let routes = Router::new().route("/large", get(large));
    let app = spawn_app("[limits]\nidle_timeout = '1s'", routes).await;
    let mut deaf = app.client().await;
    deaf.ask("/large").await;
    assert_eq!(deaf.head().await.status, 200);

    soon("the end of the answer", left.cancelled()).await;

    let received = deaf.until_end().await.len();
    assert!(received < LENGTH, "{received}");
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_there_is_room_again_later() {
    let app = app("max_connections = 2").await;
    let mut first = app.client().await;
    let mut second = app.client().await;
    for client in [&mut first, &mut second] {
        assert_eq!(client.get("/livez").await.status, 200);
    }

    let mut third = app.client().await;
    let told = third.get("/livez").await;
    assert_last_problem(&told, 503);
    assert!(told.header("retry-after").is_some());
    third.ended().await;
    assert_eq!(first.get("/livez").await.status, 200);

    drop(second);
    soon("room", async {
        while app.client().await.get("/livez").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn whoever_comes_beyond_those_who_are_told_so_waits_for_one_of_them_to_go() {
    let app = app("max_connections = 1").await;
    let mut served = app.client().await;
    assert_eq!(served.get("/livez").await.status, 200);
    let mut surplus = Vec::new();
    for _ in 0..listener::SURPLUS {
        surplus.push(app.client().await);
    }
    let mut next = app.client().await;
    next.ask("/livez").await;
    assert!(!next.has_answer_within(Duration::from_millis(300)).await);
    assert_eq!(served.get("/livez").await.status, 200);

    drop(surplus.pop());

    assert_last_problem(&next.answer().await, 503);
    assert_eq!(served.get("/livez").await.status, 200);
}

#[tokio::test]
async fn too_few_descriptors_are_a_clear_error() {
    let few = Command::new("sh").args(["-c", "ulimit -n 200 && exec \"$0\"", BINARY]).output();
    let output = soon("the end", few).await.expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("200 descriptors are allowed (ulimit -n, LimitNOFILE=)"), "{said}");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_it_is_sent() {
    let app = app("max_body_bytes = 1000").await;
    let mut client = app.client().await;
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 1001\r\n\r\n").await;
    assert_last_problem(&client.answer().await, 413);
    client.ended().await;
}

#[tokio::test]
async fn the_limit_on_bodies_is_the_one_that_is_set_whoever_reads_them() {
    const LIMIT: usize = 3_000_000;
    let json = post(async |Json(text): Json<String>| text.len().to_string());
    let bytes = post(async |bytes: Bytes| bytes.len().to_string());
    let routes = Router::new().route("/json", json).route("/bytes", bytes);
    let app = spawn_app(&format!("[limits]\nmax_body_bytes = {LIMIT}"), routes).await;
    for path in ["/json", "/bytes", "/echo"] {
        for (length, status) in [(LIMIT, 200), (LIMIT + 1, 413)] {
            let mut client = app.client().await;
            let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n");
            client.send(format!("{head}Content-Length: {length}\r\n\r\n")).await;
            if status == 200 {
                client.send(format!("\"{}\"", "x".repeat(length - 2))).await;
            }
            assert_eq!(client.head().await.status, status, "{path}, {length} bytes");
        }
    }
}

#[tokio::test]
async fn a_body_that_turns_out_too_large_ends_its_connection_alone() {
    let app = app("max_body_bytes = 1000").await;
    let mut client: Client = app.client().await;
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n").await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.chunk().await, b"begun");
    client.send(format!("3e8\r\n{}\r\n", "x".repeat(1000))).await;
    // The answer has begun: all that can be said now is that it is not whole.
    let rest = client.until_end().await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
    assert_eq!(app.client().await.get("/livez").await.status, 200);
}
