//! What to ask the service for: `traffic.toml`, which belongs to the service's owner and explains itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use hyper::Method;
use hyper::header::{self, HeaderName, HeaderValue};
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
        path.parse::<hyper::Uri>().with_context(|| format!("{path:?} is no path"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: &str = r#"
        prepare = "prepare.sh"
        [settings]
        database = "postgres:///orders"
        unit.outbound = true
        [[fast]]
        method = "PUT"
        path = "/orders/{id}"
        headers = { Idempotency-Key = "{id}", Accept = "text/plain" }
        send = '{"order":"{id}"}'
        status = 201
        body = "{id}"
        [[upload]]
        path = "/scans"
        headers = { Accept = "*/*" }
        status = 200
    "#;

    #[test]
    fn what_is_unique_is_the_same_all_over_a_request_and_in_no_other() {
        let route = &Traffic::parse(ORDERS).unwrap().fast[0];
        let requests = [route.request(), route.request()];
        for Request { method, path, headers, send, status, body } in &requests {
            let id = path.strip_prefix("/orders/").unwrap();
            assert!(id.len() >= 16 && !id.contains('{'), "{id}");
            assert_eq!((method, *status), (&Method::PUT, 201));
            let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            assert_eq!(headers, [("Accept", "text/plain"), ("Idempotency-Key", id)]);
            assert_eq!(send.as_deref(), Some(format!("{{\"order\":\"{id}\"}}").as_bytes()));
            assert_eq!(body.as_deref(), Some(id.as_bytes()));
        }
        assert_ne!(requests[0].path, requests[1].path);
        assert_eq!(route.plain(), None);
    }

    #[test]
    fn an_upload_is_a_post_unless_it_says_otherwise_and_wants_its_body_back() {
        let route = &Traffic::parse(ORDERS).unwrap().upload[0];
        let request = route.upload("a body");
        assert_eq!((&request.method, &*request.path), (&Method::POST, "/scans"));
        assert_eq!((request.send.as_deref(), request.body.as_deref()), (Some(&b"a body"[..]), Some(&b"a body"[..])));
        assert_eq!(request.headers.len(), 1);
        let put = Route { method: Some("PUT".into()), ..route.clone() };
        assert_eq!(put.upload("a body").method, Method::PUT);
    }

    #[test]
    fn what_a_test_needs_goes_before_what_the_owner_sets() {
        let traffic = Traffic::parse(ORDERS).unwrap();
        let settings =
            traffic.settings_with("shutdown_timeout = '6s'\ndatabase = 'none'\n[unit]\ncpu_weight = 7").unwrap();
        let expected =
            [("database", "none"), ("shutdown_timeout", "6s"), ("unit.cpu_weight", "7"), ("unit.outbound", "true")];
        assert_eq!(flat(&settings), expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_cannot_be_asked_for_is_refused_with_the_reason() {
        for (route, reason) in [
            ("path = 'orders'\nstatus = 200", "does not begin with /"),
            ("path = '/a b'\nstatus = 200", "is no path"),
            ("path = '/'", "is no status"),
            ("path = '/'\nstatus = 100", "is no status"),
            ("path = '/'\nstatus = 200\nmethod = 'A B'", "is no method"),
            ("path = '/'\nstatus = 200\nmethod = 'HEAD'", "cannot ask with HEAD"),
            ("path = '/'\nstatus = 200\nheaders = { 'a b' = '' }", "is no header"),
            ("path = '/'\nstatus = 200\nheaders = { a = \"\\n\" }", "is no value for a"),
            ("path = '/'\nstatus = 200\nheaders = { content-length = '1' }", "the laboratory says"),
            ("path = '/'\nstatus = 200\nbodies = ''", "unknown field"),
            ("path = '/'\nstatus = 200\n[[upload]]\npath = '/'\nstatus = 200\nsend = ''", "chooses what"),
        ] {
            let error = Traffic::parse(&format!("[[fast]]\n{route}")).expect_err(route);
            assert!(format!("{error:#}").contains(reason), "{route}: {error:#}");
        }
        let error = Traffic::parse("").unwrap_err();
        assert!(format!("{error:#}").contains("[[fast]]"), "{error:#}");
    }
}
