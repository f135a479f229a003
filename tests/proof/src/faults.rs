//! Whatever can go wrong with a deploy, tried: a table, and what every row of it is held to.
//!
//! Each fault happens while clients are served, on a host where the service runs. Whatever comes of it, no client may
//! notice. A deploy that fails has to say why, and leaves the host exactly as it was, with the old release in charge.
//! Afterwards the next good deploy works, and the next restart.

use anyhow::{Context, bail, ensure};
use futures_util::future::LocalBoxFuture;
use tokio::time::Instant;

use crate::kinds;
use crate::release::{self, Release};
use crate::scene::{Before, Happening, Props, Scene, try_all};
use crate::stories;
use crate::template;
use lab::load::{Kind, Load};
use lab::rehearse::{Outcome, settle};

use Expect::{Fails, Works};
use Release::{ForAnotherMachine, Good, WithoutLibrary};

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
    /// Of all the steps at which a deploy is stopped, only every so manieth.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub every: u8,
    /// In the template: deploy the template itself, and do not generate a service.
    #[arg(long)]
    pub as_is: bool,
}

/// What can go wrong, one after the other. `$N` is the service's name.
fn table() -> Vec<Fault> {
    vec![
        // The release is no good.
        push("binary for another machine", ForAnotherMachine, Fails(&["no program for this machine"])),
        push("missing shared library", WithoutLibrary, Fails(&["libgone.6"])),
        push("ends before it is ready", release::ENDS, Fails(&["no database, no service"])),
        push("never says that it is ready", release::SILENT, Fails(&["timeout"])),
        push("/readyz 503 for ever", release::UNREADY, Fails(&["is not ready", "503", "database"])),
        push("crashes in the trial", release::CRASHES, Fails(&["did not run on"])).before(KEEPING),
        push("crashes once in charge", release::CRASHES_IN_CHARGE, Fails(&["did not run on"])).before(KEEPING),
        push("fails requests in the trial", release::FAILS_REQUESTS, Fails(&["requests to it failed"]))
            .before(TOLERANT),
        push("fails requests once in charge", release::FAILS_REQUESTS_IN_CHARGE, Fails(&["requests to it failed"]))
            .before(TOLERANT),
        push("fails a route, on kept connections only", release::FAILS_POSTS, Fails(&["requests to it failed"]))
            .before(PATIENT),
        push("fails a route of two instances", release::FAILS_POSTS, Fails(&["requests to it failed"]))
            .given("systemctl start $N@2.service")
            .mended("systemctl stop $N@2.service")
            .before(PATIENT),
        story("fails a while after its start", stories::fails_later).before(PATIENT),
        story("breaks the release before", stories::breaks_the_one_before).before(PATIENT),
        push("prints a socket unit without a socket", release::WITHOUT_SOCKET, Fails(&["refuses", "$N.socket"])),
        push("prints a misspelt unit", release::MISSPELT_UNIT, Fails(&["refuses", "KilMode"])),
        // The host is not as it should be.
        push("bad configuration on the host", Good, Fails(&["nonsense", "config.toml"]))
            .given(&format!("cp {CONFIG} /root/good.toml && echo 'nonsense = 1' >>{CONFIG}"))
            .mended(&format!("cp /root/good.toml {CONFIG}")),
        push("unit edited by hand", Good, Fails(&["$N.service was edited by hand", "+# by hand"]))
            .given("cp /etc/systemd/system/$N.service /root && echo '# by hand' >>/etc/systemd/system/$N.service")
            .mended("mv /root/$N.service /etc/systemd/system/$N.service"),
        story("an operator's drop-in wins and stays", stories::drop_in),
        push("service stopped before", Good, Works).given("systemctl stop $N.socket $N.service").before(NOBODY),
        push("service failed before", Good, Works)
            .given(&format!(
                "cp {CONFIG} /root/good.toml && echo 'nonsense = 1' >>{CONFIG} && ! systemctl restart $N.service \
                 && cp /root/good.toml {CONFIG}"
            ))
            .before(NOBODY),
        story("a dependency is away", stories::dependency_away),
        story("what is put back does not start", stories::outdated).before(PATIENT),
        story("an address that somebody has", stories::address_in_use).before(NOBODY),
        story("disk full at each step", stories::full_disk),
        story("wrong clock", stories::wrong_clock),
        story("no systemd", stories::no_systemd),
        push("no tar", Good, Fails(&["tar"])).given("mv /usr/bin/tar /root").mended("mv /root/tar /usr/bin"),
        story("a user without rights", stories::no_rights),
        story("a user with sudo", stories::sudo),
        story("another program's unit", stories::foreign_unit).before(NOBODY),
        // The way there, and the operator.
        story("ssh cut in the middle of the transfer", stories::cut_in_transfer),
        story("ssh cut after each step", stories::cut_after_each_step),
        story("interrupted after each step", stories::interrupted_after_each_step),
        story("stopped in the restart", stories::stopped_in_the_restart),
        story("killed with -9 after each step", stories::killed_after_each_step),
        story("power cut after each step", stories::power_cut_after_each_step).before(NOBODY),
        story("two deploys at once", stories::two_at_once),
        story("the same release twice", stories::same_twice),
        story("metrics elsewhere, and nowhere", stories::metrics),
        story("a downgrade", stories::downgrade),
        story("back to what ran", stories::back_to_what_ran),
        story("a first install that fails", stories::failing_first_install).before(NOBODY),
        story(SECOND, stories::second_service),
        story("a Debian package", stories::debian_package).before(NOBODY),
        story("uninstall", stories::uninstall).before(NOBODY),
    ]
}

