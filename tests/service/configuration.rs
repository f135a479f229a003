//! The configuration: its layers in their order, and how whatever makes no sense is refused.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use service::config::Config;
use tempfile::TempDir;
use toml::{Table, Value};

use crate::start::{BINARY, command, variable};

/// The documentation of every setting.
const DEFAULT: &str = include_str!("../../config/default.toml");

/// A file with this text; gone with the folder.
fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some.toml");
    fs::write(&path, text).unwrap();
    (folder, path)
}

/// Runs the binary with these arguments and settings in its environment.
fn run(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = command().into_std();
    command.args(arguments).envs(settings.iter().map(|(key, value)| (variable(key), value)));
    command.output().expect("running the service")
}

/// Checks that the configuration is refused, and that the one line about it has all of `parts`.
#[track_caller]
fn assert_refused(output: &Output, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.lines().any(|line| parts.iter().all(|part| line.contains(part))), "{parts:?} not in {said}");
}

#[test]
fn the_defaults_are_good() {
    let output = run(&["check"], &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn a_later_layer_wins_key_by_key() {
    let (_folder, path) = file("[unit]\ncpu_weight = 200\ntasks_max = 200");
    let path = path.to_str().unwrap();
    let unit = |arguments: &[&str], settings: &[(&str, &str)]| {
        let output = run(&[&["unit", "service"], arguments].concat(), settings);
        String::from_utf8(output.stdout).unwrap()
    };
    let has = |unit: &str, lines: [&str; 3]| lines.iter().all(|line| unit.lines().any(|other| other == *line));

    let defaults = unit(&[], &[]);
    assert!(has(&defaults, ["CPUWeight=100", "TasksMax=256", "MemoryMax=512M"]), "{defaults}");
    let with_file = unit(&["--config", path], &[]);
    assert!(has(&with_file, ["CPUWeight=200", "TasksMax=200", "MemoryMax=512M"]), "{with_file}");
    let with_both = unit(&["--config", path], &[("unit.cpu_weight", "300")]);
    assert!(has(&with_both, ["CPUWeight=300", "TasksMax=200", "MemoryMax=512M"]), "{with_both}");
}

#[test]
fn the_hosts_file_lies_between_the_defaults_and_the_file_that_is_named() {
    // In a namespace of its own, where /etc belongs to the test.
    let unshare =
        |arguments: &[&str]| Command::new("unshare").args(["--map-root-user", "--mount"]).args(arguments).output();
    if !unshare(&["mount", "-t", "tmpfs", "none", "/etc"]).is_ok_and(|output| output.status.success()) {
        eprintln!("cannot run here: user namespaces are not allowed");
        return;
    }
    let (_folder, host) = file("[unit]\ncpu_weight = 50\ntasks_max = 50\nmemory_max = '50M'");
    let (_folder2, named) = file("[unit]\ncpu_weight = 200\ntasks_max = 200");
    let script = "text=$(cat \"$1\") && mount -t tmpfs none /etc && mkdir \"/etc/$0\" && \
        echo \"$text\" >\"/etc/$0/config.toml\" && shift && exec \"$@\"";
    let (host, named) = (host.to_str().unwrap(), named.to_str().unwrap());
    let name = env!("CARGO_PKG_NAME");
    let with_host = ["sh", "-c", script, name, host, "env"];
    let cpu_weight = format!("{}=300", variable("unit.cpu_weight"));
    let output = unshare(&[&with_host[..], &[&cpu_weight, BINARY, "unit", "service", "--config", named]].concat());
    let unit = String::from_utf8(output.unwrap().stdout).unwrap();
    for line in ["CPUWeight=300", "TasksMax=200", "MemoryMax=50M", "MemoryHigh=384M"] {
        assert!(unit.lines().any(|other| other == line), "no {line} in {unit}");
    }

    let (_folder3, wrong) = file("nonsense = 1");
    let wrong = ["sh", "-c", script, name, wrong.to_str().unwrap(), BINARY, "check"];
    assert_refused(&unshare(&wrong).unwrap(), &[&format!("/etc/{name}/config.toml"), "nonsense"]);
}

#[test]
fn what_makes_no_sense_is_refused_with_file_key_value_and_reason() {
    let cases: [(&str, &[&str]); 14] = [
        ("nonsense = 1", &["nonsense", "unknown field"]),
        ("[limits]\nmax_conections = 1", &["limits.max_conections", "unknown field", "max_connections"]),
        ("shutdown_timeout = 30", &["shutdown_timeout", "30", "a duration"]),
        ("shutdown_timeout = '30 parsecs'", &["shutdown_timeout", "parsecs"]),
        ("shutdown_timeout = '2h'", &["shutdown_timeout", "7200s", "3600s"]),
        ("shutdown_timeout = '1ms'", &["shutdown_timeout", "1ms", "1s"]),
        ("listen = 'nowhere'", &["listen", "nowhere", "ADDRESS:PORT"]),
        ("reuse_port = 'perhaps'", &["reuse_port", "perhaps", "bool"]),
        ("[limits]\nmax_connections = -1", &["limits.max_connections", "-1"]),
        ("[limits]\nmax_connections = 0", &["limits.max_connections", "0 would serve nobody"]),
        ("[limits]\nidle_timeout = '0s'", &["limits.idle_timeout", "0s"]),
        ("[log]\nformat = 'xml'", &["log.format", "xml", "json"]),
        ("[log]\nfilter = 'a=b=c'", &["log.filter", "a=b=c"]),
        ("[unit]\ncpu_weight = 0", &["unit.cpu_weight", "0", "10000"]),
    ];
    for (text, parts) in cases {
        let (_folder, path) = file(text);
        let path = path.to_str().unwrap();
        assert_refused(&run(&["check", "--config", path], &[]), &[&[path], parts].concat());
    }
}

#[test]
fn combinations_that_cannot_be_are_refused() {
    let (_folder, path) = file("shutdown_timeout = '20s'\n[limits]\nrequest_timeout = '11s'\nheader_timeout = '4s'");
    let output = run(&["check", "--config", path.to_str().unwrap()], &[]);
    let path = path.to_str().unwrap();
    assert_refused(&output, &[path, "limits.request_timeout", "11s", "10s", "half of shutdown_timeout"]);
    assert_refused(&output, &[path, "limits.header_timeout", "4s", "a sixth of shutdown_timeout"]);
    // The other one is to blame here, but this is the one that can be found.
    let settings = [("limits.request_timeout", "2s"), ("shutdown_timeout", "2s")];
    assert_refused(&run(&["check"], &settings), &["the environment", "limits.request_timeout", "2s", "1s"]);
}

#[test]
fn the_environment_is_refused_by_its_key() {
    assert_refused(&run(&["check"], &[("limits.max_connections", "many")]), &["environment", "limits.max_connections"]);
    assert_refused(&run(&["check"], &[("nonsense", "1")]), &["environment", "nonsense"]);
}

#[test]
fn what_kubernetes_says_of_a_service_of_the_same_name_is_not_for_us() {
    let address = "tcp://10.0.0.1:8080";
    let variables = [
        ("port", address),
        ("port_8080_tcp", address),
        ("port_8080_tcp_addr", "10.0.0.1"),
        ("service_host", "10.0.0.1"),
        ("service_port", "8080"),
        ("service_port_http", "8080"),
    ];
    let output = run(&["check"], &variables);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let and_a_mistake = [&variables[..], &[("portal", "1")]].concat();
    assert_refused(&run(&["check"], &and_a_mistake), &["environment", "portal"]);
}

#[test]
fn a_file_that_is_missing_or_broken_is_refused() {
    assert_refused(&run(&["check", "--config", "/nowhere/some.toml"], &[]), &["/nowhere/some.toml", "No such file"]);
    let (_folder, path) = file("listen = = 1");
    assert_refused(&run(&["check", "--config", path.to_str().unwrap()], &[]), &[path.to_str().unwrap(), "line 1"]);
}

#[test]
fn every_command_refuses_a_bad_configuration_and_arguments_that_are_not_its_own() {
    for arguments in [&[][..], &["run"], &["check"], &["unit", "service"], &["unit", "socket"]] {
        assert_refused(&run(arguments, &[("nonsense", "1")]), &["nonsense"]);
    }
    for arguments in [&["walk"][..], &["unit"], &["unit", "timer"], &["--nonsense"]] {
        assert_eq!(run(arguments, &[]).status.code(), Some(2), "{arguments:?}");
    }
}

/// Another value that the key can have.
fn another(key: &str, value: &Value) -> Value {
    match value {
        Value::Boolean(value) => Value::Boolean(!value),
        Value::Integer(value) => Value::Integer(value + 1),
        Value::String(text) => Value::String(
            match key {
                "listen" => "127.0.0.1:1",
                "filter" => "debug",
                "format" => "json",
                _ if text.ends_with('M') => "1G",
                _ => "4s",
            }
            .into(),
        ),
        other => panic!("{key} = {other}"),
    }
}

#[test]
fn every_documented_key_can_be_set_and_none_is_undocumented() {
    // Keys that are commented out have a default that follows from others.
    let is_key = |line: &str| {
        line.split_once(" = ").is_some_and(|(key, _)| key.chars().all(|c| c == '_' || c.is_ascii_lowercase()))
    };
    let uncommented: Vec<&str> =
        DEFAULT.lines().map(|line| line.strip_prefix("# ").filter(|key| is_key(key)).unwrap_or(line)).collect();
    let documented: Table = uncommented.join("\n").parse().unwrap();
    let set = |table: Option<&str>, key: &str, value: Value| {
        let entry = Table::from_iter([(key.to_owned(), value)]);
        let overrides = match table {
            Some(table) => Table::from_iter([(table.to_owned(), Value::Table(entry))]),
            None => entry,
        };
        Config::with(&overrides.to_string()).map(|config| format!("{config:?}"))
    };

    let defaults = format!("{:?}", Config::with("").unwrap());
    let mut keys = 0;
    let tables = documented.iter().filter_map(|(name, value)| Some((Some(name.as_str()), value.as_table()?)));
    for (table, entries) in tables.chain([(None, &documented)]) {
        for (key, value) in entries.iter().filter(|(_, value)| !value.is_table()) {
            let changed =
                set(table, key, another(key, value)).unwrap_or_else(|error| panic!("{table:?} {key}: {error}"));
            assert_ne!(changed, defaults, "{table:?} {key}");
            assert!(set(table, &format!("{key}x"), value.clone()).is_err(), "{table:?} {key}x");
            keys += 1;
        }
    }
    assert!(keys > 15, "{keys}");
}
