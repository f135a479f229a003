//! `<name> top`: what the instances of a service on this host do, second by second, in a terminal or as plain lines.
//!
//! Each is asked for its metrics once a second; the rates and quantiles are those of the time between two answers.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};
use std::iter;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::instances;

/// How often it is asked, and how long an instance may take to answer.
const PERIOD: Duration = Duration::from_secs(1);

/// What plain lines have, and a terminal that does not say it.
const COLUMNS: usize = 80;

/// Shows what the instances of the service `name` do, until who looks has seen enough; or `once`, of one second.
///
/// # Errors
/// When instances may not be asked, when nothing can be shown, or when there is none to be shown `once`.
pub async fn top(name: &str, once: bool) -> io::Result<()> {
    match if once { show_once(name).await } else { watch(name).await } {
        // Who has closed the pipe has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

async fn show_once(name: &str) -> io::Result<()> {
    let before = look(name, &[]).await?;
    tokio::time::sleep(PERIOD).await;
    let rows = look(name, &before).await?;
    if rows.is_empty() { Err(io::Error::other("no instance runs here")) } else { show(name, &rows, None) }
}

async fn watch(name: &str) -> io::Result<()> {
    let (key, mut ended) = mpsc::channel(1);
    let screen = Screen::take(&key)?;
    let mut rows = Vec::new();
    loop {
        let next = tokio::time::Instant::now() + PERIOD;
        rows = look(name, &rows).await?;
        show(name, &rows, screen.as_ref())?;
        if tokio::time::timeout_at(next, ended.recv()).await.is_ok() {
            return Ok(());
        }
    }
}

/// Shows it on the screen, or as plain lines.
fn show(name: &str, rows: &[Row], screen: Option<&Screen>) -> io::Result<()> {
    let (columns, height) = screen.map_or((COLUMNS, usize::MAX), Screen::size);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut lines = lines(name, now, rows, columns);
    lines.truncate(height);
    if screen.is_some() {
        // What does not fit would go on in the next line.
        lines.iter_mut().for_each(|line| line.truncate(line.floor_char_boundary(columns)));
    }
    let mut output = io::stdout().lock();
    match screen {
        Some(_) => write!(output, "\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\n"))?,
        None => writeln!(output, "{}\n", lines.join("\n"))?,
    }
    output.flush()
}

/// A terminal in which is looked: it is as it was again when this is dropped.
struct Screen(Termios);

impl Screen {
    /// Takes the terminal, if there is one, and has `ended` told of the key that ends it, or of SIGTERM.
    fn take(ended: &mpsc::Sender<()>) -> io::Result<Option<Self>> {
        let input = io::stdin();
        if !(input.is_terminal() && io::stdout().is_terminal()) {
            return Ok(None);
        }
        let mut terminate = signal(SignalKind::terminate())?;
        let screen = Self(tcgetattr(&input)?);
        let mut keys = screen.0.clone();
        keys.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        tcsetattr(&input, OptionalActions::Now, &keys)?;
        // Another screen, without a cursor.
        write!(io::stdout(), "\x1b[?1049h\x1b[?25l")?;
        let key = ended.clone();
        std::thread::spawn(move || {
            // q or Ctrl-C, or the terminal's end.
            let _ = input.lock().bytes().map_while(Result::ok).find(|key| matches!(key, b'q' | 3));
            let _ = key.blocking_send(());
        });
        let key = ended.clone();
        tokio::spawn(async move {
            terminate.recv().await;
            let _ = key.send(()).await;
        });
        Ok(Some(screen))
    }

    /// The columns and lines that can be written to.
    fn size(&self) -> (usize, usize) {
        let size = tcgetwinsize(io::stdout()).map(|size| (size.ws_col.into(), size.ws_row.into()));
        let (columns, lines) = size.ok().filter(|&(columns, lines)| columns > 0 && lines > 0).unwrap_or((COLUMNS, 24));
        // Some terminals take what stands in the last column for what is to be erased behind it.
        (columns - 1, lines)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write!(io::stdout(), "\x1b[?25h\x1b[?1049l").and_then(|()| io::stdout().flush());
        // Keys that had no meaning here are to have none for the shell.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

/// What an instance has told of itself.
#[derive(Debug, PartialEq)]
struct Told {
    phase: String,
    counted: Counts,
    in_flight: f64,
    open: f64,
    /// When that was, since 1970, and how long it took until it was ready.
    started: f64,
    start: f64,
    taken_over: f64,
}

/// What it has counted since its start, or in a second.
#[derive(Debug, PartialEq)]
struct Counts {
    requests: f64,
    failed: f64,
    /// How many requests took no longer than so many seconds, the least of them first.
    buckets: Vec<(f64, f64)>,
}

impl Told {
    /// Of metrics in Prometheus' text format.
    fn by(text: &str) -> Self {
        let samples = |name| text.lines().filter_map(move |line| sample(line, name));
        let gauge = |name| samples(name).next().map_or(0.0, |(_, value)| value);
        let all = samples("http_server_request_duration_seconds_count");
        let status = |labels| label(labels, "http_response_status_code").unwrap_or_default();
        let failed = all.clone().filter(|(labels, _)| status(labels).starts_with('5')).map(|(_, value)| value).sum();
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (labels, value) in samples("http_server_request_duration_seconds_bucket") {
            let most = label(labels, "le").and_then(|most| most.parse().ok()).unwrap_or(f64::INFINITY);
            match buckets.iter_mut().find(|bucket| bucket.0 == most) {
                Some(bucket) => bucket.1 += value,
                None => buckets.push((most, value)),
            }
        }
        let phase =
            samples("hitless_phase").find(|(_, value)| *value > 0.0).and_then(|(labels, _)| label(labels, "phase"));
        Self {
            // It may come from a service that is not what it was.
            phase: phase.unwrap_or("-").replace(|byte: char| !byte.is_ascii_graphic(), "?"),
            counted: Counts { requests: all.map(|(_, value)| value).sum(), failed, buckets },
            // But for the request of who looks, and its connection.
            in_flight: (gauge("http_server_active_requests") - 1.0).max(0.0),
            open: (gauge("hitless_connections_open") - 1.0).max(0.0),
            started: gauge("process_start_time_seconds"),
            start: gauge("hitless_start_duration_seconds"),
            taken_over: gauge("hitless_connections_taken_over_total"),
        }
    }
}

/// The labels and the value of a line, if it is a sample of this `name`.
fn sample<'a>(line: &'a str, name: &str) -> Option<(&'a str, f64)> {
    let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
    (labels.is_empty() || labels.starts_with('{')).then_some((labels, value.parse().ok()?))
}

/// The value of a label. A quote within one has a backslash before it.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let begin = ['{', ','].map(|before| format!("{before}{name}=\""));
    let (_, value) = begin.iter().find_map(|begin| labels.split_once(begin.as_str()))?;
    value.split('"').next()
}

impl Counts {
    /// What was counted in a second, of the `seconds` since `before`.
    fn since(&self, before: &Self, seconds: f64) -> Self {
        // The bounds are the same all the time, and there are none before the first request.
        let buckets_before = before.buckets.iter().map(|bucket| bucket.1).chain(iter::repeat(0.0));
        let buckets = self.buckets.iter().zip(buckets_before);
        Self {
            requests: (self.requests - before.requests) / seconds,
            failed: (self.failed - before.failed) / seconds,
            buckets: buckets.map(|(&(most, count), before)| (most, (count - before) / seconds)).collect(),
        }
    }

    /// What so large a share of the requests took at most, as Prometheus' `histogram_quantile` has it; it is not known any better
    /// below the least bound and above the greatest.
    fn quantile(&self, share: f64) -> String {
        let rank = share * self.buckets.last().map_or(0.0, |last| last.1);
        let (mut least, mut fewer) = (0.0, 0.0);
        for &(most, count) in &self.buckets {
            if count > 0.0 && count >= rank {
                return if least == 0.0 {
                    format!("<{}", seconds(most))
                } else if most.is_infinite() {
                    format!(">{}", seconds(least))
                } else {
                    seconds(least + (most - least) * (rank - fewer) / (count - fewer))
                };
            }
            (least, fewer) = (most, count);
        }
        "-".into()
    }
}

/// What is shown of an instance.
struct Row {
    instance: String,
    pid: u32,
    at: Instant,
    /// None where it has not answered.
    told: Option<Told>,
    /// None where it had not answered before.
    rates: Option<Counts>,
    /// It takes no connections any more, and so nobody can ask it.
    leaves: bool,
}

/// Asks all instances, and looks for those that were there `before`.
async fn look(name: &str, before: &[Row]) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (pid, instance, text) in instances::told(name, PERIOD).await? {
        let (at, told) = (Instant::now(), text.as_deref().map(Told::by));
        let before = before.iter().find(|row| row.pid == pid);
        let rates = before.and_then(|before| {
            let seconds = at.duration_since(before.at).as_secs_f64();
            Some(told.as_ref()?.counted.since(&before.told.as_ref()?.counted, seconds))
        });
        rows.push(Row { instance, pid, at, told, rates, leaves: false });
    }
    for Row { instance, pid, .. } in before {
        if rows.iter().all(|row| row.pid != *pid) && Path::new("/proc").join(pid.to_string()).exists() {
            let (instance, at) = (instance.clone(), Instant::now());
            rows.push(Row { instance, pid: *pid, at, told: None, rates: None, leaves: true });
        }
    }
    rows.sort_by(|one, two| (&one.instance, one.pid).cmp(&(&two.instance, two.pid)));
    Ok(rows)
}

