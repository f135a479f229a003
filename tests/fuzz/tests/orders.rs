//! The connections and their listener, with hyper between them, in the hands of a scheduler: no order of accept, read,
//! dispatch, answer, flush, pause, resume and drop loses a connection, or hands over one that is not at a message boundary.
//!
//! A client whose connection is lost is told so, or waits for ever: shuttle calls that a deadlock. What it prints for a
//! failure is an order that `shuttle::replay` repeats.

use fuzz::hitless::process::Process;
use shuttle::future::{JoinHandle, block_on, spawn, yield_now};
use world::{Backlog, Client};

/// Runs `scenario` in as many orders as `ORDERS` says, picked at random, and as many that favour few switches at bad
/// moments.
fn explore(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    let orders = std::env::var("ORDERS").map_or(1000, |orders| orders.parse().unwrap());
    shuttle::check_random(scenario.clone(), orders);
    shuttle::check_pct(scenario, orders, 3);
}

/// One that asks at once, one that connects late, and one that is silent until they were served.
struct Clients {
    busy: JoinHandle<()>,
    late: JoinHandle<()>,
    silent: Client,
}

impl Clients {
    fn of(backlog: &Backlog) -> Self {
        let late = backlog.clone();
        Self {
            busy: spawn(ask(backlog.connect(), ["/", "/slow"])),
            late: spawn(async move {
                yield_now().await;
                ask(late.connect(), ["/slow", "/"]).await;
            }),
            silent: backlog.connect(),
        }
    }

    async fn served(self) {
        self.busy.await.unwrap();
        self.late.await.unwrap();
        ask(self.silent, ["/", "/"]).await;
    }
}

/// Sends two requests in pieces, without waiting for answers, then a third one when it has them.
async fn ask(client: Client, paths: [&str; 2]) {
    let request = |path| format!("POST {path} HTTP/1.1\r\nContent-Length: 2\r\n\r\nab");
    let stream = paths.map(request).concat().into_bytes();
    // Up to a body's last byte, or into the next head.
    for piece in [&stream[..43], &stream[43..70], &stream[70..]] {
        client.send(piece);
        yield_now().await;
    }
    let answer = |path| {
        let body = format!("POST {path} {{\"content-length\": \"2\"}} None b\"ab\"");
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let expected = paths.map(answer).concat();
    client.until(|answers| answers.len() >= expected.len()).await;
    assert_eq!(String::from_utf8(client.answers()).unwrap(), expected);
    // And goes on as if nothing had happened.
    client.send(request("/").as_bytes());
    let expected = expected + &answer("/");
    client.until(|answers| answers.len() >= expected.len()).await;
    assert_eq!(String::from_utf8(client.answers()).unwrap(), expected);
    assert!(!client.is_closed());
}

#[test]
fn a_restart_loses_nobody() {
    explore(|| {
        let backlog = Backlog::default();
        let clients = Clients::of(&backlog);
        let (old, new) = (Process::default(), Process::default());
        let server = old.listen(&backlog, Vec::new());
        block_on(async {
            let queue = old.leave(server).await;
            assert!(old.is_empty());
            new.listen(&backlog, queue);
            clients.served().await;
        });
    });
}

#[test]
fn nor_does_one_that_is_given_up() {
    explore(|| {
        let backlog = Backlog::default();
        let clients = Clients::of(&backlog);
        let process = Process::default();
        process.listen(&backlog, Vec::new());
        block_on(async {
            process.stay().await;
            process.stay().await;
            clients.served().await;
        });
    });
}

#[test]
fn nor_does_one_that_is_given_up_first() {
    explore(|| {
        let backlog = Backlog::default();
        let clients = Clients::of(&backlog);
        let (old, new) = (Process::default(), Process::default());
        let server = old.listen(&backlog, Vec::new());
        block_on(async {
            old.stay().await;
            let queue = old.leave(server).await;
            assert!(old.is_empty());
            new.listen(&backlog, queue);
            clients.served().await;
        });
    });
}

#[test]
fn nor_do_siblings_that_leave_one_after_the_other() {
    explore(|| {
        let backlog = Backlog::default();
        let clients = Clients::of(&backlog);
        let (first, second, third) = (Process::default(), Process::default(), Process::default());
        let [one, two, _] = [&first, &second, &third].map(|process| process.listen(&backlog, Vec::new()));
        block_on(async {
            for (leaving, server, sibling) in [(&first, one, &second), (&second, two, &third)] {
                assert!(leaving.give(server, sibling).await.is_empty());
                assert!(leaving.is_empty());
            }
            clients.served().await;
        });
    });
}
