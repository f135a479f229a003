//! Holds the clients to their verdicts: every way in which a server can fail them is counted as what
//! it is, and an honest server has nothing to fear.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use lab::http1::{Ask, Connection, Fault, Place, Stays};
use lab::load::{Findings, Kind, Load};
use lab::record::Scenario;
use lab::traffic::{Request, Traffic};
use proof::gate::Edges;
use proof::kinds::{self, byte_by_byte, head_len, in_http10};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};

/// Does the same with every connection.
async fn server<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    address
}

/// Reads up to the end of a head.
async fn read_head(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    Some(head)
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn ask() -> Ask {
    Ask::get("/livez", 200, Some("ok"))
}

fn half_closing() -> Ask {
    Ask { half_closes: true, ..ask() }
}

/// What a client makes of an answer after which the server closes.
async fn verdict_on(answer: &'static [u8]) -> Result<Stays, Fault> {
    let address = server(async move |mut socket: TcpStream| {
        read_head(&mut socket).await;
        socket.write_all(answer).await.unwrap();
    })
    .await;
    Connection::open(address, None).await.unwrap().exchange(&ask()).await
}

#[tokio::test]
async fn whole_answers_are_whole() {
    assert_eq!(verdict_on(OK).await, Ok(Stays::Open));
    let chunked =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\nTrailer: t\r\n\r\n";
    assert_eq!(verdict_on(chunked).await, Ok(Stays::Open));
    let last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    assert_eq!(verdict_on(last).await, Ok(Stays::Announced));
    let after_100 = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    assert_eq!(verdict_on(after_100).await, Ok(Stays::Open));
}

#[tokio::test]
async fn cut_answers_are_lost_with_their_connection() {
    let cut: [&[u8]; 6] = [
        b"",
        b"HTTP/1.1 200 OK\r\nConte",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\no",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
    ];
    for answer in cut {
        let verdict = verdict_on(answer).await;
        assert!(matches!(verdict, Err(Fault::Lost { closed: true, .. })), "{answer:?}: {verdict:?}");
    }
}

#[tokio::test]
async fn wrong_answers_are_lost() {
    let wrong: [&[u8]; 7] = [
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nok\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ];
    for answer in wrong {
        let verdict = verdict_on(answer).await;
        assert!(matches!(verdict, Err(Fault::Lost { closed: false, .. })), "{answer:?}: {verdict:?}");
    }
}

#[tokio::test]
async fn a_reset_is_a_loss() {
    let address = server(async |mut socket: TcpStream| {
        socket.read_u8().await.unwrap();
        // Unread bytes make the kernel reset the connection.
    })
    .await;
    let mut connection = Connection::open(address, None).await.unwrap();
    let verdict = connection.exchange(&ask()).await;
    assert!(matches!(verdict, Err(Fault::Lost { closed: true, .. })), "{verdict:?}");
}

/// What a client that half-closes makes of `answer`, which comes once the end of its request is seen.
async fn verdict_on_half_close(answer: &'static [u8]) -> Result<Stays, Fault> {
    let address = server(async move |mut socket: TcpStream| {
        read_head(&mut socket).await;
        assert_eq!(socket.read(&mut [0]).await.unwrap(), 0, "the client has not closed its side");
        socket.write_all(answer).await.unwrap();
    })
    .await;
    Connection::open(address, None).await.unwrap().exchange(&half_closing()).await
}

#[tokio::test]
async fn a_half_closing_client_wants_its_answer_and_the_end_of_file() {
    assert_eq!(verdict_on_half_close(OK).await, Ok(Stays::Announced));
    let dropped = verdict_on_half_close(b"").await;
    assert!(matches!(dropped, Err(Fault::Lost { closed: true, .. })), "{dropped:?}");
    let more = verdict_on_half_close(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more").await;
    assert!(matches!(more, Err(Fault::Lost { closed: false, .. })), "{more:?}");
}

#[tokio::test]
async fn a_unix_socket_is_as_good() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = [0; 1024];
            while let Ok(1..) = socket.read(&mut head).await {
                socket.write_all(OK).await.unwrap();
            }
        }
    });
    let mut connection = Connection::open(Place::Unix(path), None).await.unwrap();
    assert_eq!(connection.exchange(&ask()).await, Ok(Stays::Open));
    assert_eq!(connection.rest(Duration::from_millis(1)).await, Ok(Stays::Open));
    assert_eq!(connection.exchange(&half_closing()).await, Ok(Stays::Announced));
    let nobody = Connection::open(Place::Unix(directory.path().join("nobody")), None).await;
    assert!(matches!(nobody, Err(Fault::Refused(_))));
}

#[tokio::test]
async fn nobody_listening_is_a_refusal() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert!(matches!(Connection::open(address, None).await, Err(Fault::Refused(_))));
}

