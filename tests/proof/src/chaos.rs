//! Whatever can go wrong with a service that runs, tried: a table, and what every row of it is held to.
//!
//! Each fault happens under load, on a host where the service runs, and its price is told in figures: requests lost,
//! connects refused, connections closed, and the longest that a fast request waited. Most faults may cost nothing. One
//! that ends the process may cost what the process held, once, and refuses nobody. Afterwards the service runs by itself,
//! and the next `systemctl restart` costs nothing and leaves nothing in the descriptor store.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::future::LocalBoxFuture;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::faults::EVERYBODY;
use crate::hurts;
use crate::release;
use crate::scene::{Happening, Props, Scene, try_all};
use lab::http1::{Ask, Connection};
use lab::load::{Findings, Kind, Load};
use lab::rehearse::Outcome;

use Costs::{Connections, Idle, Nothing};

/// Which faults to try, on what.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The suite of the throwaway hosts: bookworm, trixie.
    #[arg(long, default_value = "bookworm")]
    pub debian: String,
    /// Only the faults whose names have this in them.
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
    /// How many hosts to try them on, side by side.
    #[arg(long, default_value_t = 2)]
    pub hosts: usize,
    /// Only those that take little time.
    #[arg(long)]
    pub quick: bool,
    /// Only what the README sets side by side: what is hot, a restart and a deploy, and what is cold.
    #[arg(long, conflicts_with = "quick")]
    pub cold: bool,
    /// In the template: take the template itself, and do not generate a service.
    #[arg(long)]
    pub as_is: bool,
}

/// T is short, where it has to be waited for; but clients who dawdle have T/6 for a head, on a busy machine too. A client
/// that is idle is so all the time.
const SETTINGS: &str = r#"
shutdown_timeout = "9s"
[limits]
idle_timeout = "1h"
[unit]
start_timeout = "5s"
"#;

