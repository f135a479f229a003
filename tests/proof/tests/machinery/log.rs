//! The log: what is in it, and that whoever reads it holds nobody up.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::application::BEGUN;
use crate::client::soon;
use crate::handover::{client, start};
use crate::start::{Process, managed, variable};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_failure_in_the_log_unless_its_client_is_to_blame() {
    let mut service = start(managed().env("RUST_BACKTRACE", "0").env(variable("limits.max_body_bytes"), "10")).await;
    for how in ["fails", "panics"] {
        let mut client = client(&service).await;
        client.send(format!("GET /breaks/{how} HTTP/1.1\r\nHost: test\r\nX-Request-Id: {how}\r\n\r\n")).await;
        client.until_end().await;
    }
    // What the answer is made of does not come, is nonsense, or is too much.
    for chunks in ["5\r\nbegun\r\n", "5\r\nbegun\r\nnonsense\r\n", "5\r\nbegun\r\nf\r\nand far too much\r\n"] {
        let mut client = client(&service).await;
        client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
        assert_eq!(client.head().await.status, 200);
        client.send(chunks).await;
    }
    let status = soon("a status", service.wait_for("STATUS=serving 0 connections; 5 requests, 2 failed")).await;
    assert!(status.is_ok(), "{:?}", service.messages());
    assert!(service.stop().await.expect("an end").success());
    let log = service.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines: Vec<_> =
        lines.filter(|line| line["message"].as_str().is_some_and(|said| said.contains("breaks off"))).collect();
    assert_eq!(lines.len(), 2, "{log}");
    for (line, (how, why)) in lines.iter().zip([("fails", "no database: nobody listens"), ("panics", "it panicked")]) {
        assert_eq!(line["message"], format!("GET /breaks/{how}: the answer breaks off: {why}"));
        assert_eq!((&line["level"], &line["request_id"]), (&json!("ERROR"), &json!(how)), "{line}");
    }
}

#[tokio::test]
async fn what_a_handler_logs_has_its_requests_id_whatever_else_is_logged() {
    for filter in ["off,machinery=info", "info,requests=off"] {
        let mut service = start(managed().env(variable("log.filter"), filter)).await;
        let mut client = client(&service).await;
        client.send("GET /tells/after HTTP/1.1\r\nHost: test\r\nX-Request-Id: it\r\n\r\n").await;
        assert_eq!(client.answer().await.status, 200);
        drop(client);
        assert!(service.stop().await.expect("an end").success());
        assert_eq!(lines_of(&service.log(), "it"), ["after"], "{filter}: {}", service.log());
    }
}

