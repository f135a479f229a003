//! Where the service listens when nobody passes it a socket, and what it says when it cannot. The sockets that a
//! service manager passes are in `handover.rs`.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;

use crate::client::{Client, soon};
use crate::start::{Process, application, command, variable};

/// Starts the service where it cannot listen; how it ends, and what it says.
async fn refused(listen: &str) -> (ExitStatus, String) {
    let output = command().env(variable("listen"), listen).stdin(Stdio::null()).output();
    let output = soon("the end", output).await.expect("running the service");
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn an_address_in_use_is_named_and_so_is_what_tells_who_has_it() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let (status, said) = refused(&address).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("cannot listen on {address}")) && said.contains("in use"), "{said}");
    assert!(said.contains(&format!("'sport = :{}'", holder.local_addr().unwrap().port())), "{said}");
}

#[tokio::test]
async fn an_address_of_another_host_is_refused_by_name() {
    let (status, said) = refused("192.0.2.1:8080").await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("cannot listen on 192.0.2.1:8080"), "{said}");
}

#[tokio::test]
async fn a_port_is_shared_on_request() {
    // `Process` asks for it.
    let first = Process::start(&[]).await;
    let second = listens(first.address, "true");
    first.signal(Signal::INT);
    assert!(first.ended().await.0.success());
    answers(second.0).await;

    // Without, the port is taken.
    let (status, said) = refused(&second.0.to_string()).await;
    assert_eq!(status.code(), Some(1), "{said}");
}

#[tokio::test]
async fn it_listens_on_ipv6() {
    let address = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
    let _process = listens(address, "false");
    answers(address).await;
}

/// Starts the service on this address.
fn listens(address: SocketAddr, reuse_port: &str) -> (SocketAddr, Child) {
    let mut command = application();
    command.env(variable("listen"), address.to_string()).env(variable("reuse_port"), reuse_port);
    (address, command.stderr(Stdio::null()).spawn().unwrap())
}

/// Waits until the service answers on this address.
async fn answers(address: SocketAddr) {
    soon("listening", async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(Client::connect(address).await.get("/livez").await.status, 200);
}

/// Starts the service on a Unix socket, and waits until it answers there.
async fn on_path(path: &Path) -> Child {
    let child = application().env(variable("listen"), path).stderr(Stdio::null()).spawn().unwrap();
    soon("listening", async {
        while tokio::net::UnixStream::connect(path).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(Client::connect_unix(path).await.get("/livez").await.status, 200);
    child
}

#[tokio::test]
async fn a_unix_socket_is_replaced_when_it_is_dead_and_only_then() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");

    // Killed, a process leaves its socket's file behind.
    let mut first = on_path(&path).await;
    first.kill().await.unwrap();
    assert!(path.exists());
    let mut second = on_path(&path).await;

    let (status, said) = refused(path.to_str().unwrap()).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(path.to_str().unwrap()) && said.contains("in use"), "{said}");
    assert_eq!(Client::connect_unix(&path).await.get("/livez").await.status, 200);

    let pid = second.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    assert!(soon("the end", second.wait()).await.unwrap().success());

    // Nor is a socket that is none of its kind, and somebody else's.
    let path = folder.path().join("living");
    let _living = UnixDatagram::bind(&path).unwrap();
    let (status, said) = refused(path.to_str().unwrap()).await;
    assert_eq!(status.code(), Some(1), "{said}");
    UnixDatagram::unbound().unwrap().connect(&path).unwrap();

    // A file that is no socket is not the service's to remove.
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let (status, said) = refused(file.to_str().unwrap()).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn what_a_handler_starts_inherits_no_socket() {
    let process = Process::start(&[]).await;
    let _client = process.client().await;
    for entry in std::fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap() {
        let path = entry.unwrap().path();
        // One that is closed meanwhile is none.
        let Ok(what) = std::fs::read_link(&path) else { continue };
        let known = std::fs::read_to_string(path.to_str().unwrap().replace("/fd/", "/fdinfo/")).unwrap_or_default();
        let flags = known.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
        let is_socket = what.to_str().is_some_and(|what| what.starts_with("socket:"));
        assert!(!is_socket || flags.is_none_or(|flags| flags & 0o2_000_000 != 0), "{path:?}: {what:?}");
    }
}

#[tokio::test]
async fn a_client_has_one_address_whatever_socket_it_comes_by() {
    let port = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut command = application();
    command.env(variable("listen"), format!("[::]:{port}")).env(variable("log.filter"), "info,requests=debug");
    let child = command.env(variable("log.format"), "json").stderr(Stdio::piped()).spawn().unwrap();
    answers(address).await;
    kill_process(child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).unwrap(), Signal::INT).unwrap();
    let output = soon("the end", child.wait_with_output()).await.unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("\"client\":\"127.0.0.1\""), "{log}");
}
