//! The laboratory's main job with what only the template needs: a service that is generated first, other people's programs,
//! a browser, and another system for contrast.

use std::path::PathBuf;

use anyhow::Context;
use lab::load::Kind;
use lab::rehearse::{self, Outcome, Run, conclude, restart_under};
use lab::stage::Stage;
use lab::traffic::Traffic;

use crate::browser::{self, Browser};
use crate::programs::Programs;
use crate::{adopted, peer, picture, template};

/// What to rehearse, on what.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    rehearsal: rehearse::Options,
    /// Rehearse the template itself, and do not generate a service.
    #[arg(long)]
    as_is: bool,
    /// Rehearse another system, for contrast: axum, with its own graceful shutdown.
    #[arg(long, value_parser = ["axum"], conflicts_with = "unix")]
    peer: Option<String>,
    /// Rehearse the small service that was made hitless in ten lines, `src/hitless/examples/adopted.rs`.
    #[arg(long, requires = "no_stand_in", conflicts_with_all = ["peer", "browser", "unix"])]
    adopted: bool,
    /// Send clients through nginx and HAProxy as well, and let curl ask, all three from the host's own Debian.
    #[arg(long, conflicts_with = "stand_in")]
    programs: bool,
    /// Rehearse the example of streams and WebSockets, with a browser that holds one of each as well.
    #[arg(long, conflicts_with_all = ["stand_in", "peer", "unix"])]
    browser: bool,
    /// Write a picture of one restart as well, for a README.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

/// Rehearses, prints the verdict, writes the report.
pub async fn rehearse(options: &Options) -> anyhow::Result<Outcome> {
    let rehearsal = &options.rehearsal;
    let subject = template::subject(options.as_is || options.adopted || options.peer.is_some()).await?;
    let traffic = Traffic::of(&subject)?;
    let mut stage = match (rehearse::host(rehearsal, &traffic).await?, &options.peer) {
        (Some(host), None) if options.adopted => adopted::deploy(host, &subject).await?,
        (Some(host), None) => Stage::deploy(host, &subject, rehearsal.listen(), &traffic.settings).await?,
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
        Kind::ALL.into_iter().map(|(kind, usual)| (kind, options.count(kind, usual), stage.place())).collect();
    groups.extend(programs.iter().flat_map(Programs::groups));

    let run = Run::begin(&traffic, groups).await?;
    if let (Some(programs), Some((host, _))) = (&mut programs, stage.host()) {
        programs.restarts_begin(host).await?;
    }
    let restarts = restart_under(&mut stage, &run.load, rehearsal.restarts).await;
    let curled = match (&programs, stage.host()) {
        (Some(programs), Some((host, _))) => Some(programs.curled(host).await?),
        _ => None,
    };
    let (mut record, moved) = run.end(&subject, &stage, restarts).await;
    record.peer = options.peer.clone();
    if options.adopted {
        record.service = adopted::NAME.into();
    }
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
    conclude(&record, moved, &stage, rehearsal, &subject).await
}

impl Options {
    /// How many clients of a kind ask the service itself.
    fn count(&self, kind: Kind, usual: u32) -> u32 {
        match kind {
            // hyper drops whoever half-closes, restart or not.
            Kind::HalfClosing if self.peer.is_some() => 0,
            // Nobody gets a word in where these take what processors there are.
            Kind::Busy | Kind::Fresh if self.programs => 1,
            _ => self.rehearsal.count(kind, usual),
        }
    }
}
