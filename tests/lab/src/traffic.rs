//! What to ask the service for: `traffic.toml`, which belongs to the service's owner.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use crate::subject::Subject;

/// The routes the clients use. A list that is empty switches its scenarios off.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traffic {
    /// `GET`, answered at once.
    pub fast: Vec<Route>,
    /// `GET`, takes seconds.
    pub slow: Vec<Route>,
    /// `POST`, streams the request's body back.
    pub upload: Vec<Route>,
    /// The service's T: what a client may take its time for follows from it.
    #[serde(skip)]
    pub shutdown_timeout: Duration,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { fast: vec![], slow: vec![], upload: vec![], shutdown_timeout: Duration::from_secs(30) }
    }
}

/// A route and its right answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub path: String,
    pub status: u16,
    /// Any body will do where this is left out.
    #[serde(default)]
    pub body: Option<String>,
}

/// The service's settings, of which one is wanted.
#[derive(Deserialize)]
struct Settings {
    shutdown_timeout: String,
}

impl Traffic {
    /// Of a service, with the T that it has by default.
    pub fn of(subject: &Subject) -> anyhow::Result<Self> {
        let path = subject.directory.join("config/default.toml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let settings: Settings = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        let shutdown_timeout = humantime::parse_duration(&settings.shutdown_timeout)
            .with_context(|| format!("shutdown_timeout in {}", path.display()))?;
        Ok(Self { shutdown_timeout, ..Self::load(&subject.traffic())? })
    }

    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the routes to ask for from {}", path.display()))?;
        let traffic: Self = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        anyhow::ensure!(
            !traffic.fast.is_empty(),
            "{}: at least one [[fast]] route is needed, or nobody notices a restart",
            path.display()
        );
        Ok(traffic)
    }
}
