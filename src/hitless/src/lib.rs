#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod connection;
mod connections;
mod error;
mod frames;
mod handover;
mod held;
mod ledger;
mod lifecycle;
mod listener;
mod notice;
mod queue;
mod request_id;
mod request_timeout;
mod room;
mod sibling;
mod systemd;
mod track;
mod upload;

pub use connection::{Connection, Fragment, Peer};
pub use connections::{Counts, Cut, Limits};
pub use error::Error;
pub use handover::{Handover, Inherited, Quiesced, Server, Tracked};
pub use lifecycle::{Handle, Outcome, Phase, ShutdownTimeout};
pub use listener::Listener;
pub use request_id::request_id;
pub use request_timeout::RequestTimeout;
pub use sibling::Siblings;
pub use systemd::ListeningSocket;
pub use track::{Application, Expected, Track};

/// The version of this crate, and of the template that a service with it was generated from.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

// Not within `connections` and `upload`: tests/fuzz compiles these files where there is no runtime.
// For those who prove it from outside.
#[cfg(all(feature = "testing", proofs))]
#[doc(hidden)]
#[rustfmt::skip]
#[path = "../tests/unit/testing.rs"]
pub mod testing;
#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/connections.rs"]
mod connections_tests;
#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/upload.rs"]
mod upload_tests;
