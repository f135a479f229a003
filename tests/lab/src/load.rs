//! The load: every kind of client at once, each strict, until told to stop.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::answers::Answers;
use crate::http1::{Ask, Connection, Fault, Place, Stays};
use crate::record::{self, Scenario};
use crate::traffic::{Request, Route, Traffic};

/// A kind of client.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    /// A sentence on what these clients do.
    pub about: &'static str,
    /// Whether such a client must end on the connection it began with.
    pub keeps: bool,
    /// The routes without which it stays at home.
    pub needs: fn(&Traffic) -> &[Route],
    /// What it does for as long as it [goes on](Client::goes_on).
    pub habit: for<'a> fn(&'a mut Client) -> Habit<'a>,
}

/// What a client does.
pub type Habit<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Kind {
    pub const PAUSING: Self = Self {
        name: "keep-alive, with pauses",
        about: "Keeps one connection and pauses up to 200 ms between requests.",
        keeps: true,
        needs: |traffic| &traffic.fast,
        habit: |client| {
            Box::pin(async move {
                while client.goes_on() {
                    client.ask(&client.fast()).await;
                    client.rest(between(0, 200)).await;
                }
            })
        },
    };

    pub const BUSY: Self = Self {
        name: "keep-alive, without pause",
        about: "Keeps one connection and asks again the moment an answer is in.",
        keeps: true,
        needs: |traffic| &traffic.fast,
        habit: |client| {
            Box::pin(async move {
                while client.goes_on() {
                    client.ask(&client.fast()).await;
                }
            })
        },
    };

    pub const FRESH: Self = Self {
        name: "a connection per request",
        about: "Connects, asks once with Connection: close, and connects again.",
        keeps: false,
        needs: |traffic| &traffic.fast,
        habit: |client| {
            Box::pin(async move {
                while client.goes_on() {
                    client.ask(&client.fast().last()).await;
                }
            })
        },
    };

    pub const DAWDLING: Self = Self {
        name: "connect, then dawdle",
        about: "Connects, waits, sends half a request head, waits, sends the rest; three times.",
        keeps: false,
        needs: |traffic| &traffic.fast,
        habit: |client| {
            Box::pin(async move {
                while client.goes_on() {
                    for _ in 0..3 {
                        client.open().await;
                        client.rest(between(0, 300)).await;
                        let ask = client.fast().in_two(fastrand::usize(1..20), between(10, 300));
                        client.ask(&ask).await;
                    }
                    client.held = None;
                }
            })
        },
    };

    pub const SLOW: Self = Self {
        name: "slow request",
        about: "Asks for what takes the service seconds, every 6 s.",
        keeps: true,
        needs: |traffic| &traffic.slow,
        habit: |client| {
            Box::pin(async move {
                while client.goes_on() {
                    client.ask(&client.get(|traffic| &traffic.slow)).await;
                    client.rest_until_wave().await;
                }
            })
        },
    };

    pub const UPLOADING: Self = Self {
        name: "slow upload",
        about: "Sends a body in pieces over a second and compares what comes back byte by byte.",
        keeps: true,
        needs: |traffic| &traffic.upload,
        habit: |client| {
            Box::pin(async move {
                while client.goes_on() {
                    let (upload, pause) = (client.upload(20_000), Duration::from_millis(50));
                    // Both ways to frame a body in turn.
                    let ask = if fastrand::bool() {
                        Ask::of(upload).in_pieces(1_000, pause)
                    } else {
                        Ask::chunked(upload, 1_000, pause)
                    };
                    client.ask(&ask).await;
                    client.rest_until_wave().await;
                }
            })
        },
    };

    pub const IDLE: Self = Self {
        name: "idle",
        about: "Asks once, is silent through all restarts, and asks again on the same socket.",
        keeps: true,
        needs: |traffic| &traffic.fast,
        habit: |client| {
            Box::pin(async move {
                client.ask(&client.fast()).await;
                while client.goes_on() && client.held.is_some() {
                    client.rest(Duration::from_secs(3600)).await;
                }
                client.ask(&client.fast()).await;
            })
        },
    };

    /// All of these, with the number of clients a run has unless told otherwise.
    pub const ALL: [(Self, u32); 7] = [
        (Self::PAUSING, 50),
        (Self::BUSY, 4),
        (Self::FRESH, 4),
        (Self::DAWDLING, 8),
        (Self::SLOW, 2),
        (Self::UPLOADING, 2),
        (Self::IDLE, 50),
    ];
}

