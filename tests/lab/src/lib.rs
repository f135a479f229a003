//! The laboratory: what it takes to see whether a restart loses anything.
//!
//! - [`http1`], [`http2`]: clients so strict that nothing is hidden;
//! - [`load`]: all kinds of them at once, asking what [`traffic`] lists; [`answers`]: what they were answered;
//!   [`gate`]: how near to the moment of the handover they asked;
//! - [`manager`]: a stand-in for systemd, for tests and for machines without root;
//! - [`host`]: throwaway Debian hosts with the real one; [`stage`]: either of them;
//! - [`subject`]: the service that is built and put there;
//! - [`site`], [`scene`]: a service on a host, and all that is around it; [`operator`]: who deploys it, with the very
//!   scripts; [`release`]: what is deployed, good and bad; [`wire`]: what the operator's ssh goes over;
//! - [`rehearse`]: the main job; [`verdict`], [`report`]: its outcome for the terminal and as a page;
//! - [`deploy`]: updates and rollbacks; [`rolling`]: several instances in turn; [`delays`]: what either costs;
//! - [`faults`], [`stories`]: all that can go wrong with a deploy;
//! - [`browser`]: a real browser, driven over WebDriver;
//! - [`chaos`], [`hurts`]: all that can go wrong with a service that runs; [`stuff`] fills its descriptor store;
//! - [`attack`]: clients that do what none should; [`attacker`] is them, and [`frames`] what they say in HTTP/2;
//! - [`measure`]: what a restart costs clients, beside the [`floor`] under it, and [where the time goes](anatomy);
//! - [`record`]: what was found, as data;
//! - [`bench`]: throughput beside bare axum's;
//! - [`programs`]: nginx, HAProxy and curl, on the host;
//! - [`peer`]: the same routes without hitless, for contrast.

pub mod anatomy;
pub mod answers;
pub mod attack;
pub mod attacker;
pub mod bench;
pub mod browser;
pub mod chaos;
pub mod delays;
pub mod deploy;
pub mod faults;
pub mod floor;
pub mod frames;
pub mod gate;
pub mod host;
pub mod http1;
pub mod http2;
pub mod hurts;
pub mod load;
pub mod manager;
pub mod measure;
pub mod operator;
pub mod peer;
pub mod programs;
pub mod record;
pub mod rehearse;
pub mod release;
pub mod report;
pub mod rolling;
pub mod scene;
pub mod site;
pub mod stage;
pub mod stories;
pub mod stuff;
pub mod subject;
pub mod traffic;
pub mod verdict;
pub mod wire;
