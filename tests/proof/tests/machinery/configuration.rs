//! The configuration: its layers in their order, and how whatever makes no sense is refused.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use layers::settings::Secret;
use serde::Deserialize;
use service::config::Config;
use tempfile::TempDir;
use toml::{Table, Value};

use crate::start::{BINARY, command, variable};

/// The documentation of every setting.
const DEFAULT: &str = include_str!("../../../../config/default.toml");

/// A file with this text; gone with the folder.
fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some.toml");
    fs::write(&path, text).unwrap();
    (folder, path)
}

/// The configuration of a host that has nothing but these settings in its environment.
fn load(settings: &[(&str, &str)]) -> Result<Config, String> {
    let variables = settings.iter().map(|(key, value)| (variable(key).into(), value.into()));
    Config::load_from(Path::new("/nowhere/config.toml"), None, variables).map_err(|error| error.to_string())
}

/// The same of credentials with these names and texts, and of settings in the environment.
fn load_credentials(
    file: Option<&Path>,
    credentials: &[(&str, &str)],
    settings: &[(&str, &str)],
) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in credentials {
        fs::write(folder.path().join(name), text).unwrap();
    }
    // As Kubernetes has it.
    fs::create_dir(folder.path().join("..data")).unwrap();
    let directory = ("CREDENTIALS_DIRECTORY".into(), folder.path().into());
    let variables = settings.iter().map(|(key, value)| (variable(key).into(), value.into()));
    let loaded = Config::load_from(Path::new("/nowhere/config.toml"), file, variables.chain([directory]));
    loaded.map_err(|error| error.to_string())
}

/// The same of a file with this text.
fn load_file(text: &str) -> Result<Config, String> {
    let (_folder, path) = file(text);
    Config::load_from(&path, None, []).map_err(|error| error.to_string())
}

/// `key = value`, where the key may be in a table.
fn line(key: &str, value: &str) -> String {
    match key.split_once('.') {
        Some((table, key)) => format!("[{table}]\n{key} = {value}"),
        None => format!("{key} = {value}"),
    }
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
    assert!(has(&defaults, ["CPUWeight=100", "TasksMax=256", "MemoryMax=1G"]), "{defaults}");
    let with_file = unit(&["--config", path], &[]);
    assert!(has(&with_file, ["CPUWeight=200", "TasksMax=200", "MemoryMax=1G"]), "{with_file}");
    let with_both = unit(&["--config", path], &[("unit.cpu_weight", "300")]);
    assert!(has(&with_both, ["CPUWeight=300", "TasksMax=200", "MemoryMax=1G"]), "{with_both}");
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
    let name = name!();
    let with_host = ["sh", "-c", script, name, host, "env"];
    let cpu_weight = format!("{}=300", variable("unit.cpu_weight"));
    let output = unshare(&[&with_host[..], &[&cpu_weight, BINARY, "unit", "service", "--config", named]].concat());
    let unit = String::from_utf8(output.unwrap().stdout).unwrap();
    for line in ["CPUWeight=300", "TasksMax=200", "MemoryMax=50M", "MemoryHigh=768M"] {
        assert!(unit.lines().any(|other| other == line), "no {line} in {unit}");
    }

    let (_folder3, wrong) = file("nonsense = 1");
    let wrong = ["sh", "-c", script, name, wrong.to_str().unwrap(), BINARY, "check"];
    assert_refused(&unshare(&wrong).unwrap(), &[&format!("/etc/{name}/config.toml"), "nonsense"]);
}

