//! The faults of [`crate::faults`] that take more than a line to tell.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, ensure};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use rustix::process::Signal;

use crate::faults::{CONFIG, EVERYBODY};
use crate::kinds;
use crate::operator::{Operator, Running, Said, Way};
use crate::release::{self, Release};
use crate::scene::{Before, Scene};
use crate::site::BRISK;
use crate::wire::Wire;
use lab::load::Load;
use lab::rehearse::settle;
use lab::stage::PORT;

type Told<'a> = LocalBoxFuture<'a, anyhow::Result<()>>;

/// What `systemctl edit` made holds in the trial as well, and the service reads credentials that only root may, one of them
/// encrypted; that units do not follow what is set there is told.
pub fn drop_in(scene: &mut Scene) -> Told<'_> {
    const WRITE: &str = "mkdir /etc/systemd/system/$N.service.d && cd /etc/systemd/system/$N.service.d &&
        echo '[Service]' >override.conf && echo 'CPUWeight=77' >>override.conf &&
        echo \"Environment=$(echo $N | tr a-z- A-Z_)_LISTEN=0.0.0.0:9999\" >>override.conf &&
        echo 'LoadCredential=unit.tasks_max:lab.unit.tasks_max' >>override.conf &&
        echo 'LoadCredentialEncrypted=unit.cpu_weight:lab.unit.cpu_weight' >>override.conf &&
        mkdir -p /etc/credstore /etc/credstore.encrypted && (umask 077 && echo 99 >/etc/credstore/lab.unit.tasks_max) &&
        echo 99 | systemd-creds encrypt --name=unit.cpu_weight - /etc/credstore.encrypted/lab.unit.cpu_weight &&
        systemctl daemon-reload";
    const REMOVE: &str = "rm -r /etc/systemd/system/$N.service.d /etc/credstore*/lab.* && systemctl daemon-reload";
    async {
        scene.site.run(WRITE).await?;
        let before = scene.before().await?;
        let mut push = scene.start_push(Release::Good).await?;
        let mut trial = None;
        while push.line().await? {
            // Both in one answer: the trial may end at any moment.
            let shown = scene.site.run("systemctl show --property=ActiveState,CPUWeight $N@next.service").await?;
            if shown.contains("ActiveState=active\n") {
                trial = Some(shown);
            }
        }
        let said = push.finish().await?.works()?.text;
        ensure!(
            said.contains("the environment or a credential sets unit.cpu_weight, unit.tasks_max, listen:"),
            "it does not tell:\n{said}"
        );
        let log = scene.site.run("journalctl --unit=$N --output=cat --no-pager").await?;
        ensure!(
            log.contains("not where the configuration says, which is 0.0.0.0:9999"),
            "nor does the service:\n{log}"
        );
        ensure!(trial.as_ref().is_some_and(|shown| shown.contains("CPUWeight=77\n")), "the trial had {trial:?}");
        scene.is_new_since(&before).await?;
        let weight = scene.site.run("systemctl show --property=CPUWeight $N.service").await?;
        ensure!(weight == "CPUWeight=77\n", "the service has {weight:?}");
        scene.site.run(REMOVE).await.map(drop)
    }
    .boxed_local()
}

/// Who watches only for so long as other releases take to show what they are deploys one that is not.
pub fn fails_later(scene: &mut Scene) -> Told<'_> {
    async {
        let before = scene.before().await?;
        let way = Way::to(&scene.site).watching("10");
        let said = scene.operator.push(&way, &scene.releases.binary(release::FAILS_POSTS_LATER)?).await?;
        said.fails(&["requests to it failed"])?;
        scene.is_as(&before).await
    }
    .boxed_local()
}

/// The release that is tried is good, but the one that runs meanwhile is not any more.
pub fn breaks_the_one_before(scene: &mut Scene) -> Told<'_> {
    async {
        scene.push(release::FAILS_POSTS_ONCE_MIGRATED).await?.works()?;
        let before = scene.before().await?;
        scene.push(release::MIGRATES).await?.fails(&["requests to the release before failed"])?;
        scene.is_as(&before).await?;
        scene.site.run("rm /var/lib/$N/migrated").await.map(drop)
    }
    .boxed_local()
}

