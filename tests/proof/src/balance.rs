//! What clients behind a load balancer notice of a restart, a stop and a reboot: before one host, and before three.
//!
//! HAProxy asks for `/readyz` and never retries. Whatever is in flight when it happens, nobody may lose a request, and who
//! merely waits for a client that stands still may keep nobody else waiting for long. Only where nobody is left to serve,
//! clients are turned away, by the balancer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::balancer::{Balancer, Balancers, Program};
use crate::kinds;
use crate::scene::{Props, Scene};
use lab::http1::{Ask, Connection, Fault};
use lab::load::{Findings, Kind, Load};
use lab::rehearse::{Outcome, settle};
use lab::traffic::{Request, Traffic};

/// What to try, on what.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The suite of the throwaway hosts: bookworm, trixie.
    #[arg(long, default_value = "bookworm")]
    pub debian: String,
    /// Only what has this in its name.
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
    /// Only what takes little time, and one of each kind.
    #[arg(long)]
    pub quick: bool,
    /// In the template: take the template itself, and do not generate a service.
    #[arg(long)]
    pub as_is: bool,
}

/// T is 30 s as it is by default: a calm moment is waited for up to 10 s, a lame duck serves for 5 s.
const SETTINGS: &str = r#"
[limits]
idle_timeout = "1h"
"#;

/// The setting of that example.
const SLOW: &str = "ping_delay";

/// The longest that anybody may wait for what merely stands still.
const MOMENT: Duration = Duration::from_secs(2);

/// Where handlers are at work without end: T/2, the longest that one of them may take.
const HANDLERS: Duration = Duration::from_secs(15);

/// Where a host is gone without a word: HAProxy asks elsewhere after 3 s. The others wait for an answer that was on its way
/// until it comes, or for T/2 and 5 s.
const POWER_LOSS: Duration = Duration::from_secs(5);
const UNNOTICED: Duration = Duration::from_secs(20);

