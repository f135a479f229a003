//! A cluster that is played: what a kubelet, the endpoint controller and kube-proxy do to the service as a container, in their worst
//! order, and what clients notice of it. No Kubernetes is in it, and nothing that it has to be told by.
//!
//! A pod is the service's own program, with no service manager and an address of its own. Every client connects to one address, from
//! where each connection goes to any of the pods that are endpoints by then, as kube-proxy does it: whoever is connected stays there.
//! What is printed for Kubernetes is what counts: how often a pod is asked for `/readyz`, and how long it has before it is killed. The
//! worst order is that a pod is told to go first, and endpoints change only after as long as the service allows, T/6, less a margin.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::future::try_join_all;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::template;
use lab::http1::{Ask, Connection};
use lab::load::{Kind, Load};
use lab::record::Scenario;
use lab::rehearse::{Outcome, settle};
use lab::stage::setting;
use lab::subject::Subject;
use lab::traffic::Traffic;

/// What to play.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Only what has this in its name.
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
    /// Only what takes little time.
    #[arg(long)]
    pub quick: bool,
    /// In the template: take the template itself, and do not generate a service.
    #[arg(long)]
    pub as_is: bool,
}

/// T, so that all of it is over soon.
const SETTINGS: &str = "shutdown_timeout = \"24s\"\n[limits]\nidle_timeout = \"1h\"\n";

/// How long endpoints take to change: T/6, but for what a busy machine takes to do it; and so long that it cannot go well.
const IN_TIME: Duration = Duration::from_millis(2500);
const TOO_LATE: Duration = Duration::from_secs(8);

/// How many pods.
const REPLICAS: usize = 3;

/// Who asks. A client that asks nothing when its pod goes is closed on then, and has lost nothing: one that is idle, and those that
/// take their time between two requests.
const CLIENTS: [(Kind, u32); 5] =
    [(Kind::PAUSING, 16), (Kind::FRESH, 4), (Kind::SLOW, 4), (Kind::UPLOADING, 4), (Kind::IDLE, 8)];

/// What happens.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// A new pod is ready before an old one is told to go, until all are new.
    Rollout,
    /// All but one are told to go.
    ScaleDown,
    /// One after the other is told to go before the one in its place has started.
    Evictions,
    /// A pod is gone without a word.
    Crash,
}

/// A row of the table.
struct Row {
    name: &'static str,
    act: Act,
    /// How long endpoints take to change.
    delay: Duration,
    /// Something is lost: else it was not what it is to be.
    loses: bool,
}

fn table() -> Vec<Row> {
    let row = |name, act| Row { name, act, delay: IN_TIME, loses: false };
    vec![
        row("rolling update", Act::Rollout),
        row("scale down to one", Act::ScaleDown),
        row("evictions, one at a time", Act::Evictions),
        Row { loses: true, ..row("a pod is killed", Act::Crash) },
        Row { loses: true, delay: TOO_LATE, ..row("rolling update, endpoints too late", Act::Rollout) },
    ]
}

/// Plays what there is, prints a line for each and all of them as a table, and says whether all went as they have to.
pub async fn pods(options: &Options) -> anyhow::Result<Outcome> {
    let only = options.only.as_deref().unwrap_or_default();
    let mut rows = table();
    rows.retain(|row| row.name.contains(only));
    rows.truncate(if options.quick { 1 } else { usize::MAX });
    if rows.is_empty() {
        bail!("nothing is called {only:?}");
    }
    let subject = template::subject(options.as_is).await?;
    let traffic = Traffic::of(&subject)?;
    let folder = tempfile::tempdir()?;
    let image = Image::of(&subject, folder.path(), &traffic).await?;

    let mut table =
        "| | answered | lost | refused | closed while idle | longest wait |\n|---|---:|---:|---:|---:|---:|\n"
            .to_owned();
    let mut passed = 0;
    for row in &rows {
        match play(row, &image, &traffic).await {
            Ok(figures) => {
                println!("  {:<36} {}", row.name, figures.replace(" |", ","));
                table += &format!("| {} | {figures} |\n", row.name);
                passed += 1;
            }
            Err(error) => {
                println!("  {:<36} FAILED\n      {}", row.name, format!("{error:#}").replace('\n', "\n      "))
            }
        }
    }
    println!("\n{table}\n{passed} of {} rows went as they have to.", rows.len());
    Ok(if passed == rows.len() { Outcome::Kept } else { Outcome::Broken })
}

