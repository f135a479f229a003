//! The tests of the service's own routes and settings. This file is yours.

use std::time::Duration;

use lab::client::soon;
use lab::load::{Kind, Load};

use crate::{client, start, traffic};

/// Restarts cost those nothing who ask for what `tests/lab/traffic.toml` lists. `make rehearse` does the same with more
/// clients, more often, and on a host.
#[tokio::test]
async fn restarts_lose_nothing() {
    let mut service = start("").await;
    let crowd = [(Kind::Pausing, 4), (Kind::Fresh, 2), (Kind::Slow, 2), (Kind::Uploading, 2), (Kind::Http2, 1)];
    let load = Load::start(service.address(), &traffic(), &crowd);
    soon("answers", async {
        while !load.is_settled() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    load.restarts_begin();
    for _ in 0..3 {
        let status = soon("a restart", service.restart()).await.expect("another process");
        assert!(status.success(), "{}", service.log());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    load.finish().await.spotless().unwrap_or_else(|error| panic!("{error:#}\n{}", service.log()));
}

#[tokio::test]
async fn it_says_that_it_lives() {
    let service = start("").await;
    assert_eq!(client(&service).await.get("/livez").await.status, 200);
}

#[tokio::test]
async fn ping_answers_after_its_delay() {
    let service = start("ping_delay = '300ms'").await;
    let mut client = client(&service).await;
    let began = std::time::Instant::now();
    let answer = client.get("/ping").await;
    assert_eq!((answer.status, answer.json()), (200, serde_json::json!({ "message": "pong" })));
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn echo_sends_a_body_back_as_it_comes() {
    let service = start("").await;
    let mut client = client(&service).await;
    assert_eq!(client.echo("a body").await.text(), "a body");
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert_eq!(client.head().await.status, 200);
    for part in ["one", "two", "six"] {
        client.send(format!("3\r\n{part}\r\n")).await;
        assert_eq!(client.chunk().await, part.as_bytes());
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"");
    assert_eq!(client.get("/livez").await.status, 200);
}

#[test]
fn ping_delay_is_a_duration() {
    for (value, good) in [("'0s'", true), ("'1h'", true), ("1", false), ("'-1s'", false)] {
        assert_eq!(service::config::Config::with(&format!("ping_delay = {value}")).is_ok(), good, "{value}");
    }
}
