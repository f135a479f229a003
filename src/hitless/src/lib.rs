#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod connection;
mod error;
mod frames;
mod gate;
mod handover;
mod held;
mod ledger;
mod lifecycle;
mod listener;
mod notice;
mod parcel;
mod request_id;
mod request_timeout;
mod room;
mod sibling;
mod systemd;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;
mod track;
mod upload;

pub use connection::{Connection, Fragment, Peer};
pub use error::Error;
pub use gate::{Cut, Limits};
pub use handover::{Handover, Inherited, Quiesced, Server, Tracked};
pub use lifecycle::{Handle, Outcome, Phase, ShutdownTimeout};
pub use listener::Listener;
pub use request_id::request_id;
pub use request_timeout::RequestTimeout;
pub use sibling::Siblings;
pub use systemd::ListeningSocket;
pub use track::{Application, Track};

/// The version of this crate, and of the template that a service with it was generated from.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

// Not within `gate` and `upload`: tests/fuzz compiles these files where there is no runtime.
#[cfg(all(test, feature = "proofs"))]
#[rustfmt::skip]
#[path = "../tests/unit/gate.rs"]
mod gate_tests;
#[cfg(all(test, feature = "proofs"))]
#[rustfmt::skip]
#[path = "../tests/unit/upload.rs"]
mod upload_tests;
