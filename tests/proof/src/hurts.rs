//! The faults of [`crate::chaos`] that take more than a line.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::chaos::{Costs, Price, Seen, WATCHERS, WITHOUT, answers_again, runs, with};
use crate::faults::EVERYBODY;
use crate::kinds;
use crate::release::{self, Release};
use crate::scene::Scene;
use lab::http1::{Ask, Connection, Fault};
use lab::load::{Findings, Kind, Load};
use lab::traffic::Request;

type Hurts<'a> = LocalBoxFuture<'a, anyhow::Result<Seen>>;

/// There is never a calm moment for those: a service that leaves is busy with it for T/3 at the least.
const RELENTLESS: &[(Kind, u32)] = &[(kinds::RELENTLESS, 2)];

/// Clients that are there at once and on whom nothing depends but connections.
const QUICK: &[(Kind, u32)] = &[(Kind::PAUSING, 8), (Kind::FRESH, 2), (Kind::IDLE, 8)];

/// The same, and enough that a service which leaves is busy with them for some milliseconds.
const MANY: &[(Kind, u32)] = &[(Kind::PAUSING, 8), (Kind::FRESH, 2), (Kind::IDLE, 1_000)];

/// Takes a second until it becomes the service.
const HESITANT: Release = Release::That("sleep 1; exec /opt/lab/good \"$@\"");

/// Until it does so.
const HESITATES: &str = "sleep 0.3\n";

/// A script's first line, for the process that serves.
const PID: &str = "PID=$(systemctl show --property=MainPID --value $N.service)\n";

/// Waits for another process than `$PID`, and calls it `$NEW`.
const NEW: &str = "
    until NEW=$(systemctl show --property=MainPID --value $N.service) && [ $NEW != 0 ] && [ $NEW != $PID ]; do
        sleep 0.01
    done\n";

/// Waits until `$PID` waits for a calm moment.
const WAITS: &str = "until systemctl show --property=StatusText $N.service | grep -q leaving; do kill -0 $PID; done\n";

/// The good binary, in place of whatever is there.
const PUT_BACK: &str = "
    install -m 755 /opt/lab/good /opt/$N/current/new
    mv /opt/$N/current/new /opt/$N/current/$N\n";

const RESTART: &str = "systemctl restart $N.service\n";

/// A restart that goes on by itself.
const START_RESTART: &str = "systemctl restart --no-block $N.service\n";

/// Which empties the store.
const STOP_START: &str = "systemctl stop $N.service\nsystemctl start $N.service\n";

/// Runs the parts of a script on the host. What they wait for may never come.
async fn run<const PARTS: usize>(scene: &Scene, parts: [&str; PARTS]) -> anyhow::Result<String> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let script = parts.concat();
    let run = timeout(PATIENCE, scene.site.run(&script)).await;
    run.with_context(|| format!("no end after {PATIENCE:?}: {script}"))?
}

/// Puts another binary in place of the one that runs; it takes effect at the next start.
async fn swap(scene: &Scene, release: Release) -> anyhow::Result<()> {
    let place = format!("/opt/{0}/current/{0}", scene.site.name);
    scene.site.host.put(&scene.releases.binary(release)?, &place, 0o755).await
}

/// Puts the laboratory itself on the host, for [`crate::stuff`].
async fn bring_lab(scene: &Scene) -> anyhow::Result<()> {
    scene.site.host.put(&std::env::current_exe()?, "/opt/lab/lab", 0o755).await
}

/// Lets something happen under a crowd, and tells what that cost.
async fn under(
    scene: &Scene,
    crowd: &[(Kind, u32)],
    happens: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Findings> {
    let load = scene.watch(crowd).await?;
    happens.await?;
    runs(scene).await?;
    answers_again(&load).await?;
    Ok(load.finish().await)
}

/// What a fault did cost, unless it cost more than it may.
fn priced(findings: &Findings, costs: Costs, deaths: u64) -> anyhow::Result<Price> {
    costs.hold(findings, deaths)?;
    Ok(Price::of(findings))
}

pub fn deployed(scene: &mut Scene) -> Hurts<'_> {
    async {
        scene.deploys().await?;
        Ok(Seen::default())
    }
    .boxed_local()
}

