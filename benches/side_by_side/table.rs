//! What is printed: one line per measure, with what was wanted of it.

use std::fmt::Write;

/// Samples in ns.
#[derive(Clone, Debug, Default)]
pub struct Spans(Vec<u64>);

impl Spans {
    pub fn push(&mut self, ns: u64) {
        self.0.push(ns);
    }

    pub fn extend(&mut self, more: impl IntoIterator<Item = u64>) {
        self.0.extend(more);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What came on top of an earlier copy.
    pub fn since(&self, before: &Spans) -> Vec<u64> {
        self.0[before.len()..].to_vec()
    }

    /// In ns; of fewer than 100 samples the 99th percentile is the largest.
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(at).map_or(f64::NAN, |ns| *ns as f64)
    }

    pub fn p50(&self) -> f64 {
        self.percentile(50)
    }

    pub fn p99(&self) -> f64 {
        self.percentile(99)
    }
}

/// Three digits that matter, in the unit that fits.
pub fn time(ns: f64) -> String {
    let (value, unit) = if ns < 1e6 {
        (ns / 1e3, "µs")
    } else if ns < 1e9 {
        (ns / 1e6, "ms")
    } else {
        (ns / 1e9, "s")
    };
    match value {
        v if v.is_nan() => "–".to_owned(),
        v if v < 10.0 => format!("{v:.2} {unit}"),
        v if v < 100.0 => format!("{v:.1} {unit}"),
        v => format!("{v:.0} {unit}"),
    }
}

#[derive(Clone, Debug, Default)]
pub struct Row {
    pub measure: String,
    pub goal: String,
    pub measured: String,
    pub samples: String,
    /// `None`: for comparison only.
    pub met: Option<bool>,
}

#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub fn row(&mut self, row: Row) {
        eprintln!("   {} | {} | {}", row.measure, row.measured, row.samples);
        self.rows.push(row);
    }

    /// Of times, with both percentiles and a note.
    pub fn times(&mut self, measure: &str, spans: &Spans, note: &str, goal: &str, met: Option<bool>) {
        let mut measured = format!("p50 {}, p99 {}", time(spans.p50()), time(spans.p99()));
        if !note.is_empty() {
            measured = format!("{measured}; {note}");
        }
        let row = Row {
            measure: measure.to_owned(),
            goal: goal.to_owned(),
            measured,
            samples: spans.len().to_string(),
            met,
        };
        self.row(row);
    }

    pub fn missed(&self) -> usize {
        self.rows.iter().filter(|row| row.met == Some(false)).count()
    }

    pub fn markdown(&self) -> String {
        let mut text = "| measure | goal | measured | n | |\n|---|---|---|---|---|\n".to_owned();
        for Row { measure, goal, measured, samples, met } in &self.rows {
            let met = match met {
                None => "",
                Some(true) => "met",
                Some(false) => "**missed**",
            };
            writeln!(text, "| {measure} | {goal} | {measured} | {samples} | {met} |")
                .expect("a string takes all");
        }
        text
    }
}
