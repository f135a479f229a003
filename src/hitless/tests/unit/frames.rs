//! The frames, fed by hand: what opens a stream, what ends it, and who keeps it open.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A connection of HTTP/2, and a clock.
struct Fed {
    frames: Frames,
    now: Instant,
}

impl Fed {
    fn new() -> Self {
        let mut fed = Self { frames: Frames::default(), now: Instant::now() };
        fed.read(PREFACE);
        fed
    }

    fn read(&mut self, bytes: &[u8]) -> bool {
        self.frames.read(bytes, self.now)
    }

    fn written(&mut self, bytes: &[u8]) -> bool {
        self.frames.written(&[IoSlice::new(bytes)], bytes.len(), self.now)
    }

    fn later(&mut self, time: Duration) {
        self.now += time;
    }

    fn asked(ids: &[u32]) -> Self {
        let mut fed = Self::new();
        for id in ids {
            fed.read(&flagged(HEADERS, END_HEADERS | END_STREAM, *id, b"head"));
        }
        fed
    }
}

fn flagged(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(kind, id, payload);
    bytes[1] = (payload.len() >> 8) as u8;
    bytes[4] = flags;
    bytes
}

fn setting(name: u16, value: u32) -> Vec<u8> {
    flagged(SETTINGS, 0, 0, &[&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// Numbers that look random, the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    /// Frames as they are made, now and then cut short or followed by anything at all.
    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..self.below(30) {
            let payload: Vec<_> = (0..self.below(40)).map(|_| self.below(256) as u8).collect();
            let kind = self.below(11) as u8;
            let flags = [0, END_STREAM, END_HEADERS, END_STREAM | END_HEADERS][self.below(4)];
            let mut frame = flagged(kind, flags, self.below(12) as u32, &payload);
            if self.below(20) == 0 {
                frame.truncate(self.below(frame.len()));
            }
            bytes.extend(frame);
        }
        bytes.extend((0..self.below(8)).map(|_| self.below(256) as u8));
        bytes
    }

    fn pieces<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(self.below(bytes.len().min(30)) + 1);
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }
}

#[test]
fn what_has_come_of_a_body_is_counted_without_its_padding() {
    let mut fed = Fed::new();
    fed.read(&flagged(HEADERS, END_HEADERS, 1, b"head"));
    fed.read(&flagged(DATA, 0, 1, b"12345"));
    fed.read(&flagged(DATA, PADDED, 1, &[3, b'6', b'7', 0, 0, 0]));
    assert_eq!((fed.frames.received(1), fed.frames.received(3)), (7 + 2 * PART, 0));
}

#[test]
fn whatever_the_bytes_and_their_pieces_the_same_is_left_behind() {
    let mut random = Random(1);
    let mut open = 0;
    for _ in 0..5_000 {
        let (incoming, outgoing) = (random.bytes(), random.bytes());
        let mut whole = Fed::new();
        whole.read(&incoming);
        whole.written(&outgoing);
        let mut split = Fed { frames: Frames::default(), now: whole.now };
        for piece in random.pieces(&[PREFACE, &incoming].concat()) {
            split.read(piece);
        }
        // As hyper writes: several slices, and the socket takes some of them.
        for piece in random.pieces(&outgoing) {
            let (one, two) = piece.split_at(random.below(piece.len() + 1));
            let more = random.bytes();
            let slices = [IoSlice::new(one), IoSlice::new(two), IoSlice::new(&more)];
            split.frames.written(&slices, piece.len(), split.now);
        }
        assert_eq!(split.frames, whole.frames);
        whole.frames.give_up(Duration::ZERO, whole.now + SECOND);
        let _ = (whole.frames.resets(), whole.frames.goodbye(), whole.frames.dispatched());
        open += whole.frames.open();
    }
    assert!(open > 500, "{open}");
}

#[test]
fn only_the_whole_preface_makes_it_http2() {
    for end in 0..=PREFACE.len() {
        let mut frames = Frames::default();
        frames.read(&PREFACE[..end], Instant::now());
        assert_eq!(frames.is_http2(), end == PREFACE.len());
        frames.read(b"GET / HTTP/1.1\r\n\r\n", Instant::now());
        frames.read(PREFACE, Instant::now());
        assert_eq!(frames.is_http2(), end == PREFACE.len());
    }
}

