//! Several instances: one that leaves gives its connections to one that serves on, each exactly once. Here each has a
//! listening socket of its own, so that a test can choose whom a client meets first.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use lab::http1::{Ask, Connection, Stays};
use proof::manager::Service;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind, connect, listen, recv,
    send, socket_with,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use service::unit;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinSet;

use crate::client::{Client, soon};
use crate::handover::{assert_good, begin, client, finish, restart, start};
use crate::start::{application, command, config, managed, managed_by, variable};

/// An instance among those of `directory`.
async fn instance(directory: &TempDir) -> Service {
    start(managed().env("RUNTIME_DIRECTORY", directory.path())).await
}

/// A client whose connection the instance has served.
async fn known(service: &Service) -> Client {
    let mut client = client(service).await;
    assert_good(&client.get("/livez").await);
    client
}

async fn process(client: &mut Client) -> String {
    let answer = client.get("/livez").await;
    assert_good(&answer);
    answer.process().to_owned()
}

async fn leaves(service: &mut Service) {
    let status = soon("the end", service.exited()).await.unwrap();
    assert!(status.success(), "{status}; the log:\n{}", service.log());
}

#[tokio::test]
async fn each_connection_goes_to_the_living_as_soon_as_it_is_clean() {
    let directory = TempDir::new().unwrap();
    let (mut old, mut new) = (instance(&directory).await, instance(&directory).await);
    let mut idle = known(&old).await;
    let mut fresh = client(&old).await;
    let mut halfway = known(&old).await;
    halfway.send("GET /livez HTTP/1.1\r\nHo").await;
    let mut busy = known(&old).await;
    let left = begin(&mut busy).await.process().to_owned();
    let living = process(&mut known(&new).await).await;

    old.signal(Signal::TERM).unwrap();
    old.wait_for("STOPPING=1").await.unwrap();
    // The old one is still at work, and nobody waits for it.
    for client in [&mut idle, &mut fresh] {
        soon("the sibling", async { while process(client).await != living {} }).await;
    }
    halfway.send("st: test\r\n\r\n").await;
    assert_eq!(halfway.answer().await.process(), living);
    finish(&mut busy).await;
    assert_eq!(process(&mut busy).await, living);
    leaves(&mut old).await;
    assert_ne!(left, living);
    assert!(old.stored().is_empty(), "nothing was left for the store");

    // And back again, all at once.
    soon("the start", old.start()).await.unwrap();
    new.signal(Signal::TERM).unwrap();
    leaves(&mut new).await;
    for client in [&mut idle, &mut fresh, &mut halfway, &mut busy] {
        assert_ne!(process(client).await, living);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_restarts_in_turn_under_load_lose_nothing() {
    let directory = TempDir::new().unwrap();
    let mut instances = [instance(&directory).await, instance(&directory).await];
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for number in 0..24 {
        let address = instances[number % 2].address();
        let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
        clients.spawn(async move {
            let mut connection = Connection::open(address, None).await.expect("a connection is not refused");
            while !over.load(Relaxed) {
                let ask = match number % 3 {
                    0 => Ask::get("/ping", 200, None),
                    1 => Ask::echo("/echo", 200, format!("{number} {}", answered.load(Relaxed)).as_bytes()),
                    _ => Ask::get("/livez", 200, None).in_two(9, Duration::from_millis(3)),
                };
                assert_eq!(connection.exchange(&ask).await, Ok(Stays::Open));
                answered.fetch_add(1, Relaxed);
            }
        });
    }
    for turn in 0..30 {
        let before = answered.load(Relaxed);
        restart(&mut instances[turn % 2]).await;
        soon("answers after the restart", async {
            while answered.load(Relaxed) < before + 24 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
    over.store(true, Relaxed);
    soon("the clients", clients.join_all()).await;
}

#[tokio::test]
async fn restarted_in_turn_those_that_serve_on_have_as_many_connections_each() {
    const EACH: usize = 30;
    let directory = TempDir::new().unwrap();
    let mut instances = [instance(&directory).await, instance(&directory).await, instance(&directory).await];
    let mut clients = Vec::new();
    for _ in 0..EACH {
        for instance in &instances {
            clients.push(known(instance).await);
        }
    }
    for turn in 0..6 {
        let left = process(&mut known(&instances[turn % 3]).await).await;
        restart(&mut instances[turn % 3]).await;
        let mut have = BTreeMap::new();
        for client in &mut clients {
            *have.entry(process(client).await).or_insert(0) += 1;
        }
        assert!(!have.contains_key(&left), "{have:?}");
        // One more or less, by a client that has just gone.
        let (most, fewest) = (have.values().max().unwrap(), have.values().min().unwrap());
        assert!(have.len() == 2 && most - fewest <= 2, "{have:?}");
    }
}

#[tokio::test]
async fn what_is_handed_over_has_room_beside_new_clients() {
    const MOST: usize = 10;
    let directory = TempDir::new().unwrap();
    let full = async || {
        let manager = managed().env(variable("limits.max_connections"), MOST.to_string());
        let service = start(manager.env("RUNTIME_DIRECTORY", directory.path())).await;
        let mut clients = Vec::new();
        for _ in 0..MOST {
            clients.push(known(&service).await);
        }
        (service, clients)
    };
    let leave = async |(mut leaving, clients): (Service, Vec<Client>)| {
        leaving.signal(Signal::TERM).unwrap();
        leaves(&mut leaving).await;
        clients
    };
    let (living, mut own) = full().await;

    // With a place left of its own, nobody has to make room for a new client.
    drop(own.remove(0));
    let mut guests = leave(full().await).await;
    own.push(known(&living).await);
    for client in own.iter_mut().chain(&mut guests) {
        assert_good(&client.get("/livez").await);
    }

    // Beyond as many guests again somebody does, and nobody is refused for long.
    guests.append(&mut leave(full().await).await);
    for client in own.iter_mut().chain(&mut guests) {
        assert_good(&client.get("/livez").await);
    }
    soon("room", async { while client(&living).await.get("/livez").await.status != 200 {} }).await;
}

#[tokio::test]
async fn instances_that_leave_at_the_same_time_lose_nothing() {
    let directory = TempDir::new().unwrap();
    let (mut one, mut two) = (instance(&directory).await, instance(&directory).await);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(known(&one).await);
        clients.push(known(&two).await);
    }
    for _ in 0..5 {
        tokio::join!(restart(&mut one), restart(&mut two));
        for client in &mut clients {
            assert_good(&client.get("/livez").await);
        }
    }
}

#[tokio::test]
async fn a_sibling_that_is_stuck_gets_nothing_and_takes_nothing_later() {
    let directory = TempDir::new().unwrap();
    let (mut old, stuck) = (instance(&directory).await, instance(&directory).await);
    let mut client = known(&old).await;
    stuck.signal(Signal::STOP).unwrap();

    restart(&mut old).await;
    let now = process(&mut client).await;

    stuck.signal(Signal::CONT).unwrap();
    stuck.logged("are not taken over", 1).await.unwrap();
    // Two that read from one connection would answer in turn, or in pieces.
    for _ in 0..20 {
        assert_eq!(process(&mut client).await, now);
    }
}

#[tokio::test]
async fn a_sibling_that_was_killed_is_forgotten() {
    let directory = TempDir::new().unwrap();
    let (mut old, mut killed) = (instance(&directory).await, instance(&directory).await);
    let mut client = known(&old).await;
    let door = directory.path().join(killed.pid().unwrap().to_string());
    killed.signal(Signal::KILL).unwrap();
    soon("the end", killed.exited()).await.unwrap();
    assert!(door.exists());

    restart(&mut old).await;

    assert_good(&client.get("/livez").await);
    assert!(!door.exists(), "nobody is behind this door");
}

/// What is no proper sibling does with a message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    HangUp,
    Say(u8),
    Nothing,
}

/// A process behind a door: it does something with a knock, and something else with connections.
fn improper(door: &Path, knock: Does, connections: Does) {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(door).unwrap()).unwrap();
    listen(&socket, 64).unwrap();
    // It ends with the tests.
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok(giver) = accept(&socket) {
            let length = recv(&giver, &mut [0_u8; 16], RecvFlags::empty()).map_or(0, |(length, _)| length);
            match if length == 1 { knock } else { connections } {
                Does::HangUp => {}
                Does::Say(byte) => drop(send(&giver, &[byte], SendFlags::NOSIGNAL)),
                Does::Nothing => kept.push(giver),
            }
        }
    });
}

