//! The laboratory: what it takes to see whether a restart loses anything.
//!
//! - [`http1`], [`http2`]: clients so strict that nothing is hidden;
//! - [`load`]: all kinds of them at once, asking what [`traffic`] lists;
//! - [`manager`]: a stand-in for systemd, for tests and for machines without root;
//! - [`host`]: throwaway Debian hosts with the real one; [`stage`]: either of them;
//! - [`subject`]: the service that is built and put there;
//! - [`rehearse`]: the main job; [`verdict`], [`report`]: its outcome for the terminal and as a page;
//! - [`measure`]: figures that have a bound;
//! - [`record`]: what was found, as data;
//! - [`bench`]: throughput beside bare axum's;
//! - [`peer`]: the same routes without hitless, for contrast.

pub mod bench;
pub mod host;
pub mod http1;
pub mod http2;
pub mod load;
pub mod manager;
pub mod measure;
pub mod peer;
pub mod record;
pub mod rehearse;
pub mod report;
pub mod stage;
pub mod subject;
pub mod traffic;
pub mod verdict;
