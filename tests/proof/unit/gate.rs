use super::*;

#[test]
fn the_gap_is_between_the_nearest() {
    let mut edges = Edges::default();
    for (restart, at, by_another) in [
        (1, 1.0, false),
        (1, 1.25, false),
        (1, 1.5, true),
        (1, 1.75, true),
        (2, 2.0, false),
        (4, 4.0, true),
        (5, 5.5, false),
        (5, 5.0, true),
    ] {
        edges.note(restart, at, by_another);
    }
    assert_eq!(edges.gaps(), [0.0, 0.25]);
}