pub fn killed(scene: &mut Scene) -> Hurts<'_> {
    async {
        run(scene, [PID, "kill -KILL $PID"]).await?;
        Ok(Seen::default())
    }
    .boxed_local()
}

pub fn killed_while_waiting(scene: &mut Scene) -> Hurts<'_> {
    hurt_while_leaving(scene, WAITS, "kill -KILL $PID\n")
}

pub fn killed_while_taking(scene: &mut Scene) -> Hurts<'_> {
    const TAKES: &str =
        "until journalctl --quiet --output=cat _PID=$PID | grep -q 'no calm moment'; do kill -0 $PID; done\n";
    hurt_while_leaving(scene, TAKES, "kill -KILL $PID\n")
}

pub fn stopped_while_leaving(scene: &mut Scene) -> Hurts<'_> {
    hurt_while_leaving(scene, WAITS, "kill -STOP $PID\n")
}

/// Has a process leave that cannot at once, and does something deadly to it when it has come `so_far`.
fn hurt_while_leaving<'a>(scene: &'a Scene, so_far: &'static str, does: &'static str) -> Hurts<'a> {
    async move {
        // There is as much time to do it as this takes.
        let slow = format!("Environment={}_PING_DELAY=3s", prefix(scene));
        run(scene, [&with(&slow), "\n", RESTART]).await?;
        // Two crowds, that do not keep step with each other.
        let others = scene.watch(RELENTLESS).await?;
        sleep(Duration::from_millis(1_200)).await;
        let happens = async { run(scene, [PID, START_RESTART, so_far, does, NEW]).await.map(drop) };
        let findings = under(scene, RELENTLESS, happens).await?;
        let price = priced(&findings, Costs::Connections, 1)?;
        let price = price.and(priced(&others.finish().await, Costs::Connections, 1)?);
        run(scene, [WITHOUT, "\n", RESTART]).await?;
        Ok(Seen { what: String::new(), price })
    }
    .boxed_local()
}

/// Where a process was when it was killed.
const MOMENTS: [&str; 6] = ["not told yet", "told to leave", "paused", "queued", "not adopted yet", "serving again"];

/// A sweep: each time a little later.
pub fn killed_at_any_moment(scene: &mut Scene) -> Hurts<'_> {
    const TIMES: u32 = 24;
    async {
        let began = Instant::now();
        run(scene, [RESTART]).await?;
        let whole = began.elapsed() * 5 / 4;
        let mut price = Price::default();
        let mut moments = [0; MOMENTS.len()];
        for time in 0..TIMES {
            // Half of them while it leaves.
            let (crowd, after) = match time < TIMES / 2 {
                true => (MANY, Duration::from_millis((3 * time).into())),
                false => (QUICK, whole * (time - TIMES / 2) / (TIMES / 2)),
            };
            let pause = if time > 0 { format!("sleep {:.3}\n", after.as_secs_f64()) } else { String::new() };
            let kill = "
                NEW=$PID
                kill -KILL $PID 2>/dev/null || {
                    NEW=$(systemctl show --property=MainPID --value $N.service)
                    [ $NEW = 0 ] || [ $NEW = $PID ] || kill -KILL $NEW
                }
                sleep 0.1
                echo $PID $NEW
                journalctl --quiet --output=cat _PID=$NEW\n";
            let mut said = String::new();
            let happens = async {
                said = run(scene, [PID, START_RESTART, &pause, kill]).await?;
                Ok(())
            };
            let findings = under(scene, crowd, happens).await?;
            let (pids, log) = said.split_once('\n').context("no process")?;
            let (old, killed) = pids.split_once(' ').context("no process")?;
            let moment = match old == killed {
                true if log.contains("left after") => 3,
                true if log.contains("connections are paused") => 2,
                true if log.contains("told to leave") => 1,
                true => 0,
                false if log.contains("serving on") => 5,
                false => 4,
            };
            moments[moment] += 1;
            let what = || format!("{after:?} after the signal: {}", MOMENTS[moment]);
            let total = Price::of(&findings);
            if moment == 3 || total.closed == 0 {
                findings.spotless().with_context(what)?;
            } else {
                Costs::Connections.hold(&findings, 1).with_context(what)?;
            }
            price = price.and(total);
        }
        let counts = MOMENTS.iter().zip(moments).filter(|(_, count)| *count > 0);
        let counts: Vec<_> = counts.map(|(moment, count)| format!("{moment} {count}")).collect();
        Ok(Seen { what: format!("{TIMES} times ({})", counts.join(", ")), price })
    }
    .boxed_local()
}

