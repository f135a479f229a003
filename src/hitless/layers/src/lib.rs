//! What a service has around its routes, that no owner of one would write otherwise.
//!
//! Each module stands for itself, and an owner takes those that they want: in `app.rs` a layer is a line.
//!
//! - Layers: [`body_limit`], [`forwarded`] (whom a request is from, behind proxies), [`metrics`], [`problem`] (errors as clients
//!   see them, and panics), [`requests`] (ids, and a line in the log), [`strict`] (requests that could be understood in two ways).
//! - For handlers: [`problem::Problem`], [`trace::Trace`].
//! - The process: [`settings`], [`listen`], [`telemetry`] (logs), [`instances`] (what is asked of those on a host).

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod body_limit;
mod environment;
pub mod forwarded;
pub mod instances;
pub mod listen;
pub mod metrics;
pub mod problem;
pub mod requests;
pub mod settings;
pub mod strict;
pub mod telemetry;
pub mod trace;
