//! `make bench`: the service's throughput beside bare axum's, in turn, on this machine.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use tokio::process::Command;
use toml::Table;

use crate::measure::median;
use crate::peer;
use lab::record::aligned;
use lab::stage::Stage;
use lab::subject::Subject;

/// How many rounds each; the median of their ratios counts, because neighbours disturb both alike.
const ROUNDS: usize = 9;

/// Has wrk ask both for `/livez`, one after the other, and prints the ratio of what they answered in a second.
pub async fn bench() -> anyhow::Result<()> {
    let subject = Subject::find(&std::env::current_dir()?).await?;
    let service = Stage::stand_in(&subject, &Table::new()).await?;
    let peer = peer::stand_in().await?;
    let mut rows = vec![["".to_owned(), "bare axum".into(), subject.name.clone(), "ratio".into()]];
    let mut ratios = vec![];
    for round in 0..=ROUNDS {
        let (bare, ours) = (throughput(peer.address()).await?, throughput(service.address()).await?);
        // The first warms both up.
        if round > 0 {
            ratios.push(ours / bare);
            rows.push([
                format!("round {round}"),
                format!("{bare:.0}/s"),
                format!("{ours:.0}/s"),
                format!("{:.2}", ours / bare),
            ]);
        }
    }
    rows.push(["median".into(), "".into(), "".into(), format!("{:.2}", median(&ratios))]);
    println!("\n{}", aligned(&rows));
    Ok(())
}

/// The requests answered in a second, over 32 connections for 2 s.
async fn throughput(address: SocketAddr) -> anyhow::Result<f64> {
    let output = Command::new("wrk")
        .args(["--threads=1", "--connections=32", "--duration=2s"])
        .arg(format!("http://{address}/livez"))
        .kill_on_drop(true)
        .output()
        .await
        .context("starting wrk (tests/setup.sh bench)")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "not every request was answered:\n{said}");
    let figure = said.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    Ok(figure.context("wrk names no figure")?.trim().parse()?)
}