#[tokio::test]
async fn a_request_is_in_the_log_with_what_is_known_of_it_and_its_outcome() {
    let process = Process::start(&[("log.filter", "info,requests=debug"), ("log.format", "json")]).await;
    for (path, id, parent) in [
        ("/livez?secret=1", "my-own", format!("00-{TRACE}-00f067aa0ba902b7-01")),
        ("/nowhere", "lost", "00-0".to_owned()),
    ] {
        let mut proxy = process.client().await;
        proxy
            .send(format!(
                "GET {path} HTTP/1.1\r\nHost: test\r\nX-Request-Id: {id}\r\nX-Forwarded-For: 1.2.3.4\r\n\
                 Traceparent: {parent}\r\n\r\n"
            ))
            .await;
        proxy.answer().await;
    }
    let mut probe = process.client().await;
    process.signal(Signal::TERM);
    soon("leaving", async {
        while probe.get("/readyz").await.status == 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let (_, log) = process.ended().await;
    let line = |has: &str| -> Value {
        let line = log.lines().rfind(|line| line.contains(has)).unwrap_or_else(|| panic!("no {has} in {log}"));
        serde_json::from_str(line).expect("a line of JSON")
    };
    let known = line("my-own");
    for (field, value) in [
        ("message", json!("GET /livez: 200")),
        ("method", json!("GET")),
        ("path", json!("/livez")),
        ("route", json!("/livez")),
        ("status", json!(200)),
        ("bytes", json!(5)),
        ("client", json!("1.2.3.4")),
    ] {
        assert_eq!(known[field], value, "{field} of {known}");
    }
    assert!(known["took"].is_string(), "{known}");
    assert_eq!(known["spans"][0]["request_id"], "my-own");
    assert_eq!(known["spans"][0]["trace_id"], TRACE);
    let unknown = line("GET /nowhere: 404");
    assert_eq!(unknown.get("route"), None, "{unknown}");
    assert_eq!(unknown["spans"][0]["trace_id"].as_str().map(str::len), Some(32), "{unknown}");
    // It leaves, as it was told to: that is nobody's fault.
    assert_eq!(line("GET /readyz: 503")["level"], "DEBUG");
}

/// What is logged of a request with this id, by message.
fn lines_of(log: &str, id: &str) -> Vec<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let own = lines.filter(|line| line["spans"][0]["request_id"] == id);
    own.map(|line| line["message"].as_str().expect("a message").to_owned()).collect()
}

#[tokio::test]
async fn what_a_failure_says_is_in_the_log_once_and_not_with_the_client() {
    const LONG: usize = 20_000;
    let long = "x".repeat(LONG);
    let (plain, json) = ("text/plain; charset=utf-8", "application/json");
    // Status, type, coding, text; whether the client sees it, and whether the log has it.
    let cases = [
        (500, plain, "", "db: refused", false, Some("500: db: refused")),
        (502, plain, "", "a\nb\n", false, Some("502: a\nb")),
        (503, "text/plain", "", &long, false, Some("503: xxx")),
        (500, plain, "", "", false, Some("500")),
        (500, plain, "gzip", "coded", false, Some("500")),
        (500, json, "", "{\"own\":1}", true, Some("500")),
        (404, plain, "", "no such order", true, None),
        (400, plain, "", &long, true, None),
        (404, plain, "gzip", "coded", true, None),
        (200, plain, "gzip", "coded", true, None),
    ];
    let mut service = start(managed()).await;
    for (number, (status, media_type, coding, text, seen, _)) in cases.iter().enumerate() {
        let mut client = client(&service).await;
        let coding_header = if coding.is_empty() { String::new() } else { format!("Content-Encoding: {coding}\r\n") };
        client
            .send(format!(
                "POST /fails/{status} HTTP/1.1\r\nHost: test\r\nX-Request-Id: case-{number}\r\n\
                 Content-Type: {media_type}\r\n{coding_header}Content-Length: {}\r\n\r\n{text}",
                text.len()
            ))
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status, *status, "{answer:?}");
        let start = &text[..text.len().min(100)];
        assert_eq!(answer.text().contains(start) && !start.is_empty(), *seen, "{answer:?}");
        // What is said of the body is true of the body that came.
        let document = answer.header("content-type") == Some("application/problem+json");
        assert_eq!(answer.header("content-encoding").is_some(), !coding.is_empty() && !document, "{answer:?}");
        assert_eq!(answer.header("etag").is_some(), !document, "{answer:?}");
        if document {
            assert_eq!(answer.json()["status"], answer.status, "{answer:?}");
        }
        assert!(answer.text().len() < LONG, "{} bytes", answer.text().len());
    }
    assert!(service.stop().await.expect("an end").success());
    let log = service.log();
    for (number, (.., logged)) in cases.iter().enumerate() {
        let lines = lines_of(&log, &format!("case-{number}"));
        assert_eq!(lines.len(), usize::from(logged.is_some()), "{lines:?}");
        let Some(logged) = logged else { continue };
        let line = &lines[0];
        let said = line.split_once(": ").expect("method, path and status").1;
        let fits = if logged.ends_with('x') { said.starts_with(logged) && said.len() < LONG } else { said == *logged };
        assert!(fits, "{line}");
    }
}

#[tokio::test]
async fn what_a_handler_failed_of_is_in_the_log_once_and_what_it_tells_is_with_the_client() {
    const CAUSE: &str = "no database: nobody listens";
    let told = |status: u16| {
        let own = json!({ "type": "https://test/none", "instance": "/problems/7", "title": "None", "balance": 30 });
        let mut document = json!({ "detail": "told", "status": status });
        document.as_object_mut().expect("an object").extend(own.as_object().cloned().expect("an object"));
        document
    };
    let cases = [
        (0, 500, json!({ "status": 500, "title": "Internal Server Error" }), format!("500: {CAUSE}"), "ERROR"),
        (500, 500, told(500), format!("500: told: {CAUSE}"), "ERROR"),
        (503, 503, told(503), format!("503: told: {CAUSE}"), "ERROR"),
        (404, 404, told(404), format!("404: told: {CAUSE}"), "DEBUG"),
    ];
    let mut service = start(managed().env(variable("log.filter"), "info,requests=debug")).await;
    for (asked, status, document, ..) in &cases {
        let mut client = client(&service).await;
        client
            .send(format!("GET /problems/{asked} HTTP/1.1\r\nHost: test\r\nX-Request-Id: case-{asked}\r\n\r\n"))
            .await;
        let answer = client.answer().await;
        assert_eq!((answer.status, &answer.json()), (*status, document));
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    assert!(service.stop().await.expect("an end").success());
    let log = service.log();
    for (asked, _, _, logged, level) in &cases {
        let lines = lines_of(&log, &format!("case-{asked}"));
        assert_eq!(lines, [format!("GET /problems/{asked}: {logged}")]);
        let line = log.lines().find(|line| line.contains(&lines[0])).expect("the line");
        assert!(line.contains(level), "{line}");
    }
}

#[tokio::test]
async fn a_panic_is_a_line_of_the_log_with_its_request_and_its_place() {
    let long = format!("a secret\nof \u{9b}31m{}", "x".repeat(100_000));
    let service = managed().env("RUST_BACKTRACE", "0");
    let mut service = start(service).await;
    let mut client = client(&service).await;
    client
        .send(format!(
            "POST /fails/0 HTTP/1.1\r\nHost: test\r\nX-Request-Id: it\r\nContent-Length: {}\r\n\r\n{long}",
            long.len()
        ))
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 500);
    assert!(!answer.text().contains("secret"), "{answer:?}");
    drop(client);
    assert!(service.stop().await.expect("an end").success());
    let log = service.log();
    assert_eq!(log.matches("a secret").count(), 1, "{log}");
    assert!(!log.contains('\u{9b}') && log.len() < 20_000, "{log}");
    let lines = lines_of(&log, "it");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("panicked at tests/proof/tests/machinery/application.rs:"), "{}", lines[0]);
    assert!(lines[0].contains("a secret\nof \u{9b}31mxxx"), "{}", lines[0]);
    assert_eq!(lines[1], "POST /fails/0: 500");
}

