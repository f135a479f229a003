//! The log: what is in it, and that whoever reads it holds nobody up.

use rustix::process::Signal;
use serde_json::Value;

use crate::client::soon;
use crate::start::Process;

#[tokio::test]
async fn a_request_is_in_the_log_with_its_id_and_its_outcome() {
    let process = Process::start(&[("log.filter", "info,requests=debug"), ("log.format", "json")]).await;
    let mut client = process.client().await;
    client.send("GET /livez?secret=1 HTTP/1.1\r\nHost: test\r\nX-Request-Id: my-own\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 200);
    drop(client);
    process.signal(Signal::INT);
    let (_, log) = process.ended().await;
    let line = log.lines().find(|line| line.contains("my-own")).unwrap_or_else(|| panic!("{log}"));
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["method"], &line["path"], &line["status"]), (&"GET".into(), &"/livez".into(), &200.into()));
    assert_eq!(line["spans"][0]["request_id"], "my-own");
}

#[tokio::test]
async fn probes_are_not_in_the_log_by_default() {
    let process = Process::start(&[("log.format", "text")]).await;
    let mut client = process.client().await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(client.get(path).await.status, 200);
    }
    drop(client);
    process.signal(Signal::INT);
    let (_, log) = process.ended().await;
    assert!(!log.contains("/livez") && !log.contains("/readyz"), "{log}");
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nobody_up_and_what_is_lost_is_told() {
    const REQUESTS: usize = 20_000;
    const AT_ONCE: usize = 100;
    let mut process = Process::start(&[("log.filter", "info,requests=debug"), ("log.format", "json")]).await;
    let mut client = process.client().await;
    for _ in 0..REQUESTS / AT_ONCE {
        client.send("GET /livez HTTP/1.1\r\nHost: test\r\n\r\n".repeat(AT_ONCE)).await;
        for _ in 0..AT_ONCE {
            assert_eq!(client.answer().await.status, 200);
        }
    }

    let (mut read, mut lost) = (0, 0);
    let mut log = process.log();
    soon("all that is lost", async {
        while read + lost < REQUESTS {
            let line = log.next_line().await.expect("a log of text").expect("a log that goes on");
            let line: Value = serde_json::from_str(&line).expect("a line of JSON");
            let message = line["message"].as_str().expect("a message");
            if line["target"] == "requests" {
                read += 1;
            } else if let Some((lines, _)) = message.split_once(" lines of the log are lost") {
                lost = lines.parse().expect("a number");
            }
        }
    })
    .await;
    assert!(read > 0 && lost > 0, "{read} read, {lost} lost");
    drop(client);
    process.signal(Signal::INT);
    assert!(process.ended().await.0.success());
}
