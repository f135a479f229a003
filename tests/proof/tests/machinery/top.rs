//! What instances do, for who looks: a restart is seen happening, and a terminal is as it was.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use proof::manager::Service;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};

use crate::client::soon;
use crate::handover::{assert_good, begin, client, finish, restart, start};
use crate::start::{command, managed};

fn top(directory: &TempDir) -> Command {
    let mut command = command();
    command.arg("top").env("RUNTIME_DIRECTORY", directory.path()).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// What a line shows of the process `pid`: its phase, how long it is up, and so on.
fn cells(line: &str, pid: u32) -> Option<Vec<&str>> {
    let mut cells = line.split_whitespace().skip(1);
    (cells.next()? == pid.to_string()).then(|| cells.collect())
}

/// Waits for a line.
async fn seen(shown: &mut Lines<BufReader<ChildStdout>>, wanted: impl Fn(&str) -> bool) -> String {
    let line = async {
        loop {
            let line = shown.next_line().await.expect("lines").expect("more lines");
            assert!(line.len() <= 80, "{line}");
            if wanted(&line) {
                return line;
            }
        }
    };
    soon("a line", line).await
}

fn seconds(time: &str) -> f64 {
    let time = time.trim_start_matches(['<', '>']);
    let (time, unit) = time.strip_suffix("ms").map_or((time.trim_end_matches('s'), 1.0), |time| (time, 0.001));
    time.parse::<f64>().expect("a time") * unit
}

fn pid(service: &Service) -> u32 {
    service.pid().expect("a process")
}

#[tokio::test]
async fn who_looks_sees_what_an_instance_does_and_its_restart() {
    let directory = TempDir::new().unwrap();
    let mut service = start(managed().env("RUNTIME_DIRECTORY", directory.path())).await;
    let old = pid(&service);
    let (mut kept, mut busy) = (client(&service).await, client(&service).await);
    begin(&mut busy).await;
    // One of three fails, and one takes 200 ms.
    let load = async {
        for ask in ["GET /livez", "POST /fails/503", "GET /ping"].iter().cycle() {
            kept.send(format!("{ask} HTTP/1.1\r\nHost: test\r\n\r\n")).await;
            kept.answer().await;
        }
    };
    let output = tokio::select! {
        output = soon("top", top(&directory).arg("--once").output()) => output.unwrap(),
        () = load => unreachable!("it goes on"),
    };
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8(output.stdout).unwrap();
    let row = shown.lines().find_map(|line| cells(line, old)).expect("a line of the instance");
    let [phase, _, requests, failed, median, most, active, connections] = row[..] else { panic!("{shown}") };
    let [requests, failed] = [requests, failed].map(|rate| rate.parse::<f64>().unwrap());
    assert!(failed > 0.0 && failed < requests, "{shown}");
    assert!(seconds(median) < 0.1 && (0.1..1.0).contains(&seconds(most)), "{shown}");
    let active: u8 = active.parse().unwrap();
    assert!((phase, connections) == ("serving", "2") && (1..=2).contains(&active), "{shown}");
    assert!(shown.contains("took over 0 connections"), "{shown}");

    // Somebody looks on.
    let mut looking = top(&directory).spawn().unwrap();
    let mut shown = BufReader::new(looking.stdout.take().unwrap()).lines();
    seen(&mut shown, |line| cells(line, old).is_some_and(|cells| cells[0] == "serving" && cells[2] != "-")).await;
    tokio::join!(restart(&mut service), async {
        seen(&mut shown, |line| cells(line, old).is_some_and(|cells| cells[0] == "leaving")).await;
        finish(&mut busy).await;
    });
    let new = pid(&service);
    assert_good(&busy.get("/livez").await);
    seen(&mut shown, |line| {
        assert_eq!(cells(line, old).filter(|cells| cells[0] == "serving"), None);
        cells(line, new).is_some_and(|cells| cells[2] != "-" && cells[7] == "2")
    })
    .await;
    seen(&mut shown, |line| line.contains("took over 2 connections")).await;
    soon("the stop", service.stop()).await.unwrap();
    seen(&mut shown, |line| line == "no instance runs here").await;
    // One that looks once does not go on looking.
    let output = soon("top", top(&directory).arg("--once").output()).await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no instance runs here"), "{output:?}");

    soon("the next start", service.start()).await.unwrap();
    let new = pid(&service);
    seen(&mut shown, |line| cells(line, new).is_some_and(|cells| cells[0] == "serving")).await;
    // And has seen enough.
    drop(shown);
    let status = soon("the end", looking.wait()).await.unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_terminal_is_as_it_was() {
    let directory = TempDir::new().unwrap();
    let service = start(managed().env("RUNTIME_DIRECTORY", directory.path())).await;
    for end in ["what has no meaning, and q", "\x03", ""] {
        let mut terminal =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).map(File::from).unwrap();
        unlockpt(&terminal).unwrap();
        let inside =
            ioctl_tiocgptpeer(&terminal, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        tcsetwinsize(&inside, Winsize { ws_row: 3, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let before = tcgetattr(&inside).unwrap();
        let copy = |inside: &OwnedFd| Stdio::from(inside.try_clone().unwrap());
        let mut looking = top(&directory).stdin(copy(&inside)).stdout(copy(&inside)).spawn().unwrap();
        let (mut shown, mut buffer) = (String::new(), [0; 4096]);
        // Until there are figures.
        while !shown.contains("serving   ") || shown.matches("PHASE").count() < 2 {
            let length = terminal.read(&mut buffer).unwrap();
            shown += std::str::from_utf8(&buffer[..length]).unwrap();
        }
        assert!(!tcgetattr(&inside).unwrap().local_modes.contains(LocalModes::ECHO));
        match end {
            "" => kill_process(Pid::from_raw(looking.id().unwrap().cast_signed()).unwrap(), Signal::TERM).unwrap(),
            key => terminal.write_all(key.as_bytes()).unwrap(),
        }
        let status = soon("the end", looking.wait()).await.unwrap();
        assert!(status.success(), "{end:?}: {status}");
        let after = tcgetattr(&inside).unwrap();
        assert_eq!((after.local_modes, after.input_modes), (before.local_modes, before.input_modes), "{end:?}");
        drop(inside);
        while let Ok(length @ 1..) = terminal.read(&mut buffer) {
            shown += std::str::from_utf8(&buffer[..length]).unwrap();
        }
        assert!(shown.starts_with("\x1b[?1049h") && shown.ends_with("\x1b[?1049l"), "{end:?}: {shown:?}");
        // There is room for three lines.
        let frames: Vec<_> = shown.split("\x1b[H").skip(1).collect();
        assert!(frames.iter().all(|frame| frame.lines().count() == 3), "{frames:?}");
        assert!(frames[0].contains(&format!(" {} ", pid(&service))), "{frames:?}");
    }
}