#[test]
fn a_stream_is_open_until_its_last_frame_has_left_or_it_is_reset() {
    let reset = frame(RST_STREAM, 1, &CANCEL.to_be_bytes());
    let ends: [Vec<u8>; 5] = [
        [flagged(HEADERS, END_HEADERS, 1, b"head"), flagged(DATA, END_STREAM, 1, b"body")].concat(),
        flagged(HEADERS, END_HEADERS | END_STREAM, 1, b"head"),
        [flagged(HEADERS, END_STREAM, 1, b"he"), flagged(CONTINUATION, END_HEADERS, 1, b"ad")].concat(),
        [flagged(DATA, 0, 1, b"body"), flagged(HEADERS, END_HEADERS | END_STREAM, 1, b"trailers")].concat(),
        reset.clone(),
    ];
    for end in ends {
        let mut fed = Fed::asked(&[1, 3]);
        let (last, before) = end.split_last().unwrap();
        assert!(!fed.written(before));
        assert!(fed.frames.is_open(1));
        assert!(fed.written(&[*last]));
        assert!(!fed.frames.is_open(1) && fed.frames.is_open(3));
    }
    let mut fed = Fed::asked(&[1, 3]);
    assert!(fed.read(&reset));
    assert!(!fed.frames.is_open(1) && fed.frames.is_open(3));
}

#[test]
fn a_stream_begins_when_its_head_has_been_read_whole() {
    let mut fed = Fed::new();
    fed.read(&setting(INITIAL_WINDOW_SIZE, 0));
    assert!(!fed.frames.has_asked());
    fed.read(&flagged(HEADERS, END_STREAM, 5, b"he"));
    assert_eq!((fed.frames.open(), fed.frames.unfinished()), (0, Some(fed.now)));
    let began = fed.now;
    fed.later(SECOND);
    fed.read(&flagged(CONTINUATION, 0, 5, b"a"));
    assert_eq!((fed.frames.open(), fed.frames.unfinished()), (0, Some(began)));
    fed.read(&flagged(CONTINUATION, END_HEADERS, 5, b"d"));
    assert_eq!((fed.frames.open(), fed.frames.unfinished()), (1, None));
    assert!(fed.frames.has_asked());
    // Trailers, numbers that were passed by, and those of a server.
    for id in [5, 3, 6] {
        fed.read(&flagged(HEADERS, END_HEADERS | END_STREAM, id, b"head"));
    }
    assert_eq!(fed.frames.open(), 1);
    fed.read(&frame(RST_STREAM, 5, &CANCEL.to_be_bytes())[..HEAD]);
    assert!(!fed.frames.has_asked(), "it is within a frame");
    fed.read(&CANCEL.to_be_bytes());
    assert!(fed.frames.has_asked() && fed.frames.open() == 0);
}

#[test]
fn streams_after_the_last_that_goaway_names_are_not_open() {
    let mut fed = Fed::asked(&[1, 3]);
    fed.written(&frame(GOAWAY, 0, &[MAX_ID.to_be_bytes(), NO_ERROR.to_be_bytes()].concat()));
    fed.read(&flagged(HEADERS, END_HEADERS, 5, b"head"));
    assert_eq!(fed.frames.open(), 3);
    assert!(fed.written(&frame(GOAWAY, 0, &[3u32.to_be_bytes(), NO_ERROR.to_be_bytes()].concat())));
    fed.read(&flagged(HEADERS, END_HEADERS, 7, b"head"));
    assert_eq!(fed.frames.open(), 2);
    assert_eq!(fed.frames.goodbye().unwrap()[HEAD..][..4], 3u32.to_be_bytes());
}

#[test]
fn requests_get_the_numbers_of_their_streams_in_order() {
    let mut fed = Fed::asked(&[1, 3, 7]);
    assert_eq!((fed.frames.dispatched(), fed.frames.dispatched()), (Some(1), Some(3)));
    fed.written(&flagged(HEADERS, END_HEADERS | END_STREAM, 1, b"head"));
    assert_eq!((fed.frames.dispatched(), fed.frames.dispatched()), (Some(7), None));
}

