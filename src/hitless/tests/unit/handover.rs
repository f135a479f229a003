//! The way through a process, where a step of it fails or is not waited for.

use std::error::Error as _;
use std::future::{pending, ready};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use axum::Router;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::super::connection::Origin;
use super::super::queue::Detached;
use super::*;

fn inherited() -> Inherited {
    Inherited { given: Given::default(), limits: Limits { max_connections: 10, ..Limits::unbounded() } }
}

fn bind() -> io::Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0")
}

#[test]
fn where_there_is_no_runtime_nothing_is_bound() {
    let refused = inherited().handover(ShutdownTimeout::default(), || -> io::Result<TcpListener> { unreachable!() });
    assert!(matches!(refused, Err(Error::NoRuntime)));
}

#[tokio::test]
async fn what_the_service_says_of_its_own_socket_is_said_once() {
    let refused = inherited().handover(ShutdownTimeout::default(), || -> io::Result<TcpListener> {
        Err(io::Error::new(io::ErrorKind::AddrInUse, "cannot listen there"))
    });
    let Err(error) = refused else { panic!("it listens") };
    assert!(matches!(&error, Error::Bind(error) if error.kind() == io::ErrorKind::AddrInUse));
    assert_eq!((error.to_string(), error.source().is_some()), ("cannot listen there".to_owned(), false));
}

#[test]
fn an_operator_reads_sentences() {
    let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
    for (error, said) in [
        (Error::NoRuntime, "there is no tokio runtime here"),
        (Error::Bind(refused()), "permission denied"),
        (Error::Listen(refused()), "a listening socket cannot be served: permission denied"),
        (Error::Thread(refused()), "there is no thread for what ends the process at last: permission denied"),
    ] {
        assert_eq!(format!("{error:?}"), said);
    }
}

#[tokio::test]
async fn who_is_told_before_it_is_ready_leaves_at_once_even_where_it_goes_on() {
    let connections = Arc::new(Connections::default());
    let listener = Listener::new(vec![bind().unwrap().into()], connections, 10).unwrap();
    let lifecycle = Lifecycle::new(ShutdownTimeout::default());
    let mut handover = Handover::new(lifecycle, &listener, JoinSet::new(), Vec::new(), ready(Reason::Interrupt));
    assert_eq!(handover.unless_told(ready(1)).await, Some(1), "what is done is not thrown away");
    assert_eq!(handover.unless_told(pending::<()>()).await, None);
    assert_eq!(handover.unless_told(ready(2)).await, None, "it was told, and nothing more is begun");

    let server = axum::serve(listener, handover.track(Router::new())).with_graceful_shutdown(handover.quiesced());
    let outcome = tokio::time::timeout(Duration::from_secs(10), handover.run(server)).await.unwrap();
    assert_eq!((outcome.lost, outcome.failed, outcome.cut.len()), (0, false, 0));
}

#[tokio::test]
async fn what_a_process_that_fails_has_not_taken_over_stays_where_it_is() {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (sender, receiver) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let (here, _there) = UnixStream::pair().unwrap();
    // As many as a message has, and some in another one, which are not taken over before those have been let in.
    for count in [252, 3] {
        let detached = |_| {
            let socket = here.try_clone().unwrap().into();
            Detached { socket, unparsed: Vec::new(), origin: Origin::Adopted, since: Instant::now() }
        };
        assert_eq!(queue::send(&sender, &(0..count).map(detached).collect::<Vec<_>>()).unwrap(), count);
    }
    drop(sender);
    let kept = receiver.try_clone().unwrap();
    let listener = Listener::new(vec![bind().unwrap().into()], Arc::default(), 10).unwrap();
    let mut machinery = JoinSet::new();
    machinery.spawn(ready(()));
    let lifecycle = Lifecycle::new(ShutdownTimeout::default());
    let handover = Handover::new(lifecycle, &listener, machinery, vec![receiver], pending());
    let server = axum::serve(listener, handover.track(Router::new())).with_graceful_shutdown(handover.quiesced());
    assert!(tokio::time::timeout(Duration::from_secs(10), handover.run(server)).await.unwrap().failed);
    assert_eq!(queue::receive(&kept).unwrap().map(|message| message.open().unwrap().len()), Some(3));
}