/// Clients of one kind, how many, and where they ask.
pub type Group = (Kind, u32, Place);

/// Connections being opened at the same time, so that a backlog is not what gets measured.
const OPENING: usize = 64;

/// Requests that take long come in waves, this far apart: a restart waits for a moment without any, and where they came
/// at any time, such a moment would be rare.
const WAVES: Duration = Duration::from_secs(6);

/// Failures written down in full; beyond that they are only counted.
const FAILURES_KEPT: usize = 500;

/// What the clients of one kind have seen so far.
#[derive(Debug, Default)]
struct Tally {
    seen: Scenario,
    answers: Answers,
    failures: Vec<record::Failure>,
}

/// What all clients share.
#[derive(Debug)]
struct Shared {
    traffic: Traffic,
    started: Instant,
    /// When the first restart began: what was open before is to be open still at the end.
    first_restart: OnceLock<Instant>,
    restarts: watch::Sender<Restarts>,
    notes: Mutex<Vec<Note>>,
    stop: CancellationToken,
    opening: Semaphore,
    groups: Vec<Group>,
    tallies: Vec<Mutex<Tally>>,
}

/// Restarts so far, and whether one is under way.
pub type Restarts = (usize, bool);

/// Of a request that was timed to meet a restart: which one, when it was sent, and whether another process answered.
pub type Note = (usize, f64, bool);

/// A load that is running.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

/// What a load found.
#[derive(Debug, Default)]
pub struct Findings {
    pub scenarios: Vec<Scenario>,
    pub answers: Vec<record::Answer>,
    pub failures: Vec<record::Failure>,
    /// Of each scenario's clients that must keep their connection, those that did not.
    pub moved: u64,
    pub notes: Vec<Note>,
}

impl Load {
    /// Sends the crowd to one place.
    pub fn start(place: impl Into<Place>, traffic: &Traffic, crowd: &[(Kind, u32)]) -> Self {
        let place = place.into();
        Self::start_groups(traffic, crowd.iter().map(|&(kind, count)| (kind, count, place.clone())).collect())
    }

    /// Sends each group to its place.
    pub fn start_groups(traffic: &Traffic, mut groups: Vec<Group>) -> Self {
        groups.retain(|(kind, count, _)| *count > 0 && !(kind.needs)(traffic).is_empty());
        let tally = |(kind, clients, _): &Group| {
            let seen = Scenario {
                name: kind.name.into(),
                about: kind.about.into(),
                clients: u64::from(*clients),
                ..Scenario::default()
            };
            Mutex::new(Tally { seen, ..Tally::default() })
        };
        let shared = Arc::new(Shared {
            traffic: traffic.clone(),
            started: Instant::now(),
            first_restart: OnceLock::new(),
            restarts: watch::Sender::default(),
            notes: Mutex::default(),
            stop: CancellationToken::new(),
            opening: Semaphore::new(OPENING),
            tallies: groups.iter().map(tally).collect(),
            groups,
        });
        let mut clients = JoinSet::new();
        for (scenario, &(kind, count, _)) in shared.groups.iter().enumerate() {
            for _ in 0..count {
                let mut client = Client { shared: shared.clone(), scenario, held: None, window: None };
                clients.spawn(async move {
                    (kind.habit)(&mut client).await;
                    client.end();
                });
            }
        }
        Self { shared, clients }
    }

    /// Seconds since the start.
    pub fn clock(&self) -> f64 {
        self.shared.started.elapsed().as_secs_f64()
    }

    /// What clients of each kind have seen so far.
    fn scenarios(&self) -> Vec<Scenario> {
        self.shared.tallies.iter().map(|tally| lock(tally).seen.clone()).collect()
    }

