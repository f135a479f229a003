//! The configuration: one small struct per concern, filled from layers. `config/default.toml` documents every setting.
//!
//! Loading opens no socket and starts nothing, so that `check` can do just that.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use std::{env, fmt, io};

use figment::error::{Actual, Kind};
use figment::providers::{Format as _, Toml};
use figment::{Figment, Metadata, Source};
use rustix::system::sysinfo;
use serde::de::{self, IntoDeserializer};
use serde::{Deserialize, Deserializer};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::database;
use crate::environment::Setting;
use crate::forwarded::Proxies;
use crate::{environment, probe};
use hitless::ShutdownTimeout;

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
    pub database: database::Settings,
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

/// What is logged, and how.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    #[serde(deserialize_with = "filter")]
    pub filter: Targets,
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

/// Where the service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Config {
    /// The effective configuration: the defaults, the host's file, `file`, systemd's credentials, the environment.
    ///
    /// # Errors
    /// When a layer cannot be read, or has a key or value that makes no sense; with all that is known of where.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let host = PathBuf::from(format!("/etc/{}/config.toml", env!("CARGO_PKG_NAME")));
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
        let exists = exists(host).map_err(|error| ConfigError(vec![format!("{}: {error}", host.display())]))?;
        let files = exists.then_some(host).into_iter().chain(file);
        let layers = Figment::from(Toml::string(DEFAULT));
        let layers = files.fold(layers, |layers, file| layers.merge(Toml::file_exact(file)));
        Self::extract(&layers, beside_files(variables).map_err(|error| ConfigError(vec![error]))?)
    }

    /// The defaults, with `overrides` as a further layer, in TOML.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn with(overrides: &str) -> Result<Self, ConfigError> {
        Self::extract(&Figment::from(Toml::string(DEFAULT)).merge(Toml::string(overrides)), Vec::new())
    }

    /// What `layers` and `settings` say together. A setting is a text until its field takes none, and one of somebody
    /// else's until it is known here.
    fn extract(layers: &Figment, mut settings: Vec<Setting>) -> Result<Self, ConfigError> {
        loop {
            let all = settings.iter().fold(layers.clone(), |layers, setting| layers.merge(setting));
            let mut error = match all.extract::<Self>() {
                Ok(mut config) => {
                    config.validate(&all)?;
                    config.beside_files = settings.into_iter().map(|setting| setting.key()).collect();
                    return Ok(config);
                }
                Err(error) => error,
            };
            let Some(at) = settings.iter().position(|setting| setting.is_source_of(&error)) else {
                return Err(error.into());
            };
            let setting = &mut settings[at];
            if setting.is_anothers() {
                let unknown = settings.remove(at);
                // There may be hundreds of them, and each attempt takes its time.
                if let Kind::UnknownField(_, known) = error.kind {
                    settings.retain(|other| {
                        let (tables, name) = other.place();
                        !other.is_anothers() || tables != unknown.place().0 || known.contains(&name)
                    });
                }
            } else if !(matches!(error.kind, Kind::InvalidType(..)) && setting.read_as_toml()) {
                if let Kind::Message(message) = &mut error.kind {
                    *message = setting.conceal(message);
                }
                return Err(error.into());
            }
        }
    }

    /// Refuses what cannot work, and what no single value shows to be wrong.
    fn validate(&self, layers: &Figment) -> Result<(), ConfigError> {
        let timeout = self.shutdown_timeout;
        let Limits {
            max_connections, max_head_bytes, idle_timeout, body_timeout, send_timeout, linger_timeout, ..
        } = self.limits;
        let Unit { cpu_weight, tasks_max, watchdog, start_timeout, .. } = self.unit;
        let second = Duration::from_secs(1);
        let health = probe::PATIENCE;
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
            self.unit
                .credentials
                .iter()
                .find(|key| !is_key(layers, key))
                .map(|key| ("unit.credentials", format!("{key:?}"), "is the key of no setting".to_owned())),
        ];
        let wrong: Vec<String> = rules
            .into_iter()
            .flatten()
            .map(|(key, value, reason)| {
                let metadata = layers.find_metadata(key);
                let value = if is_concealed(metadata) { "it" } else { &value };
                format!("{}: {key}: {value} {reason}", origin(metadata))
            })
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
        let Limits {
            max_connections, max_head_bytes, body_timeout, send_timeout, idle_timeout, linger_timeout, ..
        } = self.limits;
        let header_timeout = self.header_timeout();
        // As it is counted. What that really takes may be twice as much; the rest is for connections as such, and the service.
        let held_bytes = memory_bytes(&self.unit.memory_high).map_or(usize::MAX, |bytes| bytes as usize / 4);
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

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let listen = match text.parse() {
            Ok(address) => Listen::Tcp(address),
            Err(_) if text.starts_with('/') => Listen::Unix(PathBuf::from(&text)),
            Err(_) => {
                return Err(de::Error::custom(format!(
                    "\"{text}\" is neither ADDRESS:PORT, [ADDRESS]:PORT, nor a path that starts with /"
                )));
            }
        };
        match listen.obstacle() {
            None => Ok(listen),
            Some(reason) => Err(de::Error::custom(format!("\"{text}\" {reason}"))),
        }
    }
}

