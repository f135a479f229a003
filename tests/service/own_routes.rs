//! The tests of the service's own routes and settings. This file is yours.

use std::time::Duration;

use lab::http1::{Ask, Stays};
use lab::load::{Kind, Load};
use lab::rehearse::settle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{client, start, traffic};

/// Restarts cost those nothing who ask for what `tests/lab/traffic.toml` lists. `make rehearse` does the same with more
/// clients, more often, and on a host.
#[tokio::test]
async fn restarts_lose_nothing() {
    let mut service = start("").await;
    let crowd = [(Kind::PAUSING, 4), (Kind::FRESH, 2), (Kind::SLOW, 2), (Kind::UPLOADING, 2)];
    let load = Load::start(service.address(), &traffic(), &crowd);
    settle(&load).await.expect("answers");
    load.restarts_begin();
    for _ in 0..3 {
        service.restart().await.expect("another process");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    load.finish().await.spotless().unwrap_or_else(|error| panic!("{error:#}\n{}", service.log()));
}

#[tokio::test]
async fn it_says_that_it_lives() {
    let service = start("").await;
    assert_eq!(client(&service).await.exchange(&Ask::get("/livez", 200, None)).await, Ok(Stays::Open));
}

#[tokio::test]
async fn ping_answers_after_its_delay() {
    let service = start("ping_delay = '300ms'").await;
    let mut client = client(&service).await;
    let began = std::time::Instant::now();
    let pong = Ask::get("/ping", 200, Some(r#"{"message":"pong"}"#));
    assert_eq!(client.exchange(&pong).await, Ok(Stays::Open));
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn echo_sends_a_body_back_as_it_comes() {
    let service = start("").await;
    let mut client = client(&service).await;
    assert_eq!(client.exchange(&Ask::echo("/echo", 200, b"a body")).await, Ok(Stays::Open));

    let mut socket = TcpStream::connect(service.address()).await.unwrap();
    let mut answer = String::new();
    socket.write_all(b"POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    for part in ["3\r\none\r\n", "3\r\ntwo\r\n", "0\r\n\r\n"] {
        socket.write_all(part.as_bytes()).await.unwrap();
        while !answer.ends_with(part) {
            answer.push(socket.read_u8().await.unwrap().into());
        }
    }
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[test]
fn ping_delay_is_a_duration() {
    for (value, good) in [("'0s'", true), ("'1h'", true), ("1", false), ("'-1s'", false)] {
        assert_eq!(service::config::Config::with(&format!("ping_delay = {value}")).is_ok(), good, "{value}");
    }
}
