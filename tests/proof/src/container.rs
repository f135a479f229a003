//! The service in containers of podman's, on a host of its own: the image that `make image` builds, the unit that the service prints
//! for it, under which systemd holds the connections, and a container by itself, which leaves when it is stopped.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::programs::PACKAGES;
use crate::template;
use lab::host::Host;
use lab::load::{Kind, Load};
use lab::record::Scenario;
use lab::rehearse::{self, Outcome, settle};
use lab::stage::{PORT, setting};
use lab::subject::Subject;
use lab::traffic::Traffic;

/// What to try, on what.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many restarts.
    #[arg(long, default_value_t = 20)]
    pub restarts: u32,
    /// The suite of the throwaway host: bookworm, trixie.
    #[arg(long, default_value = "bookworm")]
    pub debian: String,
    /// In the template: take the template itself, and do not generate a service.
    #[arg(long)]
    pub as_is: bool,
}

/// A host of the laboratory is a container itself. There is no overlay on its overlay, no keyring, no settings of the kernel,
/// and no right to make a network: with `outbound` the container has the host's.
const INSTALL: &str = "
    apt-get update -q && apt-get install -qy --no-install-recommends podman crun
    mkdir -p /etc/containers
    printf '[storage]\\ndriver = \"vfs\"\\nrunroot = \"/run/containers/storage\"\\ngraphroot = \"/var/lib/containers/storage\"\\n' \
        >/etc/containers/storage.conf
    printf '[containers]\\nkeyring = false\\ndefault_sysctls = []\\n' >/etc/containers/containers.conf";
const SETTINGS: &str = "[limits]\nidle_timeout = \"1h\"\n[unit]\noutbound = true\n";

/// Who asks through restarts.
const CROWD: [(Kind, u32); 6] = [
    (Kind::PAUSING, 20),
    (Kind::FRESH, 2),
    (Kind::DAWDLING, 4),
    (Kind::SLOW, 2),
    (Kind::UPLOADING, 2),
    (Kind::IDLE, 20),
];

/// Who asks a container that is stopped: of connections that nobody asks on, it closes.
const LEFT: [(Kind, u32); 3] = [(Kind::PAUSING, 8), (Kind::FRESH, 2), (Kind::SLOW, 2)];

/// The most that an image may take.
const MOST: u64 = 8_000_000;

/// Restarts the one, stops the other, prints what that cost, and says whether it was nothing.
pub async fn container(options: &Options) -> anyhow::Result<Outcome> {
    let subject = template::subject(options.as_is).await?;
    let mut traffic = Traffic::of(&subject)?;
    let tag = format!("localhost/{}:current", subject.name);
    let image = image(&subject, &tag).await?;
    let base = rehearse::image(&options.debian, &PACKAGES, &traffic).await?;
    let host = Host::boot(&base.after(INSTALL, |_| ()).await.context("installing podman")?).await?;
    host.put(image.path(), "/root/image.tar", 0o600).await?;
    let settings = traffic.settings_with(SETTINGS)?.to_string();
    let name = &subject.name;
    host.write(&format!("listen = \"0.0.0.0:{PORT}\"\n{settings}"), &format!("/etc/{name}/config.toml")).await?;
    let run = async |script: &str| host.run(&format!("set -eu\nN={name} IMAGE={tag}\n{script}")).await;
    let size =
        run("podman load --quiet --input /root/image.tar >/dev/null; podman inspect --format '{{.Size}}' $IMAGE")
            .await?;
    let podman = run("podman --version").await?;
    let size: u64 = size.trim().parse()?;
    println!("\n{}, {}: an image of {size} bytes", host.stage, podman.trim());
    ensure!(size <= MOST, "it has more than {MOST}");

    // The units are printed where they are to be.
    run("printed() { podman run --rm --network=none --cgroups=disabled --volume=/etc/$N:/etc/$N:ro $IMAGE unit $1; }
        printed socket >/etc/systemd/system/$N.socket
        printed container >/etc/systemd/system/$N.service
        systemctl daemon-reload
        systemctl start $N.socket $N.service")
    .await
    .context("the unit")?;
    let address = SocketAddr::from((IpAddr::from(host.address()), PORT));
    let load = Load::start(address, &traffic, &CROWD);
    settle(&load).await?;
    load.restarts_begin();
    for _ in 0..options.restarts {
        run("systemctl restart $N.service").await?;
        sleep(Duration::from_millis(500)).await;
    }
    let found = load.finish().await;
    let all = Scenario::all(&found.scenarios);
    let slowest = found.scenarios.iter().filter(|seen| seen.name == Kind::PAUSING.name).map(|seen| seen.slowest_ms);
    let slowest = slowest.fold(0.0, f64::max);
    let left = run("systemctl show --property=NFileDescriptorStore --value $N.service").await?;
    println!(
        "{} restarts: {all}, {} of {} kept, the slowest fast answer {slowest:.0} ms",
        options.restarts, all.kept, all.clients
    );
    found.spotless()?;
    ensure!(left.trim() == "0", "{left} descriptors are left in the store");

    // By itself. The port is another one.
    let listen = setting(name, "listen");
    run(&format!(
        "podman run --detach --name=alone --network=host --cgroups=disabled --read-only --cap-drop=all \
            --volume=/etc/$N:/etc/$N:ro --env={listen}=0.0.0.0:9000 $IMAGE >/dev/null
        for try in $(seq 50); do ! podman exec alone /service health || exit 0; sleep 0.1; done; exit 1"
    ))
    .await
    .context("a container by itself")?;
    traffic.slow.truncate(1);
    let load = Load::start(SocketAddr::from((IpAddr::from(host.address()), 9000)), &traffic, &LEFT);
    settle(&load).await?;
    let began = Instant::now();
    let stop = run("podman stop --time=33 alone >/dev/null; podman inspect --format '{{.State.ExitCode}}' alone");
    let (status, before) = tokio::join!(stop, async {
        // Until the socket closes: T/6, 5 s.
        sleep(Duration::from_secs(4)).await;
        load.totals()
    });
    let (status, took) = (status?, began.elapsed());
    let all = Scenario::all(&load.finish().await.scenarios);
    println!(
        "podman stop: {} s, exit status {}: {} answered, {} lost; in the first 4 s {} refused",
        took.as_secs(),
        status.trim(),
        all.answered,
        all.lost,
        before.refused
    );
    ensure!(status.trim() == "0" && all.lost == 0 && before.refused == 0, "it did not leave as it has to");
    Ok(Outcome::Kept)
}

/// Builds the image, and gives it as podman loads it.
async fn image(subject: &Subject, tag: &str) -> anyhow::Result<tempfile::NamedTempFile> {
    let built = Command::new("make")
        .args(["--no-print-directory", "image", &format!("IMAGE={tag}")])
        .current_dir(&subject.directory)
        .env("CARGO_TARGET_DIR", &subject.target)
        .env_remove("MAKEFLAGS")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .context("starting make")?;
    ensure!(built.success(), "make image failed ({built})");
    let file = tempfile::NamedTempFile::new()?;
    let saved = Command::new("podman").args(["save", "--quiet", tag]).stdout(file.reopen()?).status().await?;
    ensure!(saved.success(), "podman save failed ({saved})");
    Ok(file)
}
