//! Other people's programs, as the host's Debian brings them: nginx and HAProxy as proxies that keep connections to the
//! service and never retry, and curl. What they say is heard: their logs, their counters, their exit statuses; and the
//! kernel tells which of a proxy's connections live on.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::{Instant, sleep};

use lab::answers::Answers;
use lab::host::Host;
use lab::http1::Place;
use lab::load::{Group, Kind};
use lab::record::{Failure, Scenario};
use lab::stage::{Listen, PORT};
use lab::traffic::{Route, Traffic};

use crate::kinds;
use crate::record::Program;

/// What hosts have besides, for these and for what else is done to them.
pub const PACKAGES: [&str; 4] = ["libfaketime", "nginx", "haproxy", "curl"];

/// Where they have what is theirs.
const HOME: &str = "/run/lab";

/// How many clients ask through each proxy.
const CLIENTS: u32 = 12;

/// A proxy, and how it is told and asked.
struct Proxy {
    /// Its process' name, and the unit's.
    name: &'static str,
    kind: Kind,
    port: u16,
    /// Prints its version.
    version: &'static str,
    command: &'static str,
    /// Prints how many requests it passed on.
    requests: &'static str,
    /// Prints what it complains of.
    complaints: &'static str,
    config: fn(&str) -> String,
}

const PROXIES: [Proxy; 2] = [
    Proxy {
        name: "nginx",
        kind: kinds::NGINX,
        port: 8090,
        version: "nginx -v 2>&1 | sed 's|.*/||; s| .*||'",
        command: "nginx -c /run/lab/nginx.conf -g 'daemon off;'",
        // The third of the three figures, without the requests for the figures themselves.
        requests: "curl -s http://127.0.0.1:8099/ | awk 'NR == 3 { print $3 - 1 }'",
        complaints: "cat /run/lab/nginx.log /run/lab/nginx.out",
        config: nginx,
    },
    Proxy {
        name: "haproxy",
        kind: kinds::HAPROXY,
        port: 8091,
        version: "haproxy -v | sed -n '1 s/.*version \\([0-9.]*\\).*/\\1/p'",
        command: "haproxy -db -f /run/lab/haproxy.conf",
        // Columns by name, as those below.
        requests: "curl -s 'http://127.0.0.1:8098/;csv' | awk -F , \
                   'NR == 1 { for (i = 1; i <= NF; i++) if ($i == \"req_tot\") at = i } \
                   $1 == \"pool\" && $2 == \"FRONTEND\" { print $at }'",
        // What was wrong with the service, or was tried again; and the log of what was not normal.
        complaints: "curl -s 'http://127.0.0.1:8098/;csv' | awk -F , \
                     'NR == 1 { sub(/^# /, \"\"); for (i = 1; i <= NF; i++) name[i] = $i } \
                     NR > 1 && $1 == \"pool\" { for (i = 1; i <= NF; i++) \
                     if (name[i] ~ /^(econ|eresp|wretr|wredis|hrsp_5xx|srv_abrt)$/ && $i > 0) print $2, name[i], $i }'; \
                     cat /run/lab/haproxy.out",
        config: haproxy,
    },
];

fn nginx(service: &str) -> String {
    format!(
        r#"
user www-data;
worker_processes 2;
pid {HOME}/nginx.pid;
error_log {HOME}/nginx.log warn;
events {{ worker_connections 1024; }}
http {{
    # Only what failed is logged.
    map $status $failed {{ default 0; ~^5 1; 499 1; }}
    log_format failed '$request: $status, the service said $upstream_status';
    access_log {HOME}/nginx.log failed if=$failed;
    client_max_body_size 0;
    keepalive_timeout 1h;
    keepalive_time 1h;
    keepalive_requests 1000000000;
    upstream service {{
        server {service} max_fails=0;
        keepalive 64;
        keepalive_timeout 1h;
        keepalive_time 1h;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 8090;
        location / {{
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream off;
        }}
    }}
    server {{
        listen 127.0.0.1:8099;
        location / {{ stub_status; }}
    }}
}}
"#
    )
}

