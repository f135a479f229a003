//! Clients that say and do anything at random, while the service is restarted again and again: a fuzzer of whole
//! connections against the process that is shipped.
//!
//! What a client says, in which pieces, how it reads and how it leaves follows from its number alone (see
//! [`babble`](crate::babble)); `--seed` has the storm begin with that one. What is held to:
//!
//! - well-behaved clients beside them lose nothing, and none of their connections, but for what HTTP/2 may lose;
//! - nothing panics, nothing is logged as an error, no answer is a 500;
//! - every process that is restarted ends well, and in the time that its unit gives it;
//! - each connection is ended by the service when its client waits for that;
//! - once the clients have gone, the service has as many descriptors, threads and connections as before, and about as
//!   much memory.
//!
//! Apart from these nothing has a bound in time, so the machine may be busy.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::attack::{SHORT, T};
use crate::babble::{Case, Leaves, Reads};
use crate::kinds;
use crate::manager::{Manager, Service, describe};
use crate::template;
use lab::load::{Kind, Load};
use lab::record::Scenario;
use lab::rehearse::Outcome;
use lab::stage::setting;
use lab::subject::Subject;
use lab::traffic::{Traffic, flat};

/// How long a storm takes, and where it begins.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Half of them against the service, half against the example of what lasts.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub seconds: u64,
    /// The number of the first client; any when left out. A storm says where it began.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Nobody but the first client, again and again.
    #[arg(long, requires = "seed")]
    pub alone: bool,
}

/// Who behaves, and loses nothing. Nobody among them takes so long that a restart would leave him behind: among clients
/// that stand still at any time, it need not wait for them.
const CROWD: &[(Kind, u32)] = &[(Kind::PAUSING, 8), (Kind::BUSY, 1), (Kind::FRESH, 1)];

/// Who behaves as well, and has 0.3 s to hear that it is to go, which is too short now and then where the machine is busy: of a
/// thousand requests one may be lost.
const POLITE: &[(Kind, u32)] = &[(kinds::HTTP2, 1)];

/// Clients of the storm at the same time.
const CLIENTS: usize = 48;

/// Restarts between two calms, in which it is looked at what is left.
const RESTARTS: usize = 4;

/// How long at the most the service may take to end a connection whose client waits for that: all of its limits and a
/// restart, one after the other, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long a client that reads nothing does so.
const STANDSTILL: Duration = Duration::from_secs(4);

/// How much of the answers is kept, in bytes.
const BEGINNING: usize = 64;

/// How much of a line of the log is told, in bytes.
const LINE: usize = 800;

/// Descriptors, and connections, that the service may have more than before: well-behaved clients come and go.
const MORE: usize = 8;

/// Memory that it may keep, in MB: the allocator gives it back when it likes.
const KEPT: u64 = 100;

/// Lets the storm rage against the service, and then against the example of what lasts.
pub async fn storm(options: &Options) -> anyhow::Result<Outcome> {
    let subject = Subject::find(&std::env::current_dir()?).await?;
    let traffic = Traffic { shutdown_timeout: T, ..Traffic::of(&subject)? };
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("storm from {seed}");
    let time = Duration::from_secs(options.seconds) / 2;
    let next = Arc::new(AtomicU64::new(seed));
    for binary in template::build_checked(&subject, "live").await? {
        let storm = Storm { name: &subject.name, traffic: &traffic, alone: options.alone, next: next.clone() };
        if let Err(error) = storm.rage(&binary, time).await {
            println!("the last of these clients was {}", next.load(Relaxed));
            return Err(error);
        }
    }
    Ok(Outcome::Kept)
}

/// What both have in common.
struct Storm<'a> {
    name: &'a str,
    traffic: &'a Traffic,
    alone: bool,
    /// The number of the next client.
    next: Arc<AtomicU64>,
}

/// What the service has.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    threads: usize,
    /// In MB.
    memory: u64,
}

