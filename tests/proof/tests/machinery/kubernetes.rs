//! The manifests that the service prints. That Kubernetes' own schemas accept them, the part `manifests` of `tests/all.sh` shows; what
//! becomes of requests when pods come and go as they say, `proof pods`.

use std::fs;
use std::path::Path;

use clap::Parser;
use service::kubernetes::{Options, config, manifests};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn printed(settings: &str, arguments: &[&str]) -> Result<String, String> {
    let options =
        Arguments::try_parse_from([&["kubernetes"], arguments].concat()).map_err(|error| error.to_string())?;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, settings).unwrap();
    let file = if settings.is_empty() { None } else { Some(&*file) };
    let config = config(file).map_err(|error| error.to_string())?;
    manifests(&config, file, &options.options)
}

/// The settings that something follows from, and what says so.
const FOLLOWS: &[(&str, &str, &str)] = &[
    ("T and a margin", "shutdown_timeout = '45500ms'", "terminationGracePeriodSeconds: 49\n"),
    ("the same", "shutdown_timeout = '45500ms'", "value: 1, periodSeconds: 49 }"),
    ("T, as far as a policy can say it", "shutdown_timeout = '1h'", "value: 1, periodSeconds: 1800 }"),
    ("listen", "listen = '[::]:9000'", "containerPort: 9000 }"),
    ("unit.start_timeout", "unit.start_timeout = '7s'", "failureThreshold: 7\n"),
    ("unit.start_timeout and a margin", "unit.start_timeout = '7s'", "progressDeadlineSeconds: 127\n"),
    ("a third of unit.watchdog", "unit.watchdog = '20s'", "periodSeconds: 7\n            timeoutSeconds: 7\n"),
    ("readiness_timeout", "readiness_timeout = '2s'", "timeoutSeconds: 3\n"),
    ("unit.cpu_weight", "unit.cpu_weight = 25", "cpu: 250m,"),
    ("unit.memory_high", "unit.memory_high = '512M'", "memory: \"536870912\" }\n            limits"),
    ("unit.memory_max", "unit.memory_max = '2G'", "limits: { memory: \"2147483648\" }"),
    ("unit.memory_max, which is less", "unit.memory_max = '512M'", "memory: \"536870912\" }\n            limits"),
    ("no unit.memory_max", "unit.memory_max = 'infinity'", "limits: {  }"),
    ("unit.outbound", "unit.outbound = false", "egress: []\n"),
    ("unit.outbound", "unit.outbound = true", "egress: [{}]\n"),
    ("unit.credentials", "unit.credentials = ['listen']", "create secret generic"),
    ("unit.credentials", "unit.credentials = ['listen']", "value: /run/credentials }"),
];

#[test]
fn what_has_to_fit_a_setting_follows_from_it() {
    for (what, settings, line) in FOLLOWS {
        let text = printed(settings, &[]).unwrap();
        assert!(text.contains(line), "{what}: nothing says {line}:\n{text}");
    }
}

#[test]
fn nothing_is_left_to_be_filled_in_and_nothing_is_there_in_vain() {
    for (settings, arguments) in [
        ("", &[][..]),
        ("reuse_port = false", &["--image", "registry.example:5000/a/b@sha256:00"]),
        ("unit.credentials = ['listen']", &["--canary", "b:2", "--weight", "10", "--replicas", "7"]),
    ] {
        let text = printed(settings, arguments).unwrap();
        assert!(!text.replace("b@sha256", "").contains('@') && text.ends_with('\n'), "{text}");
        let has_canary = arguments.contains(&"--canary");
        assert_eq!(text.matches("kind: Deployment\nmetadata").count(), 1 + usize::from(has_canary), "{text}");
        assert_eq!(text.contains("kind: ConfigMap\n"), !settings.is_empty(), "{text}");
        assert_eq!(text.contains("volumes:"), !settings.is_empty(), "{text}");
        assert_eq!(text.contains("secretName"), settings.contains("credentials"), "{text}");
        assert!(text.contains(if has_canary { "weight: 90 }" } else { "weight: 100 }" }), "{text}");
        assert_eq!(text.contains("weight: 10 }"), has_canary, "{text}");
    }
}

#[test]
fn a_changed_file_is_another_configuration_and_stands_there_as_it_is() {
    let file = "  # '@name@' and \"quotes\": {{{\n\n[limits]\nmax_connections = 7\n";
    let name = |text: &str| text.lines().find_map(|line| line.strip_prefix("  name: ")).map(str::to_owned);
    let (one, two) = (printed(file, &[]).unwrap(), printed(&file.replace('7', "8"), &[]).unwrap());
    assert!(
        one.contains("|2\n      # '@name@' and \"quotes\": {{{\n\n    [limits]\n    max_connections = 7\n---"),
        "{one}"
    );
    assert_ne!(name(&one), name(&two));
}

#[test]
fn what_nobody_could_reach_or_read_is_refused() {
    for (settings, arguments, reason) in [
        ("listen = '/run/a.sock'", &[][..], "nobody reaches /run/a.sock"),
        ("listen = '127.0.0.1:80'", &[], "nobody reaches 127.0.0.1:80"),
        ("listen = '0.0.0.0:80'", &[], "may not listen on 0.0.0.0:80"),
        ("unit.memory_max = '80%'", &[], "unit.memory_max"),
        ("listens = 7", &[], "listens"),
        ("", &["--image", "a b"], "image"),
        ("", &["--canary", "a\"b"], "canary"),
        ("", &["--weight", "10"], "--canary"),
        ("", &["--canary", "a", "--weight", "101"], "101"),
        ("", &["--replicas", "0"], "0"),
        ("", &["--site", "a b"], "site"),
        ("", &["--site", "A.example"], "site"),
        ("", &["--site", "a..b"], "site"),
        ("", &["--site", "192.0.2.1"], "site"),
        ("", &["--gateway", "a/b/c"], "gateway"),
        ("", &["--gateway", "a-"], "gateway"),
    ] {
        let refused = printed(settings, arguments);
        assert!(refused.as_ref().is_err_and(|error| error.contains(reason)), "{refused:?}");
    }
    assert!(config(Some(Path::new("/nowhere"))).is_err_and(|error| error.to_string().contains("/nowhere")));
}