#[test]
fn what_makes_no_sense_is_refused_with_file_key_and_reason() {
    let cases: [(&str, &[&str]); 10] = [
        ("nonsense = 1", &["nonsense", "unknown field"]),
        ("[limits]\nmax_conections = 1", &["limits.max_conections", "unknown field", "max_connections"]),
        (
            "shutdown_timeout = 30",
            &["shutdown_timeout", "a whole number, where a duration (\"30s\", \"1h 30m\") is expected"],
        ),
        ("shutdown_timeout = '30 parsecs'", &["shutdown_timeout", "a text that is not a duration"]),
        ("listen = 'nowhere'", &["listen", "nowhere", "ADDRESS:PORT"]),
        ("reuse_port = 'perhaps'", &["reuse_port", "a text, where a boolean is expected"]),
        (
            "[limits]\nmax_connections = -1",
            &["limits.max_connections", "a negative number that is not a whole number from 0 on"],
        ),
        ("[log]\nformat = 'xml'", &["log.format", "none of auto, text, json, journal"]),
        ("[log]\nfilter = 'a=b=c'", &["log.filter", "a=b=c"]),
        ("limits = 5", &["limits", "a whole number, where struct Limits is expected"]),
    ];
    for (text, parts) in cases {
        let (_folder, path) = file(text);
        let path = path.to_str().unwrap();
        assert_refused(&run(&["check", "--config", path], &[]), &[&[path], parts].concat());
    }
}

type Refused = &'static [(&'static str, &'static str)];
type Good = &'static [&'static str];

