//! The ledger's rules, one by one. `tests/fuzz` holds it to what hyper does.

use super::*;

/// A ledger that was told `bytes` in pieces of `size`.
fn told(bytes: &[u8], size: usize) -> Ledger {
    let mut ledger = Ledger::default();
    for piece in bytes.chunks(size) {
        ledger.read(piece);
    }
    ledger
}

#[test]
fn a_fresh_connection_stands_before_a_request() {
    assert_eq!(Ledger::default().unparsed(), Some(&b""[..]));
}

#[test]
fn an_unfinished_head_travels_with_the_connection() {
    for size in 1..40 {
        let ledger = told(b"\r\nGET / HTTP/1.1\r\nHost: x\r\n", size);
        assert_eq!(ledger.unparsed(), Some(&b"\r\nGET / HTTP/1.1\r\nHost: x\r\n"[..]));
    }
}

#[test]
fn a_fragment_is_noticed_in_the_target_alone() {
    let cases = [
        ("GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", true),
        ("\r\n\nGET /#\n\n", true),
        ("GET /a HTTP/1.1\r\nHost: #\r\n\r\n", false),
        ("\r\nGET /a HTTP/1.1\nHost: #\n\n", false),
        ("GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /#b HTTP/1.1\r\n\r\n", false),
    ];
    for (head, has) in cases {
        for size in 1..=head.len() {
            assert_eq!(told(head.as_bytes(), size).has_fragment(), has, "{head:?} by {size}");
        }
    }
    // Of the next request only once it is its turn.
    let mut ledger = told(b"GET /a HTTP/1.1\r\n\r\nGET /#b HTTP/1.1\r\n\r\n", 7);
    ledger.dispatched(Body::Length(0));
    assert!(!ledger.has_fragment());
    ledger.answered();
    assert!(ledger.has_fragment());
}

#[test]
fn an_answered_request_leaves_nothing_behind_however_it_is_split() {
    let cases: [(&[u8], Body); 5] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Body::Length(0)),
        (b"\r\n\nGET / HTTP/1.1\nHost: x\n\n", Body::Length(0)),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n\r\n\r\n", Body::Length(4)),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\na\r\n\r\n0a\r\n0123456789\r\n0\r\n\r\n",
            Body::Chunked,
        ),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\nC: d\r\n\r\n", Body::Chunked),
    ];
    for (request, body) in cases {
        for size in 1..=request.len() {
            let mut ledger = Ledger::default();
            for piece in request.chunks(size) {
                ledger.read(piece);
                if matches!(ledger.position, Position::Dispatch) {
                    ledger.dispatched(body);
                }
            }
            assert!(ledger.answer_due(), "{:?} by {size}", String::from_utf8_lossy(request));
            assert_eq!(ledger.unparsed(), None);
            ledger.answered();
            assert_eq!(ledger.unparsed(), Some(&b""[..]));
        }
    }
}

#[test]
fn a_pipelined_request_is_due_after_the_first_and_its_beginning_travels() {
    let mut ledger = told(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3", 100);
    for _ in 0..2 {
        assert_eq!(ledger.unparsed(), None);
        ledger.dispatched(Body::Length(0));
        ledger.answered();
    }
    assert_eq!(ledger.unparsed(), Some(&b"GET /3"[..]));
}

#[test]
fn what_is_not_understood_is_lost_for_good() {
    let mut early = told(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nab", 100);
    early.dispatched(Body::Length(4));
    early.answered();
    assert!(early.is_lost());

    let mut undispatched = Ledger::default();
    undispatched.dispatched(Body::Length(0));
    assert!(undispatched.is_lost());

    for body in ["x\r\n", "\r\n", "1\n", "1 \r\n", "1\r\nab", "0\r\n\n", "0000000000000001\r\n", ";a\r\n", "1;a\n"] {
        let mut chunked = told(b"POST / HTTP/1.1\r\n\r\n", 100);
        chunked.dispatched(Body::Chunked);
        chunked.read(body.as_bytes());
        assert!(chunked.is_lost(), "{body:?}");
    }

    let mut lost = early;
    lost.read(b"cdGET / HTTP/1.1\r\n\r\n");
    lost.dispatched(Body::Length(0));
    lost.answered();
    assert_eq!(lost.unparsed(), None);
}

#[test]
fn the_preface_of_http_2_is_never_a_request() {
    for size in 1..24 {
        assert!(told(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", size).is_lost());
    }
}

#[test]
fn up_to_64_kib_of_a_head_travel() {
    for (length, lost) in [(64 * 1024, false), (64 * 1024 + 1, true)] {
        let head = vec![b'a'; length];
        assert_eq!(told(&head, 4096).is_lost(), lost);

        let mut behind_another = told(b"GET / HTTP/1.1\r\n\r\n", 100);
        behind_another.dispatched(Body::Length(0));
        behind_another.read(&head);
        assert_eq!(behind_another.is_lost(), lost);
    }
}
