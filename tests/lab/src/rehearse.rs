//! The main job: a service, restarted again and again under load, and a verdict.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use crate::host::{Host, Image};
use crate::load::{Kind, Load};
use crate::record::{Restart, Scenario, heading, table};
use crate::stage::{Listen, Stage};
use crate::subject::Subject;
use crate::traffic::Traffic;

/// What to rehearse, on what.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many restarts.
    #[arg(long, default_value_t = 20)]
    pub restarts: u32,
    /// The suite of the throwaway host: bookworm, trixie.
    #[arg(long, default_value = "bookworm")]
    pub debian: String,
    /// Use the stand-in for systemd although a host could be booted.
    #[arg(long)]
    pub stand_in: bool,
    /// Fail where no host can be booted, instead of using the stand-in.
    #[arg(long, conflicts_with = "stand_in")]
    pub no_stand_in: bool,
    /// How many idle connections.
    #[arg(long, default_value_t = 50)]
    pub idle: u32,
}

/// What became of the promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Kept,
    Broken,
}

/// Rehearses, and prints the verdict.
pub async fn rehearse(options: &Options) -> anyhow::Result<Outcome> {
    raise_descriptor_limit()?;
    let subject = Subject::find(Path::new(".")).await?;
    let traffic = Traffic::of(&subject)?;
    let mut stage = match host(options, &[], &traffic).await? {
        Some(host) => Stage::deploy(host, &subject, Listen::Tcp, &traffic.settings).await?,
        None => Stage::stand_in(&subject, &traffic.settings).await?,
    };
    let groups = Kind::ALL.map(|(kind, count)| (kind, options.count(kind, count), stage.place()));
    let load = Load::start_groups(&traffic, groups.into());
    settle(&load).await?;
    let restarts = restart_under(&mut stage, &load, options.restarts).await;
    let seconds = load.clock();
    let findings = load.finish().await;
    let service = format!("{} {}", subject.name, subject.version);
    print!("{}", heading(&service, stage.name(), &restarts, seconds));
    println!("{}", table(&findings.scenarios, &findings.failures));
    let all = Scenario::all(&findings.scenarios);
    let spotless = all.is_spotless() && restarts.iter().all(|restart| restart.ok);
    conclude(spotless, &all, findings.moved, restarts.len(), &stage).await
}

/// Says whether the promise was kept: to all together, of whom so many had to keep their connection and did not.
pub async fn conclude(
    spotless: bool,
    all: &Scenario,
    moved: u64,
    restarts: usize,
    stage: &Stage,
) -> anyhow::Result<Outcome> {
    let Scenario { clients, kept, .. } = all;
    if spotless && moved == 0 {
        println!("{restarts} restarts under {clients} clients: nothing lost, nothing refused, no connection closed.");
        println!("All {kept} connections that had to be kept were kept.");
        return Ok(Outcome::Kept);
    }
    if moved > 0 {
        println!("{moved} keep-alive clients did not end on the connection they began with.");
    }
    println!("The promise is broken. The end of the service's log:\n{}", stage.log().await);
    Ok(Outcome::Broken)
}

impl Options {
    /// How many clients of a kind there are, where there are usually so many.
    pub fn count(&self, kind: Kind, usual: u32) -> u32 {
        if kind == Kind::IDLE { self.idle } else { usual }
    }
}

/// What hosts are booted from: a Debian with these packages besides, and with what the service needs beside it.
pub async fn image(debian: &str, packages: &[&str], traffic: &Traffic) -> anyhow::Result<Image> {
    let preparation = traffic.preparation()?;
    let line = Line::default();
    let image = async {
        let image = Image::prepare(debian, packages, |step| line.show(step)).await?;
        match &preparation {
            Some(script) => image.after(script, |step| line.show(step)).await,
            None => Ok(image),
        }
    };
    let image = image.await;
    line.end();
    image
}

/// Boots a host with these packages besides, unless that is not wanted, or cannot be done.
pub async fn host(options: &Options, packages: &[&str], traffic: &Traffic) -> anyhow::Result<Option<Host>> {
    if options.stand_in {
        return Ok(None);
    }
    println!("Booting a throwaway Debian ({}) ...", options.debian);
    let began = Instant::now();
    let booted = async { Host::boot(&image(&options.debian, packages, traffic).await?).await };
    match booted.await {
        Ok(host) => {
            println!("{}, up after {:.1} s", host.stage, began.elapsed().as_secs_f64());
            Ok(Some(host))
        }
        Err(why) if options.no_stand_in => Err(why),
        Err(why) => {
            println!("No host here: {why:#}\nGoing on with the stand-in for systemd.");
            Ok(None)
        }
    }
}

/// Restarts the service so many times while the load runs, a random moment apart.
pub async fn restart_under(stage: &mut Stage, load: &Load, count: u32) -> Vec<Restart> {
    load.restarts_begin();
    let line = Line::default();
    let mut restarts = vec![];
    for number in 1..=count {
        sleep(Duration::from_millis(fastrand::u64(..700))).await;
        let at = load.clock();
        load.restarting();
        let restarted = {
            let restart = stage.restart();
            tokio::pin!(restart);
            loop {
                tokio::select! {
                    restarted = &mut restart => break restarted,
                    () = sleep(Duration::from_millis(500)) => line.show(&progress(load, number, count)),
                }
            }
        };
        load.restarted();
        restarts.push(Restart { at, ready: load.clock(), ok: restarted.is_ok() });
        line.show(&progress(load, number, count));
        if let Err(error) = restarted {
            line.end();
            println!("Restart {number} failed: {error:#}");
        }
    }
    // The last restart's latecomers.
    sleep(Duration::from_secs(2)).await;
    line.end();
    restarts
}

/// Waits until every client has been answered once.
pub async fn settle(load: &Load) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !load.is_settled() {
        if Instant::now() > deadline {
            bail!(
                "not every client was answered before the first restart; {} answers; {}",
                load.totals().answered,
                match load.a_failure() {
                    Some(failure) => format!("one that was {}: {}", failure.kind, failure.what),
                    None => "the others wait still".into(),
                }
            );
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn progress(load: &Load, number: u32, count: u32) -> String {
    format!("restart {number} of {count}, {:.0} s, {}", load.clock(), load.totals())
}

/// Thousands of connections take as many descriptors.
pub fn raise_descriptor_limit() -> anyhow::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raising the limit of open files")
}

/// A line that is written over while it changes; on anything but a terminal, a line now and then.
#[derive(Debug, Default)]
pub struct Line {
    shown: std::cell::Cell<Option<Instant>>,
}

impl Line {
    pub fn show(&self, text: &str) {
        let mut out = std::io::stdout();
        if out.is_terminal() {
            // Cut to fit: a line that wraps cannot be written over.
            let text: String = text.chars().take(100).collect();
            let _ = write!(out, "\r\x1b[2K{text}");
            let _ = out.flush();
            self.shown.set(Some(Instant::now()));
        } else if self.shown.get().is_none_or(|at| at.elapsed() > Duration::from_secs(5)) {
            println!("{text}");
            self.shown.set(Some(Instant::now()));
        }
    }

    pub fn end(&self) {
        if std::io::stdout().is_terminal() && self.shown.take().is_some() {
            println!();
        }
    }
}
