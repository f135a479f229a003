//! The tasks that run for as long as the process does.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{Handle, Reason};
use crate::connections::{Gate, Limits};
use crate::sibling::Door;
use crate::systemd;

/// How often is looked at what the connections hold, at the least.
const RELIEVE_PAUSE: Duration = Duration::from_millis(100);

/// Resolves when one of the tasks ends that run for as long as the process does, and says so in the log.
pub async fn failure(machinery: &mut JoinSet<()>, door: &mut Option<Door>) -> Reason {
    let door = async {
        match door {
            Some(door) => door.ended().await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        Some(ended) = machinery.join_next() => ended,
        ended = door => ended,
    };
    let why = ended.map_or_else(|error| error.to_string(), |()| "a task has ended".to_owned());
    tracing::error!("the service cannot go on, and leaves to be started anew: {why}");
    Reason::Failure
}

/// Keeps ending what has reached its limit.
pub async fn expire(gate: Arc<Gate>) {
    let Limits { header_timeout, body_timeout, send_timeout, idle_timeout, linger_timeout, .. } = *gate.limits();
    let shortest = header_timeout.min(body_timeout).min(send_timeout).min(idle_timeout).min(linger_timeout);
    let pause = (shortest / 8).clamp(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        tokio::time::sleep(pause).await;
        gate.expire();
    }
}

/// Keeps what the connections hold within its limit.
pub async fn relieve(gate: Arc<Gate>) {
    loop {
        gate.taken_in(RELIEVE_PAUSE).await;
        gate.relieve();
    }
}

/// Keeps telling the service manager how the service is, for `systemctl status` and scripts: "serving 12 connections;
/// 3456 requests, 2 failed".
pub async fn report(gate: Arc<Gate>, handle: Handle) {
    let mut told = String::new();
    let mut phase = handle.0.phase.clone();
    loop {
        let (answered, failed) = gate.counts();
        let status = format!("{} {} connections; {answered} requests, {failed} failed", handle.phase(), gate.len());
        if status != told && systemd::status(&status) {
            told = status;
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), phase.changed()).await;
    }
}
