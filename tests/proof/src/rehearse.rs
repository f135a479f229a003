//! The laboratory's main job with what only the template needs: a service that is generated first, other people's programs,
//! a browser, and another system for contrast.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use lab::load::{Kind, Load};
use lab::rehearse::{self, Outcome, restart_under, settle};
use lab::stage::{Listen, Stage};
use lab::subject::Subject;
use lab::traffic::Traffic;

use crate::browser::{self, Browser};
use crate::gate::Edges;
use crate::programs::{PACKAGES, Programs};
use crate::record::Record;
use crate::{adopted, kinds, peer, picture, report, template};

/// What to rehearse, on what.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)]
pub struct Options {
    #[command(flatten)]
    rehearsal: rehearse::Options,
    /// Rehearse the template itself, and do not generate a service.
    #[arg(long)]
    as_is: bool,
    /// Rehearse another system, for contrast: axum, with its own graceful shutdown.
    #[arg(long, value_parser = ["axum"])]
    peer: Option<String>,
    /// Rehearse the small service that was made hitless in ten lines, `src/hitless/examples/adopted.rs`.
    #[arg(long, requires = "no_stand_in", conflicts_with_all = ["peer", "browser", "unix"])]
    adopted: bool,
    /// Send clients through nginx and HAProxy as well, and let curl ask, all three from the host's own Debian.
    #[arg(long, conflicts_with = "stand_in")]
    programs: bool,
    /// Rehearse the example of streams and WebSockets, with a browser that holds one of each as well.
    #[arg(long, requires = "as_is", conflicts_with_all = ["stand_in", "peer", "unix"])]
    browser: bool,
    /// Let the service listen on a Unix socket.
    #[arg(long, conflicts_with_all = ["stand_in", "peer"])]
    unix: bool,
    /// The folder for the report.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write a picture of one restart as well, for a README.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

/// Rehearses, prints the verdict, writes the report.
pub async fn rehearse(options: &Options) -> anyhow::Result<Outcome> {
    let rehearsal = &options.rehearsal;
    let subject = template::subject(options.as_is || options.adopted || options.peer.is_some()).await?;
    let traffic = Traffic::of(&subject)?;
    let listen = if options.unix { Listen::Unix("/run/service.sock") } else { Listen::Tcp };
    let mut stage = match (rehearse::host(rehearsal, &PACKAGES, &traffic).await?, &options.peer) {
        (Some(host), None) if options.adopted => adopted::deploy(host, &subject).await?,
        (Some(host), None) => Stage::deploy(host, &subject, listen, &traffic.settings).await?,
        (Some(host), Some(_)) => peer::deploy(host).await?,
        (None, None) => Stage::stand_in(&subject, &traffic.settings).await?,
        (None, Some(_)) => peer::stand_in().await?,
    };
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
    let mut groups: Vec<_> =
        kinds::ALL.into_iter().map(|(kind, usual)| (kind, options.count(kind, usual), stage.place())).collect();
    groups.extend(programs.iter().flat_map(Programs::groups));

    let started_unix = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let load = Load::start_groups(&traffic, groups);
    settle(&load).await?;
    if let (Some(programs), Some((host, _))) = (&mut programs, stage.host()) {
        programs.restarts_begin(host).await?;
    }
    let restarts = restart_under(&mut stage, &load, rehearsal.restarts).await;
    let curled = match (&programs, stage.host()) {
        (Some(programs), Some((host, _))) => Some(programs.curled(host).await?),
        _ => None,
    };
    let seconds = load.clock();
    let findings = load.finish().await;
    let mut record = Record {
        service: if options.adopted { adopted::NAME.into() } else { subject.name.clone() },
        version: subject.version.clone(),
        stage: stage.name().into(),
        peer: options.peer.clone(),
        started_unix,
        seconds,
        restarts,
        scenarios: findings.scenarios,
        programs: vec![],
        at_the_gate: Edges::of(&findings.notes).gaps(),
        answers: findings.answers,
        failures: findings.failures,
    };
    if let Some(curled) = curled {
        record.failures.extend(curled.failures(record.scenarios.len() as u16));
        record.scenarios.push(curled.scenario());
    }
    if let Some(browser) = browser {
        let findings = browser.findings().await?;
        println!("\n{}, with the example's page open:\n{}", browser.version, browser::table(&findings));
        record.failures.extend(findings.failures(record.scenarios.len() as u16));
        record.scenarios.push(findings.scenario());
    }
    if let (Some(programs), Some((host, _))) = (programs, stage.host()) {
        record.programs = programs.end(host).await?;
    }
    if let Some(path) = &options.picture {
        std::fs::write(path, picture::of(&record)).with_context(|| format!("writing {}", path.display()))?;
    }
    conclude(&record, findings.moved, &stage, options, &subject).await
}

/// Prints the verdict and writes the report. A peer is there to be watched: it keeps what it promises, whatever it loses.
async fn conclude(
    record: &Record,
    moved: u64,
    stage: &Stage,
    options: &Options,
    subject: &Subject,
) -> anyhow::Result<Outcome> {
    println!("{}", record.verdict());
    let directory = options.out.as_ref().unwrap_or(&subject.target);
    std::fs::create_dir_all(directory)?;
    let peer = record.peer.as_ref().map(|peer| format!("-{peer}")).unwrap_or_default();
    let report = directory.join(format!("rehearsal{peer}.html"));
    report::write(record, &report).with_context(|| format!("writing {}", report.display()))?;
    let outcome = match &record.peer {
        Some(peer) => {
            println!("That is {peer}'s own graceful shutdown behind a systemd socket, for contrast.");
            Outcome::Kept
        }
        None => {
            for program in record.programs.iter().filter(|program| !program.is_content()) {
                println!("{} lost connections, or complains.", program.name);
            }
            rehearse::conclude(record.spotless(), &record.totals(), moved, record.restarts.len(), stage).await?
        }
    };
    println!("Report: {}", report.display());
    Ok(outcome)
}

impl Options {
    /// How many clients of a kind ask the service itself.
    fn count(&self, kind: Kind, usual: u32) -> u32 {
        // hyper drops whoever half-closes, restart or not.
        if kind == kinds::HALF_CLOSING && self.peer.is_some() {
            0
        // Nobody gets a word in where these take what processors there are.
        } else if [Kind::BUSY, Kind::FRESH].contains(&kind) && self.programs {
            1
        } else {
            self.rehearsal.count(kind, usual)
        }
    }
}
