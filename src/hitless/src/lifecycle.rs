//! The life of the process: ready, leaving, gone. One number governs the end, [`ShutdownTimeout`].

use std::fmt;
use std::io::Write;
use std::process::{ExitCode, Termination};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use super::connections::{Cut, Gate, Limits, Mode, Obstacle};
use super::parcel::{Clean, Parcel};
use super::sibling::{self, Door, Siblings};
use super::systemd;

/// How long connections that are paused wait for a request that nothing bounds but its client.
const UNBOUNDED: Duration = Duration::from_millis(100);

/// The same beside handlers at work, for which everybody waits in any case: what goes on has not been waited for yet.
const UNBOUNDED_BESIDE_WORK: Duration = Duration::from_millis(400);

/// How long clients of HTTP/2 that are told to go have to hear, before the connections are paused.
const HEARS_WITHIN: Duration = Duration::from_millis(300);

/// A calm moment is one at which every request in flight began, and ends, within this time.
const CALM: Duration = Duration::from_millis(100);

/// How long a service that leaves waits, at the least, for a new connection's first request, and for HTTP/2 connections
/// without one to say goodbye.
const FRESH: Duration = Duration::from_millis(500);

/// How often is looked at what the connections hold, at the least.
const RELIEVE_PAUSE: Duration = Duration::from_millis(100);

/// How many of the requests that were cut off are told one by one, and how many of those that were left behind.
const TOLD: usize = 20;

/// T: how long the process may take to leave, and what follows from it.
///
/// ```text
/// 0                   T/3                           5T/6     T
/// signal               |                             |       |
/// |-- tries at calm ---|-- handlers at work end, ----|-------|  whatever is left is cut
/// |   moments          |   T/2 at most               | HTTP/2 says goodbye
/// |-- tries, while nothing but streams and clients that stand still are in the way -| last moment
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownTimeout(Duration);

impl Default for ShutdownTimeout {
    /// 30 s.
    fn default() -> Self {
        Self(Duration::from_secs(30))
    }
}

impl ShutdownTimeout {
    /// The shortest T.
    pub const MIN: Duration = Duration::from_secs(1);
    /// The longest T.
    pub const MAX: Duration = Duration::from_secs(3600);
    /// What systemd waits longer than the process itself takes.
    const MARGIN: Duration = Duration::from_secs(3);

    /// A T between [`Self::MIN`] and [`Self::MAX`].
    pub fn new(timeout: Duration) -> Option<Self> {
        (Self::MIN..=Self::MAX).contains(&timeout).then_some(Self(timeout))
    }

    /// T itself.
    pub fn total(self) -> Duration {
        self.0
    }

    /// The longest that any request may take: T/2.
    pub fn request(self) -> Duration {
        self.0 / 2
    }

    /// The longest that the service waits for a calm moment: T/3, so that the requests of that moment end before T.
    pub(crate) fn calm(self) -> Duration {
        self.0 / 3
    }

    /// When the service stops waiting for what nothing bounds but its clients: T/30 before T, and 1 s at the most, as
    /// everybody waits from then on.
    pub(crate) fn last_moment(self) -> Duration {
        self.0 - (self.0 / 30).min(Duration::from_secs(1))
    }

    /// The same where connections are then paused: not so late that nobody could be told goodbye any more.
    pub(crate) fn last_pause(self) -> Duration {
        self.last_moment().min(self.0 - (CALM + UNBOUNDED * 2))
    }

    /// From when on a service that has found no calm moment says that it is not ready: T/4, so that whoever asks turns
    /// elsewhere before everybody has to wait, which is from T/3 on.
    pub(crate) fn turn_away(self) -> Duration {
        self.0 / 4
    }

    /// How long a service that cannot hand over goes on accepting at the least, the longest that a request's head may take,
    /// and how long HTTP/2 clients have for their goodbye where a sibling serves the others: T/6.
    pub fn sixth(self) -> Duration {
        self.0 / 6
    }

    /// `TimeoutStopSec=` of the unit: T and a margin.
    pub fn unit_stop(self) -> Duration {
        self.0 + Self::MARGIN
    }
}

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not ready yet.
    Starting,
    /// Ready.
    Serving,
    /// Told to leave, still serving (a lame duck).
    Leaving {
        /// When it was told.
        since: Instant,
        /// Whoever is sent here is served at once.
        ready: bool,
    },
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Leaving { .. } => "leaving",
        })
    }
}