/// What happens to the first host, before how many it is done, and what is in flight there.
fn table() -> Vec<Row> {
    const RESTART: Act = Act::Script("systemctl restart $N.service");
    const STOP: Act = Act::Script("systemctl stop $N.service");
    const STOP_BOTH: Act = Act::Script("systemctl stop $N.socket $N.service");
    const KILL: Act = Act::Script("systemctl kill --signal=SIGKILL $N.service; sleep 2");
    // Out of the rotation, nobody but the balancer's checks is answered any more; then it is restarted, and taken back.
    const DRAIN: Act = Act::Script(
        r#"
        program=/opt/$N/current/$N
        asked() {
            $program metrics | grep -v 'http_route="/readyz"' |
                awk '/^http_server_request_duration_seconds_count/ { asked += $NF } END { print asked + 0 }'
        }
        $program drain
        sleep 6
        before=$(asked)
        systemctl restart $N.service
        sleep 1
        [ "$before" -gt 0 ] && [ "$(asked)" = 0 ] || { echo "$before, then $(asked) were answered"; exit 1; }
        $program undrain
        sleep 3
        [ "$(asked)" -gt 0 ] || { echo "it is not taken back"; exit 1; }"#,
    );
    // Whatever it says to the balancer is dropped.
    const CUT_OFF: Act = Act::Script(
        "peer=$(ip -4 neigh | cut -d ' ' -f 1)
        ip route add blackhole \"$peer\"; sleep 8; ip route del blackhole \"$peer\"; sleep 2",
    );
    vec![
        row("restart, slow requests in flight", 1, RESTART).with(&[Slow]).slow(),
        row("restart, stalled uploads in flight", 1, RESTART).with(&[Stalled]).slow(),
        row("restart, both in flight", 1, RESTART).with(&[Slow, Stalled]),
        row("restart, uploads that go on in flight", 1, RESTART).with(&[Trickling]).slow(),
        row("restart, slow requests without end", 1, RESTART)
            .with(&[Endless, Stalled])
            .turns_away()
            .within(HANDLERS)
            .slow(),
        row("stop of service and socket", 1, STOP_BOTH).with(&[Slow]).ends().slow(),
        row("reboot", 1, Act::Reboot).with(&[Slow]).ends().slow(),
        row("three instances become one", 1, Act::Script("systemctl stop $N@2 $N@3"))
            .given("systemctl start $N@2 $N@3")
            .with(&[Slow, Stalled]),
        // Not all at once. When an instance ends, systemd listens at the socket itself until somebody comes, and closes
        // whoever comes while a stop of the socket waits for the service.
        row(
            "three instances become none",
            1,
            Act::Script("systemctl stop $N@2 $N@3; sleep 1; systemctl stop $N.socket $N.service"),
        )
        .given("systemctl start $N@2 $N@3")
        .with(&[Slow])
        .ends()
        .slow(),
        row("restart, slow requests in flight", 3, RESTART).with(&[Slow]).slow(),
        row("restart, stalled uploads in flight", 3, RESTART).with(&[Stalled]).slow(),
        row("restart, both in flight", 3, RESTART).with(&[Slow, Stalled]),
        row("restart, slow requests without end", 3, RESTART).with(&[Endless, Stalled]).slow(),
        row("stop of the service", 3, STOP).with(&[Slow]).ends().slow(),
        row("stop of service and socket", 3, STOP_BOTH).with(&[Slow, Stalled]).ends(),
        row("reboot", 3, Act::Reboot).with(&[Slow]).ends(),
        row("large uploads, answered early", 3, Act::Uploads).behind(Program::Nginx),
        // As the service prints it, with retries. Where slow requests come without end, no host is ready.
        row("restart, slow requests without end", 1, RESTART)
            .with(&[Endless, Stalled])
            .printed()
            .within(HANDLERS)
            .slow(),
        row("stop of service and socket", 3, STOP_BOTH).with(&[Slow, Stalled]).ends().printed(),
        row("drained, restarted, taken back", 3, DRAIN).with(&[Slow, Stalled]),
        row("drained, restarted, taken back", 3, DRAIN).with(&[Slow]).printed().slow(),
        row("kill -9", 3, KILL).printed().ends().may_lose(),
        row("cut off for 8 s", 3, CUT_OFF).printed().ends().may_lose().within(POWER_LOSS),
        row("restart, both in flight", 3, RESTART).with(&[Slow, Stalled]).behind(Program::Nginx).printed().slow(),
        row("stop of service and socket", 3, STOP_BOTH)
            .with(&[Slow])
            .ends()
            .behind(Program::Nginx)
            .printed()
            .may_lose(),
        row("cut off for 8 s", 3, CUT_OFF).behind(Program::Nginx).printed().ends().may_lose().within(UNNOTICED).slow(),
        row("restart, both in flight", 1, RESTART).with(&[Slow, Stalled]).behind(Program::Caddy).printed().slow(),
        row("restart, both in flight", 3, RESTART).with(&[Slow, Stalled]).behind(Program::Caddy).printed().slow(),
        row("stop of service and socket", 3, STOP_BOTH).with(&[Slow]).ends().behind(Program::Caddy).printed(),
        row("cut off for 8 s", 3, CUT_OFF).behind(Program::Caddy).printed().ends().may_lose().within(UNNOTICED).slow(),
    ]
}

use InFlight::{Endless, Slow, Stalled, Trickling};

/// Who asks through the balancer: on kept connections every 25 ms, and on a new one each time.
const CLIENTS: u32 = 12;
const NEWCOMERS: u32 = 1;

/// Who asks the only host itself, where it goes on serving.
const DIRECT: [(Kind, u32); 2] = [(Kind::PAUSING, 8), (Kind::IDLE, 8)];

/// What nothing is to be left of, for the next row.
const MENDED: &str = "systemctl start $N.socket $N.service && systemctl stop $N@2 $N@3";

