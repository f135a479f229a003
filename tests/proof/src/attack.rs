//! Clients that do what none should, tried one kind after the other: a table, and what every row of it is held to.
//!
//! Beside each attack well-behaved clients ask, and the service is restarted. They are held to what they saw while another
//! service on this machine was attacked, whose processors all of them share: at least 999 of 1,000 requests of each kind of client are answered, the slowest within five times the time; the
//! restart loses nothing to the attack either. The process stays below `unit.memory_high`, its log has a few lines a
//! second whatever happens, and when an attack sends nothing more, and only holds what it has, its connections are gone as
//! soon as the limit that is theirs has come.
//!
//! The limits are the process', so the stand-in for systemd will do. They are short, so that they can be waited for.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, getrlimit};
use tokio::time::{Instant, sleep, timeout};

use crate::attacker::{Attack, Reads, Rounds, Script};
use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW, LATEST, PING, PREFACE, PRIORITY,
    RST_STREAM, SETTINGS, UNKNOWN, WINDOW_UPDATE, field, frame, get, hello, post, remembered, request, stream,
};
use crate::kinds;
use crate::manager::{Manager, Service, describe};
use lab::load::{Findings, Kind, Load};
use lab::record::{aligned, millis};
use lab::rehearse::Outcome;
use lab::stage::setting;
use lab::subject::Subject;
use lab::traffic::{Traffic, flat};

/// Which attacks to try.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Only those whose names have this in them.
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
    /// Only one of each kind.
    #[arg(long)]
    pub quick: bool,
}

/// T, short too.
pub(crate) const T: Duration = Duration::from_secs(6);

/// What the service is run with. Nothing else bounds a row.
pub(crate) const SHORT: &[(&str, &str)] = &[
    ("shutdown_timeout", "6s"),
    ("limits.max_connections", "500"),
    ("limits.header_timeout", "1s"),
    ("limits.body_timeout", "1s"),
    ("limits.send_timeout", "2s"),
    ("limits.idle_timeout", "3s"),
    ("limits.linger_timeout", "1s"),
];

const HEADER: Duration = Duration::from_secs(1);
const BODY: Duration = Duration::from_secs(1);
const SEND: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(3);
const LINGER: Duration = Duration::from_secs(1);

/// By how much a limit may be missed: it is looked for now and then, and the machine may be busy.
const LATE: Duration = Duration::from_millis(1_500);

/// With as many connections as are allowed unless told otherwise, and time to open them.
const DEFAULTS: &[(&str, &str)] = &[("limits.idle_timeout", "3s")];

/// T by default.
const DEFAULT_T: Duration = Duration::from_secs(30);

/// Almost all of those.
const ALL: usize = 9_800;

/// `limits.header_timeout` and `limits.send_timeout` by default.
const DEFAULT_HEADER: Duration = Duration::from_secs(5);
const DEFAULT_SEND: Duration = Duration::from_secs(30);

/// `unit.memory_high` by default, in MB.
const MEMORY_HIGH: u64 = 768;

/// How many times as long as without an attack an answer may take.
const TIMES: f64 = 5.0;

/// The same, in milliseconds, where there are as many connections as there may be: to open them, and to answer what they ask,
/// takes the processors a while in whatever order.
const SLOWEST_AMONG_MANY: f64 = 1_000.0;

/// What a restart may cost more, in milliseconds, where it ends with a pause: what waits for its client gets 100 ms in it, and
/// the goodbye as long.
const PAUSE: f64 = 300.0;

/// How much longer than without an attack a restart may take.
const DELAY: Duration = Duration::from_millis(500);

/// How many more lines there may be in the log in a second than without an attack.
const LINES: f64 = 3.0;

/// Descriptors that the service may have more than before, for what it keeps for itself.
const MORE: usize = 8;

/// Who behaves, and who is held to it.
const CROWD: &[(Kind, u32)] = &[(Kind::PAUSING, 16), (Kind::FRESH, 1), (kinds::HTTP2, 1)];

