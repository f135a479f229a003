//! The frames of an HTTP/2 connection, as far as they tell which streams are open, and who keeps them so (RFC 9113).
//!
//! hyper hands h2 an answer, whole if it can, and drops it: that a body has ended does not tell that it has left. Only
//! the frames do, and all of them pass here. What is in them is h2's to understand, and what a peer gets wrong is h2's
//! to refuse: here it is passed over.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use super::held::PART;

/// What a client of HTTP/2 says first, before its frames (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The most streams that are known of a connection. hyper admits 200, which `axum::serve` does not let anybody set; those
/// that it has ended or refused beside are in frames that have not left, of which its buffer holds 16 KiB.
const MAX_STREAMS: usize = 2048;

/// The highest number of a stream.
const MAX_ID: u32 = u32::MAX >> 1;

/// Flow-control windows before anybody has changed them (RFC 9113, section 6.9.2).
const DEFAULT_WINDOW: i64 = 65_535;

/// What a PING begins with whose answer tells that the client has heard. hyper sends others.
const HEARD: u32 = u32::from_be_bytes(*b"left");

/// `NO_ERROR` and `CANCEL` (RFC 9113, section 7).
const NO_ERROR: u32 = 0;
const CANCEL: u32 = 8;

/// A connection's frames, in both directions. Whatever bytes they come in, the same frames leave the same behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frames {
    /// Nothing but the beginning of the preface has been read, so many bytes of it.
    Preface(usize),
    /// It is not HTTP/2.
    None,
    Http2(Box<Http2>),
}

/// What is known of an HTTP/2 connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Http2 {
    incoming: Parser,
    outgoing: Parser,
    /// The open streams, by their numbers.
    streams: Vec<Stream>,
    /// The number of the latest stream that the client has opened.
    latest: u32,
    /// What GOAWAY said: later streams are not answered.
    last: u32,
    /// What the client lets the service send, on all streams together.
    window: i64,
    /// The window of a stream that begins.
    initial_window: i64,
    /// A stream has ended.
    ended: bool,
    /// When the client was told that it is to go, and whether it has heard.
    told: Option<Instant>,
    heard: bool,
}

/// A stream that is open: the service has neither sent the last frame of its answer nor has either side reset it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stream {
    id: u32,
    window: i64,
    /// When something of its answer was last written.
    written: Instant,
    /// The head of its answer has been written.
    answering: bool,
    /// hyper has handed its request to the application.
    dispatched: bool,
    /// It is to be reset, because its client does not take the answer.
    given_up: bool,
    /// What has come of its request's body, as [`PART`] counts it.
    received: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Frames::Preface(0)
    }
}

impl Frames {
    /// Records bytes that hyper has read, at the time `now`, and says whether a stream has ended.
    pub(super) fn read(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        if let Frames::Preface(had) = self {
            let rest = &PREFACE[*had..];
            let count = rest.len().min(bytes.len());
            if bytes[..count] != rest[..count] {
                *self = Frames::None;
            } else if count < rest.len() {
                *had += count;
            } else {
                *self = Frames::Http2(Box::default());
                bytes = &bytes[count..];
            }
        }
        let Frames::Http2(http2) = self else { return false };
        while let Some(step) = http2.incoming.step(&mut bytes, now) {
            http2.received(step, now);
        }
        std::mem::take(&mut http2.ended)
    }