/// What can go wrong, one after the other. `$N` is the service's name, `$PID` its process.
fn table() -> Vec<Fault> {
    vec![
        // The process dies.
        hurt("kill -9 in service", hurts::killed)
            .costs(Connections)
            .so("its connections are gone; who connects waits for the restart"),
        hurt("kill -9 while it waits for a calm moment", hurts::killed_while_waiting)
            .costs(Connections)
            .so("the same: nothing was handed over yet")
            .slow(),
        hurt("kill -9 with connections paused, requests in flight", hurts::killed_while_taking)
            .costs(Connections)
            .so("the same: the queue is in the store, but empty")
            .slow(),
        hurt("kill -9 at any moment of a restart", hurts::killed_at_any_moment)
            .under(NOBODY)
            .so("packed or not adopted yet: nothing is lost; else the process' own connections")
            .within(20)
            .slow(),
        hurt("kill -9 before the connections are adopted", hurts::killed_before_adoption)
            .so("the queue waits in the store for the next start")
            .within(15),
        hurt("watchdog expires (2 s)", hurts::watchdog)
            .costs(Connections)
            .so("systemd kills it and starts another")
            .within(15),
        hurt("memory limit reached", hurts::out_of_memory)
            .costs(Connections)
            .so("the kernel kills it, systemd starts another")
            .within(15)
            .slow(),
        hurt("stopped for ever while it leaves", hurts::stopped_while_leaving)
            .costs(Connections)
            .so("systemd kills it after TimeoutStopSec, here 12 s")
            .within(30)
            .slow(),
        // A release is no good, and the old one is put back.
        hurt("a release that exits at once", |scene| hurts::bad_release(scene, release::ENDS))
            .so("the connections wait in the store; when the old one is back, all are answered")
            .within(20),
        hurt("a release that never gets ready", |scene| hurts::bad_release(scene, release::SILENT))
            .so("the same, after start_timeout, here 5 s")
            .within(30)
            .slow(),
        hurt("a release that crashes after it is ready", hurts::crashing_release)
            .costs(Connections)
            .deaths(3)
            .so("what it had adopted goes with it; who connects waits")
            .within(20),
        hurt("a bad configuration", hurts::bad_configuration).so("as with the release that exits at once").within(20),
        // The descriptor store does not keep the connections.
        hurt("the descriptor store is full", hurts::store_full)
            .under(NOBODY)
            .so("no handover: answers say `Connection: close`, idle connections are closed")
            .within(10),
        act("the descriptor store is switched off", "for i in 1 2 3; do systemctl restart $N.service; done")
            .given(&with("FileDescriptorStoreMax=0"))
            .mended(WITHOUT)
            .costs(Idle)
            .deaths(3)
            .so("the same, here three times")
            .within(10),
        hurt("the service manager does not listen to it", hurts::not_listened_to)
            .under(NOBODY)
            .so("the same")
            .within(10)
            .slow(),
        hurt("a queue of an unknown version", hurts::unknown_queue)
            .under(NOBODY)
            .so("its connections are closed and that is logged; the others' queue is opened"),
        hurt("500 half-sent heads of 15 kB", hurts::half_sent_heads)
            .under(NOBODY)
            .so("what was read of them travels with their connections"),
        hurt("LimitNOFILE=400, 600 clients", hurts::few_descriptors)
            .under(NOBODY)
            .so("room for the handover is left free, also when full and restarted"),
        hurt("LimitNOFILE lowered to 400, 500 connections", hurts::fewer_descriptors)
            .under(NOBODY)
            .so("as many are taken over as there is room for"),
        // Signals and jobs at bad moments.
        act("two restarts at once", "systemctl restart $N.service & systemctl restart $N.service; wait"),
        hurt("a restart during a restart", hurts::restart_while_leaving)
            .so("the old one leaves once, a new one starts"),
        hurt("restarts one on the other's heels", hurts::restarts_in_haste)
            .so("also those that hit a process that is not ready yet")
            .within(15),
        hurt("SIGTERM before it is ready", hurts::terminated_before_ready)
            .so("the queue waits in the store for the next start")
            .within(15),
        hurt("told to leave twice", hurts::told_twice).costs(Connections).so("the second ends it at once"),
        act("SIGSTOP, then restart", "kill -STOP $PID && sleep 1 && systemctl restart $N.service")
            .so("systemd continues what it ends"),
        act("SIGSTOP for 3 s", "kill -STOP $PID && sleep 3 && kill -CONT $PID").so("clients wait"),
        // The service manager.
        act("daemon-reload in service", "for i in 1 2 3; do systemctl daemon-reload; done"),
        hurt("daemon-reload and daemon-reexec during a restart", hurts::reloads_in_restarts).within(30),
        hurt("the same while the queue is in the store", hurts::reloads_with_queue).within(30),
        act("a changed unit, daemon-reload, restart", "systemctl restart $N.service")
            .given(&with("CPUWeight=77"))
            .mended(WITHOUT),
        hurt("restart of the socket unit", hurts::socket_restarted)
            .under(NOBODY)
            .so("open connections are handed over; who is in the queue just then is turned away"),
        // The host.
        hurt("/run, /tmp, /var/log full", hurts::disk_full).so("it serves on, and is restarted all the same"),
        act("the journal is stopped", STOP_JOURNAL)
            .mended("systemctl start systemd-journald.socket systemd-journald-dev-log.socket systemd-journald"),
        hurt("the journal hangs, with much to log", hurts::journal_hangs)
            .under(NOBODY)
            .so("the lines wait, nobody else does, 15 s and a restart"),
        hurt("the clock goes back nine years", hurts::clock_set_back)
            .under(NOBODY)
            .so("no timeout goes wrong, a restart neither")
            .slow(),
        hurt("stop, then start", hurts::stopped_and_started).under(NOBODY).so(
            "clients are asked to go, and served for T/6; idle connections are closed halfway; the next client starts it again",
        ),
        hurt("the host is restarted", hurts::rebooted)
            .under(NOBODY)
            .so("the same, but who is in the queue when the socket unit closes is turned away; then refused until that is up")
            .within(90)
            .slow(),
        // Outages.
        hurt("an outage of 5 s, 1,000 new clients", |scene| hurts::outage(scene, 1_000)).within(10),
        hurt("an outage of 5 s, 4,000 new clients", |scene| hurts::outage(scene, 4_000)).within(15).slow(),
        hurt("an outage of 5 s, 6,000 new clients", |scene| hurts::outage(scene, 6_000)).within(20).slow(),
    ]
}

