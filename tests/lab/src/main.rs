//! `lab`: restarts, deploys and hurts a service under load, and tells what was lost.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lab::rehearse::{self, Options, Outcome};
use lab::{attack, attacker, balance, browser, chaos, deploy, faults, floor, measure, rolling, storm, stuff};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about = "The laboratory: restarts, deploys and hurts a service under load, and tells what was lost")]
enum Command {
    /// Rehearse a deploy and restarts on a throwaway Debian.
    Rehearse(Options),
    /// Measure what a restart costs clients, with up to 10,000 connections and with slow requests and uploads in flight,
    /// beside what systemd itself takes, and where the time goes.
    Measure(measure::Options),
    /// Rehearse updates and rollbacks by ssh.
    Deploy(deploy::Options),
    /// Restart several instances in turn, and compare one socket with one for each.
    Rolling(rolling::Options),
    /// Try all that can go wrong with a deploy.
    Faults(faults::Options),
    /// Restart the example of streams and WebSockets under a real browser.
    Browser(browser::Options),
    /// Try all that can go wrong with a service that runs.
    Chaos(chaos::Options),
    /// Restart, stop and reboot hosts behind a load balancer.
    Balance(balance::Options),
    /// Attack a service, and see what that costs clients who behave.
    Attack(attack::Options),
    /// Restart a service among clients that say and do anything, and see that nothing is left of them.
    Storm(storm::Options),
    /// Compare the throughput with bare axum's.
    Bench,
    /// Be an attack.
    #[command(hide = true)]
    Attacker(attacker::Options),
    /// Be the system for contrast: axum's own graceful shutdown on a socket of systemd's.
    #[command(hide = true)]
    Peer,
    /// Be the service that does nothing but say that it is ready.
    #[command(hide = true)]
    Floor(floor::Options),
    /// On a host, in place of the service: fill its descriptor store, then become the service.
    #[command(hide = true)]
    Stuff(stuff::Options),
}

fn main() -> ExitCode {
    let command = Command::parse();
    if let Command::Floor(options) = command {
        // Without a runtime: it is to be as quick as can be.
        return floor::serve(&options).map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS);
    }
    work(command)
}

#[tokio::main]
async fn work(command: Command) -> ExitCode {
    // The peer has its own way with SIGTERM.
    let interruptible = !matches!(command, Command::Peer);
    let work = async {
        match command {
            Command::Rehearse(options) => rehearse::rehearse(&options).await,
            Command::Measure(options) => measure::measure(&options).await,
            Command::Deploy(options) => deploy::deploy(&options).await,
            Command::Rolling(options) => rolling::rolling(&options).await,
            Command::Faults(options) => faults::faults(&options).await,
            Command::Browser(options) => browser::browser(&options).await,
            Command::Chaos(options) => chaos::chaos(&options).await,
            Command::Balance(options) => balance::balance(&options).await,
            Command::Attack(options) => attack::attacks(&options).await,
            Command::Storm(options) => storm::storm(&options).await,
            Command::Attacker(options) => attacker::attacker(&options).await.map(|()| Outcome::Kept),
            Command::Bench => lab::bench::bench().await.map(|()| Outcome::Kept),
            Command::Floor(_) => unreachable!("it needs no runtime"),
            Command::Peer => lab::peer::serve(Duration::from_secs(1)).await.map(|()| Outcome::Kept),
            Command::Stuff(options) => stuff::stuff(&options).map(|never| match never {}),
        }
    };
    let done = tokio::select! {
        done = work => done,
        // `work` is dropped, and with it every host and process it has made.
        () = interrupted(), if interruptible => {
            eprintln!("\ninterrupted: cleaned up");
            return ExitCode::from(130);
        }
    };
    match done {
        Ok(Outcome::Kept) => ExitCode::SUCCESS,
        Ok(Outcome::Broken) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("lab: {error:#}");
    ExitCode::FAILURE
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
