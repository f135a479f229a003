//! Where the time of a restart goes, from what systemd and the service themselves write down.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use anyhow::Context;

use crate::floor::moments;
use crate::measure::median;
use lab::host::Host;
use lab::record::millis;

/// The steps of a restart, in their order, and who is at work.
const STEPS: [(&str, &str); 8] = [
    ("the signal until connections are paused", "all are served"),
    ("the pause: connections are detached and queued", "old process"),
    ("it ends, and systemd has noticed", "kernel, systemd"),
    ("until the new process is forked", "systemd"),
    ("sandbox, exec(2), link, configuration", "systemd, kernel"),
    ("runtime, connections are taken over", "new process"),
    ("until systemd has read READY=1", "all are served"),
    ("from the pause until all are served again", "clients wait"),
];

/// The moments between the steps, by the messages that tell of them.
const PAUSES: &str = "pausing connections";
const LEFT: &str = "left after ";
const CONFIGURED: &str = "configured";
const SERVING: &str = "serving on ";

/// What the service has to log, so that its steps can be told apart.
pub const FILTER: &str = "info,hitless::lifecycle=debug,service::server=debug";

/// How long each of the steps took, in milliseconds.
pub type Steps = [f64; STEPS.len()];

/// Tells what the service's last restart was made of.
pub async fn of_last_restart(host: &Host, name: &str) -> anyhow::Result<Steps> {
    let [told, ended, forked, ready] =
        moments(host, &format!("{name}.service"), ["ActiveExit", "InactiveEnter", "ExecMainStart", "ActiveEnter"])
            .await?;
    let journal = host
        .run(&format!("journalctl --sync; journalctl --unit={name}.service --lines=40 --output=json --no-pager"))
        .await?;
    let said = said(&journal)?;
    let at = |message: &str| said.get(message).copied().with_context(|| format!("the journal lacks \"{message}\""));
    let (closes, left, configured, serving) = (at(PAUSES)?, at(LEFT)?, at(CONFIGURED)?, at(SERVING)?);
    Ok([
        closes - told,
        left - closes,
        ended - left,
        forked - ended,
        configured - forked,
        serving - configured,
        ready - serving,
        serving - closes,
    ])
}

/// When each of the messages was last written, in milliseconds of systemd's monotonic clock.
fn said(journal: &str) -> anyhow::Result<HashMap<&'static str, f64>> {
    let mut said = HashMap::new();
    for line in journal.lines() {
        let entry: HashMap<String, serde_json::Value> = serde_json::from_str(line)?;
        let micros = |field: &str| entry.get(field)?.as_str()?.parse::<f64>().ok();
        // The journal notes both clocks when it receives a message; the service's own note is of the other one.
        let happened = || {
            let time = humantime::parse_rfc3339(entry.get("TIMESTAMP")?.as_str()?).ok()?;
            Some(time.duration_since(UNIX_EPOCH).ok()?.as_micros() as f64)
        };
        let (Some(received), Some(monotonic), Some(happened)) =
            (micros("__REALTIME_TIMESTAMP"), micros("__MONOTONIC_TIMESTAMP"), happened())
        else {
            continue;
        };
        let Some(message) = entry.get("MESSAGE").and_then(serde_json::Value::as_str) else { continue };
        if let Some(known) = [PAUSES, LEFT, CONFIGURED, SERVING].into_iter().find(|known| message.starts_with(known)) {
            said.insert(known, (monotonic - (received - happened)) / 1e3);
        }
    }
    Ok(said)
}

/// The medians of some restarts' steps as a table, a column for each series.
pub fn table(series: &[(String, Vec<Steps>)]) -> String {
    let mut rows = vec![];
    let mut head = vec!["where the time goes".to_owned(), "who".to_owned()];
    head.extend(series.iter().map(|(name, _)| name.clone()));
    rows.push(head);
    for (step, (name, who)) in STEPS.iter().enumerate() {
        let mut row = vec![(*name).to_owned(), (*who).to_owned()];
        row.extend(series.iter().map(|(_, steps)| {
            let values: Vec<_> = steps.iter().map(|steps| steps[step]).collect();
            millis(median(&values))
        }));
        rows.push(row);
    }
    markdown(&rows)
}

/// What the floor consists of, as a table: the parts of a sandbox, added one after the other.
pub fn sandbox(parts: &[(&str, f64)]) -> String {
    let mut rows = vec![["what the floor is made of", "with it", "it adds"].map(str::to_owned).to_vec()];
    let mut before = 0.0;
    for (part, took) in parts {
        rows.push(vec![(*part).to_owned(), millis(*took), format!("{:.0} ms", took - before)]);
        before = *took;
    }
    markdown(&rows)
}

/// Rows as a table for a README.
pub fn markdown(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        text += &format!("| {} |\n", row.join(" | "));
        if number == 0 {
            text += &format!("|---|{}\n", "---:|".repeat(row.len() - 1));
        }
    }
    text
}
