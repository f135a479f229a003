//! What clients make the service do is told in the log, and by no client more often than once in a while: a line for
//! each would push out of the log what matters.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Peer;

/// How long after a line of a kind the next one comes.
const PAUSE: Duration = Duration::from_secs(10);

/// Why a connection is ended, or a request refused, on account of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing was asked on a new connection.
    Silent,
    HeadTimeout,
    HeadTooLarge,
    Malformed,
    BodyTimeout,
    SendTimeout,
    /// Another connection wants the place of an idle one.
    Yielded,
    /// There are too many connections, and none is idle.
    Full,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Silent => "nothing was asked on a new connection (limits.header_timeout), which is closed",
            Kind::HeadTimeout => {
                "a request's head did not arrive in time (limits.header_timeout), which is answered 408"
            }
            Kind::HeadTooLarge => "a request's head is too large (limits.max_head_bytes), which is answered 431",
            Kind::Malformed => "a request cannot be understood, which is answered 400, 414 or 431",
            Kind::BodyTimeout => "a request's body stopped arriving (limits.body_timeout), which is answered 408",
            Kind::SendTimeout => "an answer was not read (limits.send_timeout), and is given up",
            Kind::Yielded => "there are limits.max_connections, and who was idle longest made room",
            Kind::Full => "there are limits.max_connections and none is idle, which is answered 503",
        })
    }
}

/// How often each kind was not told yet, and when one was told last.
#[derive(Debug, Default)]
pub(super) struct Notices([Mutex<Notice>; 8]);

#[derive(Debug, Default)]
struct Notice {
    told: Option<Instant>,
    untold: u64,
    last: Option<Peer>,
}

impl Notices {
    /// Tells of it, now or later.
    pub(super) fn tell(&self, kind: Kind, peer: Peer) {
        let mut notice = self.0[kind as usize].lock().unwrap_or_else(PoisonError::into_inner);
        notice.untold += 1;
        notice.last = Some(peer);
        if notice.told.is_none_or(|told| told.elapsed() >= PAUSE) {
            notice.told = Some(Instant::now());
            let count = std::mem::take(&mut notice.untold);
            tracing::warn!(%peer, count, "{kind}; {count} more since the last such line, the last of them {peer}");
        }
    }
}
