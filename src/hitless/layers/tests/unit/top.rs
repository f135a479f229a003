//! What is made of metrics: rates, quantiles, and a table that has room in a terminal of 80 columns.

use super::*;

/// Metrics of a process with requests of two kinds, of which so many took as long as each bound has it.
fn text(good: [u64; 4], bad: [u64; 4]) -> String {
    let mut text = "# HELP hitless_phase Where it is {phase=\"starting\"} 1\n# TYPE hitless_phase gauge\n".to_owned();
    let kinds = [("/a,le=\\\"7\\\",{b} 9", "200", good), ("", "500", bad), ("/gone", "", [0; 4])];
    for (route, status, buckets) in kinds {
        let status = format!("http_route=\"{route}\",http_response_status_code=\"{status}\"");
        let mut sum = 0;
        for (most, count) in ["0.1", "0.2", "0.5", "+Inf"].iter().zip(buckets) {
            sum += count;
            text += &format!("http_server_request_duration_seconds_bucket{{le=\"{most}\",{status}}} {sum}\n");
        }
        text += &format!("http_server_request_duration_seconds_count{{{status}}} {sum}\n");
        text += &format!("http_server_request_duration_seconds_sum{{{status}}} 1e3\n");
    }
    text + "hitless_phase{phase=\"starting\"} 0\nhitless_phase{phase=\"serving\"} 1\nhttp_server_active_requests 4\n\
            hitless_connections_open 10000\nhitless_connections_taken_over_total 12\nhitless_connections_open_elsewhere 7\n\
            process_start_time_seconds 1000000.25\nhitless_start_duration_seconds 0.0451\n"
}

#[test]
fn metrics_are_read_as_they_are_told() {
    let expected = Told {
        phase: "serving".into(),
        counted: Counts {
            requests: 21.0,
            failed: 11.0,
            buckets: vec![(0.1, 6.0), (0.2, 8.0), (0.5, 11.0), (f64::INFINITY, 21.0)],
        },
        in_flight: 3.0,
        open: 9999.0,
        started: 1_000_000.25,
        start: 0.0451,
        taken_over: 12.0,
    };
    assert_eq!(Told::by(&text([1, 2, 3, 4], [5, 0, 0, 6])), expected);
    let nothing = Told::by("nonsense\n{} {} 3\nhitless_phase\n\n");
    assert_eq!((nothing.phase.as_str(), nothing.counted.requests, nothing.in_flight), ("-", 0.0, 0.0));
}

#[test]
fn quantiles_are_those_of_histogram_quantile_and_say_where_they_are_not_known() {
    for (buckets, median, most) in [
        ([0, 0, 0, 0], "-", "-"),
        ([10, 0, 0, 0], "<100ms", "<100ms"),
        ([1, 0, 0, 0], "<100ms", "<100ms"),
        ([0, 10, 0, 0], "150ms", "199ms"),
        // Rank 5 is the first bound itself, and rank 9.9 lies at nine tenths and more of the third.
        ([5, 0, 5, 0], "<100ms", "494ms"),
        ([0, 0, 0, 10], ">500ms", ">500ms"),
        ([40, 30, 28, 2], "133ms", ">500ms"),
        ([40, 30, 30, 0], "133ms", "490ms"),
        ([98, 1, 1, 0], "<100ms", "200ms"),
    ] {
        let past = Told::by(&text([3, 4, 5, 6], [7; 4])).counted;
        let [one, two, three, four] = buckets;
        let now = Told::by(&text([3 + one, 4 + two, 5 + three, 6 + four], [7; 4])).counted;
        let counted = now.since(&past, 0.5);
        assert_eq!((counted.quantile(0.5), counted.quantile(0.99)), (median.into(), most.into()), "{buckets:?}");
        assert_eq!(counted.requests, 2.0 * buckets.iter().sum::<u64>() as f64);
    }
    // There is nothing before the first request.
    let none = Told::by("").counted;
    assert_eq!(Told::by(&text([2, 0, 0, 0], [0, 0, 0, 4])).counted.since(&none, 2.0).failed, 2.0);
}

#[test]
fn a_table_has_room_in_its_columns_and_tells_instances_apart() {
    let row = |instance: &str, pid, told: Option<&str>, rates: bool, leaves| {
        let told = told.map(Told::by);
        let before = Told::by("").counted;
        let rates = told.as_ref().filter(|_| rates).map(|told| told.counted.since(&before, 0.001));
        Row { instance: instance.into(), pid, at: Instant::now(), told, rates, leaves }
    };
    let busy = text([1, 2, 3, 40], [5, 0, 0, 6]);
    let rows = [
        row("my-api", 1, Some(&busy), true, false),
        row("my-api@next", 4_194_303, Some(&busy), false, false),
        row("a234567890123456789012345678901@next", 12, None, false, true),
        row("my-api@2", 13, None, false, false),
    ];
    for (columns, instance) in
        [(80, "345678901@next "), (102, "a234567890123456789012345678901@next"), (66, ""), (1, "")]
    {
        let lines = lines("my-api", 1_000_000 + 100 * 3600 + 61, &rows, columns);
        // What is told of one is never cut.
        assert!(lines.iter().skip(1).all(|line| line.len() <= columns.max(66)), "{lines:#?}");
        assert!(lines[4].contains(instance), "{lines:#?}");
        let widths: Vec<_> = lines[1..6].iter().map(String::len).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{lines:#?}");
    }
    let expected = "\
my-api at 17:47:41 UTC
INSTANCE           PID    PHASE   UP   REQ/S   5XX/S    P50    P99 ACTIVE  CONNS
my-api               1  serving   4d 57000.0 11000.0 >500ms >500ms      3   9999
my-api@next    4194303  serving   4d       -       -      -      -      3   9999
345678901@next      12  leaving    -       -       -      -      -      -      -
my-api@2            13   silent    -       -       -      -      -      -      -

last start: process 4194303, 4d ago, ready in 45ms, took over 12 connections";
    assert_eq!(lines("my-api", 1_000_000 + 100 * 3600 + 61, &rows, 80).join("\n"), expected);
    assert_eq!(lines("my-api", 0, &[], 80), ["my-api at 00:00:00 UTC", "no instance runs here"]);
}

#[test]
fn a_time_takes_four_characters() {
    let table = [(0, "0s"), (99, "99s"), (100, "1m"), (5999, "99m"), (6000, "1h"), (359_999, "99h"), (360_000, "4d")];
    for (seconds, expected) in table {
        assert_eq!(time(seconds), expected);
    }
    for (time, expected) in [(0.0042, "4.2ms"), (0.00996, "10ms"), (0.25, "250ms"), (0.9996, "1.0s"), (10.0, "10.0s")] {
        assert_eq!(seconds(time), expected);
    }
}
