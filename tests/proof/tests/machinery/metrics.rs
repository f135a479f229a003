//! What the service counts, and who is told: what each kind of request counts as, several instances in one text, and restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::sync::LazyLock;

use layers::instances::merged;
use layers::metrics;
use prometheus_client::metrics::counter::Counter;
use proof::manager::Service;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::client::{Client, soon};
use crate::handover::{assert_good, begin, client, finish, restart, start};
use crate::start::{command, managed, variable};

/// As the README has it.
pub static ORDERS: LazyLock<Counter> =
    LazyLock::new(|| metrics::register("orders", "Orders that were taken", Counter::default()));

/// Counted requests, by these names.
const COUNT: &str = "http_server_request_duration_seconds_count";

/// An instance among those of `directory`.
async fn instance(directory: &TempDir) -> Service {
    start(managed().env("RUNTIME_DIRECTORY", directory.path())).await
}

fn metrics_of(directory: &TempDir) -> Command {
    let mut command = command();
    command.arg("metrics").env("RUNTIME_DIRECTORY", directory.path());
    command
}

/// What the instances tell together.
async fn told(directory: &TempDir) -> String {
    let output = soon("metrics", metrics_of(directory).output()).await.expect("running the service");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The samples of an instance, without its name.
fn samples(text: &str, instance: &str) -> BTreeMap<String, f64> {
    let label = format!("instance=\"{instance}\"");
    let lines = text.lines().filter(|line| !line.starts_with('#') && line.contains(&label));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a sample");
            let series = series.replace(&format!("{label},"), "").replace(&format!("{{{label}}}"), "");
            (series, value.parse().expect("a number"))
        })
        .collect()
}

async fn samples_of(service: &Service, directory: &TempDir) -> BTreeMap<String, f64> {
    samples(&told(directory).await, &service.pid().expect("a process").to_string())
}

fn counted(method: &str, route: &str, status: &str) -> String {
    format!("{COUNT}{{http_request_method=\"{method}\",http_route=\"{route}\",http_response_status_code=\"{status}\"}}")
}

/// How often each kind of request was counted.
fn requests(samples: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    samples.iter().filter(|(series, _)| series.starts_with(COUNT)).map(|(name, value)| (name.clone(), *value)).collect()
}

