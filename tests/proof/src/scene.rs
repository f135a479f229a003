//! Where something happens to a service: a host it runs on, who deploys to it and who watches.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::operator::{Operator, Running, Said, Way};
use crate::programs::PACKAGES;
use crate::release::{Release, Releases};
use crate::site::{BRISK, Site, Traces};
use crate::template;
use lab::host::Image;
use lab::load::{Kind, Load};
use lab::rehearse::{self, settle};
use lab::subject::Subject;
use lab::traffic::Traffic;

/// What every scene is made from.
#[derive(Debug, Clone)]
pub struct Props {
    pub image: Image,
    pub subject: Subject,
    /// The service's binary.
    pub good: PathBuf,
    /// The binary of releases that are no good.
    pub bad: Option<PathBuf>,
    /// Another service of the same template, and its binary.
    pub twin: Option<(Subject, PathBuf)>,
    /// Of all places where a deploy can be hurt, every so manieth is tried.
    pub every: usize,
}

impl Props {
    /// Builds the service and makes the image, where there is none yet.
    pub async fn get(debian: &str, as_is: bool) -> anyhow::Result<Self> {
        let subject = template::subject(as_is).await?;
        let image = rehearse::image(debian, &PACKAGES, &Traffic::of(&subject)?).await?;
        Ok(Self { good: subject.build().await?, image, subject, bad: None, twin: None, every: 1 })
    }

    /// Places to hurt a deploy at, from `first` on: where not all of them are tried, others each time.
    pub fn places(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        (first + fastrand::usize(..self.every)..).step_by(self.every).take(PLACES)
    }
}

/// No deploy has so many steps.
const PLACES: usize = 40;

/// A host, the service on it, and the operator.
#[derive(Debug)]
pub struct Scene {
    pub props: Props,
    pub traffic: Traffic,
    pub releases: Releases,
    pub operator: Operator,
    pub site: Site,
}

/// The service before something happened.
#[derive(Debug)]
pub struct Before {
    pub release: String,
    pub traces: Traces,
}

impl Scene {
    /// On a new host with the service on it, a first install behind it.
    pub async fn set(props: &Props) -> anyhow::Result<Self> {
        Self::set_with(props, BRISK).await
    }

    /// The same, with other settings.
    pub async fn set_with(props: &Props, settings: &str) -> anyhow::Result<Self> {
        let scene = Self::set_without_service(props, settings).await?;
        scene.push(Release::Good).await?.works().context("the first install")?;
        Ok(scene)
    }

    /// On a new host that the service was never deployed to, and its settings.
    pub async fn set_without_service(props: &Props, settings: &str) -> anyhow::Result<Self> {
        let subject = &props.subject;
        let traffic = Traffic::of(subject)?;
        let scene = Self {
            releases: Releases::of(props.good.clone(), props.bad.clone(), &subject.name)?,
            operator: Operator::new(subject).await?,
            site: Site::boot(&props.image, &subject.name, &traffic.settings_with(settings)?).await?,
            traffic,
            props: props.clone(),
        };
        scene.releases.prepare(&scene.site).await?;
        Ok(scene)
    }

    pub async fn before(&self) -> anyhow::Result<Before> {
        Ok(Before { release: self.site.in_charge().await?, traces: self.site.traces().await? })
    }

    /// Deploys, as root.
    pub async fn push(&self, release: Release) -> anyhow::Result<Said> {
        self.start_push(release).await?.finish().await
    }

    /// The same, to be watched.
    pub async fn start_push(&self, release: Release) -> anyhow::Result<Running> {
        self.operator.start_push(&Way::to(&self.site), &self.releases.binary(release)?).await
    }