/// Lets it happen, and holds what comes of it to what the module promises; gives the figures.
async fn play(row: &Row, image: &Image, traffic: &Traffic) -> anyhow::Result<String> {
    let cluster = Cluster::start(row.delay).await?;
    let mut pods = try_join_all((0..REPLICAS).map(|_| cluster.pod(image))).await?;
    while cluster.endpoints.list().len() < REPLICAS {
        sleep(Duration::from_millis(50)).await;
    }
    let load = Load::start(cluster.address, traffic, &CLIENTS);
    settle(&load).await?;

    let mut going = JoinSet::new();
    match row.act {
        Act::Rollout => {
            for pod in std::mem::take(&mut pods) {
                pods.push(cluster.pod(image).await?);
                going.spawn(pod.goes());
            }
        }
        Act::ScaleDown => pods.drain(1..).for_each(|pod| drop(going.spawn(pod.goes()))),
        Act::Evictions => {
            for pod in std::mem::take(&mut pods) {
                going.spawn(pod.goes());
                pods.push(cluster.pod(image).await?);
            }
        }
        Act::Crash => {
            let mut pod = pods.pop().context("no pod")?;
            pod.child.kill().await?;
            sleep(row.delay).await;
            pod.leaves();
        }
    }
    while let Some(gone) = going.join_next().await {
        gone?.context("a pod that was told to go")?;
    }
    sleep(row.delay).await;

    let found = load.finish().await;
    let Scenario { answered, lost, refused, closed, .. } = Scenario::all(&found.scenarios);
    let fast: Vec<_> =
        found.scenarios.iter().filter(|seen| [Kind::PAUSING.name, Kind::FRESH.name].contains(&&*seen.name)).collect();
    let longest = fast.iter().map(|seen| seen.slowest_ms).fold(0.0, f64::max);
    // One that is lost with its connection counts as both.
    let figures = format!("{answered} | {lost} | {refused} | {} | {longest:.0} ms", closed.saturating_sub(lost));
    let failures = found.failures.iter().map(|failure| &failure.what).take(5).collect::<Vec<_>>();
    ensure!(row.loses == (lost + refused > 0), "{figures}: {failures:?}");
    ensure!(
        row.loses || fast.iter().all(|seen| seen.closed == 0),
        "connections of clients that ask all the time were closed: {figures}: {failures:?}"
    );
    Ok(figures)
}

/// What pods are made of, and what is printed of their times.
struct Image {
    program: PathBuf,
    settings: PathBuf,
    /// The variable that says where one listens.
    listen: String,
    grace: Duration,
    period: Duration,
    patience: Duration,
    failures: u64,
}

impl Image {
    async fn of(subject: &Subject, folder: &Path, traffic: &Traffic) -> anyhow::Result<Self> {
        let program = subject.build().await?;
        let settings = folder.join("config.toml");
        std::fs::write(&settings, traffic.settings_with(SETTINGS)?.to_string())?;
        let output = Command::new(&program).arg("--config").arg(&settings).arg("kubernetes").output().await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let number = |text: &str, key: &str| -> anyhow::Result<u64> {
            let found = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": ")?.parse().ok());
            found.with_context(|| format!("nothing says {key}"))
        };
        let readiness = text.split_once("readinessProbe:").context("no readiness probe")?.1;
        Ok(Self {
            program,
            settings,
            listen: setting(&subject.name, "listen"),
            grace: Duration::from_secs(number(&text, "terminationGracePeriodSeconds")?),
            period: Duration::from_secs(number(readiness, "periodSeconds")?),
            patience: Duration::from_secs(number(readiness, "timeoutSeconds")?),
            failures: number(readiness, "failureThreshold")?,
        })
    }
}

/// Where clients connect, and the pods that they get to.
struct Cluster {
    address: SocketAddr,
    endpoints: Endpoints,
    _proxy: AbortOnDropHandle<()>,
}

/// Those that kube-proxy knows of, and how long it takes to hear of others.
#[derive(Clone)]
struct Endpoints(Arc<Mutex<Vec<SocketAddr>>>, Duration);

