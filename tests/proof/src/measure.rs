//! What a restart costs clients: how long the slowest fast answer takes, whatever else is in flight and however many
//! connections there are, beside the [`floor`] under it.
//!
//! The two are measured side by side, in turn, on one host: a machine that is busy is so for both, and their ratio is
//! what counts. The floor is the time between the signal to a process that does nothing and `READY=1` of the next one, in
//! the same sandbox; the slowest answer is what a client sees of everything between, the way over the network included.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::sleep;

use crate::anatomy::{self, Steps};
use crate::floor;
use crate::kinds;
use crate::programs::PACKAGES;
use crate::template;
use lab::host::Host;
use lab::load::{Kind, Load};
use lab::record::millis;
use lab::rehearse::{self, Outcome, settle};
use lab::stage::{Listen, Stage};
use lab::traffic::Traffic;

/// What to measure, on what.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The suite of the throwaway host: bookworm, trixie.
    #[arg(long, default_value = "bookworm")]
    pub debian: String,
    /// How many restarts of each kind; their medians count.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Only what has a bound, and no more than 1,000 connections.
    #[arg(long)]
    pub quick: bool,
    /// How many connections, most of them idle: one or several numbers of at least 100.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(100..=20_000))]
    pub connections: Vec<u32>,
    /// How many times the floor the slowest fast answer may take.
    #[arg(long, value_name = "TIMES", default_value_t = 1.5)]
    pub bound: f64,
    /// In the template: take the template itself, and do not generate a service.
    #[arg(long)]
    pub as_is: bool,
}

/// Those that notice a delay: so many that one of them asks every two milliseconds, so few that they cause none.
const FAST: (Kind, u32) = (Kind::PAUSING, 50);

/// Up to how many connections the floor is a process that has none. Beyond, what the kernel takes to tidy up after so many
/// descriptors shows: there it is one that holds as many.
const FEW: u32 = 1_000;

/// T is short, so that the wait for a calm moment, T/3, is.
const SETTINGS: &str = "shutdown_timeout = '6s'\nlimits.max_connections = 21000\n";

/// What is in flight when a restart begins, besides fast requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InFlight {
    Nothing,
    OneSlow,
    SlowWithoutEnd,
    Uploads,
}

impl InFlight {
    const ALL: [Self; 4] = [Self::Nothing, Self::OneSlow, Self::SlowWithoutEnd, Self::Uploads];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "fast requests only",
            Self::OneSlow => "one slow request in flight",
            Self::SlowWithoutEnd => "slow requests without end",
            Self::Uploads => "four slow uploads in flight",
        }
    }

    fn crowd(self) -> &'static [(Kind, u32)] {
        match self {
            Self::Nothing => &[],
            Self::OneSlow => &[(Kind::SLOW, 1)],
            Self::SlowWithoutEnd => &[(kinds::RELENTLESS, 8)],
            Self::Uploads => &[(Kind::UPLOADING, 4)],
        }
    }

    /// Whether it must not cost the fast ones more than the bound.
    fn is_bounded(self) -> bool {
        matches!(self, Self::Nothing | Self::OneSlow)
    }
}

/// Some restarts of one kind.
#[derive(Debug, Default)]
struct Series {
    slowest: Vec<f64>,
    floor: Vec<f64>,
    /// The same of a service that holds as many descriptors.
    holder: Vec<f64>,
    steps: Vec<Steps>,
}

/// The service on its host, the floor beside it.
struct Bench {
    stage: Stage,
    name: String,
    traffic: Traffic,
    rounds: usize,
}

