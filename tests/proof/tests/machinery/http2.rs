//! HTTP/2, frame by frame: an answer has left when its last frame has, nothing ends without GOAWAY, and whoever does not
//! take an answer loses it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::{any, get};
use futures_util::{StreamExt, stream};
use hitless::Handle;
use hitless::testing::Reason;
use rustix::process::Signal;
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;

use crate::application::Shared;
use crate::client::{Client, soon};
use crate::start::{App, Process, managed, spawn_app, variable};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// What `GOAWAY` names before it is known which stream was the last.
const ANY: u32 = u32::MAX >> 1;

/// The answer of `/large`.
const LARGE: usize = 1 << 20;

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    /// `payload` is to follow.
    fn of(head: &[u8]) -> (Self, usize) {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
        let frame = Self { kind: head[3], flags: head[4], stream: number(&head[5..9]), payload: Vec::new() };
        (frame, number(&head[..3]) as usize)
    }

    fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// The last stream that `GOAWAY` names, and its error.
    fn goodbye(&self) -> (u32, u32) {
        assert_eq!(self.kind, GOAWAY, "{self:?}");
        let number = |at: usize| u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap());
        (number(0), number(4))
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A client that answers no SETTINGS and opens no window by itself.
struct Http2(Client);

impl Http2 {
    /// A client whose streams begin with this window.
    async fn open(app: &App, window: u32) -> Self {
        Self::on(app.client().await, window).await
    }

    async fn on(mut client: Client, window: u32) -> Self {
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        client.send([PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat()).await;
        Self(client)
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.0.send(frame(kind, flags, stream, payload)).await;
    }

    async fn ask(&mut self, stream: u32, path: &str) {
        self.send(HEADERS, END_STREAM | END_HEADERS, stream, &head(path)).await;
    }

    async fn open_window(&mut self, stream: u32, more: usize) {
        self.send(WINDOW_UPDATE, 0, stream, &(more as u32).to_be_bytes()).await;
    }

    async fn next(&mut self) -> Frame {
        let head = self.0.take(9).await;
        let (mut frame, length) = Frame::of(&head);
        frame.payload = self.0.take(length).await;
        frame
    }

    /// The next frame of a stream, or of the connection where that is 0, but for what belongs to its beginning.
    async fn next_of(&mut self, stream: u32) -> Frame {
        loop {
            let frame = self.next().await;
            if frame.stream == stream && !matches!(frame.kind, SETTINGS | WINDOW_UPDATE) {
                return frame;
            }
        }
    }

    /// Reads so many bytes of a stream's answer, and whether they are its last.
    async fn read(&mut self, stream: u32, bytes: usize) -> bool {
        let mut read = 0;
        let mut ended = false;
        while read < bytes {
            let frame = self.next_of(stream).await;
            ended = frame.ends_stream();
            if frame.kind == DATA {
                read += frame.payload.len();
            }
            assert_ne!(frame.kind, RST_STREAM);
        }
        assert_eq!(read, bytes);
        ended
    }

    /// What still comes before the service ends the connection.
    async fn rest(mut self) -> Vec<Frame> {
        let bytes = self.0.until_end().await;
        let mut bytes = &bytes[..];
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let (mut frame, length) = Frame::of(&bytes[..9]);
            frame.payload = bytes[9..9 + length].to_vec();
            bytes = &bytes[9 + length..];
            frames.push(frame);
        }
        frames
    }
}

/// The head of a `GET`: RFC 7541, by its static table.
fn head(path: &str) -> Vec<u8> {
    [&[0x82, 0x86, 4, path.len() as u8], path.as_bytes(), b"\x01\x04test"].concat()
}

/// An answer of a megabyte, which hyper gets whole.
fn large() -> Router<Shared> {
    Router::new().route("/large", get(async || vec![b'x'; LARGE]))
}

