//! What to ask the service for: `traffic.toml`, which belongs to the service's owner and explains itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Method;
use http::header::{self, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::{Table, Value};

use crate::subject::Subject;

/// The routes the clients use, and where. A list that is empty switches its scenarios off.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traffic {
    /// Answered at once.
    pub fast: Vec<Route>,
    /// Takes seconds.
    pub slow: Vec<Route>,
    /// Streams the request's body back.
    pub upload: Vec<Route>,
    /// The service's settings, over its defaults.
    pub settings: Table,
    /// The script that prepares a host.
    pub prepare: Option<PathBuf>,
    /// The service's T: what a client may take its time for follows from it.
    #[serde(skip)]
    pub shutdown_timeout: Duration,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            fast: vec![],
            slow: vec![],
            upload: vec![],
            settings: Table::new(),
            prepare: None,
            shutdown_timeout: Duration::from_secs(30),
        }
    }
}

/// A route: how to ask for it, and its right answer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// `GET` where this is left out; of uploads, `POST`.
    method: Option<String>,
    path: String,
    headers: BTreeMap<String, String>,
    /// The body of the request.
    send: Option<String>,
    pub status: u16,
    /// The body of the answer. Any will do where this is left out.
    body: Option<String>,
}

/// A request to a route, and the answer it must get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub send: Option<Bytes>,
    pub status: u16,
    pub body: Option<Bytes>,
}

impl Request {
    /// `GET path`.
    pub fn get(path: &str, status: u16, body: Option<&str>) -> Self {
        let body = body.map(|body| Bytes::copy_from_slice(body.as_bytes()));
        Self { path: path.to_owned(), status, body, ..Self::default() }
    }

    /// `POST path`; the right answer is the body itself.
    pub fn echo(path: &str, status: u16, body: impl Into<Bytes>) -> Self {
        Self { method: Method::POST, ..Self::get(path, status, None) }.echoing(body.into())
    }

    /// The same with this body, which is the right answer, too.
    fn echoing(self, body: Bytes) -> Self {
        Self { send: Some(body.clone()), body: Some(body), ..self }
    }
}

/// What stands for something unique in a route.
const ID: &str = "{id}";

/// What the laboratory itself says of a request.
const OWN: [HeaderName; 4] = [header::CONNECTION, header::CONTENT_LENGTH, header::HOST, header::TRANSFER_ENCODING];

impl Route {
    /// A request, unlike any other where it has something unique in it.
    pub fn request(&self) -> Request {
        let id: String = std::iter::repeat_with(fastrand::alphanumeric).take(20).collect();
        let unique = |text: &String| text.replace(ID, &id);
        let method = self.method.as_deref().map(|method| Method::from_bytes(method.as_bytes()));
        Request {
            // It was looked at when it was loaded.
            method: method.and_then(Result::ok).unwrap_or_default(),
            path: unique(&self.path),
            headers: self.headers.iter().map(|(name, value)| (name.clone(), unique(value))).collect(),
            send: self.send.as_ref().map(unique).map(Bytes::from),
            status: self.status,
            body: self.body.as_ref().map(unique).map(Bytes::from),
        }
    }

    /// A request that sends `body`, and wants it back.
    pub fn upload(&self, body: impl Into<Bytes>) -> Request {
        let method = if self.method.is_some() { self.request().method } else { Method::POST };
        Request { method, ..self.request() }.echoing(body.into())
    }

    /// The path, where that is all that there is to say.
    pub fn plain(&self) -> Option<&str> {
        let is_plain = self.method.is_none() && self.headers.is_empty() && self.send.is_none();
        (is_plain && !self.path.contains(ID)).then_some(&self.path)
    }

    /// Fails with what cannot be asked for.
    fn check(&self) -> anyhow::Result<()> {
        let Request { path, headers, .. } = self.request();
        if let Some(method) = &self.method {
            let method = Method::from_bytes(method.as_bytes()).with_context(|| format!("{method:?} is no method"))?;
            // Whose answers end elsewhere.
            ensure!(![Method::HEAD, Method::CONNECT].contains(&method), "the laboratory cannot ask with {method}");
        }
        ensure!(path.starts_with('/'), "the path {path:?} does not begin with /");
        path.parse::<http::Uri>().with_context(|| format!("{path:?} is no path"))?;
        for (name, value) in headers {
            let known: HeaderName = name.parse().with_context(|| format!("{name:?} is no header"))?;
            ensure!(!OWN.contains(&known), "the laboratory says {name} by itself");
            HeaderValue::try_from(&value).with_context(|| format!("{value:?} is no value for {name}"))?;
        }
        ensure!((200..600).contains(&self.status), "{path}: {} is no status of an answer", self.status);
        Ok(())
    }
}

impl Traffic {
    /// Of a service, with the T that it has by default.
    pub fn of(subject: &Subject) -> anyhow::Result<Self> {
        let mut traffic = Self::load(&subject.traffic())?;
        let path = subject.directory.join("config/default.toml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let settings: Table = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        let timeout = traffic.settings.get("shutdown_timeout").or(settings.get("shutdown_timeout"));
        let timeout = timeout.and_then(Value::as_str).context("shutdown_timeout is no text");
        traffic.shutdown_timeout = timeout
            .and_then(|timeout| Ok(humantime::parse_duration(timeout)?))
            .with_context(|| format!("shutdown_timeout in {} or {}", subject.traffic().display(), path.display()))?;
        Ok(traffic)
    }

    /// What a file says.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the routes to ask for from {}", path.display()))?;
        let mut traffic = Self::parse(&text).with_context(|| format!("in {}", path.display()))?;
        traffic.prepare = traffic.prepare.map(|script| path.with_file_name(script));
        Ok(traffic)
    }

    /// The same, of its text.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let traffic: Self = toml::from_str(text)?;
        ensure!(!traffic.fast.is_empty(), "at least one [[fast]] route is needed, or nobody notices a restart");
        for route in traffic.fast.iter().chain(&traffic.slow).chain(&traffic.upload) {
            route.check()?;
        }
        for route in &traffic.upload {
            ensure!(route.send.is_none() && route.body.is_none(), "the laboratory chooses what an upload sends");
        }
        Ok(traffic)
    }

    /// The service's settings for the laboratory; those that a test needs, in TOML, go first.
    pub fn settings_with(&self, needed: &str) -> anyhow::Result<Table> {
        let mut settings = self.settings.clone();
        merge(&mut settings, toml::from_str(needed)?);
        Ok(settings)
    }

    /// What has to happen on a host before the service is deployed there, as a shell script.
    pub fn preparation(&self) -> anyhow::Result<Option<String>> {
        let read =
            |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
        self.prepare.as_ref().map(read).transpose()
    }
}

/// Lays `over` over `table`, key by key.
fn merge(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(over)) => merge(inner, over),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

/// Each setting and its value as they are written in the environment: `limits.max_connections` and `500`.
pub fn flat(settings: &Table) -> Vec<(String, String)> {
    let flat_value = |(key, value): (&String, &Value)| match value {
        Value::Table(table) => flat(table).into_iter().map(|(inner, text)| (format!("{key}.{inner}"), text)).collect(),
        Value::String(text) => vec![(key.clone(), text.clone())],
        value => vec![(key.clone(), value.to_string())],
    };
    settings.iter().flat_map(flat_value).collect()
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../../proof/unit/traffic.rs"]
mod tests;