pub fn killed_before_adoption(scene: &mut Scene) -> Hurts<'_> {
    async {
        swap(scene, HESITANT).await?;
        run(scene, [PID, START_RESTART, NEW, HESITATES, PUT_BACK, "kill -KILL $NEW"]).await?;
        Ok(Seen::default())
    }
    .boxed_local()
}

pub fn terminated_before_ready(scene: &mut Scene) -> Hurts<'_> {
    async {
        swap(scene, HESITANT).await?;
        run(scene, [PID, START_RESTART, NEW, HESITATES, PUT_BACK, "kill -TERM $NEW"]).await?;
        Ok(Seen::default())
    }
    .boxed_local()
}

pub fn watchdog(scene: &mut Scene) -> Hurts<'_> {
    async {
        run(scene, [&with("WatchdogSec=2s"), "\n", RESTART, PID, "kill -STOP $PID\n", NEW, WITHOUT]).await?;
        Ok(Seen::default())
    }
    .boxed_local()
}

/// In a control group with little memory: its own, or where the host has none, one that is made for it.
pub fn out_of_memory(scene: &mut Scene) -> Hurts<'_> {
    // Hosts that share a machine share that one, and each has a network of its own.
    const LITTLE: &str = "LITTLE=/mnt/little-$(stat --dereference --format=%i /proc/self/ns/net)\n";
    const LIMIT: &str = "
        group=/sys/fs/cgroup/system.slice/$N.service
        if [ -e $group/memory.max ]; then
            echo $(($(cat $group/memory.current) + 8388608)) >$group/memory.max
        else
            mountpoint -q /mnt || mount -t cgroup -o memory none /mnt
            mkdir -p $LITTLE
            echo 8388608 >$LITTLE/memory.limit_in_bytes
            echo $PID >$LITTLE/cgroup.procs
        fi\n";
    const CLEAR: &str = "
        ! mountpoint -q /mnt || { rmdir $LITTLE; umount /mnt; }\n";
    const KILLS: &str = "journalctl --quiet --output=cat --unit=$N.service | grep --count 'status=9/KILL' || true";
    async {
        let kills = run(scene, [KILLS]).await?;
        let pid = run(scene, [PID, LITTLE, LIMIT, "echo PID=$PID"]).await?;
        // Each of them is some memory.
        let load = Load::start(scene.site.address(), &scene.traffic, &[(Kind::IDLE, 3_000)]);
        run(scene, [&pid, NEW]).await.context("it is not killed")?;
        runs(scene).await?;
        let findings = load.finish().await;
        let price = priced(&findings, Costs::Connections, 1)?;
        ensure!(run(scene, [KILLS]).await? != kills, "something else ended it");
        run(scene, [LITTLE, CLEAR]).await?;
        Ok(Seen { what: "3,000 clients of its own".into(), price })
    }
    .boxed_local()
}

pub fn bad_release(scene: &mut Scene, release: Release) -> Hurts<'_> {
    async move {
        swap(scene, release).await?;
        run(scene, ["! systemctl restart $N.service\n"]).await.context("the restart did not fail")?;
        sleep(Duration::from_millis(500)).await;
        run(scene, [PUT_BACK, RESTART]).await?;
        Ok(Seen::default())
    }
    .boxed_local()
}

pub fn crashing_release(scene: &mut Scene) -> Hurts<'_> {
    async {
        swap(scene, release::CRASHES).await?;
        run(scene, [RESTART, "sleep 1.5\n", PUT_BACK, RESTART]).await?;
        Ok(Seen::default())
    }
    .boxed_local()
}

pub fn bad_configuration(scene: &mut Scene) -> Hurts<'_> {
    const SPOIL: &str = "cp /etc/$N/config.toml /root/good.toml && echo 'nonsense = 1' >>/etc/$N/config.toml\n";
    async {
        run(scene, [SPOIL, "! systemctl restart $N.service\n"]).await.context("the restart did not fail")?;
        sleep(Duration::from_millis(500)).await;
        run(scene, ["cp /root/good.toml /etc/$N/config.toml\n", RESTART]).await?;
        Ok(Seen::default())
    }
    .boxed_local()
}

