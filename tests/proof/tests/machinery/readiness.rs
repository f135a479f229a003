//! `/readyz`: the phase, and the checks that its owner registers.

use std::future::{pending, ready};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::to_bytes;
use axum::extract::State;
use axum::response::IntoResponse;
use hitless::testing::{Connections, Lifecycle};
use layers::requests::Expected;
use serde_json::{Value, json};
use service::routes::health::{self, Readiness};

use crate::start::config;

/// What `/readyz` answers of a service that serves and has these checks.
async fn readyz(readiness: Readiness) -> (u16, Value) {
    let lifecycle = Lifecycle::new(config("").shutdown_timeout);
    lifecycle.serving(&Arc::new(Connections::default()));
    let answer = health::readyz(State(lifecycle.handle()), State(readiness)).await.into_response();
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
    let (status, _, for_log, body) = health::readyz(State(lifecycle.handle()), State(readiness)).await;
    assert_eq!(status, 503);
    assert!(for_log.get::<Expected>().is_some(), "{for_log:?}");
    assert_eq!(serde_json::to_value(body.0).unwrap(), json!({ "phase": "starting" }));
}

#[tokio::test]
async fn what_fails_is_named_with_its_reason() {
    let readiness = Readiness::new(Duration::from_secs(30))
        .check("database", || ready(Err("no route to host")))
        .check("cache", good);
    let expected = json!({ "phase": "serving", "failed": { "database": "no route to host" } });
    assert_eq!(readyz(readiness).await, (503, expected));
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
    let failed = report["failed"].as_object().unwrap();
    assert_eq!(failed.len(), 10);
    assert!(failed.values().all(|reason| reason.as_str().unwrap().contains("300ms")), "{report}");
}

#[tokio::test]
async fn a_check_that_panics_has_failed_and_nothing_else_has() {
    let readiness = Readiness::new(Duration::from_secs(30))
        .check("panics", || async { if true { panic!("on purpose") } else { Ok::<_, &str>(()) } })
        .check("good", good);
    let (status, report) = readyz(readiness).await;
    assert_eq!((status, report["failed"].as_object().unwrap().len()), (503, 1));
    assert!(report["failed"]["panics"].is_string(), "{report}");
}

#[tokio::test]
async fn checks_have_no_say_in_a_service_that_leaves() {
    let mut app = crate::start::spawn_app("", axum::Router::new()).await;
    let mut client = app.client().await;
    app.leave(hitless::testing::Reason::Terminate).await;
    let report = client.get("/readyz").await;
    assert_eq!((report.status, report.json().get("failed")), (503, None), "{report:?}");
}
