//! `gfs bench [DIR]`: how fast a directory is, whatever file system it is on: sequential, random, names, small files.
//!
//! It looks at the file system as programs do, through system calls, so that it measures a mount of gfs and anything beside it alike.

mod measure;
mod report;
mod steps;

use crate::human;
use anyhow::{Context, Result, bail};
use report::{Report, Saved, Settings};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Arguments of `gfs bench`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A directory of the file system to measure; everything happens in a new one in it, which is removed
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Length of the large file, of each job
    #[arg(long, default_value = "256M", value_name = "SIZE", value_parser = human::parse_size)]
    size: u64,
    /// Names, and small files, of each job
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    files: u32,
    /// Jobs at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Longest time of one step
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Only these groups
    #[arg(long, value_enum, value_delimiter = ',', value_name = "GROUP[,GROUP...]")]
    only: Vec<Group>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Keep the figures in a file, for --compare
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Show them beside those of an earlier run
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

/// Steps that belong together.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Group {
    /// A large file from its beginning to its end
    Seq,
    /// Pieces of 4 KiB anywhere in it, and appends
    Rand,
    /// Names: making, looking, moving, removing
    Names,
    /// Files of 4 KiB
    Small,
}

const GROUPS: [Group; 4] = [Group::Seq, Group::Rand, Group::Names, Group::Small];

/// What every step needs to know.
struct Setting {
    place: PathBuf,
    asked: Settings,
    interrupted: Arc<AtomicBool>,
}

/// Measures, and shows and keeps the figures.
pub fn run(args: &Args) -> Result<ExitCode> {
    let before = args.compare.as_deref().map(Saved::read).transpose()?;
    let runtime = super::runtime()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let place = tempfile::Builder::new().prefix(".gfs-bench.").tempdir_in(&args.dir);
    let place = place.with_context(|| format!("cannot make a directory in {}", args.dir.display()))?;
    let setting = Setting {
        place: place.path().to_owned(),
        asked: Settings {
            size: args.size.next_multiple_of(measure::PIECE as u64).max(measure::PIECE as u64),
            files: args.files,
            jobs: args.jobs,
            seconds: args.seconds,
        },
        interrupted: interrupted.clone(),
    };
    runtime.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.store(true, Ordering::Release);
        }
    });
    let mut report = Report::new(args.json, before);
    let measured = GROUPS
        .into_iter()
        .filter(|group| args.only.is_empty() || args.only.contains(group))
        .try_for_each(|group| steps::run(group, &setting, &mut |step| report.add(step)));
    runtime.shutdown_background();
    let cleaned = place.close().with_context(|| format!("cannot remove {}", setting.place.display()));
    if setting.interrupted.load(Ordering::Acquire) {
        bail!("interrupted");
    }
    measured?;
    cleaned?;
    let saved = report.end(setting.asked, &args.dir)?;
    if let Some(file) = &args.save {
        saved.write(file)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The directory of one job of a step.
fn of_job(place: &Path, job: u16) -> PathBuf {
    place.join(format!("j{job}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(dir: &Path, more: &[&str]) -> Args {
        let dir = dir.to_str().unwrap();
        let quick = ["bench", dir, "--size", "2M", "--files", "20", "--seconds", "1"];
        Line::parse_from(quick.iter().chain(more)).args
    }

    #[test]
    fn every_step_is_measured_saved_and_cleaned_up() {
        let dir = tempfile::tempdir().unwrap();
        let saved = tempfile::NamedTempFile::new().unwrap();
        let file = saved.path().to_str().unwrap();
        run(&args(dir.path(), &["--json", "--jobs", "2", "--save", file])).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
        let saved = Saved::read(saved.path()).unwrap();
        let names: Vec<&str> = saved.steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(names.len(), 17, "{names:?}");
        for step in &saved.steps {
            assert!(step.rate > 0.0 && step.p50_us <= step.p99_us, "{step:?}");
        }
        run(&args(dir.path(), &["--only", "names", "--compare", file])).unwrap();
    }

    #[test]
    fn directory_that_is_not_there_and_run_that_cannot_be_read_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let error = run(&args(&dir.path().join("none"), &[])).unwrap_err().to_string();
        assert!(error.contains("cannot make a directory in"), "{error}");
        let other = dir.path().join("other");
        std::fs::write(&other, "not a run").unwrap();
        let error = run(&args(dir.path(), &["--compare", other.to_str().unwrap()])).unwrap_err().to_string();
        assert!(error.contains("is no saved run"), "{error}");
    }
}
