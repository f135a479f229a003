//! The service as its clients, its operators and its service manager see it. `tests/README.md` says what proves what.

mod application;
mod client;
mod start;

mod command;
mod configuration;
mod departures;
mod handover;
mod http2;
mod lifecycle;
mod limits;
mod listening;
mod live;
mod log;
mod memory;
mod own_routes;
mod readiness;
mod routes;
mod siblings;
mod timeout;
mod units;
