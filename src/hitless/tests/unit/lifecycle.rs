//! What follows from T, what is told of the process' life, and how the connections are divided among those that serve on.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::routing::get;
use axum::{Router, ServiceExt};
use futures_util::future::poll_immediate;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen, send, socket_with};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::connection::{Origin, Peer};
use super::super::connections::Mode;
use super::super::queue::{self, Detached};
use super::super::{Connection, Cut, Listener, Track};
use super::to_next_process::CALM;
use super::upkeep::{Told, end};
use super::*;

fn lifecycle(timeout: u64) -> Lifecycle {
    Lifecycle::new(ShutdownTimeout::new(Duration::from_secs(timeout)).unwrap())
}

fn detached(count: usize) -> Vec<Detached> {
    let detached = |_| {
        let socket = UnixStream::pair().unwrap().0.into();
        Detached { socket, unparsed: Vec::new(), origin: Origin::Adopted, since: Instant::now() }
    };
    (0..count).map(detached).collect()
}

#[test]
fn all_times_follow_from_t() {
    for (total, request, calm, last_moment, last_pause, turn_away, sixth, unit_stop) in [
        (30., 15., 10., 29., 29., 7.5, 5., 33.),
        (6., 3., 2., 5.8, 5.7, 1.5, 1., 9.),
        (60., 30., 20., 59., 59., 15., 10., 63.),
        (1.2, 0.6, 0.4, 1.16, 0.9, 0.3, 0.2, 4.2),
    ] {
        let times =
            [total, request, calm, last_moment, last_pause, turn_away, sixth, unit_stop].map(Duration::from_secs_f64);
        let t = ShutdownTimeout::new(times[0]).unwrap();
        let follow = [
            t.total(),
            t.request(),
            t.calm(),
            t.last_moment(),
            t.last_pause(),
            t.turn_away(),
            t.sixth(),
            t.unit_stop(),
        ];
        assert_eq!(follow, times);
    }
    let (least, most, a_little) = (ShutdownTimeout::MIN, ShutdownTimeout::MAX, Duration::from_nanos(1));
    for (timeout, is_one) in [(least - a_little, false), (least, true), (most, true), (most + a_little, false)] {
        assert_eq!(ShutdownTimeout::new(timeout).is_some(), is_one, "{timeout:?}");
    }
}

#[test]
fn the_status_tells_whether_anything_was_lost() {
    let cut = || vec![Cut { peer: Peer::Unix, request: None, age: Duration::ZERO, at_work: true }];
    for (outcome, is_good) in [
        (Outcome::default(), true),
        (Outcome { handed_over: 1, ..Outcome::default() }, true),
        (Outcome { left_behind: cut(), ..Outcome::default() }, true),
        (Outcome { cut: cut(), ..Outcome::default() }, false),
        (Outcome { unfinished: 1, ..Outcome::default() }, false),
        (Outcome { lost: 1, ..Outcome::default() }, false),
        (Outcome { failed: true, ..Outcome::default() }, false),
    ] {
        assert_eq!(ExitCode::from(&outcome) == ExitCode::SUCCESS, is_good, "{outcome:?}");
    }
}

#[tokio::test]
async fn handlers_and_probes_see_where_the_process_is_in_its_life() {
    let lifecycle = lifecycle(30);
    let handle = lifecycle.handle();
    let sees = async || {
        let draining = poll_immediate(handle.draining()).await.is_some();
        (handle.phase().to_string(), handle.is_ready(), draining, handle.remaining().is_some())
    };
    assert_eq!(sees().await, ("starting".to_owned(), false, false, false));
    assert!(lifecycle.serving(&Arc::default()).is_none(), "it has no siblings, and no handover socket");
    assert_eq!(sees().await, ("serving".to_owned(), true, false, false));
    lifecycle.set_ready(false);
    assert!(handle.is_ready());

    let since = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
    lifecycle.phase.send_replace(Phase::Leaving { since, ready: true });
    let mut told = handle.0.phase.clone();
    // Those who wait for a change hear of each, and of nothing else.
    for (ready, is_news) in [(true, false), (false, true), (false, false), (true, true)] {
        told.mark_unchanged();
        lifecycle.set_ready(ready);
        assert_eq!(told.has_changed().unwrap(), is_news);
        assert_eq!(sees().await, ("leaving".to_owned(), ready, true, true));
    }
    let remaining = handle.remaining().unwrap();
    assert!(remaining > Duration::from_secs(10) && remaining <= Duration::from_secs(20), "{remaining:?}");
}

