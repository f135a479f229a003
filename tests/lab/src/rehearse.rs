//! The main job: a service, restarted again and again under load, and a verdict.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use crate::browser::{self, Browser};
use crate::host::{Host, Image};
use crate::load::{Findings, Group, Kind, Load};
use crate::programs::Programs;
use crate::record::{Record, Restart};
use crate::stage::{Listen, SOCKET, Stage};
use crate::subject::Subject;
use crate::traffic::Traffic;
use crate::{report, verdict};

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
    /// In the template: rehearse the template itself, and do not generate a service.
    #[arg(long)]
    pub as_is: bool,
    /// Rehearse another system, for contrast: axum, with its own graceful shutdown.
    #[arg(long, value_parser = ["axum"])]
    pub peer: Option<String>,
    /// In the template: rehearse the small service that was made hitless in ten lines, `src/hitless/examples/adopted.rs`.
    #[arg(long, conflicts_with_all = ["stand_in", "peer", "browser", "unix"])]
    pub adopted: bool,
    /// Send clients through nginx and HAProxy as well, and let curl ask, all three from the host's own Debian.
    #[arg(long, conflicts_with = "stand_in")]
    pub programs: bool,
    /// Rehearse the example of streams and WebSockets, with a browser that holds one of each as well.
    #[arg(long, conflicts_with_all = ["stand_in", "peer"])]
    pub browser: bool,
    /// Let the service listen on a Unix socket.
    #[arg(long, conflicts_with_all = ["stand_in", "peer", "browser"])]
    pub unix: bool,
    /// How many idle connections.
    #[arg(long, default_value_t = 50)]
    pub idle: u32,
    /// The folder for the report.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write a picture of one restart as well, for a README.
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
}

/// What became of the promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Kept,
    Broken,
}

/// Rehearses, prints the verdict, writes the report. A peer is there to be watched: it keeps what it
/// promises, whatever it loses.
pub async fn rehearse(options: &Options) -> anyhow::Result<Outcome> {
    let (mut stage, subject, traffic) = set_up(options).await?;
    let mut programs = match (options.programs, stage.host()) {
        (true, Some((host, listen))) => Some(Programs::start(host, listen, &traffic).await?),
        _ => None,
    };
    let browser = match (options.browser, stage.host()) {
        (true, Some((host, _))) => {
            browser::install_example(host, &subject).await?;
            Some(Browser::open(stage.address()).await?)
        }
        _ => None,
    };
    let mut groups = groups(options, &stage);
    groups.extend(programs.iter().flat_map(Programs::groups));

    let started_unix = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let load = Load::start_groups(&traffic, groups);
    settle(&load).await?;
    if let (Some(programs), Some((host, _))) = (&mut programs, stage.host()) {
        programs.restarts_begin(host).await?;
    }
    let restarts = restart_under(&mut stage, &load, options.restarts).await;
    let curled = match (&programs, stage.host()) {
        (Some(programs), Some((host, _))) => Some(programs.curled(host).await?),
        _ => None,
    };
    let seconds = load.clock();
    let Findings { mut scenarios, answers, mut failures, moved, at_the_gate } = load.finish().await;
    if let Some(curled) = curled {
        failures.extend(curled.failures(scenarios.len() as u16));
        scenarios.push(curled.scenario());
    }
    if let Some(browser) = browser {
        let findings = browser.findings().await?;
        println!("\n{}, with the example's page open:\n{}", browser.version, browser::table(&findings));
        failures.extend(findings.failures(scenarios.len() as u16));
        scenarios.push(findings.scenario());
    }
    let programs = match (programs, stage.host()) {
        (Some(programs), Some((host, _))) => programs.end(host).await?,
        _ => vec![],
    };
    let record = Record {
        service: if options.adopted { "adopted".into() } else { subject.name.clone() },
        version: subject.version.clone(),
        stage: stage.name().into(),
        peer: options.peer.clone(),
        started_unix,
        seconds,
        restarts,
        scenarios,
        programs,
        at_the_gate,
        answers,
        failures,
    };

    println!("{}", verdict::table(&record));
    let path = write_report(&record, options, &subject)?;
    let spotless = record.spotless();
    match (&options.peer, spotless && moved == 0) {
        (None, true) => println!(
            "{} restarts under {} clients: nothing lost, nothing refused, no connection closed.",
            record.restarts.len(),
            record.totals().clients
        ),
        (None, false) => {
            if moved > 0 {
                println!("{moved} keep-alive clients did not end on the connection they began with.");
            }
            for program in record.programs.iter().filter(|program| !program.is_content()) {
                println!("{} lost connections, or complains.", program.name);
            }
            println!("The promise is broken. The end of the service's log:\n{}", stage.log().await);
        }
        (Some(peer), _) => println!(
            "That is {peer}'s own graceful shutdown behind a systemd socket. Without PEER= the same \
             load goes to a hitless service."
        ),
    }
    println!("Report: {}", path.display());
    Ok(match options.peer.is_some() || (spotless && moved == 0) {
        true => Outcome::Kept,
        false => Outcome::Broken,
    })
}