pub fn store_full(scene: &mut Scene) -> Hurts<'_> {
    const STUFFED: Release = Release::That("exec /opt/lab/lab stuff --descriptors 2 -- /opt/lab/good \"$@\"");
    const FULL: &str = "[ $(systemctl show --property=NFileDescriptorStore --value $N.service) = 2 ]";
    async {
        bring_lab(scene).await?;
        swap(scene, STUFFED).await?;
        run(scene, [&with("FileDescriptorStoreMax=2"), "\n", STOP_START, PUT_BACK, FULL]).await?;
        let findings = under(scene, EVERYBODY, async { run(scene, [RESTART]).await.map(drop) }).await?;
        let price = priced(&findings, Costs::Idle, 1)?;
        run(scene, [WITHOUT, "\n", STOP_START]).await?;
        Ok(Seen { what: String::new(), price })
    }
    .boxed_local()
}

/// The service is a child of the main process, to which alone systemd listens.
pub fn not_listened_to(scene: &mut Scene) -> Hurts<'_> {
    const CHILD: Release = Release::That(
        "sh -c 'export LISTEN_PID=$$; exec /opt/lab/good run' & child=$!
        trap 'kill -HUP $child' HUP
        wait $child
        wait $child",
    );
    async {
        swap(scene, CHILD).await?;
        // It counts as started before the script is read.
        run(scene, [&with("Type=exec\nWatchdogSec=0"), "\n", RESTART, "sleep 1\n", PUT_BACK]).await?;
        let findings = under(scene, EVERYBODY, async { run(scene, [RESTART]).await.map(drop) }).await?;
        let price = priced(&findings, Costs::Idle, 1)?;
        run(scene, [WITHOUT, "\n", RESTART]).await?;
        Ok(Seen { what: String::new(), price })
    }
    .boxed_local()
}

pub fn unknown_queue(scene: &mut Scene) -> Hurts<'_> {
    const STUFFED: Release = Release::That("exec /opt/lab/lab stuff --queue 255 -- /opt/lab/good \"$@\"");
    const LOGGED: &str = "journalctl --quiet --output=cat --unit=$N.service | grep 'the handover queue has format 255'";
    async {
        bring_lab(scene).await?;
        swap(scene, STUFFED).await?;
        // Without a queue of its own, with which this one would be taken out of the store.
        run(scene, [STOP_START, PUT_BACK]).await?;
        let findings = under(scene, EVERYBODY, async { run(scene, [RESTART]).await.map(drop) }).await?;
        let price = priced(&findings, Costs::Nothing, 0)?;
        run(scene, [LOGGED]).await.context("nothing is said of the queue")?;
        Ok(Seen { what: String::new(), price })
    }
    .boxed_local()
}

/// 7 MB of them: more than a socket's buffer takes.
pub fn half_sent_heads(scene: &mut Scene) -> Hurts<'_> {
    const CLIENTS: usize = 500;
    const HALF: usize = 15_000;
    async {
        // So that there are 5 s for a head.
        run(scene, [&with(&format!("Environment={}_SHUTDOWN_TIMEOUT=30s", prefix(scene))), "\n", RESTART]).await?;
        let idle = scene.watch(QUICK).await?;
        let plain = fast(scene);
        let filled = format!("{}X-Fill: {}\r\n\r\n", head(&plain), "x".repeat(HALF + 1_000));
        let ask = Ask { pieces: vec![filled.into()], ..plain }.in_two(HALF, Duration::from_millis(1_500));
        let mut clients = JoinSet::new();
        let mut connections = vec![];
        for _ in 0..CLIENTS {
            connections.push(Connection::open(scene.site.address(), None).await.map_err(as_error)?);
        }
        for mut connection in connections {
            let ask = ask.clone();
            clients.spawn(async move { connection.exchange(&ask).await.map(drop) });
        }
        sleep(Duration::from_millis(400)).await;
        run(scene, [RESTART]).await?;
        let mut price = Price::default();
        let mut first = None;
        while let Some(done) = clients.join_next().await {
            if let Err(fault) = done? {
                count(&mut price, &fault);
                first.get_or_insert(fault);
            }
        }
        answers_again(&idle).await?;
        let findings = idle.finish().await;
        ensure!(first.is_none(), "{price:?}: {first:?}; the others: {:?}", findings.spotless());
        findings.spotless().context("clients that have sent nothing")?;
        run(scene, [WITHOUT, "\n", RESTART]).await?;
        Ok(Seen { what: String::new(), price: Price::of(&findings) })
    }
    .boxed_local()
}

