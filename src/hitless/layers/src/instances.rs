//! Asks the instances of a service that run on this host: `<name> health`, whether they are ready, for scripts, containers and
//! people; `<name> metrics`, for their metrics, of which it makes one text for people and Prometheus. And tells them: `<name>
//! drain` and `<name> undrain` take the host out of its balancer's rotation, and back.

use std::fmt::Write as _;
use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::listen::Listen;
use crate::metrics::PATH;
use hitless::Siblings;

/// How long an instance may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The longest head of a request that is read.
const HEAD: u64 = 16 * 1024;

/// The longest answer that is read, in bytes. Whoever gives it may not be what it was.
const LONGEST: u64 = 64 << 20;

/// Whether an instance has answered.
const UP: &str = "hitless_up";

/// Where an instance says whether it is ready.
const READYZ: &str = "/readyz";

/// Asks the instance of the service `name` with this process id, or every living one; where there is none, whoever serves at
/// `listen`. Writes what they answer to `output`, a line each, and says whether all of them are ready.
///
/// # Errors
/// When `output` fails.
pub async fn health(name: &str, listen: &Listen, pid: Option<u32>, output: &mut impl Write) -> io::Result<bool> {
    let siblings = siblings(name);
    let pids = pid.map_or_else(|| siblings.pids().unwrap_or_default(), |pid| vec![pid]);
    if pids.is_empty() {
        return report(output, &listen.to_string(), ask_at(listen)).await;
    }
    let mut healthy = true;
    for pid in pids {
        healthy &= report(output, &format!("process {pid}"), ask_instance(&siblings, pid, READYZ)).await?;
    }
    Ok(healthy)
}

