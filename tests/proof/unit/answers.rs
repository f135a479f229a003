use super::*;

#[test]
fn few_answers_are_kept_as_they_are() {
    let mut answers = Answers::default();
    for n in 0..100 {
        answers.push((f64::from(n) / 50.0, n as f32));
    }
    assert_eq!(answers.slowest(), 99.0);
    assert_eq!(answers.slowest_between(0.5, 1.0), Some((1.0, 50.0)));
    assert!((answers.quantile(0.5) / 50.0 - 1.0).abs() < 0.012, "{}", answers.quantile(0.5));
    assert_eq!(answers.quantile(1.0), 99.0);
    assert_eq!(answers.thinned().len(), 100);
}

#[test]
fn a_million_answers_take_little_space_and_the_slow_ones_are_among_them() {
    let mut answers = Answers::default();
    for n in 0..1_000_000 {
        let at = f64::from(n) / 10_000.0;
        answers.push((at, if n % 100_000 == 50_000 { 500.0 } else { 1.0 }));
    }
    assert!(answers.sample.len() < 2 * SAMPLE && answers.peaks.len() == 10_000);
    assert!((answers.quantile(0.99) - 1.0).abs() < 0.02);
    // Under way before it began, because it took so long.
    assert_eq!(answers.slowest_between(5.4, 5.45), Some((5.0, 500.0)));
    let thinned = answers.thinned();
    assert_eq!(thinned.iter().filter(|(_, ms)| *ms == 500.0).count(), 10);
    assert!(thinned.len() <= SLOWEST + 2 * SAMPLE);
}

#[test]
fn none_is_nothing() {
    let answers = Answers::default();
    assert_eq!((answers.quantile(0.5), answers.slowest()), (0.0, 0.0));
    assert_eq!(answers.slowest_between(0.0, 1.0), None);
    assert!(answers.thinned().is_empty());
}