    /// Records the first `count` of the bytes that hyper writes, at the time `now`, and says whether a stream has ended.
    pub(super) fn written(&mut self, bytes: &[IoSlice<'_>], mut count: usize, now: Instant) -> bool {
        let Frames::Http2(http2) = self else { return false };
        for bytes in bytes {
            let mut bytes = &bytes[..bytes.len().min(count)];
            count -= bytes.len();
            while let Some(step) = http2.outgoing.step(&mut bytes, now) {
                http2.sent(step, now);
            }
        }
        std::mem::take(&mut http2.ended)
    }

    pub(super) fn is_http2(&self) -> bool {
        matches!(self, Frames::Http2(_))
    }

    /// Whether what was read is the beginning of the preface.
    pub(super) fn is_at_preface(&self) -> bool {
        matches!(self, Frames::Preface(1..))
    }

    /// The number of open streams.
    pub(super) fn open(&self) -> usize {
        self.http2().map_or(0, |http2| http2.streams.len())
    }

    pub(super) fn is_open(&self, id: u32) -> bool {
        self.http2().is_some_and(|http2| http2.find(id).is_ok())
    }

    /// Whether there has been a stream, and what was read ends with a frame.
    pub(super) fn has_asked(&self) -> bool {
        self.http2().is_some_and(|http2| http2.latest > 0 && http2.incoming.is_between_frames())
    }

    /// When something was last written of the answer that its client, or its handler, has held up for longest.
    pub(super) fn stands_still(&self) -> Option<Instant> {
        self.http2()?.streams.iter().map(|stream| stream.written).min()
    }

    /// How much has come of the body of a stream's request.
    pub(super) fn received(&self, id: u32) -> usize {
        self.http2().and_then(|http2| Some(http2.streams[http2.find(id).ok()?].received)).unwrap_or_default()
    }

    /// When the frame, or the head, began of which a part has been read.
    pub(super) fn unfinished(&self) -> Option<Instant> {
        self.http2().and_then(|http2| http2.incoming.began)
    }

    /// Records that hyper handed a request to the application, and says of which stream.
    ///
    /// hyper does not tell. It takes them in their order; where h2 has refused one before, another's may be named.
    pub(super) fn dispatched(&mut self) -> Option<u32> {
        let Frames::Http2(http2) = self else { return None };
        let stream = http2.streams.iter_mut().find(|stream| !stream.dispatched)?;
        stream.dispatched = true;
        Some(stream.id)
    }

    /// Gives up the streams whose client has, by its windows, let nothing of their answer out for `limit`; counts them.
    ///
    /// Whether there is something to send nobody knows: hyper asks an answer for more only when there is room for it. A
    /// client that takes what it gets makes room long before there is none.
    pub(super) fn give_up(&mut self, limit: Duration, now: Instant) -> usize {
        let Frames::Http2(http2) = self else { return 0 };
        let window = http2.window;
        let blocked = http2.streams.iter_mut().filter(|stream| {
            let idle = now.saturating_duration_since(stream.written);
            !stream.given_up && stream.answering && stream.window.min(window) <= 0 && idle > limit
        });
        blocked.map(|stream| stream.given_up = true).count()
    }

    /// Whether a stream that was given up is open all the same, after twice the `limit`.
    pub(super) fn is_stuck(&self, limit: Duration, now: Instant) -> bool {
        let is_stuck = |stream: &Stream| stream.given_up && now.saturating_duration_since(stream.written) > limit * 2;
        self.http2().is_some_and(|http2| http2.streams.iter().any(is_stuck))
    }

    /// The frames that reset the streams that were given up, for either side. Empty while one is within a frame.
    pub(super) fn resets(&self) -> Vec<u8> {
        let Some(http2) = self.http2().filter(|http2| http2.is_between_frames()) else { return Vec::new() };
        let given_up = http2.streams.iter().filter(|stream| stream.given_up);
        given_up.flat_map(|stream| frame(RST_STREAM, stream.id, &CANCEL.to_be_bytes())).collect()
    }

    /// The frame that says goodbye (GOAWAY), unless the service is within a frame. What it does not name the client may
    /// ask again elsewhere.
    pub(super) fn goodbye(&self) -> Option<Vec<u8>> {
        let http2 = self.http2().filter(|http2| http2.outgoing.is_between_frames())?;
        let last = http2.latest.min(http2.last);
        Some(frame(GOAWAY, 0, &[last.to_be_bytes(), NO_ERROR.to_be_bytes()].concat()))
    }

    /// The frames that tell the client to go elsewhere with what it asks next, and have it say when it has heard, so that
    /// nothing is on its way any more (RFC 9113, section 6.8). None when it was told, or while the service is within a
    /// frame.
    pub(super) fn notice_to_leave(&self) -> Option<Vec<u8>> {
        self.http2().filter(|http2| http2.told.is_none() && http2.outgoing.is_between_frames())?;
        let all = frame(GOAWAY, 0, &[MAX_ID.to_be_bytes(), NO_ERROR.to_be_bytes()].concat());
        Some([all, frame(PING, 0, &[HEARD, HEARD].map(u32::to_be_bytes).concat())].concat())
    }

    /// When the client was told to go, if it was.
    pub(super) fn told(&self) -> Option<Instant> {
        self.http2().and_then(|http2| http2.told)
    }

    /// Whether the client, told to go, has heard.
    pub(super) fn has_heard(&self) -> bool {
        self.http2().is_some_and(|http2| http2.heard)
    }

    fn http2(&self) -> Option<&Http2> {
        match self {
            Frames::Http2(http2) => Some(http2),
            Frames::Preface(_) | Frames::None => None,
        }
    }
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            incoming: Parser::default(),
            outgoing: Parser::default(),
            streams: Vec::new(),
            latest: 0,
            last: MAX_ID,
            window: DEFAULT_WINDOW,
            initial_window: DEFAULT_WINDOW,
            ended: false,
            told: None,
            heard: false,
        }
    }
}

