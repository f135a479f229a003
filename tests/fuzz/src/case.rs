//! A stream of requests, how it is cut, and when processes are restarted meanwhile.

use std::fmt;
use std::time::Instant;

use world::Client;

use crate::application;
use crate::hitless::connection::Origin;
use crate::hitless::process::Process;
use crate::hitless::queue::Detached;

/// A stream of requests, and how it comes.
#[derive(Clone)]
pub struct Case {
    pub stream: Vec<u8>,
    /// How each piece comes, over and over.
    pub moves: Vec<Move>,
    /// Whether the client closes its side together with the last piece, and not when all is answered.
    pub abrupt: bool,
}

/// How a piece of the stream comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// What happens to the process before.
    pub turn: Turn,
    /// The length of the piece.
    pub size: usize,
    /// How much of the answers the client takes from now on; all when `None`.
    pub room: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Stay,
    /// A restart; it is over before the next piece comes.
    Restart,
    /// A restart begins.
    Leave,
    /// It ends.
    Return,
}

impl Move {
    /// Every byte is a move.
    pub fn new(byte: u8) -> Self {
        let turn = [Turn::Stay, Turn::Restart, Turn::Leave, Turn::Return][usize::from(byte & 3)];
        let size = [1, 2, 3, 7, 17, 40, 200, usize::MAX][usize::from(byte >> 2 & 7)];
        let room = [None, None, None, None, None, Some(0), Some(1), Some(50)][usize::from(byte >> 5)];
        Self { turn, size, room }
    }
}

impl Case {
    /// Every string of bytes is a case, but the empty one: the number of moves and whether the end is abrupt, the moves,
    /// the stream.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&count, bytes) = bytes.split_first()?;
        let (moves, stream) = bytes.split_at_checked(usize::from(count % 16 + 1))?;
        let moves = moves.iter().copied().map(Move::new).collect();
        Some(Self { stream: stream.to_vec(), moves, abrupt: count >= 128 })
    }

    /// Holds that the client of processes that restart hears what the client of one process hears, and that a client that
    /// has closed its side is let go. Says how often the connection was handed over.
    ///
    /// # Errors
    /// With what differs.
    pub fn hold(&self) -> Result<usize, Box<Difference>> {
        let restarted = Run::of(self, true);
        let undisturbed = Run::of(self, false);
        let alike = restarted.is_like(&undisturbed)
            || restarted.is_unfinished_like(&undisturbed, self)
            || (self.has_limited_room() && restarted.is_given_up_like(&undisturbed))
            || self.has_late_preface()
            || self.gives_up_midway();
        if alike && restarted.ended && undisturbed.ended {
            Ok(restarted.handed_over)
        } else {
            Err(Box::new(Difference { case: self.clone(), restarted, undisturbed }))
        }
    }

    /// Whether the answers depend on what has come by when: to answer before the body was read, HTTP/2.
    fn is_hasty(&self) -> bool {
        contains(&self.stream, application::EARLY.as_bytes()) || contains(&self.stream, b"PRI *")
    }

    /// Whether the client changes to HTTP/2 after its first request. Only a hyper that has not seen the first one takes
    /// part in that.
    fn has_late_preface(&self) -> bool {
        self.stream.get(1..).is_some_and(|stream| contains(stream, PREFACE))
    }

    /// Whether an answer may be given up while the client has no room for its announcement of the end.
    fn gives_up_midway(&self) -> bool {
        self.abrupt && self.has_limited_room() && contains(&self.stream, b"/broken")
    }

    /// What was heard, but for ids, which each process counts for itself. Whether an abrupt end is seen before the last
    /// answer begins is chance, and the answer may announce it.
    fn comparable(&self, heard: &[u8]) -> Vec<u8> {
        let heard = without("x-request-id: 0-r", heard);
        if self.abrupt { without("connection: close", &heard) } else { heard }
    }

    fn has_limited_room(&self) -> bool {
        self.moves.iter().any(|one| one.room.is_some())
    }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|bytes| bytes == word)
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.abrupt { ", then the end at once" } else { "" };
        write!(f, "b\"{}\"{end}", self.stream.escape_ascii())?;
        self.moves.iter().try_for_each(|Move { turn, size, room }| write!(f, "\n  {turn:?}, by {size}, room {room:?}"))
    }
}

/// A client that can tell that there were restarts.
pub struct Difference {
    case: Case,
    restarted: Run,
    undisturbed: Run,
}

impl fmt::Debug for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, restarted, undisturbed } = self;
        write!(f, "{case:?}\nrestarted: {restarted:#?}\nundisturbed: {undisturbed:#?}")
    }
}

/// What became of a connection.
#[derive(PartialEq, Eq)]
pub struct Run {
    handed_over: usize,
    /// Whether it could be handed over at the end, and what had been read of a next request.
    rest: Option<Vec<u8>>,
    /// What the client heard until then, and whether the connection was still open.
    answers: Vec<u8>,
    open: bool,
    /// What it heard after it had closed its side.
    goodbye: Vec<u8>,
    ended: bool,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("handed_over", &self.handed_over)
            .field("rest", &self.rest.as_deref().map(|rest| rest.escape_ascii().to_string()))
            .field("answers", &self.answers.escape_ascii().to_string())
            .field("open", &self.open)
            .field("goodbye", &self.goodbye.escape_ascii().to_string())
            .field("ended", &self.ended)
            .finish()
    }
}