#[tokio::test]
async fn an_instance_among_siblings_has_a_handover_socket_while_it_serves() {
    let directory = TempDir::new().unwrap();
    let siblings = Siblings::within(directory.path());
    let socket = lifecycle(30).among(Some(siblings.clone())).serving(&Arc::default()).expect("a handover socket");
    assert!(siblings.path(std::process::id()).exists());
    socket.close().await;
}

#[test]
fn nobody_follows_a_stop_where_a_restart_is_told_apart_nor_where_the_sockets_are_the_processs_own() {
    use Reason::{Failure, Hangup, Interrupt, Terminate};
    for (succession, follows) in [
        (Succession::None, [false; 4]),
        (Succession::Always, [true; 4]),
        (Succession::AfterRestart, [false, true, true, true]),
    ] {
        let lifecycle = lifecycle(30).followed(succession);
        let is_followed = [Terminate, Interrupt, Hangup, Failure].map(|reason| lifecycle.successor(reason).is_ok());
        assert_eq!(is_followed, follows, "{succession:?}");
    }
}

#[tokio::test]
async fn it_leaves_as_soon_as_it_can_and_waits_for_what_must_end_until_t() {
    for (reason, work, failed) in
        [(Reason::Interrupt, false, false), (Reason::Failure, false, true), (Reason::Interrupt, true, false)]
    {
        let lifecycle = lifecycle(2);
        let handle = lifecycle.handle();
        if work {
            handle.spawn(std::future::pending::<()>());
        }
        let server = tokio::spawn(std::future::pending::<()>());
        let began = Instant::now();
        let outcome = lifecycle.leave(&Connections::default(), None, reason, server.abort_handle()).await;
        assert_eq!(began.elapsed() >= Duration::from_secs(2), work, "{outcome:?}");
        assert_eq!((outcome.failed, outcome.unfinished), (failed, usize::from(work)));
        assert!(server.await.unwrap_err().is_cancelled());
    }
}

/// How many connections each of those has that serve on, how many one that leaves has, and how they are divided.
#[tokio::test]
async fn those_that_serve_on_have_as_many_in_the_end() {
    let cases: [(&[usize], usize, &[usize]); 7] = [
        (&[0], 3, &[3]),
        (&[0, 0], 10, &[5, 5]),
        (&[0, 10], 30, &[20, 20]),
        (&[9, 1, 5], 6, &[9, 6, 6]),
        (&[40, 0], 10, &[40, 10]),
        (&[40, 0, 0], 10, &[40, 5, 5]),
        // More than there are in a message.
        (&[10, 0], 310, &[160, 160]),
    ];
    for (had, given, have) in cases {
        let directory = TempDir::new().unwrap();
        let siblings = Siblings::within(directory.path());
        let mut living = Vec::new();
        for (number, had) in had.iter().enumerate() {
            let connections = Arc::new(Connections::default());
            connections.park(detached(*had));
            let socket = siblings.listen(Arc::clone(&connections)).unwrap();
            // As if each were a process of its own.
            std::fs::rename(siblings.path(std::process::id()), siblings.path(number as u32 + 1)).unwrap();
            living.push((connections, socket));
        }
        let connections = Connections::default();
        connections.park(detached(given));
        let mut counted = 0;
        let leaving = lifecycle(30).among(Some(siblings));

        assert!(leaving.to_siblings(&connections, Instant::now(), &mut counted).await);

        let mut has: Vec<_> = living.iter().map(|(connections, _)| connections.parked()).collect();
        has.sort_unstable();
        let mut have = have.to_vec();
        have.sort_unstable();
        assert_eq!((has, counted), (have, given), "{had:?}");
    }
}

/// Listens like an instance of an earlier release, which does not say how many connections it has.
fn earlier_release(path: &Path) -> Arc<AtomicUsize> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&socket, 64).unwrap();
    let socket = UnixListener::from_std(socket.into()).unwrap();
    let has = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&has);
    tokio::spawn(async move {
        while let Ok((giver, _)) = socket.accept().await {
            giver.readable().await.unwrap();
            let connections = queue::receive(&giver).unwrap().unwrap().open().unwrap();
            counted.fetch_add(connections.len(), Relaxed);
            send(&giver, &[6], SendFlags::empty()).unwrap();
        }
    });
    has
}

