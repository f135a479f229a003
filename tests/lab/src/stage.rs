//! What a service stands on while it is restarted: a Debian host with systemd, or the stand-in.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tokio::process::Command;
use toml::Table;

use crate::host::Host;
use crate::http1::Place;
use crate::manager::{Manager, Service};
use crate::subject::Subject;
use crate::traffic::flat;

/// Where a service listens on its host.
pub const PORT: u16 = 8080;

/// What a service's socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    Tcp,
    /// A Unix socket of this path on the host.
    Unix(&'static str),
}

/// What restarts the service.
#[derive(Debug)]
pub enum Stage {
    /// `systemctl restart NAME.service` on a host.
    Host {
        host: Host,
        name: String,
        listen: Listen,
    },
    StandIn(Box<Service>),
}

impl Stage {
    /// Deploys a service to the host with its own `make deploy`.
    pub async fn deploy(host: Host, subject: &Subject, listen: Listen, settings: &Table) -> anyhow::Result<Self> {
        let name = subject.name.clone();
        let at = match listen {
            Listen::Tcp => format!("listen = \"0.0.0.0:{PORT}\"\n"),
            Listen::Unix(path) => format!("listen = \"{path}\"\n"),
        };
        host.write(&format!("{at}{settings}"), &format!("/etc/{name}/config.toml")).await?;
        let deploy = Command::new("make")
            .args(["--no-print-directory", "deploy"])
            .arg(format!("HOST=root@{}", host.address()))
            .arg(format!("SSH_OPTS={}", host.ssh_opts()))
            .current_dir(&subject.directory)
            .env("CARGO_TARGET_DIR", &subject.target)
            // Of the make that started the laboratory; it would count as options of this one.
            .env_remove("MAKEFLAGS")
            .kill_on_drop(true)
            .status()
            .await
            .context("starting make")?;
        ensure!(deploy.success(), "make deploy failed ({deploy})");
        Ok(Self::Host { host, name, listen })
    }

    /// Builds the service and starts it under the stand-in.
    pub async fn stand_in(subject: &Subject, settings: &Table) -> anyhow::Result<Self> {
        let manager = with_settings(subject.build().await?, &subject.name, settings);
        Ok(Self::StandIn(Box::new(manager.start().await?)))
    }

    /// "Debian 12, systemd 252".
    pub fn name(&self) -> &str {
        match self {
            Self::Host { host, .. } => &host.stage,
            Self::StandIn(_) => "stand-in for systemd",
        }
    }

    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Host { host, .. } => (IpAddr::from(host.address()), PORT).into(),
            Self::StandIn(service) => service.address(),
        }
    }

    /// Where clients outside the host find it.
    pub fn place(&self) -> Place {
        match self {
            Self::Host { host, listen: Listen::Unix(path), .. } => {
                Place::Unix(host.root().join(Path::new(path).strip_prefix("/").unwrap_or(Path::new(path))))
            }
            _ => self.address().into(),
        }
    }

    /// The host, and what the service's socket is there.
    pub fn host(&self) -> Option<(&Host, Listen)> {
        match self {
            Self::Host { host, listen, .. } => Some((host, *listen)),
            Self::StandIn(_) => None,
        }
    }

    /// Restarts the service and returns once it is ready; an error if the old process ended badly or
    /// the new one did not come up.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Host { host, name, .. } => {
                let command = format!("systemctl restart {name}.service && systemctl is-active --quiet {name}.service");
                host.run(&command).await.map(drop)
            }
            Self::StandIn(service) => service.restart().await,
        }
    }

    /// The end of the service's log.
    pub async fn log(&self) -> String {
        let log = match self {
            Self::Host { host, name, .. } => host
                .run(&format!("journalctl --unit={name}.service --lines=30 --no-pager"))
                .await
                .unwrap_or_else(|error| format!("{error:#}")),
            Self::StandIn(service) => service.log(),
        };
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// The environment variable of a setting: `MY_API_LIMITS__MAX_CONNECTIONS`.
pub fn setting(name: &str, key: &str) -> String {
    format!("{name}_{}", key.replace('.', "__")).replace('-', "_").to_uppercase()
}

/// Has the service of this name, which is built there, started with settings.
pub fn with_settings(program: impl Into<PathBuf>, name: &str, settings: &Table) -> Manager {
    let env = flat(settings).into_iter().map(|(key, value)| (setting(name, &key), value)).collect();
    Manager { args: vec!["run".into()], env, ..Manager::new(program) }
}
