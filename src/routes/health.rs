//! `GET /livez` and `GET /readyz`: for systemd, load balancers and Kubernetes.
//!
//! `/livez` says that the process answers; it stays 200 to the end, for a process that drains is not to be killed.
//! `/readyz` says whether to send clients: 503 when a check fails, when the host is drained, and when the service leaves and
//! whoever is sent here would not be served at once.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, State};
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use axum::{Extension, Json};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use hitless::{Connection, Handle, Peer};
use layers::problem::Withheld;
use layers::requests::Expected;

/// How long what the checks have found is good. Anybody may ask, as often as they like.
const GOOD_FOR: Duration = Duration::from_millis(250);

/// What a check finds wrong, for operators to read.
type Finding = Result<(), String>;
/// The checks that failed, and why.
type Failed = BTreeMap<&'static str, String>;
type Check = dyn Fn() -> Pin<Box<dyn Future<Output = Finding> + Send>> + Send + Sync;

/// The checks that decide whether the service is ready.
#[derive(Clone)]
pub struct Readiness {
    timeout: Duration,
    checks: Arc<Vec<(&'static str, Arc<Check>)>>,
    /// What they have found last, and when. Locked while they run.
    found: Arc<Mutex<Option<(Instant, Failed)>>>,
}

impl Readiness {
    /// No checks; each that is added may take `timeout`.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, checks: Arc::default(), found: Arc::default() }
    }

    /// Adds a check under a name that clients see when it fails, and no more of it.
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

    /// The checks that fail. They run once for all who ask meanwhile, also when who has asked first does not wait for it.
    async fn failed(&self) -> Failed {
        let mut found = Arc::clone(&self.found).lock_owned().await;
        if let Some((at, failed)) = &*found
            && at.elapsed() < GOOD_FOR
        {
            return failed.clone();
        }
        let readiness = self.clone();
        let run = tokio::spawn(async move {
            let failed = readiness.run().await;
            *found = Some((Instant::now(), failed.clone()));
            failed
        });
        // Cannot fail: what panics is a task of its own.
        run.await.unwrap_or_default()
    }

    /// Runs all checks side by side; gives those that failed.
    async fn run(&self) -> Failed {
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
    /// The operator has drained this host.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    drained: bool,
    /// Milliseconds until whatever is left is cut off, once the service leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining_ms: Option<u64>,
    /// The checks that failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed: Vec<&'static str>,
    /// Why, for who operates the service: it may name hosts and users.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    why: Failed,
}

/// Says that the process answers.
pub async fn livez() -> &'static str {
    "live\n"
}

/// Says whether clients should come here. The log has why checks fail, and `<name> health`; that a service leaves is no failure.
pub async fn readyz(
    State(handle): State<Handle>,
    State(readiness): State<Readiness>,
    connection: Option<Extension<ConnectInfo<Connection>>>,
) -> (StatusCode, HeaderMap, Extensions, Json<Report>) {
    let mut why = Failed::new();
    // A service that turns clients away is not ready, whatever its checks say.
    if handle.is_ready() {
        why = readiness.failed().await;
    }
    let phase = handle.phase();
    let remaining = handle.remaining();
    let mut headers = HeaderMap::from_iter([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))]);
    let ready = handle.is_ready() && why.is_empty();
    if let (false, Some(remaining)) = (ready, remaining) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(remaining.as_secs_f64().ceil() as u64));
    }
    let mut for_log = Extensions::new();
    let failed: Vec<_> = why.keys().copied().collect();
    if !failed.is_empty() {
        let reasons: Vec<String> = why.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
        for_log.insert(Withheld(reasons.join("; ")));
    } else if !ready {
        for_log.insert(Expected);
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if connection.is_none_or(|Extension(ConnectInfo(connection))| connection.peer() != Peer::Operator) {
        why.clear();
    }
    let report = Report {
        phase: phase.to_string(),
        drained: handle.is_drained(),
        remaining_ms: remaining.map(|remaining| remaining.as_millis() as u64),
        failed,
        why,
    };
    (status, headers, for_log, Json(report))
}
