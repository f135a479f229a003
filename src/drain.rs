//! `<name> drain` and `<name> undrain`: take this host out of its balancer's rotation, and back.
//!
//! A file in the directory that the instances share says so, for those that are started later as well, until the host is taken
//! back or boots anew. Each then says 503 to whoever asks for `/readyz`, and `Connection: close` with its answers; nobody is cut off.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::probe;

/// Drains this host, or takes it back, and waits until every instance has heard; says whether all have, and which has not.
///
/// # Errors
/// When nothing has run here yet, or the directory cannot be written to, or `output` fails.
pub async fn drain(drained: bool, output: &mut impl Write) -> io::Result<bool> {
    let siblings = probe::siblings();
    siblings
        .set_drained(drained)
        .map_err(|error| io::Error::new(error.kind(), format!("it cannot be told to the instances here: {error}")))?;
    let deadline = Instant::now() + probe::PATIENCE;
    let mut waiting = siblings.pids()?;
    loop {
        let mut unheard = Vec::new();
        for pid in waiting {
            let asked = tokio::time::timeout(probe::PATIENCE, probe::ask_instance(&siblings, pid, "/readyz")).await;
            let says = asked.map_err(Into::into).flatten().map(|(_, body)| body.contains(r#""drained":true"#));
            if says.ok() != Some(drained) {
                unheard.push(pid);
            }
        }
        // One that has left meanwhile needs not hear.
        let here = siblings.pids()?;
        unheard.retain(|pid| here.contains(pid));
        if unheard.is_empty() || Instant::now() > deadline {
            for pid in &unheard {
                writeln!(output, "process {pid} has not heard of it")?;
            }
            return Ok(unheard.is_empty());
        }
        waiting = unheard;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
