//! The ledger: knows, byte by byte, where in its HTTP/1.1 messages a connection stands.
//!
//! hyper reads ahead, so only what it has read tells whether the socket can go to another process. The ledger is
//! told every byte read, every request dispatched and every answer finished, and from these alone it says whether the
//! connection stands before a request ([`Ledger::unparsed`]). It never guesses: whatever it does not fully understand is
//! [lost](Ledger::lose) to it for good, because a wrong "clean" would lose bytes, or let one request pass for another
//! (request smuggling). It touches no socket and no clock.

/// How much of an unfinished request may travel with its connection, in bytes.
pub const UNPARSED_LIMIT: usize = 64 * 1024;

/// How a request's body is delimited (RFC 9112, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Exactly so many bytes; 0 when there is none.
    Length(u64),
    /// Chunks up to a last one of size 0, then trailers, if any.
    Chunked,
}

/// One connection's position in its stream of requests.
#[derive(Debug, Default)]
pub struct Ledger {
    position: Position,
    /// Bytes read past `position`'s last certainty: an unfinished head, or what follows a finished head or request.
    ahead: Vec<u8>,
    /// The length of the last head, as far as it was read.
    head_bytes: usize,
    /// The last head that was read whole has a fragment in its target.
    fragment: bool,
}

#[derive(Debug)]
enum Position {
    /// Before or within a head.
    Head(Head),
    /// A head was read whole and hyper has not dispatched it yet.
    Dispatch,
    /// Within a body of known length: this many bytes are still to come.
    Length(u64),
    /// Within a chunked body.
    Chunked(Chunk),
    /// The request was read whole and its answer is due.
    Answer,
    /// Unknown, for good.
    Lost,
}

impl Default for Position {
    fn default() -> Self {
        Position::Head(Head::default())
    }
}

impl Ledger {
    /// Enters bytes that hyper has read from the socket.
    pub fn read(&mut self, bytes: &[u8]) {
        let end = match &mut self.position {
            Position::Head(head) => match head.end(bytes) {
                Some(end) => {
                    self.head_bytes = self.ahead.len() + end;
                    self.fragment = head.fragment;
                    let http2 = starts_with(&self.ahead, bytes, b"PRI * HTTP/2.0");
                    self.position = if http2 { Position::Lost } else { Position::Dispatch };
                    self.ahead.clear();
                    end
                }
                None => {
                    self.head_bytes = self.ahead.len() + bytes.len();
                    0
                }
            },
            Position::Length(left) => {
                let end = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= end as u64;
                if *left == 0 {
                    self.position = Position::Answer;
                }
                end
            }
            Position::Chunked(chunk) => match chunk.end(bytes) {
                Ok(Some(end)) => {
                    self.position = Position::Answer;
                    end
                }
                Ok(None) => bytes.len(),
                Err(Malformed) => return self.lose(),
            },
            Position::Dispatch | Position::Answer => 0,
            Position::Lost => return,
        };
        self.ahead.extend_from_slice(&bytes[end..]);
        let bounded = matches!(self.position, Position::Head(_) | Position::Answer);
        if bounded && self.ahead.len() > UNPARSED_LIMIT {
            self.lose();
        }
    }

    /// Enters that hyper handed the next request to the application, and how it delimits that request's body.
    pub fn dispatched(&mut self, body: Body) {
        if !matches!(self.position, Position::Dispatch) {
            return self.lose();
        }
        self.position = match body {
            Body::Length(0) => Position::Answer,
            Body::Length(length) => Position::Length(length),
            Body::Chunked => Position::Chunked(Chunk::default()),
        };
        self.again();
    }

    /// Enters that the answer to the dispatched request has ended.
    ///
    /// A request that was answered before it was read whole leaves bytes whose owner is unknown.
    pub fn answered(&mut self) {
        if !matches!(self.position, Position::Answer) {
            return self.lose();
        }
        self.position = Position::default();
        self.again();
    }

    /// Gives the connection up: it stays with this process until it is closed.
    pub fn lose(&mut self) {
        self.position = Position::Lost;
        self.ahead = Vec::new();
    }

    /// What has been read of the next request, when the connection stands before the end of its head: most often
    /// nothing. `None` within a request, and when the position is unknown.
    ///
    /// Whoever holds the socket and these bytes can go on with the connection.
    pub fn unparsed(&self) -> Option<&[u8]> {
        matches!(self.position, Position::Head(_)).then_some(&self.ahead)
    }

    /// The length of the last head, as far as it was read, in bytes.
    pub fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    /// Whether the target of the request that is to be dispatched has a fragment (`#`), which hyper drops.
    pub fn has_fragment(&self) -> bool {
        self.fragment && self.dispatch_due()
    }

    /// Whether a head was read whole and hyper is to dispatch its request.
    pub fn dispatch_due(&self) -> bool {
        matches!(self.position, Position::Dispatch)
    }