/// Fewer than there are clients: those who have no place are told so, and those who have one notice nothing.
pub fn few_descriptors(scene: &mut Scene) -> Hurts<'_> {
    const CLIENTS: usize = 600;
    async {
        // The watchdog would notice a service that cannot say that it is well.
        run(scene, [&with("LimitNOFILE=400\nWatchdogSec=2s"), "\n", RESTART]).await?;
        let (served, over) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let ask = fast(scene);
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let mut connection = Connection::open(scene.site.address(), None).await.map_err(as_error)?;
            let (served, over, ask) = (served.clone(), over.clone(), ask.clone());
            clients.spawn(async move {
                match connection.exchange(&ask).await {
                    Err(Fault::Lost { what, .. }) if what.contains("answered 503") => return Ok(None),
                    answered => answered?,
                };
                served.fetch_add(1, Relaxed);
                // Whoever is idle for a second makes room for others.
                while tokio::time::timeout(Duration::from_millis(300), over.cancelled()).await.is_err() {
                    connection.exchange(&ask).await?;
                }
                let began = Instant::now();
                connection.exchange(&ask).await?;
                let waited = began.elapsed();
                connection.abort();
                Ok::<_, Fault>(Some(waited))
            });
        }
        settled(&served).await;
        sleep(Duration::from_secs(3)).await;
        let before = served.load(Relaxed);
        // Those who are served ask in the midst of it.
        run(scene, [START_RESTART]).await?;
        over.cancel();
        let (mut price, mut told) = (Price::default(), 0);
        while let Some(done) = clients.join_next().await {
            match done?.map_err(as_error)? {
                Some(waited) => price.out = price.out.max(waited),
                None => told += 1,
            }
        }
        runs(scene).await?;
        run(scene, [WITHOUT, "\n", RESTART]).await?;
        ensure!(before > 100 && before + told == CLIENTS, "{before} are served, {told} are told that they are not");
        Ok(Seen { what: format!("{before} are served, and kept; {told} are answered 503"), price })
    }
    .boxed_local()
}

/// Fewer than the old process had connections.
pub fn fewer_descriptors(scene: &mut Scene) -> Hurts<'_> {
    const CLIENTS: u32 = 500;
    // A message of the queue.
    const ROOM: u64 = 252;
    async {
        let load = scene.watch(&[(Kind::IDLE, CLIENTS)]).await?;
        run(scene, [&with("LimitNOFILE=400"), "\n", RESTART]).await.context("it does not start")?;
        // Those who are closed come again at once: there is no room for all of them, and each is told so, or is closed as one
        // of a flood. After a second those who are idle would make room for them, and who asks just then is lost.
        sleep(Duration::from_millis(300)).await;
        let findings = load.finish().await;
        let kept = u64::from(CLIENTS) - findings.moved;
        let others =
            |what: &str| what.contains("answered 503") || what.contains("end of file before the answer's head");
        let lost = findings.failures.iter().find(|failure| failure.kind == "lost" && !others(&failure.what));
        let price = Price { lost: 0, ..Price::of(&findings) };
        ensure!(kept == ROOM && price.refused == 0 && lost.is_none(), "{kept} are kept; {price:?}; {lost:?}");
        run(scene, [WITHOUT, "\n", RESTART]).await?;
        Ok(Seen { what: format!("{kept}, the others are closed and that is logged"), price })
    }
    .boxed_local()
}

/// Waits until the number has stayed the same for a second.
async fn settled(number: &AtomicUsize) {
    let mut before = usize::MAX;
    while number.load(Relaxed) != before {
        before = number.load(Relaxed);
        sleep(Duration::from_secs(1)).await;
    }
}

pub fn restart_while_leaving(scene: &mut Scene) -> Hurts<'_> {
    async {
        let happens = async { run(scene, [PID, START_RESTART, WAITS, RESTART]).await.map(drop) };
        under(scene, RELENTLESS, happens).await?.spotless()?;
        Ok(Seen::default())
    }
    .boxed_local()
}