#[tokio::test]
async fn each_request_counts_once_by_its_method_its_route_and_its_status() {
    let directory = TempDir::new().unwrap();
    let service =
        start(managed().env("RUNTIME_DIRECTORY", directory.path()).env(variable("limits.max_body_bytes"), "10")).await;
    let table = [
        ("GET /livez?a=b", "", "GET", "/livez", "200"),
        ("HEAD /livez", "", "HEAD", "/livez", "200"),
        ("POST /livez", "", "POST", "/livez", "405"),
        ("BREW /livez", "", "_OTHER", "/livez", "405"),
        ("get /livez", "", "_OTHER", "/livez", "405"),
        ("GET /nowhere", "", "GET", "", "404"),
        ("BREW /nowhere", "", "_OTHER", "", "404"),
        ("GET /fails", "", "GET", "", "404"),
        ("POST /fails/503", "", "POST", "/fails/{status}", "503"),
        ("POST /fails/418", "", "POST", "/fails/{status}", "418"),
        // A panic.
        ("POST /fails/0", "", "POST", "/fails/{status}", "500"),
        ("GET /problems/500", "", "GET", "/problems/{status}", "500"),
        // What never got as far as the router.
        ("GET /livez", "Host: another\r\n", "GET", "/livez", "400"),
        ("POST /echo", "Content-Length: 11\r\n\r\n12345678901", "POST", "/echo", "413"),
        ("GET /nowhere", "Host: another\r\n", "GET", "", "400"),
    ];
    for (ask, more, ..) in table {
        let mut client = client(&service).await;
        let end = if more.contains("\r\n\r\n") { "" } else { "\r\n" };
        client.send(format!("{ask} HTTP/1.1\r\nHost: test\r\n{more}{end}")).await;
        client.head().await;
    }
    // One that nobody waits for.
    let mut leaves = TcpStream::connect(service.address()).await.unwrap();
    leaves.write_all(b"GET /tells/given-up HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    let mut busy = client(&service).await;
    begin(&mut busy).await;
    let active = samples_of(&service, &directory).await["http_server_active_requests"];
    leaves.set_zero_linger().unwrap();
    drop(leaves);
    finish(&mut busy).await;
    service.logged("given up", 1).await.unwrap();
    // And one that is no request.
    let mut nonsense = client(&service).await;
    nonsense.send("nonsense\r\n\r\n").await;
    assert_eq!(nonsense.answer().await.status, 400);

    let samples = samples_of(&service, &directory).await;
    let mut expected: BTreeMap<String, f64> = BTreeMap::new();
    for (_, _, method, route, status) in table {
        *expected.entry(counted(method, route, status)).or_default() += 1.0;
    }
    expected.insert(counted("GET", "/tells/{when}", ""), 1.0);
    // The one that was under way.
    expected.insert(counted("POST", "/echo", "200"), 1.0);
    assert_eq!(requests(&samples), expected);
    assert!(active >= 2.0, "{active}");
    assert_eq!(samples["hitless_limited_total{reason=\"malformed\"}"], 1.0);
    assert_eq!(samples["hitless_phase{phase=\"serving\"}"], 1.0);
}

#[tokio::test]
async fn ten_thousand_paths_and_methods_of_a_clients_own_are_two_series() {
    const AT_ONCE: usize = 100;
    let directory = TempDir::new().unwrap();
    let service = instance(&directory).await;
    let mut client = client(&service).await;
    for round in 0..100 {
        let ask = |number| {
            let method = if number % 2 == 0 { "GET".to_owned() } else { format!("M{round}X{number}") };
            format!("{method} /{round}/{number}?{number} HTTP/1.1\r\nHost: test\r\n\r\n")
        };
        client.send((0..AT_ONCE).map(ask).collect::<String>()).await;
        for _ in 0..AT_ONCE {
            assert_eq!(client.answer().await.status, 404);
        }
    }
    let all = requests(&samples_of(&service, &directory).await);
    let expected = [(counted("GET", "", "404"), 5000.0), (counted("_OTHER", "", "404"), 5000.0)];
    assert_eq!(all, BTreeMap::from(expected));
}

#[tokio::test]
async fn instances_tell_it_together_and_tools_understand_it() {
    let directory = TempDir::new().unwrap();
    let (one, two) = (instance(&directory).await, instance(&directory).await);
    assert_good(&client(&one).await.get("/livez").await);
    assert_eq!(client(&two).await.get("/order").await.status, 200);
    // One that hangs.
    let stuck = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::net::bind(&stuck, &rustix::net::SocketAddrUnix::new(directory.path().join("1")).unwrap()).unwrap();
    rustix::net::listen(&stuck, 1).unwrap();

    let text = told(&directory).await;

    let mut described = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with('#')) {
        let words: Vec<_> = line.split(' ').take(3).collect();
        assert!(described.insert(words), "twice: {line}");
    }
    let unlabelled = text.lines().find(|line| !line.starts_with('#') && !line.contains("instance=\""));
    assert_eq!(unlabelled, None);
    let [first, second] = [&one, &two].map(|service| samples(&text, &service.pid().unwrap().to_string()));
    assert_eq!((first["hitless_up"], second["hitless_up"], samples(&text, "1")["hitless_up"]), (1.0, 1.0, 0.0));
    assert_eq!(first.get(&counted("GET", "/livez", "200")), Some(&1.0));
    assert_eq!(second.get(&counted("GET", "/livez", "200")), None);
    assert_eq!((first.get("orders_total"), second.get("orders_total")), (None, Some(&1.0)));
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_threads", "tokio_workers"] {
        assert!(first[name] > 0.0, "{name}: {}", first[name]);
    }
    assert!(first["process_open_fds"] < first["process_max_fds"]);

    // As Prometheus itself reads it.
    let promtool = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/promtool/usr/bin/promtool");
    let promtool = if Path::new(promtool).exists() { promtool } else { "promtool" };
    let promtool =
        Command::new(promtool).args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut promtool = promtool.expect("promtool, which tests/setup.sh proofs brings");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    let output = promtool.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
async fn clients_are_told_nothing_however_they_come() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("socket");
    let mut by_unix = start(managed().listen_unix(&path).env("RUNTIME_DIRECTORY", directory.path())).await;
    let by_tcp = instance(&directory).await;
    let mut clients = [Client::connect_unix(&path).await, client(&by_tcp).await];
    for client in &mut clients {
        assert_eq!(client.get("/metrics").await.status, 404);
    }
    // Nor by a connection that was handed over, by either way.
    by_unix.signal(Signal::TERM).unwrap();
    soon("the end", by_unix.exited()).await.unwrap();
    assert_eq!(clients[0].get("/metrics").await.status, 404);
    assert_eq!(samples_of(&by_tcp, &directory).await["hitless_connections_taken_over_total"], 1.0);
}

