//! The parts of `src/hitless` that have to do with a connection, as they are, and what they need of the others.

#![allow(dead_code, reason = "the life of the process is not among them")]
#![allow(clippy::useless_conversion, reason = "all sockets are of one type here")]

#[path = "../../../src/hitless/connection.rs"]
pub mod connection;
#[path = "../../../src/hitless/frames.rs"]
mod frames;
#[path = "../../../src/hitless/gate.rs"]
pub mod gate;
#[path = "../../../src/hitless/held.rs"]
mod held;
#[path = "../../../src/hitless/ledger.rs"]
pub mod ledger;
#[path = "../../../src/hitless/listener.rs"]
pub mod listener;
#[path = "../../../src/hitless/notice.rs"]
mod notice;
#[path = "../../../src/hitless/track.rs"]
pub mod track;
#[path = "../../../src/hitless/upload.rs"]
mod upload;

#[cfg(feature = "shuttle")]
mod leaving;
pub mod process;

/// As in `src/hitless/mod.rs`, but the same in every run.
pub fn process_mark() -> &'static str {
    "0-"
}

pub mod parcel {
    /// As in `src/hitless/parcel.rs`.
    #[derive(Debug)]
    pub struct Clean {
        pub socket: std::os::fd::OwnedFd,
        pub rest: Vec<u8>,
        pub origin: super::connection::Origin,
    }
}

pub mod systemd {
    /// As in `src/hitless/systemd.rs`.
    #[derive(Debug)]
    pub enum Activated {
        Tcp(std::net::TcpListener),
        Unix(std::net::UnixListener),
    }
}
