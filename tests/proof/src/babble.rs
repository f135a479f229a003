//! What the clients of a [storm](crate::storm) say: messages of HTTP/1.1 and frames of HTTP/2, good and bad, spoilt, cut
//! into pieces and broken off anywhere. All of it follows from a number.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW, LATEST, PING, PREFACE, PRIORITY,
    RST_STREAM, SETTINGS, UNKNOWN, WINDOW_UPDATE, field, frame, hello, remembered, request, stream,
};

/// What a client does from its first byte to its last.
pub struct Case {
    /// Where it follows from.
    pub seed: u64,
    /// What is sent, and how long nothing is sent before.
    pub pieces: Vec<(Duration, Vec<u8>)>,
    pub reads: Reads,
    pub leaves: Leaves,
}

/// What a client reads of its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    All,
    /// A little, now and then, through a small window.
    Sips,
    Nothing,
}

/// What a client does when it has said all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaves {
    /// It waits until the service ends the connection.
    Waits,
    /// The same, with its own side closed.
    HalfCloses,
    /// It is gone after so long, whether or not something is unread.
    Closes(Duration),
    Resets(Duration),
}

impl Case {
    pub fn new(seed: u64) -> Self {
        let rng = &mut Rng::with_seed(seed);
        // Nothing but its client ends what goes on for as long as there is one.
        let lasts = rng.u8(..6) == 0;
        let mut said = match rng.u8(..20) {
            0 => noise(rng, 300),
            1..8 => http2(rng, lasts),
            _ => http1(rng, lasts),
        };
        if rng.u8(..3) == 0 {
            spoil(rng, &mut said);
        }
        if rng.u8(..3) == 0 {
            said.truncate(rng.usize(..=said.len()));
        }
        let reads = one_of(rng, &[Reads::All, Reads::All, Reads::All, Reads::Sips, Reads::Nothing]);
        let after = Duration::from_millis(if rng.u8(..4) == 0 { rng.u64(..1_500) } else { rng.u64(..20) });
        let leaves = match rng.u8(..10) {
            0..2 if !lasts => Leaves::Waits,
            2..5 if !lasts => Leaves::HalfCloses,
            0..7 => Leaves::Closes(after),
            _ => Leaves::Resets(after),
        };
        Self { seed, pieces: pieces(rng, &said), reads, leaves }
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, pieces, reads, leaves } = self;
        write!(f, "case {seed}, reads {reads:?}, {leaves:?} after")?;
        pieces.iter().try_for_each(|(pause, piece)| write!(f, "\n  {pause:?}  \"{}\"", piece.escape_ascii()))
    }
}

/// Answered by the example of what lasts.
const LASTING: [&str; 2] = [EVENTS, SOCKET];
const EVENTS: &str = "/events";
const SOCKET: &str = "/socket";

const METHODS: [&str; 12] =
    ["GET", "GET", "GET", "POST", "POST", "POST", "HEAD", "OPTIONS", "CONNECT", "get", "PRI", "TRACE"];

const TARGETS: [&str; 24] = [
    LASTING[0],
    LASTING[1],
    "/livez",
    "/livez",
    "/ping",
    "/echo",
    "/echo",
    "/echo",
    "/readyz",
    "/nowhere",
    "http://lab/echo",
    "http://elsewhere:81/livez",
    "https://lab/livez",
    "//lab/livez",
    "lab:80",
    "*",
    "/livez#part",
    "/livez?a=b&c",
    "/%00%zz",
    "/\u{fc}",
    "/a b",
    "",
    "http://",
    "/../../livez",
];

/// Header fields, each of them whole.
const FIELDS: [&str; 36] = [
    "Connection: close",
    "Connection: keep-alive",
    "Connection: Upgrade",
    "Connection: close, upgrade",
    "Connection: Transfer-Encoding",
    "Upgrade: websocket",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQAAP__",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Expect: 100-continue",
    "Expect: the impossible",
    "Host: lab",
    "Host: elsewhere",
    "Host: a b",
    "Host:",
    "Content-Length: 5",
    "Content-Length: 5, 5",
    "Content-Length: +5",
    "Content-Length: -1",
    "Content-Length: 18446744073709551616",
    "Content-Length: 99999999999",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding: \u{b}chunked",
    "X-Folded: a\r\n b\r\n\tc",
    "X-Nul: a\0b",
    "no colon",
    ": no name",
    " leading: space",
    "X-Request-ID: \u{1b}[31m",
    "TE: trailers",
    "Trailer: X-Last",
];

const CHUNK_SIZES: [&str; 11] =
    ["5", "005", "5;a=\"b\"", "5 ", "0x5", "-5", "+5", "", "g", "FFFFFFFFFFFFFFFFF", "7fffffff"];

fn one_of<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn noise(rng: &mut Rng, most: usize) -> Vec<u8> {
    let length = rng.usize(..most);
    std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
}

