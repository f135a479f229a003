//! Somebody with a checkout who deploys from it, with the very scripts that `make deploy` runs.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use crate::site::Site;
use lab::subject::Subject;

/// How long a deploy may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a deploy watches the service, in seconds: as short as faults allow that show after one.
const WATCH: &str = "2";

/// An operator, whose checkout has `deploy/` and a commit for every release.
#[derive(Debug)]
pub struct Operator {
    checkout: TempDir,
    name: String,
}

/// How a host is reached by ssh, and how it is deployed to.
#[derive(Debug, Clone)]
pub struct Way {
    pub host: String,
    pub ssh_opts: String,
    pub watch: &'static str,
    pub trial: &'static str,
}

impl Way {
    /// The usual one: as root.
    pub fn to(site: &Site) -> Self {
        Self::of_user(site, "root")
    }

    pub fn of_user(site: &Site, user: &str) -> Self {
        let host = format!("{user}@{}", site.host.address());
        Self { host, ssh_opts: site.host.ssh_opts(), watch: WATCH, trial: "" }
    }

    /// By another port of the host, or of the machine for a `host` that is its own.
    pub fn at(site: &Site, host: &str, port: u16) -> Self {
        let ssh_opts = format!("-p {port} {}", site.host.ssh_opts());
        Self { host: format!("root@{host}"), ssh_opts, ..Self::to(site) }
    }

    /// The same, with a watch of so many seconds.
    pub fn watching(self, watch: &'static str) -> Self {
        Self { watch, ..self }
    }

    /// The same, for a service that must not run twice at once.
    pub fn without_trial(self) -> Self {
        Self { trial: "no", ..self }
    }
}

/// What became of a deploy.
#[derive(Debug)]
pub struct Said {
    pub status: ExitStatus,
    /// Both of its outputs.
    pub text: String,
    pub took: Duration,
}

impl Said {
    /// Fails unless it went well.
    pub fn works(self) -> anyhow::Result<Self> {
        ensure!(self.status.success(), "it failed ({}):\n{}", self.status, self.text);
        Ok(self)
    }

    /// Fails unless it failed, and said why: each of `words`.
    pub fn fails<W: AsRef<str> + std::fmt::Debug>(&self, words: &[W]) -> anyhow::Result<()> {
        ensure!(!self.status.success(), "it did not fail:\n{}", self.text);
        let missing: Vec<_> = words.iter().filter(|word| !self.text.contains(word.as_ref())).collect();
        ensure!(missing.is_empty(), "it does not say {missing:?}:\n{}", self.text);
        Ok(())
    }
}

impl Operator {
    pub async fn new(subject: &Subject) -> anyhow::Result<Self> {
        let checkout = TempDir::with_prefix("lab-checkout-")?;
        let copied = Command::new("cp")
            .args(["--recursive", "deploy"])
            .arg(checkout.path())
            .current_dir(&subject.directory)
            .status()
            .await
            .context("starting cp")?;
        ensure!(copied.success(), "copying deploy/ failed");
        // Nobody else is to read it: what arrives on a host is for all who may use that.
        let private = Command::new("chmod").args(["--recursive", "go="]).arg(checkout.path()).status().await;
        ensure!(private.context("starting chmod")?.success(), "chmod failed");
        let operator = Self { checkout, name: subject.name.clone() };
        operator.git(&["init", "--quiet"]).await?;
        operator.commit().await?;
        Ok(operator)
    }