impl Endpoints {
    fn list(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That `address` is one, or is none any more, is known after a while. Never of two changes the second first.
    fn change(&self, address: SocketAddr, is_one: bool) {
        let endpoints = self.clone();
        tokio::spawn(async move {
            sleep(endpoints.1).await;
            let mut list = endpoints.list();
            list.retain(|endpoint| *endpoint != address);
            if is_one {
                list.push(address);
            }
        });
    }

    /// Leads a connection to any of them, as the kernel would: should that one refuse it, so is the client.
    async fn lead(self, mut client: TcpStream) -> std::io::Result<()> {
        let endpoint = fastrand::choice(self.list().iter()).copied();
        let Some(endpoint) = endpoint else { return Ok(()) };
        let mut pod = TcpStream::connect(endpoint).await?;
        client.set_nodelay(true)?;
        pod.set_nodelay(true)?;
        tokio::io::copy_bidirectional(&mut client, &mut pod).await.map(drop)
    }
}

impl Cluster {
    async fn start(delay: Duration) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let endpoints = Endpoints(Arc::default(), delay);
        let known = endpoints.clone();
        let proxy = tokio::spawn(async move {
            // A connection ends with its pod or its client, not with the proxy.
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(known.clone().lead(client));
            }
        });
        Ok(Self { address, endpoints, _proxy: AbortOnDropHandle::new(proxy) })
    }

    /// Starts a pod, and waits until it is ready; that it is an endpoint is known later.
    async fn pod(&self, image: &Image) -> anyhow::Result<Pod> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(&image.program)
            .arg("--config")
            .arg(&image.settings)
            .env(&image.listen, address.to_string())
            .env_remove("NOTIFY_SOCKET")
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("starting a pod")?;
        let (ready, mut is_ready) = watch::channel(false);
        let told = CancellationToken::new();
        let kubelet = probe(address, image.period, image.patience, image.failures, ready);
        let pod = Pod {
            child,
            address,
            grace: image.grace,
            endpoints: self.endpoints.clone(),
            told: told.clone(),
            _kubelet: AbortOnDropHandle::new(tokio::spawn(kubelet)),
        };
        let (endpoints, mut heeded) = (self.endpoints.clone(), is_ready.clone());
        tokio::spawn(told.run_until_cancelled_owned(async move {
            while heeded.changed().await.is_ok() {
                endpoints.change(address, *heeded.borrow());
            }
        }));
        timeout(Duration::from_secs(20), is_ready.wait_for(|ready| *ready)).await.context("a pod is not ready")??;
        Ok(pod)
    }
}

/// What the kubelet does as long as there is the pod: asks it for `/readyz`, and tells whether it is ready.
async fn probe(address: SocketAddr, period: Duration, patience: Duration, most: u64, ready: watch::Sender<bool>) {
    let ask = Ask::get("/readyz", 200, None).last();
    let mut failures = 0;
    loop {
        let asked = async { Connection::open(address, None).await?.exchange(&ask).await };
        failures = if timeout(patience, asked).await.is_ok_and(|answer| answer.is_ok()) { 0 } else { failures + 1 };
        ready.send_if_modified(|ready| {
            let is_ready = failures == 0 || (*ready && failures < most);
            std::mem::replace(ready, is_ready) != is_ready
        });
        // Soon after its start it is asked more often, which spares time here.
        sleep(if *ready.borrow() { period } else { period / 5 }).await;
    }
}

/// A container that runs.
struct Pod {
    child: Child,
    address: SocketAddr,
    grace: Duration,
    endpoints: Endpoints,
    told: CancellationToken,
    _kubelet: AbortOnDropHandle<()>,
}

impl Pod {
    /// The pod is deleted. First it is told so, and then everybody else, who takes a while; it has to end well before it is killed.
    async fn goes(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it has ended by itself")?;
        kill_process(pid, Signal::TERM)?;
        self.leaves();
        match timeout(self.grace, self.child.wait()).await {
            Ok(status) => {
                let status = status?;
                ensure!(status.success(), "it ended with {status}");
                Ok(())
            }
            Err(_) => bail!("it was killed at the end of its grace period, {:?}", self.grace),
        }
    }

    /// It is no endpoint any more, whatever it says of itself.
    fn leaves(&self) {
        self.told.cancel();
        self.endpoints.change(self.address, false);
    }
}
