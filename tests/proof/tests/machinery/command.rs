//! The command line, where nobody reads what it says.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;

use crate::client::soon;
use crate::start::{Process, command, variable};

/// A pipe that nobody reads.
fn closed() -> OwnedFd {
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    writer.into()
}

/// The exit status, by number: a signal has none.
async fn status(command: &mut Command) -> Option<i32> {
    soon("the end", command.status()).await.expect("running the service").code()
}

#[tokio::test]
async fn what_nobody_reads_is_no_failure_and_hides_none() {
    let service = Process::start(&[]).await;
    let here = &*service.address.to_string();
    let nowhere = TempDir::new().expect("a folder without instances");
    for (arguments, listen, expected) in [
        (&["check"][..], here, 0),
        (&["unit", "service"], here, 0),
        (&["unit", "socket"], here, 0),
        (&["proxy", "haproxy", "a"], here, 0),
        (&["health"], here, 0),
        (&["health"], "127.0.0.1:1", 1),
        (&["help"], here, 0),
        (&["--help"], here, 0),
        (&["--version"], here, 0),
        (&["no-such-command"], here, 2),
        (&["check", "--config", "/nowhere"], here, 2),
        (&["run"], "192.0.2.1:80", 1),
    ] {
        let mut command = command();
        command.args(arguments).env(variable("listen"), listen).env("RUNTIME_DIRECTORY", nowhere.path());
        command.stdout(closed()).stderr(closed());
        assert_eq!(status(&mut command).await, Some(expected), "{arguments:?}");
    }
}

#[tokio::test]
async fn what_goes_wrong_before_there_is_a_log_is_an_error_in_the_journal() {
    for is_journal in [true, false] {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let stderr = File::from(OwnedFd::from(writer));
        let known = stderr.metadata().expect("what is known of it");
        let stream = if is_journal { format!("{}:{}", known.dev(), known.ino()) } else { "1:1".to_owned() };
        let mut command = command();
        command.arg("check").env(variable("listen"), "nowhere").env("JOURNAL_STREAM", stream).stderr(stderr);
        assert_eq!(status(&mut command).await, Some(2));
        drop(command);
        let mut said = String::new();
        reader.read_to_string(&mut said).expect("text");
        assert!(said.lines().count() == 2 && said.lines().all(|line| line.starts_with("<3>") == is_journal), "{said}");
    }
}

#[tokio::test]
async fn what_cannot_be_written_is_a_failure() {
    let service = Process::start(&[]).await;
    for arguments in [&["check"][..], &["unit", "service"], &["health"]] {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        let mut command = command();
        command.args(arguments).env(variable("listen"), service.address.to_string()).stdout(full).stderr(Stdio::null());
        assert_eq!(status(&mut command).await, Some(1), "{arguments:?}");
    }
}
