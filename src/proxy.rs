//! Configurations of load balancers for this service: the text under `deploy/proxy/`, filled in from the effective
//! configuration.

use std::str::FromStr;
use std::time::Duration;

use axum::http::uri::Authority;
use clap::ValueEnum;

use crate::config::Config;
use crate::unit::fill;
use layers::listen::Listen;

/// Whose configuration.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Proxy {
    Haproxy,
    Nginx,
    Caddy,
}

/// Where a host serves, as the balancer reaches it: HOST, HOST:PORT, or the path of a Unix socket.
#[derive(Clone, Debug)]
pub enum Server {
    Host(Authority),
    Path(String),
}

impl FromStr for Server {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-:[]".contains(&byte));
        match text.parse::<Authority>() {
            _ if is_plain && text.starts_with('/') => Ok(Self::Path(text.to_owned())),
            Ok(host) if is_plain && (host.host() == text || host.port_u16().is_some()) => Ok(Self::Host(host)),
            _ => Err("is neither HOST, HOST:PORT, nor a plain path that starts with /"),
        }
    }
}

impl Server {
    /// With the port on which the service listens, unless it has one. A path is written behind `prefix`.
    fn place(&self, listen: &Listen, prefix: &str) -> String {
        match (self, listen) {
            (Self::Path(path), _) => format!("{prefix}{path}"),
            (Self::Host(host), Listen::Tcp(address)) if host.port().is_none() => format!("{host}:{}", address.port()),
            (Self::Host(host), _) => host.to_string(),
        }
    }
}

/// What clients know the service as: the name of a host.
pub fn site(text: &str) -> Result<String, &'static str> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte));
    if is_plain { Ok(text.to_owned()) } else { Err("is not the name of a host") }
}

/// The configuration of a balancer before `servers`, for clients who know them as `site`.
///
/// # Errors
/// When the service would not understand that balancer, or it is not clear where it serves.
pub fn proxy(config: &Config, proxy: Proxy, servers: &[Server], site: &str) -> Result<String, String> {
    if !config.proxies.add_to_x_forwarded_for() {
        return Err("these balancers say whom they ask for in X-Forwarded-For: set proxies.header to it".to_owned());
    }
    if let Listen::Unix(path) = &config.listen {
        let nowhere = |server: &&Server| matches!(server, Server::Host(host) if host.port().is_none());
        if let Some(Server::Host(host)) = servers.iter().find(nowhere) {
            return Err(format!("{host}: on which port? The service listens on {}", path.display()));
        }
    }
    let (text, prefix) = match proxy {
        Proxy::Haproxy => (include_str!("../deploy/proxy/haproxy.cfg"), "unix@"),
        Proxy::Nginx => (include_str!("../deploy/proxy/nginx.conf"), "unix:"),
        Proxy::Caddy => (include_str!("../deploy/proxy/Caddyfile"), "unix/"),
    };
    // A line that has a place is said of each server, one that begins so only where there are several.
    let mut said = String::new();
    for line in text.lines() {
        let times = match line.strip_prefix("@several@") {
            _ if line.contains("@place@") => servers,
            Some(_) if servers.len() < 2 => &[],
            _ => &servers[..1],
        };
        for (server, number) in times.iter().zip(1..) {
            let place = server.place(&config.listen, prefix);
            let line = line.trim_start_matches("@several@");
            said += &line.replace("@place@", &place).replace("@number@", &format!("{number}"));
            said.push('\n');
        }
    }
    let timeout = config.shutdown_timeout;
    Ok(fill(
        &said,
        &[
            ("site", site.to_owned()),
            ("variable", crate::NAME.replace('-', "_")),
            // The second check that fails counts: both are within a twelfth of the whole then.
            ("check", span((timeout.total() / 30).min(Duration::from_secs(1)))),
            ("header", span(config.header_timeout())),
            ("answer", span(config.request_timeout() + Duration::from_secs(5))),
            ("idle", span(config.limits.idle_timeout * 4 / 5)),
            ("purge", span(config.limits.idle_timeout / 15)),
            ("stop", span(timeout.unit_stop())),
            ("max_connections", config.limits.max_connections.to_string()),
            // To nginx, 0 is no limit.
            ("max_body_bytes", config.limits.max_body_bytes.max(1).to_string()),
        ],
    ))
}

/// A time span that all of them understand.
fn span(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}
