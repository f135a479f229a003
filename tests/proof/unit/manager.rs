use std::io::{Read, Seek, Write};

use super::*;

fn message(text: &str) -> Message {
    Message { text: text.into(), fds: 1, start: 1, at: Instant::now() }
}

fn fd() -> VecDeque<OwnedFd> {
    [tempfile::tempfile().unwrap().into()].into()
}

fn store(max: usize) -> State {
    State { store_max: max, ..State::default() }
}

fn names(state: &State) -> Vec<&str> {
    state.store.iter().map(|stored| stored.name.as_str()).collect()
}

#[test]
fn a_descriptor_is_stored_and_removed_by_name() {
    let mut state = store(4);
    state.handle(message("FDSTORE=1\nFDNAME=parcel"), fd());
    state.handle(message("FDSTORE=1"), fd());
    assert_eq!(names(&state), ["parcel", "stored"]);
    state.handle(message("FDSTOREREMOVE=1\nFDNAME=parcel"), VecDeque::new());
    assert_eq!(names(&state), ["stored"]);
}

#[test]
fn a_full_store_closes_what_it_cannot_take() {
    for (max, kept) in [(0, 0), (1, 1)] {
        let mut state = store(max);
        let (ours, theirs) = io::pipe().unwrap();
        state.handle(message("FDSTORE=1"), fd());
        state.handle(message("FDSTORE=1\nFDPOLL=0"), [theirs.into()].into());
        assert_eq!(state.store.len(), kept);
        assert_eq!({ ours }.read(&mut [0]).unwrap(), 0, "the descriptor is still open");
    }
}

#[test]
fn what_hangs_up_is_forgotten_unless_told_otherwise() {
    let mut state = store(4);
    for (text, kept) in [("FDSTORE=1", 0), ("FDSTORE=1\nFDPOLL=0", 1)] {
        let (ours, theirs) = io::pipe().unwrap();
        state.handle(message(text), [ours.into()].into());
        state.forget_hung_up();
        assert_eq!(state.store.len(), 1);
        drop(theirs);
        state.forget_hung_up();
        assert_eq!(state.store.len(), kept, "{text}");
    }
}

#[test]
fn a_barrier_hangs_up() {
    let mut state = store(4);
    let (mut ours, theirs) = io::pipe().unwrap();
    state.handle(message("BARRIER=1"), [theirs.into()].into());
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    assert!(state.store.is_empty());
}

fn shell(script: &str) -> Manager {
    Manager::new("/bin/sh").args(["-c", script]).exec()
}

/// What the service would send itself.
fn send(service: &Service, text: &str) {
    let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
    socket.send_to(text.as_bytes(), service.directory.path().join("notify")).unwrap();
}

#[tokio::test]
async fn a_restart_hands_the_store_on_and_a_stop_empties_it() {
    let script = r#"[ "$LISTEN_PID" = $$ ] && echo "$LISTEN_FDNAMES"
                    [ "$LISTEN_FDS" = 1 ] || cat <&4
                    exec sleep 1000"#;
    let mut service = shell(script).named("never").listen("127.0.0.1:0").named("http").start().await.unwrap();
    service.logged("http\n", 1).await.unwrap();

    let mut letter = tempfile::tempfile().unwrap();
    letter.write_all(b"for the next one\n").unwrap();
    letter.rewind().unwrap();
    let stored = message("FDSTORE=1\nFDNAME=letter\nFDPOLL=0");
    service.state().handle(stored, [letter.into()].into());

    let status = service.restart().await.unwrap();
    assert_eq!(status.signal(), Some(1));
    service.logged("http:letter\n", 1).await.unwrap();
    service.logged("for the next one\n", 1).await.unwrap();

    assert_eq!(service.stop().await.unwrap().signal(), Some(15));
    assert!(service.stored().is_empty());
    assert_eq!(service.pid(), None);
    service.start().await.unwrap();
    assert_eq!(service.exits().len(), 2);
}

#[tokio::test]
async fn who_does_not_end_is_killed_but_may_ask_for_time() {
    let stubborn = "trap '' TERM HUP; echo deaf; while :; do sleep 0.05; done";
    let mut service = shell(stubborn).timeout_stop(Duration::from_millis(500)).start().await.unwrap();
    service.logged("deaf\n", 1).await.unwrap();
    let status = service.restart().await.unwrap();
    assert_eq!(describe(status), "was killed by signal 9");

    service.logged("deaf\n", 2).await.unwrap();
    let notify = service.directory.path().join("notify");
    let began = Instant::now();
    let (status, sent) = tokio::join!(service.stop(), async {
        let socket = UnixDatagram::unbound().unwrap();
        socket.send_to(b"EXTEND_TIMEOUT_USEC=1000000", notify).await
    });
    assert_eq!(status.unwrap().signal(), Some(9));
    assert!(sent.is_ok() && began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn messages_are_kept_and_waited_for() {
    let service = shell("exec sleep 1000").start().await.unwrap();
    send(&service, "STATUS=thinking");
    send(&service, "STOPPING=1\nSTATUS=bye");
    let message = service.wait_for("STOPPING=1").await.unwrap();
    assert_eq!(message.get("STATUS"), Some("bye"));
    let statuses: Vec<_> = service.messages().iter().filter_map(|m| m.get("STATUS").map(String::from)).collect();
    assert_eq!(statuses, ["thinking", "bye"]);
}

#[tokio::test]
async fn a_process_that_ends_too_early_is_an_error_with_its_log() {
    let manager = Manager::new("/bin/sh").args(["-c", "echo no such setting >&2; exit 2"]);
    let error = manager.start().await.unwrap_err().to_string();
    assert!(error.contains("exit status: 2") && error.contains("no such setting"), "{error}");
}

#[tokio::test]
async fn the_process_ends_with_its_manager() {
    let service = shell("exec sleep 1000").start().await.unwrap();
    let pid = Pid::from_raw(service.pid().unwrap().cast_signed()).unwrap();
    drop(service);
    while rustix::process::test_kill_process(pid).is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