impl Listen {
    /// Why nobody could connect there, if so.
    fn obstacle(&self) -> Option<String> {
        match self {
            Listen::Tcp(address) => address.ip().is_multicast().then(|| "is no address of a host".to_owned()),
            Listen::Unix(path) => {
                let name = env!("CARGO_PKG_NAME");
                let text = path.as_os_str().as_encoded_bytes();
                // What a unit can name as it is, without quotes and specifiers, and systemd does not write otherwise.
                let plain = text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(byte));
                let normal = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
                let same = path.components().collect::<PathBuf>().as_os_str() == path.as_os_str();
                let private = ["/run", "/var/run", "/var/lib"].into_iter().any(|folder| {
                    [name, "private"].into_iter().any(|owner| path.starts_with(Path::new(folder).join(owner)))
                });
                if !(plain && normal && same) || path.parent().is_none() {
                    Some("is not a plain path of letters, digits and /._-".to_owned())
                } else if text.len() > 107 {
                    Some("is longer than the 107 bytes that a socket's path may have (unix(7))".to_owned())
                } else if private {
                    Some(format!(
                        "is in a folder of the service's own, where its unit lets nobody in: /run/{name}.sock"
                    ))
                } else {
                    None
                }
            }
        }
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

/// A filter that says what is logged of everything. [`Targets`] by itself takes any word that is no level for a target,
/// and logs nothing else.
fn filter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Targets, D::Error> {
    let text = String::deserialize(deserializer)?;
    let mut targets = Targets::new();
    for part in text.split(',').map(str::trim) {
        let (target, level) = part.split_once('=').map_or((None, part), |(target, level)| (Some(target.trim()), level));
        let is_target = |target: &str| {
            !target.is_empty() && target.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte))
        };
        let level = level.trim();
        let level = level.parse::<LevelFilter>().ok().filter(|_| !level.is_empty() && target.is_none_or(is_target));
        targets = match (target, level) {
            (Some(target), Some(level)) => targets.with_target(target, level),
            (None, Some(level)) if targets.default_level().is_none() => targets.with_default(level),
            (None, Some(_)) => {
                return Err(de::Error::custom(format!("\"{part}\" is a second level for all other targets")));
            }
            (_, None) => {
                return Err(de::Error::custom(format!(
                    "\"{part}\" is neither a level (off, error, warn, info, debug, trace) nor TARGET=LEVEL"
                )));
            }
        };
    }
    if targets.default_level().is_none() {
        return Err(de::Error::custom(format!("no level for all other targets: \"info,{text}\", or \"off,{text}\"")));
    }
    Ok(targets)
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
fn memory_bytes(text: &str) -> Option<u64> {
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

/// Key, value and reason where `value` is not in `range`; `end` says what the range ends with.
fn within<T: PartialOrd + fmt::Debug>(
    key: &'static str,
    value: T,
    range: RangeInclusive<T>,
    end: &str,
) -> Option<(&'static str, String, String)> {
    let reason = || format!("is not within {:?} and {:?}, {end}", range.start(), range.end());
    (!range.contains(&value)).then(|| (key, format!("{value:?}"), reason()))
}

/// Whether there is something at `path`; that it cannot be told, or is a link to nothing, is not the same as nothing.
fn exists(path: &Path) -> io::Result<bool> {
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match path.ancestors().find(|path| path.is_symlink() && !path.exists()) {
                Some(link) => Err(io::Error::other(format!("{} is a link that leads nowhere", link.display()))),
                None => Ok(false),
            }
        }
        found => found.map(|_| true),
    }
}

