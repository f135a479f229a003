//! Leaving where nobody takes over, and where that is: what handlers, clients and the exit status see of it.

use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::routing::get;
use hitless::testing::Reason;
use hitless::{Cut, Handle, Outcome};
use http_body_util::StreamBody;
use proof::manager::Service;
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::application::{self, Shared};
use crate::client::{Client, soon};
use crate::handover::{assert_good, start};
use crate::start::{Process, managed, managed_as, managed_by, spawn_app, spawn_app_with, variable};

/// A body that sends something and then nothing more until `end`.
fn until(end: impl Future<Output = ()> + Send + 'static) -> Body {
    let first = futures_util::stream::once(async { Ok::<_, Infallible>(http_body::Frame::data(Bytes::from("begun"))) });
    let last = futures_util::stream::once(async move {
        end.await;
        Ok(http_body::Frame::data(Bytes::from("ended")))
    });
    Body::new(StreamBody::new(futures_util::StreamExt::chain(first, last)))
}

/// A route that streams until the service is told to leave, and one that never stops.
fn streams() -> Router<Shared> {
    Router::new()
        .route("/events", get(async |State(handle): State<Handle>| until(async move { handle.draining().await })))
        .route("/forever", get(async || until(std::future::pending())))
}

/// The beginning of a streamed answer.
async fn begin(client: &mut Client, path: &str) {
    client.ask(path).await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.chunk().await, b"begun");
}

#[tokio::test]
async fn a_handler_hears_that_the_service_leaves_and_ends_its_stream() {
    let mut app = spawn_app("shutdown_timeout = '30s'", streams()).await;
    let mut client = app.client().await;
    begin(&mut client, "/events").await;

    app.leave(Reason::Interrupt).await;

    assert_eq!(client.chunk().await, b"ended");
    assert_eq!(client.chunk().await, b"");
    client.ended().await;
    let (outcome, took) = app.left().await;
    assert_eq!(ExitCode::from(&outcome), ExitCode::SUCCESS);
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test]
async fn the_service_waits_for_work_that_must_end_before_it() {
    let release = Arc::new(Notify::new());
    let wait = Arc::clone(&release);
    let work = async move |State(handle): State<Handle>| {
        handle.spawn(async move { wait.notified().await });
    };
    let mut app = spawn_app("", Router::new().route("/work", get(work))).await;
    assert_eq!(app.client().await.get("/work").await.status, 200);

    app.leave(Reason::Interrupt).await;
    let app = tokio::spawn(app.left());
    // No client is left, so that without the work the service would be gone in no time.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!app.is_finished());
    release.notify_one();
    let (outcome, _) = soon("the end", app).await.unwrap();

    assert_eq!(outcome.unfinished, 0);
    assert_eq!(ExitCode::from(&outcome), ExitCode::SUCCESS);
}

