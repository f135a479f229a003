//! Logs: text on a terminal, native fields in systemd's journal, JSON elsewhere.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Layer, fmt};

use crate::config::{Log, LogFormat};

/// Begins logging. Once in a process.
///
/// # Errors
/// When the filter makes no sense, or the journal does not answer.
pub fn init(log: &Log) -> Result<(), Box<dyn std::error::Error>> {
    let filter: Targets = log
        .filter
        .parse()
        .map_err(|error: tracing_subscriber::filter::ParseError| format!("log.filter: \"{}\": {error}", log.filter))?;
    let lines = fmt::layer().with_writer(std::io::stderr);
    let format = match log.format {
        LogFormat::Auto if stderr_is_journal() => LogFormat::Journal,
        LogFormat::Auto if std::io::stderr().is_terminal() => LogFormat::Text,
        LogFormat::Auto => LogFormat::Json,
        format => format,
    };
    let layer = match format {
        LogFormat::Journal => {
            let journal = tracing_journald::layer().map_err(|error| format!("log.format: the journal: {error}"))?;
            let name = env!("CARGO_PKG_NAME").to_owned();
            // Fields by their own names: `journalctl REQUEST_ID=...`.
            journal.with_syslog_identifier(name).with_field_prefix(None).boxed()
        }
        LogFormat::Text => lines.with_ansi(colours()).with_target(false).compact().boxed(),
        LogFormat::Json | LogFormat::Auto => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(layer).try_init()?;
    Ok(())
}

/// Whether people want colours (no-color.org).
fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether standard error leads to the journal: `$JOURNAL_STREAM` names its device and inode (systemd.exec(5)).
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    // Following the link gives the socket that standard error is.
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}
