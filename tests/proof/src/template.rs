//! What the proofs are tried on: the template itself, a service that is generated from it, or one more of another name.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use lab::rehearse::raise_descriptor_limit;
use lab::subject::Subject;
use tokio::process::Command;

/// What the generated service is called.
const GENERATED: &str = "rehearsal";

/// What is to be deployed: a service that is generated from this template, unless that is taken as it is.
pub async fn subject(as_is: bool) -> anyhow::Result<Subject> {
    raise_descriptor_limit()?;
    let template = Subject::find(Path::new(".")).await?;
    if as_is {
        return Ok(template);
    }
    println!("Generating a service from the template ...");
    generate(&template).await
}

/// Generates a service from this template. It is built where the template is, so that what they
/// have in common is compiled once.
async fn generate(template: &Subject) -> anyhow::Result<Subject> {
    let into = template.target.join("rehearsal");
    if into.exists() {
        std::fs::remove_dir_all(&into).with_context(|| format!("removing {}", into.display()))?;
    }
    std::fs::create_dir_all(&into)?;
    let output = Command::new("tests/template.sh")
        .args([Path::new("generate"), &into, Path::new(GENERATED)])
        .current_dir(&template.directory)
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
    let generated = Subject::find(&into.join(GENERATED)).await?;
    Ok(Subject { target: template.target.clone(), ..generated })
}

/// The same service under another name, built: what a second one of the same template is like.
pub async fn twin(subject: &Subject) -> anyhow::Result<(Subject, PathBuf)> {
    const PARTS: [&str; 6] = ["Cargo.toml", "Cargo.lock", "config", "deploy", "src", "tests"];
    let name = match subject.name.as_str() {
        "twin" => "other",
        _ => "twin",
    };
    let twin = Subject { name: name.into(), directory: subject.target.join("twin"), ..subject.clone() };
    std::fs::create_dir_all(&twin.directory)?;
    // Another run may be at it.
    let lock = std::fs::File::create(subject.target.join("twin.lock"))?;
    let _lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    // Files that are gone would be built as well. What has not changed is not built again, by its time.
    for folder in ["config", "deploy", "src", "tests"].map(|part| twin.directory.join(part)) {
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
        }
    }
    let copy = Command::new("cp")
        .args(["--recursive", "--parents", "--preserve=mode,timestamps", "--target-directory"])
        .arg(&twin.directory)
        .args(PARTS)
        .current_dir(&subject.directory)
        .status()
        .await?;
    ensure!(copy.success(), "copying the service failed");
    for (file, key) in [("Cargo.toml", "\nname"), ("Cargo.lock", "\nname"), ("tests/proof/Cargo.toml", "package")] {
        let path = subject.directory.join(file);
        if path.exists() {
            let names = [&subject.name, name].map(|name| format!("{key} = \"{name}\""));
            std::fs::write(
                twin.directory.join(file),
                std::fs::read_to_string(path)?.replacen(&names[0], &names[1], 1),
            )?;
        }
    }
    let binary = twin.build().await?;
    Ok((twin, binary))
}

/// Builds it and one of its examples so that they notice what they assume, and that numbers overflow.
pub async fn build_checked(subject: &Subject, example: &str) -> anyhow::Result<[PathBuf; 2]> {
    subject.cargo_build(&["--bin", &subject.name, "--example", example]).await?;
    let debug = subject.target.join("debug");
    Ok([debug.join(&subject.name), debug.join("examples").join(example)])
}

/// Builds one of its examples.
pub async fn build_example(subject: &Subject, name: &str) -> anyhow::Result<PathBuf> {
    subject.cargo_build(&["--release", "--example", name]).await?;
    Ok(subject.target.join("release/examples").join(name))
}

/// Builds an example of the machinery's.
pub async fn build_machinery_example(subject: &Subject, name: &str) -> anyhow::Result<PathBuf> {
    subject.cargo_build(&["--release", "--package", "hitless", "--example", name]).await?;
    Ok(subject.target.join("release/examples").join(name))
}

/// Builds the program of releases that are no good. A service that was generated has no such example.
pub async fn build_bad(subject: &Subject) -> anyhow::Result<PathBuf> {
    const BAD: &str = "tests/bad/bad.rs";
    if !subject.directory.join(BAD).exists() {
        let examples = subject.directory.join("examples");
        std::fs::create_dir_all(&examples)?;
        std::fs::copy(BAD, examples.join("bad.rs")).with_context(|| format!("copying {BAD}"))?;
    }
    build_example(subject, "bad").await
}