#[tokio::test]
async fn what_a_request_leaves_behind_or_says_at_its_end_is_in_the_log_with_its_id() {
    let mut service = start(managed().env(variable("log.filter"), "info,requests=debug")).await;
    let ask = |when: &str| format!("GET /tells/{when} HTTP/1.1\r\nHost: test\r\nX-Request-Id: {when}\r\n\r\n");
    let mut answered = client(&service).await;
    let mut leaves = TcpStream::connect(service.address()).await.expect("connecting");
    leaves.write_all(ask("given-up").as_bytes()).await.expect("sending");
    service.logged(BEGUN, 1).await.expect("a request that has begun, which no reset overtakes");
    answered.send(ask("after")).await;
    assert_eq!(answered.answer().await.status, 200);
    leaves.set_zero_linger().expect("an end that is a reset");
    drop(leaves);
    service.logged("given up before it was answered", 1).await.expect("the line of a request that is given up");
    drop(answered);
    assert!(service.stop().await.expect("an end").success());
    let log = service.log();
    let outcome = |when: &str, outcome: &str| format!("GET /tells/{when}: {outcome}");
    let (after, given_up) = (outcome("after", "200"), outcome("given-up", "given up before it was answered"));
    for (id, said, outcome) in [("after", "after", after), ("given-up", "given up", given_up)] {
        let mut lines = lines_of(&log, id);
        lines.sort_unstable();
        assert_eq!(lines, [outcome, said.to_owned()], "{log}");
        let line = log.lines().find(|line| line.contains(&format!("\"message\":\"{said}\""))).expect("the line");
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        assert_eq!(line["spans"][1]["number"], 7, "{line}");
        assert_eq!(line["spans"].as_array().map(Vec::len), Some(2), "{line}");
    }
}

