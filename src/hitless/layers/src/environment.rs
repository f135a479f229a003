//! The settings in the environment, and in the credentials that systemd passes on (systemd.exec(5)): each is the text that it
//! is, whatever its field's type, until that takes no text.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;
use std::{fs, io};

use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Error, Metadata, Profile, Provider, Source};

/// What systemd sets for a service (systemd.exec(5)): not ours, should the service's name begin like one of these.
const SYSTEMD: &str = "CACHE_DIRECTORY CONFIGURATION_DIRECTORY CREDENTIALS_DIRECTORY EXIT_CODE EXIT_STATUS FDSTORE \
    INVOCATION_ID JOURNAL_STREAM LISTEN_FDNAMES LISTEN_FDS LISTEN_PID LISTEN_PIDFDID LOGS_DIRECTORY \
    MEMORY_PRESSURE_WATCH MEMORY_PRESSURE_WRITE MONITOR_EXIT_CODE MONITOR_EXIT_STATUS MONITOR_INVOCATION_ID \
    MONITOR_SERVICE_RESULT MONITOR_UNIT NOTIFY_SOCKET REMOTE_ADDR REMOTE_PORT RUNTIME_DIRECTORY SERVICE_RESULT \
    STATE_DIRECTORY SYSTEMD_EXEC_PID TRIGGER_PATH TRIGGER_TIMER_MONOTONIC_USEC TRIGGER_TIMER_REALTIME_USEC \
    TRIGGER_UNIT WATCHDOG_PID WATCHDOG_USEC";

const RUST_LOG: &str = "RUST_LOG";

/// A variable whose name begins with the service's, or a credential, which is named like the key that it sets.
pub struct Setting {
    /// The variable's name, or the credential's.
    source: String,
    /// Where that is.
    among: &'static str,
    tables: Vec<String>,
    name: String,
    text: String,
    value: Value,
    anothers: bool,
}

