//! The tests of the service, as its clients see it. They need no root, no systemd, no free port, and no database but what
//! they start themselves.

mod asking;
mod database;
mod migrations;
mod orders;
mod own_routes;
mod server;

use std::path::Path;

use lab::http1::Connection;
use lab::manager::Service;
use lab::stage::with_settings;
use lab::traffic::Traffic;

/// The service's binary.
const BINARY: &str = env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME")));

/// What `make rehearse` asks for.
fn traffic() -> Traffic {
    Traffic::load(Path::new("tests/lab/traffic.toml")).expect("what to ask for")
}

/// Starts the service under a stand-in for systemd, with the settings of `tests/lab/traffic.toml` and, over them, those that
/// a test needs, in TOML. It ends with the test. It has a database of its own.
async fn start(settings: &str) -> Service {
    start_on(&server::new_database().await, settings).await
}

/// The same on this database.
async fn start_on(url: &str, settings: &str) -> Service {
    let settings = format!("database.url = '{url}'\n{settings}");
    let settings = traffic().settings_with(&settings).expect("settings");
    with_settings(BINARY, env!("CARGO_PKG_NAME"), &settings).start().await.expect("a service that gets ready")
}

/// A client of it, on a connection of its own.
async fn client(service: &Service) -> Connection {
    Connection::open(service.address(), None).await.expect("a connection")
}
