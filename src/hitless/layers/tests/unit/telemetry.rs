//! What the reader of the log gets of a line.

use super::*;

/// The fields of a message, read as the journal reads them.
fn fields(mut message: &[u8]) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let end = message.iter().position(|byte| *byte == b'\n').unwrap();
        let name = String::from_utf8(message[..end].to_vec()).unwrap();
        let (length, rest) = message[end + 1..].split_first_chunk().unwrap();
        let (value, rest) = rest.split_at(u64::from_le_bytes(*length) as usize);
        fields.push((name, String::from_utf8(value.to_vec()).unwrap()));
        message = rest.strip_prefix(b"\n").unwrap();
    }
    fields
}

#[test]
fn each_member_of_a_line_and_of_its_spans_is_a_field() {
    let line = r#"{"timestamp":"2026-01-01T00:00:00Z","level":"ERROR","message":"a\nb","status":500,"_user.id":"x",
        "spans":[{"request_id":"1-2","name":"request"},{"order":7,"name":"order"}]}"#;
    let fields = fields(&message("my-api", line).unwrap());
    let expected = [
        ("SYSLOG_IDENTIFIER", "my-api"),
        ("USER_ID", "x"),
        ("PRIORITY", "3"),
        ("MESSAGE", "a\nb"),
        ("SPAN_NAME", "request"),
        ("REQUEST_ID", "1-2"),
        ("SPAN_NAME", "order"),
        ("ORDER", "7"),
        ("STATUS", "500"),
        ("TIMESTAMP", "2026-01-01T00:00:00Z"),
    ];
    assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn a_value_too_long_for_a_datagram_is_cut_between_two_characters() {
    let long = "ä".repeat(LONGEST_VALUE);
    let line = serde_json::json!({ "message": format!("a{long}") }).to_string();
    let fields = fields(&message("my-api", &line).unwrap());
    assert_eq!(fields[1].1, format!("a{long}")[..LONGEST_VALUE - 1]);
}

#[test]
fn a_message_of_many_long_values_fits_into_a_datagram_with_something_of_each() {
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    for (long, beginning) in [("x".repeat(70_000), "xx"), ("\u{1}".repeat(70_000), "\\u{1}")] {
        let members = (0..20).map(|number| (format!("field_{number}"), Value::from(long.clone())));
        let line = Value::Object(members.collect()).to_string();
        let message = message("my-api", &line).unwrap();
        assert!(message.len() > LONGEST_MESSAGE / 4, "{}", message.len());
        assert_eq!(sender.send(&message).unwrap(), message.len());
        let mut received = vec![0; 2 * LONGEST_MESSAGE];
        let length = receiver.recv(&mut received).unwrap();
        let fields = fields(&received[..length]);
        assert_eq!(fields.iter().filter(|(_, value)| value.starts_with(beginning)).count(), 20);
    }
}

#[test]
fn no_character_steers_who_reads_the_log_and_json_tells_each_of_them() {
    for character in (0..0x3000).chain(0xf000..0x11000).chain(0xdfff0..0xe1010).filter_map(char::from_u32) {
        let value = format!("a{character}b");
        let line = format!("{}\n", serde_json::json!({ "message": value }));

        let json = json(&line);
        let members: Map<String, Value> = serde_json::from_str(&json).unwrap();
        assert_eq!(members["message"], value);
        assert!(json.ends_with("}\n") && !json[..json.len() - 1].contains(steers), "{value:?}");

        let fields = fields(&message("my-api", &line).unwrap());
        let text = text(&format!("{value}\n"), "\t\n");
        assert!(text.ends_with('\n'), "{value:?}");
        for shown in [&fields[1].1, &text[..text.len() - 1]] {
            let is_kept = "\t\n".contains(character);
            assert_eq!(shown.contains(character), is_kept || !steers(character), "{value:?}");
            assert_eq!(shown.contains(steers), is_kept, "{value:?}");
        }
    }
    for (value, shown) in [
        ("a\u{1b}[31mred", "a\\u{1b}[31mred\n"),
        ("a\u{9b}31mred", "a\\u{9b}31mred\n"),
        ("a\u{202e}txt.exe", "a\\u{202e}txt.exe\n"),
        ("a\u{2028}b\rc", "a\\u{2028}b\\rc\n"),
        ("two\nlines", "two\n    lines\n"),
        ("Füße, 東京, e\u{301}", "Füße, 東京, e\u{301}\n"),
    ] {
        assert_eq!(text(value, "\t\n"), shown);
    }
}

