//! A Prometheus on a host, as Debian has it: it asks for the service's metrics, and evaluates the alerts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::site::Site;
use lab::subject::Subject;

const PATIENCE: Duration = Duration::from_secs(30);

/// How often it asks, and how long it waits. A busy machine may take its time for an answer.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// A Prometheus at work.
#[derive(Debug)]
pub struct Prometheus {
    client: Client<HttpConnector, Empty<bytes::Bytes>>,
    at: String,
    /// The service, as it is called here.
    pub job: String,
    /// When it was started, in seconds since 1970.
    pub since: f64,
}

/// What a query gives: series with their labels, and samples of a time in seconds since 1970 and a value.
pub type Series = Vec<(Vec<(String, String)>, Vec<(f64, f64)>)>;

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Prometheus {
    /// Starts one on the host, and waits until it has been answered.
    pub async fn start(site: &Site, subject: &Subject) -> anyhow::Result<Self> {
        let program = program(subject)?;
        site.host.put(&program, "/opt/lab/prometheus", 0o755).await?;
        site.host.put(&subject.directory.join("deploy/alerts.yml"), "/opt/lab/alerts.yml", 0o644).await?;
        let config = format!(
            "global: {{ scrape_interval: {0}s, scrape_timeout: {0}s, evaluation_interval: {0}s }}\n\
             rule_files: [alerts.yml]\n\
             scrape_configs: [{{ job_name: {1}, static_configs: [{{ targets: ['127.0.0.1:9464'] }}] }}]\n",
            INTERVAL.as_secs(),
            site.name,
        );
        site.host.write(&config, "/opt/lab/prometheus.yml").await?;
        const START: &str = "systemd-run --quiet --unit=lab-prometheus /opt/lab/prometheus \
            --config.file=/opt/lab/prometheus.yml --storage.tsdb.path=/opt/lab/metrics --web.listen-address=:9090";
        site.run(START).await?;
        let at = format!("http://{}:9090/api/v1/", site.host.address());
        let client = Client::builder(TokioExecutor::new()).build_http();
        let prometheus = Self { client, at, job: site.name.clone(), since: now() };
        let deadline = Instant::now() + PATIENCE;
        while prometheus.query("hitless_up == 1").await.map_or(true, |series| series.is_empty()) {
            ensure!(Instant::now() < deadline, "Prometheus is not answered");
            sleep(INTERVAL / 10).await;
        }
        Ok(prometheus)
    }

    async fn get(&self, what: &str, arguments: &[(&str, &str)]) -> anyhow::Result<Value> {
        let arguments: Vec<_> = arguments.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let uri = format!("{}{what}?{}", self.at, arguments.join("&")).parse()?;
        let answer = timeout(PATIENCE, self.client.get(uri)).await.context("Prometheus hangs")??;
        let body: Value = serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
        ensure!(body["status"] == "success", "{arguments:?}: {body}");
        Ok(body["data"].clone())
    }

    /// What an expression gives now. With a range, `up[1m]`, it is samples as they were scraped.
    pub async fn query(&self, expression: &str) -> anyhow::Result<Series> {
        series(&self.get("query", &[("query", expression)]).await?)
    }

    /// What an expression gives at each interval.
    pub async fn range(&self, expression: &str, from: f64, to: f64) -> anyhow::Result<Series> {
        let (from, to, step) = (from.to_string(), to.to_string(), INTERVAL.as_secs().to_string());
        series(
            &self.get("query_range", &[("query", expression), ("start", &from), ("end", &to), ("step", &step)]).await?,
        )
    }

    /// All samples since it was started, as they were scraped.
    pub async fn all(&self, selector: &str) -> anyhow::Result<Series> {
        self.query(&format!("{selector}[{}s]", (now() - self.since) as u64 + 1)).await
    }

    /// When it was not answered, or an instance was silent: from when to when it asked.
    pub async fn failures(&self) -> anyhow::Result<Vec<(f64, f64)>> {
        let asked = [self.all("up").await?, self.all("hitless_up").await?].concat();
        let failed = asked.into_iter().flat_map(|(_, samples)| samples).filter(|(_, value)| *value == 0.0);
        let failed: BTreeSet<_> = failed.map(|(at, _)| at.to_bits()).collect();
        let took = self.all("scrape_duration_seconds").await?.into_iter().flat_map(|(_, samples)| samples);
        Ok(took.filter(|(at, _)| failed.contains(&at.to_bits())).map(|(at, took)| (at, at + took)).collect())
    }

    /// Fails where a rule could not be evaluated, or what it records is nothing; the names of the alerts that fire.
    pub async fn alerts(&self) -> anyhow::Result<Vec<String>> {
        let mut firing = vec![];
        let data = self.get("rules", &[]).await?;
        let rules: Vec<_> = data["groups"]
            .as_array()
            .context("no groups")?
            .iter()
            .flat_map(|group| group["rules"].as_array().into_iter().flatten())
            .collect();
        ensure!(!rules.is_empty(), "there are no rules");
        for rule in rules {
            ensure!(rule["health"] == "ok", "{rule}");
            if rule["type"] == "recording" {
                ensure!(!self.query(rule["name"].as_str().unwrap_or_default()).await?.is_empty(), "nothing: {rule}");
            }
            if rule["state"] == "firing" {
                firing.push(rule["name"].as_str().unwrap_or_default().to_owned());
            }
        }
        Ok(firing)
    }
}

/// Where the program is, which is not installed: it would serve here.
fn program(subject: &Subject) -> anyhow::Result<PathBuf> {
    let brought = subject.directory.join("target/promtool/usr/bin/prometheus");
    let installed = Path::new("/usr/bin/prometheus");
    if let Some(program) = [&brought, installed].into_iter().find(|program| program.is_file()) {
        return Ok(program.into());
    }
    bail!("there is no Prometheus: tests/setup.sh proofs brings it")
}

/// As a query of a URL has it.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).into() } else { format!("%{byte:02X}") })
        .collect()
}

fn series(data: &Value) -> anyhow::Result<Series> {
    let sample = |value: &Value| Some((value[0].as_f64()?, value[1].as_str()?.parse().ok()?));
    let series = data["result"].as_array().context("no result")?.iter().map(|series| {
        let labels = series["metric"].as_object().into_iter().flatten();
        let labels = labels.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()));
        let samples = match series["values"].as_array() {
            Some(values) => values.iter().filter_map(sample).collect(),
            None => sample(&series["value"]).into_iter().collect(),
        };
        (labels.collect(), samples)
    });
    Ok(series.collect())
}