/// How long well-behaved clients ask without an attack, or an attack lasts; in the middle of it is the restart.
const TIME: Duration = Duration::from_secs(4);

/// What another service is attacked with, to see what there is without an attack. The worst counts, as of a row the worst
/// does.
const ELSEWHERE: [&str; 3] = ["connections that end at once", "large bodies that nobody reads", "HTTP/2: PING"];

/// Who is attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Service,
    /// Another one, that well-behaved clients do not ask.
    Other,
}

/// A kind of attack.
struct Row {
    name: &'static str,
    script: Script,
    settings: &'static [(&'static str, &'static str)],
    /// `LimitNOFILE=`.
    descriptors: Option<u32>,
    /// What clients get, among others.
    gets: &'static str,
    /// When the connections are gone that are held and on which nothing happens.
    ends_by: Duration,
    time: Duration,
    /// Its clients cannot be told from slow ones that behave, for whom a restart waits while it serves all others.
    lasts: bool,
    quick: bool,
    /// More than this service bears: only where it is named.
    beyond: bool,
}

/// `clients` of which each connects, and says what `first` says. It is closed for its silence unless told otherwise.
fn attack(name: &'static str, clients: usize, first: fn() -> Vec<u8>) -> Row {
    Row {
        name,
        script: Script { clients, first, then: None, reads: Reads::All, leaves_after: None },
        settings: SHORT,
        descriptors: None,
        gets: "",
        ends_by: HEADER,
        time: TIME,
        lasts: false,
        quick: false,
        beyond: false,
    }
}

impl Row {
    /// Goes on so, every so many milliseconds.
    fn then(self, pause: u64, says: fn(u32) -> Vec<u8>) -> Self {
        let rounds = Rounds { pause: Duration::from_millis(pause), says };
        let script = Script { then: Some(rounds), ..self.script };
        Self { script, ..self }
    }

    fn reads(self, reads: Reads) -> Self {
        Self { script: Script { reads, ..self.script }, ..self }
    }

    /// Leaves after so many milliseconds.
    fn leaves(self, after: u64) -> Self {
        let script = Script { leaves_after: Some(Duration::from_millis(after)), ..self.script };
        Self { script, ..self }
    }

    fn gets(self, gets: &'static str) -> Self {
        Self { gets, ..self }
    }

    fn ends_by(self, ends_by: Duration) -> Self {
        Self { ends_by, ..self }
    }

    /// As many as the service takes unless told otherwise.
    fn many(self) -> Self {
        Self { settings: DEFAULTS, time: TIME * 2, ..self }
    }

    /// A restart may take all of T, in which everybody else is served.
    fn lasting(self) -> Self {
        Self { lasts: true, ..self }
    }

    fn descriptors(self, descriptors: u32) -> Self {
        Self { descriptors: Some(descriptors), ..self }
    }

    fn quick(self) -> Self {
        Self { quick: true, ..self }
    }

    fn beyond(self) -> Self {
        Self { beyond: true, ..self }
    }
}

/// A head without its end.
const HEAD: &str = "GET /livez HTTP/1.1\r\nHost: lab\r\n";

/// All that clients do who should not.
fn table() -> Vec<Row> {
    let mut table = http1();
    table.extend(http2());
    table.extend(malformed());
    table
}