/// A row of the table.
struct Row {
    name: &'static str,
    hosts: usize,
    program: Program,
    given: &'static str,
    in_flight: &'static [InFlight],
    act: Act,
    /// The host serves nobody afterwards.
    ends: bool,
    /// For a while there is nobody to ask.
    turns_away: bool,
    /// What clients with a request in flight lose, of which each has one, may be lost.
    may_lose: bool,
    /// The balancer is set up as the service prints it.
    printed: bool,
    within: Duration,
    slow: bool,
}

enum Act {
    Script(&'static str),
    Reboot,
    /// Of bodies that are larger than the service allows, and of others to a route that it does not have.
    Uploads,
}

/// What the first host is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InFlight {
    /// Slow requests.
    Slow,
    /// Uploads of which nothing more comes.
    Stalled,
    /// Uploads of which a byte comes now and then.
    Trickling,
    /// Slow requests, one after the other.
    Endless,
}

fn row(name: &'static str, hosts: usize, act: Act) -> Row {
    Row {
        name,
        hosts,
        program: Program::Haproxy,
        given: "",
        in_flight: &[],
        act,
        ends: false,
        turns_away: false,
        may_lose: false,
        printed: false,
        within: MOMENT,
        slow: false,
    }
}

impl Row {
    fn with(self, in_flight: &'static [InFlight]) -> Self {
        Self { in_flight, ..self }
    }

    fn given(self, given: &'static str) -> Self {
        Self { given, ..self }
    }

    fn behind(self, program: Program) -> Self {
        Self { program, ..self }
    }

    /// Where it is the only host, there is nobody left.
    fn ends(self) -> Self {
        Self { ends: true, turns_away: self.hosts == 1, ..self }
    }

    fn turns_away(self) -> Self {
        Self { turns_away: true, ..self }
    }

    fn may_lose(self) -> Self {
        Self { may_lose: true, ..self }
    }

    fn printed(self) -> Self {
        Self { printed: true, ..self }
    }

    fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    fn slow(self) -> Self {
        Self { slow: true, ..self }
    }

    fn title(&self) -> String {
        let before = if self.hosts == 1 { "one host" } else { "three hosts" };
        let printed = if self.printed { ", as printed," } else { "" };
        format!("{}{printed} before {before}: {}", self.program.name(), self.name)
    }
}

/// What it did cost.
#[derive(Debug, Default)]
struct Seen {
    answered: u64,
    lost: u64,
    /// Told by the balancer that there is nobody to ask.
    turned_away: u64,
    /// The longest that a fast request waited, in milliseconds.
    longest: f64,
    marked_down: u64,
}

/// Tries the rows, prints a line for each and all of them as a table, and says whether all went as they have to.
pub async fn balance(options: &Options) -> anyhow::Result<Outcome> {
    let only = options.only.as_deref().unwrap_or_default();
    let rows: Vec<_> =
        table().into_iter().filter(|row| row.title().contains(only) && !(options.quick && row.slow)).collect();
    let Some(hosts) = rows.iter().map(|row| row.hosts).max() else { bail!("nothing is called {only:?}") };
    let props = Props::get(&options.debian, options.as_is).await?;
    // So long takes a slow request of the template's own example.
    let has_example = Traffic::load(&props.subject.traffic())?.settings.contains_key(SLOW);
    let settings = if has_example { format!("{SLOW} = \"5s\"\n{SETTINGS}") } else { SETTINGS.to_owned() };
    let scenes = join_all((0..hosts).map(|_| Scene::set_with(&props, &settings)));
    let (scenes, balancers) = tokio::join!(scenes, Balancers::boot(&props.image));
    let mut scenes = scenes.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let balancers = balancers?;
    println!("\n{} rows, {} hosts and a balancer ({})\n", rows.len(), hosts, scenes[0].site.host.stage);

    let mut table =
        "| | answered | lost | turned away | longest wait | marked down |\n|---|---:|---:|---:|---:|---:|\n".to_owned();
    let mut passed = 0;
    for row in &rows {
        match happen(row, &mut scenes, &balancers).await {
            Ok(Seen { answered, lost, turned_away, longest, marked_down }) => {
                let figures = format!("{answered} | {lost} | {turned_away} | {longest:.0} ms | {marked_down}");
                println!("  {:<64}  {}", row.title(), figures.replace(" |", ","));
                table += &format!("| {} | {figures} |\n", row.title());
                passed += 1;
            }
            Err(error) => println!(
                "  {:<64}  FAILED\n      {}",
                row.title(),
                format!("{error:#}\n--- the end of the journal:\n{}", scenes[0].site.log().await)
                    .replace('\n', "\n      ")
            ),
        }
        scenes[0].site.run(MENDED).await.context("putting it right again")?;
    }
    println!("\n{table}\n{passed} of {} rows cost nobody more than they may.", rows.len());
    Ok(if passed == rows.len() { Outcome::Kept } else { Outcome::Broken })
}