/// What is shown, in so many `columns`, at a time of seconds since 1970.
fn lines(name: &str, now: u64, rows: &[Row], columns: usize) -> Vec<String> {
    let uptime = |told: &Told| time(now.saturating_sub(told.started as u64));
    let mut lines = vec![format!("{name} at {:02}:{:02}:{:02} UTC", now / 3600 % 24, now / 60 % 60, now % 60)];
    if rows.is_empty() {
        lines.push("no instance runs here".into());
    } else {
        let titles = ["PID", "PHASE", "UP", "REQ/S", "5XX/S", "P50", "P99", "ACTIVE", "CONNS"].map(String::from);
        lines.push(line("INSTANCE", titles, columns));
    }
    for Row { instance, pid, told, rates, leaves, .. } in rows {
        let of = |told: Option<String>| told.unwrap_or("-".into());
        let (told, rates) = (told.as_ref(), rates.as_ref());
        let cells = [
            pid.to_string(),
            told.map_or(if *leaves { "leaving" } else { "silent" }, |told| &told.phase).to_owned(),
            of(told.map(uptime)),
            of(rates.map(|rates| format!("{:.1}", rates.requests))),
            of(rates.map(|rates| format!("{:.1}", rates.failed))),
            of(rates.map(|rates| rates.quantile(0.5))),
            of(rates.map(|rates| rates.quantile(0.99))),
            of(told.map(|told| told.in_flight.to_string())),
            of(told.map(|told| told.open.to_string())),
        ];
        lines.push(line(instance, cells, columns));
    }
    let started = rows.iter().filter_map(|row| Some((row.pid, row.told.as_ref()?)));
    if let Some((pid, told)) = started.max_by(|one, two| one.1.started.total_cmp(&two.1.started)) {
        let (ago, start, taken_over) = (uptime(told), seconds(told.start), told.taken_over);
        let said =
            format!("last start: process {pid}, {ago} ago, ready in {start}, took over {taken_over} connections");
        lines.extend([String::new(), said.chars().take(columns).collect()]);
    }
    lines
}

/// Of a long name the end is shown, which tells one instance from another.
fn line(instance: &str, cells: [String; 9], columns: usize) -> String {
    let mut figures = String::new();
    for (cell, width) in cells.iter().zip([8, 9, 5, 8, 8, 7, 7, 7, 7]) {
        let _ = write!(figures, "{cell:>width$}");
    }
    let width = columns.saturating_sub(figures.len());
    let hidden = instance.len().saturating_sub(width);
    format!("{:<width$}{figures}", instance.get(hidden..).unwrap_or_default())
}

/// A time to start or to answer.
fn seconds(seconds: f64) -> String {
    match seconds * 1000.0 {
        milliseconds if milliseconds < 9.95 => format!("{milliseconds:.1}ms"),
        milliseconds if milliseconds < 999.5 => format!("{milliseconds:.0}ms"),
        _ => format!("{seconds:.1}s"),
    }
}

/// A time to run.
fn time(seconds: u64) -> String {
    match seconds {
        0..100 => format!("{seconds}s"),
        100..6000 => format!("{}m", seconds / 60),
        6000..360_000 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../tests/unit/top.rs"]
mod tests;
