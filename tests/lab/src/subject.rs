//! The service that is rehearsed.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Deserialize;
use tokio::process::Command;

/// A service that can be built.
#[derive(Debug, Clone)]
pub struct Subject {
    pub name: String,
    pub version: String,
    /// Where its `Cargo.toml` is.
    pub directory: PathBuf,
    /// Where cargo puts what it builds.
    pub target: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    manifest_path: PathBuf,
}

impl Subject {
    /// The crate at the root of the workspace that `directory` is in.
    pub async fn find(directory: &Path) -> anyhow::Result<Self> {
        let output = Command::new("cargo")
            .args(["metadata", "--no-deps", "--format-version=1"])
            .current_dir(directory)
            .output()
            .await
            .context("starting cargo")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
        let manifest = metadata.workspace_root.join("Cargo.toml");
        let package = metadata
            .packages
            .into_iter()
            .find(|package| package.manifest_path == manifest)
            .with_context(|| format!("{} is not of a package", manifest.display()))?;
        Ok(Self {
            name: package.name,
            version: package.version,
            directory: metadata.workspace_root,
            target: metadata.target_directory,
        })
    }

    /// Builds it the way `make deploy` does, and returns the program.
    pub async fn build(&self) -> anyhow::Result<PathBuf> {
        self.cargo_build(&["--release", "--bin", &self.name]).await?;
        Ok(self.target.join("release").join(&self.name))
    }

    /// Builds some of it.
    pub async fn cargo_build(&self, what: &[&str]) -> anyhow::Result<()> {
        let status = Command::new("cargo")
            .arg("build")
            .args(what)
            .current_dir(&self.directory)
            .env("CARGO_TARGET_DIR", &self.target)
            .kill_on_drop(true)
            .status()
            .await
            .context("starting cargo")?;
        ensure!(status.success(), "the service does not build");
        Ok(())
    }

    /// What to ask it for.
    pub fn traffic(&self) -> PathBuf {
        self.directory.join("tests/lab/traffic.toml")
    }
}
