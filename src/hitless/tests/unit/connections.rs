//! What the connections do by themselves, with a server behind it. `tests/fuzz` holds it to losing nobody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::routing::{get, post};
use axum::{Router, ServiceExt};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::connection::{Io, Origin, Peer, QUIET, Socket};
use super::connections::{Connections, Limits, Mode, Obstacle, YIELDS_AFTER};
use super::systemd::ListeningSocket;
use super::{Connection, Listener, Track};

/// A request, in two pieces.
const HEAD: (&str, &str) = ("GET / HTTP/1.1\r\nHo", "st: test\r\n\r\n");

async fn send(client: &mut TcpStream, text: &str) {
    client.write_all(text.as_bytes()).await.unwrap();
}

async fn is_answered(client: &mut TcpStream) {
    let mut answer = [0; 1024];
    let length = tokio::time::timeout(Duration::from_secs(30), client.read(&mut answer)).await.unwrap().unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"), "{:?}", answer[..length].escape_ascii());
}

async fn ask(client: &mut TcpStream) {
    send(client, HEAD.0).await;
    send(client, HEAD.1).await;
    is_answered(client).await;
}

#[tokio::test]
async fn who_is_quiet_is_detached_before_the_pause_and_is_back_when_there_is_none() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let connections = Arc::new(Connections::default());
    let listener = Listener::new(vec![ListeningSocket::Tcp(socket)], Arc::clone(&connections), 10).unwrap();
    let app = Track(Router::new().route("/", get(|| async {})));
    tokio::spawn(axum::serve(listener, app.into_make_service_with_connect_info::<Connection>()).into_future());
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = TcpStream::connect(address).await.unwrap();
        ask(&mut client).await;
        clients.push(client);
    }
    send(&mut clients[0], HEAD.0).await;
    tokio::time::sleep(QUIET).await;

    let began = Instant::now();
    connections.detach_idle(Duration::from_secs(30)).await;

    assert!(began.elapsed() < Duration::from_secs(15), "it waits for others as well");
    assert_eq!((connections.len(), connections.parked(), connections.is_paused()), (1, 3, false));
    send(&mut clients[0], HEAD.1).await;
    is_answered(&mut clients[0]).await;
    assert_eq!(connections.parked(), 3);
    connections.resume();
    while connections.len() < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // They are as quiet as before.
    connections.detach_idle(Duration::from_secs(30)).await;
    assert_eq!((connections.len(), connections.parked()), (1, 3));
    connections.resume();
    for client in &mut clients {
        ask(client).await;
    }
    assert_eq!((connections.len(), connections.parked()), (4, 0));
}

/// Who is between requests, or says that its connection ends, is not waited for; who waits for its answer is, and no longer.
#[tokio::test]
async fn a_pause_waits_for_answers_and_for_nothing_else() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let connections = Arc::new(Connections::default());
    let listener = Listener::new(vec![ListeningSocket::Tcp(socket)], Arc::clone(&connections), 10).unwrap();
    let go_on = Arc::new(Notify::new());
    let goes_on = Arc::clone(&go_on);
    let work = || async move { goes_on.notified().await };
    let app = Track(Router::new().route("/", get(|| async {})).route("/work", get(work)));
    tokio::spawn(axum::serve(listener, app.into_make_service_with_connect_info::<Connection>()).into_future());
    let mut clients = Vec::new();
    for (before, then) in [(0, ""), (1, ""), (2, HEAD.0), (1, "GET /work HTTP/1.1\r\nHost: test\r\n\r\n")] {
        let mut client = TcpStream::connect(address).await.unwrap();
        for _ in 0..before {
            ask(&mut client).await;
        }
        send(&mut client, then).await;
        clients.push(client);
    }
    let mut ending = TcpStream::connect(address).await.unwrap();
    send(&mut ending, "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await;
    is_answered(&mut ending).await;
    tokio::time::sleep(Duration::from_millis(300)).await;

    let began = Instant::now();
    connections.pause();
    let waits = tokio::time::timeout(Duration::from_millis(300), connections.detached(None));
    assert!(waits.await.is_err(), "a client waits for its answer");
    assert_eq!(connections.parked(), 3);
    let left: Vec<_> = connections.left().into_iter().map(|cut| (cut.at_work, cut.to_string())).collect();
    assert!(matches!(&left[..], [(true, work)] if work.starts_with("GET /work of 127.0.0.1:")), "{left:?}");
    go_on.notify_one();
    tokio::time::timeout(Duration::from_secs(30), connections.detached(None)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(15), "it waits for others as well");
    is_answered(&mut clients[3]).await;

    connections.resume();
    send(&mut clients[2], HEAD.1).await;
    is_answered(&mut clients[2]).await;
    for client in &mut clients {
        ask(client).await;
    }
}

