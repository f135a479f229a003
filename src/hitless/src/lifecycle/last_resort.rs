//! The thread that ends the process where nothing else does.

use std::io::{self, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::ShutdownTimeout;

/// How long a program may go on after it has left: it may write its log, and drop a runtime one of whose threads is blocked.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Ends the process a little after T even when the runtime no longer runs, because handlers block all its threads; and soon
/// after it has left, even when something keeps `main` from returning.
#[derive(Debug)]
pub(super) struct LastResort(mpsc::Sender<Told>);

/// What the thread is told.
#[derive(Debug)]
enum Told {
    Leaving,
    /// And whether that went well.
    Left(bool),
}

impl LastResort {
    /// Starts the thread. Later, there may be none to be had.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn start(timeout: ShutdownTimeout) -> io::Result<Self> {
        let limit = timeout.total() + ShutdownTimeout::MARGIN / 2;
        let (sender, told) = mpsc::channel();
        std::thread::Builder::new().name("last resort".to_owned()).spawn(move || {
            // A process that never begins to leave needs no end.
            if told.recv().is_err() {
                return;
            }
            let since = Instant::now();
            if let Ok(Told::Left(well)) = told.recv_timeout(limit) {
                std::thread::sleep(ENDS_WITHIN);
                std::process::exit(i32::from(!well));
            }
            std::thread::sleep(limit.saturating_sub(since.elapsed()));
            // Whoever reads it may have gone.
            let _ =
                writeln!(std::io::stderr(), "the process did not end by T: handlers may block the runtime's threads");
            std::process::exit(1);
        })?;
        Ok(Self(sender))
    }

    /// The process leaves from now on.
    pub(super) fn leaving(&self) {
        // Cannot fail, here and below: the thread waits for it.
        let _ = self.0.send(Told::Leaving);
    }

    /// The process has left, and that `well`: nothing keeps it any more.
    pub(super) fn left(&self, well: bool) {
        let _ = self.0.send(Told::Left(well));
    }
}
