//! The units that the service prints. Whether systemd accepts them, and what it says of their sandbox, is shown by
//! `tests/all.sh units`.

use service::unit;

use crate::start::config;

/// `@name@`, and the like.
fn placeholders(unit: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = unit.split('@').collect();
    parts.pop();
    parts.into_iter().skip(1).filter(|part| part.chars().all(|c| c == '_' || c.is_ascii_lowercase())).collect()
}

#[track_caller]
fn assert_says(unit: &str, lines: &[&str]) {
    for line in lines {
        assert!(unit.lines().any(|other| other == *line), "no {line} in\n{unit}");
    }
}

#[test]
fn nothing_is_left_to_be_filled_in() {
    for overrides in ["", "reuse_port = true\nlisten = '/run/a.socket'\n[unit]\noutbound = true"] {
        let config = config(overrides);
        for unit in [unit::service(&config), unit::socket(&config)] {
            assert!(placeholders(&unit).is_empty(), "{:?} in\n{unit}", placeholders(&unit));
            assert!(unit.ends_with('\n') && unit.contains(env!("CARGO_PKG_NAME")));
        }
    }
}

#[test]
fn the_service_unit_says_what_the_configuration_says() {
    let settings = "shutdown_timeout = '10s'\n[limits]\nmax_connections = 500\n[unit]\nstart_timeout = '1min'\n\
        watchdog = '5s'\nmemory_high = '1G'\nmemory_max = '2G'\ntasks_max = 99\ncpu_weight = 50";
    let unit = unit::service(&config(settings));
    let name = env!("CARGO_PKG_NAME");
    let (start, sockets) = (format!("ExecStart=/opt/{name}/current/{name} run"), format!("Sockets={name}.socket"));
    assert_says(&unit, &[&start, &sockets, "Type=notify", "TimeoutStopSec=13s", "TimeoutStartSec=1m"]);
    assert_says(&unit, &["WatchdogSec=5s", "MemoryHigh=1G", "MemoryMax=2G", "TasksMax=99", "CPUWeight=50"]);
    assert_says(&unit, &["StartLimitIntervalSec=0", "Restart=always", "DynamicUser=yes"]);
    // The process depends on both, or on neither.
    assert_says(&unit, &["RestartKillSignal=SIGHUP", "Environment=RESTARTSIGNAL=SIGHUP"]);
    // What several instances need.
    assert_says(&unit, &["NonBlocking=yes", "RuntimeDirectoryMode=0700", "RuntimeDirectoryPreserve=yes"]);
    let value =
        |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')?.parse::<u32>().ok());
    assert!(value("LimitNOFILE").is_some_and(|limit| limit > 500));
    // A parcel of this process, and what another may have left.
    assert!(value("FileDescriptorStoreMax").is_some_and(|most| most >= 2));
}

#[test]
fn connections_of_its_own_are_off_unless_they_are_asked_for() {
    let closed = unit::service(&config(""));
    assert_says(&closed, &["PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX"]);
    let open = unit::service(&config("[unit]\noutbound = true"));
    assert_says(&open, &["RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"]);
    assert!(!open.contains("\nPrivateNetwork=yes"));
}

#[test]
fn the_socket_unit_listens_where_the_configuration_says() {
    assert_says(&unit::socket(&config("")), &["ListenStream=0.0.0.0:8080", "ReusePort=no", "WantedBy=sockets.target"]);
    let unit = unit::socket(&config("listen = '[::1]:80'\nreuse_port = true"));
    assert_says(&unit, &["ListenStream=[::1]:80", "ReusePort=yes"]);
    assert_says(&unit::socket(&config("listen = '/run/a.socket'")), &["ListenStream=/run/a.socket"]);
}
