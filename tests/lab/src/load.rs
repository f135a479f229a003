//! The load: every kind of client at once, each strict, until told to stop.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::answers::Answers;
use crate::gate::{Edges, Gap};
use crate::http1::{Ask, Connection, Fault, Place, Stays};
use crate::http2::{self, Outcome};
use crate::record::{self, Totals};
use crate::traffic::{Request, Route, Traffic};

/// A kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Pausing,
    Busy,
    Fresh,
    Dawdling,
    Slow,
    Uploading,
    Sipping,
    Idle,
    Http2,
    Timed,
    HalfClosing,
    LastByte,
    Trickling,
    Relentless,
    Patient,
    Nginx,
    Haproxy,
}

impl Kind {
    /// All that ask the service itself but for the patient and the relentless, with the number of clients a run has unless
    /// told otherwise. While the relentless are at work there is no calm moment to restart in, which matters where nobody
    /// else serves meanwhile.
    pub const ALL: [(Self, u32); 13] = [
        (Self::Pausing, 50),
        (Self::Busy, 4),
        (Self::Fresh, 4),
        (Self::Dawdling, 8),
        (Self::Slow, 2),
        (Self::Uploading, 2),
        (Self::Sipping, 2),
        (Self::Idle, 50),
        (Self::Http2, 2),
        (Self::Timed, 6),
        (Self::HalfClosing, 2),
        (Self::LastByte, 4),
        (Self::Trickling, 1),
    ];

    /// A name, and a sentence on what these clients do.
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Pausing => {
                ("keep-alive, with pauses", "Keeps one connection and pauses up to 200 ms between requests.")
            }
            Self::Busy => {
                ("keep-alive, without pause", "Keeps one connection and asks again the moment an answer is in.")
            }
            Self::Fresh => {
                ("a connection per request", "Connects, asks once with Connection: close, and connects again.")
            }
            Self::Dawdling => (
                "connect, then dawdle",
                "Connects, waits, sends half a request head, waits, sends the rest; three times.",
            ),
            Self::Slow => ("slow request", "Asks for what takes the service seconds, every 6 s."),
            Self::Uploading => {
                ("slow upload", "Sends a body in pieces over a second and compares what comes back byte by byte.")
            }
            Self::Sipping => (
                "slow reader",
                "Asks for 1 MiB and takes it in sips, or for 2 MB and reads nothing for a second or two, through a small \
                 receive buffer.",
            ),
            Self::Idle => ("idle", "Asks once, is silent through all restarts, and asks again on the same socket."),
            Self::Http2 => (
                "HTTP/2, four streams",
                "Keeps four streams going; after a GOAWAY it connects again, as the protocol has it.",
            ),
            Self::Timed => (
                "at the gate",
                "Asks at random microseconds from the moment a restart is told until the new process answers; rests \
                 otherwise.",
            ),
            Self::HalfClosing => (
                "half-closing",
                "Connects, asks, shuts its writing side down, and waits for the answer and the end of file; fast and \
                 slow requests, HTTP/1.1, Connection: close and HTTP/1.0.",
            ),
            Self::LastByte => (
                "all but the last byte",
                "Sends a request, with or without a body, but for its last byte; that comes up to seconds later.",
            ),
            Self::Trickling => (
                "byte by byte",
                "Sends single bytes: a head for seconds, now and then a body with a second between one and the next.",
            ),
            Self::Nginx => {
                ("nginx's pool", "Asks through nginx, whose connections to the service are kept; no retries.")
            }
            Self::Haproxy => {
                ("HAProxy's pool", "Asks through HAProxy, whose connections to the service are kept; no retries.")
            }
            Self::Patient => (
                "patient",
                "Keeps one connection, as a proxy does, posts again and again, and takes a 500 for an answer, too.",
            ),
            Self::Relentless => (
                "slow requests without end",
                "Asks for what takes the service seconds, again and again, on a kept connection or on a new one.",
            ),
        }
    }

    /// Whether such a client must end on the connection it began with.
    pub fn keeps(self) -> bool {
        !matches!(self, Self::Fresh | Self::Dawdling | Self::Http2 | Self::Relentless | Self::HalfClosing)
    }

    /// Whether the owner's routes leave this kind anything to ask.
    fn has_work(self, traffic: &Traffic) -> bool {
        match self {
            Self::Slow | Self::Relentless => !traffic.slow.is_empty(),
            Self::Uploading | Self::Sipping | Self::Patient => !traffic.upload.is_empty(),
            _ => !traffic.fast.is_empty(),
        }
    }
}