#[tokio::test]
async fn a_sibling_that_is_of_another_release_or_takes_none_gets_nothing() {
    const TAKEN: Does = Does::Say(6);
    for (knock, connections) in [
        (Does::HangUp, Does::HangUp),
        (Does::Say(b'?'), Does::HangUp),
        (TAKEN, Does::HangUp),
        (TAKEN, Does::Say(b'?')),
        (TAKEN, Does::Nothing),
    ] {
        let directory = TempDir::new().unwrap();
        let mut service = instance(&directory).await;
        let mut client = known(&service).await;
        improper(&directory.path().join("1"), knock, connections);

        restart(&mut service).await;

        assert_good(&client.get("/livez").await);
        let refusals = service.log().matches("does not take connections").count();
        assert_eq!(refusals, 1, "{knock:?} {connections:?}: {}", service.log());
    }
}

#[tokio::test]
async fn a_release_that_knows_no_number_reads_of_the_answer_what_it_knows() {
    let directory = TempDir::new().unwrap();
    let service = instance(&directory).await;
    let door = directory.path().join(service.pid().unwrap().to_string());
    let giver = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&giver, &SocketAddrUnix::new(&door).unwrap()).unwrap();
    // Format 2, without a connection.
    send(&giver, &[2], SendFlags::NOSIGNAL).unwrap();
    let mut answer = [0];
    let answered = tokio::task::spawn_blocking(move || (recv(&giver, &mut answer, RecvFlags::empty()), answer));
    assert_eq!(soon("an answer", answered).await.unwrap(), (Ok((1, 1)), [6]));
}