#[tokio::test]
async fn work_that_does_not_end_is_left_behind_at_t_and_counted() {
    let work = async |State(handle): State<Handle>| {
        handle.spawn(std::future::pending::<()>());
    };
    let mut app = spawn_app("shutdown_timeout = '1s'", Router::new().route("/work", get(work))).await;
    assert_eq!(app.client().await.get("/work").await.status, 200);

    app.leave(Reason::Interrupt).await;
    let (outcome, took) = app.left().await;

    assert_eq!(outcome.unfinished, 1);
    assert_ne!(ExitCode::from(&outcome), ExitCode::SUCCESS);
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn readiness_ends_with_the_first_moment_of_leaving_and_counts_down() {
    let mut app = spawn_app("shutdown_timeout = '6s'", Router::new()).await;
    let mut before = app.client().await;
    let ready = before.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["phase"]), (200, &"serving".into()));
    assert_eq!(ready.header("retry-after"), None);

    app.leave(Reason::Terminate).await;

    let mut last = 6_001;
    // One that was connected, and one that comes now.
    for mut client in [before, app.client().await] {
        let leaving = client.get("/readyz").await;
        assert_eq!((leaving.status, &leaving.json()["phase"]), (503, &"leaving".into()));
        let remaining = leaving.json()["remaining_ms"].as_u64().expect("remaining_ms");
        assert!(remaining < last, "{remaining} ms");
        assert_eq!(leaving.header("retry-after"), Some(&*remaining.div_ceil(1000).to_string()));
        last = remaining;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_lame_duck_accepts_for_a_sixth_of_t_and_asks_its_clients_to_go() {
    let mut app = spawn_app("shutdown_timeout = '6s'", Router::new()).await;
    let mut idle = app.client().await;
    assert!(!idle.get("/livez").await.says_close());

    let told = Instant::now();
    app.leave(Reason::Terminate).await;
    let mut asked_to_go = 0;
    let refused_after = soon("a refusal", async {
        loop {
            match TcpStream::connect(app.address).await {
                Ok(stream) => {
                    let mut client = Client::on(stream);
                    client.ask("/livez").await;
                    // A client that comes in the very last moment may find its connection reset.
                    if told.elapsed() < Duration::from_millis(900) {
                        let answer = client.answer().await;
                        assert_eq!(answer.status, 200);
                        // It may take a moment to find out that nobody takes over, but not to forget it again.
                        assert!(answer.says_close() || asked_to_go == 0);
                        asked_to_go += usize::from(answer.says_close());
                    }
                }
                Err(_) => return told.elapsed(),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(asked_to_go > 0);
    assert!(refused_after >= Duration::from_secs(1), "{refused_after:?}");
    idle.ended().await;
    let (outcome, took) = app.left().await;
    assert_eq!(ExitCode::from(&outcome), ExitCode::SUCCESS);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn whose_idle_connection_a_lame_duck_ends_can_come_back() {
    // It accepts for 3 s.
    let mut app = spawn_app("shutdown_timeout = '18s'", Router::new()).await;
    let mut idle = app.client().await;
    assert!(!idle.get("/livez").await.says_close());
    app.leave(Reason::Terminate).await;
    idle.ended().await;
    let answer = app.client().await.get("/livez").await;
    assert!(answer.status == 200 && answer.says_close());
    let (outcome, _) = app.left().await;
    assert_eq!(ExitCode::from(&outcome), ExitCode::SUCCESS);
}

#[tokio::test]
async fn while_slow_requests_end_a_lame_duck_serves_who_comes() {
    // It accepts for 1 s, and for 2 s more where there are slow requests, whatever comes after them.
    let mut app = spawn_app("shutdown_timeout = '6s'\nping_delay = '2s'", Router::new()).await;
    let mut slow = app.client().await;
    slow.ask("/ping").await;
    app.leave(Reason::Terminate).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(app.client().await.get("/livez").await.status, 200);
    let answer = slow.answer().await;
    assert!(answer.status == 200 && answer.says_close());
    let (outcome, took) = app.left().await;
    assert_eq!(ExitCode::from(&outcome), ExitCode::SUCCESS);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn who_has_just_connected_is_still_answered_and_the_lame_duck_waits_no_longer_than_that() {
    // It accepts for 3 s, and then waits for as long at most.
    let mut app = spawn_app("shutdown_timeout = '18s'", Router::new()).await;
    app.leave(Reason::Terminate).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut fresh = app.client().await;
    // It was accepted before this one.
    assert_eq!(app.client().await.get("/livez").await.status, 200);
    soon("a refusal", async {
        while TcpStream::connect(app.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let refused = Instant::now();
    tokio::time::sleep(Duration::from_millis(200)).await;

    let answer = fresh.get("/livez").await;
    assert_eq!(answer.status, 200);
    assert!(answer.says_close());
    fresh.ended().await;
    let (outcome, _) = app.left().await;
    assert_eq!(ExitCode::from(&outcome), ExitCode::SUCCESS);
    assert!(refused.elapsed() < Duration::from_millis(2500), "{:?}", refused.elapsed());
}

/// The runtime has not heard of them yet.
#[tokio::test]
async fn who_has_connected_in_the_last_moment_is_answered() {
    for _ in 0..20 {
        let mut app = spawn_app("", Router::new()).await;
        app.leave(Reason::Interrupt).await;
        let mut clients = Vec::new();
        // One after each step of the runtime.
        while let Ok(stream) = std::net::TcpStream::connect(app.address) {
            stream.set_nonblocking(true).expect("a socket");
            clients.push(Client::on(TcpStream::from_std(stream).expect("a socket")));
            tokio::task::yield_now().await;
        }
        for client in &mut clients {
            assert_eq!(client.get("/livez").await.status, 200);
        }
    }
}

#[tokio::test]
async fn an_interrupt_is_quick() {
    // The lame duck would take 10 s.
    let mut app = spawn_app("shutdown_timeout = '60s'", Router::new()).await;
    let mut idle = app.client().await;
    assert_eq!(idle.get("/livez").await.status, 200);

    app.leave(Reason::Interrupt).await;

    idle.ended().await;
    let (outcome, took) = app.left().await;
    assert_eq!(ExitCode::from(&outcome), ExitCode::SUCCESS);
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test]
async fn a_request_in_flight_is_answered_whole_before_the_end() {
    let mut app = spawn_app("ping_delay = '1s'", Router::new()).await;
    let mut client = app.client().await;
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n").await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.chunk().await, b"begun");

    app.leave(Reason::Interrupt).await;

    client.send("5\r\nended\r\n0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"ended");
    assert_eq!(client.chunk().await, b"");
    client.ended().await;
    assert_eq!(ExitCode::from(&app.left().await.0), ExitCode::SUCCESS);
}

#[tokio::test]
async fn a_stream_that_never_ends_is_cut_at_t_and_counted() {
    let mut app = spawn_app("shutdown_timeout = '1s'", streams()).await;
    let mut client = app.client().await;
    begin(&mut client, "/forever").await;

    app.leave(Reason::Terminate).await;
    let (outcome, took) = app.left().await;

    let [cut] = &outcome.left_behind[..] else { panic!("{outcome:?}") };
    let (_, path) = cut.request.as_ref().expect("a request");
    assert_eq!(path, "/forever");
    assert!(cut.age >= Duration::from_secs(1), "{cut:?}");
    // It is no failure of the service; a handler that was at work would be.
    assert_eq!(ExitCode::from(&outcome), ExitCode::SUCCESS);
    let cut = outcome.left_behind.into_iter().map(|cut| Cut { at_work: true, ..cut }).collect();
    assert_ne!(ExitCode::from(&Outcome { cut, ..Outcome::default() }), ExitCode::SUCCESS);
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn half_a_head_and_a_silent_client_do_not_hold_the_service_up() {
    let mut app = spawn_app("shutdown_timeout = '6s'", Router::new()).await;
    let mut halfway = app.client().await;
    halfway.send("GET /livez HT").await;
    let silent = app.client().await;
    // Both were accepted before this one.
    assert_eq!(app.client().await.get("/livez").await.status, 200);

    app.leave(Reason::Interrupt).await;
    let (outcome, took) = app.left().await;

    assert_eq!(ExitCode::from(&outcome), ExitCode::SUCCESS, "{outcome:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    drop(silent);
}

#[tokio::test]
async fn told_before_it_serves_the_service_leaves_in_order() {
    let mut app = spawn_app("shutdown_timeout = '30s'", Router::new()).await;
    app.leave(Reason::Interrupt).await;
    let (outcome, took) = app.left().await;
    assert_eq!(ExitCode::from(&outcome), ExitCode::SUCCESS);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// An upload that is under way in `process`, and stays so.
async fn upload(process: &Process) -> Client {
    let mut client = process.client().await;
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n").await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.chunk().await, b"begun");
    client
}

#[tokio::test]
async fn every_signal_is_a_request_to_leave() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let process = Process::start(&[("shutdown_timeout", "1s")]).await;
        let mut client = process.client().await;
        client.ask("/ping").await;
        assert_eq!(client.answer().await.status, 200);

        process.signal(signal);

        client.ended().await;
        let (status, log) = process.ended().await;
        assert_eq!(status.code(), Some(0), "{signal:?}: {log}");
    }
}

#[tokio::test]
async fn what_is_left_behind_is_in_the_log() {
    let process = Process::start(&[("shutdown_timeout", "1s"), ("log.format", "json")]).await;
    let _client = upload(&process).await;

    process.signal(Signal::TERM);

    let (status, log) = process.ended().await;
    assert!(status.success(), "{log}");
    let cut: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .filter(|line: &serde_json::Value| line.get("path").is_some())
        .collect();
    let [cut] = &cut[..] else { panic!("{log}") };
    assert_eq!((&cut["level"], &cut["method"], &cut["path"]), (&"WARN".into(), &"POST".into(), &"/echo".into()));
    assert!(cut["age"].is_string(), "{cut}");
}

#[tokio::test]
async fn a_second_signal_of_the_same_kind_ends_the_process_at_once() {
    let process = Process::start(&[("shutdown_timeout", "60s")]).await;
    let mut client = upload(&process).await;

    let begun = Instant::now();
    process.signal(Signal::TERM);
    // The service knows, and goes on.
    let mut other = process.client().await;
    soon("leaving", async {
        while other.get("/readyz").await.status == 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    client.send("5\r\nstill\r\n").await;
    assert_eq!(client.chunk().await, b"still");
    process.signal(Signal::TERM);

    let (status, log) = process.ended().await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// How a service is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kept {
    /// Its unit says `RestartKillSignal=SIGHUP`, and that it does.
    Told,
    /// A restart and a stop begin alike.
    Untold,
    /// By a service manager with a descriptor store, but its sockets are its own, as in a container.
    Alone,
}

impl Kept {
    async fn start(self) -> Service {
        let alone = "unset LISTEN_PID LISTEN_FDS LISTEN_FDNAMES; exec \"$@\"";
        let manager = match self {
            Kept::Told => managed(),
            Kept::Untold => managed().one_signal(),
            Kept::Alone => managed_by(alone).env(variable("listen"), "127.0.0.1:0"),
        };
        start(manager.env(variable("shutdown_timeout"), "6s")).await
    }

    async fn client(self, service: &Service) -> Client {
        if self != Kept::Alone {
            return Client::connect(service.address()).await;
        }
        service.logged("serving on ", service.exits().len() + 1).await.unwrap();
        let log = service.log();
        let (_, address) = log.rsplit_once("serving on ").expect("a service that serves");
        let address = address.split('"').next().and_then(|address| address.parse().ok()).expect("its address");
        Client::connect(address).await
    }
}

async fn ends_well(service: &mut Service) {
    let status = soon("the end", service.exited()).await.expect("an end");
    assert!(status.success(), "{status}; the log:\n{}", service.log());
}

#[tokio::test]
async fn a_restart_hands_connections_over_and_a_stop_retires_them() {
    let mut cases = JoinSet::new();
    for (kept, signal, retires) in [
        (Kept::Told, Signal::HUP, false),
        (Kept::Told, Signal::INT, false),
        (Kept::Told, Signal::TERM, true),
        (Kept::Untold, Signal::HUP, false),
        (Kept::Untold, Signal::TERM, false),
        (Kept::Alone, Signal::HUP, true),
        (Kept::Alone, Signal::TERM, true),
    ] {
        cases.spawn(async move {
            let mut service = kept.start().await;
            let mut client = kept.client(&service).await;
            assert_good(&client.get("/livez").await);
            service.signal(signal).unwrap();
            if retires {
                soon("an announcement", async { while !client.get("/livez").await.says_close() {} }).await;
                client.ended().await;
                // The lame duck still serves who comes.
                assert_eq!(kept.client(&service).await.get("/livez").await.status, 200);
                ends_well(&mut service).await;
                let stored = service.messages().iter().any(|message| message.says("FDSTORE=1"));
                let (log, what) = (service.log(), format!("{kept:?}, {signal:?}"));
                assert!(!stored, "{what}: a queue for nobody; the log:\n{log}");
                assert_eq!(
                    log.contains("the next client starts the service again"),
                    kept == Kept::Told,
                    "{what}: {log}"
                );
                soon("the start", service.start()).await.unwrap();
                assert_good(&kept.client(&service).await.get("/livez").await);
            } else {
                ends_well(&mut service).await;
                client.ask("/livez").await;
                soon("the start", service.start()).await.unwrap();
                assert_good(&client.answer().await);
            }
        });
    }
    cases.join_all().await;
}

#[tokio::test]
async fn where_a_task_ends_that_the_service_cannot_do_without_it_leaves_and_has_failed() {
    for panics in [true, false] {
        let ends = Arc::new(Notify::new());
        let end = Arc::clone(&ends);
        let mut machinery = JoinSet::new();
        machinery.spawn(async move {
            end.notified().await;
            assert!(!panics, "as it is to");
        });
        let app = spawn_app_with(machinery, "shutdown_timeout = '6s'", Router::new()).await;
        let mut client = app.client().await;
        assert_eq!(client.get("/readyz").await.status, 200);

        ends.notify_one();

        client.ended().await;
        let (outcome, _) = app.left().await;
        assert_ne!(ExitCode::from(&outcome), ExitCode::SUCCESS, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_service_that_no_longer_accepts_makes_way_for_the_next_process() {
    let mut service = start(managed_as(application::FRAGILE)).await;
    let mut client = Client::connect(service.address()).await;
    assert_good(&client.get("/fragile").await);
    // In whose stead it breaks, this one has been accepted.
    Client::connect(service.address()).await.ended().await;

    let status = soon("the end", service.exited()).await.unwrap();
    assert_eq!(status.code(), Some(1), "{}", service.log());
    let log = service.log();
    assert!(log.contains("cannot go on") && log.contains(application::BROKEN), "{log}");
    let mut next = Client::connect(service.address()).await;
    next.ask("/livez").await;
    soon("the start", service.start()).await.unwrap();
    // Who was served before it broke goes on, and who came afterwards has waited.
    assert_good(&client.get("/livez").await);
    assert_good(&next.answer().await);
}