/// What the service depends on is away before a deploy, goes meanwhile, or comes back: a release has to be no worse than
/// the one before.
pub fn dependency_away(scene: &mut Scene) -> Told<'_> {
    const GOES: &str = "touch /run/lab-away";
    const COMES_BACK: &str = "rm /run/lab-away";
    const IN_THE_TRIAL: &str = "until systemctl is-active --quiet $N@next.service; do sleep 0.05; done";
    async {
        scene.push(release::DEPENDENT).await?.works()?;
        let way = Way::to(&scene.site);
        let dependent = scene.releases.binary(release::DEPENDENT)?;

        scene.site.run(GOES).await?;
        let before = scene.before().await?;
        let said = scene.push(release::DEPENDENT).await?.works().context("a deploy")?;
        ensure!(said.text.contains("nor was the release before"), "it does not say so:\n{}", said.text);
        scene.is_new_since(&before).await?;
        scene.operator.tell(&way, &["apply"]).await?.works().context("apply")?;
        scene.operator.tell(&way, &["rollback"]).await?.works().context("rollback")?;
        ensure!(scene.site.in_charge().await? == before.release, "the way back leads elsewhere");
        scene.operator.push(&way.clone().without_trial(), &dependent).await?.works().context("without a trial")?;

        let before = scene.before().await?;
        let push = scene.start_push(release::UNREADY).await?;
        scene.site.run(&format!("{IN_THE_TRIAL}; {COMES_BACK}")).await?;
        push.finish().await?.fails(&["is not ready"])?;
        scene.is_as(&before).await.context("back for the release before only")?;

        let push = scene.start_push(release::DEPENDENT).await?;
        scene.site.run(&format!("{IN_THE_TRIAL}; sleep 1; {GOES}")).await?;
        push.finish().await?.fails(&["is not ready"])?;
        scene.is_as(&before).await.context("gone meanwhile")?;

        let push = scene.start_push(release::DEPENDENT).await?;
        scene.site.run(&format!("{IN_THE_TRIAL}; {COMES_BACK}")).await?;
        push.finish().await?.works()?;
        scene.is_new_since(&before).await.context("back meanwhile")
    }
    .boxed_local()
}

/// A release fails in charge, and the one before does not start any more: who still serves goes on.
pub fn outdated(scene: &mut Scene) -> Told<'_> {
    async {
        scene.push(release::OUTDATED).await?.works()?;
        let before = scene.before().await?;
        scene.site.run("touch /run/lab-outdated").await?;
        scene.push(release::FAILS_POSTS).await?.fails(&[
            "requests to it failed",
            "unknown setting",
            "@next serves on",
        ])?;
        let status = scene.operator.tell(&Way::to(&scene.site), &["status"]).await?.works()?;
        let next = format!("{}@next.service", scene.site.name);
        ensure!(status.text.contains(&next), "its status does not say who serves:\n{}", status.text);
        // From here on it starts by itself.
        scene.site.run("rm /run/lab-outdated; until systemctl is-active $N.service; do sleep 0.1; done").await?;
        scene.operator.tell(&Way::to(&scene.site), &["apply"]).await?.works()?;
        scene.is_as(&before).await?;

        scene.site.run("touch /run/lab-outdated").await?;
        let alone = Way::to(&scene.site).without_trial();
        let said = scene.operator.push(&alone, &scene.releases.binary(release::FAILS_POSTS)?).await?;
        said.fails(&["requests to it failed", "unknown setting", "serves on"])?;
        scene.site.run("rm /run/lab-outdated").await?;
        scene.operator.tell(&Way::to(&scene.site), &["apply"]).await?.works()?;
        scene.is_as(&before).await
    }
    .boxed_local()
}

pub fn address_in_use(scene: &mut Scene) -> Told<'_> {
    async {
        let scene = Scene::set_without_service(&scene.props, BRISK).await?;
        let before = scene.site.traces().await?;
        scene.site.run(&format!("/usr/sbin/sshd -p {PORT} -o PidFile=none")).await?;
        scene.push(Release::Good).await?.fails(&["Address already in use", "is held by", "sshd"])?;
        scene.site.traces().await?.same_as(&before)
    }
    .boxed_local()
}

