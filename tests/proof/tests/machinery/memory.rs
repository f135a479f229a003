//! The memory of all clients together has a bound, whatever it is that they do not take; who takes what is theirs, slowly
//! too, gets it whole.

use std::time::Duration;

use proof::frames::{
    DATA, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW, PING, frame, hello, post, request, stream, take_frames,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::client::soon;
use crate::start::Process;

/// `unit.memory_high` of these tests.
const MEMORY_HIGH: usize = 96 << 20;

/// What the process may have: a debug build takes more for a request than is counted.
const MOST: usize = MEMORY_HIGH * 3 / 2;

/// What a client sends that reads nothing, and how many of them there are.
struct Shape {
    name: &'static str,
    clients: usize,
    says: fn() -> Vec<u8>,
}

/// Each takes more than [`MOST`] if nothing bounds it.
const SHAPES: [Shape; 4] = [
    Shape {
        name: "answers that are not read",
        clients: 250,
        says: || {
            [b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2000000\r\n\r\n", &*vec![b'x'; 2_000_000]].concat()
        },
    },
    Shape {
        name: "HTTP/2: streams with windows of 0",
        clients: 200,
        says: || streams(|id| frame(HEADERS, END_HEADERS | END_STREAM, id, &request("GET", "/livez"))),
    },
    Shape {
        name: "HTTP/2: bodies whose handler waits for its client",
        clients: 200,
        says: || streams(|id| [post(id, "/echo"), frame(DATA, 0, id, &[b'x'; 5_000])].concat()),
    },
    Shape {
        name: "HTTP/2: bodies in single bytes",
        clients: 40,
        says: || [hello(&[(INITIAL_WINDOW, 0)]), post(1, "/echo"), frame(DATA, 0, 1, b"x").repeat(65_000)].concat(),
    },
];

/// As many streams as hyper allows, for whose answers there is no room.
fn streams(each: fn(u32) -> Vec<u8>) -> Vec<u8> {
    let streams = (0..200).flat_map(|number| each(stream(number)));
    [hello(&[(INITIAL_WINDOW, 0)]), streams.collect()].concat()
}

/// Connects as a client that has little room for answers.
async fn connect(process: &Process) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    soon("connecting", socket.connect(process.address)).await.expect("connecting")
}

/// Has a megabyte echoed, reads it slowly, and says whether all of it came.
async fn reads_slowly(client: TcpStream) -> bool {
    let body = vec![b'x'; 1_000_000];
    let (mut reader, mut writer) = client.into_split();
    let head = "POST /echo HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n";
    let sent = tokio::spawn(async move { writer.write_all(&[head.as_bytes(), &body].concat()).await.map(|()| writer) });
    let (mut answer, mut part) = (0, [0; 16_384]);
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        match soon("the rest of the answer", reader.read(&mut part)).await {
            Ok(0) => break,
            Ok(count) => answer += part[..count].iter().filter(|byte| **byte == b'x').count(),
            Err(_) => return false,
        }
    }
    answer >= 1_000_000 && sent.await.is_ok_and(|sent| sent.is_ok())
}

#[tokio::test]
async fn whatever_clients_do_not_take_their_memory_is_bounded_and_who_takes_it_slowly_is_served() {
    let memory_high = MEMORY_HIGH.to_string();
    for Shape { name, clients, says } in SHAPES {
        let settings = [("unit.memory_high", &*memory_high), ("log.filter", "error")];
        let process = Process::start(&settings).await;
        let slow = tokio::spawn(reads_slowly(connect(&process).await));
        let mut polite = process.client().await;
        assert_eq!(polite.get("/livez").await.status, 200, "{name}");
        let mut attack = JoinSet::new();
        for _ in 0..clients {
            let mut client = connect(&process).await;
            attack.spawn(async move {
                // Until the service takes no more of it, or ends it.
                let _ = tokio::time::timeout(Duration::from_secs(3), client.write_all(&says())).await;
                client
            });
        }
        let held = attack.join_all().await;
        assert_eq!(polite.get("/livez").await.status, 200, "{name}");
        assert!(
            soon("the slow client", slow).await.expect("no panic"),
            "{name}: the slow client got a part of its answer"
        );
        let peak = process.peak_memory();
        assert!(peak < MOST, "{name}: {} MB", peak >> 20);
        drop(held);
    }
}

/// What comes within a while, and whether that is the end.
async fn comes(client: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut came = vec![];
    let until_end = client.read_to_end(&mut came);
    let ended = tokio::time::timeout(Duration::from_secs(3), until_end).await.is_ok();
    (came, ended)
}

#[tokio::test]
async fn who_holds_most_without_getting_any_further_is_ended_and_nobody_else() {
    // Nothing else ends anybody.
    let settings = [("unit.memory_high", "16M"), ("shutdown_timeout", "120s"), ("limits.body_timeout", "60s")];
    let process = Process::start(&settings).await;
    let asks = |count| (0..count).flat_map(|number| post(stream(number), "/echo")).collect::<Vec<u8>>();
    let mut modest = connect(&process).await;
    modest.write_all(&[hello(&[]), asks(1)].concat()).await.expect("sending");
    // Each holds 1.2 MB, and all of them may 4 MB.
    let mut greedy = JoinSet::new();
    for _ in 0..20 {
        let mut client = connect(&process).await;
        client.write_all(&[hello(&[]), asks(200)].concat()).await.expect("sending");
        greedy.spawn(async move { client.read_to_end(&mut vec![]).await });
    }
    for _ in 0..12 {
        let _ = soon("the end of one", greedy.join_next()).await;
    }
    let others = async { while greedy.join_next().await.is_some() {} };
    let all_ended = tokio::time::timeout(Duration::from_secs(3), others).await.is_ok();
    assert!(!all_ended, "who holds what there is room for was ended");
    modest.write_all(&frame(PING, 0, 0, b"12345678")).await.expect("sending");
    let (mut came, ended) = comes(&mut modest).await;
    assert!(!ended && take_frames(&mut came).iter().any(|frame| frame.kind == PING), "who holds little was ended");
}