fn haproxy(service: &str) -> String {
    let service = service.replace("unix:", "unix@");
    format!(
        "
global
    nbthread 2
    log stdout format raw local0
defaults
    mode http
    log global
    option httplog
    # Only what failed is logged.
    option dontlog-normal
    timeout connect 10s
    timeout client 1h
    timeout server 1m
    timeout http-request 1m
    timeout http-keep-alive 1h
    retries 0
    retry-on none
    http-reuse always
listen pool
    # It closes what is more than it has lately needed, and more than pool-low-conn.
    bind :8091
    server service {service} pool-max-conn -1 pool-low-conn 64 pool-purge-delay 1h
listen statistics
    bind 127.0.0.1:8098
    stats enable
    stats uri /
"
    )
}

/// Two shells that let curl ask, until they are told to stop. For each transfer: what it was, curl's exit status, the
/// answer's, connections made, seconds; for each call its exit status.
const CURL: &str = r#"
cd /run/lab
each='%{exitcode} %{http_code} %{num_connects} %{time_total}\n'
call() {
    what=$1
    shift
    curl --silent --show-error --max-time 60 --write-out "$what $each" "$@" 2>>curl.errors
    echo "$what call $?"
}
round=0
while [ ! -e stop ]; do
    case $1 in
    kept) call kept --rate 10/s --config fast ;;
    *)
        round=$((round + 1))
        call new --config one
        # One request each: curl 7.88 cannot use such a connection twice.
        call http2 --http2-prior-knowledge --config one
        sleep 0.1
        # It waits for a while before it sends the body, and a restart waits with it: now and then.
        [ -e upload ] && [ $((round % 40)) -eq 1 ] || continue
        call upload --header 'Expect: 100-continue' --expect100-timeout 0.2 --data-binary @body --output echoed \
            --config upload
        cmp -s body echoed || echo upload differs
        ;;
    esac
done
"#;

/// The programs at work.
#[derive(Debug)]
pub struct Programs {
    traffic: Traffic,
    listen: Listen,
    address: std::net::Ipv4Addr,
    /// Of each proxy its connections to the service, before the first restart.
    pooled: Vec<BTreeSet<String>>,
}

impl Programs {
    /// Starts the proxies on the host.
    pub async fn start(host: &Host, listen: Listen, traffic: &Traffic) -> anyhow::Result<Self> {
        let service = match listen {
            Listen::Tcp => format!("127.0.0.1:{PORT}"),
            Listen::Unix(path) => format!("unix:{path}"),
        };
        for Proxy { name, config, command, port, .. } in &PROXIES {
            host.write(&config(&service), &format!("{HOME}/{name}.conf")).await?;
            host.run(&unit(name, &format!("exec {command} >{HOME}/{name}.out 2>&1"))).await?;
            let answers = format!(
                "curl --silent --output /dev/null --retry 50 --retry-connrefused --retry-delay 1 http://127.0.0.1:{port}/"
            );
            host.run(&answers).await.with_context(|| format!("{name} does not answer"))?;
        }
        let programs = Self { traffic: traffic.clone(), listen, address: host.address(), pooled: vec![] };
        programs.start_curl(host).await?;
        Ok(programs)
    }

