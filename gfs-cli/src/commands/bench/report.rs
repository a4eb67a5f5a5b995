//! The figures of a run: shown as they come, kept in a file, set beside those of another.

use crate::output;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What one step came to.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) unit: String,
    /// In `unit`.
    pub(super) rate: f64,
    pub(super) seconds: f64,
    /// Of one call, in microseconds.
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

/// How a run was made.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct Settings {
    pub(super) size: u64,
    pub(super) files: u32,
    pub(super) jobs: u16,
    pub(super) seconds: u64,
}

/// A whole run.
#[derive(Serialize, Deserialize, Debug)]
pub(super) struct Saved {
    version: String,
    directory: String,
    settings: Settings,
    pub(super) steps: Vec<Step>,
}

impl Saved {
    /// Reads what an earlier run kept.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no saved run of gfs bench", file.display()))
    }

    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.name == name)
    }
}

/// Collects a run.
pub(super) struct Report {
    json: bool,
    before: Option<Saved>,
    steps: Vec<Step>,
}

impl Report {
    pub(super) fn new(json: bool, before: Option<Saved>) -> Self {
        Self { json, before, steps: Vec::new() }
    }

    /// Takes a step, and shows it unless all are shown as JSON at the end.
    pub(super) fn add(&mut self, step: Step) -> Result<()> {
        if !self.json {
            if self.steps.is_empty() {
                let more = if self.before.is_some() { "      before   ratio" } else { "" };
                output::line(format_args!("{:<22}{:>12} {:<6}{:>10}{:>11}{more}", "STEP", "RATE", "", "P50", "P99"))?;
            }
            output::line(line(&step, self.before.as_ref()))?;
        }
        self.steps.push(step);
        Ok(())
    }

    /// The whole run, which is shown as JSON if that was asked for.
    pub(super) fn end(self, settings: Settings, directory: &Path) -> Result<Saved> {
        if let Some(before) = self.before.filter(|before| before.settings != settings) {
            let Settings { size, files, jobs, seconds } = before.settings;
            eprintln!(
                "gfs bench: the run before was made with --size {size} --files {files} --jobs {jobs} --seconds {seconds}"
            );
        }
        let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned()).display().to_string();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let saved = Saved { version, directory, settings, steps: self.steps };
        if self.json {
            output::json(&saved)?;
        }
        Ok(saved)
    }
}

fn line(step: &Step, before: Option<&Saved>) -> String {
    let Step { name, unit, rate, p50_us, p99_us, .. } = step;
    let mut text = format!("{name:<22}{rate:>12.1} {unit:<6}{p50_us:>7.1} us{p99_us:>8.1} us");
    if let Some(before) = before.and_then(|before| before.step(name)).filter(|before| before.rate > 0.0) {
        text += &format!("{:>12.1}{:>8.2}", before.rate, rate / before.rate);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(rate: f64) -> Step {
        let (name, unit) = ("create".to_owned(), "ops/s".to_owned());
        Step { name, unit, rate, seconds: 1.0, p50_us: 10.25, p99_us: 99.0 }
    }

    #[test]
    fn line_shows_the_step_and_what_it_was_before() {
        let shown = line(&step(300.0), None);
        assert_eq!(shown, "create                       300.0 ops/s    10.2 us    99.0 us");
        let settings = Settings { size: 1, files: 1, jobs: 1, seconds: 1 };
        let before = Saved { version: String::new(), directory: String::new(), settings, steps: vec![step(200.0)] };
        assert!(line(&step(300.0), Some(&before)).ends_with("       200.0    1.50"));
        assert_eq!(line(&Step { name: "other".into(), ..step(1.0) }, Some(&before)).split_whitespace().count(), 7);
    }
}
