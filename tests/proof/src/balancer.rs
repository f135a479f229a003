//! HAProxy, nginx and Caddy, as a host's Debian brings them, before several hosts: set up as the service prints it, or shortly
//! and without retries, so that clients are told of every failure.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::kinds;
use lab::host::{Host, Image};
use lab::http1::Place;
use lab::load::Kind;

/// Where they have what is theirs.
const HOME: &str = "/run/lab";

/// What a host of balancers has besides: Caddy, and a certificate.
const INSTALL: &str = "apt-get update -q && apt-get install -qy --no-install-recommends caddy ssl-cert";

/// Whose program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Asks each server for `/readyz` once a second; two answers decide.
    Haproxy,
    /// Its defaults: a server that fails once is left out for 10 s, and what failed is tried elsewhere.
    Nginx,
    /// Only as the service prints it.
    Caddy,
}

impl Program {
    pub fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Caddy => "Caddy",
        }
    }

    /// Who asks through it on connections that are kept.
    pub fn clients(self) -> Kind {
        match self {
            Self::Haproxy => kinds::HAPROXY,
            Self::Nginx => kinds::NGINX,
            Self::Caddy => kinds::CADDY,
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy -db -f /run/lab/balancer.conf",
            // Without a process besides this one, which might outlive it.
            Self::Nginx => {
                "nginx -e /run/lab/balancer.out -c /run/lab/balancer.conf -g 'daemon off; master_process off;'"
            }
            Self::Caddy => "env HOME=/run/lab caddy run --config /run/lab/balancer.conf --adapter caddyfile",
        }
    }

    /// Without retries.
    fn plain(self, servers: &[SocketAddr]) -> String {
        let numbered = servers.iter().zip(1..);
        match self {
            Self::Haproxy => {
                haproxy(numbered.map(|(server, number)| format!("    server {number} {server}\n")).collect())
            }
            Self::Nginx => nginx(numbered.map(|(server, _)| format!("        server {server};\n")).collect()),
            Self::Caddy => unreachable!("Caddy is only set up as the service prints it"),
        }
    }

    /// The service's argument, where the file belongs that it prints, and what accepts it there.
    fn printed(self) -> [&'static str; 3] {
        match self {
            Self::Haproxy => ["haproxy", "/etc/haproxy/haproxy.cfg", "haproxy -c -f /etc/haproxy/haproxy.cfg"],
            Self::Nginx => ["nginx", "/etc/nginx/conf.d/service.conf", "nginx -t"],
            Self::Caddy => [
                "caddy",
                "/etc/caddy/Caddyfile",
                "HOME=/run/lab caddy validate --config /etc/caddy/Caddyfile --adapter caddyfile",
            ],
        }
    }

    /// What the service prints, without what it says of the host: there is no TLS here, and clients come by a Unix socket.
    fn moved(self, printed: &str) -> String {
        let mut moved = String::new();
        for line in printed.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            moved += &match (self, &words[..]) {
                (Self::Haproxy, ["log", "/dev/log", ..]) => "    log stdout format raw local0".to_owned(),
                (Self::Haproxy, ["stats", "socket", ..]) => format!("    stats socket {HOME}/balancer.stats"),
                (Self::Haproxy, ["bind", ":80"]) => format!("    bind {HOME}/balancer.sock"),
                (Self::Haproxy, ["user" | "group", _] | ["bind", ..] | ["http-request", "redirect", ..]) => continue,
                (Self::Nginx, ["listen", "80;"]) => format!("    listen unix:{HOME}/other.sock;"),
                (Self::Nginx, ["listen", "443", ..]) => format!("    listen unix:{HOME}/balancer.sock;"),
                (Self::Nginx, ["listen" | "ssl_certificate" | "ssl_certificate_key", ..]) => continue,
                (Self::Caddy, ["{"]) => "{\n\tadmin off".to_owned(),
                (Self::Caddy, [SITE, "{"]) => format!("http:// {{\n\tbind unix/{HOME}/balancer.sock"),
                _ => line.to_owned(),
            };
            moved.push('\n');
        }
        match self {
            Self::Nginx => {
                format!("pid {HOME}/nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{moved}}}\n")
            }
            _ => moved,
        }
    }
}

/// What clients know the service as.
const SITE: &str = "lab.example";

fn haproxy(servers: String) -> String {
    format!(
        "
global
    log stdout format raw local0
    stats socket {HOME}/balancer.stats
defaults
    mode http
    log global
    option httplog
    # Only what failed is logged.
    option dontlog-normal
    timeout connect 5s
    timeout client 1m
    timeout server 1m
    retries 0
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter 1s fall 2 rise 2
listen pool
    bind {HOME}/balancer.sock
{servers}"
    )
}

