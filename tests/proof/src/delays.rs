//! How long fast answers took while something was done to the service: on connections that were kept, and on new ones.

use crate::kinds;
use lab::load::{Kind, Load};
use lab::record::{aligned, millis};

/// Who notices every delay on a connection that is kept.
const KEPT: &[Kind] = &[Kind::PAUSING, Kind::BUSY];

/// And who notices it on a new one: connecting counts.
const NEW: &[Kind] = &[Kind::FRESH];

/// Both, and few enough not to be a delay themselves; slow requests come without end.
pub const CROWD: &[(Kind, u32)] =
    &[(Kind::PAUSING, 20), (Kind::BUSY, 1), (Kind::FRESH, 1), (Kind::SLOW, 2), (kinds::RELENTLESS, 8)];

/// A time in which something was done, by the load's clock.
pub type Window = (f64, f64);

/// The slowest fast answer in each of some windows.
#[derive(Debug)]
pub struct Delays {
    kept: Vec<Slowest>,
    new: Vec<Slowest>,
}

#[derive(Debug, Clone, Copy)]
struct Slowest {
    ms: f64,
    /// Which window, from 1 on.
    window: usize,
    /// When it was asked for, in seconds since the window opened.
    after: f64,
}

impl Delays {
    pub fn during(load: &Load, windows: &[Window]) -> Self {
        let slowest = |kinds| {
            let of = |(index, &(from, to)): (usize, &Window)| {
                let (at, ms) = load.slowest_between(kinds, from, to);
                Slowest { ms, window: index + 1, after: (at - from).max(0.0) }
            };
            let mut slowest: Vec<_> = windows.iter().enumerate().map(of).collect();
            slowest.sort_by(|a, b| a.ms.total_cmp(&b.ms));
            slowest
        };
        Self { kept: slowest(KEPT), new: slowest(NEW) }
    }

    /// The slowest of all, in milliseconds.
    pub fn worst(&self) -> f64 {
        self.kept.iter().chain(&self.new).map(|slowest| slowest.ms).fold(0.0, f64::max)
    }
}

/// Delays as a table, each under a name.
pub fn table(delays: &[(&str, &Delays)]) -> String {
    let mut rows = vec![["slowest fast answer", "median", "90 %", "worst", "which was"].map(String::from)];
    for (name, delays) in delays {
        for (connections, sorted) in [("kept connections", &delays.kept), ("new connections", &delays.new)] {
            let quantile = |q: f64| sorted[((sorted.len() - 1) as f64 * q).round() as usize];
            let worst = quantile(1.0);
            rows.push([
                format!("{name}, {connections}"),
                millis(quantile(0.5).ms),
                millis(quantile(0.9).ms),
                millis(worst.ms),
                format!("no. {}, {:.1} s after its begin", worst.window, worst.after),
            ]);
        }
    }
    aligned(&rows)
}
