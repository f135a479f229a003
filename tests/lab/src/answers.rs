//! The answers of one scenario, in bounded space: a run may take an hour and a client a hundred thousand answers in it.

/// Slices of a second; of each the slowest answer is kept.
const SLICES: f64 = 100.0;

/// A tenfold step of the histogram has so many columns, each 1.2 % wider than the one before.
const COLUMNS: f64 = 200.0;

/// What the histogram begins with, in milliseconds.
const LEAST: f64 = 1e-3;

/// Answers kept at random, at most twice as many.
const SAMPLE: usize = 2_000;

/// The slowest answers that go into a record.
const SLOWEST: usize = 6_000;

/// When an answer was asked for, in seconds, and how long it took, in milliseconds.
pub type Answer = (f64, f32);

/// What is kept of a scenario's answers.
#[derive(Debug, Default)]
pub struct Answers {
    count: u64,
    slowest: f32,
    histogram: Vec<u64>,
    /// For each slice of the run the slowest answer that was asked for in it.
    peaks: Vec<Option<Answer>>,
    /// Every so manieth answer.
    sample: Vec<Answer>,
    stride: u64,
}

impl Answers {
    pub fn push(&mut self, (at, ms): Answer) {
        self.slowest = self.slowest.max(ms);
        let column = ((f64::from(ms) / LEAST).log10() * COLUMNS).max(0.0) as usize;
        *grown(&mut self.histogram, column) += 1;
        let peak = grown(&mut self.peaks, slice(at));
        if peak.is_none_or(|(_, slowest)| slowest < ms) {
            *peak = Some((at, ms));
        }
        if self.count.is_multiple_of(self.stride.max(1)) {
            self.sample.push((at, ms));
        }
        if self.sample.len() == 2 * SAMPLE {
            let mut odd = false;
            self.sample.retain(|_| {
                odd = !odd;
                odd
            });
            self.stride = self.stride.max(1) * 2;
        }
        self.count += 1;
    }

    /// The latency that so great a share of the answers does not exceed, give or take a percent.
    pub fn quantile(&self, share: f64) -> f64 {
        let rank = (self.count.saturating_sub(1) as f64 * share).round() as u64;
        let mut below = 0;
        let column = self.histogram.iter().position(|count| {
            below += count;
            below > rank
        });
        let middle = |column| LEAST * 10f64.powf((column as f64 + 0.5) / COLUMNS);
        column.map_or(0.0, middle).min(self.slowest())
    }

    pub fn slowest(&self) -> f64 {
        f64::from(self.slowest)
    }

    /// The slowest answer to a request that was under way between two moments.
    pub fn slowest_between(&self, from: f64, to: f64) -> Option<Answer> {
        let until = self.peaks.len().min(slice(to) + 1);
        let under_way = |&(at, ms): &Answer| at <= to && at + f64::from(ms) / 1e3 >= from;
        self.peaks[..until].iter().flatten().copied().filter(under_way).max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// For a picture: the slowest, and of all an even sample.
    pub fn thinned(self) -> Vec<Answer> {
        let mut answers: Vec<_> = self.peaks.into_iter().flatten().collect();
        answers.sort_by(|a, b| b.1.total_cmp(&a.1));
        answers.truncate(SLOWEST);
        answers.extend(self.sample);
        answers.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        answers.dedup();
        answers
    }
}

fn slice(at: f64) -> usize {
    (at * SLICES).max(0.0) as usize
}

/// An element of a list that grows as needed.
fn grown<T: Default + Clone>(list: &mut Vec<T>, index: usize) -> &mut T {
    if list.len() <= index {
        list.resize(index + 1, T::default());
    }
    &mut list[index]
}

#[cfg(all(test, proofs))]
#[rustfmt::skip]
#[path = "../../proof/unit/answers.rs"]
mod tests;
