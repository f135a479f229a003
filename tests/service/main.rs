//! The service as its clients, its operators and its service manager see it. `tests/README.md` says what proves what.

mod client;
mod own_routes;
mod start;

mod handover;
mod lifecycle;
