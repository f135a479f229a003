//! Throwaway Debian hosts: systemd in a container that boots in a second, with an address, an sshd
//! and a root of its own, and gone without a trace afterwards.
//!
//! What a host owns outside itself hangs on one number, its *slot*: the lock file
//! `/run/hitless-lab/SLOT.lock`, held for as long as the host lives, and the names and addresses
//! made from it. So any number of runs can work side by side, and what a killed run has left behind
//! is known by its lock being free: the next run removes it.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, BufReader};

/// What the hosts have.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,procps,openssh-server,sudo";
const RUN: &str = "/run/hitless-lab";
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// A Debian root file system, made once and never written to again.
#[derive(Debug, Clone)]
pub struct Image {
    pub suite: String,
    path: PathBuf,
}

impl Image {
    /// Finds the image in the cache (`$XDG_CACHE_HOME/hitless-lab`), or makes it with debootstrap,
    /// which takes a minute or two and tells `progress` about it. Of the packages that are in it besides, no service runs.
    pub async fn prepare(suite: &str, besides: &[&str], mut progress: impl FnMut(&str)) -> anyhow::Result<Self> {
        check_tools()?;
        let packages = [&[PACKAGES], besides].concat().join(",");
        let make = async |unfinished: &Path| {
            let mut debootstrap = alone();
            debootstrap
                .args(["--mount-proc", "debootstrap", "--variant=minbase", &format!("--include={packages}"), suite])
                .arg(unfinished);
            watch(debootstrap, &mut progress).await.with_context(|| format!("debootstrap of {suite}"))?;
            for package in besides {
                let masked = unfinished.join(format!("etc/systemd/system/{package}.service"));
                symlink("/dev/null", &masked).with_context(|| format!("masking {}", masked.display()))?;
            }
            Ok(())
        };
        Self::cached(suite, &format!("{suite}-{:016x}", hash(&packages)), make).await
    }

    /// The same after a shell script was run in it, as root and with the network of this machine. It is not booted: what
    /// the script starts ends with it. Made once for each text of the script.
    pub async fn after(&self, script: &str, mut progress: impl FnMut(&str)) -> anyhow::Result<Self> {
        let name = format!("{}-{:016x}", self.suite, hash(&(&self.path, script)));
        let make = async |unfinished: &Path| {
            let mut copy = alone();
            copy.args(["cp", "--archive", "--reflink=auto"]).args([&self.path, unfinished]);
            watch(copy, &mut progress).await.context("copying the image")?;
            let mut run = alone();
            run.args(["sh", "-c", r#"mount -t proc proc "$0/proc" && exec chroot "$0" sh -ec "$1" 2>&1"#])
                .arg(unfinished)
                .arg(script)
                .env_clear()
                .envs([
                    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
                    ("HOME", "/root"),
                    ("DEBIAN_FRONTEND", "noninteractive"),
                ]);
            watch(run, &mut progress).await.context("the script that prepares a host")
        };
        Self::cached(&self.suite, &name, make).await
    }

    /// What is in the cache under this name, or is made by then.
    async fn cached(
        suite: &str,
        name: &str,
        make: impl AsyncFnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let cache = cache()?;
        fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
        let image = Self { suite: suite.into(), path: cache.join(name) };
        // Another run may be at it: then wait for its image.
        let lock = File::create(cache.join(format!("{name}.lock")))?;
        let _lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
        if image.path.is_dir() {
            return Ok(image);
        }
        let unfinished = cache.join(format!("{name}.unfinished"));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).with_context(|| format!("removing {}", unfinished.display()))?;
        }
        make(&unfinished).await?;
        fs::rename(&unfinished, &image.path)?;
        Ok(image)
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// A command that takes along what it mounts and starts, whenever it ends.
fn alone() -> tokio::process::Command {
    let mut unshare = tokio::process::Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--kill-child"]).stdin(Stdio::null()).kill_on_drop(true);
    unshare
}

/// Runs a command and passes on what it prints, line by line. Fails with the end of that.
async fn watch(mut command: tokio::process::Command, progress: &mut impl FnMut(&str)) -> anyhow::Result<()> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting unshare")?;
    let mut last = VecDeque::new();
    if let Some(output) = child.stdout.take() {
        let mut lines = BufReader::new(output).lines();
        while let Some(line) = lines.next_line().await? {
            progress(&line);
            last.push_back(line);
            last.drain(..last.len().saturating_sub(20));
        }
    }
    let status = child.wait().await?;
    ensure!(status.success(), "{status}:\n{}", Vec::from(last).join("\n"));
    Ok(())
}

fn cache() -> anyhow::Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME")?).join(".cache"),
    };
    Ok(base.join("hitless-lab"))
}