impl Http2 {
    fn received(&mut self, step: Step, now: Instant) {
        match step {
            Step::Headers { id, .. } => self.begin(id, now),
            Step::End(Head { kind: RST_STREAM, id, .. }, _) => self.end(id),
            Step::End(Head { kind: DATA, id, length, flags }, field) => {
                let padding = if flags & PADDED != 0 { 1 + (field >> 24) } else { 0 };
                // h2 drops an empty one.
                if length > 0
                    && let Some(stream) = self.stream(id)
                {
                    stream.received += length.saturating_sub(padding) as usize + PART;
                }
            }
            Step::End(Head { kind: WINDOW_UPDATE, id, .. }, value) => {
                let more = i64::from(value & MAX_ID);
                match self.stream(id) {
                    Some(stream) => stream.window = stream.window.saturating_add(more),
                    None if id == 0 => self.window = self.window.saturating_add(more),
                    None => {}
                }
            }
            Step::End(Head { kind: PING, flags, .. }, HEARD) if flags & ACK != 0 => self.heard = self.told.is_some(),
            Step::Setting(INITIAL_WINDOW_SIZE, value) => {
                let change = i64::from(value) - self.initial_window;
                self.initial_window = i64::from(value);
                for stream in &mut self.streams {
                    stream.window = stream.window.saturating_add(change);
                }
            }
            _ => {}
        }
    }

    fn sent(&mut self, step: Step, now: Instant) {
        match step {
            Step::Begin(Head { kind: DATA, id, length, .. }) => {
                self.window = self.window.saturating_sub(length.into());
                if let Some(stream) = self.stream(id) {
                    stream.window = stream.window.saturating_sub(length.into());
                    stream.written = now;
                }
            }
            Step::Payload(Head { kind: DATA, id, .. }) => {
                if let Some(stream) = self.stream(id) {
                    stream.written = now;
                }
            }
            Step::End(Head { kind: DATA, id, flags, .. }, _) if flags & END_STREAM != 0 => self.end(id),
            Step::Headers { id, end_stream: true } => self.end(id),
            Step::Headers { id, end_stream: false } => {
                if let Some(stream) = self.stream(id) {
                    stream.answering = true;
                    stream.written = now;
                }
            }
            Step::End(Head { kind: RST_STREAM, id, .. }, _) => self.end(id),
            Step::End(Head { kind: PING, flags, .. }, HEARD) if flags & ACK == 0 => self.told = Some(now),
            Step::End(Head { kind: GOAWAY, .. }, value) => {
                self.last = self.last.min(value & MAX_ID);
                let last = self.last;
                self.end_where(|stream| stream.id > last);
            }
            _ => {}
        }
    }

    fn begin(&mut self, id: u32, now: Instant) {
        // Other numbers are trailers, or no streams of a client.
        if id.is_multiple_of(2) || id <= self.latest {
            return;
        }
        self.latest = id;
        if id <= self.last && self.streams.len() < MAX_STREAMS {
            self.streams.push(Stream {
                id,
                window: self.initial_window,
                written: now,
                answering: false,
                dispatched: false,
                given_up: false,
                received: 0,
            });
        }
    }

    fn end(&mut self, id: u32) {
        self.end_where(|stream| stream.id == id);
    }

    fn end_where(&mut self, is_over: impl Fn(&Stream) -> bool) {
        let open = self.streams.len();
        self.streams.retain(|stream| !is_over(stream));
        self.ended |= self.streams.len() < open;
        if self.streams.is_empty() {
            // A crowd that has gone leaves no room behind.
            self.streams.shrink_to(4);
        }
    }

    fn stream(&mut self, id: u32) -> Option<&mut Stream> {
        self.find(id).ok().map(|at| &mut self.streams[at])
    }

    fn find(&self, id: u32) -> Result<usize, usize> {
        self.streams.binary_search_by_key(&id, |stream| stream.id)
    }