#[tokio::test]
async fn instances_of_an_earlier_release_get_as_many_each() {
    let directory = TempDir::new().unwrap();
    let siblings = Siblings::within(directory.path());
    let living = [1, 2, 3].map(|pid| earlier_release(&siblings.path(pid)));
    let connections = Connections::default();
    connections.park(detached(12));
    let mut counted = 0;
    assert!(lifecycle(30).among(Some(siblings)).to_siblings(&connections, Instant::now(), &mut counted).await);
    assert_eq!((living.map(|has| has.load(Relaxed)), counted), ([4; 3], 12));
}

#[tokio::test]
async fn what_no_sibling_takes_stays_here() {
    let directory = TempDir::new().unwrap();
    let siblings = Siblings::within(directory.path());
    let leaving = lifecycle(30).among(Some(siblings.clone()));
    let connections = Connections::default();
    connections.park(detached(3));
    let mut counted = 0;
    assert!(!leaving.to_siblings(&connections, Instant::now(), &mut counted).await, "there is none");
    let socket = siblings.listen(Arc::default()).unwrap();
    std::fs::rename(siblings.path(std::process::id()), siblings.path(1)).unwrap();
    // It says that it takes connections, and then takes none.
    let (given, ()) = tokio::join!(leaving.to_siblings(&connections, Instant::now(), &mut counted), async {
        while !connections.is_paused() {
            tokio::task::yield_now().await;
        }
        socket.close().await;
    });
    assert!(!given);
    assert_eq!((counted, connections.parked(), connections.is_paused()), (0, 3, false));
}

/// A server of `connections`, and its address.
fn serve(connections: &Arc<Connections>, app: Router) -> (SocketAddr, JoinHandle<std::io::Result<()>>) {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let listener = Listener::new(vec![systemd::ListeningSocket::Tcp(socket)], Arc::clone(connections), 10).unwrap();
    let app = Track(app).into_make_service_with_connect_info::<Connection>();
    (address, tokio::spawn(axum::serve(listener, app).into_future()))
}

/// The beginning of an HTTP/2 connection, and a request of its first stream.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn asks(path: u8) -> Vec<u8> {
    [b"\0\0\x0c\x01\x05\0\0\0\x01\x82\x86\x04\x02/", &[path][..], b"\x01\x04test"].concat()
}

/// Reads frames until there is one of this kind.
async fn reads(client: &mut TcpStream, kind: u8) {
    loop {
        let mut head = [0; 9];
        client.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        client.read_exact(&mut payload).await.unwrap();
        if head[3] == kind {
            return;
        }
    }
}

/// While a handler is at work for another one, and although it does not say that it has heard.
#[tokio::test]
async fn among_siblings_a_client_of_http2_is_told_to_go_at_once_and_served_on() {
    let directory = TempDir::new().unwrap();
    let siblings = Siblings::within(directory.path());
    let sibling = siblings.listen(Arc::default()).unwrap();
    std::fs::rename(siblings.path(std::process::id()), siblings.path(1)).unwrap();
    let connections = Arc::new(Connections::default());
    let app = Router::new().route("/", get(std::future::pending::<()>)).route("/q", get(|| async {}));
    let (address, server) = serve(&connections, app);
    let mut busy = TcpStream::connect(address).await.unwrap();
    busy.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(HELLO).await.unwrap();
    tokio::time::sleep(CALM).await;
    let (leaving, mut given) = (lifecycle(30).among(Some(siblings)), 0);
    let leaves = leaving.to_siblings(&connections, Instant::now(), &mut given);
    let is_served = async {
        const GOAWAY: u8 = 7;
        const HEADERS: u8 = 1;
        reads(&mut client, GOAWAY).await;
        tokio::time::sleep(CALM * 3).await;
        client.write_all(&asks(b'q')).await.unwrap();
        reads(&mut client, HEADERS).await;
    };
    tokio::select! {
        _ = leaves => panic!("somebody is still at work"),
        served = tokio::time::timeout(Duration::from_secs(10), is_served) => served.expect("it is told"),
    }
    server.abort();
    sibling.close().await;
}

