//! T, the one number that governs the end, and what follows from it.

use std::time::Duration;

use super::to_next_process::{CALM, UNBOUNDED};

/// T: how long the process may take to leave, and what follows from it.
///
/// ```text
/// 0                   T/3                           5T/6     T
/// signal               |                             |       |
/// |-- tries at calm ---|-- handlers at work end, ----|-------|  whatever is left is cut
/// |   moments          |   T/2 at most               | HTTP/2 says goodbye
/// |-- tries, while nothing but streams and clients that stand still are in the way -| last moment
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownTimeout(Duration);

impl Default for ShutdownTimeout {
    /// 30 s.
    fn default() -> Self {
        Self(Duration::from_secs(30))
    }
}

impl ShutdownTimeout {
    /// The shortest T.
    pub const MIN: Duration = Duration::from_secs(1);
    /// The longest T.
    pub const MAX: Duration = Duration::from_secs(3600);
    /// What systemd waits longer than the process itself takes.
    pub(super) const MARGIN: Duration = Duration::from_secs(3);

    /// A T between [`Self::MIN`] and [`Self::MAX`].
    pub fn new(timeout: Duration) -> Option<Self> {
        (Self::MIN..=Self::MAX).contains(&timeout).then_some(Self(timeout))
    }

    /// T itself.
    pub fn total(self) -> Duration {
        self.0
    }

    /// The longest that any request may take: T/2.
    pub fn request(self) -> Duration {
        self.0 / 2
    }

    /// The longest that the service waits for a calm moment: T/3, so that the requests of that moment end before T.
    pub(crate) fn calm(self) -> Duration {
        self.0 / 3
    }

    /// When the service stops waiting for what nothing bounds but its clients: T/30 before T, and 1 s at the most, as
    /// everybody waits from then on.
    pub(crate) fn last_moment(self) -> Duration {
        self.0 - (self.0 / 30).min(Duration::from_secs(1))
    }

    /// The same where connections are then paused: not so late that nobody could be told goodbye any more.
    pub(crate) fn last_pause(self) -> Duration {
        self.last_moment().min(self.0 - (CALM + UNBOUNDED * 2))
    }

    /// From when on a service that has found no calm moment says that it is not ready: T/4, so that whoever asks turns
    /// elsewhere before everybody has to wait, which is from T/3 on.
    pub(crate) fn turn_away(self) -> Duration {
        self.0 / 4
    }

    /// How long a service that cannot hand over goes on accepting at the least, the longest that a request's head may take,
    /// and how long HTTP/2 clients have for their goodbye where a sibling serves the others: T/6.
    pub fn sixth(self) -> Duration {
        self.0 / 6
    }

    /// `TimeoutStopSec=` of the unit: T and a margin.
    pub fn unit_stop(self) -> Duration {
        self.0 + Self::MARGIN
    }
}
