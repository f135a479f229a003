//! What goes into a handover queue comes out of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::task::{Context, Waker};

use rustix::io::{FdFlags, fcntl_getfd};

use super::*;

fn detached(rest: &[u8]) -> (Detached, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    (Detached { socket: here.into(), unparsed: rest.to_vec(), origin: Origin::Adopted, since: Instant::now() }, there)
}

#[test]
fn a_thousand_connections_arrive_each_with_what_is_unparsed_of_it() {
    let (sender, receiver) = pair().unwrap();
    let inherited = |fd: &OwnedFd| !fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC);
    assert!(!inherited(&sender) && !inherited(&receiver));
    let (mut connections, mut peers): (Vec<_>, Vec<_>) =
        (0..1000).map(|n| detached(format!("GET /{n}").repeat(n % 7).as_bytes())).unzip();
    assert_eq!(HandoverQueue(sender).fill(&mut connections).unwrap(), 1000);
    drop(connections);

    let arrived: Vec<_> = unpack(vec![receiver]).flat_map(Result::unwrap).collect();
    assert_eq!(arrived.len(), 1000);
    for Detached { socket, unparsed, .. } in arrived {
        assert!(!inherited(&socket));
        UnixStream::from(socket).write_all(&[&unparsed[..], b"."].concat()).unwrap();
    }
    for (n, peer) in peers.iter_mut().enumerate() {
        let mut rest = String::new();
        peer.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, format!("GET /{n}").repeat(n % 7) + ".");
    }
}

#[test]
fn connections_of_which_nothing_was_read_travel_alone() {
    let (sender, receiver) = pair().unwrap();
    let (mut connections, _peers): (Vec<_>, Vec<_>) = (0..3).map(|_| detached(b"")).unzip();
    assert_eq!(HandoverQueue(sender).fill(&mut connections).unwrap(), 3);
    assert_eq!(unpack(vec![receiver]).map(Result::unwrap).map(|message| message.len()).collect::<Vec<_>>(), [3]);
}

/// How many connections of each kind there are, in turn. Who opens the messages of the first kind alone gets all of it.
#[test]
fn those_on_which_nothing_was_asked_come_last_and_in_messages_of_their_own() {
    for (asked, unasked) in [(1, 0), (0, 1), (2, 2), (1, 300), (300, 1)] {
        let (sender, receiver) = pair().unwrap();
        let of = |origin| move |n: usize| Detached { origin, ..detached(&vec![b'a'; n % 3]).0 };
        let mut connections: Vec<_> =
            (0..unasked).map(of(Origin::Unasked)).chain((0..asked).map(of(Origin::Adopted))).collect();
        assert_eq!(HandoverQueue(sender).fill(&mut connections).unwrap(), asked + unasked);
        let messages: Vec<_> = unpack(vec![receiver]).map(Result::unwrap).collect();
        let origins: Vec<_> = messages.iter().flatten().map(|detached| detached.origin).collect();
        assert_eq!(origins, [vec![Origin::Adopted; asked], vec![Origin::Unasked; unasked]].concat());
        assert!(messages.iter().all(|message| message.iter().all(|detached| detached.origin == message[0].origin)));
        assert!(messages.len() <= 3, "{}", messages.len());
    }
}

/// Releases of 0.1.0 open format 2 alone, and take memory that is there for one that they need not look into.
#[test]
fn connections_on_which_nothing_was_asked_are_what_older_releases_open_too() {
    for rest in ["", "GE"] {
        let (sender, receiver) = pair().unwrap();
        let (mut connections, _peers): (Vec<_>, Vec<_>) = (0..3)
            .map(|_| detached(rest.as_bytes()))
            .map(|(detached, peer)| (Detached { origin: Origin::Unasked, ..detached }, peer))
            .unzip();
        HandoverQueue(sender).fill(&mut connections).unwrap();
        let Message { bytes, descriptors, .. } = receive(&receiver).unwrap().unwrap();
        let length = (rest.len() as u32).to_le_bytes();
        assert_eq!((bytes, descriptors.len()), ([&[2], &length[..], &length, &length].concat(), 4));
    }
}

