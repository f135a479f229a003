//! Logs: text on a terminal, native fields in systemd's journal, JSON elsewhere.
//!
//! A thread of its own writes them, so that who logs never waits for who reads the log. It keeps [`KEPT_LINES`] where
//! the reader does not keep up; what comes after them is lost, and counted. So is what the reader refuses.
//!
//! Clients choose part of what is logged. Whatever could steer a terminal, or hide or reorder what stands beside it, is
//! written escaped.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{Debug, Write as _};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::BoxError;
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_core::span::Current;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::FormattedFields;
use tracing_subscriber::fmt::format::{FormatFields, Writer, debug_fn};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::{Layer, fmt};

use crate::requests;

/// How many lines wait for a reader that does not keep up: some megabytes, and where each tells as much as clients can make it
/// tell, a hundred.
const KEPT_LINES: usize = 8192;

/// How much of what a panic says is logged, in bytes. It may quote what a client sent.
const LONGEST_PANIC: usize = 4096;

/// Who warns of what peers do, line by line: a client makes them a hundred thousand lines in a second.
const PEERS: [&str; 2] = ["h2", "hyper"];

/// Where the journal listens (systemd-journald.service(8)).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The longest message that the journal gets, in bytes: it has to fit into a datagram, and the kernel takes some 208 KiB
/// (`net.core.wmem_default`).
const LONGEST_MESSAGE: usize = 192 << 10;

/// The longest value that the journal gets whole, in bytes.
const LONGEST_VALUE: usize = 64 << 10;

/// What is logged, and how.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// Which lines are logged.
    #[serde(deserialize_with = "targets")]
    pub filter: Targets,
    /// How they are written.
    pub format: LogFormat,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// As it suits where standard error leads.
    Auto,
    /// For people.
    Text,
    /// An object in each line.
    Json,
    /// Fields of systemd's journal.
    Journal,
}

/// Begins logging, in the journal by this name. Once in a process. When the guard is dropped, what was logged is written: it waits a second for that
/// at most.
///
/// # Errors
/// When the journal does not answer.
pub fn init(name: &'static str, log: &Log) -> Result<WorkerGuard, BoxError> {
    let format = match log.format {
        LogFormat::Auto if stderr_is_journal() => LogFormat::Journal,
        LogFormat::Auto if io::stderr().is_terminal() => LogFormat::Text,
        LogFormat::Auto => LogFormat::Json,
        format => format,
    };
    let write: WriteLine = match format {
        LogFormat::Journal => {
            let journal = open_journal().map_err(|error| format!("log.format: the journal: {error}"))?;
            Box::new(move |line| journal.send_to(&message(name, line)?, JOURNAL).map(drop))
        }
        LogFormat::Text => {
            // The formatter's own escape sequences. Those of others are escaped by then.
            let kept = if colours() { "\t\n\x1b" } else { "\t\n" };
            Box::new(move |line| io::stderr().write_all(text(line, kept).as_bytes()))
        }
        _ => Box::new(|line| io::stderr().write_all(json(line).as_bytes())),
    };
    let refused = Refused::default();
    let lines = Lines { write, refused: Arc::clone(&refused) };
    let writing = NonBlockingBuilder::default().buffered_lines_limit(KEPT_LINES).thread_name("log");
    let (writer, guard) = writing.finish(lines);
    let lost = writer.error_counter();
    let lines = fmt::layer().with_writer(writer);
    let layer = match format {
        LogFormat::Text => {
            let lines = lines.with_ansi(colours()).with_target(false).compact();
            lines.fmt_fields(text_fields()).boxed()
        }
        _ => lines.json().flatten_event(true).with_current_span(false).fmt_fields(JsonFields).boxed(),
    };
    Spans(Registry::default().with(filter(&log.filter)).with(layer)).try_init()?;
    std::thread::spawn(move || tell_losses(&lost, &refused));
    std::panic::set_hook(Box::new(tell_panic));
    Ok(guard)
}

/// Has the span of a [request](requests) made when that is needed: before a line is logged, another span begins within it,
/// or somebody asks which is the current one.
///
/// It goes around a log, one of one's own as well, as [`init`] has it. A layer whose own subscriber is not the registry itself
/// keeps each span for ever.
#[derive(Debug)]
pub struct Spans<S>(pub S);

