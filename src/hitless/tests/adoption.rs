//! A small service that knew nothing of hitless is made hitless by ten changed lines and its two units.

use hitless::{Limits, ShutdownTimeout};

const PLAIN: &str = include_str!("../examples/plain.rs");
const ADOPTED: &str = include_str!("../examples/adopted.rs");
const UNIT: &str = include_str!("../examples/adopted.service");
const UNITS: [&str; 2] = [UNIT, include_str!("../examples/adopted.socket")];
const README: &str = include_str!("../README.md");

/// The code of an example, without what it says of itself.
fn code(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with("//!")).collect()
}

/// How many lines `one` and `other` have in common, in the same order.
fn in_common(one: &[&str], other: &[&str]) -> usize {
    let mut before = vec![0; other.len() + 1];
    for line in one {
        let mut now = vec![0];
        for (index, another) in other.iter().enumerate() {
            let most = if line == another { before[index] + 1 } else { before[index + 1].max(now[index]) };
            now.push(most);
        }
        before = now;
    }
    before.pop().unwrap_or_default()
}

#[test]
fn ten_lines_change() {
    let [plain, adopted] = [PLAIN, ADOPTED].map(code);
    let changed = adopted.len() - in_common(&plain, &adopted);
    assert!(changed <= 10, "{changed} lines are new or changed");
}

#[test]
fn the_units_have_what_the_readme_asks_for() {
    let asked: Vec<_> = README.split("```ini\n").skip(1).map(|block| block.split_once("```").unwrap().0).collect();
    assert_eq!(asked.len(), 3);
    for line in asked.concat().lines().filter(|line| line.contains('=')) {
        let line = line.replace("my-api", "adopted");
        assert!(UNITS.concat().lines().any(|other| other.starts_with(&line)), "{line}");
    }
}

#[test]
fn the_units_say_what_follows_from_the_defaults() {
    let timeout = ShutdownTimeout::default();
    let descriptors = Limits::new(timeout).limit_nofile();
    assert!(UNIT.contains(&format!("\nTimeoutStopSec={}s\n", timeout.unit_stop().as_secs())));
    assert!(UNIT.contains(&format!("\nLimitNOFILE={descriptors}\n")));
}
