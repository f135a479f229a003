//! The configurations of load balancers that the service prints. That the balancers accept them, and what becomes of
//! requests behind them, is shown by `proof balance`.

use service::config::Config;
use service::proxy::{Proxy, proxy, site};

use crate::start::config;

const ALL: [Proxy; 3] = [Proxy::Haproxy, Proxy::Nginx, Proxy::Caddy];

fn printed(config: &Config, kind: Proxy, servers: &[&str]) -> String {
    let servers: Vec<_> = servers.iter().map(|server| server.parse().expect(server)).collect();
    proxy(config, kind, &servers, "shop.example").expect("a configuration")
}

/// The settings that something follows from, and the lines that say so of each.
const FOLLOWS: &[(&str, &str, [&str; 3])] = &[
    ("a twelfth of T is two checks, of a second at most", "", ["inter 1s fall 2 rise 1", "", "health_interval 1s"]),
    ("the same of a shorter T", "shutdown_timeout = '6s'", ["inter 200ms fall 2", "", "health_interval 200ms"]),
    ("T and what systemd waits longer", "", ["hard-stop-after 33s", "", "lb_try_duration 33s"]),
    (
        "limits.request_timeout and a margin",
        "limits.request_timeout = '9s'",
        ["timeout server 14s", "proxy_read_timeout 14s;", "response_header_timeout 14s"],
    ),
    (
        "limits.header_timeout",
        "limits.header_timeout = '1500ms'",
        ["timeout http-request 1500ms", "client_header_timeout 1500ms;", "read_header 1500ms"],
    ),
    ("less than limits.idle_timeout", "limits.idle_timeout = '100s'", ["", "keepalive_timeout 80s;", "keepalive 80s"]),
    ("a fifteenth, for half of them", "limits.idle_timeout = '30s'", ["pool-purge-delay 2s", "", ""]),
    ("limits.max_connections", "limits.max_connections = 77", ["maxconn 77", "", ""]),
    ("as long as for an answer", "limits.request_timeout = '9s'", ["timeout queue 14s", "", ""]),
    ("limits.max_body_bytes", "limits.max_body_bytes = 99", ["", "client_max_body_size 99;", ""]),
    ("none, which to nginx is no limit", "limits.max_body_bytes = 0", ["", "client_max_body_size 1;", ""]),
];

#[test]
fn each_time_and_limit_follows_from_the_setting_that_it_has_to_fit() {
    for (what, settings, lines) in FOLLOWS {
        let config = config(settings);
        for (kind, line) in ALL.into_iter().zip(lines) {
            let text = printed(&config, kind, &["a", "b"]);
            assert!(text.contains(line), "{what}: {kind:?} does not say {line}:\n{text}");
        }
    }
}

#[test]
fn nothing_is_left_to_be_filled_in() {
    for (kind, servers) in ALL.into_iter().flat_map(|kind| [(kind, &["a"][..]), (kind, &["a", "b:1", "/run/c.sock"])]) {
        let text = printed(&config(""), kind, servers);
        assert!(!text.replace("unix@/", "").contains('@') && text.ends_with('\n') && text.contains(name!()), "{text}");
        assert_eq!(text.contains("health_uri"), matches!(kind, Proxy::Caddy) && servers.len() > 1, "{text}");
    }
}

#[test]
fn a_host_is_named_as_each_of_them_has_it() {
    let config = config("listen = '0.0.0.0:9000'");
    let servers = ["a.example", "10.0.0.1:80", "[::1]", "/run/a.sock"];
    for (kind, lines) in ALL.into_iter().zip([
        [
            "server 1 a.example:9000 ",
            "server 2 10.0.0.1:80 ",
            "server 3 [::1]:9000 ",
            "server 4-last unix@/run/a.sock ",
        ],
        ["server a.example:9000 ", "server 10.0.0.1:80 ", "server [::1]:9000 ", "server unix:/run/a.sock "],
        ["to a.example:9000\n", "to 10.0.0.1:80\n", "to [::1]:9000\n", "to unix//run/a.sock\n"],
    ]) {
        let text = printed(&config, kind, &servers);
        for line in lines {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
    }
}

#[test]
fn what_the_service_would_not_understand_or_nobody_could_reach_is_refused() {
    for (settings, server, reason) in [
        ("[proxies]\nheader = 'forwarded'", "a", "proxies.header"),
        ("listen = '/run/a.sock'", "a", "a: on which port?"),
    ] {
        for kind in ALL {
            let refused = proxy(&config(settings), kind, &[server.parse().expect(server)], "shop.example");
            assert!(refused.as_ref().is_err_and(|error| error.contains(reason)), "{refused:?}");
        }
    }
}

#[test]
fn what_is_no_place_is_refused() {
    for text in ["", "a b", "a;b", "a:", "a:b", "a:65536", "::1", "a/b", "me@a", "/run/a b", "a{"] {
        assert!(text.parse::<service::proxy::Server>().is_err(), "{text:?}");
    }
    for text in ["", "a b", "a;b", "a:80", "a{", "[::1]", "a/b"] {
        assert!(site(text).is_err(), "{text:?}");
    }
}