pub const CONFIG: &str = "/etc/$N/config.toml";

const SECOND: &str = "two services on one host";

/// Who watches: every scenario, but few enough clients that several hosts can be watched side by side.
pub const EVERYBODY: &[(Kind, u32)] = &[
    (Kind::PAUSING, 8),
    (Kind::FRESH, 1),
    (Kind::DAWDLING, 2),
    (Kind::SLOW, 2),
    (Kind::UPLOADING, 1),
    (kinds::SIPPING, 1),
    (Kind::IDLE, 8),
    (kinds::HTTP2, 1),
];

/// Those that stay with the release that runs: what another accepts goes down with it when it crashes.
const KEEPING: &[(Kind, u32)] =
    &[(Kind::PAUSING, 8), (Kind::SLOW, 2), (Kind::UPLOADING, 1), (kinds::SIPPING, 1), (Kind::IDLE, 8)];

/// Those that a release which fails slow requests does not hurt; others bring it such requests.
const TOLERANT: &[(Kind, u32)] = &[(Kind::PAUSING, 8), (Kind::DAWDLING, 2), (Kind::IDLE, 8)];

/// All of them on connections that they keep; those that a release which fails every POST does hurt bear it.
const PATIENT: &[(Kind, u32)] = &[(kinds::PATIENT, 16), (Kind::SLOW, 2), (Kind::IDLE, 8)];

/// Where nobody is served before, or nobody can be afterwards.
const NOBODY: &[(Kind, u32)] = &[];

/// A row of the table.
struct Fault {
    name: &'static str,
    given: String,
    act: Act,
    mended: String,
    audience: &'static [(Kind, u32)],
}

enum Act {
    Push(Release, Expect),
    Story(Story),
}

/// What is to come of a deploy.
enum Expect {
    Works,
    /// It says each of these words.
    Fails(&'static [&'static str]),
}

/// What takes more than a line to tell.
type Story = for<'a> fn(&'a mut Scene) -> LocalBoxFuture<'a, anyhow::Result<()>>;

fn push(name: &'static str, release: Release, expect: Expect) -> Fault {
    Fault { name, given: String::new(), act: Act::Push(release, expect), mended: String::new(), audience: EVERYBODY }
}

