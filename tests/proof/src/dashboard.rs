//! The dashboard in `deploy/`: whether each of its queries gives something, and a picture of that for the docs.

use std::fmt::Write;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::prometheus::{INTERVAL, Prometheus, Series};
use crate::report::{COLOURS, THEME, escape};
use lab::subject::Subject;

/// What is looked at of Grafana's format.
#[derive(Debug, Deserialize)]
struct Dashboard {
    panels: Vec<Panel>,
    annotations: Annotations,
}

#[derive(Debug, Deserialize)]
struct Annotations {
    list: Vec<Target>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Panel {
    title: String,
    grid_pos: GridPos,
    field_config: FieldConfig,
    targets: Vec<Target>,
}

/// In 24 columns, and rows of 30 pixels.
#[derive(Debug, Deserialize)]
struct GridPos {
    x: f64,
    y: f64,
    w: f64,
    h: f64,
}

#[derive(Debug, Deserialize)]
struct FieldConfig {
    defaults: Defaults,
}

#[derive(Debug, Deserialize)]
struct Defaults {
    unit: String,
}

#[derive(Debug, Deserialize)]
struct Target {
    expr: String,
    #[serde(rename = "legendFormat", alias = "textFormat")]
    legend: String,
}

/// A panel, and its lines: what they are called, and their samples.
type Drawn = (Panel, Vec<(String, Vec<(f64, f64)>)>);

/// What it shows, of a time that is told in seconds since 1970.
#[derive(Debug)]
pub struct Shown {
    panels: Vec<Drawn>,
    restarts: Vec<f64>,
    from: f64,
    to: f64,
}

impl Shown {
    /// Asks all that the dashboard asks. Fails unless each query gives a number.
    pub async fn by(prometheus: &Prometheus, subject: &Subject, from: f64, to: f64) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(subject.directory.join("deploy/dashboard.json"))?;
        let dashboard: Dashboard = serde_json::from_str(&text).context("deploy/dashboard.json")?;
        // As Grafana has it.
        let of_rates = 4 * INTERVAL.as_secs();
        let ask = async |target: &Target| -> anyhow::Result<Series> {
            let mut expression = target.expr.replace("$job", &prometheus.job);
            for (variable, value) in [("$instance", ".*"), ("$__rate_interval", &format!("{of_rates}s"))] {
                expression = expression.replace(variable, value);
            }
            let series = prometheus.range(&expression, from, to).await?;
            let is_told = series.iter().any(|(_, samples)| samples.iter().any(|(_, value)| value.is_finite()));
            ensure!(is_told, "nothing is told by {expression}");
            Ok(series)
        };
        let mut restarts = vec![];
        for annotation in &dashboard.annotations.list {
            for (_, samples) in ask(annotation).await? {
                // It is told for as long as that takes.
                let mut last = f64::NEG_INFINITY;
                restarts.extend(samples.into_iter().map(|(at, _)| at).filter(|at| {
                    let is_first = at - last > INTERVAL.as_secs_f64() * 1.5;
                    last = *at;
                    is_first
                }));
            }
        }
        let mut panels = vec![];
        for panel in dashboard.panels {
            let mut lines = vec![];
            for target in &panel.targets {
                let series = ask(target).await.with_context(|| panel.title.clone())?;
                lines.extend(series.into_iter().map(|(labels, samples)| (named(&target.legend, &labels), samples)));
            }
            panels.push((panel, lines));
        }
        Ok(Self { panels, restarts, from, to })
    }

    /// How many queries that were.
    pub fn queries(&self) -> usize {
        self.panels.iter().map(|(panel, _)| panel.targets.len()).sum::<usize>() + 1
    }