/// What is hot, and what is cold, by the same clients.
fn hot_and_cold() -> Vec<Fault> {
    vec![
        act("restart", "systemctl restart $N.service").under(WATCHERS),
        hurt("deploy", hurts::deployed).under(WATCHERS),
        hurt("crash (kill -9)", hurts::killed)
            .under(WATCHERS)
            .costs(Connections)
            .so("its connections are gone; who connects waits for the restart"),
        hurt("stop, then start", hurts::stopped_and_started)
            .under(NOBODY)
            .so("clients are asked to go, and served for T/6; idle connections are closed halfway"),
        hurt("reboot", hurts::rebooted)
            .under(NOBODY)
            .so("the same, but who is in the queue when the socket unit closes is turned away; then refused until that is up")
            .within(90),
    ]
}

/// Where a fault brings its own clients, and holds what they paid to what it may cost.
const NOBODY: &[(Kind, u32)] = &[];

/// Who notices an outage.
const FAST: [Kind; 2] = [Kind::PAUSING, Kind::FRESH];

/// Who is asked to go by a service that nobody takes over from.
pub const WATCHERS: &[(Kind, u32)] = &[(Kind::PAUSING, 8), (Kind::FRESH, 2), (Kind::SLOW, 2), (Kind::IDLE, 8)];

/// Who sees to it that nothing is left of a fault.
const AFTERWARDS: &[(Kind, u32)] = &[(Kind::PAUSING, 4), (Kind::FRESH, 1), (Kind::IDLE, 4)];

/// A script that adds `setting` to the service's unit.
pub fn with(setting: &str) -> String {
    format!(
        "install -d /etc/systemd/system/$N.service.d
        printf '[Service]\\n%s\\n' '{setting}' >/etc/systemd/system/$N.service.d/lab.conf
        systemctl daemon-reload"
    )
}

/// And one that takes it away.
pub const WITHOUT: &str = "rm -r /etc/systemd/system/$N.service.d && systemctl daemon-reload";

const STOP_JOURNAL: &str = "
    systemctl stop systemd-journald-dev-log.socket systemd-journald.socket systemd-journald
    if systemctl is-active systemd-journald; then exit 1; fi
    systemctl restart $N.service";

/// A row of the table.
struct Fault {
    name: &'static str,
    given: String,
    act: Act,
    mended: String,
    crowd: &'static [(Kind, u32)],
    costs: Costs,
    deaths: u64,
    so: &'static str,
    within: Duration,
    slow: bool,
}

enum Act {
    Script(&'static str),
    Hurt(Hurt),
}

/// What takes more than a line. What it gives has the figures of clients of its own, and a word about what happened.
type Hurt = for<'a> fn(&'a mut Scene) -> LocalBoxFuture<'a, anyhow::Result<Seen>>;

/// What a fault may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Costs {
    Nothing,
    /// The connections that a process had when it died, and their requests.
    Connections,
    /// Connections without a request.
    Idle,
}

/// What a fault did cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Price {
    pub lost: u64,
    pub refused: u64,
    pub closed: u64,
    /// The longest that a fast request waited.
    pub out: Duration,
}

impl Price {
    pub fn of(findings: &Findings) -> Self {
        let mut price = Self::default();
        for scenario in &findings.scenarios {
            price.lost += scenario.lost;
            price.refused += scenario.refused;
            price.closed += scenario.closed;
            if FAST.iter().any(|kind| kind.name == scenario.name) {
                price.out = price.out.max(Duration::from_secs_f64(scenario.slowest_ms / 1e3));
            }
        }
        price
    }

    pub fn and(self, other: Self) -> Self {
        Self {
            lost: self.lost + other.lost,
            refused: self.refused + other.refused,
            closed: self.closed + other.closed,
            out: self.out.max(other.out),
        }
    }
}

