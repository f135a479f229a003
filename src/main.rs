//! The command line: arguments, configuration, run, exit status (0 good, 1 failed or something was cut, 2 refused).

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use axum::BoxError;
use clap::{Parser, Subcommand, ValueEnum};
use layers::{instances, telemetry, top};
use service::config::Config;
use service::kubernetes::{self, Options};
use service::proxy::{self, Proxy, Server};
use service::{app, server, unit};
use tokio::runtime::Runtime;

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
    /// Print a load balancer's configuration for the effective configuration
    Proxy {
        kind: Proxy,
        /// Where the service runs: HOST, HOST:PORT, or the path of a Unix socket
        #[arg(required = true, value_name = "HOST")]
        servers: Vec<Server>,
        /// What clients know it as
        #[arg(long, value_parser = proxy::site, default_value = concat!(env!("CARGO_PKG_NAME"), ".example"))]
        site: String,
    },
    /// Print manifests for Kubernetes, for containers whose settings are the defaults and those in --config FILE
    Kubernetes(Options),
    /// Ask what runs here whether it is ready: all instances, or the one with this process id
    Health { pid: Option<u32> },
    /// Take this host out of its balancer's rotation: /readyz says 503, clients are told to go elsewhere, nobody is cut off
    Drain,
    /// Take it back
    Undrain,
    /// Print the metrics of all instances that run here, in Prometheus' text format
    Metrics {
        /// Answer the HTTP request on standard input instead
        #[arg(long)]
        http: bool,
    },
    /// Watch what all instances that run here do, second by second, until q or Ctrl-C
    Top {
        /// Show one second only
        #[arg(long)]
        once: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum UnitKind {
    Service,
    Socket,
    /// The service's, where it runs in a container of podman's
    Container,
    MetricsService,
    MetricsSocket,
}

fn version() -> String {
    format!("{} (hitless {})", env!("CARGO_PKG_VERSION"), hitless::VERSION)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (command, file) = (arguments.command.unwrap_or(Command::Run), arguments.config.as_deref());
    let config = match &command {
        Command::Kubernetes(_) => kubernetes::config(file),
        _ => Config::load(file),
    };
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            complain(format_args!("the configuration is refused:\n{error}"));
            return ExitCode::from(2);
        }
    };
    let done = match command {
        Command::Check => check(&config),
        Command::Unit { kind: UnitKind::Service } => print(&unit::service(&config)),
        Command::Unit { kind: UnitKind::Socket } => print(&unit::socket(&config)),
        Command::Unit { kind: UnitKind::Container } => print(&unit::container(&config)),
        Command::Unit { kind: UnitKind::MetricsService } => print(&unit::metrics_service(&config)),
        Command::Unit { kind: UnitKind::MetricsSocket } => print(&unit::metrics_socket(&config)),
        Command::Proxy { kind, servers, site } => {
            proxy::proxy(&config, kind, &servers, &site).map_err(BoxError::from).and_then(|text| print(&text))
        }
        Command::Kubernetes(options) => {
            kubernetes::manifests(&config, file, &options).map_err(BoxError::from).and_then(|text| print(&text))
        }
        Command::Health { pid } => health(&config, pid),
        Command::Drain => drain(true),
        Command::Undrain => drain(false),
        Command::Metrics { http } => metrics(http),
        Command::Top { once } => watch(once),
        Command::Run => server::process(config, app::app),
    };
    done.unwrap_or_else(|error| {
        complain(format_args!("{error}"));
        ExitCode::FAILURE
    })
}

type Done = Result<ExitCode, BoxError>;

/// Standard output. Whoever closes it has read what it wanted (`| head -1`): the exit status stays what it would be.
struct Output;

impl Write for Output {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let mut output = io::stdout().lock();
        match output.write_all(text).and_then(|()| output.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(text.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn print(text: &str) -> Done {
    Output.write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Says on standard error what is wrong: to the journal as errors (sd-daemon(3)). The exit status says so, too, where nobody
/// reads it.
fn complain(what: std::fmt::Arguments<'_>) {
    let priority = if telemetry::stderr_is_journal() { "<3>" } else { "" };
    for line in what.to_string().lines() {
        let _ = writeln!(io::stderr(), "{priority}{line}");
    }
}

fn check(config: &Config) -> Done {
    // Where there is no systemd there are no units, and the environment is as good a place as any.
    if std::env::var_os("INVOCATION_ID").is_some() {
        for reason in unit::asked_in_vain(config, &[]) {
            print(&format!("note: {reason}\n"))?;
        }
    }
    print("the configuration is good\n")
}

fn health(config: &Config, pid: Option<u32>) -> Done {
    let healthy = runtime()?.block_on(instances::health(service::NAME, &config.listen, pid, &mut Output))?;
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn drain(drained: bool) -> Done {
    let heard = runtime()?.block_on(instances::drain(service::NAME, drained, &mut Output))?;
    Ok(if heard { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn metrics(http: bool) -> Done {
    if http {
        runtime()?.block_on(instances::http(service::NAME, io::stdin().lock(), &mut Output))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&runtime()?.block_on(instances::metrics(service::NAME))?.ok_or("no instance runs here")?)
}

fn watch(once: bool) -> Done {
    runtime()?.block_on(top::top(service::NAME, once))?;
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
