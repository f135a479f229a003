//! Kinds of clients beyond those that rehearse a service of one's own: slow readers, other protocols, requests that are cut at
//! any byte, and who asks just when the service is handed over.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use lab::http1::{Ask, Fault};
use lab::load::{Client, Kind, Restarts, between};
use lab::traffic::Traffic;
use tokio::sync::watch;

use crate::http2::{self, Outcome};

/// All that ask the service itself but for the patient and the relentless, with the number of clients a run has unless
/// told otherwise. While the relentless are at work there is no calm moment to restart in, which matters where nobody
/// else serves meanwhile.
pub const ALL: [(Kind, u32); 13] = [
    (Kind::PAUSING, 50),
    (Kind::BUSY, 4),
    (Kind::FRESH, 4),
    (Kind::DAWDLING, 8),
    (Kind::SLOW, 2),
    (Kind::UPLOADING, 2),
    (SIPPING, 2),
    (Kind::IDLE, 50),
    (HTTP2, 2),
    (TIMED, 6),
    (HALF_CLOSING, 2),
    (LAST_BYTE, 4),
    (TRICKLING, 1),
];

/// A size that no socket buffer swallows whole.
const LARGE: usize = 1024 * 1024;

/// One that is under the service's limit for bodies, 2 MiB.
const VERY_LARGE: usize = 2_000_000;

/// A receive buffer that fills at once.
const SMALL_WINDOW: u32 = 8 * 1024;

pub const SIPPING: Kind = Kind {
    name: "slow reader",
    about: "Asks for 1 MiB and takes it in sips, or for 2 MB and reads nothing for a second or two, through a small receive \
            buffer.",
    keeps: true,
    needs: |traffic| &traffic.upload,
    habit: |client| {
        Box::pin(async move {
            client.window = Some(SMALL_WINDOW);
            while client.goes_on() {
                let ask = if fastrand::bool() {
                    Ask { sip: Some(Duration::from_millis(10)), ..client.echo(LARGE) }
                } else {
                    Ask { unread: between(1_000, 2_000), ..client.echo(VERY_LARGE) }
                };
                client.ask(&ask).await;
                client.rest_until_wave().await;
            }
        })
    },
};

pub const RELENTLESS: Kind = Kind {
    name: "slow requests without end",
    about: "Asks for what takes the service seconds, again and again, on a kept connection or on a new one.",
    keeps: false,
    needs: |traffic| &traffic.slow,
    habit: |client| {
        Box::pin(async move {
            while client.goes_on() {
                let ask = client.get(|traffic| &traffic.slow);
                client.ask(&if fastrand::bool() { ask } else { ask.last() }).await;
            }
        })
    },
};

pub const PATIENT: Kind = Kind {
    name: "patient",
    about: "Keeps one connection, as a proxy does, posts again and again, and takes a 500 for an answer, too.",
    keeps: true,
    needs: |traffic| &traffic.upload,
    habit: |client| {
        Box::pin(async move {
            while client.goes_on() {
                let ask = Ask { may_fail: true, ..client.echo(64) };
                client.ask(&ask).await;
                client.rest(between(0, 50)).await;
            }
        })
    },
};

pub const HTTP2: Kind = Kind {
    name: "HTTP/2, four streams",
    about: "Keeps four streams going; after a GOAWAY it connects again, as the protocol has it.",
    keeps: false,
    needs: |traffic| &traffic.fast,
    habit: |client| {
        Box::pin(async move {
            while client.goes_on() {
                connection(client).await;
            }
        })
    },
};

