//! Counters, gauges and histograms, shown as Prometheus text.
//!
//! This room owns the numbers of one process. A family has at most [`MAX_SERIES`] series: further label values
//! are counted together under `other`, so that memory is bounded whatever a label holds.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Series that one family may have before the rest are counted as `other`.
pub const MAX_SERIES: usize = 256;

/// Upper bounds of a histogram's buckets, in microseconds: 50 µs to 30 s.
const BOUNDS_US: [u64; 14] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 100_000, 500_000, 2_000_000, 10_000_000, 30_000_000];

/// A number that only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// What it counted so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Durations, counted in fixed buckets.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.0.counts[bucket].fetch_add(1, Relaxed);
        self.0.sum_us.fetch_add(us, Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Relaxed)).sum()
    }
}

type GaugeFn = Arc<dyn Fn() -> f64 + Send + Sync>;

#[derive(Clone)]
enum Metric {
    Counter(Counter),
    Gauge(Gauge),
    GaugeFn(GaugeFn),
    Histogram(Histogram),
}

struct Family {
    help: &'static str,
    kind: &'static str,
    series: BTreeMap<String, Metric>,
}

/// All metrics of one process; clones share them.
#[derive(Clone, Default)]
pub struct Metrics {
    families: Arc<Mutex<BTreeMap<&'static str, Family>>>,
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The counter of this name and labels, made on first use. Names end in `_total`.
    ///
    /// Panics when the name is already one of another kind: a mistake in the program.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Counter {
        match self.series(name, help, "counter", labels, || Metric::Counter(Counter::default())) {
            Metric::Counter(counter) => counter,
            _ => panic!("metric {name} is not a counter"),
        }
    }

    /// The gauge of this name and labels, made on first use. Panics as [`Metrics::counter`].
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Gauge {
        match self.series(name, help, "gauge", labels, || Metric::Gauge(Gauge::default())) {
            Metric::Gauge(gauge) => gauge,
            _ => panic!("metric {name} is not a set gauge"),
        }
    }

    /// A gauge that is computed when it is asked for; `value` must be quick and take no lock for long.
    pub fn gauge_fn(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        self.series(name, help, "gauge", labels, || Metric::GaugeFn(Arc::new(value)));
    }

    /// The histogram of durations of this name and labels, shown in seconds. Panics as [`Metrics::counter`].
    pub fn histogram(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Histogram {
        match self.series(name, help, "histogram", labels, || Metric::Histogram(Histogram::default())) {
            Metric::Histogram(histogram) => histogram,
            _ => panic!("metric {name} is not a histogram"),
        }
    }

    fn series(
        &self,
        name: &'static str,
        help: &'static str,
        kind: &'static str,
        labels: &[(&str, &str)],
        make: impl FnOnce() -> Metric,
    ) -> Metric {
        let mut families = self.families.lock();
        let family = families.entry(name).or_insert_with(|| Family { help, kind, series: BTreeMap::new() });
        assert_eq!(family.kind, kind, "metric {name} is used as two kinds");
        let mut key = label_text(labels);
        if family.series.len() >= MAX_SERIES && !family.series.contains_key(&key) {
            let others: Vec<_> = labels.iter().map(|(label, _)| (*label, "other")).collect();
            key = label_text(&others);
        }
        family.series.entry(key).or_insert_with(make).clone()
    }

    /// All of them as Prometheus text, version 0.0.4.
    pub fn render(&self) -> String {
        // Copied first, so that a slow callback does not hold up whoever registers a series.
        let families: Vec<_> = {
            let families = self.families.lock();
            families.iter().map(|(name, f)| (*name, f.help, f.kind, f.series.clone())).collect()
        };
        let mut out = String::new();
        for (name, help, kind, series) in families {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, metric) in series {
                render_series(&mut out, name, &labels, &metric);
            }
        }
        out
    }
}

fn render_series(out: &mut String, name: &str, labels: &str, metric: &Metric) {
    let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let _ = match metric {
        Metric::Counter(counter) => writeln!(out, "{name}{braced} {}", counter.get()),
        Metric::Gauge(gauge) => writeln!(out, "{name}{braced} {}", gauge.get()),
        Metric::GaugeFn(value) => writeln!(out, "{name}{braced} {}", value()),
        Metric::Histogram(histogram) => {
            render_histogram(out, name, labels, &braced, histogram);
            Ok(())
        }
    };
}

fn render_histogram(out: &mut String, name: &str, labels: &str, braced: &str, histogram: &Histogram) {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut total = 0;
    for (i, count) in histogram.0.counts.iter().enumerate() {
        total += count.load(Relaxed);
        let bound = BOUNDS_US.get(i).map_or("+Inf".into(), |us| format!("{}", *us as f64 / 1e6));
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
    }
    let sum = histogram.0.sum_us.load(Relaxed) as f64 / 1e6;
    let _ = writeln!(out, "{name}_sum{braced} {sum}\n{name}_count{braced} {total}");
}

fn label_text(labels: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (label, value) in labels {
        if !text.is_empty() {
            text.push(',');
        }
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{label}=\"{value}\"");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_name_and_labels_are_one_counter() {
        let metrics = Metrics::new();
        metrics.counter("gfs_x_total", "X.", &[("op", "read")]).add(2);
        metrics.counter("gfs_x_total", "X.", &[("op", "read")]).increment();
        metrics.gauge("gfs_y", "Y.", &[]).set(-4);
        metrics.gauge_fn("gfs_z", "Z.", &[], || 1.5);
        assert_eq!(
            metrics.render(),
            "# HELP gfs_x_total X.\n# TYPE gfs_x_total counter\ngfs_x_total{op=\"read\"} 3\n\
             # HELP gfs_y Y.\n# TYPE gfs_y gauge\ngfs_y -4\n# HELP gfs_z Z.\n# TYPE gfs_z gauge\ngfs_z 1.5\n"
        );
    }

    #[test]
    fn histogram_buckets_are_cumulative_and_bounds_inclusive() {
        let metrics = Metrics::new();
        let histogram = metrics.histogram("gfs_t_seconds", "T.", &[("op", "a")]);
        histogram.observe(Duration::from_micros(50));
        histogram.observe(Duration::from_millis(3));
        histogram.observe(Duration::from_secs(100));
        let text = metrics.render();
        assert!(text.contains("gfs_t_seconds_bucket{op=\"a\",le=\"0.00005\"} 1\n"), "{text}");
        assert!(text.contains("gfs_t_seconds_bucket{op=\"a\",le=\"0.005\"} 2\n"), "{text}");
        assert!(text.contains("gfs_t_seconds_bucket{op=\"a\",le=\"30\"} 2\n"), "{text}");
        assert!(text.contains("gfs_t_seconds_bucket{op=\"a\",le=\"+Inf\"} 3\n"), "{text}");
        assert!(text.contains("gfs_t_seconds_count{op=\"a\"} 3\n"), "{text}");
    }

    #[test]
    fn label_values_beyond_the_bound_are_counted_together() {
        let metrics = Metrics::new();
        for i in 0..MAX_SERIES + 10 {
            metrics.counter("gfs_peer_total", "P.", &[("peer", &i.to_string())]).increment();
        }
        assert_eq!(metrics.counter("gfs_peer_total", "P.", &[("peer", "other")]).get(), 10);
        assert_eq!(metrics.render().lines().count(), MAX_SERIES + 1 + 2);
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(label_text(&[("p", "a\"b\\c\nd")]), "p=\"a\\\"b\\\\c\\nd\"");
    }
}
