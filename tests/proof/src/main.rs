//! `proof`: restarts, deploys and hurts the template under load, and tells what was lost.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lab::command;
use lab::rehearse::Outcome;
use proof::{
    attack, attacker, balance, bench, browser, chaos, container, cost, deploy, faults, floor, measure, peer, pods,
    rehearse, releases, rolling, storm, stuff, watched,
};

#[derive(Parser)]
#[command(about = "The proofs: restart, deploy and hurt the template under load, and tell what was lost")]
enum Command {
    /// Rehearse a deploy and restarts on a throwaway Debian.
    Rehearse(rehearse::Options),
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
    /// Restart and stop containers of the service.
    Container(container::Options),
    /// Play what Kubernetes does to containers of the service.
    Pods(pods::Options),
    /// Attack a service, and see what that costs clients who behave.
    Attack(attack::Options),
    /// Have Prometheus watch the service through restarts, a deploy and a crash, and compare what it is told.
    Watched(watched::Options),
    /// Restart a service among clients that say and do anything, and see that nothing is left of them.
    Storm(storm::Options),
    /// Hand over between an earlier release and this one, to and fro.
    Releases,
    /// Compare the throughput with bare axum's.
    Bench,
    /// Count the instructions and the allocations of a request, beside bare axum's, and with each layer taken away.
    Cost(cost::Options),
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
    match command {
        // Without a runtime: it is to be as quick as can be.
        Command::Floor(options) => command::ended(floor::serve(&options).map(|()| Outcome::Kept)),
        // It has its own way with SIGTERM.
        Command::Peer => command::ended(served()),
        command => command::run(work(command)),
    }
}

#[tokio::main]
async fn served() -> anyhow::Result<Outcome> {
    peer::serve(Duration::from_secs(1)).await.map(|()| Outcome::Kept)
}

async fn work(command: Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Rehearse(options) => rehearse::rehearse(&options).await,
        Command::Measure(options) => measure::measure(&options).await,
        Command::Deploy(options) => deploy::deploy(&options).await,
        Command::Rolling(options) => rolling::rolling(&options).await,
        Command::Faults(options) => faults::faults(&options).await,
        Command::Browser(options) => browser::browser(&options).await,
        Command::Chaos(options) => chaos::chaos(&options).await,
        Command::Balance(options) => balance::balance(&options).await,
        Command::Container(options) => container::container(&options).await,
        Command::Pods(options) => pods::pods(&options).await,
        Command::Attack(options) => attack::attacks(&options).await,
        Command::Storm(options) => storm::storm(&options).await,
        Command::Watched(options) => watched::watched(&options).await,
        Command::Releases => releases::releases().await,
        Command::Attacker(options) => attacker::attacker(&options).await.map(|()| Outcome::Kept),
        Command::Bench => bench::bench().await.map(|()| Outcome::Kept),
        Command::Cost(options) => cost::cost(&options).await,
        Command::Stuff(options) => stuff::stuff(&options).map(|never| match never {}),
        Command::Floor(_) | Command::Peer => unreachable!("they have no use for this runtime"),
    }
}