/// Of each setting, values as a file has them: what cannot work, with a part of the reason; and what just works.
const EDGES: [(&str, Refused, Good); 30] = [
    ("shutdown_timeout", &[("'999ms'", "1s and 3600s"), ("'61m'", "1s and 3600s")], &["'1s'", "'1h'"]),
    (
        "listen",
        &[
            ("'8080'", "neither"),
            ("'localhost:80'", "neither"),
            ("'1.2.3.4:65536'", "neither"),
            ("'224.0.0.1:80'", "no address of a host"),
            ("'[ff02::1]:80'", "no address of a host"),
            ("'run/a.sock'", "neither"),
            ("'/'", "plain"),
            ("'/run/a b'", "plain"),
            ("'/run/%n'", "plain"),
            ("'/run/../a'", "plain"),
            ("'/run/./a'", "plain"),
            ("'/run//a'", "plain"),
            ("'/run/a/'", "plain"),
            (LONG_PATH, "107 bytes"),
            (concat!("'/run/", name!(), "'"), "lets nobody in"),
            (concat!("'/run/", name!(), "/x.sock'"), concat!("lets nobody in: /run/", name!(), ".sock")),
            (concat!("'/var/run/", name!(), "/x.sock'"), "lets nobody in"),
            (concat!("'/var/lib/", name!(), "/x.sock'"), "lets nobody in"),
            ("'/run/private/x.sock'", "lets nobody in"),
        ],
        &[
            "'0.0.0.0:0'",
            "'[::]:65535'",
            "'[fe80::1%2]:80'",
            concat!("'/run/", name!(), ".sock'"),
            concat!("'/run/", name!(), "-x/x.sock'"),
        ],
    ),
    ("reuse_port", &[("1", "boolean"), ("'yes'", "boolean")], &["true", "false"]),
    ("readiness_timeout", &[("'0s'", "1ms and 4s"), ("'4001ms'", "`health` waits")], &["'1ms'", "'4s'"]),
    (
        "limits.max_connections",
        &[("0", "1 and"), ("262_081", "fs.nr_open"), ("9223372036854775807", "fs.nr_open"), ("1.5", "whole")],
        &["1", "262_080"],
    ),
    ("limits.max_body_bytes", &[("-1", "from 0 on"), ("'1M'", "whole")], &["0", "9223372036854775807"]),
    ("limits.idle_timeout", &[("'0s'", "1ms"), ("'1000y'", "86400s, a day")], &["'1ms'", "'1day'"]),
    ("limits.body_timeout", &[("'0s'", "1ms"), ("'1000y'", "86400s, a day")], &["'1ms'", "'1day'"]),
    ("limits.send_timeout", &[("'0s'", "1ms"), ("'1000y'", "86400s, a day")], &["'1ms'", "'1day'"]),
    ("limits.linger_timeout", &[("'1000y'", "86400s, a day")], &["'0s'", "'1day'"]),
    ("limits.max_head_bytes", &[("1023", "1024 and 65536"), ("65537", "1024 and 65536")], &["1024", "65536"]),
    ("limits.request_timeout", &[("'0s'", "1ms"), ("'15001ms'", "half of shutdown_timeout")], &["'1ms'", "'15s'"]),
    ("limits.header_timeout", &[("'1ns'", "1ms"), ("'5001ms'", "a sixth of shutdown_timeout")], &["'1ms'", "'5s'"]),
    (
        "log.filter",
        &[
            ("''", "neither a level (off, error, warn"),
            ("'warning'", "\"warning\" is neither a level (off, error, warn"),
            ("'info,'", "\"\" is neither"),
            ("'infos'", "neither a level"),
            ("'info;requests=debug'", "neither a level"),
            ("'info requests=debug'", "neither a level"),
            ("'info,requests'", "\"requests\" is neither"),
            ("'info,requests=verbose'", "neither a level"),
            ("'info,requests='", "neither a level"),
            ("'info,=debug'", "neither a level"),
            ("'info,requests[{id}]=debug'", "neither a level"),
            ("'info,debug'", "\"debug\" is a second level"),
            ("'requests=debug'", "\"info,requests=debug\""),
        ],
        &["'off'", "'INFO'", "'3'", "'info, requests=debug'", "' info , a::b = warn '", "'requests=debug,info'"],
    ),
    ("log.format", &[("'JSON'", "auto, text, json, journal"), ("''", "auto")], &["'text'", "'journal'"]),
    ("unit.outbound", &[("0", "boolean"), ("'true'", "boolean")], &["true"]),
    ("unit.start_timeout", &[("'0s'", "1s and"), ("'2days'", "a day")], &["'1s'", "'1day'"]),
    ("unit.watchdog", &[("'999ms'", "1s and"), ("'2days'", "a day")], &["'1s'", "'1day'"]),
    ("unit.memory_high", MEMORY.0, MEMORY.1),
    ("unit.memory_max", MEMORY.0, MEMORY.1),
    ("unit.tasks_max", &[("15", "16"), ("4294967296", "u32")], &["16", "4294967295"]),
    ("unit.metrics", &[("'9464'", "neither"), ("'/'", "plain")], &["'[::1]:9464'", "'/run/a.sock'", "''"]),
    ("unit.cpu_weight", &[("0", "10000"), ("10_001", "10000")], &["1", "10_000"]),
    (
        "unit.credentials",
        &[
            ("['nonsense']", "\"nonsense\" is the key of no setting"),
            ("['log.filter', 'log.filters']", "\"log.filters\" is"),
            ("['']", "\"\" is"),
            ("['listen.port']", "no setting"),
            ("['listen\\nUser=root']", "no setting"),
            ("'listen'", "a sequence is expected"),
        ],
        &["[]", "['limits.request_timeout', 'listen']"],
    ),
    // Not only what is written like a default is a value of its type.
    (
        "limits",
        &[("5", "Limits"), ("'{}'", "Limits"), ("{ nonsense = 1 }", "unknown field")],
        &["{ max_connections = 0x10 }"],
    ),
    (
        "proxies.trusted",
        &[
            ("['localhost']", "neither ADDRESS, ADDRESS/PREFIX nor unix"),
            ("['10.0.0.0/']", "neither"),
            ("['10.0.0.0/33']", "from 1 to 32"),
            ("['0.0.0.0/0']", "everybody"),
            ("['::/0']", "from 1 to 128"),
            ("['10.0.0.1/8']", "bits beyond"),
            ("['fd00::1/8']", "bits beyond"),
            ("['127.0.0.1:80']", "neither"),
            ("'unix'", "a sequence is expected"),
        ],
        &["[]", "['unix', '128.0.0.0/1', '10.0.0.1/32', 'fd00::/8', '::1/128', '::1']"],
    ),
    ("proxies.header", &[("'X-Forwarded-For'", "x-forwarded-for, forwarded"), ("''", "none of")], &["'forwarded'"]),
    ("proxies", &[("5", "Proxies")], &["{ trusted = [] }"]),
    ("log", &[("[]", "Log")], &["{ filter = 'debug', format = 'text' }"]),
    ("unit", &[("true", "Unit")], &["{ cpu_weight = 0b11 }"]),
];