    async fn start_curl(&self, host: &Host) -> anyhow::Result<()> {
        let (base, how) = match self.listen {
            Listen::Tcp => (format!("http://127.0.0.1:{PORT}"), String::new()),
            Listen::Unix(path) => ("http://lab".into(), format!("unix-socket = \"{path}\"\n")),
        };
        let plain = self.traffic.fast.iter().filter_map(Route::plain);
        let fast = plain.map(|path| format!("url = \"{base}{path}\"\noutput = /dev/null\n"));
        ensure!(fast.clone().next().is_some(), "curl needs a [[fast]] route that is a GET with nothing but a path");
        for (file, count) in [("one", 1), ("fast", 20)] {
            let urls: String = fast.clone().cycle().take(count).collect();
            host.write(&format!("{how}{urls}"), &format!("{HOME}/{file}")).await?;
        }
        if let Some(path) = self.traffic.upload.first().and_then(Route::plain) {
            host.write(&format!("{how}url = \"{base}{path}\"\n"), &format!("{HOME}/upload")).await?;
        }
        host.write(CURL, &format!("{HOME}/curl")).await?;
        host.run(&format!("head -c 100000 /dev/urandom >{HOME}/body")).await?;
        for what in ["kept", "new"] {
            host.run(&unit(&format!("curl-{what}"), &format!("exec sh {HOME}/curl {what} >{HOME}/curl-{what}")))
                .await?;
        }
        Ok(())
    }

    /// Who asks through them.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        PROXIES.iter().map(|proxy| (proxy.kind, CLIENTS, Place::Tcp((self.address, proxy.port).into())))
    }

    /// Notes the connections that are to live.
    pub async fn restarts_begin(&mut self, host: &Host) -> anyhow::Result<()> {
        self.pooled = self.connections(host).await?;
        Ok(())
    }

    /// Of each proxy its connections to the service.
    async fn connections(&self, host: &Host) -> anyhow::Result<Vec<BTreeSet<String>>> {
        let mut connections = vec![];
        for Proxy { name, .. } in &PROXIES {
            // Each by what names it: its own port, or its inode.
            let list = match self.listen {
                Listen::Tcp => format!(
                    "ss --no-header --numeric --tcp --processes state established dport = :{PORT} \
                     | awk '/\"{name}\"/ {{ print $3 }}'"
                ),
                Listen::Unix(path) => format!(
                    "ss --no-header --numeric --unix --processes state connected | awk \
                     '$5 == \"{path}\" {{ theirs[$8] = 1 }} /\"{name}\"/ {{ own[$6] = 1 }} \
                     END {{ for (inode in own) if (inode in theirs) print inode }}'"
                ),
            };
            connections.push(host.run(&list).await?.lines().map(str::to_owned).collect());
        }
        Ok(connections)
    }

    /// Ends curl, and tells what it was answered.
    pub async fn curled(&self, host: &Host) -> anyhow::Result<Curled> {
        host.run(&format!("touch {HOME}/stop")).await?;
        let deadline = Instant::now() + Duration::from_secs(90);
        while host.run("systemctl is-active --quiet lab-curl-kept lab-curl-new").await.is_ok() {
            ensure!(Instant::now() < deadline, "curl does not end");
            sleep(Duration::from_millis(100)).await;
        }
        let mut curled = Curled::default();
        for file in ["curl-kept", "curl-new"] {
            let expected: BTreeSet<_> =
                self.traffic.fast.iter().chain(&self.traffic.upload).map(|r| r.status).collect();
            curled.read(&host.run(&format!("cat {HOME}/{file}")).await?, &expected);
        }
        let errors = host.run(&format!("cat {HOME}/curl.errors")).await?;
        curled.failures.extend(errors.lines().take(20).map(|line| ("lost", line.to_owned())));
        Ok(curled)
    }

    /// What the proxies have to say in the end.
    pub async fn end(self, host: &Host) -> anyhow::Result<Vec<Program>> {
        let after = self.connections(host).await?;
        let mut programs = vec![];
        for (proxy, (before, after)) in PROXIES.iter().zip(self.pooled.iter().zip(&after)) {
            let requests = host.run(proxy.requests).await?;
            programs.push(Program {
                name: format!("{} {}", proxy.name, host.run(proxy.version).await?.trim()),
                requests: requests.trim().parse().with_context(|| format!("{} says {requests:?}", proxy.name))?,
                pooled: before.len() as u64,
                survived: before.intersection(after).count() as u64,
                at_the_end: after.len() as u64,
                complaints: host.run(proxy.complaints).await?.lines().map(str::to_owned).collect(),
            });
        }
        Ok(programs)
    }
}