/// How many clients of each kind; a kind that is not listed stays at home.
pub type Crowd = Vec<(Kind, u32)>;

/// Clients of one kind, how many, and where they ask.
pub type Group = (Kind, u32, Place);

/// Connections being opened at the same time, so that a backlog is not what gets measured.
const OPENING: usize = 64;

/// A size that no socket buffer swallows whole.
const LARGE: usize = 1024 * 1024;

/// One that is under the service's limit for bodies, 2 MiB.
const VERY_LARGE: usize = 2_000_000;

/// A receive buffer that fills at once.
const SMALL_WINDOW: u32 = 8 * 1024;

/// Requests that take long come in waves, this far apart: a restart waits for a moment without any, and where they came
/// at any time, such a moment would be rare.
const WAVES: Duration = Duration::from_secs(6);

/// Failures written down in full; beyond that they are only counted.
const FAILURES_KEPT: usize = 500;

/// What the clients of one kind have seen so far.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
    closed: AtomicU64,
    opened: AtomicU64,
    kept: AtomicU64,
    answers: Mutex<Answers>,
    failures: Mutex<Vec<record::Failure>>,
}

/// What all clients share.
#[derive(Debug)]
struct Shared {
    traffic: Traffic,
    started: Instant,
    /// When the first restart began: what was open before is to be open still at the end.
    first_restart: OnceLock<Instant>,
    /// Restarts so far, and whether one is under way.
    restarts: watch::Sender<(usize, bool)>,
    edges: Mutex<Edges>,
    stop: CancellationToken,
    opening: Semaphore,
    groups: Vec<Group>,
    tallies: Vec<(Kind, u32, Tally)>,
}

/// A load that is running.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

/// What a load found.
#[derive(Debug)]
pub struct Findings {
    pub scenarios: Vec<record::Scenario>,
    pub answers: Vec<record::Answer>,
    pub failures: Vec<record::Failure>,
    /// Of each scenario's clients that must keep their connection, those that did not.
    pub moved: u64,
    /// How near to the gate requests came, for each restart in which some did.
    pub at_the_gate: Vec<Gap>,
}

impl Load {
    /// Sends the crowd to one place.
    pub fn start(place: impl Into<Place>, traffic: &Traffic, crowd: &[(Kind, u32)]) -> Self {
        let place = place.into();
        Self::start_groups(traffic, crowd.iter().map(|&(kind, count)| (kind, count, place.clone())).collect())
    }

    /// Sends each group to its place.
    pub fn start_groups(traffic: &Traffic, mut groups: Vec<Group>) -> Self {
        groups.retain(|(kind, count, _)| *count > 0 && kind.has_work(traffic));
        let shared = Arc::new(Shared {
            traffic: traffic.clone(),
            started: Instant::now(),
            first_restart: OnceLock::new(),
            restarts: watch::Sender::default(),
            edges: Mutex::default(),
            stop: CancellationToken::new(),
            opening: Semaphore::new(OPENING),
            tallies: groups.iter().map(|&(kind, count, _)| (kind, count, Tally::default())).collect(),
            groups,
        });
        let mut clients = JoinSet::new();
        for (scenario, (kind, count, _)) in shared.groups.iter().enumerate() {
            for _ in 0..*count {
                let client = Client {
                    shared: shared.clone(),
                    scenario,
                    held: None,
                    window: (*kind == Kind::Sipping).then_some(SMALL_WINDOW),
                };
                clients.spawn(client.run(*kind));
            }
        }
        Self { shared, clients }
    }

