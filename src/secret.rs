//! Secrets among the settings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

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