/// Runs a command on the host for as long as that lives.
fn unit(name: &str, command: &str) -> String {
    format!("systemd-run --quiet --collect --unit=lab-{name} sh -c '{}'", command.replace('\'', r"'\''"))
}

/// What curl was answered.
#[derive(Debug, Default)]
pub struct Curled {
    answered: u64,
    lost: u64,
    refused: u64,
    closed: u64,
    opened: u64,
    answers: Answers,
    failures: Vec<(&'static str, String)>,
}

impl Curled {
    /// Reads what a shell wrote down.
    fn read(&mut self, lines: &str, expected: &BTreeSet<u16>) {
        let mut transfers = 0;
        for line in lines.lines() {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                [_, "call", status] => {
                    // Its transfers tell why; a call without any failed by itself.
                    if status != "0" && transfers == 0 {
                        self.lost += 1;
                        self.failures.push(("lost", line.to_owned()));
                    }
                    transfers = 0;
                }
                [what, exit, status, connects, seconds] => {
                    transfers += 1;
                    let how = format!("{what}: exit status {exit}, answered {status}");
                    let connects: u64 = connects.parse().unwrap_or_default();
                    self.opened += connects;
                    // curl hides a connection that was closed: it makes another. HTTP/2's end is announced.
                    if what == "kept" && transfers > 1 && connects > 0 {
                        self.closed += 1;
                        self.failures.push(("closed", format!("{how}: on another connection")));
                    }
                    let right = status.parse().is_ok_and(|status| expected.contains(&status));
                    match exit {
                        "0" if right => {
                            self.answered += 1;
                            let seconds: f64 = seconds.parse().unwrap_or_default();
                            self.answers.push((0.0, (seconds * 1e3) as f32));
                        }
                        "7" => {
                            self.refused += 1;
                            self.failures.push(("refused", how));
                        }
                        _ => {
                            self.lost += 1;
                            self.failures.push(("lost", how));
                        }
                    }
                }
                _ => {
                    self.lost += 1;
                    self.failures.push(("lost", line.to_owned()));
                }
            }
        }
    }

    pub fn failures(&self, scenario: u16) -> impl Iterator<Item = Failure> {
        let failure = move |(kind, what): &(&str, String)| Failure {
            scenario,
            at: 0.0,
            kind: (*kind).into(),
            what: what.clone(),
        };
        self.failures.iter().map(failure)
    }

    pub fn scenario(&self) -> Scenario {
        Scenario {
            name: "curl".into(),
            about: "Twenty requests on one connection, a connection for each, HTTP/2, and uploads that wait for 100 \
                    Continue; by curl's own account."
                .into(),
            clients: 2,
            answered: self.answered,
            lost: self.lost,
            refused: self.refused,
            closed: self.closed,
            opened: self.opened,
            kept: 0,
            median_ms: self.answers.quantile(0.5),
            p99_ms: self.answers.quantile(0.99),
            slowest_ms: self.answers.slowest(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curl_is_taken_at_its_word() {
        let mut curled = Curled::default();
        let lines = "kept 0 200 1 0.001\nkept 0 200 0 0.200\nkept 0 200 1 0.003\nkept call 0\n\
                     new 0 200 1 0.001\nnew call 0\nnew 7 000 0 0.001\nnew call 7\nupload 0 200 1 0.1\nupload call 0\n\
                     upload differs\nhttp2 0 200 1 0.1\nhttp2 0 200 1 0.1\nhttp2 56 000 0 0.1\nhttp2 call 56\nnew call 2\n";
        curled.read(lines, &BTreeSet::from([200]));
        let scenario = curled.scenario();
        assert_eq!((scenario.answered, scenario.lost, scenario.refused, scenario.closed), (7, 3, 1, 1));
        assert_eq!((scenario.opened, scenario.slowest_ms.round()), (6, 200.0));
        assert_eq!(curled.failures(3).count(), 5);
    }
}
