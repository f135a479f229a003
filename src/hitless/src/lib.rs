//! hitless: `systemctl restart` without a lost request and without a closed connection.
//!
//! You need not open this folder. What a handler needs is [`Handle`]: `draining()` resolves when the process is told
//! to leave, `spawn()` runs work that must end before it. `ConnectInfo<Connection>` tells who is at the other end.
//!
//! How a restart goes:
//! 1. A signal, `SIGHUP` from systemd. Everything is still served. The service waits for a *calm moment*, when all requests
//!    in flight are short ones ([`lifecycle`]).
//! 2. The [`gate`] closes: nothing is accepted any more, and every HTTP/1.1 [`connection`] that is *clean*, or becomes
//!    so, is taken out of hyper. The [`ledger`] knows which is clean, [`track`] tells it of requests and answers. Bytes
//!    that arrive stay in the kernel. If a request takes long after all, the gate opens again, and step 1 goes on.
//! 3. When only HTTP/2 is left, axum's graceful shutdown begins for it. Its frames (`frames`) tell when an answer has left.
//! 4. The clean sockets go into the [`parcel`], which waits in systemd's file descriptor store ([`systemd`]).
//! 5. The next process takes over those who were busy until the last moment, says `READY=1`, and takes over the others
//!    while these are served. Its [`listener`] prefers them to new ones.
//! 6. At T, whatever is left is cut, counted and logged.
//!
//! What a connection may take is bounded ([`Limits`]), and a request that waits for its own client is told apart from a
//! handler at work (`upload`). So is what all of them hold together (`held`).
//!
//! Where another instance of the service serves on, it gets each connection at once, as soon as it is clean ([`sibling`]):
//! nobody waits, neither for a calm moment nor for a start.
//!
//! Where nobody comes for a parcel (a stop, which is `SIGTERM`), or nobody keeps it (a container, a terminal), connections
//! are *retired*: every answer says `Connection: close`, for T/6 and while slow requests end new clients are
//! still served, then the service drains.

#![forbid(unsafe_code)]

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

pub mod connection;
mod frames;
pub mod gate;
mod held;
pub mod ledger;
pub mod lifecycle;
pub mod listener;
mod notice;
pub mod parcel;
mod request_timeout;
pub mod sibling;
pub mod systemd;
pub mod track;
mod upload;

pub use connection::{Connection, Fragment, Peer};
pub use gate::{Gate, Limits};
pub use lifecycle::{Handle, Lifecycle, Outcome, Phase, Reason, ShutdownTimeout, Succession};
pub use listener::Listener;
pub use request_timeout::RequestTimeout;
pub use sibling::Siblings;
pub use track::{Application, Track};

/// The version of this crate, and of the template that a service with it was generated from.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the ids of this process' requests begin with: when it began, in hexadecimal nanoseconds since 1970, and a dash.
pub fn process_mark() -> &'static str {
    static MARK: LazyLock<String> = LazyLock::new(|| {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("{:x}-", began.as_nanos())
    });
    &MARK
}

// Not within `gate` and `upload`: tests/fuzz compiles these files where there is no runtime.
#[cfg(all(test, feature = "proofs"))]
#[rustfmt::skip]
#[path = "../tests/unit/gate.rs"]
mod gate_tests;
#[cfg(all(test, feature = "proofs"))]
#[rustfmt::skip]
#[path = "../tests/unit/upload.rs"]
mod upload_tests;
