//! One timeout: a changed T changes everything that follows from it, together.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::application::{CONFIG, PING_DELAY};
use crate::client::soon;
use crate::start::{BINARY, Process};

#[tokio::test]
async fn one_number_governs_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, "shutdown_timeout = '3s'").unwrap();
    let arguments = ["--config".as_ref(), file.as_os_str()];

    // systemd waits for T and a margin.
    let unit = Command::new(BINARY).args(["unit", "service"]).args(arguments).output().unwrap();
    let unit = String::from_utf8(unit.stdout).unwrap();
    assert!(unit.lines().any(|line| line == "TimeoutStopSec=6s"), "{unit}");

    let environment = [(CONFIG, file.as_os_str()), (PING_DELAY, "1h".as_ref())];
    let process = Process::start_with(&environment, &[]).await;
    // A request that never ends is answered 503 at T/2, a head that does not come 408 at T/6.
    let began = Instant::now();
    let mut request = process.client().await;
    request.ask("/ping").await;
    let mut head = process.client().await;
    head.send("GET /ping HT").await;
    assert_eq!(head.answer().await.status, 408);
    assert!(began.elapsed() >= Duration::from_millis(500) && began.elapsed() < Duration::from_millis(1500));
    assert_eq!(request.answer().await.status, 503);
    assert!(began.elapsed() >= Duration::from_millis(1500) && began.elapsed() < Duration::from_millis(3000));

    // What has begun to be answered may take until T, which /readyz counts down.
    let mut upload = process.client().await;
    upload.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n").await;
    assert_eq!(upload.head().await.status, 200);
    assert_eq!(process.client().await.get("/readyz").await.status, 200);
    let told = Instant::now();
    process.signal(Signal::TERM);
    let leaving = soon("leaving", async {
        loop {
            // Each on a connection of its own: the last 200 may already announce the connection's end.
            let answer = process.client().await.get("/readyz").await;
            if answer.status == 503 {
                return answer;
            }
        }
    })
    .await;
    let remaining = leaving.json()["remaining_ms"].as_u64().unwrap();
    assert!((1500..=3000).contains(&remaining), "{leaving:?}");
    assert_eq!(leaving.header("retry-after"), Some(&*remaining.div_ceil(1000).to_string()));

    let (status, log) = process.ended().await;
    assert!(status.success() && log.contains("left behind"), "{log}");
    assert!(told.elapsed() >= Duration::from_secs(3) && told.elapsed() < Duration::from_secs(6));
}
