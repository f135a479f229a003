//! What clients make the service do is told in the log, and by no client more often than once in a while: a line for
//! each would push out of the log what matters.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Peer;

/// How long after a line of a kind the next one comes.
const PAUSE: Duration = Duration::from_secs(10);

/// Why a connection is ended, or a request refused, on account of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
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
    /// The connections hold too much.
    Shed,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Silent,
        Self::HeadTimeout,
        Self::HeadTooLarge,
        Self::Malformed,
        Self::BodyTimeout,
        Self::SendTimeout,
        Self::Yielded,
        Self::Full,
        Self::Shed,
    ];

    /// The kind in a word or two, for programs to read.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Silent => "silent",
            Kind::HeadTimeout => "head_timeout",
            Kind::HeadTooLarge => "head_too_large",
            Kind::Malformed => "malformed",
            Kind::BodyTimeout => "body_timeout",
            Kind::SendTimeout => "send_timeout",
            Kind::Yielded => "yielded",
            Kind::Full => "full",
            Kind::Shed => "shed",
        }
    }
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
            Kind::Shed => {
                "the connections hold more than they may (limits.held_bytes), and one that has held much for long is closed"
            }
        })
    }
}

/// How often each kind was not told yet, and when one was told last.
#[derive(Debug, Default)]
pub(crate) struct Notices([Mutex<Notice>; Kind::ALL.len()]);

#[derive(Debug, Default)]
struct Notice {
    told: Option<Instant>,
    total: u64,
    untold: u64,
    /// On whose account the last time that is untold.
    last: Option<Peer>,
}

impl Notices {
    /// Tells of it, now or later.
    pub(crate) fn tell(&self, kind: Kind, peer: Peer) {
        let mut notice = self.notice(kind);
        notice.total += 1;
        notice.untold += 1;
        notice.last = Some(peer);
        notice.tell(kind);
    }

    /// Tells of what has not been told yet, where it is time for that.
    pub(crate) fn tell_rest(&self) {
        for kind in Kind::ALL {
            self.notice(kind).tell(kind);
        }
    }

    /// How often there was one of a kind.
    pub(crate) fn total(&self, kind: Kind) -> u64 {
        self.notice(kind).total
    }

    fn notice(&self, kind: Kind) -> MutexGuard<'_, Notice> {
        self.0[kind as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notice {
    fn tell(&mut self, kind: Kind) {
        let (Some(peer), true) = (self.last, self.told.is_none_or(|told| told.elapsed() >= PAUSE)) else { return };
        self.told = Some(Instant::now());
        self.last = None;
        let times = std::mem::take(&mut self.untold);
        tracing::warn!(%peer, times, "{kind} ({times} times, last for {peer})");
    }
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/notice.rs"]
mod tests;
