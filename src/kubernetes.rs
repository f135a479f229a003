//! Manifests for Kubernetes: `deploy/kubernetes.yaml`, filled in from the configuration that the containers will have.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use crate::config::{Config, memory_bytes};
use crate::unit::fill;
use layers::listen::Listen;
use layers::settings::ConfigError;

/// What runs in the cluster.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What runs
    #[arg(long, value_parser = image, default_value = concat!(env!("CARGO_PKG_NAME"), ":", env!("CARGO_PKG_VERSION")))]
    pub image: String,
    /// Another release beside it, for some of the clients
    #[arg(long, value_parser = image, value_name = "IMAGE")]
    pub canary: Option<String>,
    /// How many of a hundred clients get that
    #[arg(long, requires = "canary", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=100))]
    pub weight: u8,
    /// How many there are at the least; at the most four times as many
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub replicas: u32,
    /// The Gateway that leads clients here
    #[arg(long, value_parser = gateway, default_value = "gateway", value_name = "[NAMESPACE/]NAME")]
    pub gateway: String,
    /// What clients know it as
    #[arg(long, value_parser = dns_name, default_value = concat!(env!("CARGO_PKG_NAME"), ".example"))]
    pub site: String,
}

fn image(text: &str) -> Result<String, &'static str> {
    let is_plain =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"./:@_-".contains(&byte));
    if is_plain { Ok(text.to_owned()) } else { Err("is not the name of an image") }
}

/// What Kubernetes takes for a name and for the name of a host: labels of small letters, digits and `-` (RFC 1123), no address.
fn dns_name(text: &str) -> Result<String, &'static str> {
    let is_label = |label: &str| {
        let is_plain = label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        is_plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_name = text.split('.').all(is_label) && text.parse::<Ipv4Addr>().is_err();
    if is_name && text.len() <= 253 { Ok(text.to_owned()) } else { Err("is no name as Kubernetes has them") }
}

/// A Gateway, as a route refers to it.
fn gateway(text: &str) -> Result<String, &'static str> {
    match text.split_once('/') {
        None => Ok(format!("{{ name: {} }}", dns_name(text)?)),
        Some((namespace, name)) => Ok(format!("{{ namespace: {}, name: {} }}", dns_name(namespace)?, dns_name(name)?)),
    }
}

/// The configuration of containers: the defaults, and what is in `file`. Nothing of this host is theirs.
///
/// # Errors
/// When the file cannot be read or is refused.
pub fn config(file: Option<&Path>) -> Result<Config, ConfigError> {
    Config::load_from(Path::new("/dev/null"), file, [])
}

/// The manifests for containers with this [configuration](config), that of `file`.
///
/// # Errors
/// When the file cannot be read, or what it says suits no container.
pub fn manifests(config: &Config, file: Option<&Path>, options: &Options) -> Result<String, String> {
    let text = file.map(std::fs::read_to_string).transpose();
    let text = text.map_err(|error| format!("{}: {error}", file.unwrap_or(Path::new("")).display()))?;
    let Listen::Tcp(listen) = config.listen else {
        return Err(format!("nobody reaches {} in a container: `listen` has to be an address", config.listen));
    };
    if !listen.ip().is_unspecified() {
        return Err(format!("nobody reaches {listen} in a container: `listen` has to be 0.0.0.0 or [::], and a port"));
    }
    if listen.port() < 1024 {
        return Err(format!("a container may not listen on {listen}: `listen` has to have a port from 1024 on"));
    }
    for (key, setting) in [("memory_high", &config.unit.memory_high), ("memory_max", &config.unit.memory_max)] {
        if setting.ends_with('%') {
            return Err(format!("unit.{key} = \"{setting}\" is a part of nobody knows what: a node is not known here"));
        }
    }
    let credentials = &config.unit.credentials;
    let name = crate::NAME;
    let tracks = [
        (name.to_owned(), "stable", Some(&options.image)),
        (format!("{name}-canary"), "canary", options.canary.as_ref()),
    ];

    let lines = |document: &str| {
        let mut said = String::new();
        for line in document.lines() {
            let conditions = [
                ("@file@", text.is_some()),
                ("@secret@", !credentials.is_empty()),
                ("@volume@", text.is_some() || !credentials.is_empty()),
                ("@canary@", options.canary.is_some()),
            ];
            match conditions.iter().find_map(|(mark, holds)| Some((line.strip_prefix(mark)?, *holds))) {
                Some((_, false)) => continue,
                Some((line, true)) => said += line,
                None => said += line,
            }
            said.push('\n');
        }
        said
    };
    let mut said = Vec::new();
    for document in lines(include_str!("../deploy/kubernetes.yaml")).split("---\n") {
        for (release, track, image) in &tracks {
            let Some(image) = image else { continue };
            if *track == "stable" || document.contains("@track@") {
                let of_track = [("@release@", release.as_str()), ("@track@", track), ("@image@", image)];
                said.push(of_track.iter().fold(document.to_owned(), |text, (key, value)| text.replace(key, value)));
            }
        }
    }

    let unit = &config.unit;
    let text = text.unwrap_or_default();
    let seconds = |duration: Duration| duration.as_secs_f64().ceil().max(1.0) as u64;
    let (high, max) = (memory_bytes(&unit.memory_high), memory_bytes(&unit.memory_max));
    // What has no bound is not mentioned, and nobody may ask for more than the limit.
    let memory = |bytes: Option<u64>| bytes.map(|bytes| format!("memory: \"{bytes}\"")).unwrap_or_default();
    let asked = high.map(|high| max.map_or(high, |max| high.min(max)));
    let from_files = credentials.iter().map(|key| format!("--from-file={key}")).collect::<Vec<_>>().join(" ");
    let filled = fill(
        &said.join("---\n"),
        &[
            ("config", format!("{name}-{:08x}", fnv(text.as_bytes()))),
            ("variable", name.to_uppercase().replace('-', "_")),
            ("grace", seconds(config.shutdown_timeout.unit_stop()).to_string()),
            // No policy looks back longer.
            ("pace", seconds(config.shutdown_timeout.unit_stop()).min(1800).to_string()),
            ("progress", (seconds(unit.start_timeout) + 120).to_string()),
            ("start", seconds(unit.start_timeout).to_string()),
            ("watch", seconds(unit.watchdog / 3).to_string()),
            ("check", (seconds(config.readiness_timeout) + 1).to_string()),
            ("port", listen.port().to_string()),
            ("cpu", format!("{}m", unit.cpu_weight * 10)),
            ("memory_high", memory(asked)),
            ("memory_max", memory(max)),
            ("egress", if unit.outbound { "[{}]" } else { "[]" }.to_owned()),
            ("replicas", options.replicas.to_string()),
            ("most", (options.replicas * 4).to_string()),
            ("weight", (100 - options.weight).to_string()),
            ("canary_weight", options.weight.to_string()),
            ("gateway", options.gateway.clone()),
            ("site", options.site.clone()),
            ("from_files", from_files),
        ],
    );
    // Last, so that nothing in it is taken for a placeholder.
    let indented = |line: &str| if line.is_empty() { String::new() } else { format!("    {line}") };
    let text = text.lines().map(indented).collect::<Vec<_>>().join("\n");
    Ok(filled.replace("@text@", &text))
}

/// A short name for a text (FNV-1a, 32 bits).
fn fnv(text: &[u8]) -> u32 {
    text.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