#[tokio::test]
async fn a_new_process_begins_at_nothing_and_has_taken_over_what_was_open() {
    let directory = TempDir::new().unwrap();
    let mut service = instance(&directory).await;
    let mut kept = client(&service).await;
    for round in 1..=3 {
        for _ in 0..round {
            assert_good(&kept.get("/livez").await);
        }
        let samples = samples_of(&service, &directory).await;
        assert_eq!(samples[&counted("GET", "/livez", "200")], f64::from(round));
        assert_eq!(samples["hitless_connections_taken_over_total"], f64::from(u8::from(round > 1)));
        assert_eq!(samples["hitless_connections_accepted_total"], f64::from(u8::from(round == 1)));
        assert_eq!(samples["hitless_handovers_failed_total"], 0.0);
        assert!(samples["hitless_start_duration_seconds"] > 0.0);
        restart(&mut service).await;
    }
    assert!(!service.log().contains("panicked"), "{}", service.log());
}

#[tokio::test]
async fn a_request_on_standard_input_is_answered_as_http_has_it() {
    let (directory, nowhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let _service = instance(&directory).await;
    let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "a".repeat(20_000));
    for (head, directory, status, has_body) in [
        ("GET /metrics HTTP/1.1\r\nHost: test\r\nAccept: */*\r\n\r\n", &directory, "200 OK", true),
        ("GET /metrics?a=b HTTP/1.0\r\n\r\n", &directory, "200 OK", true),
        ("GET http://test:9464/metrics?a=b HTTP/1.1\r\nHost: test\r\n\r\n", &directory, "200 OK", true),
        ("GET http://test/metrics/ HTTP/1.1\r\nHost: test\r\n\r\n", &directory, "404 Not Found", true),
        ("HEAD /metrics HTTP/1.1\r\nHost: test\r\n\r\n", &directory, "200 OK", false),
        ("GET /metrics HTTP/1.1\r\nHost: test\r\n", &directory, "400 Bad Request", true),
        ("GET /metrics HTTP/1.1\r\n\r\n", &nowhere, "503 Service Unavailable", true),
        ("GET / HTTP/1.1\r\n\r\n", &directory, "404 Not Found", true),
        ("POST /metrics HTTP/1.1\r\n\r\n", &directory, "405 Method Not Allowed", true),
        ("nonsense\r\n\r\n", &directory, "400 Bad Request", true),
        ("GET /metrics HTTP/2.0\r\n\r\n", &directory, "400 Bad Request", true),
        ("GET /metrics HTTP/1.1\r\nA: \u{e4}\r\n\r\n", &directory, "200 OK", true),
        ("GET /metrics \u{e4}\r\n\r\n", &directory, "400 Bad Request", true),
        ("", &directory, "400 Bad Request", true),
        (&long, &directory, "400 Bad Request", true),
    ] {
        let mut command = metrics_of(directory);
        let mut answering =
            command.arg("--http").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the service");
        let mut input = answering.stdin.take().unwrap();
        input.write_all(head.as_bytes()).await.unwrap();
        // A client that has asked keeps its side open.
        let open = head.ends_with("\r\n\r\n").then_some(input);
        let output = soon("an answer", answering.wait_with_output()).await.expect("an answer");
        drop(open);
        assert!(output.status.success(), "{head:.50}: {output:?}");
        let answer = String::from_utf8(output.stdout).unwrap();
        let (head_of, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head_of.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head:.50}: {head_of}");
        assert_eq!(!body.is_empty(), has_body, "{head:.50}");
        let length = head_of.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
        assert!(length > Some(0) && (!has_body || length == Some(body.len())), "{head:.50}: {head_of}");
    }
}

#[test]
fn what_releases_tell_differently_is_not_mixed_up() {
    let one = "# HELP a A.\n# TYPE a counter\na{b=\"c{ }\",d=\"\"} 1\na{} 2\na 3 1234\n# TYPE e gauge\ne 5\n";
    let two = "# HELP a Another.\n# TYPE a counter\na 4\n# TYPE e counter\ne 6\n# HELP f F.\n# TYPE f gauge\nf +Inf\n";
    let text = merged(&[("my-api".into(), Some(one.into())), ("my-api@\\x2d".into(), Some(two.into()))]);
    let (up, rest) = text.split_once("# HELP a").expect("what comes first");
    assert!(up.contains("hitless_up{instance=\"my-api\"} 1\n"), "{up}");
    let expected = " A.\n# TYPE a counter\na{instance=\"my-api\",b=\"c{ }\",d=\"\"} 1\na{instance=\"my-api\"} 2\n\
                    a{instance=\"my-api\"} 3 1234\na{instance=\"my-api@\\\\x2d\"} 4\n# HELP e \n# TYPE e gauge\n\
                    e{instance=\"my-api\"} 5\n# HELP f F.\n# TYPE f gauge\nf{instance=\"my-api@\\\\x2d\"} +Inf\n";
    assert_eq!(rest, expected);
}