#[test]
fn what_cannot_be_written_is_counted_and_what_was_interrupted_tried_again() {
    let refused = Refused::default();
    let mut outcomes = [Some(io::ErrorKind::Interrupted), None, Some(io::ErrorKind::BrokenPipe), None].into_iter();
    let send = move |_: &str| outcomes.next().unwrap().map_or(Ok(()), |kind| Err(kind.into()));
    let mut lines = Lines { write: Box::new(send), refused: Arc::clone(&refused) };
    for counted in [0, 1, 1] {
        lines.write_all(b"a line\n").unwrap();
        assert_eq!(refused.load(Relaxed), counted);
    }
}

#[test]
fn who_warns_of_peers_is_quiet_unless_named() {
    for (asked, h2, hyper, others) in [
        ("info", Level::ERROR, Level::ERROR, Level::INFO),
        ("trace", Level::ERROR, Level::ERROR, Level::TRACE),
        ("error", Level::ERROR, Level::ERROR, Level::ERROR),
        ("info,requests=debug", Level::ERROR, Level::ERROR, Level::INFO),
        ("info,h2=debug", Level::DEBUG, Level::ERROR, Level::INFO),
        ("warn,hyper=info", Level::ERROR, Level::INFO, Level::WARN),
    ] {
        let filter = filter(&asked.parse().unwrap());
        for (target, most) in [("h2::proto::ping_pong", h2), ("hyper::proto::h2", hyper), ("service::app", others)] {
            for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
                assert_eq!(filter.would_enable(target, &level), level <= most, "{asked}: {target} {level}");
            }
        }
    }
    for (asked, target, level, expected) in [
        ("off", "h2", Level::ERROR, false),
        ("requests=debug", "hyper::proto", Level::ERROR, false),
        ("info,h2::proto::ping_pong=warn", "h2::proto::ping_pong", Level::WARN, true),
        ("info,hyper_util=debug", "hyper::proto", Level::WARN, false),
        ("info,hyper_util=debug", "hyper_util::client", Level::DEBUG, true),
    ] {
        assert_eq!(filter(&asked.parse().unwrap()).would_enable(target, &level), expected, "{asked}: {target} {level}");
    }
}

#[test]
fn no_field_steers_a_terminal_that_shows_colours() {
    let (mut reader, writer) = io::pipe().unwrap();
    let shown = fmt::layer().with_writer(std::sync::Mutex::new(writer)).with_ansi(true).compact();
    let shown = shown.fmt_fields(text_fields());
    tracing::subscriber::with_default(Registry::default().with(shown), || {
        let said = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m";
        let error = io::Error::other(said);
        let span = tracing::info_span!("span", %said, text = said);
        span.in_scope(
            || tracing::info!(%said, text = said, ?error, error = &error as &dyn std::error::Error, "{said}"),
        );
    });
    let mut line = String::new();
    io::Read::read_to_string(&mut reader, &mut line).unwrap();
    let line = text(&line, "\t\n\x1b");
    assert!(line.contains("INFO") && line.contains("\x1b[") && line.matches("title").count() == 7, "{line:?}");
    assert!(!line.contains("\x1b]") && !line.contains("\x1b[2J") && !line.contains('\u{9b}'), "{line:?}");
}