/// Who asks the service itself.
fn groups(options: &Options, stage: &Stage) -> Vec<Group> {
    let count = |kind, count| match kind {
        Kind::Idle => options.idle,
        // hyper drops whoever half-closes, restart or not.
        Kind::HalfClosing if options.peer.is_some() => 0,
        // Nobody gets a word in where these take what processors there are.
        Kind::Busy | Kind::Fresh if options.programs => 1,
        _ => count,
    };
    Kind::ALL.into_iter().map(|(kind, usual)| (kind, count(kind, usual), stage.place())).collect()
}

/// What is to be deployed; in the template, unless it is taken as it is, a service that is generated from it.
pub(crate) async fn subject(as_is: bool) -> anyhow::Result<Subject> {
    raise_descriptor_limit()?;
    let subject = Subject::find(Path::new(".")).await?;
    if !subject.is_template() || as_is {
        return Ok(subject);
    }
    println!("Generating a service from the template ...");
    subject.generate().await
}

/// What hosts are booted from: a Debian, with what the service needs beside it.
pub(crate) async fn image(debian: &str, traffic: &Traffic) -> anyhow::Result<Image> {
    let preparation = traffic.preparation()?;
    let line = Line::default();
    let image = async {
        let image = Image::prepare(debian, |step| line.show(step)).await?;
        match &preparation {
            Some(script) => image.after(script, |step| line.show(step)).await,
            None => Ok(image),
        }
    };
    let image = image.await;
    line.end();
    image
}

/// Everything up to the first request.
pub(crate) async fn set_up(options: &Options) -> anyhow::Result<(Stage, Subject, Traffic)> {
    let subject = subject(options.as_is || options.adopted || options.peer.is_some()).await?;
    let traffic = Traffic::of(&subject)?;

    let host = if options.stand_in {
        None
    } else {
        println!("Booting a throwaway Debian ({}) ...", options.debian);
        let began = Instant::now();
        let booted = async { Host::boot(&image(&options.debian, &traffic).await?).await };
        match booted.await {
            Ok(host) => {
                println!("{}, up after {:.1} s", host.stage, began.elapsed().as_secs_f64());
                Some(host)
            }
            Err(why) if options.no_stand_in || options.adopted => return Err(why),
            Err(why) => {
                println!("No host here: {why:#}\nGoing on with the stand-in for systemd.");
                None
            }
        }
    };
    let stage = match (host, &options.peer) {
        (Some(host), None) if options.adopted => Stage::deploy_adopted(host, &subject).await?,
        (Some(host), None) => {
            let listen = if options.unix { Listen::Unix(SOCKET) } else { Listen::Tcp };
            Stage::deploy(host, &subject, listen, &traffic.settings).await?
        }
        (Some(host), Some(_)) => Stage::deploy_peer(host).await?,
        (None, None) => Stage::stand_in(&subject, &traffic.settings).await?,
        (None, Some(_)) => Stage::stand_in_peer().await?,
    };
    Ok((stage, subject, traffic))
}

/// Restarts the service so many times while the load runs, a random moment apart.
async fn restart_under(stage: &mut Stage, load: &Load, count: u32) -> Vec<Restart> {
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
pub(crate) async fn settle(load: &Load) -> anyhow::Result<()> {
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

fn write_report(record: &Record, options: &Options, subject: &Subject) -> anyhow::Result<PathBuf> {
    let directory = options.out.clone().unwrap_or_else(|| subject.target.clone());
    std::fs::create_dir_all(&directory)?;
    let name = match &options.peer {
        Some(peer) => format!("rehearsal-{peer}.html"),
        None => "rehearsal.html".into(),
    };
    let path = directory.join(name);
    report::write(record, &path).with_context(|| format!("writing {}", path.display()))?;
    if let Some(picture) = &options.picture {
        std::fs::write(picture, report::picture(record)).with_context(|| format!("writing {}", picture.display()))?;
    }
    Ok(path)
}

/// Thousands of connections take as many descriptors.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raising the limit of open files")
}

/// A line that is written over while it changes; on anything but a terminal, a line now and then.
#[derive(Debug, Default)]
pub(crate) struct Line {
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
