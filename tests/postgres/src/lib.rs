//! The service: [`app`] and [`routes`] are yours, [`layers`] go around them, [`hitless`] restarts them without a loss.

#![forbid(unsafe_code)]

pub mod app;
pub mod config;
pub mod database;
pub mod idempotency;
pub mod kubernetes;
pub mod outbox;
pub mod proxy;
pub mod routes;
pub mod server;
pub mod unit;

/// The name of the service: of its binary, its units and its folders on a host.
pub const NAME: &str = env!("CARGO_PKG_NAME");