impl<S: Subscriber> Subscriber for Spans<S> {
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        self.0.on_register_dispatch(dispatch);
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.0.max_level_hint()
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        self.0.register_callsite(metadata)
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn event_enabled(&self, event: &Event<'_>) -> bool {
        self.0.event_enabled(event)
    }

    fn event(&self, event: &Event<'_>) {
        requests::make_span();
        self.0.event(event);
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        requests::make_span();
        self.0.new_span(attributes)
    }

    fn current_span(&self) -> Current {
        requests::make_span();
        self.0.current_span()
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        self.0.record(span, values);
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        self.0.record_follows_from(span, follows);
    }

    fn enter(&self, span: &Id) {
        self.0.enter(span);
    }

    fn exit(&self, span: &Id) {
        self.0.exit(span);
    }

    fn clone_span(&self, span: &Id) -> Id {
        self.0.clone_span(span)
    }

    fn try_close(&self, span: Id) -> bool {
        self.0.try_close(span)
    }
}

/// Writes fields for people. What they choose is made visible before the formatter's own escape sequences are around it.
fn text_fields() -> impl for<'writer> FormatFields<'writer> {
    let field = |writer: &mut Writer<'_>, field: &Field, value: &dyn Debug| {
        let value = visible(&format!("{value:?}"), "\t\n");
        if field.name() == "message" { write!(writer, "{value}") } else { write!(writer, "{field}={value}") }
    };
    debug_fn(field).delimited(" ")
}

/// A panic is a line like any other, with the id of its request, and with a backtrace where `RUST_BACKTRACE` asks for one.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let said = panic.to_string();
    let said = &said[..said.floor_char_boundary(LONGEST_PANIC)];
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => tracing::error!("{said}\n{backtrace}"),
        _ => tracing::error!("{said}"),
    }
}

/// The filter that an operator asks for. Without a word of it on [`PEERS`], these tell of errors alone. Whatever it lets through
/// has its request's span.
fn filter(asked: &Targets) -> Targets {
    let is_named = |peer: &str| {
        let mut targets = asked.iter().filter_map(|(target, _)| target.strip_prefix(peer));
        targets.any(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let is_loud = |peer: &str| asked.would_enable(peer, &Level::WARN) && !is_named(peer);
    let quiet: Vec<_> = PEERS.into_iter().filter(|peer| is_loud(peer)).map(|peer| (peer, LevelFilter::ERROR)).collect();
    asked.clone().with_targets(quiet).with_target(requests::SPAN, LevelFilter::ERROR)
}

/// A filter that says what is logged of everything. [`Targets`] by itself takes any word that is no level for a target,
/// and logs nothing else.
fn targets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Targets, D::Error> {
    let text = String::deserialize(deserializer)?;
    let mut targets = Targets::new();
    for part in text.split(',').map(str::trim) {
        let (target, level) = part.split_once('=').map_or((None, part), |(target, level)| (Some(target.trim()), level));
        let is_target = |target: &str| {
            !target.is_empty() && target.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte))
        };
        let level = level.trim();
        let level = level.parse::<LevelFilter>().ok().filter(|_| !level.is_empty() && target.is_none_or(is_target));
        targets = match (target, level) {
            (Some(target), Some(level)) => targets.with_target(target, level),
            (None, Some(level)) if targets.default_level().is_none() => targets.with_default(level),
            (None, Some(_)) => {
                return Err(de::Error::custom(format!("\"{part}\" is a second level for all other targets")));
            }
            (_, None) => {
                return Err(de::Error::custom(format!(
                    "\"{part}\" is neither a level (off, error, warn, info, debug, trace) nor TARGET=LEVEL"
                )));
            }
        };
    }
    if targets.default_level().is_none() {
        return Err(de::Error::custom(format!("no level for all other targets: \"info,{text}\", or \"off,{text}\"")));
    }
    Ok(targets)
}

/// Keeps telling how many lines were lost. Should the line that tells it be lost too, it counts, and it is told again.
fn tell_losses(lost: &ErrorCounter, refused: &Refused) -> ! {
    let mut told = 0;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let lines = lost.dropped_lines() + refused.load(Relaxed);
        if lines > told {
            tracing::warn!(
                "{lines} lines of the log are lost since the start: what reads it did not keep up, or refused them"
            );
            told = lines;
        }
    }
}

