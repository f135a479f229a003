//! Whether the service's data is what its clients were told, as a script of the owner's finds.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use tokio::time::sleep;

use crate::load::{Kind, Load};
use crate::stage::Stage;
use crate::traffic::Traffic;

/// Who asks while something goes wrong.
const CROWD: [(Kind, u32); 2] = [(Kind::PAUSING, 30), (Kind::FRESH, 4)];

/// How long they ask before it does, and afterwards.
const MOMENT: Duration = Duration::from_secs(3);

/// What comes behind the restarts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// The script that compares.
    pub check: PathBuf,
    /// What goes wrong before: commands for the host's shell.
    #[serde(default)]
    pub disturb: Vec<String>,
}

/// What became of the requests that are unlike any other: a line for each.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<String>>);

impl Ledger {
    /// Notes whether the right answer came to a request (`POST /orders`), if there is an id in it.
    pub fn note(&self, request: &str, id: Option<&String>, acknowledged: bool) {
        let Some(id) = id else { return };
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{request} {id} {}", if acknowledged { 't' } else { 'f' });
    }

    fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Lets go wrong what the owner wants to, and has the data compared with what clients were told. Prints the verdict.
pub async fn holds(stage: &Stage, traffic: &Traffic) -> anyhow::Result<bool> {
    let Some(data) = &traffic.data else { return Ok(true) };
    let Some((host, _)) = stage.host() else {
        println!("The data is not compared with what clients were told: that takes a host.");
        return Ok(true);
    };
    let script = std::fs::read_to_string(&data.check).with_context(|| format!("reading {}", data.check.display()))?;
    let service = format!("SERVICE='{}'\n", traffic.service);
    for command in &data.disturb {
        // Nobody is promised an answer now. Who gets one can rely on it all the same.
        let load = Load::start(stage.place(), traffic, &CROWD);
        sleep(MOMENT).await;
        host.run(&format!("{service}{command}")).await?;
        sleep(MOMENT).await;
        let told = load.totals();
        load.finish().await;
        println!("{command}: {} answered, {} not", told.answered, told.lost + told.refused);
    }
    host.write(&traffic.ledger.text(), "/run/ledger").await?;
    host.write(&format!("{service}{script}"), "/run/check").await?;
    let compared = host.run("sh -e /run/check </run/ledger").await;
    println!("{}", compared.as_ref().map_or_else(|error| format!("{error:#}"), |said| said.trim_end().to_owned()));
    Ok(compared.is_ok())
}