impl Storm<'_> {
    async fn rage(&self, binary: &Path, time: Duration) -> anyhow::Result<()> {
        let mut manager = Manager::new(binary).env(setting(self.name, "log.format"), "json").timeout_stop(T * 2);
        // Those of the storm go first.
        for (key, value) in flat(&self.traffic.settings) {
            manager = manager.env(setting(self.name, &key), value);
        }
        for (key, value) in SHORT {
            manager = manager.env(setting(self.name, key), value);
        }
        let mut service = manager.start().await?;
        let load = Load::start(service.address(), self.traffic, CROWD);
        let polite = Load::start(service.address(), self.traffic, POLITE);
        let settled = async {
            while !(load.is_settled() && polite.is_settled()) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, settled).await.context("nobody is answered before the storm")?;
        load.restarts_begin();
        let before = held(&service)?;
        let (began, from) = (Instant::now(), self.next.load(Relaxed));
        let (mut restarts, mut most) = (0, before);
        while began.elapsed() < time {
            let crowd = Crowd::gather(service.address(), &self.next, self.alone);
            let mut raged = Ok(());
            for _ in 0..RESTARTS {
                sleep(Duration::from_millis(fastrand::u64(300..1_500))).await;
                raged = restart(&mut service).await;
                restarts += 1;
                if raged.is_err() {
                    break;
                }
            }
            sleep(Duration::from_secs(1)).await;
            crowd.disperse().await?;
            raged?;
            most.memory = most.memory.max(calm(&service, before).await?.memory);
            if let Some(failure) = load.a_failure() {
                let (at, what) = (failure.at, format!("{}: {}", failure.kind, failure.what));
                bail!("a well-behaved client, after {at:.3} s: {what}; the log:\n{}", tail(&service));
            }
        }
        let findings = load.finish().await;
        findings.spotless()?;
        let polite = polite.finish().await;
        let Scenario { answered, lost, .. } = Scenario::all(&polite.scenarios);
        ensure!(lost * 1_000 <= answered, "{lost} of {answered} requests of HTTP/2 are lost: {:?}", polite.failures);
        restart(&mut service).await?;
        println!(
            "{}: {} clients at random, {restarts} restarts, {} requests beside, {} MB at rest: all as it should be",
            binary.file_name().unwrap_or_default().display(),
            self.next.load(Relaxed) - from,
            answered + Scenario::all(&findings.scenarios).answered,
            most.memory,
        );
        Ok(())
    }
}

/// Restarts the service, and holds that the process that ends does so well.
async fn restart(service: &mut Service) -> anyhow::Result<()> {
    let status = service.restart().await?;
    ensure!(status.success(), "the process that was restarted {}; its log:\n{}", describe(status), tail(service));
    innocent(service)
}

/// Holds that the service has nothing to regret.
fn innocent(service: &Service) -> anyhow::Result<()> {
    let log = service.log();
    let mut leaves = false;
    let regrets = |line: &&str| {
        leaves = !line.contains("serving on") && (leaves || line.contains("told to leave"));
        // A service that leaves and has found no calm moment yet is not ready, and says so to whoever asks.
        let is_unready = leaves && line.contains("/readyz: 503");
        line.contains("panicked") || (line.contains("\"level\":\"ERROR\"") && !is_unready)
    };
    match log.lines().find(regrets) {
        Some(line) => bail!("the service says {}", line.get(..LINE).unwrap_or(line)),
        None => Ok(()),
    }
}

/// Holds that nothing is left of the storm, within the time that limits take.
async fn calm(service: &Service, before: Held) -> anyhow::Result<Held> {
    let began = Instant::now();
    loop {
        let now = held(service)?;
        let connections = connections(service).unwrap_or_default();
        let left = [
            ("descriptors", now.descriptors, before.descriptors + MORE),
            ("threads", now.threads, before.threads + MORE),
            ("connections", connections, clients() + MORE),
        ];
        let Some((what, count, most)) = left.into_iter().find(|(_, count, most)| count > most) else {
            innocent(service)?;
            let memory = before.memory + KEPT;
            ensure!(now.memory <= memory, "it keeps {} MB of memory, more than {memory}", now.memory);
            return Ok(now);
        };
        ensure!(began.elapsed() < PATIENCE, "{count} {what} are left, more than {most}; the log:\n{}", tail(service));
        sleep(Duration::from_millis(50)).await;
    }
}

/// How many well-behaved clients there are.
fn clients() -> usize {
    CROWD.iter().chain(POLITE).map(|(_, count)| *count as usize).sum()
}

