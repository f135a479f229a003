//! The load: every kind of client at once, each strict, until told to stop.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http1::{Ask, Connection, Fault, Stays};
use crate::http2::{self, Outcome};
use crate::record::{self, Totals};
use crate::traffic::{Route, Traffic};

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
    Relentless,
}

impl Kind {
    /// All of them but the last, with the number of clients a run has unless told otherwise. While the relentless are
    /// at work there is no calm moment to restart in, which matters where nobody else serves meanwhile.
    pub const ALL: [(Self, u32); 9] = [
        (Self::Pausing, 50),
        (Self::Busy, 4),
        (Self::Fresh, 4),
        (Self::Dawdling, 8),
        (Self::Slow, 2),
        (Self::Uploading, 2),
        (Self::Sipping, 2),
        (Self::Idle, 50),
        (Self::Http2, 2),
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
            Self::Slow => ("slow request", "Asks for what takes the service seconds, then waits 2 to 4 s."),
            Self::Uploading => {
                ("slow upload", "Sends a body in pieces over a second and compares what comes back byte by byte.")
            }
            Self::Sipping => ("slow reader", "Asks for 1 MiB and takes it in sips through a small receive buffer."),
            Self::Idle => ("idle", "Asks once, is silent through all restarts, and asks again on the same socket."),
            Self::Http2 => (
                "HTTP/2, four streams",
                "Keeps four streams going; after a GOAWAY it connects again, as the protocol has it.",
            ),
            Self::Relentless => (
                "slow requests without end",
                "Asks for what takes the service seconds, again and again, on a kept connection or on a new one.",
            ),
        }
    }

    /// Whether such a client must end on the connection it began with.
    pub fn keeps(self) -> bool {
        !matches!(self, Self::Fresh | Self::Dawdling | Self::Http2 | Self::Relentless)
    }

    /// Whether the owner's routes leave this kind anything to ask.
    fn has_work(self, traffic: &Traffic) -> bool {
        match self {
            Self::Slow | Self::Relentless => !traffic.slow.is_empty(),
            Self::Uploading | Self::Sipping => !traffic.upload.is_empty(),
            _ => !traffic.fast.is_empty(),
        }
    }
}

/// How many clients of each kind; a kind that is not listed stays at home.
pub type Crowd = Vec<(Kind, u32)>;

/// Connections being opened at the same time, so that a backlog is not what gets measured.
const OPENING: usize = 64;

/// A size that no socket buffer swallows whole.
const LARGE: usize = 1024 * 1024;

/// A receive buffer that fills at once.
const SMALL_WINDOW: u32 = 8 * 1024;

/// Failures written down in full; beyond that they are only counted.
const FAILURES_KEPT: usize = 500;

/// Answers of one scenario that go into the record.
const ANSWERS_KEPT: usize = 4_000;

/// What the clients of one kind have seen so far.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
    closed: AtomicU64,
    opened: AtomicU64,
    kept: AtomicU64,
    answers: Mutex<Vec<(f64, f32)>>,
    failures: Mutex<Vec<record::Failure>>,
}

/// What all clients share.
#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    traffic: Traffic,
    started: Instant,
    /// When the first restart began: what was open before is to be open still at the end.
    first_restart: OnceLock<Instant>,
    stop: CancellationToken,
    opening: Semaphore,
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
}

