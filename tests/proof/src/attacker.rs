//! An attack: clients that do what none should, in a process of their own.
//!
//! They are so many, for so long, on addresses of their own, so that well-behaved ones do not run out of ports, and in a
//! process that is nice to others: what is to be seen is what they cost the service, not what they cost this machine.
//! It ends when its standard input does, with whoever started it.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::attack;
use crate::frames;

/// Connections being opened at the same time.
const OPENING: usize = 64;

/// Addresses of this machine that an attack comes from.
const ADDRESSES: usize = 200;

/// What is printed when the attack is over and its connections are still held.
const HOLDING: &str = "holding";

/// What the clients of an attack do.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    /// How many there are at the same time; each connects again when its connection has ended.
    pub clients: usize,
    /// What a connection begins with.
    pub first: fn() -> Vec<u8>,
    /// What follows.
    pub then: Option<Rounds>,
    pub reads: Reads,
    /// When a client leaves by itself, half of them with a reset.
    pub leaves_after: Option<Duration>,
}

/// What is said again and again.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// Before each.
    pub pause: Duration,
    pub says: fn(u32) -> Vec<u8>,
}

/// What a client reads of its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    All,
    /// A little, now and then.
    Sips,
    Nothing,
}

/// Be the attack of that name.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    pub name: String,
    #[arg(long)]
    pub address: SocketAddr,
    #[arg(long)]
    pub seconds: f64,
}