/// Why the process leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A stop by the service manager, or an operator: `SIGTERM`.
    Terminate,
    /// A developer's Ctrl-C: `SIGINT`. Quick.
    Interrupt,
    /// A restart by the service manager, or the terminal was closed: `SIGHUP`.
    Hangup,
    /// A task has ended that the service cannot do without: the process is to make way for another.
    Failure,
}

/// How leaving ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Connections handed to a sibling, or to the next process.
    pub handed_over: usize,
    /// What was still there at T.
    pub cut: Vec<Cut>,
    /// What went on because of its client, or without end, and was cut for the sake of the others.
    pub left_behind: Vec<Cut>,
    /// Work that had to end before the process, and had not at T.
    pub unfinished: usize,
    /// Connections that could not be handed over.
    pub lost: usize,
    /// Nobody has told it to leave: it could not go on.
    pub failed: bool,
}

/// As what `main` gives: success, unless something was lost or cut.
impl Termination for Outcome {
    fn report(self) -> ExitCode {
        ExitCode::from(&self)
    }
}

impl From<&Outcome> for ExitCode {
    fn from(outcome: &Outcome) -> Self {
        if outcome.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// What handlers and background tasks see of the process' life.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    timeout: ShutdownTimeout,
    phase: watch::Receiver<Phase>,
    tasks: TaskTracker,
}

impl Handle {
    /// Where the process is in its life.
    pub fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    /// Whether whoever is sent here now is served at once. A service that leaves is ready as long as that is so: it hands
    /// its connections over within a moment.
    pub fn is_ready(&self) -> bool {
        matches!(self.phase(), Phase::Serving | Phase::Leaving { ready: true, .. })
    }

    /// Waits until the process is told to leave.
    ///
    /// For what lasts: a stream of events ends, a WebSocket is closed with 1012 (service restart), a loop stops.
    pub async fn draining(&self) {
        let mut phase = self.0.phase.clone();
        // The sender outlives every handler; should it go, the process is leaving all the same.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Leaving { .. })).await;
    }

    /// How much of T is left, once the process was told to leave.
    pub fn remaining(&self) -> Option<Duration> {
        match self.phase() {
            Phase::Leaving { since, .. } => Some(self.0.timeout.total().saturating_sub(since.elapsed())),
            Phase::Starting | Phase::Serving => None,
        }
    }

    /// Runs work that must end before the process does. The process waits for it, until T.
    ///
    /// Work that goes on by itself has to watch [`draining`](Self::draining).
    pub fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.0.tasks.spawn(work)
    }
}

/// Leads the process through its life.
#[derive(Debug)]
pub struct Lifecycle {
    handle: Handle,
    phase: watch::Sender<Phase>,
    quiesced: CancellationToken,
    siblings: Option<Siblings>,
    succession: Succession,
    at_last: Option<mpsc::Sender<Life>>,
}

/// What the thread is told that ends the process at last.
#[derive(Debug)]
enum Life {
    Leaving,
    /// And whether that went well.
    Left(bool),
}

/// How long a program may go on after it has left: it may write its log, and drop a runtime one of whose threads is blocked.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Whether another process follows this one, for which the service manager keeps the connections meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// Never: the listening sockets are this process' own. They, and perhaps the network that they are in, end with it.
    None,
    /// After every end, as far as this process can tell.
    Always,
    /// Not after a stop, which is told by `SIGTERM`, and a restart is not (`RestartKillSignal=`).
    AfterRestart,
}

impl Lifecycle {
    /// A life that is about to begin.
    pub fn new(timeout: ShutdownTimeout) -> Self {
        let (sender, phase) = watch::channel(Phase::Starting);
        let handle = Handle(Arc::new(Shared { timeout, phase, tasks: TaskTracker::new() }));
        let quiesced = CancellationToken::new();
        Self { handle, phase: sender, quiesced, siblings: None, succession: Succession::None, at_last: None }
    }

    /// The same, among siblings.
    pub fn among(self, siblings: Option<Siblings>) -> Self {
        Self { siblings, ..self }
    }