/// Lets it happen, and holds what comes of it to what the module promises.
async fn happen(row: &Row, scenes: &mut [Scene], balancers: &Balancers) -> anyhow::Result<Seen> {
    scenes[0].site.run(row.given).await.context("before")?;
    let servers: Vec<_> = scenes[..row.hosts].iter().map(|scene| scene.site.address()).collect();
    let service = scenes[0].props.good.clone();
    let balancer = balancers.start(row.program, &servers, row.printed.then_some(&*service)).await?;
    let clients = [(row.program.clients(), CLIENTS), (Kind::FRESH, NEWCOMERS)];
    let through = Load::start(balancer.place(), &scenes[0].traffic, &clients);
    let direct = Load::start(servers[0], &scenes[0].traffic, if row.hosts == 1 && !row.ends { &DIRECT } else { &[] });
    for load in [&through, &direct] {
        settle(load).await?;
        load.restarts_begin();
    }
    let flight = Flight::begin(row.in_flight, &scenes[0]).await?;

    let from = [&through, &direct].map(Load::clock);
    let done = act(&row.act, &mut scenes[0], &balancer).await;
    // What a balancer has yet to notice.
    sleep(Duration::from_secs(3)).await;
    let kinds = clients.iter().chain(&DIRECT).map(|(kind, _)| *kind).collect::<Vec<_>>();
    let slowest = [&through, &direct]
        .into_iter()
        .zip(from)
        .map(|(load, from)| load.slowest_between(&kinds, from, load.clock()).1);
    let longest = slowest.fold(0.0, f64::max);
    let flight = flight.end().await;
    let (through, direct) = (through.finish().await, direct.finish().await);
    let marked_down = match row.program {
        Program::Haproxy => balancer.marked_down().await?,
        Program::Nginx | Program::Caddy => 0,
    };
    let seen = Seen { longest, marked_down, ..Seen::of(&through) };

    done?;
    flight.context("who was in flight")?;
    direct.spotless().context("who asks the host itself")?;
    let failures = || through.failures.iter().map(|failure| &failure.what).take(5).collect::<Vec<_>>();
    let may_lose = if row.may_lose { u64::from(CLIENTS + NEWCOMERS) } else { 0 };
    ensure!(
        seen.lost <= may_lose && (row.turns_away || seen.turned_away == 0),
        "{seen:?}: {:?}\nThe balancer says:\n{}",
        failures(),
        balancer.said().await
    );
    ensure!(longest <= row.within.as_secs_f64() * 1e3, "somebody waited too long: {seen:?}");
    Ok(seen)
}

impl Seen {
    /// What the balancer's clients saw. Of each kind the failures that are told in full come first; those beyond are as
    /// those are.
    fn of(findings: &Findings) -> Self {
        let mut seen = Self::default();
        for (index, scenario) in findings.scenarios.iter().enumerate() {
            let theirs = findings.failures.iter().filter(|failure| usize::from(failure.scenario) == index);
            let lost = theirs.filter(|failure| !failure.what.contains("No server is av")).count() as u64;
            let failed = scenario.lost + scenario.refused + scenario.closed;
            seen.answered += scenario.answered;
            seen.lost += lost;
            seen.turned_away += failed - lost;
        }
        seen
    }
}

