//! The command line: arguments, configuration, run, exit status (0 good, 1 failed or something was cut, 2 refused).

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use service::config::Config;
use service::hitless::systemd::{self, Given};
use service::{server, telemetry, unit};

/// The layers around a handler allocate some dozen times for each request, which this does in half the time of glibc's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The service, and what installs it.
#[derive(Parser)]
#[command(name = env!("CARGO_PKG_NAME"), version = version(), about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// A configuration file, over the host's own
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve (the default)
    Run,
    /// Check the configuration
    Check,
    /// Print a systemd unit for the effective configuration
    Unit { kind: UnitKind },
}

#[derive(Clone, Copy, ValueEnum)]
enum UnitKind {
    Service,
    Socket,
}

fn version() -> String {
    format!("{} (hitless {})", env!("CARGO_PKG_VERSION"), service::hitless::VERSION)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("the configuration is refused:\n{error}");
            return ExitCode::from(2);
        }
    };
    match arguments.command.unwrap_or(Command::Run) {
        Command::Check => println!("the configuration is good"),
        Command::Unit { kind: UnitKind::Service } => print!("{}", unit::service(&config)),
        Command::Unit { kind: UnitKind::Socket } => print!("{}", unit::socket(&config)),
        Command::Run => {
            // Before there are threads: it changes the environment.
            let given = systemd::given();
            return run(config, given).unwrap_or_else(|error| {
                if tracing::dispatcher::has_been_set() {
                    tracing::error!("{error}");
                } else {
                    eprintln!("{error}");
                }
                ExitCode::FAILURE
            });
        }
    }
    ExitCode::SUCCESS
}

fn run(config: Config, given: std::io::Result<Given>) -> Result<ExitCode, Box<dyn std::error::Error>> {
    telemetry::init(&config.log)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(server::run(config, given?));
    // What was cut at T may block a thread: nobody waits for it.
    runtime.shutdown_background();
    Ok(ExitCode::from(&outcome?))
}