/// What is answered to what is no request, but for its id.
const REFUSAL: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/problem+json\r\n\
content-length: 81\r\n\r\n{\"title\":\"Bad Request\",\"status\":400,\"detail\":\"the request cannot be understood\"}\n";

/// `answers` without the lines that begin with `field`, of the last of which the end may be missing.
fn without(field: &str, answers: &[u8]) -> Vec<u8> {
    let kept = |line: &&[u8]| {
        !line.starts_with(field.as_bytes())
            && (line.is_empty() || line.ends_with(b"\n") || !field.as_bytes().starts_with(line))
    };
    answers.split_inclusive(|byte| *byte == b'\n').filter(kept).collect::<Vec<_>>().concat()
}

/// What HTTP/2 begins with, as far as it looks like a request.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

impl Run {
    fn of(case: &Case, restarting: bool) -> Self {
        let mut service = Restartable::new();
        let hasty = case.is_hasty();
        let mut stream = case.stream.as_slice();
        let mut moves = case.moves.iter().cycle();
        while let (false, Some(Move { turn, size, room })) = (stream.is_empty(), moves.next()) {
            match turn {
                _ if !restarting => {}
                Turn::Stay => {}
                Turn::Leave if !hasty => service.leave(),
                Turn::Return => service.come_back(),
                Turn::Restart | Turn::Leave => {
                    service.leave();
                    service.come_back();
                }
            }
            let (piece, rest) = stream.split_at(stream.len().min(*size));
            stream = rest;
            service.client.set_room(room.filter(|_| !hasty));
            service.client.send(piece);
            if case.abrupt && stream.is_empty() {
                service.client.end();
            }
            service.step();
        }
        service.come_back();
        service.client.set_room(None);
        service.settle();

        let Restartable { handed_over, .. } = service;
        let (heard, open) = (service.client.answers(), !service.client.is_closed());
        service.leave();
        let rest = service.unparsed();
        service.come_back();
        service.client.end();
        service.settle();
        let goodbye = service.client.answers()[heard.len()..].to_vec();
        let ended = service.client.is_closed();
        let (answers, goodbye) = (case.comparable(&heard), case.comparable(&goodbye));
        Run { handed_over, rest, answers, open, goodbye, ended }
    }

    fn is_like(&self, other: &Self) -> bool {
        (&self.rest, &self.answers, self.open, &self.goodbye, self.ended)
            == (&other.rest, &other.answers, other.open, &other.goodbye, other.ended)
    }

    /// An unfinished head that cannot become a good one: hyper refuses it at its first look, or, having looked before it
    /// was that bad, when it is whole. Of a refusal that the client has no room for, hyper keeps the rest for itself. After
    /// an abrupt end nothing tells whether a head was unfinished.
    fn is_unfinished_like(&self, other: &Self, case: &Case) -> bool {
        let unfinished = |run: &Self| case.abrupt || run.rest.as_ref().is_some_and(|rest| !rest.is_empty());
        let (one, another) = (self.all(), other.all());
        let refused = |one: &[u8], another: &[u8]| {
            let refusal = case.comparable(REFUSAL);
            let begun = if case.has_limited_room() { another.len().min(refusal.len()) } else { 0 };
            let mut from = another.len() - begun..=another.len();
            one.starts_with(another) && from.any(|from| refusal.starts_with(&one[from..]))
        };
        (unfinished(self) || unfinished(other)) && (refused(&one, &another) || refused(&another, &one))
    }

    /// An answer that the client does not read, to a request whose body is broken: hyper closes as soon as it sees that.
    fn is_given_up_like(&self, other: &Self) -> bool {
        let (one, another) = (self.all(), other.all());
        !self.open && !other.open && (one.starts_with(&another) || another.starts_with(&one))
    }

    /// All that was answered.
    fn all(&self) -> Vec<u8> {
        [self.answers.as_slice(), &self.goodbye].concat()
    }
}

/// A connection to a service that can be restarted.
pub struct Restartable {
    pub client: Client,
    process: Process,
    leaving: bool,
    handed_over: usize,
    waiting: Vec<Detached>,
}

impl Default for Restartable {
    fn default() -> Self {
        Self::new()
    }
}

impl Restartable {
    pub fn new() -> Self {
        let client = Client::default();
        let process = Process::default();
        let socket = client.socket();
        process.adopt(Detached { socket, unparsed: Vec::new(), origin: Origin::Adopted, since: Instant::now() });
        process.settle();
        Self { client, process, leaving: false, handed_over: 0, waiting: Vec::new() }
    }

    /// Lets a step pass. Says whether somebody had waited for it.
    pub fn step(&mut self) -> bool {
        let waited = application::step();
        self.process.settle();
        waited
    }

    /// Lets all that is going on come to its end.
    pub fn settle(&mut self) {
        self.process.settle();
        while self.step() {}
    }

    /// The process is told to leave.
    pub fn leave(&mut self) {
        self.leaving = true;
        self.process.pause();
    }

    /// What was read of the next request, if the leaving process has let go of the connection.
    pub fn unparsed(&mut self) -> Option<Vec<u8>> {
        self.waiting.extend(self.process.take_parked());
        self.waiting.first().map(|waiting| waiting.unparsed.clone())
    }

    /// The next process takes over. Without a connection to hand over this one stays after all.
    pub fn come_back(&mut self) {
        if !std::mem::take(&mut self.leaving) {
            return;
        }
        if self.unparsed().is_none() {
            // Told once more, it lets go of what it should have let go of before.
            self.process.pause();
            assert!(self.unparsed().is_none(), "a message boundary was not noticed");
            self.process.resume();
            return;
        }
        assert!(self.process.is_empty(), "a connection that was let go of is not forgotten");
        self.process = Process::default();
        for detached in self.waiting.drain(..) {
            self.handed_over += 1;
            self.process.adopt(detached);
        }
        self.process.settle();
    }
}
