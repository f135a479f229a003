//! Which requests are refused for what they say of their host, and of their transfer coding.

use axum::body::Body;

use super::*;

/// What becomes of a request to `target` with these `Host` headers: the `Host` that handlers see, empty for none.
fn outcome(version: Version, target: &str, hosts: &[&str]) -> Result<String, &'static str> {
    let mut request = Request::builder().version(version).uri(target);
    for host in hosts {
        request = request.header(header::HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
    }
    let mut request = request.body(Body::empty()).unwrap();
    settle(&mut request)?;
    let host = request.headers().get(header::HOST);
    Ok(host.map_or_else(String::new, |host| host.to_str().unwrap().to_owned()))
}

const VERSIONS: [Version; 3] = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2];

#[test]
fn one_good_host_is_taken_in_every_version() {
    for version in VERSIONS {
        for host in [
            "",
            ":80",
            "test",
            "TEST:8080",
            "test:",
            "a.b-c.example.",
            "a_b",
            "192.0.2.1:80",
            "[::1]",
            "[2001:db8::1]:443",
            "[::ffff:192.0.2.1]",
            "a%20b",
            "a!$&'()*+,;=b",
        ] {
            assert_eq!(outcome(version, "/", &[host]).as_deref(), Ok(host), "{version:?}");
        }
    }
}

#[test]
fn what_is_no_host_is_refused_in_every_version() {
    for version in VERSIONS {
        for host in [
            "a b",
            "a\tb",
            "a/b",
            "http://a",
            "user@a",
            "a?b",
            "a#b",
            "a\\b",
            "<a>",
            "\"a\"",
            "ä",
            "a%2",
            "a%zz",
            "a:b",
            "a:+1",
            "a:80:80",
            "a:65536",
            "::1",
            "[::1",
            "[::1]80",
            "[]",
            "[a]",
            "[::1%25eth0]",
            "]",
        ] {
            assert!(outcome(version, "/", &[host]).is_err(), "{version:?}: {host:?}");
        }
        for hosts in [["a", "a"], ["a", "b"], ["a", ""], ["", "a"]] {
            assert!(outcome(version, "/", &hosts).is_err(), "{version:?}: {hosts:?}");
        }
    }
}

#[test]
fn who_says_nothing_is_refused_but_in_http_1_0() {
    for target in ["/", "http://test/"] {
        assert!(outcome(Version::HTTP_10, target, &[]).is_ok(), "{target}");
        assert!(outcome(Version::HTTP_11, target, &[]).is_err(), "{target}");
        // The target has what HTTP/2 calls :authority.
        assert_eq!(outcome(Version::HTTP_2, target, &[]).is_err(), target == "/", "{target}");
    }
}

#[test]
fn a_target_that_has_a_host_is_right() {
    // Target, Host, whether they are the same.
    for (target, host, same) in [
        ("http://test/", "test", true),
        ("http://test/", "TEST:80", true),
        ("http://test:80/", "test:", true),
        ("https://test/", "test:443", true),
        ("http://[::1]:80/", "[::1]", true),
        ("http://test/", "other", false),
        ("http://test/", "", false),
        ("http://test/", "test:443", false),
        ("http://test:8080/", "test", false),
    ] {
        let authority = target.split('/').nth(2).unwrap();
        for version in [Version::HTTP_10, Version::HTTP_11] {
            let expected = if same { host } else { authority };
            assert_eq!(outcome(version, target, &[host]).as_deref(), Ok(expected), "{version:?} {target}");
        }
        assert_eq!(outcome(Version::HTTP_2, target, &[host]).is_ok(), same, "{target} and {host}");
    }
    for version in VERSIONS {
        // A name that only looks like the host, for who does not look closely (RFC 9110, section 4.2.4).
        assert!(outcome(version, "http://test@other/", &["test"]).is_err(), "{version:?}");
        assert!(outcome(version, "http://test/", &["a b"]).is_err(), "{version:?}");
    }
}

#[test]
fn only_what_is_chunked_once_is_taken() {
    let is_taken = |codings: &[&str]| {
        let add = |request: axum::http::request::Builder, coding: &&str| request.header("transfer-encoding", *coding);
        let request = codings.iter().fold(Request::builder(), add);
        understood(&request.body(Body::empty()).unwrap()).is_ok()
    };
    for codings in [&[][..], &["chunked"], &["Chunked"]] {
        assert!(is_taken(codings), "{codings:?}");
    }
    for codings in [
        &["chunked, chunked"][..],
        &["chunked", "chunked"],
        &["gzip, chunked"],
        &["gzip", "chunked"],
        &["identity"],
        &["chunked, identity"],
        &["chunked;q=1"],
        &["chunked,"],
        &[", chunked"],
        &[""],
    ] {
        assert!(!is_taken(codings), "{codings:?}");
    }
}
