//! The laboratory: what it takes to see whether a restart loses anything. It needs no change; what it asks for stands in
//! `traffic.toml`.
//!
//! - [`rehearse`]: the job; [`command`]: its beginning and its end;
//! - [`traffic`]: what is asked for; [`load`]: all kinds of clients at once; [`answers`]: what they were answered;
//!   [`gate`]: how near to the moment of the handover they asked;
//! - [`data`]: whether what was answered is kept;
//! - [`http1`], [`http2`]: clients so strict that nothing is hidden; [`client`]: one that says exactly what a test has it say;
//! - [`subject`]: the service; [`stage`]: what it stands on while it is restarted;
//! - [`host`]: throwaway Debian hosts with the real systemd; [`manager`]: a stand-in for it, for tests and for machines
//!   without root;
//! - [`record`]: what was found, as data; [`verdict`], [`report`]: the same for the terminal and as a page.

pub mod answers;
pub mod client;
pub mod command;
pub mod data;
pub mod gate;
pub mod host;
pub mod http1;
pub mod http2;
pub mod load;
pub mod manager;
pub mod record;
pub mod rehearse;
pub mod report;
pub mod stage;
pub mod subject;
pub mod traffic;
pub mod verdict;
