//! The configuration: one small struct per concern, filled from several sources. `config/default.toml` documents every setting.
//!
//! Loading opens no socket and starts nothing, so that `check` can do just that.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::system::sysinfo;
use serde::de::{self, IntoDeserializer};
use serde::{Deserialize, Deserializer};

use hitless::ShutdownTimeout;
use layers::forwarded::Proxies;
use layers::instances;
use layers::listen::Listen;
use layers::settings::{ConfigError, Origins, Sources, Wrong, within};
use layers::telemetry::Log;

/// The defaults, and the documentation of every setting.
const DEFAULT: &str = include_str!("../config/default.toml");

/// What timers can tell apart.
const MILLISECOND: Duration = Duration::from_millis(1);

/// Longer than anybody waits for something to get better by itself, and no clock overflows.
const DAY: Duration = Duration::from_hours(24);

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
    pub proxies: Proxies,
    pub limits: Limits,
    pub log: Log,
    pub unit: Unit,
    /// The keys that no file sets, but a credential or the environment.
    #[serde(skip)]
    pub beside_files: Vec<String>,
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

/// What the service's unit says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    pub outbound: bool,
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub watchdog: Duration,
    #[serde(deserialize_with = "memory")]
    pub memory_high: String,
    #[serde(deserialize_with = "memory")]
    pub memory_max: String,
    pub tasks_max: u32,
    pub cpu_weight: u32,
    #[serde(deserialize_with = "somewhere")]
    pub metrics: Option<Listen>,
    /// The keys that credentials set.
    pub credentials: Vec<String>,
}

impl Config {
    /// The effective configuration: the defaults, the host's file, `file`, systemd's credentials, the environment.
    ///
    /// # Errors
    /// When a layer cannot be read, or has a key or value that makes no sense; with all that is known of where.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let host = PathBuf::from(format!("/etc/{}/config.toml", crate::NAME));
        Self::load_from(&host, file, env::vars_os())
    }

    /// The same, with the host's file and the environment from elsewhere.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn load_from(
        host: &Path,
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let sources = Sources::new(DEFAULT).file_if_any(host)?;
        let sources = file.into_iter().fold(sources, Sources::file);
        Self::extract(sources.beside_files(crate::NAME, variables)?)
    }

    /// The defaults, with `overrides` as a further layer, in TOML.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn with(overrides: &str) -> Result<Self, ConfigError> {
        Self::extract(Sources::new(DEFAULT).text(overrides))
    }

    fn extract(sources: Sources) -> Result<Self, ConfigError> {
        let (mut config, origins) = sources.extract::<Self>()?;
        config.validate(&origins)?;
        config.beside_files = origins.beside_files();
        Ok(config)
    }

    /// Refuses what cannot work, and what no single value shows to be wrong.
    fn validate(&self, origins: &Origins) -> Result<(), ConfigError> {
        let timeout = self.shutdown_timeout;
        let Limits {
            max_connections, max_head_bytes, idle_timeout, body_timeout, send_timeout, linger_timeout, ..
        } = self.limits;
        let Unit { cpu_weight, tasks_max, watchdog, start_timeout, .. } = self.unit;
        let second = Duration::from_secs(1);
        let health = instances::PATIENCE;
        let rules = [
            within(
                "limits.request_timeout",
                self.request_timeout(),
                MILLISECOND..=timeout.request(),
                "half of shutdown_timeout",
            ),
            within(
                "limits.header_timeout",
                self.header_timeout(),
                MILLISECOND..=timeout.sixth(),
                "a sixth of shutdown_timeout",
            ),
            within("limits.idle_timeout", idle_timeout, MILLISECOND..=DAY, "a day"),
            within("limits.body_timeout", body_timeout, MILLISECOND..=DAY, "a day"),
            within("limits.send_timeout", send_timeout, MILLISECOND..=DAY, "a day"),
            within("limits.linger_timeout", linger_timeout, Duration::ZERO..=DAY, "a day"),
            within(
                "limits.max_head_bytes",
                max_head_bytes,
                1024..=hitless::Limits::MAX_HEAD_BYTES,
                "which a handover can carry",
            ),
            within(
                "limits.max_connections",
                max_connections,
                1..=hitless::Limits::MAX_CONNECTIONS,
                "for which LimitNOFILE= is all that a process may have (fs.nr_open)",
            ),
            within(
                "readiness_timeout",
                self.readiness_timeout,
                MILLISECOND..=health - second,
                "a second less than `health` waits for the answer",
            ),
            within("unit.start_timeout", start_timeout, second..=DAY, "a day"),
            within("unit.watchdog", watchdog, second..=DAY, "a day"),
            within("unit.tasks_max", tasks_max, 16..=u32::MAX, "and the runtime needs some"),
            within("unit.cpu_weight", cpu_weight, 1..=10_000, "as systemd has it"),
            private("listen", &self.listen),
            self.unit.metrics.as_ref().and_then(|listen| private("unit.metrics", listen)),
            (self.unit.metrics.as_ref() == Some(&self.listen))
                .then(|| ("unit.metrics", self.listen.to_string(), "is where the service listens".to_owned())),
            self.unit
                .credentials
                .iter()
                .find(|key| !origins.is_key::<Self>(key))
                .map(|key| ("unit.credentials", format!("{key:?}"), "is the key of no setting".to_owned())),
        ];
        origins.refuse(rules.into_iter().flatten())
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
        let Limits {
            max_connections, max_head_bytes, body_timeout, send_timeout, idle_timeout, linger_timeout, ..
        } = self.limits;
        let header_timeout = self.header_timeout();
        // As it is counted. What that really takes may be twice as much; the rest is for connections as such, and the service.
        let memory =
            [&self.unit.memory_high, &self.unit.memory_max].into_iter().filter_map(|text| memory_bytes(text)).min();
        let held_bytes = memory.map_or(usize::MAX, |bytes| bytes as usize / 4);
        hitless::Limits {
            max_connections,
            max_head_bytes,
            header_timeout,
            body_timeout,
            send_timeout,
            idle_timeout,
            linger_timeout,
            held_bytes,
        }
    }
}

