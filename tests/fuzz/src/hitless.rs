//! The parts of `src/hitless` that have to do with a connection, as they are, and what they need of the others.

#![allow(dead_code, reason = "the life of the process is not among them")]
#![allow(clippy::useless_conversion, reason = "all sockets are of one type here")]

#[path = "../../../src/hitless/src/connection/mod.rs"]
pub mod connection;
#[path = "../../../src/hitless/src/connections/mod.rs"]
pub mod connections;
#[path = "../../../src/hitless/src/frames.rs"]
pub(crate) mod frames;
#[path = "../../../src/hitless/src/held.rs"]
pub(crate) mod held;
#[path = "../../../src/hitless/src/ledger.rs"]
pub mod ledger;
#[path = "../../../src/hitless/src/listener.rs"]
pub mod listener;
#[path = "../../../src/hitless/src/notice.rs"]
pub(crate) mod notice;
#[path = "../../../src/hitless/src/track.rs"]
pub mod track;
#[path = "../../../src/hitless/src/upload.rs"]
pub(crate) mod upload;

#[cfg(feature = "shuttle")]
mod leaving;
pub mod process;

pub mod request_id {
    /// As in `src/hitless/src/request_id.rs`, but the same in every run.
    pub fn process_mark() -> &'static str {
        "0-"
    }

    pub fn opaque(number: u64) -> u64 {
        number
    }
}

pub mod queue {
    /// As in `src/hitless/src/queue.rs`.
    #[derive(Debug)]
    pub struct Detached {
        pub socket: std::os::fd::OwnedFd,
        pub unparsed: Vec<u8>,
        pub origin: super::connection::Origin,
        pub since: std::time::Instant,
    }
}

pub mod systemd {
    /// As in `src/hitless/src/systemd.rs`.
    #[derive(Debug)]
    pub enum ListeningSocket {
        Tcp(std::net::TcpListener),
        Unix(std::net::UnixListener),
    }
}
