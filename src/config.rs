//! The configuration: one small struct per concern, filled from layers. `config/default.toml` documents every setting.
//!
//! Loading opens no socket and starts nothing, so that `check` can do just that.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::providers::{Env, Format as _, Toml};
use figment::value::UncasedStr;
use figment::{Figment, Metadata, Source};
use serde::{Deserialize, Deserializer, de};
use tracing_subscriber::filter::Targets;

use crate::hitless::ledger::REST_LIMIT;
use crate::hitless::{self, ShutdownTimeout};

/// The defaults, and the documentation of every setting.
const DEFAULT: &str = include_str!("../config/default.toml");

/// The whole configuration, validated.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(deserialize_with = "shutdown_timeout")]
    pub shutdown_timeout: ShutdownTimeout,
    pub listen: Listen,
    pub reuse_port: bool,
    #[serde(with = "humantime_serde")]
    pub ping_delay: Duration,
    #[serde(with = "humantime_serde")]
    pub readiness_timeout: Duration,
    pub limits: Limits,
    pub log: Log,
    pub unit: Unit,
}

/// What a client may take from the service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub max_connections: usize,
    pub max_head_bytes: usize,
    pub max_body_bytes: usize,
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub send_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub linger_timeout: Duration,
    #[serde(default, with = "humantime_serde")]
    request_timeout: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    header_timeout: Option<Duration>,
}

/// What is logged, and how.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub filter: String,
    pub format: LogFormat,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Auto,
    Text,
    Json,
    Journal,
}

/// What the service's unit says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    pub outbound: bool,
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub watchdog: Duration,
    pub memory_high: String,
    pub memory_max: String,
    pub tasks_max: u32,
    pub cpu_weight: u32,
}