fn check_tools() -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "booting a host takes root");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<_> = ["systemd-nspawn", "debootstrap", "ip", "nsenter", "unshare", "ssh", "ssh-keygen"]
        .into_iter()
        .filter(|tool| !std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()))
        .collect();
    ensure!(
        missing.is_empty(),
        "missing: {}; on Debian: apt-get install systemd-container debootstrap iproute2 \
         openssh-client",
        missing.join(", ")
    );
    Ok(())
}

/// The number everything outside the host is named after, and the lock that reserves it.
#[derive(Debug)]
struct Slot {
    number: u16,
    /// Held, and let go by the kernel even if this process is killed.
    _lock: File,
}

impl Slot {
    /// `198.18.0.0/15` is set aside for benchmarks (RFC 2544): nothing real lives there. A /30 each.
    const MOST: u16 = 64 * 64;

    /// Takes the first free slot, and clears whatever dead runs have left behind.
    fn claim() -> anyhow::Result<Self> {
        fs::create_dir_all(RUN)?;
        let mut claimed = None;
        for number in 0..Self::MOST {
            let path = Path::new(RUN).join(format!("{number}.lock"));
            if claimed.is_some() && !path.exists() {
                break;
            }
            let lock = File::create(&path)?;
            match lock.try_lock() {
                Ok(()) => {
                    let slot = Self { number, _lock: lock };
                    slot.clear();
                    claimed.get_or_insert(slot);
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        claimed.context("no free slot for one more host")
    }

    fn name(&self) -> String {
        format!("hitless-lab-{}", self.number)
    }

    /// The host's address if `inside`, else that of the machine as the host sees it.
    fn address(&self, inside: bool) -> Ipv4Addr {
        let host = (self.number % 64) as u8 * 4 + if inside { 2 } else { 1 };
        Ipv4Addr::new(198, 18, (self.number / 64) as u8, host)
    }

    fn directory(&self) -> PathBuf {
        Path::new(RUN).join(self.number.to_string())
    }

    /// A network of the host's own, and a wire to it.
    fn connect(&self) -> anyhow::Result<()> {
        let (name, wire) = (self.name(), format!("hitless{}", self.number));
        let (outside, inside) = (self.address(false), self.address(true));
        for command in [
            format!("netns add {name}"),
            format!("link add {wire} type veth peer name host0 netns {name}"),
            format!("address add {outside}/30 dev {wire}"),
            format!("link set {wire} up"),
            format!("-n {name} address add {inside}/30 dev host0"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link set host0 up"),
            format!("-n {name} route add default via {outside}"),
        ] {
            let output = Command::new("ip").args(command.split(' ')).output()?;
            ensure!(output.status.success(), "ip {command}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// The processes in the host's network: all of the host, but none of anything else.
    fn processes(&self) -> Vec<Pid> {
        let list = Command::new("ip").args(["netns", "pids", &self.name()]).output();
        list.map(|output| {
            String::from_utf8_lossy(&output.stdout).lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
        })
        .unwrap_or_default()
    }

    /// Ends and removes everything of this slot. Its mounts go with the last process.
    fn clear(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let processes = self.processes();
            if processes.is_empty() || Instant::now() > deadline {
                break;
            }
            for process in processes {
                let _ = rustix::process::kill_process(process, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let name = self.name();
        // The wire goes with the network.
        let _ = Command::new("ip").args(["netns", "delete", &name]).output();
        for hierarchy in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"] {
            while remove_cgroup(&Path::new(hierarchy).join(&name)).is_err() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = fs::remove_dir_all(self.directory());
    }
}

/// Removes a control group and those below it; an error while a process is still in one.
fn remove_cgroup(path: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path())?;
    }
    fs::remove_dir(path)
}

/// A host that is up. Dropping it removes it.
#[derive(Debug)]
pub struct Host {
    slot: Slot,
    nspawn: Child,
    /// The host's process 1, as seen from here.
    leader: u32,
    /// "Debian 12, systemd 252".
    pub stage: String,
}

impl Host {
    /// Boots a copy of the image, with ssh.
    pub async fn boot(image: &Image) -> anyhow::Result<Self> {
        let slot = Slot::claim()?;
        let directory = slot.directory();
        fs::create_dir_all(&directory)?;
        slot.connect().inspect_err(|_| slot.clear())?;
        let log = File::create(directory.join("log"))?;
        let nspawn = Command::new("unshare")
            .args(["--mount", "sh", "-c", include_str!("boot.sh"), "boot", &slot.name()])
            .arg(&image.path)
            .arg(directory.join("mnt"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C on the terminal is for the laboratory alone; it ends its hosts itself.
            .process_group(0)
            .spawn()
            .context("starting systemd-nspawn")
            .inspect_err(|_| slot.clear())?;
        // From here on Drop clears up.
        let mut host = Self { slot, nspawn, leader: 0, stage: String::new() };
        host.wait_booted().await?;
        host.stage = host.describe().await?;
        // It knows its own name, as every host does: sudo looks it up, and there is no DNS here.
        host.run("echo 127.0.1.1 $(uname -n) >>/etc/hosts").await?;
        host.admit_ssh().await?;
        Ok(host)
    }

    /// Waits until it is up again after it was restarted from within.
    pub async fn rebooted(&mut self) -> anyhow::Result<()> {
        let before = self.leader;
        let deadline = Instant::now() + BOOT_PATIENCE;
        while Path::new("/proc").join(before.to_string()).exists() {
            ensure!(Instant::now() < deadline, "the host does not go down");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.wait_booted().await?;
        self.wait_for_ssh().await
    }

    async fn wait_booted(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + BOOT_PATIENCE;
        loop {
            if let Some(status) = self.nspawn.try_wait()? {
                bail!("systemd-nspawn could not boot ({status}):\n{}", self.log());
            }
            ensure!(Instant::now() < deadline, "the host was not up within {BOOT_PATIENCE:?}:\n{}", self.log());
            // Until nspawn's child has become systemd it may still stand outside.
            if let Some(leader) = first_child(self.nspawn.id()).and_then(first_child)
                && fs::read_to_string(format!("/proc/{leader}/comm")).is_ok_and(|comm| comm == "systemd\n")
            {
                self.leader = leader;
                // Fails until the manager answers, then waits for the boot to end.
                let state = self.inside("systemctl is-system-running --wait").output().await?;
                if ["running\n", "degraded\n"].map(str::as_bytes).contains(&&state.stdout[..]) {
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn describe(&self) -> anyhow::Result<String> {
        let command = r#". /etc/os-release; set -- $(systemctl --version); echo "Debian $VERSION_ID, systemd $2""#;
        Ok(self.run(command).await?.trim().to_owned())
    }

    async fn admit_ssh(&self) -> anyhow::Result<()> {
        let key = self.key();
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "hitless-lab", "-f"])
            .arg(&key)
            .status()?;
        ensure!(made.success(), "ssh-keygen failed");
        self.put(&key.with_extension("pub"), "/root/.ssh/authorized_keys", 0o600).await?;
        self.wait_for_ssh().await
    }

    async fn wait_for_ssh(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + BOOT_PATIENCE;
        while tokio::net::TcpStream::connect((self.address(), 22)).await.is_err() {
            ensure!(Instant::now() < deadline, "sshd does not listen:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    pub fn address(&self) -> Ipv4Addr {
        self.slot.address(true)
    }

    /// Its root directory, as the machine sees it.
    pub fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.leader).into()
    }

    fn key(&self) -> PathBuf {
        self.slot.directory().join("key")
    }

    /// For `make deploy HOST=root@ADDRESS SSH_OPTS=…`; no space in any of them.
    pub fn ssh_opts(&self) -> String {
        format!(
            "-i {} -o IdentitiesOnly=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            self.key().display()
        )
    }

    fn inside(&self, command: &str) -> tokio::process::Command {
        self.enter("--all", command)
    }

    /// A shell command that has the host's files, but otherwise belongs to this machine: its network, for one.
    pub fn outside(&self, command: &str) -> tokio::process::Command {
        self.enter("--mount", command)
    }

    fn enter(&self, namespaces: &str, command: &str) -> tokio::process::Command {
        let mut nsenter = tokio::process::Command::new("nsenter");
        nsenter
            .args(["--target", &self.leader.to_string(), namespaces])
            .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"])
            .args(["sh", "-c", command])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        nsenter
    }

    /// Runs a shell command on the host and returns what it prints.
    pub async fn run(&self, command: &str) -> anyhow::Result<String> {
        let output = self.inside(command).output().await?;
        ensure!(
            output.status.success(),
            "on the host: {command}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Copies a file there; its directory is made if need be.
    pub async fn put(&self, file: &Path, to: &str, mode: u32) -> anyhow::Result<()> {
        let from = File::open(file).with_context(|| format!("opening {}", file.display()))?;
        self.receive(from.into(), to, mode).await
    }

    /// Writes a text file there.
    pub async fn write(&self, text: &str, to: &str) -> anyhow::Result<()> {
        let mut file = tempfile::tempfile()?;
        file.write_all(text.as_bytes())?;
        io::Seek::rewind(&mut file)?;
        self.receive(file.into(), to, 0o644).await
    }

    async fn receive(&self, from: Stdio, to: &str, mode: u32) -> anyhow::Result<()> {
        let command = format!("install -D -m {mode:o} /dev/stdin '{to}'");
        let output = self.inside(&command).stdin(from).output().await?;
        ensure!(output.status.success(), "writing {to} on the host: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The end of what the boot printed.
    fn log(&self) -> String {
        let log = fs::read(self.slot.directory().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// A process' first child.
fn first_child(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

impl Drop for Host {
    fn drop(&mut self) {
        // First, or it might still be about to boot what is being cleared. The script and systemd-nspawn are a group.
        if let Some(pid) = Pid::from_raw(self.nspawn.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        let _ = self.nspawn.wait();
        self.slot.clear();
    }
}