#[test]
fn no_number_of_large_heads_is_too_many() {
    let (sender, receiver) = pair().unwrap();
    // As on a host that allows no larger buffers.
    sockopt::set_socket_send_buffer_size(&sender, 200_000).unwrap();
    let (mut connections, _peers): (Vec<_>, Vec<_>) = (0..500).map(|_| detached(&[b'a'; 64 * 1024])).unzip();
    assert_eq!(HandoverQueue(sender).fill(&mut connections).unwrap(), 500);
    let arrived: Vec<_> = unpack(vec![receiver]).flat_map(Result::unwrap).collect();
    assert_eq!(arrived.iter().map(|detached| detached.unparsed.len()).sum::<usize>(), 500 * 64 * 1024);
}

#[test]
fn a_queue_of_another_version_or_shape_is_refused() {
    for message in [&[1, 0, 0, 0, 0][..], &[], &[2, 0, 0, 0], &[2, 9, 0, 0, 0], &[2, 0, 0, 0, 0, 0]] {
        let (detached, _peer) = detached(b"");
        assert!(decompose(message, vec![detached.socket]).is_err(), "{message:?}");
    }
}

#[test]
fn a_rest_longer_than_any_is_refused() {
    for (length, is_good) in [(ledger::UNPARSED_LIMIT, true), (ledger::UNPARSED_LIMIT + 1, false)] {
        let (detached, _peer) = detached(&vec![b'a'; length]);
        let memory = unparsed(std::slice::from_ref(&detached)).unwrap().unwrap();
        let message = [&[VERSION][..], &(length as u32).to_le_bytes()].concat();
        assert_eq!(decompose(&message, vec![detached.socket, memory.into()]).is_ok(), is_good, "{length}");
    }
}

#[test]
fn a_queue_that_nobody_keeps_is_noticed() {
    let (sender, receiver) = pair().unwrap();
    let queue = HandoverQueue(sender);
    queue.is_kept().unwrap();
    drop(receiver);
    queue.is_kept().unwrap_err();
}

/// How many connections a handover queue has, and how many of them are taken over before others are served.
#[test]
fn who_was_busy_to_the_last_is_taken_over_at_once_and_the_others_lot_by_lot() {
    let cx = &mut Context::from_waker(Waker::noop());
    for (count, at_once) in [(0, 0), (1, 1), (MESSAGE_SOCKETS, MESSAGE_SOCKETS), (600, MESSAGE_SOCKETS)] {
        let (sender, receiver) = pair().unwrap();
        let (mut connections, _peers): (Vec<_>, Vec<_>) = (0..count).map(|n| detached(&n.to_be_bytes())).unzip();
        assert_eq!(HandoverQueue(sender).fill(&mut connections).unwrap(), count);
        let connections = Arc::new(Connections::default());

        let mut others = std::pin::pin!(take_over(vec![receiver], Arc::clone(&connections)));
        let mut more = true;
        for _ in 0..3 {
            more = more && others.as_mut().poll(cx).is_pending();
            assert_eq!(connections.parked(), at_once, "none comes before the others are let in");
        }
        let mut unparsed = Vec::new();
        while connections.parked() > 0 || more {
            // The listener begins with the last.
            unparsed.extend(connections.take_parked().into_iter().rev().map(|detached| detached.unparsed));
            more = more && others.as_mut().poll(cx).is_pending();
        }
        let expected: Vec<_> = (0..count).rev().map(|n| n.to_be_bytes()).collect();
        assert_eq!(unparsed, expected, "who was taken last comes first");
    }
}

#[test]
fn a_queue_that_is_still_being_filled_is_no_error_and_what_is_none_is_one() {
    let (_sender, receiver) = pair().unwrap();
    assert_eq!(unpack(vec![receiver]).count(), 0);
    let (_reader, writer) = io::pipe().unwrap();
    let opened: Vec<_> = unpack(vec![writer.into()]).collect();
    assert!(matches!(opened[..], [Err(_)]), "{opened:?}");
}