#[tokio::test]
async fn what_clients_send_steers_nobody_who_reads_the_log_and_has_a_bound() {
    let paths =
        ["/a\u{9b}31mred\u{9b}0m", "/a\u{9d}0;title\u{9c}b", "/a\u{85}b\u{2028}c", "/a\u{202e}txt.exe", "/\u{feff}"];
    let long = format!("/{}", "ä\u{9b}".repeat(5_000));
    let method = "M".repeat(20_000);
    let asked: Vec<(&str, &str)> =
        paths.iter().map(|path| ("GET", *path)).chain([("GET", &*long), (&method, &long)]).collect();
    for format in ["text", "json"] {
        let settings =
            [("log.filter", "info,requests=debug"), ("log.format", format), ("limits.max_head_bytes", "65536")];
        let process = Process::start(&settings).await;
        for (number, (method, path)) in asked.iter().enumerate() {
            let mut client = process.client().await;
            let id = format!("{number}{}", "i".repeat(5_000));
            client.send(format!("{method} {path} HTTP/1.1\r\nHost: test\r\nX-Request-Id: {id}\r\n\r\n")).await;
            assert_eq!(client.answer().await.status, 404, "{path}");
        }
        process.signal(Signal::INT);
        let (_, log) = process.ended().await;

        let steering = log.chars().find(|character| {
            (character.is_control() && *character != '\n') || "\u{2028}\u{202e}\u{feff}".contains(*character)
        });
        assert_eq!(steering, None, "{log}");
        assert!(log.lines().all(|line| line.len() < 20_000), "{:?}", log.lines().map(str::len).max());
        let requests: Vec<_> = log.lines().filter(|line| line.contains(": 404")).collect();
        assert_eq!(requests.len(), asked.len(), "{log}");
        if format == "json" {
            for (line, (_, path)) in requests.iter().zip(&asked) {
                let line: Value = serde_json::from_str(line).expect("a line of JSON");
                let logged = line["path"].as_str().expect("a path");
                assert!(path.starts_with(logged) && (logged.len() > 1000 || logged == *path), "{logged:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_breaks_http_2_by_the_thousand_does_not_fill_the_log() {
    const AT_ONCE: usize = 1000;
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).expect("a short frame");
        [&[0, 0, length, kind, flags, 0, 0, 0, 0], payload].concat()
    };
    let process = Process::start(&[("log.format", "json")]).await;
    let mut client = process.client().await;
    client.send([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &*frame(4, 0, b"")].concat()).await;
    for _ in 0..10 {
        // Answers to PINGs that nobody sent; and one PING, whose answer says that the others are read.
        client.send(frame(6, 1, b"unasked!").repeat(AT_ONCE)).await;
        client.send(frame(6, 0, b"answered")).await;
        loop {
            let head = client.take(9).await;
            let payload = client.take(head[2].into()).await;
            if head[3..5] == [6, 1] && payload == b"answered" {
                break;
            }
        }
    }
    drop(client);
    process.signal(Signal::INT);
    let (_, log) = process.ended().await;
    assert!(log.lines().count() < 10, "{} lines: {}", log.lines().count(), log.lines().take(5).collect::<String>());
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
    const REQUESTS: usize = 60_000;
    /// After which the log holds all that it keeps.
    const FULL: usize = 20_000;
    const AT_ONCE: usize = 100;
    let mut process = Process::start(&[("log.filter", "info,requests=debug"), ("log.format", "json")]).await;
    let mut client = process.client().await;
    let mut full = 0;
    for round in 0..REQUESTS / AT_ONCE {
        if round == FULL / AT_ONCE {
            full = process.memory();
        }
        client.send("GET /livez HTTP/1.1\r\nHost: test\r\n\r\n".repeat(AT_ONCE)).await;
        for _ in 0..AT_ONCE {
            assert_eq!(client.answer().await.status, 200);
        }
    }
    // Of a request that has ended nothing is left, though it had a span.
    let grown = process.memory().saturating_sub(full);
    assert!(grown < 8 << 20, "{} kB more after {} requests", grown >> 10, REQUESTS - FULL);

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

#[tokio::test]
async fn what_clients_cause_is_a_line_once_in_a_while_and_none_is_forgotten() {
    let process = Process::start(&[("log.format", "json"), ("limits.header_timeout", "300ms")]).await;
    for _ in 0..100 {
        let mut client = process.client().await;
        client.send("nonsense\r\n\r\n").await;
        assert_eq!(client.answer().await.status, 400);
    }
    let mut late = process.client().await;
    late.send("GET /livez HTT").await;
    assert_eq!(late.answer().await.status, 408);
    // The first at once, the others together, ten seconds later.
    tokio::time::sleep(Duration::from_secs(12)).await;
    process.signal(Signal::INT);
    let (_, log) = process.ended().await;

    let lines = |what: &str| -> Vec<_> { log.lines().filter(|line| line.contains(what)).collect() };
    assert_eq!(lines("limits.header_timeout").len(), 1, "{log}");
    let malformed = lines("cannot be understood");
    assert_eq!(malformed.len(), 2, "{log}");
    assert!(malformed[0].contains("(1 times") && malformed[1].contains("(99 times"), "{log}");
}

#[tokio::test]
async fn what_clients_leave_unread_is_told_of_some_and_counted() {
    let process = Process::start(&[("shutdown_timeout", "1s")]).await;
    let mut client = process.client().await;
    // Requests of HTTP/2 whose answers have no window, by a long path.
    let path = format!("/{}", "p".repeat(1000));
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0".to_vec();
    for stream in (1..200_u32).step_by(2) {
        // RFC 7541, section 5.1: 1001 by a prefix of 7 bits.
        let head = [b"\x82\x86\x04\x7f\xea\x06", path.as_bytes(), b"\x01\x04test"].concat();
        bytes.extend(&(head.len() as u32).to_be_bytes()[1..]);
        bytes.extend([1, 5]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(head);
    }
    client.send(bytes).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    process.signal(Signal::TERM);
    let (_, log) = process.ended().await;
    assert!(log.contains("100 left behind"), "{log}");
    assert_eq!(log.matches("as it waits for its client").count(), 20);
    assert!(log.len() < 30_000, "{}", log.len());
}
