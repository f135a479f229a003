//! What lasts longer than a request, through restarts: the routes of `tests/proof/live`, which are there to be copied.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use lab::traffic::Request;
use proof::http2;
use proof::manager::{Manager, Service};
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::application;
use crate::client::{Client, soon};
use crate::handover::{assert_good, client, restart, slowest_answer, start};
use crate::start::{managed_as, variable};

#[path = "../../live/live.rs"]
#[expect(dead_code, reason = "its main is that of the example")]
mod example;

/// The example as a process under the stand-in for systemd.
fn managed() -> Manager {
    managed_as("live::serves")
}

#[test]
#[ignore = "is a process of another test's"]
fn serves() {
    application::process(async |config, handle| {
        example::begin(&handle);
        Ok(application::app(&config, handle, Duration::ZERO, example::routes()))
    });
}

/// The process that answers now, and a connection to it.
async fn process(service: &Service) -> (String, Client) {
    let mut client = client(service).await;
    let answer = client.get("/livez").await;
    (answer.process().to_owned(), client)
}

/// The id in a chunk of a stream: of an event, that is, and not of a comment or the time until a retry.
fn id(chunk: &[u8]) -> Option<u64> {
    let text = str::from_utf8(chunk).expect("events of text");
    assert!(text.ends_with("\n\n"), "half an event: {text:?}");
    let mut ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
    let id = ids.next().map(|id| id.parse().expect("a number"));
    assert_eq!(ids.next(), None, "{text:?}");
    id
}

