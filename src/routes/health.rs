//! `GET /livez` and `GET /readyz`: for systemd, load balancers and Kubernetes.
//!
//! `/livez` says that the process answers; it stays 200 to the end, for a process that drains is not to be killed.
//! `/readyz` says whether to send clients: 503 when a check fails, and when the service leaves and whoever is sent here
//! would not be served at once.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use tokio::task::JoinSet;

use hitless::Handle;
use layers::problem::Withheld;
use layers::requests::Expected;

/// What a check finds wrong, for operators to read.
type Finding = Result<(), String>;
type Check = dyn Fn() -> Pin<Box<dyn Future<Output = Finding> + Send>> + Send + Sync;

/// The checks that decide whether the service is ready.
#[derive(Clone)]
pub struct Readiness {
    timeout: Duration,
    checks: Arc<Vec<(&'static str, Arc<Check>)>>,
}

impl Readiness {
    /// No checks; each that is added may take `timeout`.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, checks: Arc::default() }
    }

    /// Adds a check under a name that clients see when it fails.
    pub fn check<C, F, E>(mut self, name: &'static str, check: C) -> Self
    where
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        let check = move || {
            let found = check();
            Box::pin(async move { found.await.map_err(|error| error.to_string()) })
                as Pin<Box<dyn Future<Output = _> + Send>>
        };
        Arc::make_mut(&mut self.checks).push((name, Arc::new(check)));
        self
    }

    /// Runs all checks side by side; gives those that failed.
    async fn run(&self) -> BTreeMap<&'static str, String> {
        let mut running = JoinSet::new();
        let mut names = BTreeMap::new();
        for (name, check) in self.checks.iter() {
            let found = tokio::time::timeout(self.timeout, check());
            names.insert(running.spawn(found).id(), *name);
        }
        let mut failed = BTreeMap::new();
        while let Some(ended) = running.join_next_with_id().await {
            let (id, finding) = match ended {
                Ok((id, Ok(finding))) => (id, finding),
                Ok((id, Err(_))) => (id, Err(format!("no answer within {:?}", self.timeout))),
                Err(error) => (error.id(), Err("the check panicked".to_owned())),
            };
            if let Err(reason) = finding {
                failed.insert(names[&id], reason);
            }
        }
        failed
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.checks.iter().map(|(name, _)| name).collect();
        f.debug_struct("Readiness").field("timeout", &self.timeout).field("checks", &names).finish()
    }
}

/// The answer of `/readyz`.
#[derive(Serialize)]
pub struct Report {
    phase: String,
    /// Milliseconds until whatever is left is cut off, once the service leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining_ms: Option<u64>,
    /// The checks that failed, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    failed: BTreeMap<&'static str, String>,
}

/// Says that the process answers.
pub async fn livez() -> &'static str {
    "live\n"
}

/// Says whether clients should come here. The log has the checks that fail; that a service leaves is no failure.
pub async fn readyz(
    State(handle): State<Handle>,
    State(readiness): State<Readiness>,
) -> (StatusCode, HeaderMap, Extensions, Json<Report>) {
    let mut failed = BTreeMap::new();
    // A service that turns clients away is not ready, whatever its checks say.
    if handle.is_ready() {
        failed = readiness.run().await;
    }
    let phase = handle.phase();
    let remaining = handle.remaining();
    let mut headers = HeaderMap::from_iter([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))]);
    let ready = handle.is_ready() && failed.is_empty();
    if let (false, Some(remaining)) = (ready, remaining) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(remaining.as_secs_f64().ceil() as u64));
    }
    let mut for_log = Extensions::new();
    if !failed.is_empty() {
        let reasons: Vec<String> = failed.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
        for_log.insert(Withheld(reasons.join("; ")));
    } else if !ready {
        for_log.insert(Expected);
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let remaining_ms = remaining.map(|remaining| remaining.as_millis() as u64);
    (status, headers, for_log, Json(Report { phase: phase.to_string(), remaining_ms, failed }))
}