impl Load {
    /// Sends the crowd to `address`.
    pub fn start(address: SocketAddr, traffic: &Traffic, crowd: &[(Kind, u32)]) -> Self {
        let tallies: Vec<_> = crowd
            .iter()
            .filter(|(kind, count)| *count > 0 && kind.has_work(traffic))
            .map(|&(kind, count)| (kind, count, Tally::default()))
            .collect();
        let shared = Arc::new(Shared {
            address,
            traffic: traffic.clone(),
            started: Instant::now(),
            first_restart: OnceLock::new(),
            stop: CancellationToken::new(),
            opening: Semaphore::new(OPENING),
            tallies,
        });
        let mut clients = JoinSet::new();
        for (scenario, (kind, count, _)) in shared.tallies.iter().enumerate() {
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
            for &(at, ms) in lock(&tally.answers).iter() {
                let ms = f64::from(ms);
                if at <= to && at + ms / 1e3 >= from && ms > slowest.1 {
                    slowest = (at, ms);
                }
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
        let mut findings = Findings { scenarios: vec![], answers: vec![], failures: vec![], moved: 0 };
        for (index, (kind, count, tally)) in self.shared.tallies.iter().enumerate() {
            let mut answers = std::mem::take(&mut *lock(&tally.answers));
            findings.scenarios.push(summary(*kind, *count, tally, &mut answers));
            findings.answers.extend(thinned(answers).map(|(at, ms)| record::Answer { scenario: index as u16, at, ms }));
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

/// Sums one scenario up; leaves its answers sorted by latency.
fn summary(kind: Kind, clients: u32, tally: &Tally, answers: &mut [(f64, f32)]) -> record::Scenario {
    answers.sort_by(|a, b| a.1.total_cmp(&b.1));
    let quantile = |q: f64| match answers.len() {
        0 => 0.0,
        n => f64::from(answers[((n - 1) as f64 * q).round() as usize].1),
    };
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
        median_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        slowest_ms: quantile(1.0),
    }
}

/// Of answers sorted by latency: the slowest, and of the others an even sample.
fn thinned(mut answers: Vec<(f64, f32)>) -> impl Iterator<Item = (f64, f32)> {
    let slowest = answers.split_off(answers.len().saturating_sub(ANSWERS_KEPT / 2));
    let step = answers.len().div_ceil(ANSWERS_KEPT / 2).max(1);
    answers.into_iter().step_by(step).chain(slowest)
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
                    let route = self.route(|traffic| &traffic.slow);
                    let ask = Ask::get(&route.path, route.status, route.body.as_deref());
                    self.ask(&ask).await;
                    self.rest(between(2_000, 4_000)).await;
                }
            }
            Kind::Relentless => {
                while self.goes_on() {
                    let route = self.route(|traffic| &traffic.slow);
                    let ask = Ask::get(&route.path, route.status, route.body.as_deref());
                    self.ask(&if fastrand::bool() { ask } else { ask.last() }).await;
                }
            }
            Kind::Uploading => {
                while self.goes_on() {
                    let route = self.route(|traffic| &traffic.upload);
                    let body = unique(20_000);
                    // Both ways to frame a body in turn.
                    let ask = if fastrand::bool() {
                        Ask::echo(&route.path, route.status, &body).in_pieces(1_000, Duration::from_millis(50))
                    } else {
                        let parts: Vec<_> = body.chunks(1_000).map(Bytes::copy_from_slice).collect();
                        Ask::echo_chunked(&route.path, route.status, &parts, Duration::from_millis(50))
                    };
                    self.ask(&ask).await;
                    self.rest(between(2_000, 4_000)).await;
                }
            }
            Kind::Sipping => {
                while self.goes_on() {
                    let route = self.route(|traffic| &traffic.upload);
                    let ask = Ask::echo(&route.path, route.status, &unique(LARGE)).in_sips(Duration::from_millis(10));
                    self.ask(&ask).await;
                    self.rest(between(2_000, 4_000)).await;
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
        }
        self.end();
    }

    /// One HTTP/2 connection, from its beginning to its end.
    async fn http2(&mut self) {
        let connection = match http2::Connection::open(self.shared.address).await {
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
            match http2::exchange(stream, &self.http2_ask()).await {
                Outcome::Answered => self.answered(at),
                Outcome::Wrong(what) => self.failed(at, Fault::Lost { what, closed: false }),
                Outcome::Unanswered(what) => return Some((at, what)),
            }
            tokio::time::sleep(between(0, 100)).await;
        }
        None
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
        if self.may_echo() {
            let route = self.route(|traffic| &traffic.upload);
            return Ask::echo(&route.path, route.status, &unique(64));
        }
        let route = self.route(|traffic| &traffic.fast);
        Ask::get(&route.path, route.status, route.body.as_deref())
    }

    fn http2_ask(&self) -> http2::Ask {
        if self.may_echo() {
            let route = self.route(|traffic| &traffic.upload);
            let body = Bytes::from(unique(64));
            return http2::Ask {
                path: route.path.clone(),
                post: Some(body.clone()),
                status: route.status,
                body: Some(body),
            };
        }
        let route = self.route(|traffic| &traffic.fast);
        http2::Ask {
            path: route.path.clone(),
            post: None,
            status: route.status,
            body: route.body.clone().map(Bytes::from),
        }
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
            Connection::open(self.shared.address, self.window).await
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
        match connection.exchange(ask).await {
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
        let stop = self.shared.stop.clone();
        let Some(mut connection) = self.held.take() else {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
            return;
        };
        let rested = tokio::select! {
            rested = connection.rest(pause) => rested,
            () = stop.cancelled() => Ok(Stays::Open),
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