/// A few messages, one after the other; with `lasts` also for what goes on and on.
fn http1(rng: &mut Rng, lasts: bool) -> Vec<u8> {
    let messages: Vec<_> =
        (0..rng.usize(1..5)).map(|_| if rng.u8(..3) == 0 { strange(rng, lasts) } else { good(rng, lasts) }).collect();
    messages.concat()
}

/// A message that is as it should be.
fn good(rng: &mut Rng, lasts: bool) -> Vec<u8> {
    let host = "Host: lab\r\n";
    match rng.u8(if lasts { 0 } else { 2 }..8) {
        0 => format!("GET {EVENTS} HTTP/1.1\r\n{host}\r\n").into(),
        1 => {
            let key = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
            let frames = [websocket(rng, 1), websocket(rng, 8)];
            [format!("GET {SOCKET} HTTP/1.1\r\n{host}{key}\r\n\r\n").into_bytes(), frames.concat()].concat()
        }
        2..4 => {
            let body = vec![b'x'; size(rng)];
            let head = format!("POST /echo HTTP/1.1\r\n{host}Content-Length: {}\r\n\r\n", body.len());
            [head.into_bytes(), body].concat()
        }
        4 => {
            let head = format!("POST /echo HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n");
            [head.into_bytes(), chunks(rng, true)].concat()
        }
        _ => format!("GET {} HTTP/1.1\r\n{host}\r\n", one_of(rng, &["/livez", "/ping", "/nowhere"])).into(),
    }
}

/// A message of parts of which most are as they should be.
fn strange(rng: &mut Rng, lasts: bool) -> Vec<u8> {
    let targets = &TARGETS[if lasts { 0 } else { LASTING.len() }..];
    let line_end = if rng.u8(..8) == 0 { "\n" } else { "\r\n" };
    let version =
        one_of(rng, &["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.9", "http/1.1", ""]);
    let mut head = format!("{} {} {version}{line_end}", one_of(rng, &METHODS), one_of(rng, targets));
    if rng.u8(..8) > 0 {
        head += &format!("Host: lab{line_end}");
    }
    for _ in 0..rng.usize(..5) {
        head += one_of(rng, &FIELDS);
        head += line_end;
    }
    if rng.u8(..12) == 0 {
        // Too many of them, or too large.
        let (count, length) = one_of(rng, &[(110, 10), (2, 20_000), (1, 70_000)]);
        head += &format!("X: {}{line_end}", "x".repeat(length)).repeat(count);
    }
    let body = match rng.u8(..5) {
        0 => vec![b'x'; size(rng)],
        1 => chunks(rng, false),
        2 => noise(rng, 50),
        _ => vec![],
    };
    if rng.bool() && !body.is_empty() {
        head += &match rng.u8(..4) {
            0 => format!("Transfer-Encoding: chunked{line_end}"),
            1 => format!("Content-Length: {}{line_end}Transfer-Encoding: chunked{line_end}", body.len()),
            _ => format!("Content-Length: {}{line_end}", body.len()),
        };
    }
    head += line_end;
    [head.into_bytes(), body].concat()
}

/// How much is sent or asked for at a time: mostly little.
fn size(rng: &mut Rng) -> usize {
    match rng.u8(..10) {
        0 => rng.usize(..300_000),
        1..4 => rng.usize(..20_000),
        _ => rng.usize(..50),
    }
}

fn chunks(rng: &mut Rng, good: bool) -> Vec<u8> {
    let mut body = vec![];
    for _ in 0..rng.usize(..6) {
        let size = if good { "5" } else { one_of(rng, &CHUNK_SIZES) };
        body.extend(format!("{size}\r\nhello\r\n").bytes());
    }
    let end = ["0\r\n\r\n", "0\r\nX-Last: 1\r\n\r\n", "0\r\n", "0\n\n", "", "0\r\nno trailer\r\n\r\n"];
    body.extend(one_of(rng, &end[..if good { 2 } else { end.len() }]).bytes());
    body
}

/// A frame of a WebSocket.
fn websocket(rng: &mut Rng, kind: u8) -> Vec<u8> {
    let masked = if rng.u8(..8) == 0 { 0 } else { 0x80 };
    [&[0x80 | kind, masked | 2, 0, 0, 0, 0][..], &[rng.u8(..), rng.u8(..)]].concat()
}

fn http2(rng: &mut Rng, lasts: bool) -> Vec<u8> {
    let window = one_of(rng, &[0, 1, 65_535, 65_535, 65_535, (1 << 31) - 1, u32::MAX]);
    let mut said = match rng.u8(..10) {
        0 => PREFACE.to_vec(),
        1..4 => hello(&[(INITIAL_WINDOW, window), (rng.u16(..10), rng.u32(..))]),
        _ => hello(&[(INITIAL_WINDOW, window)]),
    };
    let mut opened = 0;
    for _ in 0..rng.usize(..20) {
        if rng.bool() {
            said.extend(stream_of(rng, stream(opened), lasts));
            opened += 1;
        } else {
            said.extend(any_frame(rng, opened));
        }
    }
    said
}

