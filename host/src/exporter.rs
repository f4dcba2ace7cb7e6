//! Keeps the process's metrics and writes them in Prometheus' text format. Installed only where
//! somebody can ask for them; without it each count costs next to nothing.
//!
//! Source of the format: Prometheus documentation, "Exposition formats".

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

use crate::metrics::help;

/// Upper bounds of the buckets of every histogram, in seconds.
const BOUNDS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

/// All series of the process. Clones share them.
#[derive(Clone, Default)]
pub struct Exporter(Arc<Mutex<Series>>);

#[derive(Default)]
struct Series {
    /// By name, then by labels as they are written.
    counters: BTreeMap<String, BTreeMap<String, Arc<AtomicU64>>>,
    gauges: BTreeMap<String, BTreeMap<String, Arc<AtomicU64>>>,
    histograms: BTreeMap<String, BTreeMap<String, Arc<Buckets>>>,
}

/// One histogram's counts.
#[derive(Default)]
struct Buckets(Mutex<Counts>);

#[derive(Clone, Default)]
struct Counts {
    /// Values up to each bound and above the one before.
    within: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = BOUNDS.iter().position(|bound| value <= *bound) {
            counts.within[index] += 1;
        }
        counts.count += 1;
        counts.sum += value;
    }
}

impl Exporter {
    /// Has all metrics of this process be kept. Only the first exporter of a process is.
    #[must_use]
    pub fn install() -> Self {
        let exporter = Self::default();
        // Fails only when there is one already, as in tests: then this one stays empty.
        let _ = metrics::set_global_recorder(exporter.clone());
        exporter
    }

    /// All series as text.
    #[must_use]
    pub fn render(&self) -> String {
        let series = self.lock();
        let mut text = String::new();
        for (kind, all) in [("counter", &series.counters), ("gauge", &series.gauges)] {
            for (name, by_labels) in all {
                head(&mut text, name, kind);
                for (labels, value) in by_labels {
                    let value = value.load(Ordering::Relaxed);
                    let _ = match kind {
                        "counter" => writeln!(text, "{name}{} {value}", braces(labels)),
                        _ => {
                            writeln!(text, "{name}{} {}", braces(labels), f64::from_bits(value))
                        }
                    };
                }
            }
        }
        for (name, by_labels) in &series.histograms {
            head(&mut text, name, "histogram");
            for (labels, buckets) in by_labels {
                let counts = buckets.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
                write_buckets(&mut text, name, labels, &counts);
            }
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Series> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn head(text: &mut String, name: &str, kind: &str) {
    let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", help(name));
}

fn write_buckets(text: &mut String, name: &str, labels: &str, counts: &Counts) {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut so_far = 0;
    for (bound, within) in BOUNDS.iter().zip(counts.within) {
        so_far += within;
        let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {so_far}");
    }
    let Counts { count, sum, .. } = counts;
    let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(text, "{name}_sum{} {sum}", braces(labels));
    let _ = writeln!(text, "{name}_count{} {count}", braces(labels));
}

fn braces(labels: &str) -> String {
    if labels.is_empty() { String::new() } else { format!("{{{labels}}}") }
}

/// A key's labels as they are written, without the braces.
fn labels(key: &Key) -> String {
    let mut text = String::new();
    for label in key.labels() {
        let comma = if text.is_empty() { "" } else { "," };
        let value = label.value().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{comma}{}=\"{value}\"", label.key());
    }
    text
}

/// The series of a key, made where there is none.
fn series<T: Default>(all: &mut BTreeMap<String, BTreeMap<String, Arc<T>>>, key: &Key) -> Arc<T> {
    all.entry(key.name().to_owned()).or_default().entry(labels(key)).or_default().clone()
}

impl Recorder for Exporter {
    // What each metric is stands in `metrics.rs`.
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(series(&mut self.lock().counters, key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(series(&mut self.lock().gauges, key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(series(&mut self.lock().histograms, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_written_by_name_and_labels() {
        let exporter = Exporter::default();
        metrics::with_local_recorder(&exporter, || {
            metrics::counter!("a_total", "queue" => "q\"\\\n").increment(2);
            metrics::counter!("a_total", "queue" => "q\"\\\n").increment(1);
            metrics::gauge!("b").set(1.5);
            metrics::histogram!("c_seconds", "job" => "j").record(0.2);
            metrics::histogram!("c_seconds", "job" => "j").record(1e9);
        });
        let text = exporter.render();
        for line in [
            "# TYPE a_total counter",
            "a_total{queue=\"q\\\"\\\\\\n\"} 3",
            "b 1.5",
            "c_seconds_bucket{job=\"j\",le=\"0.1\"} 0",
            "c_seconds_bucket{job=\"j\",le=\"0.25\"} 1",
            "c_seconds_bucket{job=\"j\",le=\"+Inf\"} 2",
            "c_seconds_count{job=\"j\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
