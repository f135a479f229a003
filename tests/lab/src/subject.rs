//! The service that is rehearsed: this very crate, or, in the template, one that is generated from it.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Deserialize;
use tokio::process::Command;

/// What the generated service is called.
const GENERATED: &str = "rehearsal";

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

    /// Whether this is the template, and not a service made from it.
    pub fn is_template(&self) -> bool {
        self.directory.join("tests/template.sh").is_file()
    }

    /// Generates a service from this template. It is built where the template is, so that what they
    /// have in common is compiled once.
    pub async fn generate(&self) -> anyhow::Result<Self> {
        let into = self.target.join("rehearsal");
        if into.exists() {
            std::fs::remove_dir_all(&into).with_context(|| format!("removing {}", into.display()))?;
        }
        std::fs::create_dir_all(&into)?;
        let output = Command::new("tests/template.sh")
            .args([Path::new("generate"), &into, Path::new(GENERATED)])
            .current_dir(&self.directory)
            .kill_on_drop(true)
            .output()
            .await
            .context("starting tests/template.sh")?;
        ensure!(
            output.status.success(),
            "generating a service failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let generated = Self::find(&into.join(GENERATED)).await?;
        Ok(Self { target: self.target.clone(), ..generated })
    }

    /// The same service under another name, built: what a second one of the same template is like.
    pub async fn twin(&self) -> anyhow::Result<(Self, PathBuf)> {
        const PARTS: [&str; 6] = ["Cargo.toml", "Cargo.lock", "config", "deploy", "src", "tests"];
        let name = match self.name.as_str() {
            "twin" => "other",
            _ => "twin",
        };
        let twin = Self { name: name.into(), directory: self.target.join("twin"), ..self.clone() };
        std::fs::create_dir_all(&twin.directory)?;
        // Another run may be at it.
        let lock = std::fs::File::create(self.target.join("twin.lock"))?;
        let _lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
        let copy = Command::new("cp")
            .args(["--recursive", "--parents", "--update", "--target-directory"])
            .arg(&twin.directory)
            .args(PARTS)
            .current_dir(&self.directory)
            .status()
            .await?;
        ensure!(copy.success(), "copying the service failed");
        for file in ["Cargo.toml", "Cargo.lock"] {
            let text = std::fs::read_to_string(self.directory.join(file))?;
            let names = [&self.name, name].map(|name| format!("\nname = \"{name}\"\n"));
            std::fs::write(twin.directory.join(file), text.replacen(&names[0], &names[1], 1))?;
        }
        let binary = twin.build().await?;
        Ok((twin, binary))
    }

    /// Builds it the way `make deploy` does, and returns the program.
    pub async fn build(&self) -> anyhow::Result<PathBuf> {
        self.cargo_build(&["--release", "--bin", &self.name]).await?;
        Ok(self.target.join("release").join(&self.name))
    }

    /// Builds it and one of its examples so that they notice what they assume, and that numbers overflow.
    pub async fn build_checked(&self, example: &str) -> anyhow::Result<[PathBuf; 2]> {
        self.cargo_build(&["--bin", &self.name, "--example", example]).await?;
        let debug = self.target.join("debug");
        Ok([debug.join(&self.name), debug.join("examples").join(example)])
    }

    /// Builds one of its examples.
    pub async fn build_example(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.cargo_build(&["--release", "--example", name]).await?;
        Ok(self.target.join("release/examples").join(name))
    }

    /// Builds an example of the machinery's.
    pub async fn build_machinery_example(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.cargo_build(&["--release", "--manifest-path", "src/hitless/Cargo.toml", "--example", name]).await?;
        Ok(self.target.join("release/examples").join(name))
    }

    async fn cargo_build(&self, what: &[&str]) -> anyhow::Result<()> {
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
