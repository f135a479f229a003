//! The service as its clients, its operators and its service manager see it, with an application of the proofs. `tests/proof/README.md` says what proves what.

use proof::client;

/// What the template is called.
macro_rules! name {
    () => {
        "hitless-template"
    };
}

mod application;
mod start;

mod command;
mod configuration;
mod departures;
mod forwarded;
mod handover;
mod http2;
mod kubernetes;
mod lifecycle;
mod limits;
mod listening;
mod live;
mod log;
mod memory;
mod metrics;
mod proxy;
mod readiness;
mod routes;
mod siblings;
mod timeout;
mod top;
mod units;
