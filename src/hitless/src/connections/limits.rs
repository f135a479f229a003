//! What a connection may take from the service.

use std::time::Duration;

/// What a connection may take from the service.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many connections there may be at a time.
    pub max_connections: usize,
    /// Of a request's head.
    pub max_head_bytes: usize,
    /// From the first byte of a request's head to its last; and until the first byte of a new connection.
    pub header_timeout: Duration,
    /// Between two parts of a request's body, while it is waited for.
    pub body_timeout: Duration,
    /// While nothing of an answer is read.
    pub send_timeout: Duration,
    /// Between two requests.
    pub idle_timeout: Duration,
    /// While what a client still sends is discarded, after an answer that did not wait for it.
    pub linger_timeout: Duration,
    /// All that the connections hold together for their clients, beside what each takes when it is idle.
    pub held_bytes: usize,
}

impl Limits {
    /// None that anybody would meet, but on the number of connections: for tests, and behind what has limits of its own.
    pub(crate) fn unbounded() -> Self {
        let long = Duration::from_secs(3600);
        Self {
            max_connections: 10_000,
            max_head_bytes: 64 * 1024,
            header_timeout: long,
            body_timeout: long,
            send_timeout: long,
            idle_timeout: long,
            linger_timeout: long,
            held_bytes: usize::MAX,
        }
    }
}

/// Those of a gate.
#[derive(Debug)]
pub(super) struct Bounds(pub(super) Limits);

impl Default for Bounds {
    fn default() -> Self {
        Self(Limits::unbounded())
    }
}