/// An answer of which nothing comes after the first byte; what is returned tells when the service has given it up.
fn quiet() -> (Router<Shared>, CancellationToken) {
    let left = CancellationToken::new();
    let leaving = left.clone();
    let quiet = async move || {
        let guard = leaving.clone().drop_guard();
        let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"x")) });
        Body::from_stream(first.chain(stream::pending()).inspect(move |_| _ = &guard))
    };
    (Router::new().route("/quiet", get(quiet)), left)
}

/// What is open is an answer's rest, which hyper has got rid of long ago.
#[tokio::test]
async fn an_answer_that_is_read_slowly_arrives_whole_from_a_service_that_leaves() {
    let mut app = spawn_app("shutdown_timeout = '12s'", large()).await;
    let mut client = Http2::open(&app, 65_535).await;
    client.ask(1, "/large").await;
    assert!(!client.read(1, 65_535).await);

    app.leave(Reason::Interrupt).await;
    // Longer than a client without a stream is waited for.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for window in [0, 1] {
            client.open_window(window, 65_535).await;
        }
        assert!(!client.read(1, 65_535).await);
    }
    let left = LARGE - 5 * 65_535;
    for window in [0, 1] {
        client.open_window(window, left).await;
    }
    assert!(client.read(1, left).await);

    drop(client);
    let (outcome, took) = app.left().await;
    assert!(outcome.left_behind.is_empty() && took >= Duration::from_secs(2), "{outcome:?} after {took:?}");
}