#[test]
fn what_only_together_makes_no_sense_is_refused() {
    let error = load_file("listen = '/run/a.sock'\nunit.metrics = '/run/a.sock'").unwrap_err();
    assert!(error.contains("unit.metrics: /run/a.sock is where the service listens"), "{error}");
}

#[test]
fn what_clients_hold_fits_into_the_memory_that_there_is() {
    for (memory_high, memory_max, held) in [("768M", "1G", 192), ("2G", "512M", 128), ("infinity", "64M", 16)] {
        let config = load(&[("unit.memory_high", memory_high), ("unit.memory_max", memory_max)]).unwrap();
        assert_eq!(config.connection_limits().held_bytes, held << 20, "{memory_high} {memory_max}");
    }
}

const LONG_PATH: &str =
    "'/run/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789abc'";

const MEMORY: (Refused, Good) = (
    &[
        ("''", "512M"),
        ("'0'", "512M"),
        ("'16777215'", "16M"),
        ("'15M'", "16M"),
        ("'M'", "512M"),
        ("'512m'", "512M"),
        ("'1.5G'", "512M"),
        ("'99999999999999T'", "512M"),
        ("'0%'", "512M"),
        ("'101%'", "512M"),
        ("536870912", "a whole number, where a string is expected"),
    ],
    &["'16M'", "'16777216'", "'2G'", "'1T'", "'100%'", "'infinity'", "'0536870912'"],
);

#[test]
fn every_setting_has_edges_within_which_it_works_and_beyond_which_it_is_refused() {
    for (key, refused, good) in EDGES {
        for (value, reason) in refused {
            let error = load_file(&line(key, value));
            let error = error.expect_err(&format!("{key} = {value}"));
            assert!(error.contains(key) && error.contains(reason), "{key} = {value}: {reason:?} not in {error}");
        }
        for value in good {
            load_file(&line(key, value)).unwrap_or_else(|error| panic!("{key} = {value}: {error}"));
        }
    }
    let edges: Vec<&str> = EDGES.iter().map(|(key, ..)| *key).collect();
    for key in documented().iter().flat_map(|(key, value)| match value.as_table() {
        Some(table) => table.keys().map(|entry| format!("{key}.{entry}")).collect(),
        None => vec![key.clone()],
    }) {
        // What stands in no table may well be the owner's, as `ping_delay` is.
        assert!(edges.contains(&&*key) || !key.contains('.'), "{key} has none");
    }
}

#[test]
fn what_a_file_takes_the_environment_takes_as_the_same_text() {
    let shown = |config: Result<Config, String>| {
        config.map(|config| format!("{:?}", Config { beside_files: Vec::new(), ..config }))
    };
    for (key, refused, good) in EDGES {
        let values = refused.iter().map(|(value, _)| value).chain(good);
        // Text is what it is there, and has no quotes. That a number is no text cannot be told.
        for value in values.filter(|value| !(key.contains("memory") && value.parse::<u64>().is_ok())) {
            let text = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')).unwrap_or(value);
            let by_file = shown(load_file(&line(key, value)));
            let by_environment = shown(load(&[(key, text)]));
            // A text that is none in a file may well be of the right type.
            if by_file.is_ok() || text == *value {
                assert_eq!(by_environment.as_ref().ok(), by_file.as_ref().ok(), "{key} = {value}: {by_environment:?}");
            }
            let by_credential = load_credentials(None, &[(key, &format!("{text}\n"))], &[]);
            assert_eq!(shown(by_credential.clone()).ok(), by_environment.as_ref().ok().cloned(), "{key} = {value}");
            if let Err(error) = by_environment {
                assert!(error.contains(&format!("{} in the environment: {key}", variable(key))), "{error}");
                let error = by_credential.unwrap_err();
                assert!(error.contains(&format!("{key} among the credentials: {key}")), "{error}");
            }
        }
    }
    // Beside others, whatever comes first.
    let all =
        [("unit.memory_max", "536870912"), ("limits.max_connections", "10_000"), ("limits", "{ max_body_bytes = 1 }")];
    let config = load(&all).unwrap();
    let Config { limits, unit, .. } = config;
    assert_eq!((limits.max_connections, limits.max_body_bytes, &*unit.memory_max), (10_000, 1, "536870912"));
}