    /// Seconds since the start.
    pub fn clock(&self) -> f64 {
        self.shared.started.elapsed().as_secs_f64()
    }

    /// Every client has been answered at least once.
    pub fn is_settled(&self) -> bool {
        self.shared.tallies.iter().all(|(_, count, tally)| {
            tally.opened.load(Relaxed) >= u64::from(*count) && tally.answered.load(Relaxed) >= u64::from(*count)
        })
    }

    /// From now on connections that are open count as old.
    pub fn restarts_begin(&self) {
        self.shared.first_restart.get_or_init(Instant::now);
    }

    /// A restart is told now: those ask who want to ask just when the gate closes.
    pub fn restarting(&self) {
        self.shared.restarts.send_modify(|(count, under_way)| {
            *count += 1;
            *under_way = true;
        });
    }

    /// The restart is over.
    pub fn restarted(&self) {
        self.shared.restarts.send_modify(|(_, under_way)| *under_way = false);
    }

    /// The sums so far.
    pub fn totals(&self) -> Totals {
        let mut sum = Totals::default();
        for (_, count, tally) in &self.shared.tallies {
            sum.clients += u64::from(*count);
            sum.answered += tally.answered.load(Relaxed);
            sum.lost += tally.lost.load(Relaxed);
            sum.refused += tally.refused.load(Relaxed);
            sum.closed += tally.closed.load(Relaxed);
            sum.opened += tally.opened.load(Relaxed);
            sum.kept += tally.kept.load(Relaxed);
        }
        sum
    }

    /// One of the failures so far.
    pub fn a_failure(&self) -> Option<record::Failure> {
        self.shared.tallies.iter().find_map(|(_, _, tally)| lock(&tally.failures).first().cloned())
    }

    /// The slowest answer that clients of some kinds had to a request that was under way between two moments: when it
    /// was asked, and how long it took, in milliseconds.
    pub fn slowest_between(&self, kinds: &[Kind], from: f64, to: f64) -> (f64, f64) {
        let mut slowest = (from, 0.0);
        for (_, _, tally) in self.shared.tallies.iter().filter(|(kind, ..)| kinds.contains(kind)) {
            if let Some((at, ms)) = lock(&tally.answers).slowest_between(from, to)
                && f64::from(ms) > slowest.1
            {
                slowest = (at, f64::from(ms));
            }
        }
        slowest
    }

    /// Lets every client finish what it is at, and sums up.
    pub async fn finish(mut self) -> Findings {
        self.shared.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client of the laboratory panicked");
        }
        let at_the_gate = lock(&self.shared.edges).gaps();
        let mut findings = Findings { scenarios: vec![], answers: vec![], failures: vec![], moved: 0, at_the_gate };
        for (index, (kind, count, tally)) in self.shared.tallies.iter().enumerate() {
            let answers = std::mem::take(&mut *lock(&tally.answers));
            findings.scenarios.push(summary(*kind, *count, tally, &answers));
            let of_index = |(at, ms)| record::Answer { scenario: index as u16, at, ms };
            findings.answers.extend(answers.thinned().into_iter().map(of_index));
            findings.failures.append(&mut lock(&tally.failures));
            if kind.keeps() {
                findings.moved += u64::from(*count).saturating_sub(tally.kept.load(Relaxed));
            }
        }
        findings.answers.sort_by(|a, b| a.at.total_cmp(&b.at));
        findings.failures.sort_by(|a, b| a.at.total_cmp(&b.at));
        findings
    }
}

impl Findings {
    /// Fails with the first thing that must not happen.
    pub fn spotless(&self) -> anyhow::Result<()> {
        if let Some(first) = self.failures.first() {
            let (count, scenario) = (self.failures.len(), &self.scenarios[usize::from(first.scenario)].name);
            anyhow::bail!(
                "{count} failures, the first after {:.3} s: {scenario}: {}: {}",
                first.at,
                first.kind,
                first.what
            );
        }
        anyhow::ensure!(self.moved == 0, "{} clients did not end on the connection they began with", self.moved);
        Ok(())
    }
}