/// Files and blocks run out in each of the places that a deploy writes to, a little later every time.
pub fn full_disk(scene: &mut Scene) -> Told<'_> {
    const DISKS: [&str; 3] = ["/opt/$N", "/etc/systemd/system", "/run/systemd/system"];
    /// In blocks of 4 KiB: nothing fits, half the binary, and then a block more every time.
    const ROOMS: [usize; 2] = [0, 500];
    async {
        // One whose disks are never to be used again.
        let scene = Scene::set(&scene.props).await?;
        let load = scene.watch(EVERYBODY).await?;
        for disk in DISKS {
            let of_its_own = format!(
                "mount -t tmpfs -o mode=755,size=256m tmpfs /mnt && cp -a {disk}/. /mnt && mount --bind /mnt {disk} && umount /mnt"
            );
            scene.site.run(&of_its_own).await?;
            let files = |room| {
                format!("mount -o remount,nr_inodes=$(($(df --output=iused {disk} | tail -n 1) + {room})) {disk}")
            };
            until_it_fits(&scene, scene.props.places(0), files)
                .await
                .with_context(|| format!("no more files in {disk}"))?;
            scene.site.run(&format!("mount -o remount,nr_inodes=0 {disk}")).await?;

            // A size of 0 would be no limit.
            let blocks = |room| {
                format!(
                    "size=$(($(df -k --output=used {disk} | tail -n 1) + 4 * {room})) && \
                     mount -o remount,size=$((size > 0 ? size : 4))k {disk}"
                )
            };
            let least = match disk {
                "/opt/$N" => std::fs::metadata(scene.releases.binary(Release::Good)?)?.len() as usize / 4096,
                _ => 0,
            };
            let rooms = ROOMS.into_iter().filter(|room| *room < least).chain(scene.props.places(least));
            until_it_fits(&scene, rooms, blocks).await.with_context(|| format!("no more blocks in {disk}"))?;
            scene.site.run(&format!("mount -o remount,size=256m {disk}")).await?;
        }
        load.finish().await.spotless()
    }
    .boxed_local()
}

/// Deploys again and again with a little more room each time, until there is enough.
async fn until_it_fits(
    scene: &Scene,
    rooms: impl Iterator<Item = usize>,
    leave: impl Fn(usize) -> String,
) -> anyhow::Result<()> {
    for (attempt, room) in rooms.enumerate() {
        // So that the units differ, and are to be written.
        let weight = 200 + attempt;
        let unlike = format!("sed -i '/^cpu_weight/d' {CONFIG} && echo 'cpu_weight = {weight}' >>{CONFIG}");
        scene.site.run(&unlike).await?;
        scene.site.run(&leave(room)).await?;
        let before = scene.before().await?;
        let said = scene.push(Release::Good).await?;
        if said.status.success() {
            return Ok(());
        }
        // tar has its own word for it.
        let words = if said.text.contains("Wrote only") { "did not arrive whole" } else { "No space left" };
        said.fails(&[words])?;
        scene.is_as(&before).await.with_context(|| format!("with room for {room}"))?;
    }
    anyhow::bail!("no deploy fits, whatever the room")
}