#[test]
fn no_error_has_a_value_that_may_be_a_secret() {
    for secret in ["0123456789", "1234567890", "hunter2hunter2", "26208012s", "7e5", "true", "s3cr3t=word", "{ a = 1 }"]
    {
        let keys = EDGES.iter().map(|(key, ..)| *key).chain(["password", "limits.password", "password.limits", ""]);
        for key in keys {
            let Err(error) = load(&[(key, secret)]) else { continue };
            assert!(!error.contains(secret), "{key} = {secret}: {error}");
            assert!(error.contains(&variable(key)), "{error}");
        }
    }
    // Nor has it a part of one.
    for (key, text) in [
        ("log.filter", "hunter2,x"),
        ("log.filter", "info, hunter2 ,debug"),
        ("log.filter", "info,hun\"ter2"),
        ("proxies.trusted", "['10.0.0.0/8', 'hunter2']"),
        ("proxies.trusted", "['hunter2/8']"),
        ("unit.credentials", "['listen', 'hunter2']"),
    ] {
        let error = load(&[(key, text)]).unwrap_err();
        assert!(!error.contains("hun") && !error.contains("ter2") && error.contains(key), "{key} = {text}: {error}");
    }
    // In a file it has to be of another type.
    for (key, secret) in [("unit.memory_max", "0x0123456789"), ("listen", "123456789"), ("reuse_port", "'hunter2'")] {
        let error = load_file(&line(key, secret)).unwrap_err();
        assert!(!["hunter2", "123456789", "4886718345"].iter().any(|secret| error.contains(secret)), "{error}");
    }
    // Digits stay what they are where they are text.
    assert_eq!(load(&[("unit.memory_max", "0536870912")]).unwrap().unit.memory_max, "0536870912");
}

#[test]
fn a_value_in_the_environment_has_to_be_text() {
    let broken = (variable("listen").into(), OsString::from_vec(b"/run/\xff".to_vec()));
    let error = Config::load_from(Path::new("/nowhere"), None, [broken]).unwrap_err().to_string();
    assert!(error.contains(&variable("listen")) && error.contains("UTF-8"), "{error}");
}

#[test]
fn a_hosts_file_that_is_there_and_cannot_be_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    fs::write(at("file"), "").unwrap();
    fs::create_dir_all(at("folder/config.toml")).unwrap();
    symlink(at("nowhere"), at("link")).unwrap();
    symlink(at("link"), at("link-to-link")).unwrap();
    symlink(at("loop"), at("loop")).unwrap();
    symlink(at("file"), at("good")).unwrap();
    let load = |path: &Path| Config::load_from(path, None, []).map(drop).map_err(|error| error.to_string());

    let cases = [
        ("link", "link is a link that leads nowhere"),
        ("link-to-link", "leads nowhere"),
        ("link/config.toml", "link is a link that leads nowhere"),
        ("link-to-link/config.toml", "leads nowhere"),
        ("loop/config.toml", "symbolic links"),
        ("file/config.toml", "Not a directory"),
        ("folder/config.toml", "Is a directory"),
    ];
    for (path, reason) in cases {
        let error = load(&at(path)).expect_err(path);
        assert!(error.contains(at(path).to_str().unwrap()) && error.contains(reason), "{path}: {error}");
    }
    for path in ["none", "none/config.toml", "good"] {
        assert_eq!(load(&at(path)), Ok(()), "{path}");
    }
}

