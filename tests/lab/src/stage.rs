//! What a service stands on while it is restarted: a Debian host with systemd, or the stand-in.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitStatus;

use anyhow::{Context, ensure};
use tokio::process::Command;
use toml::Table;

use crate::host::Host;
use crate::http1::Place;
use crate::manager::{self, Manager, Service};
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

/// A Unix socket for the service.
pub const SOCKET: &str = "/run/service.sock";

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

    /// Installs the example of an adoption there, with the two units beside it.
    pub async fn deploy_adopted(host: Host, subject: &Subject) -> anyhow::Result<Self> {
        const NAME: &str = "adopted";
        let program = subject.build_machinery_example(NAME).await?;
        host.put(&program, &format!("/opt/{NAME}/{NAME}"), 0o755).await?;
        for unit in [format!("{NAME}.socket"), format!("{NAME}.service")] {
            let text = std::fs::read_to_string(subject.directory.join("src/hitless/examples").join(&unit))?;
            host.write(&text, &format!("/etc/systemd/system/{unit}")).await?;
        }
        host.run(&format!("systemctl daemon-reload && systemctl enable --now {NAME}.socket {NAME}.service")).await?;
        Ok(Self::Host { host, name: NAME.into(), listen: Listen::Tcp })
    }

    /// Installs `lab peer` there: bare axum behind a systemd socket.
    pub async fn deploy_peer(host: Host) -> anyhow::Result<Self> {
        host.put(&std::env::current_exe()?, "/opt/peer/peer", 0o755).await?;
        let socket = format!("[Socket]\nListenStream=0.0.0.0:{PORT}\nBacklog=4096\nNoDelay=yes\n");
        let service = "[Unit]\nStartLimitIntervalSec=0\n\n\
                       [Service]\nType=notify\nExecStart=/opt/peer/peer peer\nLimitNOFILE=65536\nTimeoutStopSec=30s\n";
        host.write(&socket, "/etc/systemd/system/peer.socket").await?;
        host.write(service, "/etc/systemd/system/peer.service").await?;
        host.run("systemctl daemon-reload && systemctl start peer.socket peer.service").await?;
        Ok(Self::Host { host, name: "peer".into(), listen: Listen::Tcp })
    }

    /// Builds the service and starts it under the stand-in.
    pub async fn stand_in(subject: &Subject, settings: &Table) -> anyhow::Result<Self> {
        let mut manager = Manager::new(subject.build().await?).args(["run"]);
        for (key, value) in flat(settings) {
            manager = manager.env(setting(&subject.name, &key), value);
        }
        Ok(Self::StandIn(Box::new(manager.start().await?)))
    }

    /// Starts `lab peer` under the stand-in.
    pub async fn stand_in_peer() -> anyhow::Result<Self> {
        let service = Manager::new(std::env::current_exe()?).args(["peer"]).one_signal().start().await?;
        Ok(Self::StandIn(Box::new(service)))
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
            Self::StandIn(service) => {
                let status: ExitStatus = service.restart().await?;
                ensure!(status.success(), "the old process {}", manager::describe(status));
                Ok(())
            }
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
