use super::*;

const ORDERS: &str = r#"
    prepare = "prepare.sh"
    [settings]
    database = "postgres:///orders"
    unit.outbound = true
    [[fast]]
    method = "PUT"
    path = "/orders/{id}"
    headers = { Idempotency-Key = "{id}", Accept = "text/plain" }
    send = '{"order":"{id}"}'
    status = 201
    body = "{id}"
    [[upload]]
    path = "/scans"
    headers = { Accept = "*/*" }
    status = 200
"#;

#[test]
fn what_is_unique_is_the_same_all_over_a_request_and_in_no_other() {
    let route = &Traffic::parse(ORDERS).unwrap().fast[0];
    let requests = [route.request(), route.request()];
    for Request { id: known, method, path, headers, send, status, body } in &requests {
        let id = path.strip_prefix("/orders/").unwrap();
        assert_eq!(known.as_deref(), Some(id));
        assert!(id.len() >= 16 && !id.contains('{'), "{id}");
        assert_eq!((method, *status), (&Method::PUT, 201));
        let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(headers, [("Accept", "text/plain"), ("Idempotency-Key", id)]);
        assert_eq!(send.as_deref(), Some(format!("{{\"order\":\"{id}\"}}").as_bytes()));
        assert_eq!(body.as_deref(), Some(id.as_bytes()));
    }
    assert_ne!(requests[0].path, requests[1].path);
    assert_eq!(route.plain(), None);
    assert_eq!(Traffic::parse(ORDERS).unwrap().upload[0].request().id, None);
}

#[test]
fn an_upload_is_a_post_unless_it_says_otherwise_and_wants_its_body_back() {
    let route = &Traffic::parse(ORDERS).unwrap().upload[0];
    let request = route.upload("a body");
    assert_eq!((&request.method, &*request.path), (&Method::POST, "/scans"));
    assert_eq!((request.send.as_deref(), request.body.as_deref()), (Some(&b"a body"[..]), Some(&b"a body"[..])));
    assert_eq!(request.headers.len(), 1);
    let put = Route { method: Some("PUT".into()), ..route.clone() };
    assert_eq!(put.upload("a body").method, Method::PUT);
}

#[test]
fn what_a_test_needs_goes_before_what_the_owner_sets() {
    let traffic = Traffic::parse(ORDERS).unwrap();
    let settings = traffic.settings_with("shutdown_timeout = '6s'\ndatabase = 'none'\n[unit]\ncpu_weight = 7").unwrap();
    let expected =
        [("database", "none"), ("shutdown_timeout", "6s"), ("unit.cpu_weight", "7"), ("unit.outbound", "true")];
    assert_eq!(flat(&settings), expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
}

#[test]
fn what_cannot_be_asked_for_is_refused_with_the_reason() {
    for (route, reason) in [
        ("path = 'orders'\nstatus = 200", "does not begin with /"),
        ("path = '/a b'\nstatus = 200", "is no path"),
        ("path = '/'", "is no status"),
        ("path = '/'\nstatus = 100", "is no status"),
        ("path = '/'\nstatus = 200\nmethod = 'A B'", "is no method"),
        ("path = '/'\nstatus = 200\nmethod = 'HEAD'", "cannot ask with HEAD"),
        ("path = '/'\nstatus = 200\nheaders = { 'a b' = '' }", "is no header"),
        ("path = '/'\nstatus = 200\nheaders = { a = \"\\n\" }", "is no value for a"),
        ("path = '/'\nstatus = 200\nheaders = { content-length = '1' }", "the laboratory says"),
        ("path = '/'\nstatus = 200\nbodies = ''", "unknown field"),
        ("path = '/'\nstatus = 200\n[[upload]]\npath = '/'\nstatus = 200\nsend = ''", "chooses what"),
    ] {
        let error = Traffic::parse(&format!("[[fast]]\n{route}")).expect_err(route);
        assert!(format!("{error:#}").contains(reason), "{route}: {error:#}");
    }
    let error = Traffic::parse("").unwrap_err();
    assert!(format!("{error:#}").contains("[[fast]]"), "{error:#}");
}