/// Who has come so late that it has not heard yet.
#[tokio::test]
async fn a_pause_that_somebody_asks_in_by_http2_is_given_up_where_the_answer_takes_long() {
    for (path, is_paused) in [(None, true), (Some(b'q'), true), (Some(b'w'), false)] {
        let connections = Arc::new(Connections::default());
        let app = Router::new().route("/w", get(std::future::pending::<()>)).route("/q", get(|| async {}));
        let (address, server) = serve(&connections, app);
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(HELLO).await.unwrap();
        tokio::time::sleep(CALM).await;
        let leaving = lifecycle(30);
        connections.tell_http2(Duration::ZERO).await;
        let (paused, ()) = tokio::join!(leaving.try_to_pause(&connections), async {
            while !connections.is_paused() {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(CALM / 10).await;
            client.write_all(&path.map_or(Vec::new(), asks)).await.unwrap();
        });
        assert_eq!(paused.is_some(), is_paused, "{path:?}");
        assert!(paused.is_none_or(|paused| paused.elapsed() < CALM * 3), "{path:?}");
        server.abort();
    }
}

#[tokio::test]
async fn who_turns_to_nobody_late_has_the_time_for_it_that_is_left() {
    let leaving = lifecycle(6);
    let timeout = leaving.handle.0.timeout;
    let nobody = std::io::Error::other("nobody");
    for (after, reason, at_most) in [
        (Duration::ZERO, Reason::Terminate, timeout.sixth()),
        (timeout.calm(), Reason::Hangup, timeout.sixth() / 2),
        (timeout.request(), Reason::Hangup, Duration::ZERO),
        (timeout.last_moment(), Reason::Hangup, Duration::ZERO),
    ] {
        let connections = Connections::default();
        connections.set_listeners_closed();
        let began = Instant::now();
        leaving.to_nobody(&connections, began.checked_sub(after).unwrap(), reason, &nobody).await;
        let took = began.elapsed();
        assert!(took >= at_most && took < at_most + Duration::from_millis(400), "{after:?}: {took:?}");
        assert_eq!(connections.mode(), Mode::Retired);
    }
}

/// What goes on when the service is told to leave.
#[derive(Clone, Copy, Debug, PartialEq)]
enum GoesOn {
    Nothing,
    /// A handler works, and its client waits.
    Work,
    /// A client sends a part of its request's body, and no more.
    Upload,
    /// What the process has to wait for, beside its requests.
    Task,
    /// The same, of a handler that is still to begin it, and answers then.
    LateTask,
}

/// Serves, leaves while that goes on, and gives when nobody is served any more, and whether it was ready shortly after the
/// beginning and at the end.
async fn pauses(goes_on: GoesOn) -> (Duration, bool, bool) {
    let lifecycle = lifecycle(6);
    let handle = lifecycle.handle();
    let connections = Arc::new(Connections::default());
    let tasks = handle.clone();
    let late = || async move {
        tokio::time::sleep(CALM * 2 / 3).await;
        tasks.spawn(std::future::pending::<()>());
    };
    let app = Router::new().route("/", get(std::future::pending::<()>).post(|_: axum::body::Bytes| async {}));
    let (address, server) = serve(&connections, app.route("/late", get(late)));
    lifecycle.serving(&connections);
    let mut client = TcpStream::connect(address).await.unwrap();
    let sent = match goes_on {
        GoesOn::Nothing | GoesOn::LateTask => "",
        GoesOn::Work => "GET / HTTP/1.1\r\nHost: test\r\n\r\n",
        GoesOn::Upload => "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\npart",
        GoesOn::Task => {
            handle.spawn(std::future::pending::<()>());
            ""
        }
    };
    client.write_all(sent.as_bytes()).await.unwrap();
    tokio::time::sleep(CALM * 2).await;
    if goes_on == GoesOn::LateTask {
        client.write_all(b"GET /late HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
        tokio::time::sleep(CALM / 10).await;
    }

    let since = Instant::now();
    lifecycle.phase.send_replace(Phase::Leaving { since, ready: true });
    let (is_ready, _) = tokio::join!(
        async {
            tokio::time::sleep(CALM * 2).await;
            handle.is_ready()
        },
        lifecycle.detach_all(&connections, since)
    );
    server.abort();
    (since.elapsed(), is_ready, handle.is_ready())
}

#[tokio::test]
async fn a_moment_is_waited_for_at_which_nobody_waits_long_and_who_would_is_told_to_turn_elsewhere() {
    let timeout = lifecycle(6).handle.0.timeout;
    let work_ends = timeout.calm() + timeout.request();
    let (nothing, work, upload, task, late_task) = tokio::join!(
        pauses(GoesOn::Nothing),
        pauses(GoesOn::Work),
        pauses(GoesOn::Upload),
        pauses(GoesOn::Task),
        pauses(GoesOn::LateTask)
    );
    assert!(nothing.0 < timeout.turn_away() && (nothing.1, nothing.2) == (true, true), "{nothing:?}");
    assert!(work.0 >= work_ends && (work.1, work.2) == (true, false), "{work:?}");
    for unbounded in [upload, task, late_task] {
        let (took, early, late) = unbounded;
        assert!(took >= timeout.last_pause() && (early, late) == (true, true), "{unbounded:?}");
    }
}

/// As a process of its own, which is this test once more.
#[test]
fn what_goes_on_when_the_service_has_left_keeps_its_process_for_a_moment_only() {
    const LEAVES: &str = "HITLESS_TEST_LEAVES";
    if std::env::var_os(LEAVES).is_none() {
        let name = std::thread::current().name().unwrap().to_owned();
        let began = Instant::now();
        let mut this = std::process::Command::new(std::env::current_exe().unwrap());
        let status = this.args(["--exact", &name]).env(LEAVES, "1").status().unwrap();
        assert!(status.success() && began.elapsed() < Duration::from_secs(15), "{status}, {:?}", began.elapsed());
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let blocked = tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(60)));
        let server = tokio::spawn(async {});
        let (lifecycle, connections) = (lifecycle(30).with_last_resort().unwrap(), Connections::default());
        connections.set_listeners_closed();
        lifecycle.leave(&connections, None, Reason::Terminate, server.abort_handle()).await;
        drop(blocked);
    });
    // It waits for that thread.
    drop(runtime);
    panic!("the process goes on");
}

