use super::*;
use lab::record::{Answer, Failure};

use crate::record::Program;

fn record(restarts: u64, answered: u64, lost: u64, closed: u64) -> Record {
    let restart = |i| Restart { at: i as f64 + 1.0, ready: i as f64 + 1.1, ok: true };
    Record {
        service: "my-api".into(),
        version: "0.1.0".into(),
        stage: "Debian 12, systemd 252".into(),
        peer: None,
        started_unix: 1_780_000_000,
        seconds: restarts as f64 + 2.0,
        restarts: (0..restarts).map(restart).collect(),
        programs: vec![],
        at_the_gate: vec![],
        scenarios: vec![Scenario {
            name: "keep-alive".into(),
            about: "one connection each".into(),
            clients: 4,
            answered,
            lost,
            refused: 0,
            closed,
            opened: 4,
            kept: 4 - closed.min(4),
            median_ms: 0.4,
            p99_ms: 90.0,
            slowest_ms: 120.0,
        }],
        answers: vec![Answer { scenario: 0, at: 1.05, ms: 50.0 }],
        failures: (0..lost)
            .map(|_| Failure { scenario: 0, at: 1.0, kind: "lost".into(), what: "reset".into() })
            .collect(),
    }
}

#[test]
fn the_verdict_counts_none_one_and_many() {
    assert_eq!(verdict(&record(23, 412_308, 0, 0)), "23 restarts. 412,308 answers. 0 lost. 0 connections closed.");
    assert_eq!(verdict(&record(1, 1, 1, 1)), "1 restart. 1 answer. 1 lost. 1 connection closed.");
    let mut worse = record(2, 1_000, 1_234, 2);
    worse.scenarios[0].refused = 3;
    worse.restarts[0].ok = false;
    assert_eq!(
        verdict(&worse),
        "2 restarts. 1 restart failed. 1,000 answers. 1,234 lost. 3 refused. 2 connections closed."
    );
}

#[test]
fn a_peer_run_says_that_it_is_the_contrast() {
    let mut peer = record(2, 10, 3, 1);
    peer.peer = Some("axum".into());
    let lede = lede(&peer);
    assert!(lede.contains("This is the contrast, and not this service"), "{lede}");
    assert!(lede.contains("3 requests not answered and 1 connection closed"), "{lede}");
    assert!(!page(&record(2, 10, 3, 1)).contains("contrast"));
}

#[test]
fn nothing_measured_is_not_called_good() {
    for record in [record(0, 9, 0, 0), record(9, 0, 0, 0)] {
        assert!(!headline(&record).contains("good"));
        assert!(lede(&record).contains("nothing is proven"));
    }
}

#[test]
fn an_empty_record_has_no_nan_and_no_empty_place() {
    let mut empty = record(0, 0, 0, 0);
    empty.seconds = 0.0;
    empty.answers.clear();
    for scenarios in [empty.scenarios.clone(), Vec::new()] {
        empty.scenarios = scenarios;
        let page = page(&empty);
        // The script may say NaN; what Rust wrote stands before it.
        let written = page.split("<script type=\"module\">").next().unwrap();
        assert!(!written.contains("NaN") && !written.contains("inf"));
        assert!(!written.contains("<!--"), "a place was left unfilled");
    }
}

#[test]
fn what_the_record_says_cannot_leave_its_place() {
    let evil = "</script><script>alert(1)</script><!--data-->\"'&";
    let mut record = record(2, 10, 1, 1);
    record.service = evil.into();
    record.stage = evil.into();
    record.scenarios[0].name = evil.into();
    record.scenarios[0].about = evil.into();
    record.failures[0].kind = evil.into();
    record.failures[0].what = evil.into();
    let program = Program {
        name: evil.into(),
        requests: 9,
        pooled: 2,
        survived: 1,
        at_the_end: 2,
        complaints: vec![evil.into()],
    };
    record.programs.push(program);
    for peer in [None, Some(evil.to_owned())] {
        record.peer = peer;
        let page = page(&record);
        assert_eq!(page.matches("</script>").count(), PAGE.matches("</script>").count());
        assert!(!page.contains("<script>alert") && !page.contains("<!--"));
    }
}

#[test]
fn the_data_are_json_that_reads_back() {
    let data: serde_json::Value = serde_json::from_str(&data(&record(1, 5, 1, 0))).unwrap();
    assert_eq!(data["answers"], json!([[10_500, 50_000]]));
    assert_eq!(data["restarts"][0]["at"], 1.0);
    assert_eq!(data["failures"][0]["kind"], "lost");
}

#[test]
fn a_program_that_lost_connections_or_complains_is_bad() {
    let mut record = record(2, 10, 0, 0);
    assert_eq!(programs(&record), "");
    let content =
        Program { name: "nginx 1.22.1".into(), requests: 9, pooled: 3, survived: 3, at_the_end: 4, complaints: vec![] };
    record.programs = vec![content.clone()];
    assert!(record.spotless() && !programs(&record).contains("bad"));
    let complaints = vec!["502".into()];
    for worse in [
        Program { survived: 2, ..content.clone() },
        Program { pooled: 0, survived: 0, ..content.clone() },
        Program { complaints, ..content },
    ] {
        record.programs = vec![worse];
        assert!(!record.spotless() && programs(&record).contains("class=bad"));
    }
}

#[test]
fn spans_keep_the_digits_that_matter() {
    let spans = [0.417, 3.24, 111.6, 999.9, 5003.0, 61_000.0, f64::NAN].map(span);
    assert_eq!(spans, ["0.42 ms", "3.2 ms", "112 ms", "1.0 s", "5.0 s", "61 s", "–"]);
}

#[test]
fn a_strand_is_torn_where_a_connection_was_closed() {
    let mut record = record(3, 10, 0, 1);
    record.failures.push(Failure { scenario: 0, at: 2.0, kind: "closed".into(), what: "end of file".into() });
    let (whole, torn) = strand(&record, 0, 10, |at| at * 100.0, [0.0, 100.0]);
    assert_eq!(whole.matches('M').count(), 3);
    assert_eq!(torn, "M0 80.0H195M205 80.0H500");
}