    /// Makes a commit, so that the next release has a name of its own.
    async fn commit(&self) -> anyhow::Result<()> {
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "a release"]).await
    }

    async fn git(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let identity = ["-c", "user.name=lab", "-c", "user.email=lab@localhost", "-c", "commit.gpgsign=false"];
        let output = Command::new("git").args(identity).args(arguments).current_dir(&self.checkout).output().await;
        let output = output.context("starting git")?;
        ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Rewrites `deploy/steps` in the checkout: every step calls `before_step`, which `shell` defines, first.
    pub fn sabotage(&self, shell: &str) -> anyhow::Result<()> {
        let steps = self.checkout.path().join("deploy/steps");
        let text = fs::read_to_string(&steps)?;
        ensure!(text.contains("\nbegin() {"), "deploy/steps has no begin()");
        let text = text.replace("\nbegin() {", "\nbegin_step() {");
        fs::write(steps, format!("{text}\n{shell}\nbegin() {{\n before_step\n begin_step \"$@\"\n}}\n"))?;
        Ok(())
    }

    /// Deploys `binary` as a new release.
    pub async fn push(&self, way: &Way, binary: &Path) -> anyhow::Result<Said> {
        self.start_push(way, binary).await?.finish().await
    }

    /// The same, to be watched.
    pub async fn start_push(&self, way: &Way, binary: &Path) -> anyhow::Result<Running> {
        self.commit().await?;
        self.push_again(way, binary)
    }

    /// Deploys without a new commit.
    pub fn push_again(&self, way: &Way, binary: &Path) -> anyhow::Result<Running> {
        let mut push = std::process::Command::new("deploy/push");
        push.arg(&self.name).arg(binary);
        self.start(push, way)
    }

    /// Has the host do something with what it has: status, rollback, uninstall.
    pub async fn tell(&self, way: &Way, what: &[&str]) -> anyhow::Result<Said> {
        let mut tell = std::process::Command::new("deploy/tell");
        tell.arg(&self.name).args(what);
        self.start(tell, way)?.finish().await
    }

    /// Uninstalls the service, having been asked.
    pub async fn uninstall(&self, way: &Way) -> anyhow::Result<Said> {
        let mut tell = std::process::Command::new("deploy/tell");
        tell.args([&self.name, "uninstall"]).env("YES", "1");
        self.start(tell, way)?.finish().await
    }

    /// Makes a Debian package of `binary`, of a new commit.
    pub async fn pack(&self, subject: &Subject, binary: &Path) -> anyhow::Result<PathBuf> {
        self.commit().await?;
        self.pack_again(subject, binary).await
    }

    /// The same without a new commit.
    pub async fn pack_again(&self, subject: &Subject, binary: &Path) -> anyhow::Result<PathBuf> {
        self.pack_in(self.checkout.path(), subject, binary).await
    }

    /// The same in a clone that has the last commit only.
    pub async fn pack_in_shallow_clone(&self, subject: &Subject, binary: &Path) -> anyhow::Result<PathBuf> {
        let clone = TempDir::with_prefix("lab-clone-")?;
        let (from, to) = (format!("file://{}", self.checkout.path().display()), clone.path().display().to_string());
        self.git(&["clone", "--quiet", "--depth=1", &from, &to]).await?;
        self.pack_in(clone.path(), subject, binary).await
    }

    async fn pack_in(&self, directory: &Path, subject: &Subject, binary: &Path) -> anyhow::Result<PathBuf> {
        fs::copy(subject.directory.join("Cargo.toml"), directory.join("Cargo.toml"))?;
        let packages = self.checkout.path().join("target");
        let _ = fs::remove_dir_all(&packages);
        let output = Command::new(self.checkout.path().join("deploy/deb"))
            .arg(&self.name)
            .args([binary, &packages])
            .current_dir(directory)
            .output()
            .await
            .context("starting deploy/deb")?;
        ensure!(output.status.success(), "deploy/deb: {}", String::from_utf8_lossy(&output.stderr));
        let package = fs::read_dir(&packages)?.next().context("deploy/deb made no package")??;
        Ok(package.path())
    }

    fn start(&self, mut command: std::process::Command, way: &Way) -> anyhow::Result<Running> {
        let (reader, writer) = std::io::pipe()?;
        command
            .current_dir(&self.checkout)
            .env("HOST", &way.host)
            .env("SSH_OPTS", &way.ssh_opts)
            .env("WATCH", way.watch)
            .env("TRIAL", way.trial)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            // To be killed with all that it started.
            .process_group(0);
        let mut command = Command::from(command);
        let child = command.kill_on_drop(true).spawn().context("starting a deploy")?;
        let lines = BufReader::new(pipe::Receiver::from_owned_fd(reader.into())?).lines();
        Ok(Running { child, lines, text: String::new(), began: Instant::now() })
    }
}

/// A deploy that is under way.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Lines<BufReader<pipe::Receiver>>,
    text: String,
    began: Instant,
}

impl Running {
    /// Waits for its next line; `false` when there is none.
    pub async fn line(&mut self) -> anyhow::Result<bool> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.with_context(|| format!("a deploy hangs:\n{}", self.text))??;
        let Some(line) = line else { return Ok(false) };
        self.text.push_str(&line);
        self.text.push('\n');
        Ok(true)
    }

    /// Sends a signal to it and to its ssh, as a terminal does.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    pub async fn finish(mut self) -> anyhow::Result<Said> {
        while self.line().await? {}
        let status = self.child.wait().await?;
        Ok(Said { status, text: self.text, took: self.began.elapsed() })
    }
}