/// What the credentials and then the environment set. Where the credentials are, the environment says.
fn beside_files(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Vec<Setting>, String> {
    let variables: Vec<_> = variables.into_iter().collect();
    let directory = variables.iter().find(|(name, _)| name == "CREDENTIALS_DIRECTORY");
    let credentials = directory.map(|(_, path)| environment::credentials(Path::new(path))).transpose()?;
    Ok(credentials.into_iter().flatten().chain(environment::settings(variables)?).collect())
}

/// Whether there is a setting with this key.
fn is_key(layers: &Figment, key: &str) -> bool {
    let setting = environment::credential(key.to_owned(), String::new());
    let error = layers.clone().merge(&setting).extract::<Config>().err();
    !error.is_some_and(|error| matches!(error.kind, Kind::UnknownField(..) | Kind::InvalidType(Actual::Map, _)))
}

/// Whether a value is not shown: it was set by a credential, or in the environment.
fn is_concealed(metadata: Option<&Metadata>) -> bool {
    metadata.is_some_and(|metadata| matches!(metadata.source, Some(Source::Custom(_))))
}

/// Where a value was set, for people to read.
fn origin(metadata: Option<&Metadata>) -> String {
    match metadata.and_then(|metadata| metadata.source.as_ref()) {
        Some(Source::File(path)) => path.display().to_string(),
        Some(Source::Custom(setting)) => setting.clone(),
        _ => "the defaults".to_owned(),
    }
}

/// What is wrong with the configuration: a line for each thing, with where it is set, its key and the reason. A value
/// of a credential or the environment is not shown, nor one of another type: it may be a secret that went astray.
#[derive(Debug)]
pub struct ConfigError(Vec<String>);

impl From<figment::Error> for ConfigError {
    fn from(errors: figment::Error) -> Self {
        let line = |error: figment::Error| {
            let origin = origin(error.metadata.as_ref());
            let reason = reason(&error.kind);
            match error.path.join(".") {
                key if key.is_empty() => format!("{origin}: {reason}"),
                key => format!("{origin}: {key}: {reason}"),
            }
        };
        Self(errors.into_iter().map(line).collect())
    }
}

/// What sort of value was found.
fn sort(found: &Actual) -> &'static str {
    match found {
        Actual::Bool(_) => "a boolean",
        Actual::Signed(..0) => "a negative number",
        Actual::Unsigned(_) | Actual::Signed(_) => "a whole number",
        Actual::Float(_) => "a number with a point",
        Actual::Str(_) | Actual::Char(_) => "a text",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "something else",
    }
}

/// What serde expects, for people who do not know its types.
fn meant(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => format!("a whole number from 0 on ({expected})"),
        "a duration" => "a duration (\"30s\", \"1h 30m\")".to_owned(),
        _ => expected.to_owned(),
    }
}

/// What is wrong with a value, without the value.
fn reason(kind: &Kind) -> String {
    match kind {
        Kind::InvalidType(found, expected) => format!("{}, where {} is expected", sort(found), meant(expected)),
        Kind::InvalidValue(found, expected) => format!("{} that is not {}", sort(found), meant(expected)),
        Kind::UnknownVariant(_, variants) => format!("is none of {}", variants.join(", ")),
        kind => kind.to_string(),
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}
