//! The systemd units: the text under `deploy/`, filled in from the effective configuration.

use std::process::Command;
use std::time::Duration;

use crate::config::Config;
use layers::listen::Listen;

/// The service's unit, as systemd.service(5) has it.
pub fn service(config: &Config) -> String {
    let network = if config.unit.outbound {
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"
    } else {
        "PrivateNetwork=yes\nRestrictAddressFamilies=AF_UNIX"
    };
    fill_service(include_str!("../deploy/service.unit"), config, network)
}

/// The same where it runs in a container (podman-run(1)).
pub fn container(config: &Config) -> String {
    let network = if config.unit.outbound { "host" } else { "none" };
    fill_service(include_str!("../deploy/container.unit"), config, network)
}

fn fill_service(text: &str, config: &Config, network: &str) -> String {
    let unit = &config.unit;
    // Before version 254 systemd knows no growing delay.
    let back_off = if systemd_version().is_none_or(|version| version >= 254) {
        "RestartSec=100ms\nRestartSteps=8\nRestartMaxDelaySec=10s"
    } else {
        "RestartSec=1s"
    };
    // Without a path, systemd looks in /etc/credstore and the like, and takes it that there may be none.
    let credential = |key: &String| format!("LoadCredential={key}:{}.{key}", crate::NAME);
    let credentials = match unit.credentials.iter().map(credential).collect::<Vec<_>>() {
        none if none.is_empty() => "# (None.)".to_owned(),
        lines => lines.join("\n"),
    };
    fill(
        text,
        &[
            ("user", user()),
            ("start_timeout", span(unit.start_timeout)),
            ("stop_timeout", span(config.shutdown_timeout.unit_stop())),
            ("watchdog", span(unit.watchdog)),
            ("limit_nofile", config.connection_limits().limit_nofile().to_string()),
            ("memory_high", unit.memory_high.clone()),
            ("memory_max", unit.memory_max.clone()),
            ("tasks_max", unit.tasks_max.to_string()),
            ("cpu_weight", unit.cpu_weight.to_string()),
            ("network", network.to_owned()),
            ("back_off", back_off.to_owned()),
            ("credentials", credentials),
        ],
    )
}

/// The socket's unit, as systemd.socket(5) has it.
pub fn socket(config: &Config) -> String {
    let reuse_port = if config.reuse_port { "yes" } else { "no" };
    fill(
        include_str!("../deploy/socket.unit"),
        &[("listen", config.listen.to_string().replace('%', "%%")), ("reuse_port", reuse_port.to_owned())],
    )
}

/// The unit of the socket that metrics are asked for at, as systemd.socket(5) has it; nothing where nobody is to ask.
pub fn metrics_socket(config: &Config) -> String {
    let Some(listen) = &config.unit.metrics else { return String::new() };
    fill(include_str!("../deploy/metrics-socket.unit"), &[("listen", listen.to_string().replace('%', "%%"))])
}

/// The unit of what answers there; nothing where nobody is to ask.
pub fn metrics_service(config: &Config) -> String {
    if config.unit.metrics.is_none() {
        return String::new();
    }
    fill(include_str!("../deploy/metrics-service.unit"), &[("user", user())])
}

/// What the configuration asks for in vain where the units are installed: they are printed without the environment that
/// a drop-in gives the service, and follow a changed file only when they are printed anew. `sockets` are those that
/// systemd passed on, as far as that is known.
pub fn asked_in_vain(config: &Config, sockets: &[Listen]) -> Vec<String> {
    let name = crate::NAME;
    let of_units = |key: &&String| key.starts_with("unit.") || ["listen", "reuse_port", "unit"].contains(&key.as_str());
    let set: Vec<&str> = config.beside_files.iter().filter(of_units).map(String::as_str).collect();
    let set = set.join(", ");
    let in_environment = format!(
        "the environment or a credential sets {set}: that is for the units, which know nothing of it; set it in \
         /etc/{name}/config.toml, then `make apply`"
    );
    let listening = sockets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let elsewhere = format!(
        "{name}.socket listens on {listening}, not where the configuration says, which is {}; `make apply` \
         follows what /etc/{name}/config.toml says",
        config.listen
    );
    [
        (!set.is_empty()).then_some(in_environment),
        (!sockets.is_empty() && !sockets.contains(&config.listen)).then_some(elsewhere),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The user of the service. A longer name would not be one, and systemd would give each instance a user of its own.
fn user() -> String {
    crate::NAME.chars().take(31).collect()
}

/// Replaces `@key@` by its value.
pub(crate) fn fill(text: &str, values: &[(&str, String)]) -> String {
    let common = [
        ("name", crate::NAME.to_owned()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        // In a unit, which alone has it, `%` begins a specifier, and the end of a line the next setting.
        ("description", env!("CARGO_PKG_DESCRIPTION").lines().collect::<Vec<_>>().join(" ").replace('%', "%%")),
    ];
    common.iter().chain(values).fold(text.to_owned(), |text, (key, value)| text.replace(&format!("@{key}@"), value))
}

/// The version of this host's systemd, if it has one: the first line of `systemctl --version` is "systemd 252 (...)".
fn systemd_version() -> Option<u32> {
    let output = Command::new("systemctl").arg("--version").output().ok()?;
    String::from_utf8(output.stdout).ok()?.split_whitespace().nth(1)?.parse().ok()
}

/// A time span as systemd writes it (systemd.time(7)): "33s", "1m 30s". It knows nothing shorter than a microsecond.
fn span(duration: Duration) -> String {
    let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    humantime_serde::re::humantime::format_duration(Duration::from_micros(microseconds)).to_string()
}
