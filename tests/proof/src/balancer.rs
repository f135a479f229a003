//! HAProxy and nginx, as a host's Debian brings them, before several hosts: set up as an operator would, but without
//! retries, so that clients are told of every failure.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::time::{Instant, sleep};

use crate::kinds;
use lab::host::{Host, Image};
use lab::http1::Place;
use lab::load::Kind;

/// Where they have what is theirs.
const HOME: &str = "/run/lab";

/// How HAProxy knows servers, which it numbers from 1 on.
const POOL: &str = "pool";

/// Whose program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Asks each server for `/readyz` once a second; two answers decide.
    Haproxy,
    /// Its defaults: a server that fails once is left out for 10 s, and what failed is tried elsewhere.
    Nginx,
}

impl Program {
    pub fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
        }
    }

    /// Who asks through it on connections that are kept.
    pub fn clients(self) -> Kind {
        match self {
            Self::Haproxy => kinds::HAPROXY,
            Self::Nginx => kinds::NGINX,
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy -db -f /run/lab/balancer.conf",
            // Without a process besides this one, which might outlive it.
            Self::Nginx => {
                "nginx -e /run/lab/balancer.out -c /run/lab/balancer.conf -g 'daemon off; master_process off;'"
            }
        }
    }

    fn config(self, servers: &[SocketAddr]) -> String {
        let numbered = servers.iter().zip(1..);
        match self {
            Self::Haproxy => {
                haproxy(numbered.map(|(server, number)| format!("    server {number} {server}\n")).collect())
            }
            Self::Nginx => nginx(numbered.map(|(server, _)| format!("        server {server};\n")).collect()),
        }
    }
}

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
listen {POOL}
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
    upstream {POOL} {{
{servers}        keepalive 8;
    }}
    server {{
        listen unix:{HOME}/balancer.sock;
        location / {{
            proxy_pass http://{POOL};
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
    pub async fn boot(image: &Image) -> anyhow::Result<Self> {
        Host::boot(image).await.map(Self)
    }

    /// Starts a program before some servers.
    pub async fn start(&self, program: Program, servers: &[SocketAddr]) -> anyhow::Result<Balancer<'_>> {
        let host = &self.0;
        host.write(&program.config(servers), &format!("{HOME}/balancer.conf")).await?;
        host.run(&format!("rm -f {HOME}/balancer.sock {HOME}/balancer.out")).await?;
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
        let servers = rows.filter(|row| row[0] == POOL && row.get(1).is_some_and(|name| name.parse::<u8>().is_ok()));
        servers.map(|row| row[at].parse::<u64>().with_context(|| format!("chkdown is {:?}", row[at]))).sum()
    }

    /// The begin of what it complained of.
    pub async fn said(&self) -> String {
        self.host.run(&format!("head -n 20 {HOME}/balancer.out")).await.unwrap_or_else(|error| format!("{error:#}"))
    }
}