/// An attack that is under way.
#[derive(Debug)]
pub struct Attack {
    process: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Attack {
    pub fn start(name: &str, address: SocketAddr, time: Duration) -> anyhow::Result<Self> {
        let mut process = Command::new("nice")
            .args(["-n", "10"])
            .arg(std::env::current_exe()?)
            .args(["attacker", name])
            .args(["--address", &address.to_string()])
            .args(["--seconds", &time.as_secs_f64().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting the attack")?;
        let said = BufReader::new(process.stdout.take().context("its output is piped")?).lines();
        Ok(Self { process, said })
    }

    /// Waits until nothing more is sent. The connections that it has stay open.
    pub async fn over(&mut self) -> anyhow::Result<()> {
        let line = self.said.next_line().await?;
        anyhow::ensure!(line.as_deref() == Some(HOLDING), "the attack ended too early: {line:?}");
        Ok(())
    }

    /// Ends it, and tells what its clients got: how many connections fared how.
    pub async fn end(mut self) -> anyhow::Result<BTreeMap<String, u64>> {
        drop(self.process.stdin.take());
        let line = self.said.next_line().await?.context("the attack says nothing")?;
        self.process.wait().await?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// Attacks, holds what it has until standard input ends, and prints what the clients got.
pub async fn attacker(options: &Options) -> anyhow::Result<()> {
    let script = attack::script(&options.name).with_context(|| format!("no attack is called {:?}", options.name))?;
    let over = Instant::now() + Duration::from_secs_f64(options.seconds);
    let all = Arc::new(All {
        script,
        address: options.address,
        over,
        let_go: CancellationToken::new(),
        opening: Semaphore::new(OPENING),
        got: Mutex::default(),
    });
    let mut clients = JoinSet::new();
    for number in 0..script.clients {
        clients.spawn(all.clone().client(number));
    }
    sleep_until(over).await;
    println!("{HOLDING}");
    tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut vec![])).await??;
    all.let_go.cancel();
    clients.join_all().await;
    println!("{}", serde_json::to_string(&*all.got.lock().unwrap_or_else(PoisonError::into_inner))?);
    Ok(())
}

/// What all clients of an attack share.
struct All {
    script: Script,
    address: SocketAddr,
    /// When the last byte is sent.
    over: Instant,
    let_go: CancellationToken,
    opening: Semaphore,
    got: Mutex<BTreeMap<String, u64>>,
}

impl All {
    async fn client(self: Arc<Self>, number: usize) {
        while Instant::now() < self.over {
            let mut seen = Seen::default();
            tokio::select! {
                () = self.connection(number, &mut seen) => {}
                () = self.let_go.cancelled() => seen.note("still open"),
            }
            let mut got = self.got.lock().unwrap_or_else(PoisonError::into_inner);
            *got.entry(seen.happened.join(", ")).or_default() += 1;
        }
    }

    /// A connection, from its beginning to its end.
    async fn connection(&self, number: usize, seen: &mut Seen) {
        let opened = {
            let _turn = self.opening.acquire().await;
            self.open(number).await
        };
        let Ok(mut socket) = opened else {
            seen.note("not connected");
            return sleep(Duration::from_millis(20)).await;
        };
        let leaves = self.script.leaves_after;
        let (reader, writer) = socket.split();
        let ends = async {
            match leaves {
                Some(after) => sleep(after).await,
                None => std::future::pending().await,
            }
        };
        let left = tokio::select! {
            () = self.read(reader, seen) => false,
            () = self.write(writer) => false,
            () = ends => true,
        };
        if left {
            seen.note("left");
            if fastrand::bool() {
                let _ = socket.set_zero_linger();
            }
        } else if self.script.reads == Reads::Nothing {
            seen.note("cut");
        }
    }

    async fn open(&self, number: usize) -> io::Result<TcpStream> {
        let [a, b, c, _] = Ipv4Addr::LOCALHOST.octets();
        let from = Ipv4Addr::new(a, b, c, 2 + (number % ADDRESSES) as u8);
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((from, 0).into())?;
        if self.script.reads != Reads::All {
            // One that fills at once.
            socket.set_recv_buffer_size(4096)?;
        }
        let socket = socket.connect(self.address).await?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    /// Sends all there is to send. Ends only where nobody reads, who would notice that the connection has ended.
    async fn write(&self, mut writer: impl AsyncWriteExt + Unpin) {
        let send = async {
            writer.write_all(&(self.script.first)()).await?;
            if let Some(Rounds { pause, says }) = self.script.then {
                for round in 0.. {
                    if !pause.is_zero() {
                        sleep(pause).await;
                    }
                    if Instant::now() >= self.over {
                        break;
                    }
                    writer.write_all(&says(round)).await?;
                }
            }
            Ok::<_, io::Error>(())
        };
        if send.await.is_ok() || self.script.reads != Reads::Nothing {
            std::future::pending().await
        }
    }

    /// Reads until the end.
    async fn read(&self, mut reader: impl AsyncReadExt + Unpin, seen: &mut Seen) {
        let mut buffer = vec![0; if self.script.reads == Reads::Sips { 512 } else { 64 * 1024 }];
        loop {
            match self.script.reads {
                Reads::Nothing => std::future::pending().await,
                Reads::Sips if Instant::now() >= self.over => std::future::pending().await,
                Reads::Sips => sleep(Duration::from_millis(300)).await,
                Reads::All => {}
            }
            match reader.read(&mut buffer).await {
                Ok(0) => return seen.note("end of file"),
                Ok(count) => seen.read(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return seen.note("reset"),
                Err(error) => return seen.note(&error.to_string()),
            }
        }
    }
}

/// What happened to a connection, each thing once.
#[derive(Debug, Default)]
struct Seen {
    happened: Vec<String>,
    /// It speaks HTTP/1.1.
    answered: bool,
    unread: Vec<u8>,
}

impl Seen {
    fn note(&mut self, what: &str) {
        if !self.happened.iter().any(|other| other == what) {
            self.happened.push(what.to_owned());
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        const VERSION: &[u8] = b"HTTP/1.1 ";
        if self.answered {
            return;
        }
        self.unread.extend_from_slice(bytes);
        if let Some(status) = self.unread.strip_prefix(VERSION) {
            let Some(status) = status.get(..3) else { return };
            let status = String::from_utf8_lossy(status).into_owned();
            self.answered = true;
            return self.note(&status);
        }
        if self.unread.len() >= VERSION.len() {
            for frame in frames::take_frames(&mut self.unread) {
                if let Some(what) = frame.describe() {
                    self.note(&what);
                }
            }
        }
    }
}
