//! What a process that has to end cuts off.

use std::fmt;
use std::time::Duration;

use axum::http::Method;

use super::Gate;
use crate::connection::{Connection, Peer};

/// Something that was cut off: a request, or a connection that would not end.
#[derive(Debug)]
pub struct Cut {
    /// Whose it was.
    pub peer: Peer,
    /// Method and path, where a request was in flight.
    pub request: Option<(Method, String)>,
    /// How long it had been there.
    pub age: Duration,
    /// A handler was at work. Else it went on because of its client, or without end.
    pub at_work: bool,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, request, age, .. } = self;
        match request {
            Some((method, path)) => write!(f, "{method} {path} of {peer}, after {age:?}"),
            None => write!(f, "a connection of {peer} without a request, after {age:?}"),
        }
    }
}

impl Gate {
    /// What is still in flight.
    pub(crate) fn left(&self) -> Vec<Cut> {
        self.all().values().filter(|connection| connection.is_busy()).flat_map(Connection::cut).collect()
    }

    /// The request that has been in flight for the longest.
    pub(crate) fn slowest(&self) -> Option<Cut> {
        self.left().into_iter().filter(|cut| cut.request.is_some()).max_by_key(|cut| cut.age)
    }
}