fn http1() -> Vec<Row> {
    vec![
        // Heads.
        attack("slow heads", 400, || format!("{HEAD}X-Slow: ").into()).then(100, |_| b"x".into()).gets("408").quick(),
        attack("heads that stop, 15,000 bytes", 400, || fat_head(15_000)).gets("408").ends_by(HEADER + LINGER),
        attack("endless heads", 100, || HEAD.into())
            .then(1, |round| format!("X-{round}: {}\r\n", "x".repeat(1_000)).into())
            .gets("431")
            .ends_by(HEADER + LINGER)
            .quick(),
        attack("heads that stop, as many as there may be", ALL, || fat_head(15_000))
            .many()
            .ends_by(DEFAULT_HEADER + DEFAULT_HEADER),
        // Silence.
        attack("silence", 400, Vec::new).gets("end of file"),
        attack("silence, three times as many as there may be", 1_500, Vec::new).gets("end of file").quick(),
        attack("slow heads, three times as many as there may be", 1_500, || HEAD.into())
            .then(100, |_| b"X: x\r\n".into()),
        attack("silence after an answer", 400, || format!("{HEAD}\r\n").into()).gets("200").ends_by(IDLE),
        attack("silence after an answer, as many as there may be", ALL, || format!("{HEAD}\r\n").into())
            .many()
            .ends_by(IDLE),
        attack("silence, more than there are descriptors for", 600, Vec::new).descriptors(400).quick(),
        // Connections.
        attack("connections that end at once", 50, Vec::new).leaves(1).quick(),
        attack("requests that nobody waits for", 50, || format!("{HEAD}\r\n").into()).leaves(1),
        attack("uploads whose client leaves", 50, || upload("/echo", 1_000, 10)).leaves(1).quick(),
        // Bodies.
        attack("slow bodies", 400, || upload("/echo", 1_000_000, 0))
            .then(300, |_| b"x".into())
            .gets("200")
            .lasting()
            .ends_by(BODY + LINGER),
        attack("bodies that stop", 400, || upload("/echo", 1_000, 10))
            .gets("200")
            .lasting()
            .ends_by(BODY + LINGER)
            .quick(),
        attack("chunks that stop", 400, || [chunked(), b"5\r\nab".into()].concat()).lasting().ends_by(BODY + LINGER),
        attack("bodies of single bytes in chunks", 100, chunked)
            .then(0, |_| b"1\r\nx\r\n".repeat(1_000))
            .reads(Reads::Nothing)
            .lasting()
            .ends_by(SEND + LINGER),
        attack("chunk extensions without end", 20, chunked)
            .then(0, |round| if round == 0 { b"1;".into() } else { b"x".repeat(16_000) })
            .ends_by(BODY + LINGER),
        attack("trailers without end", 20, || [chunked(), b"0\r\n".into()].concat())
            .then(0, |round| format!("X-{round}: {}\r\n", "x".repeat(8_000)).into())
            .ends_by(BODY + LINGER),
        attack("bodies that are too large", 20, || upload("/echo", 1 << 40, 0))
            .then(0, |_| vec![b'x'; 64_000])
            .gets("413")
            .ends_by(LINGER),
        attack("large bodies that nobody reads", 20, || upload("/nowhere", 2_000_000, 0))
            .then(0, |_| vec![b'x'; 64_000])
            .gets("404")
            .ends_by(HEADER + LINGER),
        // Answers.
        attack("answers that are not read", 100, || upload("/echo", 2_000_000, 2_000_000))
            .reads(Reads::Nothing)
            .ends_by(SEND + LINGER)
            .quick(),
        attack("answers read in sips", 100, || upload("/echo", 2_000_000, 2_000_000))
            .reads(Reads::Sips)
            .lasting()
            .ends_by(SEND + LINGER),
        attack("answers that are not read, as many as there may be", ALL, || upload("/echo", 2_000_000, 2_000_000))
            .many()
            .lasting()
            .reads(Reads::Nothing)
            .ends_by(DEFAULT_SEND),
        attack("requests without end whose answers are not read", 50, Vec::new)
            .then(0, |_| format!("{HEAD}\r\n").repeat(100).into())
            .reads(Reads::Nothing)
            .lasting()
            .ends_by(SEND + LINGER)
            .quick(),
    ]
}

