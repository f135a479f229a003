//! The promise: whatever is sent before, during and after a restart is answered whole, and every HTTP/1.1 connection
//! that was open before is open after it.

use std::cell::Cell;
use std::fs;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use lab::http1::{Ask, Connection, Stays};
use lab::traffic::Request;
use proof::http2;
use proof::manager::{Manager, Service};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use tokio::task::JoinSet;

use crate::application::{self, PING_DELAY};
use crate::client::{Answer, Client, soon};
use crate::start::{managed, managed_by, variable};

pub async fn start(manager: Manager) -> Service {
    soon("the start", manager.start()).await.expect("a service that starts")
}

/// Restarts the service, whose old process has to end well.
pub async fn restart(service: &mut Service) {
    let status = soon("the restart", service.restart()).await.expect("a restart");
    assert!(status.success(), "{status}; the log:\n{}", service.log());
}

pub async fn client(service: &Service) -> Client {
    Client::connect(service.address()).await
}

/// What `event` gives, and the longest that a client who kept its connection waited for an answer meanwhile.
pub async fn slowest_answer<T>(address: SocketAddr, event: impl Future<Output = T>) -> (T, Duration) {
    let ask = Ask::get("/livez", 200, None);
    let mut connection = Connection::open(address, None).await.expect("a connection is not refused");
    assert_eq!(connection.exchange(&ask).await, Ok(Stays::Open));
    let over = Cell::new(false);
    let event = async {
        let output = event.await;
        over.set(true);
        output
    };
    let client = async {
        let mut slowest = Duration::ZERO;
        while !over.get() {
            let began = Instant::now();
            assert_eq!(connection.exchange(&ask).await, Ok(Stays::Open));
            slowest = slowest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        slowest
    };
    tokio::join!(event, client)
}

/// Which process answers now.
async fn process(service: &Service) -> String {
    client(service).await.get("/livez").await.process().to_owned()
}

#[track_caller]
pub fn assert_good(answer: &Answer) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.says_close(), "{answer:?}");
}

/// Begins an upload: from then on the process that answers is at work on it. [`finish`] is its end.
pub async fn begin(client: &mut Client) -> Answer {
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n").await;
    let answer = client.head().await;
    assert_good(&answer);
    assert_eq!(client.chunk().await, b"begun");
    answer
}