/// The host's clock is years behind for all that a deploy runs and for the journal, and what lies there is of the future.
pub fn wrong_clock(scene: &mut Scene) -> Told<'_> {
    // Not for systemd-run, which waits for ever under libfaketime.
    const YEARS_BEHIND: &str = r#"
        library=$(echo /usr/lib/*/faketime/libfaketime.so.1)
        clock="LD_PRELOAD=$library FAKETIME=-9y FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_SKIP_CMDS=systemd-run"
        systemctl set-environment $clock
        echo "SetEnv $clock" >/etc/ssh/sshd_config.d/clock.conf
        systemctl reload ssh
        systemctl restart systemd-journald
        find /opt/$N /etc/$N -exec touch --no-dereference --date=2099-01-01 {} +"#;
    const IN_THE_PAST: &str = r#"
        logged=$(journalctl --unit="$N.service" --lines=1 --output=export | sed -n 's/^__REALTIME_TIMESTAMP=//p')
        [ "$((logged / 1000000 + 86400))" -lt "$(date +%s)" ]"#;
    const RIGHT: &str = "
        systemctl unset-environment LD_PRELOAD FAKETIME FAKETIME_DONT_FAKE_MONOTONIC FAKETIME_SKIP_CMDS
        rm /etc/ssh/sshd_config.d/clock.conf
        systemctl reload ssh
        systemctl restart systemd-journald";
    async {
        scene.site.run(YEARS_BEHIND).await?;
        scene.deploys().await?;
        scene.site.run(IN_THE_PAST).await.context("the journal's clock is right")?;
        let before = scene.before().await?;
        // The reason comes from the journal.
        scene.push(release::ENDS).await?.fails(&["no database, no service"])?;
        scene.is_as(&before).await?;
        scene.deploys().await?;
        scene.operator.tell(&Way::to(&scene.site), &["rollback"]).await?.works()?;
        ensure!(scene.site.in_charge().await? == before.release, "the way back leads elsewhere");
        scene.site.run(RIGHT).await.map(drop)
    }
    .boxed_local()
}

/// A host that another init runs: there is no sign of systemd.
pub fn no_systemd(scene: &mut Scene) -> Told<'_> {
    async {
        let before = scene.before().await?;
        const PORT: u16 = 2222;
        let sshd = format!("mount -t tmpfs tmpfs /run/systemd && /usr/sbin/sshd -p {PORT} -o PidFile=none");
        scene.site.run(&format!("unshare --mount sh -c '{sshd}'")).await?;
        let way = Way::at(&scene.site, &scene.site.host.address().to_string(), PORT);
        scene.operator.push(&way, &scene.releases.binary(Release::Good)?).await?.fails(&["does not run systemd"])?;
        scene.is_as(&before).await
    }
    .boxed_local()
}

pub fn no_rights(scene: &mut Scene) -> Told<'_> {
    async {
        let before = scene.before().await?;
        let way = user(scene, "bert", "").await?;
        scene.operator.push(&way, &scene.releases.binary(Release::Good)?).await?.fails(&["root", "sudo"])?;
        scene.is_as(&before).await
    }
    .boxed_local()
}

pub fn sudo(scene: &mut Scene) -> Told<'_> {
    async {
        let way = user(scene, "anna", "echo 'anna ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/anna").await?;
        let before = scene.before().await?;
        scene.operator.push(&way, &scene.releases.binary(Release::Good)?).await?.works()?;
        scene.is_new_since(&before).await?;
        for target in ["status", "rollback"] {
            scene.operator.tell(&way, &[target]).await?.works().with_context(|| target)?;
        }
        ensure!(scene.site.in_charge().await? == before.release, "the way back leads elsewhere");
        let logs = "runuser -u anna -- timeout 5 sh /opt/$N/current/host logs $N | grep -m 1 'serving on'";
        scene.site.run(logs).await.context("the logs").map(drop)
    }
    .boxed_local()
}

/// A user with a key, and what else it takes.
async fn user(scene: &Scene, name: &str, also: &str) -> anyhow::Result<Way> {
    let script = format!(
        "id {name} >/dev/null 2>&1 || useradd --create-home {name}
         install -d -o {name} -m 700 /home/{name}/.ssh
         install -o {name} -m 600 /root/.ssh/authorized_keys /home/{name}/.ssh
         {also}"
    );
    scene.site.run(&script).await?;
    Ok(Way::of_user(&scene.site, name))
}

/// Its name is taken on this host.
pub fn foreign_unit(scene: &mut Scene) -> Told<'_> {
    async {
        let scene = Scene::set_without_service(&scene.props, BRISK).await?;
        scene
            .site
            .host
            .write("[Service]\nExecStart=sleep infinity\n", &format!("/etc/systemd/system/{}.service", scene.site.name))
            .await?;
        scene.site.run("systemctl daemon-reload && systemctl start $N.service").await?;
        let before = scene.site.traces().await?;
        scene.push(Release::Good).await?.fails(&["another's"])?;
        scene.site.traces().await?.same_as(&before)
    }
    .boxed_local()
}

pub fn failing_first_install(scene: &mut Scene) -> Told<'_> {
    async {
        let scene = Scene::set_without_service(&scene.props, BRISK).await?;
        let before = scene.site.traces().await?;
        for release in [Release::ForAnotherMachine, release::ENDS, release::SILENT, release::UNREADY, release::CRASHES]
        {
            scene.push(release).await?.fails::<&str>(&[]).with_context(|| format!("{release:?}"))?;
            scene.site.traces().await?.same_as(&before).with_context(|| format!("{release:?}"))?;
        }
        scene.push(Release::Good).await?.works()?;
        scene.site.in_charge().await.map(drop)
    }
    .boxed_local()
}

pub fn cut_in_transfer(scene: &mut Scene) -> Told<'_> {
    async {
        let before = scene.before().await?;
        for bytes in [100_000, 1_000_000] {
            let wire = Wire::that_carries((scene.site.host.address(), 22).into(), bytes).await?;
            let way = Way::at(&scene.site, "127.0.0.1", wire.port());
            scene.operator.push(&way, &scene.releases.binary(Release::Good)?).await?.fails::<&str>(&[])?;
            scene.calms_down().await?;
            scene.is_as(&before).await?;
        }
        Ok(())
    }
    .boxed_local()
}

pub fn cut_after_each_step(scene: &mut Scene) -> Told<'_> {
    async {
        for lines in scene.props.places(1) {
            let wire = Wire::to((scene.site.host.address(), 22).into()).await?;
            let way = Way::at(&scene.site, "127.0.0.1", wire.port());
            if stopped_after(scene, &way, lines, |_| wire.cut()).await?.is_break() {
                return Ok(());
            }
        }
        anyhow::bail!("a deploy has no end")
    }
    .boxed_local()
}

pub fn interrupted_after_each_step(scene: &mut Scene) -> Told<'_> {
    async {
        for lines in scene.props.places(1) {
            if stopped_after(scene, &Way::to(&scene.site), lines, |push| push.signal(Signal::INT)).await?.is_break() {
                return Ok(());
            }
        }
        anyhow::bail!("a deploy has no end")
    }
    .boxed_local()
}

/// The deploy is ended while what ran before still leaves: that gives its connections to the trial, which has to serve
/// them until somebody else does.
pub fn stopped_in_the_restart(scene: &mut Scene) -> Told<'_> {
    const STOP: &str = r#"
        for try in $(seq 2000); do
            [ "$(systemctl is-active "$N.service")" != deactivating ] || exec systemctl stop "$N-deploy.service"
            sleep 0.01
        done
        echo "it did not come to a restart"
        exit 1"#;
    async {
        let slow = Load::start(scene.site.address(), &scene.traffic, &[(kinds::RELENTLESS, 24)]);
        settle(&slow).await?;
        let before = scene.before().await?;
        let push = scene.start_push(Release::Good).await?;
        scene.site.run(STOP).await?;
        push.finish().await?.fails::<&str>(&[])?;
        scene.is_as(&before).await?;
        slow.finish().await.spotless().context("the slow requests")
    }
    .boxed_local()
}

/// Stops a deploy after so many lines. It has to end one way or the other, with nothing left over; a break if it was
/// over already.
async fn stopped_after(
    scene: &Scene,
    way: &Way,
    lines: usize,
    stop: impl Fn(&Running),
) -> anyhow::Result<ControlFlow<()>> {
    let before = scene.before().await?;
    let mut push = scene.operator.start_push(way, &scene.releases.binary(Release::Good)?).await?;
    for _ in 0..lines {
        if !push.line().await? {
            push.finish().await?.works()?;
            scene.is_new_since(&before).await?;
            return Ok(ControlFlow::Break(()));
        }
    }
    stop(&push);
    let said = push.finish().await?;
    scene.calms_down().await?;
    one_or_the_other(scene, &before).await.with_context(|| format!("after {lines} lines of\n{}", said.text))?;
    Ok(ControlFlow::Continue(()))
}

async fn one_or_the_other(scene: &Scene, before: &Before) -> anyhow::Result<()> {
    match scene.site.in_charge().await? == before.release {
        true => scene.is_as(before).await,
        false => scene.is_new_since(before).await,
    }
}

pub fn killed_after_each_step(scene: &mut Scene) -> Told<'_> {
    async {
        for steps in scene.props.places(1) {
            let before = scene.before().await?;
            let said = ended_before_step(scene, steps, "kill -KILL $$").await?;
            scene.calms_down().await?;
            one_or_the_other(scene, &before).await.with_context(|| format!("before step {steps} of\n{}", said.text))?;
            if said.status.success() {
                return Ok(());
            }
        }
        anyhow::bail!("a deploy has no end")
    }
    .boxed_local()
}

/// The host restarts at once, without a word to anybody. The next deploy clears up.
pub fn power_cut_after_each_step(scene: &mut Scene) -> Told<'_> {
    async {
        for steps in scene.props.places(1) {
            let before = scene.before().await?;
            let said = ended_before_step(scene, steps, "systemctl --force --force reboot").await?;
            if said.status.success() {
                return Ok(());
            }
            scene.site.host.rebooted().await?;
            let after = async {
                scene.site.in_charge().await.context("after the power cut")?;
                scene.push(Release::Good).await?.works()?;
                scene.is_new_since(&before).await
            };
            after.await.with_context(|| format!("before step {steps} of\n{}", said.text))?;
        }
        anyhow::bail!("a deploy has no end")
    }
    .boxed_local()
}

/// A deploy whose script does something to itself before a step on the host, the first time it gets there.
async fn ended_before_step(scene: &Scene, steps: usize, does: &str) -> anyhow::Result<Said> {
    let operator = Operator::new(&scene.props.subject).await?;
    operator.sabotage(&format!(
        r#"before_step() {{
    [ "${{0##*/}}" = host ] && [ ! -e /run/lab-ended ] || return 0
    steps_begun=$((${{steps_begun-0}} + 1))
    [ "$steps_begun" -lt {steps} ] || {{ : >/run/lab-ended && {does}; }}
}}"#
    ))?;
    scene.site.run("rm -f /run/lab-ended").await?;
    operator.push(&Way::to(&scene.site), &scene.releases.binary(Release::Good)?).await
}