#[test]
fn credentials_lie_between_the_files_and_the_environment() {
    let (_folder, path) = file("[unit]\ncpu_weight = 2\ntasks_max = 22\nmemory_max = '2G'");
    let credentials = [("unit.cpu_weight", "3"), ("unit.tasks_max", "33\n")];
    let unit = load_credentials(Some(&path), &credentials, &[("unit.cpu_weight", "4")]).unwrap().unit;
    assert_eq!((unit.cpu_weight, unit.tasks_max, &*unit.memory_max), (4, 33, "2G"));
}

#[test]
fn rust_log_is_the_filter_unless_the_services_own_variable_is_there() {
    let filter = |own: Option<&str>, everybodys: &str| {
        let own = own.map(|own| (variable("log.filter").into(), own.into()));
        let variables = [own, Some(("RUST_LOG".into(), everybodys.into()))];
        let (_folder, path) = file("log.filter = 'warn'");
        let config = Config::load_from(&path, None, variables.into_iter().flatten());
        config.map(|config| config.log.filter.to_string()).map_err(|error| error.to_string())
    };
    assert_eq!(filter(None, "debug,a=off"), Ok("a=off,debug".to_owned()));
    assert_eq!(filter(Some("error"), "debug"), Ok("error".to_owned()));
    assert_eq!(filter(None, ""), Ok("warn".to_owned()));
    let error = filter(None, "loud").unwrap_err();
    assert!(error.starts_with("RUST_LOG in the environment: log.filter: it is neither a level"), "{error}");
}