pub fn restarts_in_haste(scene: &mut Scene) -> Hurts<'_> {
    const IN_HASTE: &str = "
        for ms in 000 010 020 030 040 060 080 100 130 160 200 250 300; do
            systemctl restart --no-block $N.service
            sleep 0.$ms
        done\n";
    async {
        run(scene, [IN_HASTE, RESTART]).await?;
        Ok(Seen::default())
    }
    .boxed_local()
}

pub fn told_twice(scene: &mut Scene) -> Hurts<'_> {
    async {
        let happens = async { run(scene, [PID, "kill -HUP $PID\n", WAITS, "kill -HUP $PID\n", NEW]).await.map(drop) };
        let price = priced(&under(scene, RELENTLESS, happens).await?, Costs::Connections, 1)?;
        Ok(Seen { what: String::new(), price })
    }
    .boxed_local()
}

pub fn reloads_in_restarts(scene: &mut Scene) -> Hurts<'_> {
    const RELOADS: &str = "
        for reload in daemon-reload daemon-reexec; do
            for ms in 000 020 040 060 080 100 150; do
                systemctl restart --no-block $N.service
                sleep 0.$ms
                systemctl $reload
            done
        done\n";
    async {
        run(scene, [RELOADS, RESTART]).await?;
        Ok(Seen::default())
    }
    .boxed_local()
}

pub fn reloads_with_queue(scene: &mut Scene) -> Hurts<'_> {
    async {
        swap(scene, release::ENDS).await?;
        run(scene, ["! systemctl restart $N.service\n"]).await?;
        run(scene, ["systemctl daemon-reload\nsystemctl daemon-reexec\n", PUT_BACK, RESTART]).await?;
        Ok(Seen::default())
    }
    .boxed_local()
}

pub fn socket_restarted(scene: &mut Scene) -> Hurts<'_> {
    async {
        let happens = async { run(scene, ["systemctl restart $N.socket"]).await.map(drop) };
        let findings = under(scene, EVERYBODY, happens).await?;
        ensure!(findings.moved == 0, "{} connections were not kept: {:?}", findings.moved, findings.failures);
        let price = Price::of(&findings);
        // A client can be turned away once, with as many requests as HTTP/2 has streams here.
        let most = EVERYBODY.iter().filter(|(kind, _)| !kind.keeps).map(|(_, count)| 5 * u64::from(*count)).sum();
        ensure!(price.lost.max(price.closed) <= most, "{price:?}");
        Ok(Seen { what: String::new(), price })
    }
    .boxed_local()
}

pub fn disk_full(scene: &mut Scene) -> Hurts<'_> {
    const FILL: &str = "
        for place in /tmp /var/log; do
            mount -t tmpfs -o size=64k tmpfs $place
            dd if=/dev/zero of=$place/full 2>/dev/null || true
        done
        systemctl restart systemd-journald
        mount -o remount,size=$(($(df -k --output=used /run | tail -n 1) + 256))k /run
        dd if=/dev/zero of=/run/full 2>/dev/null || true
        for place in /tmp /var/log /run; do
            [ $(df --output=avail $place | tail -n 1) = 0 ]
        done\n";
    const FREE: &str = "
        rm /run/full
        mount -o remount,size=512m /run
        umount /tmp /var/log
        systemctl restart systemd-journald\n";
    async {
        run(scene, [FILL]).await?;
        sleep(Duration::from_secs(1)).await;
        run(scene, [RESTART]).await?;
        run(scene, [FREE]).await?;
        Ok(Seen::default())
    }
    .boxed_local()
}