/// A request on a stream of its own, with its body where it has one.
fn stream_of(rng: &mut Rng, id: u32, lasts: bool) -> Vec<u8> {
    let path = one_of(rng, &["/livez", "/livez", "/ping", "/nowhere", if lasts { EVENTS } else { "/livez" }]);
    let ended = END_STREAM | END_HEADERS;
    match rng.u8(..8) {
        0 => {
            let head = [request("POST", "/echo"), field("content-length", "5")].concat();
            [frame(HEADERS, END_HEADERS, id, &head), frame(DATA, END_STREAM, id, b"hello")].concat()
        }
        1 => {
            let data: Vec<u8> = (0..rng.usize(..20)).flat_map(|_| frame(DATA, 0, id, &[0; 10_000])).collect();
            [frame(HEADERS, END_HEADERS, id, &request("POST", "/echo")), data, frame(DATA, END_STREAM, id, &[])]
                .concat()
        }
        2 => {
            let trailers = frame(HEADERS, ended, id, &field("x-last", "1"));
            [frame(HEADERS, END_HEADERS, id, &request("POST", "/echo")), frame(DATA, 0, id, b"hello"), trailers]
                .concat()
        }
        3 if lasts => {
            let connect = [request("CONNECT", SOCKET), field(":protocol", "websocket")].concat();
            frame(HEADERS, END_HEADERS, id, &[connect, field("sec-websocket-version", "13")].concat())
        }
        4 => {
            let head = request("GET", path);
            let (first, rest) = head.split_at(rng.usize(..head.len()));
            [frame(HEADERS, END_STREAM, id, first), frame(CONTINUATION, END_HEADERS, id, rest)].concat()
        }
        _ => frame(HEADERS, ended, id, &request("GET", path)),
    }
}

/// Any frame, on a stream that there was, or was not.
fn any_frame(rng: &mut Rng, opened: u32) -> Vec<u8> {
    let id = if rng.u8(..3) == 0 { 0 } else { rng.u32(..2 * opened + 3) };
    match rng.u8(..14) {
        0 => frame(RST_STREAM, 0, id, &rng.u32(..16).to_be_bytes()),
        1..4 => frame(WINDOW_UPDATE, 0, id, &(rng.u32(..) >> rng.u8(..32)).to_be_bytes()),
        4 => frame(SETTINGS, 0, 0, &[&rng.u16(..10).to_be_bytes()[..], &rng.u32(..).to_be_bytes()].concat()),
        5 => frame(SETTINGS, ACK, 0, &[]),
        6 => frame(PING, one_of(rng, &[0, ACK]), 0, &[0; 8]),
        7 => frame(GOAWAY, 0, 0, &[0; 8]),
        8 => frame(PRIORITY, 0, id, &[0, 0, 0, 1, 10]),
        9 => frame(UNKNOWN, rng.u8(..), id, &noise(rng, 100)),
        10 => frame(DATA, rng.u8(..), id, &noise(rng, 100)),
        11 => frame(HEADERS, END_HEADERS, id, &[remembered("x-a", "b"), vec![LATEST; rng.usize(..100)]].concat()),
        12 => frame(CONTINUATION, rng.u8(..), id, &noise(rng, 20)),
        _ => frame(rng.u8(..12), rng.u8(..), rng.u32(..), &noise(rng, 50)),
    }
}

/// Takes bytes out, doubles them, or has others in their place.
fn spoil(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.usize(1..5) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.usize(..bytes.len());
        let end = bytes.len().min(at + rng.usize(1..20));
        match rng.u8(..4) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes.extend_from_within(at..end),
            2 => bytes[at] ^= 1 << rng.u8(..8),
            _ => bytes[at] = one_of(rng, b"\0\r\n :;,/\t\x7f\xff0"),
        }
    }
}

/// In how many pieces it comes, and with which pauses between.
fn pieces(rng: &mut Rng, said: &[u8]) -> Vec<(Duration, Vec<u8>)> {
    let mut cuts: Vec<usize> = (0..rng.usize(..8)).map(|_| rng.usize(..=said.len())).collect();
    cuts.extend([0, said.len()]);
    cuts.sort_unstable();
    let pieces = cuts.windows(2).map(|cut| said[cut[0]..cut[1]].to_vec());
    // Some longer than a client may pause.
    let pause = |rng: &mut Rng| match rng.u8(..60) {
        0 => rng.u64(..2_000),
        1..20 => rng.u64(..50),
        _ => 0,
    };
    pieces.map(|piece| (Duration::from_millis(pause(rng)), piece)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_says_the_same() {
        for seed in 0..2_000 {
            assert_eq!(format!("{:?}", Case::new(seed)), format!("{:?}", Case::new(seed)));
        }
    }
}