pub fn two_at_once(scene: &mut Scene) -> Told<'_> {
    async {
        let before = scene.before().await?;
        let first = scene.start_push(Release::Good).await?;
        scene.site.run("until systemctl is-active --quiet $N-deploy.service; do sleep 0.05; done").await?;
        scene.push(Release::Good).await?.fails(&["under way", "since"])?;
        first.finish().await?.works()?;
        scene.is_new_since(&before).await
    }
    .boxed_local()
}

pub fn same_twice(scene: &mut Scene) -> Told<'_> {
    async {
        scene.deploys().await?;
        let before = scene.before().await?;
        let binary = scene.releases.binary(Release::Good)?;
        scene.operator.push_again(&Way::to(&scene.site), &binary)?.finish().await?.works()?;
        one_or_the_other(scene, &before).await
    }
    .boxed_local()
}

pub fn downgrade(scene: &mut Scene) -> Told<'_> {
    async {
        let way = Way::to(&scene.site);
        scene.deploys().await?;
        scene.deploys().await?;
        let before = scene.before().await?;
        let rollback = async |release: &str| scene.operator.tell(&way, &["rollback", release]).await;
        rollback("999-none").await?.fails(&["999-none"])?;
        scene.is_as(&before).await?;
        let releases = scene.site.releases().await?;
        let oldest = &releases[0];
        rollback(oldest).await?.works()?;
        ensure!(&scene.site.in_charge().await? == oldest, "{oldest} is not in charge");
        rollback(&before.release).await?.works()?;
        scene.is_as(&before).await
    }
    .boxed_local()
}

