//! Settings in layers: defaults, files, credentials, the environment. What is refused is refused with all that is known of
//! where it was set.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::{fmt, io};

use figment::error::{Actual, Kind};
use figment::providers::{Format as _, Toml};
use figment::{Figment, Metadata, Source};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, de};

use crate::environment::{self, Setting};

/// Where settings come from, each source over those before it.
pub struct Sources {
    layers: Figment,
    settings: Vec<Setting>,
}

impl Sources {
    /// The defaults, in TOML.
    pub fn new(defaults: &str) -> Self {
        Self { layers: Figment::from(Toml::string(defaults)), settings: Vec::new() }
    }

    /// And a text, in TOML.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.layers = self.layers.merge(Toml::string(text));
        self
    }

    /// And a file, which there has to be.
    #[must_use]
    pub fn file(mut self, path: &Path) -> Self {
        self.layers = self.layers.merge(Toml::file_exact(path));
        self
    }

    /// And a file, if there is one.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn file_if_any(self, path: &Path) -> Result<Self, ConfigError> {
        let exists = exists(path).map_err(|error| ConfigError(vec![format!("{}: {error}", path.display())]))?;
        Ok(if exists { self.file(path) } else { self })
    }

    /// And what the credentials and then the environment set for the service `name`, last. Where the credentials are, the
    /// environment says.
    ///
    /// # Errors
    /// When something there cannot be read.
    pub fn beside_files(
        mut self,
        name: &str,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        self.settings = beside_files(name, variables).map_err(|error| ConfigError(vec![error]))?;
        Ok(self)
    }

    /// What all of them say together, and where they have it from. A setting is a text until its field takes none, and one of
    /// somebody else's until it is known here.
    ///
    /// # Errors
    /// When a layer cannot be read, or has a key or value that makes no sense; with all that is known of where.
    pub fn extract<T: DeserializeOwned>(self) -> Result<(T, Origins), ConfigError> {
        let Self { layers, mut settings } = self;
        loop {
            let all = settings.iter().fold(layers.clone(), |layers, setting| layers.merge(setting));
            let mut error = match all.extract() {
                Ok(config) => return Ok((config, Origins { layers: all, settings })),
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
}

/// Where each setting has its value from.
pub struct Origins {
    layers: Figment,
    settings: Vec<Setting>,
}

impl Origins {
    /// The keys that no file sets, but a credential or the environment.
    pub fn beside_files(&self) -> Vec<String> {
        self.settings.iter().map(Setting::key).collect()
    }

    /// Whether a configuration of this type has a setting with this key.
    pub fn is_key<T: DeserializeOwned>(&self, key: &str) -> bool {
        let setting = environment::credential(key.to_owned(), String::new());
        let error = self.layers.clone().merge(&setting).extract::<T>().err();
        !error.is_some_and(|error| matches!(error.kind, Kind::UnknownField(..) | Kind::InvalidType(Actual::Map, _)))
    }

    /// Refuses what is wrong: the key of each, its value, and why.
    ///
    /// # Errors
    /// When there is any.
    pub fn refuse(&self, wrong: impl IntoIterator<Item = Wrong>) -> Result<(), ConfigError> {
        let line = |(key, value, reason): Wrong| {
            let metadata = self.layers.find_metadata(key);
            let value = if is_concealed(metadata) { "it" } else { &value };
            format!("{}: {key}: {value} {reason}", origin(metadata))
        };
        let lines: Vec<String> = wrong.into_iter().map(line).collect();
        if lines.is_empty() { Ok(()) } else { Err(ConfigError(lines)) }
    }
}

/// A key, its value, and what is wrong with that.
pub type Wrong = (&'static str, String, String);

/// Key, value and reason where `value` is not in `range`; `end` says what the range ends with.
pub fn within<T: PartialOrd + fmt::Debug>(
    key: &'static str,
    value: T,
    range: RangeInclusive<T>,
    end: &str,
) -> Option<Wrong> {
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

/// What the credentials and then the environment set.
fn beside_files(name: &str, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Vec<Setting>, String> {
    let variables: Vec<_> = variables.into_iter().collect();
    let directory = variables.iter().find(|(name, _)| name == "CREDENTIALS_DIRECTORY");
    let credentials = directory.map(|(_, path)| environment::credentials(Path::new(path))).transpose()?;
    Ok(credentials.into_iter().flatten().chain(environment::settings(name, variables)?).collect())
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

/// A value that nobody is shown: whatever prints it, prints stars. So does the error where its text makes none.
#[derive(Clone)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// The value, for whoever needs it: each place that does stands out.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// As a text, from which the value is made.
impl<'de, T: FromStr> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Why not, may well quote it.
        let is_none = |_| de::Error::custom(format!("is no {}", std::any::type_name::<T>()));
        String::deserialize(deserializer)?.parse().map(Self).map_err(is_none)
    }
}
