//! Measurements that have a bound: what a slow request costs the fast ones during a restart, and how
//! long a restart takes with thousands of idle connections.

use std::time::Duration;

use anyhow::Context;
use tokio::time::sleep;

use crate::load::{Kind, Load};
use crate::rehearse::{Options, Outcome, set_up, settle};
use crate::stage::Stage;
use crate::traffic::Traffic;
use crate::verdict::aligned;

/// How many restarts of each kind; the median counts.
const ROUNDS: usize = 5;

/// Those that notice every delay.
const FAST: [Kind; 2] = [Kind::Pausing, Kind::Busy];

/// By how much a slow request may delay the fast ones.
const SLOW_REQUEST_COSTS: f64 = 100.0;

/// How long a restart may take, however many connections are idle.
const RESTART_TAKES: f64 = 1_000.0;

/// Measures, prints the figures, and says whether they are within bounds.
pub async fn measure(options: &Options) -> anyhow::Result<Outcome> {
    let (mut stage, subject, traffic) = set_up(options, "5s").await?;
    println!("\n{} {} on {}", subject.name, subject.version, stage.name());
    let mut rows = vec![["".into(), "median".to_owned(), "of".to_owned()]];
    let mut broken = vec![];

    let without = slowest_fast(&mut stage, &traffic, false).await?;
    let with = slowest_fast(&mut stage, &traffic, true).await?;
    rows.push(row("slowest fast answer during a restart", &without));
    rows.push(row("the same with a slow request in flight", &with));
    let cost = median(&with) - median(&without);
    if cost > SLOW_REQUEST_COSTS {
        broken.push(format!("a slow request costs the fast ones {cost:.0} ms, more than {SLOW_REQUEST_COSTS} ms"));
    }

    for count in [1_000, 4_000, 9_000] {
        let took = restart_with_idle(&mut stage, &traffic, count).await?;
        rows.push(row(&format!("restart with {count} idle connections"), &took));
        if median(&took) > RESTART_TAKES {
            broken.push(format!("a restart with {count} idle connections takes {:.0} ms", median(&took)));
        }
    }
    println!("\n{}", aligned(&rows));
    if broken.is_empty() {
        return Ok(Outcome::Kept);
    }
    println!("{}\n{}", broken.join("\n"), stage.log().await);
    Ok(Outcome::Broken)
}

/// The slowest answer of the fast clients in each of some restarts; with `slow`, each restart comes
/// while a slow request is in flight, which has to be answered too.
async fn slowest_fast(stage: &mut Stage, traffic: &Traffic, slow: bool) -> anyhow::Result<Vec<f64>> {
    let mut slowest = vec![];
    for _ in 0..ROUNDS {
        let fast = Load::start(stage.address(), traffic, &[(Kind::Pausing, 50), (Kind::Busy, 2)]);
        settle(&fast).await?;
        let in_flight = slow.then(|| Load::start(stage.address(), traffic, &[(Kind::Slow, 1)]));
        sleep(Duration::from_millis(500)).await;
        fast.restarts_begin();
        if let Some(slow) = &in_flight {
            slow.restarts_begin();
        }
        let from = fast.clock();
        stage.restart().await?;
        let to = fast.clock();
        sleep(Duration::from_millis(500)).await;
        slowest.push(fast.slowest_between(&FAST, from, to).1);
        fast.finish().await.spotless()?;
        if let Some(in_flight) = in_flight {
            in_flight.finish().await.spotless()?;
        }
    }
    Ok(slowest)
}

/// What some restarts take, in milliseconds, while `count` connections are idle; each of them has to
/// be alive after.
async fn restart_with_idle(stage: &mut Stage, traffic: &Traffic, count: u32) -> anyhow::Result<Vec<f64>> {
    let mut took = vec![];
    for _ in 0..ROUNDS {
        let idle = Load::start(stage.address(), traffic, &[(Kind::Idle, count)]);
        settle(&idle).await?;
        idle.restarts_begin();
        let from = idle.clock();
        stage.restart().await?;
        took.push((idle.clock() - from) * 1e3);
        idle.finish().await.spotless().with_context(|| format!("{count} idle connections"))?;
    }
    Ok(took)
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn row(name: &str, values: &[f64]) -> [String; 3] {
    let all: Vec<_> = values.iter().map(|value| format!("{value:.0}")).collect();
    [name.into(), format!("{:.0} ms", median(values)), all.join(", ")]
}