    /// The same, where the service manager starts another process afterwards.
    pub fn followed(self, succession: Succession) -> Self {
        Self { succession, ..self }
    }

    /// The same, where the process ends a little after T even when the runtime no longer runs, because handlers block all
    /// its threads; and soon after it has left, even when something keeps `main` from returning. The thread that sees to it is
    /// there from the start: later, there may be none to be had.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn ended_at_last(self) -> std::io::Result<Self> {
        let limit = self.handle.0.timeout.total() + ShutdownTimeout::MARGIN / 2;
        let (sender, life) = mpsc::channel();
        std::thread::Builder::new().name("end at last".to_owned()).spawn(move || {
            // A process that never begins to leave needs no end.
            if life.recv().is_err() {
                return;
            }
            let since = Instant::now();
            if let Ok(Life::Left(well)) = life.recv_timeout(limit) {
                std::thread::sleep(ENDS_WITHIN);
                std::process::exit(i32::from(!well));
            }
            std::thread::sleep(limit.saturating_sub(since.elapsed()));
            // Whoever reads it may have gone.
            let _ =
                writeln!(std::io::stderr(), "the process did not end by T: handlers may block the runtime's threads");
            std::process::exit(1);
        })?;
        Ok(Self { at_last: Some(sender), ..self })
    }

    fn tell_at_last(&self, life: Life) {
        if let Some(at_last) = &self.at_last {
            // Cannot fail: the thread waits for it.
            let _ = at_last.send(life);
        }
    }

    /// What handlers and tasks see of it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Resolves when axum may close what is left: no HTTP/1.1 connection is, that could have been handed over.
    pub fn quiesced(&self) -> WaitForCancellationFutureOwned {
        self.quiesced.clone().cancelled_owned()
    }

    /// Enters that the service serves, behind `gate`: siblings may hand their connections in, at the door.
    pub fn serving(&self, gate: &Arc<Gate>) -> Option<Door> {
        self.phase.send_replace(Phase::Serving);
        let door = self.siblings.as_ref().map(|siblings| siblings.open_door(Arc::clone(gate))).transpose();
        systemd::ready();
        door.unwrap_or_else(|error| {
            tracing::error!("instances that leave cannot hand their connections to this one: {error}");
            None
        })
    }

    /// Leaves: hands the connections over, to a sibling or the next process, or retires them where there is nobody to
    /// take them. Ends at T.
    ///
    /// `server` is axum's: told by [`quiesced`](Self::quiesced) that it may end, it does not say when it has.
    pub async fn leave(&self, gate: &Gate, door: Option<Door>, reason: Reason, server: AbortHandle) -> Outcome {
        let since = Instant::now();
        self.tell_at_last(Life::Leaving);
        let timeout = self.handle.0.timeout;
        let deadline = tokio::time::Instant::from_std(since + timeout.total());
        let ready = self.siblings.is_some() || self.successor(reason).is_ok();
        self.phase.send_replace(Phase::Leaving { since, ready });
        gate.set_mode(Mode::HandingOver);
        systemd::stopping(timeout.unit_stop());
        if let Some(door) = door {
            door.close().await;
        }

        let mut outcome = Outcome { failed: reason == Reason::Failure, ..Outcome::default() };
        let mut parcel = None;
        let mut paused: Option<Instant> = None;
        // It keeps to T by itself: whoever stopped it would not know whose the connections on their way are.
        let given = self.give(gate, since, &mut outcome.handed_over).await;
        let in_time = tokio::time::timeout_at(deadline, async {
            if !given {
                let opened = match self.successor(reason) {
                    // It waits for the service manager, which may be busy with itself, and requests are still served.
                    Ok(()) => Parcel::open(timeout.calm()).await,
                    Err(nobody) => Err(nobody),
                };
                let refused = match opened {
                    Ok(opened) => {
                        let opened = parcel.insert(opened);
                        paused = Some(self.take_all(gate, since).await);
                        opened.is_kept().err()
                    }
                    Err(error) => Some(error),
                };
                if let Some(error) = refused {
                    parcel = None;
                    gate.open();
                    self.retire(gate, since, reason, &error).await;
                }
                self.quiesced.cancel();
            }
            let (unbounded, goodbye) = match paused {
                Some(paused) if parcel.is_some() => (UNBOUNDED.saturating_sub(paused.elapsed()), UNBOUNDED),
                // Where a sibling has the others, or nobody comes, nobody waits for what goes on here.
                _ => (timeout.total(), if given { timeout.sixth() } else { FRESH }),
            };
            gate.all_gone(unbounded, goodbye).await;
            self.handle.0.tasks.close();
            self.handle.0.tasks.wait().await;
        })
        .await;

        server.abort();
        (outcome.cut, outcome.left_behind) = gate.left().into_iter().partition(|cut| cut.at_work);
        if in_time.is_err() {
            outcome.unfinished = self.handle.0.tasks.len();
        }
        let mut connections = gate.take();
        let count = connections.len();
        let mut packed = 0;
        if let Some(parcel) = parcel {
            packed = parcel.pack(&mut connections).unwrap_or_else(|(packed, error)| {
                tracing::error!("the parcel takes {packed} of {count} connections: {error}");
                packed
            });
            // Their descriptors here end with the process, which is next: it would take 4 ms to close 10,000 one by one.
            std::mem::forget(connections);
        }
        outcome.handed_over += packed;
        outcome.lost = count - packed;
        outcome.log(since.elapsed());
        self.tell_at_last(Life::Left(outcome.is_good()));
        outcome
    }

    /// Gives every connection to the siblings, each as soon as it is clean: they serve everybody else meanwhile, so nobody
    /// has to be waited for. Counts those `given`. False when there is no sibling that takes them (all).
    async fn give(&self, gate: &Gate, since: Instant, given: &mut usize) -> bool {
        let Some(siblings) = &self.siblings else { return false };
        let timeout = self.handle.0.timeout;
        let left = |until: Duration| until.saturating_sub(since.elapsed());
        let hand_in = async |pid: u32, connections: &[Clean]| {
            sibling::hand_in(&siblings.door(pid), connections, left(timeout.total()) / 2).await.inspect_err(|error| {
                tracing::warn!("the instance with process id {pid} does not take connections: {error}");
            })
        };
        // How many connections each of them has, as far as it says so.
        let mut takers = Vec::new();
        for pid in siblings.pids().unwrap_or_default() {
            if let Ok(taken) = hand_in(pid, &[]).await {
                tracing::info!("the instance with process id {pid} takes connections");
                takers.push((taken.has.unwrap_or(0), pid));
            }
        }
        if takers.is_empty() {
            return false;
        }
        gate.close();
        loop {
            let taken = tokio::time::timeout(left(timeout.last_moment()), gate.next_taken());
            let Ok(Some(mut connections)) = taken.await else {
                self.quiesced.cancel();
                return true;
            };
            while !connections.is_empty() {
                takers.sort_unstable();
                let Some(&(has, pid)) = takers.first() else {
                    gate.put(connections);
                    gate.open();
                    return false;
                };
                // So many that it would have as many as each of those that get any in the end.
                let mut all = connections.len();
                let shares = takers.iter().zip(1..).map(|((has, _), count)| {
                    all += has;
                    all.div_ceil(count)
                });
                let lot = shares.min().map_or(0, |fewest| fewest - has).min(connections.len());
                match hand_in(pid, &connections[..lot]).await {
                    Ok(taken) => {
                        connections.drain(..taken.count);
                        *given += taken.count;
                        takers[0].0 = taken.has.unwrap_or(has + taken.count);
                    }
                    // What it has refused, for want of descriptors perhaps, it would refuse again.
                    Err(_) => {
                        takers.swap_remove(0);
                    }
                }
            }
        }
    }

    /// Whether there will be a process to hand connections over to.
    ///
    /// # Errors
    /// When nobody comes, with the reason.
    fn successor(&self, reason: Reason) -> std::io::Result<()> {
        let nobody = match (self.succession, reason) {
            (Succession::None, _) => "no service manager keeps the listening sockets",
            (Succession::AfterRestart, Reason::Terminate) => {
                "the service is stopped. Unless its socket unit is stopped too, that still listens, and the next client \
                 starts the service again"
            }
            (Succession::Always | Succession::AfterRestart, _) => return Ok(()),
        };
        Err(std::io::Error::other(nobody))
    }

    /// Takes every clean connection out of hyper, at a moment when that keeps nobody waiting.
    ///
    /// That no request in flight is old does not tell how long they will take. So this is a try: when they take long,
    /// the gate opens again, and what was taken is served on. After T/3 it stays closed, and everybody waits for handlers
    /// at work: their time is bounded. For what nothing bounds, everybody is served on until shortly before T. Gives the
    /// moment from which on everybody waits.
    async fn take_all(&self, gate: &Gate, start: Instant) -> Instant {
        let timeout = self.handle.0.timeout;
        let paused = loop {
            let mut obstacle = gate.obstacle(CALM);
            if obstacle == Obstacle::None && !self.handle.0.tasks.is_empty() {
                obstacle = Obstacle::Unbounded;
            }
            let bounded = obstacle == Obstacle::Bounded;
            self.set_ready(!bounded || start.elapsed() < timeout.turn_away());
            let patience = if obstacle == Obstacle::Unbounded { timeout.last_pause() } else { timeout.calm() };
            let last = start.elapsed() >= patience;
            if obstacle == Obstacle::None || last {
                let left = (timeout.total() - UNBOUNDED * 2).saturating_sub(start.elapsed());
                gate.tell_http2(HEARS_WITHIN.min(left)).await;
                if !last {
                    if gate.obstacle(CALM) != Obstacle::None {
                        gate.open();
                        tokio::time::sleep(CALM).await;
                        continue;
                    }
                    gate.thin_out(timeout.total() / 30).await;
                }
                tracing::debug!("the gate closes");
                let paused = Instant::now();
                gate.close();
                if last {
                    // There is no way back, and nothing to try.
                    let patience = if bounded { UNBOUNDED_BESIDE_WORK } else { UNBOUNDED };
                    let slowest = gate.slowest().map(|cut| cut.to_string()).unwrap_or_default();
                    tracing::warn!("no calm moment: clients wait for what is in flight, above all {slowest}");
                    let _ = tokio::time::timeout(timeout.request(), gate.taken_but_for_unbounded(patience)).await;
                    break paused;
                }
                if tokio::time::timeout(CALM, gate.taken(Some(Instant::now()))).await.is_ok() {
                    break paused;
                }
                gate.open();
                tokio::time::sleep(CALM).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        tracing::info!("the gate is closed after {:?}", start.elapsed());
        paused
    }

    /// Tells whoever asks from now on whether to turn elsewhere.
    fn set_ready(&self, is_ready: bool) {
        self.phase.send_if_modified(|phase| match phase {
            Phase::Leaving { ready, .. } => std::mem::replace(ready, is_ready) != is_ready,
            Phase::Starting | Phase::Serving => false,
        });
    }

    /// Lets connections end: as a lame duck first, so that load balancers and clients can turn away.
    async fn retire(&self, gate: &Gate, since: Instant, reason: Reason, why: &std::io::Error) {
        self.set_ready(false);
        let grace = match reason {
            Reason::Interrupt | Reason::Failure => Duration::ZERO,
            Reason::Terminate | Reason::Hangup => self.handle.0.timeout.sixth(),
        };
        tracing::info!("connections are not handed over but retired, new ones served for {grace:?}: {why}");
        gate.set_mode(Mode::Retiring);
        tokio::time::sleep(grace / 2).await;
        // Whoever has not asked meanwhile is told by the end of its connection, while it can still come back: nobody who
        // comes at the very end is sure to be served.
        gate.expire_idle(grace / 2);
        tokio::time::sleep(grace / 2).await;
        if !grace.is_zero() {
            // The process is there as long as slow requests are: others need not wait for them in the kernel's queue,
            // which is thrown away where the socket unit is stopped, too. What is asked until T/3, and read until T/2, has
            // the time that a request may take.
            let calm = async {
                while gate.obstacle(CALM) == Obstacle::Bounded {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let _ = tokio::time::timeout(self.handle.0.timeout.calm().saturating_sub(since.elapsed()), calm).await;
        }
        gate.set_mode(Mode::Retired);
        // Who has just connected is still to ask; who never does is not waited for.
        let _ = tokio::time::timeout(grace.max(FRESH), gate.heads_read()).await;
    }
}

impl Outcome {
    /// Nothing was lost or cut for which the service is to blame, and somebody has told it to leave.
    fn is_good(&self) -> bool {
        self.cut.is_empty() && self.unfinished == 0 && self.lost == 0 && !self.failed
    }

    fn log(&self, took: Duration) {
        // Clients choose how many there are.
        for cut in self.cut.iter().take(TOLD).chain(self.left_behind.iter().take(TOLD)) {
            let Cut { peer, request, age, at_work } = cut;
            let method = request.as_ref().map(|(method, _)| method.as_str());
            let path = request.as_ref().map(|(_, path)| path);
            if *at_work {
                tracing::error!(%peer, method, path, ?age, "cut off at T: {cut}");
            } else {
                tracing::warn!(%peer, method, path, ?age, "left behind, as it waits for its client or has no end: {cut}");
            }
        }
        let Self { handed_over, cut, left_behind, unfinished, lost, failed: _ } = self;
        let (cut, left_behind) = (cut.len(), left_behind.len());
        if ExitCode::from(self) == ExitCode::SUCCESS {
            tracing::info!("left after {took:?}, {handed_over} connections handed over, {left_behind} left behind");
        } else {
            tracing::error!(
                "left after {took:?}, {handed_over} connections handed over, {left_behind} left behind, {lost} lost; \
                 {cut} requests and {unfinished} tasks cut off"
            );
        }
    }
}

/// Handles the signals that tell the process to leave, and waits for the first of them. From then on a second one of
/// the same kind ends the process at once.
///
/// # Errors
/// When signals cannot be handled.
pub fn told_to_leave() -> std::io::Result<impl Future<Output = Reason> + Send + use<>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        let (reason, mut again) = tokio::select! {
            _ = terminate.recv() => (Reason::Terminate, terminate),
            _ = interrupt.recv() => (Reason::Interrupt, interrupt),
            _ = hangup.recv() => (Reason::Hangup, hangup),
        };
        tracing::info!("told to leave ({reason:?})");
        tokio::spawn(async move {
            again.recv().await;
            // Not by tracing: nobody writes after this what waits to be written.
            let _ = writeln!(std::io::stderr(), "told to leave a second time ({reason:?}): ending at once");
            std::process::exit(1);
        });
        reason
    })
}