fn held(service: &Service) -> anyhow::Result<Held> {
    let process = format!("/proc/{}", service.pid().context("the service has ended")?);
    let count = |what: &str| anyhow::Ok(std::fs::read_dir(format!("{process}/{what}"))?.count());
    let status = std::fs::read_to_string(format!("{process}/status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
    let memory = memory.context("no VmRSS")?.trim().parse::<u64>()? / 1024;
    Ok(Held { descriptors: count("fd")?, threads: count("task")?, memory })
}

/// How many connections the service says it has: "serving 12 connections; ...".
fn connections(service: &Service) -> Option<usize> {
    let said = service.messages().into_iter().rev().find_map(|message| message.get("STATUS").map(String::from))?;
    said.split(' ').nth(1)?.parse().ok()
}

/// The end of the log.
fn tail(service: &Service) -> String {
    let log = service.log();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Clients of a storm, of whom there are always as many.
struct Crowd {
    enough: CancellationToken,
    clients: JoinSet<anyhow::Result<()>>,
}

impl Crowd {
    fn gather(address: SocketAddr, next: &Arc<AtomicU64>, alone: bool) -> Self {
        let enough = CancellationToken::new();
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (enough, next) = (enough.clone(), next.clone());
            clients.spawn(async move {
                while !enough.is_cancelled() {
                    let seed = if alone { next.load(Relaxed) } else { next.fetch_add(1, Relaxed) };
                    play(&Case::new(seed), address).await?;
                }
                Ok(())
            });
        }
        Self { enough, clients }
    }

    /// Lets each come to its end.
    async fn disperse(mut self) -> anyhow::Result<()> {
        self.enough.cancel();
        while let Some(client) = self.clients.join_next().await {
            client??;
        }
        Ok(())
    }
}

/// Does what a client does, from its first byte to its last, and holds that the service ends its connection.
async fn play(case: &Case, address: SocketAddr) -> anyhow::Result<()> {
    let socket = TcpSocket::new_v4()?;
    if case.reads != Reads::All {
        socket.set_recv_buffer_size(4096)?;
    }
    let socket = timeout(PATIENCE, socket.connect(address)).await.with_context(|| format!("not accepted: {case:?}"))?;
    let mut socket = socket.with_context(|| format!("not connected: {case:?}"))?;
    socket.set_nodelay(true)?;

    let mut first = Vec::new();
    let (mut reader, mut writer) = socket.split();
    let write = async {
        for (pause, piece) in &case.pieces {
            sleep(*pause).await;
            if writer.write_all(piece).await.is_err() {
                break;
            }
        }
    };
    let said = timeout(PATIENCE, async {
        tokio::select! {
            () = read(&mut reader, &mut first, case.reads) => true,
            () = write => false,
        }
    });
    let ended = said.await.with_context(|| format!("it is not listened to: {case:?}"))?;
    if !ended && let Leaves::Closes(after) | Leaves::Resets(after) = case.leaves {
        let _ = timeout(after, read(&mut reader, &mut first, case.reads)).await;
        if let Leaves::Resets(_) = case.leaves {
            socket.set_zero_linger()?;
        }
    } else if !ended {
        if case.leaves == Leaves::HalfCloses {
            // Unless the service has ended it meanwhile.
            let _ = writer.shutdown().await;
        }
        if case.reads == Reads::Nothing {
            sleep(STANDSTILL).await;
        }
        let rest = read(&mut reader, &mut first, Reads::All);
        timeout(PATIENCE, rest).await.with_context(|| format!("its connection does not end: {case:?}"))?;
    }
    ensure!(!first.starts_with(b"HTTP/1.1 500"), "the service fails: {case:?}");
    Ok(())
}

/// Reads to the end of the connection, and keeps the beginning.
async fn read(reader: &mut (impl AsyncReadExt + Unpin), first: &mut Vec<u8>, how: Reads) {
    let (size, pause) = match how {
        Reads::All => (64 * 1024, Duration::ZERO),
        Reads::Sips => (512, Duration::from_millis(20)),
        Reads::Nothing => std::future::pending().await,
    };
    let mut buffer = vec![0; size];
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        let kept = count.min(BEGINNING - first.len());
        first.extend_from_slice(&buffer[..kept]);
        sleep(pause).await;
    }
}
