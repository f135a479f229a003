//! Whatever a client sends, it cannot tell whether the processes behind its connection were restarted meanwhile; and one
//! that sends plain requests keeps its connection through each restart.
//!
//! `PROPTEST_CASES=1000000` takes a closer look.

use std::fmt;

use fuzz::application::PATHS;
use fuzz::case::{Case, Move, Restartable};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Bytes that can be read in a failure's message.
#[derive(Clone, PartialEq)]
struct Text(Vec<u8>);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    vec(any::<u8>().prop_map(Move::new), 1..8)
}

fn path() -> impl Strategy<Value = &'static str> {
    select(&PATHS[..])
}

/// The end of a line: hyper takes a bare LF too.
fn line_end() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just("\r\n"), 1 => Just("\n")]
}

/// What may stand in a body: text that looks like heads and chunks.
fn body() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'a'), Just(b';'), any::<u8>()], 0..40)
}

/// A body in chunks, with these after the last of them.
fn chunked(trailers: impl Strategy<Value = &'static str>) -> impl Strategy<Value = Vec<u8>> {
    let extension = prop_oneof![3 => Just(""), 1 => Just(";a=b"), 1 => Just(";quoted=\"x\"")];
    let chunk = (body().prop_filter("an empty chunk is the last", |body| !body.is_empty()), extension);
    (vec(chunk, 0..4), trailers, any::<bool>()).prop_map(|(chunks, trailers, upper)| {
        let mut bytes = Vec::new();
        for (chunk, extension) in chunks {
            let size = if upper { format!("{:X}", chunk.len()) } else { format!("0{:x}", chunk.len()) };
            bytes.extend_from_slice(format!("{size}{extension}\r\n").as_bytes());
            bytes.extend_from_slice(&chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
        bytes
    })
}

/// A request as clients send it.
#[derive(Clone)]
struct Plain {
    head: String,
    body: Vec<u8>,
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Text(self.bytes()).fmt(f)
    }
}

impl Plain {
    fn bytes(&self) -> Vec<u8> {
        [self.head.as_bytes(), &self.body].concat()
    }

    /// Whether the client waits for `100 Continue` before it sends the body.
    fn waits(&self) -> bool {
        self.head.contains("Expect")
    }
}

fn plain() -> impl Strategy<Value = Plain> {
    // Not those whose answers end the connection, nor those that leave a body unread.
    let lasting = PATHS.into_iter().filter(|path| !matches!(*path, "/early" | "/broken" | "/close"));
    let path = select(lasting.collect::<Vec<_>>());
    let field =
        prop_oneof![4 => Just(""), 1 => Just("Connection: keep-alive\r\n"), 1 => Just("Accept: */*\r\nVia: x\r\n")];
    let bodiless = select(&["GET", "HEAD", "DELETE", "OPTIONS", "POST"][..])
        .prop_map(|method| (method, String::new(), Vec::new()));
    let expect = prop_oneof![3 => Just(""), 1 => Just("Expect: 100-continue\r\n")];
    let sized = (select(&["POST", "PUT", "PATCH", "GET"][..]), expect.clone(), body())
        .prop_map(|(method, expect, body)| (method, format!("{expect}Content-Length: {}\r\n", body.len()), body));
    let chunks = (select(&["POST", "PUT", "DELETE"][..]), expect, chunked(Just("")))
        .prop_map(|(method, expect, body)| (method, format!("{expect}Transfer-Encoding: chunked\r\n"), body));
    (path, field, prop_oneof![bodiless, sized, chunks]).prop_map(|(path, field, (method, fields, body))| Plain {
        head: format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{field}{fields}\r\n"),
        body,
    })
}

/// A request as it may come too.
fn odd() -> impl Strategy<Value = Vec<u8>> {
    let version =
        prop_oneof![8 => Just("HTTP/1.1"), 2 => Just("HTTP/1.0"), 1 => Just("HTTP/2.0"), 1 => Just("HTTP/0.9")];
    let method = prop_oneof![4 => Just("GET "), 3 => Just("POST "), 1 => Just("HEAD "), 1 => Just("OPTIONS ")];
    let start = prop_oneof![
        12 => (method, path()).prop_map(|(method, path)| method.to_owned() + path),
        1 => Just("PRI *".to_owned()),
        1 => Just("PUT http://test/".to_owned()),
        1 => Just("OPTIONS *".to_owned()),
        1 => Just("CONNECT test:80".to_owned()),
    ];
    let field = prop_oneof![
        6 => Just("Host: test"),
        1 => Just("Connection: close"),
        1 => Just("connection: Keep-Alive, Close"),
        2 => Just("Connection: keep-alive"),
        2 => Just("Content-Length: 3"),
        1 => Just("Content-Length: 0"),
        1 => Just("Content-Length: 4"),
        2 => Just("Transfer-Encoding: chunked"),
        1 => Just("Transfer-Encoding: gzip, chunked"),
        1 => Just("Transfer-Encoding: identity"),
        1 => Just("Expect: 100-continue"),
        1 => Just("Connection: upgrade\r\nUpgrade: echo"),
        1 => Just("X: \t folded or not"),
        1 => Just(" y"),
    ];
    let lines = vec((field, line_end()), 0..4);
    let leading = vec(line_end(), 0..3);
    let trailers =
        prop_oneof![3 => Just(""), 1 => Just("A: b\r\n"), 1 => Just("A: b\r\nC: d\r\n"), 1 => Just("A: b\n")];
    let rest = prop_oneof![3 => Just(Vec::new()), 2 => Just(b"abc".to_vec()), 2 => chunked(trailers), 1 => body()];
    (leading, start, version, line_end(), lines, line_end(), rest).prop_map(
        |(leading, start, version, end, lines, last, rest)| {
            let mut text = leading.concat() + &start + " " + version + end;
            for (line, end) in lines {
                text += line;
                text += end;
            }
            [(text + last).into_bytes(), rest].concat()
        },
    )
}

/// HTTP/2 as it begins: the preface, settings, and a request of stream 1 (`GET /`).
fn http2() -> impl Strategy<Value = Vec<u8>> {
    let request: &[u8] = b"\0\0\x09\x01\x05\0\0\0\x01\x82\x84\x87\x41\x04test";
    let settings: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    select(vec![
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", settings, request].concat(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r".to_vec(),
        b"PRI * HTTP/2.0\r\n".to_vec(),
    ])
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![6 => plain().prop_map(|plain| plain.bytes()), 8 => odd(), 1 => http2()]
}

/// Requests, one after the other, the last one perhaps not whole.
fn stream() -> impl Strategy<Value = Text> {
    let cut = prop_oneof![2 => Just(None), 1 => any::<Index>().prop_map(Some)];
    (vec(any_request(), 1..6), cut).prop_map(|(requests, cut)| {
        let mut stream = requests.concat();
        if let Some(cut) = cut {
            stream.truncate(cut.index(stream.len() + 1));
        }
        Text(stream)
    })
}

/// Bytes that break things.
fn breaking() -> impl Strategy<Value = (Index, Option<u8>)> {
    let byte = prop_oneof![select(&b"\r\n \t:;0f\0"[..]), any::<u8>()];
    (any::<Index>(), proptest::option::of(byte))
}

/// `bytes` in pieces of these sizes.
fn split<'a>(mut bytes: &'a [u8], sizes: &mut impl Iterator<Item = usize>) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while let (false, Some(size)) = (bytes.is_empty(), sizes.next()) {
        let (piece, left) = bytes.split_at(bytes.len().min(size));
        pieces.push(piece);
        bytes = left;
    }
    pieces
}