async fn act(act: &Act, scene: &mut Scene, balancer: &Balancer<'_>) -> anyhow::Result<()> {
    match act {
        Act::Script(script) => scene.site.run(script).await.map(drop),
        Act::Reboot => {
            scene.site.run("systemctl reboot").await?;
            scene.site.host.rebooted().await
        }
        Act::Uploads => uploads(scene, balancer).await,
    }
}

/// Each gets the answer that the service gave it, and not that of a balancer which could not send all of it.
async fn uploads(scene: &Scene, balancer: &Balancer<'_>) -> anyhow::Result<()> {
    const TOO_LARGE: (usize, usize, u16) = (4, 30_000_000, 413);
    const NOWHERE: (usize, usize, u16) = (30, 1_000_000, 404);
    let route = scene.traffic.upload.first().context("no route takes uploads")?;
    for (request, (times, size, status)) in [
        (route.upload(vec![0; TOO_LARGE.1]), TOO_LARGE),
        (Request::echo("/none", NOWHERE.2, vec![0; NOWHERE.1]), NOWHERE),
    ] {
        let ask = Ask::of(Request { status, body: None, ..request });
        for _ in 0..times {
            let mut connection = Connection::open(balancer.place(), None).await.map_err(as_error)?;
            connection.exchange(&ask).await.map_err(as_error).with_context(|| format!("{size} bytes"))?;
        }
    }
    Ok(())
}

/// What is in flight.
struct Flight {
    slow: JoinSet<Result<(), Fault>>,
    uploads: JoinSet<std::io::Result<()>>,
    endless: Load,
}

impl Flight {
    /// How many of each kind.
    const EACH: u32 = 4;

    async fn begin(kinds: &[InFlight], scene: &Scene) -> anyhow::Result<Self> {
        let address = scene.site.address();
        let endless: &[_] = if kinds.contains(&Endless) { &[(kinds::RELENTLESS, Self::EACH)] } else { &[] };
        let mut flight = Self {
            slow: JoinSet::new(),
            uploads: JoinSet::new(),
            endless: Load::start(address, &scene.traffic, endless),
        };
        let route = scene.traffic.slow.first().context("no slow route")?;
        let upload = scene.traffic.upload.first().context("no route takes uploads")?;
        for kind in kinds.iter().flat_map(|kind| [*kind; Self::EACH as usize]) {
            match kind {
                Slow => {
                    let ask = Ask::of(route.request());
                    flight.slow.spawn(async move {
                        let mut connection = Connection::open(address, None).await?;
                        connection.exchange(&ask).await.map(drop)
                    });
                }
                Stalled => drop(flight.uploads.spawn(upload_half(address, upload.request().path, Duration::MAX))),
                Trickling => {
                    drop(flight.uploads.spawn(upload_half(address, upload.request().path, Duration::from_secs(1))))
                }
                Endless => {}
            }
        }
        settle(&flight.endless).await?;
        sleep(Duration::from_millis(500)).await;
        Ok(flight)
    }

    /// Who asked for something has to be answered. Uploads that have no end are not.
    async fn end(mut self) -> anyhow::Result<()> {
        while let Some(slow) = self.slow.join_next().await {
            slow?.map_err(as_error)?;
        }
        self.endless.finish().await.spotless()
    }
}

/// Sends the first half of an upload, and then a byte now and then.
async fn upload_half(address: SocketAddr, path: String, pause: Duration) -> std::io::Result<()> {
    let mut socket = TcpStream::connect(address).await?;
    let head = format!("POST {path} HTTP/1.1\r\nHost: lab\r\nContent-Length: 2000\r\n\r\n");
    socket.write_all(&[head.as_bytes(), &[0; 1000]].concat()).await?;
    for _ in 0..900 {
        sleep(pause).await;
        socket.write_all(&[0]).await?;
    }
    Ok(())
}

fn as_error(fault: Fault) -> anyhow::Error {
    anyhow::anyhow!("{fault:?}")
}