    fn is_between_frames(&self) -> bool {
        self.incoming.is_between_frames() && self.outgoing.is_between_frames()
    }
}

/// Takes frames out of one direction's bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Parser {
    /// The frame's head, as much of it as there is.
    head: [u8; HEAD],
    had: usize,
    /// Of the frame's payload, what is still to come.
    left: u32,
    /// The payload's first bytes, or a setting.
    field: [u8; SETTING],
    filled: usize,
    /// HEADERS that CONTINUATION has not ended yet: of which stream, and whether it ends with them.
    headers: Option<(u32, bool)>,
    /// When the frame, or the headers, began that have not ended yet.
    began: Option<Instant>,
}

/// What the next bytes are.
enum Step {
    Begin(Head),
    /// More of the frame's payload.
    Payload(Head),
    /// A setting's identifier and value.
    Setting(u16, u32),
    /// The frame has ended, and the first bytes of its payload were this.
    End(Head, u32),
    /// A stream's headers have ended, and the sender's side of the stream perhaps with them.
    Headers {
        id: u32,
        end_stream: bool,
    },
}

/// A frame's head (RFC 9113, section 4.1).
#[derive(Clone, Copy)]
struct Head {
    length: u32,
    kind: u8,
    flags: u8,
    id: u32,
}

const HEAD: usize = 9;
const SETTING: usize = 6;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

const INITIAL_WINDOW_SIZE: u16 = 4;

impl Parser {
    /// What comes next in `bytes`, which lose it; `None` when they do not tell.
    fn step(&mut self, bytes: &mut &[u8], now: Instant) -> Option<Step> {
        if self.had < HEAD {
            let part = bytes.split_off(..bytes.len().min(HEAD - self.had))?;
            if !part.is_empty() {
                self.began.get_or_insert(now);
            }
            self.head[self.had..][..part.len()].copy_from_slice(part);
            self.had += part.len();
            if self.had < HEAD {
                return None;
            }
            let head = self.head();
            self.left = head.length;
            self.filled = 0;
            return Some(Step::Begin(head));
        }
        let head = self.head();
        if self.left > 0 {
            if bytes.is_empty() {
                return None;
            }
            return Some(self.payload(head, bytes));
        }
        self.had = 0;
        let step = match head.kind {
            HEADERS | CONTINUATION => {
                if head.kind == HEADERS {
                    self.headers = Some((head.id, head.flags & END_STREAM != 0));
                }
                let ended = self.headers.filter(|_| head.flags & END_HEADERS != 0);
                ended.map(|(id, end_stream)| Step::Headers { id, end_stream })
            }
            _ => None,
        };
        if step.is_some() {
            self.headers = None;
        }
        if self.headers.is_none() {
            self.began = None;
        }
        let [a, b, c, d, ..] = self.field;
        Some(step.unwrap_or(Step::End(head, u32::from_be_bytes([a, b, c, d]))))
    }

    fn payload(&mut self, head: Head, bytes: &mut &[u8]) -> Step {
        let setting = head.kind == SETTINGS && head.flags & ACK == 0;
        let most = if setting { SETTING - self.filled } else { bytes.len() };
        let count = most.min(bytes.len()).min(self.left as usize);
        let (part, rest) = bytes.split_at(count);
        *bytes = rest;
        self.left -= count as u32;
        let room = &mut self.field[self.filled..];
        let kept = room.len().min(count);
        room[..kept].copy_from_slice(&part[..kept]);
        self.filled += kept;
        if setting && self.filled == SETTING {
            self.filled = 0;
            let [name_high, name_low, a, b, c, d] = self.field;
            return Step::Setting(u16::from_be_bytes([name_high, name_low]), u32::from_be_bytes([a, b, c, d]));
        }
        Step::Payload(head)
    }

    fn head(&self) -> Head {
        let [high, middle, low, kind, flags, a, b, c, d] = self.head;
        let id = u32::from_be_bytes([a, b, c, d]) & MAX_ID;
        Head { length: u32::from_be_bytes([0, high, middle, low]), kind, flags, id }
    }

    fn is_between_frames(&self) -> bool {
        self.began.is_none()
    }
}

/// A frame without flags.
fn frame(kind: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, 0, payload.len() as u8, kind, 0];
    frame.extend(id.to_be_bytes());
    frame.extend(payload);
    frame
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/frames.rs"]
mod tests;