impl Costs {
    /// Fails when clients paid more, or nothing where they must have noticed something: then the fault did not happen.
    pub fn hold(self, findings: &Findings, deaths: u64) -> anyhow::Result<()> {
        let each = match self {
            Nothing => return findings.spotless(),
            Connections | Idle => deaths,
        };
        let mut closed = 0;
        for scenario in &findings.scenarios {
            // A client of HTTP/2 has four streams and a connection.
            let most = scenario.clients * each * if scenario.name.starts_with("HTTP/2") { 5 } else { 1 };
            let lost_most = if self == Idle { 0 } else { most };
            closed += scenario.closed;
            ensure!(
                scenario.refused == 0 && scenario.lost <= lost_most && scenario.closed <= most,
                "{}: {} lost, {} refused, {} closed: {:?}",
                scenario.name,
                scenario.lost,
                scenario.refused,
                scenario.closed,
                findings.failures.iter().map(|failure| &failure.what).take(5).collect::<Vec<_>>()
            );
        }
        ensure!(closed > 0, "nobody has noticed anything");
        Ok(())
    }
}

/// What happened, and what it did cost.
#[derive(Debug, Default)]
pub struct Seen {
    pub what: String,
    pub price: Price,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Price { lost, refused, closed, out } = self.price;
        write!(f, "{lost} lost, {refused} refused, {closed} closed, {} ms  {}", out.as_millis(), self.what)
    }
}

fn hurt(name: &'static str, hurt: Hurt) -> Fault {
    fault(name, Act::Hurt(hurt))
}

fn act(name: &'static str, script: &'static str) -> Fault {
    fault(name, Act::Script(script))
}

fn fault(name: &'static str, act: Act) -> Fault {
    Fault {
        name,
        given: String::new(),
        act,
        mended: String::new(),
        crowd: EVERYBODY,
        costs: Nothing,
        deaths: 1,
        so: "clients notice nothing",
        within: Duration::from_secs(10),
        slow: false,
    }
}

impl Fault {
    /// What is done to the host before.
    fn given(self, script: &str) -> Self {
        Self { given: script.into(), ..self }
    }

    /// What undoes that.
    fn mended(self, script: &str) -> Self {
        Self { mended: script.into(), ..self }
    }

    /// Who watches, in place of everybody.
    fn under(self, crowd: &'static [(Kind, u32)]) -> Self {
        Self { crowd, ..self }
    }

    fn costs(self, costs: Costs) -> Self {
        Self { costs, ..self }
    }

    /// How many processes die, at the most.
    fn deaths(self, deaths: u64) -> Self {
        Self { deaths, ..self }
    }

    /// What happens, for the table in the docs.
    fn so(self, so: &'static str) -> Self {
        Self { so, ..self }
    }

    /// The longest that a fast request may wait, in seconds. A machine that is busy gets ten, unless told otherwise.
    fn within(self, seconds: u64) -> Self {
        Self { within: Duration::from_secs(seconds), ..self }
    }

    /// Left out of what is quick.
    fn slow(self) -> Self {
        Self { slow: true, ..self }
    }
}

/// Tries the faults, prints a line for each and all of them as a table, and says whether all went as they have to.
pub async fn chaos(options: &Options) -> anyhow::Result<Outcome> {
    let only = options.only.as_deref().unwrap_or_default();
    let wanted = |fault: &Fault| fault.name.contains(only) && !(options.quick && fault.slow);
    let table = if options.cold { hot_and_cold() } else { table() };
    let faults: Vec<_> = table.into_iter().filter(wanted).collect();
    if faults.is_empty() {
        bail!("no fault is called {only:?}");
    }
    let props = Props::get(&options.debian, options.as_is).await?;
    let (count, began) = (faults.len(), Instant::now());
    println!("\n{count} faults on {} hosts ({})\n", options.hosts.min(count), options.debian);
    let tried = try_all(faults, options.hosts, &props).await?;
    println!("\n{}", markdown(&tried));
    let passed = tried.len();
    println!("{passed} of {count} faults cost no more than they may, in {:.0} s.", began.elapsed().as_secs_f64());
    Ok(if passed == count { Outcome::Kept } else { Outcome::Broken })
}