/// Some of what is said here could only be told apart from good clients by how much it is.
fn http2() -> Vec<Row> {
    let first = || hello(&[]);
    vec![
        attack("HTTP/2: half a preface", 400, || PREFACE[..12].into()),
        attack("HTTP/2: silence", 400, first).ends_by(IDLE),
        attack("HTTP/2: a head that stops", 400, || {
            [hello(&[]), frame(HEADERS, 0, 1, &request("GET", "/livez"))].concat()
        })
        .ends_by(IDLE),
        attack("HTTP/2: CONTINUATION", 4, || [hello(&[]), frame(HEADERS, 0, 1, &request("GET", "/livez"))].concat())
            .then(0, |_| frame(CONTINUATION, 0, 1, &field("x-a", &"b".repeat(4_000)).repeat(4)).repeat(20))
            .ends_by(IDLE)
            .quick(),
        attack("HTTP/2: empty CONTINUATION", 4, || {
            [hello(&[]), frame(HEADERS, 0, 1, &request("GET", "/livez"))].concat()
        })
        .then(0, |_| frame(CONTINUATION, 0, 1, &[]).repeat(2_000))
        .ends_by(IDLE),
        attack("HTTP/2: rapid reset", 4, first)
            .then(0, |round| {
                let reset =
                    |number| [get(number, "/livez"), frame(RST_STREAM, 0, number, &8_u32.to_be_bytes())].concat();
                streams(round, 200).flat_map(reset).collect()
            })
            .ends_by(IDLE)
            .quick(),
        attack("HTTP/2: rapid reset, by mistakes of the client", 4, first)
            .then(0, |round| {
                let mistake =
                    |number| [get(number, "/livez"), frame(WINDOW_UPDATE, 0, number, &0_u32.to_be_bytes())].concat();
                streams(round, 200).flat_map(mistake).collect()
            })
            .ends_by(IDLE),
        attack("HTTP/2: SETTINGS", 4, first)
            .then(0, |_| frame(SETTINGS, 0, 0, &[]).repeat(1_000))
            .ends_by(IDLE)
            .quick(),
        attack("HTTP/2: PING", 4, first)
            .then(0, |_| frame(PING, 0, 0, b"12345678").repeat(1_000))
            .ends_by(IDLE)
            .quick(),
        attack("HTTP/2: answers to no PING", 4, first)
            .then(0, |_| frame(PING, ACK, 0, b"12345678").repeat(1_000))
            .ends_by(IDLE)
            .quick(),
        attack("HTTP/2: PING, SETTINGS, and nothing is read", 50, first)
            .then(0, |_| [frame(PING, 0, 0, b"12345678"), frame(SETTINGS, 0, 0, &[])].concat().repeat(500))
            .reads(Reads::Nothing)
            .ends_by(IDLE),
        attack("HTTP/2: PRIORITY", 4, first)
            .then(0, |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 10]).repeat(1_000))
            .ends_by(IDLE),
        attack("HTTP/2: WINDOW_UPDATE", 4, first)
            .then(0, |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(1_000))
            .ends_by(IDLE),
        attack("HTTP/2: unknown frames", 4, first)
            .then(0, |_| frame(UNKNOWN, 0, 0, &[0; 100]).repeat(1_000))
            .ends_by(IDLE),
        attack("HTTP/2: empty DATA", 4, || [hello(&[]), post(1, "/echo")].concat())
            .then(0, |_| frame(DATA, 0, 1, &[]).repeat(2_000))
            .ends_by(IDLE)
            .quick(),
        attack("HTTP/2: empty HEADERS", 4, first)
            .then(0, |round| {
                streams(round, 50).flat_map(|number| frame(HEADERS, END_STREAM | END_HEADERS, number, &[])).collect()
            })
            .ends_by(IDLE),
        attack("HTTP/2: HPACK, new fields", 4, first)
            .then(0, |round| {
                let asks = |number| {
                    let fields = [request("GET", "/livez"), remembered(&format!("x-{number}"), &"v".repeat(3_000))];
                    frame(HEADERS, END_STREAM | END_HEADERS, number, &fields.concat())
                };
                streams(round, 10).flat_map(asks).collect()
            })
            .ends_by(IDLE),
        attack("HTTP/2: HPACK, one field many times", 4, || {
            let fields = [request("GET", "/livez"), remembered("x-bomb", &"v".repeat(3_900))].concat();
            [hello(&[]), frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields)].concat()
        })
        .then(0, |round| {
            let fields = [request("GET", "/livez"), vec![LATEST; 3_000]].concat();
            let asks = |number| frame(HEADERS, END_STREAM | END_HEADERS, number + 2, &fields);
            streams(round, 10).flat_map(asks).collect()
        })
        .ends_by(IDLE)
        .quick(),
        attack("HTTP/2: thousands of streams", 50, || {
            [hello(&[]), streams(0, 5_000).flat_map(|number| post(number, "/echo")).collect()].concat()
        })
        .ends_by(BODY + IDLE)
        .quick(),
        attack("HTTP/2: bodies that stop", 400, || [hello(&[]), post(1, "/echo"), frame(DATA, 0, 1, b"abc")].concat())
            .lasting()
            .ends_by(BODY + IDLE),
        attack("HTTP/2: windows of 0", 200, zero_window).ends_by(SEND + IDLE).quick(),
        attack("HTTP/2: windows of 0, as many as there may be", ALL, zero_window)
            .many()
            .lasting()
            .ends_by(DEFAULT_SEND + IDLE),
        attack("HTTP/2: bodies that nobody takes, as many as there may be", ALL, || {
            let echoes = streams(0, 200)
                .flat_map(|number| [post(number, "/echo"), frame(DATA, 0, number, &[0; 5_000])].concat());
            [hello(&[(INITIAL_WINDOW, 0)]), echoes.collect()].concat()
        })
        .beyond()
        .many()
        .lasting()
        .ends_by(DEFAULT_SEND + IDLE),
        attack("HTTP/2: windows that open byte by byte", 100, zero_window)
            .then(200, |_| {
                streams(0, 100).flat_map(|number| frame(WINDOW_UPDATE, 0, number, &1_u32.to_be_bytes())).collect()
            })
            .ends_by(SEND + IDLE),
        attack("HTTP/2: answers that are not read", 100, || {
            let echoes =
                streams(0, 50).flat_map(|number| [post(number, "/echo"), frame(DATA, 0, number, &[0; 1_000])].concat());
            let open = frame(WINDOW_UPDATE, 0, 0, &1_000_000_000_u32.to_be_bytes());
            [hello(&[(INITIAL_WINDOW, 1 << 30)]), open, echoes.collect()].concat()
        })
        .then(0, |round| frame(DATA, 0, stream(round % 50), &[0; 1_000]))
        .lasting()
        .reads(Reads::Nothing)
        .ends_by(SEND + IDLE),
    ]
}

