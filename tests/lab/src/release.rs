//! What is deployed: the service as it is built, and releases that are no good.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::site::Site;

/// Where the good binary is on a host, for the wrappers below.
const GOOD: &str = "/opt/lab/good";

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

/// The binaries of all releases.
#[derive(Debug)]
pub struct Releases {
    good: PathBuf,
    name: String,
    made: TempDir,
}

impl Releases {
    pub fn of(good: PathBuf, name: &str) -> anyhow::Result<Self> {
        Ok(Self { good, name: name.into(), made: TempDir::with_prefix("lab-releases-")? })
    }

    /// Puts there what the wrappers need.
    pub async fn prepare(&self, site: &Site) -> anyhow::Result<()> {
        site.host.put(&self.good, GOOD, 0o755).await
    }

    /// A file to deploy.
    pub fn binary(&self, release: Release) -> anyhow::Result<PathBuf> {
        let bytes = match release {
            Release::Good => return Ok(self.good.clone()),
            Release::ForAnotherMachine => for_another_machine(fs::read(&self.good)?)?,
            Release::WithoutLibrary => without_library(fs::read(&self.good)?)?,
            Release::That(does) => self.wrapper("run", does),
            Release::WhoseHealth(does) => self.wrapper("health", does),
        };
        let (file, path) = tempfile::NamedTempFile::new_in(&self.made)?.keep()?;
        drop(file);
        fs::write(&path, bytes)?;
        make_executable(&path)?;
        Ok(path)
    }

    fn wrapper(&self, command: &str, does: &str) -> Vec<u8> {
        let prefix = self.name.to_uppercase().replace('-', "_") + "_";
        format!("#!/bin/sh\n[ \"${{1-run}}\" = {command} ] || exec {GOOD} \"$@\"\nPREFIX={prefix}\n{does}\n").into()
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