/// Drains the host of the service `name`, or takes it back, and waits until every instance has heard; writes which has not to
/// `output`, and says whether all have.
///
/// A file in the directory that the instances share says so, for those that are started later as well, until the host is taken
/// back or boots anew. Each then says 503 to whoever asks for `/readyz`, and `Connection: close` with its answers; nobody is
/// cut off.
///
/// # Errors
/// When nothing has run here yet, or the directory cannot be written to, or `output` fails.
pub async fn drain(name: &str, drained: bool, output: &mut impl Write) -> io::Result<bool> {
    let siblings = siblings(name);
    siblings
        .set_drained(drained)
        .map_err(|error| io::Error::new(error.kind(), format!("it cannot be told to the instances here: {error}")))?;
    let deadline = Instant::now() + PATIENCE;
    let mut waiting = siblings.pids()?;
    loop {
        let mut unheard = Vec::new();
        for pid in waiting {
            let asked = tokio::time::timeout(PATIENCE, ask_instance(&siblings, pid, READYZ)).await;
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

async fn report(
    output: &mut impl Write,
    whom: &str,
    answer: impl Future<Output = io::Result<(u16, String)>>,
) -> io::Result<bool> {
    let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|late| Err(late.into()));
    match &answer {
        Ok((status, body)) => writeln!(output, "{whom}: {status} {}", body.trim_end().replace(char::is_control, "?"))?,
        Err(error) => writeln!(output, "{whom}: {error}")?,
    }
    Ok(matches!(answer, Ok((200, _))))
}

async fn ask_at(listen: &Listen) -> io::Result<(u16, String)> {
    match listen {
        Listen::Unix(path) => ask(UnixStream::connect(path).await?, READYZ).await,
        Listen::Tcp(address) => {
            // Every address of this host: one of them will do.
            let ip = match address.ip() {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
                ip => ip,
            };
            ask(TcpStream::connect((ip, address.port())).await?, READYZ).await
        }
    }
}

/// The instances of the service `name` that run on this host.
fn siblings(name: &str) -> Siblings {
    Siblings::of_unit().unwrap_or(Siblings::within(Path::new("/run").join(name)))
}

/// Asks one instance among those that share a socket for what it has at `path`: its answer's status and body.
async fn ask_instance(siblings: &Siblings, pid: u32, path: &str) -> io::Result<(u16, String)> {
    ask(siblings.connect(pid).await.map_err(io::Error::other)?, path).await
}

/// The same of whoever is at the other end of `socket`. The answer has no transfer coding, as those of the service itself to what
/// is asked here have none.
async fn ask(mut socket: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> io::Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    socket.take(LONGEST).read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    status.zip(body).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

/// The metrics of every instance of the service `name` on this host, each sample with a label `instance`, in Prometheus' text
/// format. An instance that does not answer is told by `hitless_up`; `None` when there is none.
///
/// # Errors
/// When the instances cannot be looked for.
pub async fn metrics(name: &str) -> io::Result<Option<String>> {
    let told = told(name, PATIENCE).await?;
    let answers: Vec<_> = told.into_iter().map(|(_, instance, text)| (instance, text)).collect();
    Ok((!answers.is_empty()).then(|| merged(&answers)))
}

/// The process id of every instance of the service `name` on this host, what it is called, and its metrics, where it has told
/// them within so much time.
///
/// # Errors
/// When the instances cannot be looked for.
pub async fn told(name: &str, patience: Duration) -> io::Result<Vec<(u32, String, Option<String>)>> {
    let siblings = siblings(name);
    let pids = || match siblings.pids() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(io::Error::new(
            error.kind(),
            format!("only root and the service itself may ask its instances: {error}"),
        )),
        pids => pids,
    };
    let ask = |pid| (pid, instance(name, pid), tokio::spawn(metrics_of(siblings.clone(), pid, patience)));
    let asked: Vec<_> = pids()?.into_iter().map(ask).collect();
    let mut answers = Vec::new();
    for (pid, name, answer) in asked {
        match answer.await.map_err(Into::into).flatten() {
            Ok(text) => answers.push((pid, name, Some(text))),
            // It has left meanwhile.
            Err(_) if !pids()?.contains(&pid) => {}
            Err(_) => answers.push((pid, name, None)),
        }
    }
    Ok(answers)
}

async fn metrics_of(siblings: Siblings, pid: u32, patience: Duration) -> io::Result<String> {
    match tokio::time::timeout(patience, ask_instance(&siblings, pid, PATH)).await?? {
        (200, text) => Ok(text),
        (status, _) => Err(io::Error::other(format!("it answers {status}"))),
    }
}

/// What an instance is called: as its unit, of which a restart makes no other; else by its process id.
fn instance(name: &str, pid: u32) -> String {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let unit = cgroups.lines().find_map(|line| line.rsplit('/').next()?.strip_suffix(".service"));
    unit.filter(|unit| unit.split('@').next() == Some(name)).map_or(pid.to_string(), str::to_owned)
}

/// What instances have in common, with what each has said of it.
struct Family<'a> {
    name: &'a str,
    help: &'a str,
    kind: &'a str,
    samples: String,
}

/// One text of those of several instances: what each family is stands in it once. Instances may be of several releases; where
/// the type of a family differs, the first one's is right.
pub fn merged(answers: &[(String, Option<String>)]) -> String {
    let help = "Whether the instance has told its metrics";
    let mut families = vec![Family { name: UP, help, kind: "gauge", samples: String::new() }];
    for (instance, text) in answers {
        let label = format!("instance=\"{}\"", instance.replace('\\', "\\\\").replace('"', "\\\""));
        let _ = writeln!(families[0].samples, "{UP}{{{label}}} {}", u8::from(text.is_some()));
        let (mut help, mut family) = ("", None);
        for line in text.iter().flat_map(|text| text.lines()) {
            if let Some((_, said)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                help = said;
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                let known = families.iter().position(|family| family.name == name).unwrap_or_else(|| {
                    families.push(Family { name, help, kind, samples: String::new() });
                    families.len() - 1
                });
                family = (families[known].kind == kind).then_some(known);
                help = "";
            } else if let Some(family) = family
                && let Some(end) = line.find(['{', ' '])
            {
                let (name, rest) = line.split_at(end);
                let samples = &mut families[family].samples;
                let _ = match rest.strip_prefix('{') {
                    Some(labels) if !labels.starts_with('}') => writeln!(samples, "{name}{{{label},{labels}"),
                    Some(none) => writeln!(samples, "{name}{{{label}{none}"),
                    None => writeln!(samples, "{name}{{{label}}}{rest}"),
                };
            }
        }
    }
    let mut text = String::new();
    for Family { name, help, kind, samples } in families {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
    }
    text
}

/// Answers the request of HTTP/1.1 that comes by `input`, from systemd's socket (`<name>-metrics.socket`).
///
/// # Errors
/// When nothing can be read or written.
pub async fn http(name: &str, input: impl Read, output: &mut impl Write) -> io::Result<()> {
    let mut lines = io::BufReader::new(input.take(HEAD)).split(b'\n');
    let request = lines.next().transpose()?.unwrap_or_default();
    let request = String::from_utf8_lossy(request.trim_ascii_end());
    // A head is read to its end, or its client might never see the answer.
    let is_whole = lines.map_while(Result::ok).any(|line| line.trim_ascii_end().is_empty());
    let (method, path) = match request.split(' ').collect::<Vec<_>>()[..] {
        [method, target, version] if is_whole && version.starts_with("HTTP/1.") => {
            // Who asks by a proxy may name the host (RFC 9112, section 3.2.2).
            let path =
                target.strip_prefix("http://").map_or(target, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
            (method, path.split('?').next().unwrap_or_default())
        }
        _ => ("", ""),
    };
    let (status, text) = match (method, path) {
        ("", _) => ("400 Bad Request", "this is no request of HTTP/1.1\n".to_owned()),
        (_, path) if path != PATH => ("404 Not Found", format!("there is only {PATH}\n")),
        ("GET" | "HEAD", _) => match metrics(name).await {
            Ok(Some(text)) => ("200 OK", text),
            Ok(None) => ("503 Service Unavailable", "no instance serves here\n".to_owned()),
            Err(error) => ("500 Internal Server Error", format!("instances cannot be found: {error}\n")),
        },
        _ => ("405 Method Not Allowed", "GET it\n".to_owned()),
    };
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let kind = if status == "200 OK" { CONTENT_TYPE } else { "text/plain; charset=utf-8" };
    let length = text.len();
    let body = if method == "HEAD" { "" } else { &text };
    write!(
        output,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n{body}"
    )
}