/// Sums one scenario up.
fn summary(kind: Kind, clients: u32, tally: &Tally, answers: &Answers) -> record::Scenario {
    let (name, about) = kind.describe();
    record::Scenario {
        name: name.into(),
        about: about.into(),
        clients,
        answered: tally.answered.load(Relaxed),
        lost: tally.lost.load(Relaxed),
        refused: tally.refused.load(Relaxed),
        closed: tally.closed.load(Relaxed),
        opened: tally.opened.load(Relaxed),
        kept: tally.kept.load(Relaxed),
        median_ms: answers.quantile(0.5),
        p99_ms: answers.quantile(0.99),
        slowest_ms: answers.slowest(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One client.
struct Client {
    shared: Arc<Shared>,
    scenario: usize,
    held: Option<Connection>,
    window: Option<u32>,
}

impl Client {
    async fn run(mut self, kind: Kind) {
        match kind {
            Kind::Pausing => {
                while self.goes_on() {
                    let ask = self.fast();
                    self.ask(&ask).await;
                    self.rest(between(0, 200)).await;
                }
            }
            Kind::Busy => {
                while self.goes_on() {
                    let ask = self.fast();
                    self.ask(&ask).await;
                }
            }
            Kind::Fresh => {
                while self.goes_on() {
                    let ask = self.fast().last();
                    self.ask(&ask).await;
                }
            }
            Kind::Dawdling => {
                while self.goes_on() {
                    for _ in 0..3 {
                        self.open().await;
                        self.rest(between(0, 300)).await;
                        let ask = self.fast();
                        let ask = ask.in_two(fastrand::usize(1..20), between(10, 300));
                        self.ask(&ask).await;
                    }
                    self.held = None;
                }
            }
            Kind::Slow => {
                while self.goes_on() {
                    let ask = self.get(|traffic| &traffic.slow);
                    self.ask(&ask).await;
                    self.rest_until_wave().await;
                }
            }
            Kind::Relentless => {
                while self.goes_on() {
                    let ask = self.get(|traffic| &traffic.slow);
                    self.ask(&if fastrand::bool() { ask } else { ask.last() }).await;
                }
            }
            Kind::Patient => {
                while self.goes_on() {
                    let ask = self.echo(64).or_failure();
                    self.ask(&ask).await;
                    self.rest(between(0, 50)).await;
                }
            }
            Kind::Uploading => {
                while self.goes_on() {
                    let (upload, pause) = (self.upload(20_000), Duration::from_millis(50));
                    // Both ways to frame a body in turn.
                    let ask = if fastrand::bool() {
                        Ask::of(upload).in_pieces(1_000, pause)
                    } else {
                        Ask::chunked(upload, 1_000, pause)
                    };
                    self.ask(&ask).await;
                    self.rest_until_wave().await;
                }
            }
            Kind::Sipping => {
                while self.goes_on() {
                    let ask = if fastrand::bool() {
                        self.echo(LARGE).in_sips(Duration::from_millis(10))
                    } else {
                        self.echo(VERY_LARGE).unread_for(between(1_000, 2_000))
                    };
                    self.ask(&ask).await;
                    self.rest_until_wave().await;
                }
            }
            Kind::Idle => {
                let ask = self.fast();
                self.ask(&ask).await;
                while self.goes_on() && self.held.is_some() {
                    self.rest(Duration::from_secs(3600)).await;
                }
                let ask = self.fast();
                self.ask(&ask).await;
            }
            Kind::Http2 => {
                while self.goes_on() {
                    self.http2().await;
                }
            }
            Kind::Timed => {
                let mut restarts = self.shared.restarts.subscribe();
                while self.goes_on() {
                    let ask = self.fast();
                    self.ask(&ask).await;
                    self.rest_unless(between(300, 700), async { drop(restarts.changed().await) }).await;
                    let (restart, under_way) = *restarts.borrow_and_update();
                    if under_way {
                        self.ask_at_the_gate(restart, &mut restarts).await;
                    }
                }
            }
            Kind::HalfClosing => {
                while self.goes_on() {
                    let slow = self.wave_begins() && !self.shared.traffic.slow.is_empty();
                    let ask = if slow { self.get(|traffic| &traffic.slow) } else { self.get(|traffic| &traffic.fast) };
                    let ask = match fastrand::u8(..3) {
                        0 => ask,
                        1 => ask.last(),
                        _ => ask.in_http10(),
                    };
                    self.ask(&ask.half_closing()).await;
                    self.rest(between(0, 500)).await;
                }
            }
            Kind::LastByte => {
                let ask = self.fast();
                self.ask(&ask).await;
                while self.goes_on() {
                    // A body's last byte is waited for; a head's is not, which may take a sixth of T.
                    let (ask, upto, longest) = match self.wave_begins() && !self.shared.traffic.upload.is_empty() {
                        true => {
                            let ask = self.echo(64);
                            let whole = ask.len();
                            (ask, whole, self.part_of_timeout(15))
                        }
                        false => {
                            let ask = self.get(|traffic| &traffic.fast);
                            let head = ask.head_len();
                            (ask, head, self.part_of_timeout(12))
                        }
                    };
                    self.ask(&ask.in_two(upto - 1, between(0, longest.as_millis() as u64))).await;
                    self.rest(between(0, 500)).await;
                }
            }
            Kind::Trickling => {
                let ask = self.fast();
                self.ask(&ask).await;
                let mut body = true;
                while self.goes_on() {
                    // For a body a restart has to wait: it must not be so all the time.
                    let ask = match body && !self.shared.traffic.upload.is_empty() {
                        true => {
                            let ask = self.echo(10);
                            let body = ask.head_len()..ask.len();
                            ask.byte_by_byte(body, self.part_of_timeout(30))
                        }
                        false => {
                            let ask = self.get(|traffic| &traffic.fast);
                            let head = ask.head_len();
                            ask.byte_by_byte(0..head, self.part_of_timeout(12) / head as u32)
                        }
                    };
                    if body {
                        self.rest_until_wave().await
                    } else {
                        self.rest(between(0, 2_000)).await
                    }
                    body = fastrand::u8(..15) == 0;
                    if self.goes_on() {
                        self.ask(&ask).await;
                    }
                }
            }
            Kind::Nginx | Kind::Haproxy => {
                while self.goes_on() {
                    let echoes = fastrand::bool() && !self.shared.traffic.upload.is_empty();
                    let ask = if echoes { self.echo(fastrand::usize(1..4_000)) } else { self.get(|t| &t.fast) };
                    self.ask(&ask).await;
                    self.rest(between(0, 50)).await;
                }
            }
        }
        self.end();
    }

    /// One HTTP/2 connection, from its beginning to its end.
    async fn http2(&mut self) {
        let connection = match http2::Connection::open(self.place().clone()).await {
            Ok(connection) => connection,
            Err(fault) => {
                self.failed(self.now(), fault);
                return tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        self.tally().opened.fetch_add(1, Relaxed);
        let streams = (0..4).map(|_| {
            let mut stream = connection.stream();
            let client = Client { shared: self.shared.clone(), scenario: self.scenario, held: None, window: None };
            async move { client.http2_stream(&mut stream).await }
        });
        let mut unanswered: Vec<_> = futures_util::future::join_all(streams).await.into_iter().flatten().collect();
        let (lost, ended) = connection.end().await;
        unanswered.resize(lost, (self.now(), "HTTP/2: a stream without an answer".to_owned()));
        for (at, what) in unanswered {
            self.failed(at, Fault::Lost { what, closed: false });
        }
        if let Err(fault) = ended {
            self.failed(self.now(), fault);
        }
    }

    /// Asks on one stream after the other, until one is not answered, which may be no loss.
    async fn http2_stream(self, stream: &mut http2::Stream) -> Option<(f64, String)> {
        while self.goes_on() {
            let at = self.now();
            let ask = self.http2_ask();
            let outcome = http2::exchange(stream, &ask).await;
            let name = format!("{} {}", ask.method, ask.path);
            self.shared.traffic.ledger.note(&name, ask.id.as_ref(), matches!(outcome, Outcome::Answered));
            match outcome {
                Outcome::Answered => self.answered(at),
                Outcome::Wrong(what) => self.failed(at, Fault::Lost { what, closed: false }),
                Outcome::Unanswered(what) => return Some((at, what)),
            }
            tokio::time::sleep(between(0, 100)).await;
        }
        None
    }

    /// Asks again and again, a random moment after each answer, until another process answers or the restart is over.
    async fn ask_at_the_gate(&mut self, restart: usize, restarts: &mut watch::Receiver<(usize, bool)>) {
        let Some(before) = self.held.as_ref().map(|connection| connection.answered_by.clone()) else { return };
        while self.goes_on() && *restarts.borrow_and_update() == (restart, true) {
            // The runtime's own clock has steps of a millisecond.
            let pause = Duration::from_micros(fastrand::u64(..1_000));
            let _ = tokio::task::spawn_blocking(move || std::thread::sleep(pause)).await;
            let ask = self.fast();
            let at = self.now();
            self.ask(&ask).await;
            let Some(connection) = &self.held else { return };
            let by_another = connection.answered_by != before;
            lock(&self.shared.edges).note(restart, at, by_another);
            if by_another {
                return;
            }
        }
    }

    /// Where this client asks.
    fn place(&self) -> &Place {
        &self.shared.groups[self.scenario].2
    }

    /// A fraction of the service's T.
    fn part_of_timeout(&self, divisor: u32) -> Duration {
        self.shared.traffic.shutdown_timeout / divisor
    }

    fn goes_on(&self) -> bool {
        !self.shared.stop.is_cancelled()
    }

    fn now(&self) -> f64 {
        self.shared.started.elapsed().as_secs_f64()
    }

    fn tally(&self) -> &Tally {
        &self.shared.tallies[self.scenario].2
    }

    /// One of a list of routes that is not empty.
    fn route(&self, of: impl Fn(&Traffic) -> &Vec<Route>) -> &Route {
        let routes = of(&self.shared.traffic);
        &routes[fastrand::usize(..routes.len())]
    }

    fn may_echo(&self) -> bool {
        !self.shared.traffic.upload.is_empty() && fastrand::u8(..4) == 0
    }

    /// A fast request. One in four brings a body that exists only once and wants just that back: an
    /// answer that was meant for someone else would be noticed.
    fn fast(&self) -> Ask {
        if self.may_echo() { self.echo(64) } else { self.get(|traffic| &traffic.fast) }
    }

    /// Sends a body that exists only once.
    fn echo(&self, length: usize) -> Ask {
        Ask::of(self.upload(length))
    }

    fn upload(&self, length: usize) -> Request {
        self.route(|traffic| &traffic.upload).upload(unique(length))
    }

    fn get(&self, of: impl Fn(&Traffic) -> &Vec<Route>) -> Ask {
        Ask::of(self.route(of).request())
    }

    fn http2_ask(&self) -> Request {
        if self.may_echo() { self.upload(64) } else { self.route(|traffic| &traffic.fast).request() }
    }

    /// Makes sure there is a connection that is open as far as one can see; after a refusal there
    /// is none.
    async fn open(&mut self) {
        let at = self.now();
        if let Some(mut connection) = self.held.take() {
            match connection.look() {
                Ok(Stays::Open) => {
                    self.held = Some(connection);
                    return;
                }
                Ok(Stays::Announced) => {}
                Err(fault) => self.failed(at, fault),
            }
        }
        let opened = {
            let _turn = self.shared.opening.acquire().await;
            Connection::open(self.place().clone(), self.window).await
        };
        match opened {
            Ok(connection) => {
                self.tally().opened.fetch_add(1, Relaxed);
                self.held = Some(connection);
            }
            Err(fault) => {
                self.failed(at, fault);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Asks once, and writes down what came of it.
    async fn ask(&mut self, ask: &Ask) {
        self.open().await;
        let Some(mut connection) = self.held.take() else { return };
        let at = self.now();
        let exchanged = connection.exchange(ask).await;
        self.shared.traffic.ledger.note(&ask.name, ask.id.as_ref(), exchanged.is_ok());
        match exchanged {
            Ok(Stays::Open) => {
                self.answered(at);
                self.held = Some(connection);
            }
            Ok(Stays::Announced) => {
                self.answered(at);
                connection.closes().await;
            }
            Err(fault) => self.failed(at, fault),
        }
    }

    /// Says nothing for a while, and notices a connection that is closed meanwhile.
    async fn rest(&mut self, pause: Duration) {
        self.rest_unless(pause, std::future::pending()).await;
    }

    /// Says nothing until soon after the next wave begins.
    async fn rest_until_wave(&mut self) {
        let since = self.now() % WAVES.as_secs_f64();
        self.rest(WAVES - Duration::from_secs_f64(since) + between(0, 1_000)).await;
    }

    /// Whether it is so early in a wave that a request of seconds may begin.
    fn wave_begins(&self) -> bool {
        self.now() % WAVES.as_secs_f64() < 1.0
    }

    /// The same; the rest ends when something else does.
    async fn rest_unless(&mut self, pause: Duration, other: impl Future<Output = ()>) {
        let over = self.shared.stop.clone();
        let stop = async {
            tokio::select! {
                () = over.cancelled() => {}
                () = other => {}
            }
        };
        let Some(mut connection) = self.held.take() else {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop => {}
            }
            return;
        };
        let rested = tokio::select! {
            rested = connection.rest(pause) => rested,
            () = stop => Ok(Stays::Open),
        };
        match rested {
            Ok(Stays::Open) => self.held = Some(connection),
            Ok(Stays::Announced) => {}
            Err(fault) => self.failed(self.now(), fault),
        }
    }

    fn answered(&self, at: f64) {
        let ms = ((self.now() - at) * 1e3) as f32;
        self.tally().answered.fetch_add(1, Relaxed);
        lock(&self.tally().answers).push((at, ms));
    }

    /// Counts a failure. A request that is lost with its connection counts as both.
    fn failed(&self, at: f64, fault: Fault) {
        let tally = self.tally();
        match fault {
            Fault::Refused(what) => self.note(&tally.refused, at, "refused", what),
            Fault::Closed(what) => self.note(&tally.closed, at, "closed", what),
            Fault::Lost { what, closed } => {
                if closed {
                    self.note(&tally.closed, at, "closed", what.clone());
                }
                self.note(&tally.lost, at, "lost", what);
            }
        }
    }

    fn note(&self, counter: &AtomicU64, at: f64, kind: &str, what: String) {
        counter.fetch_add(1, Relaxed);
        let mut failures = lock(&self.tally().failures);
        if failures.len() < FAILURES_KEPT {
            let scenario = self.scenario as u16;
            failures.push(record::Failure { scenario, at, kind: kind.into(), what });
        }
    }

    /// Counts the connection that lived through all restarts.
    fn end(mut self) {
        let Some(connection) = self.held.take() else { return };
        if self.shared.first_restart.get().is_some_and(|first| connection.opened < *first) {
            self.tally().kept.fetch_add(1, Relaxed);
        }
        connection.abort();
    }
}

/// A pause of so many milliseconds.
fn between(least: u64, most: u64) -> Duration {
    Duration::from_millis(fastrand::u64(least..=most))
}

/// Bytes that occur nowhere else.
fn unique(length: usize) -> Vec<u8> {
    std::iter::repeat_with(fastrand::alphanumeric).map(|c| c as u8).take(length).collect()
}
