//! `<name> health`: asks what runs on this host whether it is ready, for scripts, containers and people.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::config::{Config, Listen};
use hitless::Siblings;

/// How long an instance may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Where an instance says whether it is ready.
const READYZ: &str = "/readyz";

/// Asks the instance with this process id, or every living one; where there is none, whoever serves at `listen`. Writes
/// what they answer to `output`, a line each, and says whether all of them are ready.
///
/// # Errors
/// When `output` fails.
pub async fn health(config: &Config, pid: Option<u32>, output: &mut impl Write) -> io::Result<bool> {
    let siblings = siblings();
    let pids = pid.map_or_else(|| siblings.pids().unwrap_or_default(), |pid| vec![pid]);
    if pids.is_empty() {
        return report(output, &config.listen.to_string(), ask_at(&config.listen)).await;
    }
    let mut healthy = true;
    for pid in pids {
        healthy &= report(output, &format!("process {pid}"), ask_instance(&siblings, pid, READYZ)).await?;
    }
    Ok(healthy)
}

/// The instances that run on this host.
pub(crate) fn siblings() -> Siblings {
    let run = Path::new("/run").join(env!("CARGO_PKG_NAME"));
    Siblings::of_unit().unwrap_or(Siblings::within(run))
}

async fn report(
    output: &mut impl Write,
    whom: &str,
    answer: impl Future<Output = io::Result<(u16, String)>>,
) -> io::Result<bool> {
    let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|late| Err(late.into()));
    match &answer {
        Ok((status, body)) => writeln!(output, "{whom}: {status} {}", body.trim_end())?,
        Err(error) => writeln!(output, "{whom}: {error}")?,
    }
    Ok(matches!(answer, Ok((200, _))))
}

/// Asks one instance among those that share a socket for what it has at `path`.
pub(crate) async fn ask_instance(siblings: &Siblings, pid: u32, path: &str) -> io::Result<(u16, String)> {
    ask(siblings.connect(pid).await.map_err(io::Error::other)?, path).await
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

/// `GET`: the answer's status and body. The service's own answers to what is asked here have no transfer coding.
async fn ask(mut socket: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> io::Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    status.zip(body).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}
