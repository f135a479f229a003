//! What clients get: the routes, problem documents for whatever goes wrong, and a request id on everything.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use lab::traffic::Request;
use layers::problem::Problem;
use layers::trace::Trace;
use proof::http2;
use tokio::net::TcpStream;

use crate::application::Shared;
use crate::client::{Answer, Client};
use crate::start::spawn_app;

#[track_caller]
fn assert_problem(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    assert_eq!(answer.json()["status"], status, "{answer:?}");
    assert!(answer.json()["title"].is_string(), "{answer:?}");
    assert!(answer.header("x-request-id").is_some(), "{answer:?}");
}

/// The service with this setting, and a client of it.
async fn client_of(overrides: &str, routes: Router<Shared>) -> Client {
    spawn_app(overrides, routes).await.client().await
}

#[tokio::test]
async fn livez_answers_while_pings_wait() {
    let app = spawn_app("ping_delay = '10s'\nshutdown_timeout = '1h'", Router::new()).await;
    app.client().await.ask("/ping").await;
    assert_eq!(app.client().await.get("/livez").await.status, 200);
}

#[tokio::test]
async fn head_is_a_get_without_a_body() {
    let mut client = client_of("", Router::new()).await;
    client.send("HEAD /livez HTTP/1.1\r\nHost: test\r\n\r\n").await;
    let answer = client.head().await;
    assert_eq!(answer.status, 200);
    assert_ne!(answer.header("content-length"), Some("0"));
    assert_eq!(client.get("/livez").await.status, 200);
}

#[tokio::test]
async fn whatever_goes_wrong_is_a_problem_document() {
    let conflict = async || Err::<(), _>(Problem::new(StatusCode::CONFLICT, "the order was paid already"));
    let own = async || (StatusCode::UNPROCESSABLE_ENTITY, [("content-type", "application/json")], "{\"mine\":1}");
    let routes = Router::new()
        .route(
            "/panic",
            get(async || {
                if true {
                    panic!("a secret")
                }
            }),
        )
        .route("/conflict", get(conflict))
        .route("/own", get(own));
    let mut client = client_of("[limits]\nmax_body_bytes = 10", routes).await;

    assert_problem(&client.get("/nowhere").await, 404);
    let wrong_method = client.get("/echo").await;
    assert_problem(&wrong_method, 405);
    assert_eq!(wrong_method.header("allow"), Some("POST"));

    let panicked = client.get("/panic").await;
    assert_problem(&panicked, 500);
    assert!(!panicked.text().contains("secret"), "{panicked:?}");

    let conflict = client.get("/conflict").await;
    assert_problem(&conflict, 409);
    assert_eq!(conflict.json()["detail"], "the order was paid already");

    let own = client.get("/own").await;
    assert_eq!((own.status, own.text()), (422, "{\"mine\":1}"));

    // All of that on one connection, which goes on.
    assert_eq!(client.echo("ten bytes.").await.status, 200);
    let too_large = client.echo("eleven byte").await;
    assert_problem(&too_large, 413);
}

#[tokio::test]
async fn what_is_wrong_with_a_body_is_its_clients_fault_whoever_reads_it() {
    let count = post(async |body: Body| {
        let bytes = axum::body::to_bytes(body, usize::MAX).await?;
        Ok::<_, Problem>(bytes.len().to_string())
    });
    let app = spawn_app("[limits]\nmax_body_bytes = 10", Router::new().route("/count", count)).await;
    for (chunks, status, answered) in [
        ("5\r\nhello\r\n0\r\n\r\n", 200, "5"),
        ("b\r\neleven byte\r\n0\r\n\r\n", 413, "length limit exceeded"),
        ("b\r\neleven", 400, ""),
    ] {
        let mut client = app.client().await;
        client.send(format!("POST /count HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")).await;
        if status == 400 {
            client.close_side().await;
        }
        let answer = client.answer().await;
        if status != 200 {
            assert_problem(&answer, status);
        }
        assert!(answer.status == status && answer.text().contains(answered), "{answer:?}");
    }
}

