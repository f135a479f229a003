//! A command's end: by itself, or interrupted, which cleans up first.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::rehearse::Outcome;

/// Works, unless it is interrupted.
#[tokio::main]
pub async fn run(work: impl Future<Output = anyhow::Result<Outcome>>) -> ExitCode {
    tokio::select! {
        done = work => ended(done),
        // `work` is dropped, and with it every host and process it has made.
        () = interrupted() => {
            eprintln!("\ninterrupted: cleaned up");
            ExitCode::from(130)
        }
    }
}

/// The exit status of what came of it; an error is told.
pub fn ended(done: anyhow::Result<Outcome>) -> ExitCode {
    match done {
        Ok(Outcome::Kept) => ExitCode::SUCCESS,
        Ok(Outcome::Broken) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() {
    let [mut interrupt, mut terminate, mut hangup] =
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .map(|kind| signal(kind).expect("these signals can be caught"));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
