//! A service that Prometheus watches, through restarts, a deploy, a rollback, a crash and a stop: whether it is answered whenever
//! somebody serves, and counts what the clients saw; what is lost of the counts of a process that leaves.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::sleep;

use crate::chaos::{answers_again, runs};
use crate::dashboard::Shown;
use crate::kinds;
use crate::operator::Way;
use crate::prometheus::{INTERVAL, Prometheus, now};
use crate::release::Release;
use crate::scene::{Props, Scene};
use crate::site::BRISK;
use lab::load::Kind;
use lab::record::Scenario;
use lab::rehearse::Outcome;
use lab::traffic::Traffic;

/// On what.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The suite of the throwaway host: bookworm, trixie.
    #[arg(long, default_value = "bookworm")]
    pub debian: String,
    /// The file for a picture of the dashboard.
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// In the template: take the template itself, and do not generate a service.
    #[arg(long)]
    pub as_is: bool,
}

/// What is asked all the time besides, so that there are several routes to tell.
const FAST: &str = r#"
fast = [
    { path = "/livez", status = 200 },
    { path = "/nowhere", status = 404 },
    { method = "POST", path = "/echo", send = "{id}", status = 200, body = "{id}" },
]"#;

const CROWD: &[(Kind, u32)] =
    &[(Kind::PAUSING, 16), (Kind::FRESH, 1), (Kind::UPLOADING, 1), (Kind::IDLE, 8), (kinds::HTTP2, 1)];

/// How long clients are at work before something is done: each process is asked.
const PAUSE: Duration = Duration::from_secs(5);

/// Something that was done, and from when to when.
#[derive(Debug)]
struct Done {
    what: &'static str,
    from: f64,
    to: f64,
}

impl Done {
    /// Whether it was done while somebody asked.
    fn meets(&self, (from, to): &(f64, f64)) -> bool {
        *from < self.to && *to > self.from
    }

    /// Whether for a moment nobody may have served.
    fn is_away(&self) -> bool {
        self.what != "deploy" && self.what != "rollback"
    }

    /// How many processes left. A trial starts twice.
    fn departures(&self) -> u32 {
        if self.is_away() { 1 } else { 3 }
    }
}

/// Has it watched, prints what was seen, and says whether that is as it should be.
pub async fn watched(options: &Options) -> anyhow::Result<Outcome> {
    let props = Props::get(&options.debian, options.as_is).await?;
    let mut scene = Scene::set_with(&props, BRISK).await?;
    scene.traffic.fast = toml::from_str::<Traffic>(FAST)?.fast;
    let prometheus = Prometheus::start(&scene.site, &props.subject).await?;
    println!("Prometheus asks every {INTERVAL:?}, on {}.", scene.site.host.stage);
    match watch(&scene, &prometheus, options).await {
        Ok(()) => Ok(Outcome::Kept),
        Err(error) => {
            println!("It is not as it should be: {error:#}\nThe end of the journal:\n{}", scene.site.log().await);
            Ok(Outcome::Broken)
        }
    }
}

async fn watch(scene: &Scene, prometheus: &Prometheus, options: &Options) -> anyhow::Result<()> {
    // Where nobody leaves, nothing is lost.
    let load = scene.watch(CROWD).await?;
    sleep(PAUSE).await;
    let findings = load.finish().await;
    findings.spotless()?;
    let (before, counted) = (Scenario::all(&findings.scenarios).answered, all_counted(prometheus).await?);
    println!("Before anything is done, {before} requests are answered, and {counted} counted.");
    ensure!(counted == before as f64, "{before} requests were answered");

    let load = scene.watch(CROWD).await?;
    let (began, mut all) = (now(), vec![]);
    for what in ["restart", "restart", "restart", "deploy", "rollback", "crash", "restart"] {
        sleep(PAUSE).await;
        let from = now();
        match what {
            "restart" => drop(scene.site.run("systemctl restart $N.service").await?),
            "deploy" => drop(scene.push(Release::Good).await?.works()?),
            "rollback" => drop(scene.operator.tell(&Way::to(&scene.site), &["rollback"]).await?.works()?),
            _ => {
                scene.site.run("kill -KILL $(systemctl show --property=MainPID --value $N.service)").await?;
                runs(scene).await?;
                answers_again(&load).await?;
            }
        }
        all.push(Done { what, from, to: now() });
    }
    sleep(PAUSE).await;
    let findings = load.finish().await;
    let (ended, seen) = (now(), Scenario::all(&findings.scenarios));
    let sum = all_counted(prometheus).await? - counted;
    let departures: u32 = all.iter().map(Done::departures).sum();
    let rate = seen.answered as f64 / (ended - began);
    let missing = seen.answered as f64 - sum;
    println!(
        "Through {}: {}; {sum} of the requests are counted. The {departures} processes that left took along {missing}, each \
         what it had answered in {:.2} s.",
        all.iter().map(|done| done.what).collect::<Vec<_>>().join(", "),
        seen,
        missing / rate / f64::from(departures),
    );
    ensure!(missing >= -(seen.lost as f64), "more were counted than asked");
    let bound = rate * f64::from(departures) * 2.0 * INTERVAL.as_secs_f64();
    ensure!(missing <= bound, "no more than {bound:.0} can have been answered since the last time that it was asked");

    let from = now();
    scene.site.run("systemctl stop $N.socket $N.service && sleep 6 && systemctl start $N.socket $N.service").await?;
    all.push(Done { what: "stop", from, to: now() });
    sleep(PAUSE).await;
    let failures = prometheus.failures().await?;
    for done in &all {
        let count = failures.iter().filter(|asked| done.meets(asked)).count();
        println!("  {:<10} {:5.1} s  {count} scrapes failed", done.what, done.to - done.from);
        ensure!(done.what != "stop" || count >= 2, "nobody served, and yet it was answered");
    }
    let elsewhere = failures.iter().find(|asked| !all.iter().any(|done| done.is_away() && done.meets(asked)));
    ensure!(elsewhere.is_none(), "while the service was there, a scrape failed at {elsewhere:?}: {all:?}");

    let shown = Shown::by(prometheus, &scene.props.subject, prometheus.since, now()).await?;
    let alerts = prometheus.alerts().await?;
    println!("All {} queries of the dashboard give something; of the alerts, {alerts:?} fires.", shown.queries());
    ensure!(alerts == ["RestartLoop"], "it is more than five restarts, and nothing else");
    if let Some(path) = &options.picture {
        std::fs::write(path, shown.picture()).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// How many requests were counted by all processes there were, as far as Prometheus has been told, once it has asked again.
async fn all_counted(prometheus: &Prometheus) -> anyhow::Result<f64> {
    sleep(2 * INTERVAL).await;
    let of = |labels: &[(String, String)]| labels.iter().find(|(name, _)| name == "exported_instance").cloned();
    let mut processes = HashMap::new();
    for (labels, samples) in prometheus.all("process_start_time_seconds").await? {
        for (at, started) in samples {
            processes.insert((of(&labels), at.to_bits()), started.to_bits());
        }
    }
    // Those that a deploy asks for are no clients'.
    const REQUESTS: &str =
        "http_server_request_duration_seconds_count{http_response_status_code!=\"\", http_route!=\"/readyz\"}";
    let mut last = HashMap::new();
    for (labels, samples) in prometheus.all(REQUESTS).await? {
        for (at, value) in samples {
            let process = processes.get(&(of(&labels), at.to_bits())).context("a process without a start")?;
            last.insert((labels.clone(), *process), value);
        }
    }
    Ok(last.values().sum())
}