/// The rest is in the kernel when the connection ends, while the client still says how much it has taken.
#[tokio::test]
async fn the_last_answer_arrives_at_a_client_that_opens_its_windows_meanwhile() {
    let app = spawn_app("", large()).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let client = Client::on(soon("connecting", socket.connect(app.address)).await.expect("connecting"));
    let mut client = Http2::on(client, LARGE as u32).await;
    client.open_window(0, LARGE).await;
    client.ask(1, "/large").await;
    // The client will ask nothing more, so its connection ends with this answer.
    client.send(GOAWAY, 0, 0, &[0; 8]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut left = LARGE;
    while left > 0 {
        let frame = client.next_of(1).await;
        if frame.kind == DATA {
            left -= frame.payload.len();
            client.open_window(0, frame.payload.len()).await;
        }
    }
}

/// A client whose answer, of so many bytes, is in the kernel whole, and of which it has read nothing.
async fn unread(address: SocketAddr, bytes: usize) -> Http2 {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let client = Client::on(soon("connecting", socket.connect(address)).await.expect("connecting"));
    let mut client = Http2::on(client, LARGE as u32).await;
    client.open_window(0, LARGE).await;
    client.send(HEADERS, END_HEADERS, 1, &echo()).await;
    for sent in (0..bytes).step_by(PART).map(|at| at + PART) {
        client.send(DATA, if sent < bytes { 0 } else { END_STREAM }, 1, &[b'x'; PART]).await;
    }
    // As far as it can be known: the service takes no notice of it any more.
    tokio::time::sleep(Duration::from_millis(500)).await;
    client
}

const PART: usize = 10_000;

/// The head of a `POST` to `/echo`.
fn echo() -> Vec<u8> {
    [&[0x83, 0x86, 4, 5], &b"/echo"[..], b"\x01\x04test"].concat()
}

/// The process ends while the kernel has the rest, and the client goes on to say how much it has taken.
#[tokio::test]
async fn an_answer_that_is_in_the_kernel_arrives_whole_from_a_process_that_ends() {
    let process = Process::start(&[]).await;
    let mut client = unread(process.address, 5 * PART).await;
    process.signal(Signal::INT);
    // Longer than a client without a stream is waited for.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut left = 5 * PART;
    while left > 0 {
        let frame = client.next_of(1).await;
        if frame.kind == DATA {
            left -= frame.payload.len();
            client.open_window(0, PART).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(client);
    let (status, log) = process.ended().await;
    assert!(status.success() && log.contains("0 left behind"), "{status}: {log}");
}

/// At a restart everybody waits for it, so not for long.
#[tokio::test]
async fn an_answer_that_is_in_the_kernel_at_a_restart_and_is_not_read_is_left_behind_and_told() {
    let mut service = managed().start().await.unwrap();
    let client = unread(service.address(), 5 * PART).await;
    let began = Instant::now();
    assert!(service.restart().await.unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let log = service.log();
    assert!(log.contains("1 left behind"), "{log}");
    drop(client);
}

#[tokio::test]
async fn an_answer_that_is_not_read_to_its_end_is_cut_at_t_and_counted() {
    let mut app = spawn_app("shutdown_timeout = '2s'", large()).await;
    let mut client = Http2::open(&app, 65_535).await;
    client.ask(1, "/large").await;
    client.ask(3, "/livez").await;
    assert!(!client.read(1, 65_535).await);

    app.leave(Reason::Interrupt).await;

    let (outcome, took) = app.left().await;
    assert!(took >= Duration::from_secs(2), "{took:?}");
    let cut: Vec<_> =
        outcome.left_behind.iter().filter_map(|cut| cut.request.as_ref()).map(|(_, path)| &**path).collect();
    // The window of the connection is used up, so the second answer has not left either.
    assert_eq!(cut, ["/large", "/livez"]);
    assert_eq!(client.next_of(0).await.goodbye(), (ANY, 0));
}

#[tokio::test]
async fn a_request_after_the_first_goaway_is_served_and_the_last_one_names_it() {
    let mut app = spawn_app("", Router::new()).await;
    let mut client = Http2::open(&app, 65_535).await;
    client.ask(1, "/livez").await;
    while !client.next_of(1).await.ends_stream() {}
    app.leave(Reason::Interrupt).await;
    assert_eq!(client.next_of(0).await.goodbye(), (ANY, 0));
    let ping = client.next_of(0).await;
    assert_eq!(ping.kind, PING);

    client.ask(3, "/ping").await;
    client.send(PING, ACK, 0, &ping.payload).await;
    // As if it were on its way for long: nobody answers it, and nobody takes it for answered.
    client.ask(5, "/ping").await;

    let frames = client.rest().await;
    assert!(frames.iter().any(|frame| frame.stream == 3 && frame.ends_stream()), "{frames:?}");
    assert!(frames.iter().all(|frame| frame.stream != 5), "{frames:?}");
    let goodbyes: Vec<_> = frames.iter().filter(|frame| frame.kind == GOAWAY).map(Frame::goodbye).collect();
    assert_eq!(goodbyes.last(), Some(&(3, 0)), "{frames:?}");
    let (outcome, _) = app.left().await;
    assert!(outcome.left_behind.is_empty(), "{outcome:?}");
}

#[tokio::test]
async fn one_connection_too_many_is_told_goodbye_after_its_answers_and_there_is_room_again_later() {
    let (routes, _left) = quiet();
    let app = spawn_app("[limits]\nmax_connections = 1", routes).await;
    // It is not idle, and so does not have to make room.
    let mut served = Http2::open(&app, 65_535).await;
    served.ask(1, "/quiet").await;
    assert_eq!(served.next_of(1).await.payload[0], 0x88, "200");

    for _ in 0..2 {
        let mut surplus = Http2::open(&app, 65_535).await;
        surplus.ask(1, "/livez").await;
        surplus.ask(3, "/livez").await;
        let frames = surplus.rest().await;
        let answer = frames.iter().find(|frame| frame.stream == 1 && frame.kind == HEADERS).expect("an answer");
        assert_ne!(answer.payload[0], 0x88, "{frames:?}");
        let goodbyes: Vec<_> = frames.iter().filter(|frame| frame.kind == GOAWAY).map(Frame::goodbye).collect();
        let [(last, 0)] = goodbyes[..] else { panic!("{frames:?}") };
        // What it does not name has no answer, and the other way round.
        for stream in [1, 3] {
            assert_eq!(frames.iter().any(|frame| frame.stream == stream), stream <= last, "{frames:?}");
            assert_eq!(frames.iter().any(|frame| frame.stream == stream && frame.ends_stream()), stream <= last);
        }
    }

    served.ask(3, "/livez").await;
    assert_eq!(served.next_of(3).await.payload[0], 0x88, "200");
    drop(served);
    soon("room", async {
        loop {
            let mut next = Http2::open(&app, 65_535).await;
            next.ask(1, "/livez").await;
            if next.next_of(1).await.payload[0] == 0x88 {
                break;
            }
        }
    })
    .await;
}

/// There are few places in which to be told, and others wait for them.
#[tokio::test]
async fn one_connection_too_many_that_does_not_take_what_it_is_told_is_not_kept() {
    let (routes, _left) = quiet();
    let app = spawn_app("[limits]\nmax_connections = 1\nlinger_timeout = '300ms'\nsend_timeout = '1h'", routes).await;
    let mut served = Http2::open(&app, 65_535).await;
    served.ask(1, "/quiet").await;
    assert_eq!(served.next_of(1).await.payload[0], 0x88, "200");

    let mut surplus = Http2::open(&app, 0).await;
    surplus.ask(1, "/livez").await;
    assert_eq!(surplus.next_of(1).await.kind, HEADERS);
    let frames = surplus.rest().await;
    assert_eq!(frames.last().expect("a goodbye").goodbye(), (1, 0));
}

/// Also where there is little time left when the service stops waiting for what stands still.
#[tokio::test]
async fn goodbye_is_said_before_t_beside_an_upload_that_stands_still() {
    for timeout in ["1s", "2s", "6s"] {
        let manager = managed().env(variable("shutdown_timeout"), timeout);
        let mut service = manager.env(variable("limits.body_timeout"), "1h").start().await.unwrap();
        let mut upload = Client::connect(service.address()).await;
        upload.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nx").await;
        assert_eq!(upload.head().await.status, 200);
        let mut client = Http2::on(Client::connect(service.address()).await, 65_535).await;
        client.ask(1, "/livez").await;
        while !client.next_of(1).await.ends_stream() {}

        let (frames, status) = tokio::join!(client.rest(), service.restart());

        assert!(frames.iter().any(|frame| frame.kind == GOAWAY), "{timeout}: {frames:?}");
        assert!(status.unwrap().success(), "{timeout}");
        drop(upload);
    }
}

/// What each client has done before it falls silent, and the last stream that GOAWAY names.
#[tokio::test]
async fn who_is_silent_is_told_goodbye() {
    let app = spawn_app("[limits]\nidle_timeout = '300ms'\nheader_timeout = '200ms'", Router::new()).await;
    let whole = frame(HEADERS, END_STREAM | END_HEADERS, 1, &head("/livez"));
    let half_a_head = frame(HEADERS, END_STREAM, 3, &head("/livez"));
    let half_a_frame = &frame(PING, 0, 0, &[0; 8])[..12];
    let cases = [
        (vec![], 0),
        (whole.clone(), 1),
        ([&whole[..], &half_a_head].concat(), 1),
        (half_a_head, 0),
        ([&whole, half_a_frame].concat(), 1),
    ];
    for (before, last) in cases {
        let mut client = Http2::open(&app, 65_535).await;
        client.0.send(&before).await;
        let frames = client.rest().await;
        assert_eq!(frames.last().expect("a frame").goodbye(), (last, 0), "{frames:?}");
    }
}

#[tokio::test]
async fn a_preface_that_stops_has_the_time_of_a_head() {
    let app = spawn_app("[limits]\nheader_timeout = '200ms'\nidle_timeout = '1h'", Router::new()).await;
    for length in 1..PREFACE.len() {
        let mut client = app.client().await;
        client.send(&PREFACE[..length]).await;
        assert!(client.until_end().await.starts_with(b"HTTP/1.1 408"), "{length}");
    }
}

#[tokio::test]
async fn pings_do_not_keep_a_silent_connection() {
    let app = spawn_app("[limits]\nidle_timeout = '300ms'", Router::new()).await;
    let mut client = Http2::open(&app, 65_535).await;
    let goodbye = async {
        loop {
            client.send(PING, 0, 0, &[0; 8]).await;
            let frame = client.next_of(0).await;
            if frame.kind == GOAWAY {
                return frame.goodbye();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(soon("goodbye", goodbye).await, (0, 0));
}

/// A client that is always within a frame, none of which takes long, asks for nothing either.
#[tokio::test]
async fn frames_that_dribble_in_do_not_keep_a_silent_connection() {
    let app = spawn_app("[limits]\nidle_timeout = '300ms'", Router::new()).await;
    let mut client = Http2::open(&app, 65_535).await;
    let ping = frame(PING, ACK, 0, &[0; 8]);
    client.0.send(&ping[..1]).await;
    let goodbye = async {
        loop {
            client.0.send([&ping[1..], &ping[..1]].concat()).await;
            while client.0.has_answer_within(Duration::from_millis(20)).await {
                let frame = client.next().await;
                if frame.kind == GOAWAY {
                    return frame.goodbye();
                }
            }
        }
    };
    assert_eq!(soon("goodbye", goodbye).await, (0, 0));
}

#[tokio::test]
async fn a_stream_of_events_that_is_quiet_is_not_silence() {
    let (routes, left) = quiet();
    let app = spawn_app("[limits]\nidle_timeout = '200ms'", routes).await;
    let mut client = Http2::open(&app, 65_535).await;
    client.ask(1, "/quiet").await;
    assert!(!client.read(1, 1).await);
    assert!(tokio::time::timeout(Duration::from_secs(1), client.next_of(1)).await.is_err());
    assert!(!left.is_cancelled());
    client.ask(3, "/livez").await;
    assert_eq!(client.next_of(3).await.payload[0], 0x88, "200");
}

#[tokio::test]
async fn a_client_that_takes_no_answer_loses_it_and_nothing_else() {
    let (routes, left) = quiet();
    let app = spawn_app("[limits]\nsend_timeout = '500ms'", routes.merge(large())).await;
    // By the stream's window, and by the connection's.
    for (window, taken) in [(0, 0), (1000, 1000), (2 * LARGE as u32, 65_535)] {
        let mut client = Http2::open(&app, window).await;
        client.ask(1, "/large").await;
        assert_eq!(client.next_of(1).await.kind, HEADERS);
        if taken > 0 {
            assert!(!client.read(1, taken).await);
        }
        let reset = client.next_of(1).await;
        assert_eq!((reset.kind, &reset.payload[..]), (RST_STREAM, &[0, 0, 0, 8][..]), "{window}");
        // The connection goes on.
        client.open_window(0, 2 * LARGE).await;
        client.ask(3, "/large").await;
        client.open_window(3, LARGE).await;
        assert_eq!(client.next_of(3).await.payload[0], 0x88, "200");
        assert!(client.read(3, LARGE).await);
    }
    // What is given up is nobody's any more, hyper's neither.
    let mut client = Http2::open(&app, 0).await;
    client.ask(1, "/quiet").await;
    soon("the end of the answer", left.cancelled()).await;
}

/// Nothing can be reset within a frame, and a client over the limit has no other streams.
#[tokio::test]
async fn a_client_that_takes_no_answer_and_lets_it_not_be_reset_is_told_goodbye() {
    let app = spawn_app("[limits]\nmax_connections = 1\nsend_timeout = '300ms'\nidle_timeout = '300ms'", large()).await;
    let mut within_a_frame = Http2::open(&app, 0).await;
    within_a_frame.ask(1, "/large").await;
    assert_eq!(within_a_frame.next_of(1).await.kind, HEADERS);
    within_a_frame.0.send(&frame(PING, 0, 0, &[0; 8])[..12]).await;
    let mut surplus = Http2::open(&app, 0).await;
    surplus.ask(1, "/large").await;

    for client in [within_a_frame, surplus] {
        let frames = client.rest().await;
        assert!(frames.iter().all(|frame| frame.kind != DATA), "{frames:?}");
        assert_eq!(frames.last().expect("a frame").goodbye(), (1, 0), "{frames:?}");
    }
}

/// The head of a WebSocket's request (RFC 8441).
fn websocket(path: &str) -> Vec<u8> {
    let literal = |name: &str, value: &str| {
        [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    let head = [
        literal(":method", "CONNECT"),
        literal(":protocol", "websocket"),
        literal(":scheme", "http"),
        literal(":path", path),
        literal(":authority", "test"),
        literal("sec-websocket-version", "13"),
    ];
    head.concat()
}

/// One that echoes, and is closed when the service leaves.
async fn polite(State(handle): State<Handle>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async move |mut socket| {
        loop {
            tokio::select! {
                Some(Ok(message)) = socket.recv() => socket.send(message).await.unwrap(),
                () = handle.draining() => break,
            }
        }
        let restart = CloseFrame { code: 1012, reason: "".into() };
        socket.send(Message::Close(Some(restart))).await.unwrap();
    })
}

/// One that never ends by itself.
async fn stubborn(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket| while socket.recv().await.is_some() {})
}

#[tokio::test]
async fn a_websocket_is_neither_silent_nor_closed_before_it_is_told() {
    let routes = Router::new().route("/live", any(polite));
    let mut app = spawn_app("[limits]\nidle_timeout = '200ms'", routes).await;
    let mut client = Http2::open(&app, 65_535).await;
    client.send(HEADERS, END_HEADERS, 1, &websocket("/live")).await;
    assert_eq!(client.next_of(1).await.payload[0], 0x88, "200");

    tokio::time::sleep(Duration::from_secs(1)).await;
    client.send(DATA, 0, 1, b"\x81\x82\0\0\0\0hi").await;
    assert_eq!(client.next_of(1).await.payload, b"\x81\x02hi");
    app.leave(Reason::Interrupt).await;
    let close = client.next_of(1).await;
    assert_eq!((close.kind, &close.payload[..]), (DATA, &b"\x88\x02\x03\xf4"[..]));

    let goodbyes = client.rest().await;
    assert!(goodbyes.iter().any(|frame| frame.kind == GOAWAY), "{goodbyes:?}");
    let (outcome, took) = app.left().await;
    assert!(outcome.left_behind.is_empty() && took < Duration::from_secs(10), "{outcome:?} after {took:?}");
}

/// Which is waited for until T, as over HTTP/1.1: who was there before the service was told to leave.
#[tokio::test]
async fn a_websocket_that_begins_while_the_service_leaves_is_not_waited_for() {
    for late in [true, false] {
        let routes = Router::new().route("/live", any(stubborn));
        let mut app = spawn_app("shutdown_timeout = '6s'", routes).await;
        let mut client = Http2::open(&app, 65_535).await;
        // It is served for another second.
        if late {
            app.leave(Reason::Terminate).await;
        }
        client.send(HEADERS, END_HEADERS, 1, &websocket("/live")).await;
        assert_eq!(client.next_of(1).await.payload[0], 0x88, "200");
        if !late {
            app.leave(Reason::Terminate).await;
        }

        let (outcome, took) = app.left().await;

        assert_eq!(outcome.left_behind.len(), usize::from(!late), "{outcome:?}");
        assert_eq!(took < Duration::from_secs(5), late, "{took:?}");
    }
}
