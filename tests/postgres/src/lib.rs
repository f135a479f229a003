//! The service: [`app`] and [`routes`] are yours, [`hitless`] restarts them without a loss.

#![forbid(unsafe_code)]

pub mod app;
pub mod body_limit;
pub mod config;
pub mod database;
pub mod drain;
mod environment;
pub mod forwarded;
pub mod idempotency;
pub mod kubernetes;
pub mod metrics;
pub mod outbox;
pub mod panics;
pub mod probe;
pub mod problem;
pub mod proxy;
pub mod requests;
pub mod routes;
pub mod scrape;
pub mod secret;
pub mod server;
pub mod strict;
pub mod telemetry;
pub mod trace;
pub mod unit;
