//! The tests of the service, as its clients see it. They need no root, no systemd and no free port.

mod own_routes;

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
/// a test needs, in TOML. It ends with the test.
async fn start(settings: &str) -> Service {
    let settings = traffic().settings_with(settings).expect("settings");
    with_settings(BINARY, env!("CARGO_PKG_NAME"), &settings).start().await.expect("a service that gets ready")
}

/// A client of it, on a connection of its own.
async fn client(service: &Service) -> Connection {
    Connection::open(service.address(), None).await.expect("a connection")
}