/// Reads a stream of events to its end, over and over, as browsers do: what came, and from which processes, until
/// there were `processes` of them and then `more` events.
async fn listen(client: &mut Client, processes: usize, more: usize) -> (Vec<u64>, BTreeSet<String>) {
    let mut ids: Vec<u64> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut rest = more;
    loop {
        let last = ids.last().map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        client.send(format!("GET /events HTTP/1.1\r\nHost: test\r\n{last}\r\n")).await;
        let head = client.head().await;
        assert_good(&head);
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        seen.insert(head.process().to_owned());
        loop {
            let chunk = client.chunk().await;
            if chunk.is_empty() {
                break;
            }
            ids.extend(id(&chunk));
            if seen.len() == processes {
                rest -= 1;
                if rest == 0 {
                    return (ids, seen);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn event_streams_end_whole_and_go_on_at_the_next_process_on_the_same_connection() {
    const RESTARTS: usize = 4;
    let mut service = start(managed()).await;
    let (first, _) = process(&service).await;
    let mut clients = [client(&service).await, client(&service).await];

    let [one, two] = &mut clients;
    let restarts = async {
        for _ in 0..RESTARTS {
            tokio::time::sleep(Duration::from_millis(350)).await;
            restart(&mut service).await;
        }
    };
    let streams = async { tokio::join!(listen(one, RESTARTS + 1, 20), listen(two, RESTARTS + 1, 20)) };
    let ((), streams) = soon("streams and restarts", async { tokio::join!(restarts, streams) }).await;

    for (ids, processes) in [streams.0, streams.1] {
        assert!(processes.contains(&first), "{processes:?}");
        assert_eq!(processes.len(), RESTARTS + 1, "{processes:?}");
        assert!(ids.len() > 5 * RESTARTS, "{ids:?}");
        for pair in ids.windows(2) {
            assert_eq!(pair[1], pair[0] + 1, "lost or doubled: {ids:?}");
        }
    }
}

#[tokio::test]
async fn an_event_stream_goes_on_after_what_a_client_has_seen_and_not_at_the_beginning_of_time() {
    let service = start(managed()).await;
    let mut now = client(&service).await;
    let (ids, _) = listen(&mut now, 1, 3).await;
    let last = ids[ids.len() - 1];
    // Seen a while ago; long ago; and in the future, or by a clock that was wrong.
    for (seen, first) in [(last - 50, last - 49), (0, last - 6000), (last + 1_000_000, last)] {
        let mut client = client(&service).await;
        client.send(format!("GET /events HTTP/1.1\r\nHost: test\r\nLast-Event-ID: {seen}\r\n\r\n")).await;
        assert_good(&client.head().await);
        let begins = loop {
            if let Some(id) = id(&client.chunk().await) {
                break id;
            }
        };
        // Time goes on meanwhile, but not when the client says what it has seen.
        let late = if seen == last - 50 { 0 } else { 100 };
        assert!((first..=first + late).contains(&begins), "after {seen}: {begins}, and not {first}");
    }
}

type Socket = WebSocketStream<TcpStream>;

/// A WebSocket.
async fn open(address: SocketAddr) -> Socket {
    let stream = TcpStream::connect(address).await.expect("connecting");
    let (socket, answer) = soon("an upgrade", client_async("ws://test/socket", stream)).await.expect("an upgrade");
    assert_eq!(answer.status(), 101);
    socket
}

/// A WebSocket, on which something was said and heard.
async fn socket(service: &Service) -> Socket {
    let mut socket = open(service.address()).await;
    hear(&mut socket).await;
    socket
}

async fn hear(socket: &mut Socket) {
    socket.send(Message::text("hello")).await.expect("sending");
    let echo = soon("an echo", socket.next()).await.expect("an open socket").expect("a message");
    assert_eq!(echo, Message::text("hello"));
}

#[tokio::test]
async fn websockets_are_closed_with_service_restart_and_their_handshake_completes() {
    let mut service = start(managed()).await;
    let (mut before, mut plain) = process(&service).await;
    for _ in 0..3 {
        let sockets = [socket(&service).await, socket(&service).await, socket(&service).await];
        let closed = async {
            for mut socket in sockets {
                socket.get_ref().peek(&mut [0]).await.expect("a close");
                // On its way before the client knows: no reason for a reset.
                socket.send(Message::text("too late")).await.expect("sending");
                tokio::time::sleep(Duration::from_millis(20)).await;
                let message = soon("a close", socket.next()).await.expect("a close").expect("a message");
                let Message::Close(Some(CloseFrame { code, reason })) = message else { panic!("{message:?}") };
                assert_eq!((code, &*reason), (CloseCode::Restart, "service restart"));
                // Its own close is sent, and the server's end of file follows: no reset, nothing else.
                assert!(soon("the end", socket.next()).await.is_none());
                Client::on(socket.into_inner()).ended().await;
            }
        };
        let ((), ()) = tokio::join!(restart(&mut service), closed);

        let answer = plain.get("/livez").await;
        assert_good(&answer);
        assert_ne!(answer.process(), before);
        before = answer.process().to_owned();
    }
    hear(&mut socket(&service).await).await;
}

#[tokio::test]
async fn a_websocket_whose_client_does_not_close_is_given_up_and_keeps_nobody_waiting() {
    let mut service = start(managed()).await;
    let address = service.address();
    let silent = socket(&service).await;
    let mut deaf = socket(&service).await;
    // It sends until what it does not read fills all buffers.
    let flood = async {
        loop {
            deaf.send(Message::text("x".repeat(100_000))).await.expect("sending");
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), flood).await.is_err());

    let began = Instant::now();
    let ((), slowest) = slowest_answer(address, restart(&mut service)).await;

    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    // T is 30 s.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    drop((silent, deaf));
}

#[tokio::test]
async fn a_background_task_is_told_and_ends_the_round_that_it_has_begun() {
    let mut service = start(managed()).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        restart(&mut service).await;
    }
    service.signal(Signal::INT).unwrap();
    assert!(soon("the end", service.exited()).await.unwrap().success());
    let log = service.log();
    assert_eq!(log.matches("all of them whole").count(), 4, "{log}");
}

#[tokio::test]
async fn work_that_does_not_end_is_given_up_at_t_and_told_and_costs_no_connection() {
    let mut service = start(crate::start::managed().env(variable("shutdown_timeout"), "2s")).await;
    let (before, mut kept) = process(&service).await;
    assert_good(&kept.get("/endless").await);

    let (status, slowest) = slowest_answer(service.address(), soon("the restart", service.restart())).await;

    let (status, log) = (status.unwrap(), service.log());
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("1 tasks cut off"), "{log}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let answer = kept.get("/livez").await;
    assert_good(&answer);
    assert_ne!(answer.process(), before);
}

#[tokio::test]
async fn http2_streams_that_are_opened_all_the_time_are_all_answered_through_restarts() {
    let mut service = start(managed()).await;
    let address = service.address();
    let ask = Request::get("/livez", 200, None);
    let over = std::cell::Cell::new(false);
    let client = async {
        let (mut answered, mut connections) = (0, 0);
        while !over.get() {
            let connection = http2::Connection::open(address).await.expect("a connection is not refused");
            connections += 1;
            let one = async |answered: &mut usize| {
                let mut stream = connection.stream();
                while !over.get() && http2::exchange(&mut stream, &ask).await == http2::Outcome::Answered {
                    *answered += 1;
                }
            };
            let (mut a, mut b, mut c) = (0, 0, 0);
            tokio::join!(one(&mut a), one(&mut b), one(&mut c));
            answered += a + b + c;
            // Whatever was not answered had not been sent, or came after the GOAWAY.
            assert_eq!(connection.end().await, (0, Ok(())));
        }
        (answered, connections)
    };
    let restarts = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            restart(&mut service).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        over.set(true);
    };
    let ((answered, connections), ()) = tokio::join!(client, restarts);
    assert!(answered > 100 && connections > 5, "{answered} answers on {connections} connections");
}

#[tokio::test]
async fn event_streams_over_http2_end_whole_before_goaway() {
    let mut service = start(managed()).await;
    let connection = http2::Connection::open(service.address()).await.expect("a connection is not refused");
    let ask = Request::get("/events", 200, None);
    let mut streams = [connection.stream(), connection.stream()];
    let [one, two] = &mut streams;
    let restarted = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        restart(&mut service).await;
    };
    let (one, two, ()) = tokio::join!(http2::exchange(one, &ask), http2::exchange(two, &ask), restarted);

    assert_eq!([one, two], [http2::Outcome::Answered, http2::Outcome::Answered]);
    drop(streams);
    assert_eq!(connection.end().await, (0, Ok(())));
}

#[tokio::test]
async fn websockets_that_come_back_at_once_do_not_keep_it_from_leaving() {
    let mut service = start(managed().env(variable("shutdown_timeout"), "12s")).await;
    let address = service.address();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..3 {
        clients.spawn(async move {
            let mut socket = open(address).await;
            loop {
                let message = socket.next().await.expect("a close").expect("a message");
                assert!(message.is_close(), "{message:?}");
                // It has the next one before it lets go of this, so that there is one at every moment; but when connections
                // are paused, the next process has to open it.
                let mut next = std::pin::pin!(open(address));
                let opened = tokio::time::timeout(Duration::from_millis(250), next.as_mut()).await;
                assert!(socket.next().await.is_none());
                socket = match opened {
                    Ok(socket) => socket,
                    Err(_) => next.await,
                };
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;

    let began = Instant::now();
    let ((), slowest) = slowest_answer(address, restart(&mut service)).await;

    assert!(clients.try_join_next().is_none(), "a WebSocket that was not closed, but cut");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    // Waited for, they would take until shortly before T.
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}
