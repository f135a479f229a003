//! The proofs: everything that is done to the template, and not to what is generated from it. They are made with the
//! [laboratory](lab).
//!
//! - [`rehearse`]: its main job, with more around it; [`template`]: what it is done to; [`kinds`]: more kinds of clients, among
//!   them those of [`http2`]; [`gate`]: how near to the moment of the handover they asked;
//! - [`record`]: what was found; [`report`]: the same as a page;
//! - [`manager`]: a stand-in for systemd that can more, for tests; [`client`]: a client that says exactly what a test has it say;
//! - [`site`], [`scene`]: a service on a host, and all that is around it; [`operator`]: who deploys it, with the very
//!   scripts; [`release`]: what is deployed, good and bad; [`wire`]: what the operator's ssh goes over;
//! - [`releases`]: from one release to another and back;
//! - [`deploy`]: updates and rollbacks; [`rolling`]: several instances in turn; [`delays`]: what either costs;
//! - [`faults`], [`stories`]: all that can go wrong with a deploy;
//! - [`balance`]: what clients of a [`balancer`] in front notice of a restart, a stop, a reboot;
//! - [`browser`]: a real browser, driven over WebDriver;
//! - [`chaos`], [`hurts`]: all that can go wrong with a service that runs; [`stuff`] fills its descriptor store;
//! - [`watched`]: what [`prometheus`] sees of all that, and what the [`dashboard`] shows of it;
//! - [`attack`]: clients that do what none should; [`attacker`] is them, and [`frames`] what they say in HTTP/2;
//! - [`storm`]: clients that say and do anything; [`babble`] is what that is;
//! - [`measure`]: what a restart costs clients, beside the [`floor`] under it, and [where the time goes](anatomy);
//! - [`picture`]: a restart as its clients saw it, for a README;
//! - [`bench`]: throughput beside bare axum's; [`cost`]: what a request takes, layer by layer;
//! - [`programs`]: nginx, HAProxy and curl, on the host;
//! - [`peer`]: the same routes without hitless, for contrast; [`adopted`]: a service that took the crate alone.

pub mod adopted;
pub mod anatomy;
pub mod attack;
pub mod attacker;
pub mod babble;
pub mod balance;
pub mod balancer;
pub mod bench;
pub mod browser;
pub mod chaos;
pub mod client;
pub mod container;
pub mod cost;
pub mod dashboard;
pub mod delays;
pub mod deploy;
pub mod faults;
pub mod floor;
pub mod frames;
pub mod gate;
pub mod http2;
pub mod hurts;
pub mod kinds;
pub mod manager;
pub mod measure;
pub mod operator;
pub mod peer;
pub mod picture;
pub mod pods;
pub mod programs;
pub mod prometheus;
pub mod record;
pub mod rehearse;
pub mod release;
pub mod releases;
pub mod report;
pub mod rolling;
pub mod scene;
pub mod site;
pub mod stories;
pub mod storm;
pub mod stuff;
pub mod template;
pub mod watched;
pub mod wire;