/// What begins with the service's `name` among `variables`, and `RUST_LOG`.
///
/// # Errors
/// When a value is not UTF-8.
pub fn settings(name: &str, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Vec<Setting>, String> {
    of(&(name.to_uppercase().replace('-', "_") + "_"), variables)
}

/// What begins with `prefix`.
fn of(prefix: &str, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Vec<Setting>, String> {
    let mut settings = Vec::new();
    for (variable, text) in variables {
        let variable = variable.to_string_lossy().to_ascii_uppercase();
        let key = match variable.strip_prefix(prefix) {
            Some(key) => key,
            // What everybody sets for a program in Rust.
            None if variable == RUST_LOG && !text.is_empty() => "LOG__FILTER",
            None => continue,
        };
        let mut tables: Vec<String> = key.to_ascii_lowercase().split("__").map(str::to_owned).collect();
        let name = tables.pop().unwrap_or_default();
        let text = text.into_string().map_err(|_| format!("{variable} in the environment: is not UTF-8"))?;
        let anothers = SYSTEMD.split(' ').any(|name| name == variable) || is_of_a_service(&variable, &text);
        let value = Value::from(text.clone());
        settings.push(Setting { source: variable, among: "in the environment", tables, name, text, value, anothers });
    }
    // It is not for this service alone: its own variable wins.
    settings.sort_by_key(|setting| setting.source != RUST_LOG);
    let links: Vec<String> = settings.iter().filter_map(Setting::link).collect();
    for setting in &mut settings {
        setting.anothers |= links.iter().any(|link| setting.source.starts_with(link));
    }
    Ok(settings)
}

/// What the credentials in `directory` set: `database.url` is the key `url` in the table `database`. The end of the last
/// line is none of the value's.
///
/// # Errors
/// When one cannot be read, or is not UTF-8.
pub fn credentials(directory: &Path) -> Result<Vec<Setting>, String> {
    let read = || -> io::Result<Vec<(String, String)>> {
        let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        // What Kubernetes mounts are links to what is in a folder beside them, `..data`.
        let entries = entries.filter(|name| !name.as_ref().is_ok_and(|name: &String| name.starts_with("..")));
        entries
            .map(|name| name.and_then(|name| Ok((name.clone(), fs::read_to_string(directory.join(name))?))))
            .collect()
    };
    let mut credentials = read().map_err(|error| format!("{}: a credential: {error}", directory.display()))?;
    credentials.sort_unstable();
    Ok(credentials.into_iter().map(|(name, text)| credential(name, text)).collect())
}

/// What a credential with this name and text sets.
pub fn credential(source: String, text: String) -> Setting {
    let mut tables: Vec<String> = source.split('.').map(str::to_owned).collect();
    let name = tables.pop().unwrap_or_default();
    let text = text.strip_suffix('\n').map(str::to_owned).unwrap_or(text);
    let value = Value::from(text.clone());
    Setting { source, among: "among the credentials", tables, name, text, value, anothers: false }
}

impl Setting {
    /// The key of the configuration: `limits.max_connections`.
    pub fn key(&self) -> String {
        self.tables.iter().chain([&self.name]).map(String::as_str).collect::<Vec<_>>().join(".")
    }

    /// The tables around what this sets, and its own name there.
    pub fn place(&self) -> (&[String], &str) {
        (&self.tables, &self.name)
    }

    /// Whether this variable looks like one that an orchestrator or a service manager sets.
    pub fn is_anothers(&self) -> bool {
        self.anothers
    }

    /// Whether it is this that the error is about.
    pub fn is_source_of(&self, error: &Error) -> bool {
        error.metadata.as_ref().is_some_and(|metadata| metadata.source == self.metadata().source)
    }

    /// Takes the text for what a file would have there, for a field that is no text, and says whether that is another
    /// value.
    pub fn read_as_toml(&mut self) -> bool {
        let file = Toml::string(&format!("value = {}", self.text)).data().unwrap_or_default();
        let value = file.into_values().find_map(|mut entries| entries.remove("value"));
        match (&self.value, value) {
            (Value::String(..), Some(value)) if value.as_str().is_none() => {
                self.value = value;
                true
            }
            _ => false,
        }
    }

    /// `message` without the value, which may be a secret that went astray. A short one is none, but may well be part
    /// of what the message says.
    pub fn conceal(&self, message: &str) -> String {
        let mut message = message.replace(&format!("\"{}\"", self.text), "it");
        // Where a list is wrong, it is a part of it that is told.
        if let (Some(begin), Some(end)) = (message.find('"'), message.rfind('"'))
            && begin < end
            && self.text.contains(&message[begin + 1..end])
        {
            message.replace_range(begin..=end, "it");
        }
        if self.text.len() < 6 { message } else { message.replace(&self.text, "...") }
    }

    /// What the variables begin with that Docker sets of the environment of a container that is linked to this one:
    /// `<ALIAS>_NAME` is `/this/that` then.
    fn link(&self) -> Option<String> {
        let alias = self.source.strip_suffix("_NAME")?;
        is_link(&self.text).then(|| format!("{alias}_ENV_"))
    }
}

impl Provider for &Setting {
    fn metadata(&self) -> Metadata {
        Metadata::from("setting", Source::Custom(format!("{} {}", self.source, self.among)))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let entry = Dict::from([(self.name.clone(), self.value.clone())]);
        let entry = self.tables.iter().rev().fold(entry, |entry, table| Dict::from([(table.clone(), entry.into())]));
        Ok(Profile::Default.collect(entry))
    }
}

/// Whether Kubernetes (for a Service) or Docker (for a link) sets such a variable to such a value: where another's name
/// begins with ours, so do its variables.
fn is_of_a_service(variable: &str, value: &str) -> bool {
    let is_protocol = |text: &str| matches!(text, "tcp" | "udp" | "sctp");
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    let is_url = |text: &str| {
        let parts = text.split_once("://").and_then(|(protocol, rest)| Some((protocol, rest.rsplit_once(':')?)));
        parts.is_some_and(|(protocol, (_, port))| is_protocol(protocol) && is_port(port))
    };
    let of_port = |name: &str| {
        let mut parts = name.strip_prefix('_').unwrap_or_default().splitn(3, '_');
        let (port, protocol) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        is_port(port)
            && matches!(protocol, "TCP" | "UDP" | "SCTP")
            && match parts.next() {
                None | Some("START" | "END") => is_url(value),
                Some("PROTO") => is_protocol(value),
                Some("PORT" | "PORT_START" | "PORT_END") => is_port(value),
                Some("ADDR") => is_address(value),
                Some(_) => false,
            }
    };
    let named_port = |(at, part): (usize, &str)| {
        let rest = &variable[at + part.len()..];
        (rest.is_empty() || rest.starts_with('_')) && is_port(value)
    };
    variable.ends_with("_SERVICE_HOST") && is_address(value)
        || variable.match_indices("_SERVICE_PORT").any(named_port)
        || variable.ends_with("_PORT") && is_url(value)
        || variable.match_indices("_PORT").any(|(at, part)| of_port(&variable[at + part.len()..]))
        || variable.ends_with("_NAME") && is_link(value)
}

/// Whether it is what Docker calls a linked container: `/this/that`.
fn is_link(text: &str) -> bool {
    text.strip_prefix('/').is_some_and(|names| names.split('/').filter(|name| !name.is_empty()).count() == 2)
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/environment.rs"]
mod tests;