/// As a process of its own, as above.
#[test]
fn a_signal_is_heard_while_handlers_block_every_thread() {
    const BLOCKED: &str = "HITLESS_TEST_BLOCKED";
    if std::env::var_os(BLOCKED).is_none() {
        let name = std::thread::current().name().unwrap().to_owned();
        let began = Instant::now();
        let mut this = std::process::Command::new(std::env::current_exe().unwrap());
        let status = this.args(["--exact", &name]).env(BLOCKED, "1").status().unwrap();
        assert!(
            status.code() == Some(1) && began.elapsed() < Duration::from_secs(15),
            "{status}, {:?}",
            began.elapsed()
        );
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let told = told_to_leave().unwrap();
        let _lifecycle = lifecycle(1).with_last_resort().unwrap();
        let (send, blocked) = std::sync::mpsc::channel();
        tokio::spawn(async move {
            send.send(()).unwrap();
            std::thread::sleep(Duration::from_secs(60));
        });
        blocked.recv().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        told.await;
        std::thread::sleep(Duration::from_secs(60));
    });
}

/// What is told before nobody leads the process any more.
#[tokio::test]
async fn a_process_that_nobody_leads_any_more_has_until_t_if_it_leaves() {
    let timeout = lifecycle(1).handle.0.timeout;
    for (told, status) in [(None, None), (Some(Told::Leaving), Some(1))] {
        let signals = [SignalKind::user_defined1(); 3].map(|kind| signal(kind).unwrap());
        let (sender, receiver) = mpsc::unbounded_channel();
        told.into_iter().for_each(|told| sender.send(told).unwrap());
        drop(sender);
        let began = Instant::now();
        assert_eq!(end(timeout, receiver, signals).await, status);
        assert_eq!(began.elapsed() > timeout.total(), status.is_some());
    }
}

/// How the process ends after it has left: when its main goes on, and when its runtime is dropped one of whose threads goes on.
#[test]
fn who_waits_for_the_next_process_does_not_wait_for_the_threads_of_a_runtime() {
    const BLOCKS: &str = "HITLESS_TEST_BLOCKS";
    let ends_within = |awaited: bool, dropped: bool| {
        let name = std::thread::current().name().unwrap().to_owned();
        let mut this = std::process::Command::new(std::env::current_exe().unwrap());
        let began = Instant::now();
        let status = this.args(["--exact", &name]).env(BLOCKS, format!("{awaited} {dropped}")).status().unwrap();
        assert!(status.success(), "{status}");
        began.elapsed()
    };
    let Some(blocks) = std::env::var_os(BLOCKS) else {
        let slow = Duration::from_millis(1900);
        for (awaited, dropped, is_slow) in [(true, true, false), (true, false, true), (false, true, true)] {
            let took = ends_within(awaited, dropped);
            assert_eq!(took > slow, is_slow, "{awaited} {dropped}: {took:?}");
        }
        return;
    };
    let (awaited, dropped) = blocks.to_str().unwrap().split_once(' ').unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(60)));
        let lifecycle = lifecycle(30).with_last_resort().unwrap();
        lifecycle.last_resort.as_ref().unwrap().leaving();
        lifecycle.last_resort.as_ref().unwrap().left(true, awaited == "true");
    });
    if dropped == "true" {
        drop(runtime);
    }
    std::thread::sleep(Duration::from_secs(60));
}
