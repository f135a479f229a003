//! Whom a request is from, behind proxies: whose word is taken for it, and how far.

use std::net::SocketAddr;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Request};
use axum::routing::get;
use hitless::Application;
use service::app;
use tower::ServiceExt;
use tower_governor::GovernorLayer;
use tower_governor::governor::GovernorConfigBuilder;

use crate::start::{config, spawn_app};

/// Says whom it takes the client for. No peer is one that asks by the Unix socket.
async fn asked(app: impl Application, peer: Option<&str>, headers: &[(&str, &str)]) -> (u16, String) {
    let mut request = Request::get("/whoami").header("host", "test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).expect("a request");
    if let Some(peer) = peer {
        request.extensions_mut().insert(ConnectInfo::<SocketAddr>(peer.parse().expect("an address")));
    }
    let answer = app.oneshot(request).await.expect("an answer");
    let status = answer.status().as_u16();
    let text = to_bytes(answer.into_body(), 10_000).await.expect("a body");
    (status, String::from_utf8(text.to_vec()).expect("a text"))
}

fn whoami() -> Router {
    let whoami = async |ConnectInfo(address): ConnectInfo<SocketAddr>| address.to_string();
    Router::new().route("/whoami", get(whoami))
}

const NGINX: Option<&str> = Some("127.0.0.1:1");

#[tokio::test]
async fn a_client_is_who_the_trusted_proxies_say_and_not_who_it_says() {
    let trusted = "proxies.trusted = ['127.0.0.1', '10.1.0.0/16', 'fd00::/8']";
    let (x, forwarded) = ("x-forwarded-for", "forwarded");
    // Setting, peer, values of both headers, the client.
    type Case<'a> = (&'a str, Option<&'a str>, &'a [(&'a str, &'a str)], &'a str);
    let cases: &[Case] = &[
        // Nobody's word is taken but a trusted one's.
        (x, NGINX, &[], "127.0.0.1:1"),
        (x, NGINX, &[(x, "1.2.3.4")], "1.2.3.4:0"),
        (x, Some("127.0.0.2:1"), &[(x, "1.2.3.4")], "127.0.0.2:1"),
        (x, Some("10.2.0.0:1"), &[(x, "1.2.3.4")], "10.2.0.0:1"),
        (x, Some("[fd12::1]:1"), &[(x, "1.2.3.4")], "1.2.3.4:0"),
        (x, Some("[fe00::1]:1"), &[(x, "1.2.3.4")], "[fe00::1]:1"),
        (x, Some("[::ffff:10.1.2.3]:1"), &[(x, "1.2.3.4")], "1.2.3.4:0"),
        (x, None, &[(x, "1.2.3.4")], "127.0.0.1:0"),
        // From the right, as far as proxies are trusted.
        (x, NGINX, &[(x, "6.6.6.6, 1.2.3.4")], "1.2.3.4:0"),
        (x, NGINX, &[(x, "6.6.6.6, 1.2.3.4, 10.1.9.9,10.1.0.1")], "1.2.3.4:0"),
        (x, NGINX, &[(x, "6.6.6.6, 1.2.3.4, 10.2.0.1")], "10.2.0.1:0"),
        (x, NGINX, &[(x, "6.6.6.6"), (x, "1.2.3.4, 10.1.0.1"), (x, ", ,")], "1.2.3.4:0"),
        (x, NGINX, &[(x, "10.1.0.1, 10.1.0.2")], "10.1.0.1:0"),
        // No further than it can be read.
        (x, NGINX, &[(x, "unknown")], "127.0.0.1:1"),
        (x, NGINX, &[(x, "6.6.6.6, unknown, 10.1.0.1")], "10.1.0.1:0"),
        (x, NGINX, &[(x, "6.6.6.6, \u{e4}")], "127.0.0.1:1"),
        (x, NGINX, &[(x, "\u{e4}, 1.2.3.4")], "1.2.3.4:0"),
        (x, NGINX, &[(x, "\", 1.2.3.4")], "1.2.3.4:0"),
        // As an address is written.
        (x, NGINX, &[(x, "1.2.3.4:56")], "1.2.3.4:56"),
        (x, NGINX, &[(x, "2001:db8::1")], "[2001:db8::1]:0"),
        (x, NGINX, &[(x, "[2001:db8::1]:56")], "[2001:db8::1]:56"),
        (x, NGINX, &[(x, "::ffff:1.2.3.4")], "1.2.3.4:0"),
        // The header that the proxy does not set is its client's.
        (x, NGINX, &[(forwarded, "for=6.6.6.6"), (x, "1.2.3.4")], "1.2.3.4:0"),
        (forwarded, NGINX, &[(forwarded, "for=1.2.3.4"), (x, "6.6.6.6")], "1.2.3.4:0"),
        (forwarded, NGINX, &[(x, "6.6.6.6")], "127.0.0.1:1"),
        // The same in RFC 7239's words.
        (forwarded, Some("127.0.0.2:1"), &[(forwarded, "for=1.2.3.4")], "127.0.0.2:1"),
        (
            forwarded,
            NGINX,
            &[(forwarded, "for=6.6.6.6, For=\"1.2.3.4:56\";by=x , proto=https;for=10.1.0.1")],
            "1.2.3.4:56",
        ),
        (forwarded, NGINX, &[(forwarded, "for=\"[2001:db8::1]\";host=a")], "[2001:db8::1]:0"),
        (forwarded, NGINX, &[(forwarded, "for=\"[2001:db8::1]:56\"")], "[2001:db8::1]:56"),
        (forwarded, NGINX, &[(forwarded, "for=6.6.6.6"), (forwarded, "for=1.2.3.4")], "1.2.3.4:0"),
        (forwarded, NGINX, &[(forwarded, "for=6.6.6.6, for=_hidden")], "127.0.0.1:1"),
        (forwarded, NGINX, &[(forwarded, "for=6.6.6.6, proto=https")], "127.0.0.1:1"),
        (forwarded, NGINX, &[(forwarded, "for=1.2.3.4;for=6.6.6.6")], "127.0.0.1:1"),
        // What a client has in a quoted text, or leaves open, is no element.
        (forwarded, NGINX, &[(forwarded, "for=\", for=1.2.3.4")], "1.2.3.4:0"),
        (forwarded, NGINX, &[(forwarded, "for=1.2.3.4;host=\"a, for=6.6.6.6\"")], "1.2.3.4:0"),
        (forwarded, NGINX, &[(forwarded, "for=1.2.3.4;host=\"a;for=6.6.6.6;b\"")], "1.2.3.4:0"),
        (forwarded, NGINX, &[(forwarded, "for=1.2.3.4;host=\"a\\\", for=6.6.6.6;x=\\\"\"")], "127.0.0.1:1"),
    ];
    for (header, peer, headers, client) in cases {
        let config = config(&format!("{trusted}\nproxies.header = '{header}'"));
        let answer = asked(app::layered(whoami(), &config), *peer, headers).await;
        assert_eq!(answer, (200, (*client).to_owned()), "{header} {peer:?} {headers:?}");
    }
}

#[tokio::test]
async fn who_asks_on_this_host_is_trusted_unless_the_configuration_says_otherwise() {
    for (settings, peer, client) in [
        ("", NGINX, "1.2.3.4:0"),
        ("", Some("[::1]:1"), "1.2.3.4:0"),
        ("", None, "1.2.3.4:0"),
        ("", Some("10.0.0.1:1"), "10.0.0.1:1"),
        ("proxies.trusted = []", NGINX, "127.0.0.1:1"),
        ("proxies.trusted = []", None, "127.0.0.1:0"),
    ] {
        let answer = asked(app::layered(whoami(), &config(settings)), peer, &[("x-forwarded-for", "1.2.3.4")]).await;
        assert_eq!(answer, (200, client.to_owned()), "{settings} {peer:?}");
    }
}

/// Its default is to count by `ConnectInfo<SocketAddr>`.
#[tokio::test]
async fn a_layer_that_counts_by_client_does_so_behind_a_proxy() {
    let twice = GovernorConfigBuilder::default().period(std::time::Duration::from_hours(1)).burst_size(2).finish();
    let routes =
        Router::new().route("/counted", get(async || "counted").layer(GovernorLayer::new(twice.expect("a limit"))));
    let app = spawn_app("", routes).await;
    for (client, status) in
        [("1.2.3.4", 200), ("1.2.3.4", 200), ("1.2.3.4", 429), ("6.6.6.6, 1.2.3.4", 429), ("1.2.3.5", 200)]
    {
        let mut proxy = app.client().await;
        proxy.send(format!("GET /counted HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: {client}\r\n\r\n")).await;
        assert_eq!(proxy.answer().await.status, status, "{client}");
    }
}