/// A release that was tried and taken back is not gone back to.
pub fn back_to_what_ran(scene: &mut Scene) -> Told<'_> {
    async {
        let before = scene.before().await?;
        let way = Way::to(&scene.site).watching("0");
        let binary = scene.releases.binary(Release::Good)?;
        // More than the five that are kept in any case.
        for _ in 0..6 {
            scene.operator.push(&way, &binary).await?.works()?;
            scene.operator.tell(&way, &["rollback"]).await?.works()?;
            let release = scene.site.in_charge().await?;
            ensure!(release == before.release, "{release} is in charge, and not {}", before.release);
        }
        Ok(())
    }
    .boxed_local()
}

/// A second service from the template, installed, updated and uninstalled, is nothing to the first.
pub fn second_service(scene: &mut Scene) -> Told<'_> {
    async {
        let before = scene.before().await?;
        let (twin, binary) = scene.props.twin.as_ref().context("no second service was built")?;
        let operator = Operator::new(twin).await?;
        let way = Way::to(&scene.site);
        scene
            .site
            .run(&format!("install -d /etc/{0} && echo 'listen = \"0.0.0.0:8081\"' >/etc/{0}/config.toml", twin.name))
            .await?;
        for _ in 0..2 {
            let said = operator.push(&way, binary).await?.works()?.text;
            // Both would tell their metrics there.
            ensure!(said.contains("127.0.0.1:9464 is held by"), "it does not tell:\n{said}");
        }
        let unit = scene.site.run(&format!("systemctl is-active {}.service", twin.name)).await?;
        ensure!(unit == "active\n", "the second service is {unit}");
        operator.uninstall(&way).await?.works()?;
        scene.site.run(&format!("rm -r /etc/{}", twin.name)).await?;
        scene.is_as(&before).await
    }
    .boxed_local()
}