/// One HTTP/2 connection, from its beginning to its end.
async fn connection(client: &Client) {
    let connection = match http2::Connection::open(client.place().clone()).await {
        Ok(connection) => connection,
        Err(fault) => {
            client.failed(client.now(), fault);
            return tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    client.opened();
    let streams = (0..4).map(|_| stream(client, connection.stream()));
    let mut unanswered: Vec<_> = join_all(streams).await.into_iter().flatten().collect();
    let (lost, ended) = connection.end().await;
    unanswered.resize(lost, (client.now(), "HTTP/2: a stream without an answer".to_owned()));
    for (at, what) in unanswered {
        client.failed(at, Fault::Lost { what, closed: false });
    }
    if let Err(fault) = ended {
        client.failed(client.now(), fault);
    }
}

/// Asks on one stream after the other, until one is not answered, which may be no loss.
async fn stream(client: &Client, mut stream: http2::Stream) -> Option<(f64, String)> {
    while client.goes_on() {
        let at = client.now();
        match http2::exchange(&mut stream, &client.fast_request()).await {
            Outcome::Answered => client.answered(at),
            Outcome::Wrong(what) => client.failed(at, Fault::Lost { what, closed: false }),
            Outcome::Unanswered(what) => return Some((at, what)),
        }
        tokio::time::sleep(between(0, 100)).await;
    }
    None
}

pub const TIMED: Kind = Kind {
    name: "at the gate",
    about: "Asks at random microseconds from the moment a restart is told until the new process answers; rests otherwise.",
    keeps: true,
    needs: |traffic| &traffic.fast,
    habit: |client| {
        Box::pin(async move {
            let mut restarts = client.restarts();
            while client.goes_on() {
                client.ask(&client.fast()).await;
                client.rest_unless(between(300, 700), async { drop(restarts.changed().await) }).await;
                let (restart, under_way) = *restarts.borrow_and_update();
                if under_way {
                    ask_at_the_gate(client, restart, &mut restarts).await;
                }
            }
        })
    },
};

/// Asks again and again, a random moment after each answer, until another process answers or the restart is over.
async fn ask_at_the_gate(client: &mut Client, restart: usize, restarts: &mut watch::Receiver<Restarts>) {
    let Some(before) = client.held.as_ref().map(|connection| connection.answered_by.clone()) else { return };
    while client.goes_on() && *restarts.borrow_and_update() == (restart, true) {
        // The runtime's own clock has steps of a millisecond.
        let pause = Duration::from_micros(fastrand::u64(..1_000));
        let _ = tokio::task::spawn_blocking(move || std::thread::sleep(pause)).await;
        let ask = client.fast();
        let at = client.now();
        client.ask(&ask).await;
        let Some(connection) = &client.held else { return };
        let by_another = connection.answered_by != before;
        client.note((restart, at, by_another));
        if by_another {
            return;
        }
    }
}

pub const HALF_CLOSING: Kind = Kind {
    name: "half-closing",
    about: "Connects, asks, shuts its writing side down, and waits for the answer and the end of file; fast and slow requests, \
            HTTP/1.1, Connection: close and HTTP/1.0.",
    keeps: false,
    needs: |traffic| &traffic.fast,
    habit: |client| {
        Box::pin(async move {
            while client.goes_on() {
                let slow = client.wave_begins() && !client.traffic().slow.is_empty();
                let ask = if slow { client.get(|traffic| &traffic.slow) } else { client.get(|traffic| &traffic.fast) };
                let ask = match fastrand::u8(..3) {
                    0 => ask,
                    1 => ask.last(),
                    _ => in_http10(ask),
                };
                client.ask(&Ask { half_closes: true, ..ask }).await;
                client.rest(between(0, 500)).await;
            }
        })
    },
};

pub const LAST_BYTE: Kind = Kind {
    name: "all but the last byte",
    about: "Sends a request, with or without a body, but for its last byte; that comes up to seconds later.",
    keeps: true,
    needs: |traffic| &traffic.fast,
    habit: |client| {
        Box::pin(async move {
            client.ask(&client.fast()).await;
            while client.goes_on() {
                // A body's last byte is waited for; a head's is not, which may take a sixth of T.
                let (ask, upto, longest) = match client.wave_begins() && !client.traffic().upload.is_empty() {
                    true => {
                        let ask = client.echo(64);
                        let whole = ask.pieces.concat().len();
                        (ask, whole, part_of_timeout(client.traffic(), 15))
                    }
                    false => {
                        let ask = client.get(|traffic| &traffic.fast);
                        let head = head_len(&ask);
                        (ask, head, part_of_timeout(client.traffic(), 12))
                    }
                };
                client.ask(&ask.in_two(upto - 1, between(0, longest.as_millis() as u64))).await;
                client.rest(between(0, 500)).await;
            }
        })
    },
};

pub const TRICKLING: Kind = Kind {
    name: "byte by byte",
    about: "Sends single bytes: a head for seconds, now and then a body with a second between one and the next.",
    keeps: true,
    needs: |traffic| &traffic.fast,
    habit: |client| {
        Box::pin(async move {
            client.ask(&client.fast()).await;
            let mut body = true;
            while client.goes_on() {
                // For a body a restart has to wait: it must not be so all the time.
                let ask = match body && !client.traffic().upload.is_empty() {
                    true => {
                        let ask = client.echo(10);
                        let body = head_len(&ask)..ask.pieces.concat().len();
                        byte_by_byte(ask, body, part_of_timeout(client.traffic(), 30))
                    }
                    false => {
                        let ask = client.get(|traffic| &traffic.fast);
                        let head = head_len(&ask);
                        byte_by_byte(ask, 0..head, part_of_timeout(client.traffic(), 12) / head as u32)
                    }
                };
                if body {
                    client.rest_until_wave().await
                } else {
                    client.rest(between(0, 2_000)).await
                }
                body = fastrand::u8(..15) == 0;
                if client.goes_on() {
                    client.ask(&ask).await;
                }
            }
        })
    },
};

pub const NGINX: Kind = Kind {
    name: "nginx's pool",
    about: "Asks through nginx, whose connections to the service are kept; no retries.",
    keeps: true,
    needs: |traffic| &traffic.fast,
    habit: |client| Box::pin(ask_a_proxy(client, true)),
};

pub const HAPROXY: Kind = Kind {
    name: "HAProxy's pool",
    about: "Asks through HAProxy, whose connections to the service are kept; no retries.",
    ..NGINX
};

pub const CADDY: Kind = Kind {
    name: "Caddy's pool",
    about: "Asks through Caddy, but for nothing that is answered while it is still read, as an echo is.",
    habit: |client| Box::pin(ask_a_proxy(client, false)),
    ..NGINX
};

async fn ask_a_proxy(client: &mut Client, may_echo: bool) {
    while client.goes_on() {
        let echoes = may_echo && fastrand::bool() && !client.traffic().upload.is_empty();
        let ask = if echoes { client.echo(fastrand::usize(1..4_000)) } else { client.get(|traffic| &traffic.fast) };
        client.ask(&ask).await;
        client.rest(between(0, 50)).await;
    }
}

/// A fraction of the service's T.
fn part_of_timeout(traffic: &Traffic, divisor: u32) -> Duration {
    traffic.shutdown_timeout / divisor
}

/// How many bytes the request's head has.
pub fn head_len(ask: &Ask) -> usize {
    const END: &[u8] = b"\r\n\r\n";
    let bytes = ask.pieces.concat();
    bytes.windows(END.len()).position(|window| window == END).map_or(bytes.len(), |at| at + END.len())
}

/// The same request in HTTP/1.0.
pub fn in_http10(mut ask: Ask) -> Ask {
    const VERSION: &[u8] = b" HTTP/1.1\r\n";
    let bytes = ask.pieces.concat();
    if let Some(at) = bytes.windows(VERSION.len()).position(|window| window == VERSION) {
        let (before, after) = bytes.split_at(at);
        ask.pieces = vec![[before, b" HTTP/1.0\r\n", &after[VERSION.len()..]].concat().into()];
    }
    ask
}

/// The same request, some of its bytes sent one by one.
pub fn byte_by_byte(ask: Ask, of: Range<usize>, pause: Duration) -> Ask {
    let bytes = Bytes::from(ask.pieces.concat());
    let (before, behind) = (bytes.slice(..of.start), bytes.slice(of.end..));
    let single = of.map(|at| bytes.slice(at..=at));
    let pieces = std::iter::once(before).chain(single).chain([behind]).filter(|piece| !piece.is_empty()).collect();
    Ask { pieces, pause, ..ask }
}