/// An empty text is nowhere.
fn somewhere<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Listen>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(None) } else { Listen::deserialize(text.into_deserializer()).map(Some) }
}

fn shutdown_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ShutdownTimeout, D::Error> {
    let timeout = humantime_serde::deserialize(deserializer)?;
    ShutdownTimeout::new(timeout).ok_or_else(|| {
        let (min, max) = (ShutdownTimeout::MIN, ShutdownTimeout::MAX);
        de::Error::custom(format!("is not within {min:?} and {max:?}"))
    })
}

/// Memory as a unit can say it (systemd.resource-control(5)), and as much as the service needs to start.
fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    const LEAST: u64 = 16 << 20;
    let text = String::deserialize(deserializer)?;
    if text == "infinity" || memory_bytes(&text).is_some_and(|bytes| text.ends_with('%') || bytes >= LEAST) {
        return Ok(text);
    }
    Err(de::Error::custom(format!("\"{text}\" is not 512M, 2G, 80% or infinity, or less than the 16M that it needs")))
}

/// As many bytes as a unit says; `None` where that is all there are, or makes no sense.
pub(crate) fn memory_bytes(text: &str) -> Option<u64> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent = percent.parse::<u64>().ok().filter(|percent| (1..=100).contains(percent))?;
        let machine = sysinfo();
        return Some(machine.totalram as u64 * u64::from(machine.mem_unit) / 100 * percent);
    }
    let (number, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        Some(b'T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift))
}

/// Key, value and reason where clients could not get there.
fn private(key: &'static str, listen: &Listen) -> Option<Wrong> {
    let name = crate::NAME;
    let reason = format!("is in a folder of the service's own, where its unit lets nobody in: /run/{name}.sock");
    listen.is_private_to(name).then(|| (key, format!("\"{listen}\""), reason))
}