/// Resolves when one of the tasks ends that run for as long as the process does, and says so in the log.
pub async fn failure(machinery: &mut JoinSet<()>, door: &mut Option<Door>) -> Reason {
    let door = async {
        match door {
            Some(door) => door.ended().await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        Some(ended) = machinery.join_next() => ended,
        ended = door => ended,
    };
    let why = ended.map_or_else(|error| error.to_string(), |()| "a task has ended".to_owned());
    tracing::error!("the service cannot go on, and leaves to be started anew: {why}");
    Reason::Failure
}

/// Keeps ending what has reached its limit.
pub async fn expire(gate: Arc<Gate>) {
    let Limits { header_timeout, body_timeout, send_timeout, idle_timeout, linger_timeout, .. } = *gate.limits();
    let shortest = header_timeout.min(body_timeout).min(send_timeout).min(idle_timeout).min(linger_timeout);
    let pause = (shortest / 8).clamp(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        tokio::time::sleep(pause).await;
        gate.expire();
    }
}

/// Keeps what the connections hold within its limit.
pub async fn relieve(gate: Arc<Gate>) {
    loop {
        gate.taken_in(RELIEVE_PAUSE).await;
        gate.relieve();
    }
}

/// Keeps telling the service manager how the service is, for `systemctl status` and scripts: "serving 12 connections;
/// 3456 requests, 2 failed".
pub async fn report(gate: Arc<Gate>, handle: Handle) {
    let mut told = String::new();
    let mut phase = handle.0.phase.clone();
    loop {
        let (answered, failed) = gate.counts();
        let status = format!("{} {} connections; {answered} requests, {failed} failed", handle.phase(), gate.len());
        if status != told && systemd::status(&status) {
            told = status;
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), phase.changed()).await;
    }
}

#[cfg(all(test, feature = "proofs"))]
#[rustfmt::skip]
#[path = "../tests/unit/lifecycle.rs"]
mod tests;