fn nginx(servers: String) -> String {
    format!(
        r#"
pid {HOME}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_max_body_size 100m;
    upstream pool {{
{servers}        keepalive 8;
    }}
    server {{
        listen unix:{HOME}/balancer.sock;
        location / {{
            proxy_pass http://pool;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"#
    )
}

/// A host whose programs work for this machine: they are in its network, which reaches all hosts.
#[derive(Debug)]
pub struct Balancers(Host);

/// One that is at work. Dropping it ends it.
#[derive(Debug)]
pub struct Balancer<'a> {
    host: &'a Host,
    _process: Child,
}

impl Balancers {
    /// On an image of its own, which has what that of the service's hosts has not.
    pub async fn boot(image: &Image) -> anyhow::Result<Self> {
        let image = image.after(INSTALL, |_| ()).await.context("installing balancers")?;
        let host = Host::boot(&image).await?;
        host.run("systemctl --quiet disable --now caddy.service && mkdir -p /etc/haproxy").await?;
        Ok(Self(host))
    }

    /// Starts a program before some servers: as this service prints it, or without retries.
    pub async fn start(
        &self,
        program: Program,
        servers: &[SocketAddr],
        printed_by: Option<&Path>,
    ) -> anyhow::Result<Balancer<'_>> {
        let host = &self.0;
        let config = match printed_by {
            Some(service) => program.moved(&self.printed(program, servers, service).await?),
            None => program.plain(servers),
        };
        host.write(&config, &format!("{HOME}/balancer.conf")).await?;
        host.run(&format!("rm -f {HOME}/balancer.sock {HOME}/other.sock {HOME}/balancer.out")).await?;
        let command = format!("exec {} >{HOME}/balancer.out 2>&1", program.command());
        let process = host.outside(&command).spawn().with_context(|| format!("starting {program:?}"))?;
        let balancer = Balancer { host, _process: process };
        let deadline = Instant::now() + Duration::from_secs(10);
        while balancer.place().connect(None).await.is_err() {
            ensure!(Instant::now() < deadline, "{program:?} does not listen:\n{}", balancer.said().await);
            sleep(Duration::from_millis(20)).await;
        }
        Ok(balancer)
    }

    /// What the service prints for it, which the program has to accept as it is, where it belongs.
    async fn printed(&self, program: Program, servers: &[SocketAddr], service: &Path) -> anyhow::Result<String> {
        const CERTIFICATES: &str = "
            for name in $(sed -n 's/.*Printed by `\\([^ ]*\\) .*/\\1/p' $FILE); do
                cd /etc/ssl && cat certs/ssl-cert-snakeoil.pem private/ssl-cert-snakeoil.key >/etc/haproxy/$name.pem
                cp certs/ssl-cert-snakeoil.pem certs/$name.pem && cp private/ssl-cert-snakeoil.key private/$name.key
            done";
        let [name, file, accepts] = program.printed();
        let mut command = Command::new(service);
        command.args(["proxy", name, "--site", SITE]).args(servers.iter().map(SocketAddr::to_string));
        let output = command.output().await.context("running the service")?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        self.0.write(&text, file).await?;
        self.0.run(&format!("FILE={file}\n{CERTIFICATES}\n{accepts} 2>&1")).await.context("what the service prints")?;
        Ok(text)
    }
}

impl Balancer<'_> {
    /// Where clients ask.
    pub fn place(&self) -> Place {
        Place::Unix(self.file("balancer.sock"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.host.root().join(&HOME[1..]).join(name)
    }

    /// How often HAProxy has marked a server down.
    pub async fn marked_down(&self) -> anyhow::Result<u64> {
        let mut socket = UnixStream::connect(self.file("balancer.stats")).await?;
        socket.write_all(b"show stat\n").await?;
        let mut table = String::new();
        socket.read_to_string(&mut table).await?;
        let mut rows = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let names = rows.next().context("HAProxy has no statistics")?;
        let at = names.iter().position(|name| *name == "chkdown").context("HAProxy does not count checks")?;
        // Which are numbered.
        let servers = rows.filter(|row| row.get(1).is_some_and(|name| name.parse::<u8>().is_ok()));
        servers.map(|row| row[at].parse::<u64>().with_context(|| format!("chkdown is {:?}", row[at]))).sum()
    }

    /// The begin of what it complained of.
    pub async fn said(&self) -> String {
        self.host.run(&format!("head -n 20 {HOME}/balancer.out")).await.unwrap_or_else(|error| format!("{error:#}"))
    }
}