#[tokio::test]
async fn a_panic_costs_no_other_request_anything() {
    let routes = Router::new().route(
        "/panic",
        get(async || {
            if true {
                panic!("on purpose")
            }
        }),
    );
    let app = spawn_app("ping_delay = '200ms'", routes).await;
    let mut other = app.client().await;
    other.ask("/ping").await;
    assert_eq!(app.client().await.get("/panic").await.status, 500);
    assert_eq!(other.answer().await.status, 200);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_503() {
    let routes = Router::new().route("/hang", get(async || std::future::pending::<()>().await));
    let app = spawn_app("[limits]\nrequest_timeout = '200ms'", routes).await;
    let mut client = app.client().await;
    let began = Instant::now();
    let answer = client.get("/hang").await;
    assert_problem(&answer, 503);
    assert!(answer.header("retry-after").is_some());
    assert!(began.elapsed() >= Duration::from_millis(200) && began.elapsed() < Duration::from_secs(10));
    assert_eq!(client.get("/livez").await.status, 200);
}

#[tokio::test]
async fn every_answer_has_a_request_id() {
    let mut client = client_of("", Router::new()).await;
    let first = client.get("/livez").await;
    let second = client.get("/nowhere").await;
    assert_ne!(first.header("x-request-id").unwrap(), second.header("x-request-id").unwrap());
}

#[tokio::test]
async fn a_request_id_is_the_clients_own_if_it_is_one_short_and_plain() {
    let seen = get(async |headers: HeaderMap| {
        let ids = headers.get_all("x-request-id").iter().map(|id| format!("{}\n", id.to_str().unwrap()));
        ids.collect::<String>()
    });
    let mut client = client_of("", Router::new().route("/seen", seen)).await;
    let longest = "i".repeat(128);
    let plain = ["my-own", "7", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "Root=1-6789:abc/+@x._~", &longest];
    let (long, longer, longest) = ("i".repeat(129), "i".repeat(6_000), "i".repeat(10_000));
    let odd = ["", " ", "a b", "a\tb", "a\"b", "a,b", "a;b", "{a}", "a\\b", "ä", "a\u{9b}b", &long, &longer, &longest];
    let lines = |id: &&str| format!("X-Request-Id: {id}\r\n");
    let two = |one: &str, other: &str| lines(&one) + &lines(&other);
    let taken = plain.iter().map(|id| (lines(id), Some(*id)));
    let refused = odd.iter().map(lines).chain([two("a", "b"), two("a", "a"), two("a", ""), two("", "a")]);
    for (header, id) in taken.chain(refused.map(|header| (header, None))) {
        client.send(format!("GET /seen HTTP/1.1\r\nHost: test\r\n{header}\r\n")).await;
        let answer = client.answer().await;
        let given = answer.header("x-request-id").unwrap();
        match id {
            Some(id) => assert_eq!(given, id),
            None => assert!(given.len() < 50 && given.contains('-') && !header.contains(given), "{given} for {header}"),
        }
        // What is behind the service sees the same, once.
        assert_eq!(answer.text(), format!("{given}\n"));
    }
}

#[tokio::test]
async fn a_clients_address_is_known_by_the_name_that_libraries_ask_for() {
    let whoami = get(async |ConnectInfo(address): ConnectInfo<SocketAddr>| address.to_string());
    let app = spawn_app("", Router::new().route("/whoami", whoami)).await;
    let stream = TcpStream::connect(app.address).await.unwrap();
    let own = stream.local_addr().unwrap();
    assert_eq!(Client::on(stream).get("/whoami").await.text(), own.to_string());
    let connection = http2::Connection::open(app.address).await.unwrap();
    let answer = http2::exchange(&mut connection.stream(), &Request::get("/whoami", 200, None)).await;
    assert_eq!(answer, http2::Outcome::Answered);
}

#[tokio::test]
async fn a_request_that_does_not_say_whom_it_is_for_is_refused() {
    let seen = get(async |headers: HeaderMap| headers["host"].to_str().unwrap().to_owned());
    let app = spawn_app("", Router::new().route("/seen", seen)).await;
    for (request, status) in [
        ("GET /livez HTTP/1.1\r\n", 400),
        ("GET /livez HTTP/1.1\r\nHost: test\r\n", 200),
        ("GET /livez HTTP/1.1\r\nHost:\r\n", 200),
        ("GET /livez HTTP/1.1\r\nHost: a b\r\n", 400),
        ("GET /livez HTTP/1.1\r\nHost: test\r\nHost: test\r\n", 400),
        ("GET /livez HTTP/1.0\r\n", 200),
        ("GET /livez HTTP/1.0\r\nHost: test\r\nHost: other\r\n", 400),
        ("GET http://test/seen HTTP/1.1\r\nHost: other\r\n", 200),
        ("GET http://test/seen HTTP/1.1\r\n", 400),
        ("GET http://user:word@test/seen HTTP/1.1\r\nHost: test\r\n", 400),
        ("GET /livez#part HTTP/1.1\r\nHost: test\r\n", 400),
        ("GET /livez?a#b HTTP/1.0\r\n", 400),
        ("GET http://test/seen#part HTTP/1.1\r\nHost: test\r\n", 400),
        ("\r\nGET /livez HTTP/1.1\r\nHost: test\r\nX: #\r\n", 200),
        ("GET /livez HTTP/1.1\nHost: test\nX: #\r\n", 200),
    ] {
        let mut client = app.client().await;
        client.send(format!("{request}\r\n")).await;
        let answer = client.answer().await;
        if status == 200 {
            assert_eq!(answer.status, 200, "{request}: {answer:?}");
        } else {
            assert_problem(&answer, status);
        }
        if request.contains("/seen") && status == 200 {
            assert_eq!(answer.text(), "test", "{request}");
        }
    }
}

/// hyper passes on what is chunked at last, whatever it is encoded with beside.
#[tokio::test]
async fn a_body_that_was_encoded_for_the_transfer_in_other_ways_is_refused() {
    let app = spawn_app("", Router::new()).await;
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    for (coding, status) in [("chunked", 200), ("chunked, chunked", 400), ("gzip, chunked", 400)] {
        let mut client = app.client().await;
        client.send(format!("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: {coding}\r\n\r\n{chunks}")).await;
        let answer = client.answer().await;
        match status {
            200 => assert_eq!((answer.status, answer.text()), (200, "hello")),
            _ => assert_problem(&answer, status),
        }
    }
}

#[tokio::test]
async fn http_2_is_served_on_the_same_port_with_prior_knowledge() {
    let app = spawn_app("ping_delay = '50ms'", Router::new()).await;
    let connection = http2::Connection::open(app.address).await.unwrap();
    let asks = [
        Request::get("/livez", 200, None),
        Request::get("/ping", 200, Some("{\"message\":\"pong\"}")),
        Request::echo("/echo", 200, "a body"),
        Request::get("/nowhere", 404, None),
    ];
    for ask in &asks {
        assert_eq!(http2::exchange(&mut connection.stream(), ask).await, http2::Outcome::Answered);
    }
    assert_eq!(connection.end().await, (0, Ok(())));
}

#[tokio::test]
async fn a_trace_is_taken_along_and_one_that_makes_no_sense_begins_anew() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    // Two calls of one request, and the states that its trace came with.
    let calls = get(async |trace: Trace| {
        let calls = [trace.headers(), trace.headers()];
        let states: Vec<_> = calls[0].get_all("tracestate").iter().map(|state| state.to_str().unwrap()).collect();
        let parents = calls.iter().map(|headers| headers["traceparent"].to_str().unwrap());
        parents.chain(states).collect::<Vec<_>>().join("\n")
    });
    let mut client = client_of("", Router::new().route("/calls", calls)).await;
    let id = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-";
    let taken = [(format!("{id}01"), "01"), (format!("{id}00"), "00"), (format!("{id}ff"), "01")];
    let later = [(format!("cc{}01", &id[2..]), "01"), (format!("cc{}01-more", &id[2..]), "01")];
    let refused = [
        String::new(),
        format!("{id}1"),
        format!("{id}01-more"),
        format!("{id}01 "),
        format!("ff{}01", &id[2..]),
        format!("{id}0x"),
        format!("{id}+1"),
        format!("{id}0A"),
        id.to_uppercase() + "01",
        format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00-{TRACE}0-00f067aa0ba902b7-01"),
        format!("{id}01\r\ntraceparent: {id}01"),
    ];
    let taken = taken.into_iter().chain(later).map(|(parent, flags)| (parent, Some(flags)));
    for (parent, flags) in taken.chain(refused.into_iter().map(|parent| (parent, None))) {
        // Whitespace around a value is none of it.
        let is_same = flags.is_some() || parent.ends_with(' ');
        client
            .send(format!(
                "GET /calls HTTP/1.1\r\nHost: test\r\ntraceparent: {parent}\r\ntracestate: a=1\r\ntracestate: b=2\r\n\r\n"
            ))
            .await;
        let answer = client.answer().await;
        let lines: Vec<&str> = answer.text().lines().collect();
        let trace = if is_same { TRACE.to_owned() } else { answer.header("x-request-id").unwrap().replace('-', "") };
        for call in &lines[..2] {
            assert!(call.starts_with(&format!("00-{trace}-")) && call.len() == id.len() + 2, "{parent}: {call}");
            assert!(call.ends_with(flags.unwrap_or("01")), "{parent}: {call}");
        }
        assert_ne!(lines[0], lines[1]);
        assert_eq!(&lines[2..], if is_same { &["a=1", "b=2"][..] } else { &[] }, "{parent}");
    }
}

#[tokio::test]
async fn a_trace_that_begins_with_a_clients_own_id_is_the_same_wherever_that_is_asked() {
    let traced = get(async |trace: Trace| trace.id().to_owned());
    let mut client = client_of("", Router::new().route("/traced", traced)).await;
    let mut traces = Vec::new();
    for id in ["f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "short", "short", "other", &"0".repeat(32)] {
        client.send(format!("GET /traced HTTP/1.1\r\nHost: test\r\nX-Request-Id: {id}\r\n\r\n")).await;
        traces.push(client.answer().await.text().to_owned());
    }
    assert_eq!(traces[0], "f81d4fae7dec11d0a76500a0c91e6bf6");
    assert!(
        traces[1] == traces[2]
            && traces[1] != traces[3]
            && traces.iter().all(|trace| trace.len() == 32 && trace.contains(|digit| digit != '0')),
        "{traces:?}"
    );
}