/// Whether people want colours (no-color.org).
fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether standard error leads to the journal: `$JOURNAL_STREAM` names its device and inode (systemd.exec(5)).
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    // Following the link gives the socket that standard error is.
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// Writes a whole line.
type WriteLine = Box<dyn FnMut(&str) -> io::Result<()> + Send>;

/// How many lines could not be written.
type Refused = Arc<AtomicUsize>;

/// Writes whole lines, and counts those that are refused: the thread that writes tells nobody.
struct Lines {
    write: WriteLine,
    refused: Refused,
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match (self.write)(&String::from_utf8_lossy(line)) {
            // Tried again by who called.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(_) => _ = self.refused.fetch_add(1, Relaxed),
            Ok(()) => {}
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a character steers the terminal that shows it, or hides or reorders what stands beside it: controls, ends of
/// lines, marks of direction, what has no width, tags.
fn steers(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(character, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// A text with everything that [`steers`] escaped, but for what is `kept`.
fn visible(text: &str, kept: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for character in text.chars() {
        if steers(character) && !kept.contains(character) {
            visible.extend(character.escape_default());
        } else {
            visible.push(character);
        }
    }
    visible
}

/// A line for people. What follows in a message of several is indented, so that nobody takes it for a line of the log.
fn text(line: &str, kept: &str) -> String {
    visible(line.trim_end(), kept).replace('\n', "\n    ") + "\n"
}

/// A line that is a JSON object. Whoever parses it finds every character as it was.
fn json(line: &str) -> String {
    let mut json = String::with_capacity(line.len());
    for character in line.trim_end().chars() {
        if steers(character) {
            // Within a text, then. Cannot fail: there is memory.
            character.encode_utf16(&mut [0; 2]).iter().for_each(|unit| _ = write!(json, "\\u{unit:04x}"));
        } else {
            json.push(character);
        }
    }
    json.push('\n');
    json
}

fn open_journal() -> io::Result<UnixDatagram> {
    // Shows whether somebody listens. Messages go by the path, so that they find a socket that is made anew.
    UnixDatagram::unbound()?.connect(JOURNAL)?;
    UnixDatagram::unbound()
}

/// A line as a message in the journal's own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): each member is a field by its
/// own name, in capitals, and so is each of the spans'. `journalctl REQUEST_ID=...` finds the lines of a request.
fn message(name: &str, line: &str) -> io::Result<Vec<u8>> {
    let members: Map<String, Value> = serde_json::from_str(line)?;
    let mut longest = LONGEST_VALUE;
    loop {
        let mut message = Message { bytes: Vec::with_capacity(2 * line.len()), longest };
        message.add_field("SYSLOG_IDENTIFIER", name);
        message.add_fields(&members);
        if message.bytes.len() <= LONGEST_MESSAGE || longest == 0 {
            return Ok(message.bytes);
        }
        longest /= 2;
    }
}

/// A message that is being made, with values of `longest` bytes at most, escapes apart.
struct Message {
    bytes: Vec<u8>,
    longest: usize,
}

impl Message {
    fn add_fields(&mut self, members: &Map<String, Value>) {
        for (name, value) in members {
            match (name.as_str(), value) {
                ("level", level) => self.add_field("PRIORITY", priority(level)),
                ("spans", Value::Array(spans)) => {
                    spans.iter().filter_map(Value::as_object).for_each(|span| self.add_fields(span));
                }
                ("name", Value::String(span)) => self.add_field("SPAN_NAME", span),
                (_, Value::String(text)) => self.add_field(name, text),
                (_, value) => self.add_field(name, &value.to_string()),
            }
        }
    }

    fn add_field(&mut self, name: &str, value: &str) {
        let value = visible(&value[..value.floor_char_boundary(self.longest)], "\t\n");
        let name = name.trim_start_matches('_').bytes();
        self.bytes.extend(name.map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_uppercase() } else { b'_' }));
        self.bytes.push(b'\n');
        self.bytes.extend((value.len() as u64).to_le_bytes());
        self.bytes.extend(value.as_bytes());
        self.bytes.push(b'\n');
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

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.member(field, format!("{value:?}"));
    }
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/telemetry.rs"]
mod tests;