/// What a client makes of `parting` words and a close while it rests.
async fn verdict_on_rest(parting: &'static [u8]) -> Result<Stays, Fault> {
    let address = server(async move |mut socket: TcpStream| {
        read_head(&mut socket).await;
        socket.write_all(OK).await.unwrap();
        // Not together with the answer.
        tokio::time::sleep(Duration::from_millis(50)).await;
        socket.write_all(parting).await.unwrap();
    })
    .await;
    let mut connection = Connection::open(address, None).await.unwrap();
    assert_eq!(connection.exchange(&ask()).await, Ok(Stays::Open));
    connection.rest(Duration::from_secs(30)).await
}

#[tokio::test]
async fn a_close_at_rest_counts_unless_announced() {
    assert!(matches!(verdict_on_rest(b"").await, Err(Fault::Closed(_))));
    assert!(matches!(verdict_on_rest(OK).await, Err(Fault::Closed(_))));
    let good_bye = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(verdict_on_rest(good_bye).await, Ok(Stays::Announced));
}

#[tokio::test]
async fn pieces_make_the_same_request() {
    let seen = Arc::new(Mutex::new(vec![]));
    let log = seen.clone();
    let address = server(move |mut socket: TcpStream| {
        let log = log.clone();
        async move {
            let mut bytes = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = socket.read(&mut bytes).await {
                log.lock().unwrap().extend_from_slice(&bytes[..length]);
            }
        }
    })
    .await;
    let whole = Ask::echo("/echo", 200, b"hello world");
    let plain = whole.pieces.concat();
    let chunked = Ask::chunked(Request::echo("/echo", 200, "hello world"), 6, Duration::ZERO);
    let chunks =
        b"POST /echo HTTP/1.1\r\nHost: lab\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n";
    let owners = "[[fast]]\nmethod = 'PUT'\npath = '/orders'\nheaders = { Accept = '*/*' }\nsend = '{}'\nstatus = 201";
    let order = Ask::of(Traffic::parse(owners).unwrap().fast[0].request());
    let put = b"PUT /orders HTTP/1.1\r\nHost: lab\r\nAccept: */*\r\nContent-Length: 2\r\n\r\n{}";
    for (ask, expected) in [
        (whole.clone(), plain.clone()),
        (whole.clone().in_two(7, Duration::from_millis(5)), plain.clone()),
        (whole.clone().in_pieces(10, Duration::from_millis(5)), plain.clone()),
        (byte_by_byte(whole.clone(), 0..head_len(&whole), Duration::from_millis(1)), plain.clone()),
        (byte_by_byte(whole.clone(), head_len(&whole)..plain.len(), Duration::from_millis(1)), plain),
        (in_http10(ask()), b"GET /livez HTTP/1.0\r\nHost: lab\r\n\r\n".to_vec()),
        (chunked, chunks.to_vec()),
        (order, put.to_vec()),
    ] {
        seen.lock().unwrap().clear();
        let mut connection = Connection::open(address, None).await.unwrap();
        // No answer comes; the request is what counts.
        let asked = tokio::time::timeout(Duration::from_secs(30), async {
            tokio::select! {
                verdict = connection.exchange(&ask) => panic!("{verdict:?}"),
                () = async {
                    while seen.lock().unwrap().len() < expected.len() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                } => {}
            }
        });
        asked.await.unwrap();
        assert_eq!(*seen.lock().unwrap(), expected);
    }
}

fn traffic() -> Traffic {
    let routes = r#"
        [[fast]]
        path = "/livez"
        status = 200
        [[slow]]
        path = "/ping"
        status = 200
        body = '{"message":"pong"}'
        [[upload]]
        path = "/echo"
        status = 200
    "#;
    Traffic::parse(routes).unwrap()
}

fn only_fast() -> Traffic {
    Traffic { fast: traffic().fast, ..Traffic::default() }
}

/// What one client of a kind counts until it has seen enough.
async fn counted(address: SocketAddr, traffic: &Traffic, kind: Kind, enough: impl Fn(Scenario) -> bool) -> Findings {
    let load = Load::start(address, traffic, &[(kind, 1)]);
    load.restarts_begin();
    while !enough(load.totals()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    load.finish().await
}

#[tokio::test]
async fn an_honest_server_loses_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let app = TowerToHyperService::new(proof::peer::app(Duration::from_millis(300)));
        let mut http = auto::Builder::new(TokioExecutor::new());
        // axum::serve drops whoever closes its side.
        http.http1().half_close(true);
        while let Ok((socket, _)) = listener.accept().await {
            let (http, app) = (http.clone(), app.clone());
            tokio::spawn(async move { http.serve_connection(TokioIo::new(socket), app).await.ok() });
        }
    });
    let load = Load::start(address, &traffic(), &kinds::ALL.map(|(kind, _)| (kind, 2)));
    while !load.is_settled() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    load.restarts_begin();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let findings = load.finish().await;
    assert!(findings.failures.is_empty(), "{:?}", findings.failures);
    assert_eq!(findings.moved, 0);
    assert!(findings.scenarios.iter().all(|scenario| scenario.answered >= 2));
}

