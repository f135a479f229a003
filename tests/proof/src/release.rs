//! What is deployed: the service as it is built, and releases that are no good.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::site::Site;

/// Where the good binary is on a host, for the wrappers below, and a bad one: `tests/bad` in the service's folder.
const GOOD: &str = "/opt/lab/good";
const BAD: &str = "/opt/lab/bad";

/// A release, by what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    Good,
    /// Its ELF header names another machine.
    ForAnotherMachine,
    /// It needs a shared library that no host has.
    WithoutLibrary,
    /// A shell script around the good binary, which does what is given here in place of `run`.
    That(&'static str),
    /// The same, but in place of `health`.
    WhoseHealth(&'static str),
    /// The same, but in place of `run` and of `check`.
    WhoseStart(&'static str),
    /// The same, but in place of `unit`.
    WhoseUnits(&'static str),
}

/// Ends by itself before it is ready.
pub const ENDS: Release = Release::That("echo 'no database, no service' >&2; exit 3");

/// Never says READY=1.
pub const SILENT: Release = Release::That("exec sleep infinity");

/// Is never ready for clients, whatever it tells systemd.
pub const UNREADY: Release =
    Release::WhoseHealth(r#"echo "process $2: 503 {\"failed\":{\"database\":\"unreachable\"}}"; exit 1"#);

/// Says READY=1 and crashes a second later.
pub const CRASHES: Release = Release::That(r#"(sleep 1; kill -KILL $$) & exec /opt/lab/good "$@""#);

/// The same, but not before it is in charge: no trial shows it.
pub const CRASHES_IN_CHARGE: Release =
    Release::That(r#"grep -q '@next' /proc/self/cgroup || (sleep 1; kill -KILL $$) & exec /opt/lab/good "$@""#);

/// Answers 503 to whatever takes longer than a millisecond.
pub const FAILS_REQUESTS: Release =
    Release::That(r#"export "${PREFIX}LIMITS__REQUEST_TIMEOUT=1ms"; exec /opt/lab/good "$@""#);

/// The same, but not before it is in charge.
pub const FAILS_REQUESTS_IN_CHARGE: Release = Release::That(
    r#"grep -q '@next' /proc/self/cgroup || export "${PREFIX}LIMITS__REQUEST_TIMEOUT=1ms"; exec /opt/lab/good "$@""#,
);

/// Answers every POST with a 500.
pub const FAILS_POSTS: Release = Release::That("exec /opt/lab/bad");

/// The same, but only some time after its start.
pub const FAILS_POSTS_LATER: Release = Release::That("LAB_BAD_AFTER=8 exec /opt/lab/bad");

/// The same, but only once [`MIGRATES`] was started.
pub const FAILS_POSTS_ONCE_MIGRATED: Release =
    Release::That("LAB_BAD_ONCE=$STATE_DIRECTORY/migrated exec /opt/lab/bad");

/// Changes what it finds in a way that releases before it cannot cope with.
pub const MIGRATES: Release = Release::That(r#": >"$STATE_DIRECTORY/migrated"; exec /opt/lab/good "$@""#);

/// Is ready for clients unless a file of the host says that what it depends on is away.
pub const DEPENDENT: Release = Release::WhoseHealth(
    r#"[ ! -e /run/lab-away ] || { echo "process $2: 503 {"failed":{"database":"away"}}"; exit 1; }
exec /opt/lab/good "$@""#,
);

/// Does not start with what is in the host's configuration by now.
pub const OUTDATED: Release = Release::WhoseStart(
    r#"[ ! -e /run/lab-outdated ] || { echo 'unknown setting' >&2; exit 2; }; exec /opt/lab/good "$@""#,
);

/// Its socket unit listens nowhere.
pub const WITHOUT_SOCKET: Release = Release::WhoseUnits(r#"/opt/lab/good "$@" | sed /^ListenStream=/d"#);

/// There is a mistake in its service unit.
pub const MISSPELT_UNIT: Release = Release::WhoseUnits(r#"/opt/lab/good "$@" | sed s/^KillMode=/KilMode=/"#);

/// The binaries of all releases.
#[derive(Debug)]
pub struct Releases {
    good: PathBuf,
    bad: Option<PathBuf>,
    name: String,
    made: TempDir,
}

impl Releases {
    pub fn of(good: PathBuf, bad: Option<PathBuf>, name: &str) -> anyhow::Result<Self> {
        Ok(Self { good, bad, name: name.into(), made: TempDir::with_prefix("lab-releases-")? })
    }

    /// Puts there what the wrappers need.
    pub async fn prepare(&self, site: &Site) -> anyhow::Result<()> {
        site.host.put(&self.good, GOOD, 0o755).await?;
        match &self.bad {
            Some(bad) => site.host.put(bad, BAD, 0o755).await,
            None => Ok(()),
        }
    }

    /// A file to deploy.
    pub fn binary(&self, release: Release) -> anyhow::Result<PathBuf> {
        let bytes = match release {
            Release::Good => return Ok(self.good.clone()),
            Release::ForAnotherMachine => for_another_machine(fs::read(&self.good)?)?,
            Release::WithoutLibrary => without_library(fs::read(&self.good)?)?,
            Release::That(does) => self.wrapper("run", does),
            Release::WhoseHealth(does) => self.wrapper("health", does),
            Release::WhoseStart(does) => self.wrapper("run|check", does),
            Release::WhoseUnits(does) => self.wrapper("unit", does),
        };
        let (file, path) = tempfile::NamedTempFile::new_in(&self.made)?.keep()?;
        drop(file);
        fs::write(&path, bytes)?;
        make_executable(&path)?;
        Ok(path)
    }

    fn wrapper(&self, command: &str, does: &str) -> Vec<u8> {
        let prefix = self.name.to_uppercase().replace('-', "_") + "_";
        format!(
            "#!/bin/sh\nexport LAB_WRAPPER=$(readlink -f \"$0\")\ncase ${{1-run}} in {command}) ;; *) exec {GOOD} \"$@\" ;; esac\n\
             PREFIX={prefix}\n{does}\n"
        )
        .into()
    }
}

fn make_executable(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| path.display().to_string())
}

/// Another `e_machine` (elf(5)): that of a processor nobody has.
fn for_another_machine(mut elf: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    const MACHINE: std::ops::Range<usize> = 18..20;
    ensure!(elf.starts_with(b"\x7fELF"), "the service is no ELF file");
    elf[MACHINE].copy_from_slice(&0x1234_u16.to_ne_bytes());
    Ok(elf)
}

/// The name of a library that it needs, changed in place.
fn without_library(mut elf: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    const NEEDED: &[u8] = b"\0libc.so.6\0";
    const MISSING: &[u8] = b"\0libgone.6\0";
    let at =
        elf.windows(NEEDED.len()).position(|bytes| bytes == NEEDED).context("the service does not need libc.so.6")?;
    elf[at..at + NEEDED.len()].copy_from_slice(MISSING);
    Ok(elf)
}
