//! `lab`: restarts a service under load, and tells what was lost.

use std::process::ExitCode;

use clap::Parser;
use lab::{command, rehearse};

#[derive(Parser)]
#[command(about = "The laboratory: restarts a service under load, and tells what was lost")]
enum Command {
    /// Rehearse a deploy and restarts on a throwaway Debian.
    Rehearse(rehearse::Options),
}

fn main() -> ExitCode {
    let Command::Rehearse(options) = Command::parse();
    command::run(async move { rehearse::rehearse(&options).await })
}
