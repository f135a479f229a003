//! From a process of an earlier release to one of this and back, under load: as a deploy, a rollback and the next deploy have it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::load::{Kind, Load};
use lab::record::{Scenario, table};
use lab::rehearse::{Outcome, settle};
use lab::subject::Subject;
use lab::traffic::Traffic;
use tokio::process::Command;
use tokio::time::sleep;

use crate::kinds;
use crate::manager::Manager;
use crate::template;

/// The last commit of 0.1.0.
const EARLIER: &str = "3b44e3fa0751a36df393bf5c6a7d14d697a99f1e";

/// Who asks: every kind whose requests both releases answer.
const CROWD: [(Kind, u32); 8] = [
    (Kind::IDLE, 100),
    (Kind::PAUSING, 8),
    (Kind::FRESH, 4),
    (Kind::SLOW, 4),
    (Kind::UPLOADING, 4),
    (Kind::DAWDLING, 4),
    (kinds::HTTP2, 2),
    (kinds::TIMED, 4),
];

/// How often each release takes over.
const TURNS: usize = 5;

/// Hands over to and fro, prints what became of everybody, and says whether the promise was kept.
pub async fn releases() -> anyhow::Result<Outcome> {
    let template = template::subject(true).await?;
    let earlier = checked_out(&template).await?;
    let mut programs = vec![];
    for subject in [&template, &earlier] {
        subject.cargo_build(&["--bin", &subject.name]).await?;
        programs.push(subject.target.join("debug").join(&subject.name));
    }

    let folder = tempfile::tempdir()?;
    let (current, config) = (folder.path().join("current"), folder.path().join("config.toml"));
    let deploy = |program: &Path| {
        let next = folder.path().join("next");
        symlink(program, &next).and_then(|()| std::fs::rename(next, &current))
    };
    let traffic = Traffic::of(&template)?;
    std::fs::write(&config, traffic.settings.to_string())?;
    deploy(&programs[1])?;
    let arguments = ["run".as_ref(), "--config".as_ref(), config.as_os_str()];
    let mut service = Manager::new(&current).args(arguments).start().await?;
    let load = Load::start(service.address(), &traffic, &CROWD);
    settle(&load).await?;
    load.restarts_begin();
    for program in [&programs[0], &programs[1]].into_iter().cycle().take(2 * TURNS) {
        deploy(program)?;
        load.restarting();
        let status = service.restart().await?;
        load.restarted();
        ensure!(status.success(), "a process ended with {status}; its log:\n{}", service.log());
        sleep(Duration::from_millis(500)).await;
    }
    let findings = load.finish().await;
    println!("{} handovers between {} and {}\n", 2 * TURNS, earlier.version, template.version);
    println!("{}", table(&findings.scenarios, &findings.failures));
    findings.spotless().with_context(|| service.log())?;
    ensure!(Scenario::all(&findings.scenarios).answered > 0, "nobody asked");
    Ok(Outcome::Kept)
}

/// The template as it was, built where this one is, so that what they have in common is compiled once.
async fn checked_out(template: &Subject) -> anyhow::Result<Subject> {
    let directory = template.target.join("releases").join(EARLIER);
    if !directory.exists() {
        let unfinished = PathBuf::from(format!("{}.{}", directory.display(), std::process::id()));
        std::fs::create_dir_all(&unfinished)?;
        let checkout = Command::new("sh")
            .args(["-c", r#"git archive --output="$1/tar" "$0" && tar -xf "$1/tar" -C "$1""#, EARLIER])
            .arg(&unfinished)
            .current_dir(&template.directory)
            .kill_on_drop(true)
            .status()
            .await?;
        ensure!(checkout.success(), "{EARLIER} is not in this clone: git fetch --unshallow");
        std::fs::rename(&unfinished, &directory)?;
    }
    Ok(Subject { target: template.target.clone(), ..Subject::find(&directory).await? })
}