fn story(name: &'static str, story: Story) -> Fault {
    Fault { name, given: String::new(), act: Act::Story(story), mended: String::new(), audience: EVERYBODY }
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

    fn before(self, audience: &'static [(Kind, u32)]) -> Self {
        Self { audience, ..self }
    }
}

/// Tries the faults, prints a line for each, and says whether all went as they have to.
pub async fn faults(options: &Options) -> anyhow::Result<Outcome> {
    let only = options.only.as_deref().unwrap_or_default();
    let faults: Vec<_> = table().into_iter().filter(|fault| fault.name.contains(only)).collect();
    if faults.is_empty() {
        bail!("no fault is called {only:?}");
    }
    let mut props = Props::get(&options.debian, options.as_is).await?;
    props.every = options.every.into();
    props.bad = Some(template::build_bad(&props.subject).await?);
    if faults.iter().any(|fault| fault.name == SECOND) {
        props.twin = Some(template::twin(&props.subject).await?);
    }
    let (count, began) = (faults.len(), Instant::now());
    println!("\n{count} faults on {} hosts ({})\n", options.hosts.min(count), options.debian);
    let passed = try_all(faults, options.hosts, &props).await?.len();
    println!("\n{passed} of {count} faults did no harm, in {:.0} s.", began.elapsed().as_secs_f64());
    Ok(if passed == count { Outcome::Kept } else { Outcome::Broken })
}

impl Happening for Fault {
    type Outcome = &'static str;

    fn name(&self) -> &str {
        self.name
    }

    async fn happen(&self, scene: &mut Scene) -> anyhow::Result<&'static str> {
        happen(self, scene).await.map(|()| "ok")
    }
}

/// Lets a fault happen, and holds what comes of it to what the module promises.
async fn happen(fault: &Fault, scene: &mut Scene) -> anyhow::Result<()> {
    let load = match fault.audience {
        [] => None,
        crowd => Some(scene.watch(crowd).await?),
    };
    let slow = fault.audience == TOLERANT;
    let slow = slow.then(|| Load::start(scene.site.address(), &scene.traffic, &[(kinds::RELENTLESS, 24)]));
    if let Some(slow) = &slow {
        settle(slow).await?;
    }
    match &fault.act {
        Act::Push(release, expect) => deploy(fault, *release, expect, scene).await?,
        Act::Story(story) => story(scene).await?,
    }
    scene.deploys().await.context("the next deploy")?;
    if let Some(slow) = slow {
        let failures = slow.finish().await.failures;
        let unlike = failures.iter().find(|failure| failure.kind != "lost" || !failure.what.contains("answered 503"));
        ensure!(unlike.is_none(), "the clients: {unlike:?}");
    }
    let load = match load {
        Some(load) => load,
        None => scene.watch(EVERYBODY).await?,
    };
    scene.restarts().await.context("the next restart")?;
    load.finish().await.spotless().context("the clients")
}

async fn deploy(fault: &Fault, release: Release, expect: &Expect, scene: &Scene) -> anyhow::Result<()> {
    let runs = fault.audience != NOBODY;
    let before = if runs { Some(scene.before().await?) } else { None };
    scene.site.run(&fault.given).await.context("before")?;
    let traces = scene.site.traces().await?;
    let said = scene.push(release).await?;
    match (expect, before) {
        (Works, None) => drop(said.works()?),
        (Works, Some(before)) => {
            said.works()?;
            scene.is_new_since(&Before { traces, ..before }).await?;
        }
        (Fails(words), before) => {
            let words: Vec<_> = words.iter().map(|word| word.replace("$N", &scene.site.name)).collect();
            said.fails(&words)?;
            let before = before.context("what fails has an audience")?;
            scene.is_as(&Before { traces, ..before }).await?;
        }
    }
    scene.site.run(&fault.mended).await.context("after")?;
    Ok(())
}