fn malformed() -> Vec<Row> {
    vec![
        attack("bytes at random", 100, noise).leaves(30).ends_by(HEADER + LINGER).quick(),
        attack("requests with mistakes at random", 100, || {
            let request =
                [&*upload("/echo", 20, 20), &[chunked(), b"5\r\nhello\r\n0\r\n\r\n".into()].concat()].concat();
            spoilt(request)
        })
        .leaves(30)
        .ends_by(HEADER + BODY + LINGER)
        .quick(),
        attack("HTTP/2: frames at random", 100, || {
            let any = || frame(fastrand::u8(..11), fastrand::u8(..), fastrand::u32(..8), &noise());
            [hello(&[]), (0..20).flat_map(|_| any()).collect()].concat()
        })
        .leaves(30)
        .ends_by(BODY + IDLE)
        .quick(),
        attack("HTTP/2: requests with mistakes at random", 100, || {
            let asks = streams(0, 20).flat_map(|number| {
                [post(number, "/echo"), frame(DATA, END_STREAM, number, b"hello"), get(number + 40, "/livez")].concat()
            });
            [hello(&[]), spoilt(asks.collect())].concat()
        })
        .leaves(30)
        .ends_by(BODY + IDLE),
    ]
}

/// The streams of a round in which so many are opened.
fn streams(round: u32, count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(move |number| stream((round * count + number) % (1 << 30)))
}

/// A head without its end, of about so many bytes.
fn fat_head(bytes: usize) -> Vec<u8> {
    let fields = (0..).map(|number| format!("X-{number}: {}\r\n", "x".repeat(990)));
    let fields: String = fields.take(bytes / 1_000).collect();
    format!("{HEAD}{fields}").into()
}