/// Where metrics are told follows the setting, forth and back.
pub fn metrics(scene: &mut Scene) -> Told<'_> {
    const USUAL: u16 = 9464;
    const OTHER: u16 = 9465;
    async fn set(scene: &Scene, to: &str) -> anyhow::Result<()> {
        let line = format!("s/^start_timeout = .*/&\\nmetrics = \"{to}\"/");
        scene.site.run(&format!("sed -i '/^metrics = /d; {line}' {CONFIG}")).await.map(drop)
    }
    async fn are_told(scene: &Scene, at: Option<u16>) -> anyhow::Result<()> {
        let up = format!("hitless_up{{instance=\"{}\"}} 1\n", scene.site.name);
        for port in [USUAL, OTHER] {
            let told = scene.site.scrape(port).await?;
            ensure!(told.contains(&up) == (at == Some(port)), "at {port}, where they are told at {at:?}:\n{told}");
        }
        Ok(())
    }
    async {
        let way = Way::to(&scene.site).without_trial();
        let before = scene.before().await?;
        are_told(scene, Some(USUAL)).await?;

        set(scene, "127.0.0.1:9465").await?;
        let with_setting = scene.site.traces().await?;
        let said = scene.operator.push(&way, &scene.releases.binary(release::UNREADY)?).await?;
        said.fails(&["open the socket for metrics", "is not ready"])?;
        scene.is_as(&Before { traces: with_setting, release: before.release.clone() }).await?;
        are_told(scene, Some(USUAL)).await.context("back")?;

        scene.operator.tell(&way, &["apply"]).await?.works()?;
        are_told(scene, Some(OTHER)).await.context("elsewhere")?;
        set(scene, "").await?;
        scene.operator.tell(&way, &["apply"]).await?.works()?;
        are_told(scene, None).await.context("nowhere")?;
        let left = scene.site.run("find /etc/systemd/system /opt/$N/units -name '*metrics*'").await?;
        ensure!(left.is_empty(), "left over:\n{left}");

        scene.site.run(&format!("sed -i '/^metrics = /d' {CONFIG}")).await?;
        scene.operator.tell(&way, &["apply"]).await?.works()?;
        scene.is_as(&before).await?;
        are_told(scene, Some(USUAL)).await.context("in the end")
    }
    .boxed_local()
}