/// How many cases of each property.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(10_000)
}

fn hold(stream: Vec<u8>, moves: Vec<Move>, abrupt: bool) -> Result<usize, TestCaseError> {
    Case { stream, moves, abrupt }.hold().map_err(|difference| TestCaseError::fail(format!("{difference:?}")))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(), ..ProptestConfig::default() })]

    /// One request after the other, and a restart after each answer, when some of the next request was sent.
    #[test]
    fn the_connection_of_a_plain_client_is_clean_whenever_it_was_answered(
        requests in vec((plain(), 0..60_usize), 1..6), moves in moves(),
    ) {
        let mut service = Restartable::new();
        let mut sizes = moves.iter().map(|one| one.size).cycle();
        let mut begun = Vec::new();
        for (number, (request, _)) in requests.iter().enumerate() {
            let heard = service.client.answers().len();
            let (head, body) = (&request.head.as_bytes()[begun.len()..], &request.body);
            let parts = if request.waits() { vec![head.to_vec(), body.clone()] } else { vec![[head, body].concat()] };
            for part in parts {
                for piece in split(&part, &mut sizes) {
                    service.client.send(piece);
                    service.step();
                }
                service.settle();
            }
            prop_assert!(service.client.answers()[heard..].starts_with(b"HTTP/1.1 "), "{request:?} was not answered");

            begun = requests.get(number + 1).map_or(&b""[..], |(next, begun)| &next.head.as_bytes()[..*begun.min(&(next.head.len() - 1))]).to_vec();
            service.client.send(&begun);
            service.step();
            service.leave();
            prop_assert_eq!(service.unparsed().map(Text), Some(Text(begun.clone())), "after {:?}", request);
            service.come_back();
        }
    }

    /// However plain requests are cut and pipelined, with the next one begun.
    #[test]
    fn so_it_is_when_all_pipelined_requests_were_answered(
        requests in vec(plain(), 1..6), begun in 0..18_usize, moves in moves(),
    ) {
        let begun = &b"GET /next HTTP/1.1\r\n"[..begun];
        let stream = [requests.iter().flat_map(Plain::bytes).collect(), begun.to_vec()].concat();
        let mut service = Restartable::new();
        for piece in split(&stream, &mut moves.iter().map(|one| one.size).cycle()) {
            service.client.send(piece);
            service.step();
        }
        service.settle();
        service.leave();
        prop_assert_eq!(service.unparsed().map(Text), Some(Text(begun.to_vec())), "{:?}", Text(stream));
        hold(stream, moves, false)?;
    }

    #[test]
    fn a_client_cannot_tell_that_there_were_restarts(stream in stream(), moves in moves(), abrupt: bool) {
        hold(stream.0, moves, abrupt)?;
    }

    #[test]
    fn nor_can_one_that_breaks_the_rules(
        stream in stream(), broken in vec(breaking(), 1..4), moves in moves(), abrupt: bool,
    ) {
        let mut stream = stream.0;
        for (at, byte) in broken {
            if stream.is_empty() {
                break;
            }
            let at = at.index(stream.len());
            match byte {
                Some(byte) => stream[at] = byte,
                None => { stream.remove(at); }
            }
        }
        hold(stream, moves, abrupt)?;
    }
}

/// `regressions/` has them as libFuzzer writes them, `seeds/` is what libFuzzer begins with.
#[test]
fn what_was_mended_stays_mended() {
    for folder in ["regressions", "seeds"] {
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if let Some(Err(difference)) = Case::decode(&std::fs::read(&path).unwrap()).map(|case| case.hold()) {
                panic!("{}: {difference:?}", path.display());
            }
        }
    }
}