/// What clients send at first, and a moment later, and whether they read: nobody has any patience left when the handler gets to
/// know of the request, or answers. Those that have that moment are as good as those that need none; others are let go of.
#[tokio::test]
async fn who_has_just_asked_or_was_just_answered_is_waited_for_and_no_longer_than_that_takes() {
    let h1 = |head: &str| format!("{head} HTTP/1.1\r\nHost: test\r\n").into_bytes();
    let whole = |path: &str| [h1(path), b"\r\n".to_vec()].concat();
    let posted = [h1("POST /b"), b"Content-Length: 4\r\n\r\n".to_vec()].concat();
    for (request, then, reads, expected) in [
        (whole("GET /l"), "", true, (1, 0)),
        (whole("GET /l"), "", false, (0, 1)),
        (whole("GET /s"), "", true, (1, 0)),
        (whole("GET /s"), "", false, (1, 0)),
        (posted.clone(), "body", true, (1, 0)),
        (posted, "", true, (0, 1)),
        (ask_http2(b's'), "", true, (0, 0)),
    ] {
        let row = format!("{}, then {then}, it reads: {reads}", request.escape_ascii());
        let mut seen = Vec::new();
        // A machine that is busy takes that moment itself, now and then.
        while !seen.contains(&expected) && seen.len() < 10 {
            seen.push(let_go_of(&request, then, reads).await);
        }
        assert!(seen.contains(&expected), "{row}: {seen:?}");
    }
}

