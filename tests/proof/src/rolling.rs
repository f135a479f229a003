//! Several instances of one service, restarted in turn: what clients notice when they share one socket, and what they
//! notice when each has its own (`SO_REUSEPORT`).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::time::sleep;

use crate::delays::{self, Delays, Window};
use crate::kinds;
use crate::release::Release;
use crate::scene::{Props, Scene};
use crate::site::BRISK;
use lab::load::{Findings, Kind, Load};
use lab::record::{Scenario, aligned, table};
use lab::rehearse::{Outcome, settle};

/// What to restart, on what.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many restarts, of one instance and the other in turn.
    #[arg(long, default_value_t = 20)]
    pub restarts: u32,
    /// The suite of the throwaway host: bookworm, trixie.
    #[arg(long, default_value = "bookworm")]
    pub debian: String,
    /// How many milliseconds a fast answer may take while an instance is restarted, whatever else is in flight.
    #[arg(long, value_name = "MS", default_value_t = 50)]
    pub bound: u32,
    /// In the template: take the template itself, and do not generate a service.
    #[arg(long)]
    pub as_is: bool,
}

/// Clients that connect all the time.
const CONNECTING: &[(Kind, u32)] = &[(Kind::FRESH, 16)];

/// The port of the instances that have sockets of their own.
const OWN_PORT: u16 = 8081;

/// Restarts, prints what the clients saw, and says whether the promise was kept.
pub async fn rolling(options: &Options) -> anyhow::Result<Outcome> {
    let props = Props::get(&options.debian, options.as_is).await?;
    // Instances with sockets of their own are lame ducks for a sixth of it.
    let settings = format!("shutdown_timeout = \"6s\"\n{BRISK}");
    let mut scene = Scene::set_without_service(&props, &settings).await?;
    scene.traffic.shutdown_timeout = Duration::from_secs(6);
    scene.push(Release::Good).await?.works()?;
    scene.site.run("systemctl enable --quiet --now $N@1 $N@2 && systemctl disable --quiet --now $N.service").await?;
    println!("{} {} on {}: two instances", props.subject.name, props.subject.version, scene.site.host.stage);

    println!("\nOne socket, every kind of client, {} restarts in turn:\n", options.restarts);
    let everybody: Vec<_> = kinds::ALL.into_iter().chain([(kinds::RELENTLESS, 8)]).collect();
    let (all, _) = Rolled::under(&scene, shared(&scene), "$N@", &everybody, options.restarts).await?;
    println!("{}", table(&all.scenarios, &all.failures));

    println!("The same with clients that notice delays:\n");
    let (quiet, rolled) = Rolled::under(&scene, shared(&scene), "$N@", delays::CROWD, options.restarts).await?;
    println!("{}", table(&quiet.scenarios, &quiet.failures));
    println!("{}", delays::table(&[("in a restart", &rolled.busy), ("before", &rolled.calm)]));

    println!("Clients that connect all the time:\n");
    let own = own_sockets(&scene).await?;
    let (one, _) = Rolled::under(&scene, shared(&scene), "$N@", CONNECTING, options.restarts).await?;
    let (each, _) = Rolled::under(&scene, own, "own@", CONNECTING, options.restarts).await?;
    println!("{}", comparison(&[("one socket, shared", &one), ("a socket each, SO_REUSEPORT", &each)]));

    let kept = all.spotless().and_then(|()| quiet.spotless()).and_then(|()| one.spotless());
    let (worst, bound) = (rolled.busy.worst(), f64::from(options.bound));
    match kept {
        Ok(()) if worst < bound => {
            println!("Nothing lost, no connection closed, no fast answer slower than {bound} ms.");
            return Ok(Outcome::Kept);
        }
        Ok(()) => println!("A fast answer took {worst:.0} ms, more than {bound} ms."),
        Err(error) => println!("The promise is broken: {error:#}\nThe end of the journal:\n{}", scene.site.log().await),
    }
    Ok(Outcome::Broken)
}

fn shared(scene: &Scene) -> SocketAddr {
    scene.site.address()
}

/// Two more instances on a port that each of them binds itself.
async fn own_sockets(scene: &Scene) -> anyhow::Result<SocketAddr> {
    let name = &scene.site.name;
    let prefix = name.to_uppercase().replace('-', "_");
    let unit = format!(
        "[Service]\nType=notify\nTimeoutStopSec=30s\nExecStart=/opt/{name}/current/{name} run\n\
         Environment={prefix}_LISTEN=0.0.0.0:{OWN_PORT} {prefix}_REUSE_PORT=true\n"
    );
    scene.site.host.write(&unit, "/etc/systemd/system/own@.service").await?;
    scene.site.run("systemctl daemon-reload && systemctl start own@1 own@2").await?;
    Ok((scene.site.host.address(), OWN_PORT).into())
}

/// The slowest fast answers.
struct Rolled {
    calm: Delays,
    busy: Delays,
}

impl Rolled {
    /// Restarts the instances 1 and 2 of `units` in turn while a crowd is at work at `address`.
    async fn under(
        scene: &Scene,
        address: SocketAddr,
        units: &str,
        crowd: &[(Kind, u32)],
        restarts: u32,
    ) -> anyhow::Result<(Findings, Self)> {
        let load = Load::start(address, &scene.traffic, crowd);
        settle(&load).await?;
        load.restarts_begin();
        let mut quiet: Vec<Window> = vec![];
        let mut windows: Vec<Window> = vec![];
        for number in 0..restarts {
            let from = load.clock();
            sleep(Duration::from_millis(300 + fastrand::u64(..700))).await;
            let to = load.clock();
            quiet.push((from, to));
            let restart = format!("systemctl restart {units}{}", number % 2 + 1);
            load.restarting();
            scene.site.run(&restart).await.with_context(|| format!("restart {number}"))?;
            load.restarted();
            windows.push((to, load.clock()));
        }
        sleep(Duration::from_secs(1)).await;
        let rolled = Self { calm: Delays::during(&load, &quiet), busy: Delays::during(&load, &windows) };
        Ok((load.finish().await, rolled))
    }
}

fn comparison(findings: &[(&str, &Findings)]) -> String {
    let mut rows = vec![["", "connections", "refused", "lost", "closed"].map(String::from)];
    for (name, findings) in findings {
        let totals = Scenario::all(&findings.scenarios);
        let figures = [totals.opened, totals.refused, totals.lost, totals.closed].map(|figure| figure.to_string());
        let [opened, refused, lost, closed] = figures;
        rows.push([(*name).into(), opened, refused, lost, closed]);
    }
    aligned(&rows)
}
