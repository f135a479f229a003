//! A real browser through restarts on a real systemd: Chromium with the page of `tests/proof/live`, which asks all the time,
//! listens to a stream of events and holds a WebSocket.
//!
//! It is driven by chromedriver, over a handful of WebDriver's requests.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::scene::{Props, Scene};
use crate::template;
use lab::host::Host;
use lab::record::aligned;
use lab::record::{Failure, Scenario};
use lab::rehearse::{Line, Outcome};
use lab::subject::Subject;

/// What to restart, on what.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many restarts.
    #[arg(long, default_value_t = 20)]
    pub restarts: u32,
    /// The suite of the throwaway host: bookworm, trixie.
    #[arg(long, default_value = "bookworm")]
    pub debian: String,
    /// The folder for a picture of the page at the end.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// It is to be new, alone, and to talk to nobody but the service.
const ARGUMENTS: [&str; 12] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-proxy-server",
    "--window-size=1000,680",
];

/// A Chromium with the page open. Dropping it ends it.
#[derive(Debug)]
pub struct Browser {
    client: Client<HttpConnector, Full<Bytes>>,
    /// The session's address at chromedriver.
    session: String,
    /// "Chrome 156.0".
    pub version: String,
    _driver: Child,
}

/// What the page has seen: the object of the same name there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Findings {
    /// Requests answered.
    pub polls: u64,
    /// Requests and streams that failed.
    pub failed: u64,
    /// Connections opened for those requests.
    pub connections: u64,
    /// Processes that answered them.
    pub processes: u64,
    pub events: u64,
    pub lost: u64,
    pub doubled: u64,
    /// Streams of events, one after the other.
    pub streams: u64,
    /// Messages heard from WebSockets.
    pub messages: u64,
    /// WebSockets closed with 1012, service restart.
    pub restarts: u64,
    /// WebSockets closed in any other way.
    pub otherwise: u64,
}

impl Findings {
    /// Fails unless nothing was lost in so many restarts.
    pub fn flawless(&self, restarts: u64) -> anyhow::Result<()> {
        // A connection that was closed under a request is opened again without a word. Those that it keeps anyhow, and
        // some: whenever an interface of this machine comes or goes, such as another host's, the browser opens new ones.
        let connections = 6 + restarts / 4;
        if let Some(Failure { what, .. }) = self.failures(0).next() {
            bail!(what);
        }
        ensure!(self.connections <= connections, "{} connections were opened", self.connections);
        // Else it has not been there.
        ensure!(self.processes == restarts + 1, "{} processes were seen in {restarts} restarts", self.processes);
        Ok(())
    }

    /// What must not happen to anybody.
    pub fn failures(&self, scenario: u16) -> impl Iterator<Item = Failure> + use<> {
        let Self { failed, lost, doubled, otherwise, .. } = *self;
        let failures = [
            (failed, "requests failed"),
            (lost, "events were lost"),
            (doubled, "events were doubled"),
            (otherwise, "WebSockets were closed otherwise than with 1012"),
        ];
        let happened = failures.into_iter().filter(|(count, _)| *count > 0);
        happened.map(move |(count, what)| Failure {
            scenario,
            at: 0.0,
            kind: "lost".into(),
            what: format!("{count} {what}"),
        })
    }

    /// The same as a row among other clients'.
    pub fn scenario(&self) -> Scenario {
        let Self { polls, failed, connections, events, lost, doubled, messages, otherwise, .. } = *self;
        Scenario {
            name: "Chromium".into(),
            about: "A page that asks all the time, with a stream of events and a WebSocket that it opens again.".into(),
            clients: 1,
            answered: polls + events + messages,
            lost: failed + lost + doubled + otherwise,
            opened: connections,
            ..Scenario::default()
        }
    }
}

#[derive(Debug, Deserialize)]
struct Page {
    findings: Findings,
    state: State,
}

/// Whether the stream and the WebSocket are open.
#[derive(Debug, Deserialize)]
struct State {
    stream: bool,
    socket: bool,
}