/// How many connections are parked, and how many requests are left, when one of these is in flight and there is no patience.
async fn let_go_of(request: &[u8], then: &str, reads: bool) -> (usize, usize) {
    let go_on = Arc::new(Notify::new());
    let work = Arc::clone(&go_on);
    let wait = move |request: axum::extract::Request, next: axum::middleware::Next| {
        let work = Arc::clone(&work);
        async move {
            if request.method() != "POST" {
                work.notified().await;
            }
            next.run(request).await
        }
    };
    // More than the kernel takes.
    let large = || async { vec![0; 16 << 20] };
    let streamed = || async {
        let part = |time| async move {
            tokio::time::sleep(Duration::from_millis(time)).await;
            Ok::<_, std::io::Error>("part")
        };
        axum::body::Body::from_stream(futures_util::stream::iter([0, 30]).then(part))
    };
    let app = Router::new().route("/l", get(large)).route("/s", get(streamed));
    let app = app.route("/b", post(|_: axum::body::Bytes| async {})).layer(axum::middleware::from_fn(wait));
    let connections = Arc::new(Connections::default());
    let told = CancellationToken::new();
    let mut client = TcpStream::connect(serve(&connections, app, 10, told.clone())).await.unwrap();
    client.write_all(request).await.unwrap();
    while connections.left().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if request.starts_with(b"PRI") {
        // By HTTP/2 it is who has been at work for a while.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    connections.set_mode(Mode::HandingOver);
    connections.pause();
    let leaves = async {
        connections.detached_but_for_unbounded(Duration::ZERO).await;
        told.cancel();
        connections.all_gone(Duration::ZERO, Duration::ZERO).await;
        (connections.parked(), connections.left().len())
    };
    let takes = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        go_on.notify_one();
        client.write_all(then.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        let mut answer = vec![0; 1 << 20];
        while reads && client.read(&mut answer).await.is_ok_and(|count| count > 0) {}
        std::future::pending().await
    };
    tokio::time::timeout(Duration::from_secs(30), async {
        tokio::select! {
            seen = leaves => seen,
            () = takes => unreachable!(),
        }
    })
    .await
    .expect("it waits for who does not go on")
}

/// hyper has the head, and dispatches its request when it is polled next, when room is wanted, or idle connections are to end.
#[tokio::test]
async fn who_has_asked_is_not_taken_for_one_that_is_idle_before_the_request_is_dispatched() {
    for by_limit in [false, true] {
        let connections = Arc::new(Connections::default());
        let connect = || {
            let (here, there) = UnixStream::pair().unwrap();
            (connections.admit(Socket::Right(here), Peer::Unix, Vec::new(), Origin::Accepted), there)
        };
        let (mut asks, mut client) = connect();
        let _silent: Vec<_> = (0..65).map(|_| connect()).collect();
        client.write_all([HEAD.0, HEAD.1].concat().as_bytes()).await.unwrap();
        let mut head = [0; 1024];
        assert_eq!(asks.read(&mut head).await.unwrap(), HEAD.0.len() + HEAD.1.len());
        if by_limit {
            connections.expire_idle(Duration::ZERO);
        } else {
            while connections.make_room(true, false) {}
        }
        let more = futures_util::future::poll_immediate(asks.read(&mut head)).await;
        assert!(more.is_none(), "{by_limit}: {more:?}");
    }
}

/// Requests of HTTP/2 ask for their connection's place at the same time, and one is all that it has.
#[tokio::test]
async fn a_connection_over_the_limit_is_counted_once_however_often_it_gets_its_place() {
    let connections = Arc::new(Connections::default());
    let connect = |origin| {
        let (here, _) = UnixStream::pair().unwrap();
        connections.admit(Socket::Right(here), Peer::Unix, Vec::new(), origin)
    };
    connections.set_places(10, 0);
    let over = [connect(Origin::OverLimit), connect(Origin::OverLimit)];
    for _ in 0..3 {
        assert!(connections.give_place(over[0].connection()));
    }
    drop(over);
    connections.set_places(1, 0);
    let _served = connect(Origin::Adopted);
    let over = connect(Origin::OverLimit);
    assert!(!connections.give_place(over.connection()), "there is one place, and somebody has it");
}

/// Clients of HTTP/2, what each sends after its preface, and what it is to a service that would like a calm moment.
#[tokio::test]
async fn an_http2_client_that_stands_still_is_in_the_way_and_a_handler_at_work_is_waited_for() {
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // HEADERS of stream 1, whole, and those of a POST whose body is to follow.
    let asked = |path: u8| [b"\0\0\x0c\x01\x05\0\0\0\x01\x82\x86\x04\x02/", &[path][..], b"\x01\x04test"].concat();
    let posted = |path: u8| [b"\0\0\x0c\x01\x04\0\0\0\x01\x83\x86\x04\x02/", &[path][..], b"\x01\x04test"].concat();
    let cases = [
        (vec![], Obstacle::None),
        (asked(b'q'), Obstacle::None),
        (asked(b'l'), Obstacle::Unbounded),
        (asked(b'w'), Obstacle::Bounded),
        (posted(b'b'), Obstacle::Unbounded),
        // Those that are reset are nobody's business any more.
        ([asked(b'w'), b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08".to_vec()].concat(), Obstacle::None),
        ([posted(b'b'), b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08".to_vec()].concat(), Obstacle::None),
    ];
    for (request, expected) in cases {
        let began = Instant::now();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let connections = Arc::new(Connections::default());
        let listener = Listener::new(vec![ListeningSocket::Tcp(socket)], Arc::clone(&connections), 10).unwrap();
        let app = Router::new()
            .route("/q", get(|| async {}))
            .route("/l", get(|| async { vec![0; 1 << 20] }))
            .route("/w", get(std::future::pending::<()>))
            .route("/b", post(|_: axum::body::Bytes| async {}));
        let app = Track(app).into_make_service_with_connect_info::<Connection>();
        tokio::spawn(axum::serve(listener, app).into_future());
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&[HELLO, &request].concat()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(connections.obstacle(Duration::from_millis(100)), expected, "{}", request.escape_ascii());
        // Of HTTP/2 those requests are waited for that began before.
        let is_awaited = async |before| {
            tokio::time::timeout(Duration::from_millis(100), connections.detached(before)).await.is_err()
        };
        assert_eq!(is_awaited(Some(Instant::now())).await, expected != Obstacle::None, "{}", request.escape_ascii());
        assert!(!is_awaited(Some(began)).await && !is_awaited(None).await);
    }
}

/// The connections of a service that is full, each older than the next, in the order in which they make room.
#[tokio::test]
async fn who_has_been_idle_longest_makes_room_first_and_who_has_asked_nothing_before_the_others() {
    const YIELDS: Duration = Duration::from_millis(1050);
    // Those on which something was asked (another process has handed them over), how long after them the others came
    // on which nothing was asked, and who is to make room after that time once more.
    let full = async |asked: usize, silent: usize, between: Duration, after: Duration| {
        let connections = Arc::new(Connections::default());
        let mut all = Vec::new();
        for number in 0..asked + silent {
            if number == asked {
                tokio::time::sleep(between).await;
            }
            let (here, there) = UnixStream::pair().unwrap();
            let origin = if number < asked { Origin::Adopted } else { Origin::Accepted };
            all.push((connections.admit(Socket::Right(here), Peer::Unix, Vec::new(), origin), there));
        }
        let came = Instant::now();
        assert!(
            silent > 64 || !connections.make_room(false, false) || came.elapsed() + between > YIELDS,
            "nobody has been idle for long"
        );
        tokio::time::sleep(after).await;
        let mut order = Vec::new();
        while connections.make_room(false, false) {
            let left =
                |(number, (io, _)): (usize, &(Io, UnixStream))| io.connection().idle().is_none().then_some(number);
            let gone = all.iter().enumerate().filter_map(left).filter(|number| !order.contains(number));
            order.extend(gone.collect::<Vec<_>>());
        }
        (order, came.elapsed())
    };
    let zero = Duration::ZERO;
    let little = Duration::from_millis(300);
    let (few, many, none, others, flood, no_flood) = tokio::join!(
        full(3, 2, zero, YIELDS),
        full(10, 0, zero, YIELDS),
        full(0, 0, zero, zero),
        full(3, 2, YIELDS, zero),
        full(1, 65, zero, little),
        full(1, 64, zero, little),
    );
    assert_eq!(few.0, [3, 4, 0, 1, 2]);
    assert_eq!(many.0, Vec::from_iter(0..10));
    assert!(none.0.is_empty());
    assert_eq!(others.0[..3], [0, 1, 2]);
    assert_eq!(flood.0[..64], Vec::from_iter(1..65));
    // Unless this machine took so long that they are idle for long all the same.
    assert!(no_flood.0.is_empty() || no_flood.1 > YIELDS / 2, "{no_flood:?}");
}

#[tokio::test]
async fn a_flood_makes_room_at_once_for_who_asks_and_nobody_else_does_where_that_is_no_room_yet() {
    for (silent, asked, of_flood, expected) in [
        (65, true, false, true),
        (65, true, true, true),
        (64, true, false, false),
        (64, false, true, false),
        (0, false, true, false),
    ] {
        let connections = Arc::new(Connections::default());
        let connect = |origin| {
            let (here, there) = UnixStream::pair().unwrap();
            (connections.admit(Socket::Right(here), Peer::Unix, Vec::new(), origin), there)
        };
        let _others: Vec<_> = (0..10).map(|_| connect(Origin::Adopted)).collect();
        if !expected && silent == 0 {
            tokio::time::sleep(YIELDS_AFTER).await;
            assert!(connections.make_room(false, false), "they have been idle for long");
        }
        // Those of the process before, on which nothing was asked there, are no better.
        let _silent: Vec<_> =
            (0..silent).map(|n| connect(if n % 2 == 0 { Origin::Accepted } else { Origin::Unasked })).collect();
        assert_eq!(connections.make_room(asked, of_flood), expected, "{silent} {asked} {of_flood}");
        assert_eq!(connections.yielding(), usize::from(expected) + usize::from(silent == 0));
        drop(_silent);
        drop(_others);
        assert_eq!(connections.yielding(), 0);
        assert!(!connections.make_room(true, false), "what has gone makes no room");
    }
}

#[tokio::test]
async fn guests_are_counted_apart_as_far_as_there_is_room_for_them() {
    let connections = Arc::new(Connections::default());
    let admit =
        |origin| connections.admit(Socket::Right(UnixStream::pair().unwrap().0), Peer::Unix, Vec::new(), origin);
    let others = [Origin::Accepted, Origin::Adopted].map(admit);
    let guests = [Origin::Guest; 3].map(admit);
    let without = || {
        [0, 2, 3, 9].map(|places| {
            connections.set_places(10, places);
            connections.len_without_guests()
        })
    };
    assert_eq!(without(), [5, 3, 2, 2]);
    let [one, _two, _three] = guests;
    drop(one);
    assert_eq!(without(), [4, 2, 2, 2]);
    drop(others);
    assert_eq!(without(), [2, 0, 0, 0]);
}

#[tokio::test]
async fn a_flood_makes_room_at_once_for_who_asks_and_where_only_a_flood_is_to_nobody_else_does() {
    let full = |count, origin| {
        let connections = Arc::new(Connections::default());
        let admit = |_| connections.admit(Socket::Right(UnixStream::pair().unwrap().0), Peer::Unix, Vec::new(), origin);
        let all: Vec<_> = (0..count).map(admit).collect();
        (connections, all)
    };
    let (flood, new) = full(65, Origin::Accepted);
    let (asked, adopted) = full(3, Origin::Adopted);
    let (unasked, silent) = full(3, Origin::Unasked);
    assert!(flood.make_room(true, false));
    assert!(!asked.make_room(true, false) && !unasked.make_room(true, false), "they are no flood, and new");
    tokio::time::sleep(Duration::from_millis(1050)).await;
    assert!(!asked.make_room(false, true) && !unasked.make_room(false, true));
    assert!(asked.make_room(false, false) && unasked.make_room(false, false));
    assert!(flood.make_room(false, true));
    let yielding = || [&flood, &asked, &unasked].map(|connections| connections.yielding());
    assert_eq!(yielding(), [2, 1, 1]);
    drop((new, adopted, silent));
    assert_eq!(yielding(), [0; 3], "they have gone");
}

/// The beginning of an HTTP/2 connection whose windows are as they are by default, and a request of its first stream.
const HELLO_HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn ask_http2(path: u8) -> Vec<u8> {
    [HELLO_HTTP2, b"\0\0\x0c\x01\x05\0\0\0\x01\x82\x86\x04\x02/", &[path], b"\x01\x04test"].concat()
}

/// A server of `connections`, which ends when `told`.
fn serve(connections: &Arc<Connections>, app: Router, most: usize, told: CancellationToken) -> SocketAddr {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let listener = Listener::new(vec![ListeningSocket::Tcp(socket)], Arc::clone(connections), most).unwrap();
    let app = Track(app).into_make_service_with_connect_info::<Connection>();
    tokio::spawn(axum::serve(listener, app).with_graceful_shutdown(told.cancelled_owned()).into_future());
    address
}

#[tokio::test]
async fn who_asks_while_goodbye_is_said_is_answered() {
    let connections = Arc::new(Connections::default());
    let app = Router::new().route("/w", get(|| async { tokio::time::sleep(Duration::from_secs(1)).await }));
    let mut client = TcpStream::connect(serve(&connections, app, 10, CancellationToken::new())).await.unwrap();
    client.write_all(HELLO_HTTP2).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let asks = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.write_all(&ask_http2(b'w')[HELLO_HTTP2.len()..]).await.unwrap();
    };
    tokio::join!(connections.all_gone(Duration::from_millis(100), Duration::from_millis(600)), asks);
    let left = connections.left();
    assert!(left.iter().all(|cut| !cut.at_work), "{left:?}");
}

#[tokio::test]
async fn a_handler_by_http2_is_waited_for_whatever_was_written_on_its_connection() {
    let connections = Arc::new(Connections::default());
    let app = Router::new().route("/w", get(|| async { tokio::time::sleep(Duration::from_secs(1)).await }));
    let told = CancellationToken::new();
    let mut client = TcpStream::connect(serve(&connections, app, 10, told.clone())).await.unwrap();
    client.write_all(&ask_http2(b'w')).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    connections.set_mode(Mode::HandingOver);
    connections.pause();
    // What hyper says of its end is written, and nothing is read after it.
    told.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    connections.all_gone(Duration::ZERO, Duration::ZERO).await;
    assert!(!connections.left().iter().any(|cut| cut.at_work), "{:?}", connections.left());
}

#[tokio::test]
async fn a_client_of_http2_that_never_hears_keeps_no_other_from_being_served() {
    let connections = Arc::new(Connections::default());
    let address = serve(&connections, Router::new().route("/", get(|| async {})), 10, CancellationToken::new());
    let mut quiet = TcpStream::connect(address).await.unwrap();
    ask(&mut quiet).await;
    let mut mute = TcpStream::connect(address).await.unwrap();
    mute.write_all(HELLO_HTTP2).await.unwrap();
    tokio::time::sleep(QUIET * 2).await;
    let patience = Duration::from_secs(10);
    let tells = async {
        connections.tell_http2(patience).await;
        panic!("it has heard");
    };
    let asks = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            ask(&mut quiet).await;
        }
    };
    tokio::select! {
        () = tells => {}
        answered = tokio::time::timeout(patience / 2, asks) => answered.expect("nobody is served"),
    }
    // Nor is it waited for when the others are detached.
    tokio::time::sleep(QUIET * 2).await;
    tokio::time::timeout(patience / 2, connections.detach_idle(patience)).await.expect("the others are not detached");
    assert_eq!(connections.parked(), 1);
}

/// Silent ones, and those that have begun a head: what is told to them, and read of them, takes its time.
#[tokio::test]
async fn a_flood_makes_room_however_its_connections_end() {
    let connections =
        Arc::new(Connections::new(Limits { linger_timeout: Duration::from_secs(60), ..Limits::unbounded() }));
    let address = serve(&connections, Router::new().route("/", get(|| async {})), 100, CancellationToken::new());
    for first in ["", "G", "PRI"] {
        let mut others = Vec::new();
        for _ in 0..220 {
            let mut other = TcpStream::connect(address).await.unwrap();
            send(&mut other, first).await;
            others.push(other);
        }
        let mut client = TcpStream::connect(address).await.unwrap();
        send(&mut client, "GET / HTTP/1.1\r\nHost: test\r\n\r\n").await;
        is_answered(&mut client).await;
    }
}

#[tokio::test]
async fn who_holds_little_for_long_is_not_closed_before_who_holds_much() {
    let connections = Arc::new(Connections::new(Limits { held_bytes: 1 << 20, ..Limits::unbounded() }));
    let app =
        Router::new().route("/w", get(std::future::pending::<()>)).route("/l", get(|| async { vec![0; 100 << 10] }));
    let address = serve(&connections, app, 100, CancellationToken::new());
    let connect = async |path: u8, count: usize| {
        let mut clients = Vec::new();
        for _ in 0..count {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(&ask_http2(path)).await.unwrap();
            clients.push(client);
        }
        clients
    };
    let _quiet = connect(b'w', 5).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let _greedy = connect(b'l', 14).await;
    tokio::time::sleep(Duration::from_millis(80)).await;
    connections.take_in(1 << 20);
    connections.relieve();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let left = connections.left();
    assert_eq!(left.iter().filter(|cut| cut.at_work).count(), 5, "{left:?}");
    assert!(left.len() < 19, "{left:?}");
}

#[tokio::test]
async fn an_answer_ends_with_its_last_byte_also_while_the_service_leaves() {
    for mode in [Mode::Serving, Mode::HandingOver, Mode::Retiring] {
        let connections =
            Arc::new(Connections::new(Limits { linger_timeout: Duration::from_secs(60), ..Limits::unbounded() }));
        tokio::spawn(super::lifecycle::relieve(Arc::clone(&connections)));
        let app = Router::new().route("/", get(|| async { vec![0; 4 << 20] }));
        let address = serve(&connections, app, 10, CancellationToken::new());
        connections.set_mode(mode);
        let mut client = TcpStream::connect(address).await.unwrap();
        send(&mut client, "GET / HTTP/1.0\r\nHost: test\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut part = vec![0; 64 << 10];
        // Slowly, so that a part of it waits in the kernel when all of it was written.
        let reads = async {
            while client.read(&mut part).await.unwrap() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reads).await.unwrap_or_else(|_| panic!("no end, {mode:?}"));
    }
}

/// A head that never ends, one byte more than there may be of it, with the most that a service may set, and more.
#[tokio::test]
async fn a_head_is_refused_when_it_is_too_long_whatever_the_limit_is() {
    for max_head_bytes in [1 << 10, Limits::MAX_HEAD_BYTES, usize::MAX] {
        let connections = Arc::new(Connections::new(Limits { max_head_bytes, ..Limits::unbounded() }));
        let app = Router::new().route("/", get(|| async {}));
        let mut client = TcpStream::connect(serve(&connections, app, 10, CancellationToken::new())).await.unwrap();
        let most = max_head_bytes.min(Limits::MAX_HEAD_BYTES);
        let head = format!("GET / HTTP/1.1\r\nHost: test\r\nA: {}", "a".repeat(most));
        send(&mut client, &head[..=most]).await;
        let mut answer = [0; 12];
        let read = tokio::time::timeout(Duration::from_secs(5), client.read_exact(&mut answer)).await;
        assert!(read.is_ok() && answer == *b"HTTP/1.1 431", "{max_head_bytes}");
    }
}

#[tokio::test]
async fn who_came_over_the_limit_is_served_once_others_have_gone_and_nobody_else_goes_for_that() {
    for (gone, asking, served) in [(0, 1, 0), (1, 2, 1), (2, 2, 2)] {
        let connections = Arc::new(Connections::default());
        let address = serve(&connections, Router::new().route("/", get(|| async {})), 3, CancellationToken::new());
        let mut clients = Vec::new();
        for number in 0..5 {
            let mut client = TcpStream::connect(address).await.unwrap();
            if number < 3 {
                ask(&mut client).await;
            }
            clients.push(client);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut over = clients.split_off(3);
        clients.truncate(3 - gone);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut answers = Vec::new();
        for client in &mut over[..asking] {
            send(client, "GET / HTTP/1.1\r\nHost: test\r\n\r\n").await;
            let mut answer = [0; 12];
            client.read_exact(&mut answer).await.unwrap();
            answers.push(answer);
        }
        let ok = answers.iter().filter(|answer| *answer == b"HTTP/1.1 200").count();
        assert_eq!((ok, connections.yielding()), (served, 0), "{gone} {answers:?}");
        for client in &mut clients {
            ask(client).await;
        }
    }
}

/// Has what has reached its limit end, many times a second.
fn expire(connections: &Arc<Connections>) {
    let connections = Arc::clone(connections);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            connections.expire();
        }
    });
}

/// An empty line is not the beginning of a head, and neither keeps a connection nor ends it (RFC 9112, section 2.2).
#[tokio::test]
async fn who_sends_empty_lines_between_requests_is_idle_and_who_sends_nothing_else_is_silent() {
    let limits = |header, idle| Limits {
        header_timeout: Duration::from_millis(header),
        idle_timeout: Duration::from_millis(idle),
        ..Limits::unbounded()
    };
    for (limits, asks, keeps_on, stays) in [
        (limits(300, 60_000), true, false, true),
        (limits(300, 60_000), true, true, true),
        (limits(60_000, 300), true, true, false),
        (limits(300, 60_000), false, false, false),
        (limits(300, 60_000), false, true, false),
    ] {
        let connections = Arc::new(Connections::new(limits));
        expire(&connections);
        let app = Router::new().route("/", get(|| async {}).post(|_: axum::body::Bytes| async {}));
        let mut client = TcpStream::connect(serve(&connections, app, 10, CancellationToken::new())).await.unwrap();
        if asks {
            send(&mut client, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\na").await;
            is_answered(&mut client).await;
        }
        send(&mut client, "\r\n").await;
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if keeps_on {
                // It may have been closed.
                let _ = client.write_all(b"\r\n").await;
            }
        }
        let case = (asks, keeps_on, stays);
        if stays {
            ask(&mut client).await;
        } else {
            let mut answer = Vec::new();
            let end = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut answer)).await;
            assert!(end.is_ok() && answer.is_empty(), "{case:?} {:?}", answer.escape_ascii());
        }
    }
}