    /// Every client has been answered at least once.
    pub fn is_settled(&self) -> bool {
        self.scenarios().iter().all(|seen| seen.opened.min(seen.answered) >= seen.clients)
    }

    /// From now on connections that are open count as old.
    pub fn restarts_begin(&self) {
        self.shared.first_restart.get_or_init(Instant::now);
    }

    /// A restart is told now: those ask who want to ask just when the service is handed over.
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
    pub fn totals(&self) -> Scenario {
        Scenario::all(&self.scenarios())
    }

    /// One of the failures so far.
    pub fn a_failure(&self) -> Option<record::Failure> {
        self.shared.tallies.iter().find_map(|tally| lock(tally).failures.first().cloned())
    }

    /// The slowest answer that clients of some kinds had to a request that was under way between two moments: when it
    /// was asked, and how long it took, in milliseconds.
    pub fn slowest_between(&self, kinds: &[Kind], from: f64, to: f64) -> (f64, f64) {
        let mut slowest = (from, 0.0);
        for ((kind, ..), tally) in self.shared.groups.iter().zip(&self.shared.tallies) {
            if kinds.contains(kind)
                && let Some((at, ms)) = lock(tally).answers.slowest_between(from, to)
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
        let mut findings = Findings { notes: std::mem::take(&mut lock(&self.shared.notes)), ..Findings::default() };
        for (index, ((kind, ..), tally)) in self.shared.groups.iter().zip(&self.shared.tallies).enumerate() {
            let Tally { mut seen, answers, mut failures } = std::mem::take(&mut *lock(tally));
            if kind.keeps {
                findings.moved += seen.clients.saturating_sub(seen.kept);
            }
            (seen.median_ms, seen.p99_ms) = (answers.quantile(0.5), answers.quantile(0.99));
            seen.slowest_ms = answers.slowest();
            let of_index = |(at, ms)| record::Answer { scenario: index as u16, at, ms };
            findings.answers.extend(answers.thinned().into_iter().map(of_index));
            findings.failures.append(&mut failures);
            findings.scenarios.push(seen);
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One client.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    scenario: usize,
    /// Its connection.
    pub held: Option<Connection>,
    /// `SO_RCVBUF` of its connections.
    pub window: Option<u32>,
}

impl Client {
    /// Another client that is counted with this one.
    pub fn again(&self) -> Self {
        Self { shared: self.shared.clone(), scenario: self.scenario, held: None, window: self.window }
    }

    /// Where this client asks.
    pub fn place(&self) -> &Place {
        &self.shared.groups[self.scenario].2
    }

    /// What may be asked for.
    pub fn traffic(&self) -> &Traffic {
        &self.shared.traffic
    }

    /// The restarts, to be waited for.
    pub fn restarts(&self) -> watch::Receiver<Restarts> {
        self.shared.restarts.subscribe()
    }

    /// Keeps a note for [`Findings::notes`].
    pub fn note(&self, note: Note) {
        lock(&self.shared.notes).push(note);
    }

    /// Whether the load goes on.
    pub fn goes_on(&self) -> bool {
        !self.shared.stop.is_cancelled()
    }

    /// Seconds since the start.
    pub fn now(&self) -> f64 {
        self.shared.started.elapsed().as_secs_f64()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.shared.tallies[self.scenario])
    }

    /// One of a list of routes that is not empty.
    fn route(&self, of: impl Fn(&Traffic) -> &Vec<Route>) -> &Route {
        let routes = of(&self.shared.traffic);
        &routes[fastrand::usize(..routes.len())]
    }

    /// A fast request. One in four brings a body that exists only once and wants just that back: an
    /// answer that was meant for someone else would be noticed.
    pub fn fast(&self) -> Ask {
        Ask::of(self.fast_request())
    }

    /// The same, for whoever has another protocol.
    pub fn fast_request(&self) -> Request {
        let may_echo = !self.shared.traffic.upload.is_empty() && fastrand::u8(..4) == 0;
        if may_echo { self.upload(64) } else { self.route(|traffic| &traffic.fast).request() }
    }

    /// Sends a body that exists only once.
    pub fn echo(&self, length: usize) -> Ask {
        Ask::of(self.upload(length))
    }

    /// The same, to be framed.
    pub fn upload(&self, length: usize) -> Request {
        self.route(|traffic| &traffic.upload).upload(unique(length))
    }

    /// A request to one of a list of routes that is not empty.
    pub fn get(&self, of: impl Fn(&Traffic) -> &Vec<Route>) -> Ask {
        Ask::of(self.route(of).request())
    }

    /// Makes sure there is a connection that is open as far as one can see; after a refusal there
    /// is none.
    pub async fn open(&mut self) {
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
                self.opened();
                self.held = Some(connection);
            }
            Err(fault) => {
                self.failed(at, fault);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Asks once, and writes down what came of it.
    pub async fn ask(&mut self, ask: &Ask) {
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
    pub async fn rest(&mut self, pause: Duration) {
        self.rest_unless(pause, std::future::pending()).await;
    }

    /// Says nothing until soon after the next wave begins.
    pub async fn rest_until_wave(&mut self) {
        let since = self.now() % WAVES.as_secs_f64();
        self.rest(WAVES - Duration::from_secs_f64(since) + between(0, 1_000)).await;
    }

    /// Whether it is so early in a wave that a request of seconds may begin.
    pub fn wave_begins(&self) -> bool {
        self.now() % WAVES.as_secs_f64() < 1.0
    }

    /// Says nothing for a while; the rest ends when something else does.
    pub async fn rest_unless(&mut self, pause: Duration, other: impl Future<Output = ()>) {
        let over = self.shared.stop.clone();
        let stop = async {
            tokio::select! {
                () = over.cancelled() => {}
                () = other => {}
            }
        };
        let mut held = self.held.take();
        let rest = async {
            match &mut held {
                Some(connection) => connection.rest(pause).await,
                None => {
                    tokio::time::sleep(pause).await;
                    Ok(Stays::Open)
                }
            }
        };
        let rested = tokio::select! {
            rested = rest => rested,
            () = stop => Ok(Stays::Open),
        };
        match rested {
            Ok(Stays::Open) => self.held = held,
            Ok(Stays::Announced) => {}
            Err(fault) => self.failed(self.now(), fault),
        }
    }

    /// Counts a connection.
    pub fn opened(&self) {
        self.tally().seen.opened += 1;
    }

    /// Counts the answer to a request that was sent at `at`.
    pub fn answered(&self, at: f64) {
        let ms = ((self.now() - at) * 1e3) as f32;
        let mut tally = self.tally();
        tally.seen.answered += 1;
        tally.answers.push((at, ms));
    }

    /// Counts a failure. A request that is lost with its connection counts as both.
    pub fn failed(&self, at: f64, fault: Fault) {
        let mut tally = self.tally();
        let Tally { seen, failures, .. } = &mut *tally;
        let mut note = |kind: &str, what: &str| {
            if failures.len() < FAILURES_KEPT {
                let scenario = self.scenario as u16;
                failures.push(record::Failure { scenario, at, kind: kind.into(), what: what.into() });
            }
        };
        match fault {
            Fault::Refused(what) => {
                seen.refused += 1;
                note("refused", &what);
            }
            Fault::Closed(what) => {
                seen.closed += 1;
                note("closed", &what);
            }
            Fault::Lost { what, closed } => {
                if closed {
                    seen.closed += 1;
                    note("closed", &what);
                }
                seen.lost += 1;
                note("lost", &what);
            }
        }
    }

    /// Counts the connection that lived through all restarts.
    fn end(mut self) {
        let Some(connection) = self.held.take() else { return };
        if self.shared.first_restart.get().is_some_and(|first| connection.opened < *first) {
            self.tally().seen.kept += 1;
        }
        connection.abort();
    }
}

/// A pause of so many milliseconds.
pub fn between(least: u64, most: u64) -> Duration {
    Duration::from_millis(fastrand::u64(least..=most))
}

/// Bytes that occur nowhere else.
fn unique(length: usize) -> Vec<u8> {
    std::iter::repeat_with(fastrand::alphanumeric).map(|c| c as u8).take(length).collect()
}
