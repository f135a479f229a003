//! Who is found, let in and counted at a handover socket, from inside.

use std::os::unix::net::UnixStream;

use futures_util::future::poll_immediate;
use rustix::io::{FdFlags, fcntl_getfd};
use tempfile::TempDir;

use super::super::connection::{Origin, Peer, Socket};
use super::*;

/// Connections with what was read of them.
fn detached(count: usize) -> Vec<Detached> {
    let detached = |_| Detached {
        socket: UnixStream::pair().unwrap().0.into(),
        unparsed: b"GET ".to_vec(),
        origin: Origin::Adopted,
        since: Instant::now(),
    };
    (0..count).map(detached).collect()
}

/// The directory is the service's own, and root may be who drains the host.
#[test]
fn what_the_service_has_laid_out_is_not_followed_when_its_host_is_drained() {
    let (directory, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let siblings = Siblings::within(directory.path());
    let (drained, (file, none)) =
        (directory.path().join(DRAINED), (elsewhere.path().join("a"), elsewhere.path().join("b")));
    std::fs::write(&file, "kept").unwrap();
    let link = |to: &Path| std::os::unix::fs::symlink(to, &drained).unwrap();
    let laid_out: [&dyn Fn(); 4] = [&|| (), &|| link(&file), &|| link(&none), &|| {
        rustix::fs::mknodat(rustix::fs::CWD, &drained, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap()
    }];
    for lay_out in laid_out {
        lay_out();
        assert!(!siblings.are_drained());
        for is_drained in [true, true, false, false] {
            siblings.set_drained(is_drained).unwrap();
            assert_eq!(siblings.are_drained(), is_drained);
        }
        assert_eq!((std::fs::read_to_string(&file).unwrap().as_str(), none.exists()), ("kept", false));
    }
}

#[tokio::test]
async fn the_living_are_found_but_for_oneself_and_the_sockets_of_the_dead_are_removed() {
    let directory = TempDir::new().unwrap();
    let siblings = Siblings::within(directory.path());
    let own = siblings.listen(Arc::default()).unwrap();
    let behind = |pid| {
        let socket = seqpacket().unwrap();
        bind(&socket, &SocketAddrUnix::new(siblings.path(pid)).unwrap()).unwrap();
        listen(&socket, 1).unwrap();
        socket
    };
    let living = [behind(7), behind(1)];
    drop(behind(3));
    std::fs::write(directory.path().join("no number"), "").unwrap();
    // Those of others: a file, a directory, and what leads elsewhere.
    std::fs::write(siblings.path(8080), "").unwrap();
    std::fs::create_dir(siblings.path(8081)).unwrap();
    std::os::unix::fs::symlink(siblings.path(8080), siblings.path(8082)).unwrap();

    assert_eq!(siblings.pids().unwrap(), [1, 7]);

    assert!(!siblings.path(3).exists());
    assert!([8080, 8081, 8082].iter().all(|other| siblings.path(*other).symlink_metadata().is_ok()));
    assert!(siblings.path(1).exists() && own.path.exists());
    for socket in living {
        assert_eq!(fcntl_getfd(&socket).unwrap(), FdFlags::CLOEXEC);
        assert!(rustix::net::accept(&socket).is_err(), "who lives is not disturbed");
    }
    let handover_socket = own.path.clone();
    own.close().await;
    assert!(!handover_socket.exists());
}

#[tokio::test]
async fn what_is_handed_in_is_parked_as_a_guest_and_counted_with_all_others() {
    let directory = TempDir::new().unwrap();
    let siblings = Siblings::within(directory.path());
    let connections = Arc::new(Connections::default());
    let handover_socket = siblings.listen(Arc::clone(&connections)).unwrap();
    let admit = |_| {
        let socket = tokio::net::UnixStream::pair().unwrap().0;
        connections.admit(Socket::Right(socket), Peer::Unix, Vec::new(), Origin::Accepted)
    };
    let live: Vec<_> = (0..2).map(admit).collect();
    connections.park(detached(3));

    let taken = hand_in(&handover_socket.path, &detached(4), PATIENCE).await.unwrap();

    assert_eq!(taken, Taken { count: 4, has: Some(live.len() + 3 + 4) });
    let parked = connections.take_parked();
    assert!(parked.iter().all(|one| one.unparsed == b"GET "));
    assert!(parked.iter().all(|one| fcntl_getfd(&one.socket).unwrap() == FdFlags::CLOEXEC));
    assert_eq!(parked.iter().filter(|one| one.origin == Origin::Guest).count(), 4);
    handover_socket.close().await;
}

/// Who listens at a handover socket may say so many bytes, or nothing, and go.
#[tokio::test]
async fn an_answer_is_taken_for_what_it_says_and_for_nothing_else() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("1");
    let socket = seqpacket().unwrap();
    bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&socket, 64).unwrap();
    let handover_socket = UnixListener::from_std(socket.into()).unwrap();
    let cases: [(&[u8], Option<Option<usize>>); 7] = [
        (&[TAKEN], Some(None)),
        (&[TAKEN, 3, 1, 0, 0], Some(Some(259))),
        (&[TAKEN, 3], None),
        (&[TAKEN, 3, 1, 0, 0, 0], Some(Some(259))),
        (b"?", None),
        (b"?\x03\x01\0\0", None),
        (&[], None),
    ];
    for (answer, has) in cases {
        let connections = detached(2);
        let (taken, ()) = tokio::join!(hand_in(&path, &connections, PATIENCE), async {
            let (giver, _) = handover_socket.accept().await.unwrap();
            giver.readable().await.unwrap();
            // Whether or not it reads what it gets.
            if answer.len() % 2 == 1 {
                queue::receive(&giver).unwrap();
            }
            if !answer.is_empty() {
                send(&giver, answer, SendFlags::empty()).unwrap();
            }
        });
        assert_eq!(taken.ok(), has.map(|has| Taken { count: 2, has }), "{answer:?}");
    }
}

#[test]
fn the_service_and_root_may_hand_connections_in_and_nobody_else() {
    for (user, own, is_one) in [(0, 0, true), (0, 7, true), (7, 7, true), (7, 0, false), (7, 8, false)] {
        assert_eq!(may_hand_in(user, own), is_one, "{user} {own}");
    }
}

#[tokio::test]
async fn nothing_is_taken_in_at_a_handover_socket_that_is_closed_even_where_its_task_has_ended_before() {
    let directory = TempDir::new().unwrap();
    let connections = Arc::new(Connections::default());
    let mut handover_socket = Siblings::within(directory.path()).listen(Arc::clone(&connections)).unwrap();
    assert!(poll_immediate(handover_socket.ended()).await.is_none());
    tokio::task::yield_now().await;
    handover_socket.close().await;
    assert_eq!(Arc::strong_count(&connections), 1, "the task has gone");

    let mut handover_socket = HandoverSocket { path: directory.path().join("1"), task: tokio::spawn(async {}) };
    handover_socket.ended().await.unwrap();
    handover_socket.close().await;
}
