//! The laboratory: what it takes to see whether a restart loses anything. It needs no change; what it asks for stands in
//! `traffic.toml`.
//!
//! - [`rehearse`]: the job; [`command`]: its beginning and its end;
//! - [`traffic`]: what is asked for; [`load`]: all kinds of clients at once; [`answers`]: what they were answered;
//! - [`http1`]: a client so strict that nothing is hidden;
//! - [`subject`]: the service; [`stage`]: what it stands on while it is restarted;
//! - [`host`]: throwaway Debian hosts with the real systemd; [`manager`]: a stand-in for it, for tests and for machines
//!   without root;
//! - [`record`]: what was found.

pub mod answers;
pub mod command;
pub mod host;
pub mod http1;
pub mod load;
pub mod manager;
pub mod record;
pub mod rehearse;
pub mod stage;
pub mod subject;
pub mod traffic;