/// A request with a body of which some bytes are sent.
fn upload(path: &str, length: u64, sent: usize) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: lab\r\nContent-Length: {length}\r\n\r\n");
    [head.into_bytes(), vec![b'x'; sent]].concat()
}

/// A request whose chunks have to follow.
fn chunked() -> Vec<u8> {
    b"POST /echo HTTP/1.1\r\nHost: lab\r\nTransfer-Encoding: chunked\r\n\r\n".into()
}

/// A hundred streams with answers for which there is no room.
fn zero_window() -> Vec<u8> {
    let asks = streams(0, 100).flat_map(|number| get(number, "/livez"));
    [hello(&[(INITIAL_WINDOW, 0)]), asks.collect()].concat()
}

fn noise() -> Vec<u8> {
    std::iter::repeat_with(|| fastrand::u8(..)).take(fastrand::usize(..200)).collect()
}

/// The same with some bytes missing, doubled, or others.
fn spoilt(mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..fastrand::usize(1..6) {
        let at = fastrand::usize(..bytes.len().max(1));
        match fastrand::u8(..4) {
            0 if bytes.len() > 1 => drop(bytes.remove(at)),
            1 => bytes.insert(at, bytes[at]),
            2 => bytes[at] = fastrand::u8(..),
            _ => bytes.truncate(at + 1),
        }
    }
    bytes
}

/// What the clients of an attack do.
pub fn script(name: &str) -> Option<Script> {
    table().into_iter().find(|row| row.name == name).map(|row| row.script)
}

/// What was seen beside an attack, or without one.
#[derive(Debug, Default, Clone)]
struct Seen {
    answered: u64,
    lost: u64,
    /// The slowest answer, in milliseconds.
    slowest: f64,
    /// Of those kinds of clients of whom too few were answered, the first loss.
    unanswered: Vec<String>,
    restart: Duration,
    /// How the process ended that was restarted, if not well.
    ended: Option<String>,
    /// In MB.
    memory: u64,
    lines: f64,
    panics: usize,
    /// The first that it complained about.
    complaint: String,
    /// How long the service had more connections than before.
    gone: Option<Duration>,
    got: BTreeMap<String, u64>,
}

/// Tries the attacks, prints all of them as a table, and says whether they stayed within their bounds.
pub async fn attacks(options: &Options) -> anyhow::Result<Outcome> {
    let only = options.only.as_deref().unwrap_or_default();
    let wanted = |row: &Row| match row {
        Row { beyond: true, .. } => row.name == only,
        _ => row.name.contains(only) && (row.quick || !options.quick),
    };
    let rows: Vec<_> = table().into_iter().filter(wanted).collect();
    if rows.is_empty() {
        bail!("no attack is called {only:?}");
    }
    let most = rows.iter().map(|row| row.script.clients).max().unwrap_or_default() as u64 + 512;
    let allowed = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    ensure!(allowed >= most, "{most} descriptors are needed, and {allowed} allowed (ulimit -n)");
    let subject = Subject::find(&std::env::current_dir()?).await?;
    let binary = subject.build().await?;
    let traffic = Traffic { shutdown_timeout: T, ..Traffic::of(&subject)? };
    let bench = Bench { name: &subject.name, binary: &binary, traffic: &traffic };

    let began = Instant::now();
    let calm = bench.calm().await?;
    println!("without an attack: slowest answer {}, restart {} ms\n", millis(calm.slowest), calm.restart.as_millis());

    let mut lines = vec![HEADINGS.map(String::from)];
    let mut broken = vec![];
    for row in &rows {
        let mut calm = calm.clone();
        let mut seen = bench.watch(row, Target::Service).await.with_context(|| row.name)?;
        let mut faults = faults_of(row, &seen, &calm);
        // The slowest of thousands of answers may be so because of this machine, which may have been quicker before than now;
        // not twice.
        if !faults.is_empty() && seen.panics == 0 && seen.ended.is_none() {
            println!("again   {}: {}", row.name, faults.join("; "));
            calm = bench.calm().await?;
            seen = bench.watch(row, Target::Service).await.with_context(|| row.name)?;
            faults = faults_of(row, &seen, &calm);
        }
        println!("{:6}  {}", if faults.is_empty() { "held" } else { "BROKEN" }, row.name);
        for fault in &faults {
            println!("        {fault}");
        }
        if !faults.is_empty() {
            println!("        the first complaint of the service: {}", seen.complaint);
        }
        lines.push(cells(row, &seen, &calm));
        if !faults.is_empty() {
            broken.push(row.name);
        }
    }
    println!("\n{}", aligned(&lines));
    println!(
        "{} of {} attacks stayed within their bounds, in {:.0} s.",
        rows.len() - broken.len(),
        rows.len(),
        began.elapsed().as_secs_f64()
    );
    Ok(if broken.is_empty() { Outcome::Kept } else { Outcome::Broken })
}

