//! How many connections the process may hold, and the descriptors for them.

use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Error;
use super::connections::Limits;
use super::ledger::UNPARSED_LIMIT;
use super::lifecycle::ShutdownTimeout;
use super::listener::{OVER_LIMIT, SPARE_DESCRIPTORS};

/// Which limits there may be, and what they ask of a unit.
impl Limits {
    /// The most that [`max_head_bytes`](Self::max_head_bytes) may be: a handover carries no longer head.
    pub const MAX_HEAD_BYTES: usize = UNPARSED_LIMIT;

    /// The most that [`max_connections`](Self::max_connections) may be: what the kernel gives a process descriptors for,
    /// unless the host changed `fs.nr_open`.
    pub const MAX_CONNECTIONS: usize = (1_048_576 - OVER_LIMIT - SPARE_DESCRIPTORS) / 4;

    /// What goes for any service that leaves within `timeout`: 10,000 connections, heads of 16 KiB within a sixth of it, bodies
    /// that pause for 10 s, answers that are not read for 30 s, 75 s between two requests, 5 s for what is not read any more, and
    /// 192 MiB held for all clients together. To change one: `Limits { max_connections: 500, ..Limits::new(timeout) }`.
    pub fn new(timeout: ShutdownTimeout) -> Self {
        Self {
            max_connections: 10_000,
            max_head_bytes: 16 << 10,
            header_timeout: timeout.sixth(),
            body_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            linger_timeout: Duration::from_secs(5),
            held_bytes: 192 << 20,
        }
    }

    /// `LimitNOFILE=` of the unit: for the connections of this process, and those of instances that leave, as what waits in
    /// the service manager's store counts for all who share the user.
    pub const fn limit_nofile(&self) -> usize {
        4 * self.max_connections + OVER_LIMIT + SPARE_DESCRIPTORS
    }
}

/// How many connections the process may hold.
pub struct Room {
    pub max_connections: usize,
    /// And how many beside that siblings hand in: as many again, if there are descriptors for them.
    pub guests: usize,
}

/// Sees to it that the process may hold `max_connections`, or says how many it may hold. There is always room for what
/// takes connections over, or hands them over.
pub fn allow_connections(max_connections: usize) -> Result<Room, Error> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let apart = descriptors(0);
    let wanted = descriptors(max_connections);
    let mut allowed = current.unwrap_or(u64::MAX);
    if allowed < wanted && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        allowed = maximum.unwrap_or(u64::MAX);
    }
    if allowed <= apart {
        return Err(Error::TooFewDescriptors { allowed, needed: apart });
    }
    if allowed < wanted {
        let room = allowed - apart;
        tracing::warn!(
            "{room} connections are allowed, and not limits.max_connections = {max_connections}: that needs {wanted} \
             descriptors, and there are {allowed} (ulimit -n, LimitNOFILE=)"
        );
        return Ok(Room { max_connections: room as usize, guests: 0 });
    }
    let guests = usize::try_from(allowed - wanted).unwrap_or(usize::MAX).min(max_connections);
    Ok(Room { max_connections, guests })
}

/// How many descriptors the process needs with so many connections.
fn descriptors(connections: usize) -> u64 {
    (connections + OVER_LIMIT + SPARE_DESCRIPTORS) as u64
}

/// Has the kernel's table of descriptors made large enough for `max_connections`.
///
/// It grows by doubling, and where there are threads the kernel first waits for every processor, some 10 ms each time:
/// clients whose connections are taken over would wait for that, 40 ms where there are a thousand of them.
pub fn make_room(max_connections: usize) {
    let wanted = descriptors(max_connections);
    let most = getrlimit(Resource::Nofile).current.unwrap_or(wanted).min(wanted);
    // A descriptor of that number makes the table as large at once. It is closed again, and nothing depends on it.
    let _ = rustix::io::fcntl_dupfd_cloexec(io::stdin(), i32::try_from(most).unwrap_or(i32::MAX) - 1);
}