    /// Whether a request was read whole and its answer is due, so that nothing needs to be read.
    pub fn answer_due(&self) -> bool {
        matches!(self.position, Position::Answer)
    }

    /// Whether the position is unknown, for good.
    pub fn is_lost(&self) -> bool {
        matches!(self.position, Position::Lost)
    }

    /// Enters the bytes that were read ahead once more, now that the position is known.
    fn again(&mut self) {
        if !self.ahead.is_empty() {
            let ahead = std::mem::take(&mut self.ahead);
            self.read(&ahead);
        }
    }
}

/// Whether `first` followed by `second` starts with `prefix`.
fn starts_with(first: &[u8], second: &[u8], prefix: &[u8]) -> bool {
    if first.is_empty() {
        return second.starts_with(prefix);
    }
    first.iter().chain(second).take(prefix.len()).eq(prefix)
}

/// Finds the end of a head: the first empty line after a line that is not empty. Like hyper, it takes a bare LF for a
/// line's end (RFC 9112, section 2.2).
#[derive(Debug, Default)]
struct Head {
    started: bool,
    line: Line,
    /// The first line has ended.
    fields: bool,
    /// There is a `#` in the first line.
    fragment: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Empty,
    Cr,
    Text,
}

impl Head {
    /// The number of `bytes` up to the end of the head, when it is among them.
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            self.line = match (self.line, byte) {
                (Line::Empty | Line::Cr, b'\n') if self.started => return Some(at + 1),
                (_, b'\n') => {
                    self.fields = self.started;
                    Line::Empty
                }
                (Line::Empty, b'\r') => Line::Cr,
                _ => {
                    self.started = true;
                    // Most of a head is text: go straight to the line's end.
                    let text = &bytes[at..];
                    let text = &text[..line_end(text)];
                    self.fragment |= !self.fields && text.contains(&b'#');
                    at += text.len();
                    self.line = Line::Text;
                    continue;
                }
            };
            at += 1;
        }
        None
    }
}

/// The number of `bytes` before the end of their first line.
fn line_end(bytes: &[u8]) -> usize {
    // Sixteen at a time are one comparison.
    let (chunks, _) = bytes.as_chunks::<16>();
    let ends = |chunk: &&[u8; 16]| chunk.iter().fold(false, |ends, byte| ends | (*byte == b'\n'));
    let whole = chunks.iter().take_while(|chunk| !ends(chunk)).count() * 16;
    whole + bytes[whole..].iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len() - whole)
}

/// Finds the end of a chunked body (RFC 9112, section 7.1), as strictly as hyper does, or more so.
#[derive(Debug, Default)]
struct Chunk {
    part: Part,
    size: u64,
    digits: u8,
}

#[derive(Clone, Copy, Debug, Default)]
enum Part {
    #[default]
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line, or of the empty line that ends the body.
    Line,
    LastLf,
    Trailer,
    TrailerLf,
}

/// A chunked body that breaks the grammar.
struct Malformed;

impl Chunk {
    /// The number of `bytes` up to the end of the body, when it is among them.
    fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += 1;
            self.part = match (self.part, byte) {
                (Part::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if self.digits < 15 => {
                    let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
                    self.size = self.size * 16 + u64::from(digit);
                    self.digits += 1;
                    Part::Size
                }
                (Part::Size, b';') if self.digits > 0 => Part::Extension,
                (Part::Size, b'\r') if self.digits > 0 => Part::SizeLf,
                (Part::Extension, b'\r') => Part::SizeLf,
                (Part::Extension, b'\n') => return Err(Malformed),
                (Part::Extension, _) => Part::Extension,
                (Part::SizeLf, b'\n') if self.size == 0 => Part::Line,
                (Part::SizeLf, b'\n') => Part::Data,
                (Part::Data, _) => {
                    // This byte is the first of `size`.
                    let here = (bytes.len() - at + 1).min(usize::try_from(self.size).unwrap_or(usize::MAX));
                    at += here - 1;
                    self.size -= here as u64;
                    if self.size == 0 { Part::DataCr } else { Part::Data }
                }
                (Part::DataCr, b'\r') => Part::DataLf,
                (Part::DataLf, b'\n') => {
                    *self = Chunk::default();
                    Part::Size
                }
                (Part::Line, b'\r') => Part::LastLf,
                (Part::LastLf, b'\n') => return Ok(Some(at)),
                (Part::Line | Part::Trailer, b'\n') => return Err(Malformed),
                (Part::Trailer, b'\r') => Part::TrailerLf,
                (Part::Line | Part::Trailer, _) => Part::Trailer,
                (Part::TrailerLf, b'\n') => Part::Line,
                _ => return Err(Malformed),
            };
        }
        Ok(None)
    }
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/ledger.rs"]
mod tests;
