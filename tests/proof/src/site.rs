//! A host with the service on it, as an operator finds it: what is in charge there, and what lies about.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, ensure};
use toml::Table;

use lab::host::{Host, Image};
use lab::stage::PORT;

/// Settings that make a fault show soon: a start that hangs is given up. A client that is idle is so all the time.
pub const BRISK: &str = r#"
[limits]
idle_timeout = "1h"
[unit]
start_timeout = "5s"
"#;

/// A throwaway host, and the name of the service that is deployed to it.
#[derive(Debug)]
pub struct Site {
    pub host: Host,
    pub name: String,
}

impl Site {
    /// Boots a host and writes the service's configuration there.
    pub async fn boot(image: &Image, name: &str, settings: &Table) -> anyhow::Result<Self> {
        let site = Self { host: Host::boot(image).await?, name: name.into() };
        site.configure(settings).await?;
        Ok(site)
    }

    /// Writes the service's configuration.
    async fn configure(&self, settings: &Table) -> anyhow::Result<()> {
        let listen = format!("listen = \"0.0.0.0:{PORT}\"\n");
        self.host.write(&(listen + &settings.to_string()), &format!("/etc/{}/config.toml", self.name)).await
    }

    /// Where the service listens.
    pub fn address(&self) -> SocketAddr {
        (IpAddr::from(self.host.address()), PORT).into()
    }

    /// Runs a shell script on the host; `$N` in it is the service's name.
    pub async fn run(&self, script: &str) -> anyhow::Result<String> {
        self.host.run(&format!("set -eu\nN={}\n{script}", self.name)).await
    }

    /// The release that is current, once it is certain that every instance runs it and none of them is a trial. (A wrapper
    /// around another program says in its environment which release it is.)
    pub async fn in_charge(&self) -> anyhow::Result<String> {
        const INSTANCES: &str = r#"
            echo "$(readlink /opt/$N/current) $(readlink -f /opt/$N/current/$N)"
            for unit in $(systemctl list-units --plain --no-legend "$N.service" "$N@*.service" | cut -d ' ' -f 1); do
                pid=$(systemctl show --property=MainPID --value "$unit")
                wrapper=$(tr '\0' '\n' <"/proc/$pid/environ" | sed -n 's/^LAB_WRAPPER=//p')
                echo "$unit $(systemctl is-active "$unit") ${wrapper:-$(readlink "/proc/$pid/exe")}"
            done"#;
        let text = self.run(INSTANCES).await?;
        let mut lines = text.lines();
        let (current, program) = lines.next().and_then(|line| line.split_once(' ')).context("no current release")?;
        let release = current.strip_prefix("releases/").with_context(|| format!("current leads to {current}"))?;
        let instances: Vec<_> = lines.collect();
        ensure!(!instances.is_empty(), "no instance runs");
        for instance in instances {
            ensure!(instance.ends_with(&format!(" active {program}")), "{release} is current, but: {instance}");
            ensure!(!instance.contains("@next"), "the trial was left behind: {instance}");
        }
        Ok(release.into())
    }

    /// Everything of the service on the host that outlives a deploy: files, links and units, a line each.
    pub async fn traces(&self) -> anyhow::Result<Traces> {
        const TRACES: &str = r#"
            cd /
            there() { for place; do [ ! -e "$place" ] || echo "$place"; done; }
            kept=$(there "opt/$N" "etc/$N" etc/systemd/system run/systemd/system)
            find $kept -mindepth 1 \( -type l -printf '%p -> %l\n' -o -printf '%p\n' \)
            find $(there "etc/$N" etc/systemd/system run/systemd/system) -type f -exec cksum {} +
            find $(there run/systemd/transient) tmp -name "*$N*" ! -name 'systemd-private-*'
            systemctl list-units --all --plain --no-legend "$N*" | awk '{ print $1, $3 }'
            systemctl list-units --plain --no-legend --state=failed | awk '{ print $1, "failed" }'"#;
        Ok(Traces(self.run(TRACES).await?.lines().map(str::to_owned).collect()))
    }

    /// What Prometheus is told at a port of the host's own; nothing where nobody listens there.
    pub async fn scrape(&self, port: u16) -> anyhow::Result<String> {
        const SCRAPE: &str = r#"bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$0" || exit 0
            printf "GET /metrics HTTP/1.1\r\nHost: lab\r\n\r\n" >&3; cat <&3' 2>/dev/null "#;
        self.run(&format!("{SCRAPE}{port}")).await
    }

    /// The releases that are kept, the oldest first.
    pub async fn releases(&self) -> anyhow::Result<Vec<String>> {
        let list = self.run("ls /opt/$N/releases | sort -n").await?;
        Ok(list.lines().map(str::to_owned).collect())
    }

    /// The end of the service's journal.
    pub async fn log(&self) -> String {
        self.run(r#"journalctl --unit="$N*" --lines=30 --no-pager"#).await.unwrap_or_else(|error| format!("{error:#}"))
    }
}

/// What [`Site::traces`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces(std::collections::BTreeSet<String>);

impl Traces {
    /// Fails with what is not as it was.
    pub fn same_as(&self, before: &Self) -> anyhow::Result<()> {
        let gone = before.0.difference(&self.0).map(|line| format!("- {line}"));
        let left = self.0.difference(&before.0).map(|line| format!("+ {line}"));
        let changes: Vec<_> = gone.chain(left).collect();
        ensure!(changes.is_empty(), "the host is not as it was:\n{}", changes.join("\n"));
        Ok(())
    }

    /// The same without what belongs to single releases: what two deploys that went well have in common.
    pub fn but_releases(mut self, name: &str) -> Self {
        let releases = format!("opt/{name}/releases/");
        let current = format!("opt/{name}/current ->");
        self.0.retain(|line| !line.starts_with(&releases) && !line.starts_with(&current));
        self
    }
}