/// Measures, prints the figures, and says whether they are within the bound.
pub async fn measure(options: &Options) -> anyhow::Result<Outcome> {
    let mut bench = Bench::set_up(options).await?;
    let (in_flight, connections) = match options.quick {
        true => (&InFlight::ALL[..2], &[100, 1_000][..]),
        false => (&InFlight::ALL[..], &[100, 1_000, 10_000][..]),
    };
    let connections = if options.connections.is_empty() { connections } else { &options.connections };
    let mut table = vec![
        [
            "slowest fast answer during a restart",
            "connections",
            "answer",
            "floor",
            "ratio",
            "floor that holds as many",
            "ratio",
            "all",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let (mut broken, mut alone) = (vec![], vec![]);
    for &in_flight in in_flight {
        for &connections in connections {
            let series = bench
                .series(in_flight, connections)
                .await
                .with_context(|| format!("{}, {connections} connections", in_flight.name()))?;
            let [slowest, floor, holder] = [&series.slowest, &series.floor, &series.holder].map(|took| median(took));
            let [over_floor, over_holder] = [slowest / floor, slowest / holder];
            println!(
                "{}, {connections} connections: {} over a floor of {}",
                in_flight.name(),
                millis(slowest),
                millis(floor)
            );
            let ratio = if connections <= FEW { over_floor } else { over_holder };
            if in_flight.is_bounded() && ratio > options.bound {
                broken.push(format!(
                    "{}, {connections} connections: {ratio:.2} times the floor, more than {}",
                    in_flight.name(),
                    options.bound
                ));
            }
            table.push(vec![
                in_flight.name().to_owned(),
                connections.to_string(),
                millis(slowest),
                millis(floor),
                format!("{over_floor:.2}"),
                millis(holder),
                format!("{over_holder:.2}"),
                series.slowest.iter().map(|ms| format!("{ms:.0}")).collect::<Vec<_>>().join(", "),
            ]);
            if in_flight == InFlight::Nothing {
                alone.push((format!("{connections} connections"), series.steps));
            }
        }
    }
    println!("\n{}, medians of {}:\n\n{}", bench.stage.name(), options.rounds, anatomy::markdown(&table));
    println!("{}", anatomy::table(&alone));
    if !options.quick {
        println!("{}", anatomy::sandbox(&floor::sandbox(bench.host()?, options.rounds).await?));
    }
    if broken.is_empty() {
        return Ok(Outcome::Kept);
    }
    println!("{}\n{}", broken.join("\n"), bench.stage.log().await);
    Ok(Outcome::Broken)
}

impl Bench {
    async fn set_up(options: &Options) -> anyhow::Result<Self> {
        let subject = template::subject(options.as_is).await?;
        let traffic = Traffic::load(&subject.traffic())?;
        let host = Host::boot(&rehearse::image(&options.debian, &PACKAGES, &traffic).await?).await?;
        let settings = traffic.settings_with(&format!("{SETTINGS}log.filter = '{}'\n", anatomy::FILTER))?;
        let stage = Stage::deploy(host, &subject, Listen::Tcp, &settings).await?;
        Ok(Self { stage, name: subject.name, traffic, rounds: options.rounds })
    }

    fn host(&self) -> anyhow::Result<&Host> {
        match &self.stage {
            Stage::Host { host, .. } => Ok(host),
            Stage::StandIn(_) => bail!("without systemd there is no floor"),
        }
    }

    /// Restarts the service while so many connections are open, most of them idle, and the floor in turn with it. Nothing
    /// may be lost, nor any connection closed.
    async fn series(&mut self, in_flight: InFlight, connections: u32) -> anyhow::Result<Series> {
        floor::install(self.host()?, &self.name, connections).await?;
        let others: u32 = in_flight.crowd().iter().map(|(_, count)| count).sum();
        let idle = (Kind::IDLE, connections - FAST.1 - others);
        let load = Load::start(self.stage.address(), &self.traffic, &[idle, FAST]);
        settle(&load).await?;
        load.restarts_begin();
        let mut series = Series::default();
        for _ in 0..self.rounds {
            let [floor, holder] = floor::restart(self.host()?).await?;
            series.floor.push(floor);
            series.holder.push(holder);
            let company = Load::start(self.stage.address(), &self.traffic, in_flight.crowd());
            // Long enough for a request to count as slow, and shorter than one is.
            sleep(Duration::from_millis(400)).await;
            company.restarts_begin();
            let from = load.clock();
            self.stage.restart().await?;
            let to = load.clock();
            sleep(Duration::from_millis(300)).await;
            series.slowest.push(load.slowest_between(&[FAST.0], from, to).1);
            company.finish().await.spotless()?;
            series.steps.push(anatomy::of_last_restart(self.host()?, &self.name).await?);
        }
        load.finish().await.spotless()?;
        Ok(series)
    }
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