impl Browser {
    /// Opens the page of the service at `address`.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        // All that they start dies with them, and their files with the file system that is theirs.
        let script = "mount -t tmpfs tmpfs /tmp && exec chromedriver --port=0";
        let mut driver = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script])
            .env_clear()
            .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/tmp")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting chromedriver")?;
        let mut said = BufReader::new(driver.stdout.take().context("its output")?).lines();
        let port = async {
            while let Some(line) = said.next_line().await? {
                if let Some((_, port)) = line.split_once("started successfully on port ") {
                    return Ok(port.trim_end_matches('.').parse::<u16>()?);
                }
            }
            bail!("chromedriver does not start (on Debian: apt-get install chromium chromium-driver)")
        };
        let port = timeout(PATIENCE, port).await.context("chromedriver does not start")??;

        let client = Client::builder(TokioExecutor::new()).build_http();
        let session = format!("http://127.0.0.1:{port}/session");
        let mut browser = Self { client, session, version: String::new(), _driver: driver };
        let only = format!("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {}", address.ip());
        let arguments: Vec<_> = ARGUMENTS.into_iter().chain([&*only]).collect();
        let options = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}});
        let began = browser.ask(Method::POST, "", options).await.context("starting Chromium")?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("not a session of Chromium");
        browser.version = format!("Chromium {}", text(&began["capabilities"]["browserVersion"])?);
        browser.session += &format!("/{}", text(&began["sessionId"])?);
        browser.ask(Method::POST, "/url", json!({"url": format!("http://{address}/")})).await?;
        browser.settled(1).await?;
        Ok(browser)
    }

    /// What the page has seen so far.
    pub async fn findings(&self) -> anyhow::Result<Findings> {
        Ok(self.page().await?.findings)
    }

    /// Waits until the page has seen so many processes, and its stream and its WebSocket are open: what it has seen then.
    pub async fn settled(&self, processes: u64) -> anyhow::Result<Findings> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Page { findings, state } = self.page().await?;
            if findings.processes >= processes && state.stream && state.socket {
                return Ok(findings);
            }
            ensure!(Instant::now() < deadline, "the page does not come back: {state:?}, {findings:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes a picture of the page, a PNG.
    pub async fn picture(&self, path: &Path) -> anyhow::Result<()> {
        let picture = self.ask(Method::GET, "/screenshot", Value::Null).await?;
        let picture = BASE64_STANDARD.decode(picture.as_str().context("no picture")?)?;
        fs::write(path, picture).with_context(|| format!("writing {}", path.display()))
    }

    async fn page(&self) -> anyhow::Result<Page> {
        let script = json!({"script": "return { findings, state }", "args": []});
        let page = self.ask(Method::POST, "/execute/sync", script).await?;
        serde_json::from_value(page).context("the page is not that of tests/proof/live")
    }

    /// One of WebDriver's requests (W3C WebDriver, section 6), and the `value` of its answer.
    async fn ask(&self, method: Method, path: &str, body: Value) -> anyhow::Result<Value> {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let uri = self.session.clone() + path;
        let request = Request::builder().method(method).uri(&uri).body(Full::new(body))?;
        let answer = async {
            let response = self.client.request(request).await?;
            let status = response.status();
            let mut answer: Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
            ensure!(status.is_success(), "{status}: {}", answer["value"]["message"]);
            Ok(answer["value"].take())
        };
        timeout(PATIENCE, answer).await.map_err(Into::into).flatten().with_context(|| format!("chromedriver: {uri}"))
    }
}

/// Puts the example with the page in the place of the service that is deployed on a host.
pub async fn install_example(host: &Host, subject: &Subject) -> anyhow::Result<()> {
    const PLACE: &str = "/opt/lab/live";
    let name = &subject.name;
    host.put(&template::build_example(subject, "live").await?, PLACE, 0o755).await?;
    let drop_in = format!("[Service]\nExecStart=\nExecStart={PLACE}\n");
    host.write(&drop_in, &format!("/etc/systemd/system/{name}.service.d/live.conf")).await?;
    host.run(&format!("systemctl daemon-reload && systemctl restart {name}.service")).await.map(drop)
}

/// Restarts, prints what the page saw, and says whether the promise was kept.
pub async fn browser(options: &Options) -> anyhow::Result<Outcome> {
    let props = Props::get(&options.debian, true).await?;
    let subject = &props.subject;
    let scene = Scene::set(&props).await?;
    install_example(&scene.site.host, subject).await?;
    let browser = Browser::open(scene.site.address()).await?;
    println!("{} {} on {}, {}", subject.name, subject.version, scene.site.host.stage, browser.version);

    let (began, line) = (Instant::now(), Line::default());
    for number in 1..=options.restarts {
        sleep(Duration::from_millis(fastrand::u64(..500))).await;
        scene.site.run("systemctl restart $N.service && systemctl is-active --quiet $N.service").await?;
        let Findings { polls, connections, events, .. } = browser.settled(u64::from(number) + 1).await?;
        let seen = format!("{polls} requests on {connections} connections, {events} events");
        line.show(&format!("restart {number} of {}, {seen}", options.restarts));
    }
    line.end();
    sleep(Duration::from_secs(1)).await;
    let findings = browser.findings().await?;
    let directory = options.out.as_deref().unwrap_or(&subject.target);
    fs::create_dir_all(directory)?;
    let path = directory.join("browser.png");
    browser.picture(&path).await?;

    println!("\n{} restarts in {:.0} s\n\n{}", options.restarts, began.elapsed().as_secs_f64(), table(&findings));
    let kept = findings.flawless(u64::from(options.restarts));
    match &kept {
        Ok(()) => println!("Nothing failed, nothing was lost or doubled, every WebSocket was told why."),
        Err(error) => {
            println!("The promise is broken: {error:#}\nThe end of the journal:\n{}", scene.site.log().await);
        }
    }
    println!("Picture: {}", path.display());
    Ok(if kept.is_ok() { Outcome::Kept } else { Outcome::Broken })
}

/// The figures, for the terminal.
pub fn table(findings: &Findings) -> String {
    let Findings { polls, failed, connections, events, lost, doubled, streams, messages, restarts, otherwise, .. } =
        findings;
    let row = |name: &str, count: &u64, of: String| [name.to_owned(), count.to_string(), of];
    aligned(&[
        row("requests answered", polls, format!("{failed} failed, {connections} connections opened")),
        row("events", events, format!("{lost} lost, {doubled} doubled, {streams} streams")),
        row("WebSocket messages", messages, format!("{restarts} closed with 1012, {otherwise} otherwise")),
    ])
}