#[tokio::test]
async fn an_answer_meant_for_another_is_a_loss() {
    let address = server(async |mut socket: TcpStream| {
        while let Some(head) = read_head(&mut socket).await {
            let body = if head.starts_with(b"POST") { "x".repeat(64) } else { "ok".into() };
            let mut rest = vec![0; if head.starts_with(b"POST") { 64 } else { 0 }];
            socket.read_exact(&mut rest).await.unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let findings = counted(address, &traffic(), Kind::BUSY, |totals| totals.lost > 0).await;
    assert!(findings.failures.iter().all(|failure| failure.what.contains("another body")));
}

#[tokio::test]
async fn an_idle_connection_closed_without_a_word_is_counted_and_missed() {
    let address = server(async |mut socket: TcpStream| {
        read_head(&mut socket).await;
        socket.write_all(OK).await.unwrap();
    })
    .await;
    let findings = counted(address, &only_fast(), Kind::IDLE, |totals| totals.closed > 0).await;
    let idle = &findings.scenarios[0];
    assert_eq!((idle.closed, idle.lost, idle.opened, idle.kept), (1, 0, 2, 0));
    assert_eq!(findings.moved, 1);
}

#[tokio::test]
async fn a_connection_retired_politely_is_not_closed_but_missed() {
    let address = server(async |mut socket: TcpStream| {
        read_head(&mut socket).await;
        let last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
        socket.write_all(last).await.unwrap();
    })
    .await;
    let findings = counted(address, &only_fast(), Kind::PAUSING, |totals| totals.answered > 2).await;
    let pausing = &findings.scenarios[0];
    assert_eq!((pausing.closed, pausing.lost, pausing.kept), (0, 0, 0));
    assert_eq!(findings.moved, 1);
}

#[tokio::test]
async fn a_loss_takes_its_connection_along() {
    let address = server(async |mut socket: TcpStream| {
        read_head(&mut socket).await;
    })
    .await;
    let findings = counted(address, &only_fast(), Kind::FRESH, |totals| totals.lost > 2).await;
    let fresh = &findings.scenarios[0];
    assert_eq!(fresh.lost, fresh.closed);
    assert_eq!(fresh.answered, 0);
}

#[tokio::test]
async fn refusals_are_counted() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let findings = counted(address, &only_fast(), Kind::PAUSING, |totals| totals.refused > 1).await;
    assert_eq!(findings.scenarios[0].lost, 0);
}

#[tokio::test]
async fn the_gate_is_between_the_last_answer_of_one_process_and_the_first_of_another() {
    let successor = Arc::new(AtomicBool::new(false));
    let serves = successor.clone();
    let address = server(move |mut socket: TcpStream| {
        let serves = serves.clone();
        async move {
            while read_head(&mut socket).await.is_some() {
                let process = if serves.load(Relaxed) { "b" } else { "a" };
                let head = format!("HTTP/1.1 200 OK\r\nX-Request-Id: {process}-1\r\nContent-Length: 2\r\n\r\nok");
                socket.write_all(head.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let load = Load::start(address, &only_fast(), &[(kinds::TIMED, 2)]);
    let answered = async |more| {
        let before = load.totals().answered;
        while load.totals().answered < before + more {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    answered(4).await;
    load.restarting();
    answered(10).await;
    successor.store(true, Relaxed);
    answered(4).await;
    load.restarted();
    let findings = load.finish().await;
    assert!(findings.failures.is_empty(), "{:?}", findings.failures);
    assert_eq!(Edges::of(&findings.notes).gaps().len(), 1, "{:?}", findings.notes);
}

/// An HTTP/2 server that ends each connection after 50 ms, with or without `GOAWAY`; each answer
/// takes `delay`.
async fn http2_server(polite: bool, delay: Duration) -> SocketAddr {
    server(move |socket| async move {
        let service = service_fn(move |_| async move {
            tokio::time::sleep(delay).await;
            Ok::<_, Infallible>(hyper::Response::new(Full::new(Bytes::from_static(b"ok"))))
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(socket), service);
        tokio::pin!(connection);
        tokio::select! {
            _ = &mut connection => {}
            () = tokio::time::sleep(Duration::from_millis(50)) => if polite {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn goaway_is_polite_and_loses_no_stream() {
    let address = http2_server(true, Duration::from_millis(5)).await;
    let findings = counted(address, &only_fast(), kinds::HTTP2, |totals| totals.opened > 10).await;
    assert!(findings.failures.is_empty(), "{:?}", findings.failures);
}

#[tokio::test]
async fn an_http2_connection_cut_off_is_closed_and_its_streams_are_lost() {
    let address = http2_server(false, Duration::from_secs(60)).await;
    let findings = counted(address, &only_fast(), kinds::HTTP2, |totals| totals.closed > 1).await;
    let http2 = &findings.scenarios[0];
    assert_eq!(http2.lost, 4 * http2.closed);
}
