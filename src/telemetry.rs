//! Logs: text on a terminal, native fields in systemd's journal, JSON elsewhere.

use std::fmt::Write;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FormattedFields;
use tracing_subscriber::fmt::format::{FormatFields, Writer};
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
        LogFormat::Json | LogFormat::Auto => {
            lines.json().flatten_event(true).with_span_list(false).fmt_fields(JsonFields).boxed()
        }
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
    to: &'a mut dyn Write,
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