    /// Waits for a deploy that goes on by itself, or is only about to begin: until none has been under way for a second.
    pub async fn calms_down(&self) -> anyhow::Result<()> {
        const OVER: &str = r#"
            calm=0
            for try in $(seq 600); do
                case $(systemctl is-active "$N-deploy.service") in
                inactive | failed | unknown) calm=$((calm + 1)) ;;
                *) calm=0 ;;
                esac
                [ "$calm" -lt 10 ] || exit 0
                sleep 0.1
            done
            systemctl status "$N-deploy.service"
            exit 1"#;
        self.site.run(OVER).await.context("the deploy has no end").map(drop)
    }

    /// Fails unless the host is exactly as it was.
    pub async fn is_as(&self, before: &Before) -> anyhow::Result<()> {
        let release = self.site.in_charge().await?;
        ensure!(release == before.release, "{release} is in charge, and not {}", before.release);
        self.site.traces().await?.same_as(&before.traces)
    }

    /// Fails unless another release is in charge and nothing else is different.
    pub async fn is_new_since(&self, before: &Before) -> anyhow::Result<()> {
        let release = self.site.in_charge().await?;
        ensure!(release != before.release, "{release} is in charge as before");
        let traces = self.site.traces().await?.but_releases(&self.site.name);
        traces.same_as(&before.traces.clone().but_releases(&self.site.name))
    }

    /// Keeps the host's journal in a file beside the builds, named after what happened on the host.
    async fn keep_journal(&self, happening: &str) -> anyhow::Result<PathBuf> {
        let suite = &self.props.image.suite;
        let name = happening.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let path = self.props.subject.target.join(format!("journal-{suite}-{name}.log"));
        std::fs::write(&path, self.site.run("journalctl --output=short-precise --no-pager").await?)?;
        Ok(path)
    }

    /// A good deploy.
    pub async fn deploys(&self) -> anyhow::Result<()> {
        let before = self.before().await?;
        self.push(Release::Good).await?.works()?;
        self.is_new_since(&before).await?;
        let releases = self.site.releases().await?;
        ensure!(releases.len() <= 6, "more than five releases and the one before are kept: {releases:?}");
        Ok(())
    }

    /// A restart, as an operator does it.
    pub async fn restarts(&self) -> anyhow::Result<()> {
        let before = self.before().await?;
        self.site.run("systemctl restart $N.service").await?;
        self.is_as(&before).await
    }

    /// Clients that are answered, and whose connections count from now on as open before.
    pub async fn watch(&self, crowd: &[(Kind, u32)]) -> anyhow::Result<Load> {
        let load = Load::start(self.site.address(), &self.traffic, crowd);
        settle(&load).await?;
        load.restarts_begin();
        Ok(load)
    }
}

/// Something that is to happen on a scene.
pub trait Happening {
    /// What came of it, for a line on the terminal.
    type Outcome: fmt::Display;

    fn name(&self) -> &str;

    /// The service's settings on the host where it happens.
    fn settings(&self) -> &str {
        BRISK
    }

    /// An error is a failure: the scene is not used again.
    fn happen(&self, scene: &mut Scene) -> impl Future<Output = anyhow::Result<Self::Outcome>>;
}

/// Lets everything happen, on several hosts side by side; prints a line for each, and gives what came of those that went
/// well, in their order.
pub async fn try_all<H: Happening>(all: Vec<H>, hosts: usize, props: &Props) -> anyhow::Result<Vec<(H, H::Outcome)>> {
    let hosts = hosts.min(all.len());
    let queue = RefCell::new(all.into_iter().enumerate().collect());
    let workers = (0..hosts).map(|_| work(&queue, props));
    let done = join_all(workers).await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let mut done: Vec<_> = done.into_iter().flatten().collect();
    done.sort_by_key(|(index, ..)| *index);
    Ok(done.into_iter().map(|(_, happening, outcome)| (happening, outcome)).collect())
}

/// Takes one after the other, and a new host after one that went badly.
async fn work<H: Happening>(
    queue: &RefCell<VecDeque<(usize, H)>>,
    props: &Props,
) -> anyhow::Result<Vec<(usize, H, H::Outcome)>> {
    let mut done = vec![];
    let mut scene = None;
    loop {
        let Some((index, happening)) = queue.borrow_mut().pop_front() else { return Ok(done) };
        let mut stage = match scene.take() {
            Some(stage) => stage,
            None => Scene::set_with(props, happening.settings()).await?,
        };
        let began = Instant::now();
        let outcome = happening.happen(&mut stage).await;
        let took = began.elapsed().as_secs_f64();
        match outcome {
            Ok(outcome) => {
                println!("  {:<44} {took:6.1} s  {outcome}", happening.name());
                done.push((index, happening, outcome));
                scene = Some(stage);
            }
            Err(error) => {
                let kept = stage.keep_journal(happening.name()).await;
                let kept = kept.map_or_else(|error| format!("none: {error:#}"), |path| path.display().to_string());
                let text = format!("{error:#}\n--- the journal: {kept}; its end:\n{}", stage.site.log().await);
                println!("  {:<44} {took:6.1} s  FAILED\n      {}", happening.name(), text.replace('\n', "\n      "));
            }
        }
    }
}