    /// As an SVG that needs nothing else.
    pub fn picture(&self) -> String {
        const COLUMN: f64 = 40.0;
        const ROW: f64 = 26.0;
        let bottom = self.panels.iter().map(|(panel, _)| panel.grid_pos.y + panel.grid_pos.h).fold(0.0, f64::max);
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 960 {height}' role='img' font-size='10' \
             font-family='system-ui,-apple-system,Segoe UI,Roboto,sans-serif'>\
             <title>The dashboard, of {seconds:.0} s</title>\
             <style>{THEME}.ink{{fill:var(--ink)}}.soft{{fill:var(--soft)}}path{{fill:none}}</style>\
             <rect width='960' height='{height}' rx='10' style='fill:var(--paper)'/>",
            height = bottom * ROW,
            seconds = self.to - self.from,
        );
        for (panel, lines) in &self.panels {
            let GridPos { x, y, w, h } = panel.grid_pos;
            let _ = write!(
                svg,
                "<g transform='translate({} {})'><rect x='4' y='4' width='{}' height='{}' rx='6' style='fill:var(--card)'/>\
                 <text class='ink' x='12' y='20' font-size='12' font-weight='600'>{}</text>",
                x * COLUMN,
                y * ROW,
                w * COLUMN - 8.0,
                h * ROW - 8.0,
                escape(&panel.title),
            );
            self.draw(&mut svg, panel, lines, (w * COLUMN, h * ROW));
            svg.push_str("</g>");
        }
        svg + "</svg>"
    }

    fn draw(&self, svg: &mut String, panel: &Panel, lines: &[(String, Vec<(f64, f64)>)], (width, height): (f64, f64)) {
        const LEFT: f64 = 52.0;
        const TOP: f64 = 32.0;
        /// Letters are about as wide as this.
        const LETTER: f64 = 5.2;
        const LINE: f64 = 13.0;
        // The legend, as many lines as it takes.
        let (mut at, mut rows, mut legend) = (12.0, 0, vec![]);
        for (name, _) in lines {
            let long = name.chars().count() as f64 * LETTER + 20.0;
            if at + long > width - 8.0 && at > 12.0 {
                (at, rows) = (12.0, rows + 1);
            }
            legend.push((at, rows));
            at += long;
        }
        let below = height - 16.0 - f64::from(rows) * LINE;
        let (right, bottom) = (width - 16.0, below - 18.0);
        let values =
            || lines.iter().flat_map(|(_, samples)| samples).map(|(_, value)| *value).filter(|v| v.is_finite());
        let (factor, unit) = displayed(&panel.field_config.defaults.unit, values().fold(0.0, f64::max));
        let most = round_up(values().fold(0.0, f64::max) * factor) / factor;
        let x = |at: f64| LEFT + (at - self.from) / (self.to - self.from) * (right - LEFT);
        let y = |value: f64| bottom - value / most * (bottom - TOP);
        for part in [0.0, 0.5, 1.0] {
            let _ = write!(
                svg,
                "<path style='stroke:var(--line)' d='M{LEFT} {at:.1}H{right}'/>\
                 <text class='soft' x='{}' y='{:.1}' text-anchor='end'>{}</text>",
                LEFT - 6.0,
                y(most * part) + 3.5,
                told(most * part * factor, unit),
                at = y(most * part),
            );
        }
        for at in &self.restarts {
            let _ = write!(
                svg,
                "<path style='stroke:var(--soft)' stroke-dasharray='2 3' d='M{:.1} {TOP}V{bottom}'/>",
                x(*at)
            );
        }
        for (index, ((name, samples), (at, row))) in lines.iter().zip(legend).enumerate() {
            let (mut path, mut last) = (String::new(), f64::NEG_INFINITY);
            for (time, value) in samples.iter().filter(|(_, value)| value.is_finite()) {
                // Where a sample is missing, so is the line.
                let way = if time - last > INTERVAL.as_secs_f64() * 1.5 { 'M' } else { 'L' };
                let _ = write!(path, "{way}{:.1} {:.1}", x(*time), y(*value));
                last = *time;
            }
            let (colour, foot) = (index % COLOURS, below + f64::from(row) * LINE);
            let _ = write!(
                svg,
                "<path style='stroke:var(--c{colour})' stroke-width='1.5' stroke-linejoin='round' d='{path}'/>\
                 <path style='stroke:var(--c{colour})' stroke-width='3' d='M{at:.0} {:.1}h8'/>\
                 <text class='soft' x='{:.0}' y='{foot:.1}'>{}</text>",
                foot - 3.5,
                at + 12.0,
                escape(name),
            );
        }
    }
}

/// The name of a line: `{{label}}` in it stands for the label's text.
fn named(legend: &str, labels: &[(String, String)]) -> String {
    let mut name = legend.to_owned();
    for (label, value) in labels {
        name = name.replace(&format!("{{{{{label}}}}}"), value);
    }
    // Those that it does not have.
    while let Some((before, after)) = name.split_once("{{").and_then(|(a, rest)| Some((a, rest.split_once("}}")?.1))) {
        name = format!("{before}{after}");
    }
    if name.is_empty() { "(none)".into() } else { name }
}

/// The next of 1, 2, 4, 5, 6, 8, 10 and so on.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let decade = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 5.0, 6.0, 8.0, 10.0]
        .into_iter()
        .map(|step| step * decade)
        .find(|step| *step >= value)
        .unwrap_or(value)
}

/// A unit to show values of up to `most` in, and how many of it one of Grafana's is.
fn displayed(unit: &str, most: f64) -> (f64, &'static str) {
    match unit {
        "bytes" => (1.0 / f64::from(1 << 20), " MiB"),
        "percentunit" => (100.0, " %"),
        "s" if most < 1.0 => (1e3, " ms"),
        "s" => (1.0, " s"),
        "reqps" => (1.0, "/s"),
        _ => (1.0, ""),
    }
}

/// A number with its unit, as short as can be.
fn told(value: f64, unit: &str) -> String {
    format!("{}{unit}", (value * 1e3).round() / 1e3)
}