/// The process stands still, and its client does not: what has come meanwhile has come in time.
#[tokio::test]
async fn a_standstill_of_the_process_is_not_held_against_who_sent_or_read_meanwhile() {
    let limit = Duration::from_millis(300);
    let limits = Limits { body_timeout: limit, send_timeout: limit, ..Limits::unbounded() };
    let large = || async { vec![0; 64 << 20] };
    let app = Router::new().route("/", post(|_: axum::body::Bytes| async {}).get(large));
    let connections = Arc::new(Connections::new(limits));
    let address = serve(&connections, app, 10, CancellationToken::new());
    for (head, rest) in [
        ("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\na", "b"),
        ("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", "0\r\n\r\n"),
        ("GET / HTTP/1.1\r\nHost: test\r\n\r\n", ""),
    ] {
        let mut client = TcpStream::connect(address).await.unwrap();
        send(&mut client, head).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        // Nothing else is done here until the limits have been looked at.
        let mut client = client.into_std().unwrap();
        std::thread::sleep(limit * 2);
        std::io::Write::write_all(&mut client, rest.as_bytes()).unwrap();
        let mut part = vec![0; 8 << 20];
        while rest.is_empty() && std::io::Read::read(&mut client, &mut part).is_ok() {}
        connections.expire();
        let mut client = TcpStream::from_std(client).unwrap();
        if rest.is_empty() {
            let more = async {
                let mut left = 16 << 20;
                while left > 0 {
                    let count = client.read(&mut part).await.unwrap();
                    assert!(count > 0, "the answer is cut off");
                    left -= count.min(left);
                }
            };
            tokio::time::timeout(Duration::from_secs(20), more).await.expect("the answer goes on");
        } else {
            is_answered(&mut client).await;
        }
        // Nor is anybody spared who does nothing.
        let mut client = TcpStream::connect(address).await.unwrap();
        send(&mut client, head).await;
        tokio::time::sleep(limit * 2).await;
        connections.expire();
        let end = async {
            let mut read = Vec::new();
            let _ = client.read_to_end(&mut read).await;
            read
        };
        let read = tokio::time::timeout(Duration::from_secs(20), end).await.expect("it ends");
        assert!(rest.is_empty() || read.starts_with(b"HTTP/1.1 4"), "{:?}", read.escape_ascii());
        assert!(read.len() < 64 << 20);
    }
}

