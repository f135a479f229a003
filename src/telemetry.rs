//! Logs: text on a terminal, native fields in systemd's journal, JSON elsewhere.
//!
//! A thread of its own writes them, so that who logs never waits for who reads the log. It keeps [`KEPT_LINES`] where
//! the reader does not keep up; what comes after them is lost, and counted.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormattedFields;
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Layer, fmt};

use crate::config::{Log, LogFormat};

/// How many lines wait for a reader that does not keep up: some megabytes.
const KEPT_LINES: usize = 8192;

/// Where the journal listens (systemd-journald.service(8)).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The longest value that the journal gets whole, in bytes: a message has to fit into a datagram.
const LONGEST_VALUE: usize = 64 << 10;

/// Begins logging. Once in a process. When the guard is dropped, what was logged is written: it waits a second for that
/// at most.
///
/// # Errors
/// When the journal does not answer.
pub fn init(log: &Log) -> Result<WorkerGuard, Box<dyn Error>> {
    let format = match log.format {
        LogFormat::Auto if stderr_is_journal() => LogFormat::Journal,
        LogFormat::Auto if io::stderr().is_terminal() => LogFormat::Text,
        LogFormat::Auto => LogFormat::Json,
        format => format,
    };
    let writing = NonBlockingBuilder::default().buffered_lines_limit(KEPT_LINES).thread_name("log");
    let (writer, guard) = match format {
        LogFormat::Journal => {
            writing.finish(Journal::open().map_err(|error| format!("log.format: the journal: {error}"))?)
        }
        _ => writing.finish(io::stderr()),
    };
    let lost = writer.error_counter();
    let lines = fmt::layer().with_writer(writer);
    let layer = match format {
        LogFormat::Text => lines.with_ansi(colours()).with_target(false).compact().boxed(),
        _ => lines.json().flatten_event(true).with_current_span(false).fmt_fields(JsonFields).boxed(),
    };
    tracing_subscriber::registry().with(log.filter.clone()).with(layer).try_init()?;
    std::thread::spawn(move || tell_losses(&lost));
    Ok(guard)
}

/// Keeps telling how many lines were lost. Should the line that tells it be lost too, it counts, and it is told again.
fn tell_losses(lost: &ErrorCounter) -> ! {
    let mut told = 0;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let lines = lost.dropped_lines();
        if lines > told {
            tracing::warn!("{lines} lines of the log are lost since the start: what reads it did not keep up");
            told = lines;
        }
    }
}

/// Whether people want colours (no-color.org).
fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether standard error leads to the journal: `$JOURNAL_STREAM` names its device and inode (systemd.exec(5)).
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    // Following the link gives the socket that standard error is.
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// Writes each line, a JSON object, as a message to systemd's journal.
struct Journal(UnixDatagram);

impl Journal {
    fn open() -> io::Result<Self> {
        // Shows whether somebody listens. Messages go by the path, so that they find a socket that is made anew.
        UnixDatagram::unbound()?.connect(JOURNAL)?;
        UnixDatagram::unbound().map(Self)
    }
}

impl Write for Journal {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.send_to(&message(line)?, JOURNAL)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line as a message in the journal's own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): each member is a field by its
/// own name, in capitals, and so is each of the spans'. `journalctl REQUEST_ID=...` finds the lines of a request.
fn message(line: &[u8]) -> io::Result<Vec<u8>> {
    let members: Map<String, Value> = serde_json::from_slice(line)?;
    let mut message = Vec::with_capacity(2 * line.len());
    add_field(&mut message, "SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME"));
    add_fields(&mut message, &members);
    Ok(message)
}

fn add_fields(message: &mut Vec<u8>, members: &Map<String, Value>) {
    for (name, value) in members {
        match (name.as_str(), value) {
            ("level", level) => add_field(message, "PRIORITY", priority(level)),
            ("spans", Value::Array(spans)) => {
                spans.iter().filter_map(Value::as_object).for_each(|span| add_fields(message, span));
            }
            ("name", Value::String(span)) => add_field(message, "SPAN_NAME", span),
            (_, Value::String(text)) => add_field(message, name, text),
            (_, value) => add_field(message, name, &value.to_string()),
        }
    }
}

/// As syslog(3) counts, but for `info`, which is a notice there: what there is to know of a service in normal times.
fn priority(level: &Value) -> &'static str {
    match level.as_str() {
        Some("ERROR") => "3",
        Some("WARN") => "4",
        Some("INFO") => "5",
        Some("DEBUG") => "6",
        _ => "7",
    }
}

fn add_field(message: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(LONGEST_VALUE)];
    let name = name.trim_start_matches('_').bytes();
    message.extend(name.map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_uppercase() } else { b'_' }));
    message.push(b'\n');
    message.extend((value.len() as u64).to_le_bytes());
    message.extend(value.as_bytes());
    message.push(b'\n');
}

/// Writes a span's fields as JSON. tracing-subscriber's own way takes ten times as long, and every request has a span.
struct JsonFields;

impl<'writer> FormatFields<'writer> for JsonFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> std::fmt::Result {
        writer.write_char('{')?;
        fields.record(&mut Members { to: &mut writer, separator: "" });
        writer.write_char('}')
    }

    fn add_fields(&self, current: &'writer mut FormattedFields<Self>, fields: &Record<'_>) -> std::fmt::Result {
        let separator = if current.fields.pop().is_some() && current.fields.len() > 1 { "," } else { "" };
        fields.record(&mut Members { to: &mut current.fields, separator });
        current.fields.write_char('}')
    }
}

/// The members of a JSON object, one for each field.
struct Members<'a> {
    to: &'a mut dyn std::fmt::Write,
    separator: &'static str,
}

impl Members<'_> {
    fn member(&mut self, field: &Field, value: impl serde::Serialize) {
        // Neither can fail: numbers and texts have a JSON form, and there is memory.
        let value = serde_json::to_string(&value).unwrap_or_default();
        let _ = write!(self.to, "{}\"{}\":{value}", self.separator, field.name());
        self.separator = ",";
    }
}

impl Visit for Members<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.member(field, format!("{value:?}"));
    }
}

#[cfg(test)]
#[path = "../tests/unit/telemetry.rs"]
mod tests;