#[tokio::test]
async fn a_sibling_that_gets_stuck_is_not_waited_for_beyond_t() {
    let directory = TempDir::new().unwrap();
    let manager = managed().env("RUNTIME_DIRECTORY", directory.path()).env(variable("shutdown_timeout"), "1s");
    let mut service = start(manager).await;
    let mut client = known(&service).await;
    improper(&directory.path().join("1"), Does::Say(6), Does::Nothing);
    restart(&mut service).await;
    assert_good(&client.get("/livez").await);
}

#[tokio::test]
async fn a_sibling_without_descriptors_costs_no_connection() {
    let directory = TempDir::new().unwrap();
    let (mut old, full) = (instance(&directory).await, instance(&directory).await);
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(known(&old).await);
    }
    let pid = Pid::from_raw(full.pid().unwrap().cast_signed());
    let most = Some(fs::read_dir(format!("/proc/{}/fd", full.pid().unwrap())).unwrap().count() as u64 + 20);
    prlimit(pid, Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();

    restart(&mut old).await;

    full.logged("too few descriptors (LimitNOFILE=)", 1).await.unwrap();
    for client in &mut clients {
        assert_good(&client.get("/livez").await);
    }
}

/// What waits in handover queues counts against one limit for all processes of a user, who has the unit's and no privileges.
#[tokio::test]
async fn full_instances_that_leave_at_once_lose_nothing() {
    const CONNECTIONS: usize = 300;
    let settings = format!("limits.max_connections = {CONNECTIONS}");
    let unit = unit::service(&config(&settings));
    let limit = unit.lines().find_map(|line| line.strip_prefix("LimitNOFILE=")).unwrap();
    let script = r#"ulimit -n "$LIMIT" && case $(id -u) in
        0) exec setpriv --bounding-set=-sys_resource,-sys_admin "$@" ;; *) exec "$@" ;; esac"#;
    // Neither finds the other, as when both have closed their doors.
    let full =
        || managed_by(script).env("LIMIT", limit).env(variable("limits.max_connections"), CONNECTIONS.to_string());
    let (mut one, mut two) = (start(full()).await, start(full()).await);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(known(&one).await);
        clients.push(known(&two).await);
    }
    for service in [&one, &two] {
        service.signal(Signal::HUP).unwrap();
    }
    for service in [&mut one, &mut two] {
        leaves(service).await;
    }
}

#[tokio::test]
async fn an_answer_that_streams_until_shortly_before_t_keeps_its_connection() {
    let directory = TempDir::new().unwrap();
    let manager = managed().env("RUNTIME_DIRECTORY", directory.path()).env(variable("shutdown_timeout"), "6s");
    let (mut old, _new) = (start(manager).await, instance(&directory).await);
    let mut busy = known(&old).await;
    begin(&mut busy).await;
    let end = tokio::time::Instant::now() + Duration::from_millis(5400);
    tokio::join!(restart(&mut old), async {
        tokio::time::sleep_until(end).await;
        finish(&mut busy).await;
    });
    assert_good(&busy.get("/livez").await);
}

#[tokio::test]
async fn an_instance_with_a_socket_of_its_own_is_nobodys_sibling() {
    let directory = TempDir::new().unwrap();
    let mut command = application();
    command.env("RUNTIME_DIRECTORY", directory.path()).env(variable("listen"), "127.0.0.1:0");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = soon("a line", log.next_line()).await.unwrap().unwrap();
    assert!(line.contains("serving on"), "{line}");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
}

#[tokio::test]
async fn the_last_one_leaves_its_connections_to_the_store() {
    let directory = TempDir::new().unwrap();
    let (mut first, mut last) = (instance(&directory).await, instance(&directory).await);
    let mut client = known(&first).await;
    for service in [&mut first, &mut last] {
        service.signal(Signal::HUP).unwrap();
        leaves(service).await;
    }
    assert_eq!(last.stored(), ["parcel"]);
    client.ask("/livez").await;
    soon("the start", last.start()).await.unwrap();
    assert_good(&client.answer().await);
}