/// Those who connect when nobody is to connect any more are let in as far as there are descriptors for connections.
#[tokio::test]
async fn who_waits_when_the_sockets_are_closed_takes_no_descriptor_that_is_spare() {
    const PLACES: usize = 3;
    const GUESTS: usize = 2;
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let connections = Arc::new(Connections::default());
    let listener = Listener::new(vec![ListeningSocket::Tcp(socket)], Arc::clone(&connections), PLACES).unwrap();
    let mut listener = listener.with_guests(GUESTS);
    let clients: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    connections.set_mode(Mode::Retired);
    let _first = axum::serve::Listener::accept(&mut listener).await;
    assert_eq!(connections.len(), PLACES + GUESTS + super::listener::OVER_LIMIT);
    assert!(std::net::TcpStream::connect(address).is_err() && clients.len() > connections.len());
}

/// It neither lets its answer out nor ever stops to say something: by the windows of HTTP/2, or by not reading.
#[tokio::test]
async fn who_takes_no_answer_is_ended_whatever_it_goes_on_to_say() {
    // SETTINGS with the largest window for each stream, and WINDOW_UPDATE for all of them.
    const OPEN: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff\0\0\x04\x08\0\0\0\0\0\x7f\x00\0\0";
    // PRIORITY, of a stream that is not there.
    let flood = b"\0\0\x05\x02\0\0\0\0\x65\0\0\0\0\x10".repeat(1 << 10);
    let upload = b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let chunks = b"1\r\na\r\n".repeat(1 << 10);
    let blocked = ask_http2(b'l');
    let unread = [HELLO_HTTP2, OPEN, &blocked[HELLO_HTTP2.len()..]].concat();
    for (first, then) in [(blocked, &flood), (unread, &flood), (upload, &chunks)] {
        let limit = Duration::from_millis(200);
        let limits = Limits { send_timeout: limit, idle_timeout: limit, ..Limits::unbounded() };
        let connections = Arc::new(Connections::new(limits));
        expire(&connections);
        let large = || async { vec![0; 64 << 20] };
        // It answers at once, and goes on to read.
        let echo = |body: axum::body::Body| async {
            let read = axum::body::Bytes::from_static(&[0; 4 << 10]);
            let parts = futures_util::StreamExt::map(body.into_data_stream(), move |part| part.map(|_| read.clone()));
            axum::body::Body::from_stream(parts)
        };
        let app = Router::new().route("/l", get(large)).route("/", post(echo));
        let mut client = TcpStream::connect(serve(&connections, app, 10, CancellationToken::new())).await.unwrap();
        client.write_all(&first).await.unwrap();
        let says = async { while client.write_all(then).await.is_ok() {} };
        let ended = tokio::time::timeout(Duration::from_secs(20), says).await;
        assert!(ended.is_ok(), "{}", first.escape_ascii());
    }
}