pub async fn finish(client: &mut Client) {
    client.send("5;with=extension\r\nended\r\n0\r\nAnd: a trailer\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"ended");
    assert_eq!(client.chunk().await, b"");
}

#[tokio::test]
async fn a_connection_lives_through_restarts() {
    let mut service = start(managed()).await;
    let mut client = client(&service).await;
    let mut processes = vec![client.get("/livez").await.process().to_owned()];
    for _ in 0..3 {
        // Idle for longer than a moment has to be calm.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let began = Instant::now();
        restart(&mut service).await;
        // There is nothing to wait for; T is 30 s.
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        assert!(service.stored().is_empty(), "the queue was opened and is still in the store");
        let answer = client.get("/livez").await;
        assert_good(&answer);
        processes.push(answer.process().to_owned());
        assert_good(&client.echo("body").await);
    }
    processes.dedup();
    assert_eq!(processes.len(), 4, "{processes:?}");
}

#[tokio::test]
async fn a_fresh_connection_and_one_that_is_halfway_through_a_head_live_through_restarts() {
    let mut service = start(managed()).await;
    let mut fresh = client(&service).await;
    let mut halfway = client(&service).await;
    let mut later = client(&service).await;
    assert_good(&later.get("/livez").await);
    halfway.send("\r\nGET /li").await;
    later.send("GET /livez HTTP/1.1\r\nHost: te").await;
    // The service has read all of that by the time it answers this.
    let before = process(&service).await;

    restart(&mut service).await;
    halfway.send("vez HTTP/1.1\r\nHo").await;
    later.send("st\r\n").await;
    restart(&mut service).await;
    halfway.send("st: test\r\n\r\n").await;
    later.send("\r\n").await;

    for answer in [fresh.get("/livez").await, halfway.answer().await, later.answer().await] {
        assert_good(&answer);
        assert_ne!(answer.process(), before);
    }
    assert_good(&halfway.get("/livez").await);
}

#[tokio::test]
async fn the_beginning_of_http2_goes_to_the_new_process_whole() {
    // hyper takes it for HTTP/1 when it gets no more, and would refuse it.
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for read in [8, 16] {
        let mut service = start(managed()).await;
        let mut client = client(&service).await;
        client.send(&preface[..read]).await;
        process(&service).await;

        restart(&mut service).await;

        // The rest, empty settings, and a PING, which the new process answers with its own settings first.
        client.send(&preface[read..]).await;
        client.send(b"\0\0\0\x04\0\0\0\0\0").await;
        assert_eq!(client.take(9).await[3], 4, "no SETTINGS frame after {read} bytes");
    }
}

#[tokio::test]
async fn a_request_in_flight_is_answered_by_the_old_process_and_its_connection_goes_on_at_the_new() {
    // A calm moment is waited for until T/3 = 1 s: one request ends before that, one after it.
    for wait in [Duration::from_millis(50), Duration::from_millis(1300)] {
        let mut service = start(managed().env(variable("shutdown_timeout"), "3s")).await;
        let mut client = client(&service).await;
        let before = begin(&mut client).await.process().to_owned();

        let restarted = async {
            restart(&mut service).await;
            service
        };
        let finished = async {
            tokio::time::sleep(wait).await;
            finish(&mut client).await;
            client
        };
        let (service, mut client) = tokio::join!(restarted, finished);

        let answer = client.get("/livez").await;
        assert_good(&answer);
        assert_ne!(answer.process(), before);
        assert!(service.exits().iter().all(|status| status.success()));
    }
}

#[tokio::test]
async fn fast_clients_are_served_while_a_slow_request_is_waited_for() {
    let mut service = start(managed()).await;
    let mut slow = client(&service).await;
    let mut fast = client(&service).await;
    let old = begin(&mut slow).await.process().to_owned();

    // It is over 100 ms old, so no moment is calm.
    tokio::time::sleep(Duration::from_millis(150)).await;
    service.signal(Signal::HUP).unwrap();
    service.wait_for("STOPPING=1").await.unwrap();
    let began = Instant::now();
    let mut answered = 0;
    while began.elapsed() < Duration::from_millis(500) {
        let answer = fast.get("/livez").await;
        assert_good(&answer);
        assert_eq!(answer.process(), old);
        assert_good(&client(&service).await.get("/livez").await);
        answered += 1;
    }
    assert!(answered > 10, "{answered}");
    // Whoever is sent here is served at once.
    let leaving = fast.get("/readyz").await;
    assert_eq!((leaving.status, leaving.says_close()), (200, false));

    finish(&mut slow).await;
    assert!(soon("the end", service.exited()).await.unwrap().success());
    soon("the start", service.start()).await.unwrap();
    for mut client in [slow, fast] {
        let answer = client.get("/livez").await;
        assert_good(&answer);
        assert_ne!(answer.process(), old);
    }
}

#[tokio::test]
async fn where_no_moment_is_calm_clients_wait_for_what_is_in_flight_and_the_log_says_for_what() {
    let settings = managed().env(variable("shutdown_timeout"), "9s").env(PING_DELAY, "4400ms");
    let mut service = start(settings).await;
    let (mut slow, mut fast) = (client(&service).await, client(&service).await);
    let old = fast.get("/livez").await.process().to_owned();
    slow.ask("/ping").await;
    // It is over 100 ms old, so no moment is calm. Connections are paused after T/3 all the same.
    tokio::time::sleep(Duration::from_millis(150)).await;

    restart(&mut service).await;

    let answer = slow.answer().await;
    assert_good(&answer);
    assert_eq!(answer.process(), old);
    let log = service.log();
    assert!(log.contains("clients wait for what is in flight, above all GET /ping of 127.0.0.1:"), "{log}");
    for client in [&mut slow, &mut fast] {
        let answer = client.get("/livez").await;
        assert_good(&answer);
        assert_ne!(answer.process(), old);
    }
}

#[tokio::test]
async fn slow_requests_and_pipelined_ones_are_answered_in_order_through_restarts() {
    let mut service = start(managed()).await;
    let mut client = client(&service).await;
    let id = |path: &str| path.replace('?', "-");
    let request = |path| format!("GET {path} HTTP/1.1\r\nHost: test\r\nX-Request-Id: {}\r\n\r\n", id(path));
    let paths = ["/ping", "/livez", "/ping?2", "/ping?3", "/livez?2", "/ping?4"];
    let requests: String = paths.into_iter().map(request).collect();
    // The end of the last head comes later.
    let (sent, rest) = requests.split_at(requests.len() - 7);
    client.send(sent).await;

    for _ in 0..2 {
        restart(&mut service).await;
    }
    client.send(rest).await;

    for path in paths {
        let answer = client.answer().await;
        assert_good(&answer);
        assert_eq!(answer.header("x-request-id"), Some(&*id(path)));
    }
    assert_good(&client.get("/livez").await);
}

#[tokio::test]
async fn an_upload_lives_through_a_restart_and_so_does_its_connection() {
    let mut service = start(managed()).await;
    let mut client = client(&service).await;
    let old = process(&service).await;
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n01234").await;
    let answer = client.head().await;

    let restarted = restart(&mut service);
    let uploaded = async {
        for digit in ["5", "6", "7", "8", "9"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.send(digit).await;
        }
        assert_eq!(client.take(10).await, b"0123456789");
    };
    tokio::join!(restarted, uploaded);

    assert_eq!(answer.process(), old);
    let answer = client.get("/livez").await;
    assert_good(&answer);
    assert_ne!(answer.process(), old);
}

#[tokio::test]
async fn clients_that_wait_for_the_end_of_file_get_it() {
    let mut service = start(managed()).await;
    let mut old = client(&service).await;
    let mut last = client(&service).await;
    old.send("GET /ping HTTP/1.0\r\n\r\n").await;
    last.send("GET /ping HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await;
    // Keep-alive in HTTP/1.0 is not handed over: it ends politely, without a reset.
    let mut kept = client(&service).await;
    kept.send("GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert_eq!(kept.answer().await.status, 200);

    let restarted = restart(&mut service);
    let ended = async {
        for mut client in [old, last] {
            assert_eq!(client.answer().await.status, 200);
            client.ended().await;
        }
        kept.ended().await;
    };
    tokio::join!(restarted, ended);
}

#[tokio::test]
async fn a_client_that_closes_its_side_is_answered_whole() {
    let mut service = start(managed()).await;
    let (get, post) = ("GET /ping HTTP/1.1\r\nHost: test\r\n", "POST /echo HTTP/1.1\r\nHost: test\r\n");
    let requests = [
        (format!("{get}\r\n"), 1),
        (format!("{get}Connection: close\r\n\r\n"), 1),
        ("GET /ping HTTP/1.0\r\n\r\n".to_owned(), 1),
        (format!("{post}Content-Length: 2\r\n\r\n12"), 1),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\n2\r\n12\r\n0\r\n\r\n"), 1),
        (format!("{get}\r\n{get}\r\n{get}\r\n"), 3),
    ];
    let mut clients = Vec::new();
    for (request, answers) in &requests {
        let mut client = client(&service).await;
        client.send(request).await;
        client.close_side().await;
        clients.push((client, request, *answers));
    }
    // One whose answer has begun, on a connection that was to stay.
    let mut begun = client(&service).await;
    begin(&mut begun).await;
    begun.send("5\r\nended\r\n0\r\n\r\n").await;
    begun.close_side().await;

    let restarted = restart(&mut service);
    let answered = async {
        for (client, request, answers) in &mut clients {
            for _ in 0..*answers {
                assert_eq!(client.answer().await.status, 200, "{request}");
            }
        }
        assert_eq!(begun.chunk().await, b"ended");
        assert_eq!(begun.chunk().await, b"");
    };
    tokio::join!(restarted, answered);
    for client in clients.into_iter().map(|(client, ..)| client).chain([begun]) {
        client.ended().await;
    }
}

#[tokio::test]
async fn where_descriptors_are_short_those_who_are_served_are_handed_over_all_the_same() {
    let mut service = start(managed_by("ulimit -n 300 && exec \"$@\"")).await;
    let mut served = Vec::new();
    for _ in 0..300 - 256 {
        // None of them is idle, and so nobody makes room for another.
        let mut client = client(&service).await;
        begin(&mut client).await;
        served.push(client);
    }
    assert_eq!(client(&service).await.get("/livez").await.status, 503);
    let finished = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        for client in &mut served {
            finish(client).await;
        }
    };
    tokio::join!(restart(&mut service), finished);
    for client in &mut served {
        assert_good(&client.get("/livez").await);
    }
}

#[tokio::test]
async fn what_could_not_be_handed_over_is_told_so_long_before_a_restart() {
    let service = start(managed()).await;
    let mut old = client(&service).await;
    old.send("GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    // Its handler does not read the body, of which something is still to come.
    let mut unread = client(&service).await;
    unread.send("GET /livez HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n").await;

    for mut client in [old, unread] {
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
        client.ended().await;
    }
}

#[tokio::test]
async fn a_streamed_answer_whose_header_tells_its_length_leaves_its_connection_open() {
    let mut service = start(managed()).await;
    let mut client = client(&service).await;
    for _ in 0..2 {
        let answer = client.get("/length").await;
        assert_good(&answer);
        assert_eq!(answer.text(), "whole");
        restart(&mut service).await;
    }
    assert_good(&client.get("/livez").await);
}

#[tokio::test]
async fn http2_clients_that_hang_keep_nobody_waiting() {
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // HEADERS that end stream 1: GET, http, /livez, and `test` for an authority.
    const REQUEST: &[u8] = b"\0\0\x10\x01\x05\0\0\0\x01\x82\x86\x04\x06/livez\x01\x04test";
    let mut service = start(managed().env(variable("shutdown_timeout"), "6s")).await;
    let mut silent = client(&service).await;
    silent.send(HELLO).await;
    let mut asked = client(&service).await;
    asked.send([HELLO, REQUEST].concat()).await;
    for hung in [&mut silent, &mut asked] {
        // It is HTTP/2: SETTINGS come first. From here on it neither reads nor answers.
        assert_eq!(hung.take(9).await[3], 4);
    }

    let ((), slowest) = slowest_answer(service.address(), restart(&mut service)).await;

    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_left_behind_and_keeps_nobody_waiting() {
    let large = (64 << 20).to_string();
    let settings = managed().env(variable("shutdown_timeout"), "6s").env(variable("limits.max_body_bytes"), &large);
    let mut service = start(settings).await;
    let mut deaf = client(&service).await;
    deaf.send(format!("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: {large}\r\n\r\n")).await;
    // It sends for as long as its own answer, which it does not read, lets it.
    let body = vec![b'x'; 64 << 20];
    assert!(tokio::time::timeout(Duration::from_secs(1), deaf.send(body)).await.is_err(), "all of it was echoed");

    let (status, slowest) = slowest_answer(service.address(), soon("the restart", service.restart())).await;

    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let (status, log) = (status.unwrap(), service.log());
    assert!(status.success(), "{log}");
    assert!(log.lines().any(|line| line.contains("left behind") && line.contains("POST /echo")), "{log}");
}

#[tokio::test]
async fn an_answer_that_is_not_read_is_left_behind_and_keeps_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let settings = managed().env(variable("shutdown_timeout"), "6s").listen("127.0.0.1:0").listen_unix(&path);
    let mut service = start(settings).await;
    let mut deaf = Client::connect_unix(&path).await;
    // A part of it gets into the socket, and another stays in hyper's buffer.
    deaf.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 400000\r\n\r\n").await;
    deaf.send(vec![b'x'; 400_000]).await;
    // For longer than a moment has to be calm.
    tokio::time::sleep(Duration::from_millis(150)).await;

    let (status, slowest) = slowest_answer(service.address(), soon("the restart", service.restart())).await;

    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let (status, log) = (status.unwrap(), service.log());
    assert!(status.success(), "{log}");
    assert!(log.lines().any(|line| line.contains("left behind") && line.contains(" of unix")), "{log}");
}

/// However many uploads stand still, before their answer began or after, alone or beside handlers at work.
#[tokio::test]
async fn uploads_that_stand_still_hold_up_nobody_whatever_t_is() {
    tokio::join!(restart_beside("12s", 0), restart_beside("12s", 4), restart_beside("3s", 0), restart_beside("3s", 4));
}

/// A restart with three uploads that stand still and as many slow requests without end as there are `pings`.
async fn restart_beside(t: &str, pings: u64) {
    let settings = managed().env(variable("shutdown_timeout"), t).env(PING_DELAY, "300ms");
    let mut service = start(settings.env(variable("limits.body_timeout"), "1h")).await;
    let mut stalled = Vec::new();
    for path in ["/fails/200", "/echo", "/fails/200"] {
        let mut client = client(&service).await;
        client.send(format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n01234")).await;
        stalled.push(client);
    }
    let (answered, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut slow = JoinSet::new();
    for number in 0..pings {
        let (address, answered, over) = (service.address(), Arc::clone(&answered), Arc::clone(&over));
        slow.spawn(async move {
            tokio::time::sleep(Duration::from_millis(80 * number)).await;
            let ping = Ask::get("/ping", 200, None);
            let mut connection = Connection::open(address, None).await.expect("a connection is not refused");
            while !over.load(Relaxed) {
                assert_eq!(connection.exchange(&ping).await, Ok(Stays::Open));
                answered.fetch_add(1, Relaxed);
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;

    let ((), slowest) = slowest_answer(service.address(), restart(&mut service)).await;

    // The handlers at work take 300 ms, what stands still is waited for as long, and then comes the start.
    assert!(slowest < Duration::from_secs(2), "{slowest:?} with T = {t} and {pings} slow requests");
    over.store(true, Relaxed);
    while let Some(ended) = slow.join_next().await {
        ended.expect("every slow request is answered");
    }
    let log = service.log();
    assert!(log.contains("left behind, as it waits for its client"), "{log}");
}

#[tokio::test]
async fn work_that_must_end_is_waited_for_and_keeps_nobody_waiting() {
    let mut service = start(managed()).await;
    assert_good(&client(&service).await.get("/work").await);

    let ((), slowest) = slowest_answer(service.address(), restart(&mut service)).await;

    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(service.log().contains(application::DONE), "{}", service.log());
}

#[tokio::test]
async fn blocking_work_that_takes_every_thread_costs_nobody_a_connection() {
    let mut service = start(managed().env(variable("shutdown_timeout"), "6s")).await;
    let mut client = client(&service).await;
    assert_good(&client.get("/blocking").await);

    let ((), slowest) = slowest_answer(service.address(), restart(&mut service)).await;

    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert_good(&client.get("/livez").await);
}

#[tokio::test]
async fn where_no_further_thread_can_be_had_connections_are_handed_over_all_the_same() {
    let mut service = start(managed()).await;
    let mut client = client(&service).await;
    assert_good(&client.get("/livez").await);
    let pid = service.pid().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let size =
        status.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB")?.trim().parse::<u64>().ok());
    // Not enough for another thread's stack.
    let most = size.map(|size| (size + 1024) << 10);
    prlimit(Pid::from_raw(pid.cast_signed()), Resource::As, Rlimit { current: most, maximum: most }).unwrap();

    restart(&mut service).await;

    assert_good(&client.get("/livez").await);
}

/// A service whose service manager has not read for as long as its watchdog waits.
async fn unheard() -> (Service, Client) {
    let watched = managed().env(variable("shutdown_timeout"), "6s").env("WATCHDOG_USEC", "500000");
    let service = start(watched).await;
    let mut client = client(&service).await;
    assert_good(&client.get("/livez").await);
    service.get_stuck(true).unwrap();
    let heard = service.messages().len();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        // Each changes the status.
        assert_good(&self::client(&service).await.get("/livez").await);
    }
    assert!(service.messages().len() <= heard + 1, "it was heard");
    (service, client)
}

#[tokio::test]
async fn a_service_manager_that_stops_reading_holds_nobody_up() {
    let (mut service, mut client) = unheard().await;
    service.signal(Signal::HUP).unwrap();
    let ((), slowest) = slowest_answer(service.address(), tokio::time::sleep(Duration::from_millis(500))).await;
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");

    // Once it reads again, it is told all that matters, and keeps the connections.
    service.get_stuck(false).unwrap();
    assert!(soon("the end", service.exited()).await.unwrap().success(), "{}", service.log());
    soon("the start", service.start()).await.unwrap();
    assert_good(&client.get("/livez").await);
    let told = service.messages();
    let position = |line: &str| told.iter().position(|message| message.start == 1 && message.says(line));
    assert!(position("STOPPING=1").is_some(), "{told:#?}");
    assert!(position("FDSTORE=1") < position("BARRIER=1"), "{told:#?}");
}

#[tokio::test]
async fn where_the_service_manager_does_not_read_to_the_end_connections_are_retired() {
    let (mut service, mut client) = unheard().await;
    service.signal(Signal::HUP).unwrap();
    soon("an announcement", async { while !client.get("/livez").await.says_close() {} }).await;
    client.ended().await;
    assert!(soon("the end", service.exited()).await.unwrap().success(), "{}", service.log());
}

#[tokio::test]
async fn http2_ends_with_goaway_and_its_streams_are_finished() {
    // Longer than a client without a stream is waited for.
    let mut service = start(managed().env(PING_DELAY, "1500ms")).await;
    let connection = http2::Connection::open(service.address()).await.unwrap();
    let ask = |path| Request::get(path, 200, None);
    let mut streams = JoinSet::new();
    for _ in 0..3 {
        let mut stream = connection.stream();
        let ask = ask("/ping");
        streams.spawn(async move { http2::exchange(&mut stream, &ask).await });
    }
    // One begins after the others, and is over before them.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(http2::exchange(&mut connection.stream(), &ask("/livez")).await, http2::Outcome::Answered);

    restart(&mut service).await;

    for outcome in streams.join_all().await {
        assert_eq!(outcome, http2::Outcome::Answered);
    }
    assert_eq!(connection.end().await, (0, Ok(())));
}

#[tokio::test]
async fn an_http2_stream_that_has_just_begun_keeps_nobody_waiting() {
    let mut service = start(managed().env(PING_DELAY, "2s")).await;
    let connection = http2::Connection::open(service.address()).await.unwrap();
    let ask = Request::get("/ping", 200, None);
    let mut stream = connection.stream();
    let slow = tokio::spawn(async move { http2::exchange(&mut stream, &ask).await });
    tokio::task::yield_now().await;

    let ((), slowest) = slowest_answer(service.address(), restart(&mut service)).await;

    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert_eq!(slow.await.unwrap(), http2::Outcome::Answered);
    assert_eq!(connection.end().await, (0, Ok(())));
}

#[tokio::test]
async fn unix_sockets_and_several_listeners_are_handed_over_alike() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut service = start(managed().listen("127.0.0.1:0").listen_unix(&path).listen("[::1]:0").named("six")).await;
    let mut unix = Client::connect_unix(&path).await;
    let mut tcp = client(&service).await;
    assert_good(&tcp.get("/livez").await);
    let old = unix.get("/livez").await.process().to_owned();

    for _ in 0..2 {
        restart(&mut service).await;
        for client in [&mut unix, &mut tcp] {
            let answer = client.get("/livez").await;
            assert_good(&answer);
            assert_ne!(answer.process(), old);
        }
        assert_good(&Client::connect_unix(&path).await.get("/livez").await);
    }
}

#[tokio::test]
async fn hundreds_of_idle_connections_live_through_restarts_one_on_the_others_heels() {
    let mut service = start(managed()).await;
    let mut clients = Vec::new();
    for number in 0..400 {
        let mut client = client(&service).await;
        // Half of them have been used.
        if number % 2 == 0 {
            assert_good(&client.get("/livez").await);
        }
        clients.push(client);
    }
    let old = process(&service).await;

    // They fill several messages of a queue, which the next process has hardly begun to open when it is to leave again.
    for _ in 0..4 {
        restart(&mut service).await;
    }

    for client in &mut clients {
        let answer = client.get("/livez").await;
        assert_good(&answer);
        assert_ne!(answer.process(), old);
    }
    assert!(service.stored().is_empty(), "what was opened is still in the store");
}

/// Asks on one connection, or on one for each request, and counts the answers in `answered`.
async fn ask(answered: Arc<AtomicUsize>, over: Arc<AtomicBool>, address: SocketAddr, pause: Duration, keep: bool) {
    let fast = Ask::get("/livez", 200, None);
    let in_two = fast.clone().in_two(9, Duration::from_millis(3));
    let asks = [fast.clone(), Ask::echo("/echo", 200, &[b'x'; 5000]), in_two, fast, Ask::get("/ping", 200, None)];
    let mut connection: Option<Connection> = None;
    for ask in asks.iter().cycle().take_while(|_| !over.load(Relaxed)) {
        let mut open = match connection.take() {
            Some(connection) => connection,
            None => Connection::open(address, None).await.expect("a connection is not refused"),
        };
        let ask = if keep { ask.clone() } else { ask.clone().last() };
        let stays = open.exchange(&ask).await.expect("a request is answered");
        answered.fetch_add(1, Relaxed);
        if keep {
            assert_eq!(stays, Stays::Open);
            assert_eq!(open.rest(pause).await, Ok(Stays::Open));
            connection = Some(open);
        } else {
            tokio::time::sleep(pause).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_in_thirty_restarts_under_load() {
    let mut service = start(managed().env(PING_DELAY, "20ms")).await;
    let (answered, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for number in 0..12 {
        let pause = Duration::from_millis([0, 1, 7, 20][number % 4]);
        clients.spawn(ask(Arc::clone(&answered), Arc::clone(&over), service.address(), pause, number < 8));
    }

    for _ in 0..30 {
        let before = answered.load(Relaxed);
        restart(&mut service).await;
        soon("answers after the restart", async {
            while answered.load(Relaxed) < before + 24 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    over.store(true, Relaxed);
    soon("the clients", clients.join_all()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_descriptor_store_clients_are_asked_to_go_and_nothing_is_lost() {
    let mut service = start(managed().store(0).env(variable("shutdown_timeout"), "3s")).await;
    let address = service.address();
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..4 {
        // Without long pauses, so that each is told in an answer before its connection ends.
        let (over, ask) = (Arc::clone(&over), Ask::get("/livez", 200, None));
        clients.spawn(async move {
            let mut told = 0;
            while !over.load(Relaxed) {
                let mut connection = Connection::open(address, None).await.expect("a connection is not refused");
                while !over.load(Relaxed) {
                    match connection.exchange(&ask).await.expect("a request is answered") {
                        Stays::Open => tokio::time::sleep(Duration::from_millis(number)).await,
                        Stays::Announced => {
                            told += 1;
                            break;
                        }
                    }
                }
            }
            told
        });
    }
    for _ in 0..3 {
        restart(&mut service).await;
    }
    over.store(true, Relaxed);
    let told: Vec<usize> = soon("the clients", clients.join_all()).await;
    assert!(told.iter().all(|&told| told >= 3), "{told:?}");
    assert!(service.stored().is_empty());
}

#[tokio::test]
async fn a_queue_of_another_release_costs_its_own_connections_and_no_others() {
    let mut service = start(managed()).await;
    let mut ours = client(&service).await;
    assert_good(&ours.get("/livez").await);
    let (theirs, socket) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let (sender, queue) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    send_with(&sender, b"\xffof another format", socket.into());
    store(&service, "parcel", queue).await;

    restart(&mut service).await;

    assert_good(&ours.get("/livez").await);
    Client::on(tokio::net::UnixStream::from_std(theirs).unwrap()).ended().await;
    assert!(service.stored().is_empty());
}

#[tokio::test]
async fn a_descriptor_that_means_nothing_to_this_release_does_not_keep_it_from_starting() {
    let mut service = start(managed()).await;
    let mut client = client(&service).await;
    assert_good(&client.get("/livez").await);
    store(&service, "of-another-release", UnixDatagram::unbound().unwrap().into()).await;

    restart(&mut service).await;

    assert_good(&client.get("/livez").await);
    assert!(service.stored().is_empty());
    service.logged("of-another-release", 1).await.unwrap();
}

/// Puts a descriptor into the store, as another release might have done.
async fn store(service: &Service, name: &str, fd: OwnedFd) {
    let environment = fs::read(format!("/proc/{}/environ", service.pid().unwrap())).unwrap();
    let mut variables = environment.split(|&byte| byte == 0);
    let path = variables.find_map(|variable| variable.strip_prefix(b"NOTIFY_SOCKET=")).unwrap();
    let notify = UnixDatagram::unbound().unwrap();
    notify.connect(str::from_utf8(path).unwrap()).unwrap();
    send_with(&notify, format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0").as_bytes(), fd);
    soon("the store", async {
        while service.stored() != [name] {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

fn send_with(socket: impl AsFd, message: &[u8], fd: OwnedFd) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::empty()).unwrap();
}

#[tokio::test]
async fn the_service_manager_is_told_in_the_right_order() {
    let mut service = start(managed().env(variable("shutdown_timeout"), "20s")).await;
    let mut client = client(&service).await;
    assert_good(&client.get("/livez").await);
    restart(&mut service).await;

    let messages = service.messages();
    let position = |start, line: &str| {
        let found = messages.iter().position(|message| message.start == start && message.says(line));
        found.unwrap_or_else(|| panic!("no {line} in {messages:#?}"))
    };
    let stopping = position(1, "STOPPING=1");
    let extended = messages[stopping].get("EXTEND_TIMEOUT_USEC").and_then(|usec| usec.parse::<u64>().ok());
    assert!(extended.is_some_and(|usec| usec >= 20_000_000), "{extended:?}");
    let stored = position(1, "FDSTORE=1");
    assert!(messages[stored].says("FDNAME=parcel") && messages[stored].says("FDPOLL=0"), "{:?}", messages[stored]);
    assert_eq!(messages[stored].fds, 1);
    let barrier = position(1, "BARRIER=1");
    let forgotten = position(2, "FDSTOREREMOVE=1");
    assert!(messages[forgotten].says("FDNAME=parcel"), "{:?}", messages[forgotten]);
    let order = [position(1, "READY=1"), stopping, stored, barrier, forgotten, position(2, "READY=1")];
    assert!(order.is_sorted(), "{order:?} in {messages:#?}");
}

#[tokio::test]
async fn a_process_that_is_told_by_kill_hands_over_too() {
    let mut service = start(managed()).await;
    let mut client = client(&service).await;
    assert_good(&client.get("/livez").await);
    for signal in [Signal::INT, Signal::HUP] {
        service.signal(signal).unwrap();
        assert!(soon("the end", service.exited()).await.unwrap().success());
        // Sent while there is no process at all.
        client.ask("/livez").await;
        soon("the start", service.start()).await.unwrap();
        assert_good(&client.answer().await);
    }
}

#[tokio::test]
async fn told_to_leave_at_any_moment_of_its_start_the_process_loses_nothing() {
    // A shell tells its process to leave so many seconds after it has become the service.
    let script = r#"[ -z "$LEAVE_AFTER" ] || { sleep "$LEAVE_AFTER"; kill -HUP $$; } & exec "$@""#;
    let mut service = start(managed_by(script)).await;
    let mut client = client(&service).await;
    assert_good(&client.get("/livez").await);

    for milliseconds in (0..60).step_by(4) {
        service.set_env("LEAVE_AFTER", format!("0.{milliseconds:03}"));
        service.signal(Signal::HUP).unwrap();
        soon("the end", service.exited()).await.unwrap();
        client.ask("/livez").await;
        // Whether it gets ready before, is a matter of luck.
        if soon("the start", service.start()).await.is_ok() {
            soon("the end", service.exited()).await.unwrap();
        }
        service.set_env("LEAVE_AFTER", "");
        soon("the start", service.start()).await.unwrap();
        assert_good(&client.answer().await);
    }
}

#[tokio::test]
async fn a_state_that_fails_hangs_or_takes_its_time_costs_nobody_a_connection() {
    let mut service = start(managed().exec()).await;
    let mut client = client(&service).await;
    assert_good(&client.get("/livez").await);
    let ready = |service: &Service| service.messages().iter().filter(|message| message.says("READY=1")).count();
    service.signal(Signal::HUP).unwrap();
    assert!(soon("the end", service.exited()).await.unwrap().success());
    client.ask("/livez").await;

    service.set_env("STATE", "fails");
    service.start().await.unwrap();
    assert_eq!(soon("the end", service.exited()).await.unwrap().code(), Some(1));
    let log = service.log();
    assert_eq!(log.matches("the service does not start: no database: nobody listens").count(), 1, "{log}");

    // Who stops a service that does not get ready need not kill it.
    service.set_env("STATE", "hangs");
    for (times, signal) in [(1, Signal::HUP), (2, Signal::TERM), (3, Signal::INT)] {
        service.start().await.unwrap();
        service.logged(application::HANGS, times).await.unwrap();
        service.signal(signal).unwrap();
        assert!(soon("the end", service.exited()).await.unwrap().success(), "{}", service.log());
    }

    assert_eq!(ready(&service), 1);
    service.set_env("STATE", "waits");
    service.start().await.unwrap();
    assert_good(&client.answer().await);
    // Whoever waited is answered while that is being said.
    soon("READY=1", async {
        while ready(&service) < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_cannot_end_is_left_behind_and_the_rest_is_handed_over_all_the_same() {
    let mut service = start(managed().env(variable("shutdown_timeout"), "1s")).await;
    let mut idle = client(&service).await;
    assert_good(&idle.get("/livez").await);
    let mut stuck = client(&service).await;
    begin(&mut stuck).await;

    let began = Instant::now();
    let status = soon("the restart", service.restart()).await.unwrap();
    assert!(status.success());
    assert!(began.elapsed() >= Duration::from_millis(900) && began.elapsed() < Duration::from_secs(10));

    assert_good(&idle.get("/livez").await);
    drop(stuck);
}