/// While there is more to log than the journal's socket takes, for longer than the watchdog waits, and through a restart.
pub fn journal_hangs(scene: &mut Scene) -> Hurts<'_> {
    const JOURNAL: &str = "JOURNAL=$(systemctl show --property=MainPID --value systemd-journald)\n";
    const CLIENTS: usize = 50;
    const EACH: usize = 40;
    const LOGGED: &str = "journalctl --sync; journalctl --quiet --output=cat _PID=$PID | grep --count ': 503$' || true";
    async {
        let give_up = format!("Environment={}_LIMITS__REQUEST_TIMEOUT=10ms", prefix(scene));
        run(scene, [&with(&give_up), "\n", RESTART]).await?;
        let route = scene.traffic.slow.first().context("no slow route")?;
        // Each of them is logged.
        let fails = Ask::of(Request { status: 503, body: None, ..route.request() });
        let mut logged = 0;
        let happens = async {
            run(scene, [JOURNAL, "kill -STOP $JOURNAL"]).await?;
            let mut clients = JoinSet::new();
            for _ in 0..CLIENTS {
                let (address, fails) = (scene.site.address(), fails.clone());
                clients.spawn(async move {
                    let mut connection = Connection::open(address, None).await?;
                    for _ in 0..EACH {
                        connection.exchange(&fails).await?;
                    }
                    connection.abort();
                    Ok::<_, Fault>(())
                });
            }
            sleep(Duration::from_secs(15)).await;
            let unlucky = clients.join_all().await.into_iter().filter(Result::is_err).count();
            ensure!(unlucky == 0, "{unlucky} of {CLIENTS} clients whose requests fail lose their connection");
            run(scene, [JOURNAL, "kill -CONT $JOURNAL"]).await?;
            // They are not in it at once.
            let began = Instant::now();
            while logged < CLIENTS * EACH && began.elapsed() < Duration::from_secs(20) {
                sleep(Duration::from_millis(500)).await;
                logged = run(scene, [PID, LOGGED]).await?.trim().parse()?;
            }
            run(scene, [JOURNAL, "kill -STOP $JOURNAL\n", RESTART, "kill -CONT $JOURNAL"]).await?;
            Ok(())
        };
        let findings = under(scene, QUICK, happens).await?;
        let price = priced(&findings, Costs::Nothing, 0)?;
        let all = CLIENTS * EACH;
        ensure!(logged == all, "{logged} lines of {all} are in the journal");
        run(scene, [WITHOUT, "\n", RESTART]).await?;
        Ok(Seen { what: format!("all {all} lines are in it afterwards"), price })
    }
    .boxed_local()
}

pub fn clock_set_back(scene: &mut Scene) -> Hurts<'_> {
    // In one go: it is read all the time.
    const BACK: &str = "echo -9y >/etc/lab-clock.new && mv /etc/lab-clock.new /etc/lab-clock\n";
    async {
        let clock = "Environment=LD_PRELOAD=$(echo /usr/lib/*/faketime/libfaketime.so.1) \
            FAKETIME_TIMESTAMP_FILE=/etc/lab-clock FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1";
        let with = with(clock).replace(&format!("'{clock}'"), &format!("\"{clock}\""));
        run(scene, ["echo +0 >/etc/lab-clock\n", &with, "\n", RESTART]).await?;
        let now = year(scene).await?;
        let mut then = String::new();
        let happens = async {
            run(scene, [BACK]).await?;
            sleep(Duration::from_secs(4)).await;
            run(scene, [RESTART]).await?;
            // Until then hyper, which renews the date only when it is past, says what it has said before.
            then = year(scene).await?;
            Ok(())
        };
        let findings = under(scene, EVERYBODY, happens).await?;
        let price = priced(&findings, Costs::Nothing, 0)?;
        ensure!(then < now, "the service's clock says {then} after it was set back from {now}");
        run(scene, [WITHOUT, "\n", RESTART, "rm /etc/lab-clock"]).await?;
        Ok(Seen { what: String::new(), price })
    }
    .boxed_local()
}

/// The year in an answer.
async fn year(scene: &Scene) -> anyhow::Result<String> {
    let mut socket = TcpStream::connect(scene.site.address()).await?;
    let ask = fast(scene).last();
    socket.write_all(&ask.pieces.concat()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    let answer = answer.to_lowercase();
    // "date: Sun, 06 Nov 1994 08:49:37 GMT"
    let date = answer.lines().find_map(|line| line.strip_prefix("date: ")).context("an answer without a date")?;
    date.split(' ').nth(3).map(str::to_owned).context("a date without a year")
}

/// By clients who come again when they are told to go: those who are told, in an answer, lose nothing.
pub fn stopped_and_started(scene: &mut Scene) -> Hurts<'_> {
    const SAYS: &str = "journalctl --quiet --output=cat --unit=$N.service | grep 'starts the service again'";
    async {
        let happens = async { run(scene, [STOP_START]).await.map(drop) };
        let price = priced(&under(scene, WATCHERS, happens).await?, Costs::Idle, 1)?;
        run(scene, [SAYS]).await.context("nothing is said of the socket unit")?;
        Ok(Seen { what: String::new(), price })
    }
    .boxed_local()
}