pub fn uninstall(scene: &mut Scene) -> Told<'_> {
    const LEFT: &str = r#"
        find / -xdev \( -path /proc -o -path /sys \) -prune -o -name "*$N*" ! -path "/etc/$N" ! -path "/tmp/*" -print
        find /run /tmp -name "*$N*"
        systemctl list-units --all --plain --no-legend "$N*""#;
    async {
        scene.operator.tell(&Way::to(&scene.site), &["uninstall"]).await?.fails::<&str>(&[])?;
        scene.site.in_charge().await.context("not asked, and gone")?;
        scene.operator.uninstall(&Way::to(&scene.site)).await?.works()?;
        let left = scene.site.run(LEFT).await?;
        ensure!(left.is_empty(), "left over:\n{left}");
        scene.site.run("test -e /etc/$N/config.toml").await.context("the configuration is gone")?;
        scene.push(Release::Good).await?.works()?;
        scene.site.in_charge().await.map(drop)
    }
    .boxed_local()
}

/// Upgrades by apt are deploys: one that is good, one of the same commit, one that is not, and the end.
pub fn debian_package(scene: &mut Scene) -> Told<'_> {
    async fn apt(scene: &Scene, action: &str) -> anyhow::Result<String> {
        let package = scene.operator.pack(&scene.props.subject, &scene.releases.binary(Release::Good)?).await?;
        apt_of(scene, &package, action).await
    }
    async fn apt_of(scene: &Scene, package: &Path, action: &str) -> anyhow::Result<String> {
        scene.site.host.put(package, "/root/package.deb", 0o644).await?;
        const QUIETLY: &str = "WATCH=2 DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes";
        scene.site.run(&format!("{QUIETLY} {action} 2>&1")).await
    }
    const INSTALL: &str = "install /root/package.deb";
    async {
        let scene = Scene::set_without_service(&scene.props, BRISK).await?;
        let traces = scene.site.traces().await?;
        apt(&scene, INSTALL).await?;

        let load = scene.watch(EVERYBODY).await?;
        let before = scene.before().await?;
        apt(&scene, INSTALL).await?;
        scene.is_new_since(&before).await?;

        let (subject, good) = (&scene.props.subject, scene.releases.binary(Release::Good)?);
        let Err(refused) = scene.operator.pack_in_shallow_clone(subject, &good).await else {
            anyhow::bail!("a package was made by somebody who cannot tell whether it is newer");
        };
        ensure!(refused.to_string().contains("shallow"), "{refused}");
        let before = scene.before().await?;
        apt_of(&scene, &scene.operator.pack_again(subject, &good).await?, INSTALL).await?;
        scene.is_new_since(&before).await.context("a second package of one commit")?;

        // One that was never tried has not failed.
        let before = scene.before().await?;
        scene.site.run("systemd-run --quiet --unit=$N-deploy sleep infinity").await?;
        let Err(refused) = apt(&scene, INSTALL).await else {
            anyhow::bail!("apt installed a release while another was being deployed");
        };
        ensure!(refused.to_string().contains("under way"), "apt does not say why: {refused}");
        scene.site.run("systemctl stop $N-deploy && WATCH=2 dpkg --configure -a").await.context("it is tried again")?;
        scene.is_new_since(&before).await?;

        scene.site.run("cp /etc/$N/config.toml /root && echo 'nonsense = 1' >>/etc/$N/config.toml").await?;
        let before = scene.before().await?;
        let Err(refused) = apt(&scene, INSTALL).await else {
            anyhow::bail!("apt installed a release that does not start");
        };
        ensure!(refused.to_string().contains("nonsense"), "apt does not say why: {refused}");
        scene.is_as(&before).await?;
        let again = scene.site.run("! dpkg --configure -a 2>&1").await.context("what has failed is configured")?;
        ensure!(again.contains("that has failed before"), "it is deployed again: {again}");
        scene.is_as(&before).await?;
        scene.site.run("cp /root/config.toml /etc/$N").await?;
        apt(&scene, INSTALL).await?;
        load.finish().await.spotless()?;

        apt(&scene, "remove $N").await?;
        scene.site.traces().await?.same_as(&traces).context("removed")?;
        apt(&scene, "purge $N").await?;
        scene.site.run("! test -e /etc/$N && ! test -e /var/lib/$N").await.context("purged").map(drop)
    }
    .boxed_local()
}
