//! What goes into a parcel comes out of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

fn clean(rest: &[u8]) -> (Clean, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    (Clean { socket: here.into(), rest: rest.to_vec() }, there)
}

#[test]
fn a_thousand_connections_arrive_whole_and_in_order() {
    let (sender, receiver) = pair().unwrap();
    let (connections, mut peers): (Vec<_>, Vec<_>) =
        (0..1000).map(|n| clean(format!("GET /{n}").repeat(n % 7).as_bytes())).unzip();
    let rests: Vec<_> = connections.iter().map(|clean| clean.rest.clone()).collect();
    assert_eq!(Parcel(sender).pack(connections).unwrap(), 1000);

    let mut arrived = Vec::new();
    unpack(&receiver, &mut arrived).unwrap();
    assert_eq!(arrived.iter().map(|clean| clean.rest.clone()).collect::<Vec<_>>(), rests);
    for (n, (clean, peer)) in arrived.into_iter().zip(&mut peers).enumerate() {
        UnixStream::from(clean.socket).write_all(&n.to_le_bytes()).unwrap();
        let mut number = [0; 8];
        peer.read_exact(&mut number).unwrap();
        assert_eq!(usize::from_le_bytes(number), n);
    }
}

#[test]
fn the_largest_rests_fit() {
    let (sender, receiver) = pair().unwrap();
    let (connections, _peers): (Vec<_>, Vec<_>) = (0..8).map(|_| clean(&[b'a'; 16 * 1024])).unzip();
    assert_eq!(Parcel(sender).pack(connections).unwrap(), 8);
    let mut arrived = Vec::new();
    unpack(&receiver, &mut arrived).unwrap();
    assert_eq!(arrived.iter().map(|clean| clean.rest.len()).sum::<usize>(), 8 * 16 * 1024);
}

#[test]
fn a_parcel_of_another_version_or_shape_is_refused() {
    for message in [&[2, 0, 0, 0, 0][..], &[], &[1, 0, 0, 0], &[1, 9, 0, 0, 0], &[1, 0, 0, 0, 0, 0]] {
        let (clean, _peer) = clean(b"");
        assert!(decompose(message, vec![clean.socket]).is_err(), "{message:?}");
    }
}

#[test]
fn a_parcel_that_nobody_keeps_is_noticed() {
    let (sender, receiver) = pair().unwrap();
    let parcel = Parcel(sender);
    assert!(parcel.is_kept().unwrap());
    drop(receiver);
    assert!(!parcel.is_kept().unwrap());
}