/// Told by clients who try again and again.
pub fn rebooted(scene: &mut Scene) -> Hurts<'_> {
    const PATIENCE: Duration = Duration::from_secs(90);
    async {
        let load = scene.watch(WATCHERS).await?;
        scene.site.run("systemctl reboot").await?;
        let (began, mut last) = (Instant::now(), Instant::now());
        let (mut answered, mut out, mut down) = (0, Duration::ZERO, false);
        loop {
            ensure!(began.elapsed() < PATIENCE, "the host does not go down, or does not come back");
            let totals = load.totals();
            if totals.answered != answered {
                out = out.max(last.elapsed());
                (answered, last) = (totals.answered, Instant::now());
                if down {
                    break;
                }
            }
            down |= totals.refused > 0;
            sleep(Duration::from_millis(5)).await;
        }
        scene.site.host.rebooted().await?;
        answers_again(&load).await?;
        let price = Price::of(&load.finish().await);
        Ok(Seen { what: String::new(), price: Price { out, ..price } })
    }
    .boxed_local()
}

/// A start that takes 5 s, and clients who come meanwhile, besides those who have been there.
pub fn outage(scene: &mut Scene, clients: u64) -> Hurts<'_> {
    const QUEUE: &str = "ss --no-header --listening --numeric --tcp 'sport = :8080' | awk '{ print $2, $3 }'";
    async move {
        run(scene, [&with("ExecStartPre=sleep 5\nTimeoutStartSec=30s"), "\n", PID, START_RESTART]).await?;
        run(scene, ["until systemctl show --property=SubState $N.service | grep -q start-pre; do sleep 0.01; done"])
            .await?;
        let ask = fast(scene);
        let mut asking = JoinSet::new();
        for _ in 0..clients {
            let (ask, address) = (ask.clone(), scene.site.address());
            asking.spawn(async move {
                let began = Instant::now();
                let mut connection = Connection::open(address, None).await?;
                connection.exchange(&ask).await?;
                connection.abort();
                Ok::<_, Fault>(began.elapsed())
            });
        }
        sleep(Duration::from_secs(3)).await;
        let queue = run(scene, [QUEUE]).await?;
        let mut price = Price::default();
        let (mut answered, mut fault) = (0, None);
        while let Some(done) = asking.join_next().await {
            match done? {
                Ok(waited) => {
                    answered += 1;
                    price.out = price.out.max(waited);
                }
                Err(lost) => {
                    count(&mut price, &lost);
                    fault = Some(lost);
                }
            }
        }
        run(scene, [WITHOUT]).await?;
        let (waiting, limit) = queue.trim().split_once(' ').context("no listening socket")?;
        let (waiting, limit): (u64, u64) = (waiting.parse()?, limit.parse()?);
        let what = format!("{answered} are answered; {waiting} waited in the queue, which takes {limit} + 1");
        ensure!(waiting <= limit + 1 && answered + price.lost + price.refused == clients, "{what}; {price:?}");
        ensure!(answered >= clients.min(limit + 1) && price.lost == 0, "{what}; {price:?}, {fault:?}");
        Ok(Seen { what, price })
    }
    .boxed_local()
}

/// What the service's environment variables begin with.
fn prefix(scene: &Scene) -> String {
    scene.site.name.to_uppercase().replace('-', "_")
}

/// A fast request.
pub fn fast(scene: &Scene) -> Ask {
    Ask::of(scene.traffic.fast[0].request())
}

/// A request's head but for its end.
fn head(ask: &Ask) -> String {
    let bytes = ask.pieces.concat();
    String::from_utf8_lossy(&bytes[..bytes.len() - 2]).into_owned()
}

fn count(price: &mut Price, fault: &Fault) {
    match fault {
        Fault::Refused(_) => price.refused += 1,
        Fault::Closed(_) => price.closed += 1,
        Fault::Lost { closed, .. } => {
            price.lost += 1;
            price.closed += u64::from(*closed);
        }
    }
}

fn as_error(fault: Fault) -> anyhow::Error {
    anyhow::anyhow!("{fault:?}")
}