/// What a client does with its windows, in turn with 60,000 bytes of each answer, and which streams it blocks.
#[test]
fn who_blocks_an_answer_by_its_windows_is_told_from_who_has_nothing_to_get() {
    let update = |id, more: u32| frame(WINDOW_UPDATE, id, &more.to_be_bytes());
    let cases: [(Vec<u8>, usize); 10] = [
        // The connection's window is nearly used up by one answer of 60,000 bytes, and by two altogether.
        (vec![], 2),
        (update(0, 60_000), 0),
        // A stream that there is not.
        (update(5, 60_000), 2),
        (setting(INITIAL_WINDOW_SIZE, 60_000), 2),
        ([setting(INITIAL_WINDOW_SIZE, 60_000), update(0, 100_000)].concat(), 2),
        ([setting(INITIAL_WINDOW_SIZE, 60_000), update(0, 100_000), update(1, 1)].concat(), 1),
        ([setting(INITIAL_WINDOW_SIZE, 59_000), update(0, 100_000), update(1, 1_000), update(3, 1_001)].concat(), 1),
        ([setting(INITIAL_WINDOW_SIZE, 0), update(0, 100_000), setting(INITIAL_WINDOW_SIZE, 70_000)].concat(), 0),
        ([update(0, 100_000), setting(INITIAL_WINDOW_SIZE, 0)].concat(), 2),
        ([update(0, 100_000), setting(1, 0), flagged(SETTINGS, ACK, 0, &[0, 4, 0, 0, 0, 0])].concat(), 0),
    ];
    for (windows, blocked) in cases {
        let mut fed = Fed::asked(&[1, 3]);
        fed.read(&windows);
        for id in [1, 3] {
            fed.written(&flagged(HEADERS, END_HEADERS, id, b"head"));
            fed.written(&flagged(DATA, 0, id, &[0; 60_000]));
        }
        assert_eq!(fed.frames.give_up(SECOND, fed.now + SECOND), 0, "{windows:?}");
        fed.later(SECOND * 2);
        assert_eq!(fed.frames.give_up(SECOND, fed.now), blocked, "{windows:?}");
        assert_eq!(fed.frames.give_up(SECOND, fed.now), 0, "{windows:?}");
        assert!(!fed.frames.is_stuck(SECOND, fed.now));
        assert_eq!(fed.frames.is_stuck(SECOND, fed.now + SECOND), blocked > 0);
        let resets = fed.frames.resets();
        assert_eq!(fed.written(&resets), blocked > 0);
        assert_eq!(fed.frames.open(), 2 - blocked);
        fed.read(&resets);
        assert_eq!((fed.frames.open(), fed.frames.resets().len()), (2 - blocked, 0));
    }
}

#[test]
fn an_answer_of_which_another_part_has_just_left_is_not_blocked() {
    let mut fed = Fed::new();
    fed.read(&setting(INITIAL_WINDOW_SIZE, 100));
    fed.read(&flagged(HEADERS, END_HEADERS | END_STREAM, 1, b"head"));
    fed.written(&flagged(HEADERS, END_HEADERS, 1, b"head"));
    for part in flagged(DATA, 0, 1, &[0; 100]).chunks(20) {
        fed.later(SECOND * 2);
        fed.written(part);
        assert_eq!(fed.frames.give_up(SECOND, fed.now), 0);
    }
    fed.later(SECOND * 2);
    assert_eq!(fed.frames.give_up(SECOND, fed.now), 1);
}

#[test]
fn an_answer_that_has_not_begun_is_not_blocked() {
    let mut fed = Fed::new();
    fed.read(&setting(INITIAL_WINDOW_SIZE, 0));
    fed.read(&flagged(HEADERS, END_HEADERS | END_STREAM, 1, b"head"));
    assert_eq!(fed.frames.give_up(SECOND, fed.now + SECOND * 2), 0);
}

#[test]
fn nothing_is_put_between_the_parts_of_a_frame() {
    let mut fed = Fed::new();
    fed.read(&setting(INITIAL_WINDOW_SIZE, 0));
    fed.read(&flagged(HEADERS, END_HEADERS | END_STREAM, 1, b"head"));
    let answer = [flagged(HEADERS, 0, 1, b"he"), flagged(CONTINUATION, END_HEADERS, 1, b"ad")].concat();
    assert!(fed.frames.goodbye().is_some());
    for (at, byte) in answer.iter().enumerate() {
        fed.written(&[*byte]);
        assert_eq!(fed.frames.goodbye().is_some(), at + 1 == answer.len());
    }
    fed.frames.give_up(SECOND, fed.now + SECOND * 2);
    let ping = flagged(6, 0, 0, &[0; 8]);
    assert!(!fed.frames.resets().is_empty());
    for (at, byte) in ping.iter().enumerate() {
        fed.read(&[*byte]);
        assert_eq!(!fed.frames.resets().is_empty(), at + 1 == ping.len());
    }
}

#[test]
fn no_more_streams_are_kept_than_hyper_can_have() {
    let mut fed = Fed::new();
    for id in 0..10_000 {
        fed.read(&flagged(HEADERS, END_HEADERS, id, b"head"));
    }
    assert_eq!(fed.frames.open(), MAX_STREAMS);
}