/// For tests/proof/README.md.
fn markdown(tried: &[(Fault, Seen)]) -> String {
    let mut text =
        "| fault | what happens | lost | refused | closed | out for |\n|---|---|---:|---:|---:|---:|\n".to_owned();
    for (Fault { name, so, .. }, Seen { what, price }) in tried {
        let Price { lost, refused, closed, out } = price;
        let between = if what.is_empty() { "" } else { ": " };
        text += &format!("| {name} | {so}{between}{what} | {lost} | {refused} | {closed} | {} ms |\n", out.as_millis());
    }
    text
}

impl Happening for Fault {
    type Outcome = Seen;

    fn name(&self) -> &str {
        self.name
    }

    fn settings(&self) -> &str {
        SETTINGS
    }

    /// Lets it happen, and holds what comes of it to what the module promises.
    async fn happen(&self, scene: &mut Scene) -> anyhow::Result<Seen> {
        scene.site.run(&self.given).await.context("before")?;
        let load = match self.crowd {
            [] => None,
            crowd => Some(scene.watch(crowd).await?),
        };
        let over = CancellationToken::new();
        let newcomers = newcomers(scene.site.address(), hurts::fast(scene), over.clone());
        let newcomers = AbortOnDropHandle::new(tokio::spawn(newcomers));
        let mut seen = match &self.act {
            Act::Script(script) => {
                let pid = "PID=$(systemctl show --property=MainPID --value $N.service)";
                scene.site.run(&format!("{pid}\n{script}")).await?;
                Seen::default()
            }
            Act::Hurt(hurt) => hurt(scene).await?,
        };
        scene.site.run(&self.mended).await.context("after")?;
        runs(scene).await?;
        if let Some(load) = load {
            answers_again(&load).await?;
            let findings = load.finish().await;
            self.costs.hold(&findings, self.deaths).context("the clients")?;
            seen.price = seen.price.and(Price::of(&findings));
        }
        over.cancel();
        seen.price.out = seen.price.out.max(newcomers.await?);
        let out = seen.price.out;
        ensure!(out <= self.within, "a fast request waited {out:?}, longer than {:?}", self.within);
        leaves_nothing(scene).await.context("afterwards")?;
        Ok(seen)
    }
}

/// Ten clients a second, and the longest that one of them waited who was answered: of an outage, those see most.
async fn newcomers(address: SocketAddr, ask: Ask, over: CancellationToken) -> Duration {
    let mut clients = JoinSet::new();
    while !over.is_cancelled() {
        let ask = ask.clone();
        clients.spawn(async move {
            let began = Instant::now();
            let mut connection = Connection::open(address, None).await.ok()?;
            connection.exchange(&ask).await.ok()?;
            connection.abort();
            Some(began.elapsed())
        });
        sleep(Duration::from_millis(100)).await;
    }
    clients.join_all().await.into_iter().flatten().max().unwrap_or_default()
}

/// Waits until the service runs, by itself.
pub async fn runs(scene: &Scene) -> anyhow::Result<()> {
    const RUNS: &str = "
        for try in $(seq 300); do
            ! systemctl is-active --quiet $N.service || exit 0
            sleep 0.1
        done
        systemctl status $N.service
        exit 1";
    scene.site.run(RUNS).await.context("the service does not come back").map(drop)
}

/// Waits until clients have had enough answers to be sure that it is over.
pub async fn answers_again(load: &Load) -> anyhow::Result<()> {
    let totals = load.totals();
    let enough = totals.answered + 3 * totals.clients;
    let deadline = Instant::now() + Duration::from_secs(40);
    while load.totals().answered < enough {
        ensure!(Instant::now() < deadline, "nobody is answered; {:?}", load.a_failure());
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The next restart costs nothing, and then all is as before.
async fn leaves_nothing(scene: &Scene) -> anyhow::Result<()> {
    const AS_BEFORE: &str = "
        left=$(systemctl show --property=NFileDescriptorStore --value $N.service)
        [ \"$left\" = 0 ] || { echo \"$left descriptors are left in the store\" && exit 1; }
        systemctl is-active $N.socket $N.service
        ! test -e /etc/systemd/system/$N.service.d";
    let load = scene.watch(AFTERWARDS).await?;
    scene.site.run("systemctl restart $N.service").await?;
    answers_again(&load).await?;
    load.finish().await.spotless()?;
    scene.site.run(AS_BEFORE).await.map(drop)
}
