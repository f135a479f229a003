//! What goes into a parcel comes out of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::task::{Context, Waker};

use rustix::io::{FdFlags, fcntl_getfd};

use super::*;

fn clean(rest: &[u8]) -> (Clean, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    (Clean { socket: here.into(), rest: rest.to_vec(), origin: Origin::Adopted }, there)
}

#[test]
fn a_thousand_connections_arrive_each_with_its_own_rest() {
    let (sender, receiver) = pair().unwrap();
    let inherited = |fd: &OwnedFd| !fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC);
    assert!(!inherited(&sender) && !inherited(&receiver));
    let (mut connections, mut peers): (Vec<_>, Vec<_>) =
        (0..1000).map(|n| clean(format!("GET /{n}").repeat(n % 7).as_bytes())).unzip();
    assert_eq!(Parcel(sender).pack(&mut connections).unwrap(), 1000);
    drop(connections);

    let arrived: Vec<_> = unpack(vec![receiver]).flat_map(Result::unwrap).collect();
    assert_eq!(arrived.len(), 1000);
    for Clean { socket, rest, .. } in arrived {
        assert!(!inherited(&socket));
        UnixStream::from(socket).write_all(&[&rest[..], b"."].concat()).unwrap();
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
    let (mut connections, _peers): (Vec<_>, Vec<_>) = (0..3).map(|_| clean(b"")).unzip();
    assert_eq!(Parcel(sender).pack(&mut connections).unwrap(), 3);
    assert_eq!(unpack(vec![receiver]).map(Result::unwrap).map(|message| message.len()).collect::<Vec<_>>(), [3]);
}

/// How many connections of each kind there are, in turn. Who opens the messages of the first kind alone gets all of it.
#[test]
fn those_on_which_nothing_was_asked_come_last_and_in_messages_of_their_own() {
    for (asked, unasked) in [(1, 0), (0, 1), (2, 2), (1, 300), (300, 1)] {
        let (sender, receiver) = pair().unwrap();
        let of = |origin| move |n: usize| Clean { origin, ..clean(&vec![b'a'; n % 3]).0 };
        let mut connections: Vec<_> =
            (0..unasked).map(of(Origin::Unasked)).chain((0..asked).map(of(Origin::Adopted))).collect();
        assert_eq!(Parcel(sender).pack(&mut connections).unwrap(), asked + unasked);
        let messages: Vec<_> = unpack(vec![receiver]).map(Result::unwrap).collect();
        let origins: Vec<_> = messages.iter().flatten().map(|clean| clean.origin).collect();
        assert_eq!(origins, [vec![Origin::Adopted; asked], vec![Origin::Unasked; unasked]].concat());
        assert!(messages.iter().all(|message| message.iter().all(|clean| clean.origin == message[0].origin)));
        assert!(messages.len() <= 3, "{}", messages.len());
    }
}

/// Releases of 0.1.0 open format 2 alone, and take memory that is there for one that they need not look into.
#[test]
fn connections_on_which_nothing_was_asked_are_what_older_releases_open_too() {
    for rest in ["", "GE"] {
        let (sender, receiver) = pair().unwrap();
        let (mut connections, _peers): (Vec<_>, Vec<_>) = (0..3)
            .map(|_| clean(rest.as_bytes()))
            .map(|(clean, peer)| (Clean { origin: Origin::Unasked, ..clean }, peer))
            .unzip();
        Parcel(sender).pack(&mut connections).unwrap();
        let Message { bytes, descriptors, .. } = receive(&receiver).unwrap().unwrap();
        let length = (rest.len() as u32).to_le_bytes();
        assert_eq!((bytes, descriptors.len()), ([&[2], &length[..], &length, &length].concat(), 4));
    }
}

#[test]
fn no_number_of_large_rests_is_too_many() {
    let (sender, receiver) = pair().unwrap();
    // As on a host that allows no larger buffers.
    sockopt::set_socket_send_buffer_size(&sender, 200_000).unwrap();
    let (mut connections, _peers): (Vec<_>, Vec<_>) = (0..500).map(|_| clean(&[b'a'; 64 * 1024])).unzip();
    assert_eq!(Parcel(sender).pack(&mut connections).unwrap(), 500);
    let arrived: Vec<_> = unpack(vec![receiver]).flat_map(Result::unwrap).collect();
    assert_eq!(arrived.iter().map(|clean| clean.rest.len()).sum::<usize>(), 500 * 64 * 1024);
}

#[test]
fn a_parcel_of_another_version_or_shape_is_refused() {
    for message in [&[1, 0, 0, 0, 0][..], &[], &[2, 0, 0, 0], &[2, 9, 0, 0, 0], &[2, 0, 0, 0, 0, 0]] {
        let (clean, _peer) = clean(b"");
        assert!(decompose(message, vec![clean.socket]).is_err(), "{message:?}");
    }
}

#[test]
fn a_rest_longer_than_any_is_refused() {
    for (length, is_good) in [(ledger::REST_LIMIT, true), (ledger::REST_LIMIT + 1, false)] {
        let (clean, _peer) = clean(&vec![b'a'; length]);
        let memory = rests(std::slice::from_ref(&clean)).unwrap().unwrap();
        let message = [&[VERSION][..], &(length as u32).to_le_bytes()].concat();
        assert_eq!(decompose(&message, vec![clean.socket, memory.into()]).is_ok(), is_good, "{length}");
    }
}

#[test]
fn a_parcel_that_nobody_keeps_is_noticed() {
    let (sender, receiver) = pair().unwrap();
    let parcel = Parcel(sender);
    parcel.is_kept().unwrap();
    drop(receiver);
    parcel.is_kept().unwrap_err();
}

/// How many connections a parcel has, and how many of them are taken over before others are served.
#[test]
fn who_was_busy_to_the_last_is_taken_over_at_once_and_the_others_lot_by_lot() {
    let cx = &mut Context::from_waker(Waker::noop());
    for (count, at_once) in [(0, 0), (1, 1), (MESSAGE_SOCKETS, MESSAGE_SOCKETS), (600, MESSAGE_SOCKETS)] {
        let (sender, receiver) = pair().unwrap();
        let (mut connections, _peers): (Vec<_>, Vec<_>) = (0..count).map(|n| clean(&n.to_be_bytes())).unzip();
        assert_eq!(Parcel(sender).pack(&mut connections).unwrap(), count);
        let gate = Arc::new(Gate::default());

        let mut others = std::pin::pin!(take_over(vec![receiver], Arc::clone(&gate)));
        let mut more = true;
        for _ in 0..3 {
            more = more && others.as_mut().poll(cx).is_pending();
            assert_eq!(gate.put_aside(), at_once, "none comes before the others are let in");
        }
        let mut rests = Vec::new();
        while gate.put_aside() > 0 || more {
            // The listener begins with the last.
            rests.extend(gate.take().into_iter().rev().map(|clean| clean.rest));
            more = more && others.as_mut().poll(cx).is_pending();
        }
        let expected: Vec<_> = (0..count).rev().map(|n| n.to_be_bytes()).collect();
        assert_eq!(rests, expected, "who was taken last comes first");
    }
}

#[test]
fn a_parcel_that_is_still_being_packed_is_no_error_and_what_is_none_is_one() {
    let (_sender, receiver) = pair().unwrap();
    assert_eq!(unpack(vec![receiver]).count(), 0);
    let (_reader, writer) = io::pipe().unwrap();
    let opened: Vec<_> = unpack(vec![writer.into()]).collect();
    assert!(matches!(opened[..], [Err(_)]), "{opened:?}");
}
