//! `/readyz`: the phase, and the checks that its owner registers.

use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::body::to_bytes;
use axum::extract::State;
use axum::response::IntoResponse;
use hitless::testing::{Connections, Lifecycle};
use layers::requests::Expected;
use serde_json::{Value, json};
use service::routes::health::{self, Readiness};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::application::NO_DATABASE;
use crate::client::soon;
use crate::handover::{client, start};
use crate::start::{command, config, managed};

/// What `/readyz` answers of a service that serves and has these checks.
async fn readyz(readiness: Readiness) -> (u16, Value) {
    let lifecycle = Lifecycle::new(config("").shutdown_timeout);
    lifecycle.serving(&Arc::new(Connections::default()));
    let answer = health::readyz(State(lifecycle.handle()), State(readiness), None).await.into_response();
    let status = answer.status().as_u16();
    let body = to_bytes(answer.into_body(), 10_000).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

fn good() -> impl Future<Output = Result<(), &'static str>> {
    ready(Ok(()))
}

#[tokio::test]
async fn without_checks_a_service_that_serves_is_ready() {
    assert_eq!(readyz(Readiness::new(Duration::from_secs(1))).await, (200, json!({ "phase": "serving" })));
}

#[tokio::test]
async fn before_it_serves_it_is_not() {
    let lifecycle = Lifecycle::new(config("").shutdown_timeout);
    let readiness = Readiness::new(Duration::from_secs(1));
    let (status, _, for_log, body) = health::readyz(State(lifecycle.handle()), State(readiness), None).await;
    assert_eq!(status, 503);
    assert!(for_log.get::<Expected>().is_some(), "{for_log:?}");
    assert_eq!(serde_json::to_value(body.0).unwrap(), json!({ "phase": "starting" }));
}

#[tokio::test]
async fn what_fails_is_named_and_why_is_for_operators_and_the_log() {
    const WHY: &str = "no route to host";
    let directory = TempDir::new().unwrap();
    let instances = ("RUNTIME_DIRECTORY", directory.path());
    let mut service = start(managed().env(NO_DATABASE, "1").env(instances.0, instances.1)).await;
    let answer = client(&service).await.get("/readyz").await;
    assert_eq!((answer.status, answer.json()), (503, json!({ "phase": "serving", "failed": ["database"] })));

    let output = soon("health", command().arg("health").env(instances.0, instances.1).output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!(r#""failed":["database"],"why":{{"database":"{WHY}"}}"#)), "{said}");

    assert!(service.stop().await.unwrap().success());
    assert!(service.log().contains(&format!("GET /readyz: 503: database: {WHY}")), "{}", service.log());
}

#[tokio::test]
async fn checks_run_once_for_all_who_ask_meanwhile_and_for_a_while_after() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let readiness = Readiness::new(Duration::from_secs(30)).check("counted", move || {
        counted.fetch_add(1, Relaxed);
        async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Err("of no use")
        }
    });
    // Who has asked first does not stay.
    let first = tokio::spawn(readyz(readiness.clone()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    first.abort();
    let asked: JoinSet<_> = (0..100).map(|_| readyz(readiness.clone())).collect();
    for answer in asked.join_all().await {
        assert_eq!(answer, (503, json!({ "phase": "serving", "failed": ["counted"] })));
    }
    readyz(readiness.clone()).await;
    assert_eq!(runs.load(Relaxed), 1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    readyz(readiness).await;
    assert_eq!(runs.load(Relaxed), 2);
}

#[tokio::test]
async fn checks_run_side_by_side_each_bounded_in_time() {
    let mut readiness = Readiness::new(Duration::from_millis(300)).check("good", good);
    for name in ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"] {
        readiness = readiness.check(name, pending::<Result<(), &str>>);
    }
    let began = Instant::now();
    let (status, report) = readyz(readiness).await;
    // One after the other they would take 3 s.
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(2));
    assert_eq!(status, 503);
    assert_eq!(report["failed"].as_array().unwrap().len(), 10, "{report}");
}

#[tokio::test]
async fn a_check_that_panics_has_failed_and_nothing_else_has() {
    let readiness = Readiness::new(Duration::from_secs(30))
        .check("panics", || async { if true { panic!("on purpose") } else { Ok::<_, &str>(()) } })
        .check("good", good);
    let (status, report) = readyz(readiness).await;
    assert_eq!((status, report), (503, json!({ "phase": "serving", "failed": ["panics"] })));
}

#[tokio::test]
async fn checks_have_no_say_in_a_service_that_leaves() {
    let mut app = crate::start::spawn_app("", axum::Router::new()).await;
    let mut client = app.client().await;
    app.leave(hitless::testing::Reason::Terminate).await;
    let report = client.get("/readyz").await;
    assert_eq!((report.status, report.json().get("failed")), (503, None), "{report:?}");
}