#[test]
fn a_credential_that_makes_no_sense_is_refused_and_not_shown() {
    for (name, text, reason) in [
        ("nonsense", "hidden", "unknown field"),
        ("limits.max_conections", "5", "unknown field"),
        ("log", "hidden", "struct Log is expected"),
        ("listen", "hidden", "it is neither"),
        ("limits.max_connections", "hidden", "a whole number from 0 on"),
        ("unit.start_timeout", "2days", "it is not within"),
        ("unit.memory_max", "hidden", "is not 512M"),
    ] {
        let error = load_credentials(None, &[(name, text)], &[]).expect_err(name);
        let whole = error.starts_with(&format!("{name} among the credentials: ")) && error.contains(reason);
        assert!(whole && !error.contains("hidden") && !error.contains("2days"), "{name}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let load = |directory: &Path| {
        let directory = ("CREDENTIALS_DIRECTORY".into(), directory.into());
        Config::load_from(Path::new("/nowhere"), None, [directory]).unwrap_err().to_string()
    };
    fs::write(folder.path().join("listen"), b"/run/\xff").unwrap();
    assert!(load(folder.path()).contains("UTF-8"), "{}", load(folder.path()));
    assert!(
        load(Path::new("/nowhere")).contains("/nowhere: a credential: No such file"),
        "{}",
        load(Path::new("/nowhere"))
    );
}

#[test]
fn a_secret_is_shown_to_nobody_but_who_asks() {
    #[derive(Debug, Deserialize)]
    struct Database {
        url: Secret<String>,
        port: Secret<u16>,
    }
    let read = |text: &str| toml::from_str::<Database>(text);
    let database = read("url = 'postgres://me:hidden@db'\nport = '5432'").unwrap();
    assert_eq!((database.url.expose().as_str(), *database.port.expose()), ("postgres://me:hidden@db", 5432));
    assert_eq!(format!("{database:?} {}", database.url), "Database { url: ***, port: *** } ***");
    let error = read("url = ''\nport = 'hidden'").unwrap_err().message().to_owned();
    assert_eq!(error, "is no u16");
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
    assert_refused(&run(&["check"], &settings), &["the environment", "limits.request_timeout", "1ms and 1s"]);
}

#[test]
fn the_environment_is_refused_by_its_key() {
    assert_refused(&run(&["check"], &[("limits.max_connections", "many")]), &["environment", "limits.max_connections"]);
    assert_refused(&run(&["check"], &[("nonsense", "1")]), &["environment", "nonsense"]);
}

#[test]
fn what_is_set_for_others_whose_names_begin_like_ours_is_not_for_us() {
    // Kubernetes, for a Service; Docker, for a link, which has some more.
    let variables = [
        ("service_host", "10.0.0.1"),
        ("service_host", "fd00::1"),
        ("service_port", "8080"),
        ("service_port_http", "8080"),
        ("service_port_http_2", "8080"),
        ("port", "tcp://10.0.0.1:8080"),
        ("port", "udp://[fd00::1]:53"),
        ("port_8080_tcp", "tcp://10.0.0.1:8080"),
        ("port_8080_tcp_proto", "tcp"),
        ("port_8080_tcp_port", "8080"),
        ("port_8080_tcp_addr", "10.0.0.1"),
        ("port_53_udp_addr", "10.0.0.1"),
        ("port_132_sctp_proto", "sctp"),
        ("port_80_tcp_start", "tcp://172.17.0.5:80"),
        ("port_80_tcp_port_end", "81"),
        ("name", "/web/db"),
    ];
    let mistakes = [
        ("listn", "0.0.0.0:80"),
        ("limits__max_conections", "500"),
        ("limits__", "5"),
        ("_listen", "0.0.0.0:80"),
        ("", "1"),
        ("portal", "1"),
        ("listen_port", "8080"),
        ("port_80_tcp_prot", "tcp"),
        ("canary_service_host", "db"),
        ("services_host", "10.0.0.1"),
        ("env_mode", "production"),
    ];
    let mut all = Vec::new();
    for service in ["", "canary_", "canary_port_80_", "limits_", "limits__x_", "_x_", "service_port_"] {
        for (name, value) in variables {
            let name = format!("{service}{name}");
            assert!(load(&[(&name, value)]).is_ok(), "{name}: {:?}", load(&[(&name, value)]));
            all.push((name, value));
        }
    }
    // What a linked container has in its environment, Docker repeats.
    all.push(("canary_env_password".to_owned(), "0123"));
    let all: Vec<_> = all.iter().map(|(name, value)| (&**name, *value)).collect();
    assert!(load(&all).is_ok(), "{:?}", load(&all));
    for mistake in mistakes {
        for beside in [&[][..], &all[1..]] {
            let beside = beside
                .iter()
                .filter(|(name, value)| !(mistake.0 == "env_mode" && *value == "/web/db" && *name == "name"));
            let error = load(&beside.copied().chain([mistake]).collect::<Vec<_>>()).expect_err(mistake.0);
            assert!(error.contains(&format!("{} in the environment", variable(mistake.0))), "{mistake:?}: {error}");
        }
    }
    // One that has a key of ours is ours, whatever it looks like.
    assert!(load(&[("listen", "tcp://10.0.0.1:80"), ("unit.tasks_max", "8080")]).is_err());

    let output = run(&["check"], &[("canary_service_host", "10.0.0.1")]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_refused(&run(&["check"], &[("listn", "1")]), &["environment", "listn", "unknown field"]);
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
        Value::String(_) => Value::String(
            match key {
                "listen" | "metrics" => "127.0.0.1:1",
                "filter" => "debug",
                "format" => "json",
                "header" => "forwarded",
                "memory_high" | "memory_max" => "2G",
                _ => "4s",
            }
            .into(),
        ),
        Value::Array(_) => vec![Value::from(if key == "trusted" { "unix" } else { "listen" })].into(),
        other => panic!("{key} = {other}"),
    }
}

/// Every key of `config/default.toml` with a value of it.
fn documented() -> Table {
    // Keys that are commented out have a default that follows from others.
    let is_key = |line: &str| {
        line.split_once(" = ").is_some_and(|(key, _)| key.chars().all(|c| c == '_' || c.is_ascii_lowercase()))
    };
    let uncommented: Vec<&str> =
        DEFAULT.lines().map(|line| line.strip_prefix("# ").filter(|key| is_key(key)).unwrap_or(line)).collect();
    uncommented.join("\n").parse().unwrap()
}

#[test]
fn every_documented_key_can_be_set_and_none_is_undocumented() {
    let documented = documented();
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
