//! What to ask the service for: `traffic.toml`, which belongs to the service's owner.

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

/// The routes the clients use. A list that is empty switches its scenarios off.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traffic {
    /// `GET`, answered at once.
    pub fast: Vec<Route>,
    /// `GET`, takes seconds.
    pub slow: Vec<Route>,
    /// `POST`, streams the request's body back.
    pub upload: Vec<Route>,
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

impl Traffic {
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