/// What `health` says, in lines, and whether all is well.
async fn health(arguments: &[&str], environment: &[(&str, &str)]) -> (bool, Vec<String>) {
    let mut command = command();
    command.arg("health").args(arguments).envs(environment.iter().copied());
    let output = soon("health", command.output()).await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    (output.status.success(), said.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn health_asks_every_instance_or_one() {
    let directory = TempDir::new().unwrap();
    let (mut one, two) = (instance(&directory).await, instance(&directory).await);
    let [first, second] = [&one, &two].map(|service| service.pid().unwrap().to_string());
    let here = [("RUNTIME_DIRECTORY", directory.path().to_str().unwrap())];
    let line = |pid: &str| format!(r#"process {pid}: 200 {{"phase":"serving"}}"#);

    let (good, mut said) = health(&[], &here).await;
    said.sort();
    let mut both = [line(&first), line(&second)];
    both.sort();
    assert_eq!((good, said), (true, both.to_vec()));
    assert_eq!(health(&[&second], &here).await, (true, vec![line(&second)]));

    one.signal(Signal::KILL).unwrap();
    soon("the end", one.exited()).await.unwrap();
    let (good, said) = health(&[&first], &here).await;
    assert!(!good && said[0].contains("refused"), "{said:?}");
    assert_eq!(health(&[], &here).await, (true, vec![line(&second)]), "the dead are not asked");
}

#[tokio::test]
async fn health_asks_where_the_service_listens_when_there_are_no_instances() {
    let service = start(managed()).await;
    let nowhere = TempDir::new().unwrap();
    let address = service.address().to_string();
    let listen = variable("listen");
    let here = [("RUNTIME_DIRECTORY", nowhere.path().to_str().unwrap()), (listen.as_str(), address.as_str())];
    assert_eq!(health(&[], &here).await, (true, vec![format!(r#"{address}: 200 {{"phase":"serving"}}"#)]));
}

#[tokio::test]
async fn a_host_is_drained_and_taken_back_through_restarts_and_nobody_is_cut_off() {
    let directory = TempDir::new().unwrap();
    let (mut one, two) = (instance(&directory).await, instance(&directory).await);
    let tell = async |action: &str| {
        let mut command = command();
        command.arg(action).env("RUNTIME_DIRECTORY", directory.path());
        let output = soon(action, command.output()).await.unwrap();
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    };
    let here = [("RUNTIME_DIRECTORY", directory.path().to_str().unwrap())];
    let (mut waiting, mut busy) = (known(&one).await, known(&one).await);
    begin(&mut busy).await;

    tell("drain").await;
    let drained = r#"503 {"phase":"serving","drained":true}"#;
    let all_say = |(good, said): (bool, Vec<String>), what: &str| {
        assert!(said.len() == 2 && said.iter().all(|line| line.ends_with(what)), "{said:?}");
        assert_eq!(good, what != drained);
    };
    all_say(health(&[], &here).await, drained);
    finish(&mut busy).await;
    let answer = waiting.get("/livez").await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    waiting.ended().await;
    // Who comes all the same is served, and told so as well.
    let mut newcomer = client(&two).await;
    assert_eq!(newcomer.get("/livez").await.header("connection"), Some("close"));

    restart(&mut one).await;
    all_say(health(&[], &here).await, drained);
    let told = soon("a status", one.wait_for("STATUS=drained, serving 0 connections; 1 requests, 0 failed")).await;
    assert!(told.is_ok(), "{:?}", one.messages());
    // What fails there has failed all the same.
    assert_eq!(client(&one).await.get("/problems/503").await.status, 503);
    let told = soon("a status", one.wait_for("STATUS=drained, serving 0 connections; 2 requests, 1 failed")).await;
    assert!(told.is_ok(), "{:?}", one.messages());

    tell("undrain").await;
    all_say(health(&[], &here).await, r#"200 {"phase":"serving"}"#);
    assert_eq!(known(&one).await.get("/livez").await.header("connection"), None);
    tell("undrain").await;
}

#[tokio::test]
async fn a_host_without_the_service_is_neither_drained_nor_taken_back() {
    let directory = TempDir::new().unwrap();
    for action in ["drain", "undrain"] {
        let mut command = command();
        command.arg(action).env("RUNTIME_DIRECTORY", directory.path().join("none"));
        let output = soon(action, command.output()).await.unwrap();
        assert!(output.status.code() == Some(1) && !output.stderr.is_empty(), "{output:?}");
    }
}

#[tokio::test]
async fn the_service_manager_is_told_of_connections_and_requests() {
    let service = start(managed()).await;
    let mut client = known(&service).await;
    assert_eq!(client.get("/nowhere").await.status, 404);
    let status = soon("a status", service.wait_for("STATUS=serving 1 connections; 2 requests, 0 failed")).await;
    assert!(status.is_ok(), "{:?}", service.messages());
}