/// However its head comes: by itself, behind another request, or behind that one's body.
#[tokio::test]
async fn a_head_that_is_too_long_is_refused_also_where_it_was_read_with_the_request_before() {
    let connections = Arc::new(Connections::new(Limits { max_head_bytes: 1 << 10, ..Limits::unbounded() }));
    let app = Router::new().route("/", get(|| async { "a" }).post(|_: axum::body::Bytes| async { "a" }));
    let address = serve(&connections, app, 10, CancellationToken::new());
    let post = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\na".to_owned();
    for before in ["", &[HEAD.0, HEAD.1].concat(), &post, &post.repeat(3)] {
        for (more, status) in [(500, "200"), (2 << 10, "431"), (14 << 10, "431")] {
            let mut client = TcpStream::connect(address).await.unwrap();
            let head = format!("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\nA: {}\r\n\r\n", "a".repeat(more));
            send(&mut client, &[before, &head].concat()).await;
            let mut answers = String::new();
            let read = tokio::time::timeout(Duration::from_secs(5), client.read_to_string(&mut answers));
            read.await.expect("it ends").unwrap();
            let statuses: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
            let (last, others) = statuses.split_last().unwrap();
            assert_eq!((*last, others.len()), (status, before.matches("HTTP").count()), "{more} {answers}");
            assert!(others.iter().all(|status| *status == "200"), "{answers}");
        }
    }
}
