//! What the journal gets of a line.

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
    let fields = fields(&message(line.as_bytes()).unwrap());
    let expected = [
        ("SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME")),
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
    let fields = fields(&message(line.as_bytes()).unwrap());
    assert_eq!(fields[1].1, format!("a{long}")[..LONGEST_VALUE - 1]);
}
