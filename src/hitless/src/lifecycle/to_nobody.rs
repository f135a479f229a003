//! The third way to leave: to nobody. Connections are retired.
//!
//! ```text
//! T/6, later less              new clients are served, answers say `Connection: close`
//! until T/3, for slow requests the same
//! the listening sockets close  who has connected by then is served
//! ```

use std::time::{Duration, Instant};

use super::leave::Farewell;
use super::to_next_process::CALM;
use super::{Lifecycle, Reason};
use crate::connections::{Connections, Mode, Obstacle};

/// How long a service that leaves waits, at the least, for a new connection's first request, and for HTTP/2 connections
/// without one to say goodbye.
const FRESH: Duration = Duration::from_millis(500);

impl Lifecycle {
    /// Lets connections end: as a lame duck first, so that load balancers and clients can turn away.
    pub(super) async fn to_nobody(
        &self,
        connections: &Connections,
        since: Instant,
        reason: Reason,
        why: &std::io::Error,
    ) -> Farewell {
        self.set_ready(false);
        let timeout = self.handle.0.timeout;
        // What is asked until T/2 has the time that a request may take. Where another way was tried before, half of what is left
        // until then is for those who are still to come, half for those who have and are still to ask.
        let left = timeout.request().saturating_sub(since.elapsed()) / 2;
        let grace = match reason {
            Reason::Interrupt | Reason::Failure => Duration::ZERO,
            Reason::Terminate | Reason::Hangup => timeout.sixth().min(left),
        };
        tracing::info!("connections are not handed over but retired, new ones served for {grace:?}: {why}");
        connections.set_mode(Mode::Retiring);
        tokio::time::sleep(grace / 2).await;
        // Whoever has not asked meanwhile is told by the end of its connection, while it can still come back: nobody who
        // comes at the very end is sure to be served.
        connections.expire_idle(grace / 2);
        tokio::time::sleep(grace / 2).await;
        if !grace.is_zero() {
            // The process is there as long as slow requests are: others need not wait for them in the kernel's queue,
            // which is thrown away where the socket unit is stopped, too. What is asked until T/3 is read until T/2.
            let calm = async {
                while connections.obstacle(CALM) == Obstacle::Bounded {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let _ = tokio::time::timeout(timeout.calm().saturating_sub(since.elapsed()), calm).await;
        }
        connections.set_mode(Mode::Retired);
        // Who has just connected is still to ask; who never does is not waited for.
        let _ = tokio::time::timeout(grace.max(FRESH), connections.heads_read()).await;
        // Nobody comes, and nobody waits for what goes on here.
        Farewell { unbounded: timeout.total(), goodbye: FRESH }
    }
}