/// Where the service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Config {
    /// The effective configuration: the defaults, the host's file, `file`, the environment.
    ///
    /// # Errors
    /// When a layer cannot be read, or has a key or value that makes no sense; with all that is known of where.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let host = PathBuf::from(format!("/etc/{}/config.toml", env!("CARGO_PKG_NAME")));
        let host = host.exists().then_some(host);
        let mut layers = Figment::from(Toml::string(DEFAULT));
        for file in host.as_deref().into_iter().chain(file) {
            // figment takes a file that is not there for an empty one.
            std::fs::File::open(file).map_err(|error| ConfigError(vec![format!("{}: {error}", file.display())]))?;
            layers = layers.merge(Toml::file_exact(file));
        }
        let prefix = env!("CARGO_PKG_NAME").to_uppercase().replace('-', "_") + "_";
        // Kubernetes sets <NAME>_PORT... and <NAME>_SERVICE_... where a Service has the same name: none of ours.
        let ours = |key: &UncasedStr| {
            let key = key.as_str().to_ascii_lowercase();
            key != "port" && !key.starts_with("port_") && !key.starts_with("service_")
        };
        Self::extract(&layers.merge(Env::prefixed(&prefix).filter(ours).split("__")))
    }

    /// The defaults, with `overrides` as a further layer, in TOML.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn with(overrides: &str) -> Result<Self, ConfigError> {
        Self::extract(&Figment::from(Toml::string(DEFAULT)).merge(Toml::string(overrides)))
    }

    fn extract(layers: &Figment) -> Result<Self, ConfigError> {
        let config: Self = layers.extract().map_err(ConfigError::from)?;
        config.validate(layers)?;
        Ok(config)
    }

    /// Refuses what no single value shows to be wrong.
    fn validate(&self, layers: &Figment) -> Result<(), ConfigError> {
        let timeout = self.shutdown_timeout;
        let (request, header) = (self.request_timeout(), self.header_timeout());
        let Limits { max_connections, max_head_bytes, idle_timeout, body_timeout, send_timeout, .. } = self.limits;
        let Unit { cpu_weight, tasks_max, watchdog, memory_high, memory_max, .. } = &self.unit;
        let filter = self.log.filter.parse::<Targets>().err().map(|error| error.to_string());
        let rules = [
            (
                "limits.request_timeout",
                request.is_zero() || request > timeout.request(),
                format!("{request:?} is not within 0s and {:?}, half of shutdown_timeout", timeout.request()),
            ),
            (
                "limits.header_timeout",
                header.is_zero() || header > timeout.sixth(),
                format!("{header:?} is not within 0s and {:?}, a sixth of shutdown_timeout", timeout.sixth()),
            ),
            ("limits.idle_timeout", idle_timeout.is_zero(), "0s would close every connection".to_owned()),
            ("limits.body_timeout", body_timeout.is_zero(), "0s would end every upload".to_owned()),
            ("limits.send_timeout", send_timeout.is_zero(), "0s would cut every answer".to_owned()),
            (
                "limits.max_head_bytes",
                !(1024..=REST_LIMIT).contains(&max_head_bytes),
                format!("{max_head_bytes} is not within 1024 and {REST_LIMIT}"),
            ),
            ("limits.max_connections", max_connections == 0, "0 would serve nobody".to_owned()),
            ("readiness_timeout", self.readiness_timeout.is_zero(), "0s would fail every check".to_owned()),
            ("log.filter", filter.is_some(), format!("\"{}\": {}", self.log.filter, filter.unwrap_or_default())),
            ("unit.watchdog", *watchdog < Duration::from_secs(1), format!("{watchdog:?} is less than 1s")),
            (
                "unit.memory_high",
                !is_memory(memory_high),
                format!("\"{memory_high}\" is not 512M, 2G, 80% or infinity"),
            ),
            ("unit.memory_max", !is_memory(memory_max), format!("\"{memory_max}\" is not 512M, 2G, 80% or infinity")),
            ("unit.tasks_max", *tasks_max < 16, format!("{tasks_max} is less than 16, which the runtime needs")),
            ("unit.cpu_weight", !(1..=10_000).contains(cpu_weight), format!("{cpu_weight} is not within 1 and 10000")),
        ];
        let wrong: Vec<String> = rules
            .into_iter()
            .filter(|(_, wrong, _)| *wrong)
            .map(|(key, _, reason)| format!("{}: {key}: {reason}", origin(layers.find_metadata(key))))
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(ConfigError(wrong)) }
    }

    /// The longest that a request may take until its answer begins.
    pub fn request_timeout(&self) -> Duration {
        self.limits.request_timeout.unwrap_or(self.shutdown_timeout.request())
    }

    /// The longest that a request's head may take.
    pub fn header_timeout(&self) -> Duration {
        self.limits.header_timeout.unwrap_or(self.shutdown_timeout.sixth())
    }

    /// What a connection may take from the service.
    pub fn connection_limits(&self) -> hitless::Limits {
        let Limits { max_head_bytes, body_timeout, send_timeout, idle_timeout, linger_timeout, .. } = self.limits;
        let header_timeout = self.header_timeout();
        hitless::Limits { max_head_bytes, header_timeout, body_timeout, send_timeout, idle_timeout, linger_timeout }
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // What a unit can name as it is, without quotes and specifiers.
        let is_path = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
        if text.starts_with('/') && text.bytes().all(is_path) {
            return Ok(Listen::Unix(text.into()));
        }
        text.parse().map(Listen::Tcp).map_err(|_| {
            de::Error::custom(format!(
                "\"{text}\" is neither ADDRESS:PORT, [ADDRESS]:PORT, nor a path of letters, digits and /._- that starts with /"
            ))
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => path.display().fmt(f),
        }
    }
}

fn shutdown_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ShutdownTimeout, D::Error> {
    let timeout = humantime_serde::deserialize(deserializer)?;
    ShutdownTimeout::new(timeout).ok_or_else(|| {
        let (min, max) = (ShutdownTimeout::MIN, ShutdownTimeout::MAX);
        de::Error::custom(format!("{timeout:?} is not within {min:?} and {max:?}"))
    })
}

/// Whether a unit can say so of memory (systemd.resource-control(5)).
fn is_memory(text: &str) -> bool {
    let number = text.strip_suffix(['K', 'M', 'G', 'T', '%']).unwrap_or(text);
    text == "infinity" || number.parse::<u64>().is_ok_and(|number| number > 0)
}

/// Where a value was set, for people to read.
fn origin(metadata: Option<&Metadata>) -> String {
    match metadata {
        Some(Metadata { source: Some(Source::File(path)), .. }) => path.display().to_string(),
        Some(metadata) if metadata.name.contains("environment") => "the environment".to_owned(),
        _ => "the defaults".to_owned(),
    }
}

/// What is wrong with the configuration: a line for each thing, with file, key, value and reason.
#[derive(Debug)]
pub struct ConfigError(Vec<String>);

impl From<figment::Error> for ConfigError {
    fn from(errors: figment::Error) -> Self {
        let line = |error: figment::Error| {
            let origin = origin(error.metadata.as_ref());
            match error.path.join(".") {
                key if key.is_empty() => format!("{origin}: {}", error.kind),
                key => format!("{origin}: {key}: {}", error.kind),
            }
        };
        Self(errors.into_iter().map(line).collect())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}