const HEADINGS: [&str; 9] = [
    "attack",
    "its clients get",
    "answered",
    "lost",
    "slowest, without",
    "memory",
    "restart, without",
    "gone after",
    "lines/s",
];

fn cells(row: &Row, seen: &Seen, calm: &Seen) -> [String; 9] {
    let most = seen.got.iter().max_by_key(|(_, count)| **count);
    [
        row.name.into(),
        most.map(|(what, _)| what.clone()).unwrap_or_default(),
        seen.answered.to_string(),
        seen.lost.to_string(),
        format!("{}, {}", millis(seen.slowest), millis(calm.slowest)),
        format!("{} MB", seen.memory),
        format!("{}, {} ms", seen.restart.as_millis(), calm.restart.as_millis()),
        seen.gone.map_or("never".into(), |gone| format!("{:.1} s", gone.as_secs_f64())),
        format!("{:.1}", seen.lines),
    ]
}

/// The bounds that were not kept.
fn faults_of(row: &Row, seen: &Seen, calm: &Seen) -> Vec<String> {
    let mut faults = seen.unanswered.clone();
    let mut hold = |held: bool, fault: String| {
        if !held {
            faults.push(fault);
        }
    };
    let is_among_many = row.settings == DEFAULTS;
    let slowest = match calm.slowest * TIMES {
        _ if is_among_many => SLOWEST_AMONG_MANY,
        times if row.lasts => times.max(calm.restart.as_secs_f64() * 1_000.0 + PAUSE),
        times => times,
    };
    hold(
        seen.slowest <= slowest,
        format!("the slowest answer took {}, more than {}", millis(seen.slowest), millis(slowest)),
    );
    hold(seen.memory < MEMORY_HIGH, format!("it took {} MB of memory", seen.memory));
    let t = if is_among_many { DEFAULT_T } else { T };
    let restart = if row.lasts { t + DELAY } else { calm.restart + DELAY };
    hold(seen.restart <= restart, format!("the restart took {:?}, more than {restart:?}", seen.restart));
    hold(seen.ended.is_none(), format!("the process that was restarted {}", seen.ended.as_deref().unwrap_or_default()));
    hold(seen.lines <= calm.lines + LINES, format!("{:.0} lines a second in the log", seen.lines));
    hold(seen.panics == 0, format!("{} panics", seen.panics));
    hold(seen.gone.is_some(), format!("its connections are not gone after {:?}", row.ends_by + LATE));
    let gets = seen.got.keys().any(|got| got.contains(row.gets));
    hold(gets, format!("nobody got {}: {:?}", row.gets, seen.got));
    faults
}

/// What all rows have in common.
struct Bench<'a> {
    name: &'a str,
    binary: &'a Path,
    traffic: &'a Traffic,
}

