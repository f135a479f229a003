//! What one client may take: beyond it, a clear answer, and the others do not suffer.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use hitless::testing::OVER_LIMIT;
use rustix::process::Signal;
use tokio::net::TcpSocket;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::application::Shared;
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
    let app = app("idle_timeout = '200ms'\nheader_timeout = '200ms'").await;
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
    let app = spawn_app("[limits]\nsend_timeout = '1s'", routes).await;
    let mut deaf = app.client().await;
    deaf.ask("/large").await;
    assert_eq!(deaf.head().await.status, 200);

    soon("the end of the answer", left.cancelled()).await;

    let received = deaf.until_end().await.len();
    assert!(received < LENGTH, "{received}");
}

/// A handler that only writes to what it has upgraded, as many that push do, is told as well.
#[tokio::test]
async fn a_client_that_does_not_read_what_its_connection_was_upgraded_for_is_left() {
    let left = CancellationToken::new();
    let leaving = left.clone();
    let push = async move |upgrade: WebSocketUpgrade| {
        let guard = leaving.clone().drop_guard();
        upgrade.on_upgrade(async move |mut socket| {
            while socket.send(Message::binary(vec![b'x'; 64 << 10])).await.is_ok() {}
            drop(guard);
        })
    };
    let app = spawn_app("[limits]\nsend_timeout = '300ms'", Router::new().route("/push", get(push))).await;
    let mut deaf = app.client().await;
    deaf.send(
        "GET /push HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await;
    assert_eq!(deaf.head().await.status, 101);
    soon("the end", left.cancelled()).await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_where_none_is_idle_and_there_is_room_again_later() {
    let app = app("max_connections = 2").await;
    let mut first = app.client().await;
    let mut second = app.client().await;
    for client in [&mut first, &mut second] {
        client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n1").await;
        assert_eq!(client.head().await.status, 200);
    }

    let mut third = app.client().await;
    let told = third.get("/livez").await;
    assert_last_problem(&told, 503);
    assert!(told.header("retry-after").is_some());
    third.ended().await;
    for client in [&mut first, &mut second] {
        client.send("2").await;
        assert_eq!(client.take(2).await, b"12");
    }

    // Now they are idle: who has been so for a while makes room.
    soon("room", async {
        loop {
            assert_eq!(second.get("/livez").await.status, 200);
            if app.client().await.get("/livez").await.status == 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    first.ended().await;
    assert_eq!(second.get("/livez").await.status, 200);
}

#[tokio::test]
async fn a_flood_of_silent_connections_keeps_nobody_out_and_costs_nobody_a_connection() {
    let app = app("max_connections = 100").await;
    let mut idle = Vec::new();
    for _ in 0..50 {
        let mut client = app.client().await;
        assert_eq!(client.get("/livez").await.status, 200);
        idle.push(client);
    }
    let mut silent = Vec::new();
    for _ in 0..5 {
        for _ in 0..100 {
            silent.push(app.client().await);
        }
        // Those that have been silent for long enough make room.
        soon("an answer", async { while app.client().await.get("/livez").await.status != 200 {} }).await;
    }
    for client in &mut idle {
        assert_eq!(client.get("/livez").await.status, 200);
    }
    assert!(app.connections.len() < 100 + OVER_LIMIT, "{}", app.connections.len());
}

#[tokio::test]
async fn who_asks_is_answered_behind_silent_connections_when_all_others_are_busy() {
    let app = app("max_connections = 1").await;
    let mut busy = app.client().await;
    busy.ask("/ping").await;
    let mut silent = Vec::new();
    for _ in 0..2 * OVER_LIMIT {
        silent.push(app.client().await);
    }
    assert!([200, 503].contains(&app.client().await.get("/livez").await.status));
    assert_eq!(busy.answer().await.status, 200);
}

#[tokio::test]
async fn nothing_asked_on_a_new_connection_ends_it_and_a_late_request_does_not() {
    let app = app("header_timeout = '300ms'").await;
    let silent = app.client().await;
    let mut asked = app.client().await;
    assert_eq!(asked.get("/livez").await.status, 200);
    silent.ended().await;
    assert_eq!(asked.get("/livez").await.status, 200);
}

#[tokio::test]
async fn a_head_is_refused_beyond_its_limit_however_it_comes() {
    let app = app("max_head_bytes = 2000").await;
    for (length, status) in [(1990, 200), (2010, 431), (60_000, 431), (400_000, 431)] {
        let start = "GET /livez HTTP/1.1\r\nHost: test\r\nX-Long: ";
        let head = format!("{start}{}\r\n\r\n", "x".repeat(length - start.len() - 4));
        for size in [length, 700] {
            let mut client = app.client().await;
            for part in head.as_bytes().chunks(size) {
                client.send(part).await;
            }
            let answer = client.answer().await;
            assert_eq!(answer.status, status, "{length} by {size}: {answer:?}");
            if status != 200 {
                assert_last_problem(&answer, status);
                assert!(answer.header("x-request-id").is_some(), "{answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_hyper_refuses_has_an_id_and_a_problem_document() {
    let app = app("").await;
    let long = format!("GET /{} HTTP/1.1\r\nHost: test\r\n\r\n", "x".repeat(66_000));
    let many = format!("GET / HTTP/1.1\r\nHost: test\r\n{}\r\n", "X: y\r\n".repeat(200));
    let cases = [
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: test\r\nbad header\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: many\r\n\r\n", 400),
        (&many, 431),
        (&long, 431),
    ];
    for (request, status) in cases {
        let mut client = app.client().await;
        client.send(request).await;
        let answer = client.answer().await;
        assert_last_problem(&answer, status);
        assert!(answer.header("x-request-id").is_some_and(|id| id.contains("-r")), "{answer:?}");
        client.ended().await;
    }
}

/// A route that waits for the whole body.
fn take() -> Router<Shared> {
    Router::new().route("/take", post(async |body: Bytes| body))
}

#[tokio::test]
async fn a_body_that_stops_coming_is_answered_408_which_is_no_failure_of_the_service() {
    let app = spawn_app("[limits]\nbody_timeout = '300ms'", take()).await;
    for half in ["Content-Length: 4\r\n\r\n12", "Transfer-Encoding: chunked\r\n\r\n2\r\n12\r\n"] {
        let mut client = app.client().await;
        client.send(format!("POST /take HTTP/1.1\r\nHost: test\r\n{half}")).await;
        assert_last_problem(&client.answer().await, 408);
        client.ended().await;
        // Once the answer has begun, it can only be cut.
        let mut client = app.client().await;
        client.send(format!("POST /echo HTTP/1.1\r\nHost: test\r\n{half}")).await;
        assert_eq!(client.head().await.status, 200);
        assert!(!client.until_end().await.ends_with(b"0\r\n\r\n"));
    }
    assert_eq!(app.connections.counts().1, 0);
}

#[tokio::test]
async fn a_body_that_stops_coming_ends_for_a_handler_that_reads_on_after_an_error() {
    let count = async |body: Body| body.into_data_stream().count().await.to_string();
    let app = spawn_app("[limits]\nbody_timeout = '300ms'", Router::new().route("/count", post(count))).await;
    let mut client = app.client().await;
    client.send("POST /count HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n12").await;
    assert_eq!(client.answer().await.text(), "2");
}

#[tokio::test]
async fn a_body_that_dribbles_in_beyond_the_time_of_a_request_is_answered_408_too() {
    let app = spawn_app("[limits]\nrequest_timeout = '500ms'", take()).await;
    let mut client = app.client().await;
    client.send("POST /take HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n").await;
    while !client.has_answer_within(Duration::from_millis(50)).await {
        client.send("x").await;
    }
    assert_last_problem(&client.answer().await, 408);
    // One whose handler is slow is the service's to answer for.
    let app = spawn_app("ping_delay = '1h'\n[limits]\nrequest_timeout = '300ms'", take()).await;
    assert_eq!(app.client().await.get("/ping").await.status, 503);
    assert_eq!(app.connections.counts().1, 1);
}

#[tokio::test]
async fn an_answer_that_did_not_wait_for_the_whole_request_arrives() {
    let app = app("max_body_bytes = 1000").await;
    let body = vec![b'x'; 8 << 20];
    let sized = format!("Content-Length: {}\r\n\r\n", body.len());
    let chunked = "Transfer-Encoding: chunked\r\n\r\n800000\r\n".to_owned();
    for (path, framing, status) in
        [("/echo", &sized, 413), ("/nowhere", &sized, 413), ("/nowhere", &chunked, 404), ("/livez", &chunked, 405)]
    {
        for _ in 0..20 {
            // As most clients do it: everything is sent before anything is read.
            let mut client = app.client().await;
            client.send(format!("POST {path} HTTP/1.1\r\nHost: test\r\n{framing}")).await;
            client.send(&body).await;
            assert_last_problem(&client.answer().await, status);
        }
    }
}

/// All of it is in the kernel when the connection ends, where what comes afterwards would destroy it.
#[tokio::test]
async fn the_last_answer_arrives_whatever_is_asked_behind_it() {
    let app = app("").await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut client = Client::on(soon("connecting", socket.connect(app.address)).await.expect("connecting"));
    let body = "x".repeat(1_000_000);
    let length = body.len();
    client
        .send(format!(
            "POST /echo HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await;
    soon("the end of the answer", async {
        while app.connections.counts().0 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.ask("/livez").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(client.answer().await.body.len(), length);
    client.ended().await;
}

#[tokio::test]
async fn who_only_lingers_makes_room() {
    let app = app("max_connections = 1").await;
    let mut refused = app.client().await;
    refused.send("nonsense\r\n\r\n").await;
    assert_last_problem(&refused.answer().await, 400);
    assert_eq!(app.client().await.get("/livez").await.status, 200);
    refused.ended().await;
}

#[tokio::test]
async fn an_answer_arrives_whole_though_more_is_asked_on_a_connection_that_ends_with_it() {
    const LENGTH: usize = 1 << 20;
    let large = async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        vec![b'x'; LENGTH]
    };
    let app = spawn_app("", Router::new().route("/large", get(large))).await;
    let mut client = app.client().await;
    client.send("GET /large HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await;
    client.send("GET /livez HTTP/1.1\r\nHost: test\r\n\r\n".repeat(20_000)).await;
    // The service has written all of it before anything is read.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(client.answer().await.body.len(), LENGTH);
}

#[tokio::test]
async fn who_goes_on_sending_after_an_early_answer_is_not_read_for_ever() {
    let app = app("linger_timeout = '300ms'").await;
    let mut client = app.client().await;
    client.send("POST /nowhere HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n").await;
    assert_last_problem(&client.answer().await, 404);
    soon("the end", async {
        while !app.connections.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    drop(client);
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

#[tokio::test]
async fn what_blocks_gets_as_many_threads_as_there_may_be() {
    for most in [16, 64] {
        let process = Process::start(&[("unit.tasks_max", &most.to_string())]).await;
        let mut client = process.client().await;
        assert_eq!(client.get("/blocking").await.status, 200);
        assert_eq!(client.get("/livez").await.status, 200);
        let threads = process.status("Threads");
        // The test harness has one of its own.
        assert!(threads > most / 3 && threads <= most + 1, "{threads} of {most}");
        process.signal(Signal::KILL);
    }
}
