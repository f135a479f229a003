//! A deploy's rehearsal: a first install, then updates and rollbacks with the very scripts, under every kind of client.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::sleep;

use crate::dashboard::Shown;
use crate::delays::{self, Delays, Window};
use crate::kinds;
use crate::operator::Way;
use crate::prometheus::{Prometheus, now};
use crate::release::Release;
use crate::scene::{Props, Scene};
use crate::site::BRISK;
use lab::load::{Kind, Load};
use lab::record::table;
use lab::rehearse::{Line, Outcome};

/// What to rehearse, on what.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many updates and rollbacks, in turn.
    #[arg(long, default_value_t = 20)]
    pub updates: u32,
    /// The suite of the throwaway host: bookworm, trixie.
    #[arg(long, default_value = "bookworm")]
    pub debian: String,
    /// In the template: deploy the template itself, and do not generate a service.
    #[arg(long)]
    pub as_is: bool,
}

/// Rehearses, prints what the clients saw, and says whether the promise was kept.
pub async fn deploy(options: &Options) -> anyhow::Result<Outcome> {
    let props = Props::get(&options.debian, options.as_is).await?;
    let scene = Scene::set_without_service(&props, BRISK).await?;
    println!("First install, on {}:", scene.site.host.stage);
    println!("{}", scene.push(Release::Good).await?.works()?.text);

    let prometheus = Prometheus::start(&scene.site, &props.subject).await?;
    println!("{} updates and rollbacks, every kind of client:\n", options.updates);
    let everybody: Vec<_> = kinds::ALL.into_iter().chain([(kinds::RELENTLESS, 4)]).collect();
    let all = update_under(&scene, &everybody, options.updates).await;
    println!("{} more, clients that notice delays:\n", options.updates.div_ceil(4));
    let few = update_under(&scene, delays::CROWD, options.updates.div_ceil(4)).await;

    match all.and(few).and(is_told(&prometheus, &scene).await) {
        Ok(()) => {
            println!("Nothing lost, nothing refused, no connection closed.");
            Ok(Outcome::Kept)
        }
        Err(error) => {
            println!("The promise is broken: {error:#}\nThe end of the journal:\n{}", scene.site.log().await);
            Ok(Outcome::Broken)
        }
    }
}

/// Whether Prometheus was answered all the time, and has what the dashboard and the alerts ask for.
async fn is_told(prometheus: &Prometheus, scene: &Scene) -> anyhow::Result<()> {
    let failures = prometheus.failures().await?;
    ensure!(failures.is_empty(), "Prometheus was not answered at {failures:?}");
    Shown::by(prometheus, &scene.props.subject, prometheus.since, now()).await?;
    prometheus.alerts().await.map(drop)
}

/// So many updates while a crowd is at work; prints what it saw.
async fn update_under(scene: &Scene, crowd: &[(Kind, u32)], count: u32) -> anyhow::Result<()> {
    let load = scene.watch(crowd).await?;
    let quiet = [rest(&load, 5).await];
    let updated = update(scene, &load, count).await;
    rest(&load, 2).await;
    let calm = Delays::during(&load, &quiet);
    let busy = updated.as_ref().ok().map(|windows| Delays::during(&load, windows));
    let findings = load.finish().await;
    println!("{}", table(&findings.scenarios, &findings.failures));
    if let Some(busy) = busy {
        println!("{}", delays::table(&[("in an update", &busy), ("before", &calm)]));
    }
    updated.and_then(|_| findings.spotless())
}

/// Updates and rolls back in turn, and makes sure each time that what runs is what should.
async fn update(scene: &Scene, load: &Load, count: u32) -> anyhow::Result<Vec<Window>> {
    const OPENED: &str = "systemctl show --property=InvocationID $N-metrics.socket";
    let opened = scene.site.run(OPENED).await?;
    let line = Line::default();
    let mut windows = vec![];
    let mut before = None;
    for number in 1..=count {
        sleep(Duration::from_millis(fastrand::u64(..1000))).await;
        let releases = scene.site.releases().await?;
        let current = scene.site.in_charge().await?;
        let from = load.clock();
        let said = match number % 2 {
            1 => scene.push(Release::Good).await?,
            _ => scene.operator.tell(&Way::to(&scene.site), &["rollback"]).await?,
        };
        windows.push((from, load.clock()));
        said.works().with_context(|| format!("update {number}"))?;

        let release = scene.site.in_charge().await?;
        let right = match number % 2 {
            1 => !releases.contains(&release),
            _ => before.as_ref() == Some(&release),
        };
        ensure!(right, "update {number}: {release} is in charge, of {releases:?}; before it was {current}");
        before = Some(current);
        ensure!(scene.site.run(OPENED).await? == opened, "update {number} closed the socket for metrics");
        line.show(&format!("update {number} of {count}: {release}; {}", load.totals()));
    }
    line.end();
    Ok(windows)
}

/// Lets so many seconds pass.
async fn rest(load: &Load, seconds: u64) -> Window {
    let from = load.clock();
    sleep(Duration::from_secs(seconds)).await;
    (from, load.clock())
}