impl Bench<'_> {
    async fn start(&self, row: &Row) -> anyhow::Result<Service> {
        let mut manager = match row.descriptors {
            Some(most) => Manager::new("/bin/sh")
                .args(["-c", &format!("ulimit -n {most} && exec \"$0\" run")])
                .args([self.binary]),
            None => Manager::new(self.binary).args(["run"]),
        };
        // Those of the row go first.
        for (key, value) in flat(&self.traffic.settings) {
            manager = manager.env(setting(self.name, &key), value);
        }
        for (key, value) in row.settings {
            manager = manager.env(setting(self.name, key), value);
        }
        manager.start().await
    }

    /// What there is without an attack.
    async fn calm(&self) -> anyhow::Result<Seen> {
        let mut calm = Seen::default();
        for row in table().iter().filter(|row| ELSEWHERE.contains(&row.name)) {
            let seen = self.watch(row, Target::Other).await?;
            ensure!(seen.unanswered.is_empty(), "without an attack: {:?}", seen.unanswered);
            calm.slowest = calm.slowest.max(seen.slowest);
            calm.restart = calm.restart.max(seen.restart);
            calm.lines = calm.lines.max(seen.lines);
        }
        Ok(calm)
    }

    /// Has well-behaved clients ask, and somebody attack meanwhile, restarts the service, and sees what comes of it.
    async fn watch(&self, row: &Row, target: Target) -> anyhow::Result<Seen> {
        let mut service = self.start(row).await?;
        let other = if target == Target::Other { Some(self.start(row).await?) } else { None };
        let before = descriptors(&service)?;
        let load = Load::start(service.address(), self.traffic, CROWD);
        settled(&load).await?;
        let (logged, began) = (service.log().len(), Instant::now());
        let attacked = other.as_ref().unwrap_or(&service).address();
        let mut attack = Attack::start(row.name, attacked, row.time)?;
        sleep(row.time / 2).await;
        let mut memory = peak_memory(&service)?;
        let told = Instant::now();
        let status = service.restart().await?;
        let restart = told.elapsed();
        attack.over().await?;
        let lines = service.log()[logged..].lines().count() as f64 / began.elapsed().as_secs_f64();
        let findings = load.finish().await;
        let held = Instant::now();
        let gone = timeout(row.ends_by + LATE, async {
            while descriptors(&service)? > before + MORE {
                sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        });
        let gone = gone.await.ok().transpose()?.map(|()| held.elapsed());
        memory = memory.max(peak_memory(&service)?);
        let got = attack.end().await?;
        let log = service.log();
        let panics = log.matches("panicked").count();
        let complaint = log[logged..].lines().find(|line| ["WARN", "ERROR"].iter().any(|level| line.contains(level)));
        let complaint = complaint.unwrap_or_default().to_owned();
        let ended = (!status.success()).then(|| describe(status));
        Ok(Seen { restart, ended, memory, lines, panics, complaint, gone, got, ..answers(&findings) })
    }
}

/// What well-behaved clients saw.
fn answers(findings: &Findings) -> Seen {
    let mut seen = Seen::default();
    for (index, kind) in findings.scenarios.iter().enumerate() {
        let lost = kind.lost + kind.refused;
        seen.answered += kind.answered;
        seen.lost += lost;
        seen.slowest = seen.slowest.max(kind.slowest_ms);
        if lost * 1_000 > kind.answered + lost {
            let mut failures = findings.failures.iter().filter(|failure| usize::from(failure.scenario) == index);
            let first = failures.find(|failure| failure.kind != "closed");
            let first = first.map(|failure| &*failure.what).unwrap_or_default();
            let asked = kind.answered + lost;
            seen.unanswered.push(format!("{}: {lost} of {asked} were not answered: {first}", kind.name));
        }
    }
    seen
}

async fn settled(load: &Load) -> anyhow::Result<()> {
    let settle = async {
        while !load.is_settled() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), settle).await.context("nobody is answered")
}

fn pid(service: &Service) -> anyhow::Result<u32> {
    service.pid().context("the service has ended")
}

/// How many descriptors the service has.
fn descriptors(service: &Service) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/fd", pid(service)?))?.count())
}

/// The most memory that the process had so far, in MB.
fn peak_memory(service: &Service) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid(service)?))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"));
    Ok(peak.context("no VmHWM")?.trim().parse::<u64>()? / 1024)
}
