//! The units that the service prints. Whether systemd accepts them, and what it says of their sandbox, is shown by
//! `tests/all.sh units`.

use std::collections::BTreeSet;
use std::path::Path;

use layers::listen::Listen;
use service::config::Config;
use service::unit;

use crate::start::{command, config, managed, variable};

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
        let metrics = [unit::metrics_socket(&config), unit::metrics_service(&config)];
        for unit in [unit::service(&config), unit::socket(&config)].into_iter().chain(metrics) {
            assert!(placeholders(&unit).is_empty(), "{:?} in\n{unit}", placeholders(&unit));
            assert!(unit.ends_with('\n') && unit.contains(name!()));
        }
    }
}

#[test]
fn the_service_unit_says_what_the_configuration_says() {
    let settings = "shutdown_timeout = '10s'\n[limits]\nmax_connections = 500\n[unit]\nstart_timeout = '1min'\n\
        watchdog = '5s'\nmemory_high = '1G'\nmemory_max = '2G'\ntasks_max = 99\ncpu_weight = 50";
    let unit = unit::service(&config(settings));
    let name = name!();
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
    // A handover queue of this process, and what another may have left.
    assert!(value("FileDescriptorStoreMax").is_some_and(|most| most >= 2));
}

#[test]
fn secrets_are_passed_on_one_by_one() {
    let lines = |settings: &str| {
        let unit = unit::service(&config(settings));
        unit.lines().filter(|line| line.starts_with("LoadCredential=")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(lines("").is_empty());
    let name = name!();
    let expected =
        [format!("LoadCredential=listen:{name}.listen"), format!("LoadCredential=log.filter:{name}.log.filter")];
    assert_eq!(lines("unit.credentials = ['listen', 'log.filter']"), expected);
}

#[test]
fn connections_of_its_own_are_off_unless_they_are_asked_for() {
    let closed = unit::service(&config("[unit]\noutbound = false"));
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
    // Which no specifier may be taken for.
    assert_says(&unit::socket(&config("listen = '[fe80::1%2]:80'")), &["ListenStream=[fe80::1%%2]:80"]);
}

#[test]
fn the_units_for_metrics_answer_by_the_services_own_user_and_leave_its_folder_alone() {
    assert_says(&unit::metrics_socket(&config("")), &["ListenStream=127.0.0.1:9464", "Accept=yes"]);
    let listen = "unit.metrics = '[fe80::1%2]:80'";
    assert_says(&unit::metrics_socket(&config(listen)), &["ListenStream=[fe80::1%%2]:80"]);
    let nowhere = config("unit.metrics = ''");
    assert_eq!([unit::metrics_socket(&nowhere), unit::metrics_service(&nowhere)], ["", ""]);
    let unit = unit::metrics_service(&config(""));
    let name = name!();
    assert_says(&unit, &[&format!("ExecStart=/opt/{name}/current/{name} metrics --http"), "StandardInput=socket"]);
    let service = unit::service(&config(""));
    for of_both in ["User=", "DynamicUser=", "RuntimeDirectory=", "RuntimeDirectoryMode=", "RuntimeDirectoryPreserve="]
    {
        let line = service.lines().find(|line| line.starts_with(of_both)).expect("a line");
        assert_says(&unit, &[line]);
    }
}

#[test]
fn time_spans_are_those_that_systemd_knows() {
    let unit = unit::service(&config("[unit]\nstart_timeout = '1h 1s 1us 1ns'\nwatchdog = '1500ms'"));
    assert_says(&unit, &["TimeoutStartSec=1h 1s 1us", "WatchdogSec=1s 500ms"]);
}

#[test]
fn what_the_units_do_not_follow_is_told() {
    let told = |settings: &[(&str, &str)], sockets: &[&str]| {
        let variables = settings.iter().map(|(key, value)| (variable(key).into(), value.into()));
        let config = Config::load_from(Path::new("/nowhere"), None, variables).unwrap();
        let sockets: Vec<_> = sockets
            .iter()
            .map(|socket| socket.parse().map_or_else(|_| Listen::Unix(socket.into()), Listen::Tcp))
            .collect();
        unit::asked_in_vain(&config, &sockets).join("\n")
    };
    assert_eq!(told(&[], &["0.0.0.0:8080"]), "");
    assert_eq!(told(&[], &["/run/other.sock", "0.0.0.0:8080"]), "");
    assert_eq!(told(&[("shutdown_timeout", "20s"), ("limits.max_connections", "9")], &["0.0.0.0:8080"]), "");
    for sockets in [&[][..], &["0.0.0.0:8080"]] {
        let said = told(&[("unit.memory_max", "1G"), ("log.filter", "off"), ("reuse_port", "true")], sockets);
        for part in
            ["the environment or a credential sets ", "unit.memory_max", "reuse_port", "config.toml", "make apply"]
        {
            assert!(said.contains(part) && !said.contains("log.filter"), "{part}: {said}");
        }
    }
    for elsewhere in ["0.0.0.0:8081", "127.0.0.1:8080", "[::]:8080", "/run/some.sock"] {
        let said = told(&[("listen", elsewhere)], &["0.0.0.0:8080"]);
        assert!(said.contains(" listens on 0.0.0.0:8080, not") && said.contains(elsewhere), "{said}");
        assert!(said.contains("the environment or a credential sets listen:"), "{said}");
    }
}

#[tokio::test]
async fn a_service_says_in_its_log_that_it_listens_elsewhere_than_it_is_told_to() {
    let mut service = managed().env(variable("listen"), "127.0.0.1:1").start().await.unwrap();
    let elsewhere =
        format!("listens on {}, not where the configuration says, which is 127.0.0.1:1;", service.address());
    service.logged(&elsewhere, 1).await.unwrap();
    service.stop().await.unwrap();
}

#[tokio::test]
async fn check_says_what_the_units_do_not_follow_where_there_are_units() {
    for (invocation, told) in [(None, false), (Some("0123"), true)] {
        let mut command = command();
        command.arg("check").env(variable("listen"), "127.0.0.1:1").env_remove("INVOCATION_ID");
        command.envs(invocation.map(|id| ("INVOCATION_ID", id)));
        let output = command.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(said.contains("note: the environment or a credential sets listen:"), told, "{said}");
    }
}

/// Its own are how it is started, and who may speak for it.
#[test]
fn in_a_container_it_has_the_same_times_and_limits() {
    let config = config("shutdown_timeout = '7s'\n[unit]\nmemory_max = '3G'\noutbound = true");
    let settings = |text: &str| {
        let lines = text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
        lines.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let (alone, contained) = (settings(&unit::service(&config)), settings(&unit::container(&config)));
    let own: Vec<_> = contained.difference(&alone).map(|line| line.split('=').next().unwrap()).collect();
    assert_eq!(own, ["ExecStart", "NotifyAccess"]);
    assert!(contained.contains("TimeoutStopSec=10s") && contained.contains("MemoryMax=3G"), "{contained:?}");
    assert!(!unit::container(&config).contains('@') && unit::container(&config).contains(" --network=host "));
}
